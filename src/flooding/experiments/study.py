"""What the studies share: Records by level and seed, and what validation picks among them.

A study asks for Runs and receives their Records in the same order; :class:`LevelGrid` holds those
of one problem. A level that the training never reached says nothing about flooding: it is reported
as not tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from flooding.report.level_figures import LevelCurve
from flooding.report.stats import Difference, format_mean_sd, paired
from flooding.training.problem import Problem
from flooding.training.record import Record, select_best
from flooding.training.run import Run

Epoch: TypeAlias = Literal["best", "last"]
"""The epoch a training is judged at: the last, or the best on validation (early stopping)."""


T = TypeVar("T")

MIN_FLOODED_SHARE = 0.01  # of the steps, for a level to count as reached; fixed beforehand
# What is compared at the last epoch, then with early stopping.
ROWS = ("plain", "flooding", "plain, stopped", "flooding, stopped")
LOSS_COLUMNS = tuple(f"{row}: {name}" for name in ("NLL", "ECE") for row in ROWS)


class Comparison(NamedTuple):
    """Two rows that are compared.

    Args:
        row: One of :data:`ROWS`, or "finder".
        against: The other.
        name: Name of its table.
        title: The comparison in words.
    """

    row: str
    against: str
    name: str
    title: str


_LATE_AGAINST_STOPPED = "flooding's last epoch against plain early stopping"
COMPARISONS = (
    Comparison("flooding", "plain", "last", "last epoch"),
    Comparison("flooding, stopped", "plain, stopped", "stopped", "early stopping on both sides"),
    Comparison("flooding", "plain, stopped", "against-stopping", _LATE_AGAINST_STOPPED),
)


def choose_seeds(seeds: Sequence[int] | None, default: int) -> tuple[int, ...]:
    """Give the user's seeds, or as many as the study has by default."""
    return tuple(range(default)) if seeds is None else tuple(seeds)


