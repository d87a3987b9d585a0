"""Runs in, Records out: look-up in the ledger, then training on every core."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from flooding.numerics import capture_settings, environment, has_global_hooks
from flooding.training.checkpoints import Checkpoints
from flooding.training.config import has_user_key, is_hashable
from flooding.training.jobs import ForkReady, Job, is_picklable, run_job, run_shared_prefix
from flooding.training.ledger import Ledger, absolute_path, default_path
from flooding.training.loop import NUMERICS_VERSION, EpochResult, fingerprint
from flooding.training.pool import Pool
from flooding.training.prefix import can_share, prefix_run
from flooding.training.record import Record
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.scratch import scratch_folder
from flooding.training.watchdog import Watchdog

__all__ = ["available_cpus", "check_device", "run_all", "run_key"]

log = logging.getLogger("flooding")


@preserve_rng_state()
def run_all(
    runs: Iterable[Run],
    *,
    ledger: str | Path | Literal[False] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    on_start: Callable[[list[Run]], object] | None = None,
    on_row: Callable[[EpochResult], object] | None = None,
) -> list[Record]:
    """Look Runs up in the ledger and train those that are not there, on all cores.

    The same Run, on the same machine, has bit-identical measurements whether it is trained here, in
    a worker process or looked up. Equal Runs are trained once; Runs that differ in their level
    alone take the steps before the first flooded one together; a Run that was cut off, or a longer
    one, goes on from its checkpoint beside the ledger. None of this changes a bit. A Run that
    cannot describe itself is trained anew each time, and one that cannot be pickled (a class of a
    notebook or of the script itself) in this process; the log says so.

    Args:
        runs: The Runs.
        ledger: SQLite file of Records; None is the default place, False none at all.
        overwrite: Train even what the ledger holds, and replace it there.
        workers: Worker processes with one thread each; None is one per core, 0 trains in this
            process.
        device: Where to train.
        threads: torch threads to train with; more than 1 trains in this process, since processes
            are faster.
        on_start: Called once with the Runs that must be trained.
        on_row: Called with every row of the Runs that are trained.

    Returns:
        Records in the order of the Runs.

    Raises:
        ValueError: If a Record under a user's key has parameter shapes or a first batch loss that
            are not this Run's, ``workers`` or ``threads`` is out of range, or the device is not
            there.

    Example:
        >>> from flooding import Problem, Run
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=2)
        >>> records = run_all([Run(problem, level) for level in (None, 0.2)], ledger=False, workers=0)
        >>> [record.metrics["epochs"] for record in records]
        [2.0, 2.0]
    """
    runs = list(runs)
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}. 0 trains in this process.")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    check_device(device)
    # Absolute, since a worker and a Run may change the working directory.
    path = None if ledger is False else str(absolute_path(ledger or default_path()))
    keys = [run_key(run, device=device, threads=threads) for run in runs]
    records = (
        {}
        if path is None or overwrite
        else _load_cached(path, runs, keys, _key_metadata(device, threads))
    )
    for record in records.values():
        if not _is_own(record, device, threads):
            raise ValueError(
                "a Record must have this problem's parameter shapes and first batch loss, but the one in "
                f"{path} has others: the problem changed. Change its key too."
            )
    if path is not None and runs:
        log.info("%d of %d runs from the ledger %s", len(records), len(runs), path)
    if path is not None and any(key is None for key in keys):
        reason = "a problem without a key is trained anew each time. Give the Problem a key='...' to look it up."
        if has_global_hooks():
            reason = "with global hooks of torch.nn or torch.optim every run is trained anew. Remove them to look runs up."
        log.warning(reason)
    twins: dict[object, list[int]] = {}
    for number, (run, key) in enumerate(zip(runs, keys, strict=True)):
        if number not in records:
            twins.setdefault((key or number, run.epochs), []).append(number)
    wanted = [numbers[0] for numbers in twins.values()]
    if on_start is not None:
        on_start([runs[n] for n in wanted])
    if not wanted:
        return [records[number] for number in range(len(runs))]
    with scratch_folder() as scratch, _open_ledger(path):
        lasting = str(scratch) if path is None else f"{path}.checkpoints"
        Checkpoints(lasting).prune()
        how: dict[str, Any] = {"overwrite": overwrite, "device": device, "threads": threads}
        how["quiet"] = on_row is None
        how["dtype"], how["settings"] = torch.get_default_dtype(), capture_settings()
        # A Run that cannot describe itself has no name that lasts: its checkpoints end with the
        # call.
        jobs = [
            Job(n, runs[n], keys[n], path, folder=lasting if keys[n] else str(scratch), **how)
            for n in wanted
        ]
        trained = 0
        for number, row in _execute(
            _group_by_prefix(jobs, available_cpus() if workers is None else workers), workers
        ):
            if on_row is not None:
                on_row(row)
            if row.record is not None:
                key = (keys[number] or number, runs[number].epochs)
                records |= {n: replace(row.record, run=runs[n]) for n in twins[key]}
                trained += row.record.metadata["epochs_trained"]
    if trained < (epochs := sum(runs[n].epochs for n in wanted)):
        log.debug("%.0f %% of the steps were shared or done before", 100 - 100 * trained / epochs)
    return [records[number] for number in range(len(runs))]


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Args:
        device: Its name.

    Raises:
        ValueError: If nothing can be put there.
    """
    try:
        torch.zeros(1, device=device).item()  # there is nothing to read on the device called meta
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be there, got {device!r}: {reason}. Try cpu.") from None


