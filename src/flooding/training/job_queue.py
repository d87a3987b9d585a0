"""The jobs of one call, whatever does them: processes of this machine, or tasks of a cluster."""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from flooding.training.jobs import ForkReady, Job, PrefixEpoch
from flooding.training.loop import EpochResult
from flooding.training.messages import EpochMessage, News
from flooding.training.watchdog import Watchdog

__all__ = ["JobQueue", "Worker"]

_MAX_DEATHS = 5  # in a row, without getting any further than before


class Worker(Hashable, Protocol):
    """What does a job, and may die."""

    def exit_reason(self) -> str:
        """Say how it died."""
        ...


W = TypeVar("W", bound=Worker)


@dataclass
class JobQueue(Generic[W]):
    """The jobs of one call: which wait, which worker does which, and how far each ever got.

    Args:
        waiting: The jobs that wait, the next one last.
        limit: How many workers may work at a time.
        busy: The job of each worker.
        watchdog: Says when a Run has had no news for a while.
        deaths: Deaths of workers in a row, by the name of the job, without getting any further.
        progress: How far each job ever got, by its name.
    """

    waiting: list[Job]
    limit: int
    busy: dict[W, Job] = field(default_factory=dict)
    watchdog: Watchdog = field(default_factory=Watchdog)
    deaths: collections.Counter[str] = field(default_factory=collections.Counter)
    progress: dict[str, float] = field(default_factory=dict)

    def process(self, worker: W, item: News) -> Iterator[tuple[int, EpochResult]]:
        """Take one item of a worker's message.

        Args:
            worker: Who sent it.
            item: An epoch of its Run, or a fork that can go on alone.

        Yields:
            The number of the job and the row that the item holds.
        """
        job = self.busy[worker]
        if isinstance(item, PrefixEpoch):
            self.watchdog.feed(worker, item.epoch)
            return
        self._note_progress(job, item)
        if isinstance(item, ForkReady):
            # The Run that left the prefix is a job of its own now.
            self.waiting += [fork for fork in job.forks if fork.number == item.number]
            forks = tuple(fork for fork in job.forks if fork.number != item.number)
            self.busy[worker] = job._replace(forks=forks)
            is_done = not forks
        else:
            self.watchdog.feed(worker, item.epoch)
            # Of a fleet every row names its Run; those that have ended need no new worker.
            member = job.job_of(item.number)
            yield member.number, EpochResult(member.run, item.epoch, item.values, item.record)
            is_done = item.record is not None
            if is_done and job.members:
                members = tuple(m for m in job.members if m.number != item.number)
                self.busy[worker] = job._replace(members=members)
                is_done = not members
        if is_done:
            self.end_job(worker)

    def _note_progress(self, job: Job, item: EpochMessage | ForkReady) -> None:
        """Forget a job's deaths when it gets further than ever before."""
        reached = -len(job.forks) if isinstance(item, ForkReady) else item.epoch
        if reached > self.progress.get(job.name, -math.inf):
            self.progress[job.name] = reached
            self.deaths[job.name] = 0

    def note_death(self, worker: W) -> None:
        """Count the death of a busy worker; give up a job that kills its workers.

        Args:
            worker: Who died.

        Raises:
            RuntimeError: If workers died too often on its job.
        """
        job = self.busy[worker]
        self.deaths[job.name] += 1
        if self.deaths[job.name] == _MAX_DEATHS:
            raise RuntimeError(
                f"a worker died {_MAX_DEATHS} times on the run with level {job.run.level} and seed "
                f"{job.run.seed}: {worker.exit_reason()}"
            )
        self.watchdog.stop(worker)

    def end_job(self, worker: W) -> None:
        """Let a worker have nothing to do."""
        self.busy.pop(worker)
        self.watchdog.stop(worker)
