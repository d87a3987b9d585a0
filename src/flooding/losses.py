"""The losses: what each method makes of a raw loss and a level, and criteria that flood in training only.

A method is a small frozen dataclass, called ``method(loss, level)``. The training loop calls :func:`objective` with it;
:class:`Flood` wraps any criterion for everybody else. Three kinds of level are tensors looked up for each batch:
:class:`PerClass`, :class:`PerExample` and :class:`Excess`.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flooding.criterion import BINARY, CLASSES, LossOptions, call_loss, loss_options, signature_reduction, unwrap
from flooding.functional import SIGMA_MIN, flood, is_flooded, soft_flood

__all__ = [
    "Excess",
    "Flood",
    "Flooding",
    "Hinge",
    "IFlood",
    "Method",
    "PerClass",
    "PerExample",
    "SoftAD",
    "Teacher",
    "WaveBound",
    "check_class_weight",
    "check_reduction",
    "example_weight",
    "excess",
    "flooded_fraction",
    "lookup_levels",
    "objective",
    "target_entropy",
]


class Method(Protocol):
    """What a method is: which raw loss it needs, and the objective it makes of that loss and a level."""

    reduction: ClassVar[Literal["mean", "none"]]

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Return the objective before its final mean."""
        ...


def _known(loss: Tensor, level: float | Tensor) -> Tensor:
    # Where a loss can be flooded: it is neither NaN nor -inf, and its level is not the -inf of "no level yet".
    # A NaN level counts as known, so that it poisons the objective: a missing level must never go unnoticed.
    known = loss > -math.inf
    return known & (level != -math.inf) if isinstance(level, Tensor) else known


@dataclass(frozen=True)
class Flooding:
    """Flood the batch mean: ``|L - b| + b``.

    The gradient is that of ``L`` times ``sign(L - b)``: bit for bit the plain one above the level, 0 exactly at it. A
    NaN or infinite loss and a level tensor of -inf ("no level yet") pass through with slope 1. Half-precision losses
    are compared, and returned, in float32.

    Example:
        >>> loss = torch.tensor(0.05, requires_grad=True)
        >>> Flooding()(loss, 0.1).backward()
        >>> loss.grad
        tensor(-1.)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML 2020, eq. (1).
    """

    reduction: ClassVar[Literal["mean", "none"]] = "mean"

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood a scalar loss.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            The flooded loss, 0-d.
        """
        return torch.where(_known(loss, level), flood(loss, level), loss)

    @staticmethod
    @torch.no_grad()
    def slope(loss: Tensor, level: float | Tensor) -> Tensor | None:
        """Give what flooding multiplies the gradient of the raw loss by: ``loss.backward(slope)`` is all it does.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            -1, 0 or 1, a tensor of the type of ``loss``; None is 1.
        """
        if isinstance(level, float) and loss.device.type == "cpu":  # there is no device to wait for
            value = loss.item()
            at = level if loss.dtype == torch.float64 else float(np.float32(level))
            sign = (value > at) - (value < at)
            return None if sign == 1 or not value > -math.inf else loss.new_full((), sign)
        sign = is_flooded(level, loss).to(loss.dtype) - is_flooded(loss, level).to(loss.dtype)
        return torch.where(_known(loss, level), sign, 1.0)


@dataclass(frozen=True)
class IFlood:
    """Flood each example: ``|l_i - b_i| + b_i``; with levels per example this is AdaFlood's loss.

    Edges are those of :class:`Flooding`, example by example.

    Example:
        >>> losses = torch.tensor([0.05, 0.3], requires_grad=True)
        >>> IFlood()(losses, 0.1).sum().backward()
        >>> losses.grad
        tensor([-1.,  1.])

    References:
        Xie et al., *iFlood*, ICLR 2022. Bae et al., *AdaFlood*, TMLR 2024, arXiv 2311.02891.
    """

    reduction: ClassVar[Literal["mean", "none"]] = "none"

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood each loss.

        Args:
            loss: Raw losses ``[batch, ...]``.
            level: A number, or a tensor that broadcasts against ``loss``.

        Returns:
            Flooded losses of the shape of ``loss``.
        """
        return torch.where(_known(loss, level), flood(loss, level), loss)


