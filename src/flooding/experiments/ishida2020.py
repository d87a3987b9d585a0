"""The synthetic experiments of Ishida et al., ICML 2020, section 4.1, on the Runs of the level
benchmark.

Three tasks, three noises, 51 levels, 500 epochs, ten seeds. For each seed a level is chosen by
validation accuracy on noisy labels; test data choose nothing. The level benchmark
(``benchmarks/levels``) is these Records in a compact form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flooding import npz
from flooding.data import synthetic
from flooding.experiments import Experiment, Study, describe_provenance
from flooding.experiments.archive import Archive, run_id
from flooding.report.document import Report, Table
from flooding.report.stats import Difference, format_mean_sd, format_p, holm, paired
from flooding.tasks import ishida2020_problem
from flooding.training.problem import Problem
from flooding.training.record import Record, select_best
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CURVES",
    "EXPERIMENT",
    "LEVELS",
    "NOISES",
    "PUBLISHED",
    "TASKS",
    "Cell",
    "cells",
    "experiment",
    "load",
]

TASKS = {
    "two-gaussians": (synthetic.two_gaussians, 10),
    "sinusoid": (synthetic.sinusoid, 2),
    "spiral": (synthetic.spiral, 2),
}
TITLES = {"two-gaussians": "Two Gaussians", "sinusoid": "Sinusoid", "spiral": "Spiral"}
NOISES = (0.01, 0.05, 0.1)
LEVELS = tuple(round(0.01 * n, 2) for n in range(51))
CURVES = ("train_loss", "val_loss", "val_accuracy")

# Test accuracy in percent on noisy labels without early stopping: without flooding, with it, level.
# The paper, then the reproduction of our sources, which has 500 training examples a class, batch
# norm and mini-batches of 200.
PUBLISHED = {
    ("two-gaussians", 0.01): ((90.52, 92.13, 0.17), (90.13, 91.69, 0.18)),
    ("two-gaussians", 0.05): ((84.79, 88.03, 0.22), (83.56, 86.35, 0.23)),
    ("two-gaussians", 0.1): ((78.44, 83.59, 0.32), (77.89, 80.62, 0.29)),
}
_FAR = 1.5  # points between a published figure and ours from which on we say why
_ROWS = ("plain", "flooding", "plain, stopped", "flooding, stopped")


@dataclass(frozen=True)
class Cell:
    """One task at one noise.

    Args:
        task: A name of :data:`TASKS`.
        noise: Share of flipped labels.
        levels: Flood levels in nats, 0 first.
        seeds: Seeds.
        max_epochs: Epochs.
    """

    task: str
    noise: float
    levels: tuple[float, ...] = LEVELS
    seeds: tuple[int, ...] = tuple(range(10))
    max_epochs: int = 500

    @property
    def problem(self) -> Problem:
        """The paper's setting."""
        data, inputs = TASKS[self.task]
        return replace(
            ishida2020_problem(partial(data, label_noise=self.noise), inputs),
            max_epochs=self.max_epochs,
        )

    @property
    def runs(self) -> list[Run]:
        """Every level of every seed, seeds first."""
        problem = self.problem
        return [Run(problem, level, seed=seed) for seed in self.seeds for level in self.levels]

    @property
    def title(self) -> str:
        """Name it for a reader."""
        return f"{TITLES[self.task]}, {100 * self.noise:g} %"


def cells(quick: bool = False) -> list[Cell]:
    """Plan the nine cells.

    Args:
        quick: Two seeds, four levels and 150 epochs: the shape of the result in three minutes on
            two cores.

    Returns:
        Tasks, then noises.
    """
    cell = Cell("", 0.0)
    if quick:
        cell = Cell("", 0.0, (0.0, 0.05, 0.15, 0.3), (0, 1), 150)
    return [replace(cell, task=task, noise=noise) for task in TASKS for noise in NOISES]


