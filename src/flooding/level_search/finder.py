"""The finder: one plain training says where to look, and a short race of levels decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flooding.level_search.base import (
    LevelEstimate,
    SearchResult,
    Strategy,
    reached_level,
    tail_means,
)
from flooding.training.record import Record, validation_key
from flooding.training.run import Run

__all__ = ["finder"]

_PLACES = 5  # levels to race at least
_LATE = 0.125  # share of the raced epochs, the last, to average


def finder(
    problem: Any, *, budget: float = 3.0, seeds: Sequence[int] = (0,), shared: bool = True
) -> Strategy:
    """Find a level for the price of two or three trainings.

    1. Train plainly, in full. The lowest validation loss caps the level: it estimates the
    irreducible loss from
       above. Where the training loss never falls below it, nothing overfits and the answer is None.
    2. Race five levels, at a tenth, three tenths ... nine tenths of the way from the lowest
    training loss to the cap,
       for as many epochs as the budget leaves. A level, and plain training as the lowest of them,
       is judged by the validation score averaged over late epochs, seeds, and its neighbours: a
       good level has good neighbours, luck has none. The losses may be negative, and so may the
       levels.

    Args:
        problem: The Problem.
        budget: About how many trainings to spend for each seed, above 1. More of it races for
            longer, then races more levels.
        seeds: Seeds to average.
        shared: Whether the steps before a level is reached are taken once for all levels, as
            :func:`flooding.run_all` does. The race then reaches further for the same price.

    Yields:
        The plain Runs, then the race.

    Returns:
        The best level, or None where plain training is as good.

    Raises:
        ValueError: If the budget is not above 1, or a Record lacks the curves of training and
            validation loss.
    """
    if not 1 < budget < math.inf:
        raise ValueError(f"budget must be above 1 training, got {budget}. Try budget=3.")
    plain = yield [Run(problem, None, seed=seed) for seed in seeds]
    cap, floor = _lowest(plain, "val_loss"), _lowest(plain, "train_loss")
    nowhere = Run(problem, None, seed=seeds[0])
    if not (math.isfinite(cap) and math.isfinite(floor)):
        warning = (
            "the training or validation loss is not finite: mend the training before flooding it"
        )
        return SearchResult("finder", nowhere, (), (warning,))
    ceiling = LevelEstimate(
        "cap", cap, min(floor, cap), cap, "lowest validation loss of plain training"
    )
    if cap - floor < 1e-3 * max(abs(cap), 1e-3):
        warning = "the training loss never falls below the lowest validation loss: there is nothing to flood"
        return SearchResult("finder", nowhere, (ceiling,), (warning,))

    levels, until = _race(plain, floor, cap, (budget - 1) * len(seeds), shared)
    if not levels:
        warning = f"a budget of {budget:g} leaves no epoch for a race: spend more, or give the training more epochs"
        return SearchResult("finder", nowhere, (ceiling,), (warning,))
    stop = None if until == problem.max_epochs else until
    raced = yield [
        Run(problem, level, seed=seed, stop_epoch=stop) for level in levels for seed in seeds
    ]
    late = max(1, round(_LATE * until))
    rows = [raced[i : i + len(seeds)] for i in range(0, len(raced), len(seeds))]
    reached = [
        (level, row)
        for level, row in zip(levels, rows, strict=True)
        if any(map(reached_level, row))
    ]
    warnings = ()
    if not reached:
        warnings = (
            f"no level was reached within the {until} epochs of the race: give it more epochs or budget",
        )
    levels, judged = [level for level, _ in reached], [_judge(row, late) for _, row in reached]
    scores = _smoothed(np.array([_judge(plain, late), *judged]))
    best = max(range(len(scores)), key=lambda i: (*scores[i], -i))
    level = [None, *levels][best]
    chance = _chance(plain, scores[best][0])
    if chance:
        alike = [i for i in range(len(scores)) if scores[i][0] >= scores[best][0] - chance]
    else:
        alike = list(range(len(scores)))[max(0, best - 1) : best + 2]
    # As a number, plain training is a level that floods nothing: 0, or the lowest loss where that
    # is negative.
    known = [min(0.0, floor), *levels]
    low, high = min(known[i] for i in alike), max(known[i] for i in alike)
    how = f"judged by the last {late} of {until} epochs, out of {problem.max_epochs}, with its neighbours"
    if chance:
        how += f": validation accuracy {scores[best][0]:.3f}, {scores[0][0]:.3f} without flooding"
    if level is not None and chance and 0 in alike:
        warnings += (
            "plain training lies within chance of it: more seeds, or more validation data, would tell",
        )
    race = LevelEstimate("race", level, low, high, how)
    guess = _rounded(floor + 0.7 * (cap - floor), cap)
    irreducible = LevelEstimate(
        "irreducible loss", guess, min(floor, guess), max(cap, guess), "0.7 of the way to the cap"
    )
    return SearchResult(
        "finder", Run(problem, level, seed=seeds[0]), (race, irreducible, ceiling), warnings
    )


def _race(
    plain: Sequence[Record], floor: float, cap: float, budget: float, shared: bool
) -> tuple[list[float], int]:
    """Choose levels and epochs: five levels if they can be paid, and more if they can be trained in
    full.
    """
    max_epochs = plain[0].run.problem.max_epochs  # type: ignore[union-attr]
    chosen: tuple[list[float], int] = ([], 0)
    for count in (1, 2, 3, *range(_PLACES, 10 * _PLACES)):
        levels = sorted({
            _rounded(floor + (place + 0.5) / count * (cap - floor), cap) for place in range(count)
        })
        starts = [
            [_reached(record, level) if shared else 0 for level in levels] for record in plain
        ]
        until = _affordable(starts, budget * max_epochs, max_epochs)
        if until == 0 or (count > _PLACES and until < max_epochs):
            break
        chosen = levels, until
    return chosen


def _reached(record: Record, level: float) -> int:
    """Tell how many epochs pass before a level is near; batches fall below it a little before their
    mean does.
    """
    below = np.asarray(record.curves["train_loss"])[1:] <= max(2 * level, level)
    return int(below.argmax()) if below.any() else len(below)


def _affordable(starts: Sequence[Sequence[int]], epochs: float, max_epochs: int) -> int:
    """Find how far Runs can go that part from each seed's trunk after ``starts`` epochs, for
    ``epochs`` in all.
    """
    for until in range(max_epochs, 0, -1):
        branches = sum(max(0, until - start) for seed in starts for start in seed)
        if branches + sum(min(until, max(seed)) for seed in starts) <= epochs:
            return until
    return 0


def _lowest(records: Sequence[Record], name: str) -> float:
    """Give the lowest value of a curve since training began, averaged over seeds; NaN if a last
    value is not finite.
    """
    if any(name not in record.curves for record in records):
        raise ValueError(
            f"the finder needs the curve {name}, got {sorted(records[0].curves)}. Return it, or use grid."
        )
    curves = [np.asarray(record.curves[name], np.float64)[1:] for record in records]
    return float(
        np.mean([np.nanmin(curve) if np.isfinite(curve[-1]) else math.nan for curve in curves])
    )


def _judge(records: Sequence[Record], late: int) -> tuple[float, float]:
    """Judge Records of one level by their last epochs: the larger, the better."""
    judged = []
    for record in records:
        judged.append(validation_key(tail_means(record, late), record.run and record.run.problem))
    score, loss = np.mean(judged, axis=0)
    return float(score), float(loss)


def _smoothed(scores: np.ndarray) -> np.ndarray:
    """Average each row of ``[levels, 2]`` with its neighbours; the ends count themselves for a
    missing one.
    """
    padded = np.pad(scores, ((1, 1), (0, 0)), mode="edge")
    padded = np.where(np.isfinite(padded), padded, np.nan)
    with np.errstate(invalid="ignore"):
        mixed = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return np.where(np.isfinite(mixed), mixed, scores)  # a neighbour that diverged says nothing


def _chance(records: Sequence[Record], score: float) -> float:
    """Give the standard error of a validation accuracy; 0 where it is none, or nobody knows of how
    many examples.
    """
    examples = sum(record.metadata.get("val_examples", 0) for record in records)
    other = any(
        record.run is not None and record.run.problem.score is not None for record in records
    )
    return (
        0.0
        if other or not examples or not 0 < score < 1
        else math.sqrt(score * (1 - score) / examples)
    )


def _rounded(level: float, cap: float) -> float:
    """Round a level to about a tenth of a place, so that searches in one ledger share its Runs."""
    return round(level, max(2, math.ceil(-math.log10(max(abs(cap), 1e-12) / _PLACES))))
