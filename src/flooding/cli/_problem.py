"""Problems from the words and numbers of the command line.

``find`` and ``compare`` take a built-in task, a Problem of the user's own or a table; ``run`` a
network and an optimiser for a built-in data set.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flooding.cli._console import console
from flooding.cli._options import Arguments
from flooding.cli._parts import describe, required_parameters
from flooding.cli._table_options import TableOptions
from flooding.data import Splits
from flooding.entries import (
    DATASETS,
    TASKS,
    DatasetEntry,
    check_name,
    entry_names,
    find_entry,
    load_object,
)
from flooding.metrics import balanced_accuracy
from flooding.models import mlp
from flooding.tabular import TableProblem, table_problem
from flooding.tabular.files import TABLE_SUFFIXES, is_stream
from flooding.tasks import get_task
from flooding.training.problem import Problem, Score

__all__ = [
    "NetworkOptions",
    "OptimizerOptions",
    "apply_score",
    "build_problem",
    "check_file",
    "load_problem",
]

_NO_OPTIONS = TableOptions()
_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def load_problem(
    what: str,
    *,
    data: Mapping[str, float],
    options: TableOptions = _NO_OPTIONS,
    epochs: int | None = None,
) -> tuple[Problem, TableProblem | None]:
    """Make the Problem of a task, of a module or of a table.

    Args:
        what: A name of :data:`flooding.entries.TASKS`, ``module:problem``, a table's path, or ``-``
            for a table from standard input.
        data: Arguments of a task's data.
        options: The options of a table.
        epochs: Epochs, where not those of the Problem.

    Returns:
        The Problem, and what else is known of a table.

    Raises:
        ValueError: If there is no such task, module or table, or an option belongs to another.
    """
    # Where the Problem comes from decides which options belong to it.
    source = _source_of(what, has_target=options.target is not None)
    if options.names() and source != "table":
        raise ValueError(
            f"{options.names()[0]} belongs to a table, got {what}. Name a CSV, TSV or .npz file."
        )
    if data and source != "task":
        raise ValueError(f"{', '.join(data)} belongs to a built-in task, got {what}. Leave it out.")
    if source == "table":
        table = _load_table(what, options, epochs)
        return table.problem, table
    problem = _load_own(what) if source == "module" else get_task(what, **data)
    return (problem if epochs is None else replace(problem, max_epochs=epochs)), None


def _source_of(what: str, has_target: bool) -> Literal["task", "module", "table"]:
    """Tell where a Problem comes from."""
    path = Path(what)
    if is_stream(path):
        return "table"
    _, colon, name = what.rpartition(":")
    # A file may have a colon in its name: one that exists, or ends like a table, is a table.
    if colon and not path.exists() and "/" not in name and Path(name).suffix not in TABLE_SUFFIXES:
        return "module"
    # A file of a task's name is a table; a folder of that name is of no interest.
    if what in entry_names(TASKS) and not path.is_file():
        return "task"
    # Whoever names a column means a table, also one that is missing. Any other word is looked up
    # among the tasks, so that a misspelt one gets a suggestion.
    is_table = path.exists() or path.suffix in TABLE_SUFFIXES or has_target
    return "table" if is_table else "task"


def _load_table(what: str, options: TableOptions, epochs: int | None) -> TableProblem:
    """Make the Problem of a table, and print what was assumed."""
    if what.endswith(".py"):
        raise ValueError(
            f"a Python file needs the name of its Problem, got {what} alone. Try {what}:problem."
        )
    check_file(Path(what), "a table")
    if options.target is None:
        raise ValueError(
            f"a table needs the column to predict, got {what} alone. "
            "Add --target NAME, or --target -1."
        )
    table = table_problem(what, options.target, max_epochs=epochs, **options.keywords())
    console.print_line(f"Assumed of {'standard input' if what == '-' else what}:")
    for sentence in table.assumptions:
        console.print_line(f"  - {sentence}")
    return table


def check_file(path: Path, kind: str) -> None:
    """Refuse a file that is missing, a folder, and a pipe that no shell opened for this command.

    Args:
        path: The file.
        kind: What it should be, for the error.

    Raises:
        ValueError: If it is not a file.
    """
    if is_stream(path):
        return
    if not path.exists():
        raise ValueError(f"{kind} must be a file, got {path}, which is missing. Check the path.")
    if path.is_dir():
        raise ValueError(f"{kind} must be a file, got the folder {path}. Name a file in it.")
    if not path.is_file():
        fix = "Write what comes out of it into a file first: ... > table.csv."
        raise ValueError(f"{kind} must be a file, got {path}, a pipe or a device. {fix}")


def _load_own(path: str) -> Problem:
    """Import a Problem of the user's own, or the function that makes it."""
    problem = load_object(path)
    # A network is callable, too, but calling it says nothing of what was meant.
    if callable(problem) and not isinstance(problem, (Problem, nn.Module)):
        problem = _call_without_arguments(problem, path)
    if not isinstance(problem, Problem):
        hint = " Does it return?" if problem is None else ""
        raise ValueError(
            f"{path} must be a flooding.Problem, or a function that gives one, "
            f"got {describe(problem)}.{hint}"
        )
    return problem


