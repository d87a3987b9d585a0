"""Grids of levels compared: what validation picks, row against row, and every level by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flooding.report import stats
from flooding.report.claims import Sentences, Tally
from flooding.report.document import Table
from flooding.report.level_figures import LevelPanel, accuracy_with_nll
from flooding.report.level_grid import (
    AVERAGE_COMPARISONS,
    COMPARISONS,
    LOSS_COLUMNS,
    ROWS,
    Comparison,
    LevelGrid,
    row_epoch,
    row_network,
)
from flooding.report.record_metrics import (
    MIN_FLOODED_SHARE,
    Epoch,
    format_flooded,
    format_levels,
    format_metric,
    format_percent_range,
    fraction_until_below,
    is_early,
    is_reached,
)
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "comparison_table",
    "describe_comparisons",
    "describe_selection",
    "draw_levels",
    "levels_table",
]
__all__ += ["losses_table", "sentences"]

# Where the paper says that flooding helps: that must be shown, and fails where it is not.
_CLAIMED = ("last", "stopped")


def describe_selection(num_seeds: int) -> str:
    """Say how levels are picked and how figures are to be read.

    Args:
        num_seeds: Number of seeds.

    Returns:
        Sentences for the beginning of a report.
    """
    return (
        "For each seed the level is chosen by validation accuracy, ties to the lower "
        "validation loss, then to the smaller level; flooding chooses among the levels above 0 "
        f"that were reached, in at least {100 * MIN_FLOODED_SHARE:g} % of the steps up to "
        "the epoch that is tested: others are plain training. A level above the cap, the lowest "
        "validation loss of the seed's own plain training, is not a candidate: it is never chosen, "
        "and never counts as a loss. Test data choose nothing. Mean ± "
        f"standard deviation over {stats.pluralize(num_seeds, 'seed')}; differences paired by "
        "seed, with "
        "the 95 % interval of Student's t and p after Holm's correction over the cells. Stopped: "
        "the best validation epoch. Flooded: share of the steps that were below the level, of all "
        "or, with early stopping, of those up to the best epoch. All seeds are tested on the same "
        "images: the intervals are about training and its data. With early stopping this asks "
        "what flooded weights are worth where the best epoch comes after the level was reached, "
        "which is a result of validation, too; chosen among all levels, the weights would often "
        "be those of plain training."
    )


# Tables.


def comparison_table(grids: Sequence[LevelGrid], comparison: Comparison) -> Table:
    """Tabulate two rows, and what the one gains on the other.

    Args:
        grids: A grid for each problem.
        comparison: The rows.

    Returns:
        A line for each problem.
    """
    row, against, name, _ = comparison
    gains = [grid.gain(row, against) for grid in grids]
    lines = []
    for grid, gain, p in zip(grids, gains, stats.adjust(gains), strict=True):
        # A level that was never reached, or lies above the cap, says nothing about flooding.
        if gain is None or _cannot_be_tested(grid, comparison):
            plain = "–"
            if not against.startswith("flooding"):
                plain = stats.format_mean_sd(grid.values(against, "test_accuracy", 100.0))
            lines.append([grid.cell.title, plain, _untested(grid, row, against), *["–"] * 4])
            continue
        # Both sides are those seeds that have a pick in both rows.
        a, b = zip(*grid.pairs(row, against), strict=True)
        at = row_epoch(row)
        lines.append([
            grid.cell.title,
            _accuracy(b, against),
            _accuracy(a, row),
            f"{gain}, n = {gain.n}",
            stats.format_p(p),
            # A level that was chosen within a training has many digits.
            format_levels(round(record.level or 0.0, 3) for record in a),
            format_flooded(a, at),
        ])
    columns = ["data", against, row, "difference", "p", "levels", "flooded %"]
    title = f"Test accuracy in %, mean ± standard deviation: {against} and {row}"
    note = ""
    if row == "finder":
        note = "Level 0: the finder found none worth flooding."
    return Table(name, title, columns, lines, note)


def _accuracy(records: Sequence[Record], row: str) -> str:
    """Write the test accuracy of a row's picks in percent."""
    at, network = row_epoch(row), row_network(row)
    return format_metric(records, "test_accuracy", 100.0, at, network=network)


def _cannot_be_tested(grid: LevelGrid, comparison: Comparison) -> bool:
    """Tell whether a comparison needs a flooded row of a grid without candidates."""
    rows = (comparison.row, comparison.against)
    return grid.cannot_be_tested and any(row.startswith("flooding") for row in rows)


