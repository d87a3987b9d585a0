"""Every search beside the exhaustive one: what its choice is worth, and what it cost.

    python benchmarks/searches.py run synthetic --seeds 0 1 2 [--strategies finder halving]
    python benchmarks/searches.py run real --seeds 0 1 2 3 4
    python benchmarks/searches.py table synthetic --seeds 0 1 2 [--write]
    python benchmarks/searches.py luck real --seeds 1 2 3 4
    python benchmarks/searches.py verify --share 0.01

A search is judged by the model of the last epoch of a full training with the level it chose (a
controller: with the controller it chose), and beside it by the model of that training's best
validation epoch (early stopping). Test data choose nothing. Searches that ask for constant levels
only replay the level benchmark (replay.py), levels rounded to 0.01; the finder and those that move
the level train live. Results go to searches/<set>.jsonl, one line for each search of each problem
and seed, and are not computed twice.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from flooding import Run, run_all
from flooding.experiments.synthetic_cells import LEVELS, TASKS
from flooding.experiments.synthetic_cells import cells as synthetic_cells
from flooding.level_search.accordance import accordance
from flooding.level_search.advisor import advise
from flooding.level_search.backward import backward
from flooding.level_search.base import SearchResult, run_concurrently, run_generator, search
from flooding.level_search.finder import finder
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving
from flooding.level_search.heuristic import heuristic
from flooding.level_search.policy_gradient import policy_gradient
from flooding.level_search.range_test import range_test
from flooding.level_search.tpe import tpe
from flooding.levels import Controller, Heuristic
from flooding.report.provenance import machine
from flooding.tasks import real
from flooding.training.archive import Archive, pack

HERE = Path(__file__).with_suffix("")
LEDGER = HERE / "ledger.sqlite"
COARSE = tuple(n / 20 for n in range(11))
REAL = ("digits", "spambase", "letter", "higgs7k", "fashion-mnist-5k")
HARD = tuple(f"{task} 0.1" for task in TASKS)


def irreducible(problem, *, seeds):
    """Train once and take 0.7 times the lowest validation loss."""
    [record] = yield [Run(problem, seed=seeds[0])]
    [guess] = advise(lowest_val_loss=float(record.curves["val_loss"][1:].min()))
    return SearchResult("irreducible loss", Run(problem, guess.level, seed=seeds[0]), (guess,))


def longer(problem, *, seeds):
    """Run the heuristic for the 1,000 epochs of its source."""
    return heuristic(replace(problem, max_epochs=1000), Heuristic(until_loss=1e-4), seeds=seeds)


# Name: strategy, whether it replays, which problems (None: all), seeds at most.
SYNTHETIC = {
    "plain": (partial(grid, levels=[0.0]), True, None, 10),
    "exhaustive, 51 levels": (partial(grid, levels=LEVELS), True, None, 10),
    "exhaustive, early stopping": (partial(grid, levels=LEVELS, at="best"), True, None, 10),
    "grid, 11 levels": (partial(grid, levels=COARSE), True, None, 10),
    "halving, 11 levels": (partial(halving, levels=COARSE), True, None, 10),
    "TPE, 20 trainings": (
        lambda problem, seeds: tpe(problem, trainings=20, seed=seeds[0]),
        True,
        None,
        10,
    ),
    "irreducible loss": (irreducible, True, None, 10),
    "finder": (finder, False, None, 10),
    "range test": (lambda problem, seeds: range_test(problem, seed=seeds[0]), False, None, 3),
    "accordance": (lambda problem, seeds: accordance(problem, seed=seeds[0]), False, HARD, 3),
    "backward, 11 levels": (partial(backward, levels=COARSE, until_loss=1e-4), False, HARD, 5),
    "heuristic, 1,000 epochs": (longer, False, None, 5),
    "policy gradient, 20 trainings": (
        lambda problem, seeds: policy_gradient(problem, seed=seeds[0]),
        False,
        HARD,
        3,
    ),
}
# Eleven levels spread up to 0.7 of ln C would miss the small ones: the paper's for images, and
# larger ones.
LEVELS_11 = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
REAL_SEARCHES = {
    "plain": (partial(grid, levels=[0.0]), False, None, 5),
    "grid, 11 levels": (partial(grid, levels=LEVELS_11), False, None, 5),
    "halving, 11 levels": (partial(halving, levels=LEVELS_11), False, None, 5),
    "irreducible loss": (irreducible, False, None, 5),
    "finder": (finder, False, None, 5),
}
DESIGN, CONFIRM = (
    range(5),
    range(5, 10),
)  # seeds; the finder was frozen at 8e0f62b, before any of the latter
SETS = {"synthetic": SYNTHETIC, "real": REAL_SEARCHES}


def problems(name):
    """Give the Problems of a set by name."""
    if name == "real":
        return {task: real(task) for task in (*REAL, "twonorm")}
    return {f"{cell.task} {cell.noise}": cell.problem for cell in synthetic_cells()}


def rounded(cell):
    """Give an evaluate that replays, with levels rounded to 0.01."""
    inner = cell.evaluator()

    def replay(runs):
        asked = [
            replace(run, level=None if run.level is None else min(0.5, round(run.level, 2)))
            for run in runs
        ]
        return [replace(record, run=run) for record, run in zip(inner(asked), runs, strict=True)]

    return replay


def judge(found, cell):
    """Measure what a choice is worth in a full training."""
    if cell is not None and not isinstance(found.run.level, Controller):
        level = min(0.5, round(found.level or 0.0, 2))
        names = {
            "accuracy": "last_test_accuracy_clean",
            "accuracy_best": "best_test_accuracy_clean",
            "nll": "last_test_nll",
        }
        return {name: cell.final(level, array) for name, array in names.items()}
    [record] = run_all([found.run], ledger=LEDGER)
    clean = {
        at: record.metrics.get(f"{at}.test_accuracy_clean", record.metrics[f"{at}.test_accuracy"])
        for at in ("last", "best")
    }
    return {
        "accuracy": clean["last"],
        "accuracy_best": clean["best"],
        "nll": record.metrics["last.test_nll"],
    }


def cells(seeds):
    """Give the cells of the level benchmark by name and seed; none where a seed is not computed
    yet.
    """
    from replay import HERE as TABLES
    from replay import Table

    known = [seed for seed in seeds if (TABLES / f"seed{seed}.npz").exists()]
    return (
        {(f"{cell.task} {cell.noise}", cell.seed): cell for cell in Table(known).cells()}
        if known
        else {}
    )


def commit():
    """Name the code version, with a plus if the library differs from it."""
    said = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "../src"], capture_output=True, text=True, cwd=HERE.parent
    )
    return said.stdout.strip() + ("+" if changed.stdout.strip() else "")


def results(name):
    """Read the results of a set."""
    path = HERE / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(name, seeds, strategies):
    """Run searches and append their results."""
    HERE.mkdir(exist_ok=True)
    done = {(row["problem"], row["seed"], row["strategy"]) for row in results(name)}
    tables = cells(seeds) if name == "synthetic" else {}
    for seed in seeds:
        for strategy, (make, replays, only, most) in SETS[name].items():
            wanted = {
                problem_name: problem
                for problem_name, problem in problems(name).items()
                if strategy in (strategies or SETS[name])
                and seed < most
                and (only is None or problem_name in only)
                and (problem_name, seed, strategy) not in done
                and not (replays and (problem_name, seed) not in tables)
            }
            places = {problem_name: tables.get((problem_name, seed)) for problem_name in wanted}
            searching = [make(problem, seeds=[seed]) for problem in wanted.values()]
            if replays:
                told = [
                    search(one, rounded(cell))
                    for one, cell in zip(searching, places.values(), strict=True)
                ]
            else:  # side by side, so that no core waits
                told, _ = run_generator(
                    run_concurrently(searching), partial(run_all, ledger=LEDGER)
                )
            for (problem_name, cell), found in zip(places.items(), told, strict=True):
                row = {"problem": problem_name, "seed": seed, "strategy": strategy}
                # In trainings of the problem's length, also where a search trains longer.
                cost = (
                    found.cost.steps
                    * found.run.problem.max_epochs
                    / wanted[problem_name].max_epochs
                )
                row |= {"level": found.level, "cost": cost, "hours": found.cost.hours}
                live = (
                    cell is None
                    or isinstance(found.run.level, Controller)
                    or (not replays and not on_grid(found.level))
                )
                row |= judge(found, None if live else cell) | {
                    "warnings": list(found.warnings),
                    "commit": commit(),
                }
                with (HERE / f"{name}.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{(problem_name, seed, strategy)}: level {found.level}, cost {found.cost.steps:.2f}",
                    flush=True,
                )


def on_grid(level):
    """Tell whether the level benchmark has a level."""
    return level is None or (level <= 0.5 and abs(round(level, 2) - level) < 1e-9)


def interval(differences):
    """Give a mean with its 95 % interval."""
    values = np.asarray(differences, float)
    half = (
        stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
        if len(values) > 1
        else math.nan
    )
    return values.mean(), values.mean() - half, values.mean() + half


def table(name, seeds):
    """Print all searches beside the exhaustive one, paired by problem and seed."""
    rows = {
        (r["strategy"], r["problem"], r["seed"]): r for r in results(name) if r["seed"] in seeds
    }
    against = "exhaustive, 51 levels" if name == "synthetic" else "grid, 11 levels"
    best = best_levels(seeds) if name == "synthetic" else {}
    what = "exhaustive" if name == "synthetic" else "the grid"
    print(
        f"| Search | n | Accuracy | early stopped | NLL | Cost | core s | minus {what}, points | level off by |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for strategy in SETS[name]:
        mine = {(p, s): r for (n, p, s), r in rows.items() if n == strategy and p != "twonorm"}
        pairs = [(r, rows[against, p, s]) for (p, s), r in mine.items() if (against, p, s) in rows]
        if not pairs:
            continue
        mean, low, high = interval([100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs])
        off = [abs((r["level"] or 0.0) - best[p]) for (p, _), r in mine.items() if p in best]
        values = {
            n: np.mean([r[n] for r in mine.values()])
            for n in ("accuracy", "accuracy_best", "nll", "cost")
        }
        hours = np.mean([r["hours"] for r in mine.values()])
        spent = f"{3600 * hours:.0f}" if hours else "–"
        print(
            f"| {strategy} | {len(mine)} | {100 * values['accuracy']:.2f} | {100 * values['accuracy_best']:.2f} | "
            f"{values['nll']:.3f} | {values['cost']:.2f} | {spent} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] | "
            f"{f'{np.mean(off):.3f}' if off else '–'} |"
        )
    for what, some in (
        ("designed on", DESIGN),
        ("confirmed on, nothing was chosen there", CONFIRM),
    ):
        both = [
            (r, rows[against, p, s]) for (n, p, s), r in rows.items() if n == "finder" and s in some
        ]
        if name == "synthetic" and both:
            mean, low, high = interval([100 * (a["accuracy"] - b["accuracy"]) for a, b in both])
            used, cost = sorted({a["seed"] for a, _ in both}), np.mean([a["cost"] for a, _ in both])
            print(
                f"\nFinder minus exhaustive, seeds {', '.join(map(str, used))} ({what}): {mean:+.2f} points "
                f"[{low:+.2f}, {high:+.2f}], n = {len(both)}, mean cost {cost:.2f}."
            )
    print(
        f"\nThe finder beside plain training, by {'cell' if name == 'synthetic' else 'problem'}:\n"
    )
    print("| Problem | n | finder | plain | difference, points | levels |")
    print("|---|---|---|---|---|---|")
    for problem in problems(name):
        both = [(rows.get(("finder", problem, s)), rows.get(("plain", problem, s))) for s in seeds]
        both = [(a, b) for a, b in both if a and b]
        if both:
            mean, low, high = interval([100 * (a["accuracy"] - b["accuracy"]) for a, b in both])
            levels = ", ".join("none" if a["level"] is None else f"{a['level']:g}" for a, _ in both)
            finder_mean, plain_mean = (
                100 * np.mean([pair[i]["accuracy"] for pair in both]) for i in (0, 1)
            )
            told = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            print(
                f"| {problem} | {len(both)} | {finder_mean:.2f} | {plain_mean:.2f} | {told} | {levels} |"
            )


def best_levels(seeds):
    """Give the best fixed level of each cell: by clean test accuracy, averaged over seeds. Only to
    measure distance.
    """
    found = cells(seeds)
    by_cell = {}
    for (name, _), cell in found.items():
        by_cell.setdefault(name, []).append(cell.arrays["last_test_accuracy_clean"][cell.place])
    return {name: LEVELS[int(np.mean(curves, axis=0).argmax())] for name, curves in by_cell.items()}


def luck(name, seeds):
    """Print what a grid owes to its levels, and what to choosing the epoch its training happens to
    end at.

    The grid chooses among trainings by their last epoch's validation result, and is judged by that
    very epoch's test result: a lucky last epoch counts twice. Judged by late averages it chooses
    levels instead; so does whoever knows the best fixed level of a problem from the test data of
    the other seeds.
    """
    grids = grids_of(name, seeds)
    shares = (0.02, 0.05, 0.125, 0.25)
    gains = {f"late mean, {100 * share:g} % of the epochs": [] for share in shares}
    gains["best fixed level, by test data of the other seeds"] = []
    for (problem, seed), (accuracy, loss, test, _) in grids.items():

        def choice(epochs, accuracy=accuracy, loss=loss):
            judged = list(
                zip(accuracy[:, -epochs:].mean(1), -loss[:, -epochs:].mean(1), strict=True)
            )
            return max(range(len(judged)), key=lambda i: (*judged[i], -i))

        grid_choice = test[choice(1)]
        for share, told in zip(shares, gains.values(), strict=False):
            told.append(
                100 * (test[choice(max(1, round(share * (accuracy.shape[1] - 1))))] - grid_choice)
            )
        others = [grids[where][2] for where in grids if where[0] == problem and where[1] != seed]
        best = int(np.mean(others, axis=0).argmax())
        gains["best fixed level, by test data of the other seeds"].append(
            100 * (test[best] - grid_choice)
        )
    print("| All levels trained, chosen by | n | minus the choice by the last epoch, points |")
    print("|---|---|---|")
    for what, told in gains.items():
        mean, low, high = interval(told)
        print(f"| {what} | {len(told)} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] |")


def grids_of(name, seeds):
    """Give, for each problem and seed, validation accuracy and loss, test accuracy, and training
    loss by level.
    """
    if name == "synthetic":
        found = {}
        for where, cell in cells(seeds).items():
            names = ("val_right", "val_loss", "last_test_accuracy_clean", "train_loss")
            accuracy, loss, test, train = (cell.arrays[n][cell.place].astype(float) for n in names)
            found[where] = accuracy / 100, loss, test, train
        return found
    places = [(problem, seed) for problem in REAL for seed in seeds]
    runs = [
        Run(real(problem), level or None, seed=seed)
        for problem, seed in places
        for level in LEVELS_11
    ]
    kept = HERE / "real-grid.npz"
    if kept.exists():
        records = iter(Archive(kept)(runs))
    else:
        told = run_all(runs, ledger=LEDGER)
        pack(kept, told, ("train_loss", "val_accuracy", "val_loss"), machine(), lambda _: True)
        records = iter(told)
    found = {}
    for where in places:
        told = [next(records) for _ in LEVELS_11]
        accuracy, loss, train = (
            np.array([r.curves[n] for r in told], float)
            for n in ("val_accuracy", "val_loss", "train_loss")
        )
        test = [
            r.metrics.get("last.test_accuracy_clean", r.metrics["last.test_accuracy"]) for r in told
        ]
        found[where] = accuracy, loss, np.array(test), train
    return found


def verify(share):
    """Train a random share of the level benchmark again and compare it with what is stored."""
    tables = cells(range(10))
    drawn = [(where, cell, level) for where, cell in sorted(tables.items()) for level in LEVELS]
    chosen = np.random.default_rng(0).permutation(len(drawn))[: max(1, round(share * len(drawn)))]
    records = run_all(
        [Run(drawn[i][1].problem, drawn[i][2], seed=drawn[i][1].seed) for i in chosen],
        ledger=LEDGER,
    )
    same = 0
    for i, record in zip(chosen, records, strict=True):
        _, cell, level = drawn[i]
        index = round(100 * level)
        loss = np.minimum(record.curves["val_loss"], 65504).astype(np.float16)
        equal = np.array_equal(loss, cell.arrays["val_loss"][*cell.place, index])
        right = np.array_equal(
            (100 * record.curves["val_accuracy"]).round(),
            cell.arrays["val_right"][*cell.place, index],
        )
        final = (
            np.float32(record.metrics["last.test_accuracy_clean"])
            == cell.arrays["last_test_accuracy_clean"][*cell.place, index]
        )
        same += bool(equal and right and final)
    print(f"{same} of {len(chosen)} runs, drawn from {len(drawn)}, are as stored")


def write(text, name):
    """Put tables between the page's markers of a set."""
    page = HERE.parents[1] / "docs" / "choosing-a-level.md"
    begin, end = f"<!-- searches-{name}:begin -->", f"<!-- searches-{name}:end -->"
    head, _, rest = page.read_text().partition(begin)
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.partition(end)[2]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["run", "table", "luck", "verify"])
    parser.add_argument("set", nargs="?", choices=list(SETS), default="synthetic")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--strategies", nargs="+")
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/choosing-a-level.md"
    )
    given = parser.parse_args()
    if given.do == "run":
        run(given.set, given.seeds, given.strategies)
    elif given.do == "table":
        with contextlib.redirect_stdout(io.StringIO()) as told:
            table(given.set, given.seeds)
        print(told.getvalue())
        if given.write:
            write(told.getvalue(), given.set)
    elif given.do == "luck":
        luck(given.set, given.seeds)
    else:
        verify(given.share)


if __name__ == "__main__":
    main()