@dataclass(frozen=True)
class SoftAD:
    """Flood each example smoothly: ``eta * t + sigma^2 * rho((l_i - t) / sigma)``, ``rho(x) = sqrt(1 + x^2) - 1``.

    Each example's gradient is weighted by ``sigma * x / sqrt(1 + x^2)``, ``x = (l_i - t) / sigma``: below 1 in size for
    ``sigma <= 1``, near 0 at the level. A non-finite loss and a level of -inf pass through with slope 1.

    Args:
        sigma: Width of the smooth region in the unit of the loss, at least ``SIGMA_MIN``.
        eta: Weight of the level in the value; the gradient does not depend on it.

    Raises:
        ValueError: If ``sigma`` or ``eta`` is not finite, or ``sigma`` lies below ``SIGMA_MIN``.

    Example:
        >>> losses = torch.tensor([0.1, 1.1], requires_grad=True)
        >>> SoftAD()(losses, 0.1).sum().backward()
        >>> losses.grad
        tensor([0.0000, 0.7071])

    References:
        Holland & Nakatani, *SoftAD*, NeurIPS 2024, arXiv 2310.10006.
    """

    sigma: float = 1.0
    eta: float = 1.0
    reduction: ClassVar[Literal["mean", "none"]] = "none"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= SIGMA_MIN):
            raise ValueError(
                f"sigma must be finite and at least {SIGMA_MIN:g}, got {self.sigma}. IFlood() is the limit."
            )
        if not math.isfinite(self.eta):
            raise ValueError(f"eta must be finite, got {self.eta}. 1 is the source's value.")

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood each loss smoothly.

        Args:
            loss: Raw losses ``[batch, ...]``.
            level: A number, or a tensor that broadcasts against ``loss``.

        Returns:
            Flooded losses of the shape of ``loss``.
        """
        known = _known(loss, level) & (loss < math.inf)
        # Mask before the formula too: its derivative at infinity is NaN, which would leak out as 0 * NaN.
        finite = level.masked_fill(level == -math.inf, 0.0) if isinstance(level, Tensor) else level
        soft = soft_flood(loss.masked_fill(~known, 0.0), finite, self.sigma, self.eta)
        return torch.where(known, soft, loss)


@dataclass(frozen=True)
class Hinge:
    """Stop at the level instead of turning back: ``max(L, b)``, the control for "is ascent needed?".

    The slope is 1 above the level, 0 at and below it; the rest is as in :class:`Flooding`.

    Example:
        >>> loss = torch.tensor(0.05, requires_grad=True)
        >>> Hinge()(loss, 0.1)
        tensor(0.1000, grad_fn=<WhereBackward0>)
    """

    reduction: ClassVar[Literal["mean", "none"]] = "mean"

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Hold a scalar loss at its level.

        Args:
            loss: Batch mean, 0-d.
            level: Level in the unit of ``loss``, a number or a 0-d tensor.

        Returns:
            The larger of the two, 0-d.
        """
        wide = loss.float() if loss.dtype.itemsize < 4 else loss
        # relu and not maximum: that one splits a tie's slope in halves and needs a tensor.
        return torch.where(_known(loss, level), torch.relu(wide - level) + level, loss)


@dataclass(frozen=True)
class WaveBound:
    """Flood each output at a teacher's loss: ``|r_j - (r*_j - e)| + (r*_j - e)``, ``r_j`` a mean over the batch.

    The level here is the teacher's raw loss ``r*`` on the same batch, and the error bound ``e`` is taken off it. With
    one loss per example and no outputs this is flooding at the teacher's mean loss less ``e``.

    Args:
        epsilon: How far below the teacher's loss the level lies, in the unit of the loss.
        decay: Weight of the old average in each update of the :class:`Teacher` that the training loop keeps.

    Raises:
        ValueError: If ``epsilon`` is not finite.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.1], [1.0, 0.3]]), torch.tensor([[0.5, 0.4], [0.7, 0.6]])
        >>> WaveBound(epsilon=0.1)(student, teacher)
        tensor([1.0000, 0.6000])

    References:
        Cho et al., *WaveBound*, NeurIPS 2022, eq. (5).
    """

    epsilon: float
    decay: float = 0.99
    reduction: ClassVar[Literal["mean", "none"]] = "none"

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon):
            raise ValueError(f"epsilon must be finite, got {self.epsilon}. The source uses 0.01 or 0.001.")

    def __call__(self, loss: Tensor, level: float | Tensor) -> Tensor:
        """Flood each output's batch mean.

        Args:
            loss: Raw losses ``[batch, outputs...]``.
            level: The teacher's raw losses, of the shape of ``loss``, or a number for every output.

        Returns:
            Flooded means ``[outputs...]``.
        """
        risk, bound = self.sides(loss, level)
        return torch.where(_known(risk, bound), flood(risk, bound), risk)

    def sides(self, loss: Tensor, level: float | Tensor) -> tuple[Tensor, float | Tensor]:
        """Give what is compared: the student's batch means and their bounds, the teacher's less ``epsilon``.

        Args:
            loss: Raw losses ``[batch, outputs...]``.
            level: The teacher's raw losses, of the shape of ``loss``, or a number for every output.

        Returns:
            Two tensors ``[outputs...]``.

        Raises:
            ValueError: If the teacher's losses differ from the student's in shape.
        """
        if isinstance(level, Tensor):
            if level.shape != loss.shape:
                raise ValueError(f"the teacher's losses must have shape {tuple(loss.shape)}, got {tuple(level.shape)}.")
            level = level.detach().mean(0)
        return loss.mean(0), level - self.epsilon


