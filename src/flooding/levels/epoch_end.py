"""How a controller in a training loop of the user's own learns of the end of an epoch."""

from __future__ import annotations

import warnings
import weakref

import torch
from torch import Tensor

from flooding.levels.base import Controller, State, StepInfo

__all__ = ["ControlledLevel", "EpochEndCheck", "EpochEndMixin"]

# More steps than most epochs have.
_MAX_STEPS = 10_000
_MESSAGE = (
    "{name} moves its level at the end of an epoch, but after {steps} steps on_epoch_end(...) has "
    "not been called: nothing was flooded. Call it after every epoch, with what validation "
    "measured."
)


class EpochEndCheck:
    """Count the steps before the first end of an epoch, and warn once if it never comes.

    The warning is given after 10,000 steps, or when the owner is deleted or Python ends. Only a
    controller with a true ``needs_epoch_end`` is checked.

    Args:
        owner: The object with the method ``on_epoch_end``.
        controller: Its controller.
    """

    def __init__(self, owner: object, controller: Controller) -> None:
        self._name = type(controller).__name__
        self._is_needed = bool(getattr(controller, "needs_epoch_end", False))
        # Shared with the finaliser, which must not keep the owner alive.
        self._num_steps = [0]
        if self._is_needed:
            weakref.finalize(owner, _warn_of_steps, self._name, self._num_steps)

    def count_step(self) -> None:
        """Count a step, and warn if there are too many."""
        if not self._is_needed:
            return
        self._num_steps[0] += 1
        if self._num_steps[0] >= _MAX_STEPS:
            _warn_of_steps(self._name, self._num_steps)
            self.end_epoch()

    def end_epoch(self) -> None:
        """Note the end of an epoch: no warning is needed any more."""
        self._is_needed = False
        self._num_steps[0] = 0


def _warn_of_steps(name: str, num_steps: list[int]) -> None:
    if num_steps[0]:
        message = _MESSAGE.format(name=name, steps=num_steps[0])
        warnings.warn(message, UserWarning, stacklevel=2)


class EpochEndMixin:
    """The method by which a loop shows the end of an epoch."""

    def on_epoch_end(
        self,
        *,
        train_accuracy: float | Tensor | None = None,
        val_loss: float | Tensor | None = None,
        val_accuracy: float | Tensor | None = None,
        n_val: float | Tensor | None = None,
        val_score: float | Tensor | None = None,
    ) -> None:
        """Show a controller the end of an epoch; other levels take no notice.

        Give all ranks the same numbers.

        Args:
            train_accuracy: Share of training examples classified correctly, in [0, 1].
            val_loss: Mean validation loss in the unit of the loss.
            val_accuracy: Share of validation examples classified correctly, in [0, 1].
            n_val: Number of validation examples.
            val_score: What validation is judged by instead of accuracy, the larger the better.
        """
        self._end_epoch(StepInfo(None, train_accuracy, val_loss, val_accuracy, n_val, val_score))

    def _end_epoch(self, info: StepInfo) -> None:
        raise NotImplementedError


class ControlledLevel(EpochEndMixin):
    """A level that may have a controller, whose state is kept beside it."""

    _controller: Controller | None = None
    _controller_state: State
    _epoch_end: EpochEndCheck | None = None

    def controller_state(self) -> State:
        """Copy the state of the controller, to be saved with the model; empty without one.

        Returns:
            Tensors by name.
        """
        return {name: tensor.clone() for name, tensor in self._controller_state.items()}

    def load_controller_state(self, state: State) -> None:
        """Continue from a :meth:`controller_state`, also in the middle of an epoch.

        Args:
            state: What :meth:`controller_state` gave for the same controller.

        Raises:
            ValueError: If the names differ from this object's.
        """
        if different := sorted(state.keys() ^ self._controller_state.keys()):
            raise ValueError(
                f"state must name the same tensors, but {different} differ. Build it with the same "
                "controller."
            )
        device = self._controller_state["level"].device if state else None
        self._put_controller_state({n: t.clone().to(device) for n, t in state.items()})
        if self._epoch_end is not None:
            self._epoch_end.end_epoch()  # the saved state may have seen some

    def _set_controller(self, controller: Controller | None, device: torch.device) -> None:
        """Begin with a controller, or go on without one."""
        start = {} if controller is None else controller.init()
        self._controller, self._epoch_end = controller, None
        self._put_controller_state({name: t.to(device) for name, t in start.items()})
        if controller is not None:
            self._epoch_end = EpochEndCheck(self, controller)

    def _show_step(self, loss: Tensor) -> None:
        """Show the controller the loss of a training batch."""
        if self._controller is None:
            return
        state = self._controller.update(self._controller_state, StepInfo(loss))
        self._put_controller_state(state)
        # A compiled graph must not depend on a count.
        if self._epoch_end is not None and not torch.compiler.is_compiling():
            self._epoch_end.count_step()

    def _end_epoch(self, info: StepInfo) -> None:
        if self._controller is None:
            return
        self._put_controller_state(self._controller.update(self._controller_state, info))
        if self._epoch_end is not None:
            self._epoch_end.end_epoch()

    def _put_controller_state(self, state: State) -> None:
        """Keep a state; what inherits puts its level in force."""
        self._controller_state = state
