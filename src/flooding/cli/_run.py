"""``flooding run``: one training of a built-in task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._console import console, errors, note, print_json, progress, set_output
from flooding.cli._options import (
    Arguments,
    AverageName,
    Force,
    Json,
    Ledger,
    Overwrite,
    Quiet,
    check_ledger,
    check_numbers,
    check_output_folder,
    complete,
    drop_none,
    option,
    parse_levels,
)
from flooding.cli._outputs import check_new_files
from flooding.entries import CONTROLLERS, DATASETS, METHODS, entry_names, join_names

if TYPE_CHECKING:
    from torch import Tensor

    from flooding.levels import Excess, PerClass
    from flooding.training.loop import EpochResult
    from flooding.training.problem import Problem
    from flooding.training.record import Record
    from flooding.training.run import Run

__all__ = ["run"]

Tracker: TypeAlias = "Callable[[EpochResult], object]"

Task = Annotated[
    str,
    typer.Argument(
        help=f"{join_names(entry_names(DATASETS))}; files are fetched at the first use.",
        metavar="TASK",
        autocompletion=complete(DATASETS),
    ),
]
ModelName: TypeAlias = Literal["mlp", "mlp-bn"]
OptimizerName: TypeAlias = Literal["sgd", "adam", "adamw"]
_DATA, _MODEL, _FLOODING, _TRAINING, _OUTPUT = "Data", "Model", "Flooding", "Training", "Output"
# Files of --save, as safetensors or, where that is not installed, as checkpoints.
_WEIGHT_FILES = tuple(
    f"{name}{suffix}"
    for name in ("first_flooded", "best", "last", "average", "best_average")
    for suffix in (".safetensors", ".pt")
)
# Options that set an argument of another name.
_ARGUMENTS = {
    "train_samples": "n_train",
    "val_samples": "n_val",
    "test_samples": "n_test",
    "epochs": "max_epochs",
    "clip_norm": "max_grad_norm",
    "warmup_steps": "steps",
    "penalty": "strength",
}


def run(
    task: Task,
    label_noise: Annotated[
        float | None,
        option("Share of flipped labels, 0 to below 1 [0.1; digits 0.2; fetched 0 to 0.2].", _DATA),
    ] = None,
    spiral_noise: Annotated[
        float | None, option("Standard deviation of Spiral's points [1].", _DATA)
    ] = None,
    negative_mean: Annotated[
        float | None, option("Mean of the shifted Gaussian class in every coordinate [1].", _DATA)
    ] = None,
    dimension: Annotated[
        int | None, option("Inputs of two-gaussians or sinusoid-nd [10].", _DATA)
    ] = None,
    train_samples: Annotated[
        int | None,
        option("Training examples in all [100; digits 600; fetched 1,000 to 4,000].", _DATA),
    ] = None,
    val_samples: Annotated[
        int | None,
        option("Validation examples in all [100; digits 300; fetched 500 to 1,500].", _DATA),
    ] = None,
    test_samples: Annotated[
        int | None, option("Test examples in all [20000; of files: what is left].", _DATA)
    ] = None,
    model: Annotated[ModelName, option("Network, with or without batch norm.", _MODEL)] = "mlp-bn",
    width: Annotated[int, option("Units of a hidden layer.", _MODEL)] = 500,
    depth: Annotated[int, option("Hidden layers.", _MODEL)] = 4,
    level: Annotated[
        str | None,
        option("Flood level in nats, or one per class: 0.1,0.3 [none: plain training].", _FLOODING),
    ] = None,
    excess: Annotated[
        bool,
        option("The level is that of the loss above its targets' entropy.", _FLOODING, "--excess"),
    ] = False,
    method: Annotated[
        str,
        option(
            f"{join_names([*entry_names(METHODS), 'module:Method of your own'])}.",
            _FLOODING,
            entries=METHODS,
        ),
    ] = "flooding",
    schedule: Annotated[
        str,
        option(
            "How the level moves: "
            f"{join_names([*entry_names(CONTROLLERS), 'module:Controller of your own'])}.",
            _FLOODING,
            entries=CONTROLLERS,
        ),
    ] = "constant",
    warmup_steps: Annotated[
        int | None, option("Steps of warmup, or of range [all steps].", _FLOODING)
    ] = None,
    until_loss: Annotated[
        float | None, option("delayed, heuristic: flood after this loss [1e-4].", _FLOODING)
    ] = None,
    until_accuracy: Annotated[
        float | None, option("delayed, heuristic: flood after this training accuracy.", _FLOODING)
    ] = None,
    sigma: Annotated[float | None, option("Width of softad, in nats [1].", _FLOODING)] = None,
    epsilon: Annotated[
        float | None, option("wavebound: distance below its teacher's loss.", _FLOODING)
    ] = None,
    decay: Annotated[
        float | None, option("wavebound: memory of the teacher [0.99].", _FLOODING)
    ] = None,
    rho: Annotated[float | None, option("Radius of sam [0.05].", _FLOODING)] = None,
    penalty: Annotated[float | None, option("Strength of gradient-penalty.", _FLOODING)] = None,
    gamma: Annotated[
        float | None, option("adaflood: trust in the labels, 0 to 1 [0.5].", _FLOODING)
    ] = None,
    folds: Annotated[int | None, option("adaflood: auxiliary networks [5].", _FLOODING)] = None,
    optimizer: Annotated[OptimizerName, option("Optimiser.", _TRAINING)] = "adam",
    learning_rate: Annotated[float, option("Step size.", _TRAINING)] = 1e-3,
    momentum: Annotated[float | None, option("Momentum of sgd [0].", _TRAINING)] = None,
    weight_decay: Annotated[float, option("L2 penalty (adamw: decoupled).", _TRAINING)] = 0.0,
    dropout: Annotated[
        float, option("Share of hidden units dropped in training.", _TRAINING)
    ] = 0.0,
    label_smoothing: Annotated[
        float, option("Share of each label spread over all classes.", _TRAINING)
    ] = 0.0,
    clip_norm: Annotated[
        float | None, option("Largest gradient norm [no clipping].", _TRAINING)
    ] = None,
    average: Annotated[
        AverageName | None,
        option(
            "Average the weights too: ema, over about 100 steps, or mean, from the first flooded "
            "step on [no average].",
            _TRAINING,
        ),
    ] = None,
    batch_size: Annotated[int, option("Training examples per step.", _TRAINING)] = 200,
    eval_batch_size: Annotated[int, option("Examples per evaluation pass.", _TRAINING)] = 500,
    epochs: Annotated[int, option("Passes over the training examples.", _TRAINING)] = 200,
    seed: Annotated[int, option("Seed of data, weights and order.", _TRAINING)] = 0,
    device: Annotated[str, option("cpu, cuda, cuda:1 or mps.", _TRAINING)] = "cpu",
    threads: Annotated[int, option("torch threads.", _TRAINING)] = 1,
    save: Annotated[
        Path | None,
        option(
            "Folder for the weights at the first flooded step, best epoch and end, and for their "
            "averages; trains anew.",
            _OUTPUT,
        ),
    ] = None,
    mlflow: Annotated[
        str | None, option("MLflow store, such as sqlite:///mlflow.db; trains anew.", _OUTPUT)
    ] = None,
    tensorboard: Annotated[
        Path | None, option("TensorBoard folder, such as runs/; trains anew.", _OUTPUT)
    ] = None,
    tag: Annotated[
        list[str] | None, option("key:value, or a bare word; repeatable (MLflow).", _OUTPUT)
    ] = None,
    force: Force = False,
    ledger: Ledger = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train one network on a built-in task, with or without flooding."""
    # Every option by its name: what is too many to list twice is picked from here.
    options: dict[str, object] = dict(locals())
    check_numbers(options)
    set_output(quiet=quiet, json=json)
    from flooding import tracking

    if tag and mlflow is None:
        raise ValueError(
            f"tag belongs to MLflow, got --tag {tag[0]} alone. Add --mlflow sqlite:///mlflow.db."
        )
    # Build the Run.
    problem, parameters = _problem(task, options)
    plan = _flooded_run(problem, options)
    if excess:
        plan = replace(plan, level=_excess(plan, label_smoothing))
    # Refuse what would fail later, before anything is written.
    _check(plan, device, threads, [save, tensorboard])
    if save is not None:
        check_new_files(save, _WEIGHT_FILES, force=force)
    check_ledger(ledger)
    # AdaFlood trains auxiliary networks for its levels, so this comes after every check.
    if method == "adaflood":
        plan = _with_adaflood_levels(plan, _select(options, "gamma", "folds"), device, threads)
    # Train, or look the Record up: the ledger holds no rows for a tracker, and no weights.
    parameters["device"] = device
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        if mlflow is not None:
            tags = _parse_tags(tag or [])
            tracker = tracking.mlflow_tracker(mlflow, parameters=parameters, tags=tags)
            trackers.append(stack.enter_context(tracker))
        if tensorboard is not None:
            tracker = tracking.tensorboard_tracker(tensorboard, parameters=parameters)
            trackers.append(stack.enter_context(tracker))
        if save is None and not trackers:
            record = _look_up_or_train(plan, device, threads, ledger, overwrite)
        else:
            record = _train(plan, device, threads, save, trackers, ledger, overwrite)
    _print_record(record)
    _note_what_is_plain(record)
    if json:
        print_json({"metrics": record.metrics, "weights": save and save.absolute()})


