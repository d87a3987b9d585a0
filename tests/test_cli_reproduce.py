"""``flooding reproduce`` and ``flooding compare`` end to end, small; bad input ends with one
sentence."""

import re
import time
from dataclasses import replace
from functools import partial

import pytest
from typer.testing import CliRunner

from flooding import cli
from flooding.entries import EXPERIMENTS
from flooding.experiments import Experiment, ishida2020
from flooding.experiments.synthetic_cells import NOISES, TASKS, synthetic_cell
from flooding.models import mlp
from flooding.training.estimate import estimate
from flooding.training.problem import PeriodicMetric
from flooding.training.run import Run
from small import small

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))


def call(*words, code=0):
    result = RUNNER.invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def _tiny(monkeypatch):
    """A plan of two levels, two seeds and two epochs, of a small network."""
    plan = []
    for task, (_, inputs) in TASKS.items():
        model = partial(mlp, inputs, 2, width=8, depth=1)
        for noise in NOISES:
            cell = synthetic_cell(task, noise, (0.0, 0.3), (0, 1), 2)
            plan.append(replace(cell, problem=replace(cell.problem, model=model)))
    monkeypatch.setattr(ishida2020, "cells", lambda quick=False: plan)


def test_list_names_every_experiment_and_each_is_one():
    result = call("reproduce", "--list").output
    for entry in EXPERIMENTS:
        assert f"{entry.name}: " in result
        experiment = entry.load()
        assert isinstance(experiment, Experiment)
        assert experiment.name == entry.name
        assert callable(experiment.start)
        assert experiment.curves


