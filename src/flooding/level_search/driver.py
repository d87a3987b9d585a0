"""Driving strategies: pass the Runs they ask for to a runner, and its Records back to them."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np

from flooding.level_search.external import ObjectiveAdapter, TrainFunction, as_run_all
from flooding.level_search.level_stats import (
    flooded_records,
    loss_is_negative,
    lowest_finite,
    reached_level,
)
from flooding.level_search.protocol import RunAll, Strategy
from flooding.level_search.result import SearchResult
from flooding.training.problem import Problem
from flooding.training.progress import ProgressDisplay, show_progress
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["run_concurrently", "run_generator", "search"]

T = TypeVar("T")
RunGenerator: TypeAlias = Generator[list[Run], list[Record], T]


def search(
    strategy: Strategy,
    run_all: RunAll | TrainFunction | None = None,
    *,
    progress: bool | None = None,
) -> SearchResult:
    """Drive a strategy on any training code.

    Args:
        strategy: A new generator, such as ``grid(problem)`` of :mod:`flooding.level_search.grid`.
        run_all: Runs to Records in the same order; or a plain
            ``train(level, seed, epochs) -> score``, see
            :class:`flooding.level_search.external.ObjectiveAdapter`; None is
            :func:`flooding.run_all`.
        progress: Whether to show a bar, see :func:`flooding.run_all`.

    Returns:
        The strategy's result, with all Records.

    Raises:
        ValueError: If ``strategy`` is a function that was not called, or a generator that has
            begun, ``run_all`` cannot be called as either of the two, or ``progress`` is neither
            True, False nor None.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, run_all
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.level_search.grid import grid
        >>> from flooding.models import mlp
        >>> data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
        >>> strategy = grid(Problem(data, model, max_epochs=3), [0.0, 0.2])
        >>> result = search(strategy, partial(run_all, ledger=False, workers=0))
        >>> result.cost.trainings
        2.0
    """
    if not isinstance(strategy, Generator):
        raise ValueError(
            f"a search needs a strategy that was called, such as grid(problem), got {strategy!r}."
        )
    # A generator that has begun would miss the Records of its first Runs.
    if inspect.getgeneratorstate(strategy) != inspect.GEN_CREATED:
        raise ValueError(
            "a strategy can be driven once. Make a new one: search(grid(problem), ...)."
        )
    runner = _default_run_all if run_all is None else as_run_all(run_all)
    # More rounds may follow, so that only the epochs of those so far are known.
    with show_progress(progress, is_open=True) as display:
        return _complete(*run_generator(strategy, _with_progress(runner, display)))


def run_generator(generator: RunGenerator[T], run_all: RunAll) -> tuple[T, list[Record]]:
    """Drive any generator that yields Runs and receives Records: a strategy, or an experiment.

    Args:
        generator: A new generator.
        run_all: Runs to Records in the same order.

    Returns:
        What the generator returned, and all Records in the order of the Runs.

    Raises:
        ValueError: If ``run_all`` gives another number of Records than Runs.
    """
    history: list[Record] = []
    records: list[Record] | None = None
    try:
        while True:
            # A StopIteration of `run_all` is the user's own, so it is called outside this block.
            try:
                runs = _advance(generator, records)
            except StopIteration as stop:
                return stop.value, history
            records = list(run_all(runs))
            if len(records) != len(runs):
                raise ValueError(
                    f"run_all must give a Record for each Run, got {len(records)} for {len(runs)}."
                )
            history += records
    finally:
        generator.close()


def run_concurrently(
    strategies: Sequence[Strategy],
) -> Generator[list[Run], list[Record], list[SearchResult]]:
    """Drive several strategies side by side, so that their Runs are trained at once.

    Args:
        strategies: New generators, independent of each other.

    Yields:
        The next Runs of all strategies that have not ended.

    Returns:
        The result of each strategy, with its own Records.
    """
    histories: list[list[Record]] = [[] for _ in strategies]
    results: dict[int, SearchResult] = {}
    pending: dict[int, list[Run]] = {}

    def advance(index: int, records: list[Record] | None) -> None:
        """Get the next Runs of one strategy, or its result."""
        try:
            pending[index] = _advance(strategies[index], records)
        except StopIteration as stop:
            pending.pop(index, None)
            results[index] = _complete(stop.value, histories[index])

    try:
        for index in range(len(strategies)):
            advance(index, None)
        while pending:
            # One round: the Runs of all strategies in one list, the Records back to their owners.
            all_runs: list[Run] = []
            for runs in pending.values():
                all_runs += runs
            all_records = yield all_runs
            remaining = iter(all_records)
            for index, runs in list(pending.items()):
                records = [next(remaining) for _ in runs]
                histories[index] += records
                advance(index, records)
    finally:
        for strategy in strategies:
            strategy.close()
    return [results[index] for index in range(len(strategies))]


def _advance(generator: RunGenerator[T], records: list[Record] | None) -> list[Run]:
    """Send Records to a generator and get its next Runs; None starts it."""
    # The first call must be next(): nothing can be sent to a generator that has not begun.
    return next(generator) if records is None else generator.send(records)


def _default_run_all(runs: list[Run]) -> list[Record]:
    from flooding.training.runner import run_all  # strategies do not need the runner

    if not all(isinstance(run.problem, Problem) for run in runs):
        raise ValueError(
            "ExternalProblem stands for training code of your own. "
            "Pass it: search(strategy, train)."
        )
    return run_all(runs)


def _with_progress(run_all: RunAll, display: ProgressDisplay) -> RunAll:
    """Let a runner report to a display, as this library's own does anyway."""
    if not display.is_shown:
        return run_all

    def train(runs: list[Run]) -> list[Record]:
        if isinstance(run_all, ObjectiveAdapter):
            return _train_one_by_one(run_all, runs, display)
        num_epochs = display.counter.num_epochs
        records = list(run_all(runs))
        # A runner of the caller's own reports nothing: its Runs are known when they are done.
        if display.counter.num_epochs == num_epochs:
            display.follow(runs, (), None)
        return records

    return train


