"""Grids of levels: for each cell all levels with all seeds, compared by what validation picks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flooding.experiments import Study, study
from flooding.level_search.driver import run_concurrently
from flooding.level_search.finder import finder
from flooding.level_search.result import SearchResult
from flooding.levels import Auto
from flooding.report import level_comparison
from flooding.report.document import Report
from flooding.report.level_grid import (
    AVERAGE_COMPARISONS,
    COMPARISONS,
    Cell,
    Comparison,
    LevelGrid,
)
from flooding.report.provenance import describe_provenance
from flooding.training.record import Record
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CURVES", "GridFigure", "compare_levels"]

# Curves that the archives keep.
CURVES = ("flooded", "train_loss", "val_accuracy", "val_loss")
GridFigure: TypeAlias = "Callable[[Sequence[LevelGrid]], Figure]"
"""Draws a figure of the grids."""

_AGAINST_ALL = "the finder against what validation chose of all levels above 0"
_FINDER = (
    Comparison("finder", "plain", "finder", "the finder against plain training"),
    Comparison("finder", "flooding", "finder-against-all", _AGAINST_ALL),
)


def compare_levels(
    cells: Sequence[Cell],
    title: str,
    about: str,
    figures: Mapping[str, tuple[str, GridFigure]] | None = None,
    *,
    search: bool = False,
    auto: bool = False,
) -> Study:
    """Train all levels of all cells and compare, for each seed, what validation picks.

    Args:
        cells: The cells, with as many seeds each.
        title: The report's heading.
        about: What was done; how levels are picked and figures are to be read is added.
        figures: Further figures by name: caption and drawing function.
        search: Whether to ask the finder, too, and train what it finds.
        auto: Whether to let a training choose its own level, too, and to compare the averages of
            the weights, which the cells' Problems then keep.

    Yields:
        The Runs: levels at once, those that choose their own, then those that the finder asks for.

    Returns:
        The report.
    """
    # First everything that can be asked at once, then what the finder asks for step by step.
    records = yield study.all_runs(cells)
    grids = study.level_grids(cells, records)
    comparisons = COMPARISONS
    num_seeds = len(cells[0].seeds)
    if auto:
        chosen = yield _auto_runs(cells)
        by_cell = study.chunk(chosen, num_seeds)
        grids = [replace(grid, auto=row) for grid, row in zip(grids, by_cell, strict=True)]
        comparisons += AVERAGE_COMPARISONS
        records = [*records, *chosen]
        about = (
            f"{about} The auto level is chosen within one training, by the validation results of "
            "its averaged weights, an exponential moving average; that average is what is tested. "
            "The levels of the rows with an average are chosen by the average's validation results."
        )
    if search:
        searches, picks = yield from _search(cells)
        grids = _add_picks(grids, study.chunk(picks, num_seeds))
        comparisons += _FINDER
        # Everything that was trained is counted, also what the finder dropped.
        for result in searches:
            records = [*records, *result.records]
        records = [*records, *picks]
        cost = np.mean([result.cost.steps for result in searches])
        about = (
            f"{about} The finder spends {cost:.1f} trainings on its level, and one more where that "
            "was not trained."
        )
    tables = [level_comparison.comparison_table(grids, each) for each in comparisons]
    tables.append(level_comparison.losses_table(grids))
    tables.append(level_comparison.levels_table(grids))
    caption = (
        "Test accuracy and NLL at the last epoch against the flood level: mean and standard "
        "deviation over seeds. Dashed: plain training with early stopping. Open marks: levels that "
        "were never reached, or are not a candidate in any seed."
    )
    drawings = {"levels": (caption, partial(level_comparison.draw_levels, grids))}
    for name, (text, draw) in (figures or {}).items():
        drawings[name] = (text, partial(draw, grids))
    return Report(
        title,
        f"{about} {level_comparison.describe_selection(num_seeds)}",
        *level_comparison.sentences(grids, comparisons),
        tables,
        drawings,
        describe_provenance(records),
        level_comparison.describe_comparisons(grids),
        {grid.cell.title: grid.by_level for grid in grids},
    )


def _auto_runs(cells: Sequence[Cell]) -> list[Run]:
    """List the Runs of several cells that choose their own level, a seed each."""
    runs = []
    for cell in cells:
        level = Auto().with_epochs(cell.problem.max_epochs)
        runs += [Run(cell.problem, level, seed=seed) for seed in cell.seeds]
    return runs


def _search(
    cells: Sequence[Cell],
) -> Generator[list[Run], list[Record], tuple[list[SearchResult], list[Record]]]:
    """Ask the finder for each seed of each cell, then train what it found."""
    searches = []
    for cell in cells:
        searches += [finder(cell.problem, seeds=[seed]) for seed in cell.seeds]
    results = yield from run_concurrently(searches)
    picks = yield [result.run for result in results]
    return results, picks


def _add_picks(grids: Sequence[LevelGrid], picks: Sequence[list[Record]]) -> list[LevelGrid]:
    """Add to each grid what the finder picked for its seeds."""
    complete = []
    for grid, by_seed in zip(grids, picks, strict=True):
        complete.append(replace(grid, finder=by_seed))
    return complete
