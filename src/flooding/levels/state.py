"""The state of a controller: a dictionary of tensors, and how it moves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flooding.levels.base import Controller, State, StepInfo

# Float32 shares carry errors near 1e-7 and one example of n is worth 1/n: closer than this, two
# accuracies are equal.
ACCURACY_TOLERANCE = 1e-6


def initial_state(level: float, **entries: Tensor) -> State:
    """Build the first state of a controller; flooding has begun unless the level is -inf."""
    return {
        "level": torch.tensor(level, dtype=torch.float32),
        "started": torch.tensor(level > -math.inf),
    } | entries


def to_level_dtype(value: Tensor | float, level: Tensor) -> Tensor:
    """Bring a number or tensor to the dtype and device of the level, without its graph."""
    return torch.as_tensor(value, dtype=level.dtype, device=level.device).detach()


def required_metric(controller: Controller, seen: StepInfo, name: str, level: Tensor) -> Tensor:
    """Read an entry that must be there at the end of an epoch.

    Returns:
        The entry, like the level.

    Raises:
        TypeError: If it is missing.
    """
    value = getattr(seen, name)
    if value is None:
        kind = type(controller).__name__
        raise TypeError(
            f"{kind} needs {name} after every epoch, got None. Pass Seen({name}=...) to update."
        )
    return to_level_dtype(value, level)


def ramp_level(
    state: State, seen: StepInfo, start: float, stop: float, steps: int, num_steps: int
) -> State:
    """Count a step and place the level between start and stop, rounded down to a stair."""
    if seen.loss is None:
        return dict(state)
    step = (state["step"] + 1).clamp(max=steps)
    share = (step * num_steps // steps).to(state["level"].dtype) / num_steps
    # Weighted, not start + (stop - start) * share: exact at both ends.
    return state | {"level": start * (1 - share) + stop * share, "step": step}


def shift_level(level: Tensor, up: Tensor, down: Tensor, controller: Any) -> Tensor:
    """Move a level up or down by one step within its clip; leave it alone, -inf included, where
    neither is true.
    """
    moved = torch.where(up, level + controller.step_size, level - controller.step_size).clamp(
        controller.low, controller.high
    )
    return torch.where(up | down, moved, level)
