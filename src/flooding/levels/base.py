"""Level controllers: how the flood level moves during training, as pure functions on a state of
tensors.

A controller is a frozen dataclass of plain numbers (so it can be part of a run's key) with two
methods: ``init`` gives the first state, ``update`` the next one. ``state["level"]`` is the level in
force, in the unit of the loss, a float32 tensor without axes; ``-inf`` floods nothing.
``state["started"]`` tells whether flooding has begun. Nothing else is mutable, so a saved state
resumes exactly, also in the middle of an epoch, and a controller can be folded over what another
run saw.

``update`` never waits for the device and never branches on a tensor's value: it compiles to one
graph for steps and one for ends of epochs. It is element-wise, so the states of several runs may be
stacked along a leading ``runs`` axis. A state lives where the caller puts it; keep it on the device
of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

__all__ = ["Controller", "State", "StepInfo", "first_flooded_step", "simulate"]

State: TypeAlias = dict[str, Tensor]


class StepInfo(NamedTuple):
    """What a controller is shown: the loss after every optimiser step, the other four after every
    epoch.

    Args:
        loss: Raw mean loss of the step's batch, before flooding, a float tensor without axes; None
            marks the end of an epoch.
        train_accuracy: Share of training examples classified correctly, in [0, 1].
        val_loss: Mean validation loss, in the unit of the loss.
        val_accuracy: Share of validation examples classified correctly, in [0, 1].
    """

    loss: Tensor | None = None
    train_accuracy: Tensor | float | None = None
    val_loss: Tensor | float | None = None
    val_accuracy: Tensor | float | None = None


@runtime_checkable
class Controller(Protocol):
    """What moves the level. ``flooding.testing.check_controller`` checks an implementation of your
    own.
    """

    def init(self) -> State:
        """Give the state before the first step.

        Returns:
            Tensors by name; ``"level"`` is a float tensor without axes, ``-inf`` while nothing is
            flooded.
        """
        ...

    def update(self, state: State, seen: StepInfo) -> State:
        """Give the state after a step or an epoch; the given state stays as it is.

        Args:
            state: The state in force when ``seen`` happened.
            seen: What happened.

        Returns:
            A new state with the same names, dtypes and shapes.
        """
        ...


def simulate(controller: Controller, seens: Sequence[StepInfo]) -> list[State]:
    """Give the states a controller would have had, had it been shown what another run saw.

    Args:
        controller: The controller.
        seens: Steps and ends of epochs, in the order in which they happened.

    Returns:
        ``len(seens) + 1`` states: entry i is in force when ``seens[i]`` happens, the last one
        afterwards.

    Example:
        >>> states = simulate(Warmup(1.0, steps=2), [StepInfo(torch.tensor(3.0)), StepInfo(val_loss=2.0)])
        >>> [state["level"].item() for state in states]
        [0.0, 0.5, 0.5]
    """
    return list(accumulate(seens, controller.update, initial=controller.init()))


def first_flooded_step(controller: Controller, seens: Sequence[StepInfo]) -> int | None:
    """Find the first step at which a controller would have changed what a plain run did.

    That is the first step whose loss is at most the level in force: at the level itself the slope
    is 0 already. Up to it the controlled run is the plain one, so what lies before need not be
    trained again. A NaN loss is never flooded.

    Args:
        controller: The controller.
        seens: Steps and ends of epochs of a plain run, in order, with the losses exactly as the run
            computed them.

    Returns:
        Index of the step, counted from 0 and over steps alone; None if no step would have changed.

    Example:
        >>> losses = [StepInfo(torch.tensor(loss)) for loss in (0.9, 0.4, 0.1)]
        >>> first_flooded_step(Constant(0.5), losses), first_flooded_step(Constant(0.05), losses)
        (1, None)
    """
    state, step = controller.init(), 0
    for seen in seens:
        if seen.loss is not None:
            if seen.loss <= state["level"]:
                return step
            step += 1
        state = controller.update(state, seen)
    return None
