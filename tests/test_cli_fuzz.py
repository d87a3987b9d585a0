"""Some random argument vectors of ``benchmarks/fuzz.py``: no traceback, known exit codes, nothing
half-written."""

import os
import tempfile
from pathlib import Path

import pytest

from flooding.cli import _demo_report as demo
from flooding.experiments import ishida2020

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_random_arguments_end_with_a_known_exit_code_and_no_traceback(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fuzz

    for name in ("FLOODING_LEDGER", "TMPDIR"):
        monkeypatch.setenv(
            name, os.environ.get(name, str(tmp_path))
        )  # else fuzz would leave its own behind
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    monkeypatch.setattr(demo, "plan", demo.plan)
    monkeypatch.setattr(ishida2020, "cells", ishida2020.cells)
    monkeypatch.setattr(
        fuzz, "WEIGHTS", fuzz.WEIGHTS | {"compare": 0, "demo": 0, "reproduce": 0}
    )  # the long ones
    fuzz.shorten_plans()
    counts, _, faults = fuzz.fuzz(tmp_path, vectors=60, processes=0, seed=0)
    assert faults == [], capsys.readouterr().out
    assert counts.total() == 60
    assert {0, 2} <= {code for _, code in counts} <= fuzz.CODES


@pytest.mark.parametrize(
    ("code", "out", "err", "fault"),
    [
        (3, "", "", "exit code 3"),
        (None, "", "", "exit code None"),
        (1, "", "Traceback (most recent call last):", "a traceback"),
        (
            1,
            "",
            "error: unexpected KeyError: 1. If no code of your own is part of it, this is a bug.",
            "is a bug",
        ),
        (2, "", "", "no error message"),
        (2, "\x1b[31m", "error: ", "raw characters"),
        (0, "", "", "incomplete"),
        (2, "", "error: ", "half-written"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and len(value) < 20 else "",
)
def test_the_fuzz_sees_each_fault(tmp_path, monkeypatch, code, out, err, fault):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fuzz

    monkeypatch.chdir(tmp_path)
    Path("scratch").mkdir()
    Path("out/1").mkdir(parents=True)
    Path("out/1/table.csv").touch()
    faults = [*fuzz.faults_of(["find", "x"], 1, code, out, err, "")]
    assert any(fault in text for text in faults), faults
    Path("out/1/a.part").touch()
    assert any("left behind" in text for text in fuzz.faults_of(["find"], 1, 0, "", "", ""))
