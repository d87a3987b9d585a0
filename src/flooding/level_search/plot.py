"""The figure of a search: the validation results of each level, and the curves of its Runs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flooding.level_search.decision_plot import draw_decision, judged_measures
from flooding.level_search.plot_data import (
    DIVERGED,
    Measure,
    curve_values,
    diverged_records,
    has_curve,
    has_moving_level,
    is_in_nats,
    is_plain,
    is_selected,
    level_axis,
    level_position,
    level_positions,
    longest_plain,
    mark_values,
    measures_of,
    num_epochs,
    run_of,
    running_mean,
    tail_value,
    with_curves,
)
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.level_search.sweep_plot import draw_sweeps, has_sweep
from flooding.report.figures import PALETTE, legend_entries, level_colours, new_figure
from flooding.report.stats import pluralize
from flooding.text import printable
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
__all__ = ["plot_search"]

_Colour: TypeAlias = str | tuple[float, float, float, float]

_ROW_HEIGHT = 0.4  # inches for an estimate
_PANEL_HEIGHT = 2.9  # inches
_TITLE = 68  # characters in a line
_PLAIN, _SELECTED, _DARK = "0.5", PALETTE["flooded"], "0.2"
_LIMITS = ("cap", "label entropy", "balanced classes")  # estimates that bound the level
_ARROW = {"arrowstyle": "-", "shrinkA": 0}


def plot_search(result: SearchResult) -> Figure:
    """Draw what a search measured, and what it selected.

    From the top: validation score and loss against the level; every estimate with its interval;
    training loss and validation score (or loss) against the epoch. Marks of Runs that were stopped
    early are hollow, and the smaller the shorter the Run. Plain training is a line at its longest.
    Among the marks it stands at level 0, if that is near, also as it was when others were stopped.

    A panel with nothing to show is left out: the score where only a loss was measured, the loss
    where it merely stands for the score, the panels by level where all levels are controllers,
    those by epoch where there are no curves. One training with the controller ``Auto`` shows
    validation at each level of its sweep instead of marks. A Run has no mark if its validation
    score or loss is not finite, or the loss is over 100 times the median; the title says how many
    there are.

    Args:
        result: The result of a search.

    Returns:
        The figure.

    Example:
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.testing import fake_record
        >>> from torch.nn import Linear
        >>> problem = Problem(two_gaussians, Linear(10, 2), max_epochs=20)
        >>> runs = [Run(problem, level) for level in (None, 0.1, 0.2)]
        >>> records = tuple(fake_record(run) for run in runs)
        >>> figure = plot_search(SearchResult("by hand", runs[1], records=records))
        >>> [axes.get_ylabel() for axes in figure.axes[:2]]
        ['Validation accuracy (%)', 'Validation loss (nats per example)']
    """
    records, problem = result.records, result.run.problem
    label = f"Flood level ({'nats' if is_in_nats(problem) else 'unit of the loss'})"
    train_loss, *measures = measures_of(records, problem)
    measures = judged_measures(result, measures)
    diverged = diverged_records(records, measures)

    # Which panels have something to show?
    by_level: list[Measure] = []
    is_swept = has_sweep(records)
    if is_swept or any(
        level_position(record) is not None and not is_plain(record) for record in records
    ):
        by_level = measures
    by_epoch = with_curves(records, [train_loss]) + with_curves(records, measures)[:1]
    # Below each other: results by level, the estimates on the same axis, curves, the legend.
    levels = [_level_panel(measure) for measure in by_level]
    rows = [*levels, "strip", *(_epoch_panel(measure) for measure in by_epoch), "key"]

    with new_figure(9.0) as figure:
        panels = figure.subplot_mosaic([[name] for name in rows])
        limits, colours = level_axis(result), _level_colours(records)
        for measure in by_level:
            name = _level_panel(measure)
            axes = panels[name]
            if is_swept:
                draw_sweeps(axes, records, measure, _SELECTED)
            else:
                _draw_levels(axes, records, measure, diverged, colours)
                draw_decision(axes, result, measure, decides=measure is measures[0])
            _draw_selection(axes, result, limits, with_text=name == rows[0])
            axes.set(xlabel=label, ylabel=measure.label, xlim=limits)
        for measure in by_epoch:
            _draw_curves(panels[_epoch_panel(measure)], result, measure, colours)
        if by_epoch and colours is not None:
            colour_axes = [panels[_epoch_panel(measure)] for measure in by_epoch]
            _draw_colour_bar(figure, colours, colour_axes, label, aspect=20 * len(by_epoch))
        title = None
        if by_level and by_epoch and not is_swept:
            title = f"By level: mean of each Run's {_tail_text(measures[0])}"
        num_names = _draw_legend(panels, title)
        strip = _ROW_HEIGHT * (len(result.estimates) + 0.6)
        heights = dict.fromkeys(rows, _PANEL_HEIGHT)
        heights |= {"strip": strip, "key": 0.4 + 0.24 * num_names}
        _set_heights(figure, panels["key"], list(heights.values()))
        _draw_estimates(panels["strip"], result.estimates, limits, "" if by_level else label)
        panels["strip"].set_ylim(strip / _ROW_HEIGHT - 1, -0.5)
        figure.suptitle(textwrap.fill(_title(result, sum(diverged)), _TITLE), fontsize=11)
    return figure


def _tail_text(measure: Measure) -> str:
    """Name the epochs that are averaged."""
    if measure.tail_epochs is None:
        return "last quarter"
    return f"last {pluralize(measure.tail_epochs, 'epoch')}"


def _level_panel(measure: Measure) -> str:
    return f"{measure.name} by level"


def _epoch_panel(measure: Measure) -> str:
    return f"{measure.name} by epoch"


def _title(result: SearchResult, num_diverged: int) -> str:
    if not result.records:
        return f"{_literal(result.strategy)}: no level was tried"
    level = "no flooding" if result.level is None else f"flood level {result.level:.3g}"
    runs = pluralize(len(result.records), "Run")
    price = f"{runs} for the price of {result.cost.steps:.1f} trainings"
    suffix = f"; {num_diverged} diverged" if num_diverged else ""
    return f"{_literal(result.strategy)}: {level} ({price}{suffix})"


def _literal(name: str) -> str:
    """Write a name so that a figure shows it as it is, and reads no formula in it."""
    return printable(name).replace("$", r"\$")


def _level_colours(records: Sequence[Record]) -> ScalarMappable | None:
    """Give each level its colour; None where nothing is flooded."""
    levels = []
    for record in records:
        if record.level is not None and not is_plain(record):
            levels.append(record.level)
    if not levels:
        return None
    if min(levels) == max(levels):  # a colour bar needs a range
        levels.append(0.0 if levels[0] else 1.0)
    return level_colours(min(levels), max(levels))


def _colour(record: Record, colours: ScalarMappable | None) -> _Colour:
    level = record.level
    # A controller that never began has no level.
    if colours is None or level is None or is_plain(record):
        return _PLAIN
    return colours.to_rgba(level)  # type: ignore[arg-type]


def _draw_colour_bar(
    figure: Figure, colours: ScalarMappable, panels: list[Axes], label: str, *, aspect: int
) -> None:
    from matplotlib.ticker import MaxNLocator

    # With as many ticks as fit, the layout would not settle.
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10])
    figure.colorbar(colours, ax=panels, label=label, ticks=ticks, aspect=aspect)


def _draw_legend(panels: dict[str, Axes], title: str | None) -> int:
    """Draw the legend of all panels in the panel "key" and count its names."""
    key = panels["key"]
    key.set_axis_off()
    handles, names = legend_entries([axes for name, axes in panels.items() if name != "key"])
    legend = key.legend(
        handles, names, loc="upper left", borderaxespad=0.0, title=title, alignment="left"
    )
    legend.set_in_layout(False)  # it may reach below the colour bar
    return len(names)


def _set_heights(figure: Figure, panel: Axes, heights: list[float]) -> None:
    """Set the heights of all rows, in inches."""
    figure.set_figheight(sum(heights) + 0.6)
    grid = panel.get_gridspec()
    assert grid is not None
    grid.set_height_ratios(heights)


def _draw_levels(
    axes: Axes,
    records: Sequence[Record],
    measure: Measure,
    diverged: Sequence[bool],
    colours: ScalarMappable | None,
) -> None:
    """Draw a mark for each Run, the means over seeds, and plain training as a line."""
    marks = mark_values(records, measure, diverged)
    max_epochs = run_of(records[0]).problem.max_epochs
    colour_at = {}
    for record, position in zip(records, level_positions(records), strict=True):
        if position is not None:
            colour_at[position] = _colour(record, colours)
    lengths = sorted({epochs for epochs, _ in marks})
    num_seeds = max(map(len, marks.values()))

    for (epochs, position), values in marks.items():
        colour, size = colour_at[position], max(8 * math.sqrt(epochs / lengths[-1]), 4.0)
        face = colour if epochs == max_epochs else "white"
        style = {"marker": "o", "ls": "", "color": colour, "mew": 1.5, "mfc": face}
        if num_seeds > 1:
            axes.plot([position] * len(values), values, **style, ms=0.6 * size, alpha=0.4)
        axes.plot([position], [np.mean(values)], **style, ms=size, zorder=3)
    # A line through the means of each length.
    for length in lengths:
        points = {}
        for (epochs, position), values in marks.items():
            if epochs == length:
                points[position] = np.mean(values)
        axes.plot(list(points), list(points.values()), color="0.8", lw=1, zorder=1)
    plain = list(longest_plain(records, diverged).values())
    if plain:
        value = float(np.mean([tail_value(record, measure) for record in plain]))
        label = f"plain training, {_length_text(map(num_epochs, plain), max_epochs)}"
        axes.axhline(value, color=_PLAIN, ls="--", lw=2, zorder=2, label=label)
    _explain_marks(axes, lengths, max_epochs, num_seeds)
    if measure.is_loss:
        heights = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
        _set_loss_scale(axes, np.concatenate(heights))


def _length_text(lengths: Iterable[int], max_epochs: int) -> str:
    """Describe how long Runs were."""
    lengths = sorted(lengths)
    if max_epochs == 1:  # an external training, whose epochs nobody counts
        return "in full"
    span = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
    return f"{span} epochs" if lengths[0] == max_epochs else f"{span} of {max_epochs} epochs"


def _explain_marks(axes: Axes, lengths: Sequence[int], max_epochs: int, num_seeds: int) -> None:
    """Add the marks to the legend, without a level's colour."""
    subject = f"mean of {num_seeds} seeds" if num_seeds > 1 else "Run"
    style = {"marker": "o", "ls": "", "color": _DARK, "mew": 1.5}
    if max_epochs in lengths:
        text = _length_text([max_epochs], max_epochs)
        axes.plot([], [], **style, ms=8, label=f"{subject}, {text}")
    shorter = [length for length in lengths if length < max_epochs]
    if shorter:
        text = _length_text(shorter, max_epochs)
        axes.plot([], [], **style, ms=8, mfc="white", label=f"{subject}, {text}")
    if len(lengths) > 1:
        axes.plot([], [], **style, ms=5, mfc="white", label="the smaller, the shorter")
    if num_seeds > 1:
        axes.plot([], [], **style, ms=5, alpha=0.4, label="one seed")


