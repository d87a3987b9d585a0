"""Picture of a search: what each level brought on the validation split, and how its trainings went.

A Run is judged by the mean of the last quarter of its epochs, which takes away part of the noise of
a small validation split. Plain Runs have level None, or a level 0 that flooded no step; a level 0
that did is a level as any other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from flooding.level_search.base import LevelEstimate, SearchResult, reached_level
from flooding.report.figures import PALETTE, legend_entries, level_colours, new_figure
from flooding.report.stats import pluralize
from flooding.training.record import Record
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = ["found"]

_LATE = 0.25  # share of a Run's epochs, its last, that are averaged
_DIVERGED = 100.0  # a loss this many times the median would hide all others
_ROW = 0.4  # inches for a suggestion
_PLAIN, _CHOICE, _DARK = "0.5", PALETTE["flooded"], "0.2"
_LIMITS = ("cap", "label entropy", "balanced classes")  # suggestions that bound the level

_NATS = (
    "cross_entropy",
    "CrossEntropyLoss",
    "nll_loss",
    "NLLLoss",
    "binary_cross_entropy",
    "BCELoss",
)


_NATS += ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss")


class _Measure(NamedTuple):
    """What is drawn: its name in a Record, its label, and what it is multiplied by."""

    name: str
    label: str
    times: float = 1.0

    @property
    def is_loss(self) -> bool:
        return self.name.endswith("loss")


def found(found: SearchResult) -> Figure:
    """Draw what a search measured, and what it chose.

    On the left, validation score and loss against the level; on the right, training loss and
    validation score (or loss) against the epoch; below, every suggestion with its interval. Marks
    of Runs that were stopped early are hollow, and the smaller the shorter the Run. Plain training
    is a line at its longest; among the marks it stands at level 0, if that is near, also as it was
    when others were stopped.

    A panel with nothing to show is left out: the score where only a loss was measured, the loss
    where it merely stands for the score, the left panels where all levels are controllers, the
    right ones where there are no curves. A Run has no mark if its validation score or loss is not
    finite, or the loss is over 100 times the median; the title says how many there are.

    Args:
        found: What a search found.

    Returns:
        A figure of 9 inches width.

    Example:
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.level_search.base import Found
        >>> from flooding.testing import fake_record
        >>> from torch.nn import Linear
        >>> problem = Problem(two_gaussians, Linear(10, 2), max_epochs=20)
        >>> runs = [Run(problem, level) for level in (None, 0.1, 0.2)]
        >>> figure = found(Found("by hand", runs[1], records=tuple(fake_record(run) for run in runs)))
        >>> [axes.get_ylabel() for axes in figure.axes[:2]]
        ['Validation accuracy (%)', 'Training loss (nats per example)']
    """
    records, problem = found.records, found.run.problem
    label = f"Flood level ({'nats' if _is_in_nats(problem) else 'unit of the loss'})"
    train, *measures = _measures(records, problem)
    lost = _lost(records, measures)
    by_level = measures if any(_place(r) is not None and not _is_plain(r) for r in records) else []
    by_epoch = _traced(records, [train]) + _traced(records, measures)[:1]
    rows = _rows([f"{m.name} by level" for m in by_level], [f"{m.name} by epoch" for m in by_epoch])
    with new_figure(9.0, 9.0) as figure:
        from matplotlib.ticker import MaxNLocator

        panels = figure.subplot_mosaic(rows)
        ends, colours = _ends(found), _colours(records)
        for measure in by_level:
            axes = panels[f"{measure.name} by level"]
            _draw_levels(axes, records, measure, lost, colours)
            _draw_choice(axes, found, ends, told=f"{measure.name} by level" in rows[0])
            axes.set(xlabel=label, ylabel=measure.label, xlim=ends)
        for measure in by_epoch:
            _draw_curves(panels[f"{measure.name} by epoch"], found, measure, colours)
        if by_epoch and colours is not None:
            beside = [panels[f"{measure.name} by epoch"] for measure in by_epoch]
            ticks = MaxNLocator(
                6, steps=[1, 2, 5, 10]
            )  # as many as fit would not let the layout settle
            figure.colorbar(
                colours, ax=beside, label=label, ticks=ticks, aspect=20 * (len(rows) - 1)
            )
        key = panels.pop("key")
        key.set_axis_off()
        handles, names = legend_entries(panels.values())
        title = "Left: mean of each Run's last quarter" if by_level and by_epoch else None
        legend = key.legend(
            handles, names, loc="upper left", borderaxespad=0.0, title=title, alignment="left"
        )
        legend.set_in_layout(False)  # it may reach below the colour bar
        below = max(0.5 + _ROW * len(found.suggestions), 0.5 + 0.24 * len(names), 1.0)
        heights = [3.3] * (len(rows) - 1) + [below]
        figure.set_figheight(sum(heights) + 0.6)
        key.get_gridspec().set_height_ratios(heights)  # type: ignore[union-attr]
        _draw_suggestions(panels["strip"], found.suggestions, ends, "" if by_level else label)
        panels["strip"].set_ylim(below / _ROW - 1, -0.5)
        figure.suptitle(_title(found, sum(lost)))
    return figure


def _rows(by_level: list[str], by_epoch: list[str]) -> list[Any]:
    """Lay panels out: levels on the left and epochs on the right, or the only kind there is side by
    side.
    """
    if by_level and by_epoch:
        count = max(len(by_level), len(by_epoch))
        rows = [
            [by_level[min(i, len(by_level) - 1)], by_epoch[min(i, len(by_epoch) - 1)]]
            for i in range(count)
        ]
    else:
        rows = [[*by_level, *by_epoch, "key"][:2]] if by_level or by_epoch else []
    return [*rows, ["strip", "key"]]


def _title(found: SearchResult, lost: int) -> str:
    if not found.records:
        return f"{found.strategy}: no level was tried"
    level = "no flooding" if found.level is None else f"flood level {found.level:.3g}"
    runs = pluralize(len(found.records), "Run")
    end = f"; {lost} diverged" if lost else ""
    return (
        f"{found.strategy}: {level} ({runs} for the price of {found.cost.steps:.1f} trainings{end})"
    )


def _is_in_nats(problem: Any) -> bool:
    """Tell whether the loss is a cross-entropy; nobody knows the unit of a user's own."""
    loss = getattr(problem, "reported", None)
    while isinstance(loss, functools.partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__) in _NATS


