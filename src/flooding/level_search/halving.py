"""Successive halving: many levels for a short while, the better ones for longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flooding.level_search.base import (
    LevelEstimate,
    SearchResult,
    Strategy,
    as_numbers,
    best_level,
    check_levels,
    end_of_range,
    make_result,
)
from flooding.training.run import Run

__all__ = ["halving"]


def halving(
    problem: Any,
    levels: Sequence[float | None] = (None, *(n / 20 for n in range(1, 11))),
    *,
    eta: int = 3,
    least: float = 1 / 9,
    seeds: Sequence[int] = (0,),
    share: float = 0.1,
) -> Strategy:
    """Train every level for a share of the epochs, keep the best part of them, train those longer,
    and so on.

    Each rung goes on where the shorter one stopped. Synchronous: a rung waits for all its Runs.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; None is plain training, and so is 0 for a loss that
            cannot be negative. The default is for cross-entropy; a loss that may be negative needs
            levels of its own.
        eta: One in ``eta`` goes on, for ``eta`` times as many epochs; at least 2.
        least: Share of the epochs of the first rung, above 0 and at most 1.
        seeds: Seeds to average.
        share: Share of each rung's epochs, its last, to average.

    Yields:
        One list of Runs per rung.

    Returns:
        The best level of the last rung, with the interval of that rung; None if it is plain
        training.

    Raises:
        ValueError: If ``eta`` or ``least`` is out of range.

    References:
        Jamieson & Talwalkar, AISTATS 2016.
    """
    if eta < 2 or not 0 < least <= 1:
        raise ValueError(
            f"eta must be at least 2 and least lie in (0, 1], got {eta} and {least}. Try 3 and 1/9."
        )
    levels = check_levels(levels)
    left, until, before = levels, least, 0
    while True:
        epochs = min(problem.max_epochs, max(1, before + 1, round(until * problem.max_epochs)))
        before = epochs
        runs = [
            Run(problem, level, seed=seed, stop_epoch=epochs) for level in left for seed in seeds
        ]
        records = yield runs
        if epochs == problem.max_epochs:
            break
        kept: list[float | None] = []
        for _ in range(max(1, len(left) // eta)):
            kept.append(best_level([r for r in records if r.level not in kept], share))
        left, until = check_levels(kept), until * eta
    level = make_result(best_level(records, share), records)
    number = as_numbers(levels)
    suggestion = LevelEstimate("halving", level, number[left[0]], number[left[-1]])
    return SearchResult(
        "halving", Run(problem, level, seed=seeds[0]), (suggestion,), end_of_range(level, levels)
    )
