"""Checks of what a ``FloodStep`` is built from."""

from __future__ import annotations

import math
import sys
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from flooding.levels import LevelTable
from flooding.step.wrappers import is_torch_optimizer

__all__ = [
    "caller_stacklevel",
    "check_level",
    "check_level_tensor",
    "check_optimizer",
    "is_multi_pass",
    "pass_methods",
]

# Methods of the optimisers that evaluate the loss twice or three times for one update, as SAM does.
_PASSES = ("first_step", "second_step", "third_step")
# How such an optimiser is recognised: by the methods that SAM has, or by those of GSAM.
_MULTI_PASS = (("first_step", "second_step"), ("perturb_weights", "un_perturb"))


def check_level(level: object) -> float | Tensor | None:
    """Check a constant level of a step.

    Args:
        level: A real number, a tensor without axes, or None.

    Returns:
        The level; numbers as floats.

    Raises:
        TypeError: If it is something else.
        ValueError: If it has axes, is NaN or ``inf``.
    """
    if level is None:
        return None
    if isinstance(level, Tensor):
        if level.ndim:
            raise ValueError(
                f"level must have no axes, got shape {tuple(level.shape)}. One step has one level."
            )
        if level.dtype is torch.bool or level.is_complex():
            raise TypeError(f"level must be a real number, got a tensor of {level.dtype}.")
        check_level_tensor(level)
        return level
    if isinstance(level, LevelTable):
        raise TypeError(
            f"level must be one number for a step, got {type(level).__name__}, a level for each "
            "example, which only the criterion can apply. Flood each example there, which adds up "
            "over micro-batches: Flood(criterion, table, IFlood()) with reduction='none'."
        )
    if not isinstance(level, Real) or isinstance(level, bool):
        kind = level.__name__ if isinstance(level, type) else type(level).__name__
        raise TypeError(
            f"level must be a number, a tensor, None or a controller, got {kind}. Write float(...) "
            "for text and arrays, and build a controller's class first."
        )
    try:
        number = float(level)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    _check_below_infinity(number)
    return number


def check_level_tensor(level: object) -> None:
    """Check the value of a level tensor where that waits for no device: on the CPU.

    Args:
        level: A level; anything but a tensor on the CPU passes.
    """
    if isinstance(level, Tensor) and level.is_cpu:
        _check_below_infinity(cast(float, level.tolist()))  # which only reads memory


def _check_below_infinity(number: float) -> None:
    if not number < math.inf:
        raise ValueError(f"level must be finite or -inf, got {number}. Use None for no flooding.")


def check_optimizer(optimizer: object, level: object) -> torch.optim.Optimizer:
    """Check that the gradients of an optimiser's whole step can be multiplied before it steps.

    Gradients that are never there together are a ValueError.

    Args:
        optimizer: The optimiser.
        level: The level, to recognise swapped arguments.

    Returns:
        The optimiser.

    Raises:
        TypeError: If it is no torch optimiser with step hooks.
    """
    if isinstance(level, torch.optim.Optimizer):
        raise TypeError("level is an optimiser. The order is FloodStep(optimizer, level).")
    if not is_torch_optimizer(optimizer):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer that calls step hooks, got "
            f"{type(optimizer).__name__}. Give the inner optimiser of a wrapper; engines that step "
            "by themselves need flooding.flood(loss, level)."
        )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            _check_parameter(parameter)
    return optimizer


def _check_parameter(parameter: Tensor) -> None:
    if getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise ValueError(
            "The gradients of a whole step must be there together, but a parameter has a "
            "post-accumulate-grad hook, as an optimiser in backward has. Use "
            "flooding.flood(loss, level), or add harmless hooks later."
        )
    if hasattr(parameter, "ds_id"):
        raise ValueError(
            "Parameters partitioned by DeepSpeed cannot be flipped. Use "
            "flooding.flood(loss, level)."
        )


def is_multi_pass(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimiser evaluates the loss more than once for one update, as SAM does.

    Args:
        optimizer: The optimiser.

    Returns:
        Whether it does.
    """
    methods = set(dir(optimizer))
    return any(methods.issuperset(names) for names in _MULTI_PASS)


def pass_methods(optimizer: torch.optim.Optimizer) -> list[str]:
    """List the methods of the passes of an optimiser of several passes.

    Args:
        optimizer: The optimiser.

    Returns:
        Their names, in order; none for other optimisers.
    """
    if not is_multi_pass(optimizer):
        return []
    return [name for name in _PASSES if hasattr(optimizer, name)]


def caller_stacklevel() -> int:
    """Find the ``stacklevel`` of the nearest line that belongs neither to flooding nor to torch.

    Returns:
        The level for ``warnings.warn`` in the function that asks.
    """
    frame = sys._getframe(1)
    level = 1
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in ("torch", "flooding"):
        frame = frame.f_back
        level += 1
    return level
