"""What the reproduction's searches give: rows, segments of trainings, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flooding.level_search.backward import has_started
from flooding.level_search.result import SearchResult
from flooding.levels import Delayed
from flooding.report import search_figures
from flooding.report.document import Table
from flooding.report.record_metrics import Epoch, metric_values, run_of
from flooding.report.search_figures import Search
from flooding.report.stats import format_count, format_mean_sd, format_median_range
from flooding.training.record import Record, select_best

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the source printed: test accuracy in percent on noisy labels, and the level. One seed.
PUBLISHED = {
    "no flooding": (77.89, None),
    "forward": (80.62, 0.29),
    "backward": (79.89, 0.26),
    "heuristic": (79.12, 0.21),
}
# Its own logs, recomputed: test accuracy on noisy and on clean labels in percent, test loss in
# nats, level. One seed.
LOGS = {
    "no flooding": (77.7, 84.7, 1.85, None),
    "forward": (80.0, 87.6, 0.55, 0.29),
    "backward": (80.9, None, None, 0.28),
    "heuristic": (79.1, None, None, 0.255),
    "no flooding, stopped": (83.1, 91.3, None, None),
    "forward, stopped": (83.3, None, None, 0.24),
}
LONGER = "no flooding, as long as the heuristic"
# Epochs that are averaged beside the last one, which may be a spike of batch norm.
_LAST = 50


def starts(records: Iterable[Record]) -> list[bool]:
    """Tell of each training that waits for a fit whether it began to flood."""
    waiting = [record for record in records if isinstance(run_of(record).level, Delayed)]
    return [has_started(record) for record in waiting]


@dataclass(frozen=True)
class Row:
    """The trainings that one way of finding a level ends with, one for each seed."""

    records: Sequence[Record]
    at: Epoch
    # For each seed, all that was trained.
    searched: Sequence[Sequence[Record]]
    # Levels of those that were flooded.
    levels: Sequence[float]

    @property
    def accuracy(self) -> list[float]:
        """Test accuracy on noisy labels, in percent."""
        return metric_values(self.records, "test_accuracy", 100.0, self.at)

    @property
    def late_accuracy(self) -> list[float]:
        """Mean test accuracy over the last epochs, in percent, of the test curve's examples."""
        curves = [record.curves["test_accuracy"][-_LAST:] for record in self.records]
        return [100 * float(np.nanmean(curve)) for curve in curves]

    @property
    def epochs(self) -> list[int]:
        """Epochs of all trainings of a search."""
        epochs = []
        for records in self.searched:
            epochs.append(sum(run_of(record).epochs for record in records))
        return epochs

    @property
    def seconds(self) -> list[float]:
        """Seconds of all trainings of a search."""
        seconds = []
        for records in self.searched:
            seconds.append(sum(float(record.metadata.get("seconds", 0.0)) for record in records))
        return seconds

    @classmethod
    def of_records(
        cls, records: Sequence[Record], at: Epoch, searched: Sequence[Sequence[Record]] = ()
    ) -> Row:
        """Make a row of Records; without ``searched`` nothing else was trained."""
        levels = []
        for record in records:
            if run_of(record).level is not None and has_started(record):
                levels.append(record.level or 0.0)
        return cls(records, at, searched or [[record] for record in records], levels)

    @classmethod
    def of_search(cls, search: Search, at: Epoch) -> Row:
        """Select a level above 0 for each seed, on the validation split."""
        candidates = [records for level, records in search.items() if level > 0]
        searched = list(zip(*candidates, strict=True))
        return cls.of_records([select_best(records, at) for records in searched], at, searched)

    @classmethod
    def of_policies(cls, policies: Sequence[SearchResult], plain: Sequence[Record]) -> Row:
        """Judge each agent by its last training; by plain training where it gave up."""
        by_seed = {run_of(record).seed: record for record in plain}
        records = []
        for policy in policies:
            gave_up = policy.run.level is None
            records.append(by_seed[policy.run.seed] if gave_up else policy.records[-1])
        levels = [policy.level or 0.0 for policy in policies]
        return cls(records, "last", [policy.records for policy in policies], levels)


