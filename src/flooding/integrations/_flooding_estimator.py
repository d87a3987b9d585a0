"""What the estimators for scikit-learn share: parameters, inputs, training and outputs."""

# The checks shared by the methods below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
# scikit-learn calls the inputs X.
# ruff: file-ignore[invalid-argument-name]
from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flooding.averaging import Averaging
from flooding.data import Split, Splits, make_rng
from flooding.integrations import require_framework
from flooding.integrations._typed_columns import fitted_kinds, type_columns
from flooding.levels import Auto, Controller
from flooding.tabular.preprocessing import fit_preprocessing, standard_deviation
from flooding.tabular.problem import Target, make_problem
from flooding.training.problem import Problem, require_at_least
from flooding.training.record import AVERAGE
from flooding.training.run import Run

with require_framework("sklearn", extra="tables"):
    from sklearn.base import BaseEstimator
    from sklearn.utils import check_random_state, check_X_y
    from sklearn.utils.validation import check_is_fitted, validate_data

with require_framework("pandas", extra="tables"):
    import pandas as pd

if TYPE_CHECKING:
    from flooding.training.loop import EpochResult

__all__ = ["FloodingEstimator"]

_MIN_ROWS = 2  # one to train on, one to validate on
_PREDICTION_ROWS = 10_000  # rows that go through the network at once
# scikit-learn has no annotations, so type checkers take the types of its defaults.
_validate_data: Callable[..., Any] = validate_data
_check_targets: Callable[..., Any] = check_X_y


