"""``flooding demo``: the public demo's experiment and real handwritten digits, as tables and
pictures.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flooding.data import synthetic
from flooding.experiments.grids import Cell as Task
from flooding.report import plots
from flooding.report.stats import format_mean_sd
from flooding.tasks import adam, demo_digits, demo_sinusoid, grid_2d, sgd
from flooding.training.record import Record, select_best
from flooding.training.run import Run

__all__ = ["COLUMNS", "Task", "draw", "plan", "summary", "verdict"]

# Column title and the final it shows; accuracies are printed in percent.
COLUMNS = {
    "train\nloss": "train_loss",
    "val\nloss": "val_loss",
    "test %\nclean": "test_accuracy_clean",
    "test %\nnoisy": "test_accuracy",
    "test\nNLL": "test_nll",
    "test\nECE": "test_ece",
}


def plan(quick: bool = False) -> list[Task]:
    """Plan the demo: both settings of the public demo on Sinusoid, then the digits.

    Args:
        quick: One seed instead of three, and 40 epochs of digits instead of 60.

    Returns:
        Three tasks.

    References:
        The public demo: github.com/takashiishida/flooding, ``run_demo_synth.py``.
    """
    seeds = (0,) if quick else (0, 1, 2)
    digits = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    return [
        Task("Sinusoid, 10 % label noise, SGD", demo_sinusoid(sgd), (0.0, 0.26, 0.27, 0.28), seeds),
        Task(
            "Sinusoid, 10 % label noise, Adam", demo_sinusoid(adam), (0.0, 0.24, 0.25, 0.26), seeds
        ),
        Task(
            "Handwritten digits, 20 % label noise, Adam",
            demo_digits(40 if quick else 60),
            digits,
            seeds,
        ),
    ]


def summary(records: Sequence[Record]) -> dict[str, list[tuple[Record, str]]]:
    """Choose, for every seed, what each row of the table shows.

    Everything is chosen on the validation labels the user has, which are noisy; test data choose
    nothing.

    Args:
        records: Records of one task, all levels and seeds.

    Returns:
        For each row's title, one Record per seed and the epoch it is judged at, ``"last"`` or
        ``"best"``.
    """
    rows: dict[str, list[tuple[Record, str]]] = {}
    for seed in sorted({_run(r).seed for r in records}):
        ours = [r for r in records if _run(r).seed == seed]
        plain, flooded = (
            [r for r in ours if not r.level],
            [r for r in ours if r.level],
        )  # the loss is never below 0
        chosen = {
            "plain training": (select_best(plain, "last"), "last"),
            "plain + early stopping": (select_best(plain, "best"), "best"),
            "flooding": (select_best(flooded, "last"), "last"),
            "flooding + early stopping": (select_best(flooded, "best"), "best"),
            "chosen, 0 included": (select_best(ours, "last"), "last"),
        }
        for title, pick in chosen.items():
            rows.setdefault(title, []).append(pick)
    return rows


def _run(record: Record) -> Run:
    assert record.run is not None
    return record.run


def cells(picks: Sequence[tuple[Record, str]]) -> list[str]:
    """Write one row of the table: the level, then mean and standard deviation over seeds of every
    column.

    Args:
        picks: One Record and epoch per seed, as from :func:`summary`.

    Returns:
        Texts; a dash where nothing was measured.
    """
    levels = sorted({record.level or 0.0 for record, _ in picks})
    texts = ["\n".join(f"{level:.2f}" for level in levels)]
    for final in COLUMNS.values():
        values = [record.metrics.get(f"{at}.{final}") for record, at in picks]
        if final == "test_accuracy_clean" and None in values:  # the test labels carry no noise
            values = [record.metrics.get(f"{at}.test_accuracy") for record, at in picks]
        elif final == "test_accuracy" and "last.test_accuracy_clean" not in picks[0][0].metrics:
            values = [None]
        percent, digits = (
            (100, 1) if "accuracy" in final else (1, 2 if final in {"val_loss", "test_nll"} else 3)
        )
        told = format_mean_sd([value * percent for value in values if value is not None], digits)
        texts.append(told.replace(" ± ", "\n±"))
    return texts


def accuracy(picks: Sequence[tuple[Record, str]]) -> list[float]:
    """List the test accuracy of each seed in percent, on clean labels."""
    finals = [(record.metrics, at) for record, at in picks]
    return [100 * f.get(f"{at}.test_accuracy_clean", f[f"{at}.test_accuracy"]) for f, at in finals]


def verdict(rows: dict[str, list[tuple[Record, str]]]) -> str:
    """Say in words who won, also when it is not flooding.

    Args:
        rows: As from :func:`summary`.

    Returns:
        Three lines of differences in test accuracy on clean labels, paired by seed.
    """
    names = ("plain training", "plain + early stopping", "flooding", "flooding + early stopping")
    plain, stopped, flooded, both = (accuracy(rows[name]) for name in names)
    gain = [b - a for a, b in zip(plain, flooded, strict=True)]
    against = [b - a for a, b in zip(stopped, flooded, strict=True)]
    together = [b - a for a, b in zip(stopped, both, strict=True)]
    return (
        f"Against plain training, flooding's last epoch {_won(gain)}.\n"
        f"Against plain early stopping, flooding's last epoch {_won(against)}.\n"
        f"With early stopping on both sides, flooding {_won(together)}."
    )


def _won(gains: Sequence[float]) -> str:
    mean, n = statistics.fmean(gains), len(gains)
    size = f"{abs(mean):.1f}" + (f" ± {statistics.stdev(gains):.1f}" if n > 1 else "") + " points"
    if abs(mean) < 0.05:
        return f"ties ({size})"
    return f"{'wins' if mean > 0 else 'LOSES'} by {size}"


def draw(tasks: Sequence[Task], records: Sequence[Sequence[Record]], folder: Path) -> list[Path]:
    """Draw the demo's pictures.

    Args:
        tasks: As from :func:`plan`.
        records: The Records of each task.
        folder: Where the PNG files go.

    Returns:
        The files written.
    """

    def pair(of: Sequence[Record]) -> tuple[list[Record], list[Record]]:
        rows = summary(of)
        return [r for r, _ in rows["plain training"]], [r for r, _ in rows["flooding"]]

    sinusoid, digits = pair(records[0]), pair(records[2])
    data = {
        "Two Gaussians": synthetic.two_gaussians(seed=0),
        "Sinusoid": synthetic.sinusoid(seed=0),
        "Spiral": synthetic.spiral(seed=0),
    }
    splits = tasks[0].problem.splits(0)
    figures = {
        "synth_loss": plots.loss_curves(*sinusoid, title=tasks[0].title),
        "synth_acc": plots.accuracy_curves(*sinusoid, title=tasks[0].title),
        "digits_loss": plots.loss_curves(*digits, title=tasks[2].title),
        "concept": plots.concept(*pair(records[1])),
        "tasks": plots.scatter(data),
        "boundary": plots.decision_boundary(
            sinusoid[0][0], sinusoid[1][0], splits, grid_2d(), boundary
        ),
        "reliability": plots.reliability(*digits),
    }
    return [plots.save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def boundary(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Tell the classes of Sinusoid apart: zero where they meet."""
    return 1.5 * x1 + np.sin(1.5 * x2)
