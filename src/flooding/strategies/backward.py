"""Backward search: fit first, then flood, for each level of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flooding.levels import Delayed
from flooding.problem import Record, Run
from flooding.strategies import Found, Strategy, Suggestion, best_level, check_levels, neighbours

__all__ = ["backward", "has_started", "start_condition"]


def backward(
    problem: Any,
    levels: Sequence[float] = tuple(n / 50 for n in range(15)),
    *,
    seeds: Sequence[int] = (0,),
    until_loss: float | None = None,
    until_accuracy: float | None = None,
    share: float = 0.0,
) -> Strategy:
    """Train plainly until the training set is fitted, then flood: in full for every level, chosen by validation.

    A training that never fits the training set is never flooded: it is plain training whatever its level. It still
    counts for its level, since training anew would do the same; warnings and notes say how many there were.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; 0 is plain training. The default is the source's grid.
        seeds: Seeds to average.
        until_loss: Begin when the loss of an epoch's last batch is at most this; 1e-4, the source's code's, if neither
            condition is given.
        until_accuracy: Begin when an epoch's training accuracy is at least this; 1.0 in the source's text. The longer
            a training takes to get there, the less of it is flooded.
        share: Share of late epochs to average, see :func:`flooding.strategies.late`.

    Yields:
        One list of Runs, levels from small to large, then seeds.

    Returns:
        The controller of the best level, with the interval to its neighbours on the grid. Plain training if no Run at
        that level began to flood.
    """
    levels = check_levels(levels)
    if until_loss is None and until_accuracy is None:
        until_loss = 1e-4
    controllers = {level: Delayed(level, until_loss, until_accuracy) for level in levels}
    asked = [(level, seed) for level in levels for seed in seeds]
    records = yield [Run(problem, controllers[level] if level else 0.0, seed=seed) for level, seed in asked]
    # Under the level that was asked for: a Record of a training that never began to flood says 0.
    named = [replace(r, run=Run(problem, level, seed=seed)) for (level, seed), r in zip(asked, records, strict=True)]
    level = best_level(named, share)
    began = {place: has_started(record) for place, record in zip(asked, records, strict=True) if place[0]}
    here = sum(began.get((level, seed), False) for seed in seeds)
    condition = start_condition(controllers[level])
    low, high = neighbours(levels, level)
    warnings = _warnings(began, condition)
    if here and len(levels) > 1 and level == levels[-1]:
        warnings += (f"the best level {level:g} is the largest of the grid: a larger one may be better",)
    note = f"{here} of {len(seeds)} runs at this level reached {condition}" if level else "plain training"
    return Found(
        "backward",
        Run(problem, controllers[level] if here else None, seed=seeds[0]),
        (Suggestion("backward", level if here else None, low, high, note),),
        warnings,
    )


def has_started(record: Record) -> bool:
    """Tell whether a Record of a delayed controller was flooded at all.

    Args:
        record: A Record.

    Returns:
        Whether a level was in force in its last epoch; a condition first met there came too late.
    """
    return math.isfinite(record.finals["last.level"])


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


def _warnings(began: dict[tuple[float, int], bool], condition: str) -> tuple[str, ...]:
    late = [f"{level:g} (seed {seed})" for (level, seed), started in began.items() if not started]
    if not late:
        return ()
    told = f"{len(late)} of {len(began)} runs never reached {condition}: those levels are plain training"
    return (f"{told}: {', '.join(late)}",)
