"""Runs in, Records out: look-up in the ledger, then training on every core."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Hashable, Iterable
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from flooding.numerics import capture_settings
from flooding.training.checkpoints import Checkpoints
from flooding.training.config import is_hashable
from flooding.training.fleet_jobs import (
    FleetOption,
    Places,
    check_fleet_option,
    may_join,
    plan_fleets,
    refusal,
    run_fleet,
)
from flooding.training.jobs import ForkReady, Job, is_picklable, run_job, run_shared_prefix
from flooding.training.ledger import Ledger, absolute_path, default_path
from flooding.training.lookup import Kernel, load_cached, log_lookup, run_key, run_keys
from flooding.training.loop import EpochResult
from flooding.training.pool import lend_pool
from flooding.training.prefix import can_share, prefix_run
from flooding.training.progress import show_progress
from flooding.training.record import Record
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.scratch import scratch_folder
from flooding.training.watchdog import Watchdog

__all__ = ["Execute", "Rows", "available_cpus", "check_device", "run_all", "run_key", "run_with"]

log = logging.getLogger("flooding")
_MAX_WORKERS = 64

# What does jobs, and gives the number of each Run with its rows.
Rows: TypeAlias = Generator[tuple[int, EpochResult], None, None]
Execute: TypeAlias = Callable[[list[Job]], Rows]


@preserve_rng_state()
def run_all(
    runs: Iterable[Run],
    *,
    ledger: str | Path | Literal[False] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    fleet: FleetOption = False,
    on_start: Callable[[list[Run]], object] | None = None,
    on_row: Callable[[EpochResult], object] | None = None,
    progress: bool | None = None,
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
        fleet: Whether to train Runs that differ in seed, level and optimiser alone as one set of
            tensors, see :class:`flooding.training.fleet.Fleet`; a number is the largest size of a
            fleet. "auto" measures a few steps and does so where it is faster, and takes a Record
            of either kind. The bits are not those of single Runs, so a fleet's Records are looked
            up with ``fleet`` alone. What cannot go in a fleet trains one by one.
        on_start: Called once with the Runs that must be trained.
        on_row: Called with every row of the Runs that are trained.
        progress: True shows a bar on standard error, or in a notebook, at once; False never. None
            shows it when the call takes longer than two seconds, if standard error is a terminal or
            this is a notebook. A call inside another one is counted on the bar of that one.

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
        >>> data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
        >>> problem = Problem(data, model, max_epochs=2)
        >>> runs = [Run(problem, level) for level in (None, 0.2)]
        >>> records = run_all(runs, ledger=False, workers=0)
        >>> [record.metrics["epochs"] for record in records]
        [2.0, 2.0]
    """
    runs = list(runs)
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}. 0 trains in this process.")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    check_device(device)
    return run_with(
        partial(_execute, workers=workers),
        runs,
        num_workers=available_cpus() if workers is None else workers,
        ledger=ledger,
        overwrite=overwrite,
        device=device,
        threads=threads,
        fleet=fleet,
        on_start=on_start,
        on_row=on_row,
        progress=progress,
    )


def run_with(
    execute: Execute,
    runs: list[Run],
    *,
    num_workers: int,
    ledger: str | Path | Literal[False] | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    threads: int = 1,
    fleet: FleetOption = False,
    on_start: Callable[[list[Run]], object] | None = None,
    on_row: Callable[[EpochResult], object] | None = None,
    progress: bool | None = None,
    places: Places | None = None,
) -> list[Record]:
    """Look Runs up in the ledger, and have the others trained wherever jobs can be executed.

    ``execute`` does each job and the forks of each in any order, ``num_workers`` at a time. Fleets
    train in ``places``; None is the workers of this machine, or one process on a GPU. The other
    arguments are those of :func:`run_all`; the device need not exist in this process.

    Returns:
        Records in the order of the Runs.
    """
    check_fleet_option(fleet)
    # Absolute, since a worker and a Run may change the working directory.
    path = None if ledger is False else str(absolute_path(ledger or default_path()))
    with show_progress(progress) as display:
        # Look up what was trained before.
        kernels: list[Kernel] = ["single"] * len(runs)
        if fleet is not False:
            kernels = ["fleet" if may_join(run) else "single" for run in runs]
        keys = run_keys(runs, kernels, device, threads)
        records: dict[int, Record] = {}
        if path is not None and not overwrite:
            records = load_cached(path, runs, keys, kernels, device, threads)
            if fleet == "auto":
                alone: list[Kernel] = ["single"] * len(runs)
                single_keys = run_keys(runs, alone, device, threads)
                records = load_cached(path, runs, single_keys, alone, device, threads) | records
        if path is not None and runs:
            log_lookup(path, len(records), keys)

        # Of equal Runs the first one is trained.
        duplicates = _find_duplicates(runs, keys, records)
        if on_start is not None:
            on_start([runs[index] for index in duplicates])
        on_row = display.follow(runs, duplicates, on_row)
        if duplicates:
            options = Job(
                number=0,
                run=runs[0],
                key=None,
                ledger=path,
                overwrite=overwrite,
                device=device,
                threads=threads,
                dtype=torch.get_default_dtype(),
                settings=capture_settings(),
                last_row_only=on_row is None,
            )
            with _open_ledger(path), _make_jobs(options, runs, keys, list(duplicates)) as jobs:
                fleets, rest = _split_off_fleets(jobs, fleet, num_workers, places)
                grouped = fleets + _group_by_prefix(rest, num_workers)
                trained = _train(jobs, grouped, execute, on_row)
            for index, equal in duplicates.items():
                records |= {other: replace(trained[index], run=runs[other]) for other in equal}
    return [records[index] for index in range(len(runs))]


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


