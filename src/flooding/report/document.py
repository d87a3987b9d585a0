"""A report: sentences, tables and figures, written as markdown, CSV and PNG."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flooding.atomic import write_atomic
from flooding.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flooding.report.search_figures import Search

__all__ = ["Report", "Table"]


@dataclass(frozen=True)
class Table:
    """A table of results.

    Args:
        name: What its file is called, in letters, digits and dashes.
        title: What it shows, with n and the statistic.
        columns: Titles of the columns.
        rows: Texts or numbers, as many in each row as there are columns.
        note: What the reader should know, or nothing.

    Raises:
        ValueError: If a row has another number of cells than there are columns.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"a row must have {len(self.columns)} cells, got {len(row)}: {list(row)}."
                )

    @classmethod
    def from_dicts(
        cls, name: str, title: str, rows: Sequence[Mapping[str, object]], note: str = ""
    ) -> Table:
        """Make a table of rows that name their columns.

        Args:
            name: See the class.
            title: See the class.
            rows: Cells by column, in the order of the first row; a missing cell is a dash.
            note: See the class.

        Returns:
            The table.
        """
        columns = list(rows[0])
        cells = []
        for row in rows:
            cells.append([row.get(column, "–") for column in columns])
        return cls(name, title, columns, cells, note)

    def markdown(self) -> str:
        """Write it as GitHub's markdown, title above and note below."""
        lines = [
            f"**{_text(self.title)}**",
            "",
            _line(self.columns),
            _line(["---"] * len(self.columns)),
        ]
        for row in self.rows:
            lines.append(_line(row))
        if self.note:
            lines += ["", _text(self.note)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Write it as CSV, without title and note."""
        with io.StringIO() as text:
            csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
            return text.getvalue()


@dataclass(frozen=True)
class Report:
    """The report of an experiment.

    Args:
        title: A heading.
        about: How it was done, in a paragraph of markdown. It comes last, but first where there is
            no answer.
        failures: Claims or figures that could not be reproduced; these come first.
        findings: What was found, a sentence each, with n and spread.
        tables: Tables.
        figures: For each figure's name in letters, digits and dashes, its caption and what draws
            it.
        provenance: Circumstances: n, machine, versions, commit, hours.
        answer: What was found, in one to three plain sentences without intervals or p values. The
            first figure follows it.
        searches: For each problem its Records by flood level, 0 being plain training, for the
            charts of a report page.
    """

    title: str
    about: str
    failures: Sequence[str] = ()
    findings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, tuple[str, Callable[[], Figure]]] = field(default_factory=dict)
    provenance: str = ""
    answer: str = ""
    searches: Mapping[str, Search] = field(default_factory=dict)

    def markdown(self, name: str) -> str:
        """Write it as one page.

        Args:
            name: What its figures' files begin with.

        Returns:
            Markdown: the answer and a picture, then what failed, before findings and tables.
        """
        about, pictures = _without_html(self.about), self._pictures(name)
        parts = [f"# {_text(self.title)}", _text(self.answer) if self.answer else about]
        if self.answer:
            parts += pictures[:1]
            pictures = pictures[1:]
        for heading, sentences in (("Not reproduced", self.failures), ("Found", self.findings)):
            if sentences:
                items = [f"- {_text(sentence)}" for sentence in sentences]
                parts += [f"## {heading}", "\n".join(items)]
        if self.tables:
            parts.append("## Tables")
            for table in self.tables:
                parts.append(table.markdown().rstrip("\n"))
        if pictures:
            parts += ["## Figures", *pictures]
        if self.answer:
            parts += ["## How it was done", about]
        if self.provenance:
            parts += ["## Circumstances", _text(self.provenance)]
        return "\n\n".join(parts) + "\n"

    def _pictures(self, name: str) -> list[str]:
        """Write each figure with its caption."""
        pictures = []
        for figure, (text, _) in self.figures.items():
            caption = _text(text)
            pictures.append(f"![{caption}]({name}-{figure}.png)\n\n{caption}")
        return pictures

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write ``NAME.md``, ``NAME-TABLE.csv`` and ``NAME-FIGURE.png``, each whole or not at all.

        Args:
            folder: Made if it is missing; files of the same names are replaced.
            name: What the files begin with.

        Returns:
            The files, the page first.
        """
        from flooding.report.figures import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [write_atomic(folder / f"{name}.md", self.markdown(name))]
        for table in self.tables:
            files.append(write_atomic(folder / f"{name}-{table.name}.csv", table.csv()))
        for figure, (_, draw) in self.figures.items():
            files.append(save(draw(), folder / f"{name}-{figure}.png"))
        return files


def _line(cells: Sequence[object]) -> str:
    """Write one row of a table; nothing in a cell may end the cell or begin code."""
    escaped = [re.sub(r"([\\|`])", r"\\\1", _text(cell)) for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _text(text: object) -> str:
    """Write one line of markdown in which nothing is HTML or a control character."""
    return _without_html(one_line(text))


def _without_html(text: str) -> str:
    """Escape what a browser would take for a tag or a character reference in plain text."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
