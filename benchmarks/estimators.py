"""FloodingClassifier beside scikit-learn's network with early stopping, by cross-validation.

    FLOODING_DATA=... python benchmarks/estimators.py run [--tables wine digits ...]
    python benchmarks/estimators.py table

Ten tables, five folds, everything at its defaults: ``FloodingClassifier()``, the same without
flooding (``level=None``), and ``MLPClassifier(early_stopping=True)`` behind imputation,
standardisation and one-hot encoding. ``run`` appends a line for each fit to ``estimators.jsonl``
and leaves out what is there, so it can be killed and started again. ``table`` prints what the lines
say: by table the mean of the folds, over the tables the mean difference with its 95 % interval. The
folds of a table share training rows, so the interval is over tables, of which each counts once.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from flooding.integrations.sklearn import FloodingClassifier
from flooding.report.stats import paired

RESULTS = Path(__file__).with_suffix(".jsonl")
FOLDS = 5
BUNDLED = {"wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}
# In the order of their size.
TABLES = (*BUNDLED, "german", "spambase", "churn", "higgs7k", "twonorm", "letter", "adult")
FLOODED, PLAIN, REFERENCE = "FloodingClassifier", "level=None", "MLPClassifier"


def load(name):
    """Give the columns and the labels of a table."""
    if name in BUNDLED:
        return BUNDLED[name](return_X_y=True, as_frame=True)
    if name == "higgs7k":
        frame = pd.concat([read("higgs7k.train.gz"), read("higgs7k.test.gz")])
        frame = frame.reset_index(drop=True)
        frame.columns = ["target", *(f"c{i}" for i in range(1, frame.shape[1]))]
    elif name == "adult":
        parts = read("adult.data.gz", sep=","), read("adult.test.gz", sep=",", skiprows=1)
        frame = pd.concat(parts).reset_index(drop=True)
        frame.columns = [*(f"c{i}" for i in range(frame.shape[1] - 1)), "target"]
        frame["target"] = frame["target"].str.rstrip(".")
    else:
        frame = read(f"{name}.tsv.gz", header=0)
    return frame.drop(columns="target"), frame["target"].astype(str)


def read(file, sep="\t", header=None, **options):
    content = gzip.decompress((Path(os.environ["FLOODING_DATA"]) / "tables" / file).read_bytes())
    options |= {"skipinitialspace": True, "na_values": "?"}
    return pd.read_csv(io.BytesIO(content), sep=sep, header=header, **options)


def make_models(seed):
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    columns = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
        sparse_threshold=0,
    )
    network = MLPClassifier(early_stopping=True, random_state=seed)
    return {
        REFERENCE: make_pipeline(columns, network),
        FLOODED: FloodingClassifier(random_state=seed),
        PLAIN: FloodingClassifier(level=None, random_state=seed),
    }


def run(names):
    """Fit what is missing, and append a line for each fit."""
    done = {(row["table"], row["fold"], row["model"]) for row in results()}
    revision = commit()
    for name in names:
        x, y = load(name)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y)
        for fold, (train, test) in enumerate(folds):
            for model, estimator in make_models(fold).items():
                if (name, fold, model) in done:
                    continue
                begin = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of MLPClassifier, about convergence
                    estimator.fit(x.iloc[train], y.iloc[train])
                row = measure(estimator, x.iloc[test], y.iloc[test])
                row["seconds"] = round(time.perf_counter() - begin, 2)
                row |= {"table": name, "fold": fold, "model": model, "commit": revision}
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def measure(estimator, x, y):
    probabilities = estimator.predict_proba(x)
    values = {
        "accuracy": accuracy_score(y, estimator.predict(x)),
        "log_loss": log_loss(y, probabilities, labels=estimator.classes_),
    }
    for name in ("level_", "best_epoch_", "n_epochs_"):
        if hasattr(estimator, name):
            values[name.rstrip("_")] = getattr(estimator, name)
    return values


def results():
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def commit():
    command = ["git", "describe", "--always", "--dirty"]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()


def fold_means(column):
    """Give the mean over folds by model and table, of tables that are complete."""
    rows = {(row["model"], row["table"], row["fold"]): row[column] for row in results()}
    models = (FLOODED, PLAIN, REFERENCE)
    means = {model: {} for model in models}
    for table in TABLES:
        by_model = [[rows.get((model, table, k)) for k in range(FOLDS)] for model in models]
        if all(value is not None for values in by_model for value in values):
            for model, values in zip(models, by_model, strict=True):
                means[model][table] = float(np.mean(values))
    return means


def table():
    """Print the means by table, and the differences over tables."""
    accuracy, loss = fold_means("accuracy"), fold_means("log_loss")
    seconds = fold_means("seconds")
    print(f"Commits: {', '.join(sorted({row['commit'] for row in results()}))}. {FOLDS} folds.\n")
    heads = [f"{m}: accuracy, log-loss, seconds" for m in accuracy]
    print(f"| Table | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name in accuracy[FLOODED]:
        cells = []
        for model in accuracy:
            values = 100 * accuracy[model][name], loss[model][name], seconds[model][name]
            cells.append("{:.2f} %, {:.4f}, {:.1f}".format(*values))
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for model, other in ((FLOODED, REFERENCE), (FLOODED, PLAIN), (PLAIN, REFERENCE)):
        for label, unit, means in (("accuracy, points", 100, accuracy), ("log-loss", 1, loss)):
            pairs = [
                (unit * means[model][name], unit * means[other][name]) for name in means[model]
            ]
            describe(f"{model} minus {other}, {label}", pairs)


def describe(title, pairs):
    differences = [a - b for a, b in pairs]
    if len(pairs) < 2:
        print(f"{title}: too few tables, n = {len(pairs)}")
        return
    gain = paired(*zip(*pairs, strict=True))
    higher, lower = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    print(
        f"{title}: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], n = {len(pairs)} tables, "
        f"median {np.median(differences):+.3f}, higher in {higher}, lower in {lower}, "
        f"p {gain.p:.3f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.tables)
    else:
        table()


if __name__ == "__main__":
    main()
