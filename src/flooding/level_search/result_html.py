"""What a notebook shows of the result of a search: a table, and the picture in the page itself."""

from __future__ import annotations

import base64
from html import escape

from torch import Tensor

from flooding.level_search.result import Cost, SearchResult
from flooding.report.stats import pluralize
from flooding.text import brief, format_duration, one_line

__all__ = ["result_html"]

_DPI = 100
# No colours: text and lines are those of the page, light or dark. The picture is drawn for white.
_CELL = 'style="text-align:left;vertical-align:top"'
_PICTURE = 'style="max-width:100%;background:white"'


def result_html(result: SearchResult) -> str:
    """Write a result as HTML: its level, what selected it, its cost, its warnings and the picture.

    Nothing of matplotlib's global state is read or changed. Without matplotlib the picture is one
    line that says how to install it.

    Args:
        result: The result of a search.

    Returns:
        HTML without scripts and links, in which every name is escaped.
    """
    rows = {
        "Flood level": f"<b>{_escape(_level_text(result))}</b>",
        "Selected by": _escape(_selection_text(result)),
        "Cost": _escape(_cost_text(result.cost)),
    }
    if result.warnings:
        rows["Warnings"] = "<br>".join(_escape(warning) for warning in result.warnings)
    lines = []
    for name, cell in rows.items():
        lines.append(f"<tr><th {_CELL}>{name}</th><td {_CELL}>{cell}</td></tr>")
    return f"<div><table>{''.join(lines)}</table>{_picture(result)}</div>"


def _escape(text: str) -> str:
    return escape(one_line(text))


def _level_text(result: SearchResult) -> str:
    if result.run.level is None:
        return "none: train without flooding"
    number = "unknown" if result.level is None else f"{result.level:.4g}"
    if isinstance(result.run.level, (float, Tensor)):
        return number
    return f"{number}, moved by {brief(result.run.level)}"


def _selection_text(result: SearchResult) -> str:
    """Name the strategy, and its own estimate with the interval."""
    if not result.estimates:
        return result.strategy
    estimate = result.estimates[0]
    # An estimate may have no number, but always an interval.
    text = f"{estimate.name}, from {estimate.low:.3g} to {estimate.high:.3g}"
    if estimate.name != result.strategy:
        text = f"{result.strategy}: {text}"
    return f"{text} ({estimate.note})" if estimate.note else text


def _cost_text(cost: Cost) -> str:
    return (
        f"{cost.steps:.2f} trainings' steps, {pluralize(cost.epochs, 'epoch')}, "
        f"{format_duration(3600 * cost.hours)} of training"
    )


def _picture(result: SearchResult) -> str:
    """Draw the figure into the page."""
    from flooding.report.figures import to_png

    try:
        png = to_png(result.plot(), _DPI)
    except ImportError as error:  # matplotlib is an extra, and the message says how to get it
        return f"<p>{_escape(str(error))}</p>"
    text = f"Validation results of each level, and curves. {_level_text(result)}"
    data = base64.b64encode(png).decode()
    return f'<img alt="{_escape(text)}" {_PICTURE} src="data:image/png;base64,{data}">'
