"""The contract test of a search strategy."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch

from flooding.level_search.base import SearchResult, Strategy
from flooding.testing.records import fake_record
from flooding.testing.rules import require
from flooding.training.run import Run

__all__ = ["check_strategy"]

RunName: TypeAlias = tuple[str, str, int, int]

# Which of the levels diverge, by the order in which they were first asked.
_DIVERGES: tuple[Callable[[int], bool], ...] = (
    lambda _: False,
    lambda index: index % 2 == 0,
    lambda index: index % 2 == 1,
    lambda _: True,
)
_MAX_LISTS = 1000


def check_strategy(make: Callable[[], Strategy]) -> None:
    """Check that a strategy keeps the protocol of :mod:`flooding.level_search.base`.

    It gets made-up Records (see :func:`fake_record`), each time twice: with accuracies and with
    losses alone, with NaN validation losses for half of the levels, for the other half, and for
    all. Checked are: that it yields non-empty lists of Runs, none twice in a list, and ends; that
    the same Records make it ask the same Runs and return the same; that it returns a SearchResult
    whose ``run`` is a Run and whose intervals have ``low <= level <= high``; that it never returns
    a level whose validation loss was NaN while there are others; that torch's, NumPy's and Python's
    global generators are left alone. It may ask nothing at all.

    Args:
        make: A callable that gives a fresh generator each time.

    Raises:
        TypeError: If it yields or returns something of the wrong kind.
        AssertionError: If any other rule is broken; the message names it.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> from flooding.level_search.grid import grid
        >>> problem = Problem(two_gaussians, partial(mlp, 10, 2, width=20), max_epochs=10)
        >>> check_strategy(lambda: grid(problem, [0.0, 0.1, 0.2]))
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    before = _global_generator_states()
    for accuracy in (True, False):
        for diverges in _DIVERGES:
            requests, result = _drive(make(), accuracy, diverges)
            repeated_requests, repeated_result = _drive(make(), accuracy, diverges)
            require(
                _names(requests) == _names(repeated_requests),
                "the same Records must make a strategy ask the same Runs. Seed what it draws.",
            )
            _check_result(result)
            a, b = _summarize(result), _summarize(repeated_result)
            require(
                a == b, f"the same Records must make a strategy find the same, got {a} and {b}."
            )
            _check_choice(requests, result, diverges)
    require(
        before == _global_generator_states(),
        "torch's, NumPy's and Python's global generators must be left alone; draw from one of your "
        "own.",
    )


def _drive(
    strategy: Strategy, accuracy: bool, diverges: Callable[[int], bool]
) -> tuple[list[list[Run]], SearchResult]:
    """Drive a strategy with made-up Records.

    Returns:
        The lists of Runs that it yielded, and what it returned.

    Raises:
        TypeError: If it yields or returns something else.
    """
    requests: list[list[Run]] = []
    records = None
    while True:
        try:
            runs = next(strategy) if records is None else strategy.send(records)
        except StopIteration as end:
            result = end.value
            break
        if not isinstance(runs, list) or not all(isinstance(run, Run) for run in runs):
            raise TypeError(
                f"a strategy must yield lists of Runs, got {runs!r}. Yield [run] for a single one."
            )
        require(
            len(runs) > 0,
            "a strategy must not yield an empty list; return when there is nothing to ask.",
        )
        names = {(id(run.problem), _name(run)) for run in runs}
        require(len(names) == len(runs), "a list must not hold the same Run twice.")
        requests.append(runs)
        require(len(requests) < _MAX_LISTS, f"a strategy must end, got {_MAX_LISTS} lists of Runs.")
        index_of = _level_indices(requests)
        records = []
        for run in runs:
            is_nan = diverges(index_of[repr(run.level)])
            records.append(fake_record(run, accuracy=accuracy, diverges=is_nan))
    if not isinstance(result, SearchResult) or not isinstance(result.run, Run):
        raise TypeError(f"a strategy must return a SearchResult with a Run, got {result!r}.")
    return requests, result


def _check_result(result: SearchResult) -> None:
    level = result.level
    require(
        level is None or math.isfinite(level),
        f"the level of the result must be a number or None, got {level}.",
    )
    for estimate in result.suggestions:
        level = estimate.low if estimate.level is None else estimate.level
        require(
            estimate.low <= level <= estimate.high,
            f"an estimate must have low <= level <= high, got {estimate}.",
        )


def _check_choice(
    requests: Sequence[list[Run]], result: SearchResult, diverges: Callable[[int], bool]
) -> None:
    """Check that no level is chosen whose validation loss is NaN while there are others."""
    index_of = _level_indices(requests)
    if all(diverges(index) for index in index_of.values()):
        return
    level = repr(result.run.level)
    # Every strategy may return "no flooding", unless it was asked as level 0 and diverged.
    if level == "None":
        level = "" if "None" in index_of else "0.0"
    require(
        level not in index_of or not diverges(index_of[level]),
        "a level whose validation loss is NaN must not be chosen while there are others, got "
        f"{level}.",
    )


def _level_indices(requests: Sequence[list[Run]]) -> dict[str, int]:
    """Number the levels in the order in which they were first asked."""
    index_of: dict[str, int] = {}
    for runs in requests:
        for run in runs:
            index_of.setdefault(repr(run.level), len(index_of))
    return index_of


def _names(requests: Sequence[list[Run]]) -> list[list[RunName]]:
    return [list(map(_name, runs)) for runs in requests]


def _name(run: Run) -> RunName:
    return repr(run.level), repr(run.method), run.seed, run.epochs


def _summarize(result: SearchResult) -> str:
    return repr((_name(result.run), result.suggestions, result.warnings))


def _global_generator_states() -> tuple[object, ...]:
    numpy_state = pickle.dumps(np.random.get_state())  # ruff: ignore[numpy-legacy-random]
    return torch.get_rng_state().tolist(), numpy_state, random.getstate()
