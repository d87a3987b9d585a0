"""The curve of validation against the level, from one training with the controller ``Auto``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flooding.level_search.plot_data import Measure, curve_values, running_mean, tail_value
from flooding.level_search.sweep import sweep_of
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_sweeps", "has_sweep", "sweep_points"]

_SMOOTHING = 0.04  # share of a Record's epochs over which a curve is averaged


def has_sweep(records: Sequence[Record]) -> bool:
    """Tell whether a Record shows validation at the levels of a sweep.

    Args:
        records: Records of a search.

    Returns:
        Whether one of them does.
    """
    return any(sweep_of(record) is not None for record in records)


def draw_sweeps(axes: Axes, records: Sequence[Record], measure: Measure, colour: str) -> None:
    """Draw what was measured at each level, as it fell, and at the level that was held.

    Args:
        axes: Where to draw.
        records: Records of a search; those without a sweep are left out.
        measure: What to draw.
        colour: Colour of the curve.
    """
    labels = ["each epoch of the sweep", "mean of its neighbours", "held level, its last quarter"]
    for record in records:
        points = sweep_points(record, measure)
        if points is None:
            continue
        levels, values, window = points
        axes.plot(levels, values, ".", color=colour, ms=3, alpha=0.3, label=labels[0])
        axes.plot(levels, running_mean(values, window), color=colour, lw=2, label=labels[1])
        level, value = record.metrics["last.level"], tail_value(record, measure)
        if math.isfinite(level) and math.isfinite(value):
            axes.plot([level], [value], "o", color=colour, ms=9, label=labels[2])
        # One name in the legend for all seeds.
        labels = ["_", "_", "_"]


def sweep_points(record: Record, measure: Measure) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Give what was measured at each level of a sweep, from its highest level on.

    Args:
        record: A Record of a search.
        measure: What was measured.

    Returns:
        Levels, values, and the number of epochs to average; None where there is no sweep.
    """
    sweep = sweep_of(record)
    if sweep is None:
        return None
    # Epoch t was trained at the level that the curve holds for it; epoch 1 had none.
    epochs = slice(1, sweep.epochs + 1)
    levels = np.asarray(record.curves["level"][epochs], np.float64)
    values = curve_values(record, measure)[epochs]
    is_known = np.isfinite(levels) & np.isfinite(values)
    levels, values = levels[is_known], values[is_known]
    if not len(levels):
        return None
    # The level first rises, while the validation loss falls far below that of a guess.
    top = int(levels.argmax())
    window = round(_SMOOTHING * len(record.curves["level"])) // 2 * 2 + 1
    return levels[top:], values[top:], window