@dataclass(frozen=True)
class Results:
    """All Records of the study."""

    forward: Search
    backward: Search
    # No flooding, as long as the heuristic.
    longer: Sequence[Record]
    heuristic: Sequence[Record]
    policies: Sequence[SearchResult]

    @property
    def plain(self) -> Sequence[Record]:
        """No flooding."""
        return self.forward[0.0]

    @property
    def all_backward(self) -> list[Record]:
        """Backward flooding at all levels."""
        return list(chain.from_iterable(self.backward.values()))

    @property
    def max_epochs(self) -> int:
        """Epochs of a training, but for the heuristic."""
        return run_of(self.plain[0]).problem.max_epochs

    @property
    def rows(self) -> dict[str, Row]:
        """The rows of the table by their names."""
        rows = {
            "no flooding": Row.of_records(self.plain, "last"),
            LONGER: Row.of_records(self.longer, "last"),
            "forward": Row.of_search(self.forward, "last"),
            "backward": Row.of_search(self.backward, "last"),
            "heuristic": Row.of_records(self.heuristic, "last"),
        }
        if self.policies:
            rows["policy gradient"] = Row.of_policies(self.policies, self.plain)
        rows["no flooding, stopped"] = Row.of_records(self.plain, "best")
        rows["forward, stopped"] = Row.of_search(self.forward, "best")
        return rows


class Segment(NamedTuple):
    """Some epochs of a training, compared with its level."""

    # Share of steps strictly below the level in force.
    below: float
    # Lowest mean training loss of an epoch, over the level.
    lowest: float


def _segment(record: Record, level: float, epochs: slice) -> Segment:
    flooded, losses = record.curves["flooded"][epochs], record.curves["train_loss"][epochs]
    return Segment(float(flooded.mean(dtype=float)), float(losses.min()) / level)


def forward_segments(search: Search) -> list[list[Segment]]:
    """Cut each training, by seed, from the epoch on that reaches its level, if any does."""
    by_seed: list[list[Segment]] = [[] for _ in search[0.0]]
    for level, records in search.items():
        for segments, record in zip(by_seed, records, strict=True):
            curves = record.curves
            is_below = (curves["flooded"] > 0) | (curves["train_loss"] <= level)
            if level > 0 and is_below.any():
                segments.append(_segment(record, level, slice(max(1, is_below.argmax()), None)))
    return by_seed


def backward_segments(search: Search) -> tuple[list[list[Segment]], list[list[Segment]]]:
    """Cut each training that began to flood, by seed, in two: before, and from there on."""
    seeds = range(len(next(iter(search.values()))))
    before: list[list[Segment]] = [[] for _ in seeds]
    after: list[list[Segment]] = [[] for _ in seeds]
    for level, records in search.items():
        for index, record in enumerate(records):
            if has_started(record):
                # Until flooding begins the level in force is minus infinity.
                start = int(np.isfinite(record.curves["level"]).argmax())
                before[index].append(_segment(record, level, slice(1, start)))
                after[index].append(_segment(record, level, slice(start, None)))
    return before, after


# Tables.


def published_table(results: Results) -> Table:
    """Tabulate every way beside what the source printed and what its logs say."""
    rows = []
    for name, row in results.rows.items():
        begun = starts(chain.from_iterable(row.searched))
        clean = metric_values(row.records, "test_accuracy_clean", 100.0, row.at)
        cells: dict[str, object] = {
            "way": name,
            "noisy %": format_mean_sd(row.accuracy),
            f"noisy %, last {_LAST} epochs": "–",
            "clean %": format_mean_sd(clean),
            "NLL": format_mean_sd(metric_values(row.records, "test_nll", at=row.at), 3),
            "level": _format_levels(row),
            "n": len(row.records),
            "began": sum(begun) if begun else "–",
            "never began": begun.count(False) if begun else "–",
            "trainings": f"{np.mean(row.epochs) / results.max_epochs:g}",
            "CPU hours": f"{np.mean(row.seconds) / 3600:.2f}",
        }
        if row.at == "last":
            cells[f"noisy %, last {_LAST} epochs"] = format_mean_sd(row.late_accuracy)
        printed = zip(("noisy %", "level"), PUBLISHED.get(name, (None,) * 2), strict=True)
        logs = zip(("noisy %", "clean %", "NLL", "level"), LOGS.get(name, (None,) * 4), strict=True)
        cells |= {f"printed: {column}": _format_figure(figure) for column, figure in printed}
        cells |= {f"logs: {column}": _format_figure(figure) for column, figure in logs}
        rows.append(cells)
    title = "Ways to a level, mean ± standard deviation over n seeds"
    note = (
        "Noisy, clean: test accuracy on those labels, of 20,000 examples, over the last epochs of "
        "the curve's 500; NLL on noisy ones. Level: median (range) of the flooded. Began: runs of "
        "the search that reached the start condition; the others are plain training. Trainings, "
        f"CPU hours: a seed's, in units of {results.max_epochs} epochs and as measured; a "
        "beginning that several runs share is measured once, as a rule in no flooding's. The "
        "printed figures mix statistics: 77.89 and 79.12 are last epochs, 79.89 is an average (its "
        "last epoch is 80.43; its level is 0.29 elsewhere in the source), 80.62 is in no log, 0.21 "
        "is a smoothed level. Logs: recomputed from the source's own, last epochs of one seed, "
        "each search's best level by test accuracy; 0.55 is the lowest loss of any of its levels; "
        "backward's own run without flooding has 76.8 %."
    )
    return Table.from_dicts("published", title, rows, note)


