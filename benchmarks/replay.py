"""Test a search in milliseconds: Records of the level benchmark in place of trainings.

    table = Table([0, 1, 2])
    for cell in table.cells():
        found = search(grid(cell.problem, LEVELS, seeds=[cell.seed]), cell.evaluator())
        print(cell, cell.final(found.level, "last_test_accuracy_clean"))

Only constant levels on the grid 0, .01 ... .50 can be asked, with the seed of the cell.
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
        self._files = {seed: np.load(HERE / f"seed{seed}.npz") for seed in self.seeds}
        self.arrays = {
            seed: {name: file[name] for name in file.files} for seed, file in self._files.items()
        }

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
    place: tuple
    arrays: dict

    @property
    def problem(self):
        """Give the Problem of the cell."""
        return synthetic_cell(self.task, self.noise).problem

    def evaluator(self):
        """Give an ``evaluate`` for one search: it counts what sharing beginnings, and going on,
        would have cost.
        """
        reached = {}

        def evaluate(runs):
            begun = [run for run in runs if reached.get(run.level, 0) == 0]
            left = {id(run): self._leaves(run) if len(begun) > 1 else 0 for run in begun}
            payer = max(begun, key=lambda run: left[id(run)], default=None)
            records = []
            for run in runs:
                known = reached.get(run.level, 0)
                trained = run.epochs - (
                    left[id(run)] if id(run) in left else min(known, run.epochs)
                )
                if run is payer and len(begun) > 1:
                    trained += min(run.epochs, left[id(run)] + 1)
                reached[run.level] = max(known, run.epochs)
                records.append(self._record(run, trained))
            return records

        return evaluate

    def final(self, level, name):
        """Give a figure of a full training at a level."""
        return float(self.arrays[name][*self.place, self._index(level)])

    def _index(self, level):
        level = level or 0.0
        index = round(100 * level)
        if not 0 <= index < len(LEVELS) or abs(LEVELS[index] - level) > 1e-9:
            raise ValueError(f"level must be one of 0, 0.01 ... 0.50, got {level}.")
        return index

    def _leaves(self, run):
        """Count the epochs before the one in which the level is reached."""
        losses = self.arrays["train_loss"][*self.place, 0, 1 : run.epochs + 1]
        reached = losses <= (run.level or 0.0)
        return int(reached.argmax()) if reached.any() else run.epochs

    def _record(self, run, trained):
        if run.seed != self.seed:
            raise ValueError(f"this cell has seed {self.seed}, got {run.seed}.")
        index, until = self._index(run.level), run.epochs + 1
        names = {"train_loss": 1, "val_loss": 1, "val_right": 100}
        curves = {
            name.replace("right", "accuracy"): self.arrays[name][*self.place, index, :until].astype(
                np.float32
            )
            / by
            for name, by in names.items()
        }
        finals = {f"last.{name}": float(curve[-1]) for name, curve in curves.items()} | {
            "epochs": float(run.epochs)
        }
        best = max(
            range(1, until), key=lambda e: (curves["val_accuracy"][e], -curves["val_loss"][e], -e)
        )
        finals |= {f"best.{name}": float(curve[best]) for name, curve in curves.items()}
        return Record(run, curves, {}, finals, "", "", {"epochs_trained": trained})
