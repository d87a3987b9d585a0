"""Columns of a table to inputs of a network: scikit-learn's transformers, fitted on training rows.

``skops`` stores the fitted transformers: nothing is unpickled, and files with other types than
those of scikit-learn and NumPy are refused.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flooding import npz
from flooding.data.compression import max_bytes
from flooding.tabular.columns import ColumnFormat
from flooding.tabular.dates import PARTS, date_part
from flooding.tabular.messages import join_names, quote, suggest
from flooding.tabular.numbers import is_plain
from flooding.tabular.reading import import_library, is_date, is_numeric

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.compose import ColumnTransformer

__all__ = [
    "Preprocessing",
    "check_numbers",
    "dump_preprocessing",
    "fit_preprocessing",
    "load_preprocessing",
    "standard_deviation",
]

_MAX_NUMBER = 1e30  # standardised values must still fit into float32
_MAX_CATEGORIES = 30
# A dtype is a plain value, but skops does not trust it by itself.
_TRUSTED_TYPES = ["numpy.dtype"]
# Formats that follow from whether a column holds numbers or categories.
_DEFAULT_FORMATS = (ColumnFormat("number"), ColumnFormat("text"))


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """How the columns of a table become the inputs of a network.

    Numbers: missing ones become the median, then ``(value - mean) / sd``. One more input for each
    column with missing numbers in training is 1 where the number is missing.

    Categories: one input for each of the 30 most frequent values that occur at least twice, a
    missing value being one of them, and one for all rare values, if there are any in training. A
    value that training had not seen counts as rare; without an input for rare values all inputs of
    its column are 0.

    Dates: each of year, month, day, weekday, hour, minute and elapsed days that varies in training
    becomes a column such as ``date: month``; month, weekday and hour are categories.

    Args:
        numeric_columns: Names of the columns of numbers.
        categorical_columns: Names of the columns of text.
        dropped_columns: Names of columns that carry nothing: constant, or text that never repeats,
            on the training rows.
        transformer: Fitted to the columns of numbers, then those of categories, by position.
        dates: Names of the columns that each column of dates became, by the part of the date.
        formats: How the cells of each column of a file are read.
        na: What is missing in a file beside the empty cell; None for the usual texts.

    Example:
        >>> import pandas
        >>> columns = {"size": [1.0, 3.0, 3.0], "colour": ["red", "blue", "red"]}
        >>> table = pandas.DataFrame(columns)
        >>> preprocessing = fit_preprocessing(table)
        >>> preprocessing.transform(table)
        tensor([[-1.4142,  1.0000,  0.0000],
                [ 0.7071,  0.0000,  1.0000],
                [ 0.7071,  1.0000,  0.0000]])
        >>> preprocessing.frequent
        {'colour': ('red',)}
    """

    numeric_columns: tuple[str, ...]
    categorical_columns: tuple[str, ...]
    dropped_columns: tuple[str, ...]
    transformer: ColumnTransformer
    dates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    formats: Mapping[str, ColumnFormat] = field(default_factory=dict)
    na: tuple[str, ...] | None = None

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the columns that a table must have."""
        parts = {name for names in self.dates.values() for name in names.values()}
        return (*(name for name in self.columns if name not in parts), *self.dates)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are used, the parts of dates in place of dates."""
        return self.numeric_columns + self.categorical_columns

    @cached_property
    def frequent(self) -> dict[str, tuple[str, ...]]:
        """Values with an input of their own, for each column of categories."""
        if not self.categorical_columns:
            return {}
        encoder = self.transformer.named_transformers_["categories"]
        frequent = {}
        for index, name in enumerate(self.categorical_columns):
            rare = encoder.infrequent_categories_[index]
            rare_set = set() if rare is None else set(rare)
            frequent[name] = tuple(
                value
                for value in encoder.categories_[index]
                if isinstance(value, str) and value not in rare_set
            )
        return frequent

    @cached_property
    def incomplete(self) -> tuple[str, ...]:
        """Names of the columns that had missing values in training."""
        names = []
        if self.numeric_columns:
            indicator = self.transformer.named_transformers_["missing"]
            names += [self.numeric_columns[index] for index in indicator.features_]
        if self.categorical_columns:
            encoder = self.transformer.named_transformers_["categories"]
            for name, values in zip(self.categorical_columns, encoder.categories_, strict=True):
                if not all(isinstance(value, str) for value in values):
                    names.append(name)
        return tuple(names)

    def expand_dates(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the parts of dates to a table, unless it has them.

        Args:
            table: Rows with at least the fitted columns.

        Returns:
            The table with a column for each part.

        Raises:
            ValueError: If a column of dates is missing or holds something else.
        """
        parts: dict[str, pd.Series] = {}
        columns = {str(name): values for name, values in table.items()} if self.dates else {}
        for source, names in self.dates.items():
            if all(name in columns for name in names.values()):
                continue
            if source not in columns:
                raise ValueError(_missing_column(source, columns))
            if not is_date(columns[source]):
                raise ValueError(
                    f"column {quote(source)} must hold dates as in training. Give it as datetime64."
                )
            for part, name in names.items():
                parts[name] = date_part(columns[source], part)
        return table.assign(**parts) if parts else table

    def transform(self, table: pd.DataFrame) -> Tensor:
        """Turn rows into inputs.

        Args:
            table: Rows with at least the fitted columns, in any order.

        Returns:
            Inputs, float32 ``[rows, inputs]``.

        Raises:
            ValueError: If a column is missing, holds something else than in training, or a number
                is infinite.
        """
        table = self.expand_dates(table)
        columns = {str(name): values for name, values in table.items()}
        for name in self.columns:
            if name not in columns:
                raise ValueError(_missing_column(name, columns))
        for name in self.numeric_columns:
            check_numbers(columns[name])
        for name in self.categorical_columns:
            if is_numeric(columns[name]):
                raise ValueError(
                    f"column {quote(name)} must hold text as in training, got numbers. "
                    "Give them as text."
                )
        with np.errstate(over="ignore"):
            inputs = np.asarray(self.transformer.transform(_by_position(table, self.columns)))
            x = inputs.astype(np.float32)
        is_finite = np.isfinite(x).all(axis=0)
        if not is_finite.all():
            # Only the inputs of numbers, which come first, can be large.
            name = self.columns[int(is_finite.argmin())]
            raise ValueError(
                f"column {quote(name)} must hold numbers near those of training, got one that is "
                "too large for float32 in units of their standard deviation. Correct that cell."
            )
        return torch.from_numpy(x)


