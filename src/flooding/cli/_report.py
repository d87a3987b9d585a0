"""The option ``--report``, which four commands share: a page, in their folder or in a file."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flooding.cli._console import console
from flooding.cli._options import check_output_folder
from flooding.text import printable

if TYPE_CHECKING:
    from flooding.report.page_file import ReportPage

__all__ = [
    "REPORT_NAME",
    "Report",
    "check_report",
    "command_line",
    "mark_bare_report",
    "report_path",
    "write_report",
]

REPORT_NAME = "report.html"
_OPTION = "--report"

Report = Annotated[
    str | None,
    typer.Option(
        _OPTION,
        metavar="[FILE]",
        help="Write one page with everything: report.html in the folder, or FILE, which ends in "
        ".html.",
        rich_help_panel="Output",
    ),
]


def mark_bare_report(arguments: Sequence[str]) -> list[str]:
    """Give ``--report`` an empty value where no file follows it.

    The next word is its file only if it ends in ``.html``: in ``find --report data.csv`` the table
    stays what is searched on.

    Args:
        arguments: The words of the command line.

    Returns:
        The words, in which ``--report`` always has a value.
    """
    words, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*words, word, *rest]
        if word == _OPTION:
            has_file = bool(rest) and rest[0].lower().endswith(".html")
            word = f"{_OPTION}={rest.pop(0) if has_file else ''}"
        words.append(word)
    return words


def report_path(report: str | None, folder: Path, name: str = REPORT_NAME) -> Path | None:
    """Give the file of the page.

    Args:
        report: The option; empty is the folder of the command, None is no page.
        folder: The folder of the command.
        name: Name of the file in the folder.

    Returns:
        The file, or None.
    """
    if report is None:
        return None
    return Path(report) if report else folder / name


def check_report(report: str | None) -> None:
    """Refuse a file that the page cannot be written to, before anything is trained.

    Args:
        report: The option.

    Raises:
        ValueError: If the file has no place, another ending, or is there and is no report page.
        ImportError: If Jinja2 is missing.
    """
    if report is None:
        return
    from flooding.report.page_file import check_page_file, check_template_library

    check_template_library()
    if report:
        check_output_folder(check_page_file(report).parent)


def write_report(page: ReportPage, path: Path) -> Path:
    """Write the page and say where it is.

    Args:
        page: The page.
        path: The file.

    Returns:
        Its absolute path.
    """
    page.save(path)
    console.print_line(f"Report page: {path.absolute()}")
    return path.absolute()


def command_line() -> str:
    """Write the command that runs, so that a shell reads it the same way."""
    return printable(shlex.join(["flooding", *sys.argv[1:]]))
