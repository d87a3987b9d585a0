"""Read a table from a text file or a NumPy archive into columns of numbers and of text."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import bz2
import csv
import gzip
import importlib
import io
import itertools
import logging
import lzma
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from flooding import npz
from flooding.data.compression import DAMAGED, LimitedReader, max_bytes
from flooding.extras import install_command
from flooding.tabular.messages import join_names, quote, shorten, suggest

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "import_library",
    "is_numeric",
    "is_position",
    "parse_number",
    "read_table",
    "read_table_and_header",
]

log = logging.getLogger("flooding")
_MISSING = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "NULL", "null"})
_OPENERS: dict[str, Callable[[Path], io.BufferedIOBase]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
_MAX_COLUMNS = 300_000
_MAX_SEPARATORS = 10_000_000  # in a line, those within quoted fields included
_HEADER_ROWS = 1000  # rows below the first that are compared with it
_field_size_lock = threading.Lock()


def read_table(
    path: str | Path,
    target: str | int | None = None,
    *,
    header: bool | None = None,
    text: Collection[str] = (),
) -> pd.DataFrame:
    r"""Read a table from a text file (CSV, TSV, semicolons, blanks) or a NumPy archive.

    Either may be compressed (gz, bz2, xz). A column is numeric where every value is a number, else
    text. Empty cells, ``?``, ``NA``, ``N/A``, ``NaN`` and ``NULL`` are missing. Where semicolons
    separate, numbers may have a decimal comma. Columns without a name, such as the row numbers that
    pandas writes, are left out with a notice.

    An archive (``.npz``) holds inputs ``x`` or ``X``, ``[rows, ...]``, whose columns are named c0,
    c1, ..., and the target ``y``, ``[rows]``, or an array of the name in ``target``.

    Args:
        path: The file; text must be UTF-8.
        target: Name or position of the target, if one is wanted.
        header: Whether the first row names the columns; None finds out. Without a header they are
            c0, c1, ...
        text: Names of columns to leave as text even where they hold numbers.

    Returns:
        A pandas DataFrame: numbers as float64, text as strings, NaN where a value is missing.

    Raises:
        ImportError: If pandas is not installed.
        ValueError: If the file cannot be read as a table with at least one row, or two columns
            share a name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "fruit.csv")
        >>> _ = path.write_text("kind,grams\napple,150\nfig,?\n")
        >>> read_table(path).to_dict("list")
        {'kind': ['apple', 'fig'], 'grams': [150.0, nan]}
    """
    return read_table_and_header(Path(path), target, header, text)[0]


def read_table_and_header(
    path: Path, target: str | int | None, header: bool | None, text: Collection[str]
) -> tuple[pd.DataFrame, bool | None]:
    """Read a table, and say whether its file began with the names of the columns.

    Args:
        path: The file.
        target: See :func:`read_table`.
        header: See :func:`read_table`.
        text: See :func:`read_table`.

    Returns:
        The table, and whether the file had a header; None for an archive.

    Raises:
        ImportError: If pandas is not installed.
        ValueError: See :func:`read_table`.
    """
    pandas = import_library("pandas")
    data = _read_bytes(path)
    inner_path = path.with_suffix("") if path.suffix in _OPENERS else path
    if inner_path.suffix == ".npz":
        return _read_archive(path, data, target, text), None

    # Text first: only whole columns show whether they hold numbers.
    cells, has_decimal_comma = _read_cells(path, data)
    if header is None:
        header = _has_header(cells, target, has_decimal_comma)
    if header:
        names = [str(cell).strip() for cell in cells[0]]
    else:
        names = [f"c{index}" for index in range(cells.shape[1])]
    rows = cells[int(header) :]
    if not len(rows):
        raise ValueError(
            f"a table must have rows, got the header alone in {shorten(path)}. Give it data."
        )
    # Two columns of one name would hide one another.
    _check_names(path, names)
    if "" in names:
        log.warning(
            "%d columns without a name are left out: %s", names.count(""), shorten(path.name)
        )
    columns = {}
    for name, column in zip(names, rows.T, strict=True):
        if name:
            columns[name] = _parse_column(column, name in text, has_decimal_comma)
    return pandas.DataFrame(columns), header


def import_library(name: str) -> ModuleType:
    """Import a library of the extra ``tables``, all of which are optional and slow to import.

    Args:
        name: Name of its module.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"tables need {name}. Install it: {install_command('tables')}") from error


