"""The paper's table by fleets on a GPU, cut down to a CPU."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from functools import partial
from importlib import util
from pathlib import Path

import pytest

from flooding.models import mlp

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "fleet.py"


@pytest.fixture
def script(monkeypatch):
    """The script, with cells of a small network and two epochs."""
    spec = util.spec_from_file_location("gpu_fleet", SCRIPT)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plan = []
    for cell in module.cells(quick=True)[:2]:
        data = partial(cell.problem.data.func, **{**cell.problem.data.keywords, "n_test": 50})
        problem = replace(cell.problem, data=data, model=partial(mlp, 10, 2, width=8, depth=1))
        plan.append(replace(cell, problem=replace(problem, max_epochs=2)))
    monkeypatch.setattr(module, "cells", lambda: plan)
    monkeypatch.setattr(module, "product_speed", lambda device: 1e9)
    before = signal.getsignal(signal.SIGALRM)
    yield module
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(script, tmp_path, *words):
    script.main(["--device", "cpu", "--ledger", str(tmp_path / "gpu.sqlite"), *words])


def test_quick_trains_two_cells_and_the_same_command_looks_them_up(script, tmp_path, capsys):
    call(script, tmp_path, "--quick")
    printed = capsys.readouterr().out
    assert len(re.findall(r"2 of 2 runs trained in .* FLOP/s", printed)) == 2
    assert "done in" in printed
    call(script, tmp_path, "--quick")
    assert capsys.readouterr().out.count("0 of 2 runs trained") == 2


def test_the_operations_of_a_step_are_those_of_its_products(script):
    problem = script.cells()[0].problem
    # 100 examples; 10 x 8 and 8 x 2 weights: forward, gradients of both, gradient of the hidden.
    assert script.step_flops(problem) == 2 * 100 * (80 + 16 + 80 + 16 + 16)


class Archive:
    """Records that are 0.5 points below those of the script, made of its own."""

    def __init__(self, folder):
        self.ledger = None

    def __contains__(self, run):
        return True

    def __call__(self, runs):
        from flooding import run_all

        (record,) = run_all(runs, ledger=False, fleet=True, workers=0)
        metrics = dict(record.metrics)
        metrics["last.test_accuracy"] -= 0.005
        return [replace(record, metrics=metrics)]


def test_accuracies_stand_beside_the_archive(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "LevelBenchmark", Archive)
    call(script, tmp_path, "--cells", "0", "--seeds", "0", "1")
    printed = capsys.readouterr().out
    assert re.search(
        r"accuracy minus the archive's \+0\.[45] \[.*\] points, largest 0\.\d", printed
    )
    assert "of the chosen levels +0.5" in printed
    assert "(n = 2 seeds)" in printed
