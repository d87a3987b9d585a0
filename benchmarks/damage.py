"""Damage stored files: what was changed is reported and counts as missing; no number is wrong.

    python benchmarks/damage.py [--flips 300] [--seed 0] [--only ledger]

For each kind of file: so many times a fresh copy gets one flipped bit, and a fifth as many times
512 zeroed bytes (a lost sector), at positions that the seed draws. Then the copy is used as the
library uses it: a ledger is asked for every Run, what it lacks is put in again, and it is read as a
whole. Printed are

    reported     the log or a ValueError of one line names the file
    harmless     the same numbers, as where unused bytes were hit
    missed       numbers are missing, so that they are trained anew, and nothing was said
    wrong        another number came out (must be 0)
    traceback    any other exception (must be 0)

The last lines give what a digest costs: of a checkpoint of a few MB, as a share of the 30 s between
two of them; of a ledger's row, as a share of the training it stands for.

Another kind of file is one more entry in ``KINDS``: what writes it into a folder, and what reads
it.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flooding import Problem, Run, run_all, train
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.report.provenance import machine
from flooding.training.archive import Archive, pack
from flooding.training.checkpoints import INTERVAL, Checkpoints, state_digest
from flooding.training.ledger import Ledger
from flooding.training.ledger_rows import row_digest
from flooding.training.runner import run_key

SECTOR = 512
PROBLEM = Problem(partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=16), max_epochs=12)
RUNS = [Run(PROBLEM, level, seed=seed) for level in (None, 0.1, 0.2, 0.3) for seed in range(6)]
KEYS = [run_key(run) for run in RUNS]


class Kind(NamedTuple):
    """A kind of stored file.

    ``write(folder)`` writes it and returns its path. ``read(path)`` uses it, returns numbers by
    name, None for those that are missing, and leaves the file fit for a second ``read``.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], dict[str, Any]]


def write_ledger(folder):
    path = folder / "ledger.sqlite"
    run_all(RUNS, ledger=path, workers=0)
    shutil.rmtree(f"{path}.checkpoints", ignore_errors=True)
    return path


def read_ledger(path):
    """Ask for every Run, store what is missing, and read the whole file."""
    ledger, numbers = Ledger(path), {}
    try:
        for key, run, record in zip(KEYS, RUNS, RECORDS, strict=True):
            result = ledger.find(run, key)
            numbers[key] = result and result.content_hash
            if result is None:
                ledger.start(key, run.epochs)
                ledger.add(key, record)
        for key, record in ledger.records():
            assert key in KEYS, "a Record under a key nobody stored"
            assert record.content_hash == TRUE[key], "a Record of another Run"
        assert len(ledger) <= len(KEYS), "a damaged Record is still there"
        ledger.starts()
    finally:
        ledger.close()
    return numbers


def write_checkpoint(folder):
    rows = train(Run(PROBLEM, 0.2))
    row = next(row for row in rows if row.epoch == 5)
    Checkpoints(folder).save("run", 5, row.snapshot())
    return folder / "run-5.pt"


def read_checkpoint(path):
    state = Checkpoints(path.parent).find("run", 9)
    if state is None:
        return {"state": None}
    with io.BytesIO() as file:
        torch.save(state, file)
        return {"state": hashlib.sha256(file.getvalue()).hexdigest()}


def write_archive(folder):
    return pack(folder / "archive.npz", RECORDS, ("train_loss", "val_loss", "level"), "a machine")


def read_archive(path):
    records = Archive(path)(RUNS)
    numbers = {}
    for key, record in zip(KEYS, records, strict=True):
        curves = {name: curve.tolist() for name, curve in record.curves.items()}
        numbers[key] = repr([record.metrics, curves, dict(record.metadata)])
    return numbers


RECORDS = run_all(RUNS, ledger=False, workers=0)
TRUE = {key: record.content_hash for key, record in zip(KEYS, RECORDS, strict=True)}
KINDS = {
    "ledger": Kind(write_ledger, read_ledger),
    "checkpoint": Kind(write_checkpoint, read_checkpoint),
    "archive": Kind(write_archive, read_archive),
}


