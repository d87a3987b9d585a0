"""Strategies: generators that yield Runs, receive their Records and return a Found; ``search`` drives any of them.

A strategy is deterministic given its Records, so that a search that was killed repeats itself exactly from the ledger.
It asks in lists: the Runs of one list are independent of each other, and their Records come back in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from flooding.problem import Record, Run, merit

__all__ = [
    "Cost",
    "Found",
    "Strategy",
    "Suggestion",
    "best_level",
    "came_down",
    "check_levels",
    "cost",
    "drive",
    "late",
    "late_means",
    "neighbours",
    "search",
    "together",
]

Evaluate: TypeAlias = Callable[[list[Run]], Sequence[Record]]


@dataclass(frozen=True)
class Suggestion:
    """What one way of estimating says.

    Args:
        name: The way, such as "range test".
        level: Flood level in the unit of the loss, or None: do not flood.
        low: Lower end of the interval the level lies in, as far as this way can tell.
        high: Upper end of it.
        note: What the reader should know, in a few words.
    """

    name: str
    level: float | None
    low: float = 0.0
    high: float = math.inf
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What a search trained.

    Args:
        trainings: Epochs over those of one full training; a Run that goes on from a shorter one counts once.
        steps: The same for the optimiser steps that were really taken: with shared prefixes they are fewer.
        epochs: Number of epochs that were really trained.
        hours: Hours of training, of all workers together; on a busy machine more than it took of the processor.
    """

    trainings: float
    steps: float
    epochs: int
    hours: float


