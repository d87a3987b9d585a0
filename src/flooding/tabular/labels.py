"""The target of a table: classes named by the strings of the file, or numbers."""

# The checks shared by the functions below raise what their docstrings promise.
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from flooding.tabular.columns import choose_decimal, column_text, is_number_array, is_small
from flooding.tabular.dates import find_date_format
from flooding.tabular.markers import Markers, has_na_value, is_missing_number, is_missing_text
from flooding.tabular.messages import count_cells, join_names, pluralize, quote, shorten
from flooding.tabular.numbers import Decimal, is_plain, parse_cells
from flooding.tabular.raw_table import Cells

__all__ = ["Labels", "make_labels"]

_MAX_CLASSES = 20  # of whole numbers that nobody called classes
_MIN_ROWS_PER_CLASS = 5
_LARGEST_EXACT = 2**53
_MANY_NUMBERS = 30


@dataclass(frozen=True, eq=False)
class Labels:
    """The target of the rows that have one.

    Args:
        rows: Numbers of these rows.
        y: Class numbers, or float64 targets.
        classes: Names of the classes, or None for numbers.
        is_numeric: Whether the target could be predicted as a number.
        description: What it was taken as and why, for a sentence.
        sentences: What else was assumed.
    """

    rows: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...] | None
    is_numeric: bool
    description: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Reading:
    """The cells of a target, read as numbers as far as they are."""

    texts: list[str]
    counts: Mapping[str, int]
    numbers: Mapping[str, float]
    strays: Mapping[str, int]
    is_numeric: bool
    is_ambiguous: bool


def make_labels(
    name: str, cells: Cells, *, kind: str | None, na: Markers, decimal: Decimal
) -> Labels:
    """Make labels of the cells of the target.

    Args:
        name: Name of the target.
        cells: Strings or numbers.
        kind: ``classification`` or ``regression``; None for what the cells suggest.
        na: What is missing beside the empty cell; None for the usual texts.
        decimal: The decimal sign of the file, where the cells leave a doubt.

    Returns:
        The labels.

    Raises:
        ValueError: If no row has a target, regression is asked of text, or the cells are numbers
            and something else.
    """
    reading = _read_numbers(cells, na, decimal)
    is_class, reason = _judge_kind(name, reading, kind, na)
    if is_class:
        # Who asks for classes means every value, also one that is no number.
        is_numeric = reading.is_numeric and not (kind and reading.strays)
        return _make_classes(name, replace(reading, is_numeric=is_numeric), reason, na)
    labels = np.array([reading.numbers.get(text, np.nan) for text in reading.texts])
    if is_number_array(cells):
        labels = cells.astype(np.float64)
    rows = np.flatnonzero(~np.isnan(labels))
    if not rows.size:
        raise ValueError(_no_target(name, len(labels)))
    sentences = _describe_missing(reading, len(labels) - len(rows), na, is_class=False)
    rewritten = {}
    for cell, number in reading.numbers.items():
        # With a decimal comma, 1.234 is another number than float() reads.
        if not is_plain(cell) or not math.isclose(float(cell), number):
            rewritten[cell] = reading.counts[cell]
    if rewritten:
        cell = next(iter(rewritten))
        sentences.append(
            f"{shorten(name)}: {pluralize(sum(rewritten.values()), 'cell')} with a currency, a "
            "percent sign, groups of thousands, a decimal comma or the like, read as numbers, "
            f"so {quote(cell[:40])} is {reading.numbers[cell]:.10g}. To predict them as they are: "
            "--kind classification."
        )
    if reading.is_ambiguous:
        other = "," if decimal == "." else "."
        sentences.append(
            f"{shorten(name)}: nothing in the column says whether its decimal sign is "
            f"{decimal!r}; if it is not: --decimal '{other}'."
        )
    return Labels(rows, labels[rows], None, True, f"regression, since {reason}", tuple(sentences))


def _read_numbers(cells: Cells, na: Markers, decimal: Decimal) -> _Reading:
    texts = column_text(cells)
    counts = Counter(texts)
    present = [cell for cell in counts if not is_missing_number(cell, na)]
    sign, is_ambiguous = choose_decimal(present, decimal)
    numbers = parse_cells(present, sign)
    strays = {cell: counts[cell] for cell in present if cell not in numbers}
    n_strays, n_present = sum(strays.values()), sum(counts[cell] for cell in present)
    is_numeric = bool(numbers) and (not n_strays or is_small(n_strays, n_present))
    return _Reading(texts, counts, numbers, strays, is_numeric, is_ambiguous)


