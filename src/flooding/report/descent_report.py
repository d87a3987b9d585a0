"""Tables, sentences and figures on second descents of test loss and test error."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flooding.report import stats
from flooding.report.curve_figures import CurvePanel, curves_by_level
from flooding.report.descent_rows import (
    FACTORS,
    MEASURES,
    Group,
    Measure,
    Row,
    Section,
    count_lasting,
    measured_curve,
)
from flooding.report.descents import Descents
from flooding.report.document import Report, Table
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import (
    format_levels,
    format_percent_range,
    fraction_until_below,
)
from flooding.report.stats import Difference, format_count, format_mean_sd, format_p, pluralize
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["make_report"]

_UNTESTED = "not tested (level never reached)"


def make_report(
    groups: Sequence[Group], records: Sequence[Record], title: str, about: str
) -> Report:
    """Judge every test curve by the criterion."""
    sections, figures = [], {}
    for group in groups:
        columns = 3 if group.name == "synthetic" else 4
        for measure in MEASURES:
            sections.append(Section(group, measure))
            draw = partial(_draw, group, measure, columns)
            figures[f"{group.name}-{measure.name}"] = (_caption(group, measure), draw)
    tables = [_table(section) for section in sections]
    failures, findings = _sentences(groups, sections)
    return Report(title, about, failures, findings, tables, figures, describe_provenance(records))


# Tables.


def _table(section: Section) -> Table:
    """Tabulate every condition at every level."""
    group, measure = section.group, section.measure
    ps = zip(section.p_lasting, section.p_second, section.p_end, strict=True)
    rows = [_cells(row, measure, *p) for row, p in zip(section.rows, ps, strict=True)]
    name = f"test {measure.name} ({measure.unit})"
    title = f"{group.title}: does the {name} descend a second time? n = {group.num_seeds}"
    note = (
        "Flooded: share of steps, from the first epoch with such a step on. Epochs: medians. "
        "p (lasting): McNemar, flooded against plain; p (m2): m2 against m1; p (end): ends, "
        "flooded against plain."
    )
    return Table.from_dicts(f"{group.name}-{measure.name}", title, rows, note)


def _cells(
    row: Row, measure: Measure, p_lasting: float, p_second: float, p_end: float
) -> dict[str, str]:
    """Write the cells of a row by their columns."""
    curves, second, digits = row.flooded, row.second, measure.digits
    n, dash = len(curves), "–"
    cells = {"Condition": row.condition.title, "level": f"{row.level:g}"}
    cells["reached"] = f"{n} of {len(row.condition.seeds)}" if row.level else dash
    if n == 0:
        return cells | {"flooded (%)": "0.0", "second descent": _UNTESTED}
    regained = format_count([curve.gap <= 0 for curve in second])
    end = row.end_minus_plain
    return cells | {
        "flooded (%)": format_mean_sd(row.flooded_percent) if row.level else dash,
        "second descent": f"{len(second)} of {n}",
        "lasting": f"{row.lasting} of {n}",
        "p (lasting)": format_p(p_lasting),
        "no rise": format_count([curve.peak is None for curve in curves]),
        "epochs of m1, M, m2": _median_epochs(second),
        "recovery": format_mean_sd([curve.recovery for curve in second], 2),
        "regained": regained if second else dash,
        "m2 − m1": format_mean_sd([curve.gap for curve in second], digits),
        "p (m2)": format_p(p_second),
        "end − m1": format_mean_sd([curve.tail for curve in curves], digits),
        "end, flooded − plain": dash if end is None else end.format(digits),
        "p (end)": format_p(p_end),
    }


def _median_epochs(second: Sequence[Descents]) -> str:
    """Write the median epochs of m1, M and m2."""
    epochs = []
    for curve in second:
        assert curve.peak is not None
        assert curve.second is not None
        epochs.append([curve.first.epoch, curve.peak.epoch, curve.second.epoch])
    if not epochs:
        return "–"
    return ", ".join(f"{epoch:.0f}" for epoch in np.median(epochs, axis=0))


# Sentences.


def _sentences(groups: Sequence[Group], sections: Sequence[Section]) -> tuple[list[str], list[str]]:
    """Say which claims of the sources do not hold, and what was found."""
    losses = [section for section in sections if section.measure.name == "loss"]
    failures, findings = [], []
    for section in losses:
        failures += _conditions_without_descent(section)
    for group in groups:
        is_early, sentence = _describe_start(group)
        (findings if is_early else failures).append(sentence)
    holds, sentence = _judge_weight_decay(losses)
    (findings if holds else failures).append(sentence)
    gains = [_lasting_by_seed(section.tested) for section in sections]
    for section, gain, p in zip(sections, gains, stats.adjust(gains), strict=True):
        findings.append(_describe_section(section, gain, p))
        findings += _describe_parts(section)
    return failures, findings


def _conditions_without_descent(section: Section) -> list[str]:
    """Name the conditions in which no level that was reached brings a second descent."""
    sentences = []
    for grid in section.group.grids:
        condition = grid.cell
        rows = [row for row in section.rows if row.condition is condition]
        tested = [row for row in rows if row.is_tested]
        if not tested or any(row.brings_descent for row in tested):
            continue
        counts = "; ".join(f"level {row.level:g}: {_describe_lasting(row)}" for row in tested)
        unreached = [row.level for row in rows if row.level and not row.is_tested]
        if unreached:
            counts += f"; never reached: {format_levels(unreached)}"
        sentences.append(
            f"{condition.title}: flooding brings no second descent of the test loss at any level "
            f"that was reached. Lasting descents: {counts}."
        )
    return sentences


def _describe_lasting(row: Row) -> str:
    """Count the seeds with a lasting descent, and those without any rise."""
    n, plain = len(row.seeds), count_lasting(row.plain)
    text = f"{row.lasting} of {n} seeds with flooding, {plain} of {n} without"
    no_rise = sum(curve.peak is None for curve in row.flooded)
    no_rise_plain = sum(curve.peak is None for curve in row.plain)
    if no_rise + no_rise_plain:
        text += f", no rise in {no_rise} with, {no_rise_plain} without"
    return text


def _describe_start(group: Group) -> tuple[bool, str]:
    """Say in how many conditions the largest level is reached before half of the training."""
    early, fractions = 0, []
    for grid in group.grids:
        starts = fraction_until_below(grid.at(0.0), grid.cell.levels[-1])
        if all(fraction < 0.5 for fraction in starts):
            early += 1
            fractions += starts
    total = len(group.grids)
    when = f", after {format_percent_range(fractions)} of them" if early else ""
    return early == total, (
        f"{group.title}: plain training is below the largest level before half of the epochs in "
        f"{early} of {pluralize(total, 'condition')}, in every seed{when}."
    )


def _judge_weight_decay(losses: Sequence[Section]) -> tuple[bool, str]:
    """Judge the reproduction's statement; say whether it holds here, or is not judged."""
    claim = "“No double descent with weight decay” (the reproduction)"
    decayed: list[Row] = []
    others: list[Row] = []
    significant = False
    for section in losses:
        if not any(grid.cell.factors for grid in section.group.grids):
            continue  # nothing to compare weight decay with
        for row, p in zip(section.rows, section.p_lasting, strict=True):
            if row.is_tested and "weight decay" in row.condition.factors:
                decayed.append(row)
                significant |= row.brings_descent and p < 0.05
            elif row.is_tested:
                others.append(row)
    if not decayed:
        return True, f"{claim} is not judged: with weight decay no level was reached (n = 0)."
    shown = [row for row in decayed if row.brings_descent]
    brings = "flooding brings a second descent of the test loss in"
    count = f"{len(shown)} of {len(decayed)} rows with weight decay whose level was reached"
    if not shown:  # it says something where there are second descents without weight decay
        without = sum(row.brings_descent for row in others)
        no_effect = "is not judged, since weight decay makes no difference"
        verdict = "holds here" if without else no_effect
        rest = f"and in {without} of {len(others)} without it"
        return True, f"{claim} {verdict}: {brings} {count}, {rest}."
    where = "; ".join(f"{row.condition.title} at {row.level:g}" for row in shown)
    doubt = "" if significant else " by the criterion, which no single row shows at 5 %"
    return False, (
        f"{claim} does not hold{doubt}: {brings} {count} ({where}), lasting in "
        f"{_count_trainings(shown)}. All rows with weight decay: {_count_trainings(decayed)}, each "
        "of which counts once for every level it is compared with. The table has p row by row."
    )


