"""What the commands print on: two consoles, and the progress of trainings."""

from __future__ import annotations

import contextlib
import os
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


@contextmanager
def progress() -> Generator[Callbacks, None, None]:
    """Show the epochs done and estimate what is left: a bar, or lines where there is no terminal.

    What trains inside reports to it, see :func:`flooding.training.progress.show_progress`. Only a
    training loop that does not needs the callbacks.

    Yields:
        The two callbacks of a training.
    """
    from flooding.training.progress import show_progress

    with show_progress(True, console=errors, write=errors.print_line) as display:
        yield display.on_start, display.on_row
