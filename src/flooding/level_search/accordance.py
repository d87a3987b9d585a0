"""Gradient accordance: the loss at which the gradients of batches stop agreeing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from flooding.data import Splits
from flooding.level_search.protocol import SearchableProblem, Strategy
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.metrics import gradient_accordance
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed
from flooding.training.run import Run

__all__ = ["accordance", "crossing", "watch_accordance"]


def accordance(
    problem: SearchableProblem,
    *,
    batches: int = 4,
    direction: Literal["down", "up"] = "down",
    smoothing: int = 5,
    seed: int = 0,
) -> Strategy:
    """Take the training loss of plain training at which gradient accordance first crosses zero.

    A_t is the mean cosine between the gradients of fixed sub-batches after epoch t, see
    :func:`flooding.metrics.gradient_accordance`. **The source contradicts itself about the sign**:
    in its text the accordance falls through zero as overfitting sets in, in its figure it rises.
    So the direction is an option.

    Args:
        problem: The Problem. This training does not measure its own ``extra_metrics``.
        batches: Number of sub-batches, at least 2. Together they have at most a training split's
            examples, so an epoch costs up to twice its time.
        direction: "down": from above zero to zero or below; "up": the other way.
        smoothing: Epochs of the running means of accordance and of training loss, at least 1.
        seed: Seed of the training and of the choice of the sub-batches.

    Yields:
        One plain Run.

    Returns:
        The smoothed training loss at the crossing, between the lowest and highest loss of which it
        is the mean; None, with a warning, where the accordance never crosses.

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
    # Train plainly and measure the accordance after every epoch.
    measure = partial(watch_accordance, batches=batches, seed=seed)
    [record] = yield [Run(replace(problem, extra_metrics=measure), seed=seed)]
    curve = record.curves["accordance"]

    # Where does it cross, and at which training loss?
    epoch = crossing(_running_mean(curve, smoothing), direction)
    losses = np.array([math.nan])
    if epoch is not None:
        losses = np.asarray(record.curves["train_loss"], np.float64)
        # The losses of the epochs that the running mean at the crossing covers.
        losses = losses[max(0, epoch + 1 - smoothing) : epoch + 1]
    level = float(losses.mean())
    if not math.isfinite(level):
        warning = (
            f"the accordance never crossed zero {direction}wards: "
            f"it went from {curve[0]:.2g} to {curve[-1]:.2g}"
        )
        no_level = LevelEstimate("accordance", None)
        plain = Run(problem, None, seed=seed)
        return SearchResult("accordance", plain, (no_level,), (warning,))
    low, high = float(losses.min()), float(losses.max())
    estimate = LevelEstimate("accordance", level, low, high, f"at epoch {epoch}")
    return SearchResult("accordance", Run(problem, level, seed=seed), (estimate,))


def watch_accordance(
    model: nn.Module, problem: Problem, splits: Splits, *, batches: int = 4, seed: int = 0
) -> dict[str, float]:
    """Measure the gradient accordance of fixed sub-batches: a Problem's ``extra_metrics``.

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
    examples = len(split)
    if not 2 <= batches <= examples:
        raise ValueError(
            f"batches must lie in 2 to the {examples} training examples, got {batches}. 4 is usual."
        )
    # The same sub-batches in every epoch: the generator depends on the seed alone.
    generator = torch.Generator().manual_seed(derive_seed(seed, "accordance"))
    order = torch.randperm(examples, generator=generator)
    size = min(problem.batch_size, examples // batches)
    parts = [split.take(index.to(split.y.device)) for index in order.split(size)[:batches]]
    # A model may mix modes, such as a frozen batch norm: remember each module's own.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            # A generator: one graph lives at a time.
            losses = (problem.loss(model(part.x), part.y) for part in parts)
            return {"accordance": float(gradient_accordance(model, losses))}
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
    sign = 1 if direction == "down" else -1
    # Upwards is downwards with the other sign.
    heights = sign * np.asarray(curve, np.float64)
    crossings = np.flatnonzero((heights[:-1] > 0) & (heights[1:] <= 0))
    return int(crossings[0]) + 1 if len(crossings) else None


def _running_mean(curve: np.ndarray, epochs: int) -> np.ndarray:
    """Average each number with those before it, ``epochs`` in all where there are as many."""
    means = []
    for end in range(1, len(curve) + 1):
        means.append(np.mean(curve[max(0, end - epochs) : end], dtype=np.float64))
    return np.array(means)
