"""Grids of levels: a data set or setting to a cell, all its levels with all seeds, compared by what validation chooses.

A level that the training never reached says nothing of flooding; its cell reads "not tested".
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flooding.experiments import circumstances
from flooding.problem import Problem, Record, Run, choose
from flooding.report.document import Report, Table
from flooding.report.evidence import Difference, holm, p_value, paired, spread
from flooding.strategies import together
from flooding.strategies.finder import finder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CURVES", "Cell", "Result", "compare_levels"]

CURVES = ("flooded", "train_loss", "val_accuracy", "val_loss")
_ROWS = ("plain", "flooding", "plain, stopped", "flooding, stopped")


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

    def picks(self, row: str) -> list[Record]:
        """What validation chose, seed by seed."""
        if row.startswith("finder"):
            return list(self.found)
        candidates = [records[:1] if row.startswith("plain") else records[1:] for records in self.table]
        return [choose(records, _at(row)) for records in candidates]

    def values(self, row: str, name: str, times: float = 1.0) -> list[float]:
        """Give a final of what validation chose, seed by seed."""
        return [times * record.finals[f"{_at(row)}.{name}"] for record in self.picks(row)]

    def gain(self, row: str, against: str) -> Difference:
        """Compare the test accuracies of two rows, in points."""
        ours, theirs = (self.values(r, "test_accuracy", 100.0) for r in (row, against))
        return paired(ours, theirs)

    def reached(self) -> list[float]:
        """Share of the epochs after which the plain Run is below the largest level, for each seed; 1 is never."""
        shares = []
        for plain, *_ in self.table:
            below = plain.curves["train_loss"][1:] < self.cell.levels[-1]
            shares.append(float(below.argmax() + 1) / len(below) if below.any() else 1.0)
        return shares


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
        plan: The cells, with as many levels and seeds each.
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
    results = [Result(cell, [[next(told) for _ in cell.levels] for _ in cell.seeds]) for cell in plan]
    rows = [("flooding", "plain", "last"), ("flooding, stopped", "plain, stopped", "stopped")]
    rows += [("flooding", "plain, stopped", "against-stopping")]
    if search:
        places = [(cell, seed) for cell in plan for seed in cell.seeds]
        searches = yield from together([finder(cell.problem, seeds=[seed]) for cell, seed in places])
        trained = yield [answer.run for answer in searches]
        found = iter(trained)
        results = [replace(result, found=[next(found) for _ in result.cell.seeds]) for result in results]
        records = [*records, *(r for answer in searches for r in answer.records), *trained]
        cost = np.mean([answer.cost.steps for answer in searches])
        about = f"{about} The finder spends {cost:.1f} trainings on its level, and one more where that was not trained."
        rows += [("finder", "plain", "finder"), ("finder", "flooding", "finder-against-all")]
    about = (
        f"{about} For each seed the level is chosen by validation accuracy, ties to the lower validation loss, then to "
        "the smaller level; flooding chooses among levels above 0. Test data choose nothing. Mean ± standard deviation "
        f"over {len(plan[0].seeds)} seeds; differences paired by seed, with the 95 % interval of Student's t and p "
        "after Holm's correction over the cells. Stopped: the best validation epoch. Flooded: share of all steps of "
        "the training that were below the level."
    )
    tables = [
        *(_compared(results, *row) for row in rows),
        _losses(results),
        _levels(results),
    ]
    failures, findings = _words(results)
    caption = (
        "Test accuracy and NLL at the last epoch against the flood level: mean and standard deviation over seeds. "
        "Dashed: plain training with early stopping. Open marks: levels that were never reached."
    )
    drawn = {"levels": (caption, partial(_draw, results))}
    drawn |= {name: (said, partial(draw, results)) for name, (said, draw) in (figures or {}).items()}
    return Report(title, about, failures, findings, tables, drawn, circumstances(records))


def _flooded(record: Record) -> float:
    """Share of all steps that were flooded, in percent."""
    return 100 * float(np.mean(record.curves["flooded"][1:], dtype=float))


def _compared(results: Sequence[Result], row: str, against: str, name: str) -> Table:
    """Tabulate two rows."""
    gains = [result.gain(row, against) for result in results]
    lines = []
    for result, gain, p in zip(results, gains, holm([gain.p for gain in gains]), strict=True):
        accuracies = [spread(result.values(r, "test_accuracy", 100.0)) for r in (against, row)]
        levels = ", ".join(f"{record.level:g}" for record in result.picks(row))
        shares = [_flooded(record) for record in result.picks(row)]
        lines.append([result.cell.title, *accuracies, str(gain), p_value(p), levels, _share(shares)])
    columns = ["data", against, row, "difference", "p", "levels", "flooded %"]
    return Table(name, f"Test accuracy in %, n = {len(results[0].cell.seeds)}: {against} and {row}", columns, lines)


def _share(shares: Sequence[float]) -> str:
    return spread(shares) if max(shares) > 0 else "0: not tested"


def _losses(results: Sequence[Result]) -> Table:
    columns = ["data", *(f"{row}: {what}" for what in ("NLL", "ECE") for row in _ROWS)]
    lines = [
        [r.cell.title, *(spread(r.values(row, name), 3) for name in ("test_nll", "test_ece") for row in _ROWS)]
        for r in results
    ]
    return Table("losses", f"Test NLL (nats) and ECE, n = {len(results[0].cell.seeds)}", columns, lines)


def _levels(results: Sequence[Result]) -> Table:
    """Tabulate every level, with the share of flooded steps beside it."""
    lines = []
    for result in results:
        line = [result.cell.title]
        for place in range(len(result.cell.levels)):
            told = [records[place] for records in result.table]
            accuracy = spread([100 * record.finals["last.test_accuracy"] for record in told])
            line.append(accuracy if place == 0 else f"{accuracy} ({_share([_flooded(r) for r in told])})")
        lines.append(line)
    columns = ["data", *(f"b = {level:g}" if level else "plain" for level in results[0].cell.levels)]
    title = f"Test accuracy in % at the last epoch (share of steps flooded in %), n = {len(results[0].cell.seeds)}"
    return Table("levels", title, columns, lines)


def _words(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Say what holds, and first whether the levels were tested at all."""
    failures, findings = [], []
    for result in results:
        shares, top = result.reached(), result.cell.levels[-1]
        when = f"below {top:g} after {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the epochs"
        if max(shares) < 0.5:
            findings.append(f"{result.cell.title}: plain training is {when}, so every level is reached.")
        else:
            failures.append(f"{result.cell.title}: plain training is {when}: not before half of the training.")
    for row, against, what in (
        ("flooding", "plain", "last epoch"),
        ("flooding, stopped", "plain, stopped", "early stopping on both sides"),
        ("flooding", "plain, stopped", "flooding's last epoch against plain early stopping"),
    ):
        gains = [result.gain(row, against) for result in results]
        for result, gain, p in zip(results, gains, holm([gain.p for gain in gains]), strict=True):
            sure = "at 5 %" if p < 0.05 else "not at 5 %"
            verdict = "wins" if gain.mean > 0 else "LOSES" if gain.mean < 0 else "ties"
            sentence = f"{result.cell.title}, {what}: flooding {verdict} by {gain} points, n = {gain.n}, p {p_value(p)}"
            (failures if gain.mean < 0 and p < 0.05 else findings).append(f"{sentence} ({sure}).")
    return failures, findings


