"""An archive gives Records back: finals exactly, curves in float16 or exactly, found by what
describes the Run."""

import re
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flooding import Run
from flooding.levels import Delayed, Warmup
from flooding.report.provenance import machine
from flooding.tasks import adam, demo_sinusoid
from flooding.testing import fake_record
from flooding.training.archive import Archive, pack, run_id, to_half, with_fallback
from small import small

PROBLEM = small(max_epochs=30)
RUNS = [
    Run(PROBLEM, 0.1),
    Run(PROBLEM, None, seed=1),
    Run(PROBLEM, 0.2, stop_epoch=10),
    Run(PROBLEM, Delayed(0.1, 1e-4)),
]
KEEP = ("train_loss", "val_loss", "level", "nobody_has_it")


@pytest.fixture
def archive(tmp_path):
    records = [fake_record(run) for run in RUNS]
    path = pack(
        tmp_path / "a.npz",
        records,
        KEEP,
        "a machine",
        is_exact=lambda run: run.stop_epoch is not None,
    )
    return records, Archive(path)


def test_records_come_back_in_any_order(archive):
    records, held = archive
    assert len(held) == 4
    for order in ([0, 1, 2, 3], [3, 1], [2, 2]):
        for place, found in zip(order, held([RUNS[i] for i in order]), strict=True):
            assert found.run is RUNS[place]
            known = {n: v for n, v in records[place].metrics.items() if not np.isnan(v)}
            assert found.metrics == known
            assert found.metadata["on"] == "a machine"
            assert found.curves.keys() == records[place].curves.keys() & set(KEEP)


def test_curves_are_rounded_unless_they_are_wanted_exactly(archive):
    records, held = archive
    for record, found in zip(records, held(RUNS), strict=True):
        for name, curve in found.curves.items():
            assert curve.dtype == np.float32
            assert len(curve) == found.run.epochs + 1
            if found.run.stop_epoch is not None:
                np.testing.assert_array_equal(curve, record.curves[name])
            else:
                np.testing.assert_allclose(curve, record.curves[name], rtol=2**-11, atol=2**-25)
    rounded = held([RUNS[0]])[0].curves["train_loss"]
    assert (rounded != records[0].curves["train_loss"]).any(), "the other kind is really rounded"


@pytest.mark.parametrize(
    "other",
    [
        Run(PROBLEM, 0.3),
        Run(PROBLEM, 0.1, seed=2),
        Run(replace(PROBLEM, batch_size=7), 0.1),
        Run(PROBLEM, 0.2),
        Run(PROBLEM, Delayed(0.1, 1e-3)),
    ],
    ids=["level", "seed", "problem", "until", "controller"],
)
def test_another_run_is_missing(archive, other):
    assert RUNS[0] in archive[1]
    assert other not in archive[1]
    with pytest.raises(ValueError, match="lacks 1 of 2 runs"):
        archive[1]([RUNS[0], other])


def test_an_archive_grows_by_what_it_lacks_and_each_run_keeps_where_it_was_trained(
    archive, tmp_path
):
    _, held = archive
    assert held.seeds == (0, 1)
    asked, wanted = [], [Run(PROBLEM, 0.3, seed=4), RUNS[1], Run(PROBLEM, 0.4, seed=2), RUNS[0]]

    def train(runs):
        asked.append(runs)
        return [fake_record(run) for run in runs]

    records = with_fallback(held, train)(wanted)
    assert asked == [[wanted[0], wanted[2]]]
    assert [record.run for record in records] == wanted
    grown = Archive(pack(tmp_path / "b.npz", records, KEEP, "another machine"))
    assert grown.seeds == (0, 1, 2, 4)
    told = [record.metadata["on"] for record in grown(wanted)]
    assert told == ["another machine", "a machine", "another machine", "a machine"]
    for before, after in zip(held(RUNS[:2]), grown(RUNS[:2]), strict=True):
        assert before.metrics == after.metrics
        for name, curve in before.curves.items():
            np.testing.assert_array_equal(
                after.curves[name], curve
            )  # rounding twice is rounding once


def test_equal_runs_have_one_name_and_one_place(tmp_path):
    twin = Run(small(max_epochs=30), 0.1)
    assert run_id(twin) == run_id(RUNS[0])
    assert (
        len(Archive(pack(tmp_path / "a.npz", [fake_record(RUNS[0]), fake_record(twin)], KEEP, "")))
        == 1
    )


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    for content in (b"", b"not a zip"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="an archive must be a file of flooding reproduce"):
            Archive(path)
    np.savez(path, something=np.ones(3))
    with pytest.raises(ValueError, match="an archive must be"):
        Archive(path)
    with pytest.raises(ValueError, match="an archive must be"):
        Archive(tmp_path / "nowhere.npz")


@given(arrays(np.float32, 8, elements=st.floats(width=32, allow_infinity=True, allow_nan=True)))
def test_rounding_keeps_what_is_stated(curve):
    half, known = to_half(curve), np.isfinite(curve)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half[~known], curve[~known])
    cut = np.clip(curve[known].astype(np.float64), -65504, 65504)
    assert (np.abs(half[known] - cut) <= 2.0**-11 * np.abs(cut) + 2.0**-25).all()


def test_a_run_that_cannot_describe_itself_has_no_name():
    with pytest.raises(TypeError, match="code of your own, which cannot be hashed"):
        run_id(Run(small(model=partial(lambda: None))))


def test_the_code_is_named_with_the_machine(monkeypatch):
    machine.cache_clear()
    assert re.search(r", torch [^,]+, flooding [0-9a-f.]+\+?$", machine())
    machine.cache_clear()
    monkeypatch.setenv("PATH", "")  # no git
    assert machine().endswith(f", flooding {version('flooding')}")
    machine.cache_clear()


def test_an_archive_of_0_1_0_answers():
    # Written by 0.1.0's pack from make_up(run) of these Runs; one optimiser equals the default.
    problem = replace(demo_sinusoid(adam), max_epochs=4)
    default = replace(problem, optimizer=partial(torch.optim.Adam, lr=1e-3))
    runs = [
        Run(problem, 0.1),
        Run(problem, Warmup(0.2, steps=4, num_steps=2), stop_epoch=3),
        Run(default, None, seed=1),
    ]
    old_archive = Archive(Path(__file__).parent / "archive_0_1_0.npz")
    assert [record.run for record in old_archive(runs)] == runs
    assert [record.metrics["epochs"] for record in old_archive(runs)] == [4, 3, 4]
    assert Run(problem, 0.2) not in old_archive
