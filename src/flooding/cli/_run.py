"""``flooding run``: one training of a built-in task."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flooding.cli._shown import (
    Ledger,
    Overwrite,
    check_ledger,
    check_numbers,
    console,
    errors,
    given,
    option,
    parse_levels,
    progress,
    writable,
)

if TYPE_CHECKING:
    from flooding.training.record import Record
    from flooding.training.run import Run

__all__ = ["run"]

_TASKS = (
    "two-gaussians, sinusoid, sinusoid-nd, spiral or digits; fetched at the first use: spambase, letter, higgs7k, "
    "twonorm, mnist or fashion-mnist."
)
Task = Annotated[str, typer.Argument(help=_TASKS, metavar="TASK")]
_DATA, _MODEL, _FLOODING, _TRAINING, _OUTPUT = "Data", "Model", "Flooding", "Training", "Output"


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
    model: Annotated[str, option("mlp, or mlp-bn with batch norm.", _MODEL)] = "mlp-bn",
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
            "flooding, iflood, adaflood, softad, hinge, wavebound, sam or gradient-penalty.",
            _FLOODING,
        ),
    ] = "flooding",
    schedule: Annotated[
        str,
        option("Of the level: constant, warmup, delayed, heuristic, plateau or range.", _FLOODING),
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
    optimizer: Annotated[str, option("sgd, adam or adamw.", _TRAINING)] = "adam",
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
    batch_size: Annotated[int, option("Training examples per step.", _TRAINING)] = 200,
    eval_batch_size: Annotated[int, option("Examples per evaluation pass.", _TRAINING)] = 500,
    epochs: Annotated[int, option("Passes over the training examples.", _TRAINING)] = 200,
    seed: Annotated[int, option("Seed of data, weights and order.", _TRAINING)] = 0,
    device: Annotated[str, option("cpu, cuda, cuda:1 or mps.", _TRAINING)] = "cpu",
    threads: Annotated[int, option("torch threads.", _TRAINING)] = 1,
    save: Annotated[
        Path | None,
        option(
            "Folder for the weights at the first flooded step, best epoch and end; trains anew.",
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
    ledger: Ledger = None,
    overwrite: Overwrite = False,
) -> None:
    """Train one network on a built-in task, with or without flooding."""
    from flooding import tracking as track
    from flooding.tasks import build_problem
    from flooding.training.run import Run

    check_numbers(
        label_noise=label_noise,
        spiral_noise=spiral_noise,
        negative_mean=negative_mean,
        dimension=dimension,
        train_samples=train_samples,
        val_samples=val_samples,
        test_samples=test_samples,
        width=width,
        depth=depth,
        warmup_steps=warmup_steps,
        until_loss=until_loss,
        until_accuracy=until_accuracy,
        sigma=sigma,
        epsilon=epsilon,
        decay=decay,
        rho=rho,
        penalty=penalty,
        gamma=gamma,
        folds=folds,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        dropout=dropout,
        label_smoothing=label_smoothing,
        clip_norm=clip_norm,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        epochs=epochs,
        seed=seed,
        threads=threads,
    )
    if tag and mlflow is None:
        raise ValueError(
            f"tag belongs to MLflow, got --tag {tag[0]} alone. Add --mlflow sqlite:///mlflow.db."
        )
    data = given(
        label_noise=label_noise,
        spiral_noise=spiral_noise,
        negative_mean=negative_mean,
        dimension=dimension,
        n_train=train_samples,
        n_val=val_samples,
        n_test=test_samples,
    )
    choices = {
        "model": model,
        "width": width,
        "depth": depth,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
    }
    choices |= {"momentum": momentum, "weight_decay": weight_decay, "batch_size": batch_size}
    choices |= {"dropout": dropout, "label_smoothing": label_smoothing}
    choices |= {
        "eval_batch_size": eval_batch_size,
        "max_epochs": epochs,
        "max_grad_norm": clip_norm,
    }
    problem = build_problem(task, data, **choices)
    steps = epochs * -(-len(problem.splits(seed).train) // batch_size)
    start = given(steps=warmup_steps, until_loss=until_loss, until_accuracy=until_accuracy)
    numbers = given(
        sigma=sigma,
        epsilon=epsilon,
        decay=decay,
        rho=rho,
        strength=penalty,
        gamma=gamma,
        folds=folds,
    )
    planned = _flooded(
        Run(problem, seed=seed), _level(level), method, numbers, schedule, start, steps
    )
    if excess:
        planned = replace(planned, level=_excess(planned, label_smoothing))
    _check(planned, device, threads, [save, tensorboard])
    check_ledger(ledger)
    if method == "adaflood":
        planned = _with_levels(planned, numbers, device, threads)
    tags = {name: value or "true" for name, _, value in (text.partition(":") for text in tag or [])}
    told = {"task": task, **data, **choices, "device": device}
    with ExitStack() as stack:
        trackers = []
        if mlflow is not None:
            trackers.append(
                stack.enter_context(track.mlflow_tracker(mlflow, parameters=told, tags=tags))
            )
        if tensorboard is not None:
            trackers.append(
                stack.enter_context(track.tensorboard_tracker(tensorboard, parameters=told))
            )
        record = _one(planned, device, threads, save, trackers, ledger, overwrite)
    _print_record(record)


def _level(text: str | None) -> Any:
    """Read a level, or a level for each class."""
    import torch

    from flooding.levels import PerClass

    numbers = [] if text is None else parse_levels("level", text)
    if len(numbers) > 1:
        return PerClass(torch.tensor(numbers))
    return numbers[0] if numbers else None


def _excess(run: Run, label_smoothing: float) -> Any:
    """Turn a number into a level for the loss above its targets' entropy."""
    from flooding.levels import Excess

    if not isinstance(run.level, float):
        raise ValueError(
            f"excess needs one constant level, got {run.level}. Leave --schedule out and give --level 0.1."
        )
    return Excess(run.level, run.problem.splits(run.seed).classes or 0, label_smoothing)


