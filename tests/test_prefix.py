"""Prefix sharing and checkpoints: such Runs are bit-identical to training alone."""

import functools
import io
import math
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

from flooding import Run, run_all, train
from flooding.levels import Delayed, Heuristic, Plateau, Range, Warmup
from flooding.methods import SAM, Hinge, IFlood, SoftAD, WaveBound
from flooding.training import loop
from flooding.training.checkpoints import Checkpoints, CheckpointTimer
from flooding.training.jobs import ForkReady, Job, run_shared_prefix
from flooding.training.loop import EpochResult
from flooding.training.messages import batched
from flooding.training.prefix import SharedPrefix, can_share
from flooding.training.problem import TestCurve
from flooding.training.runner import run_key
from small import noisy, normed, regression, small

GRID = [0.05 * n for n in range(26)]
CONTROLLERS = [
    Delayed(0.2, until_loss=0.4),
    Delayed(0.2, until_accuracy=0.9),
    Warmup(0.4, 12),
    Heuristic(until_loss=0.5),
    Plateau(0.2),
    Range(0.7, 0.0, 40),
]


def alone(run):
    *_, row = train(run)
    return row


def check(runs, whole=None, **options):
    """Compare shared Runs with Runs alone, bit for bit; return the share of steps that was
    taken. ``whole`` are the last rows of Runs alone."""
    whole = whole or [alone(run) for run in runs]
    weights = {}

    def on_row(row):
        if row.weights is not None:
            weights[id(row.run)] = row.weights["last"]

    records = run_all(runs, on_row=on_row, **{"ledger": False, "workers": 0} | options)
    for run, record, row in zip(runs, records, whole, strict=True):
        assert record.content_hash == row.record.content_hash, run.level
        if id(run) in weights:
            assert all(
                torch.equal(t, row.weights["last"][name]) for name, t in weights[id(run)].items()
            )
    return sum(r.metadata["epochs_trained"] for r in records) / sum(r.epochs for r in runs)


