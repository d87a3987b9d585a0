"""What the estimators for scikit-learn share: parameters, inputs, training and outputs."""

# The checks shared by the methods below raise what their docstrings promise.
# scikit-learn calls the inputs X.
# ruff: file-ignore[invalid-argument-name]
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from flooding.integrations import require_framework

with require_framework("sklearn", extra="tables"):
    from sklearn.base import BaseEstimator
    from sklearn.utils import check_random_state, check_X_y
    from sklearn.utils.validation import check_is_fitted, validate_data

# pandas, torch and this library's training are imported at the first use: they are slow to import.
if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from flooding.averaging import Averaging
    from flooding.integrations._table_training import TrainingSettings
    from flooding.levels import Controller

__all__ = ["FloodingEstimator"]

_MIN_ROWS = 2  # one to train on, one to validate on
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

    # Inputs.

    def _read_training_table(
        self, X: object, y: object, *, y_numeric: bool
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """Check inputs and targets as scikit-learn does, and convert the columns."""
        from flooding.integrations import _typed_columns as columns

        if not columns.is_frame(X):
            array, target = _validate_data(
                self,
                X,
                y,
                y_numeric=y_numeric,
                ensure_all_finite="allow-nan",
                ensure_min_samples=_MIN_ROWS,
            )
            columns.check_target_is_known(target)
            return columns.array_to_table(array, self._column_names()), target
        _validate_data(self, X, y, skip_check_array=True)
        # A stand-in with as many rows: the columns are no array of numbers.
        rows = np.arange(len(X))[:, None]
        _, target = _check_targets(
            rows, y, y_numeric=y_numeric, ensure_min_samples=_MIN_ROWS, estimator=self
        )
        columns.check_target_is_known(target)
        return columns.type_columns(X, self._column_names()), target

    def _read_table(self, X: object) -> pd.DataFrame:
        """Check inputs against those of training, and convert the columns."""
        from flooding.integrations import _typed_columns as columns

        if not columns.is_frame(X):
            array = _validate_data(self, X, reset=False, ensure_all_finite="allow-nan")
            return columns.array_to_table(array, self._column_names())
        _validate_data(self, X, reset=False, skip_check_array=True)
        if not len(X):
            raise ValueError("X must have at least one row, got none. Give rows to predict.")
        return columns.type_columns(
            X, self._column_names(), columns.fitted_kinds(self.preprocessing_)
        )

    def _column_names(self) -> list[str]:
        """Give the names of the columns; x0, x1, ... where they have none."""
        names = getattr(self, "feature_names_in_", None)
        if names is None:
            return [f"x{index}" for index in range(self.n_features_in_)]
        return [str(name) for name in names]

    # Training and predictions.

    def _make_settings(self) -> TrainingSettings:
        """Check the parameters and draw the seed."""
        from flooding.integrations._table_training import TrainingSettings

        random_state = check_random_state(self.random_state)
        parameters: dict[str, Any] = {"seed": int(random_state.randint(np.iinfo(np.int32).max))}
        # A subclass may have more parameters than these.
        for field in dataclasses.fields(TrainingSettings):
            if field.name != "seed":
                parameters[field.name] = getattr(self, field.name)
        return TrainingSettings(**parameters)

    def _train(
        self,
        table: pd.DataFrame,
        y: np.ndarray,
        classes: np.ndarray | None,
        settings: TrainingSettings,
    ) -> None:
        """Train once and set the fitted attributes."""
        from flooding.integrations._table_training import train_table

        fitted = train_table(table, y, classes, settings)
        self.network_ = fitted.network
        self.preprocessing_ = fitted.preprocessing
        self.target_ = fitted.target
        self.level_ = fitted.level
        self.n_epochs_ = fitted.n_epochs
        self.best_epoch_ = fitted.best_epoch
        self.loss_curve_ = fitted.loss_curve
        self.validation_scores_ = fitted.validation_scores

    def _compute_outputs(self, X: object) -> Tensor:
        """Compute the outputs of the network in float64, ``[rows, outputs]``."""
        from flooding.integrations._table_training import compute_outputs

        check_is_fitted(self)
        x = self.preprocessing_.transform(self._read_table(X))
        return compute_outputs(self.network_, x)
