"""``flooding find``: which level; ``flooding predict``: use the model it saved."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._console import console, discard_output, errors, progress
from flooding.cli._options import (
    AverageName,
    Ledger,
    Overwrite,
    Workers,
    check_ledger,
    check_numbers,
    check_output_folder,
    complete,
    drop_none,
    option,
    parse_levels,
)
from flooding.entries import STRATEGIES, TASKS, entry_names, join_names

if TYPE_CHECKING:
    from flooding.level_search.result import SearchResult
    from flooding.tabular import TableProblem

__all__ = ["What", "find", "predict"]

What = Annotated[
    str,
    typer.Argument(
        help=f"A built-in task ({', '.join(entry_names(TASKS))}), module:problem of your own, "
        "or a table: a CSV, TSV or .npz file, also compressed.",
        metavar="WHAT",
        autocompletion=complete(TASKS),
    ),
]
Kind: TypeAlias = Literal["classification", "regression"]
ScoreName: TypeAlias = Literal["accuracy", "balanced-accuracy", "loss"]
_DATA, _SEARCH, _OUTPUT = "Data", "Search", "Output"


def _takers(option_name: str) -> str:
    """Name the strategies that take an option."""
    return ", ".join(entry.name for entry in STRATEGIES if option_name in entry.options)


def find(
    what: What,
    target: Annotated[
        str | None, option("A table's column to predict: its name or position.", _DATA)
    ] = None,
    kind: Annotated[
        Kind | None, option("What a table's target is [judged by its values].", _DATA)
    ] = None,
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
        option(f"{_takers('budget')}: trainings to spend for each seed, above 1 [3].", _SEARCH),
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
    out: Annotated[Path, option("Folder for table, curves and picture.", _OUTPUT)] = Path(
        "flooding-find"
    ),
    save: Annotated[
        Path | None,
        option("Tables: folder for the trained model and its preprocessing, for predict.", _OUTPUT),
    ] = None,
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Find the flood level of a task, a table, or a problem of your own."""
    check_numbers(locals())
    from flooding.cli._parts import load_strategy, make_averaging
    from flooding.cli._problem import apply_score, load_problem
    from flooding.level_search.find import find_level
    from flooding.training.runner import check_device

    # First refuse what would fail later, before anything is written or trained.
    check_output_folder(out)
    if save is not None:
        check_output_folder(save.parent)
    check_ledger(ledger)
    check_device(device)
    # The options of the search, before the data, which may take long to read.
    chosen = None if levels is None else parse_levels("levels", levels, allow_none=True)
    search = load_strategy(strategy, levels=chosen, budget=budget, trainings=trainings)
    data = drop_none(label_noise=label_noise)
    problem, table = load_problem(what, target=target, kind=kind, data=data, epochs=epochs)
    if save is not None:
        _check_save(save, out, what, table)
    if strategy == "heuristic" and problem.splits(0).classes is None:
        raise ValueError(
            f"heuristic needs the accuracy of classes, but {what} has numbers. "
            "Choose another --strategy."
        )
    problem = apply_score(problem, score)
    if average is not None:
        problem = replace(problem, averaging=make_averaging(average))
    # Then search, and write the result.
    with progress() as (on_start, on_row):
        result = find_level(
            problem,
            seeds=seeds,
            device=device,
            strategy=search,
            ledger=ledger,
            overwrite=overwrite,
            workers=workers,
            on_start=on_start,
            on_row=on_row,
        )
    _print_result(result)
    if table is not None and table.target.classes is None and result.level is not None:
        # A squared loss scales with the square of the deviation that the target was divided by.
        squared_error = result.level * table.target.sd**2
        console.print_line(
            "That is in the unit of the standardised target; "
            f"for squared errors of {table.target.name} itself {squared_error:.4g}"
        )
    result.save(out)
    console.print()
    console.print_line(f"Table, curves and picture in {out.absolute()}")
    if save is not None and table is not None:
        _save_model(result, replace(table, problem=problem), save, device)


