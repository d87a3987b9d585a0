"""The charts of a search's page: results by level, curves by epoch, and the reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flooding.level_search.decision import Candidate, Decision
from flooding.level_search.decision_text import unit_of
from flooding.level_search.level_stats import tail_means
from flooding.level_search.page_groups import PLAIN, Groups
from flooding.level_search.plot_data import (
    Measure,
    curve_values,
    has_curve,
    is_in_nats,
    is_selected,
    measures_of,
    num_epochs,
    run_of,
    running_mean,
    with_curves,
)
from flooding.level_search.result import SearchResult
from flooding.level_search.sweep_plot import sweep_points
from flooding.report.chart import Band, Chart, Line, Mark, Rule, axis_of
from flooding.report.page_charts import Curve, Side, chart_name, curve_chart, reliability_chart
from flooding.report.stats import pluralize

__all__ = ["calibration_chart", "curve_charts", "level_charts"]

_LIMITS = ("cap", "label entropy", "balanced classes")  # estimates that bound the level
_MANY = 60  # Runs beyond which a curve is the mean of the seeds of a level


def level_charts(result: SearchResult, groups: Groups, measures: Sequence[Measure]) -> list[Chart]:
    """Draw the validation results against the level.

    Args:
        result: The result of a search.
        groups: The groups of the page.
        measures: What was measured on the validation split, the deciding one first.

    Returns:
        A chart for each measure; none where no levels can be drawn.
    """
    charts = []
    for measure in measures:
        if result.decision is not None:
            charts.append(_decision_chart(result, result.decision, groups, measure, measures[0]))
        elif points := [sweep_points(record, measure) for record in result.records]:
            chart = _sweep_chart(result, [p for p in points if p is not None], groups, measure)
            charts += [] if chart is None else [chart]
    return charts


def _unit_label(result: SearchResult) -> str:
    return f"Flood level ({'nats' if is_in_nats(result.run.problem) else 'unit of the loss'})"


def _decision_chart(
    result: SearchResult, decision: Decision, groups: Groups, measure: Measure, main: Measure
) -> Chart:
    """Draw what was compared, and what each level did on its own."""
    decides, unit = measure == main, unit_of(measure, result)
    to_x = _places(decision)
    marks, line, noun = [], [], unit.name
    for candidate in decision.candidates:
        x = to_x(candidate)
        if x is None:
            continue
        group, name = groups.of_level(candidate.level), _name(candidate)
        own, compared = unit.own(candidate), unit.compared(candidate)
        for value in _seed_values(result, decision, groups, group, measure):
            marks.append(Mark(x, value, group, f"{name}, one seed: {unit.text(value)}", "dot"))
        text = f"{name}: {noun} {unit.text(compared)}"
        if decision.is_smoothed:
            marks.append(Mark(x, own, group, f"{name} on its own: {unit.text(own)}", "ring"))
            text = f"{name}: {noun} with its neighbours {unit.text(compared)}, {own:.4g} alone"
        if decides and candidate is decision.selected:
            text += ", chosen"
        marks.append(Mark(x, compared, group, text, "diamond"))
        line.append((x, compared))
    values = [mark.y for mark in marks]
    bands = []
    if decides and decision.standard_error:
        top = unit.compared(decision.selected)
        low = top - unit.scale * decision.standard_error
        bands.append(Band(min(low, top), max(low, top), "as good, within one standard error"))
        values.append(low)
    rules = _rules(result, [mark.x for mark in marks])
    plain = next((c for c in decision.candidates if c.level is None and to_x(c) is None), None)
    lines = [Line(line, None, "what was compared", "decision")]
    if plain is not None:
        rules.append(Rule(unit.compared(plain), PLAIN, "bound", is_vertical=False))
        values.append(unit.compared(plain))
    x = axis_of(
        _unit_label(result),
        [*(m.x for m in marks), *(r.value for r in rules if r.is_vertical)],
        margin=0.04,
    )
    chart = Chart(
        chart_name("level", measure.name),
        f"{noun.capitalize()} of each level",
        _describe(result, decision, decides),
        x,
        axis_of(measure.label, values),
        lines,
        marks,
        rules,
        bands,
    )
    return replace(chart, legend=_legend(chart, decision, plain is not None))


def _name(candidate: Candidate) -> str:
    return "No flooding" if candidate.level is None else f"Level {candidate.level:.4g}"


def _places(decision: Decision):
    """Give the function from a candidate to its place on the level axis."""
    levels = [c.level for c in decision.candidates if c.level is not None]
    # Plain training stands at 0, where that is near; else it is a line.
    is_near = (
        bool(levels) and min(levels) > 0 and (len(levels) == 1 or min(levels) <= 0.8 * max(levels))
    )

    def to_x(candidate: Candidate) -> float | None:
        if candidate.level is not None:
            return candidate.level
        return 0.0 if is_near else None

    return to_x


def _seed_values(
    result: SearchResult,
    decision: Decision,
    groups: Groups,
    group: int | None,
    measure: Measure,
) -> list[float]:
    """List the results of the seeds of a level, in its longest Runs."""
    records = [record for record in result.records if groups.of_record(record) == group]
    longest = max(map(num_epochs, records), default=0)
    records = [record for record in records if num_epochs(record) == longest]
    if len(records) < 2:
        return []
    values = []
    for record in records:
        value = measure.scale * tail_means(record, decision.tail_epochs).get(measure.name, math.nan)
        if math.isfinite(value):
            values.append(value)
    return values


def _rules(result: SearchResult, places: Sequence[float]) -> list[Rule]:
    """Mark the selected level, and the bounds that are not far from what was tried."""
    low, high = min(places, default=0.0), max(places, default=1.0)
    reach = 0.35 * ((high - low) or abs(high) or 1.0)
    rules = []
    if result.level is not None:
        rules.append(Rule(result.level, f"chosen: {result.level:.4g}", "choice"))
    elif low <= 0.0:
        rules.append(Rule(0.0, "chosen: no flooding", "choice"))
    for estimate in result.estimates:
        level = estimate.level
        if estimate.name not in _LIMITS or level is None or not math.isfinite(level):
            continue
        # Texts of rules that are close would cover each other: the table has them all.
        taken = [rule.value for rule in rules]
        if low - reach <= level <= high + reach and all(abs(level - v) > reach for v in taken):
            rules.append(Rule(level, f"{estimate.name}: {level:.4g}"))
    return rules


def _describe(result: SearchResult, decision: Decision, decides: bool) -> str:
    text = "Each level's result on the validation split."
    if decision.is_smoothed:
        text = (
            "Rings are each level's own result; diamonds are its mean with its neighbours"
            f"{', which decided' if decides else ''}."
        )
    if not decides:
        text += " It decides only between equal scores."
    chosen = "no flooding" if result.level is None else f"level {result.level:.4g}"
    return f"{text} The choice: {chosen}."


def _legend(chart: Chart, decision: Decision, has_plain_line: bool) -> list[tuple[str, str]]:
    looks = {mark.look for mark in chart.marks}
    legend = [("diamond", "compared" if not decision.is_smoothed else "mean with its neighbours")]
    if "ring" in looks:
        legend.append(("ring", "its own result"))
    if "dot" in looks:
        legend.append(("dot", "one seed"))
    for band in chart.bands:
        legend.append(("band", band.text))
    if has_plain_line:
        legend.append(("level", PLAIN))
    return legend


def _sweep_chart(
    result: SearchResult,
    sweeps: Sequence[tuple[np.ndarray, np.ndarray, int]],
    groups: Groups,
    measure: Measure,
) -> Chart | None:
    """Draw what one training measured while its level fell."""
    if not sweeps:
        return None
    unit, lines, marks = unit_of(measure, result), [], []
    for levels, values, window in sweeps:
        means = running_mean(values, window)
        for level, value in zip(levels.tolist(), values.tolist(), strict=True):
            label = f"One epoch at level {level:.3g}: {unit.text(value)}"
            marks.append(Mark(level, value, groups.chosen, label, "dot"))
        points = list(zip(levels.tolist(), means.tolist(), strict=True))
        lines.append(Line(points, groups.chosen, "Mean of neighbouring epochs", "mean"))
    rules = _rules(result, [mark.x for mark in marks])
    return Chart(
        chart_name("sweep", measure.name),
        f"{unit.name.capitalize()} while the level fell",
        "One training lowers its level from epoch to epoch, and then holds the best one.",
        axis_of(_unit_label(result), [m.x for m in marks], margin=0.04),
        axis_of(measure.label, [m.y for m in marks]),
        lines,
        marks,
        rules,
        legend=[("dot", "one epoch"), ("mean", "mean of neighbouring epochs")],
    )


def curve_charts(result: SearchResult, groups: Groups) -> list[Chart]:
    """Draw the training loss and the deciding validation result against the epoch.

    Args:
        result: The result of a search.
        groups: The groups of the page.

    Returns:
        Charts of what has curves.
    """
    train_loss, *measures = measures_of(result.records, result.run.problem)
    drawn = with_curves(result.records, [train_loss]) + with_curves(result.records, measures)[:2]
    return [_curve_chart(result, groups, measure) for measure in drawn]


def _curve_chart(result: SearchResult, groups: Groups, measure: Measure) -> Chart:
    records = [record for record in result.records if has_curve(record, measure)]
    curves = []
    for record in records:
        group = groups.of_record(record)
        name = groups.shown[group or 0].name
        label = f"{name[0].upper()}{name[1:]}, seed {run_of(record).seed}"
        look = "mean" if is_selected(record, result) else "curve"
        curves.append(Curve(group, label, curve_values(record, measure), look))
    text = "A line for each training, coloured by its level; the chosen one is thick."
    if len(curves) > _MANY:
        curves = _mean_curves(curves)
        text = "Means of the seeds of each level; the chosen one is thick."
    # The chosen one last, above the others.
    curves.sort(key=lambda curve: curve.look == "mean")
    is_training = measure.name == "train_loss"
    rules = []
    if is_training and result.level is not None:
        rules.append(Rule(result.level, "chosen level", "choice", is_vertical=False))
    legend = [("choice-level", "chosen level")] if rules else []
    name = chart_name("curve", measure.name)
    return curve_chart(
        name, measure.label, text, curves, is_training=is_training, rules=rules, legend=legend
    )


def _mean_curves(curves: Sequence[Curve]) -> list[Curve]:
    """Average the curves of equal length of each level."""
    by_group: dict[tuple[int | None, int], list[Curve]] = {}
    for curve in curves:
        by_group.setdefault((curve.group, len(curve.values)), []).append(curve)
    means = []
    for members in by_group.values():
        label = f"{members[0].label.partition(', seed')[0]}, mean of {len(members)}"
        mean = np.mean([curve.values for curve in members], axis=0)
        means.append(members[0]._replace(label=label, values=mean))
    return means


def calibration_chart(result: SearchResult, groups: Groups) -> Chart | None:
    """Draw the reliability of plain training and of the choice, each after its longest training.

    Args:
        result: The result of a search.
        groups: The groups of the page.

    Returns:
        A chart; None where no classifier was tested.
    """
    compared = []
    for group in dict.fromkeys((groups.index_of(PLAIN), groups.chosen)):
        records = [record for record in result.records if groups.of_record(record) == group]
        if group is None or not records:
            continue
        longest = max(map(num_epochs, records))
        name = groups.shown[group].name
        title = f"{name[0].upper()}{name[1:]}, after {pluralize(longest, 'epoch')}"
        compared.append(Side(group, title, [r for r in records if num_epochs(r) == longest]))
    return reliability_chart("reliability", compared)
