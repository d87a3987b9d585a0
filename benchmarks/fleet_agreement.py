"""Do fleets agree with single Runs? Test accuracy over whole trainings, cell by cell.

    python benchmarks/fleet_agreement.py run [--cells 0 1] [--levels 0 0.1 0.2] [--workers 1]
    python benchmarks/fleet_agreement.py table
    python benchmarks/fleet_agreement.py rounding --cells 7 --levels 0

The nine cells of Ishida et al., ICML 2020, 51 levels, seed 0, 500 epochs: rounding grows over
hundreds of epochs, so single accuracies differ, but their mean must not. ``run`` trains in fleets
what ``fleet_agreement.jsonl`` lacks, a fleet at a time, so an interrupted run continues. ``table``
prints the mean difference of test accuracy (fleet minus single, points) with its 95 % interval over
levels for each cell, and over cells for all, the difference of the training loss, and every
difference above three points.

Pairs of one cell are not independent: all levels have the same data and first weights, and the same
first steps. So the interval of all is over the means of the cells.

``rounding`` shows what rounding does to one training: that of a cell at one level, 0 for plain
training, with learning rates that differ in their seventh digit, one by one and in a fleet. Both
give a mean and a standard deviation of test accuracy.

The single side is that of ``benchmarks/levels``, which another machine trained: two differences are
mixed, that of fleets and that of processors. With ``--single`` the single side is trained here and
stored, too, and compared in place of the archive's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import scipy.stats

from flooding import Record, Run, run_all
from flooding.experiments.level_benchmark import LevelBenchmark
from flooding.experiments.study import chunk
from flooding.experiments.synthetic_cells import LEVELS, SyntheticCell, cells
from flooding.report.provenance import machine
from flooding.report.stats import format_mean_sd, paired
from searches import commit

ARCHIVE = Path(__file__).parent / "levels"
RESULTS = Path(__file__).with_suffix(".jsonl")
SEED = 0
SIZE = 16  # Runs in a fleet, at most
NAMES = ("accuracy", "loss")
LARGE = 3.0  # points, above which a difference is named


def stored() -> dict[tuple[str, float, str], dict]:
    """Read the results by cell, level and side."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {(row["cell"], row["level"], row["side"]): row for row in rows}


def train(given: argparse.Namespace, side: str, run_some: Callable[[list[Run]], list[Record]]):
    """Train what the file lacks of one side, and append it to the file."""
    for cell, runs in plan(given):
        missing = [run for run in runs if (cell.title, run.level or 0.0, side) not in stored()]
        for some in chunk(missing, SIZE):
            records = run_some(some)
            with RESULTS.open("a") as file:
                for run, record in zip(some, records, strict=True):
                    row = {"cell": cell.title, "level": run.level or 0.0, "side": side}
                    row |= {"commit": commit(), **figures(record)}
                    file.write(json.dumps(row) + "\n")
            print(f"{cell.title}, {side}: {len(some)} more", flush=True)


def rounding(given: argparse.Namespace) -> None:
    """Print what rounding alone does to a training, one by one and in a fleet."""
    level = given.levels[0]
    for index, cell in enumerate(cells()):
        if index not in given.cells:
            continue
        runs = []
        for number in range(SIZE):
            optimizer = cell.problem.optimizer
            rate = optimizer.keywords["lr"] * (1 + 1e-7 * number)
            problem = replace(cell.problem, optimizer=partial(optimizer, lr=rate))
            runs.append(Run(problem, level, seed=SEED))
        values = []
        for name, fleet in (("one by one", False), ("in a fleet", SIZE)):
            records = run_all(runs, fleet=fleet, ledger=False, workers=given.workers)
            values.append([figures(record)["accuracy"] for record in records])
            accuracy = format_mean_sd(values[-1], 2)
            print(f"{cell.title}, level {level or 0:g}, {name}: {accuracy} %, n = {SIZE}")
        low, high = unpaired(*reversed(values))
        print(f"{cell.title}: fleet minus single [{low:+.2f}, {high:+.2f}] points", flush=True)


def unpaired(a: list[float], b: list[float]) -> tuple[float, float]:
    """Give Welch's 95 % interval of the mean of a minus that of b."""
    interval = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def figures(record: Record) -> dict[str, float]:
    """Give what is compared: test accuracy in percent, training loss in nats."""
    metrics = record.metrics
    return {
        "accuracy": 100 * metrics["last.test_accuracy"],
        "loss": metrics["last.train_loss"],
    }


def plan(given: argparse.Namespace) -> Iterator[tuple[SyntheticCell, list[Run]]]:
    """Give the chosen cells and their Runs."""
    for index, cell in enumerate(cells()):
        if index in given.cells:
            yield cell, [Run(cell.problem, level, seed=SEED) for level in given.levels]


def table(given: argparse.Namespace) -> None:
    """Print the differences of the levels that are stored."""
    rows, archive = stored(), LevelBenchmark(ARCHIVE)
    count, means = 0, ([], [])
    large = []
    for cell, runs in plan(given):
        pairs = []
        for run in runs:
            fleet = rows.get((cell.title, run.level or 0.0, "fleet"))
            if fleet is None:
                continue
            single = rows.get((cell.title, run.level or 0.0, "single"))
            if single is None:
                [record] = archive([run])
                single = figures(record)
            pairs.append((fleet, single))
            if abs(fleet["accuracy"] - single["accuracy"]) > LARGE:
                text = f"{fleet['accuracy']:.2f} % by a fleet, {single['accuracy']:.2f} % alone"
                large.append(f"{cell.title}, level {run.level or 0:g}: {text}")
        if len(pairs) > 1:
            print(f"{cell.title}: {difference(pairs)}")
            count += len(pairs)
            for side, of_cell in enumerate(zip(*pairs, strict=True)):
                means[side].append({
                    name: statistics.mean(row[name] for row in of_cell) for name in NAMES
                })
    if len(means[0]) > 1:
        together = difference(list(zip(*means, strict=True)))
        print(f"means of the cells, {count} pairs: {together} cells")
    print(f"above {LARGE:g} points: {len(large)}", *large, sep="\n  ")


def difference(pairs: list[tuple[dict, dict]]) -> str:
    """Format the differences, fleet minus single."""
    texts = []
    for name, unit, digits in (("accuracy", "points", 2), ("loss", "nats of training loss", 4)):
        values = paired([fleet[name] for fleet, _ in pairs], [single[name] for _, single in pairs])
        texts.append(f"{values.format(digits)} {unit}")
    return f"{', '.join(texts)}, n = {len(pairs)}"


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table", "rounding"])
    parser.add_argument("--cells", type=int, nargs="+", default=list(range(9)), help="0 to 8")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS))
    parser.add_argument("--single", action="store_true", help="train the single side here, too")
    parser.add_argument("--workers", type=int, help="default: one for each core")
    parser.add_argument("--ledger", type=Path, help="default: none, the lines are enough")
    given = parser.parse_args()
    given.levels = [level or None for level in given.levels]
    print(machine(), flush=True)
    if given.command != "run":
        {"table": table, "rounding": rounding}[given.command](given)
        return
    options = {"ledger": given.ledger or False, "workers": given.workers}
    train(given, "fleet", lambda runs: run_all(runs, fleet=SIZE, **options))
    if given.single:
        train(given, "single", lambda runs: run_all(runs, **options))


if __name__ == "__main__":
    main()
