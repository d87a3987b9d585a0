"""Successive halving: many levels for a short while, the better ones for longer."""

from __future__ import annotations

from collections.abc import Sequence

from flooding.level_search.level_stats import (
    best_level,
    check_levels,
    compare_levels,
    effective_level,
    end_of_range_warning,
    interval_ends,
)
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run, make_runs
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.training.record import Record

__all__ = ["halving"]


def halving(
    problem: SearchableProblem,
    levels: Sequence[float | None] = (None, *(n / 20 for n in range(1, 11))),
    *,
    eta: int = 3,
    least: float = 1 / 9,
    seeds: Sequence[int] = (0,),
    share: float = 0.1,
) -> Strategy:
    """Train all levels for a share of the epochs, the better ones for longer, and so on.

    Each rung continues where the shorter one stopped. A rung waits for all its Runs.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; None is plain training, and so is 0 for a loss that
            cannot be negative. The default is for cross-entropy; a loss that may be negative needs
            levels of its own.
        eta: One in ``eta`` continues, for ``eta`` times as many epochs; at least 2.
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
    remaining, rung_share, epochs = levels, least, 0
    while True:
        # One rung, longer than the one before by an epoch at least.
        epochs = max(1, epochs + 1, round(rung_share * problem.max_epochs))
        epochs = min(problem.max_epochs, epochs)
        records = yield make_runs(problem, remaining, seeds, stop_epoch=epochs)
        if epochs == problem.max_epochs:
            break
        remaining = _best_levels(records, max(1, len(remaining) // eta), share)
        rung_share *= eta
    decision = compare_levels(records, share)
    selected = effective_level(decision.selected.level, records)
    ends = interval_ends(levels)
    estimate = LevelEstimate("halving", selected, ends[remaining[0]], ends[remaining[-1]])
    run = make_run(problem, selected, seed=seeds[0])
    warnings = end_of_range_warning(selected, levels)
    return SearchResult("halving", run, (estimate,), warnings, decision=decision)


def _best_levels(records: Sequence[Record], count: int, share: float) -> tuple[float | None, ...]:
    """Select the ``count`` best levels, smallest first."""
    best: list[float | None] = []
    for _ in range(count):
        others = [record for record in records if record.level not in best]
        best.append(best_level(others, share))
    return check_levels(best)
