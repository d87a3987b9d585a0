"""``find_level(problem)``: find the flood level of a Problem in one call."""

from __future__ import annotations

import inspect
import math
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from flooding.data import Split, map_tensors
from flooding.entries import PLACES, find_entry
from flooding.level_search.advisor import advise
from flooding.level_search.driver import search
from flooding.level_search.finder import finder
from flooding.level_search.level_stats import loss_is_negative
from flooding.level_search.protocol import Strategy
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.training.checks import check_targets
from flooding.training.config import SESSION
from flooding.training.fleet_jobs import FleetOption
from flooding.training.loop import EpochResult
from flooding.training.problem import Problem
from flooding.training.progress import show_progress
from flooding.training.record import Record
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.runner import run_all, run_key
from flooding.training.scratch import scratch_folder

__all__ = ["find_level", "make_runner"]


@preserve_rng_state()
def find_level(
    problem: Problem,
    *,
    budget: float = 3.0,
    seeds: int | Sequence[int] = 1,
    device: str = "cpu",
    strategy: Callable[..., Strategy] | None = None,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on: Literal["ray"] | Callable[..., list[Record]] | None = None,
    fleet: FleetOption = False,
    on_start: Callable[[list[Run]], object] | None = None,
    on_row: Callable[[EpochResult], object] | None = None,
    progress: bool | None = None,
) -> SearchResult:
    """Find the flood level of a problem for the price of a few trainings.

    Nothing of the caller's is changed: models are copied, optimisers and schedules are built anew
    from the problem, generators are given back as they were, also after an exception or an
    interrupt. Finished trainings are in the ledger, so that the same call continues where an
    interrupted one stopped. Those of a problem that cannot be hashed are stored for the length of
    the call only.

    Args:
        problem: What is trained.
        budget: Trainings to spend for each seed, 1 or above 1. With 1 a single training chooses its
            own level. With one seed, and unless the ledger had it, its network is kept for
            :meth:`SearchResult.model`.
        seeds: How many seeds to average, or which. With fixed data a seed changes weights and order
            alone.
        device: Where to train.
        strategy: Another search, ``(problem, *, seeds) -> generator`` (or ``seed``, for one seed),
            such as ``partial(flooding.level_search.grid.grid, levels=[None, 0.1, 0.2])``; it has a
            budget of its own.
        ledger: SQLite file of Records; None is the default file.
        overwrite: Train even what the ledger holds.
        workers: Worker processes; None is one per core, 0 trains in this process.
        on: Where else to train: "ray" is a Ray cluster, see
            :func:`flooding.integrations.ray.run_all`; or that function with arguments of its own,
            ``partial(flooding.integrations.ray.run_all, num_gpus=0.5)``. None is this machine.
        fleet: Whether Runs of several seeds and levels train as one set of tensors, see
            :func:`flooding.run_all`. It pays for many small networks: Runs in a fleet do not share
            the steps before the first flooded one.
        on_start: Called with the Runs of each round that must be trained.
        on_row: Called with every row of the Runs that are trained.
        progress: True shows a bar on standard error, or in a notebook, at once; False never. None
            shows it when the search takes longer than two seconds, if standard error is a terminal
            or this is a notebook. Runs that are looked up count as done.

    Returns:
        The level and everything behind it.

    Raises:
        TypeError: If the budget is no number.
        ValueError: If the data cannot be searched on, or an argument is out of range.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> data = partial(two_gaussians, n_test=100, label_noise=0.1)
        >>> problem = Problem(data, partial(mlp, 10, 2, width=50), max_epochs=40)
        >>> result = find_level(problem, workers=0)
        >>> result.level is None or 0 < result.level < 0.7, result.cost.steps < 3.1
        (True, True)
    """
    # Refuse what cannot be searched before anything is trained.
    if not isinstance(budget, Real) or isinstance(budget, bool):
        raise TypeError(f"budget must be a number of trainings, got {budget!r}. Try 3 or 1.")
    seed_numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not seed_numbers:
        raise ValueError(f"seeds must be at least one, got {seeds}. Try seeds=1.")
    if not isinstance(problem, Problem):
        raise ValueError(
            f"find_level needs a Problem, such as Problem(data, model), got "
            f"{type(problem).__name__}. For training code of your own there is "
            "search(strategy, train)."
        )
    # Levels are in the unit of the loss that is trained.
    problem = replace(problem, eval_loss=None)
    _check_data(problem, seed_numbers[0])
    train = make_runner(on, workers)
    make_strategy = _with_seeds(strategy or partial(finder, budget=budget))

    keep_weights = _WeightsKeeper(on_row) if on_row is not None or budget == 1 else None
    # The finder spends its budget; what another strategy will train is not known.
    num_planned = 0
    if strategy is None and math.isfinite(budget):
        num_planned = round(budget * len(seed_numbers) * problem.max_epochs)
    with (
        show_progress(progress, num_planned=num_planned),
        _hashable(problem, seed_numbers[0], ledger) as (searched_problem, path),
    ):
        # A runner of the caller's own need not know of fleets.
        fleet_options = {} if fleet is False else {"fleet": fleet}
        runner = partial(
            train,
            **fleet_options,
            ledger=path,
            overwrite=overwrite,
            device=device,
            on_start=on_start,
            on_row=keep_weights,
        )
        result = search(make_strategy(searched_problem, seeds=seed_numbers), runner)
    if keep_weights is not None:
        result = replace(result, weights=keep_weights.weights_of(result.run))

    # The Run to train for use is one of the caller's own Problem.
    run = replace(result.run, problem=problem)
    estimates = result.estimates + _label_limits(problem, seed_numbers[0], result)
    return replace(result, run=run, estimates=estimates, device=device)


