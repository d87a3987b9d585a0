"""A report page: one HTML file that shows sentences, tables and charts, and asks for nothing else.

Every text is escaped by the template, and every character that a reader could not see, or that
would turn the direction of the text around it, is written as its code.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from flooding.report.chart import Chart
from flooding.report.groups import Group
from flooding.report.page_file import ReportPage, render_template
from flooding.text import printable

__all__ = [
    "Block",
    "Cell",
    "Charts",
    "Code",
    "DataTable",
    "Page",
    "Picture",
    "Section",
    "Sentences",
]

_LONG = 30  # characters of a text that is wrapped

# A cell of a table.
Cell: TypeAlias = "float | int | str | None"


@dataclass(frozen=True)
class Sentences:
    """A list of sentences.

    Args:
        items: The sentences.
        is_paragraph: Whether they are paragraphs instead.
    """

    items: Sequence[str]
    is_paragraph: bool = False
    kind: str = "sentences"


@dataclass(frozen=True)
class DataTable:
    """A table that can be sorted by each column.

    Args:
        name: Its identifier on the page.
        caption: What it shows.
        columns: Titles of the columns.
        rows: Cells; numbers are written with four digits, None is a dash.
        groups: The group of each row, or None.
        note: What the reader should know.
        sorted_by: Index of the column by which the rows are sorted, smallest first.
        texts: Texts of cells that are not written as above, by row and column.
        heads: Index of the column that names the row.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[int | None] = ()
    note: str = ""
    sorted_by: int | None = None
    texts: Mapping[tuple[int, int], str] = field(default_factory=dict)
    heads: int = 0
    kind: str = "table"

    def group_of(self, row: int) -> int | None:
        """Give the group of a row."""
        return self.groups[row] if self.groups else None

    def is_numeric(self, column: int) -> bool:
        """Tell whether a column holds numbers, which stand on the right."""
        cells = [row[column] for row in self.rows]
        return any(isinstance(cell, (int, float)) for cell in cells)

    def is_long(self, column: int) -> bool:
        """Tell whether a column holds sentences, which need room on a phone."""
        return any(len(self.text_of(row, column)) > _LONG for row in range(len(self.rows)))

    def text_of(self, row: int, column: int) -> str:
        """Write a cell."""
        if (row, column) in self.texts:
            return self.texts[row, column]
        cell = self.rows[row][column]
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return "–"
        if isinstance(cell, float) and math.isinf(cell):
            return "no limit"
        # Adding 0 takes the sign off a negative 0.
        return f"{cell + 0.0:.4g}" if isinstance(cell, float) else str(cell)

    def key_of(self, row: int, column: int) -> str:
        """Write what a cell is sorted by; nothing comes last."""
        cell = self.rows[row][column]
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return ""
        return repr(float(cell)) if isinstance(cell, (int, float)) else cell


@dataclass(frozen=True)
class Code:
    """A command or a piece of code to copy.

    Args:
        caption: What it does.
        text: The code.
    """

    caption: str
    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Picture:
    """A picture that is no chart.

    Args:
        png: Content of a PNG file.
        caption: What it shows.
    """

    png: bytes
    caption: str
    kind: str = "picture"

    @property
    def data(self) -> str:
        """The address of the picture, which is its content."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Charts:
    """Charts that stand side by side where the page is wide enough.

    Args:
        charts: The charts.
    """

    charts: Sequence[Chart]
    kind: str = "charts"


# A part of a section.
Block: TypeAlias = Sentences | DataTable | Code | Picture | Charts


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        name: Its identifier on the page.
        title: Its heading.
        blocks: What it shows.
        is_selector: Whether the groups can be selected in it.
    """

    name: str
    title: str
    blocks: Sequence[Block]
    is_selector: bool = False


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Args:
        title: Its heading.
        answer: The answer, in one plain sentence.
        asked: What was asked, by name.
        warnings: What the reader should know before trusting the answer.
        sections: The parts.
        groups: Levels or methods, which are selected together.
        group_noun: What a group is.
        chosen: Index of the group that the answer is about.
    """

    title: str
    answer: str
    asked: Mapping[str, str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    groups: Sequence[Group] = ()
    group_noun: str = "level"
    chosen: int | None = None

    def render(self) -> ReportPage:
        """Write the page; the same content always gives the same text."""
        details = []
        for group in self.groups:
            sentences = [printable(sentence) for sentence in group.details]
            details.append({"name": printable(group.name), "details": sentences})
        return render_template("page.html.jinja", page=self, details=details)