def _flooded(
    run: Run,
    level: Any,
    method: str,
    numbers: dict[str, Any],
    schedule: str,
    start: dict[str, Any],
    steps: int,
) -> Run:
    """Give a plain Run its method and the schedule of its level."""
    from flooding.tasks import choose_method, choose_schedule

    if method == "adaflood":
        if level is not None or schedule != "constant":
            raise ValueError(
                f"adaflood finds its own levels, got --level {level} --schedule {schedule}. Leave them out."
            )
        return replace(run, method=choose_method(method, {}))
    made = choose_method(method, numbers)
    if method == "wavebound" and level is not None:
        raise ValueError(
            f"wavebound's level is its teacher's loss, got --level {level}. Leave it out."
        )
    if schedule == "constant":
        if start:
            raise ValueError(
                f"a constant level has no {', '.join(start)}. Choose another --schedule."
            )
        return replace(run, level=level, method=made)
    if not isinstance(level, float):
        raise ValueError(
            f"schedule {schedule} needs one level, got {level or 'none'}. Add --level 0.1."
        )
    if schedule == "range":
        start = {"start": level, "stop": 0.0, "steps": steps} | start
    else:
        start = {"level": level} | ({"steps": steps} if schedule == "warmup" else {}) | start
    return replace(run, level=choose_schedule(schedule, start), method=made)


def _with_levels(run: Run, numbers: dict[str, Any], device: str, threads: int) -> Run:
    """Train AdaFlood's auxiliary networks and give the Run its levels."""
    from flooding.adaflood import adaflood

    with progress() as (on_start, on_row):
        on_start([run] * numbers.get("folds", 5))
        found = adaflood(
            run.problem, seed=run.seed, device=device, threads=threads, on_row=on_row, **numbers
        )
    return replace(run, level=found.levels)


def _one(
    run: Run,
    device: str,
    threads: int,
    save: Path | None,
    trackers: list[Any],
    ledger: Path | None,
    overwrite: bool,
) -> Record:
    """Look a Run up, unless its rows or weights are wanted; else train it here and show how far it
    is.
    """
    from flooding.training.jobs import Job, run_job
    from flooding.training.ledger import default_path
    from flooding.training.runner import run_all, run_key

    with progress() as (on_start, on_row):
        if save is None and not trackers:
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
        on_start([run])
        key = run_key(run, device=device, threads=threads)
        job = Job(
            0,
            run,
            key,
            str(ledger or default_path()),
            overwrite,
            device,
            threads,
            first_flooded=save is not None,
        )
        last = None
        for last in run_job(job):
            for consumer in (on_row, *trackers):
                consumer(last)
    assert last is not None
    assert last.record is not None
    if save is not None:
        _save(last.weights or {}, save)
    return last.record


def _save(weights: dict[str, dict[str, Any]], folder: Path) -> None:
    """Save weights, as safetensors where that is installed, else as checkpoints that load with
    weights_only.
    """
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


def _check(run: Run, device: str, threads: int, folders: list[Path | None]) -> None:
    """Refuse, before anything is written, what would fail later."""
    from flooding.levels import PerClass
    from flooding.training.checks import check_last_batch
    from flooding.training.runner import check_device

    check_device(device)
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    for folder in folders:
        if folder is not None:
            writable(folder)
    classes = run.problem.splits(run.seed).classes  # also checks every argument of the data
    if isinstance(run.level, PerClass) and len(run.level.levels) != classes:
        raise ValueError(
            f"a level is needed for each of {classes} classes, got {len(run.level.levels)}. Give them all."
        )
    if isinstance(run.level, float) and classes and run.level > math.log(classes):
        errors.print_line(
            f"level {run.level:g} lies above ln {classes} = {math.log(classes):.3f}: nothing can be learned."
        )
    check_last_batch(run.problem, run.seed)


def _print_record(record: Record) -> None:
    """Print the last and the best epoch side by side."""
    table = Table(box=SIMPLE_HEAD)
    for title in ("", "last epoch", "best validation epoch"):
        table.add_column(title, justify="left" if not title else "right")
    names = [name.removeprefix("last.") for name in record.metrics if name.startswith("last.")]
    for name in names:
        values = (record.metrics[f"{at}.{name}"] for at in ("last", "best"))
        table.add_row(
            name.replace("_", " "), *("–" if math.isnan(v) else f"{v:.4g}" for v in values)
        )
    console.print(table)