def _mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.mean() if losses.dim() else losses
    kept = losses.masked_fill(weight == 0, 0.0)  # an ignored NaN would survive a product with 0
    return (kept * weight).sum() / _or_one(weight.sum())


def _or_one(x: Tensor) -> Tensor:
    # A divisor for what is 0 there anyway.
    return x.masked_fill(x == 0, 1.0)


def objective(
    loss: Tensor,
    level: float | Tensor | None,
    method: Method = Flooding(),
    weight: Tensor | None = None,
) -> Tensor:
    """Make the scalar to call ``backward()`` on: the method's value, then a mean over the valid weight.

    Without a level this is the plain mean, for a scalar loss the very same tensor. A level tensor of -inf ("no level
    yet") and a non-finite raw loss pass through unflooded, without a host sync. A NaN level makes the result NaN. If
    every weight is 0 the result is 0 with a zero gradient, where torch's own mean is NaN.

    Args:
        loss: Raw loss as ``method.reduction`` asks: 0-d for "mean", ``[batch, ...]`` for "none".
        level: Level in the unit of ``loss``: a number, a tensor that broadcasts against ``loss``, or None.
        method: What to make of the two.
        weight: Weight or mask of each loss, of the shape of ``loss``, for methods that keep one value per loss.
            Ignored examples weigh 0.

    Returns:
        A scalar; in float32 for half-precision losses that are flooded.

    Raises:
        ValueError: If the raw loss is not the one the method needs, or ``weight`` does not fit.

    Example:
        >>> losses = torch.tensor([0.0, 1.0, 5.0])
        >>> objective(losses, 0.5, IFlood(), weight=torch.tensor([1.0, 1.0, 0.0]))
        tensor(1.)
        >>> objective(losses.mean(), 0.5), objective(losses, None)
        (tensor(2.), tensor(2.))
    """
    if weight is not None and weight.shape != loss.shape:
        raise ValueError(f"weight must have the shape of the loss, {tuple(loss.shape)}, got {tuple(weight.shape)}.")
    if level is None:
        return _mean(loss, weight)
    if (method.reduction == "mean") != (loss.dim() == 0):
        raise ValueError(_needs(method, f"got shape {tuple(loss.shape)}"))
    flooded = method(loss, level)
    if weight is not None and flooded.shape != loss.shape:
        raise ValueError(f"{type(method).__name__} averages inside, so it takes no weight. Leave the weights out.")
    return _mean(flooded, weight)


def _needs(method: Method, got: str) -> str:
    what = "the scalar batch mean" if method.reduction == "mean" else "one raw loss per example"
    return f"{type(method).__name__} needs {what}, {got}. Build the criterion with reduction={method.reduction!r}."


def _below(loss: Tensor, level: float | Tensor | None) -> Tensor:
    # An infinite loss is passed through, so it is not flooded even where it is -inf.
    return is_flooded(loss, level) & (loss > -math.inf)