@contextmanager
def _open_ledger(path: str | None) -> Generator[None, None, None]:
    """Keep the ledger open: else SQLite folds its log into the file whenever a worker closes it."""
    book = None if path is None else Ledger(path)
    try:
        yield
    finally:
        if book is not None:
            book.close()


def _group_by_prefix(jobs: list[Job], workers: int) -> list[Job]:
    """Put Runs that share a beginning under a trunk of theirs."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        files, trunk = Checkpoints(job.folder or ""), prefix_run(job.run)
        if job.overwrite:
            files.delete(job.name, job.run.epochs + 1)
        alone = not can_share(job.run) or files.exists(job.name, job.run.epochs)
        key = run_key(trunk, device=job.device, threads=job.threads) or (
            id(job.run.problem),
            job.run.seed,
        )
        groups.setdefault(("alone", job.number) if alone else key, []).append(job)
    grouped = []
    for key, group in groups.items():
        # In a large group some begin alone, so that no worker waits for the trunk: those that would
        # leave it first.
        early = sorted(
            (job for job in group if isinstance(job.run.level, float)),
            key=lambda job: -job.run.level,
        )
        early = early[: max(0, min(workers - 1, len(group) // 8))]
        group = [job for job in group if job not in early]
        if len(group) == 1:
            grouped += group
            continue
        named = key if isinstance(key, str) else None
        trunk = group[0]._replace(
            run=prefix_run(group[0].run), trajectory=named, forks=tuple(group)
        )
        if trunk.overwrite:
            Checkpoints(trunk.folder or "").delete(trunk.name, trunk.run.epochs + 1)
        grouped.append(trunk)
        grouped += early
    return grouped


def run_key(run: Run, *, device: str = "cpu", threads: int = 1) -> str | None:
    """Give the key of a Run on a device, under which the ledger stores its Record.

    Args:
        run: The Run.
        device: Where it trains.
        threads: torch threads it trains with.

    Returns:
        64 hexadecimal digits, or None if a part of the Run cannot be hashed.
    """
    # Global hooks may change anything, and nobody can name them.
    return None if has_global_hooks() else run.key(**_key_metadata(device, threads))


def _key_metadata(device: str, threads: int) -> dict[str, Any]:
    """Describe what changes the bits of every Run; torch's default settings are left out."""
    metadata: dict[str, Any] = {
        "engine": NUMERICS_VERSION,
        "torch": torch.__version__,
        "device": str(device),
        "dtype": str(torch.get_default_dtype()),
        "threads": threads,
        "kernel": "single",
    }
    if settings := capture_settings():
        metadata["settings"] = settings
    if variables := environment():
        metadata["environment"] = variables
    return metadata


