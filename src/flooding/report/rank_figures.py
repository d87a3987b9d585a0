"""Figures of mean ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flooding.report.figures import PALETTE, new_figure
from flooding.report.stats import critical_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["equal_groups", "mean_ranks"]


def mean_ranks(ranks: Mapping[str, float], problems: int) -> Figure:
    """Draw mean ranks on a line, and bars over methods that do not differ (Nemenyi).

    Args:
        ranks: Mean rank of each method, 1 is best.
        problems: Number of problems.

    Returns:
        The figure.
    """
    methods = sorted(ranks, key=lambda method: ranks[method])
    distance = critical_difference(len(methods), problems)
    with new_figure(0.32 * len(methods) + 1.2) as figure:
        axes = figure.subplots()
        for index, method in enumerate(methods):
            colour = PALETTE["plain"]
            if method == "plain":
                colour = "black"
            elif method.startswith(("flooding", "auto level")):
                colour = PALETTE["flooded"]
            rank, text = ranks[method], f"{method}  {ranks[method]:.1f}"
            axes.plot([rank], [index], "o", color=colour)
            offset = {"xytext": (8, 0), "textcoords": "offset points"}
            axes.annotate(text, (rank, index), va="center", **offset)
        # Bars above the line join methods that do not differ.
        groups = equal_groups([ranks[method] for method in methods], distance)
        for index, group in enumerate(groups):
            height = -0.6 - 0.3 * index
            axes.plot(group, [height] * 2, color="0.4", lw=3, solid_capstyle="butt")
        label = f"(critical difference {distance:.1f}, {problems} problems)"
        axes.set(xlabel=f"mean rank by accuracy {label}")
        axes.set(xlim=(0.5, len(methods) + 0.5), yticks=[])
        axes.invert_yaxis()
        axes.spines[["left", "right", "top"]].set_visible(False)
    return figure


def equal_groups(ranks: Sequence[float], distance: float) -> list[tuple[float, float]]:
    """Find the largest stretches of ranks no wider than a distance, of two ranks or more.

    Args:
        ranks: Ranks, ascending.
        distance: The critical difference.

    Returns:
        First and last rank of each stretch.
    """
    groups: list[tuple[float, float]] = []
    for first in ranks:
        last = max(rank for rank in ranks if rank - first <= distance)
        is_new = not groups or groups[-1][1] != last
        if last > first and is_new:
            groups.append((first, last))
    return groups
