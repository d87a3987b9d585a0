"""What Ishida et al., ICML 2020, say of why flooding works, each claim with a test.

A test gives, for one task at one level, the differences whose mean is above 0 if the claim is true,
and a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from flooding.report import stats
from flooding.report.claims import Claim
from flooding.report.curve_figures import PairedRecords
from flooding.report.record_metrics import metric_values
from flooding.report.stats import format_mean_sd
from flooding.training.record import Record

__all__ = ["EXPLANATIONS", "GRADIENT_DRIFT", "LINE", "RANDOM_WALK", "SETTLED", "STEPS"]
__all__ += ["Explanation", "Outcome", "explanation_claims", "late_flooded_percent"]
__all__ += ["select_reached"]

# Steps along a filter-normalised direction.
STEPS = tuple(round(0.1 * step, 2) for step in range(-10, 11))
# Metrics of the training loss at each step.
LINE = tuple(f"last.line_{index}" for index in range(len(STEPS)))
# Epochs after the first flooded step from which on a drift is measured: the loss is at its level.
SETTLED = 25
Outcome: TypeAlias = tuple[Sequence[float], str]
"""The differences of a test, and a note."""


class Explanation(NamedTuple):
    """A claim of the paper: its text, the unit of the differences, and what gives them."""

    text: str
    unit: str
    test: Callable[[PairedRecords], Outcome]
    # The seeds in which the level was reached, all, or plain training alone, once a task.
    seeds: Literal["reached", "all", "plain"] = "reached"


def late_flooded_percent(record: Record) -> float:
    """Percentage of the steps of the second half that were flooded."""
    shares = record.curves["flooded"]
    return 100 * float(np.mean(shares[len(shares) // 2 :], dtype=float))


def select_reached(pairs: PairedRecords) -> PairedRecords:
    """Keep the seeds with a quarter or more of the steps of the second half flooded."""
    plain, flooded = [], []
    for a, b in zip(pairs.plain, pairs.flooded, strict=True):
        if late_flooded_percent(b) >= 25:
            plain.append(a)
            flooded.append(b)
    return pairs._replace(plain=plain, flooded=flooded)


def _finite(values: Iterable[float]) -> list[float]:
    """Leave out trainings that diverged."""
    return [value for value in values if math.isfinite(value)]


def _medians(pairs: PairedRecords, name: str) -> str:
    plain = np.median(metric_values(pairs.plain, name))
    flooded = np.median(metric_values(pairs.flooded, name))
    return f"medians {plain:.3g} without and {flooded:.3g} with flooding"


def _curvature(pairs: PairedRecords, name: str) -> Outcome:
    """Compare common logarithms, plain minus flooded."""
    # A trace may be estimated at or below 0 where there is no curvature left.
    plain = np.maximum(metric_values(pairs.plain, name), 1e-12)
    flooded = np.maximum(metric_values(pairs.flooded, name), 1e-12)
    return list(np.log10(plain) - np.log10(flooded)), _medians(pairs, name)


def _drift(pairs: PairedRecords, name: str) -> Outcome:
    """Compare common logarithms, shortly after flooding starts minus at the end."""
    falls, factors = [], []
    for record in pairs.flooded:
        fall = _fall(record, name)
        if math.isfinite(fall):
            falls.append(fall)
            factors.append(10**-fall)
    note = ""
    if factors:
        fallen = stats.format_count([fall > 0 for fall in falls])
        note = f"median {np.median(factors):.2f} times the early one, lower in {fallen} seeds"
    return falls, note


def _fall(record: Record, name: str) -> float:
    """Give by how many decades a metric falls; NaN where it was not measured twice."""
    curve = record.curves[name].astype(float)
    is_flooded = record.curves["flooded"][1:] > 0
    if not is_flooded.any():
        return math.nan
    # The first entry is the state before training.
    settled = int(is_flooded.argmax()) + 1 + SETTLED
    epochs = np.flatnonzero(np.isfinite(curve))
    epochs = epochs[epochs >= settled]
    if len(epochs) < 2:
        return math.nan
    first, last = np.maximum(curve[epochs[[0, -1]]], 1e-12)
    return float(np.log10(first) - np.log10(last))


def _rise(pairs: PairedRecords) -> Outcome:
    """Compare the rise of the loss one step to either side, plain minus flooded."""
    plain = list(map(_rise_of, pairs.plain))
    flooded = list(map(_rise_of, pairs.flooded))
    note = f"{format_mean_sd(plain, 2)} without, {format_mean_sd(flooded, 2)} with"
    return list(np.subtract(plain, flooded)), note


def _rise_of(record: Record) -> float:
    """Give the rise of one training: the mean of both ends minus the middle."""
    metrics = record.metrics
    left, right = metrics[LINE[0]], metrics[LINE[-1]]
    middle = metrics[LINE[len(STEPS) // 2]]
    return (left + right) / 2 - middle


def _late_losses(pairs: PairedRecords) -> list[np.ndarray]:
    """Training losses of the second half, over the level."""
    losses = []
    for record in pairs.flooded:
        curve = record.curves["train_loss"][1:].astype(float)
        losses.append(curve[len(curve) // 2 :] / pairs.level)
    return losses


def _range_note(losses: Sequence[np.ndarray]) -> str:
    lowest, highest = min(map(np.min, losses)), max(map(np.max, losses))
    return f"losses of the second half from {lowest:.2f} to {highest:.2f} times the level"


def _mean_loss(pairs: PairedRecords) -> Outcome:
    """Say how much of a tenth of the level the mean loss leaves to spare."""
    losses = _late_losses(pairs)
    spare = [0.1 - abs(loss.mean() - 1) for loss in losses]
    return _finite(spare), _range_note(losses)


def _band(pairs: PairedRecords) -> Outcome:
    """Count the epochs within a tenth of the level, in percent above one half."""
    losses = _late_losses(pairs)
    percent = []
    for loss in losses:
        is_near = abs(loss - 1) <= 0.1
        percent.append(100 * float(np.mean(is_near)))
    return list(np.subtract(percent, 50.0)), _range_note(losses)


def _movement(pairs: PairedRecords) -> Outcome:
    plain, flooded = metric_values(pairs.plain, "moved"), metric_values(pairs.flooded, "moved")
    return list(np.subtract(flooded, plain)), _medians(pairs, "moved")


def _random_walk(pairs: PairedRecords) -> Outcome:
    """Say how much of one half the exponent's distance from 1 leaves to spare."""
    exponents = list(map(_exponent, pairs.flooded))
    plain = list(map(_exponent, pairs.plain))
    note = f"exponents {format_mean_sd(exponents, 2)}, without flooding {format_mean_sd(plain, 2)}"
    spare = [0.5 - abs(exponent - 1) for exponent in exponents]
    return _finite(spare), note


