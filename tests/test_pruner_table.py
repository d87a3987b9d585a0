"""The tables of pruners on the pages of Optuna and Ray Tune are those of the stored searches."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "pruners.py"


@pytest.fixture(scope="module")
def pruners():
    spec = importlib.util.spec_from_file_location("pruners", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_show_the_stored_searches(pruners):
    lines = [json.loads(line) for line in pruners.RESULTS.read_text().splitlines()]
    for tool, page in pruners.PAGES.items():
        assert pruners.draw(lines, tool) in page.read_text(), "run: python benchmarks/pruners.py"


def test_a_pruned_trial_counts_where_it_would_have_won(pruners):
    ends = {0.1: 3.0, 0.2: 1.0, 0.3: 2.0, 0.4: 1.5}
    curves = {level: pruners.Curve([9.0, end], 2) for level, end in ends.items()}
    judged = pruners.judge(curves, {0.1: 2, 0.2: 1, 0.3: 2, 0.4: 1}, {0.2, 0.4})
    assert judged == {
        "trials": 4,
        "pruned": 2,
        "would_have_won": 2,
        "given_away": 1.0,
        "lost_the_best": True,
        "trainings": round(6 / pruners.EPOCHS, 2),
    }
    kept = pruners.judge(curves, {}, {0.1})
    assert (kept["would_have_won"], kept["lost_the_best"], kept["given_away"]) == (0, False, 0.0)


def test_reports_can_be_counted_from_the_first_flooded_epoch(pruners):
    curve = pruners.Curve([5.0, 4.0, 3.0], 2)
    assert curve.reports(since=False) == [(0, 5.0), (1, 4.0), (2, 3.0)]
    assert curve.reports(since=True) == [(0, 4.0), (1, 3.0)]
