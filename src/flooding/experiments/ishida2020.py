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
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flooding.experiments import Experiment, Study, study
from flooding.experiments.level_benchmark import LevelBenchmark
from flooding.experiments.synthetic_cells import NOISES, SyntheticCell, best_accuracy, cells
from flooding.report import stats
from flooding.report.claims import Tally
from flooding.report.document import Report, Table
from flooding.report.level_figures import LevelPanel, accuracy_grid
from flooding.report.level_grid import COMPARISONS, LOSS_COLUMNS, Comparison, LevelGrid
from flooding.report.provenance import describe_provenance
from flooding.training.archive import Archive, Source
from flooding.training.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Test accuracy in percent on noisy labels without early stopping: without flooding, with it, level.
# The paper, then the reproduction of our sources, which has 500 training examples a class, batch
# norm and mini-batches of 200.
PUBLISHED = {
    ("two-gaussians", 0.01): ((90.52, 92.13, 0.17), (90.13, 91.69, 0.18)),
    ("two-gaussians", 0.05): ((84.79, 88.03, 0.22), (83.56, 86.35, 0.23)),
    ("two-gaussians", 0.1): ((78.44, 83.59, 0.32), (77.89, 80.62, 0.29)),
}
# Points between a published figure and ours from which on we say why.
_MAX_DISTANCE = 1.5
_Grid: TypeAlias = LevelGrid[SyntheticCell]
_METRICS = {"noisy": "test_accuracy", "clean": "test_accuracy_clean"}


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all levels of all cells and compare, for each seed, what validation picks."""
    plan = cells(quick)
    # The user's seeds, if there are any, in place of the paper's ten.
    if seeds is not None:
        plan = [replace(cell, seeds=tuple(seeds)) for cell in plan]
    records = yield study.all_runs(plan)
    # Every level counts, as in the paper, whether it was reached, and whether it lies above the cap
    # of the seed's plain training or not.
    grids = study.level_grids(plan, records, candidates_only=False)
    return _report(grids, records)


def _published(grid: _Grid) -> tuple[tuple[float, ...], ...]:
    """What the paper and the reproduction printed, if anything."""
    return PUBLISHED.get((grid.cell.task, grid.cell.noise), ())


def _accuracy(grid: LevelGrid, row: str, labels: str) -> list[float]:
    """Test accuracies in percent."""
    return grid.values(row, _METRICS[labels], 100.0)


def _gain(grid: LevelGrid, comparison: Comparison, labels: str) -> stats.Difference:
    """What one row gains on the other: every seed has both."""
    gain = grid.gain(comparison.row, comparison.against, _METRICS[labels])
    assert gain is not None
    return gain


def _report(grids: Sequence[_Grid], records: Sequence[Record]) -> Report:
    cell = grids[0].cell
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
        _accuracies(grids, "noisy", last, "published"),
        _accuracies(grids, "clean", last, "clean"),
        _accuracies(grids, "noisy", stopped, "stopped-noisy"),
        _accuracies(grids, "clean", stopped, "stopped"),
        _accuracies(grids, "clean", against_stopping, "against-stopping"),
        _losses(grids),
    ]
    # Failures: figures far from the paper's, then cells in which flooding loses.
    failures, findings = _distances(grids), []
    for comparison in COMPARISONS:
        losses, finding = _compare(grids, comparison)
        failures += losses
        findings.append(finding)
    caption = (
        "Clean test accuracy at the last epoch against the flood level: mean and standard "
        "deviation over seeds. Dashed: plain training with early stopping. Ticks: the levels that "
        "validation chose."
    )
    figures = {"levels": (caption, partial(_draw, grids))}
    title = "The paper's synthetic table (Ishida et al., 2020)"
    return Report(
        title,
        about,
        failures,
        findings,
        tables,
        figures,
        describe_provenance(records),
        _answer(grids),
        {grid.cell.title: grid.by_level for grid in grids},
    )


def _answer(grids: Sequence[_Grid]) -> str:
    """Say how flooding compares on clean labels, and whether the paper's figures are met."""
    last, _, against_stopping = COMPARISONS
    tallies = []
    for comparison in (last, against_stopping):
        gains = [_gain(grid, comparison, "clean") for grid in grids]
        tallies.append(Tally.of(gains, stats.adjust(gains)).describe("cell"))
    gain = np.mean([_gain(grid, last, "clean").mean for grid in grids])
    published = 2 * sum(bool(_published(grid)) for grid in grids)
    return (
        f"Against plain training, flooding's last epoch is {tallies[0]}: {gain:+.1f} points of "
        f"accuracy on average. Against plain early stopping it is {tallies[1]}. "
        f"{published - len(_distances(grids))} of {published} published figures are met within "
        f"{_MAX_DISTANCE:g} points."
    )


