"""Levels for frameworks whose training step is not torch: numbers, and controllers on the host.

Nothing here imports torch before a controller is used, since an adapter must not cost more than its
framework.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from flooding.levels import Controller, StepInfo

__all__ = ["HostController", "check_metrics", "is_controller", "level_number"]


def is_controller(level: object) -> TypeGuard[Controller]:
    """Tell whether a level is a controller, without an import of torch.

    Args:
        level: What a user passes as a level.

    Returns:
        Whether it has the two methods of a controller.
    """
    if isinstance(level, type):
        return False
    return callable(getattr(level, "init", None)) and callable(getattr(level, "update", None))


def level_number(level: object, alternatives: str) -> float:
    """Convert a level to a float.

    Args:
        level: A real number, an array or tensor without axes, or None.
        alternatives: What else the caller takes, for the error, such as "a controller or None".

    Returns:
        The level; ``-inf`` for None.

    Raises:
        TypeError: If it is something else.
        ValueError: If it has axes, is NaN or ``inf``.

    Example:
        >>> level_number(1, "None"), level_number(None, "None")
        (1.0, -inf)
    """
    if level is None:
        return -math.inf
    if getattr(level, "ndim", 0):
        shape = tuple(getattr(level, "shape", ()))
        raise ValueError(f"the level must have no axes, got shape {shape}. Use one level a step.")
    is_array = hasattr(level, "dtype") and hasattr(level, "__float__")
    if isinstance(level, (bool, type)) or not (isinstance(level, Real) or is_array):
        kind = level.__name__ if isinstance(level, type) else type(level).__name__
        raise TypeError(f"the level must be a number, {alternatives}, got {kind}. Convert it.")
    number = float(level)  # type: ignore[arg-type]
    if not number < math.inf:
        raise ValueError(f"the level must be finite, got {number}. Use None for no flooding.")
    return number


def check_metrics(controller: Controller, available: Collection[str], fix: str) -> bool:
    """Check before the first step that a controller will get the metrics that it needs.

    A controller is a pure function, so it can be shown the end of an epoch that never was.

    Args:
        controller: The controller.
        available: Names of fields of :class:`flooding.levels.StepInfo` that every epoch will have.
        fix: How a user of the framework adds a metric, for the error.

    Returns:
        Whether the controller needs a metric of the validation data.

    Raises:
        TypeError: If it needs a metric that is not available.
    """
    from flooding.levels import StepInfo

    state = controller.init()
    try:
        controller.update(state, StepInfo(None, **dict.fromkeys(available, 0.5)))
    except TypeError as error:
        rule = str(error).partition(". ")[0]  # without the advice for a loop of one's own
        raise TypeError(f"{rule}. {fix}") from error
    training_only = {name for name in available if name.startswith("train_")}
    try:
        controller.update(state, StepInfo(None, **dict.fromkeys(training_only, 0.5)))
    except TypeError:
        return True
    return False


class HostController:
    """A controller and its state, in tensors on the CPU.

    Args:
        controller: The controller.

    Example:
        >>> from flooding.levels import StepInfo, Warmup
        >>> host = HostController(Warmup(1.0, steps=4))
        >>> host.update_step(2.5), host.level
        (None, 0.25)
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.state = controller.init()

    @property
    def level(self) -> float:
        """The level in force; ``-inf`` while nothing is flooded."""
        return float(self.state["level"])

    def update_step(self, loss: float) -> None:
        """Show the controller a step.

        Args:
            loss: Raw loss of the step.
        """
        import torch

        from flooding.levels import StepInfo

        self.update(StepInfo(torch.tensor(loss, dtype=torch.float32)))

    def update(self, info: StepInfo) -> None:
        """Show the controller what happened.

        Args:
            info: A step or the end of an epoch.
        """
        self.state = self.controller.update(self.state, info)

    def to_config(self) -> dict[str, object] | None:
        """Describe the controller and its state by plain values, to be saved as JSON.

        Returns:
            The description; None for a controller that is not one of ``flooding.levels``, since a
            file must not name code to run.
        """
        import flooding.levels

        name = type(self.controller).__name__
        is_known = getattr(flooding.levels, name, None) is type(self.controller)
        if not is_known or not is_dataclass(self.controller):
            return None
        values = {}
        for field in fields(self.controller):
            values[field.name] = getattr(self.controller, field.name)
        state = {key: tensor.tolist() for key, tensor in self.state.items()}
        return {"controller": name, "fields": values, "state": state}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> HostController:
        """Build what :meth:`to_config` described.

        Args:
            config: The description.

        Returns:
            The controller in its state.

        Raises:
            ValueError: If it names no controller of ``flooding.levels``.
        """
        import torch

        import flooding.levels

        name = config["controller"]
        kind = None
        if name in flooding.levels.__all__:
            kind = getattr(flooding.levels, str(name))
        if not is_dataclass(kind):
            raise ValueError(
                f"the file names no controller of flooding.levels, got {name!r}. Compile the model "
                "again with flood_level=."
            )
        host = cls(kind(**config["fields"]))  # type: ignore[arg-type]
        for key, value in config["state"].items():  # type: ignore[attr-defined]
            host.state[key] = torch.tensor(value, dtype=host.state[key].dtype)
        return host
