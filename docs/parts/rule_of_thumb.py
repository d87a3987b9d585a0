"""A level for those who cannot search: its share of plain training's lowest validation loss.

Everything is read from stored results; nothing is trained. On the synthetic cells validation
selects, for every seed, among 51 levels by the last epoch, as in the paper. On the real problems
the finder selects.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flooding import Run, tasks
from flooding.experiments.level_benchmark import LevelBenchmark
from flooding.experiments.study import all_runs, level_grids
from flooding.experiments.synthetic_cells import cells
from flooding.training.archive import Archive
from flooding.training.record import Record

__all__ = ["Row", "label_noise", "rows", "table"]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Points from which on flooding is said to help.
HELPS = 1.0
SEEDS = (1, 2, 3, 4)  # of benchmarks/searches/real-grid.npz


@dataclass(frozen=True)
class Row:
    """The shares of one problem.

    Args:
        problem: Its name.
        noise: Share of wrong training labels.
        values: Level over lowest validation loss of plain training, one for each seed with a
            level.
        num_seeds: Seeds, with or without a level.
        gain: Flooding minus plain training, last epoch, test accuracy in percentage points.
    """

    problem: str
    noise: float
    values: tuple[float, ...]
    num_seeds: int
    gain: float


def _lowest(plain: Record) -> float:
    return float(plain.curves["val_loss"][1:].min())


def _synthetic() -> list[Row]:
    plan = cells()
    records = LevelBenchmark(BENCHMARKS / "levels")(all_runs(plan))
    found = []
    for grid in level_grids(plan, records, candidates_only=False):
        pairs = grid.pairs("flooding", "plain")
        values = [pick.run.level / _lowest(plain) for pick, plain in pairs]
        gain = grid.gain("flooding", "plain", "test_accuracy_clean")
        cell = grid.cell
        found.append(Row(cell.task, cell.noise, tuple(values), len(cell.seeds), gain.mean))
    return found


def _searches() -> dict[tuple[str, str, int], dict]:
    """Read what the searches of the real problems came to, by search, problem and seed."""
    found = {}
    for line in (BENCHMARKS / "searches" / "real.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["strategy"], row["problem"], row["seed"]] = row
    return found


def label_noise(data: Callable[..., object]) -> float:
    """Read the share of wrong labels: an argument of a partial, or a function's default."""
    return inspect.signature(data).parameters["label_noise"].default


def _real() -> list[Row]:
    searches = _searches()
    archive = Archive(BENCHMARKS / "searches" / "real-grid.npz")
    found = []
    for name, problem in tasks.REAL.items():
        runs = [Run(problem, seed=seed) for seed in SEEDS]
        if not all(run in archive for run in runs):
            continue
        values, gains = [], []
        for seed, plain in zip(SEEDS, archive(runs), strict=True):
            row = searches["finder", name, seed]
            gains.append(100 * (row["accuracy"] - searches["plain", name, seed]["accuracy"]))
            if row["level"] is not None:
                values.append(row["level"] / _lowest(plain))
        noise = label_noise(problem.data)
        found.append(Row(name, noise, tuple(values), len(SEEDS), float(np.mean(gains))))
    return found


@functools.cache
def rows() -> list[Row]:
    """Read all problems, the cleanest first."""
    return sorted([*_synthetic(), *_real()], key=lambda row: row.noise)


def _line(row: Row) -> str:
    values = row.values
    spread = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    reach = f"{min(values):.2f} to {max(values):.2f}"
    n = f"{len(values)} of {row.num_seeds}"
    gain = f"{row.gain:+.1f}".replace("-", "−")
    return f"| {100 * row.noise:g} % | {row.problem} | {spread} | {reach} | {n} | {gain} |"


def table(measured: Sequence[Row] | None = None) -> str:
    """Write the rule, the table, and what it is made of.

    Args:
        measured: The rows; those of the stored results if None.

    Returns:
        Markdown.
    """
    measured = rows() if measured is None else measured
    helped = [float(np.mean(row.values)) for row in measured if row.gain >= HELPS]
    lines = [
        f"Start at **{np.median(helped):.1f} times the lowest validation loss** of a plain "
        f"training. Where flooding gained {HELPS:g} point or more, the share was {min(helped):.2f} "
        f"to {max(helped):.2f} on average of the seeds.",
        "",
        "| Label noise | Problem | Level / lowest validation loss: mean ± SD | Range "
        "| Seeds with a level | Gain, points |",
        "|---|---|---|---|---|---|",
        *map(_line, measured),
        "",
        "The loss is cross-entropy, and validation labels are as noisy as those of training. Gain "
        "is flooding minus plain training in test accuracy, at the last epoch. Where there is no "
        "gain, the share means little. The spread over seeds is large: many levels are equally "
        "good.",
    ]
    return "\n".join(lines)
