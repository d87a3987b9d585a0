"""Figures of curves over the epochs, a line for each flood level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flooding.report.figures import PALETTE, draw_band, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CurvePanel", "curves_by_level"]

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


class CurvePanel(NamedTuple):
    """The curves of one problem.

    Args:
        title: Title of the panel.
        curves: By level, 0 is plain training: values ``[seeds, epochs]``, NaN where not measured.
    """

    title: str
    curves: Mapping[float, np.ndarray]


def curves_by_level(
    panels: Sequence[CurvePanel], levels: Sequence[float], label: str, columns: int, log: bool
) -> Figure:
    """Draw the mean curve of each level with its band, a panel for each problem.

    Args:
        panels: The panels.
        levels: The levels of all panels, 0 first. A level looks the same in every panel.
        label: What the curves measure, and its unit.
        columns: Panels in a row, at most.
        log: Draw on a logarithmic axis.

    Returns:
        The figure.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with new_figure(1.5 + 2.6 * columns, 1.2 + 2.4 * rows) as figure:
        grid = figure.subplots(rows, columns, sharex="col", sharey="row", squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_levels(axes, panel, levels)
            axes.set_title(panel.title, fontsize=9.0)
        for axes in grid[-1]:
            axes.set_xlabel("Epoch")
        for row in grid:
            row[0].set_ylabel(label)
            if log:
                _set_log(row)
        legend_below(figure, grid.flat, 4)
    return figure


def _draw_levels(axes: Axes, panel: CurvePanel, levels: Sequence[float]) -> None:
    """Draw the curves of one panel."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(levels) - 1, 1)))
    colours = [PALETTE["plain"], *shades]
    for level, curves in panel.curves.items():
        index = levels.index(level)
        epochs = np.flatnonzero(np.isfinite(curves).all(0))
        label = f"level {level:g}" if level else "without flooding"
        look = {"color": colours[index], "ls": _DASHES[index % len(_DASHES)], "lw": 1.3}
        draw_band(axes, epochs, curves[:, epochs], alpha=0.15, label=label, **look)


def _set_log(panels: Sequence[Axes]) -> None:
    """Give panels that share their axis a logarithmic one, with plain numbers beside it."""
    from matplotlib.ticker import LogLocator

    panels[0].set_yscale("log")
    axis = panels[0].yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
    # A band may reach below 0, which such an axis cannot show.
    lowest = [np.min(line.get_ydata()) for axes in panels for line in axes.get_lines()]
    panels[0].set_ylim(bottom=0.8 * float(min(lowest)))
