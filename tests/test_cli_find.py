"""``flooding find`` and ``flooding predict``: tasks, modules and tables, and clear words for bad
input."""

import csv
import json
import re
import sys

import pytest

MODULE = """
from functools import partial
from flooding import Problem
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
data = partial(two_gaussians, n_test=50, label_noise=0.1)
problem = Problem(data, partial(mlp, 10, 2, width=16), max_epochs=10)
def make():
    return problem
other = 3
"""
OWN = """
from functools import partial
from torch import nn
from flooding import Problem
from flooding.data.synthetic import two_gaussians
class Net(nn.Linear):
    pass
problem = Problem(partial(two_gaussians, n_test=50), partial(Net, 10, 2), max_epochs=10)
def make():
    return problem
"""


def table(path, rows=60, target=lambda i: "yes" if i % 2 else "no"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["size", "colour", "income"])
        for i in range(rows):
            writer.writerow([(i * 7) % 11 + 2 * (i % 2), ["red", "blue", ""][i % 3], target(i)])


def test_a_task(flooding, tmp_path):
    # The network and the test split of digits are small.
    code, out, err = flooding("find digits --label-noise 0.05 --epochs 5 --workers 0 --out here")
    assert code == 0, err
    assert "flood level" in out or "train without flooding" in out
    assert "epochs" in err
    result = json.loads((tmp_path / "here" / "found.json").read_text())
    assert result["strategy"] == "finder"
    assert {"command.json", "found.json", "table.csv", "curves.npz", "search.png"} == {
        p.name for p in (tmp_path / "here").iterdir()
    }
    code, _, err = flooding("find digits --label-noise 0.05 --epochs 5 --workers 0 --out here")
    assert code == 0
    assert "training 1 runs" not in err  # everything is in the ledger
    assert "1 of 1 runs from the ledger" in err


