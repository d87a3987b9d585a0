"""One function that all contract tests share."""

from __future__ import annotations

__all__ = ["require"]


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