def _missing_column(name: str, columns: Iterable[object]) -> str:
    return (
        f"the table must have every column of the training table, got no {suggest(name, columns)}"
    )


def fit_preprocessing(
    table: pd.DataFrame,
    formats: Mapping[str, ColumnFormat] | None = None,
    na: Sequence[str] | None = None,
) -> Preprocessing:
    """Fit a preprocessing to training rows.

    Args:
        table: Training rows as :func:`flooding.tabular.read_table` gives them, without the target.
        formats: How the cells of its columns were read, for the files to come.
        na: What was missing beside the empty cell; None for the usual texts.

    Returns:
        The fitted preprocessing.

    Raises:
        ValueError: If no column varies, or a number is infinite.
    """
    numeric, categorical, dropped = [], [], []
    dates: dict[str, dict[str, str]] = {}
    columns: dict[str, pd.Series] = {}
    for name, values in _split_dates(table, dates):
        if is_numeric(values):
            check_numbers(values)
        if not _varies(values):
            dropped.append(name)
            continue
        columns[name] = values
        (numeric if is_numeric(values) else categorical).append(name)
    # A date of which no part varies says nothing; nor does a part that does not vary.
    for source, parts in list(dates.items()):
        dates[source] = {part: name for part, name in parts.items() if name in columns}
        dropped = [name for name in dropped if name not in parts.values()]
        if not dates[source]:
            del dates[source]
            dropped.append(source)
    if not columns:
        raise ValueError(
            "at least one column must vary on the training rows, "
            f"got {join_names(table) or 'none'}. Give columns that differ from row to row."
        )
    transformer = _make_transformer(len(numeric), len(categorical))
    pandas = import_library("pandas")
    rows = pandas.DataFrame({i: columns[n] for i, n in enumerate([*numeric, *categorical])})
    transformer.fit(rows)
    if numeric:
        imputer, scaler = transformer.named_transformers_["numbers"]
        # StandardScaler takes a column for constant where its variance is 0 in float64, as that of
        # values below 1e-160 is, or small beside its mean.
        scaler.scale_ = standard_deviation(imputer.transform(rows.iloc[:, : len(numeric)]))
    used = {**dict.fromkeys(columns), **dict.fromkeys(dates)}
    return Preprocessing(
        tuple(numeric),
        tuple(categorical),
        tuple(dropped),
        transformer,
        dates,
        {name: form for name, form in (formats or {}).items() if name in used},
        None if na is None else tuple(na),
    )


