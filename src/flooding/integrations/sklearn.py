"""scikit-learn estimators that choose their flood level themselves: a table in, predictions out."""

# The checks shared by the methods below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
# scikit-learn calls the inputs X.
# ruff: file-ignore[invalid-argument-name]
from __future__ import annotations

from typing import Self

import numpy as np

from flooding.integrations import require_framework
from flooding.integrations._flooding_estimator import FloodingEstimator

with require_framework("sklearn", extra="tables"):
    from sklearn.base import ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets

__all__ = ["FloodingClassifier", "FloodingRegressor"]


class FloodingClassifier(ClassifierMixin, FloodingEstimator):
    """A network for tables that is trained once and chooses its flood level in that training.

    A ReLU network with Adam minimises the cross-entropy L, flooded at the level b:
    ``|L - b| + b``. With ``level="auto"`` b follows the validation loss, see
    :class:`flooding.levels.Auto`.

    A DataFrame may hold numbers, booleans, durations, text, categories and dates, with missing
    values: see :class:`flooding.tabular.Preprocessing`, which is fitted to the training rows alone.
    Anything else is an array of numbers, where NaN is a missing value.

    Edges: each class with at least 3 rows gives ``round(rows * validation_fraction)`` of them to
    validation, but at least one; where no class has as many, one row of the largest is used. Where
    neither early stopping nor the level needs validation rows, all rows are trained on. Sample
    weights are not supported. Training takes one thread, writes no ledger and starts no process.

    Args:
        level: Flood level in nats per example; ``"auto"`` to choose it in the training; a
            controller of :mod:`flooding.levels`; or None for plain training.
        width: Units of each hidden layer, at least 1.
        depth: Number of hidden layers; 0 is a linear model.
        learning_rate: Learning rate of Adam, above 0.
        batch_size: Rows in a batch; None: 100, or a fifth of the training rows where that is less,
            or a 400th, up to 1,000, where that is more.
        max_epochs: Epochs, all of which are trained; None: 100, or fewer where the training rows
            are more than 7,500, so that all epochs visit 750,000 rows; at least 3.
        early_stopping: Whether to keep the network of the epoch with the best validation accuracy
            (ties go to the lower loss), instead of the last one.
        validation_fraction: Share of the rows to validate on, in (0, 1).
        averaging: Keep a running average of the weights in place of the network, such as
            :class:`flooding.averaging.EMA`; or None.
        random_state: Seed of the division of the rows, the weights and the order of the batches.
            None draws one from NumPy's global generator, as scikit-learn does.
        device: Where to train; predictions are computed on the CPU.

    Attributes:
        classes_: Labels of the classes, in the order of the columns of ``predict_proba``.
        level_: Level in force in the last epoch; None where nothing was flooded.
        n_epochs_: Epochs that were trained.
        best_epoch_: Epoch whose network is kept; the last one without early stopping.
        loss_curve_: Mean training loss of each epoch, without flooding.
        validation_scores_: Validation accuracy after each epoch; None without validation rows.
        network_: The network, in float64.
        preprocessing_: How columns become inputs.
        target_: What is predicted.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, where all are strings.

    Example:
        >>> import pandas
        >>> colour = ["red", "blue"] * 30
        >>> X = pandas.DataFrame({"size": range(60), "colour": colour})
        >>> classifier = FloodingClassifier(max_epochs=20, width=16, random_state=0).fit(X, colour)
        >>> classifier.classes_.tolist(), classifier.score(X, colour)
        (['blue', 'red'], 1.0)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, equation 4.
    """

    def fit(self, X: object, y: object) -> Self:
        """Train.

        Args:
            X: Rows, a DataFrame or an array ``[rows, columns]``.
            y: A label of any type for each row.

        Returns:
            The classifier.

        Raises:
            TypeError: If cells of a DataFrame are neither numbers, text nor dates.
            ValueError: If a parameter is out of range, there are fewer than two classes, no class
                has two rows, no column varies, or the training diverges.
        """
        settings = self._make_settings()
        table, labels = self._read_training_table(X, y, y_numeric=False)
        check_classification_targets(labels)
        classes, class_numbers = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y must have at least 2 classes, got 1 class, {classes[0]!r}. Choose another "
                "target."
            )
        self._train(table, class_numbers.astype(np.int64), classes, settings)
        self.classes_ = classes
        return self

    def predict(self, X: object) -> np.ndarray:
        """Predict the most likely class of each row.

        Args:
            X: Rows with the columns of training.

        Returns:
            Labels, ``[rows]``; the first of equally likely ones.
        """
        indices = self._compute_outputs(X).argmax(dim=1)
        return self.classes_[indices.numpy()]

    def predict_proba(self, X: object) -> np.ndarray:
        """Predict the probability of each class.

        Args:
            X: Rows with the columns of training.

        Returns:
            Probabilities in float64, ``[rows, classes]``, in the order of ``classes_``.
        """
        return self._compute_outputs(X).softmax(dim=1).numpy()

    def predict_log_proba(self, X: object) -> np.ndarray:
        """Predict the logarithm of the probability of each class.

        Args:
            X: Rows with the columns of training.

        Returns:
            Finite logarithms also where a probability is 0 in float64, ``[rows, classes]``.
        """
        return self._compute_outputs(X).log_softmax(dim=1).numpy()


