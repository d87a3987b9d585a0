"""Compute the level benchmark, one seed at a time, in the paper's setting.

    python benchmarks/levels.py --seeds 0 1 2

Nine cells, 51 levels and 500 epochs take about 25 minutes a seed on two cores. Finished runs are in
the ledger (--ledger), so it can be killed and started again at any time. Each finished seed is
packed into levels/seed<N>.npz; levels/README.md says what is in it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flooding import run_all
from flooding.experiments.synthetic_cells import LEVELS, NOISES, TASKS, cells
from flooding.report.provenance import machine
from flooding.training.archive import to_half
from flooding.training.loop import NUMERICS_VERSION

HERE = Path(__file__).with_suffix("")
METRICS = (
    "epoch",
    "test_accuracy",
    "test_accuracy_clean",
    "test_nll",
    "test_nll_clean",
    "test_ece",
)


def runs(seed):
    """Give the Runs of a seed: tasks, then noises, then levels."""
    return [run for cell in cells() for run in replace(cell, seeds=(seed,)).runs]


def pack(records, description):
    """Round Records: losses to float16, validation accuracy to whole examples of 100."""
    shape = (len(TASKS), len(NOISES), len(LEVELS))
    curves = {
        name: np.stack([r.curves[name] for r in records]).reshape(*shape, -1)
        for name in ("train_loss", "val_loss")
    }
    right = np.stack([r.curves["val_accuracy"] for r in records]).reshape(*shape, -1) * 100
    assert np.abs(right - right.round()).max() < 1e-3, (
        "validation accuracy must be a whole number of 100 examples"
    )
    packed = {name: to_half(curve) for name, curve in curves.items()}
    packed["val_right"] = right.round().astype(np.uint8)
    for at in ("last", "best"):
        for name in METRICS:
            values = np.array([r.metrics[f"{at}.{name}"] for r in records], np.float32)
            packed[f"{at}_{name}"] = values.reshape(shape)
    packed |= {
        "tasks": np.array(list(TASKS)),
        "noises": np.array(NOISES),
        "levels": np.array(LEVELS),
    }
    return packed | {"told": np.array(description)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ledger", type=Path, default=HERE / "ledger.sqlite")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        began, done = time.monotonic(), 0

        def on_row(row, seed=seed, began=began):
            nonlocal done
            if row.record is not None:
                done += 1
                if done % 20 == 0:
                    each = (time.monotonic() - began) / done
                    print(f"seed {seed}: {done} runs trained, {each:.1f} s each", flush=True)

        records = run_all(runs(seed), ledger=arguments.ledger, on_row=on_row)
        hours = sum(r.metadata["seconds"] for r in records) / 3600
        versions = f"engine {NUMERICS_VERSION}, torch {torch.__version__}"
        description = f"{versions}, {machine()}, {hours:.2f} core hours"
        np.savez_compressed(HERE / f"seed{seed}.npz", **pack(records, description))
        print(f"seed {seed}: packed, {description}", flush=True)


if __name__ == "__main__":
    main()
