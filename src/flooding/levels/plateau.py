"""A level that follows the validation loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from flooding.levels.base import State, StepInfo
from flooding.levels.fields import (
    convert_to_counts,
    convert_to_floats,
    require,
    require_finite,
    require_level_in_range,
)
from flooding.levels.state import initial_state, required_metric, shift_level

__all__ = ["Plateau"]


@dataclass(frozen=True)
class Plateau:
    """Raise the level when the validation loss climbs, lower it when that stops improving.

    After every epoch, with v the validation loss and m the lowest so far, this epoch included: if
    v > threshold * m, then b <- b + step_size; else, if m has not improved for ``patience`` epochs,
    b <- b - step_size and the count of epochs restarts. b is clamped to [low, high]. Where m is
    negative, v > m / threshold raises b; the ratio means little for losses around 0, and ``low``
    and ``high`` need other values. A NaN loss counts as an epoch without improvement. Flooding is
    on from the first step.

    Args:
        level: Level b at the start, in the unit of the loss, usually from a grid; within [low,
            high].
        patience: Epochs without improvement before the level is lowered, at least 1.
        step_size: Step of the level, in the unit of the loss, above 0.
        threshold: Ratio of validation loss to its lowest value beyond which the level rises, at
            least 1.
        low: Lowest level.
        high: Highest level.

    Raises:
        TypeError: If an argument is not a number, or an epoch comes without a validation loss.
        ValueError: If a number is out of range.

    Example:
        >>> from flooding.levels import simulate
        >>> infos = [StepInfo(val_loss=1.0), StepInfo(val_loss=1.2), StepInfo(val_loss=1.1)]
        >>> [round(state["level"].item(), 2) for state in simulate(Plateau(0.1), infos)]
        [0.1, 0.1, 0.15, 0.15]
    """

    level: float
    patience: int = 8
    step_size: float = 0.05
    threshold: float = 1.15
    low: float = 0.0
    high: float = 0.4
    # Part of the key of a Run: revision 1 compared losses below 0 the wrong way round.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        convert_to_floats(self, "level", "step_size", "threshold", "low", "high")
        require_finite(self, "level", "step_size", "threshold", "low", "high")
        convert_to_counts(self, "patience")
        rule = "threshold must be at least 1"
        require(self.threshold >= 1, rule, self.threshold, "Give a ratio, such as 1.15.")
        require_level_in_range(self)

    def init(self) -> State:
        """Give the level, no lowest loss yet, and a count of 0 epochs."""
        return initial_state(
            self.level,
            lowest=torch.tensor(math.inf, dtype=torch.float32),
            num_bad_epochs=torch.tensor(0),
        )

    def update(self, state: State, info: StepInfo) -> State:
        """Move the level after an epoch; a step changes nothing."""
        if info.loss is not None:
            return dict(state)
        loss = required_metric(self, info, "val_loss", state["level"])
        # Not torch.minimum: it would let one NaN stay for ever.
        improves = loss < state["lowest"]
        lowest = torch.where(improves, loss, state["lowest"])
        num_bad_epochs = torch.where(improves, 0, state["num_bad_epochs"] + 1)
        # The second bound is the larger one for negative losses.
        bound = torch.maximum(self.threshold * lowest, lowest / self.threshold)
        climbs = loss > bound
        stalls = ~climbs & (num_bad_epochs >= self.patience)
        return state | {
            "level": shift_level(state["level"], climbs, stalls, self),
            "lowest": lowest,
            "num_bad_epochs": torch.where(stalls, 0, num_bad_epochs),
        }
