"""``flooding compare``: one table ranked on the validation rows, a sentence and a picture."""

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from flooding import cli
from flooding.cli import _console
from flooding.experiments import bakeoff
from flooding.level_search.driver import run_generator
from flooding.metrics import balanced_accuracy
from flooding.models import mlp
from flooding.report import stats
from flooding.report.method_ranking import MeasuredScore, rank_methods
from flooding.testing import fake_record
from flooding.training.problem import Score
from small import small

ACCURACY = MeasuredScore("accuracy %", "accuracy", 100.0, 1, "points")
PROBLEM = small(
    model=partial(mlp, 10, 2, width=16, depth=2),
    max_epochs=20,
    optimizer=partial(torch.optim.Adam, lr=1e-2),
)
FAST = ("--epochs", "2", "--seeds", "2", "--workers", "0")


@pytest.fixture
def flooding(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    lines = ["x,[b]"]
    for i in range(60):
        lines.append(f"{(i * 7) % 11 + 2 * (i % 2)},{'[/]' if i % 2 else 'b'}")
    (tmp_path / "a[1].csv").write_text("\n".join(lines))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["flooding", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return end.value.code or 0, captured.out, captured.err

    yield call
    _console.set_output()


def compare(flooding, *words):
    return flooding("compare", "a[1].csv", "--target", "[b]", *FAST, *words)


# The command


def test_one_table_one_sentence_and_one_picture(flooding, tmp_path):
    methods = "plain,early-stopping,flooding,flooding-early-stopping"
    code, out, err = compare(flooding, "--methods", methods, "--save", "model")
    assert code == 0, err
    names = ["plain", "early stopping", "flooding", "flooding + early stopping"]
    ranked = out[out.index("Ranked on") :]
    assert all(f" {name} " in ranked for name in names)
    assert ranked.count("Best on the validation rows") == 1
    folder = tmp_path / "flooding-compare"
    assert {path.name for path in folder.iterdir()} == {
        "command.json",
        "compare.md",
        "compare-ranking.csv",
        "compare-ranking.png",
        "compare.npz",
    }
    page = (folder / "compare.md").read_text()
    assert page.startswith("# Methods on a[1].csv\n")
    assert page.count("![") == 1
    # The winner predicts.
    assert f"in {tmp_path}/model: flooding predict model new.csv" in out
    about = json.loads((tmp_path / "model" / "model.json").read_text())["about"]
    assert f"Best on the validation rows: {about['network']}." in out
    code, out, err = flooding("predict", "model", "a[1].csv")
    assert (code, out.splitlines()[0]) == (0, "[b]"), err
    # The same command again takes everything from the ledger, another one is refused.
    code, _, err = compare(flooding, "--methods", methods, "--save", "model")
    assert code == 0, err
    code, _, err = compare(flooding, "--methods", "plain", "--save", "model")
    assert code == 2
    assert "replace the model: --force" in err


def test_the_archive_rounds_what_no_finder_reads(flooding, tmp_path):
    code, _, err = compare(flooding, "--methods", "plain,label-smoothing")
    assert code == 0, err
    with np.load(tmp_path / "flooding-compare" / "compare.npz") as arrays:
        ends = {kind: arrays[f"ends/val_loss/{kind}"] for kind in ("float32", "float16")}
    counts = {kind: int((np.diff(e, prepend=0) > 0).sum()) for kind, e in ends.items()}
    # Of each of two seeds: plain training, and four settings.
    assert counts == {"float32": 2, "float16": 8}


@pytest.mark.parametrize(
    ("score", "title"),
    [("loss", "validation loss"), ("balanced-accuracy", "validation balanced accuracy %")],
)
def test_the_score_ranks(flooding, score, title):
    words = ("--methods", "plain,early-stopping", "--score", score)
    code, out, err = compare(flooding, *words)
    assert code == 0, err
    assert all(word in out for word in title.split())
    code, out, _ = compare(flooding, *words, "--json")
    ranking = json.loads(out)
    values = [np.mean(row["validation"]) for row in ranking["ranking"]]
    assert values == sorted(values, reverse=score != "loss")
    assert ranking["score"] == title.removeprefix("validation ")


def test_what_is_not_installed_is_left_out_with_a_line(flooding, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    missing = {"pytorch_optimizer", "matplotlib"}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in missing else found(name, *more),
    )
    code, out, err = compare(flooding, "--methods", "plain,sam,early-stopping")
    assert code == 0, err
    [line] = [line for line in err.splitlines() if line.startswith("SAM is left out")]
    assert "pytorch_optimizer is not installed. Run pip install " in line
    assert "[sam]'" in line
    assert "no picture: matplotlib is not installed" in err
    assert not (tmp_path / "flooding-compare" / "compare-ranking.png").exists()
    assert " plain " in out
    code, _, err = compare(flooding, "--methods", "sam")
    assert code == 2
    assert "no method is left of sam" in err


def test_without_scipy_the_difference_is_untested(monkeypatch):
    def missing(*_):
        raise ImportError("no scipy")

    monkeypatch.setattr(stats, "paired", missing)
    sentence = ranking(lambda run: (0.7, 0.7)).sentence
    assert "untested, since scipy is not installed" in sentence


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "plane"), "Did you mean plain?"),
        (("--methods", "plain,,sam"), "methods must be one of plain, early-stopping"),
        (("--methods", ""), "methods must be one of"),
        (("--device", "cuda:77"), "device must be there"),
        (("--score", "recall"), "'recall' is not one of"),
        (("--save", "full"), "folder must be new or hold a saved model alone"),
        (("--save", "x", "--out", "x"), "must be different folders"),
        (("--out", "a[1].csv/x"), "must not be, or lie below, a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused_before_anything_is_trained(flooding, tmp_path, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    code, _, err = compare(flooding, *words)
    assert code == 2
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a[1].csv", "full"]


def test_a_task_has_no_table_to_save(flooding):
    code, _, err = flooding("compare", "spiral", *FAST, "--save", "model")
    assert code == 2
    assert "save needs a table" in err


# The ranking


def records(runs, worth):
    """Made-up Records whose validation and test accuracy is ``worth(run)``."""
    answers = []
    for run in runs:
        record, (val, test) = fake_record(run), worth(run)
        curves = dict(record.curves) | {"val_accuracy": np.full(run.epochs + 1, val, np.float32)}
        metrics = dict(record.metrics)
        for at in ("last", "best"):
            metrics |= {f"{at}.val_accuracy": val, f"{at}.val_loss": 0.5}
            metrics |= {f"{at}.test_accuracy": test, f"{at}.test_nll": 0.25}
            metrics |= {f"{at}.val_score": 1 - val, f"{at}.test_score": 1 - test}
            metrics.pop(f"{at}.test_accuracy_clean", None)
        answers.append(replace(record, curves=curves, metrics=metrics))
    return answers


def ranking(worth, methods=("plain", "early stopping", "SAM"), score=ACCURACY, problem=PROBLEM):
    study = bakeoff.train_methods({"a": (problem, 2)}, (0, 1, 2), methods)
    (results, _), _ = run_generator(study, lambda runs: records(runs, worth))
    return rank_methods(results, score)


def test_validation_ranks_and_test_results_do_not():
    def worth(run):
        is_sam = hasattr(run.method, "rho")
        return (0.9 if is_sam else 0.6), (0.5 if is_sam else 0.95) + 0.001 * run.seed

    result = ranking(worth)
    assert [row.name for row in result.rows] == ["SAM", "plain", "early stopping"]
    assert result.winner.test == pytest.approx([50, 50.1, 50.2])
    assert result.winner.trainings == 4
    assert result.sentence.startswith("Best on the validation rows: SAM. ")
    assert "is -45.0 [-45.0, -45.0] points from that of early stopping" in result.sentence
    assert "more than chance explains" in result.sentence


def test_of_equals_the_first_is_first_and_is_compared_with_the_next():
    result = ranking(lambda run: (0.7, 0.7))
    assert [row.name for row in result.rows] == ["plain", "early stopping", "SAM"]
    assert "from that of early stopping, a difference that chance explains" in result.sentence


def test_a_single_method_is_compared_with_nothing():
    result = ranking(lambda run: (0.7, 0.7), methods=("early stopping",))
    assert result.sentence == "Best on the validation rows: early stopping."
    assert [row["rank"] for row in result.cells()] == ["1"]


def test_a_score_of_which_less_is_better_ranks_the_other_way():
    problem = replace(PROBLEM, score=Score(balanced_accuracy, greater_is_better=False))

    def worth(run):
        return (0.9 if hasattr(run.method, "rho") else 0.6), 0.5

    score = MeasuredScore("error", "score", 1.0, 3, "")
    result = ranking(worth, score=score, problem=problem)
    assert result.winner.name == "SAM"
    assert result.winner.validation == pytest.approx([0.1] * 3)


def test_without_flooding_no_finder_is_trained():
    asked = []

    def ask(runs):
        asked.append(len(runs))
        return records(runs, lambda run: (0.7, 0.7))

    run_generator(bakeoff.train_methods({"a": (PROBLEM, 2)}, (0, 1), ["plain", "SAM"]), ask)
    assert asked == [2 * (1 + 4)]


def test_missing_test_rows_are_dashes():
    result = ranking(lambda run: (0.7, float("nan")), methods=("plain", "early stopping"))
    assert [row["test accuracy %"] for row in result.cells()] == ["–", "–"]
    assert result.sentence == "Best on the validation rows: plain."
