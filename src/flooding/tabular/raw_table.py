"""A table as its file has it: names, and cells that nobody has judged yet."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flooding.tabular.columns import column_text
from flooding.tabular.libraries import import_library
from flooding.tabular.messages import quote

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cells", "RawTable", "cell_text", "check_names", "from_frame"]

#: The cells of one column: strings, None where there is none; or an array of numbers.
Cells: TypeAlias = "Sequence[object] | np.ndarray"


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table as its file has it.

    Args:
        source: Name of the file, for sentences.
        names: Names of the columns.
        columns: Cells of each column.
        header: Whether the file began with the names; None where its kind leaves no doubt.
        separator: What separates the fields of a text file.
        sentences: What was assumed of the file.
    """

    source: str
    names: tuple[str, ...]
    columns: tuple[Cells, ...]
    header: bool | None = None
    separator: str | None = None
    sentences: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Number of rows below the names."""
        return len(self.columns[0]) if self.columns else 0

    def text(self, name: str) -> list[str]:
        """Give the cells of a column letter by letter.

        Args:
            name: Name of the column.

        Returns:
            Strings without blanks at their ends; empty where there is no cell.
        """
        return list(map(str, column_text(self.columns[self.names.index(name)])))


def check_names(source: str, names: Iterable[str]) -> None:
    """Refuse two columns of one name, which would hide one another.

    Args:
        source: Name of the file.
        names: Names of the columns.

    Raises:
        ValueError: If a name occurs twice.
    """
    names = list(names)
    if len(set(names)) == len(names):
        return
    name = next(name for name in names if names.count(name) > 1)
    raise ValueError(
        f"column names must differ, got {quote(name)} {names.count(name)} times in {source}. "
        "Rename them."
    )


def from_frame(frame: pd.DataFrame, source: str = "the DataFrame") -> RawTable:
    """Take the columns of a DataFrame as those of a table.

    Numbers stay numbers; everything else becomes text. An index with a name is a column.

    Args:
        frame: A DataFrame.
        source: What to call it in sentences.

    Returns:
        The table.

    Raises:
        ValueError: If it has no rows or no columns, or two columns share a name.
    """
    index_names = [name for name in frame.index.names if name is not None]
    if index_names:
        frame = frame.reset_index(level=index_names)
    if not frame.shape[0] or not frame.shape[1]:
        raise ValueError(f"a table must have rows and columns, got {frame.shape} in {source}.")
    names = [_column_name(name) for name in frame.columns]
    check_names(source, names)
    columns = [_frame_cells(frame.iloc[:, index]) for index in range(len(names))]
    return RawTable(source, tuple(names), tuple(columns))


def _column_name(name: object) -> str:
    """Join the levels of a name; pandas has tuples where columns have several."""
    if isinstance(name, tuple):
        return " ".join(str(part) for part in name if str(part))
    return str(name)


def _frame_cells(values: pd.Series) -> Cells:
    """Give the cells of one column of a DataFrame."""
    pandas = import_library("pandas")
    kind = getattr(values.dtype, "kind", "O")
    if isinstance(values.dtype, np.dtype) and kind in "iuf":
        return values.to_numpy()
    if kind == "m":
        return values.dt.total_seconds().to_numpy(np.float64)
    if kind == "M":
        # The clock that the cells show, whatever their zone.
        zone = getattr(values.dtype, "tz", None)
        values = values if zone is None else values.dt.tz_localize(None)
    cells = values.astype(object).to_numpy()
    is_missing = pandas.isna(values).to_numpy()
    pairs = zip(cells, is_missing, strict=True)
    return [None if missing else cell_text(cell) for cell, missing in pairs]


def cell_text(cell: object) -> object:
    """Give the text of one cell; numbers are written as Python writes them.

    Args:
        cell: A value of any type.

    Returns:
        A string.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, datetime.datetime):
        return cell.isoformat(sep=" ")
    if isinstance(cell, datetime.timedelta):
        return str(cell.total_seconds())
    if isinstance(cell, (bytes, bytearray)):
        return bytes(cell).decode("utf-8", "backslashreplace")
    return column_text([cell])[0]
