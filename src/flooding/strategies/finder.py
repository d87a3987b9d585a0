"""The finder: a short plain training says where to look, and a race of levels decides."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from flooding.problem import Record, Run, merit
from flooding.strategies import Found, Strategy, Suggestion

__all__ = ["finder"]

_PLACES = 8  # levels in the first round
_ROUNDS = ((1 / 9, 4), (1 / 3, 2), (2 / 3, 1))  # share of the epochs that flooding has, and how many are kept
_LATE = 0.25  # share of those epochs, the last, to average

Seeds = Sequence[int]


def finder(problem: Any, *, budget: float = 3.0, seeds: Seeds = (0,), shared: bool = True) -> Strategy:
    """Find a level for the price of two or three trainings.

    1. Train plainly until the training loss is a tenth of the lowest validation loss, or to the end. The lowest
       validation loss caps the level: it estimates the irreducible loss from above. Where the training loss never
       falls below it, nothing overfits and the answer is None.
    2. Race eight levels spread evenly up to the cap, and plain training: a ninth of the epochs for all, a third for
       the best four, two thirds for the best two. Each round goes on where the last one stopped. Levels are compared
       by the validation score averaged over late epochs and seeds, ties by validation loss.

    Args:
        problem: The Problem.
        budget: Trainings to spend for each seed, above 1. Less makes the rounds shorter; more makes them longer, up to
            full trainings, then spreads more levels.
        seeds: Seeds to average.
        shared: Whether the steps before a level is reached are taken once for all levels, as :func:`flooding.evaluate`
            does: the race reaches further for the same price.

    Yields:
        Plain Runs, longer and longer; then a list of Runs for each round.

    Returns:
        The best level, or None where plain training is better or nothing overfits.

    Raises:
        ValueError: If the budget is not above 1.
    """
    if not 1 < budget < math.inf:
        raise ValueError(f"budget must be above 1 training, got {budget}. Try budget=3.")
    horizon, nowhere = problem.horizon, Run(problem, None, seed=seeds[0])
    plain = yield from _plain(problem, seeds)
    spent, cap, floor = _epochs(plain[0]), _lowest(plain, "val_loss"), _lowest(plain, "train_loss")
    if not (math.isfinite(cap) and math.isfinite(floor)):
        warning = "the training or validation loss is not finite: mend the training before flooding it"
        return Found("finder", nowhere, (), (warning,))
    ceiling = Suggestion("cap", cap, min(floor, cap), cap, "lowest validation loss of plain training")
    if cap - floor < 1e-3 * max(abs(cap), 1e-3):
        warning = "the training loss never falls below the lowest validation loss: there is nothing to flood"
        return Found("finder", nowhere, (ceiling,), (warning,))

    start = max(_reached(record, floor + 0.5 * (cap - floor)) for record in plain)
    levels, rounds = _plan(plain, (floor, cap), budget * horizon - spent, start, shared)
    left: list[float | None] = [None, *levels]
    compared = left
    for until, keep in rounds:
        stop = None if until == horizon else until
        asked = [level for level in left if level is not None or until > spent]
        records = yield [Run(problem, level, seed=seed, until=stop) for level in asked for seed in seeds]
        rows = [records[i : i + len(seeds)] for i in range(0, len(records), len(seeds))]
        rows = rows if len(asked) == len(left) else [plain, *rows]
        judged = [np.mean([_judge(record, start, until) for record in row], axis=0) for row in rows]
        order = sorted(range(len(left)), key=lambda i: (*judged[i], -i), reverse=True)
        compared, left = left, [left[i] for i in sorted(order[:keep])]
    known = [0.0 if level is None else level for level in compared]
    epochs = f"{rounds[-1][0]} of {horizon} epochs"
    race = Suggestion("race", left[0], min(known), max(known), f"the last two to be compared, after {epochs}")
    guess = _rounded(floor + 0.7 * (cap - floor), cap)
    irreducible = Suggestion("irreducible loss", guess, min(floor, guess), max(cap, guess), "0.7 of the cap")
    return Found("finder", Run(problem, left[0], seed=seeds[0]), (race, irreducible, ceiling))


def _plain(problem: Any, seeds: Seeds) -> Generator[list[Run], list[Record], list[Record]]:
    """Train plainly, a fifth of the epochs more each time, until there is enough to see."""
    horizon, records = problem.horizon, []
    for fifth in range(1, 6):
        until = math.ceil(fifth * horizon / 5)
        if records and until == _epochs(records[0]):
            continue
        records = yield [Run(problem, None, seed=seed, until=None if until == horizon else until) for seed in seeds]
        cap = _lowest(records, "val_loss")
        if not math.isfinite(cap) or (cap > 0 and _lowest(records, "train_loss") <= 0.1 * cap):
            break
    return records


def _plan(
    plain: Sequence[Record], between: tuple[float, float], budget: float, start: int, shared: bool
) -> tuple[list[float], list[tuple[int, int]]]:
    """Choose levels, and epochs for each round, that a seed can pay with ``budget`` epochs."""
    # Eight levels if they can be paid, else fewer; more than eight only if all rounds are as long as they can be.
    horizon = plain[0].run.problem.horizon  # type: ignore[union-attr]
    spent, (floor, cap) = _epochs(plain[0]), between
    chosen: tuple[list[float], list[tuple[int, int]]] = ([], [])
    for count in (2, 4, *range(_PLACES, 10 * _PLACES, _PLACES)):
        levels = sorted({_rounded(floor + place / count * (cap - floor), cap) for place in range(1, count + 1)})
        begins = [[_reached(record, level) if shared else 0 for level in levels] for record in plain]
        plans = [_stretched(scale, start, horizon) for scale in np.linspace(1.5, 0.1, 29)]
        payable = [rounds for rounds in plans if _price(rounds, begins, spent) <= budget]
        full = bool(payable) and payable[0][-1][0] == horizon
        if chosen[0] and (not payable or (count > _PLACES and not full)):
            break
        chosen = levels, payable[0] if payable else plans[-1]
    return chosen


def _stretched(scale: float, start: int, horizon: int) -> list[tuple[int, int]]:
    """Give the last epoch of each round, and how many levels are kept then."""
    return [
        (min(horizon, max(start + 1, round(start + scale * share * (horizon - start)))), keep)
        for share, keep in _ROUNDS
    ]


def _price(rounds: Sequence[tuple[int, int]], begins: Sequence[Sequence[int]], spent: int) -> float:
    """Add up the epochs of a race, of each seed."""
    first = rounds[0][0]
    price = float(np.mean([sum(max(0, first - begin) for begin in seed) + min(first, max(seed)) for seed in begins]))
    price += max(0, first - spent)  # plain training races too
    return price + sum((later - until) * keep for (until, keep), (later, _) in pairwise(rounds))


def _epochs(record: Record) -> int:
    return len(record.curves["val_loss"]) - 1


def _lowest(records: Sequence[Record], name: str) -> float:
    """Give the lowest value of a curve since training began, averaged over seeds; not finite if a last one is not."""
    curves = [np.asarray(record.curves[name], np.float64)[1:] for record in records]
    return float(np.mean([np.nanmin(curve) if np.isfinite(curve[-1]) else math.nan for curve in curves]))


def _reached(record: Record, level: float) -> int:
    """Tell how many epochs pass before a level is near; batches fall below it a little before their mean does."""
    below = np.asarray(record.curves["train_loss"])[1:] <= max(1.2 * level, level)
    return int(below.argmax()) if below.any() else len(below)


def _judge(record: Record, start: int, until: int) -> tuple[float, float]:
    """Judge a Record by the last epochs before ``until``, of those in which something may have been flooded."""
    since = until + 1 - max(1, round(_LATE * (until - start)))
    means = {n: float(np.mean(c[since : until + 1], dtype=np.float64)) for n, c in record.curves.items()}
    return merit(means, record.run and record.run.problem)


def _rounded(level: float, cap: float) -> float:
    """Round a level to about a tenth of a place, so that searches in one ledger share their Runs."""
    return round(level, max(2, math.ceil(-math.log10(max(abs(cap), 1e-12) / _PLACES))))