def available_cpus() -> int:
    """Count the cores this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load_cached(
    path: str, runs: list[Run], keys: list[str | None], metadata: dict[str, Any]
) -> dict[int, Record]:
    """Look Runs up in the ledger, by the position of each; also under the keys of flooding 0.1.0."""
    records: dict[int, Record] = {}
    with closing(Ledger(path)) as ledger:
        for index, (run, key) in enumerate(zip(runs, keys, strict=True)):
            if key is None:
                continue
            record = ledger.find(run, key)
            for legacy_key in run.legacy_keys(**metadata) if record is None else ():
                record = record or ledger.find(run, legacy_key)
            if record is not None:
                records[index] = record
    return records


def _is_own(record: Record, device: str, threads: int) -> bool:
    """Tell whether a Record is the Run's: a user's key promises that, but says nothing of the code
    behind it.
    """
    run = record.run
    return (
        run is None
        or not has_user_key(run.problem)
        or record.fingerprint == fingerprint(run, device, threads)
    )


def _execute(jobs: list[Job], workers: int | None) -> Iterator[tuple[int, EpochResult]]:
    """Train jobs in worker processes where they can go there, else here."""
    runs = [job.run for head in jobs for job in (head, *head.forks)]
    # In a thread of the caller's even one Run goes to a worker: other threads may draw from this
    # process's generator.
    in_thread = threading.current_thread() is not threading.main_thread()
    spread = workers != 0 and (len(runs) > 1 or in_thread)
    away, stay, tied = [], [], []
    for job in jobs:
        travels = spread and all(is_picklable(j.run) for j in (job, *job.forks))
        (away if travels and job.threads == 1 else stay).append(job)
        tied += [] if travels or not spread else [job]
    if tied:
        count = sum(len(job.forks) or 1 for job in tied)
        log.warning(
            "%d runs train in this process: their code cannot be sent to a worker. Import it from a module.",
            count,
        )
    if away:
        warm = all(is_hashable(run) for run in runs)
        # Closed before the pool is given back: whatever its workers still do must have ended by
        # then.
        limit = min(workers or available_cpus(), 64)
        with _pool(warm=warm) as pool, closing(pool.run(away, limit)) as told:
            for number, news in told:
                if isinstance(news, BaseException):
                    raise news
                yield number, news
    if stay:
        yield from _execute_here(stay)


def _execute_here(jobs: list[Job]) -> Iterator[tuple[int, EpochResult]]:
    """Train jobs one after another in this process."""
    watchdog = Watchdog()
    with watchdog.in_background():
        for head in jobs:
            waiting = {job.number: job for job in head.forks or (head,)}
            watchdog.start("here", head.run)
            for ready in list(run_shared_prefix(head)) if head.forks else [ForkReady(head.number)]:
                watchdog.start("here", waiting[ready.number].run)
                for row in run_job(waiting[ready.number]):
                    watchdog.feed("here", row.epoch)
                    yield ready.number, row
                    watchdog.feed("here")  # the caller's own code may have taken long


_WARM: list[Pool] = []
_LOCK = threading.Lock()


def _forget_pools() -> None:
    """Leave the workers to the parent, in a process that was forked from it."""
    for pool in _WARM:
        atexit.unregister(pool.close)
    _WARM.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


@contextmanager
def _pool(*, warm: bool) -> Generator[Pool, None, None]:
    """Lend a pool to one caller at a time; importing torch takes a worker two seconds, so one is
    kept warm.

    Code of a user's own may change between two calls, in a notebook say, so it gets new workers
    each time.

    Yields:
        A pool nobody else uses.
    """
    with _LOCK:
        pool = _WARM.pop() if warm and _WARM else Pool()
    try:
        yield pool
    finally:
        with _LOCK:
            keep = warm and not _WARM
            if keep:
                _WARM.append(pool)
        if not keep:
            pool.close()