def flooded_fraction(loss: Tensor, level: float | Tensor | None, weight: Tensor | None = None) -> Tensor:
    """Share of the losses that lie strictly below their level.

    Args:
        loss: Raw loss, 0-d (then the share is 0 or 1) or ``[batch, ...]``.
        level: Level in the unit of ``loss``; None floods nothing.
        weight: Weight or mask of the shape of ``loss``; losses of weight 0 are not counted.

    Returns:
        A 0-d float32 tensor in [0, 1], on the device of ``loss``; 0 where nothing is counted.

    Example:
        >>> flooded_fraction(torch.tensor([0.0, 0.1, 0.3, 0.4]), 0.1)
        tensor(0.2500)
    """
    below = _below(loss, level)
    if weight is None:
        return below.float().mean()
    return (below & (weight != 0)).sum() / weight.count_nonzero().clamp_min(1)


def _levels(levels: Any) -> Tensor:
    rule = "levels must be a 1-d tensor of finite numbers"
    try:
        levels = torch.as_tensor(levels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{rule}, got {levels!r:.80}. Pass a tensor, an array or a list of numbers.") from error
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
            raise TypeError(f"levels per class need the targets, got {type(y).__name__}. Pass them as target=y.")
        if y.is_floating_point():
            raise TypeError(f"levels per class need integer classes, got {y.dtype}. For soft targets see Excess.")
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

    An example without a level gets level NaN, which makes the objective NaN: never level 0, and no host sync in the
    hot path. Call ``check(ids)`` once before training to turn that into an error that names the ids.

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
            raise ValueError(f"levels and ids must have equal length, got {len(levels)} and {len(ids)}.")
        ids, order = ids.sort()
        if (ids[1:] == ids[:-1]).any():
            raise ValueError("every id must come once, got one twice. Average the levels of an example first.")
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
            raise ValueError("levels per example need the examples' ids, got none. Pass id=..., one per example.")
        place, found = self._find(id)
        return self.levels[place].masked_fill(~found, math.nan)

    def check(self, ids: Tensor) -> None:
        """Make sure that every example has a level. Reads the answer back, so call it before training.

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
    """Entropy of each target distribution, ``H(t) = -sum_c t_c ln t_c``: the lowest cross-entropy it allows.

    Args:
        target: Classes, int64 of any shape, or probabilities ``[batch, classes, ...]`` (soft labels, mixup).
        classes: Number of classes.
        label_smoothing: Share spread evenly over all classes, as in ``nn.CrossEntropyLoss``, in [0, 1].

    Returns:
        Entropies in nats, of the shape of the losses; 0 for hard labels without smoothing.

    Example:
        >>> target_entropy(torch.tensor([0, 1]), classes=2, label_smoothing=0.1)
        tensor([0.1985, 0.1985])
    """
    if target.is_floating_point():
        mixed = (1 - label_smoothing) * target + label_smoothing / classes
        return torch.special.entr(mixed).sum(1)
    return torch.full(target.shape, _floor(classes, label_smoothing), device=target.device)


def _floor(classes: int, label_smoothing: float) -> float:
    # Entropy of a smoothed hard label, as a number: it costs no tensor and no look at the device.
    off = label_smoothing / classes
    on = 1 - label_smoothing + off
    return 0.0 - on * math.log(on) - (classes - 1) * (off * math.log(off) if off else 0.0)


def excess(losses: Tensor, target: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropies less their targets' entropies, ``l_i - H(t_i)``: the divergence that training can still remove.

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
    """A level for the excess loss ``l_i - H(t_i)``, that is the level ``b + H(t_i)`` for the loss itself.

    ``|l - (b + H)| + (b + H)`` is ``|(l - H) - b| + b`` plus a constant, so the gradients agree, while the raw loss and
    evaluation stay plain. Methods on the batch mean use the mean of ``H`` over the batch.

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
        _finite(self.level)
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {self.label_smoothing}. Use the criterion's.")

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
        lookup: :class:`PerClass`, :class:`PerExample`, :class:`Excess` or another object with their ``at``.
        target: The targets.
        ids: Ids of the examples, or None.
        weight: Weights of the losses as :func:`example_weight` gives them, or None.

    Returns:
        The levels, as ``lookup.at`` gives them.
    """
    if isinstance(lookup, PerClass) and weight is not None:
        target = target.masked_fill(weight == 0, 0)
    return lookup.at(target, ids)


def _finite(level: Any) -> float:
    """Check that a level is one finite number: int, float, Fraction, or NumPy's of no axes; not a bool."""
    number = level[()] if isinstance(level, np.ndarray) and level.ndim == 0 else level
    if not isinstance(number, numbers.Real) or isinstance(number, (bool, np.bool_)):
        rule = "level must be a number, a 0-d tensor, PerClass, PerExample, Excess or None"
        raise TypeError(f"{rule}, got {level!r:.80}. {_level_advice(number)}")
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"level must be finite, got {level!s:.80}. Did the search read an empty record?")
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


