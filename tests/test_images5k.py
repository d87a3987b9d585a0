"""Images at reduced scale: validation alone chooses, levels that were not reached are not called tested."""

from functools import partial

import numpy as np
import pytest

from flooding.experiments import images5k
from flooding.experiments.images5k import LEVELS, Cell, cells, experiment
from flooding.problem import Record
from flooding.strategies import drive
from small import small


@pytest.fixture(autouse=True)
def _without_files(monkeypatch):
    """Plan with small problems in place of images."""
    plan = [Cell("A", small(horizon=10)), Cell("B", small(horizon=20))]
    monkeypatch.setattr(images5k, "cells", lambda quick=False, seeds=None: plan)


def answer(runs, flooded=0.5, falls=3, val=lambda level, seed: 0.5, test=lambda level, seed: 0.5 + level / 10):
    """Make Records whose training loss falls below 0.4 after some epochs."""
    told = []
    for run in runs:
        level, seed, epochs = run.level or 0.0, run.seed, run.epochs
        curves = {
            "train_loss": np.where(np.arange(epochs + 1) < falls, 1.0, 0.01),
            "flooded": np.full(epochs + 1, flooded if level else 0.0),
        }
        finals = {}
        for at in ("last", "best"):
            made = {"val_accuracy": val(level, seed), "val_loss": 1.0, "test_accuracy": test(level, seed)}
            made |= {"test_nll": 1.0 - level, "test_ece": 0.1}
            finals |= {f"{at}.{name}": value for name, value in made.items()}
        told.append(Record(run, curves, {}, finals, "", "", {"seconds": 36.0, "on": "a machine"}))
    return told


def report(**how):
    return drive(experiment(), partial(answer, **how))[0]


def rows(told, name):
    [found] = [table for table in told.tables if table.name == name]
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_the_plan_is_that_of_the_docstring(monkeypatch):
    monkeypatch.undo()
    plan = cells()
    assert [cell.title for cell in plan] == ["MNIST", "Fashion-MNIST", "Fashion-MNIST, 20 % label noise", "CIFAR-10"]
    assert sum(len(cell.runs) for cell in plan) == 4 * 6 * 3
    assert [cell.problem.data.keywords["label_noise"] for cell in plan] == [0.0, 0.0, 0.2, 0.0]
    assert [cell.seeds for cell in cells(seeds=[5])] == [(5,)] * 4


def test_validation_chooses_a_level_above_0_and_ties_go_to_the_smaller():
    told = report(val=lambda level, seed: 0.9 if level == 0 else 0.8 if level >= 0.1 + 0.1 * (seed == 1) else 0.3)
    [row, _] = rows(told, "last")
    assert row["levels"] == "0.1, 0.2, 0.1"
    assert row["flooding"] == "51.3 ± 0.6"
    assert row["plain"] == "50.0 ± 0.0"
    assert row["difference"].startswith("+1.3 [")


def test_levels_that_were_never_reached_read_not_tested():
    told = report(flooded=0.0)
    assert all(row["flooded %"] == "0: not tested" for row in rows(told, "last"))
    assert all("not tested" in row[f"b = {level:g}"] for row in rows(told, "levels") for level in LEVELS[1:])
    assert "not tested" not in rows(told, "levels")[0]["plain"]
    assert not any("not tested" in row["b = 0.4"] for row in rows(report(), "levels"))


def test_plain_training_must_be_below_the_largest_level_before_half():
    assert not report(falls=3).failures
    told = report(falls=9)  # of 10 epochs in the first cell, of 20 in the second
    when = "below 0.4 after 90 to 90 % of the epochs"
    assert list(told.failures) == [f"A: plain training is {when}: not before half of the training."]
    assert len(report(falls=99).failures) == 2


def test_a_loss_is_called_one_and_comes_first():
    told = report(test=lambda level, seed: 0.9 - level + 0.001 * seed * (level > 0))
    assert any("LOSES" in sentence and "at 5 %" in sentence for sentence in told.failures)
    assert not any("wins" in sentence for sentence in [*told.failures, *told.findings])


def test_the_page_and_its_picture_are_written(tmp_path):
    told = report()
    names = {path.name for path in told.save(tmp_path, "images5k")}
    assert {"images5k.md", "images5k-levels.png", "images5k-last.csv"} <= names
    assert "Reduced protocol, not the sources'" in (tmp_path / "images5k.md").read_text()
