"""The finder: one plain training, and a race of a few levels that its validation loss points to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flooding.problem import Record, Run
from flooding.strategies import Found, Strategy, Suggestion, late

__all__ = ["finder"]

_PLACES = 5  # levels to race at least
_LATE = 0.25  # share of the raced epochs to average


def finder(problem: Any, *, budget: float = 3.0, seeds: Sequence[int] = (0,), shared: bool = True) -> Strategy:
    """Find a level for the price of a few trainings.

    1. Train plainly. Its lowest validation loss caps the level: a training loss held above it cannot generalise
       better than a training stopped there. Where the training loss never falls below it, nothing overfits and the
       answer is None.
    2. Race levels spread evenly between the lowest training loss and that cap, for as many epochs as the budget
       leaves, and compare them with the plain training at the same epoch: validation score averaged over late epochs
       and seeds, and with the neighbouring levels, since a good level has good neighbours and luck has none.

    Args:
        problem: The Problem.
        budget: Trainings to spend for each seed, above 1; more of it races for longer, then races more levels.
        seeds: Seeds to average.
        shared: Whether the steps before a level is reached are taken once for all levels, as :func:`flooding.evaluate`
            does. The race then reaches further for the same price.

    Yields:
        The plain Runs, then the race.

    Returns:
        The best level, or None where plain training is as good.

    Raises:
        ValueError: If the budget is not above 1.
    """
    if not 1 < budget < math.inf:
        raise ValueError(f"budget must be above 1 training, got {budget}. The finder needs one plain run and a race.")
    plain = yield [Run(problem, None, seed=seed) for seed in seeds]
    caps = [_lowest(record, "val_loss") for record in plain]
    floors = [min(_lowest(record, "train_loss"), cap) for record, cap in zip(plain, caps, strict=True)]
    cap, floor = float(np.mean(caps)), float(np.mean(floors))
    nowhere = Run(problem, None, seed=seeds[0])
    if not math.isfinite(cap):
        warning = "the validation loss is not finite: mend the training before flooding it"
        return Found("finder", nowhere, (), (warning,))
    guess = Suggestion("irreducible loss", _rounded(floor + 0.7 * (cap - floor), cap), floor, cap, "0.7 of the way up")
    ceiling = Suggestion("cap", cap, floor, cap, "lowest validation loss of plain training")
    if cap - floor < 1e-3 * max(abs(cap), 1e-3):
        warning = "the training loss never falls below the lowest validation loss: there is nothing to flood"
        return Found("finder", nowhere, (ceiling,), (warning,))

    levels, epochs = _race(plain, floor, cap, (budget - 1) * len(seeds), shared)
    until = None if epochs == problem.horizon else epochs
    raced = yield [Run(problem, level, seed=seed, until=until) for level in levels for seed in seeds]

    rows = [[_cut(record, epochs) for record in plain]]
    rows += [list(raced[i * len(seeds) : (i + 1) * len(seeds)]) for i in range(len(levels))]
    scores = np.array([np.mean([late(record, _LATE) for record in row], axis=0) for row in rows])
    smooth = _smoothed(scores)
    order = sorted(range(len(rows)), key=lambda i: (smooth[i][0], smooth[i][1], -i))
    best = order[-1]
    level = ([None, *levels])[best]
    near = [0.0, *levels]
    alike = [
        near[i] for i in range(len(rows)) if smooth[i][0] >= smooth[best][0] - _chance(problem, seeds, smooth[best])
    ]
    race = Suggestion("race", level, min(alike), max(alike), f"{epochs} of {problem.horizon} epochs")
    return Found("finder", Run(problem, level, seed=seeds[0]), (race, guess, ceiling), ())


def _lowest(record: Record, name: str) -> float:
    """Give the lowest value of a curve after training began, an average of three epochs."""
    curve = np.asarray(record.curves[name], np.float64)[1:]
    curve = curve[np.isfinite(curve)]
    if len(curve) < 3:
        return float(curve.min()) if len(curve) else math.nan
    return float(np.convolve(curve, np.ones(3) / 3, "valid").min())


def _race(plain: Sequence[Record], floor: float, cap: float, budget: float, shared: bool) -> tuple[list[float], int]:
    """Choose levels and epochs: at least five levels, and more where there is budget for full trainings."""
    run = plain[0].run
    assert run is not None
    horizon, chosen = run.problem.horizon, None
    for count in range(_PLACES, 10 * _PLACES):
        levels = sorted({_rounded(floor + (place + 0.5) / count * (cap - floor), cap) for place in range(count)})
        starts = [[_reached(record, level) if shared else 0 for level in levels] for record in plain]
        epochs = _affordable(starts, budget * horizon, horizon)
        if chosen is not None and epochs < horizon:
            break
        chosen = (levels, epochs)
        if epochs < horizon:
            break
    assert chosen is not None
    return chosen


def _reached(record: Record, level: float) -> int:
    """Tell how many epochs pass before a level is near; batches fall below it a little before their mean does."""
    below = np.asarray(record.curves["train_loss"])[1:] <= max(1.5 * level, level)
    return int(below.argmax()) if below.any() else len(below)


def _affordable(starts: Sequence[Sequence[int]], epochs: float, horizon: int) -> int:
    """Find how far Runs can go that part from each seed's trunk after ``starts`` epochs, for ``epochs`` in all."""
    for until in range(horizon, 1, -1):
        branches = sum(max(0, until - start) for seed in starts for start in seed)
        if branches + sum(min(until, max(seed)) for seed in starts) <= epochs:
            return until
    return 1


def _rounded(level: float, scale: float) -> float:
    """Round a level to two or three digits of the cap, so that other searches in the same ledger share its Runs."""
    digits = 2 - math.floor(math.log10(abs(scale) or 1.0)) - (1 if abs(scale) >= 0.1 else 0)
    return round(level, max(digits, 2))


def _cut(record: Record, epochs: int) -> Record:
    """Look at a Record as it was after some epochs."""
    curves = {name: curve[: epochs + 1] for name, curve in record.curves.items()}
    return Record(record.run, curves, {}, {}, record.weights, record.fingerprint)


def _smoothed(scores: np.ndarray) -> np.ndarray:
    """Average each row with its neighbours, ``[levels, 2]``; ends count themselves twice."""
    padded = np.pad(scores, ((1, 1), (0, 0)), mode="edge")
    with np.errstate(invalid="ignore"):
        mixed = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return np.where(np.isfinite(mixed), mixed, scores)


def _chance(problem: Any, seeds: Sequence[int], score: np.ndarray) -> float:
    """Give the standard error of a validation accuracy; 0 for other scores, whose spread nobody knows."""
    if problem.score is not None or not 0 < score[0] < 1 or not hasattr(problem, "splits"):
        return 0.0
    return math.sqrt(score[0] * (1 - score[0]) / (len(seeds) * len(problem.splits(seeds[0]).val)))