def make_runner(
    on: str | Callable[..., list[Record]] | None, workers: int | None
) -> Callable[..., list[Record]]:
    """Give the function that trains Runs in a place.

    Args:
        on: The place, see :func:`find_level`.
        workers: Worker processes of this machine.

    Returns:
        A function such as :func:`flooding.run_all`.

    Raises:
        ValueError: If there is no such place, or it has no worker processes of this machine.
    """
    if on is None:
        return partial(run_all, workers=workers)
    if workers is not None:
        raise ValueError(
            f"workers are processes of this machine, got workers={workers} and on={on!r}. "
            "Leave one of them out."
        )
    if isinstance(on, str):
        # Imported by name, since an integration may import everything.
        return cast(Callable[..., list[Record]], find_entry("on", on, PLACES).load())
    return on


class _WeightsKeeper:
    """Pass rows on, and keep the weights of the last training that ended in this process."""

    def __init__(self, on_row: Callable[[EpochResult], object] | None) -> None:
        self._on_row = on_row
        self._last: EpochResult | None = None

    def __call__(self, row: EpochResult) -> None:
        if row.weights is not None:
            self._last = row
        if self._on_row is not None:
            self._on_row(row)

    def weights_of(self, run: Run) -> Mapping[str, dict[str, Tensor]] | None:
        """Give the weights of a Run, None if it is not the one whose weights were kept."""
        row = self._last
        return row.weights if row is not None and row.run is run else None


def _with_seeds(strategy: Callable[..., Strategy]) -> Callable[..., Strategy]:
    """Let a strategy of one seed take a list of seeds."""
    if not callable(strategy):
        raise ValueError(
            "strategy must be a function, such as flooding.level_search.halving.halving, "
            f"got {strategy!r}."
        )
    # The parameter names tell which of the two forms the strategy has.
    names = inspect.signature(strategy).parameters
    if "seeds" in names or "seed" not in names:
        return strategy

    def one_seed_strategy(problem: Problem, seeds: Sequence[int]) -> Strategy:
        if len(seeds) > 1:
            raise ValueError(f"this strategy takes one seed, got {len(seeds)}. Try seeds=1.")
        return strategy(problem, seed=seeds[0])

    return one_seed_strategy


def _label_limits(problem: Problem, seed: int, result: SearchResult) -> tuple[LevelEstimate, ...]:
    """Limit the level by the entropy of the labels, where the loss is a cross-entropy."""
    labels = problem.splits(seed).train.y
    # A loss below 0 is no cross-entropy, and the entropy of its labels no limit.
    if labels.is_floating_point() or loss_is_negative(result.records):
        return ()
    return advise(labels=labels[problem.target_mask(labels)])


def _check_data(problem: Problem, seed: int) -> None:
    """Refuse data on which a search cannot judge."""
    splits = problem.splits(seed)
    check_targets(problem, splits)
    for name, split in (("train", splits.train), ("val", splits.val)):
        _check_targets_vary(problem, name, split.y)
        _check_inputs(name, split)


def _check_targets_vary(problem: Problem, name: str, y: Tensor) -> None:
    if y.is_floating_point():
        if not bool(y.isfinite().all()):
            raise ValueError(
                f"targets must be finite, got NaN or infinity in the {name} split. "
                "Drop those examples."
            )
        return
    # Ignored targets are no class.
    classes = y[problem.target_mask(y)]
    if classes.ndim == 1 and len(classes.unique()) < 2:
        raise ValueError(
            f"the {name} split must hold at least two classes, "
            f"got only class {int(classes[0])}. Divide the data anew."
        )


def _check_inputs(name: str, split: Split) -> None:
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    # Inputs may be nested: go through all of their tensors.
    map_tensors(collect, split.x)
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"inputs must be finite, got NaN or infinity in the {name} split. "
                "Impute or drop them."
            )
    # Every example equal to the first: the network could learn nothing but a constant.
    if all(bool((tensor == tensor[:1]).all()) for tensor in tensors):
        raise ValueError(
            f"inputs must vary, but all {len(split.y)} examples of the {name} split are the same. "
            "Check them."
        )


@contextmanager
def _hashable(
    problem: Problem, seed: int, ledger: str | Path | None
) -> Generator[tuple[Problem, str | Path | None], None, None]:
    """Give a problem whose Runs have keys, so that a search never trains a Run twice.

    Yields:
        The problem to search on, and the ledger: for a problem that cannot be hashed a temporary
        one.
    """
    # What has a key is found again in the caller's own ledger.
    if run_key(Run(problem, seed=seed)) is not None:
        yield problem, ledger
        return
    # A random key holds for this search only, so it must not reach a ledger that stays.
    with scratch_folder() as folder:
        yield replace(problem, key=f"{SESSION}{uuid.uuid4()}"), folder / "ledger.sqlite"
