"""The jobs of workers: look a Run up, or train it and store its Record; or train a prefix."""

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

__all__ = [
    "ForkReady",
    "Job",
    "check_fingerprint",
    "find_record",
    "is_picklable",
    "prune_checkpoints",
    "row_of_record",
    "run_job",
    "run_shared_prefix",
]


class Job(NamedTuple):
    """What a worker needs to train one Run, or the prefix that several Runs share.

    Args:
        number: Position of the Run in the caller's list.
        run: The Run.
        key: Its key; None if it cannot be hashed.
        ledger: Path of the ledger; None to look up and store nothing.
        overwrite: Whether to train a Run that the ledger holds, and to replace its Record there.
        device: Where to train.
        threads: Number of torch threads to train with.
        keep_first_flooded: Whether to keep the weights from before the first flooded step.
        dtype: Torch's default dtype.
        settings: Torch's settings, see :func:`flooding.numerics.capture_settings`.
        checkpoint_folder: Folder of the checkpoints; None to read and write none.
        last_row_only: Whether the caller needs only the row that has the Record.
        forks: Jobs of the Runs that share this one as their prefix. A prefix has no Record.
        members: Jobs of the Runs that train together as a fleet, this one's own among them.
    """

    number: int
    run: Run
    key: str | None
    ledger: str | None
    overwrite: bool = False
    device: str = "cpu"
    threads: int = 1
    keep_first_flooded: bool = False
    dtype: torch.dtype = torch.float32
    settings: Mapping[str, object] = {}
    checkpoint_folder: str | None = None
    last_row_only: bool = False
    forks: tuple[Job, ...] = ()
    members: tuple[Job, ...] = ()

    @property
    def name(self) -> str:
        """Name of its checkpoints and lock; the key of its Record, if it has a key."""
        name = self.key or f"run-{self.number}"
        return f"prefix-{name}" if self.forks else name

    def job_of(self, number: int) -> Job:
        """Give the job of one Run of a fleet; any other job is its own Run's.

        Args:
            number: Number of the Run's job.

        Returns:
            The job.
        """
        return next((member for member in self.members if member.number == number), self)


class ForkReady(NamedTuple):
    """Message of a prefix: one of its forks can go on alone. The last message ends the prefix.

    Args:
        number: Number of the fork's job.
    """

    number: int


class PrefixEpoch(NamedTuple):
    """Message of a prefix: it got further, so that nobody takes it for hanging.

    Args:
        epoch: The epoch that ended.
    """

    epoch: int


class _TrainOptions(TypedDict):
    """Arguments of :func:`flooding.train` that a job gives unchanged."""

    device: str
    threads: int
    settings: Mapping[str, object]


def is_picklable(run: Run) -> bool:
    """Tell whether a Run can be pickled here and unpickled in a worker process.

    Args:
        run: The Run.

    Returns:
        False if it cannot be pickled or refers to code of the ``__main__`` script, which workers do
        not import.
    """
    try:
        # A pickle names the module of each class and function that it refers to.
        return b"__main__" not in pickle.dumps(run)
    except Exception:  # noqa: BLE001 -- whatever a user's object raises, it is not picklable
        return False


def run_job(job: Job) -> Iterator[EpochResult]:
    """Look a Run up in the ledger; else train it, from a checkpoint if any, and store its Record.

    Args:
        job: The Run and where its Record goes.

    Yields:
        The rows of the training; for a Run that the ledger holds, only the last row.
    """
    if job.ledger is None or job.key is None:
        yield from _train_and_store(job, None)
        return

    with contextlib.closing(Ledger(job.ledger)) as ledger, _locked(job):
        # `run_all` looked the Run up before it made this job. Another process may have trained it
        # since then, for example while this one waited for the lock.
        record = find_record(job, ledger)
        rows = _train_and_store(job, ledger) if record is None else row_of_record(job, record)
        last_row = None
        for row in rows:
            if row.record is None:
                yield row
            else:
                last_row = row

    # After the lock is released: whoever receives the last row may kill this process at once.
    assert last_row is not None
    yield last_row


