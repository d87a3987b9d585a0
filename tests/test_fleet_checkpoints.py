"""A fleet that was cut off goes on from its checkpoints, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flooding import Run, run_all
from flooding.levels import Plateau
from flooding.training import checkpoints, fleet_jobs
from flooding.training.fleet import Fleet
from small import normed, small

# One Run ends before the others, so the fleet that is cut off is smaller than it was.
SCRIPT = """
import os, signal, sys
from flooding import run_all
from flooding.training import checkpoints
from test_fleet_checkpoints import runs

def kill(row):
    if row.epoch == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.INTERVAL, checkpoints._MAX_SHARE = 0.0, 1e9
run_all(runs(), ledger=sys.argv[1], workers=0, fleet=True, on_row=kill)
"""


def runs():
    """Dropout and batch norm: the generators and the buffers must go on as well."""
    shared = normed()
    levels = (None, 0.3, Plateau(0.35))
    return [Run(shared, level, seed=seed) for seed in (0, 1) for level in levels] + [
        Run(shared, 0.4, stop_epoch=2)
    ]


def hashes(records):
    return [record.content_hash for record in records]


@pytest.fixture
def trained_epochs(monkeypatch):
    """The epochs that fleets of this process train, with their size."""
    epochs = []

    class Counted(Fleet):
        def _train_epoch(self, epoch):
            epochs.append((epoch, len(self)))
            return super()._train_epoch(epoch)

    monkeypatch.setattr(fleet_jobs, "Fleet", Counted)
    return epochs


@pytest.fixture
def _every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE", 1e9)


def test_a_fleet_that_was_killed_goes_on_to_the_bit(tmp_path, trained_epochs):
    undisturbed = run_all(runs(), ledger=False, workers=0, fleet=True)
    assert [epoch for epoch, _ in trained_epochs] == [1, 2, 3, 4, 5, 6]
    trained_epochs.clear()
    ledger = tmp_path / "ledger.sqlite"
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ledger), "4"], env={**os.environ, "PYTHONPATH": here}
    )
    assert process.returncode == -signal.SIGKILL
    # It was killed at the first row of epoch 4, when the checkpoint was that of epoch 3.
    records = run_all(runs(), ledger=ledger, workers=0, fleet=True)
    assert trained_epochs == [(4, 6), (5, 6), (6, 6)]
    assert hashes(records) == hashes(undisturbed)
    assert not list(Path(f"{ledger}.checkpoints").glob("*-[3456].pt"))


@pytest.mark.usefixtures("_every_epoch")
def test_a_fleet_whose_checkpoints_were_half_written_goes_on_from_an_earlier_epoch(
    tmp_path, trained_epochs, monkeypatch
):
    undisturbed = run_all(runs(), ledger=False, workers=0, fleet=True)
    trained_epochs.clear()
    save, count = checkpoints.Checkpoints.save, []

    def cut_off(self, name, epoch, snapshot, **options):
        count.append(epoch)
        if count.count(4) == 3:
            raise KeyboardInterrupt
        return save(self, name, epoch, snapshot, **options)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", cut_off)
    ledger = tmp_path / "ledger.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run_all(runs(), ledger=ledger, workers=0, fleet=True)
    trained_epochs.clear()
    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    records = run_all(runs(), ledger=ledger, workers=0, fleet=True)
    assert trained_epochs == [(4, 6), (5, 6), (6, 6)]
    assert hashes(records) == hashes(undisturbed)


@pytest.mark.usefixtures("_every_epoch")
def test_runs_of_several_fleets_go_on_each_from_its_epoch(tmp_path, trained_epochs):
    shared = small()
    first, second = ([Run(shared, level, seed=s) for level in (None, 0.3)] for s in (0, 1))
    ledger = tmp_path / "ledger.sqlite"
    for part, last in ((first, 2), (second, 4)):

        def interrupt(row, last=last):
            if row.epoch == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_all(part, ledger=ledger, workers=0, fleet=True, on_row=interrupt)
    trained_epochs.clear()
    new = Run(shared, 0.2, seed=2)
    records = run_all([*first, *second, new], ledger=ledger, workers=0, fleet=True)
    # Each fleet had one whole checkpoint, that of the epoch before.
    ends = {size: [e for e, s in trained_epochs if s == size] for size in (1, 2)}
    assert ends == {1: [1, 2, 3, 4, 5, 6], 2: [4, 5, 6, 2, 3, 4, 5, 6]}
    assert hashes(records) == hashes([
        *run_all(first, ledger=False, workers=0, fleet=True),
        *run_all(second, ledger=False, workers=0, fleet=True),
        *run_all([new], ledger=False, workers=0, fleet=True),
    ])


@pytest.mark.usefixtures("_every_epoch")
def test_what_is_overwritten_begins_anew(tmp_path, trained_epochs):
    ledger = tmp_path / "ledger.sqlite"

    def interrupt(row):
        if row.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(runs(), ledger=ledger, workers=0, fleet=True, on_row=interrupt)
    trained_epochs.clear()
    run_all(runs(), ledger=ledger, workers=0, fleet=True, overwrite=True)
    assert trained_epochs == [(1, 7), (2, 7), (3, 6), (4, 6), (5, 6), (6, 6)]