def _format_figure(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:g}"


def _format_levels(row: Row) -> str:
    """Write the levels of a row, and how many of its Records waited and were never flooded."""
    parts = [format_median_range(row.levels)] if row.levels else []
    never = starts(row.records).count(False)
    if never:
        parts.append(f"{never} of {len(row.records)} never flooded: plain training")
    return "; ".join(parts) or "–"


# For each column the metric, its factor and its digits.
_METRICS = {
    "training accuracy %": ("train_accuracy", 100.0, 1),
    "noisy %": ("test_accuracy", 100.0, 1),
    "clean %": ("test_accuracy_clean", 100.0, 1),
    "training loss": ("train_loss", 1.0, 3),
}


def levels_table(results: Results) -> Table:
    """Tabulate every level, forward beside backward."""
    rows = []
    for level, records in results.forward.items():
        late = results.backward.get(level, [])
        begun = [record for record in late if has_started(record)]
        cells = {"level": f"{level:g}"}
        cells |= _measure(records, "forward") | _measure(begun, "backward")
        cells["backward: began"] = f"{len(begun)} of {len(late)}" if late else "–"
        rows.append(cells)
    n = len(results.plain)
    title = f"Each level, forward and backward, mean ± standard deviation, n = {n}"
    note = (
        "Last epoch; steps flooded: share of all steps strictly below the level in force. "
        "Backward: those runs alone that began to flood."
    )
    return Table.from_dicts("levels", title, rows, note)


def _measure(records: Sequence[Record], way: str) -> dict[str, str]:
    """Write the metrics of one search at one level."""
    cells = {}
    for title, (name, scale, digits) in _METRICS.items():
        cells[f"{way}: {title}"] = format_mean_sd(metric_values(records, name, scale), digits)
    flooded = [100 * float(record.curves["flooded"][1:].mean()) for record in records]
    return cells | {f"{way}: steps flooded %": format_mean_sd(flooded)}


# Figures.


def draw_figures(results: Results) -> dict[str, tuple[str, Callable[[], Figure]]]:
    """Name the figures there is data for, each with its caption."""
    all_backward = results.all_backward
    count = f"{format_count(starts(all_backward))} runs, those that began to flood"
    backward: dict[float, Sequence[Record]] = {0.0: results.plain}
    for level, records in results.backward.items():
        begun = [record for record in records if has_started(record)]
        if begun:
            backward[level] = begun
    rise = "Accuracies below those after a twentieth of the epochs are not shown."
    lines = (
        "Faint: mean over seeds; above it the same smoothed. Noisy labels; the test curves are of "
        f"500 examples. {rise}"
    )
    forward = partial(search_figures.search_curves, results.forward)
    figures = {"forward": (f"Forward: a line for each level. {lines}", forward)}
    if len(backward) > 1:
        figures["backward"] = (
            f"Backward, {count}. {lines}",
            partial(search_figures.search_curves, backward),
        )
        common = {level: results.forward[level] for level in backward}
        caption = (
            "Training accuracy, forward beside backward: against the epoch, and at the last epoch "
            f"against the level (mean and standard deviation; backward: {count}). {rise}"
        )
        figures["training-accuracy"] = (
            caption,
            partial(search_figures.training_accuracies, common, backward),
        )
    flooded = [record for record in results.heuristic if has_started(record)]
    if flooded:
        count = f"{len(flooded)} of {len(results.heuristic)} runs, those that began to flood"
        caption = f"The heuristic's level and losses, {count}. Epochs count from there."
        figures["heuristic"] = (caption, partial(search_figures.controlled_training, flooded))
    return figures
