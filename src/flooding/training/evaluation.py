"""What is measured: each epoch's curves, and the test split at the end of a Run."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from flooding import metrics
from flooding.data import Split, Splits, map_tensors, sha256
from flooding.levels import StepInfo
from flooding.torch_losses import Loss, is_class_loss
from flooding.training.batch import Inputs, Outputs, count_targets, take_copy
from flooding.training.checks import check_labels, explain_dtype_error, first_loss
from flooding.training.problem import Problem
from flooding.training.record import AVERAGE, Record, monitor_prefix
from flooding.training.run import Run
from flooding.training.state import (
    TrainingState,
    copy_weights,
    has_ignored_targets,
    model_fingerprint,
)

__all__ = [
    "epoch_info",
    "explain_first_pass",
    "is_logits",
    "label_metrics",
    "make_record",
    "mean_level",
    "measure_epoch",
    "measure_start",
]


def explain_first_pass(
    problem: Problem, model: nn.Module, y: Tensor, x: Inputs = None
) -> AbstractContextManager[None]:
    """Turn an error about types in the first pass into one that names the tensor to convert.

    Args:
        problem: The Problem.
        model: Its model.
        y: Targets of the pass.
        x: Inputs, if they may be the cause.

    Returns:
        A context manager around the pass.
    """
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    dtypes.append(torch.get_default_dtype())
    # The targets of such a loss are integers, whatever the type of the model.
    if is_class_loss(problem.loss):
        return explain_dtype_error(dtypes[0], x)
    return explain_dtype_error(dtypes[0], x, y)


def measure_start(problem: Problem, state: TrainingState, splits: Splits) -> dict[str, float]:
    """Measure the training split before training, and check that the parts fit each other.

    Args:
        problem: The Problem.
        state: The state before the first epoch.
        splits: The splits.

    Returns:
        Numbers by name.
    """
    values = {"lr": float(state.optimizer.param_groups[0]["lr"]), "level": math.nan, "flooded": 0.0}
    split = splits.train
    with explain_first_pass(problem, state.model, split.y, split.x):
        return values | _measure(problem, state.model, split, "train", check=splits)[1]


def measure_epoch(
    problem: Problem, model: nn.Module, splits: Splits, epoch: int
) -> dict[str, float]:
    """Measure the validation split, and whatever else the Problem asks for, after an epoch.

    Args:
        problem: The Problem.
        model: The model.
        splits: The splits.
        epoch: The epoch, 0 before training.

    Returns:
        Numbers by name.
    """
    is_last = epoch == problem.max_epochs
    values = _measure(problem, model, splits.val, "val")[1]
    # The test curve, on a subset.
    curve = problem.test_curve
    if curve is not None and splits.test is not None and (epoch % curve.every == 0 or is_last):
        subset = splits.test.take(slice(curve.examples))
        values |= _measure(problem, model, subset, "test")[1]
    # The Problem's own metrics.
    extra = problem.extra_metrics
    if extra is not None and (epoch % getattr(extra, "every", 1) == 0 or is_last):
        for name, value in extra(model, problem, splits).items():
            values[name] = float(value)
    return values


def _measure(
    problem: Problem, model: nn.Module, split: Split, name: str, check: Splits | None = None
) -> tuple[Tensor | None, dict[str, float]]:
    """Pass a split through the model once, in evaluation mode, and measure it.

    Args:
        problem: The Problem.
        model: The model.
        split: The split.
        name: Its name, which begins the names of the numbers.
        check: All splits, in the first pass, whose labels are checked against the outputs.

    Returns:
        The outputs, or None where they are not one tensor; and numbers by name.

    Raises:
        ValueError: If there is a score, and the outputs are not one tensor.
    """
    size = problem.eval_batch_size
    model.eval()
    with torch.no_grad():
        # 1. The outputs.
        batches = [slice(i, i + size) for i in range(0, len(split), size)]
        outputs: list[Outputs] = []
        for batch in batches:
            x = map_tensors(functools.partial(take_copy, index=batch), split.x)
            outputs.append(model(x))
        # Labels are checked before they reach the loss: on a GPU its own check ends the process.
        eval_loss = problem.reported
        if check is not None:
            check_labels(problem, outputs[0], check)
            eval_loss = functools.partial(first_loss, eval_loss)

        # 2. The loss: of all outputs at once, or a weighted mean over batches.
        output = None
        if isinstance(outputs[0], Tensor):
            output = torch.cat(outputs)
            loss = float(eval_loss(output, split.y))
        else:
            loss = _batched_loss(problem, split, batches, outputs, eval_loss)
        values = {f"{name}_loss": loss}

        # 3. Accuracies, and the score of the Problem.
        if output is not None and is_logits(output, split.y):
            values |= label_metrics(problem, name, output, split)
        if problem.score is not None and name != "train":
            if output is None:
                raise ValueError(
                    "a score needs outputs that are one tensor, got "
                    f"{type(outputs[0]).__name__}. Return a tensor from the model."
                )
            score = problem.score.function(*drop_ignored_examples(problem, output, split.y))
            values[f"{name}_score"] = float(score)
    return output, values


def epoch_info(problem: Problem, values: Mapping[str, float], val: Split) -> StepInfo:
    """Collect what a controller sees at the end of an epoch.

    Args:
        problem: The Problem, whose averaging says which network's validation results count.
        values: What the epoch measured, by name.
        val: The validation split.

    Returns:
        Accuracies and losses, the number of validation examples that count, and the score of the
        Problem, the larger the better.
    """
    prefix = monitor_prefix(problem)
    score = values.get(f"{prefix}val_score")
    if score is not None and problem.score is not None and not problem.score.greater_is_better:
        score = -score
    n_val = len(val)
    if not val.y.is_floating_point():
        n_val = int(problem.target_mask(val.y).sum())
    return StepInfo(
        train_accuracy=values.get("train_accuracy"),
        val_loss=values.get(f"{prefix}val_loss"),
        val_accuracy=values.get(f"{prefix}val_accuracy"),
        n_val=n_val,
        val_score=score,
    )


def _batched_loss(
    problem: Problem,
    split: Split,
    batches: Sequence[slice],
    outputs: Sequence[Outputs],
    eval_loss: Loss,
) -> float:
    """Average the losses of batches whose outputs cannot be put together."""
    has_ignored = has_ignored_targets(problem, split)
    counts = count_targets(problem, split, batches, has_ignored=has_ignored)
    losses, weights = [], []
    for output, batch, count in zip(outputs, batches, counts, strict=True):
        if count:  # torch's mean of nothing is NaN
            losses.append(float(eval_loss(output, split.y[batch])))
            weights.append(count)
    return float(np.average(losses, weights=weights))


def drop_ignored_examples(problem: Problem, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the examples whose target is ignored.

    Args:
        problem: The Problem.
        output: Outputs of the model.
        y: Targets.

    Returns:
        Outputs and targets; the same tensors where nothing is ignored.
    """
    if not is_logits(output, y):
        return output, y
    mask = problem.target_mask(y)
    if bool(mask.all()):
        return output, y
    return output[mask], y[mask]


