"""``Flood``: a criterion that floods in training and is plain in evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]

from flooding.levels.base import Controller, LevelTable, State
from flooding.levels.epoch_end import ControlledLevel
from flooding.levels.tables import (
    Excess,
    check_level_number,
    lookup_levels,
    smoothed_label_entropy,
)
from flooding.loss_errors import call_loss
from flooding.methods.base import Method, check_method
from flooding.methods.flooding import Flooding
from flooding.methods.objective import (
    has_reduction,
    is_below_level,
    objective,
    reduction_error,
    safe_divisor,
)
from flooding.text import brief
from flooding.torch_losses import (
    BINARY,
    LossOptions,
    call_weight,
    check_class_weight,
    loss_options,
    signature_reduction,
)

__all__ = ["Flood", "check_reduction"]


class Flood(ControlledLevel, nn.Module):
    """A criterion that floods in training and is plain in evaluation.

    It floods only while the module is in training mode and the loss requires a gradient, so
    ``criterion.eval()``, ``torch.no_grad()`` and inference report the plain mean. Several losses
    with a level each are several criteria:
    ``Flood(nn.CrossEntropyLoss(), 0.1)(a, y) + Flood(nn.MSELoss(), 0.02)(b, z)``.

    What it measured in training stays readable as tensors, and nothing here copies them to the
    host: ``raw_loss`` and ``flooded_loss`` of the last batch, ``flooded_fraction`` and
    ``n_nonfinite`` since the last ``reset()``.

    The level is a buffer, so ``torch.compile`` keeps one graph while it changes; it is not
    persistent, so state dicts of flooded and plain models load into each other.

    Edges: cross-entropy and NLL with ``reduction="none"``, as modules, functions or partials of
    them, keep torch's mean: examples of ``ignore_index`` are left out, and the level acts on the
    loss before the class weight. Other criteria of a per-example method give one loss per element,
    and each element counts as an example, unless the criterion has an ``ignore_index`` and one loss
    for each target. A reduction of "mean", "none" or "sum" is taken at its word; with any other
    word the shape of the loss decides. A ``sum`` inside a function's body cannot be detected.
    ``torch.func.vmap(grad(...))`` passes the criterion one example at a time, so a batch-level
    :func:`objective` silently becomes IFlood there; this class updates counts and so raises.
    Warnings are given outside ``torch.compile`` only.

    Args:
        criterion: A loss module or function, called with the arguments of ``forward``, with the
            reduction that ``method.reduction`` names.
        level: Level in the unit of the loss: a finite number, a 0-d tensor, a table such as
            :class:`PerClass`, :class:`PerExample` or :class:`Excess`, a controller such as
            :class:`flooding.levels.Auto`, or None for plain training. Numbers are stored in torch's
            default dtype. A controller sees the loss of every training batch; show it the end of an
            epoch by :meth:`on_epoch_end`.
        method: What to make of loss and level; None is :class:`flooding.methods.Flooding`.

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
        criterion: nn.Module | Callable[..., Tensor],
        level: float | Tensor | LevelTable | Controller | None,
        method: Method | None = None,
    ) -> None:
        super().__init__()
        method = Flooding() if method is None else method
        # 1. Check what the loss, the method and the level must have in common.
        _check_criterion(criterion)
        _check_method(method)
        _check_reductions(criterion, method)
        if isinstance(level, nn.Parameter):
            raise TypeError(
                "level must not be a Parameter, since nothing would train it. Pass level.detach()."
            )
        # torch would register a module as a part of this one before the setter could refuse it.
        if isinstance(level, nn.Module):
            check_level_number(level)
        if isinstance(level, Tensor) and not level.isfinite().all():
            raise ValueError(
                f"level must be finite, got {level}. Did the search read an empty record?"
            )
        self.criterion = criterion
        self.method = method

        # 2. The level is a buffer of the dtype of a level tensor, but of 32 bits at least.
        scalar = torch.full((), -math.inf)
        if isinstance(level, Tensor) and level.is_floating_point() and level.dtype.itemsize >= 4:
            scalar = scalar.to(level)
        self.register_buffer("_scalar", scalar, persistent=False)

        # 3. What a training measures. None of it is saved with the model.
        for name in ("raw_loss", "flooded_loss"):
            self.register_buffer(name, torch.full((), math.nan), persistent=False)
        for name in ("n_flooded", "n_seen", "n_nonfinite"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64), persistent=False)
        self._warned = False
        self.level = level

    @property
    def level(self) -> Tensor | LevelTable:
        """The level: a 0-d tensor (-inf stands for None) or a table.

        A number is checked when set; a tensor is copied unread, and if it holds NaN so will the
        objective.
        """
        if self._table is None:
            return self._scalar
        return self._table

    @level.setter
    def level(self, level: float | Tensor | LevelTable | Controller | None) -> None:
        number = table = None
        if isinstance(level, Controller) and not isinstance(level, type):
            # One that cannot begin is refused here, and the old level stays.
            self._set_controller(level, self._scalar.device)
            self._table = self._unchecked = None
            return
        if isinstance(level, LevelTable):
            self._check_table(level)
            table = level.to(self._scalar.device)
            self._scalar.fill_(-math.inf)
        elif isinstance(level, Tensor):
            _check_level_tensor(level)
            self._scalar.copy_(level.detach())
        elif level is None:
            self._scalar.fill_(-math.inf)
        else:
            number = check_level_number(level)
            if abs(number) > torch.finfo(self._scalar.dtype).max:
                raise ValueError(
                    f"level must be finite in {self._scalar.dtype}, got {level}. Is the unit right?"
                )
            self._scalar.fill_(number)
        self._table = table
        self._set_controller(None, self._scalar.device)
        # The next batch tells the number of classes, and so whether the number makes sense.
        self._unchecked = number

    def _put_controller_state(self, state: State) -> None:
        super()._put_controller_state(state)
        # A new tensor: the backward of the last batch may still need the old one.
        if state:
            self._scalar = state["level"].to(self._scalar.dtype)

    def _check_table(self, table: LevelTable) -> None:
        """Refuse a table that the method or the criterion cannot use."""
        if self.method.reduction == "mean" and not table.has_batch_mean:
            raise ValueError(
                f"{type(table).__name__} needs a method on each example, got "
                f"{type(self.method).__name__}, which floods the batch mean. Use IFlood() and "
                "reduction='none'."
            )
        if isinstance(table, Excess) and loss_options(self.criterion).weight is not None:
            raise ValueError(
                "Excess supports no class weights, got a criterion with some. Use a plain level."
            )

    @property
    def flooded_fraction(self) -> Tensor:
        """Share of the training batches strictly below the level since the last ``reset()``.

        For methods on each example it is the share of the examples. NaN before the first batch.
        """
        return self.n_flooded / self.n_seen

    def extra_repr(self) -> str:
        """Show criterion, level and method; reads the level, so it waits for a GPU."""
        number = self._scalar.item()
        if self._table is not None:
            level = type(self._table).__name__
        elif number == -math.inf:
            level = "None"
        else:
            level = f"{number:.6g}"
        text = f"level={level}, method={self.method}"
        # torch shows a module by itself, but no function.
        if isinstance(self.criterion, nn.Module):
            return text
        return f"criterion={brief(self.criterion)}, {text}"

    def reset(self) -> None:
        """Start the running counts ``n_flooded``, ``n_seen`` and ``n_nonfinite`` again from 0."""
        for count in (self.n_flooded, self.n_seen, self.n_nonfinite):
            count.zero_()

    def forward(self, *args: object, ids: Tensor | None = None, **kwargs: object) -> Tensor:
        """Compute the loss of a batch, flooded in training.

        Args:
            *args: Arguments of the criterion; the second, or ``target=``, is the target.
            ids: Ids of the batch's examples ``[batch]``, for :class:`PerExample`.
            **kwargs: Further arguments of the criterion.

        Returns:
            A scalar.

        Raises:
            ValueError: If the criterion returns something else than the raw loss that the method
                needs.
            RuntimeError: Under ``torch.func``, where nothing can be counted.
        """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
        loss = call_loss(self.criterion, *args, **kwargs)
        if not has_reduction(loss, self.method):
            raise ValueError(reduction_error(self.method, f"got shape {tuple(loss.shape)}"))
        # A number that was set since the last batch. A compiled graph must not depend on it.
        unchecked = None
        if not torch.compiler.is_compiling():
            unchecked = self._unchecked

        # Options of the loss and the weights of the examples; the common call, a scalar loss of two
        # arguments, needs neither.
        options = weight = None
        is_common_call = not (loss.dim() or kwargs or len(args) > 2)
        if not is_common_call or self._table is not None or unchecked is not None:
            options = loss_options(self.criterion, args, kwargs)
            if options.reduction == "sum":
                raise ValueError(reduction_error(self.method, "got a call with reduction='sum'"))
        if loss.dim() and options is not None:
            weight = call_weight(options, loss)

        # The plain mean, as torch's own criterion computes it.
        plain = _plain_mean(loss, weight)
        if not (self.training and loss.requires_grad):
            return plain

        if options is not None and unchecked is not None:
            self._unchecked = None
            self._warn(options, unchecked)
        if self._scalar.device != loss.device:
            self._apply(lambda t: t.to(loss.device), recurse=False)

        # The flooded objective. The level acts on the loss before its class weight.
        level = self._batch_level(loss, options, ids, weight)
        if weight is not None:
            loss = loss / safe_divisor(weight)
        flooded = objective(loss, level, self.method, weight)
        with torch.no_grad():
            self._count(loss, level, weight)
            self.raw_loss, self.flooded_loss = plain.detach(), flooded.detach()
            self._show_step(self.raw_loss)
        return flooded

    def _batch_level(
        self,
        loss: Tensor,
        options: LossOptions | None,
        ids: Tensor | None,
        weight: Tensor | None,
    ) -> Tensor:
        """Give the level in force for a batch, in a shape that broadcasts against the loss."""
        if self._table is None:
            return self._scalar
        target = None if options is None else options.target
        level = lookup_levels(self._table, target, ids, weight)  # type: ignore[arg-type]
        if loss.dim() == 0:
            # The mean is right with ignore_index too: only hard labels have one, and their
            # entropies are all equal.
            return level.mean()
        return level.reshape(level.shape + (1,) * (loss.dim() - level.dim()))

    def _count(self, loss: Tensor, level: Tensor, weight: Tensor | None) -> None:
        """Update the running counts by one batch."""
        below = is_below_level(loss, level)
        try:
            if weight is None:
                self.n_seen += loss.numel()
            else:
                below &= weight != 0
                self.n_seen += weight.count_nonzero()
            self.n_flooded += below.sum()
            self.n_nonfinite += loss.numel() - loss.isfinite().sum()
        except RuntimeError as error:
            if "in-place" not in str(error):
                raise
            raise RuntimeError(
                "Flood counts in-place, which torch.func does not allow. Call "
                "objective(loss, level, method) there."
            ) from error

    def _warn(self, options: LossOptions, level: float) -> None:
        """Warn once of a number that is no sensible level for the number of classes."""
        classes = _guessing_classes(options)
        if self._warned or classes is None:
            return
        smoothing = options.label_smoothing
        guess = math.log(classes)
        floor = -math.inf
        if smoothing > 0:
            floor = smoothed_label_entropy(classes, smoothing)
        if level > guess:
            message = (
                f"the level should lie below ln {classes} = {guess:.4f}, the loss of a guess, got "
                f"{level}. Choose a level between 0 and the lowest validation loss of a plain run."
            )
        elif level < floor:
            message = (
                f"the level should lie above {floor:.4f}, the lowest loss that label smoothing "
                f"{smoothing} allows, got {level}: it floods nothing. Use "
                f"Excess(level, classes={classes}, label_smoothing={smoothing})."
            )
        else:
            return
        self._warned = True
        warnings.warn(message, UserWarning, stacklevel=5)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Flood:
        """Move or convert the buffers, as ``to()`` and ``half()`` ask."""
        scalar = self._scalar
        super()._apply(fn, recurse)
        if self._scalar.dtype.itemsize < 4:
            # model.half() must not round the level: bfloat16 cannot tell 0.0500 from 0.0502.
            self._scalar = scalar.to(self._scalar.device)
        device = self._scalar.device
        self._controller_state = {n: t.to(device) for n, t in self._controller_state.items()}
        if self._table is not None:
            self._table = self._table.to(self._scalar.device)
        return self


