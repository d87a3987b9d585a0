"""One batch of a training: its indices, its raw loss, its level and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from flooding.data import Inputs, Split, map_tensors
from flooding.functional import is_flooded
from flooding.levels import lookup_levels
from flooding.methods import objective
from flooding.methods.objective import safe_divisor
from flooding.torch_losses import Loss, example_weight, unreduced
from flooding.training.checks import first_loss
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed
from flooding.training.run import Run
from flooding.training.state import TrainingState

__all__ = [
    "BatchIndex",
    "BatchResult",
    "Inputs",
    "Outputs",
    "backward",
    "batch_indices",
    "count_targets",
    "is_any_flooded",
    "plan_batches",
    "raw_criterion",
    "raw_loss",
    "take_batch",
    "take_copy",
]

Outputs: TypeAlias = Any  # whatever the model gives and the loss takes
# The rows of a batch.
BatchIndex: TypeAlias = slice | Tensor


class BatchResult(NamedTuple):
    """What one forward and backward pass computed; the gradients are in place.

    Args:
        output: Output of the model.
        loss: Raw loss, 0-d or one per example; with a teacher what is compared with its loss.
        level: The level in force, or None.
        mean: Mean of the raw loss.
        value: The objective.
        weight: Weight of each loss in torch's mean, or None.
    """

    output: Outputs
    loss: Tensor
    level: float | Tensor | None
    mean: Tensor
    value: Tensor
    weight: Tensor | None


def batch_indices(run: Run, split: Split, epoch: int) -> list[BatchIndex]:
    """Index every batch of an epoch, in an order that depends on the seed and the epoch alone.

    Args:
        run: The Run.
        split: Its training split.
        epoch: The epoch, from 1.

    Returns:
        An index for each batch; a single slice where one batch holds all examples.
    """
    size = run.problem.batch_size
    if len(split) <= size:
        return [slice(None)]
    generator = torch.Generator().manual_seed(derive_seed(run.seed, "order", epoch))
    order = torch.randperm(len(split), generator=generator)
    return list(order.to(split.y.device).split(size))


def count_targets(
    problem: Problem, split: Split, indices: Sequence[BatchIndex], *, has_ignored: bool
) -> list[float]:
    """Count what the mean loss of each batch divides by.

    Args:
        problem: The Problem.
        split: The split.
        indices: Index of each batch.
        has_ignored: Whether the loss ignores some of the targets.

    Returns:
        The number of examples of each batch, or of its targets that count.
    """
    if has_ignored:
        mask = problem.target_mask(split.y)
        return torch.stack([mask[index].sum() for index in indices]).double().tolist()
    examples = range(len(split))
    counts = []
    for index in indices:
        if isinstance(index, slice):
            counts.append(float(len(examples[index])))
        else:
            counts.append(float(len(index)))
    return counts


def plan_batches(
    run: Run, state: TrainingState, split: Split, epoch: int
) -> tuple[list[BatchIndex], list[float]]:
    """Give the index of each batch that is trained on, and its number of targets that count.

    Args:
        run: The Run.
        state: Its state.
        split: Its training split.
        epoch: The epoch, from 1.

    Returns:
        Indices and numbers. A batch without a target that counts is left out.
    """
    every_index = batch_indices(run, split, epoch)
    every_count = count_targets(run.problem, split, every_index, has_ignored=state.has_ignored)
    indices, counts = [], []
    for index, count in zip(every_index, every_count, strict=True):
        if count:  # torch's mean of nothing is NaN
            indices.append(index)
            counts.append(count)
    return indices, counts


def is_any_flooded(batch: BatchResult) -> bool:
    """Tell whether a loss of a batch lies below its level; waits for the device."""
    return bool(is_flooded(batch.loss, batch.level).any())


def take_copy(t: Tensor, index: BatchIndex) -> Tensor:
    """Take examples as a copy: a model or loss may work in place, and the data are the caller's.

    Args:
        t: A tensor ``[examples, ...]``.
        index: Which examples.

    Returns:
        A new tensor.
    """
    # Only a slice gives a view.
    if isinstance(index, slice):
        return t[index].clone()
    return t[index]


def take_batch(problem: Problem, split: Split, index: BatchIndex) -> tuple[Inputs, Tensor]:
    """Take the inputs and targets of a training batch.

    Args:
        problem: The Problem, whose augmentation is applied.
        split: The training split.
        index: Which examples.

    Returns:
        Inputs and targets, as copies.
    """
    x = map_tensors(lambda t: take_copy(t, index), split.x)
    y = take_copy(split.y, index)
    if problem.augment is not None:
        x = problem.augment(x)
    return x, y


def raw_criterion(run: Run) -> Loss:
    """Give the loss that the Run's method takes: the mean, or one per example.

    Args:
        run: The Run.

    Returns:
        A callable ``(outputs, targets) -> raw loss``.
    """
    if run.method.reduction == "none":
        return unreduced(run.problem.loss)
    return run.problem.loss


def raw_loss(
    run: Run, state: TrainingState, criterion: Loss, x: Inputs, y: Tensor
) -> tuple[Outputs, Tensor, Tensor | None]:
    """Compute the output and raw loss of a batch.

    Args:
        run: The Run.
        state: Its state.
        criterion: As :func:`raw_criterion` gives it.
        x: Inputs.
        y: Targets.

    Returns:
        The output, the raw loss before any class weight, and the weight of each loss in torch's
        mean or None.
    """
    output = state.model(x)
    if state.is_checked:
        loss = criterion(output, y)
    else:
        loss = first_loss(criterion, output, y, reduction=run.method.reduction)
        state.is_checked = True
    # A method with a teacher averages the losses itself, so it gets those that count.
    if state.teacher is not None:
        return output, _drop_ignored(run.problem, state, loss, y), None
    weight = None
    if run.method.reduction == "none":
        weight = example_weight(criterion, y, loss)
    # The level acts on the loss before its class weight.
    if weight is not None:
        loss = loss / safe_divisor(weight)
    return output, loss, weight


def _drop_ignored(problem: Problem, state: TrainingState, losses: Tensor, y: Tensor) -> Tensor:
    """Leave out the losses of ignored targets."""
    if state.has_ignored and losses.shape == y.shape:
        return losses[problem.target_mask(y)]
    return losses


def _batch_level(
    run: Run,
    state: TrainingState,
    criterion: Loss,
    batch: tuple[Inputs, Tensor, Tensor | None],
    weight: Tensor | None,
) -> float | Tensor | None:
    """Give the level in force for a batch of inputs, targets and ids."""
    x, y, ids = batch
    if state.teacher is not None:
        return _drop_ignored(run.problem, state, criterion(state.teacher(x), y), y)
    if state.controller is not None:
        return state.controller["level"]
    if state.table is None:
        assert run.level is None or isinstance(run.level, (float, Tensor))
        return run.level
    levels = lookup_levels(state.table, y, ids, weight)
    if run.method.reduction == "mean":
        return levels.mean()
    return levels


def backward(
    run: Run,
    state: TrainingState,
    criterion: Loss,
    x: Inputs,
    y: Tensor,
    ids: Tensor | None,
) -> BatchResult:
    """Put the gradients of one batch in place.

    Args:
        run: The Run.
        state: Its state.
        criterion: As :func:`raw_criterion` gives it.
        x: Inputs.
        y: Targets.
        ids: Ids of the examples, where the level is looked up.

    Returns:
        What was computed on the way.

    Raises:
        ValueError: If the loss has no gradient.
    """
    method, optimizer = run.method, state.optimizer

    # 1. The raw loss and its level. A level per example broadcasts over several losses each.
    output, loss, weight = raw_loss(run, state, criterion, x, y)
    level = _batch_level(run, state, criterion, (x, y, ids), weight)
    if isinstance(level, Tensor) and 0 < level.ndim < loss.ndim:
        level = level.reshape(level.shape + (1,) * (loss.ndim - level.ndim))

    # 2. The objective. Where the method's gradient is the raw one times a slope, the raw loss is
    # enough, unless the optimiser reads the value itself.
    slope = None
    if method.has_slope and level is not None and not state.needs_closure:
        slope = method.slope(loss, level)
        value = objective(loss, None, method, weight)
    else:
        # The rows of the epochs before are in the curves, the state before training first.
        value = None
        if level is not None:
            epoch = len(state.curves)
            value = method.objective_from_outputs(output, y, loss, level, epoch)
        if value is None:
            value = objective(loss, level, method, weight)
    penalty = method.penalty(loss, state.parameters)
    if penalty is not None:
        value = value + penalty
    if not value.requires_grad:
        raise ValueError(
            "the loss must have a gradient, got a constant. Compute it from the outputs, in torch."
        )

    # 3. The gradients, clipped after flooding.
    optimizer.zero_grad()
    value.backward(slope)
    if run.problem.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(state.parameters, run.problem.max_grad_norm)

    # 4. What the loop records.
    loss = loss.detach()
    mean = objective(loss, None, method, weight)
    if level is not None:
        loss, level = method.comparison(loss, level)
    return BatchResult(output, loss, level, mean, value.detach(), weight)
