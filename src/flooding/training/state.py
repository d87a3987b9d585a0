"""The state of a training: what it holds, how it starts, and snapshots to go on from."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flooding.averaging import WeightAverage
from flooding.data import Split, Splits
from flooding.levels import Controller, LevelSource, LevelTable, State
from flooding.levels.state import check_shapes
from flooding.training.checks import (
    check_last_batch,
    check_scheduler,
    check_targets,
    explain_dtype_error,
)
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed, fork_rng, get_rng_states
from flooding.training.run import Run

__all__ = [
    "ScheduleFree",
    "Scheduler",
    "Snapshot",
    "TrainingState",
    "copy_weights",
    "eval_weights",
    "has_ignored_targets",
    "model_fingerprint",
    "restore",
    "start",
    "take_snapshot",
]

Snapshot: TypeAlias = dict[str, Any]  # of types that torch.load(weights_only=True) reads
# A schedule of the learning rate of torch.
Scheduler: TypeAlias = (
    torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau
)


@dataclass
class TrainingState:
    """Everything that changes while a Run trains.

    Args:
        model: The model.
        parameters: Its parameters that are trained.
        optimizer: The optimiser.
        lr_scheduler: The scheduler of the learning rate, or None.
        generator: States of torch's generators between two epochs, for dropout and the like.
        device: Where the Run trains.
        controller: State of the level's controller, or None.
        table: The level's table on the device, or None.
        teacher: The moving average whose loss is the level, or None.
        average: The average of the weights, or None.
        needs_closure: Whether the optimiser recomputes the gradient within a step.
        schedule_free: The schedule-free optimiser, itself or inside SAM's, or None.
        has_ignored: Whether the loss ignores some training targets.
        is_checked: Whether a training batch has passed the checks of the first one.
        first_loss: Raw loss of the first batch.
        curves: What each epoch measured, from epoch 0 on.
        best: Validation key of the best epoch.
        best_epoch: The best epoch.
        best_average: Validation key of the average's best epoch.
        best_average_epoch: The average's best epoch.
        weights: State dicts by name.
        losses: Raw losses of each epoch's steps, where the Run is plain.
        epochs_trained: Epochs that this Run has paid for.
        seconds: Time that this Run has taken.
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_scheduler: Scheduler | None
    generator: tuple[Tensor, ...]
    device: torch.device
    controller: State | None = None
    table: LevelTable | None = None
    teacher: AveragedModel | None = None
    average: WeightAverage | None = None
    needs_closure: bool = False
    schedule_free: ScheduleFree | None = None
    has_ignored: bool = False
    is_checked: bool = False
    first_loss: float = math.nan
    curves: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    best_average: tuple[float, float] = (-math.inf, -math.inf)
    best_average_epoch: int = 0
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    epochs_trained: int = 0
    seconds: float = 0.0


def start(run: Run, device: torch.device) -> tuple[Splits, TrainingState]:
    """Build everything that a Run trains with.

    Args:
        run: The Run.
        device: Where it trains.

    Returns:
        The splits on the device, and the state before the first epoch.

    Raises:
        ValueError: If the parts of the Problem do not fit each other.
    """
    problem, method = run.problem, run.method

    # 1. The data.
    splits = _to_device(problem.splits(run.seed), device)
    check_targets(problem, splits)

    # 2. The model. A lazy one sees the first batch while it is built.
    with explain_dtype_error(torch.get_default_dtype(), splits.train.x):
        model = problem.build(run.seed).to(device)
    check_last_batch(problem, run.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "the model must have parameters that require a gradient, got none. Unfreeze some of "
            "them."
        )

    # 3. The optimiser, as the method wants it, and the scheduler.
    optimizer = method.wrap_optimizer(problem.optimizer, parameters)
    schedule_free = _find_schedule_free(optimizer)
    if schedule_free is not None:
        schedule_free.train()
    scheduler = None
    if problem.lr_scheduler is not None:
        scheduler = problem.lr_scheduler(optimizer)
    check_scheduler(scheduler, problem.max_epochs)

    # 4. The generators.
    with fork_rng(derive_seed(run.seed, "train")):
        generator = get_rng_states(device)
    state = TrainingState(model, parameters, optimizer, scheduler, generator, device)
    state.needs_closure = method.needs_closure or _requires_closure(optimizer)
    state.schedule_free = schedule_free
    state.has_ignored = has_ignored_targets(problem, splits.train)

    # 5. The average of the weights.
    state.average = _start_average(problem, state)

    # 6. Where the level comes from.
    if method.level_source == "teacher":
        state.teacher = method.make_teacher(model)
    level = run.level
    if isinstance(level, Controller):
        state.controller = {name: t.to(device) for name, t in level.init().items()}
    if isinstance(level, LevelSource):
        resolved = level.resolve(problem, run.seed, device)
        level, state.epochs_trained = resolved.levels, resolved.cost or 0
    if isinstance(level, LevelTable):
        state.table = level.to(device)
        state.table.check(splits.train.id)
    return splits, state