def _split_dates(
    table: pd.DataFrame, dates: dict[str, dict[str, str]]
) -> Iterator[tuple[str, pd.Series]]:
    """Give the columns of a table, and for a date those of its parts, whose names are noted."""
    names = {str(name) for name in table}
    for name, values in table.items():
        if not is_date(values):
            yield str(name), values
            continue
        parts = dates[str(name)] = {}
        for part in PARTS:
            parts[part] = f"{name}: {part}"
            while parts[part] in names:  # a column of the user's own
                parts[part] += "'"
            yield parts[part], date_part(values, part)


def _varies(values: pd.Series) -> bool:
    """Say whether a column can tell rows apart; text that never repeats cannot."""
    if is_numeric(values):
        array = values.to_numpy()
        return not bool(((array == array[0]) | (np.isnan(array) & np.isnan(array[0]))).all())
    return values.nunique(dropna=False) > 1 and not values.is_unique


def _make_transformer(n_numeric: int, n_categorical: int) -> ColumnTransformer:
    """Make the transformers of columns of numbers and, behind them, of categories."""
    import_library("sklearn")
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    steps = []
    # Positions: names of 300,000 columns would make the saved file unreadably large.
    if n_numeric:
        scaling = Pipeline([
            ("imputer", SimpleImputer(strategy="median")),
            ("scaler", StandardScaler()),
        ])
        steps.append(("numbers", scaling, slice(0, n_numeric)))
        # Apart, as SimpleImputer(add_indicator=True) would have its indicators standardised.
        steps.append(("missing", MissingIndicator(error_on_new=False), slice(0, n_numeric)))
    if n_categorical:
        encoder = OneHotEncoder(
            max_categories=_MAX_CATEGORIES + 1,  # and the rare values
            min_frequency=2,
            handle_unknown="infrequent_if_exist",
            sparse_output=False,
        )
        steps.append(("categories", encoder, slice(n_numeric, n_numeric + n_categorical)))
    return ColumnTransformer(steps, sparse_threshold=0)


