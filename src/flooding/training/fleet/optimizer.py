"""One optimiser for many runs, or one for each, on views of the stacked parameters."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from flooding.training.config import UnhashableConfigError, to_config
from flooding.training.problem import Problem
from flooding.training.run import Run
from flooding.training.state import Scheduler, TrainingState

__all__ = ["ELEMENTWISE", "StackedOptimizer", "clip_gradients", "optimizer_key"]

# Optimisers of torch that treat every element by itself: a leading axis of runs changes nothing.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Rprop,
    torch.optim.ASGD,
)
# Those with a fused step, which reads and writes each number once and makes no temporaries.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
# What they hold as one number for all elements of a parameter.
_COUNTERS = ("step", "eta", "mu", "mu_product")


def optimizer_key(problem: Problem) -> str | None:
    """Name the numbers of an optimiser, if the Runs that share them may share one optimiser.

    Args:
        problem: The Problem.

    Returns:
        Text that is equal for equal numbers; None where every Run needs an optimiser of its own.
    """
    factory: object = problem.optimizer
    while isinstance(factory, functools.partial):
        factory = factory.func
    if factory not in ELEMENTWISE:
        return None
    try:
        return json.dumps(to_config(problem.optimizer), sort_keys=True)
    except UnhashableConfigError:
        return None


@dataclass
class _Block:
    """Runs that follow each other and share one optimiser.

    Args:
        rows: Which runs.
        parameters: Views of the stacked parameters; of one run alone without the axis of runs.
        optimizer: Its optimiser.
        scheduler: Its learning-rate schedule, or None.
        is_single: Whether the views have no axis of runs.
    """

    rows: range
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    is_single: bool
    is_whole: bool = field(default=False)


class StackedOptimizer:
    """The optimisers of a fleet.

    Runs with the same numbers of an element-wise optimiser share one optimiser. Any other Run has
    one of its own, as for an optimiser with norms over tensors, or a ``ReduceLROnPlateau``.

    Args:
        runs: The Runs; those that share numbers follow each other.
        parameters: Their trained parameters ``[runs, ...]``.
        states: States of the single Runs, whose optimisers and schedules go on here.
    """

    def __init__(
        self, runs: Sequence[Run], parameters: Sequence[Tensor], states: Sequence[TrainingState]
    ) -> None:
        self.parameters = list(parameters)
        self.blocks: list[_Block] = []
        for rows, is_single in _plan(runs, states):
            views = _views(self.parameters, rows, is_single, len(runs))
            problem = runs[rows.start].problem
            optimizer = problem.optimizer(views)
            scheduler = None
            if problem.lr_scheduler is not None:
                scheduler = problem.lr_scheduler(optimizer)
            block = _Block(rows, views, optimizer, scheduler, is_single)
            block.is_whole = not is_single and len(rows) == len(runs)
            _load(block, [states[row] for row in rows])
            if not is_single:
                _fuse(optimizer)
            self.blocks.append(block)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Take a step with the gradients of the stacked parameters."""
        for block in self.blocks:
            if not block.is_whole:
                for view, parameter in zip(block.parameters, self.parameters, strict=True):
                    grad = parameter.grad
                    if grad is not None:
                        start, stop = block.rows.start, block.rows.stop
                        grad = grad[start] if block.is_single else grad[start:stop]
                    view.grad = grad
            block.optimizer.step()

    def end_epoch(self, val_losses: Sequence[float]) -> None:
        """Step the learning-rate schedules.

        Args:
            val_losses: Validation loss of each run.
        """
        for block in self.blocks:
            if isinstance(block.scheduler, ReduceLROnPlateau):
                block.scheduler.step(val_losses[block.rows.start])
            elif block.scheduler is not None:
                block.scheduler.step()

    def learning_rates(self) -> list[float]:
        """Give the learning rate of each run."""
        rates = []
        for block in self.blocks:
            rates += [float(block.optimizer.param_groups[0]["lr"])] * len(block.rows)
        return rates

    def copy_into(self, state: TrainingState, row: int) -> None:
        """Give the optimiser and the schedule of a single Run the state of a run.

        Args:
            state: The state of the single Run; changed in place.
            row: Which run.
        """
        block = next(block for block in self.blocks if row in block.rows)
        stacked = block.optimizer.state_dict()
        index = row - block.rows.start
        entries: dict[int, dict[str, Any]] = {}
        for number, entry in stacked["state"].items():
            shape = block.parameters[number].shape
            entries[number] = {
                name: _take(value, shape, index, block.is_single) for name, value in entry.items()
            }
        own_fused = [group.get("fused") for group in state.optimizer.param_groups]
        state.optimizer.load_state_dict({**stacked, "state": entries})
        # Whether its steps are fused is the Problem's choice again.
        for group, fused in zip(state.optimizer.param_groups, own_fused, strict=True):
            if "fused" in group:
                group["fused"] = fused
        if state.lr_scheduler is not None and block.scheduler is not None:
            state.lr_scheduler.load_state_dict(block.scheduler.state_dict())

    def keep(self, rows: Sequence[int], parameters: Sequence[Tensor]) -> None:
        """Keep some runs and forget the others.

        Args:
            rows: Which runs, in order.
            parameters: The new stacked parameters, of these runs alone.
        """
        self.parameters = list(parameters)
        blocks, start = [], 0
        for block in self.blocks:
            kept = [row - block.rows.start for row in rows if row in block.rows]
            if not kept:
                continue
            new_rows = range(start, start + len(kept))
            start += len(kept)
            _move(block, new_rows, kept, self.parameters, len(rows))
            blocks.append(block)
        self.blocks = blocks


