"""Fleets beside the worker pool: run-steps a second, and growth to 10,000 Runs.

    python benchmarks/fleet.py speed [--rounds 3] [--epochs 200]
    python benchmarks/fleet.py growth [--counts 10 1000 10000]
    python benchmarks/fleet.py compiled

``speed`` trains networks of three sizes on Two Gaussians, full batches of 100, Adam: by the worker
pool, by fleets, and by what the rule of ``fleet="auto"`` picks, in turns. Every Run has a seed of
its own, so that the pool has no first steps to share; ``--levels`` trains several levels of few
seeds instead, where it has. A run-step is one optimiser step of one Run. Time is that of the whole
call of ``run_all``: data, training, evaluation after every epoch, Records; the workers are warm.
A fleet takes fused steps of Adam by itself; with ``--fused`` the pool takes them, too.

``growth`` trains many tiny Runs by the pool, by fleets and by Ray on this machine alone, and gives
time and memory for each. A picture goes to docs/scaling/fleet.png.

``compiled`` times the forward and backward pass of a fleet as it is, and compiled by torch.compile
as one graph.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import torch

from flooding import Problem, Run, run_all
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.report.provenance import machine
from flooding.training.fleet.metrics import stacked_loss
from flooding.training.fleet.model import StackedModel

SIZES = {"2x50": (50, 2, 48), "3x100": (100, 3, 48), "5x500": (500, 5, 8)}  # width, depth, Runs
MUST = {"2x50": 3.0, "3x100": 1.5, "5x500": 0.95}
KINDS = ("pool", "fleet", "ray")
PICTURE = Path(__file__).parents[1] / "docs" / "scaling" / "fleet.png"


def problem(width, depth, epochs, n_test=1000, fused=None):
    """Two Gaussians, full batches of 100."""
    return Problem(
        partial(two_gaussians, n_test=n_test, label_noise=0.1),
        partial(mlp, 10, 2, width=width, depth=depth),
        partial(torch.optim.Adam, lr=1e-3, fused=fused),
        max_epochs=epochs,
    )


def plan(shared, count, by_levels):
    """Give Runs that differ in their seed, or mostly in their level."""
    if not by_levels:
        return [Run(shared, (None, 0.1, 0.2)[i % 3], seed=i) for i in range(count)]
    return [Run(shared, round(0.02 * (i // 2), 2), seed=i % 2) for i in range(count)]


def processor_seconds():
    """Give the processor time of this process and its workers so far."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def seconds(runs, workers, fleet):
    """Time one call of the pool, with or without fleets."""
    return timed(partial(run_all, runs, workers=workers, fleet=fleet))


def timed(call):
    """Time one call: on the clock, and on the processors, which other programs do not disturb."""
    begin, processor = time.perf_counter(), processor_seconds()
    call(ledger=False, progress=False)
    return time.perf_counter() - begin, processor_seconds() - processor


class Picks(logging.Handler):
    """Remembers what the rule picked."""

    def emit(self, record):
        """Keep the answer of the latest call."""
        if "runs train %s" in record.msg:
            self.last = "fleet" if record.args[-1] == "in fleets" else "pool"


