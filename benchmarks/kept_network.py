"""Twelve tables: the network that ``find --save`` keeps, beside what needs no search.

    python benchmarks/kept_network.py run   # trains what kept_network.jsonl lacks
    python benchmarks/kept_network.py page  # writes docs/results/tables.md

The rivals have the same rows: plain training with early stopping, logistic or ridge regression,
gradient boosting and scikit-learn's MLP with early stopping, each with its default settings. The
tables are scikit-learn's, those of ``$FLOODING_DATA/tables`` and made-up ones with known noise.
Each result is a line of ``kept_network.jsonl``, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from flooding import find_level
from flooding.report.document import Report, Table
from flooding.report.dot_figures import dot_rows
from flooding.report.figures import save
from flooding.report.provenance import machine
from flooding.report.stats import format_mean_sd, format_p, paired
from flooding.tabular import TableProblem, table_problem
from flooding.tabular.baselines import fit_constant, fit_models, measure
from flooding.tabular.final_model import select_network
from flooding.training.loop import EpochResult

PAGE = Path(__file__).parents[1] / "docs" / "results"
SEEDS = range(5)
# Rows of large tables, drawn by the seed of the table: what matters here is many tables.
MAX_ROWS = 3000
KEPT, STOPPED = "find --save", "plain, early stopping"
RIVALS = (STOPPED, "linear model", "gradient boosting", "MLP, early stopping")


# Tables: a header, and rows of texts.


def from_sklearn(name: str) -> list[list[object]]:
    """One of scikit-learn's own tables."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    return [[*row, label] for row, label in zip(bunch.data, bunch.target, strict=True)]


def from_pmlb(name: str) -> list[list[object]]:
    """A table of $FLOODING_DATA."""
    path = Path(os.environ["FLOODING_DATA"], "tables", f"{name}.tsv.gz")
    with gzip.open(path, "rt") as file:
        return [list(row) for row in csv.reader(file, delimiter="\t")][1:]


def made_up_classes(flipped: float) -> list[list[object]]:
    """Classes of which a share is flipped."""
    from sklearn.datasets import make_classification

    x, y = make_classification(
        1000, 20, n_informative=8, n_redundant=4, flip_y=2 * flipped, random_state=0
    )
    return [[*row, label] for row, label in zip(x, y, strict=True)]


def made_up_moons() -> list[list[object]]:
    """Two moons with noise, a fifth of the labels flipped."""
    from sklearn.datasets import make_moons

    x, y = make_moons(800, noise=0.3, random_state=0)
    flips = np.random.default_rng(0).random(800) < 0.2
    return [[*row, label] for row, label in zip(x, np.where(flips, 1 - y, y), strict=True)]


def made_up_numbers() -> list[list[object]]:
    """Friedman's function with a standard deviation of noise of 2."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(1000, 10, noise=2.0, random_state=0)
    return [[*row, value] for row, value in zip(x, y, strict=True)]


def tables() -> dict[str, tuple[str, Callable[[], list[list[object]]]]]:
    """The kind of each table, and what makes its rows."""
    kinds: dict[str, tuple[str, Callable[[], list[list[object]]]]] = {}
    for name in ("breast_cancer", "wine", "iris", "digits"):
        kinds[name] = ("classification", lambda name=name: from_sklearn(name))
    kinds["diabetes"] = ("regression", lambda: from_sklearn("diabetes"))
    for name in ("spambase", "churn", "german", "letter"):
        kinds[name] = ("classification", lambda name=name: from_pmlb(name))
    kinds["made up, 15 % flipped"] = ("classification", lambda: made_up_classes(0.15))
    kinds["moons, 20 % flipped"] = ("classification", made_up_moons)
    kinds["friedman, noise 2"] = ("regression", made_up_numbers)
    return kinds


def problem_of(name: str, seed: int, folder: Path, epochs: int) -> TableProblem:
    """Make the Problem of a table, its rows divided by the seed."""
    kind, make_rows = tables()[name]
    rows = make_rows()
    if len(rows) > MAX_ROWS:
        chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_ROWS]
        rows = [rows[index] for index in chosen]
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{number}" for number in range(len(rows[0]) - 1)), "target"])
        writer.writerows(rows)
    return table_problem(
        path,
        "target",
        kind=kind,  # type: ignore[arg-type]
        split_seed=seed,
        max_epochs=epochs,
    )


# Results.


def results_of(name: str, seed: int, ledger: str | None, epochs: int) -> dict[str, object]:
    """Train everything on one table and one division of its rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = problem_of(name, seed, Path(folder), epochs)
    problem, methods = table.problem, {}
    plain_times: list[float] = []

    def on_row(row: EpochResult) -> None:
        if row.run.level is None:
            plain_times.append(time.process_time())

    # Seconds of the processor, since a machine may do other work besides.
    start = time.process_time()
    result = find_level(problem, workers=0, ledger=ledger, on_row=on_row)
    final = select_network(result.run, records=result.records)
    seconds = time.process_time() - start
    methods[KEPT] = {**final.test_metrics, "seconds": seconds, "kept": final.choice.name}
    [stopped] = [c for c in final.candidates if c.name == "plain training, early stopping"]
    plain_seconds = plain_times[-1] - plain_times[0] if plain_times else float("nan")
    methods[STOPPED] = {**stopped.metrics, "seconds": plain_seconds}
    for candidate in final.candidates:
        methods.setdefault(candidate.name, dict(candidate.metrics))
    methods["constant"] = dict(fit_constant(problem).metrics)
    start = time.process_time()
    linear, boosting = fit_models(problem)
    seconds = time.process_time() - start
    methods["linear model"] = {**linear.metrics, "seconds": seconds}
    methods["gradient boosting"] = {**boosting.metrics, "seconds": seconds}
    methods["MLP, early stopping"] = sklearn_mlp(table, seed)
    numbers = {}
    for method, values in methods.items():
        wanted = ("test_loss", "test_accuracy", "val_loss", "val_accuracy", "seconds", "kept")
        numbers[method] = {key: values[key] for key in wanted if key in values}
    variance = None
    test = problem.splits(0).test
    if test is not None and test.y.is_floating_point():
        variance = float(test.y.double().var(unbiased=False))
    line = {"table": name, "seed": seed, "variance": variance, "methods": numbers}
    return {**line, "machine": machine()}