PROBLEMS = {
    "full batch": partial(small, max_epochs=25),
    "mini-batches, batch norm, dropout, augmentation, schedule": partial(
        normed, max_epochs=12, augment=noisy, lr_scheduler=partial(StepLR, step_size=3), key="noisy"
    ),
    "plateau schedule": partial(
        normed, max_epochs=12, lr_scheduler=partial(ReduceLROnPlateau, patience=1)
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_level_of_a_grid_of_26_is_bit_identical_and_steps_are_saved(name):
    runs = [Run(PROBLEMS[name](), level) for level in [None, *GRID]]
    whole = [alone(run) for run in runs]
    for workers in (0, 2):
        assert check(runs, whole, workers=workers) < 1


@pytest.mark.parametrize("make", [partial(small, max_epochs=25), partial(normed, max_epochs=12)])
def test_controllers_share_too(make):
    assert check([Run(make(), level) for level in [*CONTROLLERS, 0.1, None]]) < 1


def test_hinge_shares_and_methods_that_act_from_the_first_step_do_not():
    runs = [
        Run(small(max_epochs=25), 0.2, method=Hinge()),
        Run(small(max_epochs=25), 0.2),
        Run(small(max_epochs=25)),
    ]
    assert all(can_share(run) for run in runs)
    assert check(runs) < 1
    others = [Run(small(), 0.2, method=m) for m in (IFlood(), SoftAD(), SAM())] + [
        Run(small(), method=WaveBound(0.01))
    ]
    assert not any(can_share(run) for run in others)
    assert check(others) == 1


def test_runs_that_stop_early_share():
    problem = small(max_epochs=30)
    runs = [
        Run(problem, level, stop_epoch=until) for level in (None, 0.0, 0.3) for until in (5, 17, 30)
    ]
    assert check(runs) < 1


def test_a_regression_shares():
    problem = regression(max_epochs=20)
    assert check([Run(problem, level) for level in (None, 0.05, 0.2, 1.0)]) < 1


def below_0(outputs, y):
    """A loss that falls through 0: the squared error less 2."""
    return torch.nn.functional.mse_loss(outputs, y) - 2


def test_levels_of_a_loss_that_falls_below_0_share():
    problem = regression(max_epochs=60, loss=below_0)
    records = run_all([Run(problem, level) for level in (None, 0.0, -0.5)], ledger=False, workers=0)
    assert [bool(r.curves["flooded"].any()) for r in records] == [False, True, True], (
        "each level is reached"
    )
    assert check([Run(problem, level) for level in (None, 0.0, -0.5, 0.5, -9.0)]) < 1


def test_level_0_of_a_loss_above_0_is_the_prefix_to_its_end():
    plain, zero = run_all(
        [Run(normed(max_epochs=9)), Run(normed(max_epochs=9), 0.0)], ledger=False, workers=0
    )
    assert plain.weights_sha256 == zero.weights_sha256
    assert plain.metadata["epochs_trained"] + zero.metadata["epochs_trained"] == 9


def test_an_optimizer_with_several_passes_a_step_does_not_share():
    problem = small(optimizer=torch.optim.LBFGS, max_epochs=3)
    assert check([Run(problem, level) for level in (None, 0.2)]) == 1


def test_the_last_to_leave_pays_for_the_prefix_and_nobody_else():
    problem = small(max_epochs=25)
    levels = [0.25, 0.3, 0.5]
    records = run_all([Run(problem, level) for level in levels], ledger=False, workers=0)
    left = [int((record.curves["train_loss"][1:] <= record.level).argmax()) for record in records]
    assert [r.metadata["epochs_trained"] for r in records] == [
        25 + 1,
        25 - left[1],
        25 - left[2],
    ], left


def test_a_stale_snapshot_is_as_good():
    problem = small(max_epochs=25)
    prefix, seen = SharedPrefix({0: Run(problem, 0.5)}), []
    for row in train(Run(problem), with_record=False):
        late = row.epoch > 2
        for _, epoch, state in prefix.follow(
            EpochResult(row.run, row.epoch, row.values, losses=row.losses) if late else row
        ):
            seen.append((epoch, state))
    [(epoch, state)] = seen
    assert epoch == 2
    *_, resumed = train(Run(problem, 0.5), resume=state)
    assert resumed.record.content_hash == alone(Run(problem, 0.5)).record.content_hash


RESUMED = {
    "plain": Run(normed(max_epochs=9)),
    "flooded": Run(normed(max_epochs=9), 0.4),
    "controller": Run(normed(max_epochs=9), Heuristic(until_loss=0.6)),
    "schedule": Run(normed(max_epochs=9, lr_scheduler=partial(CosineAnnealingLR, T_max=9)), 0.4),
    "plateau schedule": Run(
        normed(max_epochs=9, lr_scheduler=partial(ReduceLROnPlateau, patience=1)), 0.4
    ),
    "teacher": Run(normed(max_epochs=9), method=WaveBound(0.01)),
    "sam": Run(normed(max_epochs=9), method=SAM()),
    "lbfgs": Run(small(max_epochs=9, optimizer=torch.optim.LBFGS)),
    "momentum": Run(
        normed(max_epochs=9, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9)), 0.4
    ),
    "augmented": Run(normed(max_epochs=9, augment=noisy), 0.4),
}


@functools.cache
def rows_alone(name):
    return list(train(RESUMED[name]))


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_a_run_cut_off_goes_on_bit_identically_from_a_file(name, at, tmp_path):
    run, files = RESUMED[name], Checkpoints(tmp_path)
    for row in train(run, with_record=False):
        if row.epoch == at:
            assert files.save("run", at, row.snapshot())
            break
    rows = list(train(run, resume=files.find("run", 9)))
    whole = rows_alone(name)
    assert [row.epoch for row in rows] == list(range(10))
    assert [str(row.values) for row in rows] == [str(row.values) for row in whole]
    assert rows[-1].record.content_hash == whole[-1].record.content_hash
    assert all(
        torch.equal(t, rows[-1].weights["last"][n]) for n, t in whole[-1].weights["last"].items()
    )


@pytest.mark.parametrize("where", ["prefix", "run"])
def test_what_was_interrupted_goes_on_from_its_last_epoch(where, tmp_path, monkeypatch):
    monkeypatch.setattr("flooding.training.checkpoints.INTERVAL", 0.0)
    monkeypatch.setattr("flooding.training.checkpoints._MAX_SHARE", math.inf)
    path, problem, stepped = tmp_path / "ledger.sqlite", normed(max_epochs=12), []
    runs = [Run(problem, level) for level in (None, 0.2, 0.25, 0.3)]
    whole = [alone(run).record.content_hash for run in runs]
    train_epoch = loop._train_epoch
    monkeypatch.setattr(
        loop, "_train_epoch", lambda *arguments: (stepped.append(0), train_epoch(*arguments))[1]
    )
    run_all(runs, ledger=False, workers=0)
    undisturbed = len(stepped)
    assert undisturbed < 4 * 12, "they share a beginning"
    stepped.clear()

    def interrupt(*_):
        if len(stepped) == (3 if where == "prefix" else undisturbed - 3):
            raise KeyboardInterrupt

    follow = SharedPrefix.follow
    with monkeypatch.context() as patch:
        patch.setattr(
            SharedPrefix, "follow", lambda prefix, row: (interrupt(), follow(prefix, row))[1]
        )
        with pytest.raises(KeyboardInterrupt):
            run_all(runs, ledger=path, workers=0, on_row=interrupt)
    assert 0 < len(stepped) < undisturbed
    records = run_all(runs, ledger=path, workers=0)
    assert [record.content_hash for record in records] == whole
    assert len(stepped) <= undisturbed + 1


def test_a_longer_run_goes_on_where_a_shorter_one_stopped(tmp_path):
    problem, trained = small(max_epochs=30), []
    for until in (5, 15, 30):
        run = Run(problem, 0.3, stop_epoch=until)
        [record] = run_all([run], ledger=tmp_path / "ledger.sqlite", workers=0)
        assert record.content_hash == alone(run).record.content_hash
        trained.append(record.metadata["epochs_trained"])
    assert trained == [5, 10, 15]
    assert not list(
        (tmp_path / "ledger.sqlite.checkpoints").iterdir()
    )  # nobody can go on from the max_epochs


def test_overwrite_ignores_checkpoints(tmp_path):
    problem = small(max_epochs=30)
    for until, fresh in ((5, False), (15, True)):
        run = Run(problem, 0.3, stop_epoch=until)
        [record] = run_all([run], ledger=tmp_path / "ledger.sqlite", workers=0, overwrite=fresh)
    assert record.metadata["epochs_trained"] == 15


FACTOR = {"by": 1.0}


def scaled(output, y):
    """Change its behaviour under the same name, as edited code does."""
    return FACTOR["by"] * torch.nn.functional.cross_entropy(output, y)


def test_a_checkpoint_under_a_users_key_must_be_the_problems_own(tmp_path, monkeypatch):
    path, problem = tmp_path / "ledger.sqlite", small(max_epochs=9, key="mine", loss=scaled)
    run_all([Run(problem, 0.3, stop_epoch=5)], ledger=path, workers=0)
    monkeypatch.setitem(FACTOR, "by", 2.0)
    with pytest.raises(ValueError, match="Change its key too"):
        run_all([Run(problem, 0.3)], ledger=path, workers=0)


def test_a_broken_checkpoint_costs_time_and_no_result(tmp_path, caplog):
    path, run = tmp_path / "ledger.sqlite", Run(small(max_epochs=9), 0.3)
    run_all([Run(small(max_epochs=9), 0.3, stop_epoch=5)], ledger=path, workers=0)
    [file] = (tmp_path / "ledger.sqlite.checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    [record] = run_all([run], ledger=path, workers=0)
    assert record.content_hash == alone(run).record.content_hash
    assert "cannot be read" in caplog.text
    assert not file.exists()


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    files = Checkpoints(tmp_path / "file" / "folder")
    assert not files.save("run", 3, {"x": torch.zeros(2)})
    assert "goes on without one" in caplog.text
    assert files.find("run", 9) is None


def test_a_disk_that_fills_up_leaves_no_half_written_file(tmp_path, monkeypatch, caplog):
    class Full(io.FileIO):
        def writelines(self, parts):
            self.write(next(iter(parts)))
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("flooding.atomic.open", Full, raising=False)
    assert not Checkpoints(tmp_path).save("run", 3, {})
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in caplog.text


def test_tidying_removes_the_oldest(tmp_path):
    files = Checkpoints(tmp_path)
    for epoch in (1, 2, 3):
        files.save("run", epoch, {"x": torch.zeros(1000)}, delete_earlier=False)
        path = tmp_path / f"run-{epoch}.pt"
        import os

        os.utime(path, (epoch, epoch))
    size = path.stat().st_size
    files.prune(limit=2 * size)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run-2.pt", "run-3.pt"]


def test_a_run_is_due_after_thirty_seconds_and_rarely_where_writing_is_slow(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("flooding.training.checkpoints.time.monotonic", lambda: now[0])
    files, written = Checkpoints(tmp_path), []

    def save(name, epoch, state, delete_earlier=True):
        written.append((epoch, now[0]))
        now[0] += 2.0  # slow: 2 % of the time is one in 100 s

    monkeypatch.setattr(files, "save", save)
    timer = CheckpointTimer(files)
    for epoch in range(300):
        timer.save_if_due(("run", EpochResult(None, epoch, {}, snapshot=dict)))
        now[0] += 1.0
    assert [at for _, at in written] == [30.0, 132.0, 234.0]


def test_in_a_large_group_the_first_to_leave_begins_at_once_where_there_are_workers():
    runs = [Run(small(max_epochs=25), 0.02 * n) for n in range(20)]
    for workers in (1, 2):
        records = run_all(runs, ledger=False, workers=workers)
        whole = [r.run.level for r in records if r.metadata["epochs_trained"] == 25]
        assert (runs[-1].level in whole) == (workers == 2)
        assert [r.content_hash for r in records] == [alone(run).record.content_hash for run in runs]


def test_a_run_without_a_name_never_goes_on_from_another_ones_checkpoint(tmp_path):
    path, problems = (
        tmp_path / "ledger.sqlite",
        [
            small(max_epochs=9, optimizer=lambda p, lr=lr: torch.optim.Adam(p, lr=lr))
            for lr in (0.01, 0.03)
        ],
    )
    rows = []

    def stop(row):
        rows.append(row)
        if len(rows) > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(
            [Run(problems[0], level) for level in (None, 0.0, 0.6)],
            ledger=path,
            workers=0,
            on_row=stop,
        )
    run = Run(problems[1], 0.3, stop_epoch=5)
    [record] = run_all([run], ledger=path, workers=0)
    [longer] = run_all([Run(problems[1], 0.3)], ledger=path, workers=0)
    assert record.content_hash == alone(run).record.content_hash
    assert longer.content_hash == alone(Run(problems[1], 0.3)).record.content_hash
    assert not (tmp_path / "ledger.sqlite.checkpoints").exists()


def test_test_curves_do_not_depend_on_where_a_run_stopped(tmp_path):
    problem = small(max_epochs=8, test_curve=TestCurve(50, 4))
    for until in (3, None):
        [record] = run_all(
            [Run(problem, 0.1, stop_epoch=until)], ledger=tmp_path / "ledger.sqlite", workers=0
        )
    assert record.content_hash == alone(Run(problem, 0.1)).record.content_hash
    assert check([Run(problem, 0.01, stop_epoch=3), Run(problem)]) < 1


def test_a_prefix_ends_with_its_last_fork_and_leaves_no_file(tmp_path):
    runs = [Run(small(max_epochs=9), level) for level in (None, 0.3, 0.6)]
    keys = [run_key(run) for run in runs]
    forks = tuple(
        Job(n, run, key, None, checkpoint_folder=str(tmp_path))
        for n, (run, key) in enumerate(zip(runs, keys, strict=True))
    )
    prefix = forks[0]._replace(forks=forks)
    items = list(run_shared_prefix(prefix))
    assert sorted(i.number for i in items if isinstance(i, ForkReady)) == [0, 1, 2]
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == sorted(keys)


class Slow(nn.Linear):
    """A layer that takes its time."""

    def forward(self, x):
        if self.training:
            time.sleep(0.02)
        return super().forward(x)


def test_a_prefix_that_gets_further_is_not_said_to_hang(tmp_path, caplog, monkeypatch):
    run_all([Run(small(max_epochs=1))], ledger=False, workers=0)  # imports take longer
    monkeypatch.setattr("flooding.training.watchdog.PATIENCE", 0.8)
    # Levels that are never reached: the forks leave in the last epoch, after more than PATIENCE.
    runs = [Run(slow_problem(), level) for level in (None, 1e-6, 2e-6)]
    records = run_all(runs, ledger=tmp_path / "ledger.sqlite", workers=0)
    assert sum(record.metadata["epochs_trained"] for record in records) < 25, "not shared"
    assert not [line for line in caplog.messages if "no news" in line]


def test_a_prefix_in_a_worker_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr("flooding.training.messages._HEARTBEAT", 0.02)
    runs = [Run(slow_problem(), level) for level in (None, 1e-6, 2e-6)]
    forks = tuple(
        Job(number, run, run_key(run), None, checkpoint_folder=str(tmp_path))
        for number, run in enumerate(runs)
    )
    prefix = forks[0]._replace(forks=forks)
    bundles = list(batched(run_shared_prefix(prefix), last_row_only=True))
    assert bundles.count([]) > 5
    forks_ready = [item for bundle in bundles for item in bundle]
    assert sorted(forks_ready) == [ForkReady(number) for number in range(3)]


def slow_problem():
    model = partial(Slow, 10, 2)
    return small(model=model, batch_size=10, max_epochs=15, key="slow")
