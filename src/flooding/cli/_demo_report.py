"""``flooding demo``: the public demo's experiment and real handwritten digits.

Everything is picked on the validation labels the user has, which are noisy; test data choose
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flooding.data import synthetic
from flooding.levels import Auto
from flooding.report import figures, plots
from flooding.report.level_grid import Cell
from flooding.report.record_metrics import Epoch, run_of
from flooding.report.stats import describe_difference, format_mean_sd, paired
from flooding.tasks import demo_digits, demo_sinusoid, grid_2d, sgd
from flooding.training.record import Record, select_best
from flooding.training.run import Run

__all__ = ["AUTO", "COLUMNS", "Picks", "Task", "draw", "plan", "summary", "verdict"]

Picks: TypeAlias = list[tuple[Record, Epoch]]
"""One Record a seed, and the epoch it is judged at."""

AUTO = "auto level, one training"


@dataclass(frozen=True)
class Task(Cell):
    """A problem, its levels and seeds: every level is trained, and one level that finds itself."""

    @property
    def runs(self) -> list[Run]:
        """Every level with every seed, then the level that finds itself with every seed.

        Only what is drawn is measured: test curves of the levels, and the first seed's boundary.
        """
        no_boundary = replace(self.problem, probe_inputs=None)
        no_pictures = replace(no_boundary, test_curve=None)
        runs = []
        for run in super().runs:
            runs.append(run if run.seed == self.seeds[0] else replace(run, problem=no_boundary))
        return runs + [Run(no_pictures, Auto(), seed=seed) for seed in self.seeds]


# Title of each column and its metric; accuracies are printed in percent.
COLUMNS = {
    "train\nloss": "train_loss",
    "val\nloss": "val_loss",
    "test %\nclean": "test_accuracy_clean",
    "test %\nnoisy": "test_accuracy",
    "test\nNLL": "test_nll",
    "test\nECE": "test_ece",
}
_DIGITS = {"test_accuracy_clean": 1, "test_accuracy": 1, "val_loss": 2, "test_nll": 2}


def plan(quick: bool = False) -> list[Task]:
    """Plan the demo: Sinusoid of the public demo with SGD, then the digits.

    Args:
        quick: One seed instead of three.

    Returns:
        Two tasks.

    References:
        The public demo: github.com/takashiishida/flooding, ``run_demo_synth.py``.
    """
    seeds = (0,) if quick else (0, 1, 2)
    # As much as ends within 90 s on two slow cores. The public demo has the level 0.27, too, and
    # 20,000 test points, and repeats it with Adam.
    data = partial(synthetic.sinusoid, n_test=5_000, label_noise=0.1)
    sinusoid = replace(demo_sinusoid(sgd), data=data)
    digits = "Handwritten digits, 20 % label noise, Adam"
    return [
        Task("Sinusoid, 10 % label noise, SGD", sinusoid, (0.0, 0.26, 0.28), seeds),
        Task(digits, demo_digits(), (0.0, 0.4, 0.7, 1.0), seeds),
    ]


def summary(records: Sequence[Record]) -> dict[str, Picks]:
    """Pick, for every seed of one task, what each row of the table shows."""
    rows: dict[str, Picks] = {}
    for seed in sorted({run_of(record).seed for record in records}):
        # The loss is never below 0, so that the level 0 is plain training.
        of_seed = [record for record in records if run_of(record).seed == seed]
        auto = [record for record in of_seed if isinstance(run_of(record).level, Auto)]
        of_seed = [record for record in of_seed if record not in auto]
        plain = [record for record in of_seed if not record.level]
        flooded = [record for record in of_seed if record.level]
        candidates_by_row: list[tuple[str, list[Record], Epoch]] = [
            ("plain training", plain, "last"),
            ("plain + early stopping", plain, "best"),
            ("flooding", flooded, "last"),
            ("flooding + early stopping", flooded, "best"),
            ("chosen, 0 included", of_seed, "last"),
            (AUTO, auto, "last"),
            ("auto + early stopping", auto, "best"),
        ]
        for title, candidates, at in candidates_by_row:
            if not candidates:
                continue
            rows.setdefault(title, []).append((select_best(candidates, at), at))
    return rows


def cells(picks: Picks) -> list[str]:
    """Write one row of the table: the level, then mean and standard deviation of every column."""
    levels = sorted({f"{record.level or 0.0:.2f}" for record, _ in picks})
    texts = ["\n".join(levels)]
    has_clean = all(f"{at}.test_accuracy_clean" in record.metrics for record, at in picks)
    for name in COLUMNS.values():
        if name == "test_accuracy_clean":
            values = accuracy(picks)
        elif name == "test_accuracy" and not has_clean:
            # The test labels carry no noise: the column before shows them.
            values = []
        else:
            values = _metric_values(picks, name)
        text = format_mean_sd(values, _DIGITS.get(name, 3))
        texts.append(text.replace(" ± ", "\n±"))
    return texts


def _metric_values(picks: Picks, name: str) -> list[float]:
    """List a metric of each seed that has it, accuracy in percent."""
    scale = 100 if name == "test_accuracy" else 1
    values = []
    for record, at in picks:
        value = record.metrics.get(f"{at}.{name}")
        if value is not None:
            values.append(value * scale)
    return values


def accuracy(picks: Picks) -> list[float]:
    """List the test accuracy of each seed in percent, on clean labels."""
    values = []
    for record, at in picks:
        noisy = record.metrics[f"{at}.test_accuracy"]
        values.append(100 * record.metrics.get(f"{at}.test_accuracy_clean", noisy))
    return values


def verdict(rows: dict[str, Picks]) -> str:
    """Say in words who won in test accuracy on clean labels, also when it is not flooding.

    Args:
        rows: See :func:`summary`.

    Returns:
        A line for each comparison: that flooding wins or loses where the 95 % interval of the
        difference does not cover 0, else that it is not shown to differ.
    """
    plain, flooded = rows["plain training"], rows["flooding"]
    stopped, both = rows["plain + early stopping"], rows["flooding + early stopping"]
    last = "flooding's last epoch"
    lines = [
        f"Against plain training, {last} {_describe_gain(flooded, plain)}.",
        f"Against plain early stopping, {last} {_describe_gain(flooded, stopped)}.",
        f"With early stopping on both sides, flooding {_describe_gain(both, stopped)}.",
    ]
    if AUTO in rows:
        last = "the auto level's last epoch"
        lines.append(f"Against plain training, {last} {_describe_gain(rows[AUTO], plain)}.")
        stop = _describe_gain(rows[AUTO], stopped)
        lines.append(f"Against plain early stopping, {last} {stop}.")
    return "\n".join(lines)


def _describe_gain(a: Picks, b: Picks) -> str:
    """Compare two rows by the rule of every report here."""
    gain = paired(accuracy(a), accuracy(b))
    # As the intervals are not corrected, neither is p: below 5 % the interval does not cover 0.
    return f"{describe_difference(gain, gain.p)} points"


def draw(tasks: Sequence[Task], records: Sequence[Sequence[Record]], folder: Path) -> list[Path]:
    """Draw the demo's pictures into a folder, from the Records of each task."""
    sinusoid, digits = (_plain_and_flooded(some) for some in records)
    data = {
        "Two Gaussians": synthetic.two_gaussians(seed=0),
        "Sinusoid": synthetic.sinusoid(seed=0),
        "Spiral": synthetic.spiral(seed=0),
    }
    plain, flooded = sinusoid
    splits = tasks[0].problem.splits(0)
    pictures = {
        "synth_loss": plots.loss_curves(*sinusoid, title=tasks[0].title),
        "synth_acc": plots.accuracy_curves(*sinusoid, title=tasks[0].title),
        "digits_loss": plots.loss_curves(*digits, title=tasks[1].title),
        "concept": plots.concept(*sinusoid),
        "tasks": plots.scatter(data),
        "boundary": plots.decision_boundary(plain[0], flooded[0], splits, grid_2d(), boundary),
        "reliability": plots.reliability(*digits),
    }
    return [figures.save(picture, folder / f"{name}.png") for name, picture in pictures.items()]


def _plain_and_flooded(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Give the trainings that are compared, a seed each."""
    rows = summary(records)
    plain, flooded = rows["plain training"], rows["flooding"]
    # Without the epochs: the figures show all of them.
    plain_records = [record for record, _ in plain]
    return plain_records, [record for record, _ in flooded]


def boundary(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Tell the classes of Sinusoid apart: zero where they meet."""
    return 1.5 * x1 + np.sin(1.5 * x2)
