"""Grids of levels: for each cell all levels with all seeds, compared by what validation picks."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flooding.experiments import Study, study
from flooding.experiments.study import LevelGrid
from flooding.level_search.base import SearchResult, run_concurrently
from flooding.level_search.finder import finder
from flooding.report import stats
from flooding.report.claims import Sentences
from flooding.report.document import Report, Table
from flooding.report.level_figures import LevelPanel, accuracy_over_nll
from flooding.report.provenance import describe_provenance
from flooding.training.record import Record
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CURVES", "GridFigure", "compare_levels"]

CURVES = ("flooded", "train_loss", "val_accuracy", "val_loss")
GridFigure: TypeAlias = "Callable[[Sequence[LevelGrid]], Figure]"
"""Draws a figure of the grids."""

_ENDS: tuple[tuple[study.Epoch, str, str], ...] = (
    ("last", "last epoch", ""),
    ("best", "stopped", ", stopped"),
)
_AGAINST_ALL = "the finder against what validation chose of all levels above 0"
_FINDER = (
    study.Comparison("finder", "plain", "finder", "the finder against plain training"),
    study.Comparison("finder", "flooding", "finder-against-all", _AGAINST_ALL),
)
# Where the paper says that flooding helps: that must be shown, and fails where it is not.
_CLAIMED = ("last", "stopped")


def compare_levels(
    cells: Sequence[study.Cell],
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
    # First everything that can be asked at once, then what the finder asks for step by step.
    records = yield study.all_runs(cells)
    grids = study.level_grids(cells, records)
    comparisons = study.COMPARISONS
    if search:
        searches, picks = yield from _search(cells)
        by_cell = study.chunk(picks, len(cells[0].seeds))
        grids = [replace(grid, finder=some) for grid, some in zip(grids, by_cell, strict=True)]
        for result in searches:
            records = [*records, *result.records]
        records = [*records, *picks]
        # Everything that was trained is counted, also what the finder dropped.
        cost = np.mean([result.cost.steps for result in searches])
        about = (
            f"{about} The finder spends {cost:.1f} trainings on its level, and one more where that "
            "was not trained."
        )
        comparisons += _FINDER
    tables = [_compare(grids, comparison) for comparison in comparisons]
    caption = (
        "Test accuracy and NLL at the last epoch against the flood level: mean and standard "
        "deviation over seeds. Dashed: plain training with early stopping. Open marks: levels that "
        "were never reached."
    )
    drawings = {"levels": (caption, partial(_draw, grids))}
    for name, (text, draw) in (figures or {}).items():
        drawings[name] = (text, partial(draw, grids))
    return Report(
        title,
        _explain(about, len(cells[0].seeds)),
        *_sentences(grids, comparisons),
        [*tables, _losses(grids), _levels(grids)],
        drawings,
        describe_provenance(records),
    )


def _search(
    cells: Sequence[study.Cell],
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
        f"that were reached, in at least {100 * study.MIN_FLOODED_SHARE:g} % of the steps up to "
        "the epoch that is tested: others are plain training. Test data choose nothing. Mean ± "
        f"standard deviation over {stats.pluralize(n, 'seed')}; differences paired by seed, with "
        "the 95 % interval of Student's t and p after Holm's correction over the cells. Stopped: "
        "the best validation epoch. Flooded: share of the steps that were below the level, of all "
        "or, with early stopping, of those up to the best epoch. All seeds are tested on the same "
        "images: the intervals are about training and its data. With early stopping this asks "
        "what flooded weights are worth where the best epoch comes after the level was reached, "
        "which is a result of validation, too; chosen among all levels, the weights would often "
        "be those of plain training."
    )


def _compare(grids: Sequence[LevelGrid], comparison: study.Comparison) -> Table:
    """Tabulate two rows."""
    row, against, name, _ = comparison
    gains = [grid.gain(row, against) for grid in grids]
    lines = []
    for grid, gain, p in zip(grids, gains, stats.adjust(gains), strict=True):
        # A level that was never reached says nothing about flooding.
        if gain is None:
            plain = stats.format_mean_sd(grid.values(against, "test_accuracy", 100.0))
            lines.append([grid.cell.title, plain, _untested(row, against), *["–"] * 4])
            continue
        a, b = zip(*grid.pairs(row, against), strict=True)
        at, at_against = study.row_epoch(row), study.row_epoch(against)
        lines.append([
            grid.cell.title,
            study.format_metric(b, "test_accuracy", 100.0, at_against),
            study.format_metric(a, "test_accuracy", 100.0, at),
            f"{gain}, n = {gain.n}",
            stats.format_p(p),
            study.format_levels(record.level or 0.0 for record in a),
            study.format_flooded(a, at),
        ])
    columns = ["data", against, row, "difference", "p", "levels", "flooded %"]
    title = f"Test accuracy in %, mean ± standard deviation: {against} and {row}"
    note = "Level 0: the finder found none worth flooding." if row == "finder" else ""
    return Table(name, title, columns, lines, note)


def _untested(row: str, against: str = "plain") -> str:
    """Say why two rows are not compared."""
    if (row, against) == ("finder", "plain"):
        return "not tested: the finder chose no flooding"
    suffix = " before the best epoch" if study.row_epoch(row) == "best" else ""
    return f"not tested: no level was reached{suffix}"


def _losses(grids: Sequence[LevelGrid]) -> Table:
    """Tabulate test NLL and ECE, with the share of flooded steps."""
    rows = [row for row in study.ROWS if row.startswith("flooding")]
    columns = ["data", *study.LOSS_COLUMNS, *(f"{row}: flooded %" for row in rows)]
    lines = []
    for grid in grids:
        line = [grid.cell.title, *grid.loss_cells]
        for row in rows:
            picks = grid.picks(row)
            text = f"{study.format_flooded(picks, study.row_epoch(row))}, n = {len(picks)}"
            line.append(text if picks else _untested(row))
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
                "training loss": study.format_metric(records, "train_loss", digits=3),
            }
            for at, column, suffix in _ENDS:
                row[column] = study.format_metric(records, "test_accuracy", 100.0, at)
                row[f"flooded %{suffix}"] = row[f"reached{suffix}"] = "–"
                if level:
                    reached = [study.is_reached(record, at) for record in records]
                    untested = "" if any(reached) else ": not tested"
                    row[f"flooded %{suffix}"] = study.format_flooded(records, at)
                    row[f"reached{suffix}"] = f"{stats.format_count(reached)}{untested}"
            rows.append(row)
    title = f"Test accuracy in % at each level, n = {len(grids[0].cell.seeds)}"
    return Table.from_dicts("levels", title, rows)


def _sentences(grids: Sequence[LevelGrid], comparisons: Sequence[study.Comparison]) -> Sentences:
    """Say first whether the levels were tested at all, then which comparisons hold."""
    sentences = Sentences([], [])
    for grid in grids:
        sentences.add(*_judge_levels(grid))
    for comparison in comparisons:
        row, against, name, title = comparison
        gains = [grid.gain(row, against) for grid in grids]
        for grid, gain, p in zip(grids, gains, stats.adjust(gains), strict=True):
            start = f"{grid.cell.title}, {title}: "
            if gain is None:
                sentences.add(name == "finder", f"{start}{_untested(row, against)}.")
                continue
            who = "the finder" if row == "finder" else "flooding"
            sentence = f"{start}{who} {stats.describe_difference(gain, p)} points, n = {gain.n}"
            if others := len(grid.records) - gain.n:
                sentence += f" ({stats.pluralize(others, 'seed')} {_untested(row, against)})"
            # A claim of the paper must be shown; otherwise flooding must not be shown to lose.
            wins, loses = p < 0.05 and gain.mean > 0, p < 0.05 and gain.mean < 0
            holds = wins if name in _CLAIMED else not loses
            sentences.add(holds, f"{sentence}, p {stats.format_p(p)}.")
    return sentences


def _judge_levels(grid: LevelGrid) -> tuple[bool, str]:
    """Say whether plain training falls below the levels before half of the epochs."""
    levels = grid.cell.levels
    fractions = study.fraction_until_below(grid.at(0.0), levels[-1])
    unreached = [level for level in levels[1:] if not grid.count_reached(level)]
    suffix = f"; never reached: {study.format_levels(unreached)}" if unreached else ""
    start = f"{grid.cell.title}: plain training is"
    if all(fraction < 0.5 for fraction in fractions):
        when = f"after {study.format_percent_range(fractions)} of the epochs"
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
