"""What the commands share: consoles, options, checks of folders and numbers, progress."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from flooding.text import printable

if TYPE_CHECKING:
    from flooding.training.loop import EpochResult
    from flooding.training.run import Run

__all__ = [
    "Ledger",
    "Overwrite",
    "Workers",
    "check_ledger",
    "check_numbers",
    "console",
    "discard_output",
    "errors",
    "given",
    "option",
    "parse_levels",
    "progress",
    "writable",
]

# torch takes 2 s to import: every import of the library is inside the function that needs it.


class Terminal(Console):
    """A console on which a user's names are shown and never obeyed: no markup, no control
    characters.

    Args:
        stderr: Whether it writes to the standard error stream.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False, markup=False)

    def print_line(self, text: str, style: str | None = None, end: str = "\n") -> None:
        """Print one line, however long, so that a path in it can be copied."""
        self.print(printable(text), style=style, end=end, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render text, also in the cell of a table; its line breaks alone are obeyed."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        """Drop the rest of the output, not the rest of the work, when its reader leaves, as
        ``head`` does.
        """
        discard_output(self.file)


def discard_output(stream: IO[Any]) -> None:
    """Send what is, or will be, written to a stream nowhere."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())


console = Terminal()
errors = Terminal(stderr=True)

Ledger = Annotated[
    Path | None,
    typer.Option(help="SQLite file of finished runs.", show_default="the user's state folder"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Train even what the ledger holds.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Worker processes.", show_default="one per core")
]

_LARGEST = 1e30  # of a number with a fraction, so that sums of a few still fit into float32
_MOST = {
    "batch_size": 2**31 - 1,
    "depth": 1000,
    "dimension": 10**6,
    "epochs": 10**7,
    "eval_batch_size": 2**31 - 1,
    "folds": 10**4,
    "seed": 2**63 - 1,
    "seeds": 1000,
    "test_samples": 10**9,
    "threads": 256,
    "train_samples": 10**9,
    "trainings": 10**5,
    "val_samples": 10**9,
    "warmup_steps": 2**53,
    "width": 10**6,
    "workers": 1024,
}


def option(help: str, panel: str, *names: str, **more: Any) -> Any:  # ruff: ignore[builtin-argument-shadowing] -- typer's own word
    return typer.Option(
        *names, help=help.replace("[", "\\["), rich_help_panel=panel, **more
    )  # else rich takes it for a style


def given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def check_numbers(**options: float | None) -> None:
    """Refuse numbers that nothing can be computed with, before they fail somewhere inside.

    Args:
        **options: Options by name; None is an option left out.

    Raises:
        ValueError: If a whole number is above its limit, or any other is not finite or too large
            for float32.
    """
    for name, value in given(**options).items():
        if isinstance(value, float) and not abs(value) <= _LARGEST:
            raise ValueError(f"{name} must be finite and within ±{_LARGEST:g}, got {value:g}.")
        if isinstance(value, int) and value > _MOST[name]:
            raise ValueError(f"{name} must be at most {_MOST[name]:,}, got {_shortened(value)}.")


def _shortened(number: int) -> str:
    digits = str(number)
    return digits if len(digits) <= 30 else f"{digits[:10]}... of {len(digits)} digits"


def parse_levels(name: str, text: str, *, allow_none: bool = False) -> list[Any]:
    """Read levels with commas.

    Args:
        name: The option.
        text: Its value.
        allow_none: Whether the word none, plain training, may be among them.

    Returns:
        At least one finite number, or None.

    Raises:
        ValueError: If there is something else.
    """
    example = "none,0.1,0.2" if allow_none else "0.1,0.2"
    levels: list[float | None] = []
    for part in text.split(","):
        is_none = allow_none and part.strip() == "none"
        try:
            levels.append(None if is_none else float(part))
        except ValueError:
            raise ValueError(
                f"{name} must be numbers with commas, got {text!r}. Try --{name} {example}."
            ) from None
    for level in levels:
        if level is not None and not math.isfinite(level):
            raise ValueError(f"{name} must be finite, got {level}. Leave --{name} out for none.")
        if level is not None and abs(level) > _LARGEST:
            raise ValueError(
                f"{name} must lie within ±{_LARGEST:g}, got {level:g}. Try --{name} 0.1."
            )
    return levels


def writable(folder: Path) -> None:
    """Refuse an output folder that cannot be: it is a file, or lies below one, or may not be
    written.
    """
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"an output folder must not be, or lie below, a broken link, but {path} is one."
            )
        if path.exists() and not path.is_dir():
            raise ValueError(
                f"an output folder must not be, or lie below, a file, but {path} is one. Choose another."
            )
        if path.exists():
            if not os.access(path, os.W_OK):
                raise ValueError(
                    f"an output folder must be writable, but {path} is not. Choose another."
                )
            return


def check_ledger(ledger: Path | None) -> None:
    """Refuse, before anything is trained, a ledger that has no place or cannot be written.

    Args:
        ledger: The option's value; None is the default place.

    Raises:
        ValueError: If the ledger or its folder is read-only.
    """
    from flooding.training.ledger import absolute_path, default_path

    path = default_path() if ledger is None else absolute_path(ledger)
    there = next((parent for parent in path.parents if parent.exists()), path)
    for place in (there, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise ValueError(
                f"the ledger {path} must be writable, but {place} is not. Name another: --ledger FILE."
            )


@contextmanager
def progress() -> Generator[
    tuple[Callable[[list[Run]], None], Callable[[EpochResult], None]], None, None
]:
    """Show epochs done, and an estimate of what is left: a bar on a terminal, else a line every ten
    seconds.
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
    )
    bar = Progress(*columns, TextColumn("left"), console=errors, disable=not errors.is_terminal)
    whole = done = 0
    began = spoken = math.inf

    def on_start(runs: list[Run]) -> None:
        nonlocal whole
        if not runs:
            return
        epochs = sum(run.epochs for run in runs)
        whole += epochs
        errors.print_line(f"training {len(runs)} runs, {epochs} epochs")
        if bar.task_ids:
            bar.update(bar.task_ids[0], total=whole)
        else:
            bar.add_task("", total=whole)

    def on_row(row: EpochResult) -> None:
        nonlocal done, began, spoken
        began, spoken = min(began, time.monotonic()), min(spoken, time.monotonic())
        done += row.epoch > 0
        if not bar.disable:
            bar.update(bar.task_ids[0], completed=done)
        elif done and time.monotonic() - spoken > 10:
            spoken = time.monotonic()
            errors.print_line(
                f"{done} of {whole} epochs, about {(spoken - began) / done * (whole - done):.0f} s left"
            )

    with bar:
        yield on_start, on_row
