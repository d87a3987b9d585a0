"""Grids of levels: for each cell all levels with all seeds, compared by what validation picks."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flooding.experiments.experiment import Study
from flooding.experiments.provenance import describe_provenance
from flooding.experiments.study import (
    COMPARISONS,
    LOSS_COLUMNS,
    MIN_FLOODED_SHARE,
    ROWS,
    Cell,
    Comparison,
    LevelGrid,
    Sentences,
    all_runs,
    chunk,
    count_of,
    flooded_percent,
    format_levels,
    format_percent_range,
    fraction_until_below,
    is_reached,
    level_grids,
    loss_row,
    metric_values,
    row_epoch,
)
from flooding.level_search.base import SearchResult, run_concurrently
from flooding.level_search.finder import finder
from flooding.report.document import Report, Table
from flooding.report.level_figures import LevelPanel, accuracy_over_nll
from flooding.report.stats import (
    adjust,
    describe_difference,
    format_mean_sd,
    format_p,
    pluralize,
)
from flooding.training.record import Record
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CURVES", "GridFigure", "compare_levels"]

CURVES = ("flooded", "train_loss", "val_accuracy", "val_loss")
GridFigure: TypeAlias = "Callable[[Sequence[LevelGrid]], Figure]"
"""Draws a figure of the grids."""

_FINDER = (
    Comparison("finder", "plain", "finder", "the finder against plain training"),
    Comparison(
        "finder",
        "flooding",
        "finder-against-all",
        "the finder against what validation chose of all levels above 0",
    ),
)
# Where the paper says that flooding helps: that must be shown, and fails where it is not.
_CLAIMED = ("last", "stopped")


def compare_levels(
    cells: Sequence[Cell],
    title: str,
    about: str,
    figures: Mapping[str, tuple[str, GridFigure]] | None = None,
    *,
    search: bool = False,
) -> Study:
    """Train all levels of all cells and compare, for each seed, what validation picks.

    Args:
        cells: The cells, with as many seeds each.
        title: The report's heading.
        about: What was done; how levels are picked and figures are to be read is added.
        figures: Further figures by name: caption and drawing function.
        search: Whether to ask the finder, too, and train what it finds.

    Yields:
        The Runs: levels at once, then those that the finder asks for.

    Returns:
        The report.
    """
    records = yield all_runs(cells)
    grids = level_grids(cells, records)
    comparisons = COMPARISONS
    if search:
        searches, picks = yield from _search(cells)
        by_cell = chunk(picks, len(cells[0].seeds))
        grids = [replace(grid, finder=some) for grid, some in zip(grids, by_cell, strict=True)]
        for result in searches:
            records = [*records, *result.records]
        records = [*records, *picks]
        cost = np.mean([result.cost.steps for result in searches])
        about = (
            f"{about} The finder spends {cost:.1f} trainings on its level, and one more where that "
            "was not trained."
        )
        comparisons += _FINDER
    tables = [
        *(_compare(grids, comparison) for comparison in comparisons),
        _losses(grids),
        _levels(grids),
    ]
    caption = (
        "Test accuracy and NLL at the last epoch against the flood level: mean and standard "
        "deviation over seeds. Dashed: plain training with early stopping. Open marks: levels that "
        "were never reached."
    )
    drawings = {"levels": (caption, partial(_draw, grids))}
    for name, (text, draw) in (figures or {}).items():
        drawings[name] = (text, partial(draw, grids))
    sentences = _sentences(grids, comparisons)
    return Report(
        title,
        _explain(about, len(cells[0].seeds)),
        sentences.failures,
        sentences.findings,
        tables,
        drawings,
        describe_provenance(records),
    )


def _search(
    cells: Sequence[Cell],
) -> Generator[list[Run], list[Record], tuple[list[SearchResult], list[Record]]]:
    """Ask the finder for each seed of each cell, then train what it found."""
    searches = [finder(cell.problem, seeds=[seed]) for cell in cells for seed in cell.seeds]
    results = yield from run_concurrently(searches)
    picks = yield [result.run for result in results]
    return results, picks


def _explain(about: str, n: int) -> str:
    """Add to a description how levels are picked and how figures are to be read."""
    return (
        f"{about} For each seed the level is chosen by validation accuracy, ties to the lower "
        "validation loss, then to the smaller level; flooding chooses among the levels above 0 "
        f"that were reached, in at least {100 * MIN_FLOODED_SHARE:g} % of the steps up to the "
        "epoch that is tested: others are plain training. Test data choose nothing. Mean ± "
        f"standard deviation over {pluralize(n, 'seed')}; differences paired by seed, with the "
        "95 % interval of Student's t and p after Holm's correction over the cells. Stopped: the "
        "best validation epoch. Flooded: share of the steps that were below the level, of all or, "
        "with early stopping, of those up to the best epoch. All seeds are tested on the same "
        "images: the intervals are about training and its data. With early stopping this asks "
        "what flooded weights are worth where the best epoch comes after the level was reached, "
        "which is a result of validation, too; chosen among all levels, the weights would often "
        "be those of plain training."
    )


def _compare(grids: Sequence[LevelGrid], comparison: Comparison) -> Table:
    """Tabulate two rows."""
    row, against, name, _ = comparison
    gains = [grid.gain(row, against) for grid in grids]
    lines = []
    for grid, gain, p in zip(grids, gains, adjust(gains), strict=True):
        if gain is None:
            plain = format_mean_sd(grid.values(against, "test_accuracy", 100.0))
            lines.append([grid.cell.title, plain, _untested(row, against), *["–"] * 4])
            continue
        a, b = zip(*grid.pairs(row, against), strict=True)
        lines.append([
            grid.cell.title,
            format_mean_sd(metric_values(b, "test_accuracy", 100.0, row_epoch(against))),
            format_mean_sd(metric_values(a, "test_accuracy", 100.0, row_epoch(row))),
            f"{gain}, n = {gain.n}",
            format_p(p),
            format_levels(record.level or 0.0 for record in a),
            format_mean_sd([flooded_percent(record, row_epoch(row)) for record in a]),
        ])
    columns = ["data", against, row, "difference", "p", "levels", "flooded %"]
    title = f"Test accuracy in %, mean ± standard deviation: {against} and {row}"
    note = "Level 0: the finder found none worth flooding." if row == "finder" else ""
    return Table(name, title, columns, lines, note)


def _untested(row: str, against: str = "plain") -> str:
    """Say why two rows are not compared."""
    if (row, against) == ("finder", "plain"):
        return "not tested: the finder chose no flooding"
    suffix = " before the best epoch" if row_epoch(row) == "best" else ""
    return f"not tested: no level was reached{suffix}"


def _losses(grids: Sequence[LevelGrid]) -> Table:
    """Tabulate test NLL and ECE, with the share of flooded steps."""
    rows = [row for row in ROWS if row.startswith("flooding")]
    columns = ["data", *LOSS_COLUMNS, *(f"{row}: flooded %" for row in rows)]
    lines = []
    for grid in grids:
        line = [grid.cell.title, *loss_row(grid)]
        for row in rows:
            shares = [flooded_percent(record, row_epoch(row)) for record in grid.picks(row)]
            text = f"{format_mean_sd(shares)}, n = {len(shares)}"
            line.append(text if shares else _untested(row))
        lines.append(line)
    title = f"Test NLL (nats) and ECE, n = {len(grids[0].cell.seeds)}"
    note = "Flooding: over the seeds in which a level was reached before the epoch that is tested."
    return Table("losses", title, columns, lines, note)


def _levels(grids: Sequence[LevelGrid]) -> Table:
    """Tabulate every level, with the share of flooded steps."""
    rows = []
    for grid in grids:
        for level in grid.cell.levels:
            records = grid.at(level)
            row = {
                "data": grid.cell.title,
                "level": f"{level:g}" if level else "plain",
                "training loss": format_mean_sd(metric_values(records, "train_loss"), 3),
            }
            for at, column, suffix in (
                ("last", "last epoch", ""),
                ("best", "stopped", ", stopped"),
            ):
                accuracies = metric_values(records, "test_accuracy", 100.0, at)
                shares = [flooded_percent(record, at) for record in records]
                reached = [is_reached(record, at) for record in records]
                count = count_of(reached) + ("" if any(reached) else ": not tested")
                row[column] = format_mean_sd(accuracies)
                row[f"flooded %{suffix}"] = format_mean_sd(shares) if level else "–"
                row[f"reached{suffix}"] = count if level else "–"
            rows.append(row)
    title = f"Test accuracy in % at each level, n = {len(grids[0].cell.seeds)}"
    return Table.from_dicts("levels", title, rows)


def _sentences(grids: Sequence[LevelGrid], comparisons: Sequence[Comparison]) -> Sentences:
    """Say first whether the levels were tested at all, then which comparisons hold."""
    sentences = Sentences()
    for grid in grids:
        sentences.add(*_judge_levels(grid))
    for comparison in comparisons:
        row, against, name, title = comparison
        gains = [grid.gain(row, against) for grid in grids]
        for grid, gain, p in zip(grids, gains, adjust(gains), strict=True):
            start = f"{grid.cell.title}, {title}: "
            if gain is None:
                sentences.add(name == "finder", f"{start}{_untested(row, against)}.")
                continue
            who = "the finder" if row == "finder" else "flooding"
            sentence = f"{start}{who} {describe_difference(gain, p)} points, n = {gain.n}"
            if others := len(grid.records) - gain.n:
                sentence += f" ({pluralize(others, 'seed')} {_untested(row, against)})"
            wins, loses = p < 0.05 and gain.mean > 0, p < 0.05 and gain.mean < 0
            holds = wins if name in _CLAIMED else not loses
            sentences.add(holds, f"{sentence}, p {format_p(p)}.")
    return sentences


def _judge_levels(grid: LevelGrid) -> tuple[bool, str]:
    """Say whether plain training falls below the levels before half of the epochs."""
    levels = grid.cell.levels
    fractions = fraction_until_below(grid.at(0.0), levels[-1])
    unreached = [level for level in levels[1:] if not grid.count_reached(level)]
    suffix = f"; never reached: {format_levels(unreached)}" if unreached else ""
    start = f"{grid.cell.title}: plain training is"
    if all(fraction < 0.5 for fraction in fractions):
        when = f"after {format_percent_range(fractions)} of the epochs"
        return True, f"{start} below the level {levels[-1]:g} {when}{suffix}."
    texts = ["never" if math.isnan(f) else f"{100 * f:.0f} %" for f in fractions]
    when = f"before half of the epochs (seed by seed: {', '.join(texts)})"
    return False, f"{start} not below the level {levels[-1]:g} {when}{suffix}."


def _draw(grids: Sequence[LevelGrid]) -> Figure:
    panels = []
    for grid in grids:
        levels = grid.cell.levels
        is_tested = [level == 0 or grid.count_reached(level) > 0 for level in levels]
        accuracy, nll = grid.curve("test_accuracy", 100.0), grid.curve("test_nll")
        panels.append(LevelPanel(grid.cell.title, levels, accuracy, nll, is_tested))
    return accuracy_over_nll(panels)