def _train_one_by_one(
    run_all: ObjectiveAdapter, runs: list[Run], display: ProgressDisplay
) -> list[Record]:
    """Train Runs by a function of the caller's own, and count each when it is done."""
    display.on_start(runs)
    records = []
    for run in runs:
        display.counter.start_clock()
        start = time.perf_counter()
        [record] = run_all([run])
        # A Record that came faster than it was trained was looked up.
        if time.perf_counter() - start < record.metadata.get("seconds", 0.0):
            display.counter.skip(run)
        else:
            display.update(run, run.epochs)
        records.append(record)
    return records


def _complete(result: SearchResult, records: list[Record]) -> SearchResult:
    """Add all Records to a result, and warnings of what looks wrong in them."""
    warnings = result.warnings
    # The strategy's own warnings first, then what its Records show.
    warnings += _negative_loss_warning(records)
    # Some strategies warn of divergence themselves.
    if not any("not finite" in warning or "NaN" in warning for warning in warnings):
        warnings += _divergence_warning(records)
    warnings += _unreached_warning(records)
    return replace(result, records=tuple(records), warnings=warnings)


def _negative_loss_warning(records: Sequence[Record]) -> tuple[str, ...]:
    """Warn if the loss is negative, but no level is: the default levels are for cross-entropy."""
    known_levels = []
    for record in flooded_records(records):
        level = _lowest_level(record)
        if level is not None:
            known_levels.append(level)
    if not known_levels or min(known_levels) < 0 or not loss_is_negative(records):
        return ()
    plain = []
    for record in records:
        if record.run is not None and record.run.level is None:
            plain.append(record)
    lowest, cap = lowest_finite(records, "train_loss"), lowest_finite(plain, "val_loss")
    if cap > 0:  # the levels worth trying lie below the cap, so they may all be positive
        return ()
    cap_text = f", {cap:.3g} here" if math.isfinite(cap) else ""
    return (
        f"the training loss fell to {lowest:.3g}, but no level below 0 was tried: give levels "
        f"around the lowest validation loss of plain training{cap_text}, or use the finder",
    )


def _lowest_level(record: Record) -> float | None:
    """Find the lowest level that was in force in a Run, None if there was none."""
    # A controller has a level for each epoch, infinite where it was off.
    levels = [float(level) for level in record.curves.get("level", ()) if math.isfinite(level)]
    return min(levels, default=record.level)


def _divergence_warning(records: Sequence[Record]) -> tuple[str, ...]:
    diverged = 0
    for record in records:
        diverged += not math.isfinite(record.metrics.get("last.val_loss", math.nan))
    if not diverged:
        return ()
    return (f"{diverged} of {len(records)} trainings ended with a loss that is not finite",)


def _unreached_warning(records: Sequence[Record]) -> tuple[str, ...]:
    """Warn if no training came down to its level."""
    flooded = []
    for record in flooded_records(records):
        # A controller that chose no level has none to come down to.
        if "level" not in record.curves or np.isfinite(record.curves["level"]).any():
            flooded.append(record)
    if not flooded:
        return ()
    # One Record without the curves may have reached its level; nothing is said then.
    for record in flooded:
        if not {"flooded", "train_loss"} <= record.curves.keys() or reached_level(record):
            return ()
    # How far down did the loss come instead?
    losses = np.concatenate([record.curves["train_loss"] for record in flooded])
    lowest = min(losses[np.isfinite(losses)], default=math.nan)
    return (f"no training came down to its level: the lowest training loss was {lowest:.3g}",)
