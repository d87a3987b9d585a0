"""The published image experiments at full scale: on a GPU, in pieces.

    python benchmarks/gpu/pieces.py cifar10-resnet44 --minutes 8 --epochs 80 --levels 0 0.02 0.2
    python benchmarks/gpu/pieces.py svhn --minutes 8

Trains several Runs side by side, since one of this size leaves a GPU idle, until they are finished or the time is up;
the ledger and its checkpoints then hold what was done, but for the last half minute, and the same command goes on from
there. Levels of one seed and rate share their beginning, and longer Runs go on where shorter ones stopped. What is
finished is printed, and packed beside the ledger, as PROTOCOL.npz, after every piece; an estimate follows after half a
minute. Data: $FLOODING_DATA or the cache, see flooding.data.files.

cifar10-resnet44 is the published reproduction's setting. The others are those of Ishida et al. (ICML 2020): 80 % of the
official training images to train on, 20 % to validate, SGD at 0.1 with momentum 0.9, batches of 200, 500 epochs, no
augmentation; ResNet-18, for grey images an MLP with a hidden layer of 1,000, as our sources do not say.
"""

from __future__ import annotations

import argparse
import signal
import time
from functools import partial
from pathlib import Path

import torch

from flooding import Run, evaluate
from flooding.data import images
from flooding.engine import trajectory
from flooding.experiments import machine
from flooding.experiments.archive import pack
from flooding.experiments.kim2022_cifar10 import CURVES, FULL_LEVELS, RATES, exact, setting
from flooding.ledger import Ledger
from flooding.models import mlp, resnet18
from flooding.problem import Problem, TestCurve

PAPER_LEVELS = tuple(round(0.01 * n, 2) for n in range(11))
GREY = partial(mlp, 784, 10, width=1000, depth=1)
IMAGES = {  # data, images to train on and to validate on, network
    "mnist": (images.mnist, 48_000, 12_000, GREY),
    "kuzushiji-mnist": (images.kuzushiji_mnist, 48_000, 12_000, GREY),
    "svhn": (images.svhn, 58_606, 14_651, partial(resnet18, 10)),
    "cifar10": (images.cifar10, 40_000, 10_000, partial(resnet18, 10)),
    "cifar100": (images.cifar100, 40_000, 10_000, partial(resnet18, 100)),
}
PROTOCOLS = ("cifar10-resnet44", *IMAGES)


def paper(name):
    """Give the paper's setting for a data set."""
    load, n_train, n_val, model = IMAGES[name]
    return Problem(
        partial(load, label_noise=0.0, n_train=n_train, n_val=n_val),
        model,
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        batch_size=200,
        horizon=500,
        test_curve=TestCurve(2000, every=1),
    )


class TimeIsUp(Exception):
    """Ends a piece."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after so long; checkpoints stay")
    parser.add_argument("--ledger", type=Path, help="PROTOCOL.sqlite by default")
    parser.add_argument("--epochs", type=int, default=500, help="those of the whole training: the first so many")
    parser.add_argument("--levels", type=float, nargs="+", help="the protocol's by default")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="of cifar10-resnet44")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=8, help="Runs side by side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reduced", action="store_true", help="cifar10-resnet44 for a CPU")
    given = parser.parse_args()
    if given.protocol in IMAGES:
        problems, levels = [paper(given.protocol)], PAPER_LEVELS
    else:
        problems, levels = [setting(rate, full=not given.reduced) for rate in given.rates], FULL_LEVELS
    given.ledger = given.ledger or Path(f"{given.protocol}.sqlite")
    levels = given.levels or levels
    until = given.epochs if given.epochs < problems[0].horizon else None  # the rest can follow later
    runs = [Run(p, b, seed=s, until=until) for p in problems for s in given.seeds for b in levels]
    given.ledger.parent.mkdir(parents=True, exist_ok=True)
    began, epochs, finished, told_at = time.monotonic(), 0, 0, 30.0

    def on_row(row):
        nonlocal epochs, finished, told_at
        epochs += row.epoch > 0
        if (spent := time.monotonic() - began) > told_at:
            whole = sum(run.epochs for run in runs)
            print(f"{epochs} epochs in {spent:.0f} s: about {spent / epochs * whole / 3600:.1f} h for all {whole}")
            told_at *= 4
        if row.record is not None:
            finished += 1
            told = {n: row.record.finals[f"last.{n}"] for n in ("train_loss", "test_loss", "test_accuracy")}
            rate = row.run.problem.optimizer.keywords["lr"]
            print(f"rate {rate:g}, level {row.record.level:g}, seed {row.run.seed}: {told}", flush=True)

    def stop(*_):
        raise TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(max(1, round(60 * given.minutes)))
    try:
        evaluate(runs, ledger=given.ledger, device=given.device, workers=given.workers, on_row=on_row)
    except TimeIsUp:
        print("time is up; the same command goes on from here")
    signal.alarm(0)
    spent = time.monotonic() - began
    print(f"{machine()}; {given.device}: {epochs} epochs in {spent:.0f} s, {finished} runs finished", flush=True)
    book = Ledger(given.ledger)
    held = [book.find(run, trajectory(run, device=given.device)) for run in runs]
    book.close()
    records = [record for record in held if record is not None]
    print(f"{len(records)} of {len(runs)} runs are finished")
    if records:
        packed = pack(given.ledger.with_name(f"{given.protocol}.npz"), records, CURVES, machine(), exact=exact)
        print("packed", packed)


if __name__ == "__main__":
    main()
