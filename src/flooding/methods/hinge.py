"""The hinge: stop at the level instead of ascending below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flooding.methods.base import Method, floodable

__all__ = ["Hinge"]


@dataclass(frozen=True)
class Hinge(Method):
    """Stop at the level instead of ascending: ``max(L, b)``.

    This is the control for the question whether the ascent is needed. The slope is 1 above the
    level, 0 at and below it; the edges are those of :class:`Flooding`.

    Example:
        >>> loss = torch.tensor(0.05, requires_grad=True)
        >>> Hinge()(loss, 0.1)
        tensor(0.1000, grad_fn=<WhereBackward0>)
    """

    shares_prefix: ClassVar[bool] = True

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Hold a scalar loss at its level.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            The larger of the two, 0-d.
        """
        single = loss.float() if loss.dtype.itemsize < 4 else loss
        # relu and not maximum, which halves the slope at a tie and needs a tensor for the level.
        return torch.where(floodable(loss, level), torch.relu(single - level) + level, loss)