def _check_level_tensor(level: Tensor) -> None:
    """Refuse a level tensor that is not one real number; its value is not read."""
    if level.dim():
        raise ValueError(
            f"a level tensor must be 0-d, got shape {tuple(level.shape)}. See PerClass."
        )
    if level.dtype == torch.bool or level.is_complex():
        raise TypeError(f"a level tensor must hold a real number, got {level.dtype}. Convert it.")


def _plain_mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    """Compute torch's mean of raw losses; a scalar is the mean already."""
    if loss.dim() == 0:
        return loss
    if weight is None:
        return loss.mean()
    return loss.sum() / safe_divisor(weight.sum())


def _guessing_classes(call: LossOptions) -> int | None:
    """Give the number of classes C where a uniform guess has a loss of exactly ln C, else None."""
    # It has another loss with pos_weight or a weight of elements, and for soft targets, which need
    # not add up to 1.
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


def _check_criterion(criterion: object) -> None:
    """Refuse what cannot be called as a loss."""
    if isinstance(criterion, type):
        name = criterion.__name__
        raise TypeError(
            f"criterion must be a loss, got the class {name}. Build it first: {name}()."
        )
    if not callable(criterion):
        raise TypeError(
            "criterion must be a loss to call with outputs and targets, got "
            f"{criterion!r:.80}. The order is Flood(criterion, level)."
        )


