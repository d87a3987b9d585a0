"""iFlood: flooding of each example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flooding.functional import flood
from flooding.methods.base import Method, Reduction, floodable

__all__ = ["IFlood"]


@dataclass(frozen=True)
class IFlood(Method):
    """Flood each example: ``|l_i - b_i| + b_i``; with levels per example this is AdaFlood's loss.

    The edges are those of :class:`Flooding`, example by example.

    Example:
        >>> losses = torch.tensor([0.05, 0.3], requires_grad=True)
        >>> IFlood()(losses, 0.1).sum().backward()
        >>> losses.grad
        tensor([-1.,  1.])

    References:
        Xie et al., *iFlood*, ICLR 2022. Bae et al., *AdaFlood*, TMLR 2024, arXiv 2311.02891.
    """

    reduction: ClassVar[Reduction] = "none"

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood each loss.

        Args:
            loss: Raw losses ``[batch, ...]``.
            level: A number, or a tensor that broadcasts against ``loss``.

        Returns:
            Flooded losses of the shape of ``loss``.
        """
        return torch.where(floodable(loss, level), flood(loss, level), loss)
