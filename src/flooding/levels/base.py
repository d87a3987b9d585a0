"""The type of a level, and the protocol of what moves or looks up a level during training.

A controller is a frozen dataclass of plain numbers, so that it can be part of the key of a Run. Its
``init`` gives the first state, its ``update`` the next one. A state is a dictionary of tensors.
``state["level"]`` is the level in force, in the unit of the loss, a float32 tensor without axes;
``-inf`` floods nothing. ``state["started"]`` tells whether flooding has begun. Nothing else
changes, so a saved state resumes exactly, also in the middle of an epoch, and a controller can be
simulated on the steps of another run.

``update`` never waits for the device and never branches on a tensor's value: it compiles to one
graph for steps and one for ends of epochs. It is element-wise, so the states of several runs may be
stacked along a leading ``runs`` axis. A state lives where the caller puts it; keep it on the device
of the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "Controller",
    "Level",
    "LevelSource",
    "LevelTable",
    "ResolvedLevels",
    "State",
    "StepInfo",
    "first_flooded_step",
    "simulate",
]

# The state of a controller: tensors by name.
State: TypeAlias = dict[str, Tensor]


class StepInfo(NamedTuple):
    """What a controller sees: the loss after every step, the other numbers after every epoch.

    Args:
        loss: Raw mean loss of the step's batch, before flooding, a float tensor without axes; None
            marks the end of an epoch.
        train_accuracy: Share of training examples classified correctly, in [0, 1].
        val_loss: Mean validation loss, in the unit of the loss.
        val_accuracy: Share of validation examples classified correctly, in [0, 1].
        n_val: Number of validation examples, from which a controller knows the standard error of
            the accuracy.
        val_score: The number by which validation is judged instead of accuracy, the larger the
            better.
    """

    loss: Tensor | None = None
    train_accuracy: Tensor | float | None = None
    val_loss: Tensor | float | None = None
    val_accuracy: Tensor | float | None = None
    n_val: Tensor | float | None = None
    val_score: Tensor | float | None = None


@runtime_checkable
class Controller(Protocol):
    """A level that changes during training.

    An object with these two methods is a controller; it need not inherit from this class.
    ``flooding.testing.check_controller`` checks an implementation of your own.
    """

    def init(self) -> State:
        """Give the state before the first step.

        Returns:
            Tensors by name; ``"level"`` is a float tensor without axes, ``-inf`` while nothing is
            flooded.
        """
        ...

    def update(self, state: State, info: StepInfo, /) -> State:
        """Give the state after a step or an epoch; the given state stays as it is.

        Args:
            state: The state in force during the step or epoch.
            info: What the step or the epoch measured.

        Returns:
            A new state with the same names, dtypes and shapes.
        """
        ...


class LevelTable(ABC):
    """A level for each class or example, looked up for every batch.

    Attributes:
        has_batch_mean: Whether the mean of a batch's levels is a level for its mean loss. If not,
            only methods with ``reduction = "none"`` can use the table.
    """

    has_batch_mean: ClassVar[bool] = False

    @abstractmethod
    def lookup(self, target: Tensor, ids: Tensor | None = None) -> Tensor:
        """Look up the levels of a batch.

        Args:
            target: Targets of the batch.
            ids: Ids of the batch's examples, or None where they are unknown.

        Returns:
            Levels in the unit of the loss, of the shape of the losses.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> LevelTable:
        """Give the table on a device."""

    def check(self, ids: Tensor) -> None:  # ruff: ignore[empty-method-without-abstract-decorator]
        """Check once, before training, that every training example has a level.

        A table that depends on ids raises a ValueError that names those without one.

        Args:
            ids: Ids of all training examples.
        """


# Whatever can be a level: a number, a tensor, a controller, a table of levels, or none.
Level: TypeAlias = float | Tensor | Controller | LevelTable | None


class ResolvedLevels(Protocol):
    """What a :class:`LevelSource` gives: a table, and the epochs that computing it took."""

    @property
    def levels(self) -> LevelTable:
        """The table."""
        ...

    @property
    def cost(self) -> int | None:
        """Epochs trained; None where they are unknown."""
        ...


ProblemT_contra = TypeVar("ProblemT_contra", contravariant=True)


@runtime_checkable
class LevelSource(Protocol[ProblemT_contra]):
    """A recipe for a :class:`LevelTable`, computed from the Problem when its Run trains."""

    def resolve(
        self, problem: ProblemT_contra, seed: int, device: torch.device, /
    ) -> ResolvedLevels:
        """Compute the table.

        Args:
            problem: The Problem of the Run.
            seed: Its seed.
            device: Where it trains.

        Returns:
            The table and its cost.
        """
        ...


def simulate(controller: Controller, infos: Sequence[StepInfo]) -> list[State]:
    """Compute the states a controller would have had on the steps of another run.

    Args:
        controller: The controller.
        infos: Steps and ends of epochs, in the order in which they happened.

    Returns:
        ``len(infos) + 1`` states: entry i is in force during ``infos[i]``, the last one afterwards.

    Example:
        >>> from flooding.levels import Warmup
        >>> steps = [StepInfo(torch.tensor(3.0)), StepInfo(val_loss=2.0)]
        >>> [state["level"].item() for state in simulate(Warmup(1.0, steps=2), steps)]
        [0.0, 0.5, 0.5]
    """
    return list(accumulate(infos, controller.update, initial=controller.init()))


def first_flooded_step(controller: Controller, infos: Sequence[StepInfo]) -> int | None:
    """Find the first step at which a controller would have changed what a plain run did.

    That is the first step whose loss is at most the level in force: at the level itself the slope
    is 0 already. Before it the controlled run equals the plain one, so those steps need not be
    trained again. A NaN loss is never flooded.

    Args:
        controller: The controller.
        infos: Steps and ends of epochs of a plain run, in order, with the losses exactly as the run
            computed them.

    Returns:
        Index of the step, counted from 0 and over steps alone; None if no step would have changed.

    Example:
        >>> from flooding.levels import Constant
        >>> steps = [StepInfo(torch.tensor(loss)) for loss in (0.9, 0.4, 0.1)]
        >>> first_flooded_step(Constant(0.5), steps), first_flooded_step(Constant(0.05), steps)
        (1, None)
    """
    state, step = controller.init(), 0
    for info in infos:
        if info.loss is not None:
            if info.loss <= state["level"]:
                return step
            step += 1
        state = controller.update(state, info)
    return None
