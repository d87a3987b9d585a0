"""The published image experiments at full scale: on a GPU, in pieces.

    python benchmarks/gpu/pieces.py cifar10-resnet44 --minutes 8
    python benchmarks/gpu/pieces.py cifar10-resnet44 --minutes 8 --epochs 80 --levels 0 0.02 0.2
    python benchmarks/gpu/pieces.py svhn --minutes 8

Trains several Runs side by side, since one of this size leaves a GPU idle, until they are finished
or the time is up; the ledger and its checkpoints then hold what was done, but for the last half
minute, and the same command goes on from there. Levels of one seed and rate share their beginning,
and longer Runs go on where shorter ones stopped. What the command finished so far is printed, and
packed beside the ledger, as NAME.npz, after every piece; an estimate follows after half a minute.
When the last Run is finished, so are tables and figures, in the folder NAME-page: every level,
plain training, early stopping, the finder, for all seeds of the command. With --epochs, --levels or
--rates only that part is trained. NAME is the protocol, with -reduced and -part where it is. Data:
$FLOODING_DATA or the cache, see flooding.data.downloads.

cifar10-resnet44 is the published reproduction's setting. The others are those of Ishida et al.
(ICML 2020): 80 % of the official training images to train on, 20 % to validate, SGD at 0.1 with
momentum 0.9, batches of 200, 500 epochs, no augmentation; ResNet-18, for grey images an MLP with a
hidden layer of 1,000, as our sources do not say.
"""

from __future__ import annotations

import argparse
import math
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from flooding import Run, run_all
from flooding.data import images
from flooding.experiments import kim2022_cifar10
from flooding.experiments.grids import compare_levels
from flooding.level_search.driver import run_generator
from flooding.models import mlp, resnet18
from flooding.report.level_grid import Cell
from flooding.report.provenance import machine
from flooding.training.archive import pack, run_id
from flooding.training.ledger import Ledger
from flooding.training.problem import Problem, TestCurve
from flooding.training.runner import run_key

PAPER_LEVELS = tuple(round(0.01 * n, 2) for n in range(11))
PAPER_EPOCHS = 500

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
        max_epochs=PAPER_EPOCHS,
        test_curve=TestCurve(2000, every=1),
    )


def cells(given):
    """Plan the cells of a protocol."""
    if given.protocol not in IMAGES:
        return kim2022_cifar10.cells(seeds=given.seeds, full=not given.reduced)
    return [Cell(given.protocol, paper(given.protocol), PAPER_LEVELS, tuple(given.seeds))]


def whole(given):
    """Give a protocol's experiment."""
    if given.protocol not in IMAGES:
        return kim2022_cifar10.start(seeds=given.seeds, full=not given.reduced)
    _, n_train, n_val, _ = IMAGES[given.protocol]
    about = (
        f"**The paper's protocol** where it says so: {n_train:,} training and {n_val:,} validation "
        "images, SGD at 0.1 "
        f"with momentum 0.9, batches of 200, {PAPER_EPOCHS} epochs, no augmentation; the network "
        "is ours to choose."
    )
    return compare_levels(
        cells(given), f"{given.protocol} at full scale (Ishida et al., 2020)", about, search=True
    )


def part(given):
    """Give some levels, rates or epochs of a protocol, without a report."""
    chosen = [
        c
        for c in cells(given)
        if not given.rates or c.problem.optimizer.keywords["lr"] in given.rates
    ]
    # The rest can follow later: a Run that goes to its max_epochs is the whole one.
    until = given.epochs if (given.epochs or math.inf) < chosen[0].problem.max_epochs else None
    yield [
        Run(c.problem, b, seed=s, stop_epoch=until)
        for c in chosen
        for s in c.seeds
        for b in given.levels or c.levels
    ]


class TimeIsUp(BaseException):
    """Ends a piece; no Exception, so that nothing on the way takes it for a failure."""