def _plan(runs: Sequence[Run], states: Sequence[TrainingState]) -> list[tuple[range, bool]]:
    """Divide the runs into blocks: rows, and whether a block is one run without its axis."""
    plan: list[tuple[range, bool]] = []
    last: str | None = None
    for row, (run, state) in enumerate(zip(runs, states, strict=True)):
        key = optimizer_key(run.problem)
        if isinstance(state.lr_scheduler, ReduceLROnPlateau):
            key = None
        if key is not None and key == last:
            rows, _ = plan[-1]
            plan[-1] = (range(rows.start, row + 1), False)
        else:
            plan.append((range(row, row + 1), key is None))
        last = key
    return plan


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Use the fused step of an optimiser on the CPU where the Problem asks for nothing else."""
    if type(optimizer) not in _FUSED:
        return
    for group in optimizer.param_groups:
        is_default = group["fused"] is None and group["foreach"] is None
        is_special = group["differentiable"] or isinstance(group["lr"], Tensor)
        is_supported = all(
            p.is_floating_point() and p.device.type == "cpu" for p in group["params"]
        )
        if is_default and is_supported and not is_special:
            group["fused"] = True


def _views(parameters: Sequence[Tensor], rows: range, is_single: bool, count: int) -> list[Tensor]:
    """Give the parameters of a block, which share their memory with the stacked ones."""
    if len(rows) == count and not is_single:
        return list(parameters)
    views: list[Tensor] = []
    for parameter in parameters:
        part = parameter.detach()
        part = part[rows.start] if is_single else part[rows.start : rows.stop]
        views.append(nn.Parameter(part))
    return views


def _load(block: _Block, states: Sequence[TrainingState]) -> None:
    """Give a block the states that the optimisers of its single Runs have."""
    saved = [state.optimizer.state_dict() for state in states]
    if any(part["state"] for part in saved):
        entries: dict[int, dict[str, Any]] = {}
        for number, first in saved[0]["state"].items():
            entry = {}
            for name in first:
                values = [part["state"][number][name] for part in saved]
                shape = states[0].parameters[number].shape
                is_shared = block.is_single or name in _COUNTERS
                entry[name] = values[0] if is_shared else _stack(values, shape)
            entries[number] = entry
        block.optimizer.load_state_dict({**saved[0], "state": entries})
    scheduler = states[0].lr_scheduler
    if block.scheduler is not None and scheduler is not None:
        block.scheduler.load_state_dict(scheduler.state_dict())


def _stack(values: Sequence[Any], shape: torch.Size) -> Any:
    """Stack what the optimisers of several Runs hold for one parameter."""
    first = values[0]
    if isinstance(first, Tensor) and first.shape == shape:
        return torch.stack(list(values))
    return first


def _take(value: Any, shape: torch.Size, index: int, is_single: bool) -> Any:
    """Take what an optimiser holds for one run."""
    if not isinstance(value, Tensor):
        return value
    if not is_single and value.shape == shape:
        return value[index].clone()
    return value.clone()


def _move(
    block: _Block, rows: range, kept: list[int], parameters: Sequence[Tensor], count: int
) -> None:
    """Put a block on new parameters, with the states of the runs that are kept."""
    views = _views(parameters, rows, block.is_single, count)
    optimizer = block.optimizer
    new_of = {}
    for old, new in zip(block.parameters, views, strict=True):
        new_of[id(old)] = new
        entry = optimizer.state.pop(old, None)
        if entry is None:
            continue
        if not block.is_single:
            index = torch.tensor(kept, device=new.device)
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    entry[name] = value.index_select(0, index)
        optimizer.state[new] = entry
    for group in optimizer.param_groups:
        group["params"] = [new_of[id(parameter)] for parameter in group["params"]]
    block.parameters, block.rows = views, rows
    block.is_whole = not block.is_single and len(rows) == count


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> None:
    """Clip the gradient of each run to a norm of its own, as ``clip_grad_norm_`` does for one run.

    Args:
        parameters: Parameters ``[runs, ...]`` with their gradients, which are changed in place.
        max_norm: Largest norm of a run's gradient.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return
    rows = [grad.reshape(len(grad), -1) for grad in grads]
    norms = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows])
    total = torch.linalg.vector_norm(norms, dim=0)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.view(-1, *(1,) * (grad.dim() - 1)))