def _count_trainings(rows: Sequence[Row]) -> str:
    """Count the trainings with a lasting descent; plain ones count once a row."""
    n = sum(len(row.seeds) for row in rows)
    plain = sum(count_lasting(row.plain) for row in rows)
    flooded = sum(row.lasting for row in rows)
    return f"{flooded} of {n} trainings with flooding, {plain} of {n} without"


def _lasting_by_seed(rows: Sequence[Row]) -> Difference | None:
    """Compare the percentage of trainings with a lasting descent, seed by seed."""
    pairs: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        for seed, flooded, plain in zip(row.seeds, row.flooded, row.plain, strict=True):
            pairs.setdefault(seed, []).append((100.0 * flooded.lasting, 100.0 * plain.lasting))
    return stats.paired_or_none([
        np.mean(seed_pairs, axis=0).tolist() for seed_pairs in pairs.values()
    ])


def _describe_section(section: Section, gain: Difference | None, p: float) -> str:
    """Count the rows in which flooding brings a second descent, and compare the ends."""
    tested, n = section.tested, section.group.num_seeds
    untested = sum(row.level > 0 for row in section.rows) - len(tested)
    significant = lower = higher = 0
    ps = zip(section.rows, section.p_lasting, section.p_end, strict=True)
    for row, p_lasting, p_end in ps:
        significant += row.brings_descent and p_lasting < 0.05
        end = row.end_minus_plain
        if end is not None and p_end < 0.05:
            lower += end.mean < 0
            higher += end.mean > 0
    test = f"by the numbers of lasting descents in {significant} of them at 5 %"
    least_p = 2 * 0.5**n  # of McNemar's test, where all seeds differ one way
    if tested and len(tested) * least_p >= 0.05:
        cannot = f"the lasting descents of {n} seeds cannot show at 5 % in single rows"
        test = f"which {cannot}, after Holm"
    overall = ""
    if gain is not None:
        overall = (
            " All rows together, a seed's share of lasting descents, with flooding minus without: "
            f"{gain} points, n = {gain.n} seeds, p {format_p(p)}."
        )
    brings = sum(row.brings_descent for row in tested)
    return (
        f"{section.group.title}, test {section.measure.name}: flooding brings a second descent in "
        f"{brings} of {len(tested)} tested rows ({untested} not tested), {test}; its curve ends "
        f"lower than plain training's in {lower} and higher in {higher} of them at 5 % (Holm, "
        f"n = {n} seeds or as many as reached the level).{overall}"
    )


