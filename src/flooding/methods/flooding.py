"""Flooding of the batch mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from flooding.functional import flood, is_flooded
from flooding.methods.base import floodable

__all__ = ["Flooding"]


@dataclass(frozen=True)
class Flooding:
    """Flood the batch mean: ``|L - b| + b``.

    The gradient is that of ``L`` times ``sign(L - b)``: bit for bit the plain one above the level,
    0 exactly at it. A NaN or infinite loss and a level tensor of -inf ("no level yet") pass through
    with slope 1. Half-precision losses are compared, and returned, in float32.

    Example:
        >>> loss = torch.tensor(0.05, requires_grad=True)
        >>> Flooding()(loss, 0.1).backward()
        >>> loss.grad
        tensor(-1.)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    reduction: ClassVar[Literal["mean", "none"]] = "mean"

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood a scalar loss.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            The flooded loss, 0-d.
        """
        return torch.where(floodable(loss, level), flood(loss, level), loss)

    @staticmethod
    @torch.no_grad()
    def slope(loss: Tensor, level: float | Tensor) -> Tensor | None:
        """Give what flooding multiplies the gradient of the raw loss by: ``loss.backward(slope)``
        is all it does.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            -1, 0 or 1, a tensor of the type of ``loss``; None is 1.
        """
        if isinstance(level, float) and loss.device.type == "cpu":  # there is no device to wait for
            value = loss.item()
            at = level if loss.dtype == torch.float64 else float(np.float32(level))
            sign = (value > at) - (value < at)
            return None if sign == 1 or not value > -math.inf else loss.new_full((), sign)
        sign = is_flooded(level, loss).to(loss.dtype) - is_flooded(loss, level).to(loss.dtype)
        return torch.where(floodable(loss, level), sign, 1.0)
