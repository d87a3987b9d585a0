"""What a strategy is: a generator that yields Runs, receives their Records and returns a result.

A strategy is deterministic given its Records, so that a search that was killed repeats itself
exactly from the ledger. It asks for lists of Runs. The Runs of one list are independent of each
other, and their Records come back in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Protocol, TypeAlias, cast

from flooding.level_search.result import SearchResult
from flooding.levels import Controller
from flooding.training.problem import Problem, Score
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["RunAll", "SearchableProblem", "Strategy", "make_run", "make_runs"]

# A generator that yields Runs, receives Records and returns a result; and what trains Runs.
Strategy: TypeAlias = Generator[list[Run], list[Record], SearchResult]
RunAll: TypeAlias = Callable[[list[Run]], Sequence[Record]]


class SearchableProblem(Protocol):
    """What every strategy needs of a problem.

    A :class:`flooding.Problem` has it, and so has
    :class:`flooding.level_search.external.ExternalProblem`, which stands for training code of your
    own.
    """

    @property
    def max_epochs(self) -> int:
        """Epochs of a full training."""
        ...

    @property
    def score(self) -> Score | None:
        """The validation score to optimise; None is accuracy, or the loss where there is none."""
        ...


def make_run(
    problem: SearchableProblem,
    level: float | Controller | None = None,
    *,
    seed: int = 0,
    stop_epoch: int | None = None,
) -> Run:
    """Make a Run of any problem that can be searched.

    Args:
        problem: The problem.
        level: See :class:`flooding.Run`.
        seed: See :class:`flooding.Run`.
        stop_epoch: See :class:`flooding.Run`.

    Returns:
        The Run.
    """
    # Only training needs a full Problem, and the caller's own code trains an ExternalProblem.
    return Run(cast("Problem", problem), level, seed=seed, stop_epoch=stop_epoch)


def make_runs(
    problem: SearchableProblem,
    levels: Iterable[float | Controller | None],
    seeds: Sequence[int],
    *,
    stop_epoch: int | None = None,
) -> list[Run]:
    """Make a Run for every level and seed.

    Args:
        problem: The problem.
        levels: Levels or controllers.
        seeds: Seeds.
        stop_epoch: See :class:`flooding.Run`.

    Returns:
        The Runs: all seeds of the first level, then those of the next.
    """
    runs = []
    for level in levels:
        runs += [make_run(problem, level, seed=seed, stop_epoch=stop_epoch) for seed in seeds]
    return runs
