"""How the studies ask for Runs, and how they deal the Records to the cells that asked.

A study asks for Runs and receives their Records in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import TypeVar

from flooding.level_search.protocol import Strategy
from flooding.level_search.result import SearchResult
from flooding.report.level_grid import Cell, LevelGrid
from flooding.training.archive import is_missing
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["all_runs", "choose_seeds", "chunk", "is_complete", "level_grids", "until_missing"]

T = TypeVar("T")
CellT = TypeVar("CellT", bound=Cell)


def choose_seeds(seeds: Sequence[int] | None, default: int) -> tuple[int, ...]:
    """Give the user's seeds, or as many as the study has by default."""
    if seeds is None:
        return tuple(range(default))
    return tuple(seeds)


def chunk(items: Sequence[T], size: int) -> list[list[T]]:
    """Cut a sequence into lists of equal length."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def all_runs(cells: Sequence[Cell]) -> list[Run]:
    """List the Runs of several cells."""
    runs: list[Run] = []
    for cell in cells:
        runs += cell.runs
    return runs


def level_grids(
    cells: Sequence[CellT], records: Sequence[Record], *, candidates_only: bool = True
) -> list[LevelGrid[CellT]]:
    """Deal Records, in the order of :func:`all_runs`, to the cells that asked for them.

    Args:
        cells: The cells.
        records: Their Records. A level that an archive lacks in any seed is left out of its cell.
        candidates_only: See :class:`flooding.report.level_grid.LevelGrid`.

    Returns:
        A grid for each cell.
    """
    grids, start = [], 0
    # The Records of a cell follow each other, seeds first.
    for cell in cells:
        size = len(cell.seeds) * len(cell.levels)
        rows = chunk(records[start : start + size], len(cell.levels))
        start += size
        by_level = list(zip(*rows, strict=True))
        trained = [not any(map(is_missing, level_records)) for level_records in by_level]
        if not all(trained):
            cell = replace(cell, levels=tuple(compress(cell.levels, trained)))
            rows = [list(compress(row, trained)) for row in rows]
        grids.append(LevelGrid(cell, rows, candidates_only=candidates_only))
    return grids


def until_missing(strategy: Strategy) -> Strategy:
    """Drive a strategy until it asks for a Run that an archive lacks.

    Args:
        strategy: A new generator.

    Yields:
        What the strategy yields.

    Returns:
        The strategy's result. Where a Record was missing it is one without an estimate, and
        :func:`is_complete` tells so.
    """
    try:
        runs = next(strategy)
        while True:
            records = yield runs
            if any(is_missing(record) for record in records):
                return SearchResult("not trained", runs[0], ())
            runs = strategy.send(records)
    except StopIteration as stop:
        return stop.value
    finally:
        strategy.close()


def is_complete(result: SearchResult) -> bool:
    """Tell whether every Run that a strategy asked for was trained."""
    return not any(is_missing(record) for record in result.records)