@pytest.mark.usefixtures("_tiny")
def test_an_experiment_is_estimated_trained_written_looked_up_and_drawn_again(tmp_path):
    result = call("reproduce", "ishida2020", "--out", "first", "--workers", "0")
    assert re.search(r"about \d+ s for 36 trainings, \d+\.\d s each", result.stderr)
    first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert {
        "ishida2020.md",
        "ishida2020.npz",
        "ishida2020-levels.png",
        "ishida2020-clean.csv",
    } <= first.keys()
    assert "Found:" in result.stdout
    result = call("reproduce", "ishida2020", "--out", "second", "--workers", "0")
    assert "about" not in result.stderr, "nothing is left to train"
    second = {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    assert {n: b for n, b in first.items() if n[-4:] != ".npz"} == {
        n: b for n, b in second.items() if n[-4:] != ".npz"
    }


OWN_EXPERIMENT = """
from flooding import Run
from flooding.experiments import Experiment
from flooding.report.document import Report
from small import small

def start(quick, seeds):
    records = yield [Run(small(max_epochs=2), 0.1, seed=seed) for seed in seeds or (0, 1)]
    epochs = sum(len(record.curves["train_loss"]) for record in records)
    return Report("Mine", "About.", (), (f"{epochs} epochs, quick: {quick}.",))

EXPERIMENT = Experiment("mine", start, ("train_loss",))
"""


def test_an_experiment_of_ones_own_is_named_by_module_and_object(tmp_path, monkeypatch):
    (tmp_path / "my_module.py").write_text(OWN_EXPERIMENT)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("reproduce", "my_module:EXPERIMENT", "--quick", "--workers", "0")
    result = call(*words, "--out", "first")
    assert "6 epochs, quick: True." in result.stdout
    assert (tmp_path / "first" / "mine.md").read_text().startswith("# Mine")
    result = call(*words, "--from", "first/mine.npz", "--out", "second")
    assert " for " not in result.stderr, "everything is in the archive"
    assert "6 epochs, quick: True." in result.stdout


def test_an_estimate_counts_what_is_measured_now_and_then():
    asked = []

    def slow(model, problem, splits, name):
        asked.append(name)
        time.sleep(0.05)
        return {}

    plain = small(max_epochs=10)
    watched = [
        replace(plain, extra_metrics=PeriodicMetric(partial(slow, name=name), every=4))
        for name in "abc"
    ]
    # A sleep is at least as long as it says: at epochs 0, 4, 8 and 10 of each of the three.
    assert estimate([Run(problem) for problem in watched], 2) >= 3 * 4 * 0.05 / 2
    assert asked == ["a", "a"], "the others differ in their watch alone"


@pytest.mark.usefixtures("_tiny")
def test_an_archive_is_continued_without_its_ledger(tmp_path):
    result = call("reproduce", "ishida2020", "--seeds", 1, "--out", "first", "--workers", "0")
    assert " for 18 trainings" in result.stderr
    (tmp_path / "ledger.sqlite").unlink()
    archive = tmp_path / "first" / "ishida2020.npz"
    result = call(
        "reproduce", "ishida2020", "--from", archive, "--more", "--out", "second", "--workers", "0"
    )
    assert " for 18 trainings" in result.stderr, "one of two seeds was in the archive"
    call("reproduce", "ishida2020", "--overwrite", "--out", "whole", "--workers", "0")
    tables = [
        (tmp_path / folder / "ishida2020-clean.csv").read_text()
        for folder in ("second", "whole", "first")
    ]
    assert tables[0] == tables[1] != tables[2]
    call(
        "reproduce",
        "ishida2020",
        "--from",
        tmp_path / "second" / "ishida2020.npz",
        "--out",
        "third",
    )
    assert (tmp_path / "third" / "ishida2020.md").read_text() == (
        tmp_path / "second" / "ishida2020.md"
    ).read_text()


def test_from_the_level_benchmark_without_a_training(tmp_path, request):
    levels = request.path.parents[1] / "benchmarks" / "levels"
    result = call("reproduce", "ishida2020", "--seeds", 2, "--from", levels, "--out", "out")
    assert "training" not in result.stderr
    page = (tmp_path / "out" / "ishida2020.md").read_text()
    assert "n = 2" in page
    assert not (tmp_path / "out" / "ishida2020.npz").exists()
    assert not (tmp_path / "ledger.sqlite").exists()


def test_compare_on_ones_own_problem_that_cannot_describe_itself(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from functools import partial\n"
        "from flooding import Problem\n"
        "from flooding.data.synthetic import two_gaussians\n"
        "from flooding.models import mlp\n"
        "data = partial(two_gaussians, n_train=40, n_val=30, n_test=100)\n"
        "problem = Problem(data, lambda: mlp(10, 2, width=8, depth=1), max_epochs=3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = call("compare", "mine:problem", "--seeds", 2, "--workers", "0", "--out", "out")
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "AdaFlood" in page
    assert "dropout" not in page, "nobody knows where to put it in a network of the user's"
    assert "Best on the validation rows: " in result.stdout
    assert "dropout is left out: the network is not made by flooding.models.mlp" in result.stderr
    assert not (tmp_path / "out" / "compare.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce"], "needs an experiment: ishida2020"),
        (["reproduce", "nothing"], "must be one of ishida2020"),
        (
            ["reproduce", "nowhere:EXPERIMENT"],
            "must name something that can be imported, got nowhere:EXPERIMENT",
        ),
        (["reproduce", "math:pi"], "must be a flooding.experiments.Experiment, got a float"),
        (["reproduce", "bakeoff", "--more"], "Name it: --from NAME.npz"),
        (["reproduce", "ishida2020", "--from", "."], "which has none"),
        (["reproduce", "bakeoff", "--from", "nowhere.npz"], "must be a file of flooding reproduce"),
        (["reproduce", "bakeoff", "--from", "mine.npz"], "lacks"),
        (["compare", "nothing"], "task must be one of"),
        (["compare", "numbers.csv", "--target", "y"], "compare needs classes"),
        (["compare", "digits", "--target", "y"], "belongs to a table"),
    ],
)
def test_bad_input_ends_with_a_sentence(words, message, tmp_path, monkeypatch, capsys):
    from flooding import Run
    from flooding.testing import fake_record
    from flooding.training.archive import pack

    pack(tmp_path / "mine.npz", [fake_record(Run(small(), 0.1))], ("train_loss",), "here")
    rows = "\n".join(f"{n / 7},{n * n / 11}" for n in range(60))
    (tmp_path / "numbers.csv").write_text(f"x,y\n{rows}\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("sys.argv", ["flooding", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    result = " ".join(capsys.readouterr().err.split())
    assert message in result
    assert "Traceback" not in result
    assert sorted(path.name for path in tmp_path.iterdir()) == before
