"""Made-up Records, for tests of what reads Records."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from flooding.levels import Controller, StepInfo, as_controller
from flooding.training.problem import Problem
from flooding.training.record import AVERAGE, Record, validation_key
from flooding.training.run import Run

__all__ = ["fake_record"]


def fake_record(run: Run, *, accuracy: bool = True, diverges: bool = False) -> Record:
    """Make up the Record of a Run without training: a formula gives curves that overfit.

    The training loss falls to 1e-6 or the level in force, whichever is higher; a controller gets
    one step an epoch. Validation is best near level 0.1, with a little noise that depends on level,
    seed and epoch. What the problem's ``extra_metrics`` measures falls from 1 to -1.

    Args:
        run: The Run.
        accuracy: Whether accuracies are measured.
        diverges: Whether losses and scores are NaN from the first epoch on; the accuracies then are
            high.

    Returns:
        A Record with curves and metrics.

    Example:
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from torch.nn import Linear
        >>> record = fake_record(Run(Problem(two_gaussians, Linear(10, 2), max_epochs=50), 0.1))
        >>> record.metrics["last.train_loss"] > 0.09
        True
    """
    extra_names = _extra_metric_names(run)
    rng = random.Random(f"{run.level!r} {run.seed}")
    controller = _controller_of(run)
    state, rows = controller.init(), []
    for epoch in range(run.epochs + 1):
        level = float(state["level"])
        row = _fake_row(run.problem, epoch, level, rng.random())
        if diverges and epoch:
            row = _diverged(row)
        if run.problem.averaging is not None:
            row |= _average_of(row)
        rows.append(row | dict.fromkeys(extra_names, 1 - 2 * epoch / run.problem.max_epochs))
        # The controller gets accuracies even if the Record has none.
        if epoch:
            state = controller.update(state, StepInfo(torch.tensor(row["train_loss"])))
            info = StepInfo(None, row["train_accuracy"], row["val_loss"], row["val_accuracy"])
            state = controller.update(state, info)
    if not accuracy:
        for row in rows:
            for name in [name for name in row if name.endswith("accuracy")]:
                del row[name]
    curves = {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}
    metrics = _final_metrics(run, rows)
    return Record(run, curves, {}, metrics, weights_sha256="", fingerprint="")


def _controller_of(run: Run) -> Controller:
    """Give the controller of the level; levels of examples are no single number, so none."""
    level = run.level
    is_single = isinstance(level, (int, float, Tensor, Controller))
    return as_controller(level if is_single else None)


def _fake_row(problem: Problem, epoch: int, level: float, noise: float) -> dict[str, float]:
    """Make up what an epoch measured; the noise lies in [0, 1)."""
    progress = epoch / problem.max_epochs
    raw_loss = 3 * 10 ** (-6.5 * progress)
    # Flooding helps once the loss has reached the level, and most at level 0.1.
    gain = 0.0
    if epoch and raw_loss < level:
        gain = 0.2 * progress * math.exp(-5 * abs(level - 0.1))
    accuracy = 0.5 + 0.25 * min(1.0, 3 * progress) + gain + 0.02 * noise
    row = {
        "train_loss": max(raw_loss, level) if epoch else raw_loss,
        "val_loss": 1.2 - accuracy,
        "train_accuracy": min(1.0, 0.5 + progress),
        "val_accuracy": accuracy,
        "level": level if epoch else math.nan,
    }
    if problem.score is not None:
        row["val_score"] = accuracy if problem.score.greater_is_better else -accuracy
    return row


def _average_of(row: dict[str, float]) -> dict[str, float]:
    """Make up what the averaged weights measured: the same as the network."""
    return {f"{AVERAGE}{name}": value for name, value in row.items() if name.startswith("val_")}


def _diverged(row: dict[str, float]) -> dict[str, float]:
    """Make losses and scores NaN and accuracies high; the level stays."""
    result = dict.fromkeys(row, math.nan)
    for name in row:
        if name.endswith("accuracy"):
            result[name] = 0.99
    result["level"] = row["level"]
    return result


def _final_metrics(run: Run, rows: Sequence[dict[str, float]]) -> dict[str, float]:
    best = max(range(1, len(rows)), key=lambda epoch: validation_key(rows[epoch], run.problem))
    metrics = {"epochs": float(run.epochs)}
    for prefix, epoch in (("best", best), ("last", run.epochs)):
        metrics[f"{prefix}.epoch"] = float(epoch)
        for name, value in rows[epoch].items():
            if name.startswith(AVERAGE):
                metrics[f"{AVERAGE}{prefix}.{name.removeprefix(AVERAGE)}"] = value
            else:
                metrics[f"{prefix}.{name}"] = value
    return metrics


def _extra_metric_names(run: Run) -> Collection[str]:
    """Measure an untrained model once, for the names."""
    problem = run.problem
    if problem.extra_metrics is None:
        return ()
    return problem.extra_metrics(problem.build(run.seed).eval(), problem, problem.splits(run.seed))
