"""What is done with a Run: look it up, resume it, train it, and store its Record."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple, TypedDict

import torch

from flooding.training.checkpoints import Checkpoints, CheckpointTimer
from flooding.training.config import has_user_key
from flooding.training.ledger import Ledger
from flooding.training.loop import EpochResult, fingerprint, train
from flooding.training.prefix import SharedPrefix, replay_rows
from flooding.training.record import Record
from flooding.training.run import Run
from flooding.training.state import Snapshot

__all__ = ["ForkReady", "Job", "is_picklable", "run_job", "run_shared_prefix"]


class Job(NamedTuple):
    """What a worker needs to train one Run, or the prefix that several share.

    Args:
        number: Position of the Run in the caller's list.
        run: The Run.
        key: Its key; None if it cannot be hashed.
        ledger: Path of the ledger; None is none.
        overwrite: Whether to train what the ledger holds, and to replace it there.
        device: Where to train.
        threads: torch threads to train with.
        first_flooded: Keep the weights from before the first flooded step.
        dtype: Torch's default dtype.
        settings: Torch's settings, see :func:`flooding.numerics.capture_settings`.
        checkpoint_folder: Where checkpoints lie; None is nowhere.
        quiet: Whether nobody wants rows but the last.
        forks: If there are any, the Run is their prefix and has no Record of its own.
    """

    number: int
    run: Run
    key: str | None
    ledger: str | None
    overwrite: bool = False
    device: str = "cpu"
    threads: int = 1
    first_flooded: bool = False
    dtype: torch.dtype = torch.float32
    settings: Mapping[str, object] = {}
    checkpoint_folder: str | None = None
    quiet: bool = False
    forks: tuple[Job, ...] = ()

    @property
    def name(self) -> str:
        """Name of its checkpoints."""
        name = self.key or f"run-{self.number}"
        return f"prefix-{name}" if self.forks else name


class ForkReady(NamedTuple):
    """Sent by a prefix: the Run of this number can go on alone. After the last one the prefix ends.

    Args:
        number: Number of the Run's job.
    """

    number: int


class _TrainOptions(TypedDict):
    device: str
    threads: int
    settings: Mapping[str, object]


def is_picklable(run: Run) -> bool:
    """Tell whether a Run can go to a worker process.

    Args:
        run: The Run.

    Returns:
        False if it cannot be pickled or refers to code of the ``__main__`` script, which workers do
        not import.
    """
    try:
        return b"__main__" not in pickle.dumps(run)
    except Exception:  # noqa: BLE001 -- whatever a user's object raises, it is not picklable
        return False


def run_job(job: Job) -> Iterator[EpochResult]:
    """Train one Run and store its Record, from its checkpoint if there is one; or look it up.

    Args:
        job: The Run and where its Record goes.

    Yields:
        Rows; of a Run that was looked up, the last one alone.
    """
    if job.ledger is None or job.key is None:
        yield from _execute(job, None)
        return

    with contextlib.closing(Ledger(job.ledger)) as ledger, _locked(job):
        # Once more: another search may have trained it while this one waited for the lock.
        record = _load_cached(job, ledger)
        rows = _execute(job, ledger) if record is None else _replay_cached(job, record)
        last = None
        for row in rows:
            if row.record is None:
                yield row
            else:
                last = row

    # Outside of the lock: whoever receives the last row may kill this process at once.
    assert last is not None
    yield last


def run_shared_prefix(job: Job) -> Iterator[ForkReady]:
    """Train a prefix, and leave a checkpoint for each Run that leaves it.

    Args:
        job: The prefix and its forks.

    Yields:
        The Runs that can go on alone.
    """
    assert job.checkpoint_folder is not None
    files = Checkpoints(job.checkpoint_folder)
    with files.locked(job.name):
        # Another search may have trained the prefix before, or while this one waited for the lock.
        ready, forks = [], []
        for fork in job.forks:
            if not job.overwrite and _is_beyond_prefix(fork, files):
                ready.append(fork)
            else:
                forks.append(fork)
        for fork in ready:
            yield ForkReady(fork.number)
        if forks:
            yield from _run_prefix(job._replace(forks=tuple(forks)), files)


def _run_prefix(job: Job, files: Checkpoints) -> Iterator[ForkReady]:
    """Train a prefix until its last fork has left."""
    forks = {fork.number: fork for fork in job.forks}
    runs = {number: fork.run for number, fork in forks.items()}
    prefix = SharedPrefix(runs)
    run = replace(job.run, stop_epoch=prefix.epochs)

    # A checkpoint of the prefix is of use if all forks leave it later.
    snapshot = files.find(job.name, prefix.epochs)
    if snapshot is not None and _leaves_before(snapshot, run, runs):
        snapshot = None

    timer = CheckpointTimer(files, job.name)
    for row in train(run, resume=snapshot, conclude=False, **_train_options(job)):
        # First the checkpoints of those that leave, then the news that they can go on from them.
        leaving = list(prefix.follow(row))
        for fork in leaving:
            if fork.snapshot is not None:
                # A Run of the same key that stops elsewhere may need its own checkpoint.
                name = forks[fork.number].name
                files.save(name, fork.epoch, fork.snapshot, delete_earlier=False)
        if not len(prefix):
            files.delete(job.name, run.epochs + 1)
        for fork in leaving:
            yield ForkReady(fork.number)
        if not len(prefix):
            break
        timer.save_if_due(row)


def _leaves_before(snapshot: Snapshot, run: Run, runs: Mapping[int, Run]) -> bool:
    """Tell whether one of the Runs leaves a prefix before it reaches a snapshot."""
    prefix = SharedPrefix(runs)
    for row in replay_rows(run, snapshot):
        for _ in prefix.follow(row):
            return True
    return False


def _is_beyond_prefix(fork: Job, files: Checkpoints) -> bool:
    """Tell whether another search trained a Run beyond its prefix."""
    if files.exists(fork.name, fork.run.epochs):
        return True
    if fork.ledger is None or fork.key is None:
        return False
    with contextlib.closing(Ledger(fork.ledger)) as ledger:
        return _load_cached(fork, ledger) is not None


def _execute(job: Job, ledger: Ledger | None) -> Iterator[EpochResult]:
    """Train one Run, from its checkpoint if there is one, and store its Record."""
    # The weights of the first flooded step are not in a checkpoint.
    files, snapshot, timer = None, None, None
    if job.checkpoint_folder is not None and not job.first_flooded:
        files = Checkpoints(job.checkpoint_folder)
        snapshot = files.find(job.name, job.run.epochs)
        timer = CheckpointTimer(files, job.name)
    if snapshot is not None:
        _check_fingerprint(job, snapshot)
    rows = train(job.run, first_flooded=job.first_flooded, resume=snapshot, **_train_options(job))
    if ledger is not None:
        ledger.start(job.name, job.run.epochs)

    for row in rows:
        if row.record is not None:
            # Stored before anybody receives it: a killed parent loses nothing.
            if ledger is not None:
                ledger.add(job.name, row.record, replace=job.overwrite)
            if files is not None:
                _prune_checkpoints(files, job, row)
        elif timer is not None:
            timer.save_if_due(row)
        yield row


def _train_options(job: Job) -> _TrainOptions:
    """Give what a job says about how to train, for :func:`flooding.train`."""
    return {"device": job.device, "threads": job.threads, "settings": job.settings}


def _check_fingerprint(job: Job, snapshot: Snapshot) -> None:
    """Refuse a checkpoint under a user's key that comes from other code."""
    # Before its first epoch a Run has no batch loss, and so no fingerprint.
    is_checked = has_user_key(job.run.problem) and len(snapshot["curves"]) > 1
    if is_checked and snapshot["mark"] != fingerprint(job.run, job.device, job.threads):
        raise ValueError(
            "a checkpoint must have this problem's parameter shapes and first batch loss, but one "
            f"in {job.checkpoint_folder} has others: the problem changed. Change its key too."
        )


