"""What one training with the controller ``Auto`` measured at each level of its sweep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from flooding.levels import Auto, StepInfo, simulate
from flooding.training.record import Record, monitor_prefix

__all__ = ["Sweep", "sweep_of"]


class Sweep(NamedTuple):
    """The shares of a sweep and the validation score at each.

    Args:
        epochs: Epochs in which the share fell.
        shares: Running mean of the share of the lowest validation loss, for each recorded epoch.
        scores: Running mean of the score, the larger the better.
        weights: How likely each share is to be as good as the best, from 0 to 1.
        held_share: Their mean by weight, which is held.
        cap: Lowest validation loss until the end of the sweep.
    """

    epochs: int
    shares: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    held_share: float
    cap: float


def sweep_of(record: Record) -> Sweep | None:
    """Simulate the controller of a Record on the Record's own curves.

    Args:
        record: A Record.

    Returns:
        The sweep; None where the level is no ``Auto``, curves are missing, or the training ended
        before its level was chosen.
    """
    controller = None if record.run is None else record.run.level
    curves, val_loss = record.curves, f"{_prefix(record)}val_loss"
    if not isinstance(controller, Auto) or val_loss not in curves:
        return None
    # The controller is shown what the training loop showed it.
    num_epochs = min(len(curves[val_loss]) - 1, controller.sweep_epochs)
    if num_epochs < controller.sweep_epochs:
        return None
    infos = [_end_of_epoch(record, t) for t in range(1, num_epochs + 1)]
    if "train_loss" in curves:
        # The loss before training stands for that of the first batch.
        infos.insert(0, StepInfo(torch.tensor(float(curves["train_loss"][0]))))
    state = simulate(controller, infos)[-1]
    is_known = state["scores"].isfinite()
    if not bool(is_known.any()):
        return None
    weights = controller.weigh(state, _end_of_epoch(record, num_epochs))
    return Sweep(
        num_epochs,
        state["shares"][is_known].numpy(),
        state["scores"][is_known].numpy(),
        weights[is_known].numpy(),
        float(state["held_share"]),
        float(state["lowest"]),
    )


def _end_of_epoch(record: Record, epoch: int) -> StepInfo:
    """Give what the controller saw at the end of an epoch."""
    values = {}
    for name in ("val_loss", "val_accuracy", "val_score"):
        curve = record.curves.get(f"{_prefix(record)}{name}")
        if curve is not None:
            values[name] = float(curve[epoch])
    score = None if record.run is None else record.run.problem.score
    if score is not None and not score.greater_is_better and "val_score" in values:
        values["val_score"] = -values["val_score"]
    return StepInfo(n_val=record.metadata.get("val_examples"), **values)


def _prefix(record: Record) -> str:
    """Give the prefix of the validation results that the controller saw."""
    return monitor_prefix(None if record.run is None else record.run.problem)
