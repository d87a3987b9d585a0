"""The protocol of a method."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Protocol

from torch import Tensor

__all__ = ["Method"]


class Method(Protocol):
    """What a method is: which raw loss it needs, and the objective it makes of that loss and a
    level.
    """

    reduction: ClassVar[Literal["mean", "none"]]

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Return the objective before its final mean."""
        ...


def floodable(loss: Tensor, level: float | Tensor) -> Tensor:
    # Where a loss can be flooded: it is neither NaN nor -inf, and its level is not the -inf of "no
    # level yet". A NaN level counts as known, so that it poisons the objective: a missing level
    # must never go unnoticed.
    known = loss > -math.inf
    return known & (level != -math.inf) if isinstance(level, Tensor) else known
