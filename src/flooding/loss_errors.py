"""Call a loss, and explain its common errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]

from flooding.torch_losses import BINARY, CLASSES, LossOptions, loss_options

__all__ = ["call_loss"]

_INDEX_DTYPES = (torch.int64, torch.uint8)


def call_loss(loss: Callable[..., Any], *args: Any, **keywords: Any) -> Tensor:
    """Call a loss, and explain common errors and a value that is no tensor.

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


def _describe(value: object) -> str:
    """Describe what a loss returned instead of a tensor, and the fix."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(value)[:5])
        return (
            f"a {kind} with keys {keys}. Return the loss alone: wrap it and take its value, as in "
            "f(*batch)['loss']."
        )
    if isinstance(value, (tuple, list)):
        return (
            f"a {kind} of {len(value)}. Return the loss alone: wrap it and take its item, as in "
            "f(*batch)[0]."
        )
    if value is None:
        return "None. Does the function end with a return?"
    if isinstance(value, nn.Module):
        return (
            f"the module {kind}. Build the loss once, {kind}(), and call that with outputs and "
            "targets."
        )
    return (
        f"{kind} {value!r:.40}, which has no gradient. Compute it in torch, without NumPy or "
        ".item()."
    )


def _advice(call: LossOptions, error: Exception) -> str | None:
    """Explain an error of a loss of torch, where the arguments show its cause."""
    if call.function is None:
        return None
    name = getattr(call.function, "__name__", "")
    # 1. Something that is no tensor.
    for argument, value in (("outputs", call.input), ("targets", call.target)):
        if value is None or isinstance(value, Tensor):
            continue
        is_nested = isinstance(value, (tuple, Mapping))
        fix = "the tensor in it" if is_nested else "torch.as_tensor() of it"
        return f"{name} needs tensors, got {argument} of type {type(value).__name__}. Pass {fix}."
    scores, target = call.input, call.target
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        return None
    # 2. Targets of another type or shape than the loss takes.
    if call.function in BINARY and not target.is_floating_point():
        return f"{name} needs float targets, got {target.dtype}. Pass y.float()."
    if call.function not in CLASSES:
        return None
    if target.shape != scores.shape:
        advice = _class_target_advice(call, scores, target, error)
        if advice is not None:
            return advice
    # 3. Class weights of another type than the outputs.
    if call.weight is not None and call.weight.dtype != scores.dtype:
        return (
            f"class weights must be {scores.dtype} as the outputs are, got {call.weight.dtype}. "
            "Convert one of them."
        )
    return None


def _class_target_advice(
    call: LossOptions, scores: Tensor, target: Tensor, error: Exception
) -> str | None:
    """Explain an error of a loss of class indices, where the targets show its cause."""
    shapes = f"{list(target.shape)} for outputs {list(scores.shape)}"
    if target.dtype not in _INDEX_DTYPES:
        return f"class targets must be int64, got {target.dtype} {shapes}. Pass y.long()."
    if target.dim() == scores.dim() and target.shape[1:2] == (1,):
        return f"class targets must have no axis of classes, got {shapes}. Pass y.squeeze(1)."
    if isinstance(error, IndexError) and call.function in (F.cross_entropy, F.nll_loss):
        # Only a CPU raises this, so reading the targets waits for nothing.
        classes = scores.shape[min(1, scores.dim() - 1)]
        out_of_range = (target < 0) | (target >= classes)
        invalid = target[(target != call.ignore_index) & out_of_range].unique().tolist()
        if invalid:
            return (
                f"classes must lie in 0 to {classes - 1}, since outputs have {classes} scores, got "
                f"{invalid[:5]}. Do they count from 1, or does another ignore_index mark what to "
                "leave out?"
            )
    return None
