"""The engine's time per step against the tightest hand-written loop, paired; and one process
against two.

    python benchmarks/step.py [--rounds 40]

The paper's network (5 x 500, batch 100, Adam, flooding). One epoch of the engine and one of the
hand-written loop take turns in one process, so that a drifting machine slows both; the figure is
the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial

import torch

from flooding import Problem, Run, train
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.report.provenance import machine
from flooding.tasks import adam

LEVEL = 0.3


def by_hand(problem, seed, validate):
    """Train as tightly as plain torch can; yields after every epoch."""
    splits, model = problem.splits(seed), problem.build(seed)
    x, y = splits.train.x, splits.train.y
    optimizer = problem.optimizer(model.parameters())
    yield
    while True:
        model.train()
        order = (
            [slice(None)]
            if len(x) <= problem.batch_size
            else torch.randperm(len(x)).split(problem.batch_size)
        )
        for index in order:
            loss = torch.nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            ((loss - LEVEL).abs() + LEVEL).backward()
            optimizer.step()
        if validate:
            model.eval()
            with torch.inference_mode():
                logits = model(splits.val.x)
                float(torch.nn.functional.cross_entropy(logits, splits.val.y))
                float((logits.argmax(1) == splits.val.y).float().mean())
        yield


def paired(problem, validate, rounds, warm=3):
    """Return seconds per epoch of both, taken in turn."""
    engine, hand = train(Run(problem, LEVEL)), by_hand(problem, 0, validate)
    times = {"engine": [], "by hand": []}
    next(engine), next(hand)
    for turn in range(rounds + warm):
        for name, loop in (("engine", engine), ("by hand", hand))[:: 1 if turn % 2 else -1]:
            tick = time.perf_counter()
            next(loop)
            if turn >= warm:
                times[name].append(time.perf_counter() - tick)
    return times


def processes(steps):
    """Return steps per second of two processes with one thread and of one process with two."""
    child = (
        "import sys,time;from flooding import Run,train;from flooding.tasks import paper;"
        "from flooding.data.synthetic import two_gaussians as data;"
        "import functools;p=paper(functools.partial(data,n_test=100),10);"
        "n,t=int(sys.argv[1]),int(sys.argv[2]);g=train(Run(p,0.3),threads=t);[next(g) for _ in range(5)];"
        "input();s=time.time();[next(g) for _ in range(n)];print(n/(time.time()-s))"
    )

    def speed(workers, threads):
        each = [
            subprocess.Popen(
                [sys.executable, "-c", child, str(steps), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(workers)
        ]
        time.sleep(8)  # all have imported torch and taken their first steps
        for process in each:
            process.stdin.write("\n")
            process.stdin.flush()
        return sum(float(process.communicate()[0]) for process in each)

    return speed(2, 1), speed(1, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(machine())
    network = partial(mlp, 10, 2, width=500, depth=5)
    cases = {
        "50 steps an epoch, validation once": (
            Problem(partial(two_gaussians, 5000), network, adam, max_epochs=10**6),
            50,
        ),
        "full batch, validation every step": (
            Problem(two_gaussians_100, network, adam, max_epochs=10**6),
            1,
        ),
    }
    for name, (problem, steps) in cases.items():
        times = paired(problem, True, rounds * (1 if steps > 1 else 20))
        per_step = {who: [1e3 * t / steps for t in each] for who, each in times.items()}
        for who, each in per_step.items():
            mean, sd = statistics.fmean(each), statistics.stdev(each)
            print(
                f"{name}: {who:8} {statistics.median(each):.3f} ms a step (n {len(each)}, mean {mean:.3f}, sd {sd:.3f})"
            )
        ratio = statistics.median(per_step["engine"]) / statistics.median(per_step["by hand"])
        print(f"{name}: engine over by hand {ratio:.3f}")
    two, one = processes(300)
    print(
        f"two processes of one thread {two:.0f} steps/s, one process of two threads {one:.0f}: {two / one:.2f}"
    )


two_gaussians_100 = partial(two_gaussians, 100)

if __name__ == "__main__":
    main()
