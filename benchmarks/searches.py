"""Compare every search with the exhaustive one: the accuracy of its level, and its cost.

    python benchmarks/searches.py run synthetic --seeds 0 1 2 [--strategies finder halving]
    python benchmarks/searches.py run real --seeds 0 1 2 3 4
    python benchmarks/searches.py table synthetic --seeds 0 1 2 [--write]
    python benchmarks/searches.py luck real --seeds 1 2 3 4
    python benchmarks/searches.py verify --share 0.01

A search is judged by the model of the last epoch of a full training with the level, or controller,
that it selected, and also by the model of that training's best validation epoch (early stopping).
Test data select nothing. Searches of constant levels replay the level benchmark (replay.py), with
levels rounded to 0.01; the finder and those that change the level during training train live.
Results go to searches/<set>.jsonl, one line for each search, problem and seed, and are not computed
twice.
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
from flooding.level_search.auto import auto
from flooding.level_search.backward import backward
from flooding.level_search.driver import run_concurrently, run_generator, search
from flooding.level_search.finder import finder
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving
from flooding.level_search.heuristic import heuristic
from flooding.level_search.policy_gradient import policy_gradient
from flooding.level_search.range_test import range_test
from flooding.level_search.result import SearchResult
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


def one_seed(strategy):
    """Make a strategy of one seed take a list of one."""

    def make(problem, *, seeds):
        [seed] = seeds
        return strategy(problem, seed=seed)

    return make


def long_heuristic(problem, *, seeds):
    """Run the heuristic for the 1,000 epochs of its source."""
    return heuristic(replace(problem, max_epochs=1000), Heuristic(until_loss=1e-4), seeds=seeds)


# By name: the strategy, whether it replays, on which problems (None: all), and for how many seeds.
SYNTHETIC = {
    "plain": (partial(grid, levels=[0.0]), True, None, 10),
    "exhaustive, 51 levels": (partial(grid, levels=LEVELS), True, None, 10),
    "exhaustive, early stopping": (partial(grid, levels=LEVELS, at="best"), True, None, 10),
    "grid, 11 levels": (partial(grid, levels=COARSE), True, None, 10),
    "halving, 11 levels": (partial(halving, levels=COARSE), True, None, 10),
    "TPE, 20 trainings": (one_seed(partial(tpe, trainings=20)), True, None, 10),
    "irreducible loss": (irreducible, True, None, 10),
    "finder": (finder, False, None, 10),
    "auto, one training": (auto, False, None, 10),
    "range test": (one_seed(range_test), False, None, 3),
    "accordance": (one_seed(accordance), False, HARD, 3),
    "backward, 11 levels": (partial(backward, levels=COARSE, until_loss=1e-4), False, HARD, 5),
    "heuristic, 1,000 epochs": (long_heuristic, False, None, 5),
    "policy gradient, 20 trainings": (one_seed(policy_gradient), False, HARD, 3),
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
# Seeds. The finder was frozen at 8e0f62b, before any of the latter ran.
DESIGN, CONFIRM = range(5), range(5, 10)
SETS = {"synthetic": SYNTHETIC, "real": REAL_SEARCHES}


def problems(name):
    """Give the Problems of a set by name."""
    if name == "real":
        return {task: real(task) for task in (*REAL, "twonorm")}
    return {f"{cell.task} {cell.noise}": cell.problem for cell in synthetic_cells()}


def round_level(level):
    """Round a level to the grid of the level benchmark."""
    return None if level is None else min(0.5, round(level, 2))


def replay(cell):
    """Give a ``run_all`` that replays a cell, with levels rounded to 0.01."""
    run_cell = cell.run_all()

    def run_all(runs):
        rounded_runs = [replace(run, level=round_level(run.level)) for run in runs]
        records = run_cell(rounded_runs)
        return [replace(record, run=run) for record, run in zip(records, runs, strict=True)]

    return run_all


def judge(result, cell):
    """Measure a full training with the selected level: replayed, or live without a cell."""
    if cell is not None and not isinstance(result.run.level, Controller):
        level = round_level(result.level or 0.0)
        names = {
            "accuracy": "last_test_accuracy_clean",
            "accuracy_best": "best_test_accuracy_clean",
            "nll": "last_test_nll",
        }
        return {name: cell.final(level, array) for name, array in names.items()}
    [record] = run_all([result.run], ledger=LEDGER)
    return {
        "accuracy": clean_accuracy(record, "last"),
        "accuracy_best": clean_accuracy(record, "best"),
        "nll": record.metrics["last.test_nll"],
    }


def clean_accuracy(record, epoch):
    """Give the test accuracy on clean labels, or on the only ones there are."""
    noisy = record.metrics[f"{epoch}.test_accuracy"]
    return record.metrics.get(f"{epoch}.test_accuracy_clean", noisy)


def cells(seeds):
    """Give the cells of the level benchmark by name and seed, of the seeds that are computed."""
    from replay import HERE as TABLES
    from replay import Table

    known = [seed for seed in seeds if (TABLES / f"seed{seed}.npz").exists()]
    return {(f"{cell.task} {cell.noise}", cell.seed): cell for cell in Table(known).cells()}


def commit():
    """Name the code version, with a plus if the library differs from it."""
    options = {"capture_output": True, "text": True, "cwd": HERE.parent}
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **options)
    changes = subprocess.run(["git", "status", "--porcelain", "../src"], **options)
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def results(name):
    """Read the results of a set."""
    path = HERE / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(name, seeds, strategies):
    """Run searches and append their results."""
    HERE.mkdir(exist_ok=True)
    done = {(row["problem"], row["seed"], row["strategy"]) for row in results(name)}
    all_problems = problems(name)
    tables = cells(seeds) if name == "synthetic" else {}
    for seed in seeds:
        for strategy, (make, replays, only, num_seeds) in SETS[name].items():
            if strategy not in (strategies or SETS[name]) or seed >= num_seeds:
                continue
            # What is not done yet, and can be: a replay needs its cell.
            todo = {}
            for problem_name, problem in all_problems.items():
                is_done = (problem_name, seed, strategy) in done
                lacks_cell = replays and (problem_name, seed) not in tables
                if not is_done and not lacks_cell and (only is None or problem_name in only):
                    todo[problem_name] = problem
            for problem_name, result in run_searches(make, todo, seed, replays and tables).items():
                cell = tables.get((problem_name, seed))
                append(
                    name, problem_name, seed, strategy, result, todo[problem_name], cell, replays
                )


def run_searches(make, todo, seed, tables):
    """Run a strategy on each problem: replayed from tables, or live without."""
    strategies = [make(problem, seeds=[seed]) for problem in todo.values()]
    if tables:
        results_of = []
        for problem_name, strategy in zip(todo, strategies, strict=True):
            results_of.append(search(strategy, replay(tables[problem_name, seed])))
    else:  # side by side, so that no core waits
        results_of, _ = run_generator(run_concurrently(strategies), partial(run_all, ledger=LEDGER))
    return dict(zip(todo, results_of, strict=True))


def append(name, problem_name, seed, strategy, result, problem, cell, replays):
    """Judge a result and append it to the file of its set."""
    # In trainings of the problem's length, also where a search trains longer.
    cost = result.cost.steps * result.run.problem.max_epochs / problem.max_epochs
    row = {"problem": problem_name, "seed": seed, "strategy": strategy}
    row |= {"level": result.level, "cost": cost, "hours": result.cost.hours}
    # The level benchmark has constant levels of its grid alone.
    is_off_grid = not replays and not on_grid(result.level)
    row |= judge(result, None if is_off_grid else cell)
    row |= {"warnings": list(result.warnings), "commit": commit()}
    with (HERE / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    where = (problem_name, seed, strategy)
    print(f"{where}: level {result.level}, cost {result.cost.steps:.2f}", flush=True)


def on_grid(level):
    """Tell whether the level benchmark has a level."""
    return level is None or (level <= 0.5 and abs(round(level, 2) - level) < 1e-9)


def interval(differences):
    """Give a mean with its 95 % interval."""
    values = np.asarray(differences, float)
    half = math.nan
    if len(values) > 1:
        error = values.std(ddof=1) / math.sqrt(len(values))
        half = stats.t.ppf(0.975, len(values) - 1) * error
    return values.mean(), values.mean() - half, values.mean() + half


def accuracy_gain(pairs):
    """Give the difference of accuracies in points, with its 95 % interval."""
    return interval([100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs])


def table(name, seeds):
    """Print all searches beside the exhaustive one, paired by problem and seed."""
    rows = {}
    for row in results(name):
        if row["seed"] in seeds:
            rows[row["strategy"], row["problem"], row["seed"]] = row
    reference = "exhaustive, 51 levels" if name == "synthetic" else "grid, 11 levels"
    search_table(name, seeds, rows, reference)
    if name == "synthetic":
        finder_by_seeds(rows, reference)
    finder_table(name, seeds, rows)


def search_table(name, seeds, rows, reference):
    """Print a row for each search."""
    best = best_levels(seeds) if name == "synthetic" else {}
    label = "exhaustive" if name == "synthetic" else "the grid"
    print(
        "| Search | n | Accuracy | early stopped | NLL | Cost | core s "
        f"| minus {label}, points | level off by |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for strategy in SETS[name]:
        own = {(p, s): r for (n, p, s), r in rows.items() if n == strategy and p != "twonorm"}
        pairs = [
            (r, rows[reference, p, s]) for (p, s), r in own.items() if (reference, p, s) in rows
        ]
        if not pairs:
            continue
        mean, low, high = accuracy_gain(pairs)
        distances = [abs((r["level"] or 0.0) - best[p]) for (p, _), r in own.items() if p in best]
        means = {}
        for column in ("accuracy", "accuracy_best", "nll", "cost", "hours"):
            means[column] = np.mean([row[column] for row in own.values()])
        seconds = f"{3600 * means['hours']:.0f}" if means["hours"] else "–"
        distance = f"{np.mean(distances):.3f}" if distances else "–"
        print(
            f"| {strategy} | {len(own)} | {100 * means['accuracy']:.2f} "
            f"| {100 * means['accuracy_best']:.2f} | {means['nll']:.3f} | {means['cost']:.2f} "
            f"| {seconds} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] | {distance} |"
        )


def finder_by_seeds(rows, reference):
    """Print the finder's difference on the seeds it was designed on, and on new ones."""
    for label, group in (
        ("designed on", DESIGN),
        ("confirmed on, nothing was chosen there", CONFIRM),
    ):
        pairs = []
        for (strategy, problem, seed), row in rows.items():
            if strategy == "finder" and seed in group:
                pairs.append((row, rows[reference, problem, seed]))
        if not pairs:
            continue
        mean, low, high = accuracy_gain(pairs)
        seeds = ", ".join(map(str, sorted({row["seed"] for row, _ in pairs})))
        cost = np.mean([row["cost"] for row, _ in pairs])
        print(
            f"\nFinder minus exhaustive, seeds {seeds} ({label}): {mean:+.2f} points "
            f"[{low:+.2f}, {high:+.2f}], n = {len(pairs)}, mean cost {cost:.2f}."
        )


