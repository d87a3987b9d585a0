"""A level that begins when the training set is fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flooding.levels.base import State, StepInfo
from flooding.levels.fields import convert_to_floats, require, require_finite
from flooding.levels.state import ACCURACY_TOLERANCE, initial_state, required_metric, to_level_dtype

__all__ = ["Delayed"]


@dataclass(frozen=True)
class Delayed:
    """Train plainly until the training set is fitted, then flood at one level.

    This is "backward" flooding. The condition is checked after every epoch and flooding begins with
    the next one, so the loss rises to the level from below. Exactly one of the two published
    conditions is given. ``until_loss`` compares the loss of the *last* batch of the epoch, as the
    source's code does; a loop without epochs decides whenever it calls
    ``update(state, StepInfo())``. Accuracies closer than 1e-6 count as equal, so a rounded mean of
    0.99999994 is 1. A NaN never starts flooding.

    Args:
        level: Level once flooding has begun, in the unit of the loss.
        until_loss: Begin when the loss of an epoch's last batch is at most this; 1e-4 in the
            source's code.
        until_accuracy: Begin when an epoch's training accuracy is at least this, in (0, 1]; 1.0,
            zero training error, in the source's text.

    Raises:
        TypeError: If an argument is not a number, or an epoch comes without the training accuracy
            that ``until_accuracy`` needs.
        ValueError: If a number is out of range, or not exactly one condition is given.

    Example:
        >>> from flooding.levels import simulate
        >>> first, second = StepInfo(torch.tensor(5e-5)), StepInfo(torch.tensor(1e-6))
        >>> infos = [first, StepInfo(train_accuracy=0.5), second]
        >>> [state["level"].item() for state in simulate(Delayed(0.25, until_loss=1e-4), infos)]
        [-inf, -inf, 0.25, 0.25]
    """

    level: float
    until_loss: float | None = None
    until_accuracy: float | None = None

    def __post_init__(self) -> None:
        convert_to_floats(self, "level")
        require_finite(self, "level")
        conditions = []
        for name in ("until_loss", "until_accuracy"):
            if getattr(self, name) is not None:
                conditions.append(name)
        rule = "exactly one of until_loss and until_accuracy must be given"
        fix = "Use until_loss=1e-4 or until_accuracy=1.0."
        require(len(conditions) == 1, rule, " and ".join(conditions) or None, fix)
        convert_to_floats(self, *conditions)
        require_finite(self, *conditions)
        accuracy = self.until_accuracy
        if accuracy is not None:
            rule = "until_accuracy must lie in (0, 1]"
            require(0 < accuracy <= 1, rule, accuracy, "Give a share, not points.")

    def init(self) -> State:
        """Give the level ``-inf`` and an infinite loss of the last batch."""
        return initial_state(-math.inf, last_loss=torch.tensor(math.inf, dtype=torch.float32))

    def update(self, state: State, info: StepInfo) -> State:
        """Store the loss of a step; after an epoch, start flooding if the condition holds."""
        if info.loss is not None:
            # A copy: the loss may live in a buffer that the next step writes over.
            return state | {"last_loss": to_level_dtype(info.loss, state["level"]).clone()}
        if self.until_accuracy is not None:
            accuracy = required_metric(self, info, "train_accuracy", state["level"])
            fitted = accuracy >= self.until_accuracy - ACCURACY_TOLERANCE
        else:
            assert self.until_loss is not None  # exactly one is given
            fitted = state["last_loss"] <= self.until_loss
        starts = fitted & ~state["started"]
        return state | {
            "level": torch.where(starts, self.level, state["level"]),
            "started": state["started"] | starts,
        }
