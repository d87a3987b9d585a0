"""Test a search in milliseconds: Records of the level benchmark in place of trainings.

    table = Table([0, 1, 2])
    for cell in table.cells():
        result = search(grid(cell.problem, LEVELS, seeds=[cell.seed]), cell.run_all())
        print(cell, cell.final(result.level, "last_test_accuracy_clean"))

Only constant levels on the grid 0, .01 ... .50 can be searched, with the seed of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flooding.experiments.synthetic_cells import LEVELS, synthetic_cell
from flooding.training.record import Record

HERE = Path(__file__).parent / "levels"
EPOCHS = 500


class Table:
    """The level benchmark of some seeds."""

    def __init__(self, seeds):
        self.seeds = list(seeds)
        self.arrays = {}
        for seed in self.seeds:
            with np.load(HERE / f"seed{seed}.npz") as file:
                self.arrays[seed] = {name: file[name] for name in file.files}

    def cells(self):
        """Go through seeds, then tasks, then noises."""
        for seed in self.seeds:
            for t, task in enumerate(self.arrays[seed]["tasks"]):
                for n, noise in enumerate(self.arrays[seed]["noises"]):
                    yield Cell(seed, str(task), float(noise), (t, n), self.arrays[seed])


@dataclass(frozen=True)
class Cell:
    """One task at one noise with one seed."""

    seed: int
    task: str
    noise: float
    index: tuple  # task and noise in the arrays
    arrays: dict

    @property
    def problem(self):
        """Give the Problem of the cell."""
        return synthetic_cell(self.task, self.noise).problem

    def run_all(self):
        """Give a ``run_all`` for one search; it counts what the runner would have trained."""
        trained_epochs = {}  # by level

        def run_all(runs):
            # Runs that begin share the epochs before their level is reached; the longest prefix
            # is paid once.
            new_runs = [run for run in runs if trained_epochs.get(run.level, 0) == 0]
            is_shared = len(new_runs) > 1
            prefixes = {}
            for run in new_runs:
                prefixes[id(run)] = self._prefix_epochs(run) if is_shared else 0
            payer = max(new_runs, key=lambda run: prefixes[id(run)], default=None)
            records = []
            for run in runs:
                before = trained_epochs.get(run.level, 0)
                # Others continue where the level was left.
                free = prefixes.get(id(run), min(before, run.epochs))
                cost = run.epochs - free
                if run is payer and is_shared:
                    cost += min(run.epochs, prefixes[id(run)] + 1)
                trained_epochs[run.level] = max(before, run.epochs)
                records.append(self._record(run, cost))
            return records

        return run_all

    def final(self, level, name):
        """Give a figure of a full training at a level."""
        return float(self.arrays[name][*self.index, self._index(level)])

    def _index(self, level):
        level = level or 0.0
        index = round(100 * level)
        if not 0 <= index < len(LEVELS) or abs(LEVELS[index] - level) > 1e-9:
            raise ValueError(f"level must be one of 0, 0.01 ... 0.50, got {level}.")
        return index

    def _prefix_epochs(self, run):
        """Count the epochs before the one in which the level is reached."""
        losses = self.arrays["train_loss"][*self.index, 0, 1 : run.epochs + 1]
        reached = losses <= (run.level or 0.0)
        return int(reached.argmax()) if reached.any() else run.epochs

    def _record(self, run, epochs_trained):
        if run.seed != self.seed:
            raise ValueError(f"this cell has seed {self.seed}, got {run.seed}.")
        level_index, end = self._index(run.level), run.epochs + 1
        curves = {}
        for name, divisor in (("train_loss", 1), ("val_loss", 1), ("val_right", 100)):
            curve = self.arrays[name][*self.index, level_index, :end].astype(np.float32) / divisor
            curves[name.replace("right", "accuracy")] = curve
        accuracy, loss = curves["val_accuracy"], curves["val_loss"]
        best = max(range(1, end), key=lambda epoch: (accuracy[epoch], -loss[epoch], -epoch))
        metrics = {f"last.{name}": float(curve[-1]) for name, curve in curves.items()}
        metrics["epochs"] = float(run.epochs)
        metrics |= {f"best.{name}": float(curve[best]) for name, curve in curves.items()}
        return Record(run, curves, {}, metrics, "", "", {"epochs_trained": epochs_trained})
