"""All images of MNIST and Fashion-MNIST: the plan, and what averages and the auto level are
compared by."""

from dataclasses import replace

import numpy as np
import pytest

from flooding import run_all
from flooding.averaging import EMA
from flooding.experiments import ishida2020_images as images
from flooding.level_search.driver import run_generator
from flooding.levels import Auto
from flooding.report.level_grid import AVERAGE_COMPARISONS, Cell
from flooding.training.record import Record
from small import small

LEVELS = (0.0, 0.1, 0.2)
# Test accuracy of the network and of its average, and what validation says of the levels.
NETWORK = {0.0: 0.5, 0.1: 0.68, 0.2: 0.65, "auto": 0.62}
AVERAGE = {0.0: 0.55, 0.1: 0.8, 0.2: 0.84, "auto": 0.75}
VALIDATION = {"": {0.1: 0.3, 0.2: 0.4}, "average.": {0.1: 0.4, 0.2: 0.3}}


@pytest.fixture(autouse=True)
def _without_files(monkeypatch):
    """Plan with a small problem in place of images."""
    problem = small(max_epochs=10, averaging=EMA())
    plan = [Cell("A", problem, LEVELS, (0, 1, 2))]
    monkeypatch.setattr(images, "cells", lambda quick=False, seeds=None: plan)


def fake(run, network, average):
    """Make up a Record."""
    key = "auto" if isinstance(run.level, Auto) else run.level or 0.0
    flooded = np.where(np.arange(run.epochs + 1) > 2, 0.5 if key else 0.0, 0.0)
    curves = {"train_loss": np.where(flooded > 0, 0.01, 1.0), "flooded": flooded}
    curves["val_loss"] = np.ones(run.epochs + 1)
    if not key:
        curves["train_loss"] = np.where(np.arange(run.epochs + 1) > 2, 0.01, 1.0)
    metrics = {"best.epoch": 10, "last.level": 0.15 if key == "auto" else key}
    for prefix, accuracies in (("", network), ("average.", average)):
        accuracy = accuracies[key] + 0.001 * run.seed * (1 + (key == "auto"))
        measured = {"test_accuracy": accuracy, "val_accuracy": VALIDATION[prefix].get(key, 0.2)}
        measured |= {"val_loss": 1.0, "train_loss": 0.1, "test_nll": 1.0, "test_ece": 0.1}
        for at in ("last", "best"):
            metrics |= {f"{prefix}{at}.{name}": value for name, value in measured.items()}
    return Record(run, curves, {}, metrics, "", "", {"seconds": 36.0, "on": "a machine"})


def report(network=NETWORK, average=AVERAGE):
    return run_generator(
        images.start(), lambda runs: [fake(run, network, average) for run in runs]
    )[0]


def row(result, name):
    [found] = [table for table in result.tables if table.name == name]
    return dict(zip(found.columns, found.rows[0], strict=True))


def test_the_plan_is_that_of_the_docstring(monkeypatch):
    monkeypatch.undo()
    plan = images.cells()
    assert [cell.title for cell in plan] == [
        "MNIST",
        "Fashion-MNIST",
        "Fashion-MNIST, 20 % label noise",
    ]
    for cell in plan:
        problem, data = cell.problem, cell.problem.data.keywords
        assert (data["n_train"], data["n_val"]) == (48_000, 12_000)
        assert (problem.batch_size, problem.max_epochs, problem.averaging) == (200, 150, EMA())
        assert problem.optimizer.keywords.items() >= {"lr": 0.1, "momentum": 0.9}.items()
        assert len(cell.levels) == 6
        assert cell.levels[0] == 0
        assert list(cell.levels) == sorted(cell.levels)
        assert cell.seeds == (0, 1, 2)
    assert [cell.problem.data.keywords["label_noise"] for cell in plan] == [0.0, 0.0, 0.2]
    assert [len(cell.levels) for cell in images.cells(quick=True)] == [3, 3, 3]
    assert images.cells(seeds=[7])[0].seeds == (7,)


def test_the_network_and_its_average_are_picked_by_their_own_validation_results():
    result = report()
    assert (row(result, "last")["levels"], row(result, "last")["flooding"]) == (
        "0.2, 0.2, 0.2",
        "65.1 ± 0.1",
    )
    averaged = row(result, "average")
    assert (averaged["levels"], averaged["flooding, averaged"]) == ("0.1, 0.1, 0.1", "80.1 ± 0.1")
    assert averaged["flooding"] == "65.1 ± 0.1"
    assert averaged["difference"].startswith("+15.0 [")
    assert row(result, "average-plain")["difference"].startswith("+5.0 [")


def test_the_average_of_the_auto_level_is_compared():
    result = report()
    auto = row(result, "auto")
    assert (auto["levels"], auto["auto level, averaged"]) == ("0.15, 0.15, 0.15", "75.2 ± 0.2")
    assert auto["plain"] == "50.1 ± 0.1"
    assert row(result, "auto-average")["difference"].startswith("+20.1 [")
    assert row(result, "auto-grid")["difference"].startswith("+10.1 [")
    assert row(result, "auto-grid-average")["difference"].startswith("-4.9 [")
    assert row(result, "auto-stopping")["difference"].startswith("+25.1 [")
    expected = "against plain training 1, 0 of 1; plain, averaged 1, 0 of 1; early stopping 1, 0"
    assert expected in result.answer
    assert (
        "A, auto level against the level chosen among all, both averaged: the auto level LOSES"
        in " ".join(result.failures)
    )
    assert any(
        s.startswith("A, auto level, averaged, against plain training: the auto level wins")
        for s in result.findings
    )


def test_where_the_average_loses_the_report_says_so():
    result = report(average=dict.fromkeys(AVERAGE, 0.3))
    losses = [s for s in result.failures if " LOSES" in s]
    # The auto level's average ties with the other averages.
    assert len(losses) == len(AVERAGE_COMPARISONS) - 2
    assert "plain, averaged 0, 0 of 1; early stopping 0, 1 of 1." in result.answer


def test_short_trainings_give_a_page(tmp_path):
    problem = small(max_epochs=4, averaging=EMA())

    def trained(runs):
        records = run_all([replace(run, problem=problem) for run in runs], workers=0)
        return [replace(r, run=run) for r, run in zip(records, runs, strict=True)]

    result = run_generator(images.start(), trained)[0]
    names = {path.name for path in result.save(tmp_path, "ishida2020_images")}
    assert {"ishida2020_images.md", "ishida2020_images-auto.csv"} <= names
