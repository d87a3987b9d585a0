"""A level that follows the validation loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from flooding.levels.base import Seen, State
from flooding.levels.fields import convert_to_counts, convert_to_floats, require, require_finite, require_level_in_range
from flooding.levels.state import initial_state, required_metric, shift_level

__all__ = ["Plateau"]


@dataclass(frozen=True)
class Plateau:
    """Raise the level when the validation loss climbs, lower it when it stands still.

    After every epoch, with v the validation loss and m the lowest so far, this epoch included: v > worse * m gives
    b <- b + move; else, when m has stood for ``patience`` epochs, b <- b - move and the count of epochs begins anew.
    b is clipped to [low, high]. Where m is negative, v > m / worse raises b; the ratio means little for losses around
    0, and ``low`` and ``high`` need other values. A NaN loss counts as an epoch without improvement. Flooding is on
    from the first step.

    Args:
        level: Level b at the start, in the unit of the loss, as a rule from a grid; within [low, high].
        patience: Epochs without improvement before the level is lowered, at least 1.
        move: Step of the level, in the unit of the loss, above 0.
        worse: Ratio of validation loss to its lowest value beyond which the level rises, at least 1.
        low: Lowest level.
        high: Highest level.

    Raises:
        TypeError: If an argument is not a number, or an epoch is shown without a validation loss.
        ValueError: If a number is out of range.

    Example:
        >>> seens = [Seen(val_loss=1.0), Seen(val_loss=1.2), Seen(val_loss=1.1)]
        >>> [round(state["level"].item(), 2) for state in fold(Plateau(0.1), seens)]
        [0.1, 0.1, 0.15, 0.15]
    """

    level: float
    patience: int = 8
    move: float = 0.05
    worse: float = 1.15
    low: float = 0.0
    high: float = 0.4
    revision: ClassVar[int] = 2  # in the key of a Run: before, losses below 0 were compared the wrong way round

    def __post_init__(self) -> None:
        convert_to_floats(self, "level", "move", "worse", "low", "high")
        require_finite(self, "level", "move", "worse", "low", "high")
        convert_to_counts(self, "patience")
        require(self.worse >= 1, "worse must be at least 1", self.worse, "Give a ratio, such as 1.15.")
        require_level_in_range(self)

    def init(self) -> State:
        """Give the level, no lowest loss yet, and a count of 0 epochs."""
        return initial_state(self.level, lowest=torch.tensor(math.inf, dtype=torch.float32), waited=torch.tensor(0))

    def update(self, state: State, seen: Seen) -> State:
        """Move the level after an epoch; a step changes nothing."""
        if seen.loss is not None:
            return dict(state)
        loss = required_metric(self, seen, "val_loss", state["level"])
        # Not torch.minimum: it would let one NaN stay for ever.
        improves = loss < state["lowest"]
        lowest = torch.where(improves, loss, state["lowest"])
        waited = torch.where(improves, 0, state["waited"] + 1)
        climbs = loss > torch.maximum(self.worse * lowest, lowest / self.worse)  # the latter for negative losses
        stands = ~climbs & (waited >= self.patience)
        return state | {
            "level": shift_level(state["level"], climbs, stands, self),
            "lowest": lowest,
            "waited": torch.where(stands, 0, waited),
        }