def _check_save(save: Path, out: Path, what: str, table: TableProblem | None) -> None:
    """Refuse a folder for the model that cannot be one."""
    from flooding.tabular import check_folder

    if table is None:
        raise ValueError(
            f"save needs a table, got {what}. A model of your own is find_level(...).model() in "
            "Python."
        )
    check_folder(save)
    if save.absolute() == out.absolute():
        raise ValueError(f"save and out must be different folders, got {save} twice. Change one.")


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that find --save wrote.")],
    table: Annotated[Path, typer.Argument(help="A table with the same columns.")],
    out: Annotated[
        Path | None, option("CSV file to write.", _OUTPUT, show_default="printed")
    ] = None,
) -> None:
    """Predict the target of new rows with a saved model."""
    from flooding.atomic import write_atomic
    from flooding.cli._problem import check_file
    from flooding.tabular import predict as predict_table

    check_file(table, "a table")
    if out is not None:
        _check_predictions_file(out, table)
    predictions = predict_table(model, table)
    # All rows are predicted before anything is written or printed.
    text = predictions.to_csv(index=False)
    if out is None:
        _print_csv(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text)
    console.print_line(f"{len(predictions)} rows in {out.absolute()}")


def _check_predictions_file(out: Path, table: Path) -> None:
    """Refuse a file that is none, or that predictions would replace the table with."""
    check_output_folder(out.parent)
    if out.is_dir():
        raise ValueError(
            f"out must be a file, got the folder {out}. Name a file: {out / 'predictions.csv'}."
        )
    # Writing replaces the file: that of the input would be lost, and a device cannot be.
    if out.exists() and (not out.is_file() or out.samefile(table)):
        got = f"the table {out}" if out.is_file() else f"the pipe or device {out}"
        raise ValueError(
            f"out must be a file of its own, got {got}. Leave --out out to print the predictions."
        )


def _print_csv(text: str) -> None:
    """Print a CSV file: readable on a terminal, unchanged into a pipe, as far as it is read."""
    if sys.stdout.isatty():
        for line in text.splitlines():
            console.print_line(line)
        return
    # As bytes, so that no newline or character is translated.
    sys.stdout.flush()
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # as by `head`
        discard_output(sys.stdout)


def _print_result(result: SearchResult) -> None:
    """Print the trainings, the estimates, the level and its price."""
    console.print(_trainings_table(result))
    console.print(_estimates_table(result))
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
    console.print_line(answer, style="bold", end="")
    console.print_line(f" ({result.strategy}; {price})")
    # A controller cannot be given as one number.
    if level is not None and isinstance(result.run.level, float):
        console.print_line(f"Use it: criterion = flooding.Flood(criterion, {level:.4g})")


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


def _save_model(result: SearchResult, table: TableProblem, folder: Path, device: str) -> None:
    """Train in full at the level of the search, and save the model."""
    from flooding.tabular import save_model
    from flooding.training.loop import train
    from flooding.training.record import monitor_prefix

    row = None
    with progress() as (on_start, on_row):
        on_start([result.run])
        for row in train(result.run, device=device):
            on_row(row)
    # The last row of a training has its weights and its Record.
    assert row is not None
    assert row.weights is not None
    # The network that the search judged.
    prefix = monitor_prefix(result.run.problem)
    judged = row.weights["average" if prefix else "last"]
    weights = {name: tensor.cpu() for name, tensor in judged.items()}
    save_model(folder, weights, table)
    # There is no test loss where there is no test split.
    metrics = row.record.metrics if row.record is not None else {}
    for name in ("test_accuracy", "test_loss"):
        if f"{prefix}last.{name}" in metrics:
            value = metrics[f"{prefix}last.{name}"]
            console.print_line(f"{name.replace('_', ' ')} of the saved model: {value:.4g}")
    if table.target.classes is None and "last.test_loss" in metrics:
        error = math.sqrt(metrics[f"{prefix}last.test_loss"]) * table.target.sd
        console.print_line(
            f"that is a root mean squared error of {error:.4g} in the unit of {table.target.name}"
        )
    console.print_line(f"Model in {folder.absolute()}: flooding predict {folder} new.csv")
