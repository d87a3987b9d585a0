"""A constant level."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from flooding.levels.base import Controller, State, StepInfo
from flooding.levels.fields import convert_to_floats, require
from flooding.levels.state import initial_state

__all__ = ["Constant", "as_controller"]


@dataclass(frozen=True)
class Constant:
    """Keep one level for ever.

    Args:
        level: Level in the unit of the loss; ``-inf`` floods nothing, negative levels are right for
            densities.

    Raises:
        TypeError: If the level is not a number.
        ValueError: If the level is NaN or ``inf``.

    Example:
        >>> Constant(0.25).init()["level"]
        tensor(0.2500)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    level: float

    def __post_init__(self) -> None:
        convert_to_floats(self, "level")
        rule = "level must be finite or -inf"
        require(self.level < math.inf, rule, self.level, "Use -inf for no flooding.")

    def init(self) -> State:
        """Give the level."""
        return initial_state(self.level)

    def update(self, state: State, info: StepInfo) -> State:  # ruff: ignore[unused-method-argument]
        """Change nothing."""
        return dict(state)


def as_controller(level: float | Tensor | Controller | None) -> Controller:
    """Turn a level into a controller.

    Args:
        level: A controller, which is returned as it is; a number, or a tensor or array of one
            number without axes, in the unit of the loss; or None for no flooding, which becomes
            ``Constant(-inf)``.

    Returns:
        A controller.

    Example:
        >>> as_controller(0.25), as_controller(None)
        (Constant(level=0.25), Constant(level=-inf))
    """
    if isinstance(level, Controller):
        return level
    # Constant converts a 0-d tensor or array to a float itself.
    return Constant(-math.inf if level is None else level)  # type: ignore[arg-type]
