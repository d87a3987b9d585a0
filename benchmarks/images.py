"""Images: how long cached Fashion-MNIST takes to load, and the peak memory of training on all of
CIFAR-10.

    FLOODING_DATA=folder python benchmarks/images.py [--rounds 5] [--epochs 1]

Each is measured in processes of its own. Training is the published reproduction's: ResNet-44,
42,500 images with crops and mirrors, batches of 128, validation after the epoch; memory is the
highest resident set, torch and data included.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

from flooding.report.provenance import machine


def load():
    """Load Fashion-MNIST; give seconds."""
    from flooding.data import images

    tick = time.perf_counter()
    images.load("fashion-mnist")
    return time.perf_counter() - tick


def train(epochs):
    """Train on CIFAR-10; give the peak in GiB."""
    from flooding import Run
    from flooding.experiments.kim2022_cifar10 import setting
    from flooding.training.loop import train as rows

    for row in rows(Run(setting(0.1, full=True), 0.02, stop_epoch=epochs)):
        print(f"epoch {row.epoch}", file=sys.stderr, flush=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def apart(*arguments):
    """Call this script in a new process; give the number it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--only", choices=["load", "train"])
    given = parser.parse_args()
    if given.only:
        print(load() if given.only == "load" else train(given.epochs))
        return
    print(machine())
    apart("--only", "load")  # decodes and caches it
    seconds = [apart("--only", "load") for _ in range(given.rounds)]
    told = (
        f"{statistics.mean(seconds):.3f} s (sd {statistics.stdev(seconds):.3f}, n = {given.rounds})"
    )
    print(f"load of cached Fashion-MNIST: {told}", flush=True)
    peak = apart("--only", "train", "--epochs", str(given.epochs))
    print(
        f"CIFAR-10, ResNet-44: peak memory {peak:.2f} GiB after {given.epochs} epochs of 42,500 images"
    )


if __name__ == "__main__":
    main()