def _start_average(problem: Problem, state: TrainingState) -> WeightAverage | None:
    """Copy the model for the average of its weights, if there is to be one."""
    if problem.averaging is None:
        return None
    if state.schedule_free is not None:
        raise ValueError(
            f"{type(state.schedule_free).__name__} evaluates an average of the weights already, "
            "so averaging has nothing to average. Leave averaging out."
        )
    return WeightAverage(state.model, problem.averaging)


def _to_device(splits: Splits, device: torch.device) -> Splits:
    """Move the three splits to a device."""
    test = None if splits.test is None else splits.test.to(device)
    return replace(splits, train=splits.train.to(device), val=splits.val.to(device), test=test)


def _requires_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the closure of an optimiser's ``step`` has no default, or another than None."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is not None


def has_ignored_targets(problem: Problem, split: Split) -> bool:
    """Tell whether the loss ignores some of a split's targets.

    Args:
        problem: The Problem.
        split: The split.

    Returns:
        Whether it does.
    """
    if problem.ignore_index is None or split.y.is_floating_point():
        return False
    return not bool(problem.target_mask(split.y).all())


# ---------------------------------------------------------------- snapshots


def take_snapshot(state: TrainingState, *, copied: bool = False) -> Snapshot:
    """Collect all that changes while a Run trains, in types that a checkpoint may hold.

    Args:
        state: The state.
        copied: Whether to copy the tensors that the next epoch changes.

    Returns:
        A snapshot for :func:`restore`.
    """
    snapshot: Snapshot = {
        "generator": list(state.generator),
        "controller": state.controller,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "lr_scheduler": None,
        "teacher": None,
    }
    if state.lr_scheduler is not None:
        snapshot["lr_scheduler"] = state.lr_scheduler.state_dict()
    if state.teacher is not None:
        snapshot["teacher"] = state.teacher.state_dict()
    if state.average is not None:
        snapshot["average"] = state.average.state_dict()
    if copied:
        snapshot = copy.deepcopy(snapshot)
    # The next epoch replaces or extends the rest, but changes none of it.
    snapshot |= {
        "first_loss": state.first_loss,
        "best_epoch": state.best_epoch,
        "trained": state.epochs_trained,
        "seconds": state.seconds,
        "curves": list(state.curves),
        "weights": dict(state.weights),
        "best": list(state.best),
        "losses": torch.stack(state.losses) if state.losses else None,
        "mark": model_fingerprint(state.model, state.first_loss),
    }
    if state.average is not None:
        snapshot["best_average"] = list(state.best_average)
        snapshot["best_average_epoch"] = state.best_average_epoch
    return snapshot


