"""A level that rises, or falls, linearly over the first steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flooding.levels.base import State, StepInfo
from flooding.levels.fields import convert_to_counts, convert_to_floats, require, require_finite
from flooding.levels.state import initial_state, ramp_level

__all__ = ["Warmup"]


@dataclass(frozen=True)
class Warmup:
    """Raise the level from ``start`` to ``level`` over the first steps of the training.

    At step k, counted from 0, the level is ``start + (level - start) * r`` with
    ``r = min(k / steps, 1)``, rounded down to a multiple of ``1 / num_steps``. ``num_steps=1``
    keeps ``start`` for ``steps`` steps and then jumps. The level is exactly ``start`` at step 0 and
    exactly ``level`` from step ``steps`` on. A ``start`` above the level lowers it.

    Args:
        level: Level at the end, in the unit of the loss.
        steps: Optimiser steps until the level is reached, at least 1.
        start: Level at step 0; with a loss that is never negative, 0 floods nothing.
        num_steps: Number of equal rises, from 1 to ``steps``; None rises at every step.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If a level is not finite, or ``steps`` or ``num_steps`` is out of range.

    Example:
        >>> from flooding.levels import simulate
        >>> steps = [StepInfo(torch.tensor(1.0))] * 4
        >>> [state["level"].item() for state in simulate(Warmup(1.0, steps=4), steps)]
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> [state["level"].item() for state in simulate(Warmup(1.0, steps=4, num_steps=2), steps)]
        [0.0, 0.0, 0.5, 0.5, 1.0]
    """

    level: float
    steps: int
    start: float = 0.0
    num_steps: int | None = None

    def __post_init__(self) -> None:
        convert_to_floats(self, "level", "start")
        require_finite(self, "level", "start")
        convert_to_counts(self, "steps")
        if self.num_steps is not None:
            convert_to_counts(self, "num_steps")
            rule = f"num_steps must not exceed steps = {self.steps}"
            fix = "Leave it out to rise at every step."
            require(self.num_steps <= self.steps, rule, self.num_steps, fix)

    def init(self) -> State:
        """Give ``start`` and a counter of steps."""
        return initial_state(self.start, step=torch.tensor(0))

    def update(self, state: State, info: StepInfo) -> State:
        """Count a step; the end of an epoch changes nothing."""
        num_steps = self.num_steps or self.steps
        return ramp_level(state, info, self.start, self.level, self.steps, num_steps)
