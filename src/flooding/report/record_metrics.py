"""Metrics of several Records: listed, written, and whether a level could be tested at all.

A level that the training never reached says nothing about flooding: it is reported as not tested. A
level above the cap, the lowest validation loss of plain training, is not a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from flooding.averaging import Monitor
from flooding.report.stats import format_mean_sd
from flooding.training.record import Record, network_prefix
from flooding.training.run import Run

__all__ = [
    "MIN_FLOODED_SHARE",
    "Epoch",
    "flooded_percent",
    "format_flooded",
    "format_levels",
    "format_metric",
    "format_percent_range",
    "fraction_until_below",
    "is_early",
    "is_reached",
    "level_cap",
    "metric_values",
    "run_of",
]

Epoch: TypeAlias = Literal["best", "last"]
"""The epoch a training is judged at: the last, or the best on validation (early stopping)."""

_EPOCHS: tuple[Epoch, ...] = ("best", "last")
# Share of flooded steps from which on a level counts as reached; fixed beforehand.
MIN_FLOODED_SHARE = 0.01


def run_of(record: Record) -> Run:
    """Give the Run of a Record, which every Record of a study has."""
    assert record.run is not None
    return record.run


def metric_values(
    records: Iterable[Record],
    name: str,
    scale: float = 1.0,
    at: Epoch = "last",
    network: Monitor = "network",
) -> list[float]:
    """List a metric of several Records, such as ``test_accuracy`` in percent (scale 100)."""
    prefix = network_prefix(network)
    return [scale * record.metrics[f"{prefix}{at}.{name}"] for record in records]


def flooded_percent(record: Record, at: Epoch = "last") -> float:
    """Compute the percentage of the steps that were flooded.

    Args:
        record: A Record of a constant level, or of plain training.
        at: Count the steps up to the last epoch, or up to the best one. Weights of a best epoch
            without a flooded step before it are those of plain training.

    Returns:
        Percent.
    """
    # The first entry is the state before training.
    shares = record.curves["flooded"][1:]
    if at == "best":
        shares = shares[: int(record.metrics["best.epoch"])]
    return 100 * float(np.mean(shares, dtype=float))


def format_metric(
    records: Iterable[Record],
    name: str,
    scale: float = 1.0,
    at: Epoch = "last",
    digits: int = 1,
    network: Monitor = "network",
) -> str:
    """Write mean and standard deviation of :func:`metric_values`."""
    return format_mean_sd(metric_values(records, name, scale, at, network), digits)


def format_flooded(records: Iterable[Record], at: Epoch = "last") -> str:
    """Write mean and standard deviation of :func:`flooded_percent`."""
    return format_mean_sd([flooded_percent(record, at) for record in records])


def is_reached(record: Record, at: Epoch = "last") -> bool:
    """Tell whether the training loss reached the level, by more than a stray batch."""
    return flooded_percent(record, at) >= 100 * MIN_FLOODED_SHARE


def level_cap(plain: Record) -> float:
    """Give the cap of the level: the lowest validation loss of plain training.

    Flooding holds the training loss at the level. Plain training, stopped at its best, generalises
    at a loss as low as the cap. A level above the cap is not a candidate: what it loses says
    nothing about flooding.

    Args:
        plain: A Record of plain training.

    Returns:
        The cap in nats. Without a curve of the validation loss it is the lower one of the best and
        the last epoch's, which is never below the cap; NaN where neither was measured.
    """
    if "val_loss" in plain.curves:
        # The first entry is the state before training.
        losses = plain.curves["val_loss"][1:]
    else:
        losses = np.array([plain.metrics.get(f"{at}.val_loss", math.nan) for at in _EPOCHS])
    losses = losses[np.isfinite(losses)]
    return float(losses.min()) if len(losses) else math.nan


def fraction_until_below(plain: Sequence[Record], level: float) -> list[float]:
    """Tell when plain training first falls below a level, so that flooding could begin.

    Args:
        plain: Records of plain training.
        level: The level, in nats.

    Returns:
        For each Record the fraction of its epochs; NaN where the loss never falls below the level.
    """
    fractions = []
    for record in plain:
        is_below = record.curves["train_loss"][1:] < level
        fraction = math.nan
        if is_below.any():
            fraction = float(is_below.argmax() + 1) / len(is_below)
        fractions.append(fraction)
    return fractions


def is_early(fractions: Sequence[float]) -> bool:
    """Tell whether all :func:`fraction_until_below` are under one half, so that much is flooded."""
    return all(fraction < 0.5 for fraction in fractions)


def format_percent_range(fractions: Sequence[float]) -> str:
    """Write fractions as a range of percentages, such as ``18 to 24 %``."""
    lowest, highest = f"{100 * min(fractions):.0f}", f"{100 * max(fractions):.0f}"
    if lowest == highest:
        return f"{lowest} %"
    return f"{lowest} to {highest} %"


def format_levels(levels: Iterable[float]) -> str:
    """List levels for a sentence, such as ``0, 0.25``."""
    return ", ".join(f"{level:g}" for level in levels)
