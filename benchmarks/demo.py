"""The demo's first job: 4 levels x 1 seed x 200 epochs of the public demo, from a cold start.

    python benchmarks/demo.py [--test-every-epoch]

The published script needs about 430 s for it on two cores, its two evaluations of 20,000 test
points after every epoch included. Here: validation after every epoch, the test set at the best and
the last epoch; with the option, one pass over the 20,000 test points after every epoch too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace

from flooding import Run, run_all
from flooding.report.provenance import machine
from flooding.tasks import demo_sinusoid, sgd
from flooding.training.problem import TestCurve

JOB = "from demo import job; job({})"


def job(test_every_epoch):
    """Train the four levels on all cores, without a ledger."""
    problem = demo_sinusoid(sgd)
    if test_every_epoch:
        problem = replace(problem, test_curve=TestCurve(20_000, every=1))
    tick = time.perf_counter()
    records = run_all([Run(problem, level) for level in (0.0, 0.26, 0.27, 0.28)], ledger=False)
    epochs = sum(int(record.metrics["epochs"]) for record in records)
    print(f"{epochs} epochs, training and worker start: {time.perf_counter() - tick:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test-every-epoch", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    for _ in range(arguments.runs):
        tick = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", JOB.format(arguments.test_every_epoch)],
            check=True,
            cwd=sys.path[0],
        )
        print(f"whole process, imports included: {time.perf_counter() - tick:.1f} s")


if __name__ == "__main__":
    main()
