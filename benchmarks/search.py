"""A grid of levels by the engine against separate tight loops: what sharing beginnings saves, what
the engine costs.

    python benchmarks/search.py [--rounds 3]

Both sides use every core: the engine its warm pool, the loops as many processes, each with every
second level. Both keep the same curves (loss, accuracy, labels noisy and clean, share of flooded
steps) and the best weights, and test at the end. They take turns; the figure is the ratio of the
mean times. Start-up (importing torch) is reported apart. "share" is the share of the steps that the
engine took.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch

from flooding import Run, checkpoints, run_all
from flooding.data import Split, tables
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.report.provenance import machine
from flooding.tasks import adam, demo_sinusoid, ishida2020_problem
from flooding.training.problem import Problem
from flooding.training.record import selection_key
from flooding.training.runner import available_cpus

LEVELS = [0.02 * n for n in range(26)]
SLOW = partial(torch.optim.SGD, lr=0.05, fused=True)
CASES = {
    "slow fall: digits, 20 batches an epoch": Problem(
        partial(tables.digits, label_noise=0.2),
        partial(mlp, 64, 10, width=256, depth=3),
        SLOW,
        batch_size=30,
        max_epochs=60,
    ),
    # Without the probe for its picture, through which the loops do not pass either.
    "demo: Sinusoid, batch norm, 200 epochs": replace(demo_sinusoid(adam), probe_inputs=None),
    "paper: Two Gaussians 10 %, 500 epochs": ishida2020_problem(
        partial(two_gaussians, label_noise=0.1), 10
    ),
}


def judge(logits, split):
    """Measure logits against the labels there are, noisy and clean."""
    found, told = logits.argmax(1), []
    for y in (split.y, split.clean):
        if y is not None:
            told += [
                float(torch.nn.functional.cross_entropy(logits, y)),
                float((found == y).float().mean()),
            ]
    return told


def measure(model, split, size=500):
    """Pass a split through the model, as tightly as plain torch can."""
    model.eval()
    with torch.inference_mode():
        return judge(torch.cat([model(x) for x in split.x.split(size)]), split)


def tight(problem, level):
    """Train one level by hand, with the curves that a Record has."""
    splits, model = problem.splits(0), problem.build(0)
    x, y, clean = splits.train.x, splits.train.y, splits.train.clean
    optimizer = problem.optimizer(model.parameters())
    best, kept, curves = (-float("inf"), -float("inf")), None, []
    for epoch in range(problem.max_epochs):
        model.train()
        order = (
            [slice(None)]
            if len(x) <= problem.batch_size
            else torch.randperm(len(x)).split(problem.batch_size)
        )
        losses, outputs = [], []
        for index in order:
            output = model(x[index])
            loss = torch.nn.functional.cross_entropy(output, y[index])
            optimizer.zero_grad()
            ((loss - level).abs() + level).backward()
            optimizer.step()
            losses.append(loss.detach()), outputs.append(output.detach())
        losses = torch.stack(losses)
        every = order[0] if len(order) == 1 else torch.cat(order)
        seen = Split(y[every], y[every], None if clean is None else clean[every])
        row = [
            float(losses.mean()),
            float((losses < level).float().mean()),
            *judge(torch.cat(outputs), seen),
        ]
        val = measure(model, splits.val)
        curves.append(row + val)
        found = selection_key(*val[:2])
        if found > best:
            best, kept = found, copy.deepcopy(model.state_dict())
        if problem.test_curve and (epoch + 1) % problem.test_curve.every == 0:
            measure(model, splits.test.take(slice(problem.test_curve.examples)))
    measure(model, splits.test)
    model.load_state_dict(kept)
    measure(model, splits.test)


def loops(name, part, parts):
    """Be a process of tight loops: train the levels of one part whenever told to."""
    torch.set_num_threads(1)
    problem = CASES[name]
    problem.splits(0)
    for line in sys.stdin:
        for level in LEVELS[part::parts] if line.strip() == "go" else []:
            tight(problem, level)
        print("done", flush=True)


class Loops:
    """As many processes of tight loops as there are cores."""

    def __init__(self, name):
        command = [sys.executable, __file__, "--loops", name, "--part"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [
            subprocess.Popen([*command, str(part)], **pipes) for part in range(available_cpus())
        ]
        self.tell("warm")

    def tell(self, word):
        """Tell every process a word and wait until it is done."""
        for process in self.processes:
            process.stdin.write(word + "\n")
            process.stdin.flush()
        for process in self.processes:
            process.stdout.readline()

    def close(self):
        """End them."""
        for process in self.processes:
            process.kill()


def by_engine(problem, folder):
    """Run the grid on the warm pool; give seconds, share of steps and how busy the workers were."""
    runs = [Run(problem, level) for level in LEVELS]
    children = psutil.Process().children()
    before = [sum(child.cpu_times()[:2]) for child in children]
    tick = time.perf_counter()
    records = run_all(runs, ledger=Path(folder) / f"{time.monotonic_ns()}.sqlite")
    seconds = time.perf_counter() - tick
    busy = [sum(child.cpu_times()[:2]) - used for child, used in zip(children, before, strict=True)]
    workers = sorted(busy)[-available_cpus() :]
    share = sum(r.metadata["epochs_trained"] for r in records) / sum(run.epochs for run in runs)
    return seconds, share, sum(workers) / available_cpus() / seconds


def of_checkpoints(problem, folder):
    """Give the share of the time that checkpoints take, in one process."""
    spent = 0.0

    def timed(function):
        def wrapped(*arguments, **more):
            nonlocal spent
            tick = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                spent += time.perf_counter() - tick

        return wrapped

    own = {name: getattr(checkpoints.Checkpoints, name) for name in ("save", "find", "drop")}
    for name, function in own.items():
        setattr(checkpoints.Checkpoints, name, timed(function))
    tick = time.perf_counter()
    run_all(
        [Run(problem, level) for level in LEVELS],
        ledger=Path(folder) / "checkpoints.sqlite",
        workers=0,
    )
    seconds = time.perf_counter() - tick
    for name, function in own.items():
        setattr(checkpoints.Checkpoints, name, function)
    return spent / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops")
    parser.add_argument("--part", type=int)
    parser.add_argument("--cases", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    if given.loops:
        loops(given.loops, given.part, available_cpus())
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        tick = time.perf_counter()
        run_all(
            [
                Run(Problem(two_gaussians, partial(mlp, 10, 2, width=8), max_epochs=1), level)
                for level in (0.1, 0.2)
            ],
            ledger=False,
        )
        print(f"start-up of {available_cpus()} workers: {time.perf_counter() - tick:.1f} s")
        for name in [list(CASES)[case] for case in given.cases]:
            run_all(
                [Run(CASES[name], level, stop_epoch=1) for level in (None, 9.0)], ledger=False
            )  # data in every worker
            hand, times, shares, busy = Loops(name), {"engine": [], "loops": []}, [], []
            for turn in range(given.rounds):
                for side in ("engine", "loops")[:: 1 if turn % 2 else -1]:
                    tick = time.perf_counter()
                    if side == "loops":
                        hand.tell("go")
                        times[side].append(time.perf_counter() - tick)
                    else:
                        seconds, share, use = by_engine(CASES[name], folder)
                        times[side].append(seconds), shares.append(share), busy.append(use)
            hand.close()
            engine, by_hand = (statistics.mean(times[side]) for side in ("engine", "loops"))
            spread = [
                statistics.stdev(times[side]) if given.rounds > 1 else 0.0
                for side in ("engine", "loops")
            ]
            print(f"{name}: {len(LEVELS)} levels, n = {given.rounds}")
            print(
                f"  engine {engine:.2f} s (sd {spread[0]:.2f}), tight loops {by_hand:.2f} s (sd {spread[1]:.2f})"
            )
            ratio = engine / by_hand
            print(
                f"  ratio {ratio:.3f}; share of steps {shares[0]:.3f}; ratio / share {ratio / shares[0]:.3f}"
            )
            print(f"  workers busy {statistics.mean(busy):.2f} of the time", flush=True)
            print(
                f"  checkpoints {100 * of_checkpoints(CASES[name], folder):.2f} % of the time in one process",
                flush=True,
            )


if __name__ == "__main__":
    main()