def is_numeric(values: pd.Series) -> bool:
    """Say whether a column of :func:`read_table` holds numbers.

    Args:
        values: The column.

    Returns:
        True for numbers, False for text.
    """
    return values.dtype == np.float64


def is_position(target: str | int) -> bool:
    """Say whether a target may be the position of a column.

    Args:
        target: Name or position.

    Returns:
        True for an integer, also in text.
    """
    return isinstance(target, int) or re.fullmatch(r"-?[0-9]{1,9}", target) is not None


def parse_number(cell: str, has_decimal_comma: bool = False) -> float | None:
    """Read one cell as a number.

    Args:
        cell: Its text.
        has_decimal_comma: Whether a comma may be a decimal one.

    Returns:
        The number, or None for other text.
    """
    # As a column of one row, so that a cell and a column follow the same rules.
    column = _parse_column([cell], False, has_decimal_comma)
    return float(column.iloc[0]) if is_numeric(column) and column.notna().all() else None


# Files.


class _TableTooLargeError(ValueError):
    """A table has more columns or cells than can be read."""


def _read_bytes(path: Path) -> bytes:
    """Read a file, decompressed within the limit."""
    if not path.is_file():
        reason = "a folder" if path.is_dir() else "which does not exist"
        raise ValueError(f"a table must be a file, got {shorten(path)}, {reason}. Check the path.")
    try:
        if path.suffix in _OPENERS:
            with _OPENERS[path.suffix](path) as file:
                # A small packed file may unpack to more than the memory.
                data = LimitedReader(file, max_bytes()).read()
        else:
            data = path.read_bytes()
    except DAMAGED as error:
        rule = "a table must be a file that can be read and unpacked"
        raise ValueError(f"{rule}, got {shorten(path)}: {shorten(error)}.") from error
    if not data or data.isspace():
        raise ValueError(
            f"a table must hold rows, got the empty file {shorten(path)}. Give it data."
        )
    return data


def _too_many(limit: str, count: int, path: Path) -> _TableTooLargeError:
    return _TableTooLargeError(
        f"a table must have at most {limit}, got {count:,} in {shorten(path)}. Leave columns out."
    )


