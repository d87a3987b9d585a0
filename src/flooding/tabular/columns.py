"""Judge a column by its cells: numbers, dates, times or text; and say what was changed."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal as DecimalNumber
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeGuard

import numpy as np

from flooding.tabular.column_sentences import (
    MAX_STRAY_SHARE,
    describe_cells,
    describe_code,
    describe_decimal,
    describe_mixture,
    describe_na,
    describe_rival,
    too_many_strays,
)
from flooding.tabular.dates import find_date_format, parse_dates, parse_time
from flooding.tabular.libraries import import_library
from flooding.tabular.markers import Markers, has_na_value, is_missing_number, is_missing_text
from flooding.tabular.messages import pluralize, quote
from flooding.tabular.numbers import (
    Decimal,
    NumberText,
    compare_decimals,
    is_plain,
    parse_cells,
    parse_plain,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ColumnFormat",
    "ParsedColumn",
    "check_strays",
    "column_text",
    "file_decimal",
    "infer_format",
    "is_number_array",
    "parse_column",
]

Kind: TypeAlias = Literal["number", "text", "date", "time", "boolean"]

_MIN_CELLS_FOR_STRAY = 10  # so that one stray cell is a small part
_NUMERIC_SHARE = 0.8  # from which on a column that is not all numbers is meant to be
_MANY_NUMBERS = 30  # beyond what a column of categories tells apart
_LARGEST_EXACT = 2**53  # whole numbers beyond it are rounded in float64
_SAMPLE_ROWS = 1000
_NUMBERS = (int, float, np.integer, np.floating, DecimalNumber)  # a bool is an int, but no number
_PAIRS = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"), ("off", "on"))
_BOOLEANS = {word: value for pair in _PAIRS for value, word in enumerate(pair)}


@dataclass(frozen=True)
class ColumnFormat:
    """How the cells of a column are read.

    Args:
        kind: ``number``; ``text``; ``date``; ``time``, in hours; or ``boolean``, as 0 and 1.
        decimal: The decimal sign of numbers; None to judge by the cells.
        date_format: The format of days, for ``strptime``.
        has_na: Whether ``NA`` is a value of a column of text.
    """

    kind: Kind
    decimal: Decimal | None = None
    date_format: str | None = None
    has_na: bool = False


@dataclass(frozen=True, eq=False)
class ParsedColumn:
    """A column that was read.

    Args:
        values: Numbers as float64, text as strings, or dates; NaN or NaT where one is missing.
        format: How its cells were read.
        sentences: What was changed, and how to change that.
    """

    values: pd.Series
    format: ColumnFormat
    sentences: tuple[str, ...] = ()


def is_number_array(cells: object) -> TypeGuard[np.ndarray]:
    """Say whether the cells of a column are an array of numbers.

    Args:
        cells: The cells.

    Returns:
        False for a list, and for an array of strings.
    """
    return isinstance(cells, np.ndarray) and cells.dtype != np.dtype(object)


def column_text(cells: Iterable[object] | np.ndarray) -> list[str]:
    """Give the text of every cell; the empty string where there is none.

    Args:
        cells: Strings, numbers, or None or NaN where one is missing.

    Returns:
        Strings without blanks at their ends, numbers as :class:`NumberText`; whole numbers without
        a fraction.
    """
    if is_number_array(cells):
        cells = cells.tolist()
    return [cell.strip() if type(cell) is str else _number_text(cell) for cell in cells]


def _number_text(cell: object) -> str:
    if isinstance(cell, NumberText):
        return cell
    text = _plain_text(cell)
    return NumberText(text) if isinstance(cell, _NUMBERS) and not isinstance(cell, bool) else text


def _plain_text(cell: object) -> str:
    if isinstance(cell, str):
        return cell.strip()
    if cell is None or cell != cell:  # NaN differs from itself
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < _LARGEST_EXACT:
        return str(int(cell))
    return str(cell)


def file_decimal(
    columns: Iterable[Sequence[object] | np.ndarray], separator: str | None
) -> Decimal:
    """Judge the decimal sign of a file by the columns that leave no doubt.

    Args:
        columns: Cells of each column, from the start of the file.
        separator: What separates the fields.

    Returns:
        A comma where a column needs one and none needs a point; or where semicolons separate the
        fields and no column needs a point.
    """
    needs_comma = separator == ";"
    for cells in columns:
        # Numbers of the file itself say nothing about how its text is written.
        distinct = {c.strip() for c in cells[:_SAMPLE_ROWS] if type(c) is str}
        present = [c for c in distinct if not is_missing_number(c, None)]
        point, comma, _ = compare_decimals(present)
        if point > 0 and point >= _NUMERIC_SHARE * _count_decimals(present):
            return "."
        if comma > 0 and comma >= _NUMERIC_SHARE * _count_decimals(present):
            needs_comma = True
    return "," if needs_comma else "."


def _count_decimals(cells: Iterable[str]) -> int:
    return sum("." in cell or "," in cell for cell in cells)


def parse_column(
    name: str, cells: Sequence[object] | np.ndarray, column_format: ColumnFormat, na: Markers
) -> ParsedColumn:
    """Read the cells of a column in a format.

    Args:
        name: Name of the column, for sentences.
        cells: Strings or numbers.
        column_format: What they are.
        na: What a user says is missing.

    Returns:
        The values, the format, and the sentences.

    Raises:
        ValueError: If too many cells are of another kind.
    """
    pandas = import_library("pandas")
    if is_number_array(cells) and column_format.kind == "number":
        return ParsedColumn(pandas.Series(cells.astype(np.float64)), column_format)
    texts = column_text(cells)
    if column_format.kind == "text":
        return _parse_text(texts, column_format, na)
    if column_format.kind == "number" and column_format.decimal in {None, "."}:
        plain = parse_plain(texts)
        if plain is not None:
            return ParsedColumn(pandas.Series(plain), column_format)
    counts = Counter(texts)
    numbers, column_format, sentences = _read_cells(name, counts, column_format, na)
    if is_number_array(cells):
        sentences = []  # the cells are numbers already: nothing was rewritten
    values = np.array([numbers.get(text, math.nan) for text in texts], dtype=np.float64)
    if column_format.kind == "date":
        dates = pandas.to_datetime(pandas.Series(values), unit="s")
        return ParsedColumn(dates, column_format, tuple(sentences))
    return ParsedColumn(pandas.Series(values), column_format, tuple(sentences))


def _parse_text(texts: list[str], column_format: ColumnFormat, na: Markers) -> ParsedColumn:
    pandas = import_library("pandas")
    column = np.array(list(map(str, texts)), dtype=object)
    missing = {t for t in set(texts) if is_missing_text(t, na, column_format.has_na)}
    column[[text in missing for text in texts]] = math.nan
    return ParsedColumn(pandas.Series(column, dtype=str), column_format)


def _read_cells(
    name: str, counts: Mapping[str, int], column_format: ColumnFormat, na: Markers
) -> tuple[dict[str, float], ColumnFormat, list[str]]:
    """Read the different cells of a column as numbers."""
    present = [cell for cell in counts if not is_missing_number(cell, na)]
    decimal = column_format.decimal
    if column_format.kind == "number" and decimal is None:
        decimal = choose_decimal(present, ".")[0]
    numbers = _to_numbers(present, column_format, decimal)
    if column_format.kind == "date" and len(numbers) < len(present):
        # A new file may write its dates otherwise.
        other_format, _ = find_date_format(present, 1 - MAX_STRAY_SHARE)
        other = {} if other_format is None else parse_dates(present, other_format)
        numbers = max(numbers, other, key=len)
    strays = {cell: counts[cell] for cell in present if cell not in numbers}
    check_strays(name, strays, sum(counts[cell] for cell in present), column_format.kind)
    sentences = describe_cells(
        name, counts, numbers, strays, kind=column_format.kind, decimal=decimal, na=na
    )
    return numbers, column_format, sentences


def _to_numbers(
    cells: list[str], column_format: ColumnFormat, decimal: Decimal | None
) -> dict[str, float]:
    """Read different texts as what a format says; leave out those that are something else."""
    if column_format.kind == "date":
        assert column_format.date_format is not None
        return parse_dates(cells, column_format.date_format)
    if column_format.kind == "number":
        return parse_cells(cells, decimal or ".")
    numbers = {}
    for cell in cells:
        number = parse_time(cell)
        if column_format.kind == "boolean":
            number = _BOOLEANS.get(cell.casefold())
        if number is not None:
            numbers[cell] = float(number)
    return numbers


def check_strays(name: str, strays: Mapping[str, int], n_present: int, kind: str) -> None:
    """Refuse a column in which too many cells are of another kind.

    Args:
        name: Name of the column.
        strays: How often each cell of another kind occurs.
        n_present: Number of cells that are not missing.
        kind: What the other cells are.

    Raises:
        ValueError: If more than 5 % of the cells are of another kind, and not one of 10 or more.
    """
    n_strays = sum(strays.values())
    if not n_strays or is_small(n_strays, n_present):
        return
    first = next(iter(strays))
    raise ValueError(
        f"column {quote(name)} must hold {kind}s as in training, got {quote(first)}: "
        f"{n_strays:,} of {pluralize(n_present, 'cell')} are something else. "
        "Correct those cells, or empty them if they are missing."
    )


def is_small(n_strays: int, n_present: int) -> bool:
    """Say whether so few cells are of another kind that they are taken as missing.

    Args:
        n_strays: Number of cells of another kind.
        n_present: Number of cells that are not missing.

    Returns:
        True for at most 5 %, and for one cell of 10 or more.
    """
    is_single = n_strays == 1 and n_present >= _MIN_CELLS_FOR_STRAY
    return n_strays < n_present and (is_single or n_strays <= MAX_STRAY_SHARE * n_present)


# Judging.


def choose_decimal(cells: Sequence[str], default: Decimal) -> tuple[Decimal, bool]:
    """Choose the decimal sign of a column.

    Args:
        cells: Different texts that are not missing.
        default: The sign of the file, where the column leaves a doubt.

    Returns:
        The sign, and whether the cells would be other numbers with the other sign.
    """
    point_only = all(map(is_plain, cells))
    if point_only and (default == "." or not all(map(_is_group, cells))):
        return ".", False
    needs_point, needs_comma, is_ambiguous = compare_decimals(cells)
    if needs_point != needs_comma:
        return ("." if needs_point > needs_comma else ","), False
    return (default if is_ambiguous else "."), is_ambiguous


def _is_group(cell: str) -> bool:
    """Say whether the point of a number may group thousands."""
    return "." not in cell or re.fullmatch(r"[+-]?[1-9][0-9]{0,2}(\.[0-9]{3})+", cell) is not None


def infer_format(
    name: str,
    cells: Sequence[object] | np.ndarray,
    *,
    na: Markers,
    decimal: Decimal,
    text: Collection[str] = (),
) -> tuple[ColumnFormat, list[str]]:
    """Judge what the cells of a column are.

    Args:
        name: Name of the column.
        cells: Strings or numbers.
        na: What a user says is missing.
        decimal: The decimal sign of the file, where the column leaves a doubt.
        text: Names of columns to leave as text.

    Returns:
        The format, and sentences about the choice.

    Raises:
        ValueError: If most cells are numbers, but too many are not.
    """
    if name in text:
        return ColumnFormat("text"), []
    # Only whole numbers beyond 2**53 are not what they seem in float64.
    if is_number_array(cells) and not _has_long_integer(cells):
        return ColumnFormat("number"), []
    texts = column_text(cells)
    if decimal == "." and _are_ordinary(texts):
        return ColumnFormat("number"), []
    counts = Counter(texts)
    present = [cell for cell in counts if not is_missing_number(cell, na)]
    n_present = sum(counts[cell] for cell in present)
    sign, is_ambiguous = choose_decimal(present, decimal)
    numbers = parse_cells(present, sign)
    n_strays = n_present - sum(counts[cell] for cell in numbers)
    if not present or is_small(n_strays, n_present) or not n_strays:
        special = _special_format(name, present, numbers, n_present)
        if special is not None:
            return special
        # Numbers without a doubtful sign are read by either convention later on.
        has_sign = any(not is_plain(cell) and "," in cell for cell in numbers) or sign == ","
        sentences = [describe_decimal(name, numbers, sign)] if is_ambiguous else []
        return ColumnFormat("number", sign if has_sign else None), sentences
    return _text_format(name, counts, present, numbers, na)


def _has_long_integer(cells: np.ndarray) -> bool:
    if cells.dtype.kind not in "iu" or not cells.size:
        return False
    return max(abs(int(cells.min())), abs(int(cells.max()))) > _LARGEST_EXACT


def _are_ordinary(texts: list[str]) -> bool:
    """Say whether a column is plain numbers of which none is a code, a date or too long."""
    numbers = parse_plain(texts)
    if numbers is None:
        return False
    present = numbers[~np.isnan(numbers)]
    if not present.size:
        return True
    low, high = float(present.min()), float(present.max())
    is_long = max(-low, high) > _LARGEST_EXACT
    is_date = low >= 19000101 and high <= 21001231
    has_zeros = any(text[:1] == "0" and text.isdecimal() and text != "0" for text in texts)
    return not (is_long or is_date or has_zeros)


def _special_format(
    name: str, present: list[str], numbers: Mapping[str, float], n_present: int
) -> tuple[ColumnFormat, list[str]] | None:
    """Find digits that are no numbers: codes with leading zeros, long ids and compact dates."""
    if not present or len(numbers) < len(present) or not all(map(str.isdecimal, present)):
        return None
    widths = {len(cell) for cell in present}
    has_repeats = 2 * len(present) <= n_present
    is_code = len(widths) == 1 and max(widths) >= 3 and any(cell[0] == "0" for cell in present)
    is_long = max(numbers.values()) > _LARGEST_EXACT and (len(widths) == 1 or has_repeats)
    if (is_code and has_repeats) or is_long:
        return ColumnFormat("text"), [describe_code(name, present[0], n_present, is_long)]
    if widths == {8} and n_present >= _MIN_CELLS_FOR_STRAY and len(present) > 1:
        years_are_likely = 19000101 <= min(numbers.values()) <= max(numbers.values()) <= 21001231
        if years_are_likely and len(parse_dates(present, "%Y%m%d")) == len(present):
            return ColumnFormat("date", date_format="%Y%m%d"), []
    return None


def _text_format(
    name: str,
    counts: Mapping[str, int],
    present: list[str],
    numbers: Mapping[str, float],
    na: Markers,
) -> tuple[ColumnFormat, list[str]]:
    """Judge a column that is not all numbers."""
    n_present = sum(counts[cell] for cell in present)
    n_numbers = sum(counts[cell] for cell in numbers)
    # Dates and times.
    date_format, rival = find_date_format(present, 1 - MAX_STRAY_SHARE)
    if date_format is not None:
        dates = parse_dates(present, date_format)
        n_strays = n_present - sum(counts[cell] for cell in dates)
        if not n_strays or is_small(n_strays, n_present):
            sentences = describe_rival(name, present[0], date_format, rival)
            return ColumnFormat("date", date_format=date_format), sentences
    n_times = sum(counts[cell] for cell in present if parse_time(cell) is not None)
    if n_times == n_present or is_small(n_present - n_times, n_present):
        return ColumnFormat("time"), []
    # More than two spellings of true and false; two of them are categories as they are.
    words = {cell.casefold() for cell in present}
    if len(present) > 2 and any(words <= {*pair} for pair in _PAIRS):
        return ColumnFormat("boolean"), []

    strays = {cell: counts[cell] for cell in present if cell not in numbers}
    share = n_numbers / n_present
    is_marker = len(strays) <= 3 and share >= 0.5
    if len(numbers) > _MANY_NUMBERS and (share >= _NUMERIC_SHARE or is_marker):
        raise too_many_strays(name, strays, n_present)
    text_format = ColumnFormat("text", has_na=has_na_value(counts, na))
    sentences = []
    if share >= 0.5:
        sentences.append(describe_mixture(name, strays, n_present))
    if text_format.has_na:
        sentences.append(describe_na(name, counts["NA"]))
    return text_format, sentences
