"""``flooding find --save`` with averaged weights, and with the network of a single training."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from flooding import cli
from flooding.tabular import final_model, load_model
from flooding.tabular.final_model import select_network

FAST = ("--target", "y", "--epochs", "3", "--workers", "0")


@pytest.fixture
def flooding(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    rows = [f"{(i * 7) % 11 + 2 * (i % 2)},{'pos' if i % 2 else 'neg'}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y", *rows]) + "\n")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["flooding", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def calls(monkeypatch):
    """The calls of ``select_network``: what it was asked for, what it gave, what it trained."""
    calls = []

    def select(run, **options):
        call = SimpleNamespace(at=options["at"], trained=[])
        options["on_start"] = call.trained.extend
        call.final = select_network(run, **options)
        calls.append(call)
        return call.final

    monkeypatch.setattr(final_model, "select_network", select)
    return calls


@pytest.mark.parametrize(
    ("words", "at"),
    [
        ((), "best"),
        (("--at", "last"), "last"),
        (("--average", "ema"), "best_average"),
        (("--average", "mean", "--at", "average"), "average"),
        (("--average", "ema", "--at", "best"), "best"),
        (("--average", "ema", "--at", "best-average"), "best_average"),
    ],
    ids=" ".join,
)
def test_which_network_is_saved(flooding, tmp_path, calls, words, at):
    grid = ("--strategy", "grid", "--levels", "0.3")
    code, _, err = flooding("find", "a.csv", *FAST, *grid, *words, "--save", "model", "--quiet")
    assert code == 0, err
    assert "epochs" not in err  # nothing of the progress
    [call] = calls
    assert call.at == at
    saved = load_model(tmp_path / "model").network.state_dict()
    for name, tensor in call.final.weights.items():
        assert torch.equal(saved[name], tensor)
    about = json.loads((tmp_path / "model" / "model.json").read_text())["about"]
    assert about["network"] == call.final.choice.name
    assert "level 0.3" in call.final.candidates[-1].name
    assert ("averaged" in about["network"]) is at.endswith("average")


@pytest.mark.parametrize("words", [("--budget", "1"), ("--strategy", "auto")], ids=" ".join)
def test_one_training_is_all_that_its_network_costs(flooding, calls, words):
    code, out, err = flooding("find", "a.csv", *FAST, *words, "--save", "model")
    assert code == 0, err
    [call] = calls
    assert call.trained == []
    assert err.count("training 1 runs, 3 epochs") == 1
    assert "Plain training is not compared" in out
    # The ledger holds no weights: the same search again trains what it saves, and no more.
    code, out, err = flooding("find", "a.csv", *FAST, *words, "--save", "model")
    assert code == 0, err
    assert [type(run.level).__name__ for run in calls[1].trained] == ["Auto"]
    for name, tensor in calls[0].final.weights.items():
        assert torch.equal(calls[1].final.weights[name], tensor)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--at", "average"), "--at average needs averaged weights. Add --average ema"),
        (("--at", "best-average"), "--at best-average needs averaged weights"),
        (("--budget", "1", "--refit"), "got that of --budget 1. Leave --refit out"),
        (("--strategy", "auto", "--refit"), "got that of auto. Leave --refit out"),
        (("--strategy", "heuristic", "--refit"), "got that of heuristic. Leave --refit out"),
    ],
    ids=str,
)
def test_what_cannot_be_saved_is_refused_before_training(flooding, tmp_path, words, message):
    code, _, err = flooding("find", "a.csv", *FAST, *words, "--save", "model")
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
