"""The state of a fleet: what it holds, how it starts, and how a Run leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flooding.averaging import WeightAverage
from flooding.data import Inputs, Splits, map_tensors
from flooding.training.fleet.average import StackedAverage
from flooding.training.fleet.levels import StackedLevels
from flooding.training.fleet.metrics import StackedSplit, stacked_loss
from flooding.training.fleet.model import StackedModel, Tensors, take_rows
from flooding.training.fleet.optimizer import StackedOptimizer
from flooding.training.fleet.rules import FleetError, check_state
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed, fork_rng, get_rng_states
from flooding.training.run import Run
from flooding.training.state import Snapshot, TrainingState, copy_weights, restore, start

__all__ = [
    "FLEET_GENERATOR",
    "FleetState",
    "Member",
    "fork",
    "measurable",
    "start_fleet",
    "try_out",
]

FLEET_GENERATOR = "fleet_generator"  # in a snapshot: the generators that all Runs of a fleet share
# What the host knows of a Run, in a fleet and alone.
_HOST_STATE = (
    "first_loss",
    "curves",
    "best",
    "best_epoch",
    "best_average",
    "best_average_epoch",
    "losses",
    "epochs_trained",
    "seconds",
)


@dataclass
class Member:
    """What the host knows of one Run of a fleet; most of it as in :class:`TrainingState`.

    Args:
        index: Position of the Run in the caller's list.
        run: The Run.
        splits: Its splits.
        generator: States of torch's generators with which it would go on alone.
        began: Time at which it began.
    """

    index: int
    run: Run
    splits: Splits
    generator: tuple[Tensor, ...]
    began: float
    first_loss: float = math.nan
    curves: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    best_average: tuple[float, float] = (-math.inf, -math.inf)
    best_average_epoch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    epochs_trained: int = 0
    seconds: float = 0.0


@dataclass
class FleetState:
    """Everything that changes while a fleet trains; each row is a Run.

    Args:
        members: What the host knows of each Run.
        model: The stacked model.
        optimizer: The optimisers.
        levels: The levels and controllers.
        average: The averages of the weights, or None.
        splits: Training, validation and, with a test curve, test split, by name.
        best: Best weights so far ``[runs, ...]``: "best", and "best_average" with an average.
        generator: States of torch's generators, one stream for all Runs.
        seconds: Time that the fleet has taken.
    """

    members: list[Member]
    model: StackedModel
    optimizer: StackedOptimizer
    levels: StackedLevels
    average: StackedAverage | None
    splits: dict[str, StackedSplit]
    best: dict[str, Tensors]
    generator: tuple[Tensor, ...]
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """The last epoch that was measured, -1 before the first; -1 too when all have left."""
        return len(self.members[0].curves) - 1 if self.members else -1

    def keep(self, rows: list[int]) -> None:
        """Keep some Runs and forget the others.

        Args:
            rows: Which, in order.
        """
        self.members = [self.members[row] for row in rows]
        if not rows:
            return
        index = torch.tensor(rows, device=self.splits["train"].y.device)
        self.model.keep(index)
        self.optimizer.keep(rows, self.model.trained)
        self.levels.keep(rows)
        if self.average is not None:
            self.average.keep(index)
        for name, weights in self.best.items():
            self.best[name] = take_rows(weights, index)
        for split in self.splits.values():
            split.row_of = split.row_of.index_select(0, index)


def start_fleet(
    runs: Sequence[tuple[int, Run]],
    device: torch.device,
    resume: Sequence[Snapshot] | None,
    start_time: float,
) -> FleetState:
    """Build the state of each Run as the single loop does, and stack them.

    Args:
        runs: The Runs, each with its position in the caller's list.
        device: Where they train.
        resume: A snapshot of each Run, in the caller's order, or None.
        start_time: Time at which they began.

    Returns:
        The state before the next epoch.

    Raises:
        FleetError: If the Runs cannot train together.
        ValueError: If the parts of the Problem do not fit each other.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    # 1. The single states.
    states: list[TrainingState] = []
    members: list[Member] = []
    for index, run in runs:
        splits, state = start(run, device)
        check_state(run, state, splits)
        if resume is not None:
            restore(run, state, resume[index])
        member = Member(index, run, splits, state.generator, start_time)
        for name in _HOST_STATE:
            setattr(member, name, getattr(state, name))
        states.append(state)
        members.append(member)
    if len({len(member.curves) for member in members}) > 1:
        raise FleetError(
            "the snapshots of a fleet must be of one epoch, got several. Train the Runs one by one "
            "up to there."
        )

    # 2. What is stacked.
    problem, every_run = members[0].run.problem, [member.run for member in members]
    model = StackedModel([state.model for state in states])
    average = None
    if problem.averaging is not None:
        average = StackedAverage(problem.averaging, model, states)

    # 3. The generators: one stream for all Runs.
    seeds = [run.seed for run in every_run]
    with fork_rng(derive_seed(seeds[0], "fleet", *seeds[1:])):
        generator = get_rng_states(device)
    if resume is not None and FLEET_GENERATOR in resume[0]:
        generator = tuple(resume[0][FLEET_GENERATOR])
    return FleetState(
        members=members,
        model=model,
        optimizer=StackedOptimizer(every_run, model.trained, states),
        levels=StackedLevels(every_run, states, device),
        average=average,
        splits=_stack_splits(problem, members, device),
        best=_stack_best(states),
        generator=generator,
    )


