"""``flooding find``: which level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._console import console, errors, note, print_json, progress, set_output
from flooding.cli._options import (
    AverageName,
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
    complete,
    drop_none,
    fleet_option,
    option,
    parse_levels,
)
from flooding.cli._outputs import check_saved_model, command_id, output_folder
from flooding.cli._report import (
    REPORT_NAME,
    Report,
    check_report,
    command_line,
    report_path,
    write_report,
)
from flooding.cli._save import NetworkName, SaveOptions, save_network, select_at
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
from flooding.entries import STRATEGIES, TASKS, entry_names, join_names

if TYPE_CHECKING:
    from flooding.level_search.result import SearchResult
    from flooding.tabular import TableProblem
    from flooding.training.problem import Problem

__all__ = ["ScoreName", "What", "check_save", "find"]

What = Annotated[
    str,
    typer.Argument(
        help=f"A built-in task ({', '.join(entry_names(TASKS))}), module:problem of your own, "
        "or a table: a CSV, TSV or .npz file, also compressed.",
        metavar="WHAT",
        autocompletion=complete(TASKS),
    ),
]
ScoreName: TypeAlias = Literal["accuracy", "balanced-accuracy", "loss"]
_DATA, _SEARCH, _OUTPUT = "Data", "Search", "Output"
_FOLDER = "flooding-find"
_FILES = ("found.json", "table.csv", "curves.npz", "search.png", REPORT_NAME)
# Options that change nothing of a result, or say where it goes.
_NOT_PART_OF_RESULT = (
    *("out", "save", "report", "force", "ledger", "overwrite", "workers", "ray"),
    *("ray_storage", "fleet", "json", "quiet"),
)
# Options of the saved network alone.
_OF_MODEL = ("at", "refit")


def _takers(option_name: str) -> str:
    """Name the strategies that take an option."""
    return ", ".join(entry.name for entry in STRATEGIES if option_name in entry.options)


def find(
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
        float | None, option("A task's share of flipped labels, 0 to below 1.", _DATA)
    ] = None,
    epochs: Annotated[int | None, option("Epochs of a full training.", _DATA)] = None,
    strategy: Annotated[
        str,
        option(
            f"{join_names([*entry_names(STRATEGIES), 'module:function of your own'])}.",
            _SEARCH,
            entries=STRATEGIES,
        ),
    ] = "finder",
    budget: Annotated[
        float | None,
        option(
            f"{_takers('budget')}: trainings to spend for each seed, 1 or above 1 [3].", _SEARCH
        ),
    ] = None,
    trainings: Annotated[
        int | None, option(f"{_takers('trainings')}: trainings to spend [20].", _SEARCH)
    ] = None,
    levels: Annotated[
        str | None,
        option(
            f"{_takers('levels')}: levels with commas, such as none,0.1,0.2. none is plain "
            "training; so is 0, unless the loss can be negative.",
            _SEARCH,
        ),
    ] = None,
    seeds: Annotated[int, option("Seeds to average.", _SEARCH, min=1)] = 1,
    score: Annotated[
        ScoreName | None,
        option("What the search is judged by [accuracy for classes, else loss].", _SEARCH),
    ] = None,
    average: Annotated[
        AverageName | None,
        option("Judge by averaged weights: ema, or mean from the first flooded step.", _SEARCH),
    ] = None,
    device: Annotated[str, option("cpu, cuda, cuda:1 or mps.", _SEARCH)] = "cpu",
    out: Annotated[
        Path | None,
        option(
            f"Folder for table, curves and picture [{_FOLDER}, or the next free {_FOLDER}-2 ...].",
            _OUTPUT,
            "--out",
            "-o",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        option("Tables: folder for the trained model and its preprocessing, for predict.", _OUTPUT),
    ] = None,
    at: Annotated[
        NetworkName | None,
        option(
            "Whose network to save: that of the best validation epoch, or the last; average and "
            "best-average with --average [best; best-average with --average].",
            _OUTPUT,
        ),
    ] = None,
    refit: Annotated[
        bool,
        option("Train the saved network on the validation rows as well.", _OUTPUT, "--refit"),
    ] = False,
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
    """Find the flood level of a task, a table, or a problem of your own."""
    arguments = dict(locals())
    check_numbers(arguments)
    set_output(quiet=quiet, json=json)
    from flooding.cli._parts import load_place, load_strategy, make_averaging
    from flooding.cli._problem import apply_score, load_problem
    from flooding.level_search.find import find_level
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
    # The options of the search, before the data, which may take long to read.
    chosen = None if levels is None else parse_levels("levels", levels, allow_none=True)
    search = load_strategy(strategy, levels=chosen, budget=budget, trainings=trainings)
    data = drop_none(label_noise=label_noise)
    options = TableOptions(target, kind, drop, use, text, na, encoding, header, decimal)
    problem, table = load_problem(what, data=data, options=options, epochs=epochs)
    if strategy == "heuristic" and problem.splits(0).classes is None:
        raise ValueError(
            f"heuristic needs the accuracy of classes, but {what} has numbers. "
            "Choose another --strategy."
        )
    problem = apply_score(problem, score)
    if average is not None:
        problem = replace(problem, averaging=make_averaging(average))
    command = _command_id(arguments, problem)
    network = select_at(at, problem)
    model_origin = f"{command}, --at {network}{' --refit' if refit else ''}"
    folder = output_folder(out, _FOLDER, _FILES, command, force=force)
    if save is not None:
        check_save(save, folder.path, what, table)
        check_saved_model(save, model_origin, force=force)
    elif refit or at is not None:
        raise ValueError("--at and --refit are about a saved network. Add --save FOLDER.")
    is_single = strategy == "auto" or budget == 1
    if refit and (is_single or strategy == "heuristic"):
        raise ValueError(
            "refit needs a level that does not follow the validation rows, got that of "
            f"{'--budget 1' if budget == 1 else strategy}. Leave --refit out, or search with "
            "--budget 3."
        )
    # Then search, and write the result.
    with progress():
        result = find_level(
            problem,
            budget=1 if is_single else 3,  # with 1 the network of the training is kept
            seeds=seeds,
            device=device,
            strategy=search,
            ledger=ledger,
            overwrite=overwrite,
            workers=workers,
            on=on,
            fleet=fleet_option(fleet),
        )
    _print_result(result)
    if table is not None:
        _print_squared_error(result, table)
    folder.mark()
    result.save(folder.path)
    console.print()
    console.print_line(f"Table, curves and picture in {folder.path.absolute()}")
    summary = _to_json(result, table, folder.path)
    if page := report_path(report, folder.path):
        summary["report"] = _write_report(result, what, table, page)
    if save is not None and table is not None:
        saved = SaveOptions(save, network, refit, device, model_origin)
        summary["model"] = save_network(result, replace(table, problem=problem), saved)
    _print_checkpoints(ledger)
    if json:
        print_json(summary)


def _write_report(result: SearchResult, what: str, table: TableProblem | None, path: Path) -> Path:
    """Write the page of the search."""
    from flooding.level_search.search_page import SearchAbout, search_page

    asked = {} if table is None else {"Target": table.target.name}
    assumptions = () if table is None else table.assumptions
    about = SearchAbout(what, asked, assumptions, command_line())
    return write_report(search_page(result, about), path)


def _command_id(arguments: Mapping[str, object], problem: Problem) -> str:
    """Hash what decides the result of a search."""
    others = (*_NOT_PART_OF_RESULT, *_OF_MODEL)
    deciding = {name: value for name, value in arguments.items() if name not in others}
    return command_id("find", deciding, problem)


def check_save(save: Path, out: Path, what: str, table: TableProblem | None) -> None:
    """Refuse a folder for the model that cannot be one.

    Args:
        save: The folder for the model.
        out: The folder for the results.
        what: What is trained.
        table: Its table, if it is one.

    Raises:
        ValueError: If there is no table, or the folders are the same.
    """
    if table is None:
        raise ValueError(
            f"save needs a table, got {what}. A model of your own is find_level(...).model() in "
            "Python."
        )
    if save.absolute() == out.absolute():
        raise ValueError(f"save and out must be different folders, got {save} twice. Change one.")


def _print_result(result: SearchResult) -> None:
    """Print the trainings, the estimates, the level and its price."""
    console.print_table(_trainings_table(result))
    console.print_table(_estimates_table(result))
    for warning in result.warnings:
        errors.print_line(f"note: {warning}")
    cost = result.cost
    saved = ""
    # Runs that share their first steps cost less than their number says.
    if cost.steps < cost.trainings:
        saved = f" ({1 - cost.steps / cost.trainings:.0%} saved by shared beginnings)"
    price = (
        f"{cost.steps:.2f} trainings' steps{saved}, {cost.epochs} epochs, "
        f"{3600 * cost.hours:.0f} s of training"
    )
    level = result.level
    answer = "train without flooding" if level is None else f"flood level {level:.4g}"
    console.print_result(answer, style="bold", end="" if not console.quiet else "\n")
    console.print_line(f" ({result.strategy}; {price})")
    if level is not None and isinstance(result.run.level, float):
        console.print_line(f"In your own loop: criterion = flooding.Flood(criterion, {level:.4g})")
    elif result.strategy == "auto" and level is not None:
        # A controller cannot be given as one number: its path is part of the training.
        epochs = result.run.problem.max_epochs
        controller = f"flooding.levels.Auto(epochs={epochs})"
        console.print_line(f"In your own loop: criterion = flooding.Flood(criterion, {controller})")


def _trainings_table(result: SearchResult) -> Table:
    """Show one row for each training."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    # Rows differ in what was measured: every column of any, in the order of appearance.
    names = list(dict.fromkeys(name for row in result.table for name in row))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in result.table:
        table.add_row(*(_cell(row.get(name), name) for name in names))
    return table