def _call_without_arguments(function: Callable[..., object], path: str) -> object:
    """Call a function that makes a Problem."""
    missing = required_parameters(function)
    if missing:
        name = path.rpartition(":")[2]
        raise ValueError(
            f"{path} must be a Problem, or a function without arguments that gives one, but it "
            f"needs {', '.join(missing)}. Give them defaults, or add problem = {name}(...) to the "
            "module."
        )
    result = function()
    if inspect.iscoroutine(result):
        result.close()  # else Python warns that nobody awaited it
    return result


def apply_score(problem: Problem, score: str | None) -> Problem:
    """Give a Problem the score that a search is judged by.

    Args:
        problem: The Problem.
        score: ``accuracy``, ``balanced-accuracy`` or ``loss``; None is its own.

    Returns:
        The Problem.

    Raises:
        ValueError: If the score needs classes, and the targets are numbers.
    """
    if score is None:
        return problem
    if score == "loss":
        return replace(problem, score=Score(problem.loss, greater_is_better=False))
    if problem.splits(0).classes is None:
        raise ValueError(
            f"{score} needs classes, but the targets are numbers. "
            "Use --score loss, or leave it out."
        )
    if score == "balanced-accuracy":
        return replace(problem, score=Score(balanced_accuracy))
    return problem


def _require_within(name: str, value: float, low: float, high: float = math.inf) -> None:
    if low <= value < high:
        return
    bound = f"lie in [{low:g}, {high:g})"
    if high == math.inf:
        bound = f"be finite and at least {low:g}"
    raise ValueError(f"{name} must {bound}, got {value}.")


@dataclass(frozen=True)
class NetworkOptions:
    """The options of a fully connected network.

    Args:
        model: ``mlp``, or ``mlp-bn`` with batch norm.
        width: Units of a hidden layer, at least 1.
        depth: Hidden layers, at least 1.
        dropout: Share of hidden units dropped in training, in [0, 1).

    Raises:
        ValueError: If a number is out of range.
    """

    model: Literal["mlp", "mlp-bn"] = "mlp-bn"
    width: int = 500
    depth: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_within("width", self.width, 1)
        _require_within("depth", self.depth, 1)
        _require_within("dropout", self.dropout, 0, 1)


