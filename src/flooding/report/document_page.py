"""The report page of an experiment: the sentences, charts, tables and pictures of its report."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from flooding.report.document import Report, Table
from flooding.report.page import (
    Block,
    Cell,
    Charts,
    Code,
    DataTable,
    Page,
    Picture,
    Section,
    Sentences,
)
from flooding.report.page_file import ReportPage
from flooding.report.search_charts import shown_groups, study_charts
from flooding.report.stats import pluralize

__all__ = ["data_table", "document_page", "small_png"]

# The number that a cell begins with: `87.4 ± 0.9`, `+1.9 [+0.6, +3.2]`, `< 0.001`.
_NUMBER = re.compile(r"(?:< )?([-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)")
_NOTHING = ("", "–", "-")
_WIDTH, _COLOURS = 1000, 128  # of a picture on a page


def document_page(
    report: Report, pictures: Mapping[str, Path], asked: Mapping[str, str], command: str
) -> ReportPage:
    """Make the page of a report.

    Args:
        report: The report.
        pictures: The file of each of its figures, by the figure's name.
        asked: What was asked, by name.
        command: The command that repeats it.

    Returns:
        The page.
    """
    sections = []
    if report.searches:
        charts: list[Block] = [Charts(row) for row in study_charts(report.searches)]
        sections.append(Section("levels", "Levels and curves", charts, is_selector=True))
    if report.failures:
        sections.append(Section("failed", "Not reproduced", [Sentences(report.failures)]))
    if report.findings:
        sections.append(Section("found", "Found", [Sentences(report.findings)]))
    if pictures:
        figures: list[Block] = []
        for name, path in pictures.items():
            caption = report.figures[name][0]
            figures.append(Picture(small_png(path.read_bytes()), caption))
        sections.append(Section("figures", "Figures", figures))
    if report.tables:
        tables: list[Block] = [data_table(table) for table in report.tables]
        sections.append(Section("tables", "Tables", tables))
    about = [part for part in report.about.split("\n\n") if part.strip()]
    about = [" ".join(part.split()).replace("**", "") for part in about]
    sections.append(Section("how", "How it was done", [Sentences(about, is_paragraph=True)]))
    repeat: list[Block] = [Code("Repeat it; finished runs are looked up", command)]
    if report.provenance:
        repeat.insert(0, Sentences([report.provenance], is_paragraph=True))
    sections.append(Section("repeat", "Cost, versions, and how to repeat it", repeat))
    return Page(
        report.title,
        report.answer or _count_results(report),
        asked,
        (),
        sections,
        shown_groups(report.searches),
    ).render()


def _count_results(report: Report) -> str:
    """Count findings and failures, where a report has no answer of its own."""
    num_findings = pluralize(len(report.findings), "finding")
    if not report.failures:
        return f"{num_findings}; nothing that was checked failed."
    failed = pluralize(len(report.failures), "result")
    return f"{num_findings}; {failed} could not be reproduced."


def data_table(table: Table, groups: Sequence[int | None] = (), heads: int = 0) -> DataTable:
    """Make the table of a report one that can be sorted, also by the numbers in its texts.

    Args:
        table: The table.
        groups: The group of each row.
        heads: Index of the column that names the row.

    Returns:
        The table of a page.
    """
    rows: list[list[Cell]] = [list(map(str, row)) for row in table.rows]
    texts = {}
    for column in range(len(table.columns)):
        cells = [str(row[column]) for row in table.rows]
        numbers = [_leading_number(cell) for cell in cells]
        is_numeric = all(
            number is not None or cell in _NOTHING
            for number, cell in zip(numbers, cells, strict=True)
        )
        if is_numeric and any(number is not None for number in numbers):
            for index, (number, cell) in enumerate(zip(numbers, cells, strict=True)):
                rows[index][column], texts[index, column] = number, cell
    return DataTable(
        f"table-{table.name}",
        table.title,
        table.columns,
        rows,
        groups,
        table.note,
        texts=texts,
        heads=heads,
    )


def _leading_number(text: str) -> float | None:
    match = _NUMBER.match(text)
    if match is None:
        return None
    return float(match[1].replace(",", "").replace("−", "-"))


def small_png(png: bytes) -> bytes:
    """Make a picture as small as a page needs it; the same picture always gives the same bytes.

    Args:
        png: Content of a PNG file.

    Returns:
        Content of a PNG file, at most 1000 pixels wide, of at most 128 colours.
    """
    from PIL import Image  # comes with matplotlib, which drew the picture

    with Image.open(io.BytesIO(png)) as image, io.BytesIO() as file:
        picture = image.convert("RGB")
        if picture.width > _WIDTH:
            height = round(picture.height * _WIDTH / picture.width)
            picture = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
        # The method keeps colours of thin lines, which cover few pixels.
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        picture.quantize(_COLOURS, method, dither=dither).save(file, "PNG", optimize=True)
        return file.getvalue()