class Flood(nn.Module):
    """A criterion that floods in training and is plain in evaluation.

    It floods only while the module is in training mode and the loss requires a gradient, so ``criterion.eval()``,
    ``torch.no_grad()`` and inference report the plain mean. Several losses with a level each are several criteria:
    ``Flood(nn.CrossEntropyLoss(), 0.1)(a, y) + Flood(nn.MSELoss(), 0.02)(b, z)``.

    What it saw in training stays readable as tensors, and nothing here reads them back to the host: ``raw_loss`` and
    ``flooded_loss`` of the last batch, ``flooded_fraction`` and ``n_nonfinite`` since the last ``reset()``. The level
    is a buffer, so ``torch.compile`` keeps one graph while it changes; it is not persistent, so state dicts of flooded
    and plain models load into each other.

    Edges: cross-entropy and NLL with ``reduction="none"``, as modules, functions or partials of them, keep torch's
    mean: examples of ``ignore_index`` count for nothing, and the level acts on the loss before the class weight. Other
    criteria of a per-example method give one loss per element, and each element counts as an example, unless the
    criterion has an ``ignore_index`` and one loss for each target. The reductions "mean", "none" and "sum" are
    believed; with any other word the shape of the loss decides. A ``sum`` inside a function's body cannot be detected.
    ``torch.func.vmap(grad(...))`` shows the criterion one example at a time, so a batch-level :func:`objective`
    silently becomes IFlood there; this class keeps counts and so raises. Warnings are given outside ``torch.compile``
    only.

    Args:
        criterion: A loss module or function, called with the arguments of ``forward``, with the reduction that
            ``method.reduction`` names.
        level: Level in the unit of the loss: a finite number, a 0-d tensor, :class:`PerClass`, :class:`PerExample`,
            :class:`Excess`, or None for plain training. Numbers are held in torch's default dtype.
        method: What to make of loss and level.

    Raises:
        TypeError: If the criterion is no loss, the level no level, or the method none that acts on the loss alone.
        ValueError: If the criterion sums, or has another reduction than the method needs.

    Example:
        >>> criterion = Flood(nn.CrossEntropyLoss(), level=0.5)
        >>> logits, y = torch.tensor([[2.0, 0.0]], requires_grad=True), torch.tensor([0])
        >>> criterion(logits, y), criterion.raw_loss, criterion.flooded_fraction
        (tensor(0.8731, grad_fn=<WhereBackward0>), tensor(0.1269), tensor(1.))
        >>> criterion.eval()(logits, y)
        tensor(0.1269, grad_fn=<NllLossBackward0>)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML 2020, section 3.
    """

    raw_loss: Tensor
    flooded_loss: Tensor
    n_flooded: Tensor
    n_seen: Tensor
    n_nonfinite: Tensor
    _scalar: Tensor

    def __init__(
        self,
        criterion: Callable[..., Tensor],
        level: float | Tensor | PerClass | PerExample | Excess | None,
        method: Method = Flooding(),
    ) -> None:
        super().__init__()
        _check_criterion(criterion)
        _check_method(method)
        _check_word(criterion, method)
        if isinstance(level, nn.Parameter):
            raise TypeError("level must not be a Parameter, since nothing would train it. Pass level.detach().")
        if isinstance(level, nn.Module):  # torch would take it for a part of this module
            _finite(level)
        if isinstance(level, Tensor) and not level.isfinite().all():
            raise ValueError(f"level must be finite, got {level}. Did the search read an empty record?")
        self.criterion = criterion
        self.method = method
        scalar = torch.full((), -math.inf)
        if isinstance(level, Tensor) and level.is_floating_point() and level.dtype.itemsize >= 4:
            scalar = scalar.to(level)
        self.register_buffer("_scalar", scalar, persistent=False)
        for name in ("raw_loss", "flooded_loss"):
            self.register_buffer(name, torch.full((), math.nan), persistent=False)
        for name in ("n_flooded", "n_seen", "n_nonfinite"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64), persistent=False)
        self._warned = False
        self.level = level

    @property
    def level(self) -> Tensor | PerClass | PerExample | Excess:
        """The level: a 0-d tensor (-inf stands for None) or the look-up it was given as.

        A number is checked when set; a tensor is copied unread, and if it holds NaN so will the objective.
        """
        return self._scalar if self._lookup is None else self._lookup

    @level.setter
    def level(self, level: float | Tensor | PerClass | PerExample | Excess | None) -> None:
        unchecked = lookup = None
        if isinstance(level, (PerClass, PerExample, Excess)):
            if self.method.reduction == "mean" and not isinstance(level, Excess):
                raise ValueError(
                    f"{type(level).__name__} needs a method on each example, got {type(self.method).__name__}, which "
                    "floods the batch mean. Use IFlood() and reduction='none'."
                )
            if isinstance(level, Excess) and loss_options(self.criterion).weight is not None:
                raise ValueError("Excess knows no class weights, got a criterion with some. Use a plain level.")
            lookup = level.to(self._scalar.device)
            self._scalar.fill_(-math.inf)
        elif isinstance(level, Tensor):
            if level.dim():
                raise ValueError(f"a level tensor must be 0-d, got shape {tuple(level.shape)}. See PerClass.")
            if level.dtype == torch.bool or level.is_complex():
                raise TypeError(f"a level tensor must hold a real number, got {level.dtype}. Convert it.")
            self._scalar.copy_(level.detach())
        elif level is None:
            self._scalar.fill_(-math.inf)
        else:
            unchecked = _finite(level)
            if abs(unchecked) > torch.finfo(self._scalar.dtype).max:
                raise ValueError(f"level must be finite in {self._scalar.dtype}, got {level}. Is the unit right?")
            self._scalar.fill_(unchecked)
        self._unchecked, self._lookup = unchecked, lookup

    @property
    def flooded_fraction(self) -> Tensor:
        """Share of training batches (of examples, for methods on each example) strictly below the level; NaN if none.

        Counted since the last ``reset()``.
        """
        return self.n_flooded / self.n_seen

    def extra_repr(self) -> str:
        """Show level and method; reads the level, so it waits for a GPU."""
        level = f"{self._scalar.item():.6g}" if self._lookup is None else type(self._lookup).__name__
        return f"level={'None' if level == '-inf' else level}, method={self.method}"

    def reset(self) -> None:
        """Start the running counts ``n_flooded``, ``n_seen`` and ``n_nonfinite`` again from 0."""
        for count in (self.n_flooded, self.n_seen, self.n_nonfinite):
            count.zero_()

    def forward(self, *args: Any, id: Tensor | None = None, **kwargs: Any) -> Tensor:  # ruff: ignore[builtin-argument-shadowing]
        """Compute the loss of a batch, flooded in training.

        Args:
            *args: Arguments of the criterion; the second, or ``target=``, is the target.
            id: Ids of the batch's examples ``[batch]``, for :class:`PerExample`.
            **kwargs: Further arguments of the criterion.

        Returns:
            A scalar.

        Raises:
            ValueError: If the criterion returns something else than the raw loss that the method needs.
            RuntimeError: Under ``torch.func``, where nothing can be counted.
        """
        loss = call_loss(self.criterion, *args, **kwargs)
        if (self.method.reduction == "mean") != (loss.dim() == 0):
            raise ValueError(_needs(self.method, f"got shape {tuple(loss.shape)}"))
        # A compiled graph must not depend on the number, so it does not look at it.
        unchecked = None if torch.compiler.is_compiling() else self._unchecked
        call = None  # a scalar loss of two arguments needs no options
        if loss.dim() or kwargs or len(args) > 2 or self._lookup is not None or unchecked is not None:
            call = loss_options(self.criterion, args, kwargs)
            if call.reduction == "sum":
                raise ValueError(_needs(self.method, "got a call with reduction='sum'"))
        weight = _weight(call, loss) if call is not None and loss.dim() else None
        plain = loss
        if loss.dim():
            plain = loss.mean() if weight is None else loss.sum() / _or_one(weight.sum())
        if not (self.training and loss.requires_grad):
            return plain

        if call is not None and unchecked is not None:
            self._unchecked = None
            self._warn(call, unchecked)
        if self._scalar.device != loss.device:
            self._apply(lambda t: t.to(loss.device), recurse=False)
        level = self._level_at(loss, None if call is None else call.target, id, weight)
        if weight is not None:
            loss = loss / _or_one(weight)  # the level acts on the loss before its class weight
        flooded = objective(loss, level, self.method, weight)
        with torch.no_grad():
            try:
                self._count(loss, level, weight)
            except RuntimeError as error:
                if "in-place" not in str(error):
                    raise
                raise RuntimeError(
                    "Flood counts in-place, which torch.func does not allow. Call objective(loss, level, method) there."
                ) from error
            self.raw_loss, self.flooded_loss = plain.detach(), flooded.detach()
        return flooded

    def _level_at(self, loss: Tensor, target: Any, ids: Tensor | None, weight: Tensor | None) -> Tensor:
        if self._lookup is None:
            return self._scalar
        level = lookup_levels(self._lookup, target, ids, weight)
        if loss.dim() == 0:
            return level.mean()  # with ignore_index too: hard labels, alone in having it, all have one entropy
        return level.reshape(level.shape + (1,) * (loss.dim() - level.dim()))

    def _count(self, loss: Tensor, level: Tensor, weight: Tensor | None) -> None:
        below = _below(loss, level)
        if weight is None:
            self.n_seen += loss.numel()
        else:
            below &= weight != 0
            self.n_seen += weight.count_nonzero()
        self.n_flooded += below.sum()
        self.n_nonfinite += loss.numel() - loss.isfinite().sum()

    def _warn(self, call: LossOptions, level: float) -> None:
        """Compare a level set as a number with what the first batch tells about the classes, once."""
        classes = _guessed_classes(call)
        if self._warned or classes is None:
            return
        smoothing = call.label_smoothing
        if level > math.log(classes):
            self._warned = True
            warnings.warn(
                f"the level should lie below ln {classes} = {math.log(classes):.4f}, the loss of a guess, got {level}. "
                "Choose a level between 0 and the lowest validation loss of a plain run.",
                UserWarning,
                stacklevel=5,
            )
        elif smoothing > 0 and level < (floor := _floor(classes, smoothing)):
            self._warned = True
            warnings.warn(
                f"the level should lie above {floor:.4f}, the lowest loss that label smoothing {smoothing} allows, got "
                f"{level}: it floods nothing. Use Excess(level, classes={classes}, label_smoothing={smoothing}).",
                UserWarning,
                stacklevel=5,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Flood:
        scalar = self._scalar
        super()._apply(fn, recurse)
        if self._scalar.dtype.itemsize < 4:
            # model.half() must not round the level: bfloat16 cannot tell 0.0500 from 0.0502.
            self._scalar = scalar.to(self._scalar.device)
        if self._lookup is not None:
            self._lookup = self._lookup.to(self._scalar.device)
        return self


def _guessed_classes(call: LossOptions) -> int | None:
    # The classes, where a guess (the same probability for each) loses exactly the log of their number: not so with
    # pos_weight or a weight of elements, nor for soft targets, which need not add up to 1.
    weighted = call.weight is not None or call.pos_weight is not None
    if not isinstance(call.input, Tensor) or not isinstance(call.target, Tensor):
        return None
    if call.function in BINARY:
        return None if weighted else 2
    if call.function not in (F.cross_entropy, F.nll_loss) or call.target.is_floating_point():
        return None
    if weighted and call.label_smoothing > 0:
        return None
    return call.input.shape[min(1, call.input.dim() - 1)]


def _check_criterion(criterion: Any) -> None:
    if isinstance(criterion, type):
        name = criterion.__name__
        raise TypeError(f"criterion must be a loss, got the class {name}. Build it first: {name}().")
    if not callable(criterion):
        raise TypeError(
            f"criterion must be a loss to call with outputs and targets, got {criterion!r:.80}. The order is "
            "Flood(criterion, level)."
        )


def _check_method(method: Any) -> None:
    if isinstance(method, WaveBound):
        raise TypeError("WaveBound's level is a teacher's loss on each batch. Call objective() with it instead.")
    if isinstance(method, type) or getattr(method, "reduction", None) not in ("mean", "none"):
        raise TypeError(f"method must be a method such as Flooding() or IFlood(), got {method!r:.80}. Build it first.")
    if hasattr(method, "penalty") or hasattr(method, "wrap"):
        raise TypeError(f"{type(method).__name__} needs more than the loss, so Flood cannot apply it. Use a Run.")


def _check_word(criterion: Any, method: Method) -> None:
    got = loss_options(criterion).reduction
    if got is None and signature_reduction(criterion) == "sum":
        got = "sum"  # a default: nobody set it
    if got in ("mean", "none", "sum") and got != method.reduction:
        raise ValueError(_needs(method, f"got a criterion with reduction={got!r}"))
    if method.reduction == "none":
        check_class_weight(criterion)


def check_reduction(loss: Any, name: str = "loss") -> None:
    """Make sure that nothing shows a loss to be other than the plain mean over a batch.

    Args:
        loss: A loss as a Problem takes it.
        name: What to call it in the error.

    Raises:
        ValueError: If it sums, gives a loss per example, is a class, or floods already.
    """
    if isinstance(loss, type):
        raise ValueError(f"the {name} must be built, got the class {loss.__name__}. Write {loss.__name__}().")
    if isinstance(loss, Flood):
        raise ValueError(f"the {name} must be plain, got Flood. Give the Problem its criterion and a Run the level.")
    word = signature_reduction(loss)
    if word == "none":
        raise ValueError(f"the {name} must be a batch's mean, got reduction='none'. Per-example methods find theirs.")
    if word == "sum":
        raise ValueError(
            f"the {name} must be a batch's mean, got reduction='sum', whose level would grow with the batch. Use "
            "reduction='mean'."
        )


def check_class_weight(loss: Any) -> None:
    """Make sure that it is known what the mean of a loss divides by, for methods on each example.

    Args:
        loss: A loss.

    Raises:
        ValueError: If it is a subclass of cross-entropy or NLL with class weights and a ``forward`` of its own.
    """
    options = loss_options(loss)
    core = unwrap(loss)[0]
    if options.function is None and isinstance(core, _WEIGHTED) and options.weight is not None:
        raise ValueError(
            f"class weights need the forward of torch, got {type(core).__name__} with one of its own, so what its mean "
            "divides by is unknown. Call objective(losses, level, method, weight) instead."
        )


_WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss)


