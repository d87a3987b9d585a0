"""Read a table to predict, its columns as those of the training table."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flooding.tabular.columns import ColumnFormat, parse_column
from flooding.tabular.libraries import import_library
from flooding.tabular.preprocessing import Preprocessing
from flooding.tabular.raw_table import RawTable
from flooding.tabular.reading import Source, read_raw

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_new_rows"]

log = logging.getLogger("flooding")


def read_new_rows(
    path: Source,
    preprocessing: Preprocessing,
    *,
    header: bool | None = None,
    encoding: str | None = None,
) -> tuple[pd.DataFrame, RawTable]:
    """Read rows in the formats of the training table; say in the log what was changed.

    Args:
        path: A file, ``-`` for standard input, or a DataFrame.
        preprocessing: That of the model, with the formats of its columns.
        header: Whether the first row names the columns; None finds out.
        encoding: Of a text file; None finds out.

    Returns:
        The columns that the preprocessing needs, dates by their parts, and every other one; and the
        cells as the file has them.

    Raises:
        ImportError: If pandas, or the library of a kind of file, is not installed.
        ValueError: If the file is no table, a column is missing, or too many of its cells are
            something else than in training.
    """
    pandas = import_library("pandas")
    raw = read_raw(path, header=header, encoding=encoding)
    numeric, needed = set(preprocessing.numeric_columns), set(preprocessing.sources)
    columns, sentences = {}, list(raw.sentences)
    for name, cells in zip(raw.names, raw.columns, strict=True):
        column_format, na = ColumnFormat("text"), preprocessing.na
        if name in needed:
            default = ColumnFormat("number") if name in numeric else column_format
            column_format = preprocessing.formats.get(name, default)
        # Nothing is predicted from other columns; as text they raise no error.
        column = parse_column(name, cells, column_format, na)
        columns[name] = column.values
        sentences += column.sentences
    for sentence in sentences:
        log.warning("%s", sentence)
    frame = pandas.DataFrame(columns, index=pandas.RangeIndex(raw.num_rows))
    return preprocessing.expand_dates(frame), raw
