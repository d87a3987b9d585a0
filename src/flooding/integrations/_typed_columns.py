"""Columns of a DataFrame as a Preprocessing takes them: numbers, text and dates by their dtypes."""

# ruff does not see the errors that the private functions below raise.
# ruff: file-ignore[docstring-extraneous-exception]
# scikit-learn calls the inputs X.
# ruff: file-ignore[invalid-argument-name]
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypeGuard

import numpy as np

from flooding.integrations import require_framework
from flooding.tabular.messages import quote
from flooding.tabular.preprocessing import Preprocessing

with require_framework("pandas", extra="tables"):
    import pandas as pd

__all__ = [
    "ColumnKind",
    "array_to_table",
    "check_target_is_known",
    "fitted_kinds",
    "is_frame",
    "type_columns",
]

ColumnKind: TypeAlias = Literal["numbers", "text", "dates"]

# What pandas infers from the cells of a column, without its missing ones.
_KINDS: dict[str, ColumnKind] = {
    "integer": "numbers",
    "floating": "numbers",
    "mixed-integer-float": "numbers",
    "decimal": "numbers",
    "boolean": "numbers",
    "timedelta": "numbers",
    "timedelta64": "numbers",
    "empty": "numbers",
    "string": "text",
    "categorical": "text",
    "datetime": "dates",
    "datetime64": "dates",
    "date": "dates",
}
_FIXES: dict[ColumnKind, str] = {
    "numbers": "Convert it: pandas.to_numeric.",
    "text": "Convert it: X[column].astype(str).",
    "dates": "Convert it: pandas.to_datetime.",
}


def is_frame(X: object) -> TypeGuard[pd.DataFrame]:
    """Say whether inputs are a DataFrame of pandas.

    Args:
        X: The inputs.

    Returns:
        False for arrays, lists and the frames of other libraries.
    """
    return isinstance(X, pd.DataFrame)


def array_to_table(array: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Convert an array of numbers.

    Args:
        array: The rows, ``[rows, columns]``.
        names: A name for each column.

    Returns:
        Columns of float64.
    """
    return pd.DataFrame(array.astype(np.float64), columns=pd.Index(names))


def check_target_is_known(y: np.ndarray) -> None:
    """Refuse a missing target; scikit-learn refuses NaN alone.

    Args:
        y: Target of each row.

    Raises:
        ValueError: If one is missing.
    """
    is_missing = pd.isna(y)
    if is_missing.any():
        index = int(is_missing.argmax())
        raise ValueError(
            f"y must have no missing values, got {y[index]!r} in row {index}. Drop such rows."
        )


def fitted_kinds(preprocessing: Preprocessing) -> dict[str, ColumnKind]:
    """Say what the columns that a preprocessing uses held in training.

    Args:
        preprocessing: The fitted preprocessing.

    Returns:
        A kind for each column that a table must have.
    """
    kinds: dict[str, ColumnKind] = {}
    for name in preprocessing.sources:
        kinds[name] = "text"
        if name in preprocessing.dates:
            kinds[name] = "dates"
        elif name in preprocessing.numeric_columns:
            kinds[name] = "numbers"
    return kinds


def type_columns(
    frame: pd.DataFrame, names: Sequence[str], kinds: Mapping[str, ColumnKind] | None = None
) -> pd.DataFrame:
    """Convert the columns of a DataFrame by their dtypes.

    Numbers, booleans and durations (in seconds) become float64, text and categories strings, dates
    datetime64 without a time zone: the clock that the cells show. A column of objects is what its
    cells are.

    Args:
        frame: The rows.
        names: A name for each column, by position.
        kinds: What each column must hold, where columns without a kind are left out; None for
            whatever they hold.

    Returns:
        The columns under their names, rows numbered from 0.

    Raises:
        TypeError: If cells are neither numbers, text nor dates.
        ValueError: If a column holds complex numbers or another kind than it must.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"size": [1, None], "is_ripe": [True, False]})
        >>> type_columns(frame, ["size", "is_ripe"]).to_dict("list")
        {'size': [1.0, nan], 'is_ripe': [1.0, 0.0]}
    """
    columns = {}
    for index, name in enumerate(names):
        if kinds is not None and name not in kinds:
            continue
        values = frame.iloc[:, index].reset_index(drop=True)
        columns[name] = _type_column(name, values, None if kinds is None else kinds[name])
    return pd.DataFrame(columns, index=pd.RangeIndex(len(frame)))


def _type_column(name: str, values: pd.Series, expected: ColumnKind | None) -> pd.Series:
    """Convert one column."""
    inferred = pd.api.types.infer_dtype(values, skipna=True)
    if inferred == "complex":
        raise ValueError(f"Complex data not supported: column {quote(name)} of X.")
    if inferred not in _KINDS:
        raise TypeError(
            f"column {quote(name)} must hold numbers, text or dates, got {inferred} cells. "
            "Convert it: X[column].astype(str)."
        )
    kind = _KINDS[inferred]
    # Cells that are all missing may be of any kind.
    if inferred == "empty" and expected is not None:
        kind = expected
    if expected is not None and kind != expected:
        raise ValueError(
            f"column {quote(name)} must hold {expected} as in training, got {kind}. "
            f"{_FIXES[expected]}"
        )
    if kind == "dates":
        return _to_dates(values)
    if kind == "text":
        return _to_text(values)
    if inferred.startswith("timedelta"):
        return pd.to_timedelta(values).dt.total_seconds()
    return pd.Series(values.to_numpy(np.float64, na_value=math.nan))


def _to_dates(values: pd.Series) -> pd.Series:
    dates = pd.to_datetime(values)
    return dates if dates.dt.tz is None else dates.dt.tz_localize(None)


def _to_text(values: pd.Series) -> pd.Series:
    cells = values.astype(object).to_numpy()
    text = np.full(len(cells), math.nan, dtype=object)
    for index in np.flatnonzero(~pd.isna(values).to_numpy()):
        text[index] = str(cells[index])
    return pd.Series(text, dtype=str)
