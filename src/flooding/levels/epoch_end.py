"""How a controller in a training loop of the user's own learns of the end of an epoch."""

from __future__ import annotations

import math
import warnings
import weakref
from numbers import Real

import torch
from torch import Tensor

from flooding.levels.base import Controller, State, StepInfo
from flooding.levels.state import ACCURACY_TOLERANCE, check_shapes

__all__ = ["ControlledLevel", "EpochEndCheck", "EpochEndMixin"]

# More steps than most epochs have.
_MAX_STEPS = 10_000
_MESSAGE = (
    "{name} moves its level at the end of an epoch, but after {steps} steps on_epoch_end(...) has "
    "not been called: nothing was flooded. Call it after every epoch, with what validation "
    "measured."
)


class EpochEndCheck:
    """Check how a loop shows the ends of epochs to a controller with a true ``needs_epoch_end``.

    It warns once if none comes, after 10,000 steps, or when the owner is deleted or Python ends;
    and of an end that comes twice, since a sweep counts them.

    Args:
        owner: The object with the method ``on_epoch_end``.
        controller: Its controller.
    """

    def __init__(self, owner: object, controller: Controller) -> None:
        self._name = type(controller).__name__
        self._is_needed = self._is_watched = bool(getattr(controller, "needs_epoch_end", False))
        self._floor = getattr(controller, "floor", None)
        # Steps since the last end of an epoch, those of the epoch before, and what that measured.
        self._steps, self._last_steps = 0, 0
        self._scores: tuple[str, ...] | None = None
        # Shared with the finaliser, which must not keep the owner alive.
        self._num_steps = [0]
        if self._is_needed:
            weakref.finalize(owner, _warn_of_steps, self._name, self._num_steps)

    def count_step(self) -> None:
        """Count a step, and warn if there are too many."""
        # A compiled graph must not depend on a count.
        if not self._is_watched or torch.compiler.is_compiling():
            return
        self._steps += 1
        if not self._is_needed:
            return
        self._num_steps[0] += 1
        if self._num_steps[0] >= _MAX_STEPS:
            _warn_of_steps(self._name, self._num_steps)
            self.expect_none()

    def expect_none(self) -> None:
        """Forget what was counted, and need no end of an epoch any more."""
        self._is_needed = False
        self._num_steps[0] = self._steps = self._last_steps = 0

    def end_epoch(self, info: StepInfo) -> None:
        """Check an end of an epoch, before the controller sees it.

        Args:
            info: What the epoch measured.

        Raises:
            ValueError: If it was not judged by the same number as the epochs before.
        """
        if not self._is_watched:
            return
        values = {"val_accuracy": info.val_accuracy, "val_score": info.val_score}
        scores = tuple(name for name, value in values.items() if value is not None)
        if self._scores is not None and self._scores != scores:
            before, now = (" and ".join(names) or "val_loss" for names in (self._scores, scores))
            raise ValueError(
                f"every epoch must be judged by the same number, got {now} after {before}. Pass "
                "NaN where it was not measured."
            )
        if self._steps == 0 and self._last_steps > 0:
            warnings.warn(
                f"on_epoch_end(...) came twice without a step between: {self._name} counts two "
                "epochs. Call it once after every epoch.",
                UserWarning,
                stacklevel=4,
            )
        is_number = isinstance(info.val_loss, (int, float))
        if self._floor is not None and is_number and info.val_loss < self._floor:  # type: ignore[operator]
            warnings.warn(
                f"the validation loss, {info.val_loss:.3g}, lies below the floor of {self._name}, "
                f"{self._floor:g}: nothing is flooded. Give it the lowest loss there can be: "
                f"{self._name}(floor=...).",
                UserWarning,
                stacklevel=4,
            )
            self._floor = None
        self._scores, self._last_steps = scores, self._steps
        self._is_needed = False
        self._num_steps[0] = self._steps = 0


def _warn_of_steps(name: str, num_steps: list[int]) -> None:
    if num_steps[0]:
        message = _MESSAGE.format(name=name, steps=num_steps[0])
        warnings.warn(message, UserWarning, stacklevel=2)


def _check(name: str, value: object) -> float | Tensor | None:
    """Check a number that an epoch has measured; a tensor on a device is not read."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be one number, got a tensor of shape {tuple(value.shape)}. Take its "
                "mean."
            )
        value = value.detach().reshape(())
        if value.is_cpu:
            _check_range(name, float(value))
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r:.80}. Write float(...) for arrays.")
    _check_range(name, float(value))
    return float(value)


def _check_range(name: str, number: float) -> None:
    """Check that a number is possible; NaN is one that was not measured."""
    if name.endswith("accuracy") and (number < 0 or number > 1 + ACCURACY_TOLERANCE):
        raise ValueError(f"{name} must be a share in [0, 1], got {number}. Divide per cent by 100.")
    if name == "n_val" and not 1 <= number < math.inf:
        raise ValueError(f"n_val must be a number of examples, at least 1, got {number}.")
    if name == "val_loss" and number == -math.inf:
        raise ValueError(f"val_loss must be above -inf, got {number}. Look for a log of zero.")


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

        Raises:
            TypeError: If one of them is no number, or the controller needs one that is missing.
            ValueError: If one is no single number or out of range, or this epoch was not judged by
                the same number as those before. Tensors on a device are not read.
        """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
        info = StepInfo(
            train_accuracy=_check("train_accuracy", train_accuracy),
            val_loss=_check("val_loss", val_loss),
            val_accuracy=_check("val_accuracy", val_accuracy),
            n_val=_check("n_val", n_val),
            val_score=_check("val_score", val_score),
        )
        self._end_epoch(info)

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
            ValueError: If names or shapes differ from this object's.
        """
        if different := sorted(state.keys() ^ self._controller_state.keys()):
            raise ValueError(
                f"state must name the same tensors, but {different} differ. Build it with the same "
                "controller."
            )
        check_shapes(state, self._controller_state)
        device = self._controller_state["level"].device if state else None
        self._put_controller_state({n: t.clone().to(device) for n, t in state.items()})
        if self._epoch_end is not None:
            self._epoch_end.expect_none()  # the saved state may have seen some

    def _set_controller(self, controller: Controller | None, device: torch.device) -> None:
        """Begin with a controller, or go on without one."""
        start = {} if controller is None else controller.init()
        if self._epoch_end is not None:
            self._epoch_end.expect_none()
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
        if self._epoch_end is not None:
            self._epoch_end.count_step()

    def _end_epoch(self, info: StepInfo) -> None:
        if self._controller is None:
            return
        state = self._controller.update(self._controller_state, info)
        if self._epoch_end is not None:
            self._epoch_end.end_epoch(info)
        self._put_controller_state(state)

    def _put_controller_state(self, state: State) -> None:
        """Keep a state; what inherits puts its level in force."""
        self._controller_state = state
