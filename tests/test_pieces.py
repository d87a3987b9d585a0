"""The protocols at full scale, cut down: a piece may end anywhere, the next goes on, the last
writes the page."""

import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.training.archive import Archive, run_id
from flooding.training.config import is_hashable
from flooding.training.jobs import is_picklable


@pytest.fixture
def pieces(monkeypatch):
    """The script, its MNIST small and short."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "gpu")
    import pieces

    tiny = (partial(two_gaussians, n_test=100), 40, 30, partial(mlp, 10, 2, width=16, depth=1))
    monkeypatch.setattr(pieces, "IMAGES", {**pieces.IMAGES, "mnist": tiny})
    monkeypatch.setattr(pieces, "PAPER_EPOCHS", 12)
    before = signal.getsignal(signal.SIGALRM)
    yield pieces
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(pieces, monkeypatch, capsys, folder, *words):
    given = ["pieces.py", "mnist", "--workers", "0", "--device", "cpu", "--ledger"]
    monkeypatch.setattr(sys, "argv", [*given, str(folder / "mnist.sqlite"), *words])
    pieces.main()
    return capsys.readouterr().out


def test_a_piece_ends_the_next_goes_on_and_the_last_writes_the_page(
    pieces, monkeypatch, capsys, tmp_path
):
    undisturbed = call(pieces, monkeypatch, capsys, tmp_path / "whole")
    run_all, seen = pieces.run_all, []

    def short(runs, *, on_row, **how):
        def row(told):
            seen.append(told)
            on_row(told)
            if len(seen) in {30, 90}:
                signal.raise_signal(signal.SIGALRM)

        return run_all(runs, on_row=row, **how)

    monkeypatch.setattr(pieces, "run_all", short)
    first, second, third = (call(pieces, monkeypatch, capsys, tmp_path / "cut") for _ in range(3))
    for told in (first, second):
        assert "time is up; the same command goes on from here" in told
        assert "written" not in told
    assert "time is up" not in third
    assert "written mnist.md" in third
    pages = [tmp_path / folder / "mnist-page" for folder in ("whole", "cut")]
    tables = [{path.name: path.read_text() for path in page.glob("*.csv")} for page in pages]
    assert tables[0] == tables[1]
    assert {
        "mnist-last.csv",
        "mnist-stopped.csv",
        "mnist-finder.csv",
        "mnist-levels.csv",
    } <= tables[0].keys()
    finished = [
        int(told.split(" runs finished")[0].split()[-1])
        for told in (undisturbed, first, second, third)
    ]
    assert finished[0] == sum(finished[1:]), "what was finished is not trained again"
    assert finished[1] > 0
    again = call(pieces, monkeypatch, capsys, tmp_path / "cut")
    assert ": 0 epochs in " in again


def test_a_part_has_an_archive_of_its_own(pieces, monkeypatch, capsys, tmp_path):
    told = call(
        pieces,
        monkeypatch,
        capsys,
        tmp_path,
        "--levels",
        "0",
        "0.1",
        "--epochs",
        "5",
        "--seeds",
        "3",
        "4",
    )
    assert "4 of 4 runs are finished" in told
    assert "written" not in told
    assert not (tmp_path / "mnist.npz").exists()
    part = Archive(tmp_path / "mnist-part.npz")
    assert (len(part), part.seeds) == (4, (3, 4))
    with np.load(tmp_path / "mnist-part.npz") as file:
        assert file["ends/train_loss/float32"].tolist() == [6, 12, 18, 24]


def test_every_protocol_plans_what_its_text_says_and_can_go_on(pieces, monkeypatch):
    monkeypatch.undo()
    for protocol in pieces.PROTOCOLS:
        monkeypatch.setattr(sys, "argv", ["pieces.py", protocol])
        runs = next(pieces.whole(pieces.options()))
        published = protocol == "cifar10-resnet44"
        levels = {round(0.01 * n, 2) for n in range(11)} | ({0.2} if published else set())
        assert {run.level for run in runs} == levels
        assert {(run.epochs, run.seed) for run in runs} == {(500, 0)}
        assert {r.problem.optimizer.keywords["lr"] for r in runs} == (
            {0.1, 0.001} if published else {0.1}
        )
        assert all(is_hashable(run) for run in runs), (
            "else neither ledger nor checkpoints know them"
        )
        assert all(is_picklable(run) for run in runs), "else they train one after another"
        grey = protocol.endswith("mnist")
        pixels = torch.zeros(2, 1 if grey else 3, *([28, 28] if grey else [32, 32]))
        pixels = pixels.byte() if published else pixels
        assert runs[0].problem.build(0)(pixels).shape == (2, 100 if protocol == "cifar100" else 10)


def test_a_part_is_one_of_its_protocol(pieces, monkeypatch, capsys):
    def runs(*words):
        monkeypatch.setattr(sys, "argv", ["pieces.py", "cifar10-resnet44", *words])
        given = pieces.options()
        return next((pieces.part if given.is_part else pieces.whole)(given))

    names = {run_id(run) for run in runs("--reduced")}
    assert {run_id(run) for run in runs("--reduced", "--epochs", "80")} == names
    slow = runs("--reduced", "--rates", "0.001")
    assert {run.level for run in slow} == {0.0, 1.6, 1.65, 1.7, 1.8}
    assert {run_id(run) for run in slow} < names
    assert {run.stop_epoch for run in runs("--epochs", "80", "--levels", "0.2")} == {80}
    monkeypatch.setattr(sys, "argv", ["pieces.py", "mnist", "--rates", "0.1"])
    with pytest.raises(SystemExit):
        pieces.options()
    assert "are for cifar10-resnet44" in capsys.readouterr().err