def sklearn_mlp(table: TableProblem, seed: int) -> dict[str, float]:
    """Train scikit-learn's network, of the same size, with its own early stopping.

    It takes a tenth of the rows that it is given to stop on, so it is given training and validation
    rows.
    """
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    splits = table.problem.splits(0)
    x = torch.cat([splits.train.x, splits.val.x]).numpy()
    y = torch.cat([splits.train.y, splits.val.y]).numpy()
    kind = MLPRegressor if table.target.classes is None else MLPClassifier
    model = kind(
        hidden_layer_sizes=(256, 256, 256), early_stopping=True, random_state=seed, max_iter=500
    )
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, y.ravel())
    seconds = time.process_time() - start
    test = splits.test
    assert test is not None
    if table.target.classes is None:
        outputs = torch.from_numpy(model.predict(test.x.numpy())).float()[:, None]
    else:
        probabilities = torch.from_numpy(model.predict_proba(test.x.numpy())).double()
        outputs = probabilities.clamp(min=1e-12).log()
    return {**measure(table.problem, test, outputs, "test"), "seconds": seconds}


def read(path: Path) -> dict[tuple[str, int], dict]:
    """Read the results that are there."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {(line["table"], line["seed"]): line for line in lines}


def run(path: Path, seconds: float, epochs: int) -> None:
    """Train what a file of results lacks, for at most so many seconds."""
    start = time.monotonic()
    for seed in SEEDS:
        for name in tables():
            if (name, seed) in read(path):
                continue
            if time.monotonic() - start > seconds:
                print("the time is up; the same command continues")
                return
            began = time.monotonic()
            line = results_of(name, seed, f"{path}.sqlite", epochs)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


# The page.


def points(line: dict, method: str) -> float:
    """Accuracy in percent, or 100 R²."""
    values = line["methods"][method]
    if line["variance"] is None:
        return 100 * values["test_accuracy"]
    return 100 * (1 - values["test_loss"] / line["variance"])


def rows_by_table(
    lines: dict[tuple[str, int], dict], value: Callable[[dict, str], float], digits: int
) -> Iterator[list[str]]:
    """Write one row for each table: mean and standard deviation of each method."""
    for name in tables():
        own = [line for (table, _), line in lines.items() if table == name]
        if own:
            cells = []
            for method in (KEPT, *RIVALS):
                cells.append(format_mean_sd([value(line, method) for line in own], digits))
            yield [name, *cells]


def gains(lines: dict[tuple[str, int], dict]) -> list[list[str]]:
    """Compare the kept network with each rival, paired by table."""
    rows = []
    for rival in RIVALS:
        by_table = gains_by_table(lines, rival)
        gain = paired(by_table, [0.0] * len(by_table))
        better = sum(difference > 0 for difference in by_table)
        rows.append([rival, gain.format(2), format_p(gain.p), f"{better} of {len(by_table)}"])
    return rows


def gains_by_table(lines: dict[tuple[str, int], dict], rival: str) -> list[float]:
    """Average the kept network minus a rival over seeds, one number for each table, in points."""
    means = []
    for name in tables():
        own = [line for (table, _), line in lines.items() if table == name]
        differences = [points(line, KEPT) - points(line, rival) for line in own]
        if differences:
            means.append(statistics.mean(differences))
    return means


def interval(gain: str) -> tuple[float, float]:
    """Read the interval of a difference that is written as ``+1.00 [-1.05, +3.06]``."""
    low, high = re.findall(r"[+-][\d.]+", gain)[1:]
    return float(low), float(high)


def choices(lines: dict[tuple[str, int], dict]) -> list[list[str]]:
    """Count what was kept, and how many seconds it took."""
    rows = []
    for name in tables():
        own = [line for (table, _), line in lines.items() if table == name]
        if own:
            kept = [line["methods"][KEPT]["kept"] for line in own]
            flooded = sum(choice.startswith("flooded") for choice in kept)
            offered = 0
            for line in own:
                offered += any(method.startswith("flooded") for method in line["methods"])
            rows.append([name, f"{offered} of {len(own)}", f"{flooded} of {len(own)}"])
    return rows


def page(path: Path) -> Report:
    """Write what the results say, as they are."""
    lines = read(path)
    columns = ["table", KEPT, *RIVALS]
    comparison = gains(lines)
    num_seeds = len({seed for _, seed in lines})
    low, _ = interval(comparison[0][1])
    limit = "is" if low >= -0.3 else "is not shown to be"
    findings = [
        f"The network that is kept {limit} at most 0.3 point behind plain training with early "
        f"stopping, on average over the tables: {comparison[0][1]} points (p of a difference "
        f"{comparison[0][2]})."
    ]
    for rival, gain, p, better in comparison[1:]:
        findings.append(f"Against {rival}: {gain} points (p {p}), better on {better} tables.")
    about = (
        "What `find --save` keeps, with its default settings, beside models that need no search, "
        "on the same rows: 60 % to train, 20 % to choose, 20 % to report. The seed divides them. "
        f"Tables of more than {MAX_ROWS:,} rows are cut to as many, at random. scikit-learn's "
        "models have their default settings; its MLP has the size of the network here and takes "
        "its early stopping rows from training and validation rows. Points are accuracy in "
        "percent for classes and 100 R² for numbers (diabetes, friedman); differences are averaged "
        "over seeds, then compared over tables by Student's t, uncorrected."
    )
    comparison_table = Table(
        "gains",
        "The kept network minus each rival, in points, over tables, with 95 % intervals",
        ["rival", "difference", "p", "better on"],
        comparison,
    )

    def nll(line: dict, method: str) -> float:
        return line["methods"][method]["test_loss"]

    def seconds(line: dict, method: str) -> float:
        return line["methods"][method].get("seconds", float("nan"))

    n = f"mean ± standard deviation, n = {num_seeds} seeds"
    points_rows = list(rows_by_table(lines, points, 1))
    loss_rows = list(rows_by_table(lines, nll, 3))
    time_rows = list(rows_by_table(lines, seconds, 1))
    note = "For numbers the squared error in units of the training variance."
    machines = sorted({line["machine"] for line in lines.values()})
    report_tables = [
        comparison_table,
        Table("points", f"Accuracy in %, or 100 R², on the test rows; {n}", columns, points_rows),
        Table("nll", f"NLL in nats on the test rows; {n}", columns, loss_rows, note),
        Table(
            "seconds",
            f"Seconds of one core's time; {n}",
            columns,
            time_rows,
            "The linear model and gradient boosting are timed together. A search that finds its "
            "trainings in the ledger takes less than it would.",
        ),
        Table(
            "choices",
            "How often the search has a level, and how often the flooded network is kept",
            ["table", "has a level", "flooded network kept"],
            choices(lines),
        ),
    ]
    by_rival = {rival: {"one table": gains_by_table(lines, rival)} for rival in RIVALS}
    caption = (
        "The kept network minus each rival, in points: a dot for each table, the mean as a line."
    )
    label = "Points above the rival"
    texts, shown = [], []
    for rival, gain, _, better in comparison:
        texts.append(f"{rival} {gain.split()[0]}, better on {better}")
        low, high = interval(gain)
        if low > 0 or high < 0:
            shown.append(rival)
    significant = "No difference is significant."
    if shown:
        significant = f"Significant: the difference from {' and '.join(shown)}."
    return Report(
        "Twelve tables: the network that is kept",
        about,
        findings=findings,
        tables=report_tables,
        figures={"gains": (caption, partial(dot_rows, by_rival, label))},
        provenance=f"{len(lines)} tables and seeds; {'; '.join(machines)}.",
        answer=(
            "The network that is kept, minus its rivals, in points on average over the tables: "
            f"{'; '.join(texts)}. {significant}"
        ),
    )


def main() -> None:
    """Run, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["run", "page"])
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--epochs", type=int, default=100, help="100, as find has by default")
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.results, arguments.seconds, arguments.epochs)
        return
    report = page(arguments.results)
    (PAGE / "tables.md").write_text(report.markdown("tables"))
    for name, (_, draw) in report.figures.items():
        save(draw(), PAGE / f"tables-{name}.png")
    print("\n".join(report.findings))


if __name__ == "__main__":
    main()
