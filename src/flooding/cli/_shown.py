"""What the commands share: consoles, options, progress."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from flooding.loop import Row
    from flooding.problem import Run

__all__ = ["Fresh", "Ledger", "Workers", "console", "errors", "given", "option", "progress", "writable"]

# torch takes 2 s to import: every import of the library is inside the function that needs it.

console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)

Ledger = Annotated[
    Path | None, typer.Option(help="SQLite file of finished runs.", show_default="the user's state folder")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train even what the ledger holds.")]


Workers = Annotated[int | None, typer.Option(min=0, help="Worker processes.", show_default="one per core")]


def option(help: str, panel: str, *names: str, **more: Any) -> Any:  # ruff: ignore[builtin-argument-shadowing] -- typer's own word
    return typer.Option(
        *names, help=help.replace("[", "\\["), rich_help_panel=panel, **more
    )  # else rich takes it for a style


def given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def writable(folder: Path) -> None:
    """Refuse an output folder that cannot be: it is a file, or lies below one."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"an output folder must not be, or lie below, a file, but {path} is one. Choose another.")
        if path.exists():
            if not os.access(path, os.W_OK):
                raise ValueError(f"an output folder must be writable, but {path} is not. Choose another.")
            return


@contextmanager
def progress() -> Generator[tuple[Callable[[list[Run]], None], Callable[[Row], None]], None, None]:
    """Show epochs done, and an estimate of what is left: a bar on a terminal, else a line every ten seconds."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs,"), TimeRemainingColumn())
    bar = Progress(*columns, TextColumn("left"), console=errors, disable=not errors.is_terminal)
    whole = done = 0
    began = spoken = math.inf

    def on_start(runs: list[Run]) -> None:
        nonlocal whole
        if not runs:
            return
        epochs = sum(run.epochs for run in runs)
        whole += epochs
        errors.print(f"training {len(runs)} runs, {epochs} epochs")
        if bar.task_ids:
            bar.update(bar.task_ids[0], total=whole)
        else:
            bar.add_task("", total=whole)

    def on_row(row: Row) -> None:
        nonlocal done, began, spoken
        began, spoken = min(began, time.monotonic()), min(spoken, time.monotonic())
        done += row.epoch > 0
        if not bar.disable:
            bar.update(bar.task_ids[0], completed=done)
        elif done and time.monotonic() - spoken > 10:
            spoken = time.monotonic()
            errors.print(f"{done} of {whole} epochs, about {(spoken - began) / done * (whole - done):.0f} s left")

    try:
        with bar:
            yield on_start, on_row
    except KeyboardInterrupt:
        errors.print("Interrupted. Finished runs are in the ledger: the same command goes on from there.")
        raise typer.Exit(130) from None