def _measures(records: Sequence[Record], problem: Any) -> list[_Measure]:
    """Give the training loss, then what there is on the validation split, the score before the
    loss.
    """
    unit = " (nats per example)" if _is_in_nats(problem) else ""
    measures = [_Measure("train_loss", f"Training loss{unit}")]
    own = getattr(problem, "score", None)
    if own is not None:
        better = "higher" if own.greater_is_better else "lower"
        measures.append(_Measure("val_score", f"Validation score ({better} is better)"))
    elif any("last.val_accuracy" in record.metrics for record in records):
        measures.append(_Measure("val_accuracy", "Validation accuracy (%)", 100.0))
    if not all(map(_has_no_loss, records)):
        measures.append(_Measure("val_loss", f"Validation loss{unit}"))
    return measures


def _has_no_loss(record: Record) -> bool:
    """Tell whether the validation loss is only the score with the other sign: a function may give a
    score alone.
    """
    loss, score = (record.metrics.get(f"last.{name}") for name in ("val_loss", "val_score"))
    return loss is None or (score is not None and (abs(loss) == abs(score) or math.isnan(loss)))


def _run(record: Record) -> Run:
    assert record.run is not None
    return record.run


def _place(record: Record) -> float | None:
    """Tell where a Record stands on the level axis; controllers and levels of examples stand
    nowhere.
    """
    level = _run(record).level
    level = level.item() if isinstance(level, Tensor) else level
    return level if isinstance(level, float) else None


