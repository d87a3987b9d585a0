"""What the double descent experiments compare: test curves with and without flooding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from flooding.report.descents import Descents, find_descents
from flooding.report.level_grid import Cell, LevelGrid
from flooding.report.record_metrics import is_reached, level_cap
from flooding.report.stats import Difference, adjust, holm, mcnemar, paired, paired_or_none
from flooding.training.archive import to_half
from flooding.training.record import Record

__all__ = ["FACTORS", "MEASURES", "Condition", "DescentRow", "Group", "Measure", "Section"]
__all__ += ["count_lasting", "count_without_rise", "measured_curve", "second_descents"]

# What the conditions of the digits combine.
FACTORS = ("augmentation", "rate decay", "weight decay")


@dataclass(frozen=True)
class Condition(Cell):
    """One problem, with a test curve, its levels and seeds.

    Args:
        factors: Which of :data:`FACTORS` it has.
        noise: Share of wrong labels among the training examples; None where it is unknown.
        is_test_noisy: Whether the test labels that the model is also judged by have that noise, so
            that its test loss says as much of the level as its validation loss.
    """

    factors: tuple[str, ...] = ()
    noise: float | None = None
    is_test_noisy: bool = True


class Group(NamedTuple):
    """Conditions that are tabulated and drawn together, with their Records."""

    # One of "synthetic", "digits" and "cifar10".
    name: str
    title: str
    grids: Sequence[LevelGrid[Condition]]

    @property
    def num_seeds(self) -> int:
        """Number of seeds of each condition."""
        return len(self.grids[0].cell.seeds)

    @property
    def has_factors(self) -> bool:
        """Whether any condition has one of :data:`FACTORS`."""
        return any(grid.cell.factors for grid in self.grids)


class Measure(NamedTuple):
    """What is judged, loss or error: its name, its curve, and how it is written."""

    name: str
    curve: str
    unit: str
    digits: int


# What the curves measure.
MEASURES = (Measure("loss", "test_loss", "nats", 3), Measure("error", "test_accuracy", "%", 1))


def _rounded(record: Record, name: str) -> np.ndarray:
    """Round a curve as an archive does, so that a report from an archive says the same."""
    return to_half(record.curves[name]).astype(np.float64)


def measured_curve(record: Record, measure: Measure) -> np.ndarray:
    """Give test loss in nats or test error in percent, on clean labels where there are any."""
    name = measure.curve
    if f"{name}_clean" in record.curves:
        name = f"{name}_clean"
    curve = _rounded(record, name)
    if measure.name == "loss":
        return curve
    # The curve is one of accuracies.
    return 100 * (1 - curve)


def _descents(record: Record, measure: Measure) -> Descents:
    curve = measured_curve(record, measure)
    return find_descents(curve, np.arange(len(curve)))


def _flooded_percent(record: Record) -> float:
    """Compute the percentage of flooded steps from the first epoch that has one."""
    curve = _rounded(record, "flooded")
    is_flooded = curve > 0
    if not is_flooded.any():
        return 0.0
    return 100 * float(np.nanmean(curve[is_flooded.argmax() :]))


def _ends(descents: Sequence[Descents]) -> list[float]:
    return [curve.end for curve in descents]


def _are_lasting(descents: Sequence[Descents]) -> list[bool]:
    return [curve.lasting for curve in descents]


def count_lasting(descents: Sequence[Descents]) -> int:
    """Count the curves whose second descent lasts."""
    return sum(_are_lasting(descents))


def count_without_rise(descents: Sequence[Descents]) -> int:
    """Count the curves that never rise, so that they cannot descend again."""
    return sum(curve.peak is None for curve in descents)


def second_descents(descents: Sequence[Descents]) -> list[Descents]:
    """List the curves with a second descent."""
    return [curve for curve in descents if curve.second is not None]


@dataclass
class DescentRow:
    """A condition at a level, by one measure: the curves of the seeds that reached the level.

    ``flooded`` and ``plain`` are the same seeds, with and without flooding. Until the level is
    reached both take the same steps, so leaving seeds out selects nothing by its outcome; nor does
    leaving out those in which the level lies above the cap of plain training, of which there are
    ``num_above_cap``. The row of level 0 has all seeds, and both are the same trainings.
    """

    condition: Condition
    level: float
    num_above_cap: int = 0
    seeds: list[int] = field(default_factory=list)
    flooded_percent: list[float] = field(default_factory=list)
    flooded: list[Descents] = field(default_factory=list)
    plain: list[Descents] = field(default_factory=list)

    @property
    def is_tested(self) -> bool:
        """Whether it is about flooding, and a seed reached the level."""
        return self.level > 0 and len(self.seeds) > 0

    @property
    def second(self) -> list[Descents]:
        """Curves with a second descent."""
        return second_descents(self.flooded)

    @property
    def lasting(self) -> int:
        """Number of seeds whose second descent lasts."""
        return count_lasting(self.flooded)

    @property
    def brings_descent(self) -> bool:
        """Whether half of the seeds have a lasting descent, and more of them than without."""
        return 2 * self.lasting >= len(self.seeds) and self.lasting > count_lasting(self.plain)

    @property
    def second_minus_first(self) -> Difference | None:
        """The second minimum against the first, over the seeds that have both."""
        pairs = []
        for curve in self.second:
            assert curve.second is not None
            pairs.append((curve.second.value, curve.first.value))
        return paired_or_none(pairs)

    @property
    def end_minus_plain(self) -> Difference | None:
        """The end with flooding against the end without: both have the same first minimum."""
        if not self.is_tested:
            return None
        return paired(_ends(self.flooded), _ends(self.plain))

    @property
    def p_lasting(self) -> float:
        """Exact p of lasting descents with flooding against without; NaN for plain training."""
        if not self.is_tested:
            return math.nan
        return mcnemar(_are_lasting(self.flooded), _are_lasting(self.plain))


class Section:
    """The rows of a group by one measure; their p values are corrected together."""

    def __init__(self, group: Group, measure: Measure) -> None:
        self.group, self.measure = group, measure
        self.rows: list[DescentRow] = []
        for grid in group.grids:
            for level in grid.cell.levels:
                self.rows.append(_make_row(grid, level, measure))
        self.tested = [row for row in self.rows if row.is_tested]
        # Three questions, each a family of tests over the tested rows.
        self.p_lasting = holm([row.p_lasting for row in self.rows])
        self.p_second = adjust([row.second_minus_first for row in self.rows])
        self.p_end = adjust([row.end_minus_plain for row in self.rows])


def _make_row(grid: LevelGrid[Condition], level: float, measure: Measure) -> DescentRow:
    """Analyse the curves of the seeds that reached a level, with and without flooding."""
    row = DescentRow(grid.cell, level)
    pairs = zip(grid.cell.seeds, grid.at(level), grid.at(0.0), strict=True)
    for seed, record, plain in pairs:
        # Above the cap it is not a candidate.
        if level > _cap(grid.cell, plain):
            row.num_above_cap += 1
        # Plain training has no level to reach.
        elif level == 0 or is_reached(record):
            row.seeds.append(seed)
            row.flooded_percent.append(_flooded_percent(record))
            row.flooded.append(_descents(record, measure))
            row.plain.append(_descents(plain, measure))
    return row


def _cap(condition: Condition, plain: Record) -> float:
    """Give the cap of the level: the lowest validation loss of plain training."""
    cap = level_cap(plain)
    # Older archives have no curve of the validation loss, but one of the test loss.
    if "val_loss" in plain.curves or not condition.is_test_noisy:
        return cap
    # With the noisy labels, where the test labels have noise.
    return float(np.nanmin([cap, np.nanmin(plain.curves["test_loss"][1:])]))