@dataclass(frozen=True, eq=False)
class Found:
    """The answer of a search.

    Args:
        strategy: Name of the strategy.
        run: The Run to train for use: the level that was found, a controller that goes with it, or no level.
        suggestions: Every estimate there is, with an interval.
        warnings: What the reader should know before trusting it.
        records: Everything that was measured, in the order asked; :func:`search` fills it in.
    """

    strategy: str
    run: Run
    suggestions: tuple[Suggestion, ...] = ()
    warnings: tuple[str, ...] = ()
    records: tuple[Record, ...] = field(default=(), repr=False)

    @property
    def level(self) -> float | None:
        """The level, in the unit of the loss; None is "train without flooding"."""
        level = self.run.level
        if hasattr(level, "update"):  # a controller moves its level: the suggestion says where it ended
            level = self.suggestions[0].level if self.suggestions else None
        return None if level is None else float(level)

    @property
    def cost(self) -> Cost:
        """What the search trained."""
        return cost(self.records)

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per Record: level, seed, epochs, and what its last epoch measured on training and validation data."""
        names = ("val_score", "val_accuracy", "val_loss", "train_accuracy", "train_loss", "flooded")
        rows = []
        for record in self.records:
            run = record.run
            assert run is not None
            told: dict[str, Any] = {"level": _told(run.level), "seed": run.seed, "epochs": run.epochs}
            rows.append(told | {n: record.finals[f"last.{n}"] for n in names if f"last.{n}" in record.finals})
        return rows


Strategy: TypeAlias = Generator[list[Run], list[Record], Found]


def search(strategy: Strategy, evaluate: Evaluate) -> Found:
    """Drive a strategy: pass what it asks to ``evaluate``, and what that measured back.

    Args:
        strategy: A fresh generator, such as ``grid(problem)``.
        evaluate: Runs to Records in the same order: :func:`flooding.evaluate`, or your own function.

    Returns:
        What the strategy found, with all Records.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, evaluate
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.strategies.grid import grid
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), horizon=3)
        >>> found = search(grid(problem, [0.0, 0.2]), partial(evaluate, ledger=False, workers=0))
        >>> found.cost.trainings
        2.0
    """
    return _finished(*drive(strategy, evaluate))


T = TypeVar("T")


def drive(generator: Generator[list[Run], list[Record], T], evaluate: Evaluate) -> tuple[T, list[Record]]:
    """Drive any generator that yields Runs and receives Records: a strategy, or an experiment.

    Args:
        generator: A fresh generator.
        evaluate: As for :func:`search`.

    Returns:
        What it returned, and all Records in the order asked.

    Raises:
        ValueError: If ``evaluate`` gives another number of Records than Runs.
    """
    told: list[Record] = []
    records: list[Record] | None = None
    try:
        while True:
            try:
                runs = next(generator) if records is None else generator.send(records)
            except StopIteration as end:
                return end.value, told
            records = list(evaluate(runs))
            if len(records) != len(runs):
                raise ValueError(f"evaluate must give a Record for each Run, got {len(records)} for {len(runs)}.")
            told += records
    finally:
        generator.close()


def together(strategies: Sequence[Strategy]) -> Generator[list[Run], list[Record], list[Found]]:
    """Drive several strategies side by side, so that what they ask is trained at once.

    Args:
        strategies: Fresh generators, independent of each other.

    Yields:
        What all those that are not finished ask next.

    Returns:
        What each of them found, with its own Records.
    """
    told: list[list[Record]] = [[] for _ in strategies]
    ended: dict[int, Found] = {}
    asked: dict[int, list[Run]] = {}

    def step(number: int, records: list[Record] | None) -> None:
        try:
            asked[number] = next(strategies[number]) if records is None else strategies[number].send(records)
        except StopIteration as end:
            asked.pop(number, None)
            ended[number] = _finished(end.value, told[number])

    try:
        for number in range(len(strategies)):
            step(number, None)
        while asked:
            records = iter((yield [run for runs in asked.values() for run in runs]))
            for number, runs in list(asked.items()):
                mine = [next(records) for _ in runs]
                told[number] += mine
                step(number, mine)
    finally:
        for strategy in strategies:
            strategy.close()
    return [ended[number] for number in range(len(strategies))]


def _finished(found: Found, told: list[Record]) -> Found:
    """Put all Records into what was found, and warn of what looks wrong in them."""
    warnings = found.warnings
    lost = sum(not math.isfinite(record.finals.get("last.val_loss", math.nan)) for record in told)
    if lost and not any("not finite" in warning or "NaN" in warning for warning in warnings):
        warnings += (f"{lost} of {len(told)} trainings ended with a loss that is not finite",)
    meant = [r for r in told if r.run is None or r.level > 0 or hasattr(r.run.level, "update")]
    known = all({"flooded", "train_loss"} <= record.curves.keys() for record in meant)
    if meant and known and not any(came_down(record) for record in meant):
        losses = np.concatenate([record.curves["train_loss"] for record in meant])
        lowest = min(losses[np.isfinite(losses)], default=math.nan)
        warnings += (f"no training came down to its level: the lowest training loss was {lowest:.3g}",)
    return replace(found, records=tuple(told), warnings=warnings)


def came_down(record: Record) -> bool:
    """Tell whether a Run came down to its level; before that it is plain training.

    Args:
        record: A Record.

    Returns:
        Whether a step was flooded; where that was not measured, whether the training loss reached the level; True
        where neither is known.
    """
    curves = record.curves
    if "flooded" in curves:
        return bool(np.nansum(curves["flooded"]) > 0)
    return "train_loss" not in curves or bool((curves["train_loss"][1:] <= record.level).any())


def cost(records: Iterable[Record]) -> Cost:
    """Add up what Records cost; a Run that went on from a shorter one of its own is counted once.

    Args:
        records: Records with their Runs.

    Returns:
        The cost.
    """
    longest: dict[Any, tuple[int, int]] = {}
    steps, epochs, seconds = 0.0, 0, 0.0
    for record in records:
        run = record.run
        assert run is not None
        same = (id(run.problem), run.seed, repr(run.level), repr(run.method))
        longest[same] = max(longest.get(same, (0, 0)), (run.epochs, run.problem.horizon))
        trained = record.circumstances.get("epochs_trained", run.epochs)
        steps, epochs = steps + float(trained) / run.problem.horizon, epochs + round(trained)
        seconds += float(record.circumstances.get("seconds", 0.0))
    trainings = sum(epochs / horizon for epochs, horizon in longest.values())
    return Cost(trainings, steps, epochs, seconds / 3600)


def late(record: Record, share: float = 0.0) -> tuple[float, float]:
    """Judge a Record on its validation split over its last epochs: the larger, the better.

    Averaging late epochs takes away part of the noise of a small validation split.

    Args:
        record: A Record.
        share: Share of its epochs to average, in [0, 1]; 0 is the last epoch alone.

    Returns:
        A tuple to compare: the mean score (accuracy, where there is none of the user's), then minus the mean loss.
    """
    epochs = max((len(curve) - 1 for curve in record.curves.values()), default=0)
    return merit(late_means(record, max(1, round(share * epochs))), record.run and record.run.problem)


def late_means(record: Record, epochs: int) -> dict[str, float]:
    """Average every curve of a Record over its last epochs; what has no curve counts with its last value.

    Args:
        record: A Record.
        epochs: How many epochs, at least 1.

    Returns:
        Means by name.
    """
    last = {name.removeprefix("last."): value for name, value in record.finals.items() if name.startswith("last.")}
    return last | {n: float(np.mean(curve[-epochs:], dtype=np.float64)) for n, curve in record.curves.items()}


def best_level(records: Iterable[Record], share: float = 0.0) -> float:
    """Choose the level with the best validation result, averaged over seeds; ties go to the smaller level.

    Args:
        records: Records of constant levels.
        share: Share of late epochs to average, see :func:`late`.

    Returns:
        A level; 0.0 stands for plain training.
    """
    by_level: dict[float, list[tuple[float, float]]] = {}
    for record in records:
        by_level.setdefault(record.level, []).append(late(record, share))
    means = {level: tuple(np.mean(judged, axis=0)) for level, judged in sorted(by_level.items())}
    return max(means, key=lambda level: means[level])


def neighbours(levels: Sequence[float], level: float) -> tuple[float, float]:
    """Give the levels next to one of them, on either side; at an end the level itself.

    Args:
        levels: Levels, smallest first.
        level: One of them.

    Returns:
        The lower and the higher neighbour.
    """
    place = levels.index(level)
    return levels[max(place - 1, 0)], levels[min(place + 1, len(levels) - 1)]


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Check the levels of a search.

    Args:
        levels: Levels, at least one, none twice.

    Returns:
        The levels as floats, smallest first.

    Raises:
        ValueError: If there are none, or one is not finite or there twice.
    """
    given = tuple(float(level) for level in levels)
    if not given or len(set(given)) < len(given) or not all(math.isfinite(level) for level in given):
        raise ValueError(f"levels must be finite, different and at least one, got {list(levels)}.")
    return tuple(sorted(given))


def _told(level: Any) -> Any:
    return level if level is None or isinstance(level, float) else repr(level)