def _describe_caps(grid: LevelGrid) -> str:
    """Say in how many seeds every level lies above the cap."""
    lacking = [grid.lacks_candidates(index) for index in range(len(grid.records))]
    lowest, highest = min(grid.caps), max(grid.caps)
    return (
        f"in {stats.format_count(lacking)} seeds every level lies above the lowest validation loss "
        f"of plain training, which is {lowest:.2f} to {highest:.2f}"
    )


def _untested(grid: LevelGrid, row: str, against: str = "plain") -> str:
    """Say why two rows are not compared."""
    if (row, against) == ("finder", "plain"):
        return "not tested: the finder chose no flooding"
    if grid.cannot_be_tested:
        return f"cannot be tested in {grid.cell.problem.max_epochs} epochs"
    if row_epoch(row) == "best":
        return "not tested: no level was reached before the best epoch"
    return "not tested: no level was reached"


def losses_table(grids: Sequence[LevelGrid]) -> Table:
    """Tabulate test NLL and ECE, with the share of flooded steps.

    Args:
        grids: A grid for each problem.

    Returns:
        A line for each problem.
    """
    rows = [row for row in ROWS if row.startswith("flooding")]
    columns = ["data", *LOSS_COLUMNS]
    for row in rows:
        columns.append(f"{row}: flooded %")
    lines = []
    for grid in grids:
        line = [grid.cell.title, *grid.loss_cells]
        for row in rows:
            picks = grid.picks(row)
            if picks:
                flooded = format_flooded(picks, row_epoch(row))
                line.append(f"{flooded}, n = {len(picks)}")
            else:
                line.append(_untested(grid, row))
        lines.append(line)
    title = f"Test NLL (nats) and ECE, n = {len(grids[0].cell.seeds)}"
    note = "Flooding: over the seeds in which a level was reached before the epoch that is tested."
    return Table("losses", title, columns, lines, note)


def levels_table(grids: Sequence[LevelGrid]) -> Table:
    """Tabulate every level, with the share of flooded steps.

    Args:
        grids: A grid for each problem.

    Returns:
        A line for each problem and level.
    """
    rows = []
    for grid in grids:
        for level in grid.cell.levels:
            records = grid.at(level)
            row = {
                "data": grid.cell.title,
                "level": f"{level:g}" if level else "plain",
                "candidate": _candidate_cell(grid, level),
                "training loss": format_metric(records, "train_loss", digits=3),
                "last epoch": format_metric(records, "test_accuracy", 100.0),
            }
            row |= _flooded_cells(records, level, "last", "")
            row["stopped"] = format_metric(records, "test_accuracy", 100.0, "best")
            row |= _flooded_cells(records, level, "best", ", stopped")
            rows.append(row)
    title = f"Test accuracy in % at each level, n = {len(grids[0].cell.seeds)}"
    note = (
        "Candidate: seeds in which the level does not lie above the lowest validation loss of "
        "plain training."
    )
    return Table.from_dicts("levels", title, rows, note)


def _candidate_cell(grid: LevelGrid, level: float) -> str:
    """Write in how many seeds a level does not lie above the cap."""
    if not level:
        return "–"
    count = grid.count_below_cap(level)
    text = f"{count} of {len(grid.records)}"
    return text if count else f"{text}: not a candidate"


def _flooded_cells(
    records: Sequence[Record], level: float, at: Epoch, suffix: str
) -> dict[str, str]:
    """Write the share of flooded steps, and in how many seeds the level was reached."""
    columns = (f"flooded %{suffix}", f"reached{suffix}")
    if not level:
        return dict.fromkeys(columns, "–")
    reached = [is_reached(record, at) for record in records]
    count = stats.format_count(reached)
    if not any(reached):
        count += ": not tested"
    return dict(zip(columns, (format_flooded(records, at), count), strict=True))


# Sentences.


