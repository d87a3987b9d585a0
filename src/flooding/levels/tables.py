"""Levels looked up for each batch: per class, per example, or above the entropy of the targets."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flooding.levels.base import Controller, LevelTable

__all__ = [
    "Excess",
    "PerClass",
    "PerExample",
    "check_level_number",
    "excess",
    "lookup_levels",
    "smoothed_label_entropy",
    "target_entropy",
]

_MAX_SHOWN = 8  # levels that a repr lists


def _levels_tensor(levels: object) -> Tensor:
    """Convert what a user passes as levels to a 1-d float tensor of finite numbers."""
    rule = "levels must be a 1-d tensor of finite numbers"
    # 1. Anything that torch makes a tensor of.
    try:
        levels = torch.as_tensor(levels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{rule}, got {levels!r:.80}. Pass a tensor, an array or a list of numbers."
        ) from error
    # 2. Of real numbers, and as floats.
    if levels.dtype == torch.bool or levels.is_complex():
        raise TypeError(f"{rule}, got {levels.dtype}. Pass the levels themselves.")
    if not levels.is_floating_point():
        levels = levels.float()
    # 3. On one axis and finite.
    if levels.dim() != 1 or len(levels) == 0 or not levels.isfinite().all():
        raise ValueError(f"{rule}, got {levels}. Did a search return no value?")
    return levels


def _brief_levels(levels: Tensor) -> str:
    """Show a few levels one by one, and of many the range."""
    numbers = [f"{level:.4g}" for level in levels.tolist()]
    if len(numbers) <= _MAX_SHOWN:
        return f"[{', '.join(numbers)}]"
    return f"{len(numbers)} levels, {levels.min():.4g} to {levels.max():.4g}"


@dataclass(frozen=True, eq=False)
class PerClass(LevelTable):
    """A level for each class, looked up by the target.

    Args:
        levels: Levels ``[classes]`` in the unit of the loss, finite.

    Example:
        >>> PerClass(torch.tensor([0.1, 0.2])).lookup(torch.tensor([1, 0, 1]))
        tensor([0.2000, 0.1000, 0.2000])
    """

    levels: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _levels_tensor(self.levels))

    def __repr__(self) -> str:
        return f"PerClass({_brief_levels(self.levels)})"

    # ruff: ignore[unused-method-argument]
    def lookup(self, target: Tensor, ids: Tensor | None = None) -> Tensor:
        """Look up the levels of a batch.

        Args:
            target: Target classes, integers of any shape.
            ids: Not used.

        Returns:
            Levels of the shape of ``target``.

        Raises:
            TypeError: If ``target`` holds no classes.
            IndexError: If a class lies outside the table. On a GPU that is a device assertion.
        """
        if not isinstance(target, Tensor):
            raise TypeError(
                f"levels per class need the targets, got {type(target).__name__}. Pass them as "
                "target=y."
            )
        if target.is_floating_point():
            raise TypeError(
                f"levels per class need integer classes, got {target.dtype}. For soft targets see "
                "Excess."
            )
        try:
            # index_select and not levels[target], which would read class -1 as the last class.
            index = target.reshape(-1).long()
            return self.levels.index_select(0, index).reshape(target.shape)
        except IndexError as error:
            n = len(self.levels)
            invalid = target[(target < 0) | (target >= n)].unique().tolist()
            raise IndexError(
                f"classes must lie in 0 to {n - 1}, since the table has {n} levels, got "
                f"{invalid[:5]}. Add their levels, or name the class to leave out as ignore_index "
                "of the loss."
            ) from error

    def to(self, device: torch.device | str) -> PerClass:
        """Move the table to a device."""
        return PerClass(self.levels.to(device))


@dataclass(frozen=True, eq=False)
class PerExample(LevelTable):
    """A level for each training example, looked up by its id.

    An example without a level gets level NaN, which makes the objective NaN; it never gets level 0,
    and the look-up never waits for the device. Call ``check(ids)`` once before training to turn
    that into an error that names the ids.

    Args:
        levels: Levels ``[examples]`` in the unit of the loss, finite.
        ids: Their examples' ids, int64 ``[examples]``, each once, in any order.

    Raises:
        ValueError: If the two differ in length or an id comes twice.

    Example:
        >>> table = PerExample(torch.tensor([0.1, 0.2]), ids=torch.tensor([7, 3]))
        >>> table.lookup(None, torch.tensor([3, 7, 5]))
        tensor([0.2000, 0.1000,    nan])
    """

    levels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        levels, ids = _levels_tensor(self.levels), torch.as_tensor(self.ids)
        if ids.shape != levels.shape:
            raise ValueError(
                f"levels and ids must have equal length, got {len(levels)} and {len(ids)}."
            )
        # Sorted, so that a batch is looked up by binary search.
        ids, order = ids.sort()
        if (ids[1:] == ids[:-1]).any():
            raise ValueError(
                "every id must come once, got one twice. Average the levels of an example first."
            )
        object.__setattr__(self, "levels", levels[order])
        object.__setattr__(self, "ids", ids)

    def __repr__(self) -> str:
        return f"PerExample({_brief_levels(self.levels)})"

    def _find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Give the index of each id in the table, and whether the id is there."""
        index = torch.searchsorted(self.ids, ids).clamp_max(len(self.ids) - 1)
        return index, self.ids[index] == ids

    # ruff: ignore[unused-method-argument]
    def lookup(self, target: object, ids: Tensor | None = None) -> Tensor:
        """Look up the levels of a batch; NaN where an id has none.

        Args:
            target: Not used.
            ids: Ids of the batch's examples, int64 of any shape.

        Returns:
            Levels of the shape of ``ids``.

        Raises:
            ValueError: If ``ids`` is None.
        """
        if ids is None:
            raise ValueError(
                "levels per example need the examples' ids, got none. Pass ids=..., one per "
                "example."
            )
        index, exists = self._find(ids)
        return self.levels[index].masked_fill(~exists, math.nan)

    def check(self, ids: Tensor) -> None:
        """Check that every example has a level. It waits for the device: call it before training.

        Args:
            ids: Ids of all training examples.

        Raises:
            ValueError: If some have none.
        """
        missing = ids[~self._find(ids)[1]]
        if len(missing):
            raise ValueError(
                f"every training example needs a level, got none for {len(missing)} of {len(ids)} "
                f"ids, first {missing[:5].tolist()}. Score them too, or drop them from training."
            )

    def to(self, device: torch.device | str) -> PerExample:
        """Move the table to a device."""
        return PerExample(self.levels.to(device), self.ids.to(device))


