"""A penalty on the norm of the gradient, a baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flooding.methods.base import Method
from flooding.methods.flooding import Flooding

__all__ = ["GradientPenalty"]


@dataclass(frozen=True)
class GradientPenalty(Method):
    """Add the squared gradient norm: ``L + (strength / 2) * |grad L|^2``, second order.

    One flooding step down and one up is, to third order in the step size h, a descent on
    ``(h^2 / 2) |grad L|^2``. This method takes that descent directly. The penalty is never flooded;
    with a level the loss is.

    Args:
        strength: Weight of the penalty, at least 0. The unit is the weights' squared over the
            loss's.

    Raises:
        ValueError: If ``strength`` is not finite or negative.

    Example:
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> GradientPenalty(0.1).penalty(w**2, [w])
        tensor(1.8000, grad_fn=<MulBackward0>)

    References:
        Drucker & Le Cun, *Improving generalization performance using double backpropagation*, 1992.
    """

    strength: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(
                f"strength must be finite and at least 0, got {self.strength}. 0.01 is a start."
            )

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood the loss itself, as :class:`flooding.methods.flooding.Flooding` does."""
        return Flooding()(loss, level)

    def penalty(self, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Compute the term to add.

        Args:
            loss: The raw scalar loss, its graph intact.
            parameters: What it is differentiated by; those it does not depend on count as 0.

        Returns:
            A scalar with a graph.
        """
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
        return 0.5 * self.strength * torch.stack(squares).sum()
