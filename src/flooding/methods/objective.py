"""The objective that the training loop and criteria differentiate."""

from __future__ import annotations

import math

from torch import Tensor

from flooding.functional import is_flooded
from flooding.methods.base import Method
from flooding.methods.flooding import Flooding

__all__ = ["flooded_fraction", "objective"]


def _mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.mean() if losses.dim() else losses
    # Mask first: a NaN loss of an ignored example would survive a product with 0.
    valid = losses.masked_fill(weight == 0, 0.0)
    return (valid * weight).sum() / safe_divisor(weight.sum())


def safe_divisor(x: Tensor) -> Tensor:
    """Replace 0 by 1, to divide what is 0 there anyway.

    Args:
        x: A divisor of any shape.

    Returns:
        A tensor of the same shape without zeros.
    """
    return x.masked_fill(x == 0, 1.0)


def objective(
    loss: Tensor,
    level: float | Tensor | None,
    method: Method = Flooding(),
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the scalar to call ``backward()`` on: the method's value, averaged by weight.

    Without a level this is the plain mean, for a scalar loss the very same tensor. A level tensor
    of -inf ("no level yet") and a non-finite raw loss pass through unflooded, without a host sync.
    A NaN level makes the result NaN. If every weight is 0 the result is 0 with a zero gradient,
    where torch's own mean is NaN.

    Args:
        loss: Raw loss as ``method.reduction`` asks: 0-d for "mean", ``[batch, ...]`` for "none".
        level: Level in the unit of ``loss``: a number, a tensor that broadcasts against ``loss``,
            or None.
        method: What to make of the two.
        weight: Weight or mask of each loss, of the shape of ``loss``, for methods that keep one
            value per loss. Ignored examples weigh 0.

    Returns:
        A scalar; in float32 for half-precision losses that are flooded.

    Raises:
        ValueError: If the raw loss is not the one the method needs, or ``weight`` does not fit.

    Example:
        >>> import torch
        >>> from flooding.methods import IFlood
        >>> losses = torch.tensor([0.0, 1.0, 5.0])
        >>> objective(losses, 0.5, IFlood(), weight=torch.tensor([1.0, 1.0, 0.0]))
        tensor(1.)
        >>> objective(losses.mean(), 0.5), objective(losses, None)
        (tensor(2.), tensor(2.))
    """
    if weight is not None and weight.shape != loss.shape:
        raise ValueError(
            f"weight must have the shape of the loss, {tuple(loss.shape)}, got "
            f"{tuple(weight.shape)}. Give one weight for each loss."
        )
    if level is None:
        return _mean(loss, weight)
    if not has_reduction(loss, method):
        raise ValueError(reduction_error(method, f"got shape {tuple(loss.shape)}"))
    flooded = method(loss, level)
    if weight is not None and flooded.shape != loss.shape:
        raise ValueError(
            f"{type(method).__name__} averages inside, so it takes no weight. Leave the weights "
            "out."
        )
    return _mean(flooded, weight)


def has_reduction(loss: Tensor, method: Method) -> bool:
    """Tell whether a raw loss has the reduction that a method needs.

    Args:
        loss: A raw loss.
        method: The method.

    Returns:
        Whether the loss is 0-d exactly if the method takes the batch mean.
    """
    return (method.reduction == "mean") == (loss.dim() == 0)


def reduction_error(method: Method, got: str) -> str:
    """Write the error for a raw loss of another reduction than the method needs.

    Args:
        method: The method.
        got: What there is instead, beginning with "got".

    Returns:
        Rule, value and fix.
    """
    what = "the scalar batch mean" if method.reduction == "mean" else "one raw loss per example"
    fix = f"Build the criterion with reduction={method.reduction!r}."
    return f"{type(method).__name__} needs {what}, {got}. {fix}"


def is_below_level(loss: Tensor, level: float | Tensor | None) -> Tensor:
    """Mark the losses that are flooded: strictly below their level, and not -inf.

    Args:
        loss: Raw loss of any shape.
        level: Level in the unit of ``loss``; None floods nothing.

    Returns:
        A mask of the broadcast shape. A loss of -inf passes through the methods unflooded.
    """
    return is_flooded(loss, level) & (loss > -math.inf)


def flooded_fraction(
    loss: Tensor, level: float | Tensor | None, weight: Tensor | None = None
) -> Tensor:
    """Compute the share of the losses that lie strictly below their level.

    Args:
        loss: Raw loss, 0-d (then the share is 0 or 1) or ``[batch, ...]``.
        level: Level in the unit of ``loss``; None floods nothing.
        weight: Weight or mask of the shape of ``loss``; losses of weight 0 are not counted.

    Returns:
        A 0-d float32 tensor in [0, 1], on the device of ``loss``; 0 where nothing is counted.

    Example:
        >>> import torch
        >>> flooded_fraction(torch.tensor([0.0, 0.1, 0.3, 0.4]), 0.1)
        tensor(0.2500)
    """
    below = is_below_level(loss, level)
    if weight is None:
        return below.float().mean()
    return (below & (weight != 0)).sum() / weight.count_nonzero().clamp_min(1)