def example_weight(criterion: Any, target: Any, loss: Tensor | None = None) -> Tensor | None:
    """Weight of each loss in the mean of a criterion: 0 for ``ignore_index``, the class weight of the others.

    Args:
        criterion: A loss: a module, a function, or a partial of one.
        target: Its target.
        loss: Its raw losses. A criterion that is not torch's own may give them another shape than its target has;
            then nothing is known of their weights.

    Returns:
        Weights of the shape of ``target``, or None where the mean is the plain one.
    """
    return _weight(loss_options(criterion)._replace(target=target), loss)


def _weight(call: LossOptions, loss: Tensor | None) -> Tensor | None:
    target = call.target
    if call.function in (F.mse_loss, F.l1_loss):
        return call.weight  # a weight of each element; None as a rule
    if call.ignore_index is None or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    if call.function is None and loss is not None and loss.shape != target.shape:
        return None
    target = target.long()  # in uint8 -100 is 156
    valid = target != call.ignore_index
    if call.weight is None or call.function not in CLASSES:
        return valid.to(torch.get_default_dtype())
    return call.weight.index_select(0, target.masked_fill(~valid, 0).reshape(-1)).reshape(target.shape) * valid


class Teacher(AveragedModel):
    """A slowly moving copy of a model, whose losses are the level of :class:`WaveBound`.

    Weights are exponential moving averages, buffers copies of the model's own. It always runs in evaluation mode and
    without gradients. Before the first ``update_parameters(model)`` it is a plain copy, and the first call copies too.

    Args:
        model: The model that learns; it is deep-copied.
        decay: Weight of the old average in each update, in [0, 1).

    Raises:
        ValueError: If ``decay`` lies outside [0, 1).

    Example:
        >>> model = nn.Linear(2, 1)
        >>> teacher = Teacher(model, decay=0.99)
        >>> teacher.update_parameters(model)  # after every optimiser step
        >>> x, y = torch.zeros(3, 2), torch.zeros(3, 1)
        >>> student, target = ((m(x) - y).square() for m in (model, teacher))
        >>> objective(student, target, WaveBound(epsilon=0.01)).backward()

    References:
        Cho et al., *WaveBound*, NeurIPS 2022, section 4.
    """

    def __init__(self, model: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}. The source uses 0.99.")
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:  # ruff: ignore[unused-method-argument]
        """Stay in evaluation mode, also as part of a model that trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the average without gradients."""
        return super().forward(*args, **kwargs)
