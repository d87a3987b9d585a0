"""Exhaustive search: a full training for each level of a grid, as the paper does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flooding.level_search.level_stats import (
    adjacent_levels,
    check_levels,
    compare_levels,
    effective_level,
    end_of_range_warning,
    interval_ends,
)
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run, make_runs
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.training.record import Record, level_order, select_best

__all__ = ["grid"]


def grid(
    problem: SearchableProblem,
    levels: Sequence[float | None] = (None, *(n / 100 for n in range(1, 11))),
    *,
    seeds: Sequence[int] = (0,),
    at: Literal["last", "best"] = "last",
) -> Strategy:
    """Train every level in full and choose by the validation split.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; None is plain training, and so is 0 for a loss that
            cannot be negative. The default is the paper's grid for images and cross-entropy; its
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
    records = yield make_runs(problem, levels, seeds)
    # Levels judged at the best epochs are not compared by one number each.
    decision = None
    if at == "last":
        decision = compare_levels(records)
        best = decision.selected.level
    else:
        best = _median_best_level(records, len(seeds))
    ends = interval_ends(levels)
    low, high = adjacent_levels(list(ends.values()), ends[best])
    selected = effective_level(best, records)
    run = make_run(problem, selected, seed=seeds[0])
    estimate = LevelEstimate("grid", selected, low, high)
    warnings = end_of_range_warning(selected, levels)
    return SearchResult("grid", run, (estimate,), warnings, decision=decision)


def _median_best_level(records: Sequence[Record], num_seeds: int) -> float | None:
    """Select the level of the best epoch of each seed, and of those the median."""
    levels = []
    for index in range(num_seeds):
        levels.append(select_best(records[index::num_seeds], "best").level)
    return sorted(levels, key=level_order)[num_seeds // 2]