def run_shared_prefix(job: Job) -> Iterator[ForkReady | PrefixEpoch]:
    """Train a prefix, and write a checkpoint for each fork from which it goes on.

    Args:
        job: The prefix and its forks.

    Yields:
        One message for each epoch, and one for each fork, as soon as it can go on alone.
    """
    assert job.checkpoint_folder is not None
    checkpoints = Checkpoints(job.checkpoint_folder)
    with checkpoints.locked(job.name):
        # Another process may have trained some forks: before, or while this one waited for the
        # lock. They do not need the prefix.
        ready_forks, remaining_forks = [], []
        for fork in job.forks:
            if not job.overwrite and _is_beyond_prefix(fork, checkpoints):
                ready_forks.append(fork)
            else:
                remaining_forks.append(fork)
        for fork in ready_forks:
            yield ForkReady(fork.number)
        if remaining_forks:
            prefix_job = job._replace(forks=tuple(remaining_forks))
            yield from _train_prefix(prefix_job, checkpoints)


def _train_prefix(job: Job, checkpoints: Checkpoints) -> Iterator[ForkReady | PrefixEpoch]:
    """Train a prefix until its last fork has left."""
    fork_jobs = {fork.number: fork for fork in job.forks}
    fork_runs = {fork.number: fork.run for fork in job.forks}
    prefix = SharedPrefix(fork_runs)
    prefix_run = replace(job.run, stop_epoch=prefix.epochs)

    # A fork that leaves before a checkpoint of the prefix cannot start from it.
    snapshot = checkpoints.find(job.name, prefix.epochs)
    if snapshot is not None and _any_leaves_before(snapshot, prefix_run, fork_runs):
        snapshot = None

    timer = CheckpointTimer(checkpoints)
    options = _train_options(job)
    for row in train(prefix_run, resume=snapshot, with_record=False, **options):
        # A fork's checkpoint is written before the message that the fork can go on from it.
        fork_points = list(prefix.follow(row))
        for point in fork_points:
            if point.snapshot is not None:
                # Another process may train the same Run up to another epoch (they have one key)
                # and need an earlier checkpoint.
                name = fork_jobs[point.number].name
                checkpoints.save(name, point.epoch, point.snapshot, delete_earlier=False)
        is_done = len(prefix) == 0
        if is_done:
            checkpoints.delete(job.name, below=prefix_run.epochs + 1)
        for point in fork_points:
            yield ForkReady(point.number)
        if is_done:
            break
        yield PrefixEpoch(row.epoch)
        timer.save_if_due((job.name, row))


def _any_leaves_before(snapshot: Snapshot, prefix_run: Run, fork_runs: Mapping[int, Run]) -> bool:
    """Tell whether a fork leaves the prefix at or before the epoch of a snapshot."""
    prefix = SharedPrefix(fork_runs)
    return any(list(prefix.follow(row)) for row in replay_rows(prefix_run, snapshot))


def _is_beyond_prefix(fork: Job, checkpoints: Checkpoints) -> bool:
    """Tell whether a fork has a checkpoint of its own, or a Record."""
    if checkpoints.exists(fork.name, fork.run.epochs):
        return True
    if fork.ledger is None or fork.key is None:
        return False
    with contextlib.closing(Ledger(fork.ledger)) as ledger:
        return find_record(fork, ledger) is not None


