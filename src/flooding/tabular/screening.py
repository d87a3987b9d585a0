"""Columns and rows that mislead: counters of rows, ids, repeated rows and uneven classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flooding.data import Split
from flooding.tabular.messages import pluralize, quote, shorten
from flooding.tabular.reading import is_numeric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["describe_duplicates", "describe_imbalance", "find_row_ids"]

_MIN_ROWS = 10  # fewer numbers may count up by chance
_LARGE_SHARE = 0.9  # of one class, from which on accuracy says little
_ID_NAME = re.compile(
    r"(?:.*[^A-Za-z])?(?:id|ids|idx|index|uuid|guid|row|nr|no|#|rownum|row_?number)|unnamed: \d+",
    re.IGNORECASE,
)
_CAMEL_ID = re.compile(r".*[a-z](?:Id|ID|Nr|No|Index)")


def find_row_ids(table: pd.DataFrame, use: Collection[str]) -> dict[str, str]:
    """Find the columns that number the rows, or name each of them by an id.

    Args:
        table: Columns that were read.
        use: Names of columns that the user wants all the same.

    Returns:
        Why each of them says nothing of new rows, by its name.
    """
    reasons = {}
    if len(table) < _MIN_ROWS:
        return reasons
    for name, values in table.items():
        if str(name) in use or not is_numeric(values):
            continue
        reason = _row_id_reason(str(name), values.to_numpy())
        if reason is not None:
            reasons[str(name)] = reason
    return reasons


def _row_id_reason(name: str, numbers: np.ndarray) -> str | None:
    """Say why a column of numbers is an id of its rows, if it is one."""
    # NaN and infinity have no whole part that equals them.
    with np.errstate(invalid="ignore"):
        is_whole = np.isfinite(numbers).all() and bool((numbers == np.floor(numbers)).all())
    if not is_whole:
        return None
    steps = np.diff(numbers)
    if (steps == 1).all() or (steps == -1).all():
        return "counts the rows"
    span = numbers.max() - numbers.min() + 1
    has_id_name = _ID_NAME.fullmatch(name) or _CAMEL_ID.fullmatch(name)
    if span != len(numbers) and not has_id_name:
        return None
    if len(np.unique(numbers)) < len(numbers):
        return None
    return "numbers every row" if span == len(numbers) else "is an id that no two rows share"


def describe_duplicates(splits: Sequence[Split]) -> list[str]:
    """Count the validation and test rows that equal a training row, target included.

    Args:
        splits: Training, validation and, where there is one, test.

    Returns:
        A sentence, or none.
    """
    seen = set(_row_bytes(splits[0]))
    rows = [row for split in splits[1:] for row in _row_bytes(split)]
    count = sum(row in seen for row in rows)
    if not count:
        return []
    return [
        f"Warning: {count:,} of {pluralize(len(rows), 'validation and test row')} equal a training "
        "row, target included, so scores on them may be too good. If they are copies, remove them "
        "from the file first, such as by drop_duplicates of pandas."
    ]


def _row_bytes(split: Split) -> list[bytes]:
    x = split.x.numpy()
    y = split.y.numpy().reshape(len(x), -1)
    return [a.tobytes() + b.tobytes() for a, b in zip(x, y, strict=True)]


def describe_imbalance(y: np.ndarray, classes: tuple[str, ...] | None) -> list[str]:
    """Warn where one class has nearly all rows.

    Args:
        y: Class numbers.
        classes: Names of the classes, or None for numbers.

    Returns:
        A sentence, or none.
    """
    if not classes:
        return []
    (label, count), *_ = Counter(y.tolist()).most_common(1)
    share = count / len(y)
    if share < _LARGE_SHARE:
        return []
    return [
        f"Warning: {share:.1%} of the rows are of class {quote(shorten(classes[label]))}, which is "
        "the accuracy of always naming it. Balanced accuracy counts every class alike: "
        "--score balanced-accuracy, in Python Score(flooding.metrics.balanced_accuracy)."
    ]
