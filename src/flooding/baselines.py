"""Baselines of the same shape as the methods, so that comparisons are fair: SAM and the gradient penalty.

The others are fields of a Problem: label smoothing is a loss, weight decay an optimiser's, dropout a model's, and early
stopping is every Record's ``best``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flooding.losses import Flooding

__all__ = ["SAM", "GradientPenalty"]


@dataclass(frozen=True)
class GradientPenalty:
    """Add the squared gradient norm: ``L + (strength / 2) * |grad L|^2``, second order.

    One flooding step down and one up is, to third order in the step size h, a descent on ``(h^2 / 2) |grad L|^2``: this
    is that without the walk. The penalty is never flooded; with a level the loss is.

    Args:
        strength: Weight of the penalty, at least 0. The unit is the weights' squared over the loss's.

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
    reduction: ClassVar[Literal["mean", "none"]] = "mean"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"strength must be finite and at least 0, got {self.strength}. 0.01 is a start.")

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood the loss itself, as :class:`flooding.losses.Flooding` does."""
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
        return 0.5 * self.strength * torch.stack([g.square().sum() for g in gradients if g is not None]).sum()


@dataclass(frozen=True)
class SAM:
    """Sharpness-aware minimisation: take the gradient at ``w + rho * g / |g|``. Two passes a step.

    pytorch-optimizer's implementation around the problem's own optimiser. With a level, both passes are flooded.
    Batch norm sees every batch twice.

    Args:
        rho: Radius of the neighbourhood in weight space, above 0.

    Raises:
        ValueError: If ``rho`` is not finite and above 0.

    References:
        Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR 2021.
    """

    rho: float = 0.05
    reduction: ClassVar[Literal["mean", "none"]] = "mean"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"rho must be finite and above 0, got {self.rho}. The source uses 0.05.")

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood the loss, as :class:`flooding.losses.Flooding` does."""
        return Flooding()(loss, level)

    def wrap(
        self, optimizer: Callable[..., torch.optim.Optimizer], parameters: Iterable[Tensor]
    ) -> torch.optim.Optimizer:
        """Put SAM around an optimiser.

        Args:
            optimizer: The base, ``(parameters) -> Optimizer``.
            parameters: What it trains.

        Returns:
            An optimiser whose ``step`` wants gradients in place and a closure that computes them anew.

        Raises:
            ImportError: If pytorch-optimizer is missing.
        """
        try:
            from pytorch_optimizer import SAM as Sharpness  # ruff: ignore[constant-imported-as-non-constant]
        except ImportError as error:
            raise ImportError("SAM needs pytorch-optimizer: pip install 'flooding[sam]'") from error
        return Sharpness(parameters, base_optimizer=optimizer, rho=self.rho)  # type: ignore[arg-type]
