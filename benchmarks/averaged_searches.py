"""Searches on real problems with averaged weights: one training, three, and a grid of eleven.

    FLOODING_DATA=... python benchmarks/averaged_searches.py run [--seeds 0 1] [--problems digits]
    python benchmarks/averaged_searches.py table

Each problem trains with an exponential moving average of decay 0.99. The average changes no
training, so one Record holds what the last epoch, the best validation epoch and their averages are
worth. ``run`` trains, for each problem and seed, the levels of ``searches.py``, the finder and
``Auto``; all three read the validation results of the averaged weights. The grid is read a second
time by the results of the network itself, as if there were no average. Each result is a line of
``searches/averages.jsonl``, so an interrupted run continues. ``table`` prints the differences with
95 % intervals over problems and seeds. Test data select nothing. Accuracies are on clean labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np

from flooding import Record, Run, run_all
from flooding.averaging import EMA
from flooding.level_search.auto import auto
from flooding.level_search.driver import search
from flooding.level_search.finder import finder
from flooding.level_search.level_stats import best_level
from flooding.tasks import real
from searches import HERE, LEDGER, LEVELS_11, REAL, commit, interval, results

NAME = "averages"
AVERAGE, NETWORK = EMA(0.99, monitor="average"), EMA(0.99, monitor="network")
PROBLEMS = (*REAL, "twonorm")
NETWORKS = ("last", "best", "average.last", "average.best")
# What is compared: a title, and the accuracies of both sides by (training, network).
COMPARISONS = (
    ("auto, average, minus grid, last epoch", ("auto", "average.last"), ("grid", "last")),
    ("auto, average, minus plain, last epoch", ("auto", "average.last"), ("plain", "last")),
    ("auto, last epoch, minus grid, last epoch", ("auto", "last"), ("grid", "last")),
    ("auto, average, minus grid, average", ("auto", "average.last"), ("grid+", "average.last")),
    ("finder, average, minus grid, average", ("finder", "average.last"), ("grid+", "average.last")),
    ("grid, average, minus its last epoch", ("grid", "average.last"), ("grid", "last")),
    ("plain, average, minus its last epoch", ("plain", "average.last"), ("plain", "last")),
    ("auto, average, minus its last epoch", ("auto", "average.last"), ("auto", "last")),
    ("auto, best average, minus plain, best epoch", ("auto", "average.best"), ("plain", "best")),
    ("plain, best average, minus plain, best epoch", ("plain", "average.best"), ("plain", "best")),
)


def run(problems: Iterable[str], seeds: Iterable[int]) -> None:
    """Train what the file of results lacks, one training after another."""
    HERE.mkdir(exist_ok=True)
    for seed in seeds:
        for name in problems:
            if (name, seed) in {(row["problem"], row["seed"]) for row in results(NAME)}:
                continue
            row = {"problem": name, "seed": seed, "commit": commit(), **results_of(name, seed)}
            with (HERE / f"{NAME}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name}, seed {seed}", flush=True)


def results_of(name: str, seed: int) -> dict[str, dict[str, float | None]]:
    """Train everything on one problem with one seed."""
    problem = replace(real(name), averaging=AVERAGE)
    train = partial(run_all, ledger=LEDGER, workers=0)
    levels = [level or None for level in LEVELS_11]
    records = train([Run(problem, level, seed=seed) for level in levels])
    by_level = {record.level: record for record in records}
    unaveraged = [as_network(record) for record in records]
    found = search(finder(problem, seeds=[seed]), train)
    [trained] = train([found.run])
    chosen = search(auto(problem, seeds=[seed]), train)
    [held] = chosen.records
    return {
        "plain": summary(by_level[None], None),
        "grid": summary(by_level[best_level(unaveraged)], best_level(unaveraged)),
        "grid+": summary(by_level[best_level(records)], best_level(records)),
        "finder": {**summary(trained, found.level), "cost": found.cost.steps},
        "auto": {**summary(held, chosen.level), "cost": chosen.cost.steps},
    }


def as_network(record: Record) -> Record:
    """Let a Record be judged by the network itself and not by its average."""
    assert record.run is not None
    problem = replace(record.run.problem, averaging=NETWORK)
    return replace(record, run=replace(record.run, problem=problem))


def summary(record: Record, level: float | None) -> dict[str, float | None]:
    """Give the level of a training, and the clean test accuracy and NLL of its networks."""
    values: dict[str, float | None] = {"level": level}
    for network in NETWORKS:
        accuracy = record.metrics[f"{network}.test_accuracy"]
        values[network] = record.metrics.get(f"{network}.test_accuracy_clean", accuracy)
        values[f"{network}.nll"] = record.metrics[f"{network}.test_nll"]
    return values


def table() -> None:
    """Print the comparisons: over the five problems and Twonorm, then by problem."""
    rows = results(NAME)
    for measure, format_one in (("accuracy, points", points), ("NLL, nats", nats)):
        print(f"\n| Difference in {measure} | all | {' | '.join(PROBLEMS)} |")
        print("|---" * (len(PROBLEMS) + 2) + "|")
        for title, one, other in COMPARISONS:
            by_problem = []
            for name in PROBLEMS:
                own = [row for row in rows if row["problem"] == name]
                by_problem.append(format_one(own, one, other))
            # Twonorm has almost no noise: flooding should not help there, so it is apart.
            noisy = [row for row in rows if row["problem"] != "twonorm"]
            print(f"| {title} | {' | '.join([format_one(noisy, one, other), *by_problem])} |")
    for name in ("finder", "auto"):
        costs = [row[name]["cost"] for row in rows]
        print(f"\nMean cost of {name}: {np.mean(costs):.2f} trainings, n = {len(costs)}.")


def points(rows: list[dict], one: tuple[str, str], other: tuple[str, str]) -> str:
    """Format a difference of accuracies."""
    return differences(rows, lambda row, side: 100 * row[side[0]][side[1]], one, other, 2)


def nats(rows: list[dict], one: tuple[str, str], other: tuple[str, str]) -> str:
    """Format a difference of NLLs."""
    return differences(rows, lambda row, side: row[side[0]][f"{side[1]}.nll"], one, other, 3)


def differences(
    rows: list[dict],
    value: Callable[[dict, tuple[str, str]], float],
    one: tuple[str, str],
    other: tuple[str, str],
    digits: int,
) -> str:
    """Format the mean difference, its interval and n."""
    if not rows:
        return "–"
    mean, low, high = interval([value(row, one) - value(row, other) for row in rows])
    texts = [f"{number:+.{digits}f}" for number in (mean, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}], n = {len(rows)}"


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, choices=PROBLEMS)
    options = parser.parse_args()
    if options.command == "run":
        run(options.problems, options.seeds)
    else:
        table()


if __name__ == "__main__":
    main()