def _draw_selection(
    axes: Axes, result: SearchResult, limits: tuple[float, float], *, with_text: bool
) -> None:
    """Draw the selected level and the bounds as vertical lines, with a text above each if asked."""
    low, high = limits
    middle = (low + high) / 2
    selected = "chosen: no flooding" if result.level is None else f"chosen: {result.level:.3g}"
    flags = [(low if result.level is None else result.level, selected)]
    for estimate in result.estimates:
        level = estimate.level
        if estimate.name in _LIMITS and level is not None and math.isfinite(level):
            flags.append((level, f"{_literal(estimate.name)}: {level:.3g}"))
    # From the middle outwards and upwards, so that no text stands in the way of another's line.
    flags.sort(key=lambda flag: abs(flag[0] - middle))
    for row, (level, text) in enumerate(flags):
        is_selection = text == selected
        colour = _SELECTED if is_selection else _DARK
        is_inside, is_right = low < level < high, level > middle
        if is_inside:
            axes.axvline(level, color=colour, lw=2 if is_selection else 1, zorder=1.5)
        if not with_text:
            continue
        # A level off the axis has an arrow in its text in place of a line.
        axes.annotate(
            f"{text} →" if is_right and not is_inside else text,
            (min(max(level, low), high), 1.0),
            (0, 5 + 16 * row),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="right" if is_right else "left",
            color=colour,
            fontsize=10,
            fontweight="bold" if is_selection else "normal",
            arrowprops={
                **_ARROW,
                "color": colour,
                "lw": float(is_inside),
                "relpos": (float(is_right), 0.0),
            },
        )


