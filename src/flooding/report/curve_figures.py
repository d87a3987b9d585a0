"""Figures of curves over the epochs, for each flood level or without and with flooding."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flooding.report.figures import PALETTE, draw_band, legend_below, new_figure
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CurvePanel",
    "LevelledPanel",
    "PairedRecords",
    "curves_beside_level",
    "curves_by_level",
    "lines_in_pairs",
    "paired_curves",
]

_TITLE = 54  # characters of titles in a row of panels
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
    with new_figure(0.9 + 2.3 * rows) as figure:
        grid = figure.subplots(rows, columns, sharex="col", sharey="row", squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_levels(axes, panel, levels)
            axes.set_title(_wrap(panel.title, columns))
        for axes in grid[-1]:
            axes.set_xlabel("Epoch")
        for row in grid:
            row[0].set_ylabel(label)
            if log:
                _set_log(row)
        legend_below(figure, grid.flat, 3)
    return figure


def _wrap(title: str, columns: int) -> str:
    """Break a title so that it fits above its panel; a number stays with its word."""
    bound = title.replace(" %", "\N{NO-BREAK SPACE}%").replace(" at ", " at\N{NO-BREAK SPACE}")
    return textwrap.fill(bound, _TITLE // columns)


def _draw_levels(axes: Axes, panel: CurvePanel, levels: Sequence[float]) -> None:
    """Draw the curves of one panel."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(levels) - 1, 1)))
    colours = [PALETTE["plain"], *shades]
    for level, curves in panel.curves.items():
        # Colour and dashes go by the level, so that it looks the same in every panel.
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
    lowest = []
    for axes in panels:
        lowest += [np.min(line.get_ydata()) for line in axes.get_lines()]
    panels[0].set_ylim(bottom=0.8 * float(min(lowest)))


class LevelledPanel(NamedTuple):
    """Losses of several methods, and the level that they are to be held at.

    Args:
        title: Title of the panel.
        level: The level in nats.
        curves: Losses by method, ``[seeds, epochs]``.
    """

    title: str
    level: float
    curves: Mapping[str, np.ndarray]


def curves_beside_level(panels: Sequence[LevelledPanel], near: float, label: str) -> Figure:
    """Draw mean losses with their bands, a panel for each problem, and what is near the level.

    Args:
        panels: The panels, with the same methods.
        near: What is near the level, as a share of it.
        label: Label of the axis.

    Returns:
        The figure.
    """
    with new_figure(3.6) as figure:
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            axes.axhspan(
                (1 - near) * panel.level, (1 + near) * panel.level, color="0.8", lw=0, zorder=0
            )
            for index, (method, losses) in enumerate(panel.curves.items()):
                epochs = np.arange(1, losses.shape[1] + 1)
                look = {"color": list(PALETTE.values())[index], "ls": _DASHES[index], "lw": 1.3}
                draw_band(axes, epochs, losses, alpha=0.15, log=True, label=method, **look)
            axes.set_title(_wrap(panel.title, len(panels)))
        _set_log(row)
        # What falls far below the levels would press them together.
        row[0].set_ylim(0.2 * min(panel.level for panel in panels), 1.0)
        row[0].set_ylabel(label)
        # In the middle: a label of the whole figure would lie under the legend.
        row[len(row) // 2].set_xlabel("Epoch")
        legend_below(figure, row, 2)
    return figure


class PairedRecords(NamedTuple):
    """The Records of one problem without flooding and with it, a pair for each seed.

    Args:
        title: Its name for a reader.
        level: Flood level in nats.
        plain: Records without flooding.
        flooded: Records with flooding.
    """

    title: str
    level: float
    plain: Sequence[Record]
    flooded: Sequence[Record]

    @property
    def groups(self) -> list[tuple[str, str, Sequence[Record]]]:
        """Label, colour and Records of both groups."""
        plain = ("without flooding", PALETTE["plain"], self.plain)
        return [plain, ("with flooding", PALETTE["flooded"], self.flooded)]


def paired_curves(
    columns: Sequence[PairedRecords], labels: Mapping[str, str], logarithmic: Collection[str]
) -> Figure:
    """Draw curves without and with flooding, a column for each problem.

    Args:
        columns: The problems.
        labels: Labels of the axes by the names of the curves, which are the rows.
        logarithmic: Curves with a logarithmic axis.

    Returns:
        The figure.
    """
    with new_figure(1.8 * len(labels) + 0.6) as figure:
        grid = figure.subplots(len(labels), len(columns), sharex=True, sharey="row", squeeze=False)
        for panels, records in zip(grid.T, columns, strict=True):
            for axes, name in zip(panels, labels, strict=True):
                _draw_pair(axes, records, name, name in logarithmic)
            panels[0].set_title(_wrap(records.title, len(columns)))
            panels[-1].set_xlabel("Epoch")
        for axes, label in zip(grid[:, 0], labels.values(), strict=True):
            axes.set_ylabel(textwrap.fill(label, 12))
        legend_below(figure, grid.flat, 2)
    return figure


def _draw_pair(axes: Axes, pairs: PairedRecords, name: str, log: bool) -> None:
    """Draw one curve without and with flooding, where all seeds measured it."""
    for label, colour, records in pairs.groups:
        curves = np.array([record.curves[name].astype(float) for record in records])
        epochs = np.flatnonzero(np.isfinite(curves).all(0))
        # The state before training would stretch a logarithmic axis.
        epochs = epochs[epochs > 0]
        draw_band(axes, epochs, curves[:, epochs], color=colour, log=log, label=label, lw=1.5)
    if log:
        axes.set_yscale("log")


def lines_in_pairs(
    columns: Sequence[PairedRecords], steps: Sequence[float], names: Sequence[str]
) -> Figure:
    """Draw the training loss along a direction, without and with flooding.

    Args:
        columns: The problems.
        steps: Steps along the direction.
        names: The metric of each step.

    Returns:
        The figure.
    """
    across = min(3, len(columns))
    rows = math.ceil(len(columns) / across)
    with new_figure(2.2 * rows + 0.9) as figure:
        grid = figure.subplots(rows, across, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)[: len(columns)]
        for axes in grid.flat[len(columns) :]:
            axes.set_axis_off()
        for axes, pairs in zip(panels, columns, strict=True):
            for label, colour, records in pairs.groups:
                values = np.empty((len(records), len(names)))
                for index, record in enumerate(records):
                    values[index] = [record.metrics[name] for name in names]
                draw_band(axes, np.array(steps), values, color=colour, label=label)
            axes.axhline(pairs.level, color="0.6", ls=":", label="level")
            axes.set_title(_wrap(pairs.title, across))
        # In the middle: a label of the whole figure would lie under the legend.
        grid[-1, across // 2].set_xlabel("Step along the direction")
        figure.supylabel("Training loss (nats)", fontsize=11.0)
        legend_below(figure, panels, 3)
    return figure
