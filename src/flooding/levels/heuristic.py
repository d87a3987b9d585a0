"""A level that follows the validation accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flooding.levels.base import State, StepInfo
from flooding.levels.delayed import Delayed
from flooding.levels.fields import (
    convert_to_floats,
    require,
    require_finite,
    require_level_in_range,
)
from flooding.levels.state import ACCURACY_TOLERANCE, required_metric, shift_level

__all__ = ["Heuristic"]


@dataclass(frozen=True)
class Heuristic(Delayed):
    """Train plainly until the training set is fitted, then follow the validation accuracy.

    Flooding begins as in :class:`Delayed`, with ``b = level`` and reference r = 0. After every
    later epoch, with v the validation accuracy in points: if v >= r + min_delta, then r <- v and
    b <- b + step_size; else if v < r - min_delta, then r <- v and b <- b - step_size. b is clamped
    to [low, high]. So the first flooded epoch always runs at ``level``, and the reference is the
    accuracy at the last change, not the best one. Differences closer than 1e-4 points count as
    equal. The defaults are those of the source's code; its text starts at ``level=0`` and clamps
    to [0, 0.5]. A NaN accuracy changes nothing.

    Args:
        level: Level b at which flooding begins, in the unit of the loss; within [low, high].
        until_loss: As in :class:`Delayed`.
        until_accuracy: As in :class:`Delayed`.
        min_delta: Difference in validation accuracy that counts, in points, at least 0; on 100
            validation examples the default means any change.
        step_size: Step of the level, in the unit of the loss, above 0.
        low: Lowest level.
        high: Highest level.

    Raises:
        TypeError: If an argument is not a number, or an epoch comes without the accuracies that
            are used.
        ValueError: If a number is out of range, or not exactly one condition is given.

    Example:
        >>> from flooding.levels import simulate
        >>> infos = [StepInfo(train_accuracy=1.0, val_accuracy=0.9)] * 2
        >>> states = simulate(Heuristic(until_accuracy=1.0), infos)
        >>> [round(state["level"].item(), 4) for state in states]
        [-inf, 0.0001, 0.0151]
    """

    level: float = 1e-4
    min_delta: float = 0.4
    step_size: float = 0.015
    low: float = 1e-4
    high: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        convert_to_floats(self, "min_delta", "step_size", "low", "high")
        require_finite(self, "min_delta", "step_size", "low", "high")
        rule = "min_delta must be at least 0"
        require(self.min_delta >= 0, rule, self.min_delta, "Give it in points, such as 0.4.")
        require_level_in_range(self)

    def init(self) -> State:
        """Give the level ``-inf`` and a reference of 0 points."""
        return super().init() | {"reference": torch.tensor(0.0, dtype=torch.float32)}

    def update(self, state: State, info: StepInfo) -> State:
        """Store the loss of a step; after an epoch, start flooding or move the level."""
        new = super().update(state, info)
        if info.loss is not None:
            return new
        points = 100 * required_metric(self, info, "val_accuracy", state["level"])
        gain = points - state["reference"] + 100 * ACCURACY_TOLERANCE
        # `started` from before this epoch: the last plain epoch was not flooded and moves nothing.
        rises = state["started"] & (gain >= self.min_delta)
        falls = state["started"] & (gain < -self.min_delta)
        return new | {
            "level": shift_level(new["level"], rises, falls, self),
            "reference": torch.where(rises | falls, points, state["reference"]),
        }