def options():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="stop after so long; checkpoints stay"
    )
    parser.add_argument(
        "--ledger", type=Path, help="PROTOCOL.sqlite by default, for the whole and its parts"
    )
    parser.add_argument(
        "--epochs", type=int, help="a part: the first so many of the whole training"
    )
    parser.add_argument("--levels", type=float, nargs="+", help="a part: these")
    parser.add_argument(
        "--rates", type=float, nargs="+", choices=kim2022_cifar10.RATES, help="a part: these"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=8, help="Runs side by side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reduced", action="store_true", help="cifar10-resnet44 for a CPU")
    given = parser.parse_args()
    if given.protocol in IMAGES and (given.rates or given.reduced):
        parser.error("--rates and --reduced are for cifar10-resnet44; leave them out.")
    if given.epochs is not None and given.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {given.epochs}.")
    given.is_part = bool(given.epochs or given.levels or given.rates)
    given.name = given.protocol + "-reduced" * given.reduced + "-part" * given.is_part
    given.ledger = given.ledger or Path(f"{given.protocol}.sqlite")
    return given


def main():
    given = options()
    given.ledger.parent.mkdir(parents=True, exist_ok=True)
    place = machine() + (
        f"; {torch.cuda.get_device_name()}" if given.device.startswith("cuda") else ""
    )
    began, told_at, asked, planned, epochs, finished = time.monotonic(), 30.0, {}, 0, 0, 0
    settled = (
        None  # epochs and time after ten seconds: what checkpoints hold is told in a burst before
    )

    def on_start(runs):
        nonlocal planned
        planned += sum(run.epochs for run in runs)

    def on_row(row):
        nonlocal epochs, finished, told_at, settled
        epochs += row.epoch > 0
        spent = time.monotonic() - began
        if settled is None and spent > 10:
            settled = epochs, spent
        if settled is not None and spent > told_at and epochs > settled[0]:
            each = (spent - settled[1]) / (epochs - settled[0])
            print(
                f"{each:.2f} s an epoch: about {each * planned / 3600:.1f} h for the {planned} "
                "epochs asked so far"
            )
            told_at *= 4
        if row.record is not None:
            finished += 1
            told = {
                n: row.record.metrics[f"last.{n}"]
                for n in ("train_loss", "test_loss", "test_accuracy")
            }
            rate = row.run.problem.optimizer.keywords["lr"]
            level = "none" if row.record.level is None else f"{row.record.level:g}"
            print(f"rate {rate:g}, level {level}, seed {row.run.seed}: {told}", flush=True)

    def ask(runs):
        asked.update((run_id(run), run) for run in runs)
        how = {"ledger": given.ledger, "device": given.device, "workers": given.workers}
        told = run_all(runs, on_start=on_start, on_row=on_row, **how)
        return [on_this(record) for record in told]

    def on_this(record):
        return replace(record, metadata={**record.metadata, "on": place})

    def stop(*_):
        raise TimeIsUp

    report = None
    signal.signal(signal.SIGALRM, stop)
    try:
        signal.alarm(max(1, round(60 * given.minutes)))
        report, _ = run_generator(part(given) if given.is_part else whole(given), ask)
    except TimeIsUp:
        print("time is up; the same command goes on from here")
    finally:
        signal.alarm(0)
    spent = time.monotonic() - began
    print(f"{place}: {epochs} epochs in {spent:.0f} s, {finished} runs finished", flush=True)
    book = Ledger(given.ledger)
    held = [book.find(run, run_key(run, device=given.device)) for run in asked.values()]
    book.close()
    records = [on_this(record) for record in held if record is not None]
    print(f"{len(records)} of {len(asked)} runs are finished, of those that were asked for so far")
    if records:
        path = given.ledger.with_name(f"{given.name}.npz")
        print(
            "packed",
            pack(path, records, kim2022_cifar10.CURVES, place, kim2022_cifar10.is_exact),
        )
    if report is not None:
        if given.device != "cpu":
            report = replace(
                report, told=report.told.replace("CPU hours", "hours of trainings side by side")
            )
        files = report.save(given.ledger.with_name(f"{given.name}-page"), given.name)
        print("written", *(path.name for path in files))


if __name__ == "__main__":
    main()
