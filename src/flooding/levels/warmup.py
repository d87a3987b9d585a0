"""A level that rises, or falls, linearly over the first steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flooding.levels.base import Seen, State
from flooding.levels.fields import convert_to_counts, convert_to_floats, require, require_finite
from flooding.levels.state import initial_state, ramp_level

__all__ = ["Warmup"]


@dataclass(frozen=True)
class Warmup:
    """Raise the level from ``start`` to ``level`` over the first steps, evenly or in stairs.

    At step k, counted from 0, the level is ``start + (level - start) * r`` with ``r = min(k / steps, 1)``, rounded
    down to a multiple of ``1 / stairs``. ``stairs=1`` keeps ``start`` for ``steps`` steps and then jumps. The level is
    exactly ``start`` at step 0 and exactly ``level`` from step ``steps`` on. A ``start`` above the level lowers it.

    Args:
        level: Level at the end, in the unit of the loss.
        steps: Optimiser steps until the level is reached, at least 1.
        start: Level at step 0; with a loss that is never negative, 0 floods nothing.
        stairs: Number of equal rises, from 1 to ``steps``; None rises at every step.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If a level is not finite, or ``steps`` or ``stairs`` is out of range.

    Example:
        >>> steps = [Seen(torch.tensor(1.0))] * 4
        >>> [state["level"].item() for state in fold(Warmup(1.0, steps=4), steps)]
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> [state["level"].item() for state in fold(Warmup(1.0, steps=4, stairs=2), steps)]
        [0.0, 0.0, 0.5, 0.5, 1.0]
    """

    level: float
    steps: int
    start: float = 0.0
    stairs: int | None = None

    def __post_init__(self) -> None:
        convert_to_floats(self, "level", "start")
        require_finite(self, "level", "start")
        convert_to_counts(self, "steps")
        if self.stairs is not None:
            convert_to_counts(self, "stairs")
            rule = f"stairs must not exceed steps = {self.steps}"
            require(self.stairs <= self.steps, rule, self.stairs, "Leave it out to rise at every step.")

    def init(self) -> State:
        """Give ``start`` and a counter of steps."""
        return initial_state(self.start, step=torch.tensor(0))

    def update(self, state: State, seen: Seen) -> State:
        """Count a step; the end of an epoch changes nothing."""
        return ramp_level(state, seen, self.start, self.level, self.steps, self.stairs or self.steps)
