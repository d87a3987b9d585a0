"""The contract test of a method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flooding.methods import Method, objective
from flooding.methods.base import check_method as check_type
from flooding.testing.rules import copy_twice, require

__all__ = ["check_method"]

_LEVEL = 0.3
# Above, at and below the level: first one example at a time, then all in a batch.
_BATCHES = ([0.9], [0.3], [0.05], [2.0, 0.4, 0.3, 0.1])


def check_method(method: Method) -> None:
    """Check that a method keeps the protocol of :class:`flooding.methods.Method`.

    Its objective is computed for losses above, at and below a level. Checked are: that it is a
    method, whose copies by ``deepcopy`` and ``pickle`` act alike; that the objective is finite, has
    a graph and gives the same bits again; that the method changes no argument; that a level of
    ``-inf`` ("no level yet") leaves the loss and its gradient as they are; with ``shares_prefix``
    that the gradient above the level is exactly that of the loss; with ``has_slope`` that ``slope``
    is the factor of the gradient.

    Args:
        method: The method to check.

    Raises:
        TypeError: If it is no method.
        ValueError: If its ``reduction`` is unknown.
        AssertionError: If any other rule is broken; the message names it.

    Example:
        >>> from flooding.methods import Flooding
        >>> check_method(Flooding())
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    check_type(method)
    copies = copy_twice(method, "method")
    level = torch.tensor(_LEVEL)
    for losses in _BATCHES:
        loss = torch.tensor(losses)
        if method.reduction == "mean":
            loss = loss.mean()
        raw_gradient = torch.full_like(loss, 1 / max(loss.numel(), 1))
        value, gradient = _objective_and_gradient(method, loss, level)
        require(bool(value.isfinite()), f"the objective must be finite, got {value} for {losses}.")
        for other in (method, *copies):
            other_value, other_gradient = _objective_and_gradient(other, loss, level)
            same = torch.equal(other_value, value) and torch.equal(other_gradient, gradient)
            require(same, "a method and its copies must give the same bits again.")
        _check_without_level(method, loss, raw_gradient)
        if method.shares_prefix and bool((loss > level).all()):
            rule = "with shares_prefix the gradient above the level must be that of the loss"
            require(torch.equal(gradient, raw_gradient), f"{rule}, got {gradient}.")
        if method.has_slope:
            slope = method.slope(loss, level)
            factor = torch.ones(()) if slope is None else slope
            rule = "slope must be the factor of the gradient"
            require(torch.equal(factor, gradient), f"{rule}, got {factor} for {gradient}.")


def _check_without_level(method: Method, loss: Tensor, raw_gradient: Tensor) -> None:
    """Check that a controller which has no level yet leaves plain training."""
    value, gradient = _objective_and_gradient(method, loss, torch.tensor(-math.inf))
    is_plain = torch.equal(value, loss.mean()) and torch.equal(gradient, raw_gradient)
    rule = "a level of -inf must leave the loss and its gradient as they are"
    require(is_plain, f"{rule}, got {value} and {gradient} for {loss}. Use torch.where.")


def _objective_and_gradient(method: Method, loss: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the objective and its gradient."""
    if method.level_source == "teacher":  # whose losses have the shape of the model's
        level = level.expand_as(loss)
    raw = loss.clone().requires_grad_()
    value = objective(raw, level, method)
    require(value.requires_grad, "a method must keep the graph of the loss. Do not detach it.")
    value.backward()
    require(torch.equal(raw.detach(), loss), "a method must not change the loss it is given.")
    assert raw.grad is not None
    return value.detach(), raw.grad