def _select(options: Mapping[str, object], *names: str) -> dict[str, Any]:
    """Pick the options that were set, under the names of the arguments that they set."""
    values = drop_none(**{name: options[name] for name in names})
    return {_ARGUMENTS.get(name, name): value for name, value in values.items()}


def _problem(task: str, options: Arguments) -> tuple[Problem, dict[str, object]]:
    """Build the Problem, and list what a tracker notes of it."""
    from flooding.cli._parts import make_averaging
    from flooding.cli._problem import NetworkOptions, OptimizerOptions, build_problem

    data_names = ("label_noise", "spiral_noise", "negative_mean", "dimension")
    data = _select(options, *data_names, "train_samples", "val_samples", "test_samples")
    network = _select(options, "model", "width", "depth", "dropout")
    optimizer = _select(options, "optimizer", "learning_rate", "momentum", "weight_decay")
    settings = _select(options, "batch_size", "eval_batch_size", "epochs", "clip_norm")
    smoothing, average = _select(options, "label_smoothing"), _select(options, "average")
    problem = build_problem(
        task,
        data,
        NetworkOptions(**network),
        OptimizerOptions(**optimizer),
        **smoothing,
        **settings,
    )
    problem = replace(problem, averaging=make_averaging(options["average"]))
    # Also what is None: a tracker notes that there is no momentum.
    unset = {"momentum": None, "max_grad_norm": None}
    noted = data | unset | network | optimizer | smoothing | settings | average
    return problem, {"task": task, **noted}


