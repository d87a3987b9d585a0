"""Tell a row of names from a row of values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from flooding.tabular.markers import is_missing_number, is_missing_text
from flooding.tabular.numbers import is_plain, parse_cell

__all__ = ["has_header"]

_ROWS = 1000  # below the first that are compared with it
_SHARE = 0.8  # of the cells of a column that must be values
_MIN_ROWS = 20  # from which on a value that never recurs is conspicuous
_DATE_OR_TIME = re.compile(r"\d{1,4}[-/.:]\d{1,2}([-/.:]\d{1,4})?([T ].*)?")


def has_header(cells: np.ndarray, target: str | int | None) -> bool:
    """Say whether the first row names the columns.

    The target's name tells; so does text above numbers, dates or times. Numbers above numbers are
    values, unless they count the columns, or a text beside them never recurs where all others do.
    Else a name neither occurs twice in the row nor again below it.

    Args:
        cells: Strings, or None or NaN, ``[rows, columns]``.
        target: Name or position of the target.

    Returns:
        True for a row of names, False for a row of values.
    """
    first = [_text(cell) for cell in cells[0]]
    # 1. The target's name in the first row makes it a header.
    if isinstance(target, str) and target in first and not _is_number(target):
        return True
    columns = [[_text(cell) for cell in column] for column in cells[1 : 1 + _ROWS].T]
    # 2. Above numbers, text is a name and a number is a value; a missing value tells nothing.
    above_values = [cell for cell, column in zip(first, columns, strict=True) if _is_value(column)]
    if any(not _is_number(c) and not is_missing_number(c, None) for c in _not_dates(above_values)):
        return True
    above_numbers = [cell for cell in above_values if _is_number(cell)]
    if above_numbers:
        return _names_are_numbers(first, columns)
    # 3. All columns are text: names are unique, and no value of their own column.
    filled = [cell for cell in first if cell]
    if len(set(filled)) < len(filled) or any(map(_is_date, first)):
        return False
    return not any(c and c in column for c, column in zip(first, columns, strict=True))


def _text(cell: object) -> str:
    if cell is None or cell != cell:  # NaN differs from itself
        return ""
    return str(cell).strip()


def _is_number(cell: str) -> bool:
    return parse_cell(cell, ".") is not None or parse_cell(cell, ",") is not None


def _is_date(cell: str) -> bool:
    return _DATE_OR_TIME.fullmatch(cell) is not None


def _not_dates(cells: Sequence[str]) -> list[str]:
    return [cell for cell in cells if not _is_date(cell)]


def _is_value(column: Sequence[str]) -> bool:
    """Say whether nearly all cells of a column are numbers, or all are dates or times."""
    counts = Counter(cell for cell in column if not is_missing_number(cell, None))
    total = counts.total()
    if not total:
        return False
    n_values = sum(count for cell, count in counts.items() if _is_number(cell) or _is_date(cell))
    return n_values >= _SHARE * total


def _names_are_numbers(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Say whether numbers above numbers are names all the same."""
    # A text that never recurs, above texts that all do.
    for cell, column in zip(first, columns, strict=True):
        counts = Counter(value for value in column if not is_missing_text(value, None))
        is_text = bool(counts) and not _is_value(column)
        n_recurring = sum(count for count in counts.values() if count > 1)
        recurs = n_recurring >= max(_MIN_ROWS, 0.95 * counts.total())
        if is_text and recurs and cell and cell not in counts and not _is_number(cell):
            return True
    # Numbers that count the columns, above numbers that are written otherwise or do not count.
    for start in (0, 1):
        is_count = [c == str(start + i) for i, c in enumerate(first)]
        names = [c for c, is_count_cell in zip(first, is_count, strict=True) if not is_count_cell]
        if sum(is_count) < 2 or any(map(_is_number, names)):
            continue
        has_fractions = []
        for column, counts_columns in zip(columns, is_count, strict=True):
            if counts_columns:
                present = [value for value in column if is_plain(value)]
                has_fractions.append(bool(present) and all("." in value for value in present))
        if sum(has_fractions) >= 0.5 * len(has_fractions) or (start == 0 and sum(is_count) >= 4):
            return True
    return False
