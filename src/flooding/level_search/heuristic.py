"""Heuristic search: one training in which the validation accuracy moves the level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flooding.level_search.backward import has_started, start_condition, starts_early
from flooding.level_search.base import LevelEstimate, SearchResult, Strategy, tail_mean
from flooding.levels import Heuristic
from flooding.training.run import Run

__all__ = ["heuristic"]

_OF_THE_CODE = Heuristic(until_loss=1e-4)


def heuristic(
    problem: Any, controller: Heuristic = _OF_THE_CODE, *, seeds: Sequence[int] = (0,)
) -> Strategy:
    """Fit the training set, then raise or lower the level as the validation accuracy rises or
    falls: one training.

    Args:
        problem: The Problem. It must measure accuracy.
        controller: When flooding begins, the change in accuracy that counts (lambda), the step of
            the level (alpha) and its bounds. The defaults are the source's code's, for
            cross-entropy; a loss that may be negative needs a start and bounds of its own.
        seeds: Seeds, one training each.

    Yields:
        One list, a Run for each seed.

    Returns:
        The controller itself, since its path is part of the method. The level suggested is the mean
        over seeds of the last epoch's, between the lowest and the highest that any of them used.
        Seeds that were never flooded or whose validation loss is NaN do not count.
    """
    records = yield [Run(problem, controller, seed=seed) for seed in seeds]
    sound = [record for record in records if tail_mean(record)[0] > -math.inf]
    flooded = [record for record in sound if has_started(record)]
    run = next(
        (record.run for record in flooded + sound if record.run is not None),
        Run(problem, None, seed=seeds[0]),
    )
    warnings = []
    if len(sound) < len(records):
        warnings.append(
            f"{len(records) - len(sound)} of {len(records)} runs ended in a NaN validation loss"
        )
    if len(flooded) < len(sound):
        count = f"{len(sound) - len(flooded)} of {len(sound)} runs"
        warnings.append(
            f"{count} never reached {start_condition(controller)}: they are plain training"
        )
    warnings += starts_early(controller, records)
    if not flooded:
        return SearchResult(
            "heuristic",
            run,
            (LevelEstimate("heuristic", None, note="never flooded"),),
            tuple(warnings),
        )
    level = float(np.mean([record.metrics["last.level"] for record in flooded]))
    used = np.concatenate([record.curves["level"] for record in flooded])
    used = used[np.isfinite(used)]
    note = f"last level, mean of {len(flooded)} runs"
    suggestion = LevelEstimate(
        "heuristic", level, min(level, float(used.min())), max(level, float(used.max())), note
    )
    return SearchResult("heuristic", run, (suggestion,), tuple(warnings))