def _flooded_run(problem: Problem, options: Arguments) -> Run:
    """Plan the Run: the problem with a method, a level or its schedule, and a seed."""
    from flooding.cli._parts import make_controller, make_method
    from flooding.training.run import Run

    name, schedule, seed = options["method"], options["schedule"], options["seed"]
    level = _level(options["level"])
    if name == "adaflood":
        if level is not None or schedule != "constant":
            raise ValueError(
                f"adaflood finds its own levels, got --level {level} --schedule {schedule}. "
                "Leave them out."
            )
        # Its numbers are those of the auxiliary training that follows, not of the method.
        return Run(problem, method=make_method(name, {}), seed=seed)
    # All numbers of methods: one that the method does not have is refused by name.
    numbers = _select(options, "sigma", "epsilon", "decay", "rho", "penalty", "gamma", "folds")
    method = make_method(name, numbers)
    conditions = _select(options, "warmup_steps", "until_loss", "until_accuracy")
    # A constant level stays a number, as in Python, so that both have the same key.
    if schedule != "constant":
        num_batches = math.ceil(len(problem.splits(seed).train) / problem.batch_size)
        num_steps = problem.max_epochs * num_batches
        level = make_controller(schedule, level, num_steps, conditions)
    elif conditions:
        raise ValueError(
            f"a constant level has no {', '.join(conditions)}. Choose another --schedule."
        )
    return Run(problem, level, method, seed=seed)


def _level(text: str | None) -> float | PerClass | None:
    """Read a level, or a level for each class."""
    import torch

    from flooding.levels import PerClass

    # One number is a level for all; several are one for each class.
    levels = [] if text is None else parse_levels("level", text)
    if len(levels) > 1:
        return PerClass(torch.tensor(levels))
    return levels[0] if levels else None


def _excess(run: Run, label_smoothing: float) -> Excess:
    """Turn a number into a level for the loss above its targets' entropy."""
    from flooding.levels import Excess

    if not isinstance(run.level, float):
        raise ValueError(
            f"excess needs one constant level, got {run.level}. "
            "Leave --schedule out and give --level 0.1."
        )
    return Excess(run.level, run.problem.splits(run.seed).classes or 0, label_smoothing)


def _with_adaflood_levels(run: Run, options: Arguments, device: str, threads: int) -> Run:
    """Train AdaFlood's auxiliary networks and give the Run its levels."""
    from flooding.adaflood import adaflood

    with progress() as (on_start, on_row):
        # One auxiliary network for each fold, of as many epochs as the Run.
        on_start([run] * options.get("folds", 5))
        result = adaflood(
            run.problem, seed=run.seed, device=device, threads=threads, on_row=on_row, **options
        )
    return replace(run, level=result.levels)


