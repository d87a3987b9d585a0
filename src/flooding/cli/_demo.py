"""``flooding demo``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._shown import (
    Ledger,
    Overwrite,
    Workers,
    check_ledger,
    check_numbers,
    console,
    progress,
    writable,
)

if TYPE_CHECKING:
    from flooding.training.record import Record

__all__ = ["demo"]


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, fewer epochs: about 20 s on two cores.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("flooding-demo"),
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Show what flooding does: the public demo's Sinusoid and real handwritten digits."""
    from flooding.experiments import demo as experiment
    from flooding.training.runner import run_all

    check_numbers(workers=workers)
    writable(out)
    check_ledger(ledger)
    tasks = experiment.plan(quick)
    runs = [run for task in tasks for run in task.runs]
    with progress() as (on_start, on_row):
        records = run_all(
            runs,
            ledger=ledger,
            overwrite=overwrite,
            workers=workers,
            on_start=on_start,
            on_row=on_row,
        )
    by_task = []
    for task in tasks:
        by_task.append(records[: len(task.runs)])
        records = records[len(task.runs) :]
        _print_task(task, by_task[-1])
    files = experiment.draw(tasks, by_task, out)
    console.print()
    console.print_line(f"Pictures in {out.absolute()}: {', '.join(file.name for file in files)}")


def _print_task(task: Any, records: list[Record]) -> None:
    """Print one table of the demo, and what it says in words."""
    from flooding.experiments import demo as experiment

    rows = experiment.summary(records)
    shown = (
        "mean and standard deviation over seeds" if len(task.seeds) > 1 else "one seed, no spread"
    )
    title = f"{task.title}: {shown}, n = {len(task.seeds)}"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1)
    )
    table.add_column("", no_wrap=True)
    for title in ("level", *experiment.COLUMNS):
        table.add_column(title, justify="right")
    for title, picks in rows.items():
        table.add_row(title, *experiment.cells(picks))
    console.print()
    console.print(table)
    console.print(experiment.verdict(rows))
    labels = (
        "noisy"
        if "last.test_accuracy_clean" in records[0].metrics
        else "clean (they carry no noise)"
    )
    console.print(
        f"NLL and ECE on the test labels, {labels}.\nChosen on noisy validation labels; test data choose nothing."
    )
