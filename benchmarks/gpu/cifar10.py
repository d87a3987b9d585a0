"""CIFAR-10, ResNet-44, 500 epochs, in the setting of the published reproduction: on a GPU, in pieces.

    python benchmarks/gpu/cifar10.py --minutes 8 --ledger out/cifar10.sqlite --epochs 80 --levels 0 0.02 0.2

Trains several Runs side by side, since one of this size leaves a GPU idle, until they are finished or the time is up;
the ledger and its checkpoints then hold what was done, but for the last half minute, and the same command goes on from
there. Levels of one seed and rate share their beginning, and longer Runs go on where shorter ones stopped. What is
finished is printed, and packed beside the ledger as cifar10.npz after every piece; an estimate follows after half a
minute. Data: $FLOODING_DATA or the cache, see flooding.data.files.
"""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

import torch

from flooding import Run, evaluate
from flooding.engine import trajectory
from flooding.experiments import machine
from flooding.experiments.archive import pack
from flooding.experiments.kim2022_cifar10 import CURVES, FULL_LEVELS, RATES, exact, setting
from flooding.ledger import Ledger


class TimeIsUp(Exception):
    """Ends a piece."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after so long; checkpoints stay")
    parser.add_argument("--ledger", type=Path, default=Path("cifar10.sqlite"))
    parser.add_argument("--epochs", type=int, default=500, help="those of the whole training: the first so many")
    parser.add_argument("--levels", type=float, nargs="+", default=list(FULL_LEVELS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=8, help="Runs side by side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reduced", action="store_true", help="the CPU's protocol instead")
    given = parser.parse_args()
    problems = [setting(rate, full=not given.reduced) for rate in given.rates]
    until = given.epochs if given.epochs < problems[0].horizon else None  # the rest can follow later
    runs = [Run(p, b, seed=s, until=until) for p in problems for s in given.seeds for b in given.levels]
    given.ledger.parent.mkdir(parents=True, exist_ok=True)
    began, epochs, finished, told_at = time.monotonic(), 0, [], 30.0

    def on_row(row):
        nonlocal epochs, told_at
        epochs += row.epoch > 0
        if (spent := time.monotonic() - began) > told_at:
            whole = sum(run.epochs for run in runs)
            print(f"{epochs} epochs in {spent:.0f} s: about {spent / epochs * whole / 3600:.1f} h for all {whole}")
            told_at *= 4
        if row.record is not None:
            finished.append(row.record)
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
    print(f"{machine()}; {given.device}: {epochs} epochs in {spent:.0f} s, {len(finished)} runs finished", flush=True)
    book = Ledger(given.ledger)
    held = [book.find(run, trajectory(run, device=given.device)) for run in runs]
    book.close()
    records = [record for record in held if record is not None]
    print(f"{len(records)} of {len(runs)} runs are finished")
    if records:
        packed = pack(given.ledger.with_name("cifar10.npz"), records, CURVES, machine(), exact=exact)
        print("packed", packed)


if __name__ == "__main__":
    main()