def speed(given):
    """Print the table of run-steps a second."""
    picks = Picks()
    logging.getLogger("flooding").addHandler(picks)
    logging.getLogger("flooding").setLevel(logging.INFO)
    print(f"{machine()}; {given.workers} workers; load {load()} before")
    for name in given.sizes:
        width, depth, count = SIZES[name]
        epochs = max(2, given.epochs // (10 if name == "5x500" else 1))
        fused = given.fused or None
        runs = plan(problem(width, depth, epochs, fused=fused), count, given.levels)
        # Warm workers, and every seed's data.
        short = plan(problem(width, depth, 2, fused=fused), count, given.levels)
        for fleet in (False, True):
            seconds(short, given.workers, fleet)
        times = {False: [], True: [], "auto": []}
        picked = []
        for _ in range(given.rounds):
            for fleet, spent in times.items():
                spent.append(seconds(runs, given.workers, fleet))
            picked.append(picks.last)
        rates = {f: [count * epochs / t for t, _ in spent] for f, spent in times.items()}
        processor = {f: statistics.median(cpu for _, cpu in times[f]) for f in (False, True)}
        medians = {f: statistics.median(rate) for f, rate in rates.items()}
        # A ratio of each round: what disturbs the machine then disturbs both.
        ratio, auto = (
            [a / b for a, b in zip(rates[kind], rates[False], strict=True)]
            for kind in (True, "auto")
        )
        print(
            f"{name}, {count} runs of {epochs} epochs: pool {medians[False]:.0f}, fleet "
            f"{medians[True]:.0f}, auto {medians['auto']:.0f} run-steps a second; fleet over pool "
            f"{statistics.median(ratio):.2f} [{min(ratio):.2f}, {max(ratio):.2f}], auto over pool "
            f"{statistics.median(auto):.2f} [{min(auto):.2f}, {max(auto):.2f}], must be at least "
            f"{MUST[name]}; the rule picked {', '.join(picked)}; processor time of the "
            f"pool over the fleet's {processor[False] / processor[True]:.2f}; load {load()}",
            flush=True,
        )


def load():
    """Give the machine's load of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


# ---------------------------------------------------------------- growth


def grow(kind, count, workers):
    """Train tiny Runs in this process and its workers; print seconds and memory as JSON."""
    shared = problem(8, 1, 5, n_test=50)
    runs = [Run(shared, 0.02 * (i % 25), seed=i // 25) for i in range(count)]
    train = {
        "pool": partial(run_all, workers=workers),
        "fleet": partial(run_all, workers=workers, fleet=True),
        "ray": run_on_ray(workers) if kind == "ray" else None,
    }[kind]
    timed(partial(train, runs[:4]))  # starts the workers
    process = psutil.Process()
    peak, stop = [0], [False]

    def watch():
        while not stop[0]:
            family = [process, *process.children(recursive=True)]
            total = 0
            for member in family:
                try:
                    total += member.memory_info().rss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(0.05)

    family = [process, *process.children(recursive=True)]
    base = sum(member.memory_info().rss for member in family)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    spent, processor = timed(partial(train, runs))
    stop[0] = True
    thread.join()
    print(json.dumps({"seconds": spent, "processor": processor, "bytes": max(0, peak[0] - base)}))


def run_on_ray(workers):
    """Start Ray on this machine with a core for each worker, and give what trains there."""
    import ray

    from flooding.integrations import ray as flooding_ray

    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=200 << 20,
        logging_level=logging.ERROR,
    )
    return partial(flooding_ray.run_all, address="local")


def growth(given):
    """Print the table of time and memory a Run, and draw it."""
    table = {}
    print(f"{machine()}; {given.workers} workers; load {load()} before")
    for count in given.counts:
        for kind in KINDS:
            command = [sys.executable, __file__, "grow", "--kind", kind, "--count", str(count)]
            command += ["--workers", str(given.workers)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            table[kind, count] = result
            print(
                f"{kind}, {count} runs: {1e3 * result['seconds'] / count:.2f} ms, "
                f"{1e3 * result['processor'] / count:.2f} ms of processor time and "
                f"{result['bytes'] / 1e3 / count:.1f} kB a run, "
                f"{result['bytes'] / 1e6:.0f} MB above the start; load {load()}",
                flush=True,
            )
    if len(given.counts) > 1:
        draw(table, given.counts)


def draw(table, counts):
    """Draw time and memory a Run against the number of Runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    # As wide as a phone, where its texts are 8 pixels high: one panel below the other.
    plt.rcParams["font.size"] = 11
    figure, axes = plt.subplots(2, 1, figsize=(5.6, 6), sharex=True, layout="constrained")
    for axis, name, factor, label in (
        (axes[0], "processor", 1e3, "processor time of a Run (ms)"),
        (axes[1], "bytes", 1e-3, "memory of a Run (kB)"),
    ):
        for kind, look in zip(KINDS, ("o-", "s--", "^:"), strict=True):
            values = [factor * table[kind, count][name] / count for count in counts]
            axis.semilogx(counts, values, look, label=kind)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.legend()
    axes[1].set_xlabel("Runs")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=100)
    print("drawn", PICTURE.name)


# ---------------------------------------------------------------- torch.compile


def compiled(given):
    """Print the time of a pass forward and backward, as it is and compiled as one graph."""
    torch.set_num_threads(1)
    modes = ["default"]
    if given.device.startswith("cuda"):
        modes += ["reduce-overhead"]  # CUDA graphs
    print(f"{machine()}; {given.device}; load {load()} before")
    for name in given.sizes:
        width, depth, count = SIZES[name]
        shared = problem(width, depth, 1)
        model = StackedModel([shared.build(seed).to(given.device) for seed in range(count)])
        loss_of = stacked_loss(shared.loss)
        train = [shared.splits(seed).train for seed in range(count)]
        x, y = (torch.stack([getattr(s, part) for s in train]).to(given.device) for part in "xy")

        def losses(parameters, x=x, y=y, model=model, loss_of=loss_of):
            return loss_of(model(x, training=True, parameters=parameters), y)

        passes = {"as it is": losses}
        for mode in modes:
            passes[mode] = torch.compile(losses, fullgraph=True, mode=mode)
        times = {kind: [] for kind in passes}
        for _ in range(given.rounds + 1):  # the first one compiles
            for kind, compute in passes.items():
                times[kind].append(_time_passes(compute, model, given.device))
        base = times["as it is"][1:]
        for mode in modes:
            ratios = [a / b for a, b in zip(times[mode][1:], base, strict=True)]
            print(
                f"{name}, {count} runs: {1e3 * statistics.median(base):.3g} ms as it is; compiled "
                f"({mode}) {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] "
                f"times that, n = {len(ratios)}; load {load()}",
                flush=True,
            )


def _time_passes(compute, model, device):
    """Give seconds of one pass: of this thread on a CPU, where other programs do not count."""
    is_cuda = device.startswith("cuda")
    clock = time.perf_counter if is_cuda else time.thread_time
    repeats = 20
    for warm in (True, False):
        begin = clock()
        for _ in range(3 if warm else repeats):
            for parameter in model.parameters.values():
                parameter.grad = None
            compute(model.parameters).sum().backward()
        if is_cuda:
            torch.cuda.synchronize()
    return (clock() - begin) / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "growth", "grow", "compiled"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--levels", action="store_true", help="many levels of two seeds")
    parser.add_argument("--fused", action="store_true", help="the Problem asks for fused steps")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--count", type=int)
    parser.add_argument("--device", default="cpu", help="for `compiled`")
    given = parser.parse_args()
    if given.what == "grow":
        grow(given.kind, given.count, given.workers)
    else:
        {"speed": speed, "growth": growth, "compiled": compiled}[given.what](given)


if __name__ == "__main__":
    main()
