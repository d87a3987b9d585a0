"""What a loss says about itself: its function of torch, its reduction, what it ignores and how it
weighs.

:func:`loss_options` is the one place that recognises a loss, whatever it is wrapped in. A loss that
is not torch's own is judged by what it returns.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]

__all__ = [
    "BINARY",
    "CLASSES",
    "LossOptions",
    "call_loss",
    "check_class_weight",
    "example_weight",
    "loss_options",
    "reduction_word",
    "signature_reduction",
    "unwrap",
]

_FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
}


if hasattr(F, "linear_cross_entropy"):  # since torch 2.13
    _FUNCTIONS[nn.LinearCrossEntropyLoss] = F.linear_cross_entropy


_PARAMETERS = {
    function: tuple(inspect.signature(function).parameters) for function in _FUNCTIONS.values()
}
_ATTRIBUTES = ("reduction", "weight", "ignore_index", "label_smoothing", "pos_weight")

_READ: dict[Any, tuple[str, ...]] = {
    f: tuple(name for name in _ATTRIBUTES if name in names) for f, names in _PARAMETERS.items()
}

# Losses of class indices: their mean divides by the class weights of the examples that are not
# ignored.
CLASSES = tuple(function for function, names in _PARAMETERS.items() if "ignore_index" in names)
_INDICES = (torch.int64, torch.uint8)
BINARY = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)


class LossOptions(NamedTuple):
    """Options of a loss, and the input and target of one call of it."""

    function: (
        Callable[..., Tensor] | None
    )  # the function of torch that computes it; None: a loss of your own
    reduction: str | None  # as set, in lower case; None: unknown, what the loss returns decides
    weight: Tensor | None
    ignore_index: int | None
    label_smoothing: float
    pos_weight: Tensor | None
    input: Any
    target: Any


def unwrap(loss: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Look through partials, ``functools.wraps``, ``torch.compile`` and a module's bound
    ``forward``.

    Args:
        loss: A loss.

    Returns:
        The module or function inside, and the positional and keyword arguments that partials bind.
    """
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while True:
        if isinstance(loss, functools.partial):
            args, keywords = loss.args + args, {**loss.keywords, **keywords}
            loss = loss.func
        elif isinstance(loss, nn.Module):
            if "_orig_mod" not in loss._modules:  # torch.compile keeps the module there
                return loss, args, keywords
            loss = loss._modules["_orig_mod"]
        elif hasattr(loss, "__wrapped__"):
            loss = loss.__wrapped__
        elif isinstance(getattr(loss, "__self__", None), nn.Module) and loss.__name__ == "forward":
            loss = loss.__self__
        else:
            return loss, args, keywords


def _torch_function(core: Any) -> Callable[..., Tensor] | None:
    """Give the function of torch that a module or function computes, None for a loss of the user's
    own.
    """
    if not isinstance(core, nn.Module):
        return next((function for function in _PARAMETERS if function is core), None)
    for kind, function in _FUNCTIONS.items():
        if isinstance(core, kind):
            overridden = type(core).forward is not kind.forward or "forward" in vars(core)
            return None if overridden else function
    return None


def loss_options(
    loss: Any, args: tuple[Any, ...] = (), keywords: Mapping[str, Any] | None = None
) -> LossOptions:
    """Read the options of a loss: a module, a function, or either one wrapped.

    A subclass with a ``forward`` of its own is a loss of your own: its ``weight`` is read, but what
    its mean divides by is unknown.

    Args:
        loss: A loss.
        args: Positional arguments of a call of it.
        keywords: Keyword arguments of that call. They win over bound arguments, and those over
            attributes.

    Returns:
        The options.
    """
    core, bound, options = unwrap(loss)
    function = _torch_function(core)
    if isinstance(core, nn.Module) or function is None:
        given = {name: getattr(core, name, None) for name in _READ.get(function, _ATTRIBUTES)}
        given.update(zip(("input", "target"), args, strict=False))
    else:
        given = dict(zip(_PARAMETERS[function], bound + args, strict=False))
    given.update(options)
    given.update(keywords or {})
    ignored = given.get("ignore_index")
    if ignored is None:
        ignored = -100 if function in CLASSES else _defaults(core).get("ignore_index")
    return LossOptions(
        function=function,
        reduction=reduction_word(given),
        weight=given.get("weight"),
        ignore_index=ignored if isinstance(ignored, int) else None,
        label_smoothing=given.get("label_smoothing") or 0.0,
        pos_weight=given.get("pos_weight"),
        input=given.get("input"),
        target=given.get("target"),
    )


def _defaults(function: Any) -> dict[str, Any]:
    """Read the defaults of a function of the user's own; ``inspect.signature`` is too slow for each
    batch.
    """
    if not isinstance(function, FunctionType):
        return {}
    code, values = function.__code__, function.__defaults__ or ()
    optional = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return {**dict(zip(optional, values, strict=True)), **(function.__kwdefaults__ or {})}


