"""What decided between the levels, drawn over the marks of the Runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flooding.level_search.decision_text import unit_of
from flooding.level_search.plot_data import Measure, is_plain, level_positions
from flooding.level_search.result import SearchResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_decision", "judged_measures"]


def judged_measures(result: SearchResult, measures: list[Measure]) -> list[Measure]:
    """Average each measure over the epochs by which the strategy judged.

    Args:
        result: The result of a search.
        measures: Measures.

    Returns:
        The measures; unchanged where the strategy compared no levels.
    """
    if result.decision is None:
        return measures
    epochs = result.decision.tail_epochs
    return [measure._replace(tail_epochs=epochs) for measure in measures]


def draw_decision(axes: Axes, result: SearchResult, measure: Measure, *, decides: bool) -> None:
    """Draw each level's mean with its neighbours, and the range that is as good as the best.

    Args:
        axes: Where to draw.
        result: The result of a search; nothing is drawn where levels were compared alone.
        measure: What the axes show.
        decides: Whether this is the measure that decided.
    """
    decision = result.decision
    if decision is None or not decision.is_smoothed:
        return
    unit, records = unit_of(measure, result), result.records
    places = dict.fromkeys((c.level for c in decision.candidates), None)
    for record, position in zip(records, level_positions(records), strict=True):
        level = None if is_plain(record) else position
        if level in places and position is not None:
            places[level] = position
    points = []
    for candidate in decision.candidates:
        position = places[candidate.level]
        if position is not None:
            points.append((position, unit.compared(candidate)))
    label = "mean with its neighbours, which decides"
    style = {"color": "black", "marker": "D", "ms": 5, "lw": 1.2, "zorder": 4}
    axes.plot(*zip(*points, strict=True), **style, label=label if decides else "_")
    if decides and decision.standard_error:
        top = unit.compared(decision.selected)
        low = top - unit.scale * decision.standard_error
        label = "as good: within one standard error"
        axes.axhspan(low, top, color="0.5", alpha=0.15, lw=0, zorder=0, label=label)
