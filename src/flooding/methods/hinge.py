"""The hinge: stop at the level instead of ascending below it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flooding.methods.base import floodable

__all__ = ["Hinge"]


@dataclass(frozen=True)
class Hinge:
    """Stop at the level instead of turning back: ``max(L, b)``, the control for "is ascent
    needed?".

    The slope is 1 above the level, 0 at and below it; the rest is as in :class:`Flooding`.

    Example:
        >>> loss = torch.tensor(0.05, requires_grad=True)
        >>> Hinge()(loss, 0.1)
        tensor(0.1000, grad_fn=<WhereBackward0>)
    """

    reduction: ClassVar[Literal["mean", "none"]] = "mean"

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Hold a scalar loss at its level.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            The larger of the two, 0-d.
        """
        wide = loss.float() if loss.dtype.itemsize < 4 else loss
        # relu and not maximum: that one splits a tie's slope in halves and needs a tensor.
        return torch.where(floodable(loss, level), torch.relu(wide - level) + level, loss)
