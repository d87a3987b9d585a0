"""``flooding reproduce``: an experiment again, as tables and figures; ``compare``: all methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from flooding.cli._console import console, errors, progress
from flooding.cli._find import What
from flooding.cli._options import (
    Ledger,
    Overwrite,
    Workers,
    check_ledger,
    check_numbers,
    check_output_folder,
    complete,
    drop_none,
    option,
)
from flooding.cli._table_options import (
    DecimalSign,
    Drop,
    Encoding,
    Header,
    Kind,
    Na,
    TableOptions,
    Target,
    Text,
    Use,
)
from flooding.entries import EXPERIMENTS, entry_names
from flooding.text import format_duration

if TYPE_CHECKING:
    from flooding.experiments import Experiment, Study
    from flooding.report.document import Report
    from flooding.training.archive import Source
    from flooding.training.record import Record
    from flooding.training.run import Run

__all__ = ["compare", "reproduce"]


class _Training(NamedTuple):
    """Where the Runs of an experiment are looked up and trained."""

    ledger: Path | None
    overwrite: bool
    workers: int | None


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="An experiment, or module:object of your own; --list names them.",
            show_default=False,
            autocompletion=complete(EXPERIMENTS),
        ),
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
    """Run an experiment again, or look it up, and write its tables and figures."""
    check_numbers(locals())
    if list_:
        for entry in EXPERIMENTS:
            console.print_line(f"{entry.name}: {entry.summary}")
        return
    if name is None:
        raise ValueError(
            f"reproduce needs an experiment: {', '.join(entry_names(EXPERIMENTS))}. See --list."
        )
    if more and source is None:
        raise ValueError("--more adds to an archive. Name it: --from NAME.npz.")
    from flooding.cli._parts import load_experiment

    experiment = load_experiment(name)
    # Refuse what would fail later, before anything is trained.
    check_output_folder(out)
    if source is None or more:
        check_ledger(ledger)
    # An archive alone is reported on as it is; with --more it saves trainings, as a ledger does.
    archive = None if source is None else experiment.load(source)
    chosen = None if seeds is None else range(seeds)
    if archive is not None and not more:
        chosen = archive.seeds if chosen is None else chosen
        _write_from_archive(experiment, experiment.start(quick, chosen), archive, out)
    else:
        training = _Training(ledger, overwrite, workers)
        _train_and_write(experiment, quick, chosen, training, out, archive)


def compare(
    what: What,
    target: Target = None,
    kind: Kind = None,
    drop: Drop = None,
    use: Use = None,
    text: Text = None,
    na: Na = None,
    encoding: Encoding = None,
    header: Header = None,
    decimal: DecimalSign = None,
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
    """Compare twelve methods on your problem, each with up to four trainings for its settings."""
    check_numbers(locals())
    from flooding.cli._problem import load_problem
    from flooding.experiments import bakeoff

    check_output_folder(out)
    check_ledger(ledger)
    data = drop_none(label_noise=label_noise)
    options = TableOptions(target, kind, drop, use, text, na, encoding, header, decimal)
    problem, _ = load_problem(what, data=data, options=options, epochs=epochs)
    classes = problem.splits(0).classes
    if classes is None:
        raise ValueError(
            f"compare needs classes, but the targets of {what} are numbers. Use flooding find."
        )

    # ruff: ignore[unused-function-argument]
    def start(quick: bool, seeds: Sequence[int] | None) -> Study:
        return bakeoff.compare({what: (problem, classes)}, seeds or ())

    experiment = replace(bakeoff.EXPERIMENT, name="compare", start=start)
    training = _Training(ledger, overwrite, workers)
    _train_and_write(experiment, False, range(seeds), training, out)


def _train_and_write(
    experiment: Experiment,
    quick: bool,
    seeds: Sequence[int] | None,
    training: _Training,
    out: Path,
    source: Source | None = None,
) -> None:
    """Train what an experiment asks, pack its Records, and report on what was packed."""
    from flooding.level_search.driver import run_generator
    from flooding.report.provenance import machine
    from flooding.training.archive import Archive, pack, with_fallback
    from flooding.training.config import is_hashable
    from flooding.training.estimate import estimate
    from flooding.training.runner import run_all

    with progress() as (on_start, on_row):

        def estimate_and_start(runs: list[Run]) -> None:
            if runs:
                seconds = estimate(runs, training.workers)
                errors.print_line(
                    f"about {format_duration(seconds)} for {len(runs)} trainings, "
                    f"{seconds / len(runs):.1f} s each"
                )
            on_start(runs)

        def train(runs: list[Run]) -> list[Record]:
            return run_all(runs, **training._asdict(), on_start=estimate_and_start, on_row=on_row)

        # With an archive only what it lacks is trained.
        run_or_look_up = train if source is None else with_fallback(source, train)
        # A Run of the archive is not trained again, whatever the ledger says.
        report, records = run_generator(experiment.start(quick, seeds), run_or_look_up)
    # An archive names Runs by their configuration, which the user's own code does not have.
    if all(is_hashable(record.run) for record in records if record.run is not None):
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{experiment.name}.npz"
        pack(path, records, experiment.curves, machine(), experiment.is_exact)
        # The page is drawn from the file, in which curves are rounded, not from the Records.
        study = experiment.start(quick, seeds)
        _write_from_archive(experiment, study, Archive(path), out, path)
    else:
        _write(report, experiment.name, out)


def _write_from_archive(
    experiment: Experiment, study: Study, source: Source, out: Path, *extra_files: Path
) -> None:
    """Report on an archive, so that the same file always gives the same page."""
    from flooding.level_search.driver import run_generator

    report, _ = run_generator(study, source)
    _write(report, experiment.name, out, *extra_files)


def _write(report: Report, name: str, out: Path, *extra_files: Path) -> None:
    """Write page, tables and figures, and print the findings."""
    files = [*report.save(out, name), *extra_files]
    for heading, sentences in (("Not reproduced:", report.failures), ("Found:", report.findings)):
        if sentences:
            console.print_line(heading)
        for sentence in sentences:
            console.print_line(f"- {sentence}")
    console.print()
    file_names = ", ".join(file.name for file in files)
    console.print_line(f"Page, tables and figures in {out.absolute()}: {file_names}")
