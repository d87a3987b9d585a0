"""Range test: the level falls during one training, below the cap that plain training gives."""

from __future__ import annotations

import math

import numpy as np

from flooding.level_search.level_stats import lowest_after_start, tail_key
from flooding.level_search.protocol import Strategy
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.levels import Range
from flooding.training.problem import Problem
from flooding.training.record import Record, monitor_prefix, validation_key
from flooding.training.run import Run

__all__ = ["range_test"]


def range_test(problem: Problem, *, smoothing: float = 0.05, seed: int = 0) -> Strategy:
    """Let the level fall evenly during one training and take it where validation was best.

    Flooding holds the loss near the level, so one training shows every level, though each for a
    short time and after all the larger ones. The level falls from the lowest validation loss of a
    plain training, above which nothing is gained, to its lowest training loss. So the price is two
    trainings.

    Args:
        problem: The Problem.
        smoothing: Share of the epochs over which validation is averaged, in (0, 1].
        seed: Seed of both trainings.

    Yields:
        A plain Run, then one with a falling level.

    Returns:
        The mean level of the best window of epochs, between the levels at its ends; None where
        nothing overfits, or where no window is better than the last of plain training.

    Raises:
        ValueError: If ``smoothing`` is out of range.
    """
    if not 0 < smoothing <= 1:
        raise ValueError(
            f"smoothing must be a share of the epochs, above 0 and at most 1, got {smoothing}."
        )
    # Plain training gives the range.
    plain_run = Run(problem, None, seed=seed)
    [plain] = yield [Run(problem, seed=seed)]
    cap = lowest_after_start(plain.curves["val_loss"])
    floor = lowest_after_start(plain.curves["train_loss"])
    if not cap > floor:
        note = "the training loss never falls below the lowest validation loss"
        estimate = LevelEstimate("range test", None, note=note)
        return SearchResult("range test", plain_run, (estimate,))

    # One training through the range, a step at a time.
    batches = math.ceil(len(problem.splits(seed).train) / problem.batch_size)
    controller = Range(cap, floor, problem.max_epochs * batches)
    [record] = yield [Run(problem, controller, seed=seed)]

    # The window of epochs with the best validation result decides.
    width = max(1, round(smoothing * problem.max_epochs))
    windows = [slice(end - width, end) for end in range(width + 1, problem.max_epochs + 2)]
    keys = [_window_key(record, window, problem) for window in windows]
    best = max(range(len(keys)), key=lambda i: keys[i])
    if keys[best][0] == -math.inf or keys[best] <= tail_key(plain, smoothing):
        estimate = LevelEstimate("range test", None, note="plain training was better")
        return SearchResult("range test", plain_run, (estimate,))
    window = windows[best]
    levels = np.asarray(record.curves["level"], np.float64)[window]
    level = float(levels.mean())
    low, high = min(level, float(levels.min())), max(level, float(levels.max()))
    note = f"epochs {window.start} to {window.stop - 1} of the falling level"
    estimate = LevelEstimate("range test", level, low, high, note)
    return SearchResult("range test", Run(problem, level, seed=seed), (estimate,))


def _window_key(record: Record, window: slice, problem: Problem) -> tuple[float, float]:
    """Average the curves over a window of epochs and order them by validation."""
    means = {}
    for name, curve in record.curves.items():
        means[name] = float(np.asarray(curve, np.float64)[window].mean())
    return validation_key(means, problem, monitor_prefix(problem))
