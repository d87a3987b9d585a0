"""Tables, sentences and figures on second descents of test loss and test error."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flooding.report import stats
from flooding.report.claims import Sentences
from flooding.report.curve_figures import CurvePanel, curves_by_level
from flooding.report.descent_rows import (
    FACTORS,
    MEASURES,
    DescentRow,
    Group,
    Measure,
    Section,
    count_lasting,
    count_without_rise,
    measured_curve,
    second_descents,
)
from flooding.report.descents import Descents
from flooding.report.document import Report, Table
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import (
    format_levels,
    format_percent_range,
    fraction_until_below,
    is_early,
)
from flooding.report.stats import Difference, format_count, format_mean_sd, format_p, pluralize
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["make_report"]

_UNTESTED = "not tested (level never reached)"
_ABOVE_CAP = "not a candidate (above the lowest loss of plain training)"
# The setting in which the reproduction saw no second descent.
_SOURCE_FACTORS = set(FACTORS)


def make_report(
    groups: Sequence[Group], records: Sequence[Record], title: str, about: str
) -> Report:
    """Judge every test curve by the criterion."""
    sections, figures = [], {}
    for group in groups:
        # The synthetic tasks have three noises; the titles of the images are long.
        columns = 3 if group.name == "synthetic" else 2
        for measure in MEASURES:
            sections.append(Section(group, measure))
            draw = partial(_draw, group, measure, columns)
            figures[f"{group.name}-{measure.name}"] = (_caption(group, measure), draw)
    tables = [_table(section) for section in sections]
    failures, findings = _sentences(groups, sections)
    searches = {grid.cell.title: grid.by_level for group in groups for grid in group.grids}
    return Report(
        title,
        about,
        failures,
        findings,
        tables,
        figures,
        describe_provenance(records),
        _answer(sections),
        searches,
    )


def _answer(sections: Sequence[Section]) -> str:
    """Count where flooding brings a second descent, by the criterion."""
    gains = [_lasting_by_seed(section.tested) for section in sections]
    texts = []
    for section, gain, p in zip(sections, gains, stats.adjust(gains), strict=True):
        count = format_count([row.brings_descent for row in section.tested])
        overall = ""
        if gain is not None:
            change = "more" if gain.mean > 0 else "fewer"
            overall = (
                f" (over all trainings significantly {change})"
                if p < 0.05
                else " (not significant)"
            )
        texts.append(f"{section.group.title}, test {section.measure.name}: {count}{overall}")
    return (
        "Conditions at a level in which flooding brings a second descent, by the criterion below: "
        f"{'; '.join(texts)}."
    )


# Tables.


def _table(section: Section) -> Table:
    """Tabulate every condition at every level."""
    group, measure = section.group, section.measure
    rows = []
    ps = zip(section.p_lasting, section.p_second, section.p_end, strict=True)
    for row, (p_lasting, p_second, p_end) in zip(section.rows, ps, strict=True):
        rows.append(_cells(row, measure, p_lasting, p_second, p_end))
    name = f"test {measure.name} ({measure.unit})"
    title = f"{group.title}: does the {name} descend a second time? n = {group.num_seeds}"
    note = (
        "Flooded: share of steps, from the first epoch with such a step on. Epochs: medians. "
        "p (lasting): McNemar, flooded against plain; p (m2): m2 against m1; p (end): ends, "
        "flooded against plain."
    )
    return Table.from_dicts(f"{group.name}-{measure.name}", title, rows, note)


def _cells(
    row: DescentRow, measure: Measure, p_lasting: float, p_second: float, p_end: float
) -> dict[str, str]:
    """Write the cells of a row by their columns."""
    second, digits = row.second, measure.digits
    n, dash = len(row.flooded), "–"
    cells = {
        "Condition": row.condition.title,
        "level": f"{row.level:g}",
        "reached": dash,
        "flooded (%)": dash,
    }
    # Plain training has no level that it could reach.
    if row.level:
        cells["reached"] = f"{n} of {len(row.condition.seeds)}"
        if row.num_above_cap:
            cells["reached"] += f"; {row.num_above_cap} above the cap"
        cells["flooded (%)"] = format_mean_sd(row.flooded_percent)
    if n == 0 and row.num_above_cap:
        return cells | {"flooded (%)": dash, "second descent": _ABOVE_CAP}
    if n == 0:
        return cells | {"flooded (%)": "0.0", "second descent": _UNTESTED}
    # Numbers of seeds first, then how far the curves rise and fall.
    gaps = [curve.gap for curve in second]
    tails = [curve.tail for curve in row.flooded]
    end = row.end_minus_plain
    return cells | {
        "second descent": f"{len(second)} of {n}",
        "lasting": f"{row.lasting} of {n}",
        "p (lasting)": format_p(p_lasting),
        "no rise": f"{count_without_rise(row.flooded)} of {n}",
        "epochs of m1, M, m2": _median_epochs(second),
        "recovery": _format_recovery(second),
        "regained": _format_regained(second) if second else dash,
        "m2 − m1": format_mean_sd(gaps, digits),
        "p (m2)": format_p(p_second),
        "end − m1": format_mean_sd(tails, digits),
        "end, flooded − plain": dash if end is None else end.format(digits),
        "p (end)": format_p(p_end),
    }


def _format_recovery(second: Sequence[Descents]) -> str:
    """Write the share of the rise that second descents take back."""
    return format_mean_sd([curve.recovery for curve in second], 2)


def _format_regained(second: Sequence[Descents]) -> str:
    """Count the second descents that come down to the first minimum again."""
    return format_count([curve.gap <= 0 for curve in second])


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


def _sentences(groups: Sequence[Group], sections: Sequence[Section]) -> Sentences:
    """Say which claims of the sources do not hold, and what was found."""
    sentences = Sentences([], [])
    # The sources speak of the loss: conditions without a second descent of it come first.
    losses = [section for section in sections if section.measure.name == "loss"]
    for section in losses:
        sentences.failures.extend(_conditions_without_descent(section))
    for group in groups:
        sentences.add(*_describe_start(group))
    sentences.add(*_judge_weight_decay(losses))
    sentences.add(*_judge_label_noise(losses))
    # Then what was found, in loss and error.
    gains = [_lasting_by_seed(section.tested) for section in sections]
    for section, gain, p in zip(sections, gains, stats.adjust(gains), strict=True):
        sentences.findings.append(_describe_section(section, gain, p))
        sentences.findings.extend(_describe_parts(section))
    return sentences


def _conditions_without_descent(section: Section) -> list[str]:
    """Name the conditions in which no level that was reached brings a second descent."""
    sentences = []
    for grid in section.group.grids:
        condition = grid.cell
        counts: list[str] = []
        unreached: list[float] = []
        too_high: list[float] = []
        brings_descent = False
        for row in section.rows:
            if row.condition is not condition or row.level == 0:
                continue
            if row.is_tested:
                counts.append(f"level {row.level:g}: {_describe_lasting(row)}")
                brings_descent |= row.brings_descent
            elif row.num_above_cap:
                too_high.append(row.level)
            else:
                unreached.append(row.level)
        # Where no level was reached, nothing was tested.
        if brings_descent or not counts:
            continue
        if unreached:
            counts.append(f"never reached: {format_levels(unreached)}")
        if too_high:
            counts.append(f"not a candidate: {format_levels(too_high)}")
        sentences.append(
            f"{condition.title}: flooding brings no second descent of the test loss at any level "
            f"that was reached. Lasting descents: {'; '.join(counts)}."
        )
    return sentences


def _describe_lasting(row: DescentRow) -> str:
    """Count the seeds with a lasting descent, and those without any rise."""
    n, plain = len(row.seeds), count_lasting(row.plain)
    text = f"{row.lasting} of {n} seeds with flooding, {plain} of {n} without"
    no_rise = count_without_rise(row.flooded)
    no_rise_plain = count_without_rise(row.plain)
    if no_rise + no_rise_plain:
        text += f", no rise in {no_rise} with, {no_rise_plain} without"
    return text


def _describe_start(group: Group) -> tuple[bool, str]:
    """Say in how many conditions the largest level is reached before half of the training."""
    early, fractions = 0, []
    for grid in group.grids:
        starts = fraction_until_below(grid.at(0.0), grid.cell.levels[-1])
        if is_early(starts):
            early += 1
            fractions += starts
    total = len(group.grids)
    when = ""
    if early:
        when = f", after {format_percent_range(fractions)} of them"
    return early == total, (
        f"{group.title}: plain training is below the largest level before half of the epochs in "
        f"{early} of {pluralize(total, 'condition')}, in every seed{when}."
    )


def _judge_weight_decay(losses: Sequence[Section]) -> tuple[bool, str]:
    """Judge the reproduction's statement; say whether it holds here, or is not judged."""
    # Its own condition decides; other conditions with weight decay are told apart from it.
    claim = "“No double descent with weight decay” (the reproduction)"
    own: list[tuple[DescentRow, float]] = []
    other: list[tuple[DescentRow, float]] = []
    undecayed: list[DescentRow] = []
    for section in losses:
        # Groups without factors, the synthetic tasks, have nothing to compare weight decay with.
        if not section.group.has_factors:
            continue
        for row, p in zip(section.rows, section.p_lasting, strict=True):
            if not row.is_tested:
                continue
            if set(row.condition.factors) == _SOURCE_FACTORS:
                own.append((row, p))
            elif "weight decay" in row.condition.factors:
                other.append((row, p))
            else:
                undecayed.append(row)
    if not own and not other:
        return True, f"{claim} is not judged: with weight decay no level was reached (n = 0)."
    without = sum(row.brings_descent for row in undecayed)
    shown = [row for row, _ in own if row.brings_descent]
    condition = "in its own condition (augmentation, rate decay and weight decay)"
    brings = "flooding brings a second descent of the test loss in"
    rest = _describe_other_rows(other, without, len(undecayed))
    if not own:
        return True, f"{claim} is not judged {condition}: no level was reached (n = 0). {rest}"
    count = f"{len(shown)} of {stats.pluralize(len(own), 'row')} whose level was reached"
    every = _count_trainings([row for row, _ in own])
    if not shown:
        # No second descent says something only where there are some in other conditions.
        verdict = "holds here"
        if not without and not any(row.brings_descent for row, _ in other):
            verdict = "is not judged, since no condition has one,"
        lasting = f"lasting descents in {every}"
        return True, f"{claim} {verdict} {condition}: {brings} {count}; {lasting}. {rest}"
    doubt = ""
    if not any(row.brings_descent and p < 0.05 for row, p in own):
        doubt = " by the criterion, which no single row shows at 5 %"
    return False, (
        f"{claim} does not hold {condition}{doubt}: {brings} {count}, lasting in "
        f"{_count_trainings(shown)}. {rest}"
    )


