"""Figures of single results: a row for each setting, a dot for each seed or problem."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flooding.report.figures import legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dot_rows"]

_MARKERS = "os^D"


def dot_rows(rows: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """Draw values on one axis, with 0 as a line.

    Args:
        rows: For each row its values by series; rows from the top down.
        label: What the values are, and their unit.

    Returns:
        The figure: the series of a row below each other, with a line at the mean of each.
    """
    series = list(dict.fromkeys(name for row in rows.values() for name in row))
    with new_figure(len(rows) * (0.4 + 0.2 * len(series)) + 1.2) as figure:
        axes = figure.subplots()
        for index, by_series in enumerate(rows.values()):
            for name, values in by_series.items():
                number = series.index(name)
                y = index + 0.25 * (number - (len(series) - 1) / 2)
                colour, label_once = f"C{number}", name if index == 0 else None
                heights = np.full(len(values), y)
                look = {"color": colour, "alpha": 0.5, "ms": 5, "label": label_once}
                axes.plot(values, heights, _MARKERS[number % len(_MARKERS)], **look)
                axes.plot([np.mean(values)] * 2, [y - 0.1, y + 0.1], color=colour, lw=2.5)
        axes.axvline(0, color="0.5", lw=1, zorder=0)
        axes.set_yticks(range(len(rows)), [textwrap.fill(name, 18) for name in rows])
        axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
        axes.spines[["right", "top"]].set_visible(False)
        if len(series) > 1:
            legend_below(figure, [axes], 2)
    return figure