def chunk(items: Sequence[T], size: int) -> list[list[T]]:
    """Cut a sequence into lists of equal length."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def run_of(record: Record) -> Run:
    """Give the Run of a Record, which every Record of a study has."""
    assert record.run is not None
    return record.run


def metric_values(
    records: Iterable[Record], name: str, scale: float = 1.0, at: Epoch = "last"
) -> list[float]:
    """List a metric of several Records, such as ``test_accuracy`` in percent (scale 100)."""
    return [scale * record.metrics[f"{at}.{name}"] for record in records]


def flooded_percent(record: Record, at: Epoch = "last") -> float:
    """Compute the percentage of the steps that were flooded.

    Args:
        record: A Record of a constant level, or of plain training.
        at: Count the steps up to the last epoch, or up to the best one. Weights of a best epoch
            without a flooded step before it are those of plain training.

    Returns:
        Percent.
    """
    end = int(record.metrics["best.epoch"]) + 1 if at == "best" else None
    return 100 * float(np.mean(record.curves["flooded"][1:end], dtype=float))


def format_metric(
    records: Iterable[Record], name: str, scale: float = 1.0, at: Epoch = "last", digits: int = 1
) -> str:
    """Write mean and standard deviation of :func:`metric_values`."""
    return format_mean_sd(metric_values(records, name, scale, at), digits)


def format_flooded(records: Iterable[Record], at: Epoch = "last") -> str:
    """Write mean and standard deviation of :func:`flooded_percent`."""
    return format_mean_sd([flooded_percent(record, at) for record in records])


def is_reached(record: Record, at: Epoch = "last") -> bool:
    """Tell whether the training loss reached the level, by more than a stray batch."""
    return flooded_percent(record, at) >= 100 * MIN_FLOODED_SHARE


def fraction_until_below(plain: Sequence[Record], level: float) -> list[float]:
    """Tell when plain training first falls below a level, so that flooding could begin.

    Args:
        plain: Records of plain training.
        level: The level, in nats.

    Returns:
        For each Record the fraction of its epochs; NaN where the loss never falls below the level.
    """
    fractions = []
    for record in plain:
        below = record.curves["train_loss"][1:] < level
        fractions.append(float(below.argmax() + 1) / len(below) if below.any() else math.nan)
    return fractions


def format_percent_range(fractions: Sequence[float]) -> str:
    """Write fractions as a range of percentages, such as ``18 to 24 %``."""
    lowest, highest = f"{100 * min(fractions):.0f}", f"{100 * max(fractions):.0f}"
    return f"{lowest} %" if lowest == highest else f"{lowest} to {highest} %"


def format_levels(levels: Iterable[float]) -> str:
    """List levels for a sentence, such as ``0, 0.25``."""
    return ", ".join(f"{level:g}" for level in levels)


@dataclass(frozen=True)
class Cell:
    """One problem in one setting, at several levels with several seeds.

    Args:
        title: Its name for a reader.
        problem: What is trained.
        levels: Flood levels in nats, 0 first.
        seeds: Seeds.
    """

    title: str
    problem: Problem
    levels: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> list[Run]:
        """Every level with every seed, seeds first."""
        return [Run(self.problem, level, seed=seed) for seed in self.seeds for level in self.levels]


def row_epoch(row: str) -> Epoch:
    """Tell at which epoch a row of :data:`ROWS` is judged."""
    return "best" if row.endswith("stopped") else "last"


CellT = TypeVar("CellT", bound=Cell)


@dataclass(frozen=True)
class LevelGrid(Generic[CellT]):
    """The Records of a cell, and what validation picks among them.

    Args:
        cell: The cell.
        records: Records by seed, then by level.
        finder: The training that the finder chose for each seed, where it was asked.
        reached_only: Whether flooding is picked only among the levels that were reached. Where
            none was, the seed has no pick.
    """

    cell: CellT
    records: list[list[Record]]
    finder: Sequence[Record] = ()
    reached_only: bool = True

    def at(self, level: float) -> list[Record]:
        """Give the Records at a level, one a seed."""
        index = self.cell.levels.index(level)
        return [row[index] for row in self.records]

    def count_reached(self, level: float) -> int:
        """Count the seeds in which a level was reached."""
        return sum(is_reached(record) for record in self.at(level))

    def pick(self, row: str, index: int) -> Record | None:
        """Pick the best training of a seed on validation.

        Args:
            row: One of :data:`ROWS`, or "finder".
            index: Index of the seed.

        Returns:
            A Record; None where no level above 0 was reached before the row's epoch.
        """
        if row == "finder":
            return self.finder[index]
        at = row_epoch(row)
        # The level 0 comes first.
        plain, *candidates = self.records[index]
        if row.startswith("plain"):
            candidates = [plain]
        elif self.reached_only:
            candidates = [record for record in candidates if is_reached(record, at)]
        return select_best(candidates, at) if candidates else None

    def picks(self, row: str) -> list[Record]:
        """Pick for every seed, and leave out seeds without a pick."""
        picks = [self.pick(row, index) for index in range(len(self.records))]
        return [record for record in picks if record is not None]

    def levels(self, row: str) -> list[float]:
        """List the levels of the picks; 0 is plain training."""
        return [record.level or 0.0 for record in self.picks(row)]

    def values(self, row: str, name: str, scale: float = 1.0) -> list[float]:
        """List a metric of the picks, at the epoch of the row."""
        return metric_values(self.picks(row), name, scale, row_epoch(row))

    def pairs(self, row: str, against: str) -> list[tuple[Record, Record]]:
        """Pair the picks of two rows, in the seeds that have both."""
        # A finder that chose no flooding in any seed is plain training.
        if (row, against) == ("finder", "plain") and not any(r.level for r in self.finder):
            return []
        pairs = []
        for index in range(len(self.records)):
            a, b = self.pick(row, index), self.pick(against, index)
            if a is not None and b is not None:
                pairs.append((a, b))
        return pairs

    def gain(self, row: str, against: str, name: str = "test_accuracy") -> Difference | None:
        """Compare two rows by a metric in percent; None where there is no pair."""
        pairs = self.pairs(row, against)
        if not pairs:
            return None
        a = metric_values([pair[0] for pair in pairs], name, 100.0, row_epoch(row))
        b = metric_values([pair[1] for pair in pairs], name, 100.0, row_epoch(against))
        return paired(a, b)

    def curve(self, name: str, scale: float = 1.0) -> LevelCurve:
        """Give a test metric at every level, for a figure."""
        values = np.array([metric_values(row, name, scale) for row in self.records])
        return LevelCurve(values, float(np.mean(self.values("plain, stopped", name, scale))))

    @property
    def loss_cells(self) -> list[str]:
        """Test NLL and ECE of all rows, the cells of :data:`LOSS_COLUMNS`."""
        cells = []
        for name in ("test_nll", "test_ece"):
            cells += [format_mean_sd(self.values(row, name), 3) for row in ROWS]
        return cells


def all_runs(cells: Sequence[Cell]) -> list[Run]:
    """List the Runs of several cells."""
    return [run for cell in cells for run in cell.runs]


def level_grids(
    cells: Sequence[CellT], records: Sequence[Record], *, reached_only: bool = True
) -> list[LevelGrid[CellT]]:
    """Deal Records, in the order of :func:`all_runs`, to the cells that asked for them."""
    grids, start = [], 0
    # The Records of a cell follow each other, seeds first.
    for cell in cells:
        size = len(cell.seeds) * len(cell.levels)
        rows = chunk(records[start : start + size], len(cell.levels))
        grids.append(LevelGrid(cell, rows, reached_only=reached_only))
        start += size
    return grids