def _places(records: Sequence[Record]) -> list[float | None]:
    """Tell where all Records stand; plain ones at 0, unless that is far from the levels."""
    levels = [
        place
        for record in records
        if (place := _place(record)) is not None and not _is_plain(record)
    ]
    near = (
        levels and min(levels) > 0 and (len(set(levels)) == 1 or min(levels) <= 0.8 * max(levels))
    )
    return [0.0 if near and _is_plain(record) else _place(record) for record in records]


def _is_plain(record: Record) -> bool:
    return _run(record).level is None or (_place(record) == 0 and not reached_level(record))


def _moves(record: Record) -> bool:
    return _place(record) is None and not _is_plain(record)


def _is_choice(record: Record, found: SearchResult) -> bool:
    if found.run.level is None:
        return _is_plain(record)
    return repr(_run(record).level) == repr(found.run.level)


def _epochs(record: Record) -> int:
    return _run(record).epochs


def _longest_plain(records: Sequence[Record], lost: Sequence[bool]) -> dict[int, Record]:
    """Give the longest plain Record of each seed that did not diverge."""
    plain = [
        record for record, gone in zip(records, lost, strict=True) if _is_plain(record) and not gone
    ]
    return {_run(record).seed: record for record in sorted(plain, key=_epochs)}


def _has_curve(record: Record, measure: _Measure) -> bool:
    return len(record.curves.get(measure.name, ())) > 1


def _traced(records: Sequence[Record], measures: Sequence[_Measure]) -> list[_Measure]:
    """Give the measures of which there are curves."""
    return [
        measure for measure in measures if any(_has_curve(record, measure) for record in records)
    ]


def _curve(record: Record, measure: _Measure) -> np.ndarray:
    """Give a curve in the unit that is drawn, NaN where it is not finite."""
    curve = measure.times * record.curves[measure.name].astype(np.float64)
    return np.where(np.isfinite(curve), curve, np.nan)


def _late(record: Record, measure: _Measure, until: int | None = None) -> float:
    """Average the late epochs of a Record, or of what it was after ``until``; without a curve, give
    its end.
    """
    if not _has_curve(record, measure):
        return measure.times * record.metrics.get(f"last.{measure.name}", math.nan)
    curve = _curve(record, measure)[: None if until is None else until + 1]
    return float(curve[-max(1, round(_LATE * (len(curve) - 1))) :].mean())


def _lost(records: Sequence[Record], measures: Sequence[_Measure]) -> list[bool]:
    """Tell which Records diverged."""
    lost = np.zeros(len(records), bool)
    for measure in measures:
        values = np.array([_late(record, measure) for record in records])
        lost |= ~np.isfinite(values)
        known = np.abs(values[~lost & (values != 0)])
        if measure.is_loss and len(known):
            lost |= values > _DIVERGED * np.median(known)
    return lost.tolist()


