"""Heuristic search: one training in which the validation accuracy moves the level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flooding.level_search.backward import early_start_warning, has_started, start_condition
from flooding.level_search.level_stats import tail_key
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run, make_runs
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.levels import Heuristic

__all__ = ["heuristic"]

# The defaults of the source's code.
_SOURCE_CONTROLLER = Heuristic(until_loss=1e-4)


def heuristic(
    problem: SearchableProblem,
    controller: Heuristic = _SOURCE_CONTROLLER,
    *,
    seeds: Sequence[int] = (0,),
) -> Strategy:
    """Fit the training set, then let the validation accuracy move the level, in one training.

    The level rises when the validation accuracy rises, and falls when it falls.

    Args:
        problem: The Problem. It must measure accuracy.
        controller: When flooding begins, the change in accuracy that counts (lambda), the step of
            the level (alpha) and its bounds. The defaults are the source's code's, for
            cross-entropy; a loss that may be negative needs a start and bounds of its own.
        seeds: Seeds, one training each.

    Yields:
        One list, a Run for each seed.

    Returns:
        The controller itself, since its path is part of the method. The estimate is the level of
        the last epoch, averaged over seeds, between the lowest and the highest that any of them
        used. Seeds that were never flooded or whose validation loss is NaN do not count.
    """
    records = yield make_runs(problem, [controller], seeds)
    finite = [record for record in records if tail_key(record)[0] > -math.inf]
    flooded = [record for record in finite if has_started(record)]

    warnings = []
    diverged = len(records) - len(finite)
    if diverged:
        warnings.append(f"{diverged} of {len(records)} runs ended in a NaN validation loss")
    unstarted = len(finite) - len(flooded)
    if unstarted:
        warnings.append(
            f"{unstarted} of {len(finite)} runs never reached {start_condition(controller)}: "
            "they are plain training"
        )
    warnings += early_start_warning(controller, records)

    # The first flooded seed is the one to use; without any, one that ended well.
    run = make_run(problem, None, seed=seeds[0])
    for record in flooded + finite:
        if record.run is not None:
            run = record.run
            break
    if not flooded:
        estimate = LevelEstimate("heuristic", None, note="never flooded")
        return SearchResult("heuristic", run, (estimate,), tuple(warnings))

    level = float(np.mean([record.metrics["last.level"] for record in flooded]))
    levels = np.concatenate([record.curves["level"] for record in flooded])
    levels = levels[np.isfinite(levels)]
    low, high = min(level, float(levels.min())), max(level, float(levels.max()))
    note = f"last level, mean of {len(flooded)} runs"
    estimate = LevelEstimate("heuristic", level, low, high, note)
    return SearchResult("heuristic", run, (estimate,), tuple(warnings))
