"""Damage stored files: whatever is not as it was written is named and counts as missing; no other
number comes out.

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
from flooding.training.checkpoints import _SECONDS, Checkpoints, _digest
from flooding.training.ledger import Ledger
from flooding.training.ledger import _digest as row_digest
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
            known = ledger.find(run, key)
            numbers[key] = known and known.content_hash
            if known is None:
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
    told = [
        [r.metrics, {n: c.tolist() for n, c in r.curves.items()}, dict(r.metadata)] for r in records
    ]
    return {key: repr(numbers) for key, numbers in zip(KEYS, told, strict=True)}


RECORDS = run_all(RUNS, ledger=False, workers=0)
TRUE = {key: record.content_hash for key, record in zip(KEYS, RECORDS, strict=True)}
KINDS = {
    "ledger": Kind(write_ledger, read_ledger),
    "checkpoint": Kind(write_checkpoint, read_checkpoint),
    "archive": Kind(write_archive, read_archive),
}


class Said(logging.Handler):
    """Collect what the log says."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        """Collect one line."""
        self.lines.append(record.getMessage())


def use(kind, path, truth):
    """Use a damaged file three times, and tell what happened."""
    said = Said()
    log = logging.getLogger("flooding")
    log.addHandler(said)
    outcome = "harmless"
    try:
        for _ in range(3):
            numbers = kind.read(path)
            if any(value is not None and value != truth[name] for name, value in numbers.items()):
                return "wrong"
            if None in numbers.values() and outcome == "harmless":
                outcome = "missed"
    except (ValueError, OSError) as error:
        said.lines.append(str(error))
    except Exception:  # noqa: BLE001 -- which are counted
        traceback.print_exc()
        return "traceback"
    finally:
        log.removeHandler(said)
    return (
        "reported"
        if any(path.name in line or path.stem in line for line in said.lines)
        else outcome
    )


def damages(content, flips, dice):
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
        for number, (how, copy) in enumerate(damages(content, flips, dice)):
            own = Path(folder) / str(number)
            own.mkdir()
            (own / path.name).write_bytes(copy)
            counts[how, use(kind, own / path.name, truth)] += 1
            shutil.rmtree(own)
    return len(content), counts


def costs():
    """Give what digests cost, as shares of the training time."""
    state = {"model": {f"layer{n}": torch.randn(500, 500) for n in range(5)}}
    with io.BytesIO() as file:
        torch.save(state, file)
        content = file.getvalue()
    times = [timed(lambda: _digest("run-5", content)) for _ in range(20)]
    yield (
        f"checkpoint of {len(content) / 1e6:.1f} MB, written and read again each {_SECONDS:.0f} s",
        (2 * sorted(times)[10] / _SECONDS),
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
    given = parser.parse_args()
    logging.getLogger("flooding").propagate = False
    print(machine())
    bad = 0
    outcomes = ("reported", "harmless", "missed", "wrong", "traceback")
    for name in [given.only] if given.only else KINDS:
        size, counts = damage(KINDS[name], given.flips, random.Random(f"{given.seed} {name}"))
        for how in ("flip", "sector"):
            told = ", ".join(f"{counts[how, outcome]} {outcome}" for outcome in outcomes)
            total = sum(counts[how, outcome] for outcome in outcomes)
            print(f"{name} ({size:,} bytes), {total} times one {how}: {told}", flush=True)
            bad += counts[how, "wrong"] + counts[how, "traceback"]
    for what, share in costs():
        print(f"digest of {what}: {100 * share:.4f} % of the training time (must be below 1 %)")
        bad += share >= 0.01
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