def available_cpus() -> int:
    """Count the cores this process may use.

    Returns:
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _find_duplicates(
    runs: list[Run], keys: list[str | None], records: dict[int, Record]
) -> dict[int, list[int]]:
    """Group the Runs without a Record that are equal, by the index of the first one."""
    groups: dict[Hashable, list[int]] = {}
    for index, (run, key) in enumerate(zip(runs, keys, strict=True)):
        if index not in records:
            # A Run without a key is equal to itself alone.
            groups.setdefault((key or index, run.epochs), []).append(index)
    return {indices[0]: indices for indices in groups.values()}


@contextmanager
def _make_jobs(
    options: Job, runs: list[Run], keys: list[str | None], indices: list[int]
) -> Generator[list[Job], None, None]:
    """Make a job of each Run that must be trained, with a folder for its checkpoints.

    Yields:
        The jobs.
    """
    with scratch_folder() as scratch:
        folder = str(scratch) if options.ledger is None else f"{options.ledger}.checkpoints"
        files = Checkpoints(folder)
        files.prune()
        if count := files.count_old():
            log.warning(
                "%d checkpoints of flooding 0.1.0 in %s cannot be read; their runs begin anew. "
                "Delete them.",
                count,
                folder,
            )
        jobs = []
        for index in indices:
            # A Run without a key has no name that lasts: its checkpoints end with the call.
            checkpoint_folder = str(scratch) if keys[index] is None else folder
            job = options._replace(number=index, run=runs[index], key=keys[index])
            jobs.append(job._replace(checkpoint_folder=checkpoint_folder))
        yield jobs


@contextmanager
def _open_ledger(path: str | None) -> Generator[None, None, None]:
    """Keep the ledger open: else SQLite merges its log into the file whenever a worker closes it.

    Yields:
        Nothing.
    """
    if path is None:
        yield
        return
    with closing(Ledger(path)):
        yield


def _group_by_prefix(jobs: list[Job], workers: int) -> list[Job]:
    """Replace Runs that share their first steps by one job, their prefix."""
    # Group the jobs by the key of their prefix; a job that cannot share is a group of its own.
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        files = Checkpoints(job.checkpoint_folder or "")
        if job.overwrite:
            files.delete(job.name, job.run.epochs + 1)
        name: Hashable = ("alone", job.number)
        # A Run with a checkpoint is beyond its prefix.
        if can_share(job.run) and not files.exists(job.name, job.run.epochs):
            name = _prefix_key(job) or (id(job.run.problem), job.run.seed)
        groups.setdefault(name, []).append(job)

    grouped = []
    for group in groups.values():
        early = _leaves_early(group, workers)
        rest = [job for job in group if job not in early]
        if len(rest) > 1:
            rest = [_make_prefix(rest)]
        grouped += [*rest, *early]
    return grouped


def _prefix_key(job: Job) -> str | None:
    return run_key(prefix_run(job.run), device=job.device, threads=job.threads)


def _leaves_early(group: list[Job], workers: int) -> list[Job]:
    """Choose the Runs of a large group that begin alone, so that no worker waits for the prefix."""
    # Those with the highest levels would leave the prefix first.
    levels: list[tuple[float, Job]] = []
    for job in group:
        if isinstance(job.run.level, float):
            levels.append((job.run.level, job))
    levels.sort(key=lambda pair: pair[0], reverse=True)
    count = max(0, min(workers - 1, len(group) // 8))
    return [job for _, job in levels[:count]]


def _make_prefix(forks: list[Job]) -> Job:
    """Make the job that trains the shared prefix of several Runs."""
    first = forks[0]
    prefix = first._replace(run=prefix_run(first.run), key=_prefix_key(first), forks=tuple(forks))
    if prefix.overwrite:
        Checkpoints(prefix.checkpoint_folder or "").delete(prefix.name, prefix.run.epochs + 1)
    return prefix


# Training


def _train(
    jobs: list[Job],
    grouped: list[Job],
    execute: Execute,
    on_row: Callable[[EpochResult], object] | None,
) -> dict[int, Record]:
    """Train Runs, which are grouped, and give their Records, by the index of each."""
    records: dict[int, Record] = {}
    # Closed at once where the caller leaves early: whatever trains must end then.
    with closing(execute(grouped)) as rows:
        for index, row in rows:
            if on_row is not None:
                on_row(row)
            if row.record is not None:
                records[index] = row.record
    # What these Runs leave is of use to a longer Run alone, so it must not pile up.
    for folder in {job.checkpoint_folder for job in jobs}:
        Checkpoints(folder or "").prune()
    trained = sum(record.metadata["epochs_trained"] for record in records.values())
    epochs = sum(job.run.epochs for job in jobs)
    if trained < epochs:
        log.debug("%.0f %% of the steps were shared or done before", 100 - 100 * trained / epochs)
    return records


def _split_off_fleets(
    jobs: list[Job], fleet: FleetOption, workers: int, places: Places | None
) -> tuple[list[Job], list[Job]]:
    """Put the jobs that may and should train together into fleets; the others keep their own."""
    if fleet is False:
        return [], jobs
    joining = [job for job in jobs if may_join(job.run)]
    others = [job for job in jobs if not may_join(job.run)]
    if others:
        log.warning("%d runs train one by one: %s", len(others), refusal(others[0].run))
    if places is None:
        # One process fills a GPU, and several would share its memory.
        is_cpu = all(job.device == "cpu" and job.threads == 1 for job in joining)
        slots = max(workers, 1) if is_cpu else 1
        places = Places(slots, slots)
    fleets, alone = plan_fleets(joining, fleet, places)
    for job in alone:
        # Alone it is another computation, with a key of its own.
        key = run_key(job.run, device=job.device, threads=job.threads)
        others.append(job._replace(key=key))
    return fleets, others


def _execute(jobs: list[Job], workers: int | None) -> Rows:
    """Do jobs in worker processes where they can go there, else in this one."""
    runs = [run for job in jobs for run in _runs(job)]
    remote, local = _split_by_place(jobs, len(runs), workers)
    if remote:
        has_library_code = all(is_hashable(run) for run in runs)
        limit = min(workers or available_cpus(), _MAX_WORKERS)
        # The generator is closed before the pool is given back: whatever its workers still do must
        # have ended by then.
        with lend_pool(warm=has_library_code) as pool, closing(pool.run(remote, limit)) as results:
            for index, result in results:
                if isinstance(result, BaseException):
                    raise result
                yield index, result
    if local:
        yield from _execute_here(local)


def _split_by_place(
    jobs: list[Job], count: int, workers: int | None
) -> tuple[list[Job], list[Job]]:
    """Tell which jobs, of so many Runs, go to workers, and which are done in this process."""
    # In a thread of the caller's even one Run goes to a worker: other threads may draw from this
    # process's generator.
    in_thread = threading.current_thread() is not threading.main_thread()
    if workers == 0 or (count == 1 and not in_thread):
        return [], jobs
    remote, local, unpicklable = [], [], 0
    for job in jobs:
        picklable = all(is_picklable(run) for run in _runs(job))
        if not picklable:
            unpicklable += len(job.members) or len(job.forks) or 1
        if picklable and job.threads == 1:
            remote.append(job)
        else:
            local.append(job)
    if unpicklable:
        log.warning(
            "%d runs train in this process: their code cannot be sent to a worker. "
            "Import it from a module.",
            unpicklable,
        )
    return remote, local


def _runs(job: Job) -> list[Run]:
    """List the Runs that a job trains: its own, and those that share it as their prefix."""
    if job.members:
        return [member.run for member in job.members]
    return [job.run, *(fork.run for fork in job.forks)]


def _execute_here(jobs: list[Job]) -> Rows:
    """Do jobs one after another in this process."""
    watchdog = Watchdog()
    with watchdog.in_background():
        for job in jobs:
            watchdog.start("here", job.run)
            if job.members:
                for number, row in run_fleet(job):
                    watchdog.feed("here", row.epoch)
                    yield number, row
                    watchdog.feed("here")
                continue
            # First the whole prefix, then each of its forks in the order in which they left it.
            alone = [job]
            if job.forks:
                forks, alone = {fork.number: fork for fork in job.forks}, []
                for item in run_shared_prefix(job):
                    if isinstance(item, ForkReady):
                        alone.append(forks[item.number])
                    else:
                        watchdog.feed("here", item.epoch)
            for each in alone:
                watchdog.start("here", each.run)
                for row in run_job(each):
                    watchdog.feed("here", row.epoch)
                    yield each.number, row
                    watchdog.feed("here")  # the caller's own code may have taken long
