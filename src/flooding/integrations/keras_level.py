"""The level of a Keras model, its variables, and what flooding makes of a loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from flooding.integrations import require_framework
from flooding.integrations.host_level import HostController, is_controller, level_number

try:
    with require_framework("keras"):
        import keras
except ModuleNotFoundError as error:
    if error.name not in {"tensorflow", "torch", "jax"}:
        raise
    raise ModuleNotFoundError(
        f"Keras is set to the back end {error.name}, which is not installed. Set the environment "
        "variable KERAS_BACKEND to torch or jax before the first import of Keras.",
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from flooding.levels import Controller

__all__ = ["ModelLevel"]

Tensor: TypeAlias = Any  # of the back end
ops: Any = keras.ops  # its types name the tensors of every back end at once
_KINDS = "a controller or None"


class ModelLevel:
    """The level of a compiled model, and the metrics that its training logs.

    It is a plain object in an attribute of the model: Keras would save and lock a metric there.

    Args:
        level: A number or a controller.
    """

    def __init__(self, level: float | Controller) -> None:
        self.host = HostController(level) if is_controller(level) else None
        number = level_number(level if self.host is None else self.host.level, _KINDS)
        self.raw_loss = keras.metrics.Mean(name="raw_loss")
        self.flooded_fraction = keras.metrics.Mean(name="flooded_fraction")
        self.variables = _LevelMetric(number)
        self.metrics = [self.raw_loss, self.flooded_fraction, self.variables]
        # Whether the controller waits for metrics of the validation data.
        self.needs_validation = False
        # Whether a train step has come by.
        self.was_traced = False

    def read(self) -> float:
        """Read the level in force.

        Returns:
            The level; ``-inf`` floods nothing.
        """
        return float(ops.convert_to_numpy(self.variables.level))

    def assign(self, level: float | Controller | None) -> None:
        """Change the level.

        Args:
            level: A number, a controller, which begins anew, or None.
        """
        if is_controller(level):
            self.assign_host(HostController(level))
        else:
            number = level_number(level, _KINDS)
            self.host = None
            self.variables.level.assign(number)

    def assign_host(self, host: HostController) -> None:
        """Change the controller.

        Args:
            host: A controller and its state.
        """
        self.host = host
        self.variables.level.assign(host.level)

    def flood(self, loss: Tensor) -> Tensor:
        """Flood the data loss of a batch, and measure.

        Args:
            loss: The raw loss, a scalar.

        Returns:
            The flooded loss.
        """
        self.was_traced = True
        level = ops.convert_to_tensor(self.variables.level)
        value = ops.cast(ops.stop_gradient(loss), level.dtype)
        self.variables.last_loss.assign(value)
        self.flooded_fraction.update_state(ops.cast(value < level, "float32"))
        # |L - b| + b = s * L + (b - s * b) with s the sign, whose slope is 0 at the level on every
        # back end; JAX gives abs the slope 1 there.
        slope = ops.sign(value - level)
        shift = level - slope * level
        # -inf is "no level yet". A level of NaN must not go unnoticed, so it stays.
        floodable = ops.logical_and(ops.isfinite(value), level != -math.inf)
        slope = ops.where(floodable, slope, ops.ones_like(slope))
        shift = ops.where(floodable, shift, ops.zeros_like(shift))
        return ops.cast(slope, loss.dtype) * loss + ops.cast(shift, loss.dtype)

    def end_step(self) -> None:
        """Show the controller, if there is one, the loss of the last step."""
        if self.host is not None:
            self.host.update_step(float(ops.convert_to_numpy(self.variables.last_loss)))
            self.variables.level.assign(self.host.level)

    def end_epoch(self, logs: Mapping[str, float]) -> None:
        """Show the controller, if there is one, the end of an epoch.

        Args:
            logs: Metrics of the epoch by their names in Keras.
        """
        if self.host is None:
            return
        has_validation = any(name.startswith("val_") for name in logs)
        if self.needs_validation and not has_validation:
            return  # an epoch that `validation_freq` leaves out
        from flooding.levels import StepInfo

        info = StepInfo(None, _accuracy(logs, ""), logs.get("val_loss"), _accuracy(logs, "val_"))
        self.host.update(info)
        self.variables.level.assign(self.host.level)

    def to_config(self) -> float | dict[str, object]:
        """Describe the level for a file.

        Returns:
            The number, or the controller and its state.
        """
        if self.host is None:
            return self.read()
        config = self.host.to_config()
        if config is None:
            warnings.warn(
                "the file holds the level in force, but not "
                f"{type(self.host.controller).__name__}, which is not of flooding.levels. Compile "
                "the loaded model with flood_level= again.",
                stacklevel=2,
            )
            return self.read()
        return config


class _LevelMetric(keras.metrics.Metric):
    """The level: a variable that compiled functions read, and that is no weight of the model."""

    def __init__(self, level: float) -> None:
        # In 16 bits the level would be rounded.
        dtype = "float64" if keras.config.floatx() == "float64" else "float32"
        super().__init__(name="flood_level", dtype=dtype)
        constant = keras.initializers.Constant(level)
        self.level = self.add_variable(shape=(), initializer=constant, name="level")
        self.last_loss = self.add_variable(shape=(), initializer="zeros", name="last_loss")

    def update_state(self, *args: object, **kwargs: object) -> None:
        """Do nothing: a step does not move the level."""

    def reset_state(self) -> None:
        """Do nothing: an epoch does not forget the level."""

    def result(self) -> Tensor:
        return ops.convert_to_tensor(self.level)


def _accuracy(logs: Mapping[str, float], prefix: str) -> float | None:
    """Find the accuracy among the metrics of an epoch."""
    for name, value in logs.items():
        is_validation = name.startswith("val_")
        if is_validation == bool(prefix) and name.endswith(("accuracy", "acc")):
            return float(value)
    return None