class FloodingEstimator(BaseEstimator):
    """A network for tables, with a flood level chosen in its training.

    See :class:`flooding.integrations.sklearn.FloodingClassifier` for its arguments.
    """

    n_features_in_: int

    def __init__(
        self,
        *,
        level: float | str | Controller | None = "auto",
        width: int = 256,
        depth: int = 3,
        learning_rate: float = 1e-3,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.2,
        averaging: Averaging | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        self.level = level
        self.width = width
        self.depth = depth
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.averaging = averaging
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # Parameters and inputs.

    def check_parameters(self) -> None:
        """Refuse parameters out of range before anything is computed."""
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
        if self.device != "cpu":
            from flooding.training.runner import check_device  # it is slow to import

            check_device(self.device)

    def _resolve_level(self) -> float | Controller | None:
        """Give the level for a Run."""
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

    def read_training_table(
        self, X: object, y: object, *, y_numeric: bool
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """Check inputs and targets as scikit-learn does, and convert the columns."""
        if not isinstance(X, pd.DataFrame):
            array, target = _validate_data(
                self,
                X,
                y,
                y_numeric=y_numeric,
                ensure_all_finite="allow-nan",
                ensure_min_samples=_MIN_ROWS,
            )
            _check_target_is_known(target)
            return self._array_to_table(array), target
        _validate_data(self, X, y, skip_check_array=True)
        # A stand-in with as many rows: the columns are no array of numbers.
        rows = np.arange(len(X))[:, None]
        _, target = _check_targets(
            rows, y, y_numeric=y_numeric, ensure_min_samples=_MIN_ROWS, estimator=self
        )
        _check_target_is_known(target)
        return type_columns(X, self._column_names()), target

    def _read_table(self, X: object) -> pd.DataFrame:
        """Check inputs against those of training, and convert the columns."""
        if not isinstance(X, pd.DataFrame):
            array = _validate_data(self, X, reset=False, ensure_all_finite="allow-nan")
            return self._array_to_table(array)
        _validate_data(self, X, reset=False, skip_check_array=True)
        if not len(X):
            raise ValueError("X must have at least one row, got none. Give rows to predict.")
        return type_columns(X, self._column_names(), fitted_kinds(self.preprocessing_))

    def _column_names(self) -> list[str]:
        """Give the names of the columns; x0, x1, ... where they have none."""
        names = getattr(self, "feature_names_in_", None)
        if names is None:
            return [f"x{index}" for index in range(self.n_features_in_)]
        return [str(name) for name in names]

    def _array_to_table(self, array: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(array.astype(np.float64), columns=pd.Index(self._column_names()))

    # Training.

    def train(self, table: pd.DataFrame, y: np.ndarray, classes: np.ndarray | None) -> None:
        """Train once and set the fitted attributes.

        Args:
            table: Columns as a Preprocessing takes them.
            y: Class numbers, or float64 targets.
            classes: The labels of the classes, or None for numbers.

        Raises:
            ValueError: If the training diverges.
        """
        level = self._resolve_level()
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

        # 1. Divide the rows before anything is fitted to them.
        has_validation = bool(self.early_stopping) or isinstance(level, Controller)
        train_rows, val_rows = np.arange(len(y)), None
        if has_validation:
            strata = np.zeros(len(y), dtype=np.int64) if classes is None else y
            train_rows, val_rows = _divide(strata, self.validation_fraction, seed)

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
        problem = self._make_problem(Splits(train_split, val_split), target)
        row = self._run(Run(problem, level=level, seed=seed))
        record, weights = row.record, row.weights
        # The last row of a training has both.
        assert record is not None
        assert weights is not None

        # 4. Keep the network and what it measured; none of the rows.
        prefix = "" if self.averaging is None else AVERAGE
        name = "best" if self.early_stopping else "last"
        network = problem.build(seed)
        network.load_state_dict(weights[_NETWORKS[prefix + name]])
        # In float64 a row's prediction does not depend on the rows beside it.
        self.network_ = network.cpu().double().eval().requires_grad_(False)
        self.preprocessing_ = preprocessing
        self.target_ = target
        self.level_ = record.level
        self.n_epochs_ = row.epoch
        self.best_epoch_ = row.epoch
        if self.early_stopping:
            self.best_epoch_ = round(record.metrics[f"{prefix}best.epoch"])
        self.loss_curve_ = np.array(record.curves["train_loss"][1:], dtype=np.float64)
        self.validation_scores_ = None
        if has_validation:
            self.validation_scores_ = _validation_scores(record.curves, prefix, target)

    def _make_problem(self, splits: Splits, target: Target) -> Problem:
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

    def _run(self, run: Run) -> EpochResult:
        """Train in this process, without a ledger; give the last row."""
        from flooding.training.loop import train  # it is slow to import

        result = None
        for result in train(run, device=self.device):
            loss = result.values["train_loss"]
            if not math.isfinite(loss):
                raise ValueError(
                    f"the training loss must stay finite, got {loss} in epoch {result.epoch}. "
                    f"Lower learning_rate, now {self.learning_rate:g}."
                )
        assert result is not None
        return result

    # Predictions.

    def compute_outputs(self, X: object) -> Tensor:
        """Compute the outputs of the network in float64, ``[rows, outputs]``."""
        check_is_fitted(self)
        x = self.preprocessing_.transform(self._read_table(X)).double()
        with torch.no_grad():
            return torch.cat([self.network_(rows) for rows in x.split(_PREDICTION_ROWS)])


# Weights of a training by the network that is kept.
_NETWORKS = {
    "best": "best",
    "last": "last",
    f"{AVERAGE}best": "best_average",
    f"{AVERAGE}last": "average",
}


def _check_number(name: str, value: object, upper: float, fix: str) -> None:
    """Refuse what is no number above 0 and below a bound."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < upper:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"{name} must lie in (0, {upper:g}), got {value!r}. {fix}")


def _check_target_is_known(y: np.ndarray) -> None:
    """Refuse a missing target; scikit-learn refuses NaN alone."""
    is_missing = pd.isna(y)
    if is_missing.any():
        index = int(is_missing.argmax())
        raise ValueError(
            f"y must have no missing values, got {y[index]!r} in row {index}. Drop such rows."
        )


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