def restore(run: Run, state: TrainingState, snapshot: Snapshot) -> None:
    """Put a fresh state where a snapshot was taken.

    Args:
        run: The Run that goes on.
        state: Its state as :func:`start` gives it; changed in place.
        snapshot: A snapshot of the same Run, or of one that shares its beginning.

    Raises:
        ValueError: If the snapshot is of another model or controller, lacks the average of the
            weights, or lies beyond the end of the Run.
    """
    if snapshot["mark"] != model_fingerprint(state.model, snapshot["first_loss"]):
        raise ValueError(
            "a checkpoint must have this model's parameter shapes, got others. Train afresh."
        )
    if state.average is not None and "average" not in snapshot:
        raise ValueError(
            "a checkpoint of a Run with averaging must hold the average, got one without. Train "
            "afresh."
        )
    for name in ("model", "optimizer", "lr_scheduler", "teacher"):
        if snapshot[name] is not None:
            getattr(state, name).load_state_dict(copy.deepcopy(snapshot[name]))
    state.generator = tuple(t.cpu() for t in snapshot["generator"])
    if snapshot["controller"] is not None:
        controller = snapshot["controller"]
        if state.controller is not None and controller.keys() == state.controller.keys():
            check_shapes(controller, state.controller)
        state.controller = {name: t.to(state.device) for name, t in controller.items()}
    state.curves = [dict(row) for row in snapshot["curves"]]
    state.losses = []
    if snapshot["losses"] is not None:
        state.losses = list(snapshot["losses"].to(state.device))
    state.best, state.weights = tuple(snapshot["best"]), dict(snapshot["weights"])
    state.first_loss, state.best_epoch = snapshot["first_loss"], snapshot["best_epoch"]
    state.epochs_trained, state.seconds = snapshot["trained"], snapshot["seconds"]
    if state.average is not None:
        state.average.load_state_dict(copy.deepcopy(snapshot["average"]))
        state.best_average = tuple(snapshot["best_average"])
        state.best_average_epoch = snapshot["best_average_epoch"]
    if len(state.curves) > run.epochs + 1:
        raise ValueError(
            f"a Run of {run.epochs} epochs cannot go on from epoch {len(state.curves) - 1}. Take "
            "an earlier snapshot."
        )


def model_fingerprint(model: nn.Module, first_loss: float) -> str:
    """Hash the parameter shapes of a model and its first batch loss.

    Args:
        model: The model.
        first_loss: Raw loss of the first batch.

    Returns:
        64 hexadecimal digits.
    """
    shapes = [tuple(p.shape) for p in model.parameters()]
    return hashlib.sha256(f"{shapes} {np.float32(first_loss)!r}".encode()).hexdigest()


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy the state dict of a model.

    Args:
        model: The model.

    Returns:
        Tensors without a graph, by name; whatever else the state dict has is copied too.
    """
    weights = {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            weights[name] = value.detach().clone()
        else:
            weights[name] = copy.deepcopy(value)
    return weights


# ---------------------------------------------------------------- schedule-free optimisers


@runtime_checkable
class ScheduleFree(Protocol):
    """An optimiser that evaluates other weights than it trains."""

    def train(self) -> object:
        """Put the weights in place that are trained."""
        ...

    def eval(self) -> object:
        """Put the weights in place that are evaluated."""
        ...


def _find_schedule_free(optimizer: torch.optim.Optimizer) -> ScheduleFree | None:
    """Give the schedule-free optimiser, the optimiser itself or the one inside SAM, or None."""
    for part in (optimizer, getattr(optimizer, "base_optimizer", None)):
        if isinstance(part, ScheduleFree):
            return part
    return None


@contextmanager
def eval_weights(state: TrainingState) -> Generator[None, None, None]:
    """Evaluate the weights that a schedule-free optimiser evaluates, for the length of a block.

    Args:
        state: The state; with any other optimiser nothing changes.

    Yields:
        Nothing.
    """
    optimizer = state.schedule_free
    if optimizer is None:
        yield
        return
    before = [p.detach().clone() for p in state.parameters]
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        # Switching there and back rounds, so the weights are put back to the bit.
        with torch.no_grad():
            for p, value in zip(state.parameters, before, strict=True):
                p.copy_(value)
