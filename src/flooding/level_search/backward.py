"""Backward search: fit first, then flood, for each level of a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flooding.level_search.level_stats import (
    adjacent_levels,
    check_levels,
    compare_levels,
    effective_level,
    end_of_range_warning,
    interval_ends,
    loss_is_negative,
)
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run, make_runs
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.levels import Delayed
from flooding.training.record import Record

__all__ = ["backward", "early_start_warning", "has_started", "start_condition"]


def backward(
    problem: SearchableProblem,
    levels: Sequence[float | None] = (None, *(n / 50 for n in range(1, 15))),
    *,
    seeds: Sequence[int] = (0,),
    until_loss: float | None = None,
    until_accuracy: float | None = None,
    share: float = 0.0,
) -> Strategy:
    """Fit the training set plainly, then flood; train every level in full, select by validation.

    A training that never fits the training set is never flooded: it is plain training whatever its
    level. It still counts for its level, since training anew would do the same. Warnings and notes
    say how many there were.

    Args:
        problem: The Problem.
        levels: Levels in the unit of the loss; None is plain training, and so is 0 for a loss that
            cannot be negative. The default is the source's grid, for cross-entropy; a loss that may
            be negative needs levels and a condition of its own.
        seeds: Seeds to average.
        until_loss: Begin when the loss of an epoch's last batch is at most this. If neither
            condition is given, it is 1e-4, as in the source's code.
        until_accuracy: Begin when an epoch's training accuracy is at least this; 1.0 in the
            source's text. The longer a training takes to get there, the less of it is flooded.
        share: Share of the last epochs to average, see
            :func:`flooding.level_search.level_stats.tail_key`.

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

    # Train every level with every seed in full, flooding from the start condition on.
    controllers: dict[float | None, Delayed | None] = {None: None}
    for level in levels:
        if level is not None:
            controllers[level] = replace(delayed, level=level)
    records = yield make_runs(problem, [controllers[level] for level in levels], seeds)

    # Name each Record by its level: one that never began to flood has the level None.
    pairs = list(itertools.product(levels, seeds))
    level_records: list[Record] = []
    started: dict[tuple[float | None, int], bool] = {}
    for (level, seed), record in zip(pairs, records, strict=True):
        level_records.append(replace(record, run=make_run(problem, level, seed=seed)))
        started[level, seed] = has_started(record)

    # Select the best level; one that flooded no seed is plain training.
    decision = compare_levels(level_records, share)
    best = decision.selected.level
    num_started = sum(started[best, seed] for seed in seeds)
    selected = effective_level(best, level_records) if num_started else None
    # How many of its Runs flooded, and between which neighbours does the level lie?
    condition = start_condition(delayed)
    note = "plain training"
    if best is not None:
        note = f"{num_started} of {len(seeds)} runs at this level reached {condition}"
    ends = interval_ends(levels)
    low, high = adjacent_levels(list(ends.values()), ends[best])
    warnings = (
        _never_started_warning(started, condition)
        + early_start_warning(delayed, records)
        + end_of_range_warning(selected, levels)
    )
    run = make_run(problem, controllers[selected], seed=seeds[0])
    estimate = LevelEstimate("backward", selected, low, high, note)
    return SearchResult("backward", run, (estimate,), warnings, decision=decision)


def has_started(record: Record) -> bool:
    """Tell whether a Run of a delayed controller was flooded at all.

    Args:
        record: A Record.

    Returns:
        Whether a level was in force in its last epoch; a condition first met there came too late.
    """
    return math.isfinite(record.metrics["last.level"])


def start_condition(controller: Delayed) -> str:
    """Describe what a controller waits for.

    Args:
        controller: A delayed controller.

    Returns:
        A few words, such as "accuracy 1".
    """
    if controller.until_accuracy is None:
        return f"a last-batch loss of {controller.until_loss:g}"
    return f"accuracy {controller.until_accuracy:g}"


def early_start_warning(controller: Delayed, records: Sequence[Record]) -> tuple[str, ...]:
    """Warn of a start at a positive loss where the loss may be negative.

    Args:
        controller: A delayed controller.
        records: Records of Runs with it.

    Returns:
        A warning, or none.
    """
    # A loss that falls below 0 passes a start at a positive value on its way down, too early.
    if controller.until_loss is None or controller.until_loss < 0 or not loss_is_negative(records):
        return ()
    return (
        f"flooding starts at {start_condition(controller)}, but the training loss falls below 0: "
        "give an until_loss near its lowest value",
    )


def _never_started_warning(
    started: Mapping[tuple[float | None, int], bool], condition: str
) -> tuple[str, ...]:
    num_flooded = 0
    unstarted = []
    for (level, seed), has_begun in started.items():
        if level is None:  # plain training waits for nothing
            continue
        num_flooded += 1
        if not has_begun:
            unstarted.append(f"{level:g} (seed {seed})")
    if not unstarted:
        return ()
    return (
        f"{len(unstarted)} of {num_flooded} runs never reached {condition}: "
        f"those levels are plain training: {', '.join(unstarted)}",
    )
