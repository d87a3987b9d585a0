"""One training on a table, for the estimators for scikit-learn."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from flooding.averaging import Averaging
from flooding.data import Split, Splits, make_rng
from flooding.levels import Auto, Controller
from flooding.tabular.preprocessing import (
    Preprocessing,
    fit_preprocessing,
    standard_deviation,
)
from flooding.tabular.problem import Target, make_problem
from flooding.training.loop import EpochResult, train
from flooding.training.problem import Problem, require_at_least
from flooding.training.record import AVERAGE
from flooding.training.run import Run
from flooding.training.runner import check_device

__all__ = ["FittedTable", "TrainingSettings", "compute_outputs", "train_table"]

_PREDICTION_ROWS = 10_000  # rows that go through the network at once
# Weights of a training by the network that is kept.
_NETWORKS = {
    "best": "best",
    "last": "last",
    f"{AVERAGE}best": "best_average",
    f"{AVERAGE}last": "average",
}


@dataclass(frozen=True)
class TrainingSettings:
    """The parameters of an estimator, checked.

    See :class:`flooding.integrations.sklearn.FloodingClassifier` for the arguments that are not
    listed here.

    Args:
        seed: Seed of the division of the rows, the weights and the order of the batches.

    Raises:
        ValueError: If a parameter is out of range.
    """

    level: object
    width: int
    depth: int
    learning_rate: float
    batch_size: int | None
    max_epochs: int | None
    early_stopping: bool
    validation_fraction: float
    averaging: Averaging | None
    device: str
    seed: int

    def __post_init__(self) -> None:
        require_at_least("width", self.width, 1)
        require_at_least("depth", self.depth, 0)
        for name in ("batch_size", "max_epochs"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)
        _check_number("learning_rate", self.learning_rate, math.inf, "Try 0.001.")
        fix = "Give a share of the rows, not percent."
        _check_number("validation_fraction", self.validation_fraction, 1, fix)
        if not isinstance(self.early_stopping, (bool, np.bool_)):
            raise ValueError(
                f"early_stopping must be True or False, got {self.early_stopping!r}. "
                "True keeps the network of the best validation epoch."
            )
        check_device(self.device)

    def resolve_level(self) -> float | Controller | None:
        """Give the level for a Run.

        Returns:
            A number, a controller, or None.

        Raises:
            ValueError: If it is nothing of these, nor "auto".
        """
        level = self.level
        if isinstance(level, str) and level == "auto":
            return Auto()
        is_number = isinstance(level, numbers.Real) and not isinstance(level, (bool, np.bool_))
        is_controller = isinstance(level, Controller) and not isinstance(level, type)
        if level is None or is_number or is_controller:
            return level  # pyright: ignore[reportReturnType]
        raise ValueError(
            'level must be a number, "auto", a controller of flooding.levels or None for plain '
            f'training, got {level!r}. Leave it out for "auto".'
        )

    def make_problem(self, splits: Splits, target: Target) -> Problem:
        """Make the Problem.

        Args:
            splits: Training and validation rows.
            target: What is predicted.

        Returns:
            The Problem of a table with the optimizer and the averaging of these settings.
        """
        problem = make_problem(
            [splits.train, splits.val],
            target,
            width=self.width,
            depth=self.depth,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
        )
        optimizer = partial(torch.optim.Adam, lr=self.learning_rate, fused=True)
        return replace(problem, optimizer=optimizer, averaging=self.averaging)


@dataclass(frozen=True, eq=False)
class FittedTable:
    """What a training on a table ended with.

    Args:
        network: The network that is kept, in float64.
        preprocessing: How columns become inputs.
        target: What is predicted.
        level: Level in force in the last epoch, or None.
        n_epochs: Epochs that were trained.
        best_epoch: Epoch whose network is kept.
        loss_curve: Mean training loss of each epoch.
        validation_scores: Validation score after each epoch, or None.
    """

    network: nn.Module
    preprocessing: Preprocessing
    target: Target
    level: float | None
    n_epochs: int
    best_epoch: int
    loss_curve: np.ndarray
    validation_scores: np.ndarray | None


def train_table(
    table: pd.DataFrame, y: np.ndarray, classes: np.ndarray | None, settings: TrainingSettings
) -> FittedTable:
    """Train once, in this process and without a ledger.

    Args:
        table: Columns as a Preprocessing takes them.
        y: Class numbers, or float64 targets.
        classes: The labels of the classes, or None for numbers.
        settings: How to train.

    Returns:
        The network and what was measured; none of the rows.

    Raises:
        ValueError: If the level is none, no column varies, or the training diverges.
    """
    level, seed = settings.resolve_level(), settings.seed

    # 1. Divide the rows before anything is fitted to them.
    has_validation = bool(settings.early_stopping) or isinstance(level, Controller)
    train_rows, val_rows = np.arange(len(y)), None
    if has_validation:
        strata = np.zeros(len(y), dtype=np.int64) if classes is None else y
        train_rows, val_rows = _divide(strata, settings.validation_fraction, seed)

    # 2. Inputs and targets.
    preprocessing = fit_preprocessing(table.iloc[train_rows])
    x = preprocessing.transform(table)
    target = _fit_target(y[train_rows], classes)
    encoded = _encode_target(y, target)
    train_split = _take(x, encoded, train_rows)
    # A Problem needs validation rows; one is the cheapest where nothing is chosen by them.
    val_split = train_split.take(slice(1))
    if val_rows is not None:
        val_split = _take(x, encoded, val_rows)

    # 3. Train.
    problem = settings.make_problem(Splits(train_split, val_split), target)
    row = _run(Run(problem, level=level, seed=seed), settings)
    record, weights = row.record, row.weights
    # The last row of a training has both.
    assert record is not None
    assert weights is not None

    # 4. Keep the network; in float64 a row's prediction does not depend on the rows beside it.
    prefix = "" if settings.averaging is None else AVERAGE
    name = "best" if settings.early_stopping else "last"
    network = problem.build(seed)
    network.load_state_dict(weights[_NETWORKS[prefix + name]])
    network = network.cpu().double().eval().requires_grad_(False)
    best_epoch = row.epoch
    if settings.early_stopping:
        best_epoch = round(record.metrics[f"{prefix}best.epoch"])
    scores = _validation_scores(record.curves, prefix, target) if has_validation else None
    losses = np.array(record.curves["train_loss"][1:], dtype=np.float64)
    return FittedTable(
        network, preprocessing, target, record.level, row.epoch, best_epoch, losses, scores
    )


def _run(run: Run, settings: TrainingSettings) -> EpochResult:
    """Give the last row of a training."""
    result = None
    for result in train(run, device=settings.device):
        loss = result.values["train_loss"]
        if not math.isfinite(loss):
            raise ValueError(
                f"the training loss must stay finite, got {loss} in epoch {result.epoch}. "
                f"Lower learning_rate, now {settings.learning_rate:g}."
            )
    assert result is not None
    return result


def compute_outputs(network: nn.Module, x: Tensor) -> Tensor:
    """Compute the outputs of a fitted network.

    Args:
        network: The network, in float64.
        x: Inputs, ``[rows, inputs]``.

    Returns:
        Logits or standardised numbers in float64, ``[rows, outputs]``.
    """
    with torch.no_grad():
        return torch.cat([network(rows) for rows in x.double().split(_PREDICTION_ROWS)])


def _check_number(name: str, value: object, upper: float, fix: str) -> None:
    """Refuse what is no number above 0 and below a bound."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < upper:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"{name} must lie in (0, {upper:g}), got {value!r}. {fix}")