def finder_table(name, seeds, rows):
    """Print the finder beside plain training, a row for each problem."""
    kind = "cell" if name == "synthetic" else "problem"
    print(f"\nThe finder beside plain training, by {kind}:\n")
    print("| Problem | n | finder | plain | difference, points | levels |")
    print("|---|---|---|---|---|---|")
    for problem in problems(name):
        pairs = []
        for seed in seeds:
            pair = rows.get(("finder", problem, seed)), rows.get(("plain", problem, seed))
            if all(pair):
                pairs.append(pair)
        if not pairs:
            continue
        mean, low, high = accuracy_gain(pairs)
        levels = ["none" if a["level"] is None else f"{a['level']:g}" for a, _ in pairs]
        finder_mean, plain_mean = (
            100 * np.mean([pair[i]["accuracy"] for pair in pairs]) for i in (0, 1)
        )
        print(
            f"| {problem} | {len(pairs)} | {finder_mean:.2f} | {plain_mean:.2f} "
            f"| {mean:+.2f} [{low:+.2f}, {high:+.2f}] | {', '.join(levels)} |"
        )


def best_levels(seeds):
    """Give the best fixed level of each cell by clean test accuracy, averaged over seeds."""
    by_cell = {}
    for (name, _), cell in cells(seeds).items():
        by_cell.setdefault(name, []).append(cell.arrays["last_test_accuracy_clean"][cell.index])
    return {name: LEVELS[int(np.mean(curves, axis=0).argmax())] for name, curves in by_cell.items()}