def label_metrics(problem: Problem, name: str, logits: Tensor, split: Split) -> dict[str, float]:
    """Measure logits against noisy and clean labels.

    Args:
        problem: The Problem.
        name: Name of the split, which begins the names of the numbers.
        logits: Outputs ``[examples, classes]``.
        split: The labels.

    Returns:
        Numbers by name.
    """
    with torch.no_grad():
        values = {f"{name}_accuracy": _accuracy(problem, logits, split.y)}
        if split.clean is not None:
            values[f"{name}_loss_clean"] = float(problem.reported(logits, split.clean))
            values[f"{name}_accuracy_clean"] = _accuracy(problem, logits, split.clean)
    return values


def _accuracy(problem: Problem, logits: Tensor, y: Tensor) -> float:
    logits, y = drop_ignored_examples(problem, logits, y)
    return float((logits.argmax(1) == y).float().mean())


def is_logits(output: Outputs, y: Tensor) -> bool:
    """Tell whether outputs are one score for each class.

    Args:
        output: Outputs of the model.
        y: Targets.

    Returns:
        Whether they are a tensor ``[examples, classes]`` for integer targets ``[examples]``.
    """
    is_matrix = isinstance(output, Tensor) and output.ndim == 2
    return is_matrix and y.ndim == 1 and not y.is_floating_point()


def mean_level(levels: Sequence[float | Tensor]) -> float:
    """Average the levels in force over the steps of an epoch.

    Args:
        levels: A number or tensor for each step.

    Returns:
        Their mean, as curves hold it; NaN where there are none.
    """
    if not levels:
        return math.nan
    first = levels[0]
    if isinstance(first, float) and all(level is first for level in levels):
        return float(torch.full((len(levels),), first, dtype=torch.float32).mean())
    means = [torch.as_tensor(level, dtype=torch.float32).mean() for level in levels]
    return float(torch.stack(means).mean())


# ---------------------------------------------------------------- the end of a Run