def _exponent(record: Record) -> float:
    """Fit how the squared distance from half-way grows with the epochs; 1 is a random walk."""
    moved = record.curves["moved"].astype(float)
    half = (len(moved) - 1) // 2
    epochs = np.flatnonzero(np.isfinite(moved))
    epochs = epochs[epochs > half]
    squares = np.maximum(moved[epochs], 1e-12) ** 2
    return float(np.polyfit(np.log(epochs - half), np.log(squares), 1)[0])


def _memory(pairs: PairedRecords) -> Outcome:
    flooded = metric_values(pairs.flooded, "memorised", 100.0)
    plain = format_mean_sd(metric_values(pairs.plain, "memorised", 100.0))
    return _finite(np.subtract(flooded, 50.0)), f"without flooding {plain} %"


def _growing_confidence(pairs: PairedRecords) -> Outcome:
    """Compare over-confidence at the end with the first one measured at zero training error."""
    growth = []
    for record in pairs.plain:
        curve = record.curves["val_over_confidence"].astype(float)
        # A training that never fits all labels says nothing about what comes after.
        is_fitted = record.curves["train_accuracy"][1:] >= 1 - 1e-6
        if is_fitted.any():
            first = is_fitted.argmax() + 1
            confidences = curve[first:][np.isfinite(curve[first:])]
            growth.append(float(curve[-1] - confidences[0]))
    growth = _finite(growth)
    return growth, f"{len(growth)} of {len(pairs.plain)} fitted all labels"


_DECADES = "decades, without minus with flooding"
_FALL = "decades, early minus last"
_DRIFT = "At the level the weights drift to flatter places"
_FLATTER = "Flooding ends flatter"
_BAND = "Flooding holds the training loss in a band: most epochs of the second half within 10 % of"
# Of how the squared distance grows with the epochs.
RANDOM_WALK = Explanation(
    "At the level the weights walk at random (exponent within 0.5 of 1)", "to spare", _random_walk
)
# From shortly after flooding starts to the end.
GRADIENT_DRIFT = Explanation(
    f"{_DRIFT}: the gradient norm falls", _FALL, partial(_drift, name="gradient_norm")
)
# Each explanation of the paper as statements that could fail.
EXPLANATIONS = [
    Explanation(
        f"{_FLATTER} (largest Hessian eigenvalue)",
        _DECADES,
        partial(_curvature, name="sharpness"),
    ),
    Explanation(
        f"{_FLATTER} (trace of the Hessian)",
        _DECADES,
        partial(_curvature, name="trace"),
    ),
    Explanation(
        f"{_FLATTER} (rise of the loss a filter's length away)",
        "nats, without minus with flooding",
        _rise,
    ),
    Explanation(
        "Flooding holds the training loss within 10 % of the level (mean of the second half)",
        "of the level to spare",
        _mean_loss,
        "all",
    ),
    Explanation(f"{_BAND} the level", "% above one half", _band, "all"),
    Explanation(
        "Flooded weights move on: farther in the second half than plain ones",
        "in weights",
        _movement,
    ),
    RANDOM_WALK,
    Explanation(
        f"{_DRIFT}: the largest Hessian eigenvalue falls",
        _FALL,
        partial(_drift, name="sharpness"),
    ),
    GRADIENT_DRIFT,
    Explanation(
        "Flooding still memorises: most flipped labels are fitted", "% above one half", _memory
    ),
    Explanation(
        "Without flooding over-confidence grows from zero training error on",
        "of confidence",
        _growing_confidence,
        "plain",
    ),
]


def explanation_claims(explanation: Explanation, results: Sequence[PairedRecords]) -> list[Claim]:
    """Test an explanation on every task where two seeds can be compared."""
    # Plain training of a task comes with each of its levels, and counts once.
    if explanation.seeds == "plain":
        by_task = {pairs.title.partition(" at ")[0]: pairs for pairs in reversed(results)}
        results = list(by_task.values())
    tests = []
    for pairs in results:
        reached = select_reached(pairs)
        if explanation.seeds != "plain" and len(reached.flooded) < 2:
            continue
        if explanation.seeds == "reached":
            pairs = reached
        differences, note = explanation.test(pairs)
        # Fewer than two seeds have no spread.
        if len(differences) < 2:
            continue
        difference = stats.paired(differences, [0.0] * len(differences))
        digits = 2 if abs(difference.mean) >= 0.01 else 4
        text, detail = f"{explanation.text}. {pairs.title}", f"; {note}"
        claim = Claim(text, difference, explanation.unit, digits=digits, detail=detail)
        tests.append(claim)
    return tests
