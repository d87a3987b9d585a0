"""A level that falls over a whole training, for the range test."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flooding.levels.base import State, StepInfo
from flooding.levels.fields import convert_to_counts, convert_to_floats, require, require_finite
from flooding.levels.state import initial_state, ramp_level

__all__ = ["Range"]


@dataclass(frozen=True)
class Range:
    """Lower the level evenly from ``start`` to ``stop``: the range test.

    One training visits every level. At step k, counted from 0, the level is
    ``start + (stop - start) * min(k / steps, 1)``. Flooding holds the loss near the level, so the
    validation curves of this run, drawn against the level, show which level is good.

    Args:
        start: Level at step 0 in the unit of the loss, about ln C for C balanced classes.
        stop: Level from step ``steps`` on; below ``start``.
        steps: Optimiser steps of the fall, at least 1; usually all of the training.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If a level is not finite, ``stop`` is not below ``start``, or ``steps`` is below
            1.

    Example:
        >>> from flooding.levels import simulate
        >>> steps = [StepInfo(torch.tensor(1.0))] * 2
        >>> [state["level"].item() for state in simulate(Range(0.5, 0.0, steps=2), steps)]
        [0.5, 0.25, 0.0]
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        convert_to_floats(self, "start", "stop")
        require_finite(self, "start", "stop")
        convert_to_counts(self, "steps")
        rule = f"stop must lie below start = {self.start}"
        require(self.stop < self.start, rule, self.stop, "Use Warmup to rise.")

    def init(self) -> State:
        """Give ``start`` and a counter of steps."""
        return initial_state(self.start, step=torch.tensor(0))

    def update(self, state: State, info: StepInfo) -> State:
        """Count a step; the end of an epoch changes nothing."""
        return ramp_level(state, info, self.start, self.stop, self.steps, num_steps=self.steps)
