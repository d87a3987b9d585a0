"""What needs no network: a constant, a linear model and gradient boosting, on the same rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from flooding.data import Split, Splits, make_rng
from flooding.tabular.reading import import_library
from flooding.training.problem import Problem

__all__ = ["Baseline", "fit_constant", "fit_models", "measure"]

_MAX_ROWS = 50_000  # to fit a model to; more cost minutes and say little more
_SMALLEST = 1e-12  # probability; a forest may say 0, whose logarithm is none


class _Estimator(Protocol):
    """What scikit-learn's classifiers and regressors have in common."""

    classes_: np.ndarray

    def fit(self, x: np.ndarray, y: np.ndarray) -> object:
        """Fit it to rows."""
        ...

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predict a number for each row."""
        ...

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Predict the probability of each class for each row."""
        ...


@dataclass(frozen=True)
class Baseline:
    """A model beside the networks, and what it reaches.

    Args:
        name: Its name, for a reader.
        metrics: Numbers as in a Record, without the epoch: ``val_loss``, ``test_accuracy`` ...
        rows: Training rows that it was fitted to.
    """

    name: str
    metrics: Mapping[str, float]
    rows: int


def measure(problem: Problem, split: Split, outputs: Tensor, name: str) -> dict[str, float]:
    """Measure outputs as the training loop measures those of a network.

    Args:
        problem: The Problem.
        split: The split.
        outputs: Logits, such as logarithms of probabilities, or numbers.
        name: Name of the split, which begins the names of the numbers.

    Returns:
        Loss, accuracy of classes, and the score of the Problem, if it has one.
    """
    values = {f"{name}_loss": float(problem.reported(outputs, split.y))}
    if not split.y.is_floating_point():
        values[f"{name}_accuracy"] = float((outputs.argmax(1) == split.y).double().mean())
    if problem.score is not None:
        values[f"{name}_score"] = float(problem.score.function(outputs, split.y))
    return values


def fit_constant(problem: Problem, seed: int = 0) -> Baseline:
    """Predict the same for every row: the shares of the classes, or the mean of the numbers.

    Args:
        problem: A Problem of a table.
        seed: Seed of its data.

    Returns:
        The majority class, or the mean, and what it reaches.
    """
    splits = problem.splits(seed)
    y = splits.train.y
    if y.is_floating_point():
        constant, name = y.double().mean(0, keepdim=True), "mean"
    else:
        shares = torch.bincount(y, minlength=splits.classes or 0) / len(y)
        constant, name = _log(shares[None].numpy()), "majority class"

    def repeat(x: Tensor) -> Tensor:
        return constant.expand(len(x), -1)

    return Baseline(name, _measure_all(problem, splits, repeat), len(y))


def fit_models(problem: Problem, seed: int = 0) -> list[Baseline]:
    """Fit scikit-learn's linear model and its gradient boosting, with their default settings.

    The linear model is a logistic regression for classes and a ridge regression for numbers.

    Args:
        problem: A Problem of a table, whose inputs are ``[rows, columns]``.
        seed: Seed of its data, and of what is random in a model.

    Returns:
        Both models, and what they reach on the validation and test rows. Tables of more than
        50,000 training rows are fitted by as many, drawn at random.
    """
    import_library("sklearn")
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge

    splits = problem.splits(seed)
    rows = _sample(len(splits.train), seed)
    x, y = splits.train.x[rows].numpy(), splits.train.y[rows].numpy()
    if splits.train.y.is_floating_point():
        models: dict[str, object] = {
            "ridge regression": Ridge(),
            "gradient boosting": HistGradientBoostingRegressor(random_state=seed),
        }
        y = y.ravel()
    else:
        models = {
            "logistic regression": LogisticRegression(max_iter=1000),
            "gradient boosting": HistGradientBoostingClassifier(random_state=seed),
        }
    baselines = []
    for name, model in models.items():
        estimator = cast("_Estimator", model)
        # That a linear model has not converged is no news for somebody who trains a network.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(x, y)
        metrics = _measure_all(problem, splits, _outputs_of(estimator, splits.classes))
        baselines.append(Baseline(name, metrics, len(rows)))
    return baselines


def _sample(num_rows: int, seed: int) -> Tensor:
    """Draw the rows to fit a model to, all of them where they are few."""
    if num_rows <= _MAX_ROWS:
        return torch.arange(num_rows)
    return torch.from_numpy(make_rng(seed).permutation(num_rows)[:_MAX_ROWS])


def _outputs_of(estimator: _Estimator, classes: int | None) -> Callable[[Tensor], Tensor]:
    """Make the function that gives a model's outputs as a network gives them."""

    def numbers(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(estimator.predict(x.numpy())))[:, None]

    def log_probabilities(x: Tensor) -> Tensor:
        probabilities = np.zeros((len(x), classes or 0))
        # A class without a training row has no probability.
        probabilities[:, estimator.classes_] = estimator.predict_proba(x.numpy())
        return _log(probabilities)

    return numbers if classes is None else log_probabilities


def _log(probabilities: np.ndarray) -> Tensor:
    return torch.from_numpy(probabilities).double().clamp(min=_SMALLEST).log()


def _measure_all(
    problem: Problem, splits: Splits, outputs_of: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Measure a model on the validation rows and, where there are any, on the test rows."""
    values: dict[str, float] = {}
    for name, split in (("val", splits.val), ("test", splits.test)):
        if split is not None:
            # A loss of numbers takes targets and outputs of one type.
            outputs = outputs_of(split.x)
            if split.y.is_floating_point():
                outputs = outputs.to(split.y.dtype)
            values |= measure(problem, split, outputs, name)
    return values