def _divide(strata: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows at random into training and validation, each class apart.

    Args:
        strata: Class number of each row.
        fraction: Share of validation rows.
        seed: Seed of the division.

    Returns:
        Indices of the training and of the validation rows, in random order.

    Raises:
        ValueError: If every class has one row.
    """
    rng = make_rng(seed)
    counts = np.bincount(strata)
    sizes = np.minimum(np.maximum(1, np.round(counts * fraction)), counts - 1).astype(np.int64)
    # Two rows of a class are both trained on, where other classes have more.
    sizes[counts < 3] = 0
    if not sizes.any():
        sizes[counts.argmax()] = 1
        if counts.max() < 2:
            raise ValueError(
                "validation needs a class with at least 2 rows, got one row of each class. Give "
                "more rows, or early_stopping=False and a level that is a number or None."
            )
    val = np.zeros(len(strata), dtype=bool)
    for number, size in enumerate(sizes):
        val[rng.permutation(np.flatnonzero(strata == number))[:size]] = True
    return rng.permutation(np.flatnonzero(~val)), rng.permutation(np.flatnonzero(val))


def _fit_target(y: np.ndarray, classes: np.ndarray | None) -> Target:
    """Fit the target to the training rows."""
    if classes is not None:
        return Target("y", tuple(str(label) for label in classes))
    return Target("y", None, float(y.mean()), float(standard_deviation(y)))


def _encode_target(y: np.ndarray, target: Target) -> Tensor:
    """Give class numbers as they are, and numbers standardised, ``[rows, 1]``."""
    if target.classes is not None:
        return torch.from_numpy(y)
    return torch.from_numpy((y - target.mean) / target.sd).float()[:, None]


def _take(x: Tensor, y: Tensor, rows: np.ndarray) -> Split:
    index = torch.from_numpy(rows)
    return Split(x[index], y[index])


def _validation_scores(curves: Mapping[str, np.ndarray], prefix: str, target: Target) -> np.ndarray:
    """Give the validation score after each epoch, the larger the better."""
    if target.classes is not None:
        return np.array(curves[f"{prefix}val_accuracy"][1:], dtype=np.float64)
    return -np.array(curves[f"{prefix}val_loss"][1:], dtype=np.float64) * target.sd**2