def _judge_kind(name: str, reading: _Reading, kind: str | None, na: Markers) -> tuple[bool, str]:
    """Say whether a target is classes, and why."""
    present = [cell for cell in reading.counts if not is_missing_number(cell, na)]
    if not present and not any(not is_missing_text(c, na) for c in reading.counts):
        raise ValueError(_no_target(name, len(reading.texts)))
    if kind == "regression":
        if not reading.is_numeric:
            # Show one of the cells that keep the column from being numeric.
            wrong = next(iter(reading.strays), present[0] if present else "")
            raise ValueError(
                f"regression needs a target of numbers, got {quote(wrong)} in {quote(name)}. "
                "Remove such rows, or name it as a missing value: --na."
            )
        return False, "you said so"
    if kind == "classification":
        return True, "you said so"
    if not reading.is_numeric:
        _check_text(name, reading, present)
        return True, "it is text"

    numbers, counts = reading.numbers, reading.counts
    n_rows = sum(counts[cell] for cell in numbers)
    values = set(numbers.values())
    is_few = len(numbers) <= min(_MAX_CLASSES, n_rows / _MIN_ROWS_PER_CLASS)
    has_repeats = 2 * len(numbers) <= n_rows
    if has_repeats and _are_codes(numbers):
        return True, "it is digits with leading zeros, or too long for a number"
    if is_few and len(numbers) > len(values):
        return True, "some numbers in it are written in several ways"
    if is_few and all(value.is_integer() for value in values):
        return True, "it is a few whole numbers"
    return False, f"it has {len(values):,} different numbers"


def _are_codes(numbers: Mapping[str, float]) -> bool:
    """Say whether digits are codes: of one width with leading zeros, or too long for float64."""
    if not all(map(str.isdecimal, numbers)):
        return False
    widths = {len(cell) for cell in numbers}
    has_zero = any(cell[0] == "0" and len(cell) > 1 for cell in numbers)
    return (len(widths) == 1 and has_zero) or max(numbers.values()) > _LARGEST_EXACT


def _check_text(name: str, reading: _Reading, present: list[str]) -> None:
    """Refuse a target of mostly numbers, and dates that hardly repeat."""
    n_numbers = sum(reading.counts[cell] for cell in reading.numbers)
    n_present = sum(reading.counts[cell] for cell in present)
    if len(reading.numbers) > _MANY_NUMBERS and n_numbers >= 0.5 * n_present:
        strays = reading.strays
        example = shorten(next(iter(strays))[:40])
        raise ValueError(
            "a target must be numbers in at least 95% of its cells or be text, got "
            f"{sum(strays.values()):,} of {pluralize(n_present, 'cell')} that are no numbers in "
            f"{quote(name)}: {count_cells(strays)}. If they are missing: --na {example} (na=); if "
            "every value is a class: --kind classification."
        )
    is_many = len(present) > min(_MAX_CLASSES, n_present / _MIN_ROWS_PER_CLASS)
    if is_many and find_date_format(present, 0.95)[0] is not None:
        raise ValueError(
            f"a target must be classes or numbers, got dates such as {quote(present[0][:40])} in "
            f"{quote(name)}. Compute a number from them, such as days, or choose another column."
        )


def _make_classes(name: str, reading: _Reading, reason: str, na: Markers) -> Labels:
    """Number the different strings in their order; name and count them."""
    counts = reading.counts
    has_na = not reading.is_numeric and has_na_value(counts, na)
    if reading.is_numeric:
        is_class = {cell: cell in reading.numbers for cell in counts}
    else:
        is_class = {cell: not is_missing_text(cell, na, has_na) for cell in counts}
    names = [str(cell) for cell in counts if is_class[cell]]
    if not names:
        raise ValueError(_no_target(name, len(reading.texts)))
    if reading.is_numeric:
        names.sort(key=lambda cell: (reading.numbers[cell], cell))
    else:
        names.sort()
    numbers = {cell: number for number, cell in enumerate(names)}
    labels = np.array([numbers.get(text, -1) for text in reading.texts], dtype=np.int64)
    rows = np.flatnonzero(labels >= 0)

    sentences = _describe_missing(reading, len(labels) - len(rows), na, is_class=True)
    if has_na:
        sentences.append(
            f"'NA' is taken as a class ({pluralize(counts['NA'], 'row')}), since all others have "
            "two capital letters too. If it is missing: --na NA."
        )
    if len(names) > len({reading.numbers[cell] for cell in names} if reading.is_numeric else names):
        sentences.append(
            "Some classes are one number written in several ways: write them alike if they are "
            "one class."
        )
    sizes = [f"{shorten(cell)} ({pluralize(counts[cell], 'row')})" for cell in names]
    listing = join_names(sizes)
    description = f"classification into {len(names)} classes, since {reason}: {listing}"
    return Labels(
        rows,
        labels[rows],
        tuple(names),
        reading.is_numeric,
        description,
        tuple(sentences),
    )


def _describe_missing(
    reading: _Reading, n_missing: int, na: Markers, *, is_class: bool
) -> list[str]:
    """Say which rows have no target."""
    if not n_missing:
        return []
    counts = reading.counts
    if reading.is_numeric:
        missing = {cell: counts[cell] for cell in counts if cell not in reading.numbers}
    else:
        has_na = has_na_value(counts, na)
        missing = {c: n for c, n in counts.items() if is_missing_text(c, na, has_na)}
    fix = "" if set(missing) == {""} else " To name the missing values yourself: --na."
    if is_class and reading.strays and reading.is_numeric:
        fix += " If each of them is a class: --kind classification."
    return [f"Dropped {pluralize(n_missing, 'row')} without a target: {count_cells(missing)}.{fix}"]


def _no_target(name: str, n_rows: int) -> str:
    return (
        f"target must have values, got {quote(name)} with none in {n_rows} rows. "
        "Choose another column."
    )
