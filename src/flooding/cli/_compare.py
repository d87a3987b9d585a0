"""``flooding compare``: methods on your problem, ranked."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._console import console, note, print_json, progress, set_output
from flooding.cli._find import ScoreName, What, check_save
from flooding.cli._options import (
    Fleet,
    Force,
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
    drop_none,
    fleet_option,
    option,
)
from flooding.cli._outputs import OutputFolder, check_saved_model, command_id, output_folder
from flooding.cli._report import (
    REPORT_NAME,
    Report,
    check_report,
    command_line,
    report_path,
    write_report,
)
from flooding.cli._reproduce import Training, estimated_training
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
from flooding.entries import check_name
from flooding.extras import install_command

if TYPE_CHECKING:
    from flooding.report.method_ranking import MeasuredScore, RankedMethod, Ranking
    from flooding.tabular import TableProblem
    from flooding.training.problem import Problem
    from flooding.training.record import Record

__all__ = ["compare"]

# Package and extra that a method needs besides the library.
_NEEDS = {"SAM": ("pytorch_optimizer", "sam")}
_FOLDER = "flooding-compare"
_FILES = ("compare.md", "compare-ranking.csv", "compare-ranking.png", "compare.npz", REPORT_NAME)
# Options that change nothing of a result, or say where it goes.
_NOT_PART_OF_RESULT = (
    *("out", "save", "report", "force", "ledger", "overwrite", "workers", "ray"),
    *("ray_storage", "fleet", "json", "quiet"),
)


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
    methods: Annotated[
        str | None,
        option(
            "Methods with commas, such as plain,early-stopping,flooding [all twelve].",
            "Comparison",
        ),
    ] = None,
    score: Annotated[
        ScoreName | None, option("What the methods are ranked by [accuracy].", "Comparison")
    ] = None,
    seeds: Annotated[int, option("Number of seeds.", "Comparison", min=2)] = 3,
    device: Annotated[str, option("cpu, cuda, cuda:1 or mps.", "Comparison")] = "cpu",
    out: Annotated[
        Path | None,
        option(
            f"Folder for page, table, picture and archive [{_FOLDER}, or the next free "
            f"{_FOLDER}-2 ...].",
            "Output",
            "--out",
            "-o",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        option("Tables: folder for the network of the winner's first seed, for predict.", "Output"),
    ] = None,
    report: Report = None,
    force: Force = False,
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
    ray: Ray = None,
    ray_storage: RayStorage = None,
    fleet: Fleet = "off",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank twelve methods on your problem, each with up to four trainings for its settings."""
    arguments = dict(locals())
    check_numbers(arguments)
    set_output(quiet=quiet, json=json)
    from flooding.cli._parts import load_place
    from flooding.cli._problem import apply_score, load_problem
    from flooding.training.runner import check_device

    # First refuse what would fail later, before anything is written or trained.
    check_output_folder(out or Path(_FOLDER))
    if save is not None:
        check_output_folder(save.parent)
    check_report(report)
    check_ledger(ledger)
    on = load_place(ray, workers, ray_storage)
    if on is None:
        check_device(device)
    names = _select_methods(methods)
    data = drop_none(label_noise=label_noise)
    options = TableOptions(target, kind, drop, use, text, na, encoding, header, decimal)
    problem, table = load_problem(what, data=data, options=options, epochs=epochs)
    if problem.splits(0).classes is None:
        raise ValueError(
            f"compare needs classes, but the targets of {what} are numbers. Use flooding find."
        )
    problem = apply_score(problem, score)
    others = _NOT_PART_OF_RESULT
    deciding = {name: value for name, value in arguments.items() if name not in others}
    command = command_id("compare", {**deciding, "methods": names}, problem)
    folder = output_folder(out, _FOLDER, _FILES, command, force=force)
    if save is not None:
        check_save(save, folder.path, what, table)
        check_saved_model(save, command, force=force)
    # Then train, and write the result.
    training = Training(ledger, overwrite, workers, device, on, fleet_option(fleet))
    ranking, records = _rank(what, problem, names, seeds, training, _measured_score(score))
    _print_ranking(ranking)
    files = _write(ranking, records, problem, folder)
    if page := report_path(report, folder.path):
        files.append(_write_page(ranking, records, what, table, page))
    saved = None
    if save is not None and table is not None:
        saved = _save_winner(ranking.winner, table, save, device, command)
    if json:
        print_json(_to_json(ranking, files, saved))


def _slug(method: str) -> str:
    """Give the name of a method on the command line: ``early-stopping``."""
    return re.sub(r"[^a-z]+", "-", method.lower())


def _select_methods(text: str | None) -> list[str]:
    """Read the methods to compare, without those whose package is not installed."""
    from flooding.experiments.bakeoff import STANDARD

    by_slug = {_slug(method): method for method in STANDARD}
    names = list(STANDARD)
    if text is not None:
        slugs = [_slug(part.strip()) for part in text.split(",")]
        for slug in slugs:
            check_name("methods", slug, by_slug)
        names = [by_slug[slug] for slug in dict.fromkeys(slugs)]
    installed = []
    for name in names:
        package, extra = _NEEDS.get(name, (None, ""))
        if package is None or importlib.util.find_spec(package) is not None:
            installed.append(name)
        else:
            note(f"{name} is left out: {package} is not installed. Run {install_command(extra)}.")
    if not installed:
        raise ValueError(f"no method is left of {text}. Name others: {', '.join(by_slug)}.")
    return installed


