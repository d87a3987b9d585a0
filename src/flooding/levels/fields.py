"""Checks of the fields of a controller."""

from __future__ import annotations

import math
import operator
from typing import Any


def require(holds: bool, rule: str, value: Any, fix: str) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value}. {fix}")


def require_finite(controller: Any, *names: str) -> None:
    for name in names:
        value = getattr(controller, name)
        require(
            math.isfinite(value),
            f"{name} must be finite",
            value,
            "Did it come from an empty record?",
        )


def require_level_in_range(controller: Any) -> None:
    low, level, high = controller.low, controller.level, controller.high
    require(
        controller.step_size > 0,
        "step_size must be above 0",
        controller.step_size,
        "Use Constant or Delayed to stand still.",
    )
    rule = f"level must lie in [low, high] = [{low}, {high}]"
    require(low <= level <= high, rule, level, "Change the level or the clip.")


def convert_to_floats(controller: Any, *names: str) -> None:
    """Make fields plain floats, so that 0, 0.0 and a NumPy 0 give one key.

    Raises:
        TypeError: If a field is not one number.
    """
    for name in names:
        value = getattr(controller, name)
        if not hasattr(value, "__float__") or getattr(value, "ndim", 0) != 0:
            raise TypeError(
                f"{name} must be one number, got {value!r}. A level with axes belongs in the loss."
            )
        object.__setattr__(controller, name, float(value))
        require(
            not math.isnan(float(value)),
            f"{name} must not be NaN",
            value,
            "Did it come from an empty record?",
        )


def convert_to_counts(controller: Any, *names: str) -> None:
    """Make fields plain positive ints.

    Raises:
        TypeError: If a field is not a whole number.
    """
    for name in names:
        value = getattr(controller, name)
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number, got {value!r}. Round it first.")
        object.__setattr__(controller, name, operator.index(value))
        require(
            operator.index(value) >= 1,
            f"{name} must be at least 1",
            value,
            "Count optimiser steps or epochs.",
        )