def target_entropy(target: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Compute the entropy of each target, ``H(t) = -sum_c t_c ln t_c``.

    It is the lowest cross-entropy that the target allows.

    Args:
        target: Classes, int64 of any shape, or probabilities ``[batch, classes, ...]`` (soft
            labels, mixup).
        classes: Number of classes.
        label_smoothing: Share spread evenly over all classes, as in ``nn.CrossEntropyLoss``, in [0,
            1].

    Returns:
        Entropies in nats, of the shape of the losses; 0 for hard labels without smoothing.

    Example:
        >>> target_entropy(torch.tensor([0, 1]), classes=2, label_smoothing=0.1)
        tensor([0.1985, 0.1985])
    """
    if target.is_floating_point():
        # Soft labels: the class axis comes second, as in torch's cross-entropy.
        smoothed = (1 - label_smoothing) * target + label_smoothing / classes
        return torch.special.entr(smoothed).sum(1)
    # Hard labels all have one entropy.
    entropy = smoothed_label_entropy(classes, label_smoothing)
    return torch.full(target.shape, entropy, device=target.device)


def smoothed_label_entropy(classes: int, label_smoothing: float) -> float:
    """Compute the entropy of a smoothed hard label as a number, without a tensor.

    Args:
        classes: Number of classes.
        label_smoothing: Share spread evenly over all classes, in [0, 1].

    Returns:
        The entropy in nats.
    """
    # The probability of each other class, and of the label's own.
    off = label_smoothing / classes
    on = 1 - label_smoothing + off
    off_term = off * math.log(off) if off else 0.0
    return 0.0 - on * math.log(on) - (classes - 1) * off_term


def excess(losses: Tensor, target: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Compute cross-entropies less their targets' entropies, ``l_i - H(t_i)``.

    It is the divergence that training can still remove.

    Args:
        losses: Cross-entropies ``[batch, ...]``, the smoothing included.
        target: Classes or probabilities, as for :func:`target_entropy`.
        classes: Number of classes.
        label_smoothing: As given to the criterion.

    Returns:
        Excess losses of the shape of ``losses``, not negative up to rounding.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> logits, y = torch.tensor([[0.0, 9.0]]), torch.tensor([[0.5, 0.5]])
        >>> excess(cross_entropy(logits, y, reduction="none"), y, classes=2)
        tensor([3.8070])
    """
    return losses - target_entropy(target, classes, label_smoothing)


@dataclass(frozen=True)
class Excess(LevelTable):
    """A level for the excess loss ``l_i - H(t_i)``: the level ``b + H(t_i)`` for the loss itself.

    ``|l - (b + H)| + (b + H)`` is ``|(l - H) - b| + b`` plus a constant, so the gradients agree,
    while the raw loss and evaluation stay plain. Methods on the batch mean use the mean of ``H``
    over the batch.

    Args:
        level: Level of the excess loss, in nats.
        classes: Number of classes.
        label_smoothing: As given to the criterion.

    Raises:
        TypeError: If ``level`` is no number.
        ValueError: If ``level`` is not finite or ``label_smoothing`` lies outside [0, 1].

    Example:
        >>> Excess(0.1, classes=2, label_smoothing=0.1).lookup(torch.tensor([0, 1]))
        tensor([0.2985, 0.2985])
    """

    level: float
    classes: int
    label_smoothing: float = 0.0
    has_batch_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_level_number(self.level)
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(
                f"label_smoothing must lie in [0, 1], got {self.label_smoothing}. Use the "
                "criterion's."
            )

    # ruff: ignore[unused-method-argument]
    def lookup(self, target: Tensor, ids: Tensor | None = None) -> Tensor:
        """Compute the level of each example's plain loss.

        Args:
            target: Target classes or probabilities.
            ids: Not used.

        Returns:
            Levels of the shape of the losses.
        """
        return self.level + target_entropy(target, self.classes, self.label_smoothing)

    def to(self, device: torch.device | str) -> Excess:  # ruff: ignore[unused-method-argument]
        """Return itself: it holds no tensor."""
        return self


def lookup_levels(
    table: LevelTable, target: Tensor, ids: Tensor | None, weight: Tensor | None
) -> Tensor:
    """Look up the levels of a batch of which some examples may be ignored.

    Args:
        table: The table.
        target: The targets.
        ids: Ids of the examples, or None.
        weight: Weights of the losses as :func:`flooding.torch_losses.example_weight` gives them, or
            None. The level of an example of weight 0 is not used.

    Returns:
        The levels, as ``table.lookup`` gives them.
    """
    if isinstance(table, PerClass) and weight is not None:
        # The target of an ignored example is no class, so any class will do.
        target = target.masked_fill(weight == 0, 0)
    return table.lookup(target, ids)


def check_level_number(level: object) -> float:
    """Check that a level is one finite number: int, float, Fraction or NumPy's; not a bool.

    Args:
        level: What a user passes as a level.

    Returns:
        The number as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite.
    """
    number = level[()] if isinstance(level, np.ndarray) and level.ndim == 0 else level
    if not isinstance(number, numbers.Real) or isinstance(number, (bool, np.bool_)):
        rule = (
            "level must be a number, a 0-d tensor, a controller, PerClass, PerExample, Excess or "
            "None"
        )
        raise TypeError(f"{rule}, got {level!r:.80}. {_level_advice(number)}")
    try:
        value = float(number)
    except OverflowError:  # an integer beyond the largest float
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(
            f"level must be finite, got {level!s:.80}. Did the search read an empty record?"
        )
    return value


def _level_advice(level: object) -> str:
    """Suggest what to pass instead of something that is no level."""
    if isinstance(level, (str, bytes)):
        try:
            float(level)
        except ValueError:
            return "Give an object, such as Auto(epochs=100) of flooding.levels."
        return "Write it without quotes."
    if isinstance(level, (bool, np.bool_)):
        return "Write 0.0 or 1.0 for such a level, None for plain training."
    if isinstance(level, (list, tuple, np.ndarray)):
        return "A level for each class or example is PerClass or PerExample."
    if isinstance(level, Controller):
        if isinstance(level, type):
            return "Build it first."
        return "A controller is the level of a Run, a Flood or a FloodStep."
    if callable(level):
        return (
            "The order is Flood(criterion, level). For a schedule set criterion.level before each "
            "epoch."
        )
    return "If it is a number, pass float() of it."
