"""What a worker does with a Run: look it up, resume it, train it, and store its Record."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from flooding.training.checkpoints import Checkpoints, CheckpointTimer
from flooding.training.config import has_user_key
from flooding.training.ledger import Ledger
from flooding.training.loop import EpochResult, fingerprint, train
from flooding.training.prefix import SharedPrefix, replay_rows
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["ForkReady", "Job", "is_picklable", "run_job", "run_shared_prefix"]


class Job(NamedTuple):
    """What a worker needs to train one Run, or the trunk that several share."""

    number: int
    run: Run
    trajectory: str | None
    ledger: str | None
    overwrite: bool = False
    device: str = "cpu"
    threads: int = 1
    first_flooded: bool = False
    dtype: torch.dtype = torch.float32
    settings: dict[str, Any] = {}  # ruff: ignore[mutable-class-default] -- torch's, see flooding.numerics; never changed
    folder: str | None = None  # of checkpoints
    quiet: bool = False  # nobody wants rows but the last
    forks: tuple[
        Job, ...
    ] = ()  # if there are any, the Run is their trunk and has no Record of its own

    @property
    def name(self) -> str:
        """Name of its checkpoints."""
        return ("trunk-" if self.forks else "") + (self.trajectory or f"run-{self.number}")


class ForkReady(NamedTuple):
    """Told by a trunk: the Run of this number can go on alone. After the last one the trunk has
    ended.
    """

    number: int


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
    except Exception:  # noqa: BLE001 -- whatever a user's object raises, it cannot travel
        return False


def run_job(job: Job) -> Iterator[EpochResult]:
    """Train one Run and store its Record, from its checkpoint if there is one; or look it up.

    Args:
        job: The Run and where its Record goes.

    Yields:
        Rows; of a Run that was looked up, the last one alone.
    """
    if job.ledger is None or job.trajectory is None:
        yield from _execute(job, None)
        return
    with contextlib.closing(Ledger(job.ledger)) as ledger, _locked(job):
        # Once more: another search may have trained it while this one waited.
        record = _load_cached(job, ledger)
        rows = _execute(job, ledger) if record is None else _replay_cached(job, record)
        end = None
        for row in rows:
            if row.record is None:
                yield row
            else:
                end = row
    assert end is not None
    yield end  # no longer claimed: whoever is told the end may kill this process at once


def _locked(job: Job) -> AbstractContextManager[None]:
    return (
        contextlib.nullcontext() if job.folder is None else Checkpoints(job.folder).locked(job.name)
    )


def _load_cached(job: Job, ledger: Ledger) -> Record | None:
    record = None if job.overwrite or job.first_flooded else ledger.find(job.run, job.name)
    if record is not None and has_user_key(job.run.problem):
        return (
            record if record.fingerprint == fingerprint(job.run, job.device, job.threads) else None
        )
    return record


def _execute(job: Job, ledger: Ledger | None) -> Iterator[EpochResult]:
    """Train one Run, from its checkpoint if there is one, and store its Record."""
    files = None if job.folder is None or job.first_flooded else Checkpoints(job.folder)
    resume = None if files is None else files.find(job.name, job.run.epochs)
    promised = resume is not None and has_user_key(job.run.problem) and len(resume["curves"]) > 1
    if (
        resume is not None
        and promised
        and resume["mark"] != fingerprint(job.run, job.device, job.threads)
    ):
        raise ValueError(
            f"a checkpoint must have this problem's parameter shapes and first batch loss, but one in {job.folder} "
            "has others: the problem changed. Change its key too."
        )
    first = job.first_flooded
    how: dict[str, Any] = {"device": job.device, "threads": job.threads, "settings": job.settings}
    rows = train(job.run, first_flooded=first, resume=resume, **how)
    pace = None if files is None else CheckpointTimer(files, job.name)
    if ledger is not None:
        ledger.start(job.name, job.run.epochs)
    for row in rows:
        if row.record is None:
            if pace is not None:
                pace.see(row)
        else:
            if ledger is not None:  # before anybody is told: a killed parent loses nothing
                ledger.add(job.name, row.record, replace=job.overwrite)
            if files is not None:
                _prune_checkpoints(files, job, row)
        yield row


def _replay_cached(job: Job, record: Record) -> Iterator[EpochResult]:
    """Give the row of a Run that was trained meanwhile; a trunk may have left it a checkpoint."""
    row = EpochResult(job.run, job.run.epochs, {}, record)
    if job.folder is not None:
        _prune_checkpoints(Checkpoints(job.folder), job, row)
    yield row


def _prune_checkpoints(files: Checkpoints, job: Job, row: EpochResult) -> None:
    """Remove the checkpoints of a Run that is done; leave the one where a longer Run may go on."""
    goes_on = job.trajectory is not None and row.epoch < job.run.problem.max_epochs
    if goes_on and row.snapshot is not None:  # there is none where it was looked up
        files.save(job.name, row.epoch, {**row.snapshot(), "trained": 0, "seconds": 0.0})
    else:
        files.delete(job.name, below=row.epoch if goes_on else row.epoch + 1)


def run_shared_prefix(job: Job) -> Iterator[ForkReady]:
    """Train a trunk, and leave a checkpoint for each Run that parts from it.

    Args:
        job: The trunk and its forks.

    Yields:
        Who can go on.
    """
    assert job.folder is not None
    files = Checkpoints(job.folder)
    with files.locked(
        job.name
    ):  # another search may have led them while this one waited, or before it came here
        known = [fork.number for fork in job.forks if not job.overwrite and _is_beyond(fork, files)]
        yield from map(ForkReady, known)
        forks = tuple(fork for fork in job.forks if fork.number not in known)
        if forks:
            yield from _run_prefix(job._replace(forks=forks), files)


def _is_beyond(fork: Job, files: Checkpoints) -> bool:
    """Tell whether another search led a Run beyond its trunk."""
    if files.exists(fork.name, fork.run.epochs):
        return True
    if fork.ledger is None or fork.trajectory is None:
        return False
    with contextlib.closing(Ledger(fork.ledger)) as ledger:
        return _load_cached(fork, ledger) is not None


def _run_prefix(job: Job, files: Checkpoints) -> Iterator[ForkReady]:
    forks = {fork.number: fork for fork in job.forks}
    runs = {number: fork.run for number, fork in forks.items()}
    trunk = SharedPrefix(runs)
    run = replace(job.run, stop_epoch=trunk.epochs)
    resume = files.find(job.name, trunk.epochs)
    if resume is not None:
        again = SharedPrefix(runs)
        if any(True for row in replay_rows(run, resume) for _ in again.follow(row)):
            resume = None  # somebody new leaves before it
    pace = CheckpointTimer(files, job.name)
    how: dict[str, Any] = {"device": job.device, "threads": job.threads, "settings": job.settings}
    for row in train(run, resume=resume, conclude=False, **how):
        parting = list(trunk.follow(row))
        for number, epoch, state in parting:
            if state is not None:
                files.save(
                    forks[number].name, epoch, state, only=False
                )  # a Run of another length may need its own
        if not len(trunk):
            files.delete(job.name, run.epochs + 1)
        yield from (ForkReady(number) for number, _, _ in parting)
        if not len(trunk):
            break
        pace.see(row)


class _Failure(NamedTuple):
    """An exception on its way to the parent, which may not be able to rebuild it."""

    packed: bytes | None
    summary: str
    trace: str


def _picklable_failure(error: BaseException) -> _Failure:
    trace = "".join(traceback.format_exception(error))
    summary = f"{type(error).__name__}: {error}"
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # ruff: ignore[blind-except] -- exceptions with odd constructors
        packed = None
    return _Failure(packed, summary, trace)
