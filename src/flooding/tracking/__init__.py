"""Tracking: what Runs measure, epoch by epoch, in MLflow or TensorBoard.

Both have one form: a :class:`Tracker`, called with rows inside a ``with`` block.
"""

from flooding.tracking.mlflow import mlflow_tracker
from flooding.tracking.tensorboard import tensorboard_tracker
from flooding.tracking.tracker import Log, Tracker

__all__ = ["Log", "Tracker", "mlflow_tracker", "tensorboard_tracker"]
