"""Strategies: generators that yield Runs, receive their Records and return a Found; ``search``
drives any of them.

A strategy is deterministic given its Records, so that a search that was killed repeats itself
exactly from the ledger. It asks in lists: the Runs of one list are independent of each other, and
their Records come back in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from flooding.levels import Controller
from flooding.training.record import Record, level_order, validation_key
from flooding.training.run import Run

__all__ = [
    "Cost",
    "LevelEstimate",
    "SearchResult",
    "Strategy",
    "adjacent_levels",
    "as_numbers",
    "best_level",
    "check_levels",
    "cost",
    "end_of_range",
    "make_result",
    "may_be_negative",
    "reached_level",
    "run_concurrently",
    "run_generator",
    "search",
    "tail_mean",
    "tail_means",
]

Evaluate: TypeAlias = Callable[[list[Run]], Sequence[Record]]

_ROUNDING = 1e-6  # a loss that cannot be negative may be so far below 0 in float32


@dataclass(frozen=True)
class LevelEstimate:
    """What one way of estimating says.

    Args:
        name: The way, such as "range test".
        level: Flood level in the unit of the loss, or None: do not flood.
        low: Lower end of the interval the level lies in, as far as this way can tell; ``-inf`` if
            it has none and the level may be negative.
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
        trainings: Epochs over those of one full training; a Run that goes on from a shorter one
            counts once.
        steps: The same for the optimiser steps that were really taken: with shared prefixes they
            are fewer.
        epochs: Number of epochs that were really trained.
        hours: Hours of training, of all workers together; on a busy machine more than it took of
            the processor.
    """

    trainings: float
    steps: float
    epochs: int
    hours: float


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The answer of a search.

    Args:
        strategy: Name of the strategy.
        run: The Run to train for use: the level that was found, a controller that goes with it, or
            no level.
        suggestions: Every estimate there is, with an interval.
        warnings: What the reader should know before trusting it.
        records: Everything that was measured, in the order asked; :func:`search` fills it in.
    """

    strategy: str
    run: Run
    suggestions: tuple[LevelEstimate, ...] = ()
    warnings: tuple[str, ...] = ()
    records: tuple[Record, ...] = field(default=(), repr=False)

    @property
    def level(self) -> float | None:
        """The level, in the unit of the loss; None is "train without flooding"."""
        level = self.run.level
        # A controller moves its level: the suggestion says where it ended.
        if isinstance(level, Controller):
            level = self.suggestions[0].level if self.suggestions else None
        return None if level is None else float(level)

    @property
    def cost(self) -> Cost:
        """What the search trained."""
        return cost(self.records)

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per Record: level, seed, epochs, and what its last epoch measured on training and
        validation data.
        """
        names = ("val_score", "val_accuracy", "val_loss", "train_accuracy", "train_loss", "flooded")
        rows = []
        for record in self.records:
            run = record.run
            assert run is not None
            told: dict[str, Any] = {
                "level": _told(run.level),
                "seed": run.seed,
                "epochs": run.epochs,
            }
            rows.append(
                told
                | {n: record.metrics[f"last.{n}"] for n in names if f"last.{n}" in record.metrics}
            )
        return rows


Strategy: TypeAlias = Generator[list[Run], list[Record], SearchResult]


def search(strategy: Strategy, run_all: Evaluate) -> SearchResult:
    """Drive a strategy: pass what it asks to ``run_all``, and what that measured back.

    Args:
        strategy: A fresh generator, such as ``grid(problem)``.
        run_all: Runs to Records in the same order: :func:`flooding.run_all`, or your own function.

    Returns:
        What the strategy found, with all Records.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, run_all
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.level_search.grid import grid
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> found = search(grid(problem, [0.0, 0.2]), partial(run_all, ledger=False, workers=0))
        >>> found.cost.trainings
        2.0
    """
    return _finished(*run_generator(strategy, run_all))


T = TypeVar("T")


def run_generator(
    generator: Generator[list[Run], list[Record], T], run_all: Evaluate
) -> tuple[T, list[Record]]:
    """Drive any generator that yields Runs and receives Records: a strategy, or an experiment.

    Args:
        generator: A fresh generator.
        run_all: As for :func:`search`.

    Returns:
        What it returned, and all Records in the order asked.

    Raises:
        ValueError: If ``run_all`` gives another number of Records than Runs.
    """
    told: list[Record] = []
    records: list[Record] | None = None
    try:
        while True:
            try:
                runs = next(generator) if records is None else generator.send(records)
            except StopIteration as end:
                return end.value, told
            records = list(run_all(runs))
            if len(records) != len(runs):
                raise ValueError(
                    f"run_all must give a Record for each Run, got {len(records)} for {len(runs)}."
                )
            told += records
    finally:
        generator.close()


def run_concurrently(
    strategies: Sequence[Strategy],
) -> Generator[list[Run], list[Record], list[SearchResult]]:
    """Drive several strategies side by side, so that what they ask is trained at once.

    Args:
        strategies: Fresh generators, independent of each other.

    Yields:
        What all those that are not finished ask next.

    Returns:
        What each of them found, with its own Records.
    """
    told: list[list[Record]] = [[] for _ in strategies]
    ended: dict[int, SearchResult] = {}
    asked: dict[int, list[Run]] = {}

    def step(number: int, records: list[Record] | None) -> None:
        try:
            asked[number] = (
                next(strategies[number]) if records is None else strategies[number].send(records)
            )
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


def _finished(found: SearchResult, told: list[Record]) -> SearchResult:
    """Put all Records into what was found, and warn of what looks wrong in them."""
    warnings = found.warnings
    warnings += _levels_too_high(told)
    lost = sum(not math.isfinite(record.metrics.get("last.val_loss", math.nan)) for record in told)
    if lost and not any("not finite" in warning or "NaN" in warning for warning in warnings):
        warnings += (f"{lost} of {len(told)} trainings ended with a loss that is not finite",)
    meant = _flooded(told)
    known = all({"flooded", "train_loss"} <= record.curves.keys() for record in meant)
    if meant and known and not any(reached_level(record) for record in meant):
        losses = np.concatenate([record.curves["train_loss"] for record in meant])
        lowest = min(losses[np.isfinite(losses)], default=math.nan)
        warnings += (
            f"no training came down to its level: the lowest training loss was {lowest:.3g}",
        )
    return replace(found, records=tuple(told), warnings=warnings)


def _flooded(records: Sequence[Record]) -> list[Record]:
    """Give the Records of Runs that have a level."""
    return [record for record in records if record.run is None or record.run.level is not None]


def _levels_too_high(records: Sequence[Record]) -> tuple[str, ...]:
    """Warn where the loss is negative and all levels are not, as the default levels of most
    strategies.
    """
    levels = [_lowest_level(record) for record in _flooded(records)]
    levels = [level for level in levels if level is not None]
    if not levels or min(levels) < 0 or not may_be_negative(records):
        return ()
    plain = [record for record in records if record.run is not None and record.run.level is None]
    lowest, cap = _lowest(records, "train_loss"), _lowest(plain, "val_loss")
    if cap > 0:  # then the levels worth trying, below it, may all be positive
        return ()
    known = f", {cap:.3g} here" if math.isfinite(cap) else ""
    return (
        f"the training loss fell to {lowest:.3g}, but no level below 0 was tried: give levels around the lowest "
        f"validation loss of plain training{known}, or use the finder",
    )


def _lowest_level(record: Record) -> float | None:
    """Give the lowest level that was in force in a Run, None if there was none."""
    levels = [float(level) for level in record.curves.get("level", ()) if math.isfinite(level)]
    return min(levels, default=record.level)


def _lowest(records: Sequence[Record], name: str) -> float:
    """Give the lowest finite value of a curve since training began, NaN if there is none."""
    values = np.concatenate([[math.nan], *(record.curves.get(name, ())[1:] for record in records)])
    finite = values[np.isfinite(values)]
    return float(finite.min()) if len(finite) else math.nan


def may_be_negative(records: Sequence[Record]) -> bool:
    """Tell whether a training loss was below 0: then level 0 is not plain training.

    Args:
        records: Records, also without the curve of the training loss.

    Returns:
        Whether one was, by more than a rounding error.
    """
    return _lowest(records, "train_loss") < -_ROUNDING


def reached_level(record: Record) -> bool:
    """Tell whether a Run came down to its level; before that it is plain training.

    Args:
        record: A Record.

    Returns:
        Whether a step was flooded; where that was not measured, whether the training loss reached
        the level; True where neither is known. False without a level.
    """
    curves, level = record.curves, record.level
    if "flooded" in curves:
        return bool(np.nansum(curves["flooded"]) > 0)
    if level is None:
        return False
    return "train_loss" not in curves or bool((curves["train_loss"][1:] <= level).any())


def make_result(level: float | None, records: Iterable[Record]) -> float | None:
    """Give the level to train at: no flooding for a level 0 that flooded no step, since that is
    plain training.

    With a loss that cannot be negative, level 0 floods nothing.

    Args:
        level: The level that was chosen, or None.
        records: Records of constant levels, those of this level among them.

    Returns:
        The level, or None.
    """
    if level == 0 and not any(reached_level(record) for record in records if record.level == 0):
        return None
    return level


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
        longest[same] = max(longest.get(same, (0, 0)), (run.epochs, run.problem.max_epochs))
        trained = record.metadata.get("epochs_trained", run.epochs)
        steps, epochs = steps + float(trained) / run.problem.max_epochs, epochs + round(trained)
        seconds += float(record.metadata.get("seconds", 0.0))
    trainings = sum(epochs / max_epochs for epochs, max_epochs in longest.values())
    return Cost(trainings, steps, epochs, seconds / 3600)


def tail_mean(record: Record, share: float = 0.0) -> tuple[float, float]:
    """Judge a Record on its validation split over its last epochs: the larger, the better.

    Averaging late epochs takes away part of the noise of a small validation split.

    Args:
        record: A Record.
        share: Share of its epochs to average, in [0, 1]; 0 is the last epoch alone.

    Returns:
        A tuple to compare: the mean score (accuracy, where there is none of the user's), then minus
        the mean loss.
    """
    epochs = max((len(curve) - 1 for curve in record.curves.values()), default=0)
    return validation_key(
        tail_means(record, max(1, round(share * epochs))), record.run and record.run.problem
    )


def tail_means(record: Record, epochs: int) -> dict[str, float]:
    """Average every curve of a Record over its last epochs; what has no curve counts with its last
    value.

    Args:
        record: A Record.
        epochs: How many epochs, at least 1.

    Returns:
        Means by name.
    """
    last = {
        name.removeprefix("last."): value
        for name, value in record.metrics.items()
        if name.startswith("last.")
    }
    return last | {
        n: float(np.mean(curve[-epochs:], dtype=np.float64)) for n, curve in record.curves.items()
    }


def best_level(records: Iterable[Record], share: float = 0.0) -> float | None:
    """Choose the level with the best validation result, averaged over seeds.

    Ties go to the smaller level; no flooding comes first.

    Args:
        records: Records of constant levels.
        share: Share of late epochs to average, see :func:`late`.

    Returns:
        A level; None is plain training.
    """
    by_level: dict[float | None, list[tuple[float, float]]] = {}
    for record in records:
        by_level.setdefault(record.level, []).append(tail_mean(record, share))
    means = {
        level: tuple(np.mean(by_level[level], axis=0))
        for level in sorted(by_level, key=level_order)
    }
    return max(means, key=lambda level: means[level])


def end_of_range(
    level: float | None, levels: Sequence[float | None], of: str = "of the grid"
) -> tuple[str, ...]:
    """Warn of a best level at an end of those tried.

    Args:
        level: The best level; None is plain training, below which there is nothing.
        levels: All levels tried, smallest first.
        of: Of what it is the largest or smallest.

    Returns:
        A warning, or none.
    """
    if level is None or len(levels) < 2 or level not in (levels[0], levels[-1]):
        return ()
    end, more = (
        ("largest", "a larger one")
        if level == levels[-1]
        else ("smallest", "a smaller one, or no flooding,")
    )
    return (f"the best level {level:g} is the {end} {of}: {more} may be better",)


def as_numbers(levels: Sequence[float | None]) -> dict[float | None, float]:
    """Give each level a number, for the ends of an interval.

    Args:
        levels: Levels; None is no flooding.

    Returns:
        Numbers by level. That of None is 0 where all levels are positive, else ``-inf``.
    """
    below = 0.0 if all(level > 0 for level in levels if level is not None) else -math.inf
    return {level: below if level is None else level for level in levels}


def adjacent_levels(levels: Sequence[float], level: float) -> tuple[float, float]:
    """Give the levels next to one of them, on either side; at an end the level itself.

    Args:
        levels: Levels, smallest first.
        level: One of them.

    Returns:
        The lower and the higher neighbour.
    """
    place = levels.index(level)
    return levels[max(place - 1, 0)], levels[min(place + 1, len(levels) - 1)]


def check_levels(levels: Sequence[float | None]) -> tuple[float | None, ...]:
    """Check the levels of a search.

    Args:
        levels: Levels, at least one, none twice; None is no flooding.

    Returns:
        The levels as floats, smallest first, None before them.

    Raises:
        ValueError: If there are none, or one is not finite or there twice.
    """
    given = tuple(None if level is None else float(level) for level in levels)
    finite = all(math.isfinite(level) for level in given if level is not None)
    if not given or len(set(given)) < len(given) or not finite:
        raise ValueError(f"levels must be finite, different and at least one, got {list(levels)}.")
    return tuple(sorted(given, key=level_order))


def _told(level: Any) -> Any:
    return level if level is None or isinstance(level, float) else repr(level)
