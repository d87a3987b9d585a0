"""A loss with a level for each class, in the form of ``Trainer``'s ``compute_loss_func``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flooding.levels import PerClass
from flooding.methods import IFlood

__all__ = ["ClassLevelLoss"]

_IGNORED = -100  # what transformers labels a place that has no label


class ClassLevelLoss:
    """Flood each example's cross-entropy at the level of its class, ``|l_i - b[y_i]| + b[y_i]``.

    The sum over the examples is divided by the number of labels of the whole step, so micro-batches
    and ranks add up to the mean over the step. Without gradient it is the plain mean.

    Args:
        levels: The levels, on the device of the labels.
    """

    def __init__(self, levels: PerClass) -> None:
        self.levels = levels
        self._sums: Tensor | None = None  # of raw, flooded, number below the level, number

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the share of a micro-batch in the loss of the step.

        Args:
            outputs: What the model returns: a dictionary with ``logits`` ``[..., classes]``, or a
                tuple that begins with them.
            labels: Classes ``[...]``; -100 has no loss.
            num_items_in_batch: Number of labels of the whole step; None is that of ``labels``.

        Returns:
            The share, a scalar.

        Raises:
            ValueError: If the shapes are no classification.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if labels is None or logits.shape[:-1] != labels.shape or labels.is_floating_point():
            shape = None if labels is None else tuple(labels.shape)
            raise ValueError(
                "Levels per class need integer labels of the shape of the logits without their "
                f"last axis, got labels {shape} and logits {tuple(logits.shape)}. Use one level."
            )
        # 1. The losses of the places that have a label.
        is_labelled = labels != _IGNORED
        logits, labels = logits[is_labelled], labels[is_labelled]
        losses = functional.cross_entropy(logits, labels, reduction="none")
        divisor = len(labels) if num_items_in_batch is None else num_items_in_batch
        if not losses.requires_grad:
            return losses.sum() / divisor

        # 2. Each is flooded by itself.
        levels = self.levels.lookup(labels).to(losses.dtype)
        flooded = IFlood()(losses, levels)
        with torch.no_grad():
            is_below = (losses < levels).to(losses.dtype)
            terms = torch.stack([losses, flooded, is_below, torch.ones_like(losses)]).sum(1)
            self._sums = terms if self._sums is None else self._sums + terms
        return flooded.sum() / divisor

    def logs(self) -> dict[str, float]:
        """Give the means over the examples since the last call.

        Returns:
            Raw loss, flooded loss and the share of the examples below their level; nothing before
            the first example.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            return {}
        raw, flooded, below, count = sums.tolist()
        if not count:
            return {}
        return {
            "raw_loss": raw / count,
            "flooded_loss": flooded / count,
            "flooded_fraction": below / count,
        }