def _describe_other_rows(
    rows: Sequence[tuple[DescentRow, float]], without: int, num_undecayed: int
) -> str:
    """Count second descents in the other conditions, with weight decay and without."""
    shown = [row for row, _ in rows if row.brings_descent]
    where = ""
    if shown:
        places = [f"{row.condition.title} at {row.level:g}" for row in shown]
        where = f" ({'; '.join(places)}; lasting in {_count_trainings(shown)})"
    return (
        f"Other conditions: in {len(shown)} of {len(rows)} rows with weight decay{where}, and in "
        f"{without} of {num_undecayed} without it. The table has p row by row."
    )


def _judge_label_noise(losses: Sequence[Section]) -> tuple[bool, str]:
    """Judge the statement that the label noise must be high."""
    claim = "“The label noise must be high for a second descent”"
    by_noise: dict[float, list[DescentRow]] = {}
    titles: dict[float, list[str]] = {}
    for section in losses:
        for row in section.tested:
            if row.condition.noise is not None:
                by_noise.setdefault(row.condition.noise, []).append(row)
                titles.setdefault(row.condition.noise, []).append(section.group.title)
    counts, low = [], 0
    for noise, rows in sorted(by_noise.items()):
        shown = sum(row.brings_descent for row in rows)
        where = " and ".join(dict.fromkeys(titles[noise]))
        counts.append(f"{100 * noise:g} % ({where}): {shown} of {len(rows)}")
        # Up to a twentieth of the labels is not high.
        low += shown * (noise <= 0.05)
    if not low and (len(by_noise) < 2 or min(by_noise) > 0.05):
        return True, f"{claim} is not judged: the conditions do not differ in that."
    verdict = "does not hold" if low else "holds here"
    return not low, (
        f"{claim} {verdict}: rows in which flooding brings one, of the test loss, by the share of "
        f"wrong labels: {'; '.join(counts)}."
    )


