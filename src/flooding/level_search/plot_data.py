"""What the figure of a search shows: measures, positions on the level axis, and mark heights.

A Run is shown by the mean of the epochs that the strategy judged it by, or of its last quarter,
which reduces the noise of a small validation split. Plain Runs have level None, or a level 0 that
flooded no step; a level 0 that flooded some is a level as any other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from flooding.level_search.level_stats import reached_level
from flooding.level_search.protocol import SearchableProblem
from flooding.level_search.result import SearchResult
from flooding.training.problem import Problem
from flooding.training.record import AVERAGE, Record, monitor_prefix
from flooding.training.run import Run

__all__ = [
    "DIVERGED",
    "Measure",
    "curve_values",
    "diverged_records",
    "has_curve",
    "has_moving_level",
    "is_in_nats",
    "is_plain",
    "is_selected",
    "level_axis",
    "level_position",
    "level_positions",
    "longest_plain",
    "mark_values",
    "measures_of",
    "num_epochs",
    "run_of",
    "running_mean",
    "tail_value",
    "with_curves",
]

DIVERGED = 100.0
"""A loss this many times the median would hide all others."""

_TAIL = 0.25  # share of a Run's epochs, its last, that are averaged
_CROSS_ENTROPIES = (
    "cross_entropy",
    "CrossEntropyLoss",
    "nll_loss",
    "NLLLoss",
    "binary_cross_entropy",
    "BCELoss",
    "binary_cross_entropy_with_logits",
    "BCEWithLogitsLoss",
)


class Measure(NamedTuple):
    """A quantity to draw.

    Args:
        name: Its name in a Record.
        label: The label of its axis.
        scale: Factor from the Record's unit to the label's.
        tail_epochs: Number of epochs, the last of a Run, that are averaged; None is a quarter.
    """

    name: str
    label: str
    scale: float = 1.0
    tail_epochs: int | None = None

    @property
    def is_loss(self) -> bool:
        """Whether it is a loss: then the axis may be logarithmic, and outliers are hidden."""
        return self.name.endswith("loss")

    @property
    def metric(self) -> str:
        """Name of its value at the last epoch."""
        name = self.name.removeprefix(AVERAGE)
        return f"{AVERAGE}last.{name}" if name != self.name else f"last.{name}"


def is_in_nats(problem: SearchableProblem) -> bool:
    """Tell whether the loss is a cross-entropy; the unit of a loss of the user's is unknown.

    Args:
        problem: The problem.

    Returns:
        Whether levels are in nats.
    """
    if not isinstance(problem, Problem):
        return False
    loss = problem.reported
    while isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__) in _CROSS_ENTROPIES


def measures_of(records: Sequence[Record], problem: SearchableProblem) -> list[Measure]:
    """List what can be drawn.

    Args:
        records: The Records.
        problem: Their problem.

    Returns:
        The training loss, then what there is on the validation split, the score before the loss.
    """
    unit = " (nats per example)" if is_in_nats(problem) else ""
    measures = [Measure("train_loss", f"Training loss{unit}")]
    # The validation results by which the search judges.
    prefix = monitor_prefix(problem)
    network = " of the averaged weights" if prefix else ""
    if problem.score is not None:
        better = "higher" if problem.score.greater_is_better else "lower"
        label = f"Validation score{network} ({better} is better)"
        measures.append(Measure(f"{prefix}val_score", label))
    elif any("last.val_accuracy" in record.metrics for record in records):
        label = f"Validation accuracy{network} (%)"
        measures.append(Measure(f"{prefix}val_accuracy", label, 100.0))
    if not all(_loss_stands_for_score(record) for record in records):
        measures.append(Measure(f"{prefix}val_loss", f"Validation loss{network}{unit}"))
    return measures


def _loss_stands_for_score(record: Record) -> bool:
    """Tell whether the validation loss is missing, or only the score with the other sign."""
    loss, score = (record.metrics.get(f"last.{name}") for name in ("val_loss", "val_score"))
    if loss is None:
        return True
    return score is not None and (abs(loss) == abs(score) or math.isnan(loss))


def run_of(record: Record) -> Run:
    """Give the Run of a Record that has one.

    Args:
        record: A Record of a search.

    Returns:
        Its Run.
    """
    assert record.run is not None
    return record.run


def num_epochs(record: Record) -> int:
    """Give the length of a Run.

    Args:
        record: Its Record.

    Returns:
        Epochs.
    """
    return run_of(record).epochs


def level_position(record: Record) -> float | None:
    """Find the position of a Record on the level axis.

    Args:
        record: A Record.

    Returns:
        The level if it is one number; None for controllers and levels of examples.
    """
    level = run_of(record).level
    if isinstance(level, Tensor):
        return float(level)
    return level if isinstance(level, float) else None


def level_positions(records: Sequence[Record]) -> list[float | None]:
    """Find the positions of all Records, with plain ones at 0, unless that is far from the levels.

    Args:
        records: The Records.

    Returns:
        Positions, None where a Record has none.
    """
    levels = []
    for record in records:
        position = level_position(record)
        if position is not None and not is_plain(record):
            levels.append(position)
    zero_is_near = False
    if levels and min(levels) > 0:
        zero_is_near = len(set(levels)) == 1 or min(levels) <= 0.8 * max(levels)
    positions = []
    for record in records:
        at_zero = zero_is_near and is_plain(record)
        positions.append(0.0 if at_zero else level_position(record))
    return positions


def is_plain(record: Record) -> bool:
    """Tell whether a Record is one of plain training.

    Args:
        record: A Record.

    Returns:
        Whether its level is None, or a 0 that flooded no step.
    """
    if run_of(record).level is None:
        return True
    return level_position(record) == 0 and not reached_level(record)


def has_moving_level(record: Record) -> bool:
    """Tell whether a Record's level is a controller, or one of examples.

    Args:
        record: A Record.

    Returns:
        Whether it is flooded at no single number.
    """
    return level_position(record) is None and not is_plain(record)


def is_selected(record: Record, result: SearchResult) -> bool:
    """Tell whether a Record belongs to the selected level.

    Args:
        record: A Record of the search.
        result: The result.

    Returns:
        Whether its level is the selected one.
    """
    if result.run.level is None:
        return is_plain(record)
    return repr(run_of(record).level) == repr(result.run.level)


def longest_plain(records: Sequence[Record], diverged: Sequence[bool]) -> dict[int, Record]:
    """Find the longest plain Record of each seed that did not diverge.

    Args:
        records: The Records.
        diverged: Which of them diverged.

    Returns:
        Records by seed.
    """
    plain = []
    for record, is_diverged in zip(records, diverged, strict=True):
        if is_plain(record) and not is_diverged:
            plain.append(record)
    return {run_of(record).seed: record for record in sorted(plain, key=num_epochs)}


def has_curve(record: Record, measure: Measure) -> bool:
    """Tell whether a Record has a curve of a measure.

    Args:
        record: A Record.
        measure: A measure.

    Returns:
        Whether there is one, of two values or more.
    """
    return len(record.curves.get(measure.name, ())) > 1


def with_curves(records: Sequence[Record], measures: Sequence[Measure]) -> list[Measure]:
    """Select the measures of which there are curves.

    Args:
        records: The Records.
        measures: Measures.

    Returns:
        Those of which a Record has a curve.
    """
    return [
        measure for measure in measures if any(has_curve(record, measure) for record in records)
    ]


def curve_values(record: Record, measure: Measure) -> np.ndarray:
    """Give a curve in the unit that is drawn.

    Args:
        record: A Record with the curve.
        measure: Its measure.

    Returns:
        Values by epoch, NaN where they are not finite.
    """
    curve = measure.scale * record.curves[measure.name].astype(np.float64)
    return np.where(np.isfinite(curve), curve, np.nan)


def tail_value(record: Record, measure: Measure, stop_epoch: int | None = None) -> float:
    """Average the last epochs of a Record: those of the measure, or a quarter.

    Args:
        record: A Record.
        measure: What to average.
        stop_epoch: Take the Record as it was after this epoch; None is its end.

    Returns:
        The mean; without a curve, the last value.
    """
    if not has_curve(record, measure):
        return measure.scale * record.metrics.get(measure.metric, math.nan)
    curve = curve_values(record, measure)
    if stop_epoch is not None:
        curve = curve[: stop_epoch + 1]
    epochs = measure.tail_epochs or max(1, round(_TAIL * (len(curve) - 1)))
    return float(curve[-epochs:].mean())


def diverged_records(records: Sequence[Record], measures: Sequence[Measure]) -> list[bool]:
    """Tell which Records diverged.

    Args:
        records: The Records.
        measures: Validation score and loss.

    Returns:
        For each Record, whether a measure is not finite, or a loss is far above the median.
    """
    diverged = np.zeros(len(records), bool)
    for measure in measures:
        values = np.array([tail_value(record, measure) for record in records])
        diverged |= ~np.isfinite(values)
        sizes = np.abs(values[~diverged & (values != 0)])
        if measure.is_loss and len(sizes):
            diverged |= values > DIVERGED * np.median(sizes)
    return diverged.tolist()


def running_mean(curve: np.ndarray, window: int) -> np.ndarray:
    """Average each epoch with those around it, fewer at the ends; NaN stays where it is.

    Args:
        curve: Values by epoch.
        window: Number of epochs, odd.

    Returns:
        Means by epoch.
    """
    is_known = np.isfinite(curve)
    ones = np.ones(window)
    sums = np.convolve(np.where(is_known, curve, 0.0), ones, "full")
    counts = np.convolve(is_known, ones, "full")
    centre = slice(window // 2, window // 2 + len(curve))
    return np.where(is_known, sums[centre] / np.maximum(counts[centre], 1), np.nan)


def level_axis(result: SearchResult) -> tuple[float, float]:
    """Find the ends of the level axis: what was tried, and the estimates that are not far from it.

    Args:
        result: The result of a search.

    Returns:
        The lower and the upper end.
    """
    estimates = []
    for estimate in result.estimates:
        for value in (estimate.level, estimate.low, estimate.high):
            if value is not None and math.isfinite(value):
                estimates.append(value)
    tried = [position for position in level_positions(result.records) if position is not None]
    if result.level is not None:
        tried.append(result.level)
    # One level has no width: the estimates then give the axis, and without any, 0 to 1.
    if not tried or max(tried) - min(tried) <= 1e-6 * max(map(abs, tried)):
        tried = [*tried, *estimates] or [0.0, 1.0]
    low, high = min(tried), max(tried)
    reach = high - low or abs(high) or 1.0
    near = [value for value in estimates if low - reach <= value <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    pad = 0.06 * (high - low or reach)
    return low - pad, high + pad


def mark_values(
    records: Sequence[Record], measure: Measure, diverged: Sequence[bool]
) -> dict[tuple[int, float], list[float]]:
    """Give the values of all seeds by length and position.

    Plain training is drawn at the lengths of the others alone: as it was after so many epochs.

    Args:
        records: The Records.
        measure: What is drawn.
        diverged: Which Records diverged; their values are NaN.

    Returns:
        Values by epochs and position on the level axis.
    """
    values: dict[tuple[int, float], dict[int, float]] = {}  # by length and position, then by seed
    positioned = []
    for record, position, is_diverged in zip(
        records, level_positions(records), diverged, strict=True
    ):
        if position is not None:
            positioned.append((record, position, is_diverged))
    lengths = {num_epochs(record) for record, _, _ in positioned if not is_plain(record)}
    for record, position, is_diverged in positioned:
        if num_epochs(record) in lengths:
            value = math.nan if is_diverged else tail_value(record, measure)
            mark = (num_epochs(record), position or 0.0)
            values.setdefault(mark, {})[run_of(record).seed] = value
    # Plain training that was longer than the race is cut to the length of the race.
    if any(is_plain(record) for record, _, _ in positioned):
        for seed, record in longest_plain(records, diverged).items():
            for length in lengths:
                if has_curve(record, measure) and length < num_epochs(record):
                    value = tail_value(record, measure, length)
                    values.setdefault((length, 0.0), {}).setdefault(seed, value)
    return {mark: list(by_seed.values()) for mark, by_seed in sorted(values.items())}
