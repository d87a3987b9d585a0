"""``flooding demo``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._console import console, print_json, progress, set_output
from flooding.cli._options import (
    Json,
    Ledger,
    Overwrite,
    Quiet,
    Workers,
    check_ledger,
    check_numbers,
    check_output_folder,
)
from flooding.cli._report import Report, check_report, report_path, write_report

if TYPE_CHECKING:
    from flooding.cli._demo_report import Task as DemoTask
    from flooding.training.record import Record

__all__ = ["demo"]


def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed: about 30 s on two cores.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the pictures, which are replaced.")
    ] = Path("flooding-demo"),
    report: Report = None,
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what flooding does: the public demo's Sinusoid and real handwritten digits."""
    check_numbers(locals())
    set_output(quiet=quiet, json=json)
    from flooding.cli import _demo_report as demo_report
    from flooding.training.runner import run_all

    check_output_folder(out)
    check_report(report)
    check_ledger(ledger)
    tasks = demo_report.plan(quick)
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
    records_by_task = []
    summaries = []
    for task in tasks:
        records_by_task.append(records[: len(task.runs)])
        records = records[len(task.runs) :]
        summaries.append(_print_task(task, records_by_task[-1]))
    files = demo_report.draw(tasks, records_by_task, out)
    names = ", ".join(file.name for file in files)
    console.print()
    console.print_line(f"Pictures in {out.absolute()}: {names}")
    if path := report_path(report, out):
        from flooding.cli._demo_page import demo_page

        page = demo_page(tasks, records_by_task, summaries, out)
        files.append(write_report(page, path))
    if json:
        print_json({"tasks": summaries, "files": [file.absolute() for file in files]})


def _print_task(task: DemoTask, records: list[Record]) -> dict[str, object]:
    """Print one table of the demo, and its result in words; give both for ``--json``."""
    from flooding.cli import _demo_report as report

    rows = report.summary(records)
    num_seeds = len(task.seeds)
    values = "mean and standard deviation over seeds"
    if num_seeds == 1:
        values = "one seed, no spread"
    title = f"{task.title}: {values}, n = {num_seeds}"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1)
    )
    table.add_column("", no_wrap=True)
    for column in ("level", *report.COLUMNS):
        table.add_column(column, justify="right")
    for row, picks in rows.items():
        table.add_row(row, *report.cells(picks))
    console.print()
    with console.results():
        console.print_table(table)
    verdict = report.verdict(rows)
    with console.results():
        console.print(verdict)
    has_clean_labels = "last.test_accuracy_clean" in records[0].metrics
    labels = "noisy" if has_clean_labels else "clean (they carry no noise)"
    console.print(f"NLL and ECE on the test labels, {labels}.")
    console.print("Chosen on noisy validation labels; test data choose nothing.")
    if num_seeds > 1:
        console.print(
            f"Brackets: 95 % intervals of the mean difference, n = {num_seeds}, not corrected."
        )
    results = {}
    for row, picks in rows.items():
        names = [column.replace("\n", " ") for column in report.COLUMNS]
        cells = [cell.replace("\n", " ") for cell in report.cells(picks)]
        results[row] = dict(zip(["level", *names], cells, strict=True))
    return {"title": title, "rows": results, "result": verdict}
