"""Images: seconds to load cached Fashion-MNIST, and the peak memory of training on CIFAR-10.

    FLOODING_DATA=folder python benchmarks/images.py [--rounds 5] [--epochs 1]

Each is measured in processes of its own. Training is that of the published reproduction: ResNet-44,
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
    """Load Fashion-MNIST; return seconds."""
    from flooding.data import images

    tick = time.perf_counter()
    images.load("fashion-mnist")
    return time.perf_counter() - tick


def train(epochs):
    """Train on CIFAR-10; return the peak memory in GiB."""
    from flooding import Run
    from flooding.experiments.kim2022_cifar10 import setting
    from flooding.training.loop import train as rows

    for row in rows(Run(setting(0.1, full=True), 0.02, stop_epoch=epochs)):
        print(f"epoch {row.epoch}", file=sys.stderr, flush=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_in_process(*arguments):
    """Run this script in a new process; return the number it prints."""
    process = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(process.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--only", choices=["load", "train"])
    options = parser.parse_args()
    if options.only:
        print(load() if options.only == "load" else train(options.epochs))
        return
    print(machine())
    run_in_process("--only", "load")  # decodes and caches it
    seconds = [run_in_process("--only", "load") for _ in range(options.rounds)]
    mean, sd = statistics.mean(seconds), statistics.stdev(seconds)
    summary = f"{mean:.3f} s (sd {sd:.3f}, n = {options.rounds})"
    print(f"load of cached Fashion-MNIST: {summary}", flush=True)
    peak = run_in_process("--only", "train", "--epochs", str(options.epochs))
    print(
        f"CIFAR-10, ResNet-44: peak memory {peak:.2f} GiB after {options.epochs} epochs of "
        "42,500 images"
    )


if __name__ == "__main__":
    main()
