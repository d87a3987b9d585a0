"""The driver of a Ray cluster: hands jobs out as tasks, takes rows in, writes the ledger."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from flooding.integrations import require_framework
from flooding.integrations._ray_pickle import dumps
from flooding.integrations._ray_task import (
    Item,
    Started,
    TaskOptions,
    do_job,
    measure_there,
    versions,
)
from flooding.numerics import environment
from flooding.training.fleet.probe import Probe
from flooding.training.fleet_jobs import Places
from flooding.training.job_queue import JobQueue
from flooding.training.jobs import ForkReady, Job
from flooding.training.ledger import Ledger
from flooding.training.loop import EpochResult
from flooding.training.messages import PickledError, unpickle_message
from flooding.training.problem import Problem
from flooding.training.runner import Rows

with require_framework("ray"):
    import ray
    from ray import exceptions as ray_errors

__all__ = ["Resources", "TaskDriver", "count_slots"]

log = logging.getLogger("flooding")
_PATIENCE = 60.0  # seconds without any task at work after which the log says so, and so on
_SLOTS_AGE = 10.0  # seconds after which the size of the cluster is asked for again
_SPARE_TASKS = 64  # that wait in Ray, so that a cluster which can grow sees what there is to do
_TASKS_AT_A_TIME = 64  # that are handed out before the next look for messages
_ROW_INTERVAL = 0.1  # seconds for which a task collects rows ...
_ROW_INTERVAL_PER_SLOT = 0.002  # ... and more on a large cluster, so that the driver keeps up
# How a task ends whose process or machine died.
_DEATHS = (
    ray_errors.WorkerCrashedError,
    ray_errors.NodeDiedError,
    ray_errors.LocalRayletDiedError,
    ray_errors.OutOfMemoryError,
)


class Resources(NamedTuple):
    """What a task needs of its machine.

    Args:
        num_cpus: Processor cores; of less than 1 several tasks share one.
        num_gpus: GPUs; of less than 1 several tasks share one.
        custom: Resources that the cluster's nodes were started with, by name.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    custom: Mapping[str, float] = {}

    def by_name(self) -> dict[str, float]:
        """Give all of them by Ray's names, without those that are 0."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.custom}
        return {name: amount for name, amount in amounts.items() if amount}


def count_slots(resources: Resources) -> int:
    """Count the tasks that the cluster can do at a time, as large as it is now.

    Args:
        resources: What each needs.

    Returns:
        Their number; 0 if none fits.
    """
    return _count_fitting(ray.cluster_resources(), resources)


def _count_fitting(total: Mapping[str, float], resources: Resources) -> int:
    slots = [total.get(name, 0.0) / need for name, need in resources.by_name().items()]
    return math.floor(min(slots, default=1))


def _count_sharing(resources: Resources) -> int:
    """Count the tasks that share the memory of a GPU, or of a machine."""
    if resources.num_gpus:
        return max(1, math.floor(1 / resources.num_gpus))
    counts = [1]
    for node in ray.nodes():
        if node["Alive"]:
            counts.append(_count_fitting(node["Resources"], resources))
    return max(counts)


@dataclass(eq=False)
class _Task:
    """A job that Ray does, or will do."""

    stream: ray.ObjectRefGenerator
    started: Started | None = None
    error: Exception | None = None

    def exit_reason(self) -> str:
        """Say how it ended."""
        if self.error is None:
            return "its task ended without a result"
        where = f" on {self.started.host}" if self.started is not None else ""
        return f"{type(self.error).__name__}{where}: {str(self.error).strip()}"


class TaskDriver:
    """Does jobs on a cluster: what :func:`flooding.training.runner.run_with` needs.

    Ray places the tasks. A task that died is handed out again: its Run goes on from a checkpoint
    in the storage, or begins anew, with the same bits.

    Args:
        resources: What each task needs.
        storage: Where checkpoints outlive a machine; None is nowhere.
    """

    def __init__(self, resources: Resources, storage: str | None) -> None:
        self._resources = resources
        self._storage = storage
        self._slots, self._counted = max(1, count_slots(resources)), time.monotonic()
        self._problems: dict[int, tuple[Problem, ray.ObjectRef]] = {}
        self._checkpoints: dict[int, ray.ObjectRef] = {}  # of forks, by number
        self._processors: set[str] = set()
        self._has_warned_of_processors = False

    def __call__(self, jobs: Sequence[Job]) -> Rows:
        """Do jobs and the forks of each.

        Args:
            jobs: The jobs.

        Yields:
            The number of each Run with its rows; the Record of the last one is in the ledger.
        """
        path = jobs[0].ledger
        queue: JobQueue[_Task] = JobQueue(list(reversed(jobs)), self._limit())
        with contextlib.ExitStack() as stack:
            ledger = None if path is None else stack.enter_context(closing(Ledger(path)))
            try:
                while queue.waiting or queue.busy:
                    is_all = self._submit(queue)
                    for task in self._wait(queue, block=is_all):
                        yield from self._take(task, queue, ledger)
            finally:
                # The caller left early: what these tasks still do concerns nobody.
                for task in queue.busy:
                    with contextlib.suppress(Exception):
                        ray.cancel(task.stream, force=True)

    # Fleets

    def places(self) -> Places:
        """Tell where fleets train: one for each task that the cluster can do at a time.

        Returns:
            Their number, as large as the cluster is now.
        """
        return Places(self._slots, _count_sharing(self._resources), self._measure)

    def _measure(self, jobs: Sequence[Job], planned_epochs: float) -> Probe:
        """Measure a fleet on a machine of the cluster; its task is repeated if that dies."""
        problems: list[Problem] = []
        content = dumps(list(jobs), problems)
        task = ray.remote(measure_there).options(**self._options("flooding measures a fleet"))
        with _named_store_errors():
            put = [self._put(problem) for problem in problems]
            reference = task.remote(self._task_options(), content, planned_epochs, *put)
            try:
                result = ray.get(reference)
            except ray_errors.RayTaskError as error:
                raise _name_task_error(error) from error
            except _DEATHS as error:
                raise RuntimeError(
                    "the machines on which a fleet was measured died, and the last try as well: it "
                    "may need more memory than they have. Give a Run more of it "
                    "(resources={'memory': bytes}), or train one by one (fleet=False). "
                    f"{type(error).__name__}: {error}"
                ) from error
        if isinstance(result, PickledError):
            raise _unpickle_error(result)
        return cast(Probe, result)

    # Handing out

    def _limit(self) -> int:
        """Give the number of tasks that Ray may know of at a time."""
        if time.monotonic() - self._counted > _SLOTS_AGE:
            self._slots, self._counted = max(1, count_slots(self._resources)), time.monotonic()
        return 2 * self._slots + _SPARE_TASKS

    def _submit(self, queue: JobQueue[_Task]) -> bool:
        """Hand out jobs, a few at a time; tell whether these were all that may be handed out."""
        queue.limit = self._limit()
        for _ in range(_TASKS_AT_A_TIME):
            if not queue.waiting or len(queue.busy) >= queue.limit:
                return True
            job = queue.waiting.pop()
            queue.busy[self._start(job)] = job
        return False

    def _start(self, job: Job) -> _Task:
        """Hand a job to Ray."""
        problems: list[Problem] = []
        content = dumps([job], problems)
        options = self._options(f"flooding level={job.run.level} seed={job.run.seed}")
        # A task that is repeated must yield the same items in the same lists for Ray, but rows are
        # collected by the clock. Hence jobs are handed out again here.
        options |= {"num_returns": "streaming", "max_retries": 0}
        with _named_store_errors():
            stream = _REMOTE.options(**options).remote(
                self._task_options(),
                content,
                self._checkpoints.get(job.number),
                *(self._put(problem) for problem in problems),
            )
        return _Task(stream)

    def _task_options(self) -> TaskOptions:
        return TaskOptions(
            storage=self._storage,
            versions=versions(),
            search_path=[path or os.getcwd() for path in sys.path],
            folder=os.getcwd(),
            interval=_ROW_INTERVAL + _ROW_INTERVAL_PER_SLOT * self._slots,
        )

    def _options(self, name: str) -> dict[str, object]:
        """Give Ray's options of a task."""
        options: dict[str, object] = {
            "num_cpus": self._resources.num_cpus,
            "num_gpus": self._resources.num_gpus,
            "resources": dict(self._resources.custom),
            "name": name,
        }
        # These make torch choose its kernels when it starts; tasks without any share workers.
        if variables := environment():
            options["runtime_env"] = {"env_vars": dict(variables)}
        return options

    def _put(self, problem: Problem) -> ray.ObjectRef:
        """Give the reference to a Problem, which goes to the object store once."""
        if id(problem) not in self._problems:
            # Kept, so that its id stays its own.
            self._problems[id(problem)] = problem, ray.put(dumps(problem))
        return self._problems[id(problem)][1]

    # Taking in

    def _wait(self, queue: JobQueue[_Task], *, block: bool) -> list[_Task]:
        """Give the tasks that have something to say; wait for one if nothing else is to be done."""
        tasks = {task.stream: task for task in queue.busy}
        is_idle = not any(task.started for task in queue.busy)
        timeout = _PATIENCE if is_idle else queue.watchdog.seconds_left()
        ready, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0, fetch_local=False)
        if not ready and not block:
            return []
        if not ready:
            ready, _ = ray.wait(list(tasks), timeout=max(0.05, timeout), fetch_local=False)
        if not ready and is_idle:
            log.warning(
                "no run has begun for %.0f s: each needs %s of a node, and the cluster has %s, of "
                "which %s are free; still waiting.",
                _PATIENCE,
                self._resources.by_name(),
                _rounded(ray.cluster_resources()),
                _rounded(ray.available_resources()),
            )
        queue.watchdog.report()
        return [tasks[stream] for stream in ready]

    def _take(
        self, task: _Task, queue: JobQueue[_Task], ledger: Ledger | None
    ) -> Iterator[tuple[int, EpochResult]]:
        """Take the next item of a task."""
        job = queue.busy[task]
        try:
            item: Item = ray.get(next(task.stream))
        except ray_errors.ObjectLostError as error:
            # The checkpoint that it needs went down with a machine. Ray gives that as an error of
            # the task, too.
            task.error = error
            self._note_death(task, queue)
            return
        except ray_errors.RayTaskError as error:
            # It failed outside of the Run: the function itself cannot be imported there, say.
            raise _name_task_error(error) from error
        except (ray_errors.RayError, StopIteration) as error:
            task.error = None if isinstance(error, StopIteration) else error
            self._note_death(task, queue)
            return
        if isinstance(item, Started):
            task.started = item
            queue.watchdog.start(task, job.run)
            self._compare_processors(item)
            if ledger is not None and job.key is not None and not job.forks:
                ledger.start(job.name, job.run.epochs)
        elif isinstance(item, PickledError):
            raise _unpickle_error(item)
        else:
            assert isinstance(item, list)
            queue.watchdog.feed(task)
            for row in item:
                if isinstance(row, ForkReady):
                    # Its checkpoint stays where it is, until the fork's own task fetches it.
                    with contextlib.suppress(StopIteration):
                        self._checkpoints[row.number] = next(task.stream)
                for number, result in queue.process(task, row):
                    self._store(job.job_of(number), result, ledger)
                    yield number, result

    def _store(self, job: Job, result: EpochResult, ledger: Ledger | None) -> None:
        """Write a Record before it is passed on: a driver that is killed then loses nothing."""
        if result.record is None:
            return
        self._checkpoints.pop(job.number, None)
        if ledger is not None and job.key is not None:
            ledger.add(job.key, result.record, replace=job.overwrite)

    def _note_death(self, task: _Task, queue: JobQueue[_Task]) -> None:
        """Let the job of a dead task wait again."""
        job = queue.busy[task]
        queue.note_death(task)
        log.info(
            "the run with level %s and seed %d begins again: %s",
            job.run.level,
            job.run.seed,
            task.exit_reason().splitlines()[0],
        )
        if task.started is None:
            # It may have waited for a checkpoint that went down with its machine.
            self._checkpoints.pop(job.number, None)
        queue.busy.pop(task)
        queue.waiting.append(job)

    def _compare_processors(self, started: Started) -> None:
        """Say once that Records of different processors agree within rounding alone."""
        known = {torch.backends.cpu.get_cpu_capability()} if not self._resources.num_gpus else set()
        self._processors |= known | ({started.processor} if known else set())
        if len(self._processors) > 1 and not self._has_warned_of_processors:
            self._has_warned_of_processors = True
            log.warning(
                "torch uses %s here or on other machines, and %s on %s: Records of different "
                "processors agree within rounding, not to the bit.",
                " and ".join(sorted(self._processors - {started.processor})),
                started.processor,
                started.host,
            )


@contextlib.contextmanager
def _named_store_errors() -> Generator[None, None, None]:
    """Say what is full, and what helps."""
    try:
        yield
    except (ray_errors.ObjectStoreFullError, ray_errors.OutOfDiskError) as error:
        raise RuntimeError(
            "Ray's object store must have room for the data of the Problems, but it is full. "
            f"Start Ray with a larger object_store_memory. {type(error).__name__}: {error}"
        ) from error


def _name_task_error(error: ray_errors.RayTaskError) -> RuntimeError:
    """Say what a task that failed outside of the Run may lack."""
    return RuntimeError(
        "a task of Ray failed before it could train. Is the same version of flooding installed on "
        f"every node? {error}"
    )


def _unpickle_error(error: PickledError) -> BaseException:
    unpickled = unpickle_message(pickle.dumps(error))
    assert isinstance(unpickled, BaseException)
    return unpickled


def _rounded(resources: Mapping[str, float]) -> dict[str, float]:
    """Leave out the names of nodes, and bytes."""
    names = [name for name in resources if name in {"CPU", "GPU"}]
    return {name: round(resources[name], 2) for name in sorted(names)}


_REMOTE = ray.remote(do_job)