def luck(name, seeds):
    """Print what a grid gains by its levels, and what by the epoch at which a training ends.

    The grid selects among trainings by their last epoch's validation result, and is judged by that
    very epoch's test result: a lucky last epoch counts twice. Judged by late averages it selects
    levels instead; so does the best fixed level of a problem by the test data of the other seeds.
    """
    grids = grids_of(name, seeds)
    shares = (0.02, 0.05, 0.125, 0.25)
    gains = {f"late mean, {100 * share:g} % of the epochs": [] for share in shares}
    fixed_gains = gains["best fixed level, by test data of the other seeds"] = []
    for (problem, seed), (accuracy, loss, test, _) in grids.items():
        reference = test[best_index(accuracy, loss, 1)]
        for share, share_gains in zip(shares, gains.values(), strict=False):
            epochs = max(1, round(share * (accuracy.shape[1] - 1)))
            share_gains.append(100 * (test[best_index(accuracy, loss, epochs)] - reference))
        others = []
        for (other_problem, other_seed), arrays in grids.items():
            if other_problem == problem and other_seed != seed:
                others.append(arrays[2])
        best = int(np.mean(others, axis=0).argmax())
        fixed_gains.append(100 * (test[best] - reference))
    print("| All levels trained, chosen by | n | minus the choice by the last epoch, points |")
    print("|---|---|---|")
    for label, values in gains.items():
        mean, low, high = interval(values)
        print(f"| {label} | {len(values)} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] |")


