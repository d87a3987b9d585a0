"""The paper's whole synthetic table by fleets, in pieces, beside the table that CPUs trained.

    python benchmarks/gpu/fleet.py [--minutes 8] [--cells 0 1] [--seeds 0 1] [--size 510]
    python benchmarks/gpu/fleet.py --quick

Nine cells, 51 levels, ten seeds, 500 epochs of five layers of 500 units (Ishida et al., ICML 2020,
section 4.1): 4,590 trainings. A piece is a cell. For each piece the script prints seconds, the
FLOP/s of the products in training steps against the card's own speed on one large float32 product,
and the accuracy of its Records against ``benchmarks/levels``: mean difference with its 95 %
interval over runs, the largest one, and the difference of what validation chooses, seed by seed.
Finished fleets are in the ledger, so the same command goes on where the minutes ended.

``--quick`` trains a few runs for a few epochs, on any machine; there is nothing to compare them
with.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flooding import run_all
from flooding.experiments.level_benchmark import LevelBenchmark
from flooding.experiments.synthetic_cells import cells
from flooding.report.provenance import machine
from flooding.report.stats import paired
from flooding.training.record import select_best

LEVELS = Path(__file__).parents[1] / "levels"


class TimeIsUp(BaseException):
    """Ends a piece; no Exception, so that nothing on the way takes it for a failure."""


def product_speed(device):
    """Measure FLOP/s of one large float32 product, the best of five."""
    size = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    shortest = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        product = a @ b
        product[0, 0].item()  # waits for the device
        shortest = min(shortest, time.perf_counter() - begin)
    return 2 * size**3 / shortest


def step_flops(problem):
    """Count the floating-point operations of the products in one step of one run."""
    examples = min(len(problem.splits(0).train), problem.batch_size)
    layers = [layer for layer in problem.build(0).modules() if isinstance(layer, nn.Linear)]
    # Forward, and backward to the weights and to the inputs; the first layer has no gradient there.
    numbers = [3 * layer.weight.numel() for layer in layers]
    numbers[0] -= layers[0].weight.numel()
    return 2 * examples * sum(numbers)


def compare(cell, records, archive):
    """Say how far Records are from those of the archive, in points of test accuracy."""
    pairs = [(record, archive([record.run])[0]) for record in records]
    name = "last.test_accuracy"
    ours, theirs = ([100 * pair[side].metrics[name] for pair in pairs] for side in range(2))
    largest = np.abs(np.subtract(ours, theirs)).max()
    text = f"accuracy minus the archive's {paired(ours, theirs)} points, largest {largest:.2f}"
    chosen = ([], [])
    for seed in cell.seeds:
        for side in range(2):
            of_seed = [pair[side] for pair in pairs if pair[0].run.seed == seed]
            if of_seed:
                chosen[side].append(100 * select_best(of_seed, "last").metrics[name])
    if len(chosen[0]) > 1:
        text += f"; of the chosen levels {paired(*chosen)} (n = {len(chosen[0])} seeds)"
    return text


def train(cell, given):
    """Train one piece, and print what it took."""
    epochs, trained = [0], []

    def on_row(row):
        epochs[0] += row.epoch > 0

    begin = time.perf_counter()
    records = run_all(
        cell.runs,
        ledger=given.ledger,
        device=given.device,
        workers=0 if given.device.startswith("cuda") else None,
        fleet=given.size,
        on_start=trained.extend,
        on_row=on_row,
        progress=False,
    )
    seconds = time.perf_counter() - begin
    text = f"{cell.title}: {len(trained)} of {len(records)} runs trained in {seconds:.1f} s"
    if epochs[0]:
        rate = epochs[0] * step_flops(cell.problem) / seconds
        text += f", {rate:.3g} FLOP/s, {rate / given.peak:.1%} of one large product"
    return records, text


def plan(given):
    """List the cells to train."""
    chosen = [cell for index, cell in enumerate(cells()) if index in given.cells]
    if given.quick:
        chosen = [
            replace(
                cell,
                problem=replace(cell.problem, max_epochs=2),
                levels=(0.0, 0.1),
                seeds=(0,),
            )
            for cell in chosen[:2]
        ]
    elif given.seeds:
        chosen = [replace(cell, seeds=tuple(given.seeds)) for cell in chosen]
    return chosen


def options(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after so long")
    parser.add_argument("--cells", type=int, nargs="+", default=list(range(9)), help="0 to 8")
    parser.add_argument("--seeds", type=int, nargs="+", help="ten by default")
    parser.add_argument("--size", type=int, default=510, help="largest number of runs in a fleet")
    parser.add_argument("--ledger", type=Path, default=Path("fleet.sqlite"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a few runs of two cells")
    return parser.parse_args(arguments)


def stop(*_):
    raise TimeIsUp


def main(arguments=None):
    given = options(arguments)
    place = machine()
    if given.device.startswith("cuda"):
        place += f"; {torch.cuda.get_device_name()}"
    given.peak = product_speed(given.device)
    print(f"{place}: {given.peak:.3g} FLOP/s in one large float32 product", flush=True)
    archive = None if given.quick else LevelBenchmark(LEVELS)
    begin = time.perf_counter()
    has_alarm = hasattr(signal, "SIGALRM")
    if has_alarm:
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(max(1, round(60 * given.minutes)))
    with contextlib.suppress(TimeIsUp):
        for cell in plan(given):
            records, text = train(cell, given)
            if archive is not None:
                known = [record for record in records if record.run in archive]
                text += f"; {compare(cell, known, archive)}"
            print(text, flush=True)
        print(f"done in {time.perf_counter() - begin:.1f} s")
        begin = None
    if has_alarm:
        signal.alarm(0)
    if begin is not None:
        print("time is up; the same command goes on from here")


if __name__ == "__main__":
    main()
