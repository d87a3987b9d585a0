"""The synthetic experiments of Ishida et al., ICML 2020, section 4.1.

Three tasks, three noises, 51 levels, 500 epochs, ten seeds. For each seed a level is chosen by
validation accuracy on noisy labels; test data choose nothing. The level benchmark
(``benchmarks/levels``) holds these Records in a compact form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flooding.experiments.archive import Archive, Source
from flooding.experiments.experiment import Experiment, Study
from flooding.experiments.level_benchmark import LevelBenchmark
from flooding.experiments.provenance import describe_provenance
from flooding.experiments.study import (
    COMPARISONS,
    LOSS_COLUMNS,
    Comparison,
    LevelGrid,
    all_runs,
    level_grids,
    loss_row,
)
from flooding.experiments.synthetic_cells import (
    LEVELS,
    NOISES,
    TASKS,
    SyntheticCell,
    best_accuracy,
    cells,
    synthetic_cell,
)
from flooding.report.document import Report, Table
from flooding.report.level_figures import LevelPanel, accuracy_grid
from flooding.report.stats import (
    Difference,
    adjust,
    format_mean_sd,
    format_median_range,
    format_p,
)
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "EXPERIMENT",
    "LEVELS",
    "NOISES",
    "PUBLISHED",
    "TASKS",
    "SyntheticCell",
    "cells",
    "load",
    "start",
    "synthetic_cell",
]

# Test accuracy in percent on noisy labels without early stopping: without flooding, with it, level.
# The paper, then the reproduction of our sources, which has 500 training examples a class, batch
# norm and mini-batches of 200.
PUBLISHED = {
    ("two-gaussians", 0.01): ((90.52, 92.13, 0.17), (90.13, 91.69, 0.18)),
    ("two-gaussians", 0.05): ((84.79, 88.03, 0.22), (83.56, 86.35, 0.23)),
    ("two-gaussians", 0.1): ((78.44, 83.59, 0.32), (77.89, 80.62, 0.29)),
}
_MAX_DISTANCE = 1.5  # points between a published figure and ours from which on we say why
_METRICS = {"noisy": "test_accuracy", "clean": "test_accuracy_clean"}


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
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
    records = yield all_runs(plan)
    # Every level counts, as in the paper, whether it was reached or not.
    grids = level_grids(plan, records, reached_only=False)
    return _report([_Result(*pair) for pair in zip(plan, grids, strict=True)], records)


class _Result:
    """A cell and its Records.

    Args:
        cell: The cell.
        grid: Its Records.
    """

    def __init__(self, cell: SyntheticCell, grid: LevelGrid) -> None:
        self.cell, self.grid = cell, grid
        self.published = PUBLISHED.get((cell.task, cell.noise))

    def accuracy(self, row: str, labels: str) -> list[float]:
        """Test accuracies in percent."""
        return self.grid.values(row, _METRICS[labels], 100.0)

    def gain(self, comparison: Comparison, labels: str) -> Difference:
        """What one row gains on the other: every seed has both."""
        gain = self.grid.gain(comparison.row, comparison.against, _METRICS[labels])
        assert gain is not None
        return gain

    def levels(self, row: str) -> list[float]:
        """The levels that validation picked."""
        return [record.level or 0.0 for record in self.grid.picks(row)]

    @property
    def panel(self) -> LevelPanel:
        """What the figure shows."""
        accuracy = self.grid.curve("test_accuracy_clean", 100.0)
        picked, ceiling = self.levels("flooding"), best_accuracy(self.cell.task, 0.0)
        return LevelPanel(
            self.cell.title, self.cell.levels, accuracy, picked=picked, ceiling=ceiling
        )


def _report(results: Sequence[_Result], records: Sequence[Record]) -> Report:
    cell = results[0].cell
    about = (
        "Ishida et al., ICML 2020, section 4.1: 100 training, 100 validation and 20,000 test "
        "examples, five hidden layers of 500 units, Adam at 0.001, full batches, "
        f"{cell.problem.max_epochs} epochs, {len(cell.levels)} levels from 0 to "
        f"{max(cell.levels):g}, {len(cell.seeds)} seeds. For each seed the level is chosen by "
        "validation accuracy on noisy labels, ties to the lower validation loss, then to the "
        "smaller level; flooding chooses among levels above 0. Test data choose nothing. Figures "
        "are mean ± standard deviation over seeds; differences are paired by seed, with the 95 % "
        "interval of Student's t and p after Holm's correction over the nine rows. Stopped: the "
        "best validation epoch."
    )
    last, stopped, against_stopping = COMPARISONS
    tables = [
        _accuracies(results, "noisy", last, "published"),
        _accuracies(results, "clean", last, "clean"),
        _accuracies(results, "noisy", stopped, "stopped-noisy"),
        _accuracies(results, "clean", stopped, "stopped"),
        _accuracies(results, "clean", against_stopping, "against-stopping"),
        _losses(results),
    ]
    failures, findings = _distances(results), []
    for comparison in COMPARISONS:
        losses, finding = _compare(results, comparison)
        failures += losses
        findings.append(finding)
    caption = (
        "Clean test accuracy at the last epoch against the flood level: mean and standard "
        "deviation over seeds. Dashed: plain training with early stopping. Ticks: the levels that "
        "validation chose."
    )
    figures = {"levels": (caption, partial(_draw, results))}
    title = "The paper's synthetic table (Ishida et al., 2020)"
    return Report(title, about, failures, findings, tables, figures, describe_provenance(records))


def _accuracies(
    results: Sequence[_Result], labels: str, comparison: Comparison, name: str
) -> Table:
    """Tabulate two rows on one kind of labels, with what was published about them."""
    row, against = comparison.row, comparison.against
    gains = [result.gain(comparison, labels) for result in results]
    columns = ["Task, label noise", against, row, "difference", "p", "level", "ceiling"]
    is_published = name == "published"
    if is_published:
        columns += ["paper: plain", "with", "level", "reproduction: plain", "with", "level"]
    rows = []
    for result, gain, p in zip(results, gains, adjust(gains), strict=True):
        ceiling = best_accuracy(result.cell.task, result.cell.noise if labels == "noisy" else 0.0)
        cells = [
            result.cell.title,
            format_mean_sd(result.accuracy(against, labels)),
            format_mean_sd(result.accuracy(row, labels)),
            str(gain),
            format_p(p),
            format_median_range(result.levels(row)),
            f"{ceiling:.1f}",
        ]
        if is_published and result.published:
            paper, reproduction = result.published
            cells += [f"{value:.2f}" for value in (*paper, *reproduction)]
        elif is_published:
            cells += ["–"] * 6
        rows.append(cells)
    n = len(results[0].cell.seeds)
    title = f"Test accuracy in % on {labels} labels, n = {n}: {against} and {row}"
    note = "Published figures for Sinusoid and Spiral are not in our sources."
    return Table(name, title, columns, rows, note if is_published else "")


def _losses(results: Sequence[_Result]) -> Table:
    rows = [[result.cell.title, *loss_row(result.grid)] for result in results]
    title = f"Test NLL (nats) and ECE on noisy labels, n = {len(results[0].cell.seeds)}"
    return Table("losses", title, ["Task, label noise", *LOSS_COLUMNS], rows)


def _distances(results: Sequence[_Result]) -> list[str]:
    """Say where our accuracies are far from the paper's."""
    sentences = []
    for result in results:
        if result.published is None:
            continue
        without, flooded, _ = result.published[0]
        for row, word, figure in (("plain", "without", without), ("flooding", "with", flooded)):
            accuracy = result.accuracy(row, "noisy")
            distance = float(np.mean(accuracy)) - figure
            if abs(distance) > _MAX_DISTANCE:
                sentences.append(
                    f"{result.cell.title} {word} flooding: {format_mean_sd(accuracy)} % against "
                    f"the paper's {figure} %, {distance:+.1f} points; the experiment "
                    "ishida2020_settings asks why."
                )
    return sentences


