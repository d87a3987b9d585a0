"""The level benchmark (``benchmarks/levels``): Records of the nine synthetic cells, a file a seed.

``benchmarks/levels/README.md`` says what is in the files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flooding import npz
from flooding.experiments.synthetic_cells import LEVELS, NOISES, TASKS, SyntheticCell, cells
from flooding.training.archive import run_id
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["SHAPES", "LevelBenchmark"]

_GRID = (len(TASKS), len(NOISES), len(LEVELS))
_CURVES = dict.fromkeys(("train_loss", "val_loss", "val_right"), (*_GRID, 501))
_AT = ("epoch", "test_accuracy", "test_accuracy_clean", "test_nll", "test_nll_clean", "test_ece")
# Shapes of the arrays of numbers in a file, by name.
SHAPES = _CURVES | {f"{at}_{name}": _GRID for at in ("last", "best") for name in _AT}
_AXES = {"tasks": list(TASKS), "noises": list(NOISES), "levels": list(LEVELS)}


class LevelBenchmark:
    """The level benchmark in place of trainings.

    Args:
        folder: The folder ``benchmarks/levels`` of the repository.

    Attributes:
        seeds: Seeds of its Runs, smallest first.

    Raises:
        ValueError: If the folder has no such files, or one of them is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        paths = {}
        for path in Path(folder).glob("seed*.npz"):
            seed = path.stem.removeprefix("seed")
            if seed.isascii() and seed.isdigit():
                paths[int(seed)] = path
        if not paths:
            raise ValueError(
                f"the level benchmark is a folder of files seed0.npz ..., got {folder}, which has "
                "none."
            )
        self.seeds = tuple(sorted(paths))
        self._tables = {seed: _read(paths[seed]) for seed in self.seeds}
        self._cells = {run_id(Run(cell.problem)): cell for cell in cells()}

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look up Runs of full length."""
        return [self._record(run) for run in runs]

    def __contains__(self, run: Run) -> bool:
        has_level = (run.level or 0.0) in LEVELS
        return self._cell(run) is not None and run.seed in self._tables and has_level

    def _cell(self, run: Run) -> SyntheticCell | None:
        """Find the cell of a Run of full length with the method flooding."""
        return self._cells.get(run_id(replace(run, level=None, seed=0)))

    def _record(self, run: Run) -> Record:
        cell = self._cell(run)
        if cell is None or run not in self:
            raise ValueError(
                f"the level benchmark has no seed {run.seed}, level {run.level} of this problem."
            )
        table = self._tables[run.seed]
        # Axes of the file: tasks, noises, levels in steps of 0.01.
        level = 0
        if isinstance(run.level, float):
            level = round(100 * run.level)
        index = (list(TASKS).index(cell.task), NOISES.index(cell.noise), level)
        curves = {
            "train_loss": table["train_loss"][index].astype(np.float32),
            "val_loss": table["val_loss"][index].astype(np.float32),
            "val_accuracy": table["val_right"][index].astype(np.float32) / 100,
        }
        # The metrics at an epoch: points of the curves, and test metrics.
        metrics = {"epochs": 500.0}
        for at in ("last", "best"):
            epoch = int(table[f"{at}_epoch"][index])
            for name, curve in curves.items():
                metrics[f"{at}.{name}"] = float(curve[epoch])
            for name in _AT:
                metrics[f"{at}.{name}"] = float(table[f"{at}_{name}"][index])
        return Record(run, curves, {}, metrics, "", "", _metadata(table))


def _metadata(table: dict[str, np.ndarray]) -> dict[str, object]:
    """Give seconds a Run and the machine: engine and torch come first in the file's sentence."""
    sentence = str(table["told"]).removesuffix(" core hours")
    sentence, _, hours = sentence.rpartition(", ")
    return {
        "seconds": 3600 * float(hours) / np.prod(_GRID),
        "on": ", ".join(sentence.split(", ")[2:]),
    }


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read a file, and check that it holds what it must."""
    try:
        table = npz.read(path)
        _check(table)
    except ValueError as error:
        raise ValueError(
            f"a file of the level benchmark must be whole, got {path}: {error}. Get it from git."
        ) from None
    return table


def _check(table: dict[str, np.ndarray]) -> None:
    unknown = sorted(set(table) - {*SHAPES, *_AXES, "told"})
    if unknown:
        raise ValueError(f"it holds {unknown[0][:100]}, which is unknown")
    # The numbers must have the shape of the grid, and the grid must be the one of this code.
    for name, shape in SHAPES.items():
        actual = None
        if name in table and table[name].dtype.kind in "fu":
            actual = table[name].shape
        if actual != shape:
            raise ValueError(f"{name} must be numbers of shape {shape}, got {actual}")
    for name, values in _AXES.items():
        if name not in table or table[name].tolist() != values:
            raise ValueError(f"its {name} must be {values}")
    epochs = np.stack([table["last_epoch"], table["best_epoch"]])
    if not ((epochs >= 0) & (epochs <= 500)).all():
        raise ValueError("its epochs must lie in 0 to 500")
    if not re.search(r", [0-9.]+ core hours$", str(table.get("told"))):
        raise ValueError("it does not tell the machine and the core hours")
