"""Records by level and seed of one problem, and what validation picks among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from flooding.averaging import Monitor
from flooding.report.level_figures import LevelCurve
from flooding.report.record_metrics import Epoch, is_reached, level_cap, metric_values
from flooding.report.stats import Difference, format_mean_sd, paired
from flooding.training.problem import Problem
from flooding.training.record import Record, select_best
from flooding.training.run import Run

__all__ = [
    "AVERAGE_COMPARISONS",
    "COMPARISONS",
    "LOSS_COLUMNS",
    "ROWS",
    "Cell",
    "Comparison",
    "LevelGrid",
    "row_epoch",
    "row_network",
]

# What is compared at the last epoch, then with early stopping.
ROWS = ("plain", "flooding", "plain, stopped", "flooding, stopped")
# Columns of the cells that LevelGrid.loss_cells gives.
LOSS_COLUMNS = (
    *(f"{row}: NLL" for row in ROWS),
    *(f"{row}: ECE" for row in ROWS),
)


class Comparison(NamedTuple):
    """Two rows that are compared.

    Args:
        row: One of :data:`ROWS`, "finder", or one of :data:`AVERAGE_COMPARISONS`.
        against: The other.
        name: Name of its table.
        title: The comparison in words.
    """

    row: str
    against: str
    name: str
    title: str


_LATE_AGAINST_STOPPED = "flooding's last epoch against plain early stopping"
# The comparisons of flooding with plain training.
COMPARISONS = (
    Comparison("flooding", "plain", "last", "last epoch"),
    Comparison("flooding, stopped", "plain, stopped", "stopped", "early stopping on both sides"),
    Comparison("flooding", "plain, stopped", "against-stopping", _LATE_AGAINST_STOPPED),
)
# What averaged weights gain, and what the average of a training gains that chose its own level.
_AUTO = "auto level, averaged"
AVERAGE_COMPARISONS = (
    Comparison(
        "flooding, averaged", "flooding", "average", "with flooding, average against last epoch"
    ),
    Comparison(
        "plain, averaged", "plain", "average-plain", "without flooding, average against last epoch"
    ),
    Comparison(_AUTO, "plain", "auto", "auto level, averaged, against plain training"),
    Comparison(
        _AUTO, "plain, averaged", "auto-average", "auto level against plain training, both averaged"
    ),
    Comparison(
        _AUTO, "flooding", "auto-grid", "auto level, averaged, against the level chosen among all"
    ),
    Comparison(
        _AUTO,
        "flooding, averaged",
        "auto-grid-average",
        "auto level against the level chosen among all, both averaged",
    ),
    Comparison(
        _AUTO,
        "plain, stopped",
        "auto-stopping",
        "auto level, averaged, against plain early stopping",
    ),
)


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
        runs = []
        for seed in self.seeds:
            runs += [Run(self.problem, level, seed=seed) for level in self.levels]
        return runs


def row_epoch(row: str) -> Epoch:
    """Tell at which epoch a row of :data:`ROWS` is judged."""
    return "best" if row.endswith("stopped") else "last"


def row_network(row: str) -> Monitor:
    """Tell which network a row is judged by: the one of the epoch, or the average."""
    return "average" if row.endswith("averaged") else "network"


CellT = TypeVar("CellT", bound=Cell)


@dataclass(frozen=True)
class LevelGrid(Generic[CellT]):
    """The Records of a cell, and what validation picks among them.

    Args:
        cell: The cell.
        records: Records by seed, then by level.
        finder: The training that the finder chose for each seed, where it was asked.
        auto: The training that chose its own level, of each seed, where there is one.
        candidates_only: Whether flooding is picked only among the levels that were reached and
            that do not lie above the cap of the seed's own plain training, see
            :func:`flooding.report.record_metrics.level_cap`. Where there is none, the seed has no
            pick.
    """

    cell: CellT
    records: list[list[Record]]
    finder: Sequence[Record] = ()
    auto: Sequence[Record] = ()
    candidates_only: bool = True

    @property
    def caps(self) -> list[float]:
        """Cap of the level in each seed; NaN where no validation loss was measured."""
        return [level_cap(records[0]) for records in self.records]

    def is_below_cap(self, index: int, level: float) -> bool:
        """Tell whether a level does not lie above the cap of a seed, or there is no cap."""
        return not level > self.caps[index]

    def count_below_cap(self, level: float) -> int:
        """Count the seeds in which a level does not lie above the cap."""
        return sum(self.is_below_cap(index, level) for index in range(len(self.records)))

    def lacks_candidates(self, index: int) -> bool:
        """Tell whether every level above 0 lies above the cap of a seed."""
        levels = [level for level in self.cell.levels if level > 0]
        return not any(self.is_below_cap(index, level) for level in levels)

    @property
    def cannot_be_tested(self) -> bool:
        """Whether fewer than two seeds have a level that does not lie above their cap."""
        lacking = sum(self.lacks_candidates(index) for index in range(len(self.records)))
        return lacking > 0 and len(self.records) - lacking < 2

    def at(self, level: float) -> list[Record]:
        """Give the Records at a level, one a seed."""
        index = self.cell.levels.index(level)
        return [row[index] for row in self.records]

    @property
    def by_level(self) -> dict[float, list[Record]]:
        """The Records of each level, one a seed."""
        return {level: self.at(level) for level in self.cell.levels}

    def count_reached(self, level: float) -> int:
        """Count the seeds in which a level was reached."""
        return sum(is_reached(record) for record in self.at(level))

    def pick(self, row: str, index: int) -> Record | None:
        """Pick the best training of a seed on validation.

        Args:
            row: A row of a :class:`Comparison`.
            index: Index of the seed.

        Returns:
            A Record; None where no candidate above 0 was reached before the row's epoch.
        """
        if row == "finder":
            return self.finder[index]
        if row.startswith("auto level"):
            return self.auto[index]
        at = row_epoch(row)
        # The level 0 comes first.
        plain, *candidates = self.records[index]
        if row.startswith("plain"):
            candidates = [plain]
        elif self.candidates_only:
            levels = self.cell.levels[1:]
            candidates = [
                record
                for level, record in zip(levels, candidates, strict=True)
                if self.is_below_cap(index, level) and is_reached(record, at)
            ]
        if not candidates:
            return None
        return select_best(candidates, at, row_network(row))

    def picks(self, row: str) -> list[Record]:
        """Pick for every seed, and leave out seeds without a pick."""
        picks = []
        for index in range(len(self.records)):
            record = self.pick(row, index)
            if record is not None:
                picks.append(record)
        return picks

    def levels(self, row: str) -> list[float]:
        """List the levels of the picks; 0 is plain training."""
        return [record.level or 0.0 for record in self.picks(row)]

    def values(self, row: str, name: str, scale: float = 1.0) -> list[float]:
        """List a metric of the picks, at the epoch of the row."""
        return metric_values(self.picks(row), name, scale, row_epoch(row), row_network(row))

    def pairs(self, row: str, against: str) -> list[tuple[Record, Record]]:
        """Pair the picks of two rows, in the seeds that have both."""
        # A finder that chose no flooding in any seed is plain training.
        is_flooded = any(record.level for record in self.finder)
        if (row, against) == ("finder", "plain") and not is_flooded:
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
        a, b = zip(*pairs, strict=True)
        values = metric_values(a, name, 100.0, row_epoch(row), row_network(row))
        others = metric_values(b, name, 100.0, row_epoch(against), row_network(against))
        return paired(values, others)

    def curve(self, name: str, scale: float = 1.0) -> LevelCurve:
        """Give a test metric at every level, for a figure."""
        by_seed = [metric_values(records, name, scale) for records in self.records]
        stopped = self.values("plain, stopped", name, scale)
        return LevelCurve(np.array(by_seed), float(np.mean(stopped)))

    @property
    def loss_cells(self) -> list[str]:
        """Test NLL and ECE of all rows, the cells of :data:`LOSS_COLUMNS`."""
        cells = []
        for name in ("test_nll", "test_ece"):
            for row in ROWS:
                cells.append(format_mean_sd(self.values(row, name), 3))
        return cells
