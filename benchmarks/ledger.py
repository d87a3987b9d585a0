"""What a look-up and an append cost as the ledger grows.

    python benchmarks/ledger.py [--sizes 10 1000 100000]

Records of 500 epochs, as the level benchmark has them. Each size is a file of its own; sizes take
turns, so that a drifting machine slows all of them. The figure is the median over --repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from flooding import Problem, Run, train
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.report.provenance import machine
from flooding.training.ledger import Ledger, _digest, _row


def record():
    """Train a tiny network for the 500 epochs whose curves are stored."""
    problem = Problem(
        partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=8), max_epochs=500
    )
    *_, row = train(Run(problem, 0.1))
    return row.record


def filled(path, some, size):
    """Make a ledger of a size, in one transaction: how it was filled does not matter here."""
    book = Ledger(path)
    (_, *told, _) = _row("", some)
    rows = ((f"{n:064x}", *told, _digest(f"{n:064x}", *told)) for n in range(size))
    book._db.execute("BEGIN")
    book._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)
    book._db.execute("COMMIT")
    return book


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1_000, 100_000])
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args()
    print(machine())
    some = record()
    with tempfile.TemporaryDirectory() as folder:
        books = {size: filled(Path(folder) / f"{size}.sqlite", some, size) for size in given.sizes}
        times = {(what, size): [] for what in ("look-up", "append") for size in given.sizes}
        for repeat in range(given.repeats):
            for size, book in books.items():
                tick = time.perf_counter()
                assert book.find(replace(some.run), f"{repeat * 7919 % size:064x}") is not None
                tock = time.perf_counter()
                book.add(f"new {repeat}", some)
                times["look-up", size].append(tock - tick)
                times["append", size].append(time.perf_counter() - tock)
        for what in ("look-up", "append"):
            medians = [1000 * statistics.median(times[what, size]) for size in given.sizes]
            told = ", ".join(
                f"{size:,}: {ms:.2f} ms" for size, ms in zip(given.sizes, medians, strict=True)
            )
            print(
                f"{what} at {told}; largest over smallest {max(medians) / min(medians):.2f}, n = {given.repeats}"
            )
        for size in given.sizes:
            print(
                f"{size:,} records: {(Path(folder) / f'{size}.sqlite').stat().st_size / size / 1024:.1f} KiB each"
            )


if __name__ == "__main__":
    main()