def _draw_curves(
    axes: Axes, result: SearchResult, measure: Measure, colours: ScalarMappable | None
) -> None:
    """Draw a faint curve for each Run and its running mean; thick for the selected level."""
    records = [record for record in result.records if has_curve(record, measure)]
    curves = [curve_values(record, measure) for record in records]
    last = max(map(len, curves)) - 1
    window = last // 40 * 2 + 1
    # Dashes tell controllers from constant levels, where there are both.
    kinds = {has_moving_level(record) for record in records if not is_plain(record)}
    moving_style = "--" if len(kinds) > 1 else "-"
    faint_alpha, width = (0.15, 1.0) if len(records) > 12 else (0.3, 1.6)
    for record, curve in zip(records, curves, strict=True):
        colour, is_selection = _colour(record, colours), is_selected(record, result)
        axes.plot(curve, color=colour, lw=0.8, alpha=faint_alpha, zorder=1)
        axes.plot(
            running_mean(curve, window),
            color=colour,
            lw=3.0 if is_selection else width,
            ls=moving_style if has_moving_level(record) else "-",
            zorder=3 if is_selection else 2,
        )
    _explain_curves(axes, records, result, window, moving_style)
    axes.set(xlabel="Epoch", ylabel=measure.label, xlim=(0, last))
    if measure.is_loss:
        is_train_loss = measure.name == "train_loss"
        _set_loss_scale(axes, np.concatenate(curves), logarithmic=is_train_loss)
    positive_levels = [record.level for record in records if record.level and record.level > 0]
    _fit_limits(axes, curves, measure, min(positive_levels, default=0.0))