def _compare(results: Sequence[_Result], comparison: Comparison) -> tuple[list[str], str]:
    """Count the cells in which flooding wins and loses, on clean labels."""
    gains = [result.gain(comparison, "clean") for result in results]
    wins, losses = [], []
    for result, gain, p in zip(results, gains, adjust(gains), strict=True):
        if p < 0.05:
            (wins if gain.mean > 0 else losses).append(result.cell.title)
    finding = (
        f"Clean labels, {comparison.title}: flooding wins {len(wins)} and loses {len(losses)} of "
        f"{len(results)} cells at 5 % (Holm, n = {gains[0].n} seeds), by "
        f"{format_mean_sd([gain.mean for gain in gains])} points over the cells"
    )
    for verb, titles in (("wins", wins), ("loses", losses)):
        if titles:
            finding += f"; {verb} {'; '.join(titles)}"
    what = f"Flooding loses to {comparison.against} on"
    return [f"{what} {title} ({comparison.title})." for title in losses], f"{finding}."


def _draw(results: Sequence[_Result]) -> Figure:
    return accuracy_grid([result.panel for result in results], len(NOISES))


def load(path: str | Path) -> Source:
    """Read the level benchmark, or an archive of this experiment, in place of trainings.

    Args:
        path: ``benchmarks/levels`` of the repository, or an archive's file.

    Returns:
        A source of the Records of the nine cells.
    """
    return Archive(path) if Path(path).is_file() else LevelBenchmark(path)


EXPERIMENT = Experiment("ishida2020", start, ("train_loss", "val_loss", "val_accuracy"), load=load)