def _measured_score(score: str | None) -> MeasuredScore:
    """Say what the methods are ranked by."""
    from flooding.report.method_ranking import MeasuredScore

    if score == "loss":
        return MeasuredScore("loss", "loss", 1.0, 3, "nats")
    if score == "balanced-accuracy":
        return MeasuredScore("balanced accuracy %", "score", 100.0, 1, "points")
    return MeasuredScore("accuracy %", "accuracy", 100.0, 1, "points")


def _rank(
    what: str,
    problem: Problem,
    names: Sequence[str],
    seeds: int,
    training: Training,
    score: MeasuredScore,
) -> tuple[Ranking, list[Record]]:
    """Train the methods and rank them."""
    from flooding.experiments.bakeoff import train_methods
    from flooding.level_search.driver import run_generator
    from flooding.report.method_ranking import rank_methods

    classes = problem.splits(0).classes or 0
    study = train_methods({what: (problem, classes)}, range(seeds), names)
    with estimated_training(training) as train:
        (results, records), _ = run_generator(study, train)
    for name in names:
        if name not in results.methods:
            note(f"{name} is left out: the network is not made by flooding.models.mlp.")
    if not results.methods:
        raise ValueError(f"no method fits the network of {what}. Name others with --methods.")
    return rank_methods(results, score), records


def _print_ranking(ranking: Ranking) -> None:
    """Print the table and the sentence."""
    table = Table(title=ranking.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    rows = ranking.cells()
    # What a terminal has no room for is on the page.
    columns = [column for column in rows[0] if column not in {"trainings", "setting"}]
    for column in columns:
        justify = "left" if column == "method" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    console.print()
    with console.results():
        console.print_table(table)
    console.print_result(ranking.sentence)


def _write(
    ranking: Ranking, records: Sequence[Record], problem: Problem, folder: OutputFolder
) -> list[Path]:
    """Write page, table, picture and, where Runs have names, the archive."""
    from flooding.experiments.bakeoff import CURVES, is_exact
    from flooding.report.provenance import machine
    from flooding.training.archive import pack
    from flooding.training.config import is_hashable

    folder.mark()
    report = ranking.report(records)
    if importlib.util.find_spec("matplotlib") is None:
        note(f"no picture: matplotlib is not installed. Run {install_command('plot')}.")
        report = replace(report, figures={})
    files = report.save(folder.path, "compare")
    # An archive names Runs by their configuration, which the user's own code does not have.
    if all(is_hashable(record.run) for record in records if record.run is not None):
        path = folder.path / "compare.npz"
        pack(path, records, CURVES, machine(), partial(is_exact, compared=[problem]))
        files.append(path)
    console.print()
    names = ", ".join(file.name for file in files)
    console.print_line(f"Page, table and picture in {folder.path.absolute()}: {names}")
    return files


def _write_page(
    ranking: Ranking,
    records: Sequence[Record],
    what: str,
    table: TableProblem | None,
    path: Path,
) -> Path:
    """Write the report page."""
    from flooding.report.ranking_page import ranking_page

    asked = {"Compared on": what, "Seeds": str(ranking.num_seeds), "Ranked by": ranking.score.title}
    asked |= {} if table is None else {"Target": table.target.name}
    assumptions = () if table is None else table.assumptions
    page = ranking_page(ranking, records, asked, assumptions, command_line())
    return write_report(page, path)


def _save_winner(
    winner: RankedMethod, table: TableProblem, folder: Path, device: str, command: str
) -> Path:
    """Train the winner once more, with its first seed, and save its network."""
    from flooding.tabular import save_model
    from flooding.training.loop import train

    run = winner.pick.record.run
    assert run is not None
    last_row = None
    with progress() as (on_start, on_row):
        on_start([run])
        for row in train(run, device=device):
            on_row(row)
            last_row = row
    assert last_row is not None
    assert last_row.weights is not None
    weights = {name: tensor.cpu() for name, tensor in last_row.weights[winner.pick.at].items()}
    about = {
        "origin": command,
        "network": winner.name,
        "setting": winner.pick.setting,
        "seed": run.seed,
    }
    save_model(folder, weights, replace(table, problem=run.problem), about=about)
    console.print_line(
        f"Model of {winner.name}, seed {run.seed}, in {folder.absolute()}: "
        f"flooding predict {folder} new.csv"
    )
    return folder.absolute()


def _to_json(ranking: Ranking, files: Sequence[Path], saved: Path | None) -> Mapping[str, object]:
    """Write the ranking with plain names and numbers."""
    rows = []
    for row in ranking.rows:
        rows.append({
            "method": row.name,
            "settings": row.settings,
            "validation": row.validation,
            "test": row.test,
            "test_nll": row.nll,
            "trainings": row.trainings,
        })
    return {
        "score": ranking.score.title,
        "ranking": rows,
        "sentence": ranking.sentence,
        "files": [file.absolute() for file in files],
        "model": saved,
    }
