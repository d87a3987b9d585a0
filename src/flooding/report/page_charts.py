"""Charts that several report pages show: curves by epoch, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from flooding.report.chart import Axis, Chart, Line, Mark, Rule, axis_of, points_of
from flooding.report.plots import pool_bins
from flooding.report.record_metrics import Epoch
from flooding.report.stats import format_mean_sd, pluralize
from flooding.training.record import Record

__all__ = ["Curve", "Side", "chart_name", "curve_chart", "reliability_chart"]

_DIVERGED = 100.0  # a loss this many times the median would hide all others
_NEAR_0 = 1e-5  # share of the highest loss that a logarithmic axis reaches down to


class Curve(NamedTuple):
    """A curve of a chart.

    Args:
        group: Index of its group on the page.
        label: What it is.
        values: A value for each epoch from 0 on, NaN where nothing was measured.
        look: ``mean`` for what stands out.
    """

    group: int | None
    label: str
    values: np.ndarray
    look: Literal["curve", "mean", "faint", "dashed"] = "curve"


def chart_name(*parts: str) -> str:
    """Make the identifier of a chart."""
    text = "-".join(parts)
    return "".join(c if c.isalnum() else "-" for c in text).lower()


def curve_chart(
    name: str,
    label: str,
    text: str,
    curves: Sequence[Curve],
    *,
    is_training: bool = False,
    rules: Sequence[Rule] = (),
    legend: Sequence[tuple[str, str]] = (),
) -> Chart:
    """Draw curves by epoch.

    Args:
        name: Identifier of the chart.
        label: Label of the axis, with its unit.
        text: What can be read from it.
        curves: The curves, at least one; later ones lie above.
        is_training: Whether it is a training loss, whose axis is logarithmic where all is positive.
        rules: Levels to draw.
        legend: See :class:`flooding.report.chart.Chart`.

    Returns:
        The chart.
    """
    is_loss = "loss" in label.lower()
    log = is_training and all(np.nanmin(curve.values, initial=np.inf) > 0 for curve in curves)
    lines = []
    last = 1
    for curve in curves:
        last = max(last, len(curve.values) - 1)
        # An epoch without a measurement does not interrupt a curve.
        points = [(x, y) for x, y in points_of(curve.values) if np.isfinite(y)]
        lines.append(Line(points, curve.group, curve.label, curve.look))
    return Chart(
        name,
        f"{label.partition(' (')[0]} by epoch",
        text,
        Axis("Epoch", 0.0, float(last), is_whole=True),
        _curve_axis(label, curves, is_loss=is_loss, is_training=is_training, log=log),
        lines,
        rules=rules,
        legend=legend,
    )


def _curve_axis(
    label: str, curves: Sequence[Curve], *, is_loss: bool, is_training: bool, log: bool
) -> Axis:
    """Fit the axis to what matters: the first epochs may leave it, and so may a loss near 0."""
    last = max(len(curve.values) for curve in curves)
    start = 0 if is_training else last // 20
    values = np.concatenate([curve.values[start:] for curve in curves])
    values = values[np.isfinite(values)]
    if log and len(values):
        values = values[values > _NEAR_0 * values.max()]
    elif is_loss and len(values):
        values = values[values <= _DIVERGED * np.median(np.abs(values))]
    return axis_of(label, values.tolist(), log=log, margin=0.04)


class Side(NamedTuple):
    """What a reliability diagram compares.

    Args:
        group: Index of its group on the page.
        title: What it is.
        records: Its Records, of which those of classifiers are drawn.
        at: The epoch that is judged: the last, or the best on the validation split.
    """

    group: int | None
    title: str
    records: Sequence[Record]
    at: Epoch = "last"


def reliability_chart(name: str, compared: Sequence[Side]) -> Chart | None:
    """Draw accuracy against confidence on the test split.

    Args:
        name: Identifier of the chart.
        compared: What is compared.

    Returns:
        The chart; None where no classifier was tested.
    """
    lines = [Line([(0.0, 0.0), (1.0, 1.0)], None, "Perfectly calibrated", "dashed")]
    marks, texts = [], []
    for group, title, records, at in compared:
        tested = [record for record in records if f"{at}.reliability" in record.arrays]
        if not tested:
            continue
        confidence, accuracy, count = pool_bins(tested, at)
        metric = f"{at}.test_ece"
        errors = [record.metrics[metric] for record in tested if metric in record.metrics]
        seeds = f" over {pluralize(len(tested), 'seed')}" if len(tested) > 1 else ""
        texts.append(f"{title}: calibration error {format_mean_sd(errors, 3)}{seeds}.")
        full = count > 0
        points = list(zip(confidence[full].tolist(), accuracy[full].tolist(), strict=True))
        lines.append(Line(points, group, title, "mean"))
        for (x, y), n in zip(points, count[full].tolist(), strict=True):
            label = f"{title}: confidence {x:.3g}, accuracy {y:.3g}, {n:.0f} examples"
            marks.append(Mark(x, y, group, label, "ring"))
    if not marks:
        return None
    return Chart(
        name,
        "Reliability on the test split",
        f"On the dashed line, confidence is right; below it, the network is overconfident. "
        f"{' '.join(texts)}",
        Axis("Confidence (highest probability)", 0.0, 1.0),
        Axis("Accuracy", 0.0, 1.0),
        lines,
        marks,
        legend=[("dashed", "perfectly calibrated")],
    )