def _draw(results: Sequence[Result]) -> Figure:
    """Draw accuracy and NLL against the level, a column for each cell."""
    from flooding.report.plots import PALETTE, drawn, unique

    with drawn(2.6 * len(results) + 0.6, 4.6) as figure:
        panels = figure.subplots(2, len(results), sharex=True, squeeze=False)
        for column, result in zip(panels.T, results, strict=True):
            places = np.arange(len(result.cell.levels))
            tested = [any(_flooded(records[p]) > 0 for records in result.table) or p == 0 for p in places]
            for axes, (name, times) in zip(column, (("test_accuracy", 100.0), ("test_nll", 1.0)), strict=True):
                seen = np.array([[times * r.finals[f"last.{name}"] for r in records] for records in result.table])
                mean = seen.mean(0)
                axes.plot(places, mean, color=PALETTE["flooded"], label="last epoch")
                for place, full in zip(places, tested, strict=True):
                    face = PALETTE["flooded"] if full else "white"
                    axes.plot([place], mean[place], "o", color=PALETTE["flooded"], mfc=face, ms=5)
                if len(seen) > 1:
                    sd = seen.std(0, ddof=1)
                    axes.fill_between(places, mean - sd, mean + sd, color=PALETTE["flooded"], alpha=0.2, lw=0)
                stopped = np.mean(result.values("plain, stopped", name, times))
                axes.axhline(stopped, color=PALETTE["plain"], ls="--", label="plain, early stopping")
            column[0].set_title(result.cell.title.replace(", ", ",\n"))
            column[1].set_xticks(places, [f"{level:g}" for level in result.cell.levels], fontsize=8)
            column[1].set_xlabel("Flood level (nats)")
        panels[0, 0].set_ylabel("Test accuracy (%)")
        panels[1, 0].set_ylabel("Test NLL (nats)")
        figure.legend(*unique(list(panels.flat)), loc="outside lower center", ncols=2)
    return figure
