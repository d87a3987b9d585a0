"""Range test: one training in which the level falls through all that may be good, under the cap of
a plain one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flooding.level_search.base import LevelEstimate, SearchResult, Strategy, tail_mean
from flooding.levels import Range
from flooding.training.record import validation_key
from flooding.training.run import Run

__all__ = ["range_test"]


def range_test(problem: Any, *, smoothing: float = 0.05, seed: int = 0) -> Strategy:
    """Let the level fall evenly during one training and take it where validation was best: two
    trainings.

    Flooding holds the loss near the level, so one training shows every level, though each for a
    short time and after all the larger ones. It falls from the lowest validation loss of a plain
    training, above which nothing is gained, to its lowest training loss.

    Args:
        problem: The Problem.
        smoothing: Share of the epochs over which validation is averaged, in (0, 1].
        seed: Seed of both trainings.

    Yields:
        A plain Run, then one with a falling level.

    Returns:
        The mean level of the best stretch of epochs, between the levels at its ends; None where
        nothing overfits, or where no stretch is better than the last of plain training.

    Raises:
        ValueError: If ``smoothing`` is out of range.
    """
    if not 0 < smoothing <= 1:
        raise ValueError(
            f"smoothing must be a share of the epochs, above 0 and at most 1, got {smoothing}."
        )
    [plain] = yield [Run(problem, seed=seed)]
    nowhere = Run(problem, None, seed=seed)
    cap, floor = (_lowest(plain.curves[name][1:]) for name in ("val_loss", "train_loss"))
    if not cap > floor:
        note = "the training loss never falls below the lowest validation loss"
        return SearchResult("range test", nowhere, (LevelEstimate("range test", None, note=note),))
    batches = math.ceil(len(problem.splits(seed).train) / problem.batch_size)
    [swept] = yield [Run(problem, Range(cap, floor, problem.max_epochs * batches), seed=seed)]
    width = max(1, round(smoothing * problem.max_epochs))
    curves = {name: np.asarray(curve, np.float64) for name, curve in swept.curves.items()}
    stretches = [slice(end - width, end) for end in range(width + 1, problem.max_epochs + 2)]
    judged = [
        validation_key({n: float(c[s].mean()) for n, c in curves.items()}, problem)
        for s in stretches
    ]
    best = max(range(len(judged)), key=lambda i: judged[i])
    if judged[best][0] == -math.inf or judged[best] <= tail_mean(plain, smoothing):
        return SearchResult(
            "range test",
            nowhere,
            (LevelEstimate("range test", None, note="plain training was better"),),
        )
    levels = curves["level"][stretches[best]]
    note = f"epochs {stretches[best].start} to {stretches[best].stop - 1} of the falling level"
    level = float(levels.mean())
    suggestion = LevelEstimate(
        "range test", level, min(level, levels.min()), max(level, levels.max()), note
    )
    return SearchResult("range test", Run(problem, level, seed=seed), (suggestion,))


def _lowest(curve: np.ndarray) -> float:
    """Give the lowest value of a curve, NaN if it ends in one."""
    curve = np.asarray(curve, np.float64)
    return float(np.nanmin(curve)) if math.isfinite(curve[-1]) else math.nan