def _stack_best(states: Sequence[TrainingState]) -> dict[str, Tensors]:
    """Stack the best weights of Runs that go on from snapshots."""
    best: dict[str, Tensors] = {}
    for name in ("best", "best_average"):
        if any(name in state.weights for state in states):
            parts = [state.weights.get(name, copy_weights(state.model)) for state in states]
            best[name] = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
    return best


def _stack_splits(
    problem: Problem, members: Sequence[Member], device: torch.device
) -> dict[str, StackedSplit]:
    """Stack the splits, each seed once."""
    has_one = isinstance(problem.data, Splits)
    row_of_seed: dict[int, int] = {}
    every_splits: list[Splits] = []
    rows = []
    for member in members:
        seed = 0 if has_one else member.run.seed
        if seed not in row_of_seed:
            row_of_seed[seed] = len(every_splits)
            every_splits.append(member.splits)
        rows.append(row_of_seed[seed])
    row_of = torch.tensor(rows, device=device)
    stacked = {}
    for name in ("train", "val"):
        parts = [getattr(splits, name) for splits in every_splits]
        stacked[name] = StackedSplit.stack(parts, row_of)
    curve = problem.test_curve
    if curve is not None:
        tests = [splits.test for splits in every_splits if splits.test is not None]
        if len(tests) == len(every_splits):
            subsets = [test.take(slice(curve.examples)) for test in tests]
            stacked["test"] = StackedSplit.stack(subsets, row_of)
    return stacked


def try_out(state: FleetState) -> None:
    """Pass one batch through the stacked model, and compare one Run with its single twin.

    Args:
        state: A fresh state; nothing of it changes.

    Raises:
        FleetError: If the model or the loss does not take an axis of runs.
    """
    model, problem = state.model, state.members[0].run.problem
    template, name = model.template, type(model.template).__name__
    x, y = state.splits["train"].batch(slice(0, min(problem.batch_size, 8)))
    buffers = model.buffers
    try:
        with fork_rng(0), torch.no_grad():
            outputs = model(x, training=False)
            stacked_loss(problem.loss)(outputs, y)
            model.load_into(template, 0)
            expected = template.eval()(_take_first(x))
            # Batch norm writes into its buffers.
            model.buffers = {key: buffer.clone() for key, buffer in buffers.items()}
            model(x, training=True)
    except Exception as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise FleetError(
            f"{name} cannot train in a fleet, since torch.vmap does not take it or its loss: "
            f"{reason} Leave fleet out for it."
        ) from error
    finally:
        model.buffers = buffers
    if not isinstance(outputs, Tensor):
        raise FleetError(
            f"a fleet needs outputs that are one tensor, got {type(outputs).__name__}. Return a "
            "tensor from the model, or leave fleet out."
        )
    # Far above rounding, far below what another computation gives.
    tolerance = 1e-9 if outputs.dtype == torch.float64 else 1e-3
    if outputs.dtype.itemsize < 4:
        tolerance = 0.05
    first = outputs[0]
    if first.shape != expected.shape or not torch.allclose(
        first, expected, rtol=tolerance, atol=tolerance, equal_nan=True
    ):
        raise FleetError(
            f"{name} gives other outputs in a fleet than alone. Does it mix examples, or read "
            "their number? Leave fleet out for it."
        )


def _take_first(x: Inputs) -> Inputs:
    return map_tensors(lambda t: t[0], x)


# ---------------------------------------------------------------- single Runs


def fork(state: FleetState, row: int) -> TrainingState:
    """Give one Run the state that the single loop has for it; the fleet goes on as before.

    Args:
        state: The state of the fleet.
        row: Which Run.

    Returns:
        A state that shares nothing with the fleet.
    """
    member = state.members[row]
    _, single = start(member.run, state.splits["train"].y.device)
    state.model.load_into(single.model, row)
    state.optimizer.copy_into(single, row)
    single.generator = member.generator
    single.controller = state.levels.state_of(row)
    if state.average is not None:
        state.average.copy_into(single, state.model, row)
    _fill(single, state, row)
    return single


def measurable(state: FleetState, row: int) -> TrainingState:
    """Give a state of one Run that is only measured, faster than :func:`fork`.

    Args:
        state: The state of the fleet.
        row: Which Run.

    Returns:
        A state whose model is the fleet's template; its optimiser is none of its own.
    """
    member, model = state.members[row], state.model.template
    device = state.splits["train"].y.device
    state.model.load_into(model, row)
    optimizer = state.optimizer.blocks[0].optimizer
    single = TrainingState(model, [], optimizer, None, member.generator, device)
    averaging = member.run.problem.averaging
    if state.average is not None and averaging is not None:
        single.average = WeightAverage(model, averaging)
        state.average.copy_into(single, state.model, row)
    _fill(single, state, row)
    return single


def _fill(single: TrainingState, state: FleetState, row: int) -> None:
    """Give a single state what the host knows, and the best weights."""
    member = state.members[row]
    for name in _HOST_STATE:
        setattr(single, name, getattr(member, name))
    single.curves = [dict(values) for values in member.curves]
    single.losses = list(member.losses)
    single.is_checked = True
    for name, weights in state.best.items():
        epoch = member.best_epoch if name == "best" else member.best_average_epoch
        if epoch:
            single.weights[name] = {key: tensor[row].clone() for key, tensor in weights.items()}
