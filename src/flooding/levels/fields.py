"""Checks of the fields of a controller."""

from __future__ import annotations

import math
import operator
from typing import Protocol

__all__ = [
    "MovingLevel",
    "convert_to_counts",
    "convert_to_floats",
    "require",
    "require_finite",
    "require_level_in_range",
]


class MovingLevel(Protocol):
    """A controller that moves its level by ``step_size`` within [low, high]."""

    @property
    def level(self) -> float:
        """Level at the beginning."""
        ...

    @property
    def step_size(self) -> float:
        """Distance of one move, in the unit of the loss."""
        ...

    @property
    def low(self) -> float:
        """Lowest level."""
        ...

    @property
    def high(self) -> float:
        """Highest level."""
        ...


def require(condition: bool, rule: str, value: object, fix: str) -> None:
    """Check a condition on a value.

    Args:
        condition: Whether the value is right.
        rule: The rule, for the error.
        value: The value.
        fix: What to do, for the error.

    Raises:
        ValueError: If the condition is false.
    """
    if not condition:
        raise ValueError(f"{rule}, got {value}. {fix}")


def require_finite(controller: object, *names: str) -> None:
    """Check that fields are finite numbers.

    Args:
        controller: The controller.
        *names: Names of its fields.
    """
    for name in names:
        value = getattr(controller, name)
        rule = f"{name} must be finite"
        require(math.isfinite(value), rule, value, "Did it come from an empty record?")


def require_level_in_range(controller: MovingLevel) -> None:
    """Check that the level can move and begins within its range.

    Args:
        controller: The controller.
    """
    low, level, high = controller.low, controller.level, controller.high
    rule = "step_size must be above 0"
    fix = "Use Constant or Delayed to stand still."
    require(controller.step_size > 0, rule, controller.step_size, fix)
    rule = f"level must lie in [low, high] = [{low}, {high}]"
    require(low <= level <= high, rule, level, "Change the level, low or high.")


def convert_to_floats(controller: object, *names: str) -> None:
    """Make fields plain floats, so that 0, 0.0 and a NumPy 0 give one key.

    Args:
        controller: The controller, a frozen dataclass.
        *names: Names of its fields.

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
        rule = f"{name} must not be NaN"
        require(not math.isnan(float(value)), rule, value, "Did it come from an empty record?")


def convert_to_counts(controller: object, *names: str) -> None:
    """Make fields plain positive ints.

    Args:
        controller: The controller, a frozen dataclass.
        *names: Names of its fields.

    Raises:
        TypeError: If a field is not a whole number.
    """
    for name in names:
        value = getattr(controller, name)
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number, got {value!r}. Round it first.")
        count = operator.index(value)
        object.__setattr__(controller, name, count)
        rule = f"{name} must be at least 1"
        require(count >= 1, rule, value, "Count optimiser steps or epochs.")
