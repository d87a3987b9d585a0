"""Tables in other files than text: spreadsheets, column stores, JSON and NumPy archives."""

# The checks shared by the functions below raise what their docstrings promise.
from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from flooding import npz
from flooding.data.compression import DAMAGED, max_bytes
from flooding.tabular.delimited import build_table, decode
from flooding.tabular.files import FileContent
from flooding.tabular.libraries import import_engine, import_library
from flooding.tabular.limits import MAX_COLUMNS, TableTooLargeError, check_cells, too_many
from flooding.tabular.messages import join_names, pluralize, quote, shorten, suggest
from flooding.tabular.numbers import NumberText
from flooding.tabular.raw_table import Cells, RawTable, cell_text, check_names, from_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["READERS", "is_position"]

Reader = Callable[[FileContent, "str | int | None", "bool | None"], RawTable]


def is_position(target: str | int) -> bool:
    """Say whether a target may be the position of a column.

    Args:
        target: Name or position.

    Returns:
        True for an integer, also in text.
    """
    return isinstance(target, int) or (
        target.removeprefix("-").isdecimal() and target.isascii() and len(target) < 10
    )


# Spreadsheets.


def _read_sheet(
    file: FileContent, target: str | int | None, header: bool | None, engine: str
) -> RawTable:
    """Read the first sheet of a spreadsheet."""
    pandas = import_library("pandas")
    import_engine(engine, f".{file.kind}")
    if file.kind != "xls":
        _check_unpacked_size(file)
    try:
        with pandas.ExcelFile(io.BytesIO(file.data), engine=_ENGINES[file.kind]) as workbook:
            sheets = list(map(str, workbook.sheet_names))
            frame = pandas.read_excel(
                workbook, sheet_name=sheets[0], header=None, dtype=object, keep_default_na=False
            )
            # Empty cells are empty strings: NaN are the errors alone.
            is_error = pandas.isna(frame).to_numpy()
            errors = _sheet_errors(workbook, sheets[0], file.kind) if is_error.any() else []
    except Exception as error:
        raise _unreadable(file, error) from error
    check_cells(frame.size, file.source, file.size_limit or frame.size)
    sentences = list(file.sentences)
    if len(sheets) > 1:
        others = join_names(sheets[1:])
        sentences.append(
            f"Read the first sheet, {quote(sheets[0])}, and not {others}. To read another one, "
            "move it to the front."
        )
    texts = _sheet_texts(frame.to_numpy(dtype=object), is_error, errors)
    # Blank rows and columns around a table.
    is_filled = np.array([[bool(cell) for cell in row] for row in texts.tolist()], dtype=bool)
    texts = texts[is_filled.any(axis=1)] if is_filled.size else texts
    if not texts.size:
        raise ValueError(f"a table must hold rows, got the empty sheet of {file.source}.")
    texts, title = _cut_titles(texts)
    if title:
        lines = pluralize(len(title), "line")
        sentences.append(f"Left out {lines} above the table: {quote(title[0][:80])}.")
    return build_table(texts, file.source, target=target, header=header, sentences=sentences)


def _sheet_errors(workbook: pd.ExcelFile, sheet: str, kind: str) -> list[str]:
    """Give the errors of a sheet, such as #DIV/0!, row by row: pandas makes NaN of them."""
    document: Any = workbook.book
    if kind == "xlsx":
        cells = itertools.chain.from_iterable(document[sheet].iter_rows())
        return [str(cell.value) for cell in cells if cell.data_type == "e"]
    if kind == "xls":
        from xlrd import biffh  # pyright: ignore[reportMissingImports] -- optional

        cells = itertools.chain.from_iterable(document.sheet_by_name(sheet).get_rows())
        texts = biffh.error_text_from_code
        return [
            texts.get(cell.value, "#N/A") for cell in cells if cell.ctype == biffh.XL_CELL_ERROR
        ]
    # In .ods all errors are text but for #N/A, which is what NaN becomes without a list.
    return []


def _sheet_texts(cells: np.ndarray, is_error: np.ndarray, errors: list[str]) -> np.ndarray:
    """Give the text of every cell of a sheet, errors included."""
    texts = np.empty(cells.shape, dtype=object)
    for index, cell in np.ndenumerate(cells):
        texts[index] = "#N/A" if is_error[index] else cell_text(cell)
    if len(errors) == is_error.sum():
        texts[is_error] = errors
    return texts