def _count_trainings(rows: Sequence[DescentRow]) -> str:
    """Count the trainings with a lasting descent; plain ones count once a row."""
    n = plain = flooded = 0
    for row in rows:
        n += len(row.seeds)
        plain += count_lasting(row.plain)
        flooded += row.lasting
    return f"{flooded} of {n} trainings with flooding, {plain} of {n} without"


def _lasting_by_seed(rows: Sequence[DescentRow]) -> Difference | None:
    """Compare the percentage of trainings with a lasting descent, seed by seed."""
    pairs: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        for seed, flooded, plain in zip(row.seeds, row.flooded, row.plain, strict=True):
            pairs.setdefault(seed, []).append((100.0 * flooded.lasting, 100.0 * plain.lasting))
    # Every seed has one percentage with flooding and one without.
    means = []
    for seed_pairs in pairs.values():
        flooded_mean, plain_mean = np.mean(seed_pairs, axis=0)
        means.append((float(flooded_mean), float(plain_mean)))
    return stats.paired_or_none(means)


def _describe_section(section: Section, gain: Difference | None, p: float) -> str:
    """Count the rows in which flooding brings a second descent, and compare the ends."""
    tested, n = section.tested, section.group.num_seeds
    # Count the rows in one pass over all of them.
    untested = too_high = brings = significant = lower = higher = 0
    ps = zip(section.rows, section.p_lasting, section.p_end, strict=True)
    for row, p_lasting, p_end in ps:
        is_left_out = row.level > 0 and not row.is_tested
        too_high += is_left_out and row.num_above_cap > 0
        untested += is_left_out and not row.num_above_cap
        if row.is_tested and row.brings_descent:
            brings += 1
            significant += p_lasting < 0.05
        end = row.end_minus_plain
        if end is not None and p_end < 0.05:
            lower += end.mean < 0
            higher += end.mean > 0
    left_out = f"{untested} not tested"
    if too_high:
        left_out += f", {too_high} not a candidate"
    test = f"by the numbers of lasting descents in {significant} of them at 5 %"
    # The p of McNemar's test where all seeds differ one way.
    least_p = 2 * 0.5**n
    if tested and len(tested) * least_p >= 0.05:
        cannot = f"the lasting descents of {n} seeds cannot show at 5 % in single rows"
        test = f"which {cannot}, after Holm"
    overall = ""
    if gain is not None:
        overall = (
            " All rows together, a seed's share of lasting descents, with flooding minus without: "
            f"{gain} points, n = {gain.n} seeds, p {format_p(p)}."
        )
    return (
        f"{section.group.title}, test {section.measure.name}: flooding brings a second descent in "
        f"{brings} of {len(tested)} tested rows ({left_out}), {test}; its curve ends "
        f"lower than plain training's in {lower} and higher in {higher} of them at 5 % (Holm, "
        f"n = {n} seeds or as many as reached the level).{overall}"
    )


