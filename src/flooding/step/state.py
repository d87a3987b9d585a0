"""What a ``FloodStep`` knows of its last step and of all steps, and the level in force."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flooding.functional import flood
from flooding.levels import Controller, StepInfo
from flooding.levels.epoch_end import EpochEndCheck, EpochEndMixin
from flooding.levels.state import check_shapes
from flooding.step.checks import check_level, check_level_tensor
from flooding.text import join_parts

__all__ = ["Decision", "StepState", "decide"]

# Raw loss, flooded loss and slope of a step, 0-d tensors.
Decision = dict[str, Tensor]

# What `state` holds before the first step, and what flooding 0.1.0 called it.
_START = {
    "raw_loss": math.nan,
    "flooded_loss": math.nan,
    "slope": 1.0,
    "n_steps": 0,
    "n_flooded": 0,
    "n_nonfinite": 0,
}
_NAMES_0_1_0 = {
    "loss": "raw_loss",
    "value": "flooded_loss",
    "steps": "n_steps",
    "flooded": "n_flooded",
    "non_finite": "n_nonfinite",
}
_PREFIX = "controller."  # of the entries of `state` that belong to the controller


def decide(
    loss: Tensor, level: float | Tensor | None, objective: Callable[..., Tensor]
) -> Decision:
    """Flood the loss of a step, and give the slope that its gradients are multiplied by.

    Autograd gives the slope of any objective, and torch's own 0 at the level, without a second
    formula.

    Args:
        loss: The raw loss, 0-d.
        level: The level in force; None is no flooding.
        objective: What replaces the loss, ``(loss, level) -> value``.

    Returns:
        Raw loss, flooded loss and slope.
    """
    if level is None:
        level = -math.inf
    check_level_tensor(level)
    with torch.enable_grad():
        raw_loss = loss.detach().requires_grad_()
        flooded_loss = objective(raw_loss, level)
        (slope,) = torch.autograd.grad(flooded_loss, raw_loss)
    flooded_loss = flooded_loss.detach()
    # A NaN level has slope 0, which would go unnoticed: NaN where the value is not finite.
    slope = torch.add(slope, flooded_loss, alpha=0)
    # No branch on values: it would wait for the device.
    floodable = loss.isfinite() & (level != -math.inf)
    flooded_loss = torch.where(floodable, flooded_loss, loss)
    slope = torch.where(floodable, slope, torch.ones_like(slope))
    return {"raw_loss": loss, "flooded_loss": flooded_loss, "slope": slope}


class StepState(EpochEndMixin):
    """The state of a ``FloodStep``: tensors only, on the device of the parameters.

    Args:
        level: As for :class:`flooding.FloodStep`.
        device: Where the tensors lie.
    """

    optimizer: torch.optim.Optimizer
    objective: Callable[..., Tensor]
    per_microbatch: bool
    state: dict[str, Tensor]
    _controller: Controller | None
    _level: float | Tensor | None
    _epoch_end: EpochEndCheck | None = None

    def __init__(self, level: float | Tensor | Controller | None, device: torch.device) -> None:
        self._device = device
        self.state = {name: torch.tensor(value, device=device) for name, value in _START.items()}
        self.level = level

    def __repr__(self) -> str:
        parts: dict[str, object] = {"level": self._controller or self._level}
        if self._controller:
            parts["now"] = float(f"{self.level:.4g}")
        # What most steps have alike says nothing.
        if self.objective is not flood:
            parts["objective"] = self.objective
        if self.per_microbatch:
            parts["per_microbatch"] = True
        return f"FloodStep({type(self.optimizer).__name__}, {join_parts(parts)})"

    @property
    def level(self) -> float | Tensor | None:
        """The level in force; assigning a new level or controller is allowed between steps."""
        return self.state["controller.level"] if self._controller else self._level

    @level.setter
    def level(self, level: float | Tensor | Controller | None) -> None:
        # Checked first, so that a level that is refused leaves the old one in force.
        if isinstance(level, Controller) and not isinstance(level, type):
            # A controller that cannot begin is refused here.
            start = level.init()
            self._expect_no_epoch_end()
            self._controller, self._level = level, None
            self._epoch_end = EpochEndCheck(self, level)
        else:
            number = check_level(level)
            self._expect_no_epoch_end()
            self._controller, self._level, self._epoch_end = None, number, None
            start = {}
        state = {name: value for name, value in self.state.items() if not name.startswith(_PREFIX)}
        for name, value in start.items():
            state[_PREFIX + name] = value.to(self._device)
        self.state = state

    @property
    def raw_loss(self) -> Tensor:
        """Raw loss of the last step, 0-d; NaN before the first."""
        return self.state["raw_loss"]

    @property
    def flooded_loss(self) -> Tensor:
        """Flooded loss of the last step, 0-d; NaN before the first."""
        return self.state["flooded_loss"]

    @property
    def slope(self) -> Tensor:
        """What the gradients of the last step were multiplied by, 0-d."""
        return self.state["slope"]

    @property
    def n_steps(self) -> Tensor:
        """Number of steps, 0-d."""
        return self.state["n_steps"]

    @property
    def n_flooded(self) -> Tensor:
        """Number of steps with a slope below 0, 0-d."""
        return self.state["n_flooded"]

    @property
    def n_nonfinite(self) -> Tensor:
        """Number of steps in which some loss was NaN or infinite, 0-d."""
        return self.state["n_nonfinite"]

    @property
    def flooded_fraction(self) -> Tensor:
        """Share of steps with a slope below 0, 0-d; NaN before the first."""
        return self.n_flooded / self.n_steps

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the counts, the last step and the controller's state, to be saved between steps.

        Returns:
            Tensors by name.
        """
        return {name: tensor.clone() for name, tensor in self.state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state_dict`, also in the middle of an epoch.

        Args:
            state: What :meth:`state_dict` gave for the same kind of level, also in flooding 0.1.0.

        Raises:
            ValueError: If names or shapes differ from this object's.
        """
        state = {_NAMES_0_1_0.get(name, name): tensor for name, tensor in state.items()}
        if different := sorted(state.keys() ^ self.state.keys()):
            raise ValueError(
                f"state must name the same tensors, but {different} differ. Build it with the same "
                "level."
            )
        check_shapes(state, self.state)
        self.state = {name: state[name].clone().to(self._device) for name in self.state}
        self._expect_no_epoch_end()  # the saved state may have seen some
        self.reset()

    def _expect_no_epoch_end(self) -> None:
        if self._epoch_end is not None:
            self._epoch_end.expect_none()

    def reset(self) -> None:
        """Forget the losses of a step that is not taken."""

    def update_controller(self, info: StepInfo) -> dict[str, Tensor]:
        """Show the controller what happened.

        Args:
            info: A step or the end of an epoch.

        Returns:
            The state that follows; this object's own stays as it is.
        """
        state = dict(self.state)
        if self._controller is None:
            return state
        memory = {}
        for name, tensor in self.state.items():
            if name.startswith(_PREFIX):
                memory[name.removeprefix(_PREFIX)] = tensor
        for name, tensor in self._controller.update(memory, info).items():
            state[_PREFIX + name] = tensor
        return state

    def _end_epoch(self, info: StepInfo) -> None:
        state = self.update_controller(info)
        if self._epoch_end is not None:
            self._epoch_end.end_epoch(info)
        self.state = state

    def count_step(
        self, decision: Decision, is_nonfinite: bool | Tensor, found_inf: Tensor | None
    ) -> None:
        """Record a step.

        Args:
            decision: Its losses and slope.
            is_nonfinite: Whether some loss was NaN or infinite.
            found_inf: Not 0 where a fused optimiser skips the step, which then does not count.
        """
        state = self.update_controller(StepInfo(decision["raw_loss"])) | decision
        state["n_steps"] = state["n_steps"] + 1
        state["n_flooded"] = state["n_flooded"] + (decision["slope"] < 0)
        state["n_nonfinite"] = state["n_nonfinite"] + is_nonfinite
        if found_inf is not None:
            for name, tensor in state.items():
                state[name] = torch.where(found_inf == 0, tensor, self.state[name])
        self.state = state
        if self._epoch_end is not None:
            self._epoch_end.count_step()