def _accuracies(grids: Sequence[_Grid], labels: str, comparison: Comparison, name: str) -> Table:
    """Tabulate two rows on one kind of labels, with what was published about them."""
    row, against = comparison.row, comparison.against
    gains = [_gain(grid, comparison, labels) for grid in grids]
    columns = ["Task, label noise", against, row, "difference", "p", "level", "ceiling"]
    is_published = name == "published"
    if is_published:
        columns += ["paper: plain", "with", "level", "reproduction: plain", "with", "level"]
    rows = []
    for grid, gain, p in zip(grids, gains, stats.adjust(gains), strict=True):
        noise = grid.cell.noise if labels == "noisy" else 0.0
        ceiling = best_accuracy(grid.cell.task, noise)
        cells = [
            grid.cell.title,
            stats.format_mean_sd(_accuracy(grid, against, labels)),
            stats.format_mean_sd(_accuracy(grid, row, labels)),
            str(gain),
            stats.format_p(p),
            stats.format_median_range(grid.levels(row)),
            f"{ceiling:.1f}",
        ]
        if is_published:
            cells += _published_cells(grid)
        rows.append(cells)
    n = len(grids[0].cell.seeds)
    title = f"Test accuracy in % on {labels} labels, n = {n}: {against} and {row}"
    note = ""
    if is_published:
        note = "Published figures for Sinusoid and Spiral are not in our sources."
    return Table(name, title, columns, rows, note)


def _published_cells(grid: _Grid) -> list[str]:
    """Write the figures of the paper, then those of the reproduction."""
    cells = []
    for source in _published(grid):
        cells += [f"{value:.2f}" for value in source]
    return cells or ["–"] * 6


def _losses(grids: Sequence[_Grid]) -> Table:
    rows = [[grid.cell.title, *grid.loss_cells] for grid in grids]
    title = f"Test NLL (nats) and ECE on noisy labels, n = {len(grids[0].cell.seeds)}"
    return Table("losses", title, ["Task, label noise", *LOSS_COLUMNS], rows)


def _distances(grids: Sequence[_Grid]) -> list[str]:
    """Say where our accuracies are far from the paper's."""
    sentences = []
    for grid in grids:
        published = _published(grid)
        if not published:
            continue
        without, flooded, _ = published[0]
        for row, word, figure in (("plain", "without", without), ("flooding", "with", flooded)):
            accuracy = _accuracy(grid, row, "noisy")
            distance = float(np.mean(accuracy)) - figure
            if abs(distance) > _MAX_DISTANCE:
                sentences.append(
                    f"{grid.cell.title} {word} flooding: {stats.format_mean_sd(accuracy)} % "
                    f"against the paper's {figure} %, {distance:+.1f} points; the experiment "
                    "ishida2020_settings asks why."
                )
    return sentences


def _compare(grids: Sequence[_Grid], comparison: Comparison) -> tuple[list[str], str]:
    """Count the cells in which flooding wins and loses, on clean labels."""
    gains = [_gain(grid, comparison, "clean") for grid in grids]
    wins, losses = [], []
    for grid, gain, p in zip(grids, gains, stats.adjust(gains), strict=True):
        if p < 0.05 and gain.mean > 0:
            wins.append(grid.cell.title)
        elif p < 0.05:
            losses.append(grid.cell.title)
    # By how much: over all cells, also those in which the difference does not show.
    means = stats.format_mean_sd([gain.mean for gain in gains])
    finding = (
        f"Accuracy on clean test labels, {comparison.title}: flooding wins {len(wins)} and loses "
        f"{len(losses)} of {len(grids)} cells at 5 % (Holm, n = {gains[0].n} seeds), by "
        f"{means} points over the cells"
    )
    for verb, titles in (("wins", wins), ("loses", losses)):
        if titles:
            finding += f"; {verb} {'; '.join(titles)}"
    sentences = []
    for title in losses:
        against = f"Flooding loses to {comparison.against} on {title}"
        sentences.append(f"{against} ({comparison.title}).")
    return sentences, f"{finding}."


def _draw(grids: Sequence[_Grid]) -> Figure:
    """Draw a panel for each cell, tasks by noises."""
    panels = []
    for grid in grids:
        cell = grid.cell
        panel = LevelPanel(
            cell.title,
            cell.levels,
            grid.curve("test_accuracy_clean", 100.0),
            picked=grid.levels("flooding"),
            ceiling=best_accuracy(cell.task, 0.0),
        )
        panels.append(panel)
    return accuracy_grid(panels, len(NOISES))


def load(path: str | Path) -> Source:
    """Read ``benchmarks/levels``, or an archive of this experiment, in place of trainings."""
    if Path(path).is_file():
        return Archive(path)
    return LevelBenchmark(path)


EXPERIMENT = Experiment("ishida2020", start, ("train_loss", "val_loss", "val_accuracy"), load=load)
