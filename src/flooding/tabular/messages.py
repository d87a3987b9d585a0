"""Names of a user's file in sentences: short, printable, and with a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from flooding.text import printable

__all__ = ["count_cells", "join_names", "pluralize", "quote", "shorten", "suggest"]

_MAX_CHARACTERS = 200
_MAX_NAMES = 10
_MAX_CELLS = 5


def shorten(name: object) -> str:
    """Make a name printable and, unless it is a path, at most about 200 characters long.

    Args:
        name: A name or a message.

    Returns:
        One line of printable characters.
    """
    text = str(name)
    if len(text) > _MAX_CHARACTERS and not isinstance(name, Path):
        text = f"{text[:_MAX_CHARACTERS]}…"
    return printable(text)


def quote(name: object) -> str:
    """Put a name in quotation marks, escaped and at most about 200 characters long.

    Args:
        name: A name or a value.

    Returns:
        The ``repr`` of its text.
    """
    text = str(name)
    return repr(text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…")


def join_names(names: Iterable[object], limit: int = _MAX_NAMES) -> str:
    """List some names, and count the others.

    Args:
        names: The names.
        limit: How many of them to list.

    Returns:
        Such as ``a, b and 3 more``; empty for no names.
    """
    names = list(names)
    rest = len(names) - limit
    suffix = f" and {rest:,} more" if rest > 0 else ""
    return ", ".join(shorten(name) for name in names[:limit]) + suffix


def pluralize(count: int, noun: str) -> str:
    """Count things.

    Args:
        count: How many.
        noun: Their name in the singular; the plural ends in s.

    Returns:
        Such as ``1 cell`` or ``1,200 cells``.
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def count_cells(counts: Mapping[str, int]) -> str:
    """List the most frequent of some cells, and how often each of them occurs.

    Args:
        counts: How often by the text of a cell.

    Returns:
        Such as ``'?' (12), 'oops' (1)``; at most 5 texts are listed.
    """
    order = sorted(counts, key=lambda cell: (-counts[cell], cell))
    listing = [f"{quote(cell[:40])} ({counts[cell]:,})" for cell in order[:_MAX_CELLS]]
    rest = len(order) - _MAX_CELLS
    return ", ".join(listing) + (f" and {rest:,} others" if rest > 0 else "")


def suggest(name: str, names: Iterable[object]) -> str:
    """End a sentence about a name that does not exist.

    Args:
        name: The name that was not found.
        names: The names that exist.

    Returns:
        The name with the nearest of the others, or else with some of them.
    """
    names = [str(other) for other in names]
    by_lower_case = {other.casefold(): other for other in names}
    matches = difflib.get_close_matches(name.casefold(), by_lower_case, 1)
    if matches:
        return f"{quote(name)}. Did you mean {quote(by_lower_case[matches[0]])}?"
    return f"{quote(name)}. There are {join_names(names)}."