def _smooth(curve: np.ndarray, window: int) -> np.ndarray:
    """Average each epoch with those around it, fewer at the ends; NaN stays where it is."""
    known = np.isfinite(curve)
    sums, counts = (
        np.convolve(part, np.ones(window), "full") for part in (np.where(known, curve, 0.0), known)
    )
    centre = slice(window // 2, window // 2 + len(curve))
    return np.where(known, sums[centre] / np.maximum(counts[centre], 1), np.nan)


def _ends(found: SearchResult) -> tuple[float, float]:
    """Find the ends of the level axis: what was tried, and those suggestions that are not far from
    it.
    """
    guesses = [
        v
        for s in found.suggestions
        for v in (s.level, s.low, s.high)
        if v is not None and math.isfinite(v)
    ]
    tried = [place for place in _places(found.records) if place is not None]
    tried += [] if found.level is None else [found.level]
    if not tried or max(tried) - min(tried) <= 1e-6 * max(map(abs, tried)):
        tried = [*tried, *guesses] or [0.0, 1.0]
    reach = max(tried) - min(tried) or abs(max(tried)) or 1.0
    seen = [
        *tried,
        *(value for value in guesses if min(tried) - reach <= value <= max(tried) + reach),
    ]
    pad = 0.06 * (max(seen) - min(seen) or reach)
    return min(seen) - pad, max(seen) + pad


def _colours(records: Sequence[Record]) -> ScalarMappable | None:
    """Give each level its colour; None where nothing is flooded."""
    levels = [
        record.level for record in records if record.level is not None and not _is_plain(record)
    ]
    if not levels:
        return None
    if min(levels) == max(levels):
        levels.append(0.0 if levels[0] else 1.0)
    return level_colours(min(levels), max(levels))


def _colour(record: Record, colours: ScalarMappable | None) -> Any:
    level = None if _is_plain(record) else record.level  # a controller that never began has none
    return _PLAIN if colours is None or level is None else colours.to_rgba(level)  # type: ignore[arg-type]


def _marks(
    records: Sequence[Record], measure: _Measure, lost: Sequence[bool]
) -> dict[tuple[int, float], list[float]]:
    """Give the values of all seeds by epochs and place; of plain training at the lengths of the
    others alone.
    """
    found: dict[tuple[int, float], dict[int, float]] = {}
    placed = [
        trio for trio in zip(records, _places(records), lost, strict=True) if trio[1] is not None
    ]
    lengths = {_epochs(record) for record, _, _ in placed if not _is_plain(record)}
    for record, place, gone in placed:
        if _epochs(record) in lengths:
            value = math.nan if gone else _late(record, measure)
            found.setdefault((_epochs(record), place or 0.0), {})[_run(record).seed] = value
    if any(_is_plain(record) for record, _, _ in placed):
        for seed, record in _longest_plain(records, lost).items():
            for length in lengths:
                if _has_curve(record, measure) and length < _epochs(record):
                    found.setdefault((length, 0.0), {}).setdefault(
                        seed, _late(record, measure, length)
                    )
    return {at: list(values.values()) for at, values in sorted(found.items())}


def _draw_levels(
    axes: Axes,
    records: Sequence[Record],
    measure: _Measure,
    lost: Sequence[bool],
    colours: ScalarMappable | None,
) -> None:
    """Draw a mark for each Run, the means over seeds, and plain training as a line."""
    marks, max_epochs = _marks(records, measure, lost), _run(records[0]).problem.max_epochs
    places = zip(records, _places(records), strict=True)
    shades = {place: _colour(record, colours) for record, place in places if place is not None}
    lengths = sorted({epochs for epochs, _ in marks})
    seeds = max(map(len, marks.values()))
    for (epochs, place), values in marks.items():
        colour, size = shades[place], max(8 * math.sqrt(epochs / lengths[-1]), 4.0)
        look = {
            "marker": "o",
            "ls": "",
            "color": colour,
            "mew": 1.5,
            "mfc": colour if epochs == max_epochs else "white",
        }
        if seeds > 1:
            axes.plot([place] * len(values), values, **look, ms=0.6 * size, alpha=0.4)
        axes.plot([place], [np.mean(values)], **look, ms=size, zorder=3)
    for length in lengths:
        line = [
            (place, np.mean(values))
            for (epochs, place), values in marks.items()
            if epochs == length
        ]
        axes.plot(*zip(*line, strict=True), color="0.8", lw=1, zorder=1)  # type: ignore[arg-type]
    plain = list(_longest_plain(records, lost).values())
    if plain:
        value = float(np.mean([_late(record, measure) for record in plain]))
        label = f"plain training, {_told(map(_epochs, plain), max_epochs)}"
        axes.axhline(value, color=_PLAIN, ls="--", lw=2, zorder=2, label=label)
    _explain_marks(axes, lengths, max_epochs, seeds)
    if measure.is_loss:
        _scale(
            axes, np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
        )


def _told(epochs: Iterable[int], max_epochs: int) -> str:
    """Tell how long Runs were."""
    epochs = sorted(epochs)
    if max_epochs == 1:  # someone else's training, whose epochs nobody counts
        return "in full"
    span = f"{epochs[0]}" if epochs[0] == epochs[-1] else f"{epochs[0]} to {epochs[-1]}"
    return f"{span} epochs" if epochs[0] == max_epochs else f"{span} of {max_epochs} epochs"


def _explain_marks(axes: Axes, lengths: Sequence[int], max_epochs: int, seeds: int) -> None:
    """Put the marks into the legend, without a level's colour."""
    what = f"mean of {seeds} seeds" if seeds > 1 else "Run"
    look = {"marker": "o", "ls": "", "color": _DARK, "mew": 1.5}
    if max_epochs in lengths:
        axes.plot([], [], **look, ms=8, label=f"{what}, {_told([max_epochs], max_epochs)}")
    if cut := [length for length in lengths if length < max_epochs]:
        axes.plot([], [], **look, ms=8, mfc="white", label=f"{what}, {_told(cut, max_epochs)}")
    if len(lengths) > 1:
        axes.plot([], [], **look, ms=5, mfc="white", label="the smaller, the shorter")
    if seeds > 1:
        axes.plot([], [], **look, ms=5, alpha=0.4, label="one seed")


def _draw_choice(axes: Axes, found: SearchResult, ends: tuple[float, float], *, told: bool) -> None:
    """Draw the choice and the limits as vertical lines and, if they are to be told, a flag above
    each.
    """
    middle = (ends[0] + ends[1]) / 2
    chosen = f"chosen: {'no flooding' if found.level is None else f'{found.level:.3g}'}"
    flags = [(ends[0] if found.level is None else found.level, chosen)]
    limits = [
        (s.level, s.name) for s in found.suggestions if s.name in _LIMITS and s.level is not None
    ]
    flags += [(level, f"{name}: {level:.3g}") for level, name in limits if math.isfinite(level)]
    # From the middle outwards and upwards, so that no flag stands in the way of another's pole.
    for row, (level, text) in enumerate(sorted(flags, key=lambda flag: abs(flag[0] - middle))):
        colour, weight = (_CHOICE, "bold") if text == chosen else (_DARK, "normal")
        inside, right = ends[0] < level < ends[1], level > middle
        if inside:
            axes.axvline(level, color=colour, lw=2 if text == chosen else 1, zorder=1.5)
        if told:
            axes.annotate(
                f"{text} →" if right and not inside else text,
                (min(max(level, ends[0]), ends[1]), 1.0),
                (0, 5 + 16 * row),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                ha="right" if right else "left",
                color=colour,
                fontsize=10,
                fontweight=weight,
                arrowprops={
                    "arrowstyle": "-",
                    "color": colour,
                    "lw": float(inside),
                    "relpos": (float(right), 0.0),
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )


def _draw_curves(
    axes: Axes, found: SearchResult, measure: _Measure, colours: ScalarMappable | None
) -> None:
    """Draw a curve for each Run, faint as it is and smoothed over that; those of the choice are
    thick.
    """
    records = [record for record in found.records if _has_curve(record, measure)]
    curves = [_curve(record, measure) for record in records]
    last = max(map(len, curves)) - 1
    window = last // 40 * 2 + 1
    many = len(records) > 12
    mixed = len({_moves(record) for record in records if not _is_plain(record)}) > 1
    for record, curve in zip(records, curves, strict=True):
        colour, chosen = _colour(record, colours), _is_choice(record, found)
        axes.plot(curve, color=colour, lw=0.8, alpha=0.15 if many else 0.3, zorder=1)
        style = {"ls": "--" if mixed and _moves(record) else "-", "zorder": 3 if chosen else 2}
        axes.plot(
            _smooth(curve, window),
            color=colour,
            lw=3.0 if chosen else 1.0 if many else 1.6,
            **style,
        )
    lines = {
        "plain training": (any(map(_is_plain, records)), {"color": _PLAIN}),
        "level, told by its colour": (any(not (_is_plain(r) or _moves(r)) for r in records), {}),
        "level that moves, coloured by its last": (
            any(map(_moves, records)),
            {"ls": "--" if mixed else "-"},
        ),
        "the choice": (any(_is_choice(record, found) for record in records), {"lw": 3.0}),
        f"faint: each epoch; lines: mean of {window}": (window > 1, {"lw": 0.8, "alpha": 0.5}),
    }
    for label, (there, look) in lines.items():
        if there:
            axes.plot([], [], label=label, **{"color": _DARK, "lw": 1.6} | look)
    axes.set(xlabel="Epoch", ylabel=measure.label, xlim=(0, last))
    if measure.is_loss:
        _scale(axes, np.concatenate(curves), logarithmic=measure.name == "train_loss")
    _frame(
        axes, curves, measure, [level for record in records if (level := record.level or 0.0) > 0]
    )


def _frame(
    axes: Axes, curves: Sequence[np.ndarray], measure: _Measure, levels: Sequence[float]
) -> None:
    """Fit the axis to what matters: lines may leave it where they begin, blow up or fall far below
    every level.
    """
    begun = 0 if measure.name == "train_loss" else max(map(len, curves)) // 10
    shown = np.concatenate([curve[begun:] for curve in curves])
    shown = shown[np.isfinite(shown)]
    if measure.is_loss:
        peaks = [np.abs(curve[np.isfinite(curve)]).max(initial=0.0) for curve in curves]
        shown = shown[shown <= _DIVERGED * np.median(peaks)]
    if axes.get_yscale() == "log":
        shown = shown[shown > (min(levels) / _DIVERGED if levels else 0)]
    if len(shown):
        axes.dataLim.intervaly = shown.min(), shown.max()
        axes.autoscale_view(scalex=False)


def _scale(axes: Axes, values: np.ndarray, *, logarithmic: bool = False) -> None:
    """Make the axis of a loss without negative values logarithmic, if told to or if they spread
    far.
    """
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if (
        len(positive)
        and values.min() >= 0
        and (logarithmic or positive.max() > 10 * positive.min())
    ):
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        wide = positive.max() > 300 * positive.min()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_suggestions(
    axes: Axes, suggestions: Sequence[LevelEstimate], ends: tuple[float, float], label: str
) -> None:
    """Draw a bar for each suggestion with an interval, below its name; arrowheads point to what is
    off the axis.
    """
    for row, suggestion in enumerate(suggestions):
        level, low, high = suggestion.level, suggestion.low, suggestion.high
        known = low < high and (low, high) != (0.0, math.inf)  # the default says nothing
        text = f"{suggestion.name}: {'no flooding' if level is None else f'{level:.3g}'}"
        if known:
            text += _interval(low, high)
        axes.text(0.0, row, text, transform=axes.get_yaxis_transform(), fontsize=10, va="center")
        look = {"color": _DARK if suggestion.name in _LIMITS else _CHOICE, "clip_on": False}
        if known:
            bar = np.clip([low, high], *ends)
            axes.plot(bar, [row + 0.45] * 2, **look, lw=5, alpha=0.4, solid_capstyle="butt")
            if high > ends[1]:
                axes.plot(ends[1], row + 0.45, ">", **look, ms=6)
            if low == -math.inf:
                axes.plot(ends[0], row + 0.45, "<", **look, ms=6)
        if level is not None and math.isfinite(level):
            marker = "<" if level < ends[0] else ">" if level > ends[1] else "D"
            axes.plot(np.clip(level, *ends), row + 0.45, marker, **look, ms=6)
    axes.set(xlim=ends, yticks=[], xlabel=label)
    axes.tick_params(bottom=bool(label), labelbottom=bool(label))
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set_visible(bool(label))
    if not suggestions:
        axes.set_axis_off()


def _interval(low: float, high: float) -> str:
    """Tell an interval, either of whose ends may be infinite."""
    if not math.isfinite(low):
        return f" (below {high:.3g})" if math.isfinite(high) else ""
    return (
        f" ({_rounded(low, high)} to {high:.3g})" if math.isfinite(high) else f" (above {low:.3g})"
    )


def _rounded(value: float, scale: float) -> str:
    """Tell a number to the places that the third digit of another one has."""
    places = 2 - math.floor(math.log10(abs(scale))) if scale else 3
    return f"{round(value, places):g}"
