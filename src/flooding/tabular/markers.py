"""The texts that stand for a missing value."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeAlias

__all__ = ["Markers", "has_na_value", "is_missing_number", "is_missing_text"]

#: What a user says is missing, beside the empty cell; None for the usual texts.
Markers: TypeAlias = "Collection[str] | None"

# What a spreadsheet shows where a formula fails.
_ERRORS = (
    *("#N/A", "#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#SPILL!", "#CALC!"),
    *("#FIELD!", "#BLOCKED!", "#CONNECT!", "#UNKNOWN!", "#GETTING_DATA"),
)
_TEXT = frozenset({
    *("", "?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "Null", "null", "<NA>", "NaT"),
    *_ERRORS,
})
# Among numbers also what could be a category among texts; compared in lower case.
_NUMBER = frozenset({
    *("", "?", "na", "n/a", "n.a.", "n. a.", "nan", "-nan", "+nan", "null", "none", "nil", "<na>"),
    *("nat", "-", "--", "---", "\u2013", "\u2014", ".", "..", "...", "*", "#na"),
    *("1.#qnan", "1.#ind", "-1.#ind", *map(str.casefold, _ERRORS)),
    *("missing", "unknown", "not available", "undefined", "(null)", "(none)", "(blank)"),
})


def is_missing_number(cell: str, na: Markers) -> bool:
    """Say whether a cell of a column of numbers, dates or times is missing.

    Args:
        cell: Its text.
        na: What a user says is missing.

    Returns:
        True for the empty cell, and for a marker in any case.
    """
    if na is not None:
        return not cell or cell in na
    # Most cells are numbers, which begin with a digit.
    return not cell[:1].isdigit() and cell.casefold() in _NUMBER


def is_missing_text(cell: str, na: Markers, has_na: bool = False) -> bool:
    """Say whether a cell of a column of text is missing.

    Args:
        cell: Its text.
        na: What a user says is missing.
        has_na: Whether ``NA`` is a value of the column.

    Returns:
        True for the empty cell, and for a marker.
    """
    if na is not None:
        return not cell or cell in na
    return cell in _TEXT and not (has_na and cell == "NA")


def has_na_value(counts: Mapping[str, int], na: Markers) -> bool:
    """Say whether ``NA`` is a value, such as the code of Namibia or of North America.

    Args:
        counts: How often each cell of a column of text occurs.
        na: What a user says is missing.

    Returns:
        True where all other values are codes of two capital letters.
    """
    if na is not None or "NA" not in counts:
        return False
    others = [cell for cell in counts if not is_missing_text(cell, na)]
    return bool(others) and all(re.fullmatch(r"[A-Z]{2}", cell) for cell in others)
