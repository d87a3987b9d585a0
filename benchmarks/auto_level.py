"""The level that one training chooses, beside the choice among 51 trainings.

    python benchmarks/auto_level.py run --seeds 0 1 2
    python benchmarks/auto_level.py table

Nine synthetic cells in the paper's setting, ten seeds. ``run`` trains with ``Auto`` in one process,
about ten seconds a training; finished trainings are in the ledger of ``searches.py`` and their
results in ``searches/synthetic.jsonl``, so it can be killed and started again at any time.
``table`` reads them, and the exhaustive choice, plain training and its best validation epoch from
the same file, and prints the paired differences of clean test accuracy. The rule was designed on
seeds 0 to 4 and confirmed on seeds 5 to 9; the commit is that of the code that trained.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np

from flooding import run_all
from flooding.level_search.auto import auto
from flooding.level_search.driver import search
from searches import CONFIRM, DESIGN, LEDGER, append, interval, problems, results

NAME = "auto, one training"
GROUPS = {"designed on": DESIGN, "confirmed on": CONFIRM, "all": range(10)}
# Rows of the table: what it is, the result of Auto, the reference, and the reference's result.
ROWS = (
    ("last epoch minus exhaustive, 51 levels", "accuracy", "exhaustive, 51 levels", "accuracy"),
    ("last epoch minus plain, last epoch", "accuracy", "plain", "accuracy"),
    ("best epoch minus plain, best epoch", "accuracy_best", "plain", "accuracy_best"),
    (
        "best epoch minus exhaustive, best epoch",
        "accuracy_best",
        "exhaustive, early stopping",
        "accuracy_best",
    ),
)


def run(seeds):
    """Train what is missing, one training after another."""
    done = {(row["problem"], row["seed"]) for row in results("synthetic") if is_auto(row)}
    for seed in seeds:
        for name, problem in problems("synthetic").items():
            if (name, seed) in done:
                continue
            train = partial(run_all, ledger=LEDGER, workers=0)
            result = search(auto(problem, seeds=[seed]), train)
            append("synthetic", name, seed, NAME, result, problem, None, False)


def is_auto(row):
    return row["strategy"] == NAME


def differences(seeds, column, reference, reference_column):
    """Give the differences in points by cell."""
    rows = {(r["strategy"], r["problem"], r["seed"]): r for r in results("synthetic")}
    by_cell = {}
    for (strategy, problem, seed), row in rows.items():
        other = rows.get((reference, problem, seed))
        if strategy == NAME and seed in seeds and other is not None:
            difference = 100 * (row[column] - other[reference_column])
            by_cell.setdefault(problem, []).append(difference)
    return by_cell


def format_interval(values):
    mean, low, high = interval(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}], n = {len(values)}"


def table():
    """Print the differences over all cells, then those to plain training by cell."""
    own = [row for row in results("synthetic") if is_auto(row)]
    costs = [row["cost"] for row in own]
    commits = sorted({row["commit"] for row in own})
    print(f"{len(own)} trainings, mean cost {np.mean(costs):.3f}, commit {', '.join(commits)}\n")
    print(
        "| Auto, points | " + " | ".join(f"{g}, seeds {s[0]} to {s[-1]}" for g, s in GROUPS.items())
    )
    print("|---|---|---|---|")
    for title, *columns in ROWS:
        cells = []
        for seeds in GROUPS.values():
            by_cell = differences(seeds, *columns)
            cells.append(format_interval([d for values in by_cell.values() for d in values]))
        print(f"| {title} | {' | '.join(cells)} |")
    print("\n| Cell | last epoch minus plain | minus exhaustive | levels held |")
    print("|---|---|---|---|")
    plain = differences(range(10), *ROWS[1][1:])
    exhaustive = differences(range(10), *ROWS[0][1:])
    for cell in plain:
        levels = [r["level"] for r in own if r["problem"] == cell]
        texts = ", ".join("none" if level is None else f"{level:.2f}" for level in levels)
        values = (format_interval(plain[cell]), format_interval(exhaustive[cell]), texts)
        print(f"| {cell} | {' | '.join(values)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.seeds)
    else:
        table()


if __name__ == "__main__":
    main()
