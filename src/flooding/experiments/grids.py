"""Grids of levels: a data set or setting to a cell, all its levels with all seeds, compared by what
validation chooses.

A level that the training never reached says nothing of flooding; its cell reads "not tested".
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flooding.experiments import describe_provenance
from flooding.level_search.base import run_concurrently
from flooding.level_search.finder import finder
from flooding.report.document import Report, Table
from flooding.report.stats import (
    Difference,
    describe_difference,
    format_mean_sd,
    format_p,
    holm,
    paired,
    pluralize,
)
from flooding.training.problem import Problem
from flooding.training.record import Record, select_best
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CURVES",
    "REACHED",
    "Cell",
    "Result",
    "compare_levels",
    "falls",
    "flooded_share",
    "percent",
    "reached",
]

REACHED = (
    0.01  # least share of the steps below a level, for it to count as reached; fixed beforehand
)
CURVES = ("flooded", "train_loss", "val_accuracy", "val_loss")
_ROWS = ("plain", "flooding", "plain, stopped", "flooding, stopped")
_CLAIMED = ("last", "stopped")  # where the paper says that flooding helps


@dataclass(frozen=True)
class Cell:
    """One data set in one setting.

    Args:
        title: Name it for a reader.
        problem: What is trained.
        levels: Flood levels in nats, 0 first.
        seeds: Seeds.
    """

    title: str
    problem: Problem
    levels: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> list[Run]:
        """Every level of every seed, seeds first; the longest work is the same for all."""
        return [Run(self.problem, level, seed=seed) for seed in self.seeds for level in self.levels]


@dataclass(frozen=True)
class Result:
    """The Records of a cell.

    Args:
        cell: The cell.
        table: Records by seed, then by level.
        found: Records of what the finder chose, seed by seed, where it was asked.
    """

    cell: Cell
    table: list[list[Record]]
    found: Sequence[Record] = ()

    def pick(self, row: str, place: int) -> Record | None:
        """Give what validation chose for a seed; None where no level above 0 was reached before the
        row's epoch.
        """
        if row.startswith("finder"):
            return self.found[place]
        records, at = self.table[place], _at(row)
        candidates = (
            records[:1] if row.startswith("plain") else [r for r in records[1:] if reached(r, at)]
        )
        return select_best(candidates, at) if candidates else None

    def picks(self, row: str) -> list[Record]:
        """Give what validation chose, seed by seed, without those in which no level was reached."""
        chosen = (self.pick(row, place) for place in range(len(self.table)))
        return [record for record in chosen if record is not None]

    def values(self, row: str, name: str, times: float = 1.0) -> list[float]:
        """Give a final of what validation chose, seed by seed."""
        return [times * record.metrics[f"{_at(row)}.{name}"] for record in self.picks(row)]

    def pairs(self, row: str, against: str) -> list[tuple[Record, Record]]:
        """Give what validation chose for two rows, in the seeds that have both; none if they are
        the same training.
        """
        if (row, against) == ("finder", "plain") and not any(record.level for record in self.found):
            return []
        both = (
            (self.pick(row, place), self.pick(against, place)) for place in range(len(self.table))
        )
        return [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]

    def gain(self, row: str, against: str) -> Difference | None:
        """Compare the test accuracies of two rows, in points; None if there is no pair."""
        pairs = self.pairs(row, against)
        if not pairs:
            return None
        sides = zip((row, against), zip(*pairs, strict=True), strict=True)
        return paired(*(_accuracies(side, records) for side, records in sides))

    def reached(self, level: float) -> int:
        """Count the seeds in which a level was reached."""
        place = self.cell.levels.index(level)
        return sum(reached(records[place]) for records in self.table)


def falls(plain: Sequence[Record], level: float) -> list[float]:
    """Tell when plain training is below a level, so that flooding can begin.

    Args:
        plain: Records of plain training.
        level: The level, in nats.

    Returns:
        For each, the share of its epochs after which its training loss is below the level first;
        NaN is never.
    """
    shares = []
    for record in plain:
        below = record.curves["train_loss"][1:] < level
        shares.append(float(below.argmax() + 1) / len(below) if below.any() else math.nan)
    return shares


def percent(shares: Sequence[float]) -> str:
    """Write shares as a range.

    Args:
        shares: Shares, 0 to 1.

    Returns:
        Such as ``18 to 24 %``.

    Example:
        >>> percent([0.24, 0.18]), percent([0.5])
        ('18 to 24 %', '50 %')
    """
    first, last = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{first if first == last else f'{first} to {last}'} %"


def reached(record: Record, at: Literal["best", "last"] = "last") -> bool:
    """Tell whether a level was reached by more than a stray batch.

    Args:
        record: A Record of a constant level.
        at: See :func:`flooded_share`.

    Returns:
        Whether at least one in a hundred of the steps was below the level.
    """
    return flooded_share(record, at) >= 100 * REACHED


def _at(row: str) -> Literal["best", "last"]:
    """Tell which epoch a row of the tables is about."""
    return "best" if row.endswith("stopped") else "last"


def compare_levels(
    plan: Sequence[Cell],
    title: str,
    about: str,
    figures: Mapping[str, Any] | None = None,
    *,
    search: bool = False,
) -> Generator[list[Run], list[Record], Report]:
    """Train all levels of all cells and compare, for each seed, what validation chooses.

    Args:
        plan: The cells, with as many seeds each.
        title: The report's heading.
        about: What was done; how levels are chosen and figures are to be read is added.
        figures: Further figures by name: caption, and what draws the results.
        search: Whether to ask the finder, too, and train what it finds.

    Yields:
        The Runs: levels at once, then those that the finder asks for.

    Returns:
        The report.
    """
    records = yield [run for cell in plan for run in cell.runs]
    told = iter(records)
    results = [
        Result(cell, [[next(told) for _ in cell.levels] for _ in cell.seeds]) for cell in plan
    ]
    rows = [("flooding", "plain", "last"), ("flooding, stopped", "plain, stopped", "stopped")]
    rows += [("flooding", "plain, stopped", "against-stopping")]
    if search:
        places = [(cell, seed) for cell in plan for seed in cell.seeds]
        searches = yield from run_concurrently([
            finder(cell.problem, seeds=[seed]) for cell, seed in places
        ])
        trained = yield [answer.run for answer in searches]
        found = iter(trained)
        results = [
            replace(result, found=[next(found) for _ in result.cell.seeds]) for result in results
        ]
        records = [*records, *(r for answer in searches for r in answer.records), *trained]
        cost = np.mean([answer.cost.steps for answer in searches])
        about = f"{about} The finder spends {cost:.1f} trainings on its level, and one more where that was not trained."
        rows += [("finder", "plain", "finder"), ("finder", "flooding", "finder-against-all")]
    seeds = pluralize(len(plan[0].seeds), "seed")
    about = (
        f"{about} For each seed the level is chosen by validation accuracy, ties to the lower validation loss, then to "
        "the smaller level; flooding chooses among the levels above 0 that were reached, in at least "
        f"{100 * REACHED:g} % of the steps up to the epoch that is tested: others are plain training. Test data choose "
        "nothing. Mean ± standard "
        f"deviation over {seeds}; differences paired by seed, with the 95 % interval of Student's t "
        "and p after Holm's correction over the cells. Stopped: the best validation epoch. Flooded: share of the steps "
        "that were below the level, of all or, with early stopping, of those up to the best epoch. All seeds are "
        "tested on the same images: the intervals are about training and its data. With early stopping this asks what "
        "flooded weights are worth where the best epoch comes after the level was reached, which is a result of "
        "validation, too; chosen among all levels, the weights would often be those of plain training."
    )
    tables = [
        *(_compared(results, *row) for row in rows),
        _losses(results),
        _levels(results),
    ]
    failures, findings = _words(results, rows)
    caption = (
        "Test accuracy and NLL at the last epoch against the flood level: mean and standard deviation over seeds. "
        "Dashed: plain training with early stopping. Open marks: levels that were never reached."
    )
    drawn = {"levels": (caption, partial(_draw, results))}
    drawn |= {
        name: (said, partial(draw, results)) for name, (said, draw) in (figures or {}).items()
    }
    return Report(title, about, failures, findings, tables, drawn, describe_provenance(records))


def flooded_share(record: Record, at: Literal["best", "last"] = "last") -> float:
    """Share of the steps of a training that were flooded.

    Args:
        record: A Record of a constant level, or of plain training.
        at: Steps up to the last epoch, or up to the best: weights of a best epoch without a flooded
            step before it are those of plain training.

    Returns:
        Percent.
    """
    end = int(record.metrics["best.epoch"]) + 1 if at == "best" else None
    return 100 * float(np.mean(record.curves["flooded"][1:end], dtype=float))


def _compared(results: Sequence[Result], row: str, against: str, name: str) -> Table:
    """Tabulate two rows."""
    gains = [result.gain(row, against) for result in results]
    lines = []
    for result, gain, p in zip(results, gains, _holm(gains), strict=True):
        if gain is None:
            plain = format_mean_sd(result.values(against, "test_accuracy", 100.0))
            lines.append([result.cell.title, plain, _untested(row, against), "–", "–", "–", "–"])
            continue
        ours, theirs = zip(*result.pairs(row, against), strict=True)
        accuracies = [
            format_mean_sd(_accuracies(against, theirs)),
            format_mean_sd(_accuracies(row, ours)),
        ]
        levels = ", ".join(f"{record.level or 0.0:g}" for record in ours)  # the note says what 0 is
        shares = format_mean_sd([flooded_share(record, _at(row)) for record in ours])
        lines.append([
            result.cell.title,
            *accuracies,
            f"{gain}, n = {gain.n}",
            format_p(p),
            levels,
            shares,
        ])
    columns = ["data", against, row, "difference", "p", "levels", "flooded %"]
    note = "Level 0: the finder found none worth flooding." if row == "finder" else ""
    return Table(
        name,
        f"Test accuracy in %, mean ± standard deviation: {against} and {row}",
        columns,
        lines,
        note,
    )


def _accuracies(row: str, records: Sequence[Record]) -> list[float]:
    """Test accuracies in percent, at the epoch that a row is about."""
    return [100 * record.metrics[f"{_at(row)}.test_accuracy"] for record in records]


def _untested(row: str, against: str = "plain") -> str:
    """Say why a row is not tested where it is not."""
    if (row, against) == ("finder", "plain"):
        return "not tested: the finder chose no flooding"
    return "not tested: no level was reached" + (
        " before the best epoch" if row.endswith("stopped") else ""
    )


def _holm(gains: Sequence[Difference | None]) -> list[float]:
    return holm([math.nan if gain is None else gain.p for gain in gains])


def _losses(results: Sequence[Result]) -> Table:
    floods = [row for row in _ROWS if row.startswith("flooding")]
    columns = [f"{row}: {what}" for what in ("NLL", "ECE") for row in _ROWS]
    columns = ["data", *columns, *(f"{row}: flooded %" for row in floods)]
    lines = []
    for r in results:
        told = [
            format_mean_sd(r.values(row, name), 3)
            for name in ("test_nll", "test_ece")
            for row in _ROWS
        ]
        shares = {
            row: [flooded_share(record, _at(row)) for record in r.picks(row)] for row in floods
        }
        lines.append([r.cell.title, *told, *(_share(row, some) for row, some in shares.items())])
    note = "Flooding: over the seeds in which a level was reached before the epoch that is tested."
    return Table(
        "losses", f"Test NLL (nats) and ECE, n = {len(results[0].cell.seeds)}", columns, lines, note
    )


def _share(row: str, shares: Sequence[float]) -> str:
    return f"{format_mean_sd(shares)}, n = {len(shares)}" if shares else _untested(row)


def _levels(results: Sequence[Result]) -> Table:
    """Tabulate every level, with the share of flooded steps beside it."""
    lines = []
    for result in results:
        for place, level in enumerate(result.cell.levels):
            told = [records[place] for records in result.table]
            line = [result.cell.title, f"{level:g}" if level else "plain"]
            line += [format_mean_sd([r.metrics["last.train_loss"] for r in told], 3)]
            for at in ("last", "best"):
                tested = sum(reached(r, at) for r in told)
                line += [
                    format_mean_sd([100 * r.metrics[f"{at}.test_accuracy"] for r in told]),
                    format_mean_sd([flooded_share(r, at) for r in told]) if level else "–",
                    f"{tested} of {len(told)}" + ("" if tested else ": not tested")
                    if level
                    else "–",
                ]
            lines.append(line)
    columns = ["data", "level", "training loss", "last epoch", "flooded %", "reached"]
    columns += ["stopped", "flooded %, stopped", "reached, stopped"]
    return Table(
        "levels",
        f"Test accuracy in % at each level, n = {len(results[0].cell.seeds)}",
        columns,
        lines,
    )


def _words(
    results: Sequence[Result], rows: Sequence[tuple[str, str, str]]
) -> tuple[list[str], list[str]]:
    """Say what holds, and first whether the levels were tested at all; what the paper claims holds
    if it is shown.
    """
    failures, findings = [], []
    for result in results:
        top = result.cell.levels[-1]
        shares = falls([plain for plain, *_ in result.table], top)
        never = [b for b in result.cell.levels[1:] if not result.reached(b)]
        missing = f"; never reached: {', '.join(f'{b:g}' for b in never)}" if never else ""
        if all(share < 0.5 for share in shares):
            when = f"after {percent(shares)} of the epochs"
            findings.append(
                f"{result.cell.title}: plain training is below the level {top:g} {when}{missing}."
            )
        else:
            told = ", ".join(
                "never" if math.isnan(share) else f"{100 * share:.0f} %" for share in shares
            )
            sentence = f"{result.cell.title}: plain training is not below the level {top:g} before half of the epochs"
            failures.append(f"{sentence} (seed by seed: {told}){missing}.")
    what = {"last": "last epoch", "stopped": "early stopping on both sides"}
    what |= {"against-stopping": "flooding's last epoch against plain early stopping"}
    what |= {"finder": "the finder against plain training"}
    what |= {"finder-against-all": "the finder against what validation chose of all levels above 0"}
    for row, against, name in rows:
        gains = [result.gain(row, against) for result in results]
        for result, gain, p in zip(results, gains, _holm(gains), strict=True):
            if gain is None:
                (findings if name == "finder" else failures).append(
                    f"{result.cell.title}, {what[name]}: {_untested(row, against)}."
                )
                continue
            ours = "the finder" if row == "finder" else "flooding"
            sentence = f"{result.cell.title}, {what[name]}: {ours} {describe_difference(gain, p)} points, n = {gain.n}"
            if others := len(result.table) - gain.n:
                sentence += f" ({pluralize(others, 'seed')} {_untested(row, against)})"
            lost = (
                not (p < 0.05 and gain.mean > 0) if name in _CLAIMED else p < 0.05 and gain.mean < 0
            )
            (failures if lost else findings).append(f"{sentence}, p {format_p(p)}.")
    return failures, findings


def _draw(results: Sequence[Result]) -> Figure:
    """Draw accuracy and NLL against the level, a column for each cell."""
    from flooding.report.plots import PALETTE, drawn, unique

    with drawn(2.6 * len(results) + 0.6, 4.6) as figure:
        panels = figure.subplots(2, len(results), sharex="col", squeeze=False)
        for column, result in zip(panels.T, results, strict=True):
            places = np.arange(len(result.cell.levels))
            tested = [level == 0 or result.reached(level) > 0 for level in result.cell.levels]
            for axes, (name, times) in zip(
                column, (("test_accuracy", 100.0), ("test_nll", 1.0)), strict=True
            ):
                seen = np.array([
                    [times * r.metrics[f"last.{name}"] for r in records] for records in result.table
                ])
                mean = seen.mean(0)
                axes.plot(places, mean, color=PALETTE["flooded"], label="last epoch")
                for place, full in zip(places, tested, strict=True):
                    face = PALETTE["flooded"] if full else "white"
                    axes.plot([place], mean[place], "o", color=PALETTE["flooded"], mfc=face, ms=5)
                if len(seen) > 1:
                    sd = seen.std(0, ddof=1)
                    axes.fill_between(
                        places, mean - sd, mean + sd, color=PALETTE["flooded"], alpha=0.2, lw=0
                    )
                stopped = np.mean(result.values("plain, stopped", name, times))
                axes.axhline(
                    stopped, color=PALETTE["plain"], ls="--", label="plain, early stopping"
                )
            column[0].set_title(result.cell.title.replace(", ", ",\n"))
            column[1].set_xticks(places, [f"{level:g}" for level in result.cell.levels], fontsize=8)
            column[1].set_xlabel("Flood level (nats)")
        panels[0, 0].set_ylabel("Test accuracy (%)")
        panels[1, 0].set_ylabel("Test NLL (nats)")
        figure.legend(*unique(list(panels.flat)), loc="outside lower center", ncols=2)
    return figure
