"""What the commands print on: two consoles, the progress of trainings, and JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from flooding.text import printable

if TYPE_CHECKING:
    from flooding.training.loop import EpochResult
    from flooding.training.run import Run

__all__ = [
    "Callbacks",
    "console",
    "discard_output",
    "errors",
    "note",
    "print_json",
    "progress",
    "set_output",
    "write_output",
]

# Called with the Runs that are about to train, and with every epoch that they train.
Callbacks: TypeAlias = "tuple[Callable[[list[Run]], None], Callable[[EpochResult], None]]"


class Terminal(Console):
    """A console that shows a user's names and never obeys them: no markup, no control characters.

    Args:
        stderr: Whether it writes to the standard error stream.
        width: Columns; None is the width of the terminal.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, emoji=False, markup=False)
        self.is_json = False  # with --json nothing but the JSON is printed

    def print_line(self, text: str, style: str | None = None, end: str = "\n") -> None:
        """Print one line, however long, so that a path in it can be copied."""
        self.print(printable(text), style=style, end=end, soft_wrap=True)

    @contextmanager
    def results(self) -> Generator[None, None, None]:
        """Print what ``--quiet`` leaves; ``--json`` leaves nothing.

        Yields:
            Nothing.
        """
        is_quiet = self.quiet
        self.quiet = self.is_json
        try:
            yield
        finally:
            self.quiet = is_quiet

    def print_result(self, text: str, style: str | None = None, end: str = "\n") -> None:
        """Print one line that ``--quiet`` leaves."""
        with self.results():
            self.print_line(text, style, end)

    def print_table(self, table: Table) -> None:
        """Print a table in which no number is cut, however narrow the terminal is.

        Only columns of text are wrapped. A terminal that is too narrow gets a line for each cell,
        with the title of its column. A file or a pipe gets the table, as wide as it is.
        """
        width = self._min_width(table)
        if width > self.width:
            for column in table.columns:
                column.header = str(column.header).replace(" ", "\n")
            width = self._min_width(table)
        if width <= self.width:
            self.print(table)
        elif self.is_terminal:
            self._print_cells(table)
        elif not self.quiet:
            wide = Terminal(width=width)
            wide.file = self.file
            wide.print(table)

    def _min_width(self, table: Table) -> int:
        """Measure how wide a table is where its columns of text are wrapped, and no others."""
        for column in table.columns:
            column.no_wrap = column.no_wrap or column.justify == "right"
            if column.no_wrap:
                texts = [str(text) for text in (column.header, *column.cells)]
                column.min_width = max(cell_len(line) for line in "\n".join(texts).split("\n"))
        return Measurement.get(self, self.options.update(width=100_000), table).minimum

    def _print_cells(self, table: Table) -> None:
        """Print a table cell by cell, a blank line after each row."""
        if table.title:
            self.print_line(" ".join(str(table.title).split()))
        titles = [" ".join(str(column.header).split()) for column in table.columns]
        rows = zip(*(column.cells for column in table.columns), strict=True)
        for row in rows:
            for title, cell in zip(titles, row, strict=True):
                value = " ".join(str(cell).split())
                self.print_line(f"{title}: {value}" if title else value)
            self.print()

    def render_str(self, text: str, **options: Any) -> Text:
        """Render text, also in the cell of a table; only its line breaks are obeyed."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        """Drop the rest of the output, not the rest of the work, when its reader leaves.

        ``head`` leaves so.
        """
        discard_output(self.file)


def discard_output(stream: IO[str]) -> None:
    """Send what is, or will be, written to a stream nowhere."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())


console = Terminal()
errors = Terminal(stderr=True)

_is_quiet = False  # whether progress and notes are left out


def set_output(*, quiet: bool = False, json: bool = False) -> None:
    """Set what is printed by the command that runs.

    Args:
        quiet: Whether to print results, warnings and errors alone.
        json: Whether the result is printed as JSON, and nothing else on the standard output.
    """
    global _is_quiet
    _is_quiet = quiet
    console.quiet = quiet or json
    console.is_json = json


def note(text: str) -> None:
    """Print a line for the user on the standard error stream, unless ``--quiet`` is set."""
    if not _is_quiet:
        errors.print_line(text)


def print_json(result: Mapping[str, object]) -> None:
    """Print a result as one JSON object, in which NaN and infinities are null.

    Args:
        result: Names and values; paths become text.
    """
    text = json.dumps(_as_json(result), indent=1, allow_nan=False)
    write_output(f"{text}\n")


def _as_json(value: object) -> object:
    """Replace what JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def write_output(text: str) -> None:
    """Write text to the standard output unchanged, as far as its reader wants it.

    Args:
        text: What to write.
    """
    # As bytes, so that no newline or character is translated.
    sys.stdout.flush()
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # as by `head`
        discard_output(sys.stdout)


@contextmanager
def progress() -> Generator[Callbacks, None, None]:
    """Show the epochs done and estimate what is left: a bar, or lines where there is no terminal.

    ``--quiet`` shows neither.
    What trains inside reports to it, see :func:`flooding.training.progress.show_progress`. Only a
    training loop that does not needs the callbacks.

    Yields:
        The two callbacks of a training.
    """
    from flooding.cli._interrupts import raise_again  # imports this module
    from flooding.training.progress import show_progress

    with show_progress(not _is_quiet, console=errors, write=note) as display:
        display.before_row = raise_again
        yield display.on_start, display.on_row
