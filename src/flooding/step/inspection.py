"""Find optimisers without a ``FloodStep`` that update parameters by a watched loss's gradient."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from flooding.step import messages
from flooding.step.attached import others
from flooding.step.gradients import graph_leaves

if TYPE_CHECKING:
    from flooding.step.flood_step import FloodStep

__all__ = ["ForeignParameters", "Inspection"]

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


class Inspection:
    """Watch the other optimisers during the first steps of a ``FloodStep``.

    A global hook must keep neither the FloodStep nor the parameters alive, so both refer to each
    other weakly.

    Args:
        flood_step: The FloodStep.
    """

    def __init__(self, flood_step: FloodStep) -> None:
        self._flood_step = weakref.ref(flood_step)
        self._foreign: ForeignParameters | None = None  # None before the first loss
        self._is_active = True
        self._hook: RemovableHandle | None = None

    def start(self, loss: Tensor) -> None:
        """Look for foreign parameters, at the first loss.

        Args:
            loss: A watched loss.
        """
        if self._foreign is not None:
            return
        flood_step = self._flood_step()
        if flood_step is None:
            return
        self._foreign = ForeignParameters(loss, flood_step.parameters())
        if self._foreign:
            hook = partial(_before_any_step, weakref.ref(self))
            self._hook = register_optimizer_step_pre_hook(hook)

    def mark_gradients(self) -> None:
        """Mark the gradients that the watched loss has just left on foreign parameters."""
        if self._is_active and self._foreign:
            self._foreign.mark_gradients()

    def end(self) -> None:
        """Stop watching the other optimisers."""
        self._is_active = False
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn if an optimiser is about to use a watched loss's gradient.

        Args:
            optimizer: Any optimiser.
        """
        flood_step = self._flood_step()
        if flood_step is None or not self._is_active or not self._foreign:
            return
        if any(flooded.optimizer is optimizer for flooded in (flood_step, *others(flood_step))):
            return
        count = self._foreign.count_updated(optimizer, flood_step.parameters())
        if count:
            # The hook stays: torch is going through its hooks now.
            self._is_active = False
            name = type(optimizer).__name__
            flood_step._warn(messages.FOREIGN.format(count=count, name=name))


@torch._disable_dynamo
def _before_any_step(
    reference: weakref.ref[Inspection], optimizer: torch.optim.Optimizer, *_: object
) -> None:
    inspection = reference()
    if inspection is not None:
        inspection.before_step(optimizer)
