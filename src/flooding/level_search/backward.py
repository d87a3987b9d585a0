"""Backward search: fit first, then flood, for each level of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
    may_be_negative,
)
from flooding.levels import Delayed
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["backward", "has_started", "start_condition", "starts_early"]


def backward(
    problem: Any,
    levels: Sequence[float | None] = (None, *(n / 50 for n in range(1, 15))),
    *,
    seeds: Sequence[int] = (0,),
    until_loss: float | None = None,
    until_accuracy: float | None = None,
    share: float = 0.0,
) -> Strategy:
    """Train plainly until the training set is fitted, then flood: in full for every level, chosen
    by validation.

    A training that never fits the training set is never flooded: it is plain training whatever its
    level. It still counts for its level, since training anew would do the same; warnings and notes
    say how many there were.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; None is plain training, and so is 0 for a loss that
            cannot be negative. The default is the source's grid, for cross-entropy; a loss that may
            be negative needs levels and a condition of its own.
        seeds: Seeds to average.
        until_loss: Begin when the loss of an epoch's last batch is at most this; 1e-4, the source's
            code's, if neither condition is given.
        until_accuracy: Begin when an epoch's training accuracy is at least this; 1.0 in the
            source's text. The longer a training takes to get there, the less of it is flooded.
        share: Share of late epochs to average, see :func:`flooding.level_search.base.tail_mean`.

    Yields:
        One list of Runs, levels from small to large, then seeds.

    Returns:
        The controller of the best level, with the interval to its neighbours on the grid. Plain
        training if that was better, or no Run at that level began to flood.
    """
    levels = check_levels(levels)
    if until_loss is None and until_accuracy is None:
        until_loss = 1e-4
    delayed = Delayed(0.0, until_loss, until_accuracy)
    controllers = {
        level: None if level is None else replace(delayed, level=level) for level in levels
    }
    asked = [(level, seed) for level in levels for seed in seeds]
    records = yield [Run(problem, controllers[level], seed=seed) for level, seed in asked]
    # Under the level that was asked for: a Record of a training that never began to flood says
    # None.
    named = [
        replace(r, run=Run(problem, level, seed=seed))
        for (level, seed), r in zip(asked, records, strict=True)
    ]
    level = best_level(named, share)
    began = {place: has_started(record) for place, record in zip(asked, records, strict=True)}
    here = sum(began[level, seed] for seed in seeds)
    condition = start_condition(delayed)
    number = as_numbers(levels)
    low, high = adjacent_levels(list(number.values()), number[level])
    chosen = make_result(level, named) if here else None
    warnings = (
        _warnings(began, condition) + starts_early(delayed, records) + end_of_range(chosen, levels)
    )
    note = (
        "plain training"
        if level is None
        else f"{here} of {len(seeds)} runs at this level reached {condition}"
    )
    return SearchResult(
        "backward",
        Run(problem, None if chosen is None else controllers[chosen], seed=seeds[0]),
        (LevelEstimate("backward", chosen, low, high, note),),
        warnings,
    )


def has_started(record: Record) -> bool:
    """Tell whether a Record of a delayed controller was flooded at all.

    Args:
        record: A Record.

    Returns:
        Whether a level was in force in its last epoch; a condition first met there came too late.
    """
    return math.isfinite(record.metrics["last.level"])


def start_condition(controller: Delayed) -> str:
    """Name what a controller waits for.

    Args:
        controller: A delayed controller.

    Returns:
        A few words, such as "accuracy 1".
    """
    if controller.until_accuracy is None:
        return f"a last-batch loss of {controller.until_loss:g}"
    return f"accuracy {controller.until_accuracy:g}"


def starts_early(controller: Delayed, records: Sequence[Record]) -> tuple[str, ...]:
    """Warn of a start at a positive loss where the loss may be negative.

    Args:
        controller: A delayed controller.
        records: Records of Runs with it.

    Returns:
        A warning, or none.
    """
    if controller.until_loss is None or controller.until_loss < 0 or not may_be_negative(records):
        return ()
    return (
        f"flooding starts at {start_condition(controller)}, but the training loss falls below 0: give an until_loss "
        "near its lowest value",
    )


def _warnings(began: dict[tuple[float | None, int], bool], condition: str) -> tuple[str, ...]:
    began = {place: started for place, started in began.items() if place[0] is not None}
    late = [f"{level:g} (seed {seed})" for (level, seed), started in began.items() if not started]
    if not late:
        return ()
    told = f"{len(late)} of {len(began)} runs never reached {condition}: those levels are plain training"
    return (f"{told}: {', '.join(late)}",)
