"""``flooding reproduce``: an experiment of a source again, as tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flooding.cli._shown import Fresh, Ledger, Workers, console, errors, progress, writable

if TYPE_CHECKING:
    from flooding.problem import Record, Run

__all__ = ["reproduce"]


def reproduce(
    name: Annotated[str | None, typer.Argument(help="An experiment; --list names them.", show_default=False)] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the experiments.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer seeds, levels and epochs: minutes, not hours.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds.", show_default="the experiment's")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="An archive in place of trainings: a NAME.npz, or the level benchmark."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for page, tables, figures and archive.")] = Path("flooding-results"),
    ledger: Ledger = None,
    fresh: Fresh = False,
    workers: Workers = None,
) -> None:
    """Run an experiment again, from the ledger where it has been run, and write tables and figures."""
    from flooding import experiments

    if list_:
        for known, about in experiments.NAMES.items():
            console.print(f"{known}: {about}", soft_wrap=True)
        return
    if name is None:
        raise ValueError(f"reproduce needs an experiment: {', '.join(experiments.NAMES)}. See --list.")
    module = experiments.find(name)
    writable(out)
    from flooding.engine import evaluate
    from flooding.experiments.archive import Archive, pack
    from flooding.strategies import drive

    trained: list[Record] = []
    if source is not None:
        archive: Any = getattr(module, "load", Archive)(source)
        chosen = range(seeds) if seeds is not None else getattr(archive, "seeds", None)
        report, _ = drive(module.experiment(quick, chosen), archive)
    else:
        with progress() as (on_start, on_row):

            def told(runs: list[Run]) -> None:
                if runs:
                    seconds = experiments.estimate(runs, workers)
                    errors.print(f"about {_time(seconds)} for {len(runs)} trainings, {seconds / len(runs):.1f} s each")
                on_start(runs)

            def ask(runs: list[Run]) -> list[Record]:
                return evaluate(runs, ledger=ledger, fresh=fresh, workers=workers, on_start=told, on_row=on_row)

            report, trained = drive(module.experiment(quick, None if seeds is None else range(seeds)), ask)
    files = report.save(out, name)
    if trained:
        files.append(pack(out / f"{name}.npz", trained, module.CURVES, experiments.machine()))
    for heading, sentences in (("Not reproduced:", report.failures), ("Found:", report.findings)):
        for number, sentence in enumerate(sentences):
            console.print(f"{heading + chr(10) if number == 0 else ''}- {sentence}", markup=False, soft_wrap=True)
    console.print(f"\nPage, tables and figures in {out.absolute()}: {', '.join(file.name for file in files)}")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