def _explain_curves(
    axes: Axes, records: Sequence[Record], result: SearchResult, window: int, moving_style: str
) -> None:
    """Add the kinds of curves that there are to the legend."""
    constant = [not is_plain(record) and not has_moving_level(record) for record in records]
    entries: list[tuple[str, bool, dict[str, Any]]] = [
        ("plain training", any(map(is_plain, records)), {"color": _PLAIN}),
        ("level, in its colour", any(constant), {}),
        (
            "level that moves, coloured by its last",
            any(map(has_moving_level, records)),
            {"ls": moving_style},
        ),
        ("the choice", any(is_selected(record, result) for record in records), {"lw": 3.0}),
        (f"faint: each epoch; lines: mean of {window}", window > 1, {"lw": 0.8, "alpha": 0.5}),
    ]
    for label, exists, style in entries:
        if exists:
            axes.plot([], [], label=label, **{"color": _DARK, "lw": 1.6, **style})


def _fit_limits(
    axes: Axes, curves: Sequence[np.ndarray], measure: Measure, lowest_level: float
) -> None:
    """Fit the axis to what matters: lines may leave it at their start, or where they diverge."""
    start = 0 if measure.name == "train_loss" else max(map(len, curves)) // 10
    values = np.concatenate([curve[start:] for curve in curves])
    values = values[np.isfinite(values)]
    if measure.is_loss:
        peaks = [np.abs(curve[np.isfinite(curve)]).max(initial=0.0) for curve in curves]
        values = values[values <= DIVERGED * np.median(peaks)]
    if axes.get_yscale() == "log":
        # A loss far below every level says nothing, but would take most of the axis.
        values = values[values > lowest_level / DIVERGED]
    if len(values):
        axes.dataLim.intervaly = values.min(), values.max()
        axes.autoscale_view(scalex=False)


def _set_loss_scale(axes: Axes, values: np.ndarray, *, logarithmic: bool = False) -> None:
    """Make the axis of a loss logarithmic if asked, or if its values, all positive, spread far."""
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if not len(positive) or values.min() < 0:
        return
    if not logarithmic and positive.max() <= 10 * positive.min():
        return
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    is_wide = positive.max() > 300 * positive.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_estimates(
    axes: Axes, estimates: Sequence[LevelEstimate], limits: tuple[float, float], label: str
) -> None:
    """Draw a bar for each estimate's interval, below its name."""
    for row, estimate in enumerate(estimates):
        _draw_estimate(axes, estimate, row, limits)
    axes.set(xlim=limits, yticks=[], xlabel=label)
    axes.tick_params(bottom=bool(label), labelbottom=bool(label))
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set_visible(bool(label))
    if not estimates:
        axes.set_axis_off()


def _draw_estimate(
    axes: Axes, estimate: LevelEstimate, row: int, limits: tuple[float, float]
) -> None:
    level, low, high = estimate.level, estimate.low, estimate.high
    has_interval = low < high and (low, high) != (0.0, math.inf)  # the default says nothing
    text = f"{_literal(estimate.name)}: {'no flooding' if level is None else f'{level:.3g}'}"
    if has_interval:
        text += _interval_text(low, high)
    axes.text(0.0, row, text, transform=axes.get_yaxis_transform(), fontsize=10, va="center")
    colour = _DARK if estimate.name in _LIMITS else _SELECTED
    style: dict[str, Any] = {"color": colour, "clip_on": False}
    y = row + 0.45
    if has_interval:
        bar = np.clip([low, high], *limits)
        axes.plot(bar, [y, y], **style, lw=5, alpha=0.4, solid_capstyle="butt")
        # Arrowheads point to what is off the axis.
        if high > limits[1]:
            axes.plot(limits[1], y, ">", **style, ms=6)
        if low == -math.inf:
            axes.plot(limits[0], y, "<", **style, ms=6)
    if level is not None and math.isfinite(level):
        marker = "D"
        if level < limits[0]:
            marker = "<"
        elif level > limits[1]:
            marker = ">"
        axes.plot(np.clip(level, *limits), y, marker, **style, ms=6)


def _interval_text(low: float, high: float) -> str:
    """Format an interval, either of whose ends may be infinite."""
    if not math.isfinite(low):
        return f" (below {high:.3g})" if math.isfinite(high) else ""
    if not math.isfinite(high):
        return f" (above {low:.3g})"
    return f" ({_round_like(low, high)} to {high:.3g})"


def _round_like(value: float, reference: float) -> str:
    """Format a number to the decimal place of another one's third digit."""
    places = 3
    if reference:
        places = 2 - math.floor(math.log10(abs(reference)))
    return f"{round(value, places):g}"
