"""``flooding find``: which level; ``flooding predict``: use what was found."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
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
    discard_output,
    errors,
    given,
    option,
    parse_levels,
    progress,
    writable,
)
from flooding.text import one_line

if TYPE_CHECKING:
    from flooding.level_search.find import FoundLevel
    from flooding.tabular.table import TableProblem
    from flooding.training.problem import Problem

__all__ = ["What", "find", "predict", "problem_of"]

What = Annotated[
    str,
    typer.Argument(
        help="A built-in task (two-gaussians, sinusoid, sinusoid-nd, spiral, digits, spambase, letter, higgs7k, "
        "fashion-mnist-5k, twonorm), module:problem of your own, or a table: a CSV, TSV or .npz file, also compressed.",
        metavar="WHAT",
    ),
]
_DATA, _SEARCH, _OUTPUT = "Data", "Search", "Output"
_TABLES = {".csv", ".tsv", ".npz", ".gz", ".bz2", ".xz", ".txt"}


def find(
    what: What,
    target: Annotated[
        str | None, option("A table's column to predict: its name or position.", _DATA)
    ] = None,
    kind: Annotated[
        str | None, option("A table's target: classification or regression.", _DATA)
    ] = None,
    label_noise: Annotated[
        float | None, option("A task's share of flipped labels, 0 to below 1.", _DATA)
    ] = None,
    epochs: Annotated[int | None, option("Epochs of a full training.", _DATA)] = None,
    strategy: Annotated[
        str,
        option(
            "finder, grid, halving, backward, heuristic, policy-gradient, accordance, range-test or tpe.",
            _SEARCH,
        ),
    ] = "finder",
    budget: Annotated[
        float | None, option("finder: trainings to spend for each seed, above 1 [3].", _SEARCH)
    ] = None,
    trainings: Annotated[
        int | None, option("policy-gradient, tpe: trainings to spend [20].", _SEARCH)
    ] = None,
    levels: Annotated[
        str | None,
        option(
            "grid, halving, backward: levels with commas, such as none,0.1,0.2. none is plain training; "
            "so is 0, unless the loss can be negative.",
            _SEARCH,
        ),
    ] = None,
    seeds: Annotated[int, option("Seeds to average.", _SEARCH, min=1)] = 1,
    score: Annotated[
        str | None,
        option("accuracy, balanced-accuracy or loss [accuracy for classes, else loss].", _SEARCH),
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
    from flooding.level_search.find import find_level
    from flooding.training.runner import check_device

    check_numbers(
        label_noise=label_noise, epochs=epochs, budget=budget, trainings=trainings, seeds=seeds
    )
    check_numbers(workers=workers)
    for folder in (out, *([] if save is None else [save.parent])):
        writable(folder)
    check_ledger(ledger)
    check_device(device)
    at = None if levels is None else parse_levels("levels", levels, allow_none=True)
    search = _strategy(strategy, budget, trainings, at)
    problem, table = problem_of(what, target, given(label_noise=label_noise), epochs, kind)
    if save is not None and table is None:
        raise ValueError(
            f"save needs a table, got {what}. A model of your own is found.model() in Python."
        )
    if save is not None:
        from flooding.tabular.table import check_folder

        check_folder(save)
        if save.absolute() == out.absolute():
            raise ValueError(
                f"save and out must be different folders, got {save} twice. Change one."
            )
    if strategy == "heuristic" and problem.splits(0).classes is None:
        raise ValueError(
            f"heuristic needs the accuracy of classes, but {what} has numbers. Choose another --strategy."
        )
    problem = _scored(problem, score)
    with progress() as (on_start, on_row):
        how: dict[str, Any] = {"ledger": ledger, "overwrite": overwrite, "workers": workers}
        how |= {"on_start": on_start, "on_row": on_row}
        found = find_level(problem, seeds=seeds, device=device, strategy=search, **how)
    _print(found)
    if table is not None and table.target.classes is None and found.level is not None:
        raw = f"for squared errors of {table.target.name} itself {found.level * table.target.sd**2:.4g}"
        console.print_line(f"That is in the unit of the standardised target; {raw}")
    found.save(out)
    console.print()
    console.print_line(f"Table, curves and picture in {out.absolute()}")
    if save is not None and table is not None:
        _save(found, replace(table, problem=problem), save, device)


def predict(
    model: Annotated[Path, typer.Argument(help="Folder that find --save wrote.")],
    table: Annotated[Path, typer.Argument(help="A table with the same columns.")],
    out: Annotated[
        Path | None, option("CSV file to write.", _OUTPUT, show_default="printed")
    ] = None,
) -> None:
    """Predict the target of new rows with a saved model."""
    from flooding.atomic import write_atomic
    from flooding.tabular.table import predict as predictions

    _check_file(table, "a table")
    if out is not None:
        writable(out.parent)
        if out.is_dir():
            raise ValueError(
                f"out must be a file, got the folder {out}. Name a file: {out / 'predictions.csv'}."
            )
        if out.exists() and (not out.is_file() or out.samefile(table)):
            got = f"the table {out}" if out.is_file() else f"the pipe or device {out}"
            raise ValueError(
                f"out must be a file of its own, got {got}. Leave --out out to print the predictions."
            )
    found = predictions(model, table)
    text = found.to_csv(index=False)
    if out is None:
        _print_csv(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text)
    console.print_line(f"{len(found)} rows in {out.absolute()}")


def _print_csv(text: str) -> None:
    """Print a CSV file: readable on a terminal, unchanged into a pipe, and not further than it is
    read.
    """
    if sys.stdout.isatty():
        for line in text.splitlines():
            console.print_line(line)
        return
    sys.stdout.flush()
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # as by `head`
        discard_output(sys.stdout)


def _check_file(path: Path, what: str) -> None:
    """Refuse a file that is missing, a folder, and a pipe, of which nobody knows when it ends."""
    if not path.exists():
        raise ValueError(f"{what} must be a file, got {path}, which is missing. Check the path.")
    if path.is_dir():
        raise ValueError(f"{what} must be a file, got the folder {path}. Name a file in it.")
    if not path.is_file():
        fix = "Write what comes out of it into a file first: ... > table.csv."
        raise ValueError(f"{what} must be a file, got {path}, a pipe or a device. {fix}")


def problem_of(
    what: str, target: str | None, data: dict[str, Any], epochs: int | None, kind: str | None
) -> tuple[Problem, TableProblem | None]:
    """Make the Problem of a task, a module or a table."""
    from flooding import tasks

    place, colon, name = what.rpartition(":")
    path = Path(what)
    is_own = (
        bool(colon) and not path.exists() and "/" not in name and Path(name).suffix not in _TABLES
    )
    is_task = not is_own and what in {*tasks.DATA, *tasks.REAL} and not path.is_file()
    # Whoever names a column means a table, also one that is missing.
    is_file = (
        not is_own and not is_task and (path.exists() or path.suffix in _TABLES or bool(target))
    )
    for option_name, value in (("--target", target), ("--kind", kind)):
        if value is not None and not is_file:
            raise ValueError(
                f"{option_name} belongs to a table, got {what}. Name a CSV, TSV or .npz file."
            )
    if data and (is_file or is_own):
        raise ValueError(f"{', '.join(data)} belongs to a built-in task, got {what}. Leave it out.")
    if is_file and path.suffix == ".py":
        raise ValueError(
            f"a Python file needs the name of its Problem, got {what} alone. Try {what}:problem."
        )
    if is_file:
        return _of_table(what, target, epochs, kind)
    problem = _imported(place, name) if is_own else tasks.get_task(what, **data)
    return (problem if epochs is None else replace(problem, max_epochs=epochs)), None


def _of_table(
    what: str, target: str | None, epochs: int | None, kind: str | None
) -> tuple[Problem, TableProblem]:
    """Make the Problem of a table, and say what was assumed."""
    from flooding.tabular.table import table_problem

    _check_file(Path(what), "a table")
    if target is None:
        raise ValueError(
            f"a table needs the column to predict, got {what} alone. Add --target NAME, or --target -1."
        )
    if kind not in {None, "classification", "regression"}:
        raise ValueError(f"kind must be classification or regression, got {kind}.")
    table = table_problem(what, target, kind=kind, **given(max_epochs=epochs))  # type: ignore[arg-type]
    console.print_line(f"Assumed of {what}:")
    for sentence in table.assumptions:
        console.print_line(f"  - {sentence}")
    return table.problem, table


def _imported(place: str, name: str) -> Problem:
    """Import a Problem of the user's own, or the function that makes it."""
    from torch import nn

    from flooding.training.problem import Problem

    if not place or not name:
        raise ValueError(
            f"module:problem must name a module and a Problem in it, got {place}:{name}. Try mine:problem."
        )
    full = f"{place}:{name}"
    module = _import_module(place, full)
    try:
        found = getattr(module, name)
    except AttributeError as error:
        raise ValueError(
            f"module:problem must name a Problem that can be imported, got {full}: {error}. Check the names."
        ) from None
    if callable(found) and not isinstance(found, (Problem, nn.Module)):
        found = _call(found, full)
    if not isinstance(found, Problem):
        hint = " Does it return?" if found is None else ""
        got = "None" if found is None else f"a {type(found).__name__}"
        raise ValueError(
            f"{full} must be a flooding.Problem, or a function that gives one, got {got}.{hint}"
        )
    return found


