"""A report page: one HTML file that shows sentences, tables and charts, and asks for nothing else.

Every text is escaped by the template, and every character that a reader could not see, or that
would turn the direction of the text around it, is written as its code.
"""

# ruff: file-ignore[docstring-extraneous-exception] -- of the check of the file
from __future__ import annotations

import base64
import functools
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from flooding.atomic import write_atomic
from flooding.extras import install_command
from flooding.report.chart import Chart
from flooding.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "GENERATOR",
    "Block",
    "Cell",
    "Charts",
    "Code",
    "DataTable",
    "Group",
    "Page",
    "Picture",
    "ReportPage",
    "Section",
    "Sentences",
    "check_page_file",
    "check_template_library",
    "level_groups",
]

GENERATOR = "flooding report page"
"""What the files are recognised by."""

Cell: TypeAlias = "float | int | str | None"

# Colours of low to high levels, which stay apart from the page in light and dark.
_LIGHT = ("#6b2fa0", "#3b5bb5", "#16798a", "#2b8a4b", "#7d7a12")
_DARK = ("#c79bf2", "#92b4fa", "#58ccd8", "#6fdc94", "#e3dc62")
_PLAIN = ("#6b7280", "#a9b0bb")
_MAX_BYTES = 1 << 20  # of a file whose beginning is looked at


@dataclass(frozen=True)
class Group:
    """What is selected together on the whole page: a level, or a method.

    Args:
        name: Its name.
        light: Its colour on white.
        dark: Its colour on black.
        details: Sentences that are shown when it is selected.
    """

    name: str
    light: str
    dark: str
    details: Sequence[str] = ()


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

    def text_of(self, row: int, column: int) -> str:
        """Write a cell."""
        if (row, column) in self.texts:
            return self.texts[row, column]
        cell = self.rows[row][column]
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return "–"
        return f"{cell:.4g}" if isinstance(cell, float) else str(cell)

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
        warnings_title: Heading of the warnings.
    """

    title: str
    answer: str
    asked: Mapping[str, str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    groups: Sequence[Group] = ()
    group_noun: str = "level"
    chosen: int | None = None
    warnings_title: str = "Before you rely on it"

    def render(self) -> ReportPage:
        """Write the page; the same content always gives the same text."""
        template = _environment().get_template("page.html.jinja")
        details = []
        for group in self.groups:
            sentences = [printable(sentence) for sentence in group.details]
            details.append({"name": printable(group.name), "details": sentences})
        return ReportPage(template.render(page=self, details=details, generator=GENERATOR))


@dataclass(frozen=True)
class ReportPage:
    """A page as text: save it, or show it in a notebook by its name in the last line of a cell.

    Args:
        html: The page.
    """

    html: str

    def __repr__(self) -> str:
        return f"ReportPage({len(self.html.encode()) / 1024:.0f} KiB of HTML)"

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Args:
            path: A file that ends in ``.html``; its folder is made if it is missing.

        Returns:
            The path.

        Raises:
            ValueError: If the name ends otherwise, or the file is there and is no report page.
        """
        path = check_page_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, self.html)

    def _repr_html_(self) -> str:
        """Show the page in a notebook, apart from the styles and scripts of the notebook."""
        source = html.escape(self.html, quote=True)
        return (
            f'<iframe title="Report page" sandbox="allow-scripts" srcdoc="{source}" '
            'style="width:100%;height:80vh;min-height:600px;border:1px solid #8888"></iframe>'
        )


def check_page_file(path: str | Path) -> Path:
    """Refuse a file that a page must not be written to.

    Args:
        path: The file.

    Returns:
        The path.

    Raises:
        ValueError: If its name does not end in ``.html``, or it is there and is no report page.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise ValueError(f"a report page must end in .html, got {path}. Try {path.stem}.html.")
    if path.is_dir():
        raise ValueError(f"a report page must be a file, got the folder {path}. Name another.")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(1024)
        if GENERATOR.encode() not in start:
            raise ValueError(
                f"a report page replaces an older one alone, got {path}, which is something else. "
                "Name another file."
            )
    return path


def level_groups(
    names: Sequence[str], shares: Sequence[float | None], details: Sequence[Sequence[str]] = ()
) -> list[Group]:
    """Give levels their colours.

    Args:
        names: Their names.
        shares: Where each lies between the lowest level, 0, and the highest, 1; None is plain
            training, which is grey.
        details: Sentences about each.

    Returns:
        A group for each.
    """
    groups = []
    for index, (name, share) in enumerate(zip(names, shares, strict=True)):
        light, dark = _PLAIN
        if share is not None:
            light, dark = _mix(_LIGHT, share), _mix(_DARK, share)
        groups.append(Group(name, light, dark, details[index] if details else ()))
    return groups


def _mix(colours: Sequence[str], share: float) -> str:
    """Give the colour at a share, from 0 to 1, of the way through a list of colours."""
    position = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    index = min(int(position), len(colours) - 2)
    parts = []
    for channel in (1, 3, 5):
        a, b = (int(colours[i][channel : channel + 2], 16) for i in (index, index + 1))
        parts.append(f"{round(a + (b - a) * (position - index)):02x}")
    return f"#{''.join(parts)}"


def check_template_library() -> None:
    """Refuse to go on without what writes the pages.

    Raises:
        ImportError: If Jinja2 is missing.
    """
    _environment()


@functools.cache
def _environment() -> Environment:
    """Open the templates; whatever they print is escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(
            f"report pages need Jinja2, which is missing. Run: {install_command('report')}"
        ) from error
    return Environment(
        loader=PackageLoader("flooding.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_hidden_characters,
    )


def _without_hidden_characters(value: object) -> object:
    """Make a text printable before it is escaped; HTML of the templates is what it is."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if is_text else value