@dataclass(frozen=True)
class OptimizerOptions:
    """The options of an optimiser.

    Args:
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: Step size, above 0.
        momentum: Momentum of sgd in [0, 1); the other optimisers have none.
        weight_decay: L2 penalty, at least 0; decoupled for adamw.

    Raises:
        ValueError: If a number is out of range.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    momentum: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be finite and above 0, got {self.learning_rate}.")
        _require_within("weight_decay", self.weight_decay, 0)
        if self.momentum is None:
            return
        if self.optimizer != "sgd":
            raise ValueError(
                f"momentum belongs to sgd, got {self.momentum} with {self.optimizer}. "
                "Leave one of them out."
            )
        _require_within("momentum", self.momentum, 0, 1)

    def factory(self) -> Callable[..., torch.optim.Optimizer]:
        """Give the callable that builds it from parameters."""
        numbers: dict[str, float] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.momentum is not None:
            numbers["momentum"] = self.momentum
        return partial(_OPTIMIZERS[self.optimizer], **numbers, fused=True)


def build_problem(
    dataset: str,
    data: Arguments,
    network: NetworkOptions = NetworkOptions(),
    optimizer: OptimizerOptions = OptimizerOptions(),
    *,
    label_smoothing: float = 0.0,
    **settings: Any,
) -> Problem:
    """Build a Problem from names and numbers.

    Args:
        dataset: A name of :data:`flooding.entries.DATASETS`.
        data: Arguments of the data, such as ``label_noise``.
        network: The network.
        optimizer: The optimiser.
        label_smoothing: Share of each training label spread over all classes, in [0, 1); curves and
            metrics report the plain loss.
        **settings: Fields of :class:`flooding.Problem`.

    Returns:
        The Problem, its data not made yet.

    Raises:
        ValueError: If the data set is unknown, a number out of range, or an argument is not one of
            the data set's.
    """
    entry = find_entry("task", dataset, DATASETS)
    load_data = entry.load()
    assert callable(load_data)
    parameters = inspect.signature(load_data).parameters
    names = [name for name in parameters if name != "seed"]
    for name in data:
        check_name(f"an argument of {dataset}", name, names)
    _require_within("label_smoothing", label_smoothing, 0, 1)
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    inputs = _num_inputs(entry, {**defaults, **data})
    _check_memory({**defaults, **data}, inputs, network, settings)
    model = partial(
        mlp,
        inputs,
        entry.classes,
        width=network.width,
        depth=network.depth,
        batch_norm=network.model == "mlp-bn",
        dropout=network.dropout,
    )
    # Smoothed labels are for training alone: curves and metrics report the plain loss.
    if label_smoothing:
        settings["loss"] = partial(cross_entropy, label_smoothing=label_smoothing)
        settings["eval_loss"] = cross_entropy
    make_data: Callable[..., Splits] = partial(load_data, **data)  # type: ignore[assignment]
    return Problem(make_data, model, optimizer.factory(), **settings)


def _num_inputs(entry: DatasetEntry, arguments: Arguments) -> int:
    return arguments["dimension"] if entry.inputs is None else entry.inputs


def _check_memory(
    data: Arguments, inputs: int, network: NetworkOptions, settings: Arguments
) -> None:
    """Refuse data and networks that cannot fit, before the system ends the program for it."""
    # Estimates from below: what exceeds the memory here cannot fit.
    width, depth = network.width, network.depth
    num_examples = sum(data.get(name, 0) for name in ("n_train", "n_val", "n_test"))
    batch_sizes = (settings.get("batch_size", 100), settings.get("eval_batch_size", 500))
    batch_size = min(max(batch_sizes), num_examples)
    num_parameters = (inputs + 1) * width + (depth - 1) * width**2
    num_bytes = {
        "the data": 16 * num_examples * inputs,  # drawn as float64, kept as float32
        # Weights, gradients, Adam's two means and three copies; a layer's outputs and their
        # gradients.
        "the network": 28 * num_parameters + 12 * batch_size * width * depth,
    }
    available = _memory()
    for part, size in num_bytes.items():
        if size > available:
            raise ValueError(
                f"{part} must fit into {available / 2**30:.0f} GiB of memory, got "
                f"{num_examples:,} examples, {inputs:,} inputs, width {width:,}, depth {depth:,} "
                f"and batches of {batch_size:,}: about {size // 2**30:,} GiB. "
                "Choose smaller numbers."
            )


def _memory() -> float:
    """Bytes of this machine, or of the container it is."""
    limits = [math.inf]
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)
