"""The watched losses of an open optimiser step, summed on their device."""

from __future__ import annotations

import torch
from torch import Tensor

from flooding.step.gradients import to_float32

__all__ = ["LossSums"]


class LossSums:
    """Sum ``c * loss``, ``c`` and the number of NaN losses over the backward passes of a step.

    A backward pass is known by the number of its graph task. Its losses count when it ends: a pass
    that fails counts for nothing.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None  # of the passes that have ended, shape (3,)
        self._open: dict[int, Tensor] = {}  # of those that have not, by their task
        self._nan_loss = torch.tensor([0.0, 0.0, 1.0])  # what a NaN loss adds
        self._zero = torch.tensor(0.0)

    @property
    def is_empty(self) -> bool:
        """Whether no pass with a watched loss has ended."""
        return self._total is None

    def is_open(self, task: int) -> bool:
        """Tell whether a pass has a watched loss already.

        Args:
            task: The pass.

        Returns:
            Whether it has.
        """
        return task in self._open

    def add(self, task: int, loss: Tensor, gradient: Tensor) -> None:
        """Add a loss whose gradient the backward pass has just computed.

        Args:
            task: The pass.
            loss: The raw loss, 0-d.
            gradient: Its gradient, the factor ``c`` of this loss in the step.
        """
        factor = to_float32(gradient)
        product = factor * loss
        if self._nan_loss.device != loss.device or self._nan_loss.dtype != product.dtype:
            self._nan_loss = torch.tensor([0, 0, 1]).to(product)
            self._zero = torch.zeros_like(product)
        terms = torch.stack([product, factor, self._zero])
        terms = torch.where(product.isnan(), self._nan_loss, terms)
        if task in self._open:
            terms = self._open[task] + terms
        self._open[task] = terms

    def end_pass(self, task: int) -> bool:
        """Count the losses of a pass that has ended.

        Args:
            task: The pass.

        Returns:
            Whether it had a watched loss that still counts.
        """
        terms = self._open.pop(task, None)
        if terms is None:
            return False
        self._total = terms if self._total is None else self._total + terms
        return True

    def total(self) -> Tensor | None:
        """Give the sums of the step so far.

        Returns:
            A tensor of shape (3,), or None without a watched loss.
        """
        if self._total is None and self._open:
            # Compiled autograd calls nothing when a pass ends.
            self._total = torch.stack(list(self._open.values())).sum(0)
        self._open.clear()
        return self._total

    def zero_unless(self, condition: Tensor) -> None:
        """Set the sums to 0 where a condition is false, without a look at it.

        Args:
            condition: A 0-d bool tensor on the device of the losses.
        """
        if self._total is not None:
            zeros = torch.zeros_like(self._total)
            self._total = torch.where(condition, self._total, zeros)

    def clear(self) -> None:
        """Forget the open step."""
        self._total = None
        self._open.clear()
