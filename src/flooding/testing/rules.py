"""One function that all contract tests share."""

from __future__ import annotations

import copy
import pickle
from typing import TypeVar

__all__ = ["copy_twice", "require"]

T = TypeVar("T")


def require(condition: bool, rule: str) -> None:
    """Fail with a rule where its condition is false.

    Args:
        condition: Whether the rule is kept.
        rule: What must hold.

    Raises:
        AssertionError: If the condition is false. Unlike ``assert``, also under ``python -O``.
    """
    if not condition:
        raise AssertionError(rule)


def copy_twice(value: T, kind: str) -> tuple[T, T]:
    """Copy an object with ``copy.deepcopy`` and with ``pickle``.

    Args:
        value: The object.
        kind: What it is, for the error.

    Returns:
        The two copies, in this order.

    Raises:
        AssertionError: If one of them fails.
    """
    try:
        return copy.deepcopy(value), pickle.loads(pickle.dumps(value))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(
            f"a {kind} must survive deepcopy and pickle, got {error}. Define its class at the top "
            "of a module and keep plain numbers on it."
        ) from error