def experiment(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all levels of all cells and compare, for each seed, what validation chooses.

    Args:
        quick: See :func:`cells`.
        seeds: Other seeds than the ten, such as those that are trained so far.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    plan = cells(quick)
    if seeds is not None:
        plan = [replace(cell, seeds=tuple(seeds)) for cell in plan]
    records = yield [run for cell in plan for run in cell.runs]
    told = iter(records)
    return _report([(cell, [next(told) for _ in cell.runs]) for cell in plan], records)


@dataclass(frozen=True)
class _Result:
    """What validation chose in a cell: a Record and the epoch it is judged at, for each row and
    seed.
    """

    cell: Cell
    records: list[Record]
    picks: dict[str, list[tuple[Record, str]]]

    def accuracy(self, row: str, labels: str) -> list[float]:
        end = "" if labels == "noisy" else "_clean"
        return self.values(row, f"test_accuracy{end}", 100.0)

    def values(self, row: str, name: str, times: float = 1.0) -> list[float]:
        return [times * record.metrics[f"{at}.{name}"] for record, at in self.picks[row]]

    def gain(self, row: str, against: str, labels: str) -> Difference:
        return paired(self.accuracy(row, labels), self.accuracy(against, labels))

    def levels(self, row: str) -> str:
        levels = [record.level or 0.0 for record, _ in self.picks[row]]
        return f"{np.median(levels):.2f} ({min(levels):.2f} to {max(levels):.2f})"


def _result(cell: Cell, records: list[Record]) -> _Result:
    picks: dict[str, list[tuple[Record, str]]] = {row: [] for row in _ROWS}
    for seed in cell.seeds:
        ours = [record for record in records if record.run is not None and record.run.seed == seed]
        plain, flooded = (
            [r for r in ours if not r.level],
            [r for r in ours if r.level],
        )  # the loss is never below 0
        picks["plain"].append((select_best(plain, "last"), "last"))
        picks["flooding"].append((select_best(flooded, "last"), "last"))
        picks["plain, stopped"].append((select_best(plain, "best"), "best"))
        picks["flooding, stopped"].append((select_best(flooded, "best"), "best"))
    return _Result(cell, records, picks)


def ceiling(task: str, noise: float) -> float:
    """Give the best reachable accuracy on noisy labels, in percent.

    Args:
        task: A name of :data:`TASKS`.
        noise: Share of flipped labels.

    Returns:
        For Sinusoid, whose clean labels are certain, 100 minus the noise.
    """
    if task == "two-gaussians":
        return 100 * synthetic.two_gaussians_best_accuracy(noise)
    return 100 * (synthetic.spiral_best_accuracy(noise) if task == "spiral" else 1 - noise)


def _report(cells_told: Sequence[tuple[Cell, list[Record]]], records: Sequence[Record]) -> Report:
    """Compare what was chosen."""
    results = [_result(cell, told) for cell, told in cells_told]
    n, max_epochs = len(results[0].cell.seeds), results[0].cell.max_epochs
    levels = results[0].cell.levels
    about = (
        "Ishida et al., ICML 2020, section 4.1: 100 training, 100 validation and 20,000 test examples, five hidden "
        f"layers of 500 units, Adam at 0.001, full batches, {max_epochs} epochs, {len(levels)} levels from 0 to "
        f"{max(levels):g}, {n} seeds. For each seed the level is chosen by validation accuracy on noisy labels, ties "
        "to the lower validation loss, then to the smaller level; flooding chooses among levels above 0. Test data "
        "choose nothing. Figures are mean ± standard deviation over seeds; differences are paired by seed, with the "
        "95 % interval of Student's t and p after Holm's correction over the nine rows. Stopped: the best validation "
        "epoch."
    )
    tables = [
        _accuracies(results, "noisy", ("flooding", "plain"), "published"),
        _accuracies(results, "clean", ("flooding", "plain"), "clean"),
        _accuracies(results, "noisy", ("flooding, stopped", "plain, stopped"), "stopped-noisy"),
        _accuracies(results, "clean", ("flooding, stopped", "plain, stopped"), "stopped"),
        _accuracies(results, "clean", ("flooding", "plain, stopped"), "against-stopping"),
        _losses(results),
    ]
    failures, findings = _words(results)
    caption = (
        "Clean test accuracy at the last epoch against the flood level: mean and standard deviation over seeds. "
        "Dashed: plain training with early stopping. Ticks: the levels that validation chose."
    )
    figures = {"levels": (caption, partial(_draw, results))}
    title = "The paper's synthetic table (Ishida et al., 2020)"
    return Report(title, about, failures, findings, tables, figures, describe_provenance(records))


def _accuracies(results: Sequence[_Result], labels: str, rows: tuple[str, str], name: str) -> Table:
    """Tabulate two rows on one kind of labels, with what was published where it is about that."""
    gains = [result.gain(*rows, labels) for result in results]
    columns = ["Task, label noise", rows[1], rows[0], "difference", "p", "level", "ceiling"]
    published = name == "published"
    columns += (
        ["paper: plain", "with", "level", "reproduction: plain", "with", "level"]
        if published
        else []
    )
    table = []
    for result, gain, p in zip(results, gains, holm([gain.p for gain in gains]), strict=True):
        cell = result.cell
        top = ceiling(cell.task, cell.noise if labels == "noisy" else 0.0)
        row = [
            cell.title,
            *(format_mean_sd(result.accuracy(r, labels)) for r in reversed(rows)),
            str(gain),
            format_p(p),
        ]
        row += [result.levels(rows[0]), f"{top:.1f}"]
        if published:
            known = PUBLISHED.get((cell.task, cell.noise), ())
            row += [f"{value:.2f}" for source in known for value in source] or ["–"] * 6
        table.append(row)
    n = len(results[0].cell.seeds)
    title = f"Test accuracy in % on {labels} labels, n = {n}: {rows[1]} and {rows[0]}"
    note = "Published figures for Sinusoid and Spiral are not in our sources." if published else ""
    return Table(name, title, columns, table, note)


def _losses(results: Sequence[_Result]) -> Table:
    columns = ["Task, label noise", *(f"{row}: {what}" for what in ("NLL", "ECE") for row in _ROWS)]
    table = [
        [
            r.cell.title,
            *(
                format_mean_sd(r.values(row, name), 3)
                for name in ("test_nll", "test_ece")
                for row in _ROWS
            ),
        ]
        for r in results
    ]
    n = len(results[0].cell.seeds)
    return Table("losses", f"Test NLL (nats) and ECE on noisy labels, n = {n}", columns, table)


def _words(results: Sequence[_Result]) -> tuple[list[str], list[str]]:
    """Say what holds and what does not, the latter first."""
    failures, findings = [], []
    for result in results:
        known = PUBLISHED.get((result.cell.task, result.cell.noise))
        if known is None:
            continue
        for row, figure, source in zip(
            ("plain", "flooding"), known[0][:2], ("without", "with"), strict=True
        ):
            ours = result.accuracy(row, "noisy")
            if abs(off := float(np.mean(ours)) - figure) > _FAR:
                failures.append(
                    f"{result.cell.title} {source} flooding: {format_mean_sd(ours)} % against the paper's {figure} %, "
                    f"{off:+.1f} points; the experiment ishida2020_settings asks why."
                )
    for rows, labels in (
        (("flooding", "plain"), "last epoch"),
        (("flooding, stopped", "plain, stopped"), "early stopping on both sides"),
        (("flooding", "plain, stopped"), "flooding's last epoch against plain early stopping"),
    ):
        gains = [result.gain(*rows, "clean") for result in results]
        ps = holm([gain.p for gain in gains])
        won = [
            r.cell.title
            for r, g, p in zip(results, gains, ps, strict=True)
            if g.mean > 0 and p < 0.05
        ]
        lost = [
            r.cell.title
            for r, g, p in zip(results, gains, ps, strict=True)
            if g.mean < 0 and p < 0.05
        ]
        mean = format_mean_sd([gain.mean for gain in gains])
        findings.append(
            f"Clean labels, {labels}: flooding wins {len(won)} and loses {len(lost)} of {len(results)} cells at 5 % "
            f"(Holm, n = {gains[0].n} seeds), by {mean} points over the cells{_named('wins', won)}"
            f"{_named('loses', lost)}."
        )
        failures += [f"Flooding loses to {rows[1]} on {title} ({labels})." for title in lost]
    return failures, findings


def _named(verb: str, titles: Sequence[str]) -> str:
    return f"; {verb} {'; '.join(titles)}" if titles else ""


def _draw(results: Sequence[_Result]) -> Figure:
    """Draw clean accuracy against the level, a panel for each cell."""
    from flooding.report.plots import PALETTE, drawn, unique

    with drawn(9.0, 8.0) as figure:
        panels = figure.subplots(len(TASKS), len(NOISES), sharex=True, sharey="row")
        for axes, result in zip(panels.flat, results, strict=True):
            cell = result.cell
            seen = [100 * r.metrics["last.test_accuracy_clean"] for r in result.records]
            table = np.array(seen).reshape(len(cell.seeds), len(cell.levels))
            mean, levels = table.mean(0), np.array(cell.levels)
            axes.plot(levels, mean, color=PALETTE["flooded"], label="last epoch")
            if len(table) > 1:
                sd = table.std(0, ddof=1)
                axes.fill_between(
                    levels, mean - sd, mean + sd, color=PALETTE["flooded"], alpha=0.2, lw=0
                )
            stopped = np.mean(result.accuracy("plain, stopped", "clean"))
            axes.axhline(stopped, color=PALETTE["plain"], ls="--", label="plain, early stopping")
            axes.axhline(ceiling(cell.task, 0.0), color="0.6", ls=":", label="best possible")
            chosen = [record.level or 0.0 for record, _ in result.picks["flooding"]]
            axes.plot(
                chosen,
                np.full(len(chosen), 0.03),
                "|",
                color="black",
                ms=9,
                transform=axes.get_xaxis_transform(),
            )
            axes.set_title(cell.title)
        for axes in panels[-1]:
            axes.set_xlabel("Flood level (nats)")
        for axes in panels[:, 0]:
            axes.set_ylabel("Clean test accuracy (%)")
        figure.legend(*unique(list(panels.flat)), loc="outside lower center", ncols=3)
    return figure


def load(path: str | Path) -> _Levels | Archive:
    """Read the level benchmark, or an archive of this experiment, in place of trainings.

    Args:
        path: ``benchmarks/levels`` of the repository, or an archive's file.

    Returns:
        An ``evaluate`` for Runs of the nine cells, which has ``seeds``.
    """
    return Archive(path) if Path(path).is_file() else _Levels(path)


class _Levels:
    """The level benchmark as an ``evaluate``."""

    def __init__(self, folder: str | Path) -> None:
        seeds = ((path.stem.removeprefix("seed"), path) for path in Path(folder).glob("seed*.npz"))
        files = sorted(
            (int(seed), path) for seed, path in seeds if seed.isascii() and seed.isdigit()
        )
        if not files:
            raise ValueError(
                f"the level benchmark is a folder of files seed0.npz ..., got {folder}, which has none."
            )
        self.tables = {seed: _read(path) for seed, path in files}
        self.seeds = tuple(self.tables)
        self._cells = {run_id(Run(cell.problem)): cell for cell in cells()}

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs of full length up."""
        return [self._record(run) for run in runs]

    def __contains__(self, run: Run) -> bool:
        whole = (
            run_id(replace(run, level=None, seed=0)) in self._cells
        )  # of full length, by flooding
        return whole and run.seed in self.tables and (run.level or 0.0) in LEVELS

    def _record(self, run: Run) -> Record:
        if run not in self:
            raise ValueError(
                f"the level benchmark has no seed {run.seed}, level {run.level} of this problem."
            )
        cell = self._cells[run_id(replace(run, level=None, seed=0))]
        index = round(100 * (run.level or 0.0))
        table = self.tables[run.seed]
        place = (list(TASKS).index(cell.task), NOISES.index(cell.noise), index)
        curves = {
            name: table[name][place].astype(np.float32) for name in ("train_loss", "val_loss")
        }
        curves["val_accuracy"] = table["val_right"][place].astype(np.float32) / 100
        finals = {"epochs": 500.0}
        for at in ("last", "best"):
            epoch = int(table[f"{at}_epoch"][place])
            finals |= {f"{at}.{name}": float(curve[epoch]) for name, curve in curves.items()}
            measured = [name for name in table if name.startswith(f"{at}_")]
            finals |= {name.replace("_", ".", 1): float(table[name][place]) for name in measured}
        told, _, hours = str(table["told"]).removesuffix(" core hours").rpartition(", ")
        seconds = 3600 * float(hours) / (len(TASKS) * len(NOISES) * len(LEVELS))
        told = {
            "seconds": seconds,
            "on": ", ".join(told.split(", ")[2:]),
        }  # without engine and torch, told again
        return Record(run, curves, {}, finals, "", "", told)


_GRID = (len(TASKS), len(NOISES), len(LEVELS))
_CURVES = dict.fromkeys(("train_loss", "val_loss", "val_right"), (*_GRID, 501))
_AT = ("epoch", "test_accuracy", "test_accuracy_clean", "test_nll", "test_nll_clean", "test_ece")
_FIGURES = {f"{at}_{name}": _GRID for at in ("last", "best") for name in _AT}


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read a file of the level benchmark, and check that it holds what it must."""
    try:
        table = npz.read(path)
        known = {*_CURVES, *_FIGURES, "tasks", "noises", "levels", "told"}
        if odd := sorted(set(table) - known):
            raise ValueError(f"it holds {odd[0][:100]}, which is unknown")
        shapes = {name: values.shape for name, values in table.items() if values.dtype.kind in "fu"}
        for name, shape in (_CURVES | _FIGURES).items():
            if shapes.get(name) != shape:
                raise ValueError(f"{name} must be numbers of shape {shape}, got {shapes.get(name)}")
        for name, values in {
            "tasks": list(TASKS),
            "noises": list(NOISES),
            "levels": list(LEVELS),
        }.items():
            if name not in table or table[name].tolist() != values:
                raise ValueError(f"its {name} must be {values}")
        epochs = np.stack([table["last_epoch"], table["best_epoch"]])
        if not ((epochs >= 0) & (epochs <= 500)).all():
            raise ValueError("its epochs must lie in 0 to 500")
        if not re.search(r", [0-9.]+ core hours$", str(table.get("told"))):
            raise ValueError("it does not tell the machine and the core hours")
    except ValueError as error:
        raise ValueError(
            f"a file of the level benchmark must be whole, got {path}: {error}. Get it from git."
        ) from None
    return table


EXPERIMENT = Experiment("ishida2020", experiment, CURVES, load=load)
