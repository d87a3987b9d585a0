"""Find optimisers without a ``FloodStep`` that update parameters by a watched loss's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flooding.step.gradients import graph_leaves

__all__ = ["ForeignParameters"]

# Attribute of a gradient that the backward of a watched loss has left on a foreign parameter.
_MARK = "_flood_step_mark"


class ForeignParameters:
    """Parameters of other optimisers that a watched loss reaches.

    Args:
        loss: The watched loss.
        own: The parameters of the flooded optimiser.
    """

    def __init__(self, loss: Tensor, own: Sequence[Tensor]) -> None:
        own_ids = set(map(id, own))
        self._parameters = [leaf for leaf in graph_leaves(loss) if id(leaf) not in own_ids]
        self._token = object()

    def __bool__(self) -> bool:
        return bool(self._parameters)

    def mark_gradients(self) -> None:
        """Mark the gradients that the watched loss has just left."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                setattr(parameter.grad, _MARK, self._token)

    def count_updated(self, optimizer: torch.optim.Optimizer, own: Sequence[Tensor]) -> int:
        """Count the parameters that an optimiser is about to update by a marked gradient.

        A GAN's second optimiser owns parameters that the loss reaches, but clears their gradients.

        Args:
            optimizer: The other optimiser.
            own: The parameters of the flooded optimiser, which do not count.

        Returns:
            Number of tensors.
        """
        own_ids = set(map(id, own))
        count = 0
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                is_marked = getattr(parameter.grad, _MARK, None) is self._token
                count += is_marked and id(parameter) not in own_ids
        return count