def _import_module(place: str, full: str) -> ModuleType:
    """Import a module by its name or its file."""
    path = Path(place)
    is_path = path.suffix == ".py"
    if is_path and not path.is_file():
        raise ValueError(
            f"module:problem must name a Problem that can be imported, got {full}: {path} is missing."
        )
    folder, module = (str(path.parent.absolute()), path.stem) if is_path else (os.getcwd(), place)
    sys.path.insert(0, folder)  # for good: workers import it too
    try:
        imported = importlib.import_module(module)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        names = {".".join(module.split(".")[: n + 1]) for n in range(module.count(".") + 1)}
        if isinstance(error, ModuleNotFoundError) and error.name not in names:
            raise  # of something that their code imports
        if not isinstance(error, ModuleNotFoundError) and all(module.split(".")):
            raise
        raise ValueError(
            f"module:problem must name a Problem that can be imported, got {full}: {error}. Check the names."
        ) from None
    except SystemExit as error:
        raise ValueError(
            f"a module must go on after its import, but {place} called sys.exit({one_line(error)}). Put its script "
            "below if __name__ == '__main__'."
        ) from None
    file = getattr(imported, "__file__", None)
    if is_path and (file is None or not path.samefile(file)):
        raise ValueError(
            f"the name of {path} must not be that of another module, but {module} is {file or 'built in'}. Rename it."
        )
    return imported


