"""Compute the level benchmark, one seed at a time: 9 cells x 51 levels x 500 epochs, the paper's setting.

    python benchmarks/levels.py --seeds 0 1 2

About 25 minutes a seed on two cores. Finished runs are in the ledger (--ledger), so it can be killed and started again
at any time. Each finished seed is packed into levels/seed<N>.npz; levels/README.md says what is in it.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from flooding import Run, evaluate
from flooding.data import synthetic
from flooding.loop import ENGINE
from flooding.tasks import paper
from machine import machine

HERE = Path(__file__).with_suffix("")
TASKS = {
    "two-gaussians": (synthetic.two_gaussians, 10),
    "sinusoid": (synthetic.sinusoid, 2),
    "spiral": (synthetic.spiral, 2),
}
NOISES = (0.01, 0.05, 0.1)
LEVELS = tuple(round(0.01 * n, 2) for n in range(51))
FINALS = ("epoch", "test_accuracy", "test_accuracy_clean", "test_nll", "test_nll_clean", "test_ece")


def runs(seed):
    """Give the Runs of a seed: tasks, then noises, then levels."""
    for data, inputs in TASKS.values():
        for noise in NOISES:
            problem = paper(partial(data, label_noise=noise), inputs)
            yield from (Run(problem, level, seed=seed) for level in LEVELS)


def pack(records, told):
    """Round Records to what the archive holds: losses to float16, validation accuracy to whole examples of 100."""
    shape = (len(TASKS), len(NOISES), len(LEVELS))
    curves = {
        name: np.stack([r.curves[name] for r in records]).reshape(*shape, -1) for name in ("train_loss", "val_loss")
    }
    right = np.stack([r.curves["val_accuracy"] for r in records]).reshape(*shape, -1) * 100
    assert np.abs(right - right.round()).max() < 1e-3, "validation accuracy must be a whole number of 100 examples"
    packed = {name: np.minimum(curve, np.finfo(np.float16).max).astype(np.float16) for name, curve in curves.items()}
    for name, curve in curves.items():  # half a unit in the 11th bit: 2^-11 of the value, 2^-25 near zero
        error = np.abs(packed[name].astype(np.float64) - np.minimum(curve, 65504))
        assert (error <= 2.0**-11 * np.abs(curve) + 2.0**-25).all(), f"{name} is rounded by more than stated"
    packed["val_right"] = right.round().astype(np.uint8)
    for at in ("last", "best"):
        for name in FINALS:
            values = np.array([r.finals[f"{at}.{name}"] for r in records], np.float32)
            packed[f"{at}_{name}"] = values.reshape(shape)
    packed |= {"tasks": np.array(list(TASKS)), "noises": np.array(NOISES), "levels": np.array(LEVELS)}
    return packed | {"told": np.array(told)}


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

        records = evaluate(runs(seed), ledger=arguments.ledger, on_row=on_row)
        hours = sum(r.circumstances["seconds"] for r in records) / 3600
        told = f"engine {ENGINE}, torch {torch.__version__}, {machine()}, {hours:.2f} core hours"
        np.savez_compressed(HERE / f"seed{seed}.npz", **pack(records, told))
        print(f"seed {seed}: packed, {told}", flush=True)


if __name__ == "__main__":
    main()
