"""What the reproduction's searches give: rows, segments of trainings, tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flooding.experiments.kim2022_policy import draw_learning, learning_curve, learning_table
from flooding.level_search.backward import has_started
from flooding.level_search.result import SearchResult
from flooding.levels import Delayed
from flooding.report import search_figures
from flooding.report.document import Table
from flooding.report.record_metrics import Epoch, format_metric, metric_values, run_of
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
    started = []
    for record in records:
        if isinstance(run_of(record).level, Delayed):
            started.append(has_started(record))
    return started


def started_records(records: Iterable[Record]) -> list[Record]:
    """List the trainings that began to flood."""
    return [record for record in records if has_started(record)]


@dataclass(frozen=True)
class WayRow:
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
        means = []
        for record in self.records:
            curve = record.curves["test_accuracy"][-_LAST:]
            means.append(100 * float(np.nanmean(curve)))
        return means

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
        totals = []
        for records in self.searched:
            seconds = [float(record.metadata.get("seconds", 0.0)) for record in records]
            totals.append(sum(seconds))
        return totals

    @classmethod
    def of_records(
        cls, records: Sequence[Record], at: Epoch, searched: Sequence[Sequence[Record]] = ()
    ) -> WayRow:
        """Make a row of Records; without ``searched`` nothing else was trained."""
        levels = []
        for record in records:
            if run_of(record).level is not None and has_started(record):
                levels.append(record.level or 0.0)
        if not searched:
            searched = [[record] for record in records]
        return cls(records, at, searched, levels)

    @classmethod
    def of_search(cls, search: Search, at: Epoch) -> WayRow:
        """Select a level above 0 for each seed, on the validation split."""
        candidates = [records for level, records in search.items() if level > 0]
        # From Records by level to Records by seed.
        searched = list(zip(*candidates, strict=True))
        best = [select_best(records, at) for records in searched]
        return cls.of_records(best, at, searched)

    @classmethod
    def of_policies(cls, policies: Sequence[SearchResult], plain: Sequence[Record]) -> WayRow:
        """Judge each agent by its last training; by plain training where it gave up."""
        by_seed = {run_of(record).seed: record for record in plain}
        records, searched, levels = [], [], []
        for policy in policies:
            record = policy.records[-1]
            if policy.run.level is None:
                record = by_seed[policy.run.seed]
            records.append(record)
            searched.append(policy.records)
            levels.append(policy.level or 0.0)
        return cls(records, "last", searched, levels)


@dataclass(frozen=True)
class Results:
    """All Records of the study."""

    forward: Search
    backward: Search
    # No flooding, as long as the heuristic.
    longer: Sequence[Record]
    heuristic: Sequence[Record]
    policies: Sequence[SearchResult]
    # What an archive may lack: the heuristic with the constants of the source's text, agents with
    # levels up to 0.5, and by seed the trainings with levels drawn at random, for either agent.
    text_heuristic: Sequence[Record] = ()
    wide_policies: Sequence[SearchResult] = ()
    control: Mapping[int, Sequence[Record]] = field(default_factory=dict)
    wide_control: Mapping[int, Sequence[Record]] = field(default_factory=dict)

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
    def rows(self) -> dict[str, WayRow]:
        """The rows of the table by their names."""
        rows = {
            "no flooding": WayRow.of_records(self.plain, "last"),
            LONGER: WayRow.of_records(self.longer, "last"),
            "forward": WayRow.of_search(self.forward, "last"),
            "backward": WayRow.of_search(self.backward, "last"),
            "heuristic": WayRow.of_records(self.heuristic, "last"),
        }
        if self.text_heuristic:
            name = "heuristic, the text's constants"
            rows[name] = WayRow.of_records(self.text_heuristic, "last")
        if self.policies:
            rows["policy gradient"] = WayRow.of_policies(self.policies, self.plain)
        if self.wide_policies:
            name = "policy gradient, levels up to 0.5"
            rows[name] = WayRow.of_policies(self.wide_policies, self.plain)
        rows["no flooding, stopped"] = WayRow.of_records(self.plain, "best")
        rows["forward, stopped"] = WayRow.of_search(self.forward, "best")
        return rows


class Segment(NamedTuple):
    """Some epochs of a training, compared with its level."""

    # Share of steps strictly below the level in force.
    below: float
    # Lowest mean training loss of an epoch, over the level.
    lowest: float


def _segment(record: Record, level: float, epochs: slice) -> Segment:
    """Measure some epochs of a training."""
    shares = record.curves["flooded"][epochs]
    losses = record.curves["train_loss"][epochs]
    return Segment(float(shares.mean(dtype=float)), float(losses.min()) / level)


def forward_segments(search: Search) -> list[list[Segment]]:
    """Cut each training, by seed, from the epoch on that reaches its level, if any does."""
    by_seed: list[list[Segment]] = [[] for _ in search[0.0]]
    for level, records in search.items():
        for segments, record in zip(by_seed, records, strict=True):
            curves = record.curves
            is_below = (curves["flooded"] > 0) | (curves["train_loss"] <= level)
            if level > 0 and is_below.any():
                # The first entry of a curve is the state before training.
                start = max(1, int(is_below.argmax()))
                segments.append(_segment(record, level, slice(start, None)))
    return by_seed


def backward_segments(search: Search) -> tuple[list[list[Segment]], list[list[Segment]]]:
    """Cut each training that began to flood, by seed, in two: before, and from there on."""
    num_seeds = len(next(iter(search.values())))
    before: list[list[Segment]] = [[] for _ in range(num_seeds)]
    after: list[list[Segment]] = [[] for _ in range(num_seeds)]
    for level, records in search.items():
        for index, record in enumerate(records):
            if has_started(record):
                # Until flooding begins the level in force is minus infinity.
                start = int(np.isfinite(record.curves["level"]).argmax())
                before[index].append(_segment(record, level, slice(1, start)))
                after[index].append(_segment(record, level, slice(start, None)))
    return before, after


# Tables.


def make_tables(results: Results) -> list[Table]:
    """Tabulate the ways, the levels and, where there are agents, how they learn."""
    tables = [published_table(results), levels_table(results)]
    curves = {}
    if results.policies:
        curves["levels up to 0.1"] = learning_curve(results.policies)
    if results.wide_policies:
        curves["levels up to 0.5"] = learning_curve(results.wide_policies)
    if curves:
        tables.append(learning_table(curves))
    return tables


def published_table(results: Results) -> Table:
    """Tabulate every way beside what the source printed and what its logs say."""
    rows = []
    for name, row in results.rows.items():
        begun = starts(chain.from_iterable(row.searched))
        trainings = np.mean(row.epochs) / results.max_epochs
        cells: dict[str, object] = {
            "way": name,
            "noisy %": format_mean_sd(row.accuracy),
            f"noisy %, last {_LAST} epochs": "–",
            "clean %": format_metric(row.records, "test_accuracy_clean", 100.0, row.at),
            "NLL": format_metric(row.records, "test_nll", at=row.at, digits=3),
            "level": _format_levels(row),
            "n": len(row.records),
            "began": "–",
            "never began": "–",
            "trainings": f"{trainings:g}",
            "CPU hours": f"{np.mean(row.seconds) / 3600:.2f}",
        }
        if row.at == "last":
            cells[f"noisy %, last {_LAST} epochs"] = format_mean_sd(row.late_accuracy)
        # Only some ways wait for a fit.
        if begun:
            cells["began"] = sum(begun)
            cells["never began"] = begun.count(False)
        # Beside ours, the source's figures: those it printed, and those of its logs.
        printed = PUBLISHED.get(name, (None,) * 2)
        logs = LOGS.get(name, (None,) * 4)
        cells |= _source_cells("printed", ("noisy %", "level"), printed)
        cells |= _source_cells("logs", ("noisy %", "clean %", "NLL", "level"), logs)
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


def _source_cells(
    origin: str, columns: Sequence[str], figures: Sequence[float | None]
) -> dict[str, str]:
    """Write figures of the source, a dash where it has none."""
    cells = {}
    for column, figure in zip(columns, figures, strict=True):
        cells[f"{origin}: {column}"] = "–" if figure is None else f"{figure:g}"
    return cells


def _format_levels(row: WayRow) -> str:
    """Write the levels of a row, and how many of its Records waited and were never flooded."""
    parts = []
    if row.levels:
        parts.append(format_median_range(row.levels))
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
        begun = started_records(late)
        cells = {"level": f"{level:g}"}
        cells |= _measure(records, "forward") | _measure(begun, "backward")
        cells["backward: began"] = "–"
        if late:
            cells["backward: began"] = f"{len(begun)} of {len(late)}"
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
        cells[f"{way}: {title}"] = format_metric(records, name, scale, digits=digits)
    flooded = [100 * float(record.curves["flooded"][1:].mean()) for record in records]
    return cells | {f"{way}: steps flooded %": format_mean_sd(flooded)}


# Figures.


def draw_figures(results: Results) -> dict[str, tuple[str, Callable[[], Figure]]]:
    """Name the figures there is data for, each with its caption."""
    all_backward = results.all_backward
    count = f"{format_count(starts(all_backward))} runs, those that began to flood"
    backward: dict[float, Sequence[Record]] = {0.0: results.plain}
    for level, records in results.backward.items():
        begun = started_records(records)
        if begun:
            backward[level] = begun
    rise = "Accuracies below those after a twentieth of the epochs are not shown."
    lines = (
        "Faint: mean over seeds; above it the same smoothed. Noisy labels; the test curves are of "
        f"500 examples. {rise}"
    )
    forward = partial(search_figures.search_curves, results.forward)
    figures = {"forward": (f"Forward: a line for each level. {lines}", forward)}
    # Without a run that began to flood there is nothing to see of the backward search.
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
    flooded = started_records(results.heuristic)
    if flooded:
        count = f"{len(flooded)} of {len(results.heuristic)} runs, those that began to flood"
        caption = f"The heuristic's level and losses, {count}. Epochs count from there."
        figures["heuristic"] = (caption, partial(search_figures.controlled_training, flooded))
    caption = (
        "The policy gradient: mean validation accuracy, its reward, and mean level of each of its "
        "trainings. The last one takes the most probable levels."
    )
    if results.policies:
        draw = partial(draw_learning, results.policies, results.control)
        figures["policy"] = (caption, draw)
    if results.wide_policies:
        draw = partial(draw_learning, results.wide_policies, results.wide_control)
        figures["policy-wide"] = (f"{caption} Levels up to 0.5.", draw)
    return figures