# A worker must find each kind of module; what is read from the module is the same there.
@pytest.mark.parametrize(
    ("name", "workers"),
    [("mine_a:problem", 1), ("mine_b:make", 0), ("folder/mine_c.py:problem", 1)],
)
def test_a_problem_of_the_users(flooding, tmp_path, name, workers, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / (name.partition(":")[0].removesuffix(".py") + ".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(OWN)
    code, out, err = flooding(f"find {name} --strategy grid --levels 0,0.2 --workers {workers}")
    assert code == 0, err
    assert "(grid; 2" in out or "(grid; 1" in out


def test_a_table_its_model_and_predictions(flooding, tmp_path):
    table(tmp_path / "people.csv")
    code, out, err = flooding(
        "find people.csv --target income --epochs 8 --workers 0 --save model "
        "--score balanced-accuracy"
    )
    assert code == 0, err
    assert "Assumed of people.csv" in out
    assert "income" in out
    assert "score" in out
    assert "plain training, early stopping" in out
    assert "kept" in out
    code, out, err = flooding("predict model people.csv --out answers.csv")
    assert code == 0, err
    with (tmp_path / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {row["income"] for row in rows} <= {"yes", "no"}
    code, out, _ = flooding("predict model people.csv")
    assert code == 0
    assert out.split()[0] == "income"


def test_a_number_is_found_by_its_squared_error(flooding, tmp_path):
    table(tmp_path / "people.csv", target=lambda i: i * 1.5 + 0.25)
    code, out, err = flooding("find people.csv --target income --epochs 5 --workers 0 --save model")
    assert code == 0, err
    assert "accuracy" not in out.split("estimate")[0].split("Assumed")[-1].split("level")[-1]
    assert (
        "standardised target; for squared errors of income itself" in out
        or "train without flooding" in out
    )
    assert "root mean squared error" in out
    code, out, _ = flooding("predict model people.csv")
    assert out.split()[0] == "income"


def test_none_among_the_levels_is_plain_training_and_0_a_level(flooding):
    code, out, err = flooding(
        "find digits --epochs 2 --workers 0 --strategy grid --levels 0.2,none,0,-1"
    )
    assert code == 0, err
    rows = re.findall(r"(\S+) 0 2 0\.\d", out)  # level, seed 0, 2 epochs, accuracy
    assert rows == ["none", "-1", "0", "0.2"]


@pytest.mark.parametrize(
    "strategy",
    [
        "halving --levels 0,0.2,0.4",
        "backward --levels 0.1,0.2",
        "heuristic",
        "accordance",
        "tpe --trainings 2",
    ]
    + ["policy-gradient --trainings 2", "range-test"],
)
def test_every_strategy(flooding, strategy):
    code, out, err = flooding(f"find digits --epochs 4 --workers 0 --strategy {strategy}")
    assert code == 0, err
    assert strategy.split()[0].replace("-", " ") in out.replace("-", " ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("find two-gaussian", "Did you mean two-gaussians?"),
        ("find digits --target x", "--target belongs to a table"),
        ("find people.csv", "Add --target NAME"),
        ("find people.csv --target incme", "income"),
        ("find people.csv --target income --label-noise 0.1", "belongs to a built-in task"),
        (
            "find people.csv --target income --kind ranking",
            "'ranking' is not one of 'classification', 'regression'",
        ),
        ("find missing.csv --target income", "missing.csv"),
        ("find mine:nothing", "must name something that can be imported"),
        ("find nowhere:problem", "must name something that can be imported"),
        ("find mine:other", "must be a flooding.Problem"),
        ("find mine:problem --label-noise 0.1", "belongs to a built-in task"),
        ("find digits --save model", "save needs a table"),
        (
            "find digits --score recall",
            "'recall' is not one of 'accuracy', 'balanced-accuracy', 'loss'",
        ),
        ("find digits --strategy magic", "strategy must be one of"),
        ("find digits --levels 0,x", "levels must be numbers"),
        (
            "find digits --strategy grid --levels none,none",
            "levels must be finite, different and at least one",
        ),
        ("find digits --strategy grid --levels none,", "levels must be numbers"),
        ("find digits --levels 0,1", "--levels belongs to grid, halving and backward"),
        ("find digits --budget 0.5", "budget must be 1 or above 1"),
        ("find digits --trainings 5", "--trainings belongs to policy-gradient and tpe"),
        ("find digits --strategy grid --budget 5", "--budget belongs to finder"),
        ("find digits --device cuda:77", "device must be there"),
        ("find numbers.csv --target income --score accuracy", "accuracy needs classes"),
        (
            "find people.csv --target income --save full",
            "folder must be new or hold a saved model alone",
        ),
        ("find people.csv --target income --save x --out x", "must be different folders"),
        ("find spiral --label-noise 2", "label_noise must lie in"),
        ("find digits --out people.csv/x", "must not be, or lie below, a file"),
        ("find digits --strategy tpe --seeds 3", "takes one seed, got 3"),
        ("predict nothing people.csv", "Give the folder that flooding find --save wrote"),
        ("predict nothing people.csv --out full", "out must be a file, got the folder"),
        ("find constant.csv --target income", "must vary"),
        ("find one.csv --target income", "at least 2 classes"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_writes_nothing(flooding, tmp_path, line, message):
    table(tmp_path / "people.csv")
    table(tmp_path / "one.csv", target=lambda i: "yes")
    table(tmp_path / "numbers.csv", target=lambda i: i + 0.5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "constant.csv").write_text("size,income\n" + "1,yes\n1,no\n" * 30)
    (tmp_path / "mine.py").write_text(MODULE)
    sys.modules.pop("mine", None)
    before = {path.name for path in tmp_path.iterdir()}
    code, _, err = flooding(f"{line} --workers 0" if line.startswith("find") else line)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    left = {path.name for path in tmp_path.iterdir()} - before - {"__pycache__"}
    assert not left or left <= {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"}