def _describe_parts(section: Section) -> list[str]:
    """Count second descents over the synthetic tasks, or with each factor and without any."""
    title = section.group.title
    parts: dict[str, list[DescentRow]] = {}
    if section.group.name == "synthetic":
        parts[title] = section.rows
    else:
        # A row counts with each factor that its condition has.
        for factor in (*FACTORS, "none of these"):
            parts[f"{title} with {factor}"] = []
        for row in section.rows:
            for factor in row.condition.factors or ["none of these"]:
                parts[f"{title} with {factor}"].append(row)
    descends = f"the test {section.measure.name} descends a second time"
    sentences = []
    for name, rows in parts.items():
        if not rows:
            continue
        conditions = {row.condition.title for row in rows}
        levels = {row.level for row in rows}
        counts = [_count_at(level, rows) for level in sorted(levels) if level]
        number = pluralize(len(conditions), "condition")
        sentences.append(f"{name} ({number}), {descends}: {'; '.join(counts)}.")
    return sentences


def _count_at(level: float, rows: Sequence[DescentRow]) -> str:
    """Count over the conditions at one level, where every seed that reached it appears once."""
    curves: list[Descents] = []
    plain: list[Descents] = []
    for row in rows:
        if row.level == level:
            curves += row.flooded
            plain += row.plain
    if not curves:
        is_too_high = any(row.num_above_cap for row in rows if row.level == level)
        return f"at level {level:g} {_ABOVE_CAP if is_too_high else _UNTESTED}"
    second = second_descents(curves)
    second_plain = len(second_descents(plain))
    text = (
        f"at level {level:g} in {len(second)} of {len(curves)} trainings with flooding (lasting in "
        f"{count_lasting(curves)}), {second_plain} of {len(plain)} without (lasting in "
        f"{count_lasting(plain)})"
    )
    if not second:
        return text
    regained, recovery = _format_regained(second), _format_recovery(second)
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
            # A level that was never reached would lie on the curve of plain training.
            if level == 0 or grid.count_reached(level):
                seeds = [measured_curve(record, measure) for record in grid.at(level)]
                curves[level] = np.stack(seeds)
        panels.append(CurvePanel(grid.cell.title, curves))
        levels.update(grid.cell.levels)
    label = f"Test {measure.name} ({measure.unit})"
    return curves_by_level(panels, sorted(levels), label, columns, measure.name == "loss")