def _describe_parts(section: Section) -> list[str]:
    """Count second descents over the synthetic tasks, or with each factor and without any."""
    title = section.group.title
    if section.group.name == "synthetic":
        parts = {title: section.rows}
    else:
        parts = {f"{title} with {factor}": [] for factor in FACTORS}
        parts[f"{title} with none of these"] = []
        for row in section.rows:
            for factor in row.condition.factors or ["none of these"]:
                parts[f"{title} with {factor}"].append(row)
    sentences = []
    for name, rows in parts.items():
        number = pluralize(len({row.condition.title for row in rows}), "condition")
        levels = sorted({row.level for row in rows if row.level})
        counts = "; ".join(_count_at(level, rows) for level in levels)
        descends = f"the test {section.measure.name} descends a second time"
        if rows:
            sentences.append(f"{name} ({number}), {descends}: {counts}.")
    return sentences


def _count_at(level: float, rows: Sequence[Row]) -> str:
    """Count over the conditions at one level, where every seed that reached it appears once."""
    curves: list[Descents] = []
    plain: list[Descents] = []
    for row in rows:
        if row.level == level:
            curves += row.flooded
            plain += row.plain
    if not curves:
        return f"at level {level:g} {_UNTESTED}"
    second = [curve for curve in curves if curve.second is not None]
    second_plain = sum(curve.second is not None for curve in plain)
    text = (
        f"at level {level:g} in {len(second)} of {len(curves)} trainings with flooding (lasting in "
        f"{count_lasting(curves)}), {second_plain} of {len(plain)} without (lasting in "
        f"{count_lasting(plain)})"
    )
    if not second:
        return text
    regained = format_count([curve.gap <= 0 for curve in second])
    recovery = format_mean_sd([curve.recovery for curve in second], 2)
    return f"{text}, regaining its first minimum in {regained} (recovery {recovery})"


# Figures.


def _caption(group: Group, measure: Measure) -> str:
    return (
        f"{group.title}: test {measure.name} against epoch, not smoothed, mean and one standard "
        "deviation over all seeds. A level that no seed reached is not drawn: its curve is that of "
        "plain training."
    )


def _draw(group: Group, measure: Measure, columns: int) -> Figure:
    """Draw the mean curve of each level that was reached, a panel for each condition."""
    panels: list[CurvePanel] = []
    levels: set[float] = set()
    for grid in group.grids:
        curves = {}
        for level in grid.cell.levels:
            records = grid.at(level)
            if level == 0 or grid.count_reached(level):
                curves[level] = np.stack([measured_curve(record, measure) for record in records])
        panels.append(CurvePanel(grid.cell.title.replace(" + weight", "\n+ weight"), curves))
        levels.update(grid.cell.levels)
    label = f"Test {measure.name} ({measure.unit})"
    return curves_by_level(panels, sorted(levels), label, columns, measure.name == "loss")
