"""A task of Ray: does one job on some machine of the cluster, and yields what the driver needs."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch

from flooding.integrations._ray_pickle import loads
from flooding.numerics import environment
from flooding.training.checkpoint_storage import CheckpointStorage
from flooding.training.fleet.probe import Probe
from flooding.training.fleet_jobs import execute_job, measure_jobs
from flooding.training.jobs import ForkReady, Job
from flooding.training.loop import NUMERICS_VERSION
from flooding.training.messages import News, PickledError, batched, picklable_error
from flooding.training.problem import Problem
from flooding.training.progress import disable as disable_progress
from flooding.training.runner import check_device
from flooding.training.scratch import scratch_folder

__all__ = [
    "CheckpointFile",
    "Item",
    "Started",
    "TaskOptions",
    "do_job",
    "measure_there",
    "versions",
]


class TaskOptions(NamedTuple):
    """What all tasks of a call have in common.

    Args:
        storage: Where checkpoints outlive a machine; None is nowhere.
        versions: What must be equal here and where the Runs' keys were made, see :func:`versions`.
        search_path: Folders of modules, as far as this machine has them.
        folder: Working directory, if this machine has it.
        interval: Seconds for which rows are collected.
    """

    storage: str | None
    versions: Mapping[str, object]
    search_path: Sequence[str]
    folder: str
    interval: float


class Started(NamedTuple):
    """The first thing that a job's task yields.

    Args:
        host: Name of its machine.
        processor: Instructions that torch uses on it, such as AVX512.
    """

    host: str
    processor: str


class CheckpointFile(NamedTuple):
    """A checkpoint from which a fork goes on, on its way to another machine."""

    name: str
    content: bytes


# A list of rows; after each ForkReady its checkpoint, or None where it begins anew.
Item = Started | list[News] | CheckpointFile | None | PickledError


def versions() -> dict[str, object]:
    """Give what changes the bits of every Run, and is not part of it.

    Returns:
        Versions of the numerics and of torch, and variables by name.
    """
    return {"numerics": NUMERICS_VERSION, "torch": torch.__version__, **environment()}


def do_job(
    options: TaskOptions, content: bytes, checkpoint: CheckpointFile | None, *problems: bytes
) -> Iterator[Item]:
    """Do a job; a prefix ends when all its forks can go on.

    Args:
        options: What all tasks have in common.
        content: The pickled job in a list, without its Problems.
        checkpoint: The checkpoint from which it goes on, from its prefix.
        *problems: The pickled Problems.

    Yields:
        First :class:`Started`, then rows; last an error if there was one.
    """
    try:
        yield Started(platform.node(), torch.backends.cpu.get_cpu_capability())
        yield from _do_job(options, content, checkpoint, problems)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the driver raises it
        yield picklable_error(error)


def _do_job(
    options: TaskOptions,
    content: bytes,
    checkpoint: CheckpointFile | None,
    problems: Sequence[bytes],
) -> Iterator[Item]:
    _check_versions(options.versions)
    _prepare_process(options)
    [job] = _load_jobs(content, problems)
    with scratch_folder() as folder:
        job = _move(job, folder)
        if checkpoint is not None:
            (folder / checkpoint.name).write_bytes(checkpoint.content)
        names = [each.name for each in (job, *job.forks, *job.members) if each.key is not None]
        storage = None
        if options.storage is not None and names:
            storage = CheckpointStorage(options.storage, folder, names)
            if not job.overwrite:
                storage.download()
        forks = {fork.number: fork for fork in job.forks}
        for batch in batched(execute_job(job), job.last_row_only, options.interval):
            if storage is not None:
                storage.upload()
            yield batch
            for item in batch:
                if isinstance(item, ForkReady):
                    yield _read_checkpoint(folder, forks[item.number])


def measure_there(
    options: TaskOptions, content: bytes, planned_epochs: float, *problems: bytes
) -> Probe | PickledError:
    """Measure a fleet on the machine that its Runs would train on.

    Args:
        options: What all tasks have in common.
        content: The pickled jobs, without their Problems.
        planned_epochs: See :func:`flooding.training.fleet_jobs.measure_jobs`.
        *problems: The pickled Problems.

    Returns:
        What was measured, or an error.
    """
    try:
        _check_versions(options.versions)
        _prepare_process(options)
        return measure_jobs(_load_jobs(content, problems), planned_epochs)
    except (Exception, SystemExit) as error:  # noqa: BLE001 -- the driver raises it
        return picklable_error(error)


def _load_jobs(content: bytes, problems: Sequence[bytes]) -> list[Job]:
    """Unpickle jobs, and make their default type this process's."""
    unpickled = [cast(Problem, loads(problem)) for problem in problems]
    jobs = cast(list[Job], loads(content, unpickled))
    check_device(jobs[0].device)
    torch.set_default_dtype(jobs[0].dtype)
    return jobs


def _check_versions(expected: Mapping[str, object]) -> None:
    """Refuse a machine on which a Run would get other bits than its key stands for."""
    actual = versions()
    for name in expected.keys() | actual.keys():
        if expected.get(name) != actual.get(name):
            raise ValueError(
                f"all machines must have the same {name}, got {expected.get(name)} where the "
                f"call was made and {actual.get(name)} on {platform.node()}. Make them equal."
            )


def _prepare_process(options: TaskOptions) -> None:
    """Find modules and files where the driver finds them, if they are there."""
    disable_progress()
    sys.path += [path for path in options.search_path if path not in sys.path]
    with contextlib.suppress(OSError):
        os.chdir(options.folder)


def _move(job: Job, folder: Path) -> Job:
    """Keep a job's checkpoints in a folder of this machine, and its Record for the driver."""
    forks = tuple(_move(fork, folder) for fork in job.forks)
    members = tuple(_move(member, folder) for member in job.members)
    moved = job._replace(ledger=None, checkpoint_folder=str(folder))
    return moved._replace(forks=forks, members=members)


def _read_checkpoint(folder: Path, fork: Job) -> CheckpointFile | None:
    """Read the latest checkpoint of a fork."""
    files = [path for path in folder.glob(f"{fork.name}-*.pt") if _epoch(path) <= fork.run.epochs]
    if not files:
        return None
    latest = max(files, key=_epoch)
    return CheckpointFile(latest.name, latest.read_bytes())


def _epoch(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