def best_index(accuracy, loss, epochs):
    """Select the best level by the mean of the last epochs; of equal ones the first."""
    means = list(zip(accuracy[:, -epochs:].mean(1), -loss[:, -epochs:].mean(1), strict=True))
    return max(range(len(means)), key=lambda i: (*means[i], -i))


def grids_of(name, seeds):
    """Give validation accuracy and loss, test accuracy and training loss by level.

    They are arrays for each problem and seed.
    """
    if name == "synthetic":
        return {where: cell_grid(cell) for where, cell in cells(seeds).items()}
    runs = []
    for problem in REAL:
        for seed in seeds:
            runs += [Run(real(problem), level or None, seed=seed) for level in LEVELS_11]
    archive = HERE / "real-grid.npz"
    if archive.exists():
        records = Archive(archive)(runs)
    else:
        records = run_all(runs, ledger=LEDGER)
        names = ("train_loss", "val_accuracy", "val_loss")
        pack(archive, records, names, machine(), is_is_exact=lambda _: True)
    remaining, grids = iter(records), {}
    for problem in REAL:
        for seed in seeds:
            grids[problem, seed] = record_grid([next(remaining) for _ in LEVELS_11])
    return grids


def cell_grid(cell):
    """Read the arrays of a cell of the level benchmark."""
    names = ("val_right", "val_loss", "last_test_accuracy_clean", "train_loss")
    accuracy, loss, test, train = (cell.arrays[n][cell.index].astype(float) for n in names)
    return accuracy / 100, loss, test, train


def record_grid(records):
    """Collect the arrays of the Records of one problem and seed."""
    names = ("val_accuracy", "val_loss", "train_loss")
    accuracy, loss, train = (np.array([r.curves[n] for r in records], float) for n in names)
    test = np.array([clean_accuracy(record, "last") for record in records])
    return accuracy, loss, test, train


def verify(share):
    """Train a random share of the level benchmark again and compare it with what is stored."""
    population = []
    for _, cell in sorted(cells(range(10)).items(), key=lambda item: item[0]):
        population += [(cell, level) for level in LEVELS]
    size = max(1, round(share * len(population)))
    indices = np.random.default_rng(0).permutation(len(population))[:size]
    sample = [population[i] for i in indices]
    runs = [Run(cell.problem, level, seed=cell.seed) for cell, level in sample]
    records = run_all(runs, ledger=LEDGER)
    same = 0
    for (cell, level), record in zip(sample, records, strict=True):
        index, stored = (*cell.index, round(100 * level)), cell.arrays
        # As the benchmark stores them.
        loss = np.minimum(record.curves["val_loss"], 65504).astype(np.float16)
        accuracy = (100 * record.curves["val_accuracy"]).round()
        test = np.float32(record.metrics["last.test_accuracy_clean"])
        same += (
            np.array_equal(loss, stored["val_loss"][index])
            and np.array_equal(accuracy, stored["val_right"][index])
            and bool(test == stored["last_test_accuracy_clean"][index])
        )
    print(f"{same} of {len(sample)} runs, drawn from {len(population)}, are as stored")


def write(text, name):
    """Put tables between the page's markers of a set."""
    page = HERE.parents[1] / "docs" / "searches.md"
    begin, end = f"<!-- searches-{name}:begin -->", f"<!-- searches-{name}:end -->"
    head, _, rest = page.read_text().partition(begin)
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.partition(end)[2]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table", "luck", "verify"])
    parser.add_argument("set", nargs="?", choices=list(SETS), default="synthetic")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--strategies", nargs="+")
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--write", action="store_true", help="put the table into docs/searches.md")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.set, arguments.seeds, arguments.strategies)
    elif arguments.command == "table":
        with contextlib.redirect_stdout(io.StringIO()) as output:
            table(arguments.set, arguments.seeds)
        print(output.getvalue())
        if arguments.write:
            write(output.getvalue(), arguments.set)
    elif arguments.command == "luck":
        luck(arguments.set, arguments.seeds)
    else:
        verify(arguments.share)


if __name__ == "__main__":
    main()
