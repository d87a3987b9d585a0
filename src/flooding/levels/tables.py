"""Levels looked up for each batch: per class, per example, or above the entropy of the targets."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Excess", "PerClass", "PerExample", "excess", "lookup_levels", "target_entropy"]


def _levels(levels: Any) -> Tensor:
    rule = "levels must be a 1-d tensor of finite numbers"
    try:
        levels = torch.as_tensor(levels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{rule}, got {levels!r:.80}. Pass a tensor, an array or a list of numbers."
        ) from error
    if levels.dtype == torch.bool or levels.is_complex():
        raise TypeError(f"{rule}, got {levels.dtype}. Pass the levels themselves.")
    levels = levels if levels.is_floating_point() else levels.float()
    if levels.dim() != 1 or len(levels) == 0 or not levels.isfinite().all():
        raise ValueError(f"{rule}, got {levels}. Did a search return no value?")
    return levels


@dataclass(frozen=True, eq=False)
class PerClass:
    """A level for each class, looked up by the target.

    Args:
        levels: Levels ``[classes]`` in the unit of the loss, finite.

    Example:
        >>> PerClass(torch.tensor([0.1, 0.2])).at(torch.tensor([1, 0, 1]))
        tensor([0.2000, 0.1000, 0.2000])
    """

    levels: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _levels(self.levels))

    def at(self, y: Tensor, id: Tensor | None = None) -> Tensor:  # ruff: ignore[builtin-argument-shadowing, unused-method-argument]
        """Look the levels of a batch up.

        Args:
            y: Target classes, integers of any shape.
            id: Not used.

        Returns:
            Levels of the shape of ``y``.

        Raises:
            TypeError: If ``y`` holds no classes.
            IndexError: If a class lies outside the table. On a GPU that is a device assertion.
        """
        if not isinstance(y, Tensor):
            raise TypeError(
                f"levels per class need the targets, got {type(y).__name__}. Pass them as target=y."
            )
        if y.is_floating_point():
            raise TypeError(
                f"levels per class need integer classes, got {y.dtype}. For soft targets see Excess."
            )
        try:
            # index_select and not levels[y]: that one would read class -1 as the last class.
            return self.levels.index_select(0, y.reshape(-1).long()).reshape(y.shape)
        except IndexError as error:
            wrong = y[(y < 0) | (y >= len(self.levels))].unique().tolist()
            raise IndexError(
                f"classes must lie in 0 to {len(self.levels) - 1}, since the table has {len(self.levels)} levels, got "
                f"{wrong[:5]}. Add their levels, or name what to leave out as ignore_index of the loss."
            ) from error

    def to(self, device: torch.device | str) -> PerClass:
        """Move the table to a device."""
        return PerClass(self.levels.to(device))


@dataclass(frozen=True, eq=False)
class PerExample:
    """A level for each training example, looked up by its id.

    An example without a level gets level NaN, which makes the objective NaN: never level 0, and no
    host sync in the hot path. Call ``check(ids)`` once before training to turn that into an error
    that names the ids.

    Args:
        levels: Levels ``[examples]`` in the unit of the loss, finite.
        ids: Their examples' ids, int64 ``[examples]``, each once, in any order.

    Raises:
        ValueError: If the two differ in length or an id comes twice.

    Example:
        >>> table = PerExample(torch.tensor([0.1, 0.2]), ids=torch.tensor([7, 3]))
        >>> table.at(None, torch.tensor([3, 7, 5]))
        tensor([0.2000, 0.1000,    nan])
    """

    levels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        levels, ids = _levels(self.levels), torch.as_tensor(self.ids)
        if ids.shape != levels.shape:
            raise ValueError(
                f"levels and ids must have equal length, got {len(levels)} and {len(ids)}."
            )
        ids, order = ids.sort()
        if (ids[1:] == ids[:-1]).any():
            raise ValueError(
                "every id must come once, got one twice. Average the levels of an example first."
            )
        object.__setattr__(self, "levels", levels[order])
        object.__setattr__(self, "ids", ids)

    def _find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.searchsorted(self.ids, ids).clamp_max(len(self.ids) - 1)
        return place, self.ids[place] == ids

    def at(self, y: Any, id: Tensor | None = None) -> Tensor:  # ruff: ignore[builtin-argument-shadowing, unused-method-argument]
        """Look the levels of a batch up; NaN where an id has none.

        Args:
            y: Not used.
            id: Ids of the batch's examples, int64 of any shape.

        Returns:
            Levels of the shape of ``id``.

        Raises:
            ValueError: If ``id`` is None.
        """
        if id is None:
            raise ValueError(
                "levels per example need the examples' ids, got none. Pass id=..., one per example."
            )
        place, found = self._find(id)
        return self.levels[place].masked_fill(~found, math.nan)

    def check(self, ids: Tensor) -> None:
        """Make sure that every example has a level. Reads the answer back, so call it before
        training.

        Args:
            ids: Ids of all training examples.

        Raises:
            ValueError: If some have none.
        """
        missing = ids[~self._find(ids)[1]]
        if len(missing):
            raise ValueError(
                f"every training example needs a level, got none for {len(missing)} of {len(ids)} ids, first "
                f"{missing[:5].tolist()}. Score them too, or drop them from training."
            )

    def to(self, device: torch.device | str) -> PerExample:
        """Move the table to a device."""
        return PerExample(self.levels.to(device), self.ids.to(device))


def target_entropy(target: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Entropy of each target distribution, ``H(t) = -sum_c t_c ln t_c``: the lowest cross-entropy
    it allows.

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
        mixed = (1 - label_smoothing) * target + label_smoothing / classes
        return torch.special.entr(mixed).sum(1)
    return torch.full(
        target.shape, smoothed_label_entropy(classes, label_smoothing), device=target.device
    )


def smoothed_label_entropy(classes: int, label_smoothing: float) -> float:
    # Entropy of a smoothed hard label, as a number: it costs no tensor and no look at the device.
    off = label_smoothing / classes
    on = 1 - label_smoothing + off
    return 0.0 - on * math.log(on) - (classes - 1) * (off * math.log(off) if off else 0.0)


def excess(losses: Tensor, target: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropies less their targets' entropies, ``l_i - H(t_i)``: the divergence that training
    can still remove.

    Args:
        losses: Cross-entropies ``[batch, ...]``, the smoothing included.
        target: Classes or probabilities, as for :func:`target_entropy`.
        classes: Number of classes.
        label_smoothing: As given to the criterion.

    Returns:
        Excess losses of the shape of ``losses``, not negative up to rounding.

    Example:
        >>> logits, y = torch.tensor([[0.0, 9.0]]), torch.tensor([[0.5, 0.5]])
        >>> excess(nn.functional.cross_entropy(logits, y, reduction="none"), y, classes=2)
        tensor([3.8070])
    """
    return losses - target_entropy(target, classes, label_smoothing)