def _call(function: Callable[..., Any], full: str) -> Any:
    """Call a function that makes a Problem."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of something built in
        parameters = ()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if needed := [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]:
        raise ValueError(
            f"{full} must be a Problem, or a function without arguments that gives one, but it needs "
            f"{', '.join(needed)}. Give them defaults, or add problem = {full.rpartition(':')[2]}(...) to the module."
        )
    result = function()
    if inspect.iscoroutine(result):
        result.close()  # else Python warns that nobody awaited it
    return result


def _scored(problem: Problem, score: str | None) -> Problem:
    """Give a Problem the score that was asked for."""
    from flooding.metrics import balanced_accuracy
    from flooding.training.problem import Score

    if score is None:
        return problem
    if score != "loss" and problem.splits(0).classes is None:
        raise ValueError(
            f"{score} needs classes, but the targets are numbers. Use --score loss, or leave it out."
        )
    if score == "accuracy":
        return problem
    if score == "balanced-accuracy":
        return replace(problem, score=Score(balanced_accuracy))
    if score == "loss":
        return replace(problem, score=Score(problem.loss, greater_is_better=False))
    raise ValueError(f"score must be accuracy, balanced-accuracy or loss, got {score}.")


def _strategy(
    name: str, budget: float | None, trainings: int | None, levels: list[float | None] | None
) -> Callable[..., Any]:
    """Give what find_level asks for a generator."""
    from flooding.level_search.accordance import accordance
    from flooding.level_search.backward import backward
    from flooding.level_search.finder import finder
    from flooding.level_search.grid import grid
    from flooding.level_search.halving import halving
    from flooding.level_search.heuristic import heuristic
    from flooding.level_search.policy_gradient import policy_gradient
    from flooding.level_search.range_test import range_test
    from flooding.level_search.tpe import tpe

    at, spend, count = given(levels=levels), given(budget=budget), given(trainings=trainings)
    known: dict[str, Callable[..., Any]] = {
        "finder": partial(finder, **spend),
        "grid": partial(grid, **at),
        "halving": partial(halving, **at),
        "backward": partial(backward, until_loss=1e-4, **at),
        "heuristic": heuristic,
        "policy-gradient": partial(policy_gradient, **count),
        "accordance": accordance,
        "range-test": range_test,
        "tpe": partial(tpe, **count),
    }
    if name not in known:
        raise ValueError(f"strategy must be one of {', '.join(known)}; got {name}.")
    takes = {
        "levels": {"grid", "halving", "backward"},
        "budget": {"finder"},
        "trainings": {"policy-gradient", "tpe"},
    }
    for option_name in (*at, *spend, *count):
        if name not in takes[option_name]:
            who = " and ".join(sorted(takes[option_name]))
            raise ValueError(
                f"--{option_name} belongs to {who}, got --strategy {name}. Leave it out."
            )
    return known[name]


def _print(found: FoundLevel) -> None:
    """Print the trainings, the estimates, the answer and its price."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = list(dict.fromkeys(name for row in found.table for name in row))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in found.table:
        table.add_row(*(_cell(row.get(name), name) for name in names))
    console.print(table)
    told = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("estimate", "level", "from", "to", ""):
        told.add_column(title, justify="right" if title in {"level", "from", "to"} else "left")
    for s in found.suggestions:
        numbers = ("none" if s.level is None else f"{s.level:.3g}", f"{s.low:.3g}", f"{s.high:.3g}")
        told.add_row(s.name, *numbers, s.note)
    console.print(told)
    for warning in found.warnings:
        errors.print_line(f"note: {warning}")
    cost = found.cost
    saved = (
        ""
        if cost.steps >= cost.trainings
        else f" ({1 - cost.steps / cost.trainings:.0%} saved by shared beginnings)"
    )
    price = f"{cost.steps:.2f} trainings' steps{saved}, {cost.epochs} epochs, {3600 * cost.hours:.0f} s of training"
    answer = "train without flooding" if found.level is None else f"flood level {found.level:.4g}"
    console.print_line(answer, style="bold", end="")
    console.print_line(f" ({found.strategy}; {price})")
    if found.level is not None and not hasattr(found.run.level, "update"):
        console.print_line(f"Use it: criterion = flooding.Flood(criterion, {found.level:.4g})")


def _cell(value: Any, name: str) -> str:
    if name == "level" and value is None:
        return "none"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _save(found: FoundLevel, table: TableProblem, folder: Path, device: str) -> None:
    """Train what was found in full and save it."""
    from flooding.tabular.table import save_model
    from flooding.training.loop import train

    row = None
    with progress() as (on_start, on_row):
        on_start([found.run])
        for row in train(found.run, device=device):
            on_row(row)
    assert row is not None
    assert row.weights is not None
    save_model(folder, {name: t.cpu() for name, t in row.weights["last"].items()}, table)
    finals = row.record.metrics if row.record is not None else {}
    for name in ("last.test_accuracy", "last.test_loss"):
        if name in finals:
            console.print_line(
                f"{name.removeprefix('last.').replace('_', ' ')} of the saved model: {finals[name]:.4g}"
            )
    if table.target.classes is None and "last.test_loss" in finals:
        error = math.sqrt(finals["last.test_loss"]) * table.target.sd
        console.print_line(
            f"that is a root mean squared error of {error:.4g} in the unit of {table.target.name}"
        )
    console.print_line(f"Model in {folder.absolute()}: flooding predict {folder} new.csv")
