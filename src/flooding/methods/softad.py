"""SoftAD: smooth flooding of each example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flooding.functional import SIGMA_MIN, soft_flood
from flooding.methods.base import Method, Reduction, floodable

__all__ = ["SoftAD"]


@dataclass(frozen=True)
class SoftAD(Method):
    """Flood each example smoothly: ``eta * t + sigma^2 * rho((l_i - t) / sigma)``.

    Here ``rho(x) = sqrt(1 + x^2) - 1``. Each example's gradient is weighted by
    ``sigma * x / sqrt(1 + x^2)`` with ``x = (l_i - t) / sigma``: below 1 in size for
    ``sigma <= 1``, near 0 at the level. A non-finite loss and a level of -inf pass through with
    slope 1.

    Args:
        sigma: Width of the smooth region in the unit of the loss, at least ``SIGMA_MIN``.
        eta: Weight of the level in the value; the gradient does not depend on it.

    Raises:
        ValueError: If ``sigma`` or ``eta`` is not finite, or ``sigma`` lies below ``SIGMA_MIN``.

    Example:
        >>> losses = torch.tensor([0.1, 1.1], requires_grad=True)
        >>> SoftAD()(losses, 0.1).sum().backward()
        >>> losses.grad
        tensor([0.0000, 0.7071])

    References:
        Holland & Nakatani, *SoftAD*, NeurIPS 2024, arXiv 2310.10006.
    """

    sigma: float = 1.0
    eta: float = 1.0
    reduction: ClassVar[Reduction] = "none"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= SIGMA_MIN):
            raise ValueError(
                f"sigma must be finite and at least {SIGMA_MIN:g}, got {self.sigma}. IFlood() is "
                "the limit."
            )
        if not math.isfinite(self.eta):
            raise ValueError(f"eta must be finite, got {self.eta}. 1 is the source's value.")

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood each loss smoothly.

        Args:
            loss: Raw losses ``[batch, ...]``.
            level: A number, or a tensor that broadcasts against ``loss``.

        Returns:
            Flooded losses of the shape of ``loss``.
        """
        mask = floodable(loss, level) & (loss < math.inf)
        # Mask before the formula too: its derivative at infinity is NaN, and 0 * NaN is NaN.
        if isinstance(level, Tensor):
            level = level.masked_fill(level == -math.inf, 0.0)
        soft = soft_flood(loss.masked_fill(~mask, 0.0), level, self.sigma, self.eta)
        return torch.where(mask, soft, loss)