@dataclass(frozen=True)
class Excess:
    """A level for the excess loss ``l_i - H(t_i)``, that is the level ``b + H(t_i)`` for the loss
    itself.

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
        >>> Excess(0.1, classes=2, label_smoothing=0.1).at(torch.tensor([0, 1]))
        tensor([0.2985, 0.2985])
    """

    level: float
    classes: int
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_level_number(self.level)
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(
                f"label_smoothing must lie in [0, 1], got {self.label_smoothing}. Use the criterion's."
            )

    def at(self, y: Tensor, id: Tensor | None = None) -> Tensor:  # ruff: ignore[builtin-argument-shadowing, unused-method-argument]
        """Level of each example's plain loss.

        Args:
            y: Target classes or probabilities.
            id: Not used.

        Returns:
            Levels of the shape of the losses.
        """
        return self.level + target_entropy(y, self.classes, self.label_smoothing)

    def to(self, device: torch.device | str) -> Excess:  # ruff: ignore[unused-method-argument]
        """Return itself: it holds no tensor."""
        return self


def lookup_levels(lookup: Any, target: Any, ids: Tensor | None, weight: Tensor | None) -> Tensor:
    """Look the levels of a batch up; the target of an ignored example is no class.

    Args:
        lookup: :class:`PerClass`, :class:`PerExample`, :class:`Excess` or another object with their
            ``at``.
        target: The targets.
        ids: Ids of the examples, or None.
        weight: Weights of the losses as :func:`example_weight` gives them, or None.

    Returns:
        The levels, as ``lookup.at`` gives them.
    """
    if isinstance(lookup, PerClass) and weight is not None:
        target = target.masked_fill(weight == 0, 0)
    return lookup.at(target, ids)


def check_level_number(level: Any) -> float:
    """Check that a level is one finite number: int, float, Fraction, or NumPy's of no axes; not a
    bool.
    """
    number = level[()] if isinstance(level, np.ndarray) and level.ndim == 0 else level
    if not isinstance(number, numbers.Real) or isinstance(number, (bool, np.bool_)):
        rule = "level must be a number, a 0-d tensor, PerClass, PerExample, Excess or None"
        raise TypeError(f"{rule}, got {level!r:.80}. {_level_advice(number)}")
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(
            f"level must be finite, got {level!s:.80}. Did the search read an empty record?"
        )
    return value


def _level_advice(level: Any) -> str:
    if isinstance(level, (str, bytes)):
        return "Write it without quotes."
    if isinstance(level, (bool, np.bool_)):
        return "Write 0.0 or 1.0 for such a level, None for plain training."
    if isinstance(level, (list, tuple, np.ndarray)):
        return "A level for each class or example is PerClass or PerExample."
    if hasattr(level, "update") and hasattr(level, "init"):
        return "A controller belongs in a Run. Here set criterion.level to its state's level after each step."
    if callable(level):
        return "The order is Flood(criterion, level). For a schedule set criterion.level before each epoch."
    return "If it is a number, pass float() of it."
