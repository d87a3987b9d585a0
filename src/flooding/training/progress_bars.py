"""How progress is drawn: a bar in a terminal or a notebook, or lines where neither is there.

The bars are rich's: the command line needs rich in any case, and its tables show themselves in a
notebook without ipywidgets, which tqdm would need.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

__all__ = ["Lines", "NotebookBar", "Painter", "Status", "TerminalBar", "Write", "make_painter"]

# Writes text to where the bar is shown.
Write: TypeAlias = Callable[[str], object]

_SECONDS_BETWEEN_LINES = 10
_MAX_BAR_WIDTH = 40
_TEXT_WIDTH = 60  # characters beside the bar


class Status(Protocol):
    """What a painter shows."""

    @property
    def num_done(self) -> int:
        """Number of epochs that are done."""
        ...

    @property
    def total(self) -> int:
        """Number of epochs in all, as far as it is known."""
        ...

    def text(self) -> str:
        """Say in words how far the work is."""
        ...


class Painter(Protocol):
    """Draws the progress of one call."""

    is_live: bool  # whether a thread refreshes it; else every row does

    def start(self) -> None:
        """Draw for the first time."""
        ...

    def refresh(self) -> None:
        """Draw again."""
        ...

    def close(self) -> None:
        """Draw for the last time, and leave the screen as it was found."""
        ...


class Lines:
    """A line every ten seconds, for a file, a pipe or a simple terminal.

    Args:
        status: What to show.
        write: Prints a line.
    """

    is_live = False

    def __init__(self, status: Status, write: Write) -> None:
        self._status, self._write = status, write
        self._last_time: float | None = None
        self._last_done = 0

    def start(self) -> None:
        """Print nothing yet: nothing is done."""

    def refresh(self) -> None:
        """Print a line if the last one is old, and more is done."""
        now = time.monotonic()
        if self._last_time is None:
            self._last_time = now
        is_due = now - self._last_time > _SECONDS_BETWEEN_LINES
        if is_due and self._status.num_done > self._last_done:
            self._last_time, self._last_done = now, self._status.num_done
            self._write(self._status.text())

    def close(self) -> None:
        """Print nothing: whoever called has the result."""


class TerminalBar:
    """A bar on the standard error stream.

    Args:
        status: What to show.
        console: Where to draw.
    """

    is_live = True

    def __init__(self, status: Status, console: Console) -> None:
        self._status = status
        # What is printed meanwhile goes above the bar, unless it goes to a file or a pipe.
        self._bar = _make_bar(console, redirect_stdout=_is_terminal(sys.stdout))

    def start(self) -> None:
        """Draw the bar."""
        _update(self._bar, self._status)
        self._bar.start()

    def refresh(self) -> None:
        """Move the bar."""
        _update(self._bar, self._status)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is, and go to the next line."""
        _update(self._bar, self._status)
        self._bar.stop()


class NotebookBar:
    """A bar in the output of a notebook's cell, replaced in place.

    Args:
        status: What to show.
    """

    is_live = True

    def __init__(self, status: Status) -> None:
        from rich.console import Console

        self._status = status
        self._bar = _make_bar(Console(stderr=True), redirect_stdout=False)
        self._handle: Any = None

    def start(self) -> None:
        """Add the bar to the output of the cell."""
        from IPython.display import display

        self._handle = display(self._table(), display_id=True)

    def refresh(self) -> None:
        """Replace the bar."""
        self._handle.update(self._table())

    def close(self) -> None:
        """Leave the bar as it is."""
        self.refresh()

    def _table(self) -> object:
        """Draw the bar as a table, which shows itself in a notebook."""
        _update(self._bar, self._status)
        return self._bar.make_tasks_table(self._bar.tasks)


def make_painter(
    status: Status, *, always: bool, console: Console | None = None, write: Write | None = None
) -> Painter | None:
    """Choose how to draw.

    Args:
        status: What to show.
        always: Whether to print lines where there is neither a terminal nor a notebook.
        console: Where to draw a bar in a terminal; None is a new console on standard error.
        write: Prints a line; None prints it on standard error.

    Returns:
        A bar, lines, or None for "nothing".
    """
    lines = Lines(status, write or _write_line)
    is_notebook = _is_notebook()
    # A bar that the caller draws with rich, and this one, would overwrite each other.
    is_free = _is_terminal(sys.stderr) and not hasattr(sys.stderr, "rich_proxied_file")
    if not (is_notebook or is_free):
        return lines if always else None
    # rich is an extra.
    try:
        from rich.console import Console
    except ImportError:
        return lines
    if is_notebook:
        return NotebookBar(status)
    console = console or Console(stderr=True)
    # Some terminals cannot go back in a line.
    if console.is_dumb_terminal or not console.is_terminal:
        return lines
    return TerminalBar(status, console)


def _make_bar(console: Console, *, redirect_stdout: bool) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    # In a narrow terminal the numbers are more important than the bar. They are never cut.
    width = min(_MAX_BAR_WIDTH, console.width - _TEXT_WIDTH)
    text = Column(no_wrap=False, overflow="fold")
    columns: list[ProgressColumn] = [
        TextColumn("{task.fields[text]}", markup=False, table_column=text)
    ]
    if width > 4:
        columns = [TextColumn("training", markup=False), BarColumn(width), *columns]
    bar = Progress(*columns, console=console, auto_refresh=False, redirect_stdout=redirect_stdout)
    bar.add_task("", total=None, text="")
    return bar


def _update(bar: Progress, status: Status) -> None:
    # A bar without a total moves to and fro.
    total = status.total or None
    bar.update(bar.task_ids[0], total=total, completed=status.num_done, text=status.text())


def _is_terminal(stream: Any) -> bool:
    # A stream may be None, as under pythonw, or closed.
    with contextlib.suppress(AttributeError, ValueError):
        return bool(stream.isatty())
    return False


def _is_notebook() -> bool:
    # Not imported here: where it is not, there is no notebook.
    module = sys.modules.get("IPython")
    if module is None:
        return False
    shell = module.get_ipython()
    # IPython in a terminal has no kernel.
    return getattr(shell, "kernel", None) is not None


def _write_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
