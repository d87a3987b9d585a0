"""One step of many runs: their losses, their slopes and the gradients of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from flooding.data import Inputs
from flooding.functional import is_flooded
from flooding.methods import Flooding, Method, objective
from flooding.methods.objective import safe_divisor
from flooding.torch_losses import example_weight
from flooding.training.batch import raw_criterion
from flooding.training.checks import first_loss
from flooding.training.fleet.metrics import stacked_loss
from flooding.training.fleet.model import StackedModel
from flooding.training.run import Run

__all__ = ["StackedStep", "StepResult"]


class StepResult(NamedTuple):
    """What one forward and backward pass of all runs computed; the gradients are in place.

    Args:
        output: Outputs of the models ``[runs, batch, ...]``.
        mean: Mean raw loss of each run.
        level: Level of each run, -inf where there is none.
        share: Share of each run's losses that lie below its level.
    """

    output: Any
    mean: Tensor
    level: Tensor
    share: Tensor


class StackedStep:
    """Computes the gradients of all runs in one backward pass.

    Each run's loss depends on its own weights alone, so the gradient of the sum of all objectives
    holds the gradient of each.

    Args:
        run: One of the Runs, for the loss and the method that they share.
        model: Their model.
    """

    def __init__(self, run: Run, model: StackedModel) -> None:
        self._model = model
        self._method = run.method
        self._criterion = raw_criterion(run)
        self._mean_loss = stacked_loss(run.problem.loss)
        self._is_checked = False

    def backward(
        self, x: Inputs, y: Tensor, level_of: Callable[[torch.dtype], Tensor]
    ) -> StepResult:
        """Put the gradients of one batch of each run in place.

        Args:
            x: Inputs ``[runs, batch, ...]``.
            y: Targets ``[runs, batch, ...]``.
            level_of: Gives the levels ``[runs]`` for the type of a loss.

        Returns:
            What was computed on the way.
        """
        output = self._model(x, training=True)
        if not self._is_checked:
            self._check(output, y)
        if type(self._method) is Flooding:
            return self._flood(output, y, level_of)
        return self._apply_method(output, y, level_of)

    def _check(self, output: Any, y: Tensor) -> None:
        """Check the loss on the first batch of the first run, as the single loop does."""
        self._is_checked = True
        if not isinstance(output, Tensor):
            raise ValueError(
                "a fleet needs outputs that are one tensor, got "
                f"{type(output).__name__}. Return a tensor from the model."
            )
        first_loss(self._criterion, output[0].detach(), y[0], reduction=self._method.reduction)

    def _flood(
        self, output: Tensor, y: Tensor, level_of: Callable[[torch.dtype], Tensor]
    ) -> StepResult:
        """Flood the mean losses: the gradient of each times its slope."""
        losses = self._mean_loss(output, y)
        means = losses.detach()
        levels = level_of(losses.dtype)
        losses.backward(self._method.slope(means, levels))
        return StepResult(output, means, levels, is_flooded(means, levels).float())

    def _apply_method(
        self, output: Tensor, y: Tensor, level_of: Callable[[torch.dtype], Tensor]
    ) -> StepResult:
        """Compute the objective of each run by the method itself."""
        method, criterion = self._method, self._criterion
        levels = level_of(output.dtype)
        compute = vmap(functools.partial(_objective, method, criterion))
        values, means, shares = compute(output, y, levels)
        values.sum().backward()
        return StepResult(output, means, levels, shares)


def _objective(
    method: Method, criterion: Any, output: Tensor, y: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the objective of one run, its mean raw loss and the share below the level."""
    loss = criterion(output, y)
    weight = None
    if method.reduction == "none":
        weight = example_weight(criterion, y, loss)
    if weight is not None:
        loss = loss / safe_divisor(weight)
    value = objective(loss, level, method, weight)
    loss = loss.detach()
    mean = objective(loss, None, method, weight)
    compared_loss, compared_level = method.comparison(loss, level)
    return value, mean, is_flooded(compared_loss, compared_level).float().mean()