def make_record(run: Run, state: TrainingState, splits: Splits) -> Record:
    """Measure the test split with the last and the best weights.

    Args:
        run: The Run.
        state: Its final state; the best weights are in the model, and in the average, afterwards.
        splits: The splits.

    Returns:
        A Record without metadata.
    """
    problem, model, curves = run.problem, state.model, state.curves
    last = len(curves) - 1
    best = state.best_epoch or last

    # 1. The last weights.
    state.weights["last"] = copy_weights(model)
    state.weights.setdefault("best", state.weights["last"])
    values, views = _test(problem, model, splits)
    numbers = {"epochs": float(last)} | _final_metrics("last", last, curves[last], values)
    arrays = {f"last.{name}": view for name, view in views.items()}

    # 2. The best weights, if they are others.
    if state.best_epoch != last:
        model.load_state_dict(state.weights["best"])
        values, views = _test(problem, model, splits)
    numbers |= _final_metrics("best", best, curves[best], values)
    arrays |= {f"best.{name}": view for name, view in views.items()}

    # 3. The average's last and best weights.
    if state.average is not None:
        average_numbers, average_arrays = _test_average(problem, state, splits)
        numbers |= average_numbers
        arrays |= average_arrays

    # 4. The curves, NaN where an epoch measured nothing, and a hash of the weights.
    names = sorted(set().union(*curves))
    columns = {}
    for name in names:
        column = [row.get(name, math.nan) for row in curves]
        columns[name] = np.array(column, np.float32)
    tensors = [t for t in state.weights["last"].values() if isinstance(t, Tensor)]
    fingerprint = model_fingerprint(model, state.first_loss)
    return Record(run, columns, arrays, numbers, sha256(*tensors), fingerprint)


def _test_average(
    problem: Problem, state: TrainingState, splits: Splits
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measure the test split with the last and the best weights of the average."""
    average, curves = state.average, state.curves
    assert average is not None
    last = len(curves) - 1
    # Until the average begins it is the network itself.
    weights = copy_weights(average.module) if average.has_begun else state.weights["last"]
    state.weights["average"] = weights
    state.weights.setdefault("best_average", weights)
    ends = {"last": ("average", last), "best": ("best_average", state.best_average_epoch or last)}
    numbers, arrays = {}, {}
    for end, (name, epoch) in ends.items():
        average.module.load_state_dict(state.weights[name])
        values, views = _test(problem, average.module, splits)
        row = {}
        for key, value in curves[epoch].items():
            if key.startswith(AVERAGE):
                row[key.removeprefix(AVERAGE)] = value
        numbers |= _final_metrics(f"{AVERAGE}{end}", epoch, row, values)
        arrays |= {f"{AVERAGE}{end}.{key}": view for key, view in views.items()}
    return numbers, arrays


def _final_metrics(
    name: str, epoch: int, row: dict[str, float], test_values: dict[str, float]
) -> dict[str, float]:
    """Name an epoch's numbers ``best.*`` or ``last.*``, with those of the whole test split."""
    values = {"epoch": float(epoch)}
    for key, value in row.items():
        if not key.startswith(("test_", AVERAGE)):
            values[key] = value
    values |= test_values
    return {f"{name}.{key}": value for key, value in values.items()}


def _test(
    problem: Problem, model: nn.Module, splits: Splits
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Pass the whole test split through the model once, and measure noisy and clean labels."""
    test = splits.test
    if test is None:
        return {}, {}
    logits, values = _measure(problem, model, test, "test")
    if logits is None or not is_logits(logits, test.y):
        return values, {}
    views = {}
    with torch.no_grad():
        for suffix, y in (("", test.y), ("_clean", test.clean)):
            if y is None:
                continue
            numbers, reliability = _calibration(*drop_ignored_examples(problem, logits, y))
            for name, value in numbers.items():
                values[f"test_{name}{suffix}"] = float(value)
            views[f"reliability{suffix}"] = reliability
        if splits.posterior is not None:
            posterior = splits.posterior.to(logits.device)
            values["test_kl_to_posterior"] = float(metrics.kl_to_posterior(logits, posterior))
        if problem.probe_inputs is not None:
            inputs = map_tensors(lambda t: t.to(logits.device), problem.probe_inputs())
            views["probe"] = metrics.probabilities(model(inputs)).float().cpu().numpy()
    return values, views


def _calibration(logits: Tensor, y: Tensor) -> tuple[dict[str, Tensor], np.ndarray]:
    """Measure proper scores and calibration; the second is confidence, accuracy and count a bin."""
    error, bins = metrics.calibration(logits, y)
    numbers = {
        "nll": metrics.nll(logits, y),
        "brier": metrics.brier(logits, y),
        "ece": error,
        "over_confidence": metrics.over_confidence(logits, y),
    }
    rows = [row.float() for row in (bins.confidence, bins.accuracy, bins.count)]
    return numbers, torch.stack(rows).cpu().numpy()
