"""What averaged weights gain: the average of a training against its own last epoch.

    python benchmarks/averaging.py [--problems digits letter] [--averages ema] [--seeds 0 1 2]

Real problems in their common setting, plain and flooded at a fixed level each (from pilots, not
tuned here). Each training is done with an exponential moving average (EMA) of decay 0.99 and with
the mean of the second half of its epochs; flooded ones also with the mean from the first flooded
step on. Finished trainings are looked up in the ledger, so the script may be stopped and started
again.

Accuracies are on clean test labels, in points. Intervals are 95 %, by Student's t over seeds; the
last column compares what flooding gains from averaging with what plain training gains, seed by
seed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flooding import Record, Run, run_all
from flooding.averaging import EMA, Averaging, Mean
from flooding.report.provenance import machine
from flooding.report.stats import paired
from flooding.tasks import real

LEDGER = Path(__file__).with_suffix("") / "ledger.sqlite"
LEVELS = {"digits": 0.6, "spambase": 0.4, "letter": 0.3, "higgs7k": 0.55, "fashion-mnist-5k": 0.8}
PROBLEMS = ("digits", "spambase", "letter", "higgs7k")
AVERAGES = ("ema", "second-half", "first-flooded")
NETWORKS = ("last", "average.last", "best", "average.best")


def averagings(max_epochs: int) -> dict[str, Averaging]:
    """Averages to compare, by name; the last is for flooded trainings alone."""
    return {
        "ema": EMA(0.99),
        "second-half": Mean(start_epoch=max_epochs // 2 + 1),
        "first-flooded": Mean(),
    }


def train(
    name: str, level: float | None, averaging: Averaging, seeds: Sequence[int], ledger: Path
) -> list[Record]:
    """Train each seed, or look it up."""
    problem = replace(real(name), averaging=averaging)
    return run_all([Run(problem, level, seed=seed) for seed in seeds], ledger=ledger, workers=0)


def accuracies(records: Sequence[Record], network: str) -> np.ndarray:
    """Clean test accuracy of a network, in points, one for each seed."""
    metrics = [record.metrics for record in records]
    name = f"{network}.test_accuracy"
    return 100 * np.array([m.get(f"{name}_clean", m[name]) for m in metrics])


def rows(
    name: str, average: str, seeds: Sequence[int], ledger: Path
) -> Iterator[tuple[str, list[str]]]:
    """Give the rows of the two tables: what averaging gains, and every network."""
    level, averages = LEVELS[name], averagings(real(name).max_epochs)
    # Plain training has no first flooded step.
    plain_average = "second-half" if average == "first-flooded" else average
    plain = train(name, None, averages[plain_average], seeds, ledger)
    flooded = train(name, level, averages[average], seeds, ledger)
    gains = []
    for records in (plain, flooded):
        last, averaged = (accuracies(records, network) for network in NETWORKS[:2])
        gains.append(averaged - last)
    zero = np.zeros(len(seeds))
    cells = [f"{paired(gain.tolist(), zero.tolist())}" for gain in gains]
    difference = str(paired(gains[1].tolist(), gains[0].tolist()))
    yield "gains", [name, f"{level:g}", average, *cells, difference]
    for title, records in (("plain", plain), (f"flooding {level:g}", flooded)):
        means = [f"{accuracies(records, network).mean():.1f}" for network in NETWORKS]
        yield "networks", [name, average, title, *means]


def main() -> None:
    """Train what the ledger lacks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, choices=LEVELS)
    parser.add_argument("--averages", nargs="+", default=AVERAGES, choices=AVERAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args()
    options.ledger.parent.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[list[str]]] = {"gains": [], "networks": []}
    for average, name in itertools.product(options.averages, options.problems):
        for table, row in rows(name, average, options.seeds, options.ledger):
            tables[table].append(row)
            if table == "gains":
                print("\t".join(row), flush=True)
    print(f"\n{machine()}; n = {len(options.seeds)} seeds\n")
    header = ["problem", "level", "average", "plain", "flooding", "flooding minus plain"]
    print_table("Average minus last epoch, points", header, tables["gains"])
    header = ["problem", "average", "training", "last", "average", "best", "best average"]
    print_table("Clean test accuracy, %", header, tables["networks"])


def print_table(title: str, header: Sequence[str], table: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    print(f"{title}\n")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in table:
        print(f"| {' | '.join(row)} |")
    print()


if __name__ == "__main__":
    main()
