"""RelaxLoss: flooding in every other epoch, flattened targets in the epochs between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flooding.functional import flood
from flooding.methods.base import Method, floodable

__all__ = ["RelaxLoss"]


@dataclass(frozen=True)
class RelaxLoss(Method):
    """Flood in even epochs; in odd ones flatten the targets below the level.

    With L the batch mean and b the level, an even epoch floods, ``|L - b| + b``. An odd epoch
    descends on L where L lies at or above b. Below b each example that is classified correctly gets
    a soft target: the probability p that the network gives to its class, and
    ``(1 - p) / (classes - 1)`` for each other class. That leaves its own class alone and makes the
    others alike; wrongly classified examples keep their label. Epochs count from 1. With two
    classes a soft target is the prediction itself, so that correct examples have no gradient.

    Without a training loop, where there are no epochs, it is flooding.

    Example:
        >>> outputs = torch.tensor([[2.0, 0.0, -2.0]], requires_grad=True)
        >>> target, method = torch.tensor([0]), RelaxLoss()
        >>> loss = torch.nn.functional.cross_entropy(outputs, target)
        >>> method.objective_from_outputs(outputs, target, loss, 0.5, 1).backward()
        >>> (100 * outputs.grad).round()
        tensor([[ 0.,  5., -5.]])

    References:
        Chen, Yu & Fritz, *RelaxLoss: Defending Membership Inference Attacks without Losing
        Utility*, ICLR 2022, algorithm 1. Its purpose is privacy.
    """

    shares_prefix: ClassVar[bool] = True

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood a scalar loss, as in an even epoch.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            The flooded loss, 0-d.
        """
        single = loss.float() if loss.dtype.itemsize < 4 else loss
        return torch.where(floodable(loss, level), flood(single, level), loss)

    def objective_from_outputs(
        self, outputs: Tensor, targets: Tensor, loss: Tensor, level: float | Tensor, epoch: int
    ) -> Tensor:
        """Compute the objective of a step.

        Args:
            outputs: Logits ``[batch, classes]``, two classes at least.
            targets: Labels ``[batch]``.
            loss: Batch mean of the cross-entropy, 0-d, with its graph.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.
            epoch: The epoch, from 1.

        Returns:
            The objective, 0-d.

        Raises:
            ValueError: If the outputs are not logits of classes, or the targets no labels.
        """
        if epoch % 2 == 0:
            return self(loss, level)
        if outputs.dim() != 2 or outputs.shape[1] < 2 or targets.shape != outputs.shape[:1]:
            raise ValueError(
                "RelaxLoss needs logits [batch, classes] of two classes at least and labels "
                f"[batch], got {list(outputs.shape)} and {list(targets.shape)}. Train a classifier "
                "with cross-entropy, or use Flooding()."
            )
        relaxed = _flattened_loss(outputs, targets)
        is_below = (loss < level) & floodable(loss, level)
        return torch.where(is_below, relaxed.to(loss.dtype), loss)


def _flattened_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the batch mean of the cross-entropy with flattened targets."""
    log_probabilities = outputs.float().log_softmax(1)
    one_hot = torch.nn.functional.one_hot(targets, outputs.shape[1]).to(log_probabilities.dtype)
    # The targets are constants: the gradient is that of the cross-entropy alone.
    own = (log_probabilities.detach().exp() * one_hot).sum(1, keepdim=True)
    soft = own * one_hot + (1 - own) / (outputs.shape[1] - 1) * (1 - one_hot)
    is_correct = outputs.argmax(1, keepdim=True) == targets[:, None]
    goal = torch.where(is_correct, soft, one_hot)
    return -(goal * log_probabilities).sum(1).mean()
