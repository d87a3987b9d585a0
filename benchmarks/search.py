"""A grid of levels: the runner, which shares prefixes, against separate hand-written loops.

    python benchmarks/search.py [--rounds 3]

Both sides use every core: the runner its warm pool, the loops as many processes, each with every
second level. Both measure the same curves (loss, accuracy, labels noisy and clean, share of flooded
steps), store the best weights, and test at the end. They take turns; the result is the ratio of the
mean times. Start-up (importing torch) is reported separately. "share" is the share of the steps
that the runner took.
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

from flooding import Run, run_all
from flooding.data import Split, tables
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.report.provenance import machine
from flooding.tasks import adam, demo_sinusoid, ishida2020_problem
from flooding.training.checkpoints import Checkpoints
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
    predictions, values = logits.argmax(1), []
    for y in (split.y, split.clean):
        if y is not None:
            values.append(float(torch.nn.functional.cross_entropy(logits, y)))
            values.append(float((predictions == y).float().mean()))
    return values


def measure(model, split, size=500):
    """Pass a split through the model, with nothing but torch."""
    model.eval()
    with torch.inference_mode():
        return judge(torch.cat([model(x) for x in split.x.split(size)]), split)


def train_by_hand(problem, level):
    """Train one level in a loop of its own, with the curves that a Record has."""
    splits, model = problem.splits(0), problem.build(0)
    x, y, clean = splits.train.x, splits.train.y, splits.train.clean
    optimizer = problem.optimizer(model.parameters())
    best_key, best_weights, curves = (-float("inf"), -float("inf")), None, []
    for epoch in range(problem.max_epochs):
        model.train()
        batches = [slice(None)]
        if len(x) > problem.batch_size:
            batches = torch.randperm(len(x)).split(problem.batch_size)
        losses, outputs = [], []
        for index in batches:
            output = model(x[index])
            loss = torch.nn.functional.cross_entropy(output, y[index])
            optimizer.zero_grad()
            ((loss - level).abs() + level).backward()
            optimizer.step()
            losses.append(loss.detach()), outputs.append(output.detach())
        losses = torch.stack(losses)
        order = batches[0] if len(batches) == 1 else torch.cat(batches)
        epoch_split = Split(y[order], y[order], None if clean is None else clean[order])
        row = [
            float(losses.mean()),
            float((losses < level).float().mean()),
            *judge(torch.cat(outputs), epoch_split),
        ]
        val = measure(model, splits.val)
        curves.append(row + val)
        key = selection_key(*val[:2])
        if key > best_key:
            best_key, best_weights = key, copy.deepcopy(model.state_dict())
        if problem.test_curve and (epoch + 1) % problem.test_curve.every == 0:
            measure(model, splits.test.take(slice(problem.test_curve.examples)))
    measure(model, splits.test)
    model.load_state_dict(best_weights)
    measure(model, splits.test)


def serve_loops(name, part, parts):
    """Be a process of loops: train the levels of one part at each line "go"."""
    torch.set_num_threads(1)
    problem = CASES[name]
    problem.splits(0)
    for line in sys.stdin:
        if line.strip() == "go":
            for level in LEVELS[part::parts]:
                train_by_hand(problem, level)
        print("done", flush=True)


class Loops:
    """As many processes of loops as there are cores."""

    def __init__(self, name):
        command = [sys.executable, __file__, "--loops", name, "--part"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [
            subprocess.Popen([*command, str(part)], **pipes) for part in range(available_cpus())
        ]
        self.send("warm")

    def send(self, word):
        """Send every process a word and wait until it is done."""
        for process in self.processes:
            process.stdin.write(word + "\n")
            process.stdin.flush()
        for process in self.processes:
            process.stdout.readline()

    def close(self):
        """End them."""
        for process in self.processes:
            process.kill()


def time_runner(problem, folder):
    """Run the grid on the warm pool; give seconds, share of steps and how busy the workers were."""
    runs = [Run(problem, level) for level in LEVELS]
    children = psutil.Process().children()
    cpu_before = [sum(child.cpu_times()[:2]) for child in children]
    start = time.perf_counter()
    records = run_all(runs, ledger=Path(folder) / f"{time.monotonic_ns()}.sqlite")
    seconds = time.perf_counter() - start
    cpu_seconds = []
    for child, before in zip(children, cpu_before, strict=True):
        cpu_seconds.append(sum(child.cpu_times()[:2]) - before)
    # Other children of this process, such as the loops, were idle.
    workers = sorted(cpu_seconds)[-available_cpus() :]
    trained = sum(record.metadata["epochs_trained"] for record in records)
    share = trained / sum(run.epochs for run in runs)
    return seconds, share, sum(workers) / available_cpus() / seconds


def checkpoint_share(problem, folder):
    """Give the share of the time that checkpoints take, in one process."""
    spent = 0.0

    def timed(function):
        def wrapped(*args, **kwargs):
            nonlocal spent
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent += time.perf_counter() - start

        return wrapped

    methods = {name: getattr(Checkpoints, name) for name in ("save", "find", "delete")}
    for name, function in methods.items():
        setattr(Checkpoints, name, timed(function))
    start = time.perf_counter()
    run_all(
        [Run(problem, level) for level in LEVELS],
        ledger=Path(folder) / "checkpoints.sqlite",
        workers=0,
    )
    seconds = time.perf_counter() - start
    for name, function in methods.items():
        setattr(Checkpoints, name, function)
    return spent / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loops")
    parser.add_argument("--part", type=int)
    parser.add_argument("--cases", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.loops:
        serve_loops(arguments.loops, arguments.part, available_cpus())
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        print(f"start-up of {available_cpus()} workers: {start_workers():.1f} s")
        for case in arguments.cases:
            compare(list(CASES)[case], arguments.rounds, folder)


def start_workers():
    """Start the pool with two tiny Runs and give the seconds."""
    problem = Problem(two_gaussians, partial(mlp, 10, 2, width=8), max_epochs=1)
    start = time.perf_counter()
    run_all([Run(problem, level) for level in (0.1, 0.2)], ledger=False)
    return time.perf_counter() - start


def compare(name, rounds, folder):
    """Time both sides in turn and print the ratio."""
    problem = CASES[name]
    # Load the data in every worker.
    run_all([Run(problem, level, stop_epoch=1) for level in (None, 9.0)], ledger=False)
    loops, seconds = Loops(name), {"runner": [], "loops": []}
    shares, busy = [], []
    for turn in range(rounds):
        for side in ("runner", "loops")[:: 1 if turn % 2 else -1]:
            if side == "loops":
                start = time.perf_counter()
                loops.send("go")
                seconds[side].append(time.perf_counter() - start)
            else:
                elapsed, share, use = time_runner(problem, folder)
                seconds[side].append(elapsed), shares.append(share), busy.append(use)
    loops.close()
    print(f"{name}: {len(LEVELS)} levels, n = {rounds}")
    texts = []
    for side, values in seconds.items():
        sd = statistics.stdev(values) if rounds > 1 else 0.0
        texts.append(f"{side} {statistics.mean(values):.2f} s (sd {sd:.2f})")
    print(f"  {', '.join(texts)}")
    ratio = statistics.mean(seconds["runner"]) / statistics.mean(seconds["loops"])
    share = shares[0]
    print(f"  ratio {ratio:.3f}; share of steps {share:.3f}; ratio / share {ratio / share:.3f}")
    print(f"  workers busy {statistics.mean(busy):.2f} of the time", flush=True)
    percent = 100 * checkpoint_share(problem, folder)
    print(f"  checkpoints {percent:.2f} % of the time in one process", flush=True)


if __name__ == "__main__":
    main()
