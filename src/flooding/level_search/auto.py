"""One training that chooses its own level: its price is that training and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flooding.level_search.level_stats import lowest_finite, tail_key
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run, make_runs
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.level_search.sweep import sweep_of
from flooding.levels import Auto
from flooding.training.record import Record, monitor_prefix

__all__ = ["auto"]

_DEFAULT = Auto()
_AS_GOOD = math.exp(-0.5)  # weight of a level one standard error below the best


def auto(
    problem: SearchableProblem, controller: Auto = _DEFAULT, *, seeds: Sequence[int] = (0,)
) -> Strategy:
    """Train once with a level that chooses itself, see :class:`flooding.levels.Auto`.

    Args:
        problem: The Problem.
        controller: The controller; without ``epochs`` it takes those of the Problem.
        seeds: Seeds, one training each.

    Yields:
        One list, a Run for each seed.

    Returns:
        The controller itself, since the network that this training produced is the one to use. The
        estimate is the level that it held, averaged over seeds, between the lowest and the highest
        level within one standard error of the best score. Seeds that chose no level, or whose
        validation loss is NaN, do not count.
    """
    records = yield make_runs(problem, [controller.with_epochs(problem.max_epochs)], seeds)
    finite = [record for record in records if tail_key(record)[0] > -math.inf]
    held = [record for record in finite if _has_level(record)]

    warnings = []
    diverged = len(records) - len(finite)
    if diverged:
        warnings.append(f"{diverged} of {len(records)} runs ended in a NaN validation loss")
    lowest = lowest_finite(records, f"{monitor_prefix(problem)}val_loss")
    if lowest < controller.floor:
        warnings.append(
            f"the validation loss fell to {lowest:.3g}, below the floor of Auto, "
            f"{controller.floor:g}: where it does, nothing is flooded. Train "
            "Run(problem, Auto(floor=...)) with the lowest loss there can be, or search with "
            "budget=3"
        )
    if len(held) < len(finite):
        warnings.append(
            f"{len(finite) - len(held)} of {len(finite)} runs chose no level: they are plain "
            "training"
        )

    # The first seed that holds a level is the one to use; without any, one that ended well.
    run = make_run(problem, None, seed=seeds[0])
    for record in held + finite:
        if record.run is not None:
            run = record.run
            break
    if not held:
        estimate = LevelEstimate("held level", None, note="no level was chosen")
        return SearchResult("auto", run, (estimate,), tuple(warnings))
    return SearchResult("auto", run, _estimates(held), tuple(warnings))


def _has_level(record: Record) -> bool:
    return math.isfinite(record.metrics.get("last.level", math.nan))


def _estimates(records: Sequence[Record]) -> tuple[LevelEstimate, ...]:
    """Give the level that was held, with the levels that are as good, and the cap."""
    level = float(np.mean([record.metrics["last.level"] for record in records]))
    equal_levels, caps = [level], []
    for record in records:
        sweep = sweep_of(record)
        if sweep is not None:
            equal_shares = sweep.shares[sweep.weights >= _AS_GOOD]
            # The level is proportional to the share.
            unit = record.metrics["last.level"] / sweep.held_share
            equal_levels += [
                float(unit * share) for share in (min(equal_shares), max(equal_shares))
            ]
            caps.append(sweep.cap)
    note = "lowest validation loss times the mean share, weighted by validation score"
    estimates = [LevelEstimate("held level", level, min(equal_levels), max(equal_levels), note)]
    if caps:
        cap = float(np.mean(caps))
        note = "lowest validation loss, from which the level falls"
        estimates.append(LevelEstimate("cap", cap, min(0.0, cap), cap, note))
    return tuple(estimates)
