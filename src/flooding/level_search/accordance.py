"""Gradient accordance: the training loss at which the gradients of different batches stop
agreeing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from flooding.data import Splits
from flooding.level_search.base import LevelEstimate, SearchResult, Strategy
from flooding.metrics import gradient_accordance
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed
from flooding.training.run import Run

__all__ = ["accordance", "crossing", "watch_accordance"]


def accordance(
    problem: Any,
    *,
    batches: int = 4,
    direction: Literal["down", "up"] = "down",
    smoothing: int = 5,
    seed: int = 0,
) -> Strategy:
    """Watch one plain training and take the training loss at which gradient accordance first
    crosses zero.

    A_t is the mean cosine between the gradients of fixed sub-batches after epoch t, see
    :func:`flooding.metrics.gradient_accordance`. **The source contradicts itself about the sign**:
    its text lets the accordance fall through zero as overfitting sets in, its figure rise. So the
    direction is an option.

    Args:
        problem: The Problem. Its own ``watch`` is put aside in this training.
        batches: Number of sub-batches, at least 2. Together they have at most a training split's
            examples, so an epoch costs up to twice its time.
        direction: "down": from above zero to zero or below; "up": the other way.
        smoothing: Epochs of the running means of accordance and of training loss, at least 1.
        seed: Seed of the training and of the choice of the sub-batches.

    Yields:
        One plain Run.

    Returns:
        The smoothed training loss at the crossing, between the lowest and highest loss it is the
        mean of; None, with a warning, where the accordance never crosses.

    Raises:
        ValueError: If ``direction`` is neither word, ``smoothing`` is below 1, or ``problem`` is no
            Problem.

    References:
        Liu et al., *Flooding-X: Improving BERT's Resistance to Adversarial Attacks via
        Loss-Restricted Fine-Tuning*, ACL 2022.
    """
    if direction not in {"down", "up"}:
        raise ValueError(
            f"direction must be 'down' or 'up', got {direction!r}. The source's text says 'down'."
        )
    if smoothing < 1:
        raise ValueError(f"smoothing must be at least 1 epoch, got {smoothing}. 1 does not smooth.")
    if not isinstance(problem, Problem):
        raise ValueError(
            f"accordance looks into the model: it needs a Problem, got {type(problem).__name__}."
        )
    watch = partial(watch_accordance, batches=batches, seed=seed)
    [record] = yield [Run(replace(problem, extra_metrics=watch), seed=seed)]
    curve = record.curves["accordance"]
    epoch = crossing(_smoothed(curve, smoothing), direction)
    seen = np.asarray(record.curves["train_loss"], np.float64)
    seen = seen[max(0, epoch + 1 - smoothing) : epoch + 1] if epoch else np.array([math.nan])
    if not math.isfinite(level := float(seen.mean())):
        told = f"the accordance never crossed zero {direction}wards: it went from {curve[0]:.2g} to {curve[-1]:.2g}"
        return SearchResult(
            "accordance",
            Run(problem, None, seed=seed),
            (LevelEstimate("accordance", None),),
            (told,),
        )
    suggestion = LevelEstimate(
        "accordance", level, float(seen.min()), float(seen.max()), f"at epoch {epoch}"
    )
    return SearchResult("accordance", Run(problem, level, seed=seed), (suggestion,))


def watch_accordance(
    model: nn.Module, problem: Problem, splits: Splits, *, batches: int = 4, seed: int = 0
) -> dict[str, float]:
    """Measure the gradient accordance of fixed sub-batches of the training split, as a Problem's
    ``watch``.

    The model is in evaluation mode meanwhile, so that neither dropout nor statistics of batch norm
    take part or change.

    Args:
        model: The model; left as it was.
        problem: The Problem, for its loss and its batch size.
        splits: The splits, on the model's device.
        batches: Number of sub-batches, at least 2, each of the problem's batch size or fewer
            examples.
        seed: Seed of the choice of the sub-batches.

    Returns:
        The number by its name, "accordance".

    Raises:
        ValueError: If ``batches`` is below 2 or the training split has fewer examples than that.
    """
    split = splits.train
    if not 2 <= batches <= len(split):
        raise ValueError(
            f"batches must lie in 2 to the {len(split)} training examples, got {batches}. 4 is usual."
        )
    order = torch.randperm(
        len(split), generator=torch.Generator().manual_seed(derive_seed(seed, "accordance"))
    )
    size = min(problem.batch_size, len(split) // batches)
    parts = [split.take(index.to(split.y.device)) for index in order.split(size)[:batches]]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            return {
                "accordance": float(
                    gradient_accordance(model, (problem.loss(model(p.x), p.y) for p in parts))
                )
            }
    finally:
        for module, mode in modes:
            module.training = mode


def crossing(curve: Sequence[float] | np.ndarray, direction: Literal["down", "up"]) -> int | None:
    """Find where a curve first crosses zero.

    Args:
        curve: Numbers; NaN never crosses.
        direction: "down": from above zero to zero or below; "up": the other way.

    Returns:
        Index of the first number on the other side, at least 1, or None.

    Example:
        >>> crossing([-0.1, 0.3, 0.1, 0.0, -0.2], "down"), crossing([0.3, 0.1], "down")
        (3, None)
    """
    heights = np.asarray(curve, np.float64) * (1 if direction == "down" else -1)
    places = np.flatnonzero((heights[:-1] > 0) & (heights[1:] <= 0))
    return int(places[0]) + 1 if len(places) else None


def _smoothed(curve: np.ndarray, epochs: int) -> np.ndarray:
    """Average each number with those before it, ``epochs`` in all where there are as many."""
    return np.array([
        np.mean(curve[max(0, i + 1 - epochs) : i + 1], dtype=np.float64) for i in range(len(curve))
    ])
