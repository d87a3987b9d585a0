"""What the studies share: Records by level and seed, picks on validation, and claims as tests.

A study asks for Runs and receives their Records in the same order. :class:`LevelGrid` holds those
of one problem, :class:`Claim` turns a difference into a verdict and a sentence. A level that the
training never reached says nothing about flooding: it is reported as not tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from flooding.report.level_figures import LevelCurve
from flooding.report.stats import Difference, adjust, format_mean_sd, format_p, paired
from flooding.training.problem import Problem
from flooding.training.record import Record, select_best
from flooding.training.run import Run

__all__ = [
    "COMPARISONS",
    "LOSS_COLUMNS",
    "MIN_FLOODED_SHARE",
    "ROWS",
    "Cell",
    "Claim",
    "Comparison",
    "Epoch",
    "Judgement",
    "LevelGrid",
    "Sentences",
    "all_runs",
    "choose_seeds",
    "chunk",
    "count_of",
    "flooded_percent",
    "format_levels",
    "format_percent_range",
    "fraction_until_below",
    "is_reached",
    "judge",
    "level_grids",
    "loss_row",
    "metric_values",
    "row_epoch",
    "run_of",
    "split_by_verdict",
]

Epoch: TypeAlias = Literal["best", "last"]
"""The epoch a training is judged at: the last, or the best on validation (early stopping)."""

T = TypeVar("T")
CellT = TypeVar("CellT", bound="Cell")

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
    """Choose the seeds of a study.

    Args:
        seeds: The user's, or None.
        default: How many there are otherwise.

    Returns:
        The seeds.
    """
    return tuple(range(default)) if seeds is None else tuple(seeds)


def chunk(items: Sequence[T], size: int) -> list[list[T]]:
    """Cut a sequence into lists of equal length.

    Args:
        items: The sequence; its length is a multiple of ``size``.
        size: Length of a list.

    Returns:
        The lists, in order.

    Example:
        >>> chunk([1, 2, 3, 4], 2)
        [[1, 2], [3, 4]]
    """
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def run_of(record: Record) -> Run:
    """Give the Run of a Record that has one.

    Args:
        record: A Record of a study.

    Returns:
        Its Run.
    """
    assert record.run is not None
    return record.run


def metric_values(
    records: Iterable[Record], name: str, scale: float = 1.0, at: Epoch = "last"
) -> list[float]:
    """List a metric of several Records.

    Args:
        records: One Record a seed.
        name: The metric without its epoch, such as ``test_accuracy``.
        scale: Factor, such as 100 for percent.
        at: The epoch.

    Returns:
        A number for each Record.
    """
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


def is_reached(record: Record, at: Epoch = "last") -> bool:
    """Tell whether the training loss reached the level, by more than a stray batch.

    Args:
        record: A Record of a constant level.
        at: See :func:`flooded_percent`.

    Returns:
        Whether at least :data:`MIN_FLOODED_SHARE` of the steps were below the level.
    """
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
    """Write fractions as a range of percentages.

    Args:
        fractions: Numbers from 0 to 1.

    Returns:
        Such as ``18 to 24 %``.

    Example:
        >>> format_percent_range([0.24, 0.18]), format_percent_range([0.5])
        ('18 to 24 %', '50 %')
    """
    lowest, highest = f"{100 * min(fractions):.0f}", f"{100 * max(fractions):.0f}"
    return f"{lowest} %" if lowest == highest else f"{lowest} to {highest} %"


def count_of(flags: Iterable[bool]) -> str:
    """Count how many of several things are true.

    Args:
        flags: Whether each is.

    Returns:
        Such as ``3 of 4``.

    Example:
        >>> count_of([True, False])
        '1 of 2'
    """
    flags = list(flags)
    return f"{sum(flags)} of {len(flags)}"


def format_levels(levels: Iterable[float]) -> str:
    """List levels for a sentence.

    Args:
        levels: Levels in nats.

    Returns:
        The levels with commas between them.

    Example:
        >>> format_levels([0.0, 0.25])
        '0, 0.25'
    """
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
    """Tell at which epoch a row of :data:`ROWS` is judged.

    Args:
        row: The row.

    Returns:
        The epoch.
    """
    return "best" if row.endswith("stopped") else "last"


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

    def curve(self, name: str, scale: float = 1.0) -> LevelCurve:
        """Give a test metric at every level, for a figure."""
        values = np.array([metric_values(row, name, scale) for row in self.records])
        return LevelCurve(values, float(np.mean(self.values("plain, stopped", name, scale))))

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

    def values(self, row: str, name: str, scale: float = 1.0) -> list[float]:
        """List a metric of the picks, at the epoch of the row."""
        return metric_values(self.picks(row), name, scale, row_epoch(row))

    def pairs(self, row: str, against: str) -> list[tuple[Record, Record]]:
        """Pair the picks of two rows, in the seeds that have both.

        Returns:
            The pairs; none where the finder chose no flooding at all, which is plain training.
        """
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


def loss_row(grid: LevelGrid) -> list[str]:
    """Write test NLL and ECE of all rows, the cells of :data:`LOSS_COLUMNS`.

    Args:
        grid: The grid.

    Returns:
        Mean and standard deviation over seeds.
    """
    cells = []
    for name in ("test_nll", "test_ece"):
        cells += [format_mean_sd(grid.values(row, name), 3) for row in ROWS]
    return cells


def all_runs(cells: Sequence[Cell]) -> list[Run]:
    """List the Runs of several cells.

    Args:
        cells: The cells.

    Returns:
        Their Runs, cell by cell.
    """
    return [run for cell in cells for run in cell.runs]


def level_grids(
    cells: Sequence[CellT], records: Sequence[Record], *, reached_only: bool = True
) -> list[LevelGrid[CellT]]:
    """Deal Records to the cells that asked for them.

    Args:
        cells: The cells.
        records: Records of their Runs, cell by cell.
        reached_only: See :class:`LevelGrid`.

    Returns:
        A grid for each cell.
    """
    grids, start = [], 0
    for cell in cells:
        size = len(cell.seeds) * len(cell.levels)
        rows = chunk(records[start : start + size], len(cell.levels))
        grids.append(LevelGrid(cell, rows, reached_only=reached_only))
        start += size
    return grids


@dataclass(frozen=True)
class Claim:
    """A statement of a source, and the difference that decides it.

    Args:
        text: The statement.
        difference: The difference; None where there is nothing to compare.
        unit: Unit of the difference, and what it is.
        sign: Sign of the difference if the statement is true; 0 states that there is none.
        digits: Digits of the difference.
        detail: What the sentence ends with.
        rivals: Number of comparisons of which this one is the hardest (Bonferroni).
    """

    text: str
    difference: Difference | None
    unit: str
    sign: Literal[-1, 0, 1] = 1
    digits: int = 1
    detail: str = ""
    rivals: int = 1


class Judgement(NamedTuple):
    """A claim and its p value after Holm's correction; NaN where it could not be tested."""

    claim: Claim
    p: float

    @property
    def holds(self) -> bool:
        """Whether the claim is shown at 5 %; a claim of no difference must be true exactly."""
        difference, sign = self.claim.difference, self.claim.sign
        if difference is None:
            return False
        if sign == 0:
            return difference.mean == 0
        return self.p < 0.05 and difference.mean * sign > 0

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.holds:
            return "holds"
        if self.claim.sign == 0:
            return "does not hold"
        if math.isnan(self.p):
            return "cannot be tested"
        # The opposite was not planned: the hardest of several rivals was picked.
        return "the opposite holds" if self.p * self.claim.rivals < 0.05 else "not shown"

    @property
    def sentence(self) -> str:
        """The claim, its verdict, and by how much."""
        claim, difference = self.claim, self.claim.difference
        if difference is None:
            return f"{claim.text}: cannot be judged{claim.detail}."
        p = "" if math.isnan(self.p) else f", p {format_p(self.p)}"
        size = f"{difference.format(claim.digits)} {claim.unit}, n = {difference.n}{p}"
        return f"{claim.text}: {self.verdict}; {size}{claim.detail}."


def judge(claims: Sequence[Claim]) -> list[Judgement]:
    """Test claims that were planned together.

    Args:
        claims: The claims.

    Returns:
        A judgement for each, corrected by Holm's method over all of them.
    """
    ps = adjust([claim.difference for claim in claims])
    return [Judgement(claim, p) for claim, p in zip(claims, ps, strict=True)]


@dataclass
class Sentences:
    """Sentences of a report, sorted by whether they say what the source claims.

    Args:
        failures: Claims that do not hold.
        findings: What was found.
    """

    failures: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def add(self, holds: bool, sentence: str) -> None:
        """Add a sentence to one of the lists."""
        (self.findings if holds else self.failures).append(sentence)


def split_by_verdict(judgements: Sequence[Judgement]) -> tuple[list[str], list[str]]:
    """Sort the sentences of judgements.

    Args:
        judgements: From :func:`judge`.

    Returns:
        Sentences of claims that do not hold, then of those that do.
    """
    failures, findings = [], []
    for judgement in judgements:
        (findings if judgement.holds else failures).append(judgement.sentence)
    return failures, findings
