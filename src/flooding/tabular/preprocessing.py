"""Columns of a table to inputs of a network: scikit-learn's transformers, fitted on training rows.

``skops`` stores the fitted transformers: nothing is unpickled, and files with other types than
those of scikit-learn and NumPy are refused.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flooding import npz
from flooding.data.compression import max_bytes
from flooding.tabular.messages import join_names, quote, suggest
from flooding.tabular.reading import import_library, is_numeric, parse_number

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


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """How the columns of a table become the inputs of a network.

    Numbers: missing ones become the median, then ``(value - mean) / sd``. One more input for each
    column with missing numbers in training is 1 where the number is missing. Categories: one input
    for each of the 30 most frequent values that occur at least twice, a missing value being one of
    them, and one for all rare values, if there are any in training. A value that training had not
    seen counts as rare; without an input for rare values all inputs of its column are 0.

    Args:
        numeric_columns: Names of the columns of numbers.
        categorical_columns: Names of the columns of text.
        dropped_columns: Names of columns that carry nothing: constant, or text that never repeats,
            on the training rows.
        transformer: Fitted to the columns of numbers, then those of categories, by position.

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

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are used."""
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
        columns = {str(name): values for name, values in table.items()}
        for name in self.columns:
            if name not in columns:
                raise ValueError(
                    "the table must have every column of the training table, "
                    f"got no {suggest(name, columns)}"
                )
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


def fit_preprocessing(table: pd.DataFrame) -> Preprocessing:
    """Fit a preprocessing to training rows.

    Args:
        table: Training rows as :func:`flooding.tabular.read_table` gives them, without the target.

    Returns:
        The fitted preprocessing.

    Raises:
        ValueError: If no column varies, or a number is infinite.
    """
    numeric, categorical, dropped = [], [], []
    for name, values in table.items():
        if is_numeric(values):
            check_numbers(values)
        if not _varies(values):
            dropped.append(str(name))
        elif is_numeric(values):
            numeric.append(str(name))
        else:
            categorical.append(str(name))
    if not numeric and not categorical:
        raise ValueError(
            "at least one column must vary on the training rows, "
            f"got {join_names(table) or 'none'}. Give columns that differ from row to row."
        )
    transformer = _make_transformer(len(numeric), len(categorical))
    rows = _by_position(table, [*numeric, *categorical])
    transformer.fit(rows)
    if numeric:
        imputer, scaler = transformer.named_transformers_["numbers"]
        # StandardScaler takes a column for constant where its variance is 0 in float64, as that of
        # values below 1e-160 is, or small beside its mean.
        scaler.scale_ = standard_deviation(imputer.transform(rows.iloc[:, : len(numeric)]))
    return Preprocessing(tuple(numeric), tuple(categorical), tuple(dropped), transformer)


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
        wrong = next(value for value in values.dropna() if parse_number(value) is None)
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

    return dumps(preprocessing.transformer, compression=zipfile.ZIP_DEFLATED)


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
        transformer = loads(data, trusted=_TRUSTED_TYPES)
        if type(transformer) is not ColumnTransformer:
            raise ValueError(f"it holds a {type(transformer).__name__}")
        n_columns = len(numeric_columns) + len(categorical_columns)
        n_fitted: int = transformer.n_features_in_  # pyright: ignore[reportAttributeAccessIssue]
        if n_fitted != n_columns:
            raise ValueError(f"it is of {n_fitted} columns, not of {n_columns}")
        preprocessing = Preprocessing(
            numeric_columns, categorical_columns, dropped_columns, transformer
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
