"""The state of a controller: a dictionary of tensors, and how it moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flooding.levels.base import Controller, State, StepInfo
from flooding.levels.fields import MovingLevel

__all__ = [
    "ACCURACY_TOLERANCE",
    "check_shapes",
    "initial_state",
    "ramp_level",
    "required_metric",
    "shift_level",
    "to_level_dtype",
]

# Float32 shares carry errors near 1e-7 and one example of n is worth 1/n: closer than this, two
# accuracies are equal.
ACCURACY_TOLERANCE = 1e-6


def initial_state(level: float, **entries: Tensor) -> State:
    """Build the first state of a controller; flooding has begun unless the level is -inf.

    Args:
        level: Level before the first step.
        **entries: Further tensors of the state, by name.

    Returns:
        The state.
    """
    return {
        "level": torch.tensor(level, dtype=torch.float32),
        "started": torch.tensor(level > -math.inf),
    } | entries


def to_level_dtype(value: Tensor | float, level: Tensor) -> Tensor:
    """Bring a number or tensor to the dtype and device of the level, without its graph.

    Args:
        value: A number or tensor.
        level: The level in a state.

    Returns:
        A tensor.
    """
    return torch.as_tensor(value, dtype=level.dtype, device=level.device).detach()


def check_shapes(state: State, own: State) -> None:
    """Refuse a saved state whose tensors have other shapes.

    Args:
        state: The state that is to be loaded.
        own: The state in its place, with the same names.

    Raises:
        ValueError: If a shape differs.
    """
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{name} in the state must have shape {tuple(tensor.shape)}, got "
                f"{tuple(state[name].shape)}. Build it with the same controller, for as many "
                "epochs."
            )


def required_metric(controller: Controller, info: StepInfo, name: str, level: Tensor) -> Tensor:
    """Read a metric that must be there at the end of an epoch.

    Args:
        controller: The controller, for the error.
        info: What the epoch measured.
        name: Name of the metric.
        level: The level in the state.

    Returns:
        The metric, of the dtype and on the device of the level.

    Raises:
        TypeError: If it is missing.
    """
    value = getattr(info, name)
    if value is None:
        kind = type(controller).__name__
        raise TypeError(
            f"{kind} needs {name} after every epoch, got None. Pass {name}=... to on_epoch_end, or "
            f"StepInfo({name}=...) to update."
        )
    return to_level_dtype(value, level)


def ramp_level(
    state: State, info: StepInfo, start: float, stop: float, steps: int, num_steps: int
) -> State:
    """Count a step and place the level between ``start`` and ``stop``.

    Args:
        state: The state, with a counter ``step``.
        info: What happened; the end of an epoch changes nothing.
        start: Level at step 0.
        stop: Level from step ``steps`` on.
        steps: Optimiser steps of the ramp.
        num_steps: Number of equal moves in it; the level is rounded down to one of them.

    Returns:
        The new state.
    """
    if info.loss is None:
        return dict(state)
    step = (state["step"] + 1).clamp(max=steps)
    # Integer division rounds down to one of `num_steps` equal moves.
    share = (step * num_steps // steps).to(state["level"].dtype) / num_steps
    # Weighted, not start + (stop - start) * share: exact at both ends.
    return state | {"level": start * (1 - share) + stop * share, "step": step}


def shift_level(level: Tensor, up: Tensor, down: Tensor, controller: MovingLevel) -> Tensor:
    """Move a level up or down by ``step_size`` and clamp it to [low, high].

    Args:
        level: The level.
        up: Whether to raise it.
        down: Whether to lower it.
        controller: The controller, with ``step_size``, ``low`` and ``high``.

    Returns:
        The new level; the old one, -inf included, where neither is true.
    """
    target = torch.where(up, level + controller.step_size, level - controller.step_size)
    target = target.clamp(controller.low, controller.high)
    return torch.where(up | down, target, level)
