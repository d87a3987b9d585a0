"""The demo's rows are chosen by validation alone, and its words follow its numbers."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from flooding import Run, run_all
from flooding.cli import _demo_report as demo
from flooding.data import Split, Splits
from flooding.data.synthetic import two_gaussians
from flooding.experiments import ishida2020
from flooding.levels import Auto
from flooding.tasks import DIGITS, demo_sinusoid, grid_2d, sgd
from flooding.training.config import to_config
from flooding.training.problem import TestCurve
from flooding.training.record import Record
from small import small

PROBLEM = small(max_epochs=8)


def record(level, seed, last, best, test=0.5):
    """A Record with (accuracy, loss) on validation at the last and at the best epoch, and one test
    figure."""
    finals = {"last.level": level}
    for at, (accuracy, loss) in (("last", last), ("best", best)):
        finals |= {
            f"{at}.val_accuracy": accuracy,
            f"{at}.val_loss": loss,
            f"{at}.test_accuracy": test,
            f"{at}.train_loss": 1.0,
        }
        finals |= {f"{at}.test_accuracy_clean": test, f"{at}.test_nll": 0.4, f"{at}.test_ece": 0.1}
    return Record(Run(PROBLEM, level, seed=seed), {}, {}, finals, "", "", {})


RECORDS = [
    record(0.0, 0, last=(0.7, 1.0), best=(0.9, 0.5)),
    record(0.1, 0, last=(0.8, 0.9), best=(0.9, 0.4)),
    record(0.2, 0, last=(0.8, 0.6), best=(0.9, 0.4)),
    record(0.3, 0, last=(0.75, 0.1), best=(0.8, 0.1)),
]


def chosen(records):
    return {title: (pick.level, at) for title, [(pick, at)] in demo.summary(records).items()}


def test_each_row_chooses_by_validation_accuracy_then_loss_then_the_smaller_level():
    expected = {
        "plain training": (0.0, "last"),
        "plain + early stopping": (0.0, "best"),
        "flooding": (0.2, "last"),  # 0.1 and 0.2 tie in accuracy, 0.2 has the lower loss
        "flooding + early stopping": (0.1, "best"),  # 0.1 and 0.2 tie in both
        "chosen, 0 included": (0.2, "last"),
    }
    assert chosen(RECORDS) == chosen(RECORDS[::-1]) == expected
    better = [
        replace(
            RECORDS[0],
            metrics=RECORDS[0].metrics | {"last.val_accuracy": 0.8, "last.val_loss": 0.6},
        ),
        *RECORDS[1:],
    ]
    assert chosen(better)["chosen, 0 included"] == (0.0, "last")
    assert chosen(better)["flooding"] == (0.2, "last")


def test_test_data_and_clean_validation_labels_choose_nothing():
    names = ("test_accuracy", "test_accuracy_clean", "test_nll", "val_accuracy_clean")
    spoilt = []
    for r, value in zip(RECORDS, (0.0, 1.0, 0.3, 0.9), strict=True):
        metrics = dict(r.metrics)
        for name in (*names, "val_loss_clean"):
            metrics[f"last.{name}"] = metrics[f"best.{name}"] = value
        spoilt.append(replace(r, metrics=metrics))
    assert chosen(spoilt) == chosen(RECORDS)


def test_cells_are_mean_and_deviation_over_seeds_in_percent():
    picks = [
        (record(level, seed, (0.8, 0.5), (0.8, 0.5), test), "last")
        for level, seed, test in ((0.1, 0, 0.9), (0.3, 1, 0.8))
    ]
    assert demo.cells(picks) == [
        *("0.10\n0.30", "1.000\n±0.000", "0.50\n±0.00", "85.0\n±7.1"),
        *("85.0\n±7.1", "0.40\n±0.00", "0.100\n±0.000"),
    ]
    assert demo.cells(picks[:1])[3] == "90.0"


@pytest.mark.parametrize(
    ("plain", "flooded", "said"),
    [
        # Student's t of 20 and 22 points: 12.706 * 1.414 / sqrt(2) to either side.
        ([0.7, 0.71], [0.9, 0.93], "wins: +21.0 [+8.3, +33.7] points."),
        ([0.9, 0.93], [0.7, 0.71], "LOSES: -21.0 [-33.7, -8.3] points."),
        # A mean that its interval puts on both sides of 0 shows nothing.
        ([0.8, 0.7], [0.9, 0.9], "is not shown to differ: +15.0 [-48.5, +78.5] points."),
        ([0.9], [0.8], "is not tested, by one pair: -10.0 points."),
        ([0.9, 0.8], [0.9, 0.8], "ties in every pair: +0.0 [+0.0, +0.0] points."),
    ],
)
def test_the_verdict_follows_the_interval(plain, flooded, said):
    records = [record(0.0, n, (0.5, 1), (0.5, 1), value) for n, value in enumerate(plain)]
    records += [record(0.1, n, (0.5, 1), (0.5, 1), value) for n, value in enumerate(flooded)]
    text = demo.verdict(demo.summary(records))
    assert f"Against plain training, flooding's last epoch {said}" in text
    assert "auto level" not in text, "it was not trained"


def auto_record(seed, level, test):
    """A Record of a level that found itself: it ends at ``level``, at the test accuracy."""
    made = record(0.0, seed, (0.99, 0.1), (0.99, 0.1), test)
    metrics = dict(made.metrics) | {"last.level": level}
    return replace(made, run=Run(PROBLEM, Auto(), seed=seed), metrics=metrics)


def test_the_level_that_finds_itself_has_its_own_rows_and_is_in_no_other():
    rows = demo.summary([*RECORDS, auto_record(0, 0.123, 0.9)])
    assert {title: pick.level for title, [(pick, _)] in rows.items()} == {
        "plain training": 0.0,
        "plain + early stopping": 0.0,
        "flooding": 0.2,
        "flooding + early stopping": 0.1,
        "chosen, 0 included": 0.2,
        demo.AUTO: 0.123,
        "auto + early stopping": 0.123,
    }
    assert demo.cells(rows[demo.AUTO])[0] == "0.12"
    both = demo.summary([*RECORDS, *(auto_record(0, level, 0.9) for level in (0.121, 0.124))])
    assert demo.cells(both[demo.AUTO])[0] == "0.12", "equal texts stand once"
    text = demo.verdict(rows)
    assert "the auto level's last epoch is not tested, by one pair: +40.0 points." in text


def test_the_plan_is_the_public_demos_and_the_digits():
    sinusoid, digits = demo.plan()
    assert sinusoid.levels == (0.0, 0.26, 0.28)
    assert digits.levels == (0.0, 0.4, 0.7, 1.0)
    assert [len(task.runs) for task in (sinusoid, digits)] == [12, 15]
    splits = sinusoid.problem.splits(0)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [100, 100, 5_000]
    assert int((splits.train.y != splits.train.clean).sum()) == 10
    assert sinusoid.problem.max_epochs == 200
    public = demo_sinusoid(sgd).splits(0)
    assert torch.equal(public.train.x, splits.train.x), "the training examples are the same"
    model = sinusoid.problem.build(0)
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in model) == 4
    splits = digits.problem.splits(0)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [600, 300, 897]
    assert int((splits.val.y != splits.val.clean).sum()) == 60
    assert splits.test.clean is None
    # But for the labels and the curve it is the digits of the other experiments.
    alike = replace(digits.problem, data=DIGITS.data, test_curve=None)
    assert to_config(alike) == to_config(DIGITS)
    assert [task.seeds for task in demo.plan(quick=True)] == [(0,)] * 2


def test_only_what_is_drawn_is_measured():
    tasks = demo.plan()
    boundaries = [run for task in tasks for run in task.runs if run.problem.probe_inputs]
    assert [(run.level, run.seed) for run in boundaries] == [(0.0, 0), (0.26, 0), (0.28, 0)]
    for task in tasks:
        *levels, first, second, third = task.runs
        assert all(run.problem.test_curve == TestCurve(500, every=5) for run in levels)
        for run in (first, second, third):
            assert isinstance(run.level, Auto)
            assert (run.problem.probe_inputs, run.problem.test_curve) == (None, None)


def test_every_picture_is_drawn(tmp_path):
    quick = {"max_epochs": 6, "test_curve": TestCurve(50, every=2)}
    flat = partial(two_gaussians, n_train=40, n_val=30, n_test=200, dimension=2)
    network = partial(torch.nn.Linear, 2, 2)
    plane_problem = small(data=flat, model=network, probe_inputs=grid_2d, **quick)
    tasks = [demo.Task("one", plane_problem, (0.0, 0.3), (0, 1))]
    tasks.append(demo.Task("two", small(**quick), (0.0, 0.3), (0, 1)))
    records = [run_all(task.runs, ledger=False, workers=0) for task in tasks]
    files = demo.draw(tasks, records, tmp_path / "pictures")
    assert len(files) == len(set(files)) == 7
    assert all(
        file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000 for file in files
    )
    assert {"synth_loss.png", "synth_acc.png"} <= {file.name for file in files}


def test_splits_without_clean_test_labels_show_a_dash():
    x, y = torch.randn(30, 10, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    parts = [
        Split(x[:10], y[:10], 1 - y[:10]),
        Split(x[10:20], y[10:20], 1 - y[10:20]),
        Split(x[20:], y[20:]),
    ]
    task = demo.Task("own", small(data=Splits(*parts), max_epochs=2), (0.0, 0.3), (0,))
    rows = demo.summary(run_all(task.runs, ledger=False, workers=0))
    cells = demo.cells(rows["flooding"])
    assert cells[4] == "–"
    assert float(cells[3]) == pytest.approx(
        100 * rows["flooding"][0][0].metrics["last.test_accuracy"], abs=0.05
    )


def test_the_command_prints_tables_and_writes_its_page(flooding, monkeypatch, tmp_path):
    plan = demo.plan
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import fuzz

    # What it replaces is put back after the test.
    monkeypatch.setattr(demo, "plan", plan)
    monkeypatch.setattr(ishida2020, "cells", ishida2020.cells)
    fuzz.shorten_plans()
    code, out, err = flooding("demo --quick --json --report --out pictures --workers 0")
    assert code == 0, err
    said = json.loads(out)
    assert [task["title"].split(":")[0] for task in said["tasks"]] == [t.title for t in plan()]
    for task in said["tasks"]:
        assert list(task["rows"])[-2:] == [demo.AUTO, "auto + early stopping"]
        assert "Against plain early stopping, the auto level's last epoch" in task["result"]
    assert {Path(file).name for file in said["files"]} >= {"synth_loss.png", "report.html"}
    page = (tmp_path / "pictures" / "report.html").read_text()
    assert "Auto level, seed 0" in page
    answer = (
        r"flooding reaches [\d.]+ % test accuracy, the auto level [\d.]+ %, plain training [\d.]+ %"
    )
    assert re.search(answer, page)