def _by_position(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    return table.loc[:, list(names)].set_axis(range(len(names)), axis=1)


def check_numbers(values: pd.Series) -> None:
    """Check that a column holds numbers that can be standardised.

    Args:
        values: The column.

    Raises:
        ValueError: If it holds text, or a number is infinite or beyond 1e30.
    """
    if not is_numeric(values):
        wrong = next(value for value in values.dropna() if not is_plain(str(value)))
        raise ValueError(
            f"column {quote(values.name)} must hold numbers as in training, got {quote(wrong)}. "
            "Correct that cell."
        )
    numbers = values.to_numpy()
    large = numbers[np.abs(numbers) > _MAX_NUMBER]
    if large.size:
        raise ValueError(
            f"column {quote(values.name)} must hold finite numbers within {_MAX_NUMBER:g}, "
            f"got {large[0]:g}. Leave the cell empty if it is missing, or choose another unit."
        )


def standard_deviation(values: np.ndarray) -> np.ndarray:
    """Compute a divisor for each column: its standard deviation, or 1 where it is constant.

    Args:
        values: Finite numbers, ``[rows]`` or ``[rows, columns]``.

    Returns:
        Numbers above 0, also where the squares of the values are 0 in float64.
    """
    largest = np.abs(values).max(axis=0)
    largest = np.where(largest == 0, 1.0, largest)
    sd = np.maximum((values / largest).std(axis=0) * largest, math.ulp(0.0))
    # Rounding of the mean can leave a constant column a tiny positive deviation.
    return np.where(values.min(axis=0) == values.max(axis=0), 1.0, sd)


def dump_preprocessing(preprocessing: Preprocessing) -> bytes:
    """Write the fitted transformers in the format of skops.

    Args:
        preprocessing: What to write; its names are not written.

    Returns:
        Content of a file.
    """
    import_library("skops")
    from skops.io import dumps

    # Formats as one text: skops writes hundreds of bytes for every entry of a dictionary.
    formats = {}
    for name, column_format in preprocessing.formats.items():
        if column_format not in _DEFAULT_FORMATS:
            formats[name] = dataclasses.asdict(column_format)
    reading = {"formats": formats, "dates": preprocessing.dates, "na": preprocessing.na}
    content = {"transformer": preprocessing.transformer, "reading": json.dumps(reading)}
    return dumps(content, compression=zipfile.ZIP_DEFLATED)


def load_preprocessing(
    data: bytes,
    numeric_columns: tuple[str, ...],
    categorical_columns: tuple[str, ...],
    dropped_columns: tuple[str, ...],
    n_inputs: int,
) -> Preprocessing:
    """Read what :func:`dump_preprocessing` wrote; no code from the file is run.

    Args:
        data: Content of the file.
        numeric_columns: See :class:`Preprocessing`.
        categorical_columns: See :class:`Preprocessing`.
        dropped_columns: See :class:`Preprocessing`.
        n_inputs: Number of inputs of the network.

    Returns:
        A preprocessing that has transformed a row of missing values.

    Raises:
        ValueError: If the file is damaged or too large, holds other types than those of
            scikit-learn, or does not fit the columns.
    """
    import_library("skops")
    from sklearn.compose import ColumnTransformer
    from skops.io import loads

    # Before skops reads anything: the file unpacks to no more than the limit, and every array has
    # the bytes that it claims.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > max_bytes():
        raise ValueError(f"the preprocessing unpacks to {size:,} bytes (FLOODING_MAX_BYTES)")
    npz.read(data, limit=max_bytes())

    pandas = import_library("pandas")
    try:
        content = loads(data, trusted=_TRUSTED_TYPES)
        transformer, reading = content, {"dates": {}, "formats": {}, "na": None}
        if isinstance(content, dict):  # else a file of 0.2.0, in which there was no such choice
            transformer, reading = content["transformer"], json.loads(content["reading"])
        if type(transformer) is not ColumnTransformer:
            raise ValueError(f"it holds a {type(transformer).__name__}")
        n_columns = len(numeric_columns) + len(categorical_columns)
        n_fitted: int = transformer.n_features_in_  # pyright: ignore[reportAttributeAccessIssue]
        if n_fitted != n_columns:
            raise ValueError(f"it is of {n_fitted} columns, not of {n_columns}")
        dates, formats, na = _check_reading(reading, {*numeric_columns, *categorical_columns})
        preprocessing = Preprocessing(
            numeric_columns, categorical_columns, dropped_columns, transformer, dates, formats, na
        )
        row = {name: pandas.Series([math.nan]) for name in numeric_columns}
        for name in categorical_columns:
            row[name] = pandas.Series([math.nan], dtype=str)
        x = preprocessing.transform(pandas.DataFrame(row))
        if x.shape[1] != n_inputs:
            raise ValueError(f"its columns need {x.shape[1]} inputs, the network has {n_inputs}")
        # These read the rest of the fitted attributes.
        _ = preprocessing.frequent, preprocessing.incomplete
    except Exception as error:
        # Attributes of any kind may be missing or wrong.
        raise ValueError(f"the preprocessing cannot be used: {error}") from error
    return preprocessing


def _check_reading(
    reading: Mapping[str, Mapping], columns: set[str]
) -> tuple[dict[str, dict[str, str]], dict[str, ColumnFormat], tuple[str, ...] | None]:
    """Check how columns are read, every value of which may be wrong."""
    dates = {}
    for source, parts in reading["dates"].items():
        if not set(parts) <= set(PARTS) or not set(parts.values()) <= columns:
            raise ValueError(f"the parts of the date {source!r:.80} are no columns")
        dates[source] = dict(parts)
    formats = {name: ColumnFormat(**values) for name, values in reading["formats"].items()}
    for name, column_format in formats.items():
        if column_format.kind not in {"number", "text", "date", "time", "boolean"}:
            raise ValueError(f"column {name!r:.80} has the format {column_format.kind!r:.80}")
        if column_format.decimal not in {None, ".", ","}:
            raise ValueError(f"column {name!r:.80} has the decimal sign {column_format.decimal!r}")
        if column_format.kind == "date" and not isinstance(column_format.date_format, str):
            raise ValueError(f"column {name!r:.80} has no format of dates")
    na = reading["na"]
    if na is not None and not all(isinstance(marker, str) for marker in na):
        raise ValueError("the markers of missing values are no texts")
    return dates, formats, None if na is None else tuple(na)
