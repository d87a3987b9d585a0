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
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from flooding import Problem, Run, train
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.report.provenance import machine
from flooding.training.ledger import Ledger
from flooding.training.ledger_rows import INSERT, row_digest, to_row
from flooding.training.sqlite_file import connect


def record():
    """Train a tiny network for the 500 epochs whose curves are stored."""
    problem = Problem(
        partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=8), max_epochs=500
    )
    *_, row = train(Run(problem, 0.1))
    return row.record


def make_ledger(path, some, size):
    """Make a ledger of a size, in one transaction: how it is filled does not matter here."""
    ledger = Ledger(path)
    (_, *values, _) = to_row("", some)
    with closing(connect(path)) as connection:
        connection.execute("BEGIN")
        for n in range(size):
            key = f"{n:064x}"
            row = (key, *values, row_digest(key, *values))
            connection.execute(INSERT.format("IGNORE"), row)
        connection.execute("COMMIT")
    return ledger


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1_000, 100_000])
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    print(machine())
    some = record()
    with tempfile.TemporaryDirectory() as folder:
        ledgers = {}
        for size in options.sizes:
            ledgers[size] = make_ledger(Path(folder) / f"{size}.sqlite", some, size)
        times = {(what, size): [] for what in ("look-up", "append") for size in options.sizes}
        for repeat in range(options.repeats):
            for size, ledger in ledgers.items():
                tick = time.perf_counter()
                assert ledger.find(replace(some.run), f"{repeat * 7919 % size:064x}") is not None
                tock = time.perf_counter()
                ledger.add(f"new {repeat}", some)
                times["look-up", size].append(tock - tick)
                times["append", size].append(time.perf_counter() - tock)
        for what in ("look-up", "append"):
            medians = [1000 * statistics.median(times[what, size]) for size in options.sizes]
            pairs = zip(options.sizes, medians, strict=True)
            figures = ", ".join(f"{size:,}: {ms:.2f} ms" for size, ms in pairs)
            ratio = max(medians) / min(medians)
            print(f"{what} at {figures}; largest over smallest {ratio:.2f}, n = {options.repeats}")
        for size in options.sizes:
            bytes_each = (Path(folder) / f"{size}.sqlite").stat().st_size / size
            print(f"{size:,} records: {bytes_each / 1024:.1f} KiB each")


if __name__ == "__main__":
    main()
