"""Charts of a report page for Records by flood level: results by level, and curves by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from flooding.report.chart import Chart, Line, Mark, axis_of
from flooding.report.groups import Group, level_groups
from flooding.report.page_charts import Curve, curve_chart
from flooding.report.record_metrics import metric_values
from flooding.report.search_figures import Search
from flooding.report.stats import format_mean_sd
from flooding.training.record import Record, select_best

__all__ = ["shown_groups", "shown_levels", "study_charts"]

_MAX_LEVELS = 16  # beyond which a page has more buttons and lines than a reader can tell apart
_MAX_POINTS = 120  # of a curve, of which a page may have hundreds
# Curves by the name of what they measure; the first two that every Record has are drawn.
_CURVES = {
    "train_loss": "Training loss (nats)",
    "val_accuracy": "Validation accuracy (%)",
    "test_loss": "Test loss (nats)",
    "val_loss": "Validation loss (nats)",
}


def shown_levels(searches: Mapping[str, Search]) -> list[float]:
    """Choose the levels that can be selected on a page.

    Args:
        searches: For each problem its Records by level.

    Returns:
        All levels of all problems, smallest first; evenly spaced ones where there are many.
    """
    levels = sorted({level for search in searches.values() for level in search})
    step = -(-len(levels) // _MAX_LEVELS)
    return levels[:: max(step, 1)]


def shown_groups(searches: Mapping[str, Search]) -> list[Group]:
    """Make the groups of a page, one for each level that can be selected.

    Args:
        searches: For each problem its Records by level.

    Returns:
        The groups, each with its results on every problem.
    """
    levels = shown_levels(searches)
    shares: list[float | None] = []
    for level in levels:
        shares.append(level / levels[-1] if level else None)
    details = []
    for level in levels:
        sentences = []
        for title, search in searches.items():
            if level in search:
                name, _, scale = _measure(search)
                result = format_mean_sd(metric_values(search[level], name, scale))
                sentences.append(f"{title}: {_label(search)} {result}.")
        details.append(sentences)
    return level_groups([_name(level) for level in levels], shares, details)


def study_charts(searches: Mapping[str, Search]) -> list[list[Chart]]:
    """Draw, for each problem, its validation results by level and its curves by epoch.

    Args:
        searches: For each problem its Records by level.

    Returns:
        Charts for each problem. Their groups are those of :func:`shown_groups`.
    """
    levels = shown_levels(searches)
    rows = []
    for index, (title, search) in enumerate(searches.items()):
        charts = [_result_chart(index, title, search, levels)]
        charts += _curve_charts(index, title, search, levels)
        rows.append(charts)
    return rows


def _name(level: float) -> str:
    return f"level {level:g}" if level else "no flooding"


def _measure(search: Search) -> tuple[str, str, float]:
    """Give name, unit and factor of what validation chooses by."""
    records = [record for by_seed in search.values() for record in by_seed]
    if all("last.val_accuracy" in record.metrics for record in records):
        return "val_accuracy", "%", 100.0
    return "val_loss", "nats", 1.0


def _label(search: Search) -> str:
    name, unit, _ = _measure(search)
    return f"{name.replace('val_', 'validation ')} in {unit}"


def _result_chart(index: int, title: str, search: Search, levels: Sequence[float]) -> Chart:
    """Draw the mean of each level, and the level that is best on validation for each seed."""
    name, unit, scale = _measure(search)
    means, marks = [], []
    for level, records in search.items():
        values = metric_values(records, name, scale)
        means.append((level, float(np.mean(values))))
    for seed, (level, best) in enumerate(_best_by_seed(search)):
        group = levels.index(level) if level in levels else None
        value = scale * best.metrics[f"last.{name}"]
        text = f"{_name(level).capitalize()}, best with seed {seed}: {value:.4g} {unit}"
        marks.append(Mark(level, value, group, text, "ring"))
    for level, mean in means:
        if level in levels:
            text = f"{_name(level).capitalize()}: mean {mean:.4g} {unit}"
            marks.append(Mark(level, mean, levels.index(level), text, "diamond"))
    what = name.removeprefix("val_")
    return Chart(
        f"results-{index}",
        f"{title}: validation {what} of each level",
        "Last epoch, mean over seeds. Rings: the level that is best on validation for a seed.",
        axis_of("Flood level (nats)", search, margin=0.04),
        axis_of(f"Validation {what} ({unit})", [mark.y for mark in marks] + [y for _, y in means]),
        [Line(means, None, "mean over seeds", "decision")],
        marks,
        legend=[("diamond", "mean over seeds"), ("ring", "best on validation, one seed")],
    )


def _best_by_seed(search: Search) -> list[tuple[float, Record]]:
    """Select a level for each seed by its last epoch's validation result."""
    best = []
    for by_level in zip(*search.values(), strict=False):
        chosen = select_best(list(by_level), "last")
        level = next(
            level for level, record in zip(search, by_level, strict=True) if record is chosen
        )
        best.append((level, chosen))
    return best


def _curve_charts(index: int, title: str, search: Search, levels: Sequence[float]) -> list[Chart]:
    """Draw the mean over seeds of each level that can be selected, against the epoch."""
    shown = {level: records for level, records in search.items() if level in levels and records}
    charts = []
    for name, label in _CURVES.items():
        has_all = all(name in record.curves for records in shown.values() for record in records)
        if not has_all or len(charts) == 2:
            continue
        scale = 100.0 if "%" in label else 1.0
        curves = []
        for level, records in shown.items():
            text = f"{_name(level).capitalize()}, mean of {len(records)}"
            values = scale * _mean_curve(records, name)
            curves.append(Curve(levels.index(level), text, values))
        chart = curve_chart(
            f"{name.replace('_', '-')}-{index}",
            label,
            "A line for each level, the mean over seeds.",
            curves,
            is_training=name == "train_loss",
        )
        charts.append(replace(chart, title=f"{title}: {chart.title.lower()}"))
    return charts


def _mean_curve(records: Sequence[Record], name: str) -> np.ndarray:
    """Average a curve over seeds, and leave out epochs that no pixel would show."""
    length = min(len(record.curves[name]) for record in records)
    curves = [record.curves[name][:length] for record in records]
    mean = np.mean(curves, axis=0, dtype=float)
    finite = np.flatnonzero(np.isfinite(mean))
    thin = np.full(length, np.nan)
    kept = finite[:: -(-len(finite) // _MAX_POINTS)]
    thin[kept] = mean[kept]
    if len(finite):
        thin[finite[-1]] = mean[finite[-1]]
    return thin