def _locked(job: Job) -> AbstractContextManager[None]:
    """Keep other processes from training the same Run at the same time."""
    if job.checkpoint_folder is None:
        return contextlib.nullcontext()
    return Checkpoints(job.checkpoint_folder).locked(job.name)


def _load_cached(job: Job, ledger: Ledger) -> Record | None:
    """Look a Run up, unless it must be trained in any case."""
    if job.overwrite or job.first_flooded:
        return None
    record = ledger.find(job.run, job.name)
    if record is None or not has_user_key(job.run.problem):
        return record
    # A user's key says nothing of the code behind it.
    is_own = record.fingerprint == fingerprint(job.run, job.device, job.threads)
    return record if is_own else None


def _replay_cached(job: Job, record: Record) -> Iterator[EpochResult]:
    """Give the row of a Run that was trained meanwhile; a prefix may have left it a checkpoint."""
    row = EpochResult(job.run, job.run.epochs, {}, record)
    if job.checkpoint_folder is not None:
        _prune_checkpoints(Checkpoints(job.checkpoint_folder), job, row)
    yield row


def _prune_checkpoints(files: Checkpoints, job: Job, row: EpochResult) -> None:
    """Remove the checkpoints of a Run that is done; leave the one where a longer Run may go on."""
    may_go_on = job.key is not None and row.epoch < job.run.problem.max_epochs
    if not may_go_on:
        files.delete(job.name, below=row.epoch + 1)
    elif row.snapshot is None:
        # A Run that was looked up: the checkpoint of its last epoch stays.
        files.delete(job.name, below=row.epoch)
    else:
        # What was trained up to here is paid for.
        files.save(job.name, row.epoch, {**row.snapshot(), "trained": 0, "seconds": 0.0})
