"""Exhaustive search: a full training for each level of a grid, as the paper does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flooding.problem import Run, choose
from flooding.strategies import Found, Strategy, Suggestion, best_level, check_levels, neighbours

__all__ = ["grid"]


def grid(
    problem: Any,
    levels: Sequence[float] = tuple(n / 100 for n in range(11)),
    *,
    seeds: Sequence[int] = (0,),
    at: Literal["last", "best"] = "last",
) -> Strategy:
    """Train every level in full and choose by the validation split.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; 0 is plain training. The default is the paper's grid for images; its
            grid for synthetic data is 0 to 0.5 in steps of 0.01.
        seeds: Seeds to average.
        at: The epoch to judge: the last, or the best of each Run (early stopping).

    Yields:
        One list of Runs, levels from small to large, then seeds.

    Returns:
        The best level, with the interval to its neighbours on the grid.

    References:
        Ishida et al., ICML 2020, section 4.
    """
    levels = check_levels(levels)
    records = yield [Run(problem, level, seed=seed) for level in levels for seed in seeds]
    if at == "last":
        level = best_level(records)
    else:
        picks = [choose(records[i :: len(seeds)], "best").level for i in range(len(seeds))]
        level = sorted(picks)[len(picks) // 2]
    low, high = neighbours(levels, level)
    warnings = ()
    if len(levels) > 1 and level == levels[-1]:
        warnings = (f"the best level {level:g} is the largest of the grid: a larger one may be better",)
    run = Run(problem, level or None, seed=seeds[0])
    return Found("grid", run, (Suggestion("grid", level or None, low, high),), warnings)