def describe_comparisons(grids: Sequence[LevelGrid]) -> str:
    """Say how flooding compares with plain training, at the last epoch and with early stopping.

    Args:
        grids: A grid for each problem.

    Returns:
        Plain sentences, and one more where a problem could not be tested.
    """
    counts = []
    for comparison in COMPARISONS:
        gains = [grid.gain(comparison.row, comparison.against) for grid in grids]
        ps = stats.adjust(gains)
        tested = [
            None if _cannot_be_tested(grid, comparison) else gain
            for grid, gain in zip(grids, gains, strict=True)
        ]
        counts.append(Tally.of(tested, ps))
    seeds = stats.pluralize(len(grids[0].records), "seed")
    text = (
        "Settings in which flooding is significantly better, worse: last epoch against plain "
        f"training {counts[0]}; against early stopping {counts[2]}; both stopped {counts[1]}."
    )
    if grids[0].auto:
        counts = []
        for comparison in AVERAGE_COMPARISONS:
            if comparison.name in {"auto", "auto-average", "auto-stopping"}:
                gains = [grid.gain(comparison.row, comparison.against) for grid in grids]
                counts.append(Tally.of(gains, stats.adjust(gains)))
        text += (
            f" Auto level, averaged: against plain training {counts[0]}; plain, averaged "
            f"{counts[1]}; early stopping {counts[2]}."
        )
    text += f" With {seeds} only large differences show."
    untested = sum(grid.cannot_be_tested for grid in grids)
    if untested:
        text += f" {stats.pluralize(untested, 'setting')} could not be tested."
    return text


def sentences(grids: Sequence[LevelGrid], comparisons: Sequence[Comparison]) -> Sentences:
    """Say first whether the levels were tested at all, then which comparisons hold.

    Args:
        grids: A grid for each problem.
        comparisons: The rows that are compared.

    Returns:
        The sentences; a claim of the paper that is not shown is a failure.
    """
    result = Sentences([], [])
    for grid in grids:
        result.add(*_judge_levels(grid))
    for comparison in comparisons:
        row, against, name, title = comparison
        gains = [grid.gain(row, against) for grid in grids]
        for grid, gain, p in zip(grids, gains, stats.adjust(gains), strict=True):
            start = f"{grid.cell.title}, {title}: "
            if gain is None or _cannot_be_tested(grid, comparison):
                result.add(name == "finder", f"{start}{_untested(grid, row, against)}.")
                continue
            sentence = (
                f"{start}{_who(row)} {stats.describe_difference(gain, p)} points, n = {gain.n}"
            )
            others = len(grid.records) - gain.n
            if others:
                seeds = stats.pluralize(others, "seed")
                sentence += f" ({seeds} {_untested(grid, row, against)})"
            # A claim of the paper must be shown; otherwise flooding must not be shown to lose.
            if name in _CLAIMED:
                holds = p < 0.05 and gain.mean > 0
            else:
                holds = not (p < 0.05 and gain.mean < 0)
            result.add(holds, f"{sentence}, p {stats.format_p(p)}.")
    return result


def _who(row: str) -> str:
    """Name a row, for a sentence."""
    if row == "finder":
        return "the finder"
    if row.startswith("auto level"):
        return "the auto level"
    if row_network(row) == "average":
        return "the average"
    return "flooding"


def _judge_levels(grid: LevelGrid) -> tuple[bool, str]:
    """Say whether plain training falls below the levels before half of the epochs."""
    if grid.cannot_be_tested:
        return False, f"{grid.cell.title}: {_untested(grid, 'flooding')}: {_describe_caps(grid)}."
    levels = grid.cell.levels
    fractions = fraction_until_below(grid.at(0.0), levels[-1])
    unreached = [level for level in levels[1:] if not grid.count_reached(level)]
    suffix = ""
    if unreached:
        suffix = f"; never reached: {format_levels(unreached)}"
    too_high = [level for level in levels[1:] if not grid.count_below_cap(level)]
    if too_high:
        suffix += f"; not a candidate: {format_levels(too_high)}"
    start = f"{grid.cell.title}: plain training is"
    if is_early(fractions):
        when = f"after {format_percent_range(fractions)} of the epochs"
        return True, f"{start} below the level {levels[-1]:g} {when}{suffix}."
    texts = []
    for fraction in fractions:
        texts.append("never" if math.isnan(fraction) else f"{100 * fraction:.0f} %")
    when = f"before half of the epochs (seed by seed: {', '.join(texts)})"
    return False, f"{start} not below the level {levels[-1]:g} {when}{suffix}."


# The figure.


def draw_levels(grids: Sequence[LevelGrid]) -> Figure:
    """Draw accuracy and NLL of every problem against the level.

    Args:
        grids: A grid for each problem.

    Returns:
        The figure.
    """
    panels = []
    for grid in grids:
        levels = grid.cell.levels
        is_tested = []
        for level in levels:
            is_candidate = grid.count_reached(level) > 0 and grid.count_below_cap(level) > 0
            is_tested.append(level == 0 or is_candidate)
        accuracy = grid.curve("test_accuracy", 100.0)
        nll = grid.curve("test_nll")
        panels.append(LevelPanel(grid.cell.title, levels, accuracy, nll, is_tested))
    return accuracy_with_nll(panels)