def _check_cells(count: int, path: Path) -> None:
    """Refuse a compressed table whose cells, at 16 to 64 bytes each, need too much memory."""
    limit = max(max_bytes() // 16, path.stat().st_size)
    if count > limit:
        raise _TableTooLargeError(
            f"a packed table must hold at most {limit:,} cells, got {count:,} in {shorten(path)}. "
            "If it is what you expect, set the environment variable FLOODING_MAX_BYTES to a larger "
            "number."
        )


def _check_names(path: Path, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if name and count > 1:
            raise ValueError(
                f"column names must differ, got {quote(name)} {count} times in {shorten(path)}. "
                "Rename them."
            )


# Text.


def _read_cells(path: Path, data: bytes) -> tuple[np.ndarray, bool]:
    """Read every cell of a text table, the first row included.

    Args:
        path: The file, to name it.
        data: Its content.

    Returns:
        Strings, or NaN where a row is shorter than the longest; and whether a comma may be a
        decimal one.

    Raises:
        ValueError: If the file is no text, or its rows differ in their number of fields.
        _TableTooLargeError: If it has too many columns or cells.
    """
    text = _decode(path, data)
    try:
        separator = _find_separator(text, path)
        if path.suffix in _OPENERS:
            # Count the cells before pandas makes an object of each of them.
            count = text.count(separator if len(separator) == 1 else " ") + text.count("\n")
            _check_cells(count, path)
        cells = import_library("pandas").read_csv(
            io.BytesIO(text.encode()),  # a StringIO takes four bytes for every character
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
        )
    # It is a ValueError too, but says already what is wrong.
    except _TableTooLargeError:
        raise
    except (csv.Error, *DAMAGED) as error:
        raise ValueError(
            f"a table must be rows of fields, got {shorten(path)}: {shorten(str(error).strip())}. "
            "Give every row as many fields as the first."
        ) from error
    return cells.to_numpy(dtype=object), separator == ";"


def _decode(path: Path, data: bytes) -> str:
    """Decode UTF-8 without byte order marks."""
    rule = f"a table must be UTF-8 text, got {shorten(path)}"
    fix = "Save it as CSV in UTF-8."
    # A NUL byte is valid UTF-8, but no table has one.
    if b"\0" in data:
        reason = (
            f"a NUL byte at position {data.index(0):,}, as in UTF-16, spreadsheets and archives"
        )
        raise ValueError(f"{rule}: {reason}. {fix}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{rule}: {error}. {fix}") from error
    if "\ufeff" in text:
        # Files that were joined have marks at the start of lines, too.
        text, count = re.subn(r"(^|[\r\n])\ufeff+", r"\1", text)
        if count:
            log.warning(
                "%d byte order marks at the start of lines are left out: %s",
                count,
                shorten(path.name),
            )
    return text


def _find_separator(text: str, path: Path) -> str:
    """Find the separator that divides each of the first 10 lines into equally many fields."""
    matches = re.finditer(r"[^\r\n]*(?:\r\n|\r|\n|$)", text)
    lines = []
    for match in itertools.islice(matches, 10):
        if match[0].strip():
            lines.append(match[0])
    # Before the lines are split: millions of fields would fill the memory.
    for line in lines:
        count = max(line.count(separator) for separator in "\t;|, ")
        if count > _MAX_SEPARATORS:
            raise _too_many(f"{_MAX_SEPARATORS:,} separators in a line", count, path)

    separator, columns = _even_separator(lines) or _frequent_separator(lines)
    if columns > _MAX_COLUMNS:
        raise _too_many(f"{_MAX_COLUMNS:,} columns", columns, path)
    return separator


def _even_separator(lines: list[str]) -> tuple[str, int] | None:
    """Find the separator by which all lines have equally many fields, and their number."""
    for separator in "\t;|,":  # the comma last: it may be a decimal one
        counts = {len(row) for row in _split_lines(lines, separator)}
        if len(counts) == 1 and counts != {1}:
            return separator, counts.pop()
    return None


def _frequent_separator(lines: list[str]) -> tuple[str, int]:
    """Find the most frequent separator of the first line, else blanks; and the number of fields."""
    if not lines:
        return ",", 1
    # No separator divides the lines evenly, so the reading that follows will name the bad row.
    separator = max("\t;|,", key=lines[0].count)
    if separator in lines[0]:
        return separator, 1 + lines[0].count(separator)
    return r"\s+", 1 + lines[0].count(" ")


def _split_lines(lines: list[str], separator: str) -> list[list[str]]:
    with _field_size_lock:  # the limit belongs to the whole process
        limit = csv.field_size_limit(max([csv.field_size_limit(), *map(len, lines)]))
        try:
            return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
        finally:
            csv.field_size_limit(limit)


def _has_header(cells: np.ndarray, target: str | int | None, has_decimal_comma: bool) -> bool:
    """Say whether the first row names the columns.

    The target's name tells; so does text above numbers, or numbers above numbers. Else a name
    neither occurs twice in the row nor again below it.

    Returns:
        True for a row of names, False for a row of values.
    """
    first = [str(cell).strip() for cell in cells[0]]

    # 1. The target's name in the first row makes it a header.
    def is_number(cell: str) -> bool:
        return parse_number(cell, has_decimal_comma) is not None

    if isinstance(target, str) and target in first and not is_number(target):
        return True
    # 2. Above numbers, text is a name and a number is a value; a missing value tells nothing.
    columns = []
    above_numbers = []
    for index, cell in enumerate(first):
        column = _parse_column(cells[1 : 1 + _HEADER_ROWS, index], False, has_decimal_comma)
        columns.append(column)
        if is_numeric(column) and column.notna().any():
            above_numbers.append(cell)
    if any(cell not in _MISSING and not is_number(cell) for cell in above_numbers):
        return True
    if any(is_number(cell) for cell in above_numbers):
        return False
    # 3. All columns are text: names are unique, and no value of their own column.
    if len(set(first)) < len(first):
        return False
    recurs = [(column == cell).any() for cell, column in zip(first, columns, strict=True)]
    return not any(recurs)


def _parse_column(cells: Iterable[object], is_text: bool, has_decimal_comma: bool) -> pd.Series:
    """Parse numbers where every cell is one, else text; NaN where a cell is missing."""
    pandas = import_library("pandas")
    # Lists of strings: as fast as pandas on a long column, and 30 times as fast on a short one.
    values = [cell.strip() if isinstance(cell, str) else "" for cell in cells]
    is_missing = np.array([value in _MISSING for value in values], dtype=bool)
    if not is_text:
        present = [value for value in values if value not in _MISSING]
        spellings = [present]
        if has_decimal_comma:
            spellings.append([value.replace(",", ".") for value in present])
        for spelling in spellings:
            array = np.array(spelling, dtype=object)
            numbers = pandas.to_numeric(array, errors="coerce").astype(np.float64)
            if not np.isnan(numbers).any():
                column = np.full(len(values), math.nan)
                column[~is_missing] = numbers
                return pandas.Series(column)
    column = np.array(values, dtype=object)
    column[is_missing] = math.nan
    return pandas.Series(column, dtype=str)


# NumPy archives.


def _read_archive(
    path: Path, data: bytes, target: str | int | None, text: Collection[str]
) -> pd.DataFrame:
    """Read inputs and target from a NumPy archive."""
    pandas = import_library("pandas")
    try:
        # A file of its own size is no bomb.
        arrays = npz.read(data, limit=max(max_bytes(), len(data)))
    except DAMAGED as error:
        raise ValueError(
            "an .npz file must hold arrays of numbers or text, "
            f"got {shorten(path)}: {shorten(error)}."
        ) from error
    _check_cells(sum(array.size for array in arrays.values()), path)

    x = arrays.get("x", arrays.get("X"))
    if x is None or x.size == 0 or x.ndim == 0:
        content = join_names(arrays) or "nothing"
        raise ValueError(
            f"an .npz file must hold inputs x with rows, got {content} in {shorten(path)}."
        )
    x = x.reshape(len(x), -1)
    if x.shape[1] > _MAX_COLUMNS:
        raise _too_many(f"{_MAX_COLUMNS:,} columns", x.shape[1], path)
    columns = {f"c{index}": column for index, column in enumerate(x.T)}

    name = target if isinstance(target, str) and not is_position(target) else None
    if name is not None and name not in arrays and name not in columns:
        raise ValueError(
            f"target must be an array of {shorten(path.name)}, got {suggest(name, arrays)}"
        )
    target_name = name or "y"
    if target_name in arrays:
        y = arrays[target_name]
        if y.size != len(x):
            raise ValueError(
                f"target {shorten(target_name)} must have {len(x)} rows as x has, "
                f"got shape {y.shape}."
            )
        columns[target_name] = y.reshape(-1)

    table = {}
    for name, column in columns.items():
        if column.dtype.kind not in "biufU":
            raise ValueError(
                "arrays must hold numbers or text, "
                f"got {column.dtype} in {shorten(name)} of {shorten(path)}."
            )
        if column.dtype.kind == "U":
            table[name] = _parse_column(column.tolist(), name in text, False)
        else:
            table[name] = pandas.Series(column.astype(np.float64))
    return pandas.DataFrame(table)
