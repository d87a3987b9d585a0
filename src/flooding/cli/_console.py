"""What the commands print on: two consoles, and the progress of trainings."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from rich.console import Console
from rich.text import Text

from flooding.text import printable

if TYPE_CHECKING:
    from flooding.training.loop import EpochResult
    from flooding.training.run import Run

__all__ = ["Callbacks", "console", "discard_output", "errors", "progress"]

# Called with the Runs that are about to train, and with every epoch that they train.
Callbacks: TypeAlias = "tuple[Callable[[list[Run]], None], Callable[[EpochResult], None]]"


class Terminal(Console):
    """A console that shows a user's names and never obeys them: no markup, no control characters.

    Args:
        stderr: Whether it writes to the standard error stream.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False, markup=False)

    def print_line(self, text: str, style: str | None = None, end: str = "\n") -> None:
        """Print one line, however long, so that a path in it can be copied."""
        self.print(printable(text), style=style, end=end, soft_wrap=True)

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

_SECONDS_BETWEEN_LINES = 10


@contextmanager
def progress() -> Generator[Callbacks, None, None]:
    """Show the epochs done and estimate what is left: a bar, or lines where there is no terminal.

    Yields:
        The two callbacks of a training.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    bar = Progress(*columns, console=errors, disable=not errors.is_terminal)
    # The estimate counts from the first row: starting workers takes seconds that do not recur.
    num_epochs = num_done = 0
    first_row_time = last_line_time = math.inf

    def on_start(runs: list[Run]) -> None:
        nonlocal num_epochs
        # A search asks several times; whatever is already in the ledger is not among the Runs.
        if not runs:
            return
        epochs = sum(run.epochs for run in runs)
        num_epochs += epochs
        errors.print_line(f"training {len(runs)} runs, {epochs} epochs")
        if bar.task_ids:
            bar.update(bar.task_ids[0], total=num_epochs)
        else:
            bar.add_task("", total=num_epochs)

    def on_row(row: EpochResult) -> None:
        nonlocal num_done, first_row_time, last_line_time
        now = time.monotonic()
        first_row_time = min(first_row_time, now)
        last_line_time = min(last_line_time, now)
        num_done += row.epoch > 0  # epoch 0 is the measurement before training
        if not bar.disable:
            bar.update(bar.task_ids[0], completed=num_done)
        elif num_done and now - last_line_time > _SECONDS_BETWEEN_LINES:
            last_line_time = now
            seconds_left = (now - first_row_time) / num_done * (num_epochs - num_done)
            errors.print_line(f"{num_done} of {num_epochs} epochs, about {seconds_left:.0f} s left")

    with bar:
        yield on_start, on_row
