"""Flooding of the batch mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flooding.functional import flood, is_flooded
from flooding.methods.base import Method, floodable

__all__ = ["Flooding"]


@dataclass(frozen=True)
class Flooding(Method):
    """Flood the batch mean: ``|L - b| + b``.

    The gradient is that of ``L`` times ``sign(L - b)``: bit for bit the plain one above the level,
    exactly 0 at the level. A NaN or infinite loss and a level tensor of -inf ("no level yet") pass
    through with slope 1. Half-precision losses are compared, and returned, in float32.

    Example:
        >>> loss = torch.tensor(0.05, requires_grad=True)
        >>> Flooding()(loss, 0.1).backward()
        >>> loss.grad
        tensor(-1.)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    shares_prefix: ClassVar[bool] = True
    has_slope: ClassVar[bool] = True

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood a scalar loss.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            The flooded loss, 0-d.
        """
        return torch.where(floodable(loss, level), flood(loss, level), loss)

    @torch.no_grad()
    def slope(self, loss: Tensor, level: float | Tensor) -> Tensor | None:
        """Compute the factor of the gradient: ``loss.backward(slope)`` is all that flooding does.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            -1, 0 or 1, a tensor of the type of ``loss``; None is 1.
        """
        # Python numbers are faster than tensors, and on the CPU reading one waits for nothing.
        if isinstance(level, float) and loss.device.type == "cpu":
            value = loss.item()
            bound = level if loss.dtype == torch.float64 else float(np.float32(level))
            sign = (value > bound) - (value < bound)
            if sign == 1 or not value > -math.inf:
                return None
            return loss.new_full((), sign)
        above = is_flooded(level, loss).to(loss.dtype)
        below = is_flooded(loss, level).to(loss.dtype)
        return torch.where(floodable(loss, level), above - below, 1.0)