def reduction_word(given: Mapping[str, Any]) -> str | None:
    """Read the reduction among the arguments or attributes of a loss.

    Args:
        given: Arguments by name. torch's old ``size_average`` and ``reduce`` win, as in torch.

    Returns:
        The word in lower case, for a member of an Enum its value or name; None where there is none.
    """
    average, reduce = given.get("size_average"), given.get("reduce")
    if average is not None or reduce is not None:
        if reduce is False:
            return "none"
        return "sum" if average is False else "mean"
    word = given.get("reduction")
    if isinstance(word, enum.Enum):
        word = word.value if isinstance(word.value, str) else word.name
    return word.lower() if isinstance(word, str) else None


def signature_reduction(loss: Any) -> str | None:
    """Read the reduction that a loss is called with, from its options or else the defaults of its
    signature.

    Args:
        loss: A loss.

    Returns:
        The word in lower case, or None where there is none.
    """
    word = loss_options(loss).reduction
    if word is not None:
        return word
    core, args, keywords = unwrap(loss)
    try:
        call = inspect.signature(
            core.forward if isinstance(core, nn.Module) else core
        ).bind_partial(*args, **keywords)
    except (TypeError, ValueError):  # a builtin without a signature, or arguments that do not fit
        return None
    call.apply_defaults()
    return reduction_word(call.arguments)


def call_loss(loss: Callable[..., Any], *args: Any, **keywords: Any) -> Tensor:
    """Call a loss, and say what to change where it fails for a common reason or returns no tensor.

    Args:
        loss: A loss.
        *args: Its arguments.
        **keywords: Its keyword arguments.

    Returns:
        What it returns.

    Raises:
        ValueError: If the arguments do not fit a loss of torch, or the loss returns no tensor.
    """
    try:
        value = loss(*args, **keywords)
    except Exception as error:
        advice = _advice(loss_options(loss, args, keywords), error)
        if advice is None:
            raise
        raise ValueError(advice) from error
    if not isinstance(value, Tensor):
        raise ValueError(f"the loss must be one tensor, got {_describe(value)}")
    return value


def _describe(value: Any) -> str:
    """Name what a loss returned instead of a tensor, and the fix."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(value)[:5])
        return f"a {kind} with keys {keys}. Return the loss alone: wrap it and take its value, as in f(*batch)['loss']."
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)}. Return the loss alone: wrap it and take its item, as in f(*batch)[0]."
    if value is None:
        return "None. Does the function end with a return?"
    if isinstance(value, nn.Module):
        return f"the module {kind}. Build the loss once, {kind}(), and call that with outputs and targets."
    return f"{kind} {value!r:.40}, which has no gradient. Compute it in torch, without NumPy or .item()."


def _advice(call: LossOptions, error: Exception) -> str | None:
    """Explain an error of a loss of torch, where the arguments show its cause."""
    scores, target, name = call.input, call.target, getattr(call.function, "__name__", "")
    if call.function is None:
        return None
    for what, value in (("outputs", scores), ("targets", target)):
        if value is not None and not isinstance(value, Tensor):
            take = (
                "the tensor in it"
                if isinstance(value, (tuple, Mapping))
                else "torch.as_tensor() of it"
            )
            return f"{name} needs tensors, got {what} of type {type(value).__name__}. Pass {take}."
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        return None
    shapes = f"{list(target.shape)} for outputs {list(scores.shape)}"
    if call.function in BINARY:
        if not target.is_floating_point():
            return f"{name} needs float targets, got {target.dtype}. Pass y.float()."
        return None
    if call.function not in CLASSES:
        return None
    if target.shape != scores.shape:
        if target.dtype not in _INDICES:
            return f"class targets must be int64, got {target.dtype} {shapes}. Pass y.long()."
        if target.dim() == scores.dim() and target.shape[1:2] == (1,):
            return f"class targets must have no axis of classes, got {shapes}. Pass y.squeeze(1)."
        if isinstance(error, IndexError) and call.function in (F.cross_entropy, F.nll_loss):
            # Only a CPU raises this, so reading the targets waits for nothing.
            classes = scores.shape[min(1, scores.dim() - 1)]
            wrong = (
                target[(target != call.ignore_index) & ((target < 0) | (target >= classes))]
                .unique()
                .tolist()
            )
            if wrong:
                return (
                    f"classes must lie in 0 to {classes - 1}, since outputs have {classes} scores, got {wrong[:5]}. "
                    "Do they count from 1, or does another ignore_index mark what to leave out?"
                )
    if call.weight is not None and call.weight.dtype != scores.dtype:
        return f"class weights must be {scores.dtype} as the outputs are, got {call.weight.dtype}. Convert one of them."
    return None


def check_class_weight(loss: Any) -> None:
    """Make sure that it is known what the mean of a loss divides by, for methods on each example.

    Args:
        loss: A loss.

    Raises:
        ValueError: If it is a subclass of cross-entropy or NLL with class weights and a ``forward``
            of its own.
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
    """Weight of each loss in the mean of a criterion: 0 for ``ignore_index``, the class weight of
    the others.

    Args:
        criterion: A loss: a module, a function, or a partial of one.
        target: Its target.
        loss: Its raw losses. A criterion that is not torch's own may give them another shape than
            its target has; then nothing is known of their weights.

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
    return (
        call.weight.index_select(0, target.masked_fill(~valid, 0).reshape(-1)).reshape(target.shape)
        * valid
    )