def _cut_titles(texts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Cut up to three rows with one cell above a table of several columns."""
    titles = []
    while texts.shape[1] > 1 and len(titles) < 3 and len(texts) > 2:
        filled = [cell for cell in texts[0] if cell]
        if len(filled) != 1 or sum(bool(cell) for cell in texts[1]) < 1:
            break
        titles.append(str(filled[0]))
        texts = texts[1:]
    return texts, titles


def _check_unpacked_size(file: FileContent) -> None:
    """Refuse a spreadsheet that unpacks to more than the limit."""
    try:
        with zipfile.ZipFile(io.BytesIO(file.data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except DAMAGED as error:
        raise _unreadable(file, error) from error
    if size > max(max_bytes(), len(file.data)):
        raise TableTooLargeError(
            f"a table must unpack to at most {max_bytes():,} bytes, got {size:,} in {file.source}. "
            "If it is what you expect, set the environment variable FLOODING_MAX_BYTES to a larger "
            "number."
        )


_ENGINES = {"xlsx": "openpyxl", "xls": "xlrd", "ods": "odf"}


def _read_xlsx(file: FileContent, target: str | int | None, header: bool | None) -> RawTable:
    return _read_sheet(file, target, header, "openpyxl")


def _read_xls(file: FileContent, target: str | int | None, header: bool | None) -> RawTable:
    return _read_sheet(file, target, header, "xlrd")


def _read_ods(file: FileContent, target: str | int | None, header: bool | None) -> RawTable:
    return _read_sheet(file, target, header, "odf")


# Files of typed columns, which have names.


def _read_frame(file: FileContent) -> RawTable:
    """Read a file with the function that pandas has for its kind."""
    pandas = import_library("pandas")
    if file.kind in {"parquet", "feather", "orc"}:
        import_engine("pyarrow", f".{file.kind}")
    if file.kind == "parquet":
        _check_parquet(file)
    functions: dict[str, Callable[[io.BytesIO], pd.DataFrame]] = {
        "parquet": pandas.read_parquet,
        "feather": pandas.read_feather,
        "orc": pandas.read_orc,
        "dta": pandas.read_stata,
        "sas7bdat": lambda stream: pandas.read_sas(stream, format="sas7bdat", encoding="infer"),
        "xpt": lambda stream: pandas.read_sas(stream, format="xport", encoding="utf-8"),
    }
    try:
        frame = functions[file.kind](io.BytesIO(file.data))
    except Exception as error:
        raise _unreadable(file, error) from error
    check_cells(frame.size, file.source, file.size_limit or frame.size)
    table = from_frame(frame, file.source)
    return RawTable(file.source, table.names, table.columns, sentences=file.sentences)


def _check_parquet(file: FileContent) -> None:
    """Count the cells before they are unpacked."""
    import_engine("pyarrow", ".parquet")
    from pyarrow import parquet  # pyright: ignore[reportMissingImports] -- optional

    try:
        metadata = parquet.ParquetFile(io.BytesIO(file.data)).metadata
        count = metadata.num_rows * metadata.num_columns
    except Exception as error:
        raise _unreadable(file, error) from error
    check_cells(count, file.source, file.size_limit or count)


def _read_typed(file: FileContent, target: str | int | None, header: bool | None) -> RawTable:
    del target, header  # the file has names
    return _read_frame(file)


def _unreadable(file: FileContent, error: Exception) -> ValueError:
    reason = shorten(str(error).strip().split("\n")[0] or type(error).__name__)
    return ValueError(
        f"a .{file.kind} file must hold a table that can be read, got {file.source}: {reason}."
    )


# JSON.


def _read_json(file: FileContent, target: str | int | None, header: bool | None) -> RawTable:
    """Read a JSON object per line, an array of them, or an object of columns."""
    del target, header  # every cell has a name
    text, sentences = decode(file.data, file.source, None)
    # Numbers stay the strings that they are: float64 would change long ones.
    decoder = json.JSONDecoder(parse_float=NumberText, parse_int=NumberText, parse_constant=str)
    try:
        values = _json_values(text, decoder)
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, error) from error
    rows = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if len(rows) == 1 and isinstance(rows[0], dict) and _is_columns(rows[0]):
        columns = {str(k): _json_column(v) for k, v in rows[0].items()}
        if len({len(cells) for cells in columns.values()}) != 1:
            raise _unreadable(file, ValueError("its columns differ in their length"))
    elif rows and all(isinstance(row, dict) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        if len(names) > MAX_COLUMNS:
            raise too_many(f"{MAX_COLUMNS:,} columns", len(names), file.source)
        check_cells(len(names) * len(rows), file.source, max(max_bytes() // 16, len(file.data)))
        columns = {name: [_json_cell(row.get(name)) for row in rows] for name in names}
    else:
        raise _unreadable(file, ValueError("it must hold an object per row or an array of them"))
    columns = {name: cells for name, cells in columns.items() if name}
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"a table must have rows and columns, got none in {file.source}.")
    return RawTable(
        file.source,
        tuple(columns),
        tuple(columns.values()),
        sentences=(*file.sentences, *sentences),
    )


def _json_values(text: str, decoder: json.JSONDecoder) -> list:
    """Decode the values of a file, one after the other."""
    values, position = [], 0
    text = text.strip()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        values.append(value)
        while position < len(text) and text[position].isspace():
            position += 1
    return values


def _is_columns(value: dict) -> bool:
    return bool(value) and all(isinstance(cells, (list, dict)) for cells in value.values())


def _json_column(cells: list | dict) -> list:
    return [_json_cell(cell) for cell in (cells.values() if isinstance(cells, dict) else cells)]


def _json_cell(cell: object) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    return json.dumps(cell, ensure_ascii=False)


# NumPy archives.


def _read_archive(file: FileContent, target: str | int | None, header: bool | None) -> RawTable:
    """Read inputs and target from a NumPy archive."""
    del header  # the columns of arrays have no names
    try:
        # A file of its own size is no bomb.
        arrays = npz.read(file.data, limit=max(max_bytes(), len(file.data)))
    except DAMAGED as error:
        raise ValueError(
            "an .npz file must hold arrays of numbers or text, "
            f"got {file.source}: {shorten(error)}."
        ) from error
    count = sum(array.size for array in arrays.values())
    check_cells(count, file.source, file.size_limit or count)

    x = arrays.get("x", arrays.get("X"))
    if x is None or x.size == 0 or x.ndim == 0:
        content = join_names(arrays) or "nothing"
        raise ValueError(
            f"an .npz file must hold inputs x with rows, got {content} in {file.source}."
        )
    x = x.reshape(len(x), -1)
    if x.shape[1] > MAX_COLUMNS:
        raise too_many(f"{MAX_COLUMNS:,} columns", x.shape[1], file.source)
    columns = {f"c{index}": column for index, column in enumerate(x.T)}

    name = target if isinstance(target, str) and not is_position(target) else None
    if name is not None and name not in arrays and name not in columns:
        raise ValueError(f"target must be an array of {file.source}, got {suggest(name, arrays)}")
    target_name = name or "y"
    if target_name in arrays:
        y = arrays[target_name]
        if y.size != len(x):
            raise ValueError(
                f"target {shorten(target_name)} must have {len(x)} rows as x has, "
                f"got shape {y.shape}."
            )
        columns[target_name] = y.reshape(-1)
    cells = tuple(_array_cells(name, column, file.source) for name, column in columns.items())
    check_names(file.source, columns)
    return RawTable(file.source, tuple(columns), cells, sentences=file.sentences)


def _array_cells(name: str, column: np.ndarray, source: str) -> Cells:
    if column.dtype.kind not in "biufU":
        raise ValueError(
            f"arrays must hold numbers or text, got {column.dtype} in {shorten(name)} of {source}."
        )
    if column.dtype.kind == "U":
        return column.tolist()
    return column.astype(np.int64) if column.dtype.kind == "b" else column


# Readers of formats, by the ending of the file.
READERS: dict[str, Reader] = {
    "npz": _read_archive,
    "json": _read_json,
    "xlsx": _read_xlsx,
    "xls": _read_xls,
    "ods": _read_ods,
    "parquet": _read_typed,
    "feather": _read_typed,
    "orc": _read_typed,
    "dta": _read_typed,
    "sas7bdat": _read_typed,
    "xpt": _read_typed,
}
