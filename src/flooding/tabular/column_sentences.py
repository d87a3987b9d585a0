"""What is said of a column whose cells were rewritten, missing or of another kind."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from flooding.tabular.markers import Markers, is_missing_number
from flooding.tabular.messages import count_cells, pluralize, quote, shorten
from flooding.tabular.numbers import Decimal, NumberText, is_plain

__all__ = [
    "MAX_STRAY_SHARE",
    "describe_cells",
    "describe_code",
    "describe_decimal",
    "describe_mixture",
    "describe_na",
    "describe_rival",
    "too_many_strays",
]

#: Share of the cells of another kind, of those that are not missing, that are taken as missing.
MAX_STRAY_SHARE = 0.05
_UNITS = "a currency, a percent sign, groups of thousands, a decimal comma or the like"
_ACTIONS = {
    "number": f"with {_UNITS}, read as numbers",
    "date": "of dates, read by their parts",
    "time": "of times, read as hours",
    "boolean": "of two words, read as 0 and 1",
}


def describe_cells(
    name: str,
    counts: Mapping[str, int],
    numbers: Mapping[str, float],
    strays: Mapping[str, int],
    *,
    kind: str,
    decimal: Decimal | None,
    na: Markers,
) -> list[str]:
    """Say which cells were rewritten, missing or of another kind.

    Args:
        name: Name of the column.
        counts: How often each cell occurs.
        numbers: What cells were read as.
        strays: How often each cell of another kind occurs.
        kind: The kind of the column.
        decimal: The decimal sign of its numbers.
        na: What a user says is missing.

    Returns:
        Sentences.
    """
    sentences = []
    title = shorten(name)
    rewritten = {}
    for cell in numbers:
        has_group = decimal == "," and "." in cell and not isinstance(cell, NumberText)
        if kind != "number" or has_group or not is_plain(cell):
            rewritten[cell] = counts[cell]
    if rewritten:
        first = next(iter(rewritten))
        example = f"{quote(first[:40])} is {_show_number(numbers[first], kind)}"
        sentences.append(
            f"{title}: {pluralize(sum(rewritten.values()), 'cell')} {_ACTIONS[kind]}, so "
            f"{example}. To keep them as text: --text {title}."
        )
    missing = {c: n for c, n in counts.items() if c and is_missing_number(c, na)}
    if missing:
        sentences.append(
            f"{title}: {pluralize(sum(missing.values()), 'cell')} taken as missing: "
            f"{count_cells(missing)}. To name the missing values yourself: --na."
        )
    if strays:
        sentences.append(
            f"{title}: {pluralize(sum(strays.values()), 'stray cell')} among {kind}s taken as "
            f"missing: {count_cells(strays)}. Correct them, or keep the column as text: "
            f"--text {title}."
        )
    return sentences


def _show_number(number: float, kind: str) -> str:
    if kind == "date":
        return str(np.datetime64(int(number), "s")).replace("T", " ")
    return f"{number:.10g}"


def describe_decimal(name: str, numbers: Mapping[str, float], sign: Decimal) -> str:
    """Say which decimal sign was assumed.

    Args:
        name: Name of the column.
        numbers: What its cells were read as.
        sign: The decimal sign.

    Returns:
        A sentence.
    """
    texts = [cell for cell in numbers if not isinstance(cell, NumberText)]
    cell = next(cell for cell in texts if "," in cell or "." in cell)
    other = "." if sign == "," else ","
    return (
        f"{shorten(name)}: {quote(cell[:40])} is read as {numbers[cell]:.10g} with the decimal "
        f"sign {sign!r}, though nothing in the column says so. If the sign is {other!r}: "
        f"--decimal '{other}'."
    )


def describe_code(name: str, cell: str, n_present: int, is_long: bool) -> str:
    """Say that digits are no number.

    Args:
        name: Name of the column.
        cell: One of its cells.
        n_present: Number of its cells.
        is_long: Whether it has more digits than a number can have.

    Returns:
        A sentence.
    """
    reason = "more digits than float64 has" if is_long else "leading zeros"
    fix = "in another unit" if is_long else "without those zeros"
    return (
        f"{shorten(name)}: {pluralize(n_present, 'cell')} of digits are taken as text for their "
        f"{reason}, such as {quote(cell[:40])}. To make numbers of them, write them {fix}."
    )


def describe_mixture(name: str, strays: Mapping[str, int], n_present: int) -> str:
    """Say that a column of numbers and text is taken as text.

    Args:
        name: Name of the column.
        strays: How often each cell that is no number occurs.
        n_present: Number of its cells that are not missing.

    Returns:
        A sentence.
    """
    n_numbers = n_present - sum(strays.values())
    return (
        f"{shorten(name)}: {n_numbers:,} of {pluralize(n_present, 'cell')} are numbers, the others "
        f"are not, so all are taken as categories: {count_cells(strays)}. If those are missing "
        "values, name them: --na."
    )


def describe_na(name: str, count: int) -> str:
    """Say that ``NA`` is a value.

    Args:
        name: Name of the column.
        count: How often it occurs.

    Returns:
        A sentence.
    """
    return (
        f"{shorten(name)}: 'NA' is taken as a value ({pluralize(count, 'cell')}), since all others "
        "have two capital letters too. If it is missing: --na NA."
    )


def describe_rival(name: str, cell: str, date_format: str, rival: str | None) -> list[str]:
    """Say that dates could be read otherwise.

    Args:
        name: Name of the column.
        cell: One of its cells.
        date_format: The format of the dates.
        rival: Another format that reads them all; None if there is none.

    Returns:
        A sentence, or none.
    """
    if rival is None:
        return []
    return [
        f"{shorten(name)}: {quote(cell[:40])} is read as {_in_words(date_format)}; every date "
        f"could be {_in_words(rival)} as well. If so, write the dates as 2021-12-31."
    ]


def _in_words(date_format: str) -> str:
    names = {"%Y": "year", "%y": "year", "%m": "month", "%d": "day"}
    return re.sub(r"%.", lambda match: names.get(match[0], match[0]), date_format)


def too_many_strays(name: str, strays: Mapping[str, int], n_present: int) -> ValueError:
    """Make the error for a column of numbers in which too many cells are something else.

    Args:
        name: Name of the column.
        strays: How often each cell that is no number occurs.
        n_present: Number of its cells that are not missing.

    Returns:
        The error.
    """
    n_strays, title = sum(strays.values()), shorten(name)
    example = shorten(max(strays, key=lambda cell: strays[cell])[:40])
    return ValueError(
        f"a column must hold numbers in at least {1 - MAX_STRAY_SHARE:.0%} of its cells or be "
        f"text, got {n_strays:,} of {pluralize(n_present, 'cell')} that are no numbers in "
        f"{quote(name)}: {count_cells(strays)}. Say what they are: missing (--na {example}), "
        f"categories (--text {title}), or leave the column out (--drop {title}); in Python na=, "
        "text=, drop=."
    )