def _check(run: Run, device: str, threads: int, folders: Sequence[Path | None]) -> None:
    """Refuse, before anything is written, what would fail later."""
    from flooding.levels import PerClass
    from flooding.training.checks import check_last_batch
    from flooding.training.runner import check_device

    check_device(device)
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    # Now, so that no result is lost to a folder that cannot be written.
    for folder in folders:
        if folder is not None:
            check_output_folder(folder)
    classes = run.problem.splits(run.seed).classes  # also checks every argument of the data
    if isinstance(run.level, PerClass) and len(run.level.levels) != classes:
        raise ValueError(
            f"a level is needed for each of {classes} classes, got {len(run.level.levels)}. "
            "Give them all."
        )
    # A guess among C balanced classes has a loss of ln C, and needs no training.
    if isinstance(run.level, float) and classes and run.level > math.log(classes):
        errors.print_line(
            f"level {run.level:g} lies above ln {classes} = {math.log(classes):.3f}: "
            "nothing can be learned."
        )
    check_last_batch(run.problem, run.seed)


def _parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """Read ``key:value``, or a bare word."""
    tags = {}
    for text in texts:
        name, _, value = text.partition(":")
        tags[name] = value or "true"
    return tags


def _look_up_or_train(
    run: Run, device: str, threads: int, ledger: Path | None, overwrite: bool
) -> Record:
    """Give a Record from the ledger, or else train here."""
    from flooding.training.runner import run_all

    with progress() as (on_start, on_row):
        [record] = run_all(
            [run],
            ledger=ledger,
            overwrite=overwrite,
            workers=0,
            device=device,
            threads=threads,
            on_start=on_start,
            on_row=on_row,
        )
    return record


def _train(
    run: Run,
    device: str,
    threads: int,
    save: Path | None,
    trackers: Sequence[Tracker],
    ledger: Path | None,
    overwrite: bool,
) -> Record:
    """Train here in any case, because the ledger holds neither every epoch nor the weights."""
    from flooding.training.jobs import Job, run_job
    from flooding.training.ledger import default_path
    from flooding.training.runner import run_key

    key = run_key(run, device=device, threads=threads)
    path = str(ledger or default_path())
    # The same job that a worker gets, so that checkpoints and the ledger work as in a search.
    job = Job(0, run, key, path, overwrite, device, threads, keep_first_flooded=save is not None)
    row = None
    with progress() as (on_start, on_row):
        on_start([run])
        for row in run_job(job):
            on_row(row)
            for tracker in trackers:
                tracker(row)
    assert row is not None
    assert row.record is not None
    if save is not None:
        _save(row.weights or {}, save)
    return row.record


def _save(weights: Mapping[str, dict[str, Tensor]], folder: Path) -> None:
    """Save weights as safetensors, or as checkpoints where that is not installed."""
    import torch

    from flooding.atomic import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in weights.items():
        try:
            from safetensors.torch import save

            path = write_atomic(folder / f"{name}.safetensors", save(tensors))
        except ImportError:
            path = write_atomic(folder / f"{name}.pt", partial(torch.save, tensors))
        console.print_line(f"saved {path}")
    if "first_flooded" not in weights:
        console.print_line("no step was flooded, so there are no weights of a first flooded step")


def _print_record(record: Record) -> None:
    """Print the last and the best epoch side by side, those of the average beside them."""
    columns = {"last epoch": "last.", "best validation epoch": "best."}
    if "average.last.epoch" in record.metrics:
        columns |= {"average, last": "average.last.", "average, best": "average.best."}
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    for title in columns:
        table.add_column(title, justify="right")
    for metric in record.metrics:
        if metric.startswith("last."):
            name = metric.removeprefix("last.")
            # Averaged weights lack what training steps measure; the network lacks nothing.
            values = []
            for prefix in columns.values():
                values.append(record.metrics.get(f"{prefix}{name}", math.nan))
            table.add_row(name.replace("_", " "), *map(_format, values))
    with console.results():
        console.print_table(table)


def _note_what_is_plain(record: Record) -> None:
    """Say where a training with a level flooded nothing, or an average never began."""
    import numpy as np

    from flooding.averaging import Mean

    run = record.run
    assert run is not None
    if np.nansum(record.curves.get("flooded", [1.0])) > 0:
        return
    if run.level is not None:
        levels = np.asarray(record.curves.get("level", [run.level]), np.float64)
        why = "no level was chosen"
        if np.isfinite(levels).any():
            why = f"the lowest training loss was {np.nanmin(record.curves['train_loss']):.4g}"
        note(f"no step was flooded, this is plain training: {why}.")
    averaging = run.problem.averaging
    if isinstance(averaging, Mean) and averaging.start_epoch is None:
        note(
            "the mean of the weights begins with the first flooded step: it is the network itself. "
            "Use --average ema, or a level that is reached."
        )


def _format(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"