def _check_method(method: Method) -> None:
    """Refuse what is no method, or one that needs more than a loss and a level."""
    check_method(method)
    name = type(method).__name__
    if method.level_source == "teacher":
        raise TypeError(
            f"{name}'s level is a teacher's loss on each batch. Call objective() with it instead."
        )
    if method.needs_run:
        raise TypeError(f"{name} needs more than the loss, so Flood cannot apply it. Use a Run.")


def _check_reductions(criterion: Callable[..., Tensor], method: Method) -> None:
    """Refuse a criterion whose options or defaults name another reduction than the method's."""
    reduction = loss_options(criterion).reduction
    # Of the defaults in a signature only "sum" counts: nobody chose it.
    if reduction is None and signature_reduction(criterion) == "sum":
        reduction = "sum"
    if reduction in {"mean", "none", "sum"} and reduction != method.reduction:
        error = reduction_error(method, f"got a criterion with reduction={reduction!r}")
        raise ValueError(error)
    if method.reduction == "none":
        check_class_weight(criterion)


def check_reduction(loss: object, name: str = "loss") -> None:
    """Check, as far as its options tell, that a loss is the plain mean over a batch.

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
            f"the {name} must be plain, got Flood. Give the Problem its criterion and a Run the "
            "level."
        )
    reduction = signature_reduction(loss)
    if reduction == "none":
        raise ValueError(
            f"the {name} must be a batch's mean, got reduction='none'. Per-example methods set it "
            "themselves."
        )
    if reduction == "sum":
        raise ValueError(
            f"the {name} must be a batch's mean, got reduction='sum', whose level would grow with "
            "the batch. Use reduction='mean'."
        )
