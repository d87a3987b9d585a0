"""Every ``FloodStep`` whose hooks are on its optimiser: an optimiser has at most one."""

from __future__ import annotations

import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING

from flooding.step import messages
from flooding.step.checks import caller_stacklevel

if TYPE_CHECKING:
    from flooding.step.flood_step import FloodStep

__all__ = ["attach", "check_shared_parameters", "detach", "others", "replace_other"]

_ATTACHED: dict[int, weakref.ref[FloodStep]] = {}


def attach(flood_step: FloodStep) -> None:
    """Enter a FloodStep; it leaves by itself when it is deleted.

    Args:
        flood_step: The FloodStep.
    """
    key = id(flood_step)
    _ATTACHED[key] = weakref.ref(flood_step, partial(_forget, key))


def _forget(key: int, _: weakref.ref[FloodStep]) -> None:
    _ATTACHED.pop(key, None)


def detach(flood_step: FloodStep) -> None:
    """Remove a FloodStep.

    Args:
        flood_step: The FloodStep.
    """
    _ATTACHED.pop(id(flood_step), None)


def others(flood_step: FloodStep | None) -> list[FloodStep]:
    """List all others.

    Args:
        flood_step: The one to leave out; None is none.

    Returns:
        The other FloodSteps.
    """
    # list() of a dict is atomic: another thread may build a FloodStep meanwhile.
    steps = [reference() for reference in list(_ATTACHED.values())]
    return [step for step in steps if step is not None and step is not flood_step]


def check_shared_parameters(flood_step: FloodStep, other: FloodStep) -> None:
    """Check that two FloodSteps that watched the same backward flip different gradients.

    Args:
        flood_step: One of them.
        other: The other one.

    Raises:
        RuntimeError: If their optimisers share parameters.
    """
    own_ids = set(map(id, flood_step.parameters()))
    shared = sum(id(parameter) in own_ids for parameter in other.parameters())
    if shared:
        raise RuntimeError(
            f"{shared} parameters belong to two optimisers, "
            f"{type(flood_step.optimizer).__name__} and {type(other.optimizer).__name__}, "
            "whose FloodSteps watch losses of the same backward: their gradients would be "
            "flipped twice. Call one of the two."
        )


def replace_other(flood_step: FloodStep) -> None:
    """Take an older FloodStep off the same optimiser, with a warning.

    Args:
        flood_step: The newer one.
    """
    for other in others(flood_step):
        if other.optimizer is flood_step.optimizer:
            level = type(other._controller).__name__ if other._controller else other._level
            text = messages.REPLACES.format(name=type(other.optimizer).__name__, level=level)
            warnings.warn(text, stacklevel=caller_stacklevel())
            other.remove()
            other._is_replaced = True