def _train_and_store(job: Job, ledger: Ledger | None) -> Iterator[EpochResult]:
    """Train one Run, from its checkpoint if there is one, and store its Record."""
    checkpoints, snapshot, timer = None, None, None
    # A checkpoint may lack the weights from before the first flooded step. To keep those, a Run
    # trains from its beginning.
    if job.checkpoint_folder is not None and not job.keep_first_flooded:
        checkpoints = Checkpoints(job.checkpoint_folder)
        snapshot = checkpoints.find(job.name, job.run.epochs)
        timer = CheckpointTimer(checkpoints)
    if snapshot is not None:
        check_fingerprint(job, snapshot)
    rows = train(
        job.run,
        keep_first_flooded=job.keep_first_flooded,
        resume=snapshot,
        **_train_options(job),
    )
    if ledger is not None:
        ledger.start(job.name, job.run.epochs)

    for row in rows:
        if row.record is not None:
            # The Record is stored before the row is yielded: a parent that is killed then loses
            # nothing.
            if ledger is not None:
                ledger.add(job.name, row.record, replace=job.overwrite)
            if checkpoints is not None:
                prune_checkpoints(checkpoints, job, row)
        elif timer is not None:
            timer.save_if_due((job.name, row))
        yield row


def _train_options(job: Job) -> _TrainOptions:
    """Select the arguments that a job gives to :func:`flooding.train`."""
    return {"device": job.device, "threads": job.threads, "settings": job.settings}


def check_fingerprint(job: Job, snapshot: Snapshot) -> None:
    """Refuse a checkpoint of other code under the same user's key.

    Args:
        job: The Run.
        snapshot: The checkpoint.

    Raises:
        ValueError: If its Problem has changed.
    """
    # The fingerprint holds the first batch loss, which is measured in the first epoch.
    has_fingerprint = len(snapshot["curves"]) > 1
    if not has_user_key(job.run.problem) or not has_fingerprint:
        return
    if snapshot["mark"] != fingerprint(job.run, **_train_options(job)):
        raise ValueError(
            "a checkpoint must have this problem's parameter shapes and first batch loss, but one "
            f"in {job.checkpoint_folder} has others: the problem changed. Change its key too."
        )


def _locked(job: Job) -> AbstractContextManager[None]:
    """Keep other processes from training the same Run at the same time."""
    if job.checkpoint_folder is None:
        return contextlib.nullcontext()
    return Checkpoints(job.checkpoint_folder).locked(job.name)


def find_record(job: Job, ledger: Ledger) -> Record | None:
    """Look a Run up in the ledger.

    Args:
        job: The Run.
        ledger: The ledger.

    Returns:
        Its Record; None means that it must be trained.
    """
    # An overwritten Record must be new, and the ledger holds no weights.
    if job.overwrite or job.keep_first_flooded:
        return None
    record = ledger.find(job.run, job.name)
    if record is None or not has_user_key(job.run.problem):
        return record
    # A user's key does not change with the code. The fingerprint does, most of the time.
    is_same_code = record.fingerprint == fingerprint(job.run, **_train_options(job))
    return record if is_same_code else None


def row_of_record(job: Job, record: Record) -> Iterator[EpochResult]:
    """Give the last row of a Run that another process trained, and prune its checkpoints.

    Args:
        job: The Run.
        record: Its Record.

    Yields:
        The row.
    """
    row = EpochResult(job.run, job.run.epochs, {}, record)
    # A prefix may have written a checkpoint for this Run in the meantime.
    if job.checkpoint_folder is not None:
        prune_checkpoints(Checkpoints(job.checkpoint_folder), job, row)
    yield row


def prune_checkpoints(checkpoints: Checkpoints, job: Job, row: EpochResult) -> None:
    """Delete the checkpoints of a finished Run, except the one that a longer Run can go on from.

    Args:
        checkpoints: Where they lie.
        job: The Run.
        row: Its last row.
    """
    can_go_on = job.key is not None and row.epoch < job.run.problem.max_epochs
    if not can_go_on:
        checkpoints.delete(job.name, below=row.epoch + 1)
    elif row.snapshot is None:
        # The Run was looked up, not trained: keep the checkpoint of its last epoch.
        checkpoints.delete(job.name, below=row.epoch)
    else:
        # This Run's Record counts the cost up to here; a longer Run counts only its own epochs.
        snapshot = {**row.snapshot(), "trained": 0, "seconds": 0.0}
        checkpoints.save(job.name, row.epoch, snapshot, is_idle=True)
