"""Figures of results against the flood level, one point a level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flooding.report.figures import PALETTE, draw_band, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LevelCurve", "LevelPanel", "accuracy_and_nll", "accuracy_grid", "accuracy_with_nll"]


class LevelCurve(NamedTuple):
    """A metric at every level.

    Args:
        values: At the last epoch, ``[seeds, levels]``.
        stopped: That of plain training with early stopping, mean over seeds.
    """

    values: np.ndarray
    stopped: float


class LevelPanel(NamedTuple):
    """What the figures show of one problem.

    Args:
        title: Title of the panel.
        levels: Levels in nats.
        accuracy: Test accuracy in percent.
        nll: Test NLL in nats, where it is drawn.
        is_tested: Whether each level was reached and is a candidate; empty draws no marks.
        picked: Levels that validation picked, one a seed.
        ceiling: Best possible accuracy in percent.
    """

    title: str
    levels: Sequence[float]
    accuracy: LevelCurve
    nll: LevelCurve | None = None
    is_tested: Sequence[bool] = ()
    picked: Sequence[float] = ()
    ceiling: float | None = None


def accuracy_grid(panels: Sequence[LevelPanel], columns: int) -> Figure:
    """Draw accuracy against the level, with the best possible one and the picked levels.

    Args:
        panels: A multiple of ``columns``.
        columns: Panels in a row.

    Returns:
        The figure.
    """
    rows = len(panels) // columns
    with new_figure(2.2 * rows + 0.7) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey="row")
        for axes, panel in zip(grid.flat, panels, strict=True):
            # The levels of such a grid are evenly spaced: the axis is in nats.
            _draw_curve(axes, np.array(panel.levels), panel.accuracy)
            axes.axhline(panel.ceiling, color="0.6", ls=":", label="best possible")
            # A tick at the lower edge for each seed.
            height, across = np.full(len(panel.picked), 0.03), axes.get_xaxis_transform()
            axes.plot(panel.picked, height, "|", color="black", ms=9, transform=across)
            axes.set_title(panel.title.replace(", ", ",\n"))
        # In the middle: a label of the whole figure would lie under the legend.
        grid[-1, columns // 2].set_xlabel("Flood level (nats)")
        figure.supylabel("Clean test accuracy (%)", fontsize=11.0)
        legend_below(figure, grid.flat, 3)
    return figure


def accuracy_with_nll(panels: Sequence[LevelPanel]) -> Figure:
    """Draw accuracy beside NLL, a row for each problem; open marks are levels not tested.

    Args:
        panels: The problems.

    Returns:
        The figure.
    """
    with new_figure(2.3 * len(panels) + 0.9) as figure:
        grid = figure.subplots(len(panels), 2, squeeze=False)
        for (left, right), panel in zip(grid, panels, strict=True):
            # The levels are far from evenly spaced, so each takes one place.
            x = np.arange(len(panel.levels))
            for axes, curve in ((left, panel.accuracy), (right, panel.nll)):
                assert curve is not None
                _draw_curve(axes, x, curve, panel.is_tested)
                axes.set_xticks(x, [f"{level:g}" for level in panel.levels])
            left.set_title(panel.title, loc="left")
            left.set_ylabel("Test accuracy (%)")
            right.set_ylabel("Test NLL (nats)")
        for axes in grid[-1]:
            axes.set_xlabel("Flood level (nats)")
        legend_below(figure, grid.flat, 2)
    return figure


def accuracy_and_nll(
    panel: LevelPanel, irreducible_loss: float, advised: tuple[float, float]
) -> Figure:
    """Draw accuracy beside NLL, with the irreducible loss and the advised levels.

    Args:
        panel: The problem.
        irreducible_loss: In nats.
        advised: Lowest and highest advised level, in nats.

    Returns:
        The figure.
    """
    with new_figure(3.6) as figure:
        grid = figure.subplots(1, 2)
        labels = ("Test accuracy (%)", "Test NLL (nats)")
        for axes, curve, label in zip(grid, (panel.accuracy, panel.nll), labels, strict=True):
            assert curve is not None
            # What is known beforehand lies behind what was measured.
            axes.axvspan(*advised, color="0.92", label="0.25 to 1 x lowest validation loss")
            axes.axvline(irreducible_loss, color="0.3", lw=1, label="irreducible loss")
            _draw_curve(axes, np.array(panel.levels), curve, marker="o")
            axes.set(xlabel="Flood level (nats)", ylabel=label)
            axes.set_xlim(-0.02, 1.02 * panel.levels[-1])
        legend_below(figure, grid)
    return figure


def _draw_curve(
    axes: Axes,
    x: np.ndarray,
    curve: LevelCurve,
    is_tested: Sequence[bool] = (),
    marker: str = "None",
) -> None:
    """Draw a metric at the last epoch, and that of plain training with early stopping."""
    blue = PALETTE["flooded"]
    draw_band(axes, x, curve.values, color=blue, label="last epoch", marker=marker)
    # Marks: open where the level was never reached, or lies above the cap.
    means = curve.values.mean(0)
    for index, is_full in enumerate(is_tested):
        face = blue if is_full else "white"
        axes.plot([x[index]], [means[index]], "o", color=blue, mfc=face, ms=5)
    axes.axhline(curve.stopped, color=PALETTE["plain"], ls="--", label="plain, early stopping")
