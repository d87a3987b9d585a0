"""``flooding reproduce``: an experiment again, as tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

import typer

from flooding.cli._console import console, note, print_json, progress, set_output
from flooding.cli._options import (
    Fleet,
    Json,
    Ledger,
    Overwrite,
    Quiet,
    Ray,
    RayStorage,
    Workers,
    check_ledger,
    check_numbers,
    check_output_folder,
    complete,
    fleet_option,
)
from flooding.cli._report import Report, check_report, command_line, report_path, write_report
from flooding.entries import EXPERIMENTS, entry_names
from flooding.text import format_duration

if TYPE_CHECKING:
    from flooding.experiments import Experiment, Study
    from flooding.report.document import Report as Document
    from flooding.training.archive import Source
    from flooding.training.record import Record
    from flooding.training.run import Run

__all__ = ["Training", "estimated_training", "reproduce"]

TrainAll: TypeAlias = "Callable[[list[Run]], list[Record]]"


class Training(NamedTuple):
    """Where the Runs of an experiment are looked up and trained."""

    ledger: Path | None
    overwrite: bool
    workers: int | None
    device: str = "cpu"
    on: Callable[..., list[Record]] | None = None
    fleet: bool | Literal["auto"] = False


class Output(NamedTuple):
    """Where page, tables and figures are written, and the report page if one is asked for."""

    folder: Path
    page: Path | None = None


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
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for page, tables, figures and archive, which are replaced."
        ),
    ] = Path("flooding-results"),
    report: Report = None,
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
    ray: Ray = None,
    ray_storage: RayStorage = None,
    fleet: Fleet = "off",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment again, or look it up, and write its tables and figures."""
    check_numbers(locals())
    set_output(quiet=quiet, json=json)
    if list_:
        for entry in EXPERIMENTS:
            console.print_result(f"{entry.name}: {entry.summary}")
        if json:
            print_json({"experiments": {entry.name: entry.summary for entry in EXPERIMENTS}})
        return
    if name is None:
        raise ValueError(
            f"reproduce needs an experiment: {', '.join(entry_names(EXPERIMENTS))}. See --list."
        )
    if more and source is None:
        raise ValueError("--more adds to an archive. Name it: --from NAME.npz.")
    from flooding.cli._parts import load_experiment, load_place

    experiment = load_experiment(name)
    output = Output(out, report_path(report, out, f"{experiment.name}.html"))
    # Refuse what would fail later, before anything is trained.
    if source is not None and not source.exists():
        raise ValueError(
            f"an archive must be a file of flooding reproduce, got {source}, which is missing. "
            "Check the path."
        )
    check_output_folder(out)
    check_report(report)
    if source is None or more:
        check_ledger(ledger)
    on = load_place(ray, workers, ray_storage)
    # An archive alone is reported on as it is; with --more it saves trainings, as a ledger does.
    archive = None if source is None else experiment.load(source)
    chosen = None if seeds is None else range(seeds)
    if archive is not None and not more:
        chosen = archive.seeds if chosen is None else chosen
        result = _write_from_archive(experiment, experiment.start(quick, chosen), archive, output)
    else:
        training = Training(ledger, overwrite, workers, on=on, fleet=fleet_option(fleet))
        result = _train_and_write(experiment, quick, chosen, training, output, archive)
    if json:
        print_json(result)


@contextmanager
def estimated_training(training: Training) -> Generator[TrainAll, None, None]:
    """Look Runs up or train them, and say before that how long it will take.

    Args:
        training: Where they are looked up and trained.

    Yields:
        A function from Runs to their Records.
    """
    from flooding.level_search.find import make_runner
    from flooding.training.estimate import estimate

    run_all = make_runner(training.on, training.workers)
    with progress() as (on_start, on_row):

        def estimate_and_start(runs: list[Run]) -> None:
            # The time elsewhere, or in a fleet, is not known from epochs of one run here.
            is_alone_here = training.on is None and training.fleet is False
            if runs and training.device == "cpu" and is_alone_here:
                seconds = estimate(runs, training.workers)
                note(
                    f"about {format_duration(seconds)} for {len(runs)} trainings, "
                    f"{seconds / len(runs):.1f} s each"
                )
            on_start(runs)

        def train(runs: list[Run]) -> list[Record]:
            return run_all(
                runs,
                ledger=training.ledger,
                overwrite=training.overwrite,
                device=training.device,
                fleet=training.fleet,
                on_start=estimate_and_start,
                on_row=on_row,
            )

        yield train


def _train_and_write(
    experiment: Experiment,
    quick: bool,
    seeds: Sequence[int] | None,
    training: Training,
    out: Output,
    source: Source | None = None,
) -> dict[str, object]:
    """Train what an experiment asks, pack its Records, and report on what was packed."""
    from flooding.level_search.driver import run_generator
    from flooding.report.provenance import machine
    from flooding.training.archive import Archive, pack, with_fallback
    from flooding.training.config import is_hashable

    with estimated_training(training) as train:
        # With an archive only what it lacks is trained.
        run_or_look_up = train if source is None else with_fallback(source, train)
        # A Run of the archive is not trained again, whatever the ledger says.
        report, records = run_generator(experiment.start(quick, seeds), run_or_look_up)
    # An archive names Runs by their configuration, which the user's own code does not have.
    if not all(is_hashable(record.run) for record in records if record.run is not None):
        return _write(report, experiment.name, out)
    out.folder.mkdir(parents=True, exist_ok=True)
    path = out.folder / f"{experiment.name}.npz"
    pack(path, records, experiment.curves, machine(), experiment.is_exact)
    # The page is drawn from the file, in which curves are rounded, not from the Records.
    study = experiment.start(quick, seeds)
    return _write_from_archive(experiment, study, Archive(path), out, path)


def _write_from_archive(
    experiment: Experiment, study: Study, source: Source, out: Output, *extra_files: Path
) -> dict[str, object]:
    """Report on an archive, so that the same file always gives the same page."""
    from flooding.level_search.driver import run_generator

    report, _ = run_generator(study, source)
    return _write(report, experiment.name, out, *extra_files)


def _write(report: Document, name: str, out: Output, *extra_files: Path) -> dict[str, object]:
    """Write page, tables and figures, and print the findings; give both for ``--json``."""
    files = [*report.save(out.folder, name), *extra_files]
    for heading, sentences in (("Not reproduced:", report.failures), ("Found:", report.findings)):
        if sentences:
            console.print_result(heading)
        for sentence in sentences:
            console.print_result(f"- {sentence}")
    console.print()
    file_names = ", ".join(file.name for file in files)
    console.print_line(f"Page, tables and figures in {out.folder.absolute()}: {file_names}")
    if out.page is not None:
        files.append(_write_page(report, name, out.folder, out.page))
    return {
        "not_reproduced": report.failures,
        "found": report.findings,
        "files": [file.absolute() for file in files],
    }


def _write_page(report: Document, name: str, folder: Path, path: Path) -> Path:
    """Write the report page from the figures in the folder."""
    from flooding.report.document_page import document_page

    pictures = {figure: folder / f"{name}-{figure}.png" for figure in report.figures}
    page = document_page(report, pictures, {"Experiment": name}, command_line())
    return write_report(page, path)