class LogCollector(logging.Handler):
    """Collect the lines of the log."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        """Collect one line."""
        self.lines.append(record.getMessage())


def use(kind, path, truth):
    """Use a damaged file three times, and tell what happened."""
    collector = LogCollector()
    log = logging.getLogger("flooding")
    log.addHandler(collector)
    outcome = "harmless"
    try:
        for _ in range(3):
            numbers = kind.read(path)
            if any(value is not None and value != truth[name] for name, value in numbers.items()):
                return "wrong"
            if None in numbers.values() and outcome == "harmless":
                outcome = "missed"
    except (ValueError, OSError) as error:
        collector.lines.append(str(error))
    except Exception:  # noqa: BLE001 -- which are counted
        traceback.print_exc()
        return "traceback"
    finally:
        log.removeHandler(collector)
    return (
        "reported"
        if any(path.name in line or path.stem in line for line in collector.lines)
        else outcome
    )


def damaged_copies(content, flips, dice):
    """Give damaged copies of a file's bytes."""
    for _ in range(flips):
        copy, place = bytearray(content), dice.randrange(len(content))
        copy[place] ^= 1 << dice.randrange(8)
        yield "flip", copy
    for _ in range(flips // 5):
        copy, place = bytearray(content), dice.randrange(-(-len(content) // SECTOR)) * SECTOR
        copy[place : place + SECTOR] = bytes(len(content[place : place + SECTOR]))
        yield "sector", copy


def damage(kind, flips, dice):
    """Damage one kind of file, and count what happened."""
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = kind.write(Path(folder))
        content, truth = path.read_bytes(), kind.read(path)
        assert None not in truth.values()
        for number, (kind_of_damage, copy) in enumerate(damaged_copies(content, flips, dice)):
            own = Path(folder) / str(number)
            own.mkdir()
            (own / path.name).write_bytes(copy)
            counts[kind_of_damage, use(kind, own / path.name, truth)] += 1
            shutil.rmtree(own)
    return len(content), counts


def costs():
    """Give what digests cost, as shares of the training time."""
    state = {"model": {f"layer{n}": torch.randn(500, 500) for n in range(5)}}
    with io.BytesIO() as file:
        torch.save(state, file)
        content = file.getvalue()
    times = [timed(lambda: state_digest("run-5", content)) for _ in range(20)]
    yield (
        f"checkpoint of {len(content) / 1e6:.1f} MB, written and read again each {INTERVAL:.0f} s",
        (2 * sorted(times)[10] / INTERVAL),
    )
    began = time.perf_counter()
    [record] = run_all(RUNS[6:7], ledger=False, workers=0)
    training = time.perf_counter() - began
    row = ("0" * 64, 12, *reversed(record.pack()), "{}")
    times = [timed(lambda: row_digest(*row)) for _ in range(200)]
    yield (
        f"a ledger's row, of a training of {1000 * training:.0f} ms",
        sorted(times)[100] / training,
    )


def timed(act):
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args()
    logging.getLogger("flooding").propagate = False
    print(machine())
    bad = 0
    outcomes = ("reported", "harmless", "missed", "wrong", "traceback")
    for name in [options.only] if options.only else KINDS:
        size, counts = damage(KINDS[name], options.flips, random.Random(f"{options.seed} {name}"))
        for what in ("flip", "sector"):
            numbers = [counts[what, outcome] for outcome in outcomes]
            summary = ", ".join(
                f"{number} {outcome}" for number, outcome in zip(numbers, outcomes, strict=True)
            )
            total = sum(numbers)
            print(f"{name} ({size:,} bytes), {total} times one {what}: {summary}", flush=True)
            bad += counts[what, "wrong"] + counts[what, "traceback"]
    for what, share in costs():
        print(f"digest of {what}: {100 * share:.4f} % of the training time (must be below 1 %)")
        bad += share >= 0.01
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
