"""``flooding reproduce``: an experiment again, as tables and figures; ``flooding compare``: methods
side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flooding.cli._find import What, problem_of
from flooding.cli._shown import (
    Ledger,
    Overwrite,
    Workers,
    check_ledger,
    check_numbers,
    console,
    errors,
    given,
    option,
    progress,
    writable,
)
from flooding.entries import EXPERIMENTS, Entry, find_entry, names

if TYPE_CHECKING:
    from flooding.experiments import Experiment, Study
    from flooding.report.document import Report
    from flooding.training.archive import Source
    from flooding.training.record import Record
    from flooding.training.run import Run

__all__ = ["compare", "reproduce"]


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="An experiment; --list names them.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the experiments.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer seeds, levels and epochs: minutes, not hours.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds.", show_default="the experiment's")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="An archive in place of trainings: a NAME.npz, or the level benchmark."
        ),
    ] = None,
    more: Annotated[
        bool, typer.Option("--more", help="Train what the archive of --from lacks.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for page, tables, figures and archive.")] = Path(
        "flooding-results"
    ),
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Run an experiment again, from the ledger where it has been run, and write tables and
    figures.
    """
    if list_:
        for entry in EXPERIMENTS:
            console.print_line(f"{entry.name}: {entry.summary}")
        return
    check_numbers(seeds=seeds, workers=workers)
    if name is None:
        raise ValueError(
            f"reproduce needs an experiment: {', '.join(names(EXPERIMENTS))}. See --list."
        )
    if more and source is None:
        raise ValueError("--more adds to an archive. Name it: --from NAME.npz.")
    experiment = _load_experiment(name)
    writable(out)
    if source is None or more:
        check_ledger(ledger)
    archive = None if source is None else experiment.load(source)
    chosen = None if seeds is None else range(seeds)
    if archive is None or more:
        start = partial(experiment.start, quick, chosen)
        _train(experiment, start, out, ledger, overwrite, workers, archive)
    else:
        study = experiment.start(quick, archive.seeds if chosen is None else chosen)
        _write(study, archive, out, experiment.name)


def _load_experiment(name: str) -> Experiment:
    """Load an experiment by its name, or a user's own as ``module:object``."""
    if ":" not in name:
        return find_entry("experiment", name, EXPERIMENTS).load()
    from flooding.experiments import Experiment

    try:
        experiment = Entry(name, name, "").load()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"an experiment of your own must be module:object, got {name}: {error}. Is the module "
            "installed, or in PYTHONPATH?"
        ) from None
    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise ValueError(
            f"{name} must be a flooding.experiments.Experiment, got {kind}. Make one of your study."
        )
    return experiment


def compare(
    what: What,
    target: Annotated[
        str | None, option("A table's column to predict: its name or position.", "Data")
    ] = None,
    label_noise: Annotated[
        float | None, option("A task's share of flipped labels, 0 to below 1.", "Data")
    ] = None,
    epochs: Annotated[int | None, option("Epochs of a full training.", "Data")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for page, tables and archive.")] = Path(
        "flooding-results"
    ),
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Compare twelve methods on your classification problem, each with up to four trainings to
    choose its settings.
    """
    from flooding.experiments import bakeoff

    check_numbers(label_noise=label_noise, epochs=epochs, seeds=seeds, workers=workers)
    writable(out)
    check_ledger(ledger)
    problem, _ = problem_of(what, target, given(label_noise=label_noise), epochs, None)
    classes = problem.splits(0).classes
    if classes is None:
        raise ValueError(
            f"compare needs classes, but the targets of {what} are numbers. Use flooding find."
        )
    start = partial(bakeoff.compare, {what: (problem, classes)}, range(seeds))
    experiment = replace(bakeoff.EXPERIMENT, name="compare")
    _train(experiment, start, out, ledger, overwrite, workers)


def _train(
    experiment: Experiment,
    start: Callable[[], Study],
    out: Path,
    ledger: Path | None,
    overwrite: bool,
    workers: int | None,
    archive: Source | None = None,
) -> None:
    """Train what an experiment asks, say beforehand how long it will take, pack it, and report on
    what was packed.
    """
    from flooding.level_search.driver import run_generator
    from flooding.report.provenance import machine
    from flooding.training.archive import Archive, pack, with_fallback
    from flooding.training.config import is_hashable
    from flooding.training.estimate import estimate
    from flooding.training.runner import run_all

    with progress() as (on_start, on_row):

        def told(runs: list[Run]) -> None:
            if runs:
                seconds = estimate(runs, workers)
                errors.print_line(
                    f"about {_time(seconds)} for {len(runs)} trainings, {seconds / len(runs):.1f} s each"
                )
            on_start(runs)

        def ask(runs: list[Run]) -> list[Record]:
            return run_all(
                runs,
                ledger=ledger,
                overwrite=overwrite,
                workers=workers,
                on_start=told,
                on_row=on_row,
            )

        report, records = run_generator(
            start(), ask if archive is None else with_fallback(archive, ask)
        )
    if all(is_hashable(record.run) for record in records if record.run is not None):
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{experiment.name}.npz"
        pack(path, records, experiment.curves, machine(), experiment.is_exact)
        _write(start(), Archive(path), out, experiment.name, path)
    else:
        _show(report, out, experiment.name)


def _write(study: Study, archive: Source, out: Path, name: str, *more: Path) -> None:
    """Report on an archive, so that the same file always gives the same page."""
    from flooding.level_search.driver import run_generator

    _show(run_generator(study, archive)[0], out, name, *more)


def _show(report: Report, out: Path, name: str, *more: Path) -> None:
    """Write page, tables and figures, and print what was found."""
    files = [*report.save(out, name), *more]
    for heading, sentences in (("Not reproduced:", report.failures), ("Found:", report.findings)):
        if sentences:
            console.print_line(heading)
        for sentence in sentences:
            console.print_line(f"- {sentence}")
    console.print()
    console.print_line(
        f"Page, tables and figures in {out.absolute()}: {', '.join(file.name for file in files)}"
    )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
