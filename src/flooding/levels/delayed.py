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
    """Train plainly until the training set is fitted, then flood at one level: "backward" flooding.

    The condition is looked at after every epoch and flooding begins with the next one, so the loss
    rises to the level from below. Exactly one of the two published conditions is given.
    ``until_loss`` looks at the *last* batch of the epoch, as the source's code does; a loop without
    epochs decides whenever it calls ``update(state, Seen())``. Accuracies closer than 1e-6 count as
    equal, so a rounded mean of 0.99999994 is 1. NaN never begins.

    Args:
        level: Level once flooding has begun, in the unit of the loss.
        until_loss: Begin when the loss of an epoch's last batch is at most this; 1e-4 in the
            source's code.
        until_accuracy: Begin when an epoch's training accuracy is at least this, in (0, 1]; 1.0,
            zero training error, in the source's text.

    Raises:
        TypeError: If an argument is not a number, or an epoch is shown without the accuracy that is
            waited for.
        ValueError: If a number is out of range, or not exactly one condition is given.

    Example:
        >>> steps = [StepInfo(torch.tensor(5e-5)), StepInfo(train_accuracy=0.5), StepInfo(torch.tensor(1e-6))]
        >>> [state["level"].item() for state in simulate(Delayed(0.25, until_loss=1e-4), steps)]
        [-inf, -inf, 0.25, 0.25]
    """

    level: float
    until_loss: float | None = None
    until_accuracy: float | None = None

    def __post_init__(self) -> None:
        convert_to_floats(self, "level")
        require_finite(self, "level")
        given = [
            name for name in ("until_loss", "until_accuracy") if getattr(self, name) is not None
        ]
        rule = "exactly one of until_loss and until_accuracy must be given"
        require(
            len(given) == 1,
            rule,
            " and ".join(given) or None,
            "Use until_loss=1e-4 or until_accuracy=1.0.",
        )
        convert_to_floats(self, *given)
        require_finite(self, *given)
        if self.until_accuracy is not None:
            rule = "until_accuracy must lie in (0, 1]"
            require(
                0 < self.until_accuracy <= 1, rule, self.until_accuracy, "Give a share, not points."
            )

    def init(self) -> State:
        """Give ``-inf``, and room for the loss of the last batch."""
        return initial_state(-math.inf, last_loss=torch.tensor(math.inf, dtype=torch.float32))

    def update(self, state: State, seen: StepInfo) -> State:
        """Note the loss of a step; after an epoch, begin if the condition holds."""
        if seen.loss is not None:
            # A copy: the loss may live in a buffer that the next step writes over.
            return state | {"last_loss": to_level_dtype(seen.loss, state["level"]).clone()}
        if self.until_accuracy is not None:
            fitted = (
                required_metric(self, seen, "train_accuracy", state["level"])
                >= self.until_accuracy - ACCURACY_TOLERANCE
            )
        else:
            assert self.until_loss is not None  # exactly one is given
            fitted = state["last_loss"] <= self.until_loss
        begins = fitted & ~state["started"]
        return state | {
            "level": torch.where(begins, self.level, state["level"]),
            "started": state["started"] | begins,
        }
