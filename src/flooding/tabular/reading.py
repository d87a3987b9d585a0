"""Read a table from a file, standard input or a DataFrame: numbers, text and dates."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flooding.tabular.columns import (
    ColumnFormat,
    column_text,
    file_decimal,
    infer_format,
    is_number_array,
    parse_column,
)
from flooding.tabular.delimited import read_delimited
from flooding.tabular.files import read_file
from flooding.tabular.formats import READERS, is_position
from flooding.tabular.libraries import import_library
from flooding.tabular.markers import Markers
from flooding.tabular.messages import shorten, suggest
from flooding.tabular.numbers import Decimal
from flooding.tabular.raw_table import RawTable, from_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Source",
    "TypedTable",
    "column_text",
    "find_names",
    "import_library",
    "is_date",
    "is_numeric",
    "is_position",
    "judge_columns",
    "judge_decimal",
    "read_raw",
    "read_table",
]

log = logging.getLogger("flooding")

#: A file, ``-`` for standard input, or a pandas DataFrame.
Source: TypeAlias = "str | Path | pd.DataFrame"


@dataclass(frozen=True, eq=False)
class TypedTable:
    """Columns that were judged and read.

    Args:
        frame: Numbers as float64, text as strings, dates as datetime64.
        formats: How the cells of each column were read.
        sentences: What was changed, and how to change that.
    """

    frame: pd.DataFrame
    formats: dict[str, ColumnFormat]
    sentences: tuple[str, ...] = field(default=())


def read_table(
    path: Source,
    target: str | int | None = None,
    *,
    header: bool | None = None,
    text: Collection[str] = (),
    na: Markers = None,
    encoding: str | None = None,
    decimal: Decimal | None = None,
) -> pd.DataFrame:
    r"""Read a table from a file, standard input or a DataFrame.

    Files are text (CSV, TSV, semicolons, bars or blanks between the fields), spreadsheets
    (``.xlsx``, ``.xls``, ``.ods``), column stores (``.parquet``, ``.feather``, ``.orc``), JSON,
    Stata and SAS files, and NumPy archives; each may be packed (gz, bz2, xz, zip). Pandas needs
    further libraries for some of them, which the error names.

    A column is numeric where nearly every cell is a number; currency, percent, groups of thousands
    and decimal commas are understood. Missing are empty cells, ``?``, ``NA``, ``NaN``, ``NULL`` and
    the like. At most 5 % of other cells are taken as missing. Dates become datetime64, times become
    hours. All else is text. What was changed is said in the log.

    An archive (``.npz``) holds inputs ``x`` or ``X``, ``[rows, ...]``, whose columns are named c0,
    c1, ..., and the target ``y``, ``[rows]``, or an array of the name in ``target``.

    Args:
        path: The file; ``-`` for standard input; or a DataFrame.
        target: Name or position of the target, if one is wanted.
        header: Whether the first row names the columns; None finds out. Without a header they are
            c0, c1, ...
        text: Names of columns to leave as text even where they hold numbers.
        na: What is missing beside the empty cell; None for the usual texts.
        encoding: Of a text file; None finds out.
        decimal: The decimal sign where a column leaves a doubt; None judges by the file.

    Returns:
        A pandas DataFrame: numbers as float64, text as strings, dates as datetime64, NaN or NaT
        where a value is missing.

    Raises:
        ImportError: If pandas, or the library of a kind of file, is not installed.
        ValueError: If the file cannot be read as a table with at least one row, or two columns
            share a name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "fruit.csv")
        >>> _ = path.write_text("kind,grams,price\napple,150,$1.20\nfig,?,$0.30\n")
        >>> read_table(path).to_dict("list")
        {'kind': ['apple', 'fig'], 'grams': [150.0, nan], 'price': [1.2, 0.3]}
    """
    raw = read_raw(path, target, header=header, encoding=encoding)
    table = judge_columns(raw, raw.names, text=text, na=na, decimal=decimal)
    for sentence in (*raw.sentences, *table.sentences):
        log.warning("%s", sentence)
    return table.frame


def read_raw(
    path: Source,
    target: str | int | None = None,
    *,
    header: bool | None = None,
    encoding: str | None = None,
) -> RawTable:
    """Read a table without judging its columns.

    Args:
        path: See :func:`read_table`.
        target: See :func:`read_table`.
        header: See :func:`read_table`.
        encoding: See :func:`read_table`.

    Returns:
        Names, and the cells of each column as the file has them.

    Raises:
        ImportError: See :func:`read_table`.
        ValueError: See :func:`read_table`.
    """
    import_library("pandas")
    if not isinstance(path, (str, Path)):
        return from_frame(path)
    file = read_file(path)
    # Sentences name the file alone; errors so far have named its whole path.
    name = file.source if str(path) == "-" else shorten(Path(path).name)
    if file.kind in READERS:
        return replace(READERS[file.kind](file, target, header), source=name)
    raw = read_delimited(
        file.data,
        file.source,
        target=target,
        header=header,
        encoding=encoding,
        size_limit=file.size_limit,
    )
    return replace(raw, source=name, sentences=(*file.sentences, *raw.sentences))


def judge_decimal(raw: RawTable, decimal: Decimal | None) -> Decimal:
    """Judge the decimal sign of a table.

    Args:
        raw: The table.
        decimal: What the user says.

    Returns:
        The sign for columns that leave a doubt.

    Raises:
        ValueError: If the user says something else than a point or a comma.
    """
    if decimal not in {None, ".", ","}:
        raise ValueError(f"decimal must be '.' or ',', got {decimal!r}.")
    texts = [cells for cells in raw.columns if not is_number_array(cells)]
    return decimal or file_decimal(texts, raw.separator)


def judge_columns(
    raw: RawTable,
    names: Collection[str],
    *,
    text: Collection[str] = (),
    na: Markers = None,
    decimal: Decimal | None = None,
) -> TypedTable:
    """Judge some columns of a table and read their cells.

    Args:
        raw: The table.
        names: Names of the columns.
        text: Names of columns to leave as text.
        na: What is missing beside the empty cell; None for the usual texts.
        decimal: The decimal sign where a column leaves a doubt; None judges by the file.

    Returns:
        The columns, their formats, and what was changed.

    Raises:
        ImportError: If pandas is not installed.
        ValueError: If a column is mostly, but not nearly all, numbers.
    """
    pandas = import_library("pandas")
    sign = judge_decimal(raw, decimal)
    columns, formats, sentences = {}, {}, []
    names = frozenset(names)
    for name, cells in zip(raw.names, raw.columns, strict=True):
        if name not in names:
            continue
        column_format, remarks = infer_format(name, cells, na=na, decimal=sign, text=text)
        column = parse_column(name, cells, column_format, na)
        columns[name] = column.values
        formats[name] = column.format
        sentences += [*column.sentences, *remarks]
    index = pandas.RangeIndex(raw.num_rows)
    return TypedTable(pandas.DataFrame(columns, index=index), formats, tuple(sentences))


def find_names(option: str, values: Collection[str] | str, raw: RawTable) -> tuple[str, ...]:
    """Look up the columns that an option names.

    Args:
        option: Name of the option, for the error.
        values: Names of columns; one that is no name may be several, divided by commas.
        raw: The table.

    Returns:
        Names of columns.

    Raises:
        ValueError: If the table has no such column.
    """
    names = []
    for value in [values] if isinstance(values, str) else values:
        parts = [value] if value in raw.names else [part.strip() for part in value.split(",")]
        for part in parts:
            if part not in raw.names:
                raise ValueError(
                    f"{option} must name columns of {raw.source}, got {suggest(part, raw.names)}"
                )
            names.append(part)
    return tuple(dict.fromkeys(names))


def is_numeric(values: pd.Series) -> bool:
    """Say whether a column of :func:`read_table` holds numbers.

    Args:
        values: The column.

    Returns:
        True for numbers, False for text and dates.
    """
    return values.dtype == np.float64


def is_date(values: pd.Series) -> bool:
    """Say whether a column of :func:`read_table` holds dates.

    Args:
        values: The column.

    Returns:
        True for dates, False for numbers and text.
    """
    return getattr(values.dtype, "kind", "O") == "M"
