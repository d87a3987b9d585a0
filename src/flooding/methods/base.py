"""The protocol of a method: what the training loop and ``Flood`` ask of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["Method", "OptimizerFactory", "Reduction", "check_method", "floodable"]

# How the loss of a batch is reduced before a method; and what builds an optimiser.
Reduction: TypeAlias = Literal["mean", "none"]
OptimizerFactory: TypeAlias = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

# What a class promises about the way these three act together. A subclass that replaces one of
# them has to promise it again.
_PROMISES = ("shares_prefix", "has_slope")
_HOOKS = ("__call__", "objective_from_outputs", "penalty", "wrap_optimizer")


class Method:
    """The base class of a method: what is made of a raw loss and a level.

    A method of your own inherits from it and defines ``__call__``; everything else has a default.
    Make it a frozen dataclass of numbers, so that it can be part of the key of a Run.

    Attributes:
        reduction: The raw loss that ``__call__`` takes: "mean" is the scalar batch mean, "none" is
            one loss per example, ``[batch, ...]``.
        needs_closure: Whether the optimiser recomputes the gradient within a step, as SAM's does.
        shares_prefix: Whether the gradient is exactly, to the bit, that of the raw loss while the
            loss lies above the level. Runs of such methods share the steps before the first flooded
            one.
        has_slope: Whether the gradient is that of the raw loss times :meth:`slope`.
        level_source: Where the level comes from: "run" is the level of the Run; "teacher" is the
            loss, on the same batch, of the model that :meth:`make_teacher` gives.

    Example:
        >>> from dataclasses import dataclass
        >>> from flooding.methods import objective
        >>> @dataclass(frozen=True)
        ... class Cube(Method):
        ...     def __call__(self, loss, level):
        ...         return (loss - level).abs() ** 3
        >>> objective(torch.tensor(3.0), 1.0, Cube())
        tensor(8.)
    """

    reduction: ClassVar[Reduction] = "mean"
    needs_closure: ClassVar[bool] = False
    shares_prefix: ClassVar[bool] = False
    has_slope: ClassVar[bool] = False
    level_source: ClassVar[Literal["run", "teacher"]] = "run"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if any(name in vars(cls) for name in _HOOKS):
            for name in _PROMISES:
                if name not in vars(cls):
                    setattr(cls, name, False)

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Compute the objective before its final mean.

        Args:
            loss: Raw loss as ``reduction`` says.
            level: Level in the unit of ``loss``: a number, or a tensor that broadcasts against it.

        Returns:
            A tensor to average.

        Raises:
            NotImplementedError: If the class does not define it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define __call__(loss, level). See flooding.methods.Method."
        )

    def slope(self, loss: Tensor, level: float | Tensor) -> Tensor | None:
        """Compute the factor of the raw loss's gradient, where ``has_slope`` says there is one.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            A tensor of the type of ``loss``; None is 1.

        Raises:
            NotImplementedError: If the class has ``has_slope`` but does not define it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has has_slope=True, so it must define slope(loss, level)."
        )

    def wrap_optimizer(
        self, make_optimizer: OptimizerFactory, parameters: Sequence[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Build the optimiser that trains; the problem's own unless overridden.

        Args:
            make_optimizer: The problem's optimiser, ``(parameters) -> Optimizer``.
            parameters: The parameters to train.

        Returns:
            An optimiser.
        """
        return make_optimizer(parameters)

    # ruff: ignore[unused-method-argument]
    def penalty(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor | None:
        """Compute a term to add to the objective; none unless overridden.

        Args:
            loss: The raw scalar loss, with its graph.
            parameters: The parameters that are trained.

        Returns:
            A scalar with a graph, or None.
        """
        return None

    # ruff: ignore[unused-method-argument]
    def objective_from_outputs(
        self, outputs: Tensor, targets: Tensor, loss: Tensor, level: float | Tensor, epoch: int
    ) -> Tensor | None:
        """Compute the objective of a step from more than its loss; None unless overridden.

        Only a training loop asks for it; elsewhere ``__call__`` is the method.

        Args:
            outputs: Outputs of the model.
            targets: Targets.
            loss: Raw loss as ``reduction`` says, with its graph.
            level: Level in the unit of ``loss``: a number, or a tensor that broadcasts against it.
            epoch: The epoch, from 1.

        Returns:
            The objective, 0-d; None where it is that of ``__call__``.
        """
        return None

    def make_teacher(self, model: nn.Module) -> AveragedModel:
        """Build the model whose loss is the level, where ``level_source`` is "teacher".

        Args:
            model: The model that trains.

        Returns:
            An average of the model; the loop updates it after every step.

        Raises:
            NotImplementedError: If the class asks for a teacher but does not define it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has level_source='teacher', so it must define "
            "make_teacher(model)."
        )

    def comparison(self, loss: Tensor, level: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """Give the two quantities whose comparison decides whether a step is flooded.

        Args:
            loss: Raw loss as ``reduction`` says.
            level: Level in the unit of ``loss``.

        Returns:
            The loss and the level themselves, unless overridden.
        """
        return loss, level

    @property
    def needs_run(self) -> bool:
        """Whether a loss and a level are not enough, so that only a training loop can apply it."""
        cls = type(self)
        return (
            self.needs_closure
            or self.level_source != "run"
            or cls.penalty is not Method.penalty
            or cls.objective_from_outputs is not Method.objective_from_outputs
            or cls.wrap_optimizer is not Method.wrap_optimizer
        )


def check_method(method: object) -> None:
    """Check that an object is a method.

    Args:
        method: What a user passes as a method.

    Raises:
        TypeError: If it is a class, or its class does not inherit from :class:`Method`.
        ValueError: If its ``reduction`` is neither "mean" nor "none".
    """
    if isinstance(method, type):
        raise TypeError(
            f"method must be an object, got {method!r}. Build it first: {method.__name__}()."
        )
    if not isinstance(method, Method):
        raise TypeError(
            f"method must be a method such as Flooding() or IFlood(), got {method!r:.80}. A class "
            "of your own must inherit from flooding.methods.Method."
        )
    if method.reduction not in {"mean", "none"}:
        raise ValueError(
            f"the reduction of a method must be 'mean' or 'none', got {method.reduction!r}. Set "
            f"{type(method).__name__}.reduction."
        )


def floodable(loss: Tensor, level: float | Tensor) -> Tensor:
    """Mark the losses that can be flooded.

    A loss of NaN or -inf cannot, nor one whose level is -inf ("no level yet"). A NaN level counts
    as a level, so that it makes the objective NaN: a missing level must never go unnoticed.

    Args:
        loss: Raw loss of any shape.
        level: Level in the unit of ``loss``.

    Returns:
        A mask of the broadcast shape.
    """
    mask = loss > -math.inf
    return mask & (level != -math.inf) if isinstance(level, Tensor) else mask
