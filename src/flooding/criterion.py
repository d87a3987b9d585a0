"""``Flood``: a criterion that floods in training and is plain in evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]

from flooding.levels.tables import (
    Excess,
    PerClass,
    PerExample,
    check_level_number,
    lookup_levels,
    smoothed_label_entropy,
)
from flooding.methods.base import Method
from flooding.methods.flooding import Flooding
from flooding.methods.objective import is_below_level, objective, reduction_error, safe_divisor
from flooding.methods.wavebound import WaveBound
from flooding.torch_losses import (
    BINARY,
    LossOptions,
    _weight,
    call_loss,
    check_class_weight,
    loss_options,
    signature_reduction,
)

__all__ = ["Flood", "check_reduction"]


class Flood(nn.Module):
    """A criterion that floods in training and is plain in evaluation.

    It floods only while the module is in training mode and the loss requires a gradient, so
    ``criterion.eval()``, ``torch.no_grad()`` and inference report the plain mean. Several losses
    with a level each are several criteria:
    ``Flood(nn.CrossEntropyLoss(), 0.1)(a, y) + Flood(nn.MSELoss(), 0.02)(b, z)``.

    What it saw in training stays readable as tensors, and nothing here reads them back to the host:
    ``raw_loss`` and ``flooded_loss`` of the last batch, ``flooded_fraction`` and ``n_nonfinite``
    since the last ``reset()``. The level is a buffer, so ``torch.compile`` keeps one graph while it
    changes; it is not persistent, so state dicts of flooded and plain models load into each other.

    Edges: cross-entropy and NLL with ``reduction="none"``, as modules, functions or partials of
    them, keep torch's mean: examples of ``ignore_index`` count for nothing, and the level acts on
    the loss before the class weight. Other criteria of a per-example method give one loss per
    element, and each element counts as an example, unless the criterion has an ``ignore_index`` and
    one loss for each target. The reductions "mean", "none" and "sum" are believed; with any other
    word the shape of the loss decides. A ``sum`` inside a function's body cannot be detected.
    ``torch.func.vmap(grad(...))`` shows the criterion one example at a time, so a batch-level
    :func:`objective` silently becomes IFlood there; this class keeps counts and so raises. Warnings
    are given outside ``torch.compile`` only.

    Args:
        criterion: A loss module or function, called with the arguments of ``forward``, with the
            reduction that ``method.reduction`` names.
        level: Level in the unit of the loss: a finite number, a 0-d tensor, :class:`PerClass`,
            :class:`PerExample`, :class:`Excess`, or None for plain training. Numbers are held in
            torch's default dtype.
        method: What to make of loss and level.

    Raises:
        TypeError: If the criterion is no loss, the level no level, or the method none that acts on
            the loss alone.
        ValueError: If the criterion sums, or has another reduction than the method needs.

    Example:
        >>> criterion = Flood(nn.CrossEntropyLoss(), level=0.5)
        >>> logits, y = torch.tensor([[2.0, 0.0]], requires_grad=True), torch.tensor([0])
        >>> criterion(logits, y), criterion.raw_loss, criterion.flooded_fraction
        (tensor(0.8731, grad_fn=<WhereBackward0>), tensor(0.1269), tensor(1.))
        >>> criterion.eval()(logits, y)
        tensor(0.1269, grad_fn=<NllLossBackward0>)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, section 3.
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
            raise TypeError(
                "level must not be a Parameter, since nothing would train it. Pass level.detach()."
            )
        if isinstance(level, nn.Module):  # torch would take it for a part of this module
            check_level_number(level)
        if isinstance(level, Tensor) and not level.isfinite().all():
            raise ValueError(
                f"level must be finite, got {level}. Did the search read an empty record?"
            )
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

        A number is checked when set; a tensor is copied unread, and if it holds NaN so will the
        objective.
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
                raise ValueError(
                    "Excess knows no class weights, got a criterion with some. Use a plain level."
                )
            lookup = level.to(self._scalar.device)
            self._scalar.fill_(-math.inf)
        elif isinstance(level, Tensor):
            if level.dim():
                raise ValueError(
                    f"a level tensor must be 0-d, got shape {tuple(level.shape)}. See PerClass."
                )
            if level.dtype == torch.bool or level.is_complex():
                raise TypeError(
                    f"a level tensor must hold a real number, got {level.dtype}. Convert it."
                )
            self._scalar.copy_(level.detach())
        elif level is None:
            self._scalar.fill_(-math.inf)
        else:
            unchecked = check_level_number(level)
            if abs(unchecked) > torch.finfo(self._scalar.dtype).max:
                raise ValueError(
                    f"level must be finite in {self._scalar.dtype}, got {level}. Is the unit right?"
                )
            self._scalar.fill_(unchecked)
        self._unchecked, self._lookup = unchecked, lookup

    @property
    def flooded_fraction(self) -> Tensor:
        """Share of training batches (of examples, for methods on each example) strictly below the
        level; NaN if none.

        Counted since the last ``reset()``.
        """
        return self.n_flooded / self.n_seen

    def extra_repr(self) -> str:
        """Show level and method; reads the level, so it waits for a GPU."""
        level = (
            f"{self._scalar.item():.6g}" if self._lookup is None else type(self._lookup).__name__
        )
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
            ValueError: If the criterion returns something else than the raw loss that the method
                needs.
            RuntimeError: Under ``torch.func``, where nothing can be counted.
        """
        loss = call_loss(self.criterion, *args, **kwargs)
        if (self.method.reduction == "mean") != (loss.dim() == 0):
            raise ValueError(reduction_error(self.method, f"got shape {tuple(loss.shape)}"))
        # A compiled graph must not depend on the number, so it does not look at it.
        unchecked = None if torch.compiler.is_compiling() else self._unchecked
        call = None  # a scalar loss of two arguments needs no options
        if (
            loss.dim()
            or kwargs
            or len(args) > 2
            or self._lookup is not None
            or unchecked is not None
        ):
            call = loss_options(self.criterion, args, kwargs)
            if call.reduction == "sum":
                raise ValueError(reduction_error(self.method, "got a call with reduction='sum'"))
        weight = _weight(call, loss) if call is not None and loss.dim() else None
        plain = loss
        if loss.dim():
            plain = loss.mean() if weight is None else loss.sum() / safe_divisor(weight.sum())
        if not (self.training and loss.requires_grad):
            return plain

        if call is not None and unchecked is not None:
            self._unchecked = None
            self._warn(call, unchecked)
        if self._scalar.device != loss.device:
            self._apply(lambda t: t.to(loss.device), recurse=False)
        level = self._level_at(loss, None if call is None else call.target, id, weight)
        if weight is not None:
            loss = loss / safe_divisor(weight)  # the level acts on the loss before its class weight
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

    def _level_at(
        self, loss: Tensor, target: Any, ids: Tensor | None, weight: Tensor | None
    ) -> Tensor:
        if self._lookup is None:
            return self._scalar
        level = lookup_levels(self._lookup, target, ids, weight)
        if loss.dim() == 0:
            return (
                level.mean()
            )  # with ignore_index too: hard labels, alone in having it, all have one entropy
        return level.reshape(level.shape + (1,) * (loss.dim() - level.dim()))

    def _count(self, loss: Tensor, level: Tensor, weight: Tensor | None) -> None:
        below = is_below_level(loss, level)
        if weight is None:
            self.n_seen += loss.numel()
        else:
            below &= weight != 0
            self.n_seen += weight.count_nonzero()
        self.n_flooded += below.sum()
        self.n_nonfinite += loss.numel() - loss.isfinite().sum()

    def _warn(self, call: LossOptions, level: float) -> None:
        """Compare a level set as a number with what the first batch tells about the classes,
        once.
        """
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
        elif smoothing > 0 and level < (floor := smoothed_label_entropy(classes, smoothing)):
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
    # The classes, where a guess (the same probability for each) loses exactly the log of their
    # number: not so with pos_weight or a weight of elements, nor for soft targets, which need not
    # add up to 1.
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
        raise TypeError(
            f"criterion must be a loss, got the class {name}. Build it first: {name}()."
        )
    if not callable(criterion):
        raise TypeError(
            f"criterion must be a loss to call with outputs and targets, got {criterion!r:.80}. The order is "
            "Flood(criterion, level)."
        )


def _check_method(method: Any) -> None:
    if isinstance(method, WaveBound):
        raise TypeError(
            "WaveBound's level is a teacher's loss on each batch. Call objective() with it instead."
        )
    if isinstance(method, type) or getattr(method, "reduction", None) not in ("mean", "none"):
        raise TypeError(
            f"method must be a method such as Flooding() or IFlood(), got {method!r:.80}. Build it first."
        )
    if hasattr(method, "penalty") or hasattr(method, "wrap"):
        raise TypeError(
            f"{type(method).__name__} needs more than the loss, so Flood cannot apply it. Use a Run."
        )


def _check_word(criterion: Any, method: Method) -> None:
    got = loss_options(criterion).reduction
    if got is None and signature_reduction(criterion) == "sum":
        got = "sum"  # a default: nobody set it
    if got in ("mean", "none", "sum") and got != method.reduction:
        raise ValueError(reduction_error(method, f"got a criterion with reduction={got!r}"))
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
        raise ValueError(
            f"the {name} must be built, got the class {loss.__name__}. Write {loss.__name__}()."
        )
    if isinstance(loss, Flood):
        raise ValueError(
            f"the {name} must be plain, got Flood. Give the Problem its criterion and a Run the level."
        )
    word = signature_reduction(loss)
    if word == "none":
        raise ValueError(
            f"the {name} must be a batch's mean, got reduction='none'. Per-example methods find theirs."
        )
    if word == "sum":
        raise ValueError(
            f"the {name} must be a batch's mean, got reduction='sum', whose level would grow with the batch. Use "
            "reduction='mean'."
        )