def _estimates_table(result: SearchResult) -> Table:
    """Show one row for each estimate of the level."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("estimate")
    for title in ("level", "from", "to"):
        table.add_column(title, justify="right")
    table.add_column("")
    for estimate in result.estimates:
        level = "none" if estimate.level is None else f"{estimate.level:.3g}"
        # An estimate may have no level, but always an interval.
        ends = (f"{estimate.low:.3g}", f"{estimate.high:.3g}")
        table.add_row(estimate.name, level, *ends, estimate.note)
    return table


def _cell(value: object, name: str) -> str:
    if name == "level" and value is None:
        return "none"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_squared_error(result: SearchResult, table: TableProblem) -> None:
    """Give the level of a number in the unit of its own squared error."""
    if table.target.classes is not None or result.level is None:
        return
    # A squared loss scales with the square of the deviation that the target was divided by.
    squared_error = result.level * table.target.sd**2
    console.print_line(
        "That is in the unit of the standardised target; "
        f"for squared errors of {table.target.name} itself {squared_error:.4g}"
    )


def _print_checkpoints(ledger: Path | None) -> None:
    """Say how much room the checkpoints take from which longer trainings could go on."""
    from flooding.training.checkpoints import IDLE_LIMIT, Checkpoints
    from flooding.training.ledger import absolute_path, default_path

    path = default_path() if ledger is None else absolute_path(ledger)
    checkpoints = Checkpoints(f"{path}.checkpoints")
    size = checkpoints.size()
    if size:
        note(
            f"checkpoints for longer trainings take {size / 2**20:.0f} MiB, at most "
            f"{IDLE_LIMIT >> 20} MiB, in {checkpoints.folder}; they may be deleted"
        )


def _to_json(result: SearchResult, table: TableProblem | None, folder: Path) -> dict[str, object]:
    """Write a result with plain names and numbers."""
    return {
        "level": result.level,
        "strategy": result.strategy,
        "estimates": [asdict(estimate) for estimate in result.estimates],
        "trainings": result.table,
        "cost": asdict(result.cost),
        "warnings": result.warnings,
        "assumptions": [] if table is None else table.assumptions,
        "folder": folder.absolute(),
    }