class FloodingRegressor(RegressorMixin, FloodingEstimator):
    """A network for tables that predicts a number, with a flood level chosen in its training.

    As :class:`FloodingClassifier`, with the squared error of the target standardised on the
    training rows: L = mean(((prediction - y) / sd)^2), so that predicting their mean has a loss of
    1. A level is in that unit.

    Edges: ``round(rows * validation_fraction)`` rows, at least one, are validated on. A target that
    is constant on the training rows is predicted with sd = 1.

    Args:
        level: Flood level in units of the target's variance; ``"auto"`` to choose it in the
            training; a controller of :mod:`flooding.levels`; or None for plain training.
        width: See :class:`FloodingClassifier`.
        depth: See :class:`FloodingClassifier`.
        learning_rate: See :class:`FloodingClassifier`.
        batch_size: See :class:`FloodingClassifier`.
        max_epochs: See :class:`FloodingClassifier`.
        early_stopping: Whether to keep the network of the epoch with the lowest validation loss,
            instead of the last one.
        validation_fraction: See :class:`FloodingClassifier`.
        averaging: See :class:`FloodingClassifier`.
        random_state: See :class:`FloodingClassifier`.
        device: See :class:`FloodingClassifier`.

    Attributes:
        level_: Level in force in the last epoch; None where nothing was flooded.
        n_epochs_: Epochs that were trained.
        best_epoch_: Epoch whose network is kept; the last one without early stopping.
        loss_curve_: Mean training loss of each epoch, without flooding, in the unit of the level.
        validation_scores_: Minus the mean squared error on the validation rows after each epoch, in
            the square of the target's unit; None without validation rows.
        network_: The network, in float64.
        preprocessing_: How columns become inputs.
        target_: What is predicted.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, where all are strings.

    Example:
        >>> x = np.linspace(-1, 1, 100)[:, None]
        >>> regressor = FloodingRegressor(learning_rate=0.01, max_epochs=30, random_state=0)
        >>> bool(regressor.fit(x, 1000 * x[:, 0]).score(x, 1000 * x[:, 0]) > 0.95)
        True

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, equation 4.
    """

    def fit(self, X: object, y: object) -> Self:
        """Train.

        Args:
            X: Rows, a DataFrame or an array ``[rows, columns]``.
            y: A number for each row.

        Returns:
            The regressor.

        Raises:
            TypeError: If cells of a DataFrame are neither numbers, text nor dates.
            ValueError: If a parameter is out of range, no column varies, or the training diverges.
        """
        settings = self._make_settings()
        table, values = self._read_training_table(X, y, y_numeric=True)
        self._train(table, values.astype(np.float64), None, settings)
        return self

    def predict(self, X: object) -> np.ndarray:
        """Predict a number for each row.

        Args:
            X: Rows with the columns of training.

        Returns:
            Numbers in float64 and the target's unit, ``[rows]``.
        """
        outputs = self._compute_outputs(X)[:, 0].numpy()
        return outputs * self.target_.sd + self.target_.mean
