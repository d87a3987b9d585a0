"""Exhaustive search: a full training for each level of a grid, as the paper does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flooding.level_search.base import (
    LevelEstimate,
    SearchResult,
    Strategy,
    adjacent_levels,
    as_numbers,
    best_level,
    check_levels,
    end_of_range,
    make_result,
)
from flooding.training.record import level_order, select_best
from flooding.training.run import Run

__all__ = ["grid"]


def grid(
    problem: Any,
    levels: Sequence[float | None] = (None, *(n / 100 for n in range(1, 11))),
    *,
    seeds: Sequence[int] = (0,),
    at: Literal["last", "best"] = "last",
) -> Strategy:
    """Train every level in full and choose by the validation split.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; None is plain training, and so is 0 for a loss that
            cannot be negative. The default is the paper's grid for images, for cross-entropy; its
            grid for synthetic data is 0 to 0.5 in steps of 0.01. A loss that may be negative needs
            levels of its own.
        seeds: Seeds to average.
        at: The epoch to judge: the last, or the best of each Run (early stopping).

    Yields:
        One list of Runs, levels from small to large, then seeds.

    Returns:
        The best level, with the interval to its neighbours on the grid; None if that is plain
        training.

    References:
        Ishida et al., ICML 2020, section 4.
    """
    levels = check_levels(levels)
    records = yield [Run(problem, level, seed=seed) for level in levels for seed in seeds]
    if at == "last":
        level = best_level(records)
    else:
        picks = [select_best(records[i :: len(seeds)], "best").level for i in range(len(seeds))]
        level = sorted(picks, key=level_order)[len(picks) // 2]
    number = as_numbers(levels)
    low, high = adjacent_levels(list(number.values()), number[level])
    level = make_result(level, records)
    suggestion = LevelEstimate("grid", level, low, high)
    return SearchResult(
        "grid", Run(problem, level, seed=seeds[0]), (suggestion,), end_of_range(level, levels)
    )
