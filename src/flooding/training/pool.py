"""A pool of worker processes: which worker does which job, and what happens when one dies."""

from __future__ import annotations

import atexit
import codecs
import collections
import contextlib
import json
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from flooding.training.jobs import ForkReady, Job
from flooding.training.loop import EpochResult
from flooding.training.messages import (
    EpochMessage,
    Message,
    read_message,
    unpickle_message,
    write_message,
)
from flooding.training.watchdog import Watchdog

__all__ = ["Pool"]

_MAX_DEATHS = 5  # in a row, without getting any further than before
_OUTPUT_LENGTH = 1 << 16  # characters of a worker's output that are remembered
_QUOTE_LENGTH = 2000  # and those that an error quotes

# Ctrl-C is the parent's to handle, also while a worker still imports.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from flooding.training.worker import serve; serve(int(sys.argv[2]))"
)


class Pool:
    """Worker processes, kept warm between calls and started when there is work for them."""

    def __init__(self) -> None:
        self._messages: _MessageQueue = queue.SimpleQueue()
        self._workers: list[_WorkerProcess] = []
        atexit.register(self.close)

    def __len__(self) -> int:
        return len(self._workers)

    def run(
        self, jobs: Sequence[Job], workers: int
    ) -> Generator[tuple[int, EpochResult | BaseException], None, None]:
        """Do jobs on several workers and pass on what they send, in the order it happens.

        Args:
            jobs: The jobs, longest first if they differ.
            workers: How many may work at a time, at least 1; never more are used than there are
                Runs.

        Yields:
            The number of a job, and a row or an exception. The last row of a job carries its
            Record; prefixes have no rows.

        A Run whose worker died five times without getting any further, as when memory runs out,
        raises a RuntimeError.
        """
        limit = min(workers, sum(len(job.forks) or 1 for job in jobs))
        call = _Call(list(reversed(jobs)), limit)
        # All at once, since a worker takes two seconds to start.
        while len(self._workers) < limit:
            self._workers.append(_WorkerProcess(self._messages))
        try:
            self._dispatch(call)
            while call.busy:
                worker, message = self._receive(call)
                if message is None:
                    # The worker died. Its job goes to a new one, which goes on from a checkpoint.
                    call.note_death(worker)
                    self._assign(call, worker, call.busy.pop(worker))
                    continue
                call.watchdog.feed(worker)
                if isinstance(message, BaseException):
                    yield call.busy[worker].number, message
                    call.end_job(worker)
                else:
                    for item in message:
                        yield from call.process(worker, item)
                self._dispatch(call)
        finally:
            # The caller left early: what these workers still do concerns nobody.
            for worker in call.busy:
                worker.end()
                self._workers.remove(worker)

    def _receive(self, call: _Call) -> tuple[_WorkerProcess, Message | None]:
        """Wait for a message from a worker of a call; None is its death."""
        while True:
            try:
                worker, message = self._messages.get(timeout=call.watchdog.seconds_left())
            except queue.Empty:
                call.watchdog.report()
                continue
            # Other messages come from workers that died with nothing to do.
            if worker in call.busy:
                # A Run may be overdue also where another one sends all the time.
                if self._messages.empty():
                    call.watchdog.report()
                return worker, message

    def _dispatch(self, call: _Call) -> None:
        """Give the jobs that wait to workers that have nothing to do."""
        for worker in list(self._workers):
            if call.waiting and worker not in call.busy and len(call.busy) < call.limit:
                self._assign(call, worker, call.waiting.pop())

    def _assign(self, call: _Call, worker: _WorkerProcess, job: Job) -> None:
        """Give a job to a worker; to a new one if it has died, perhaps long ago."""
        if worker.is_gone:
            worker = self._replace(worker)
        call.busy[worker] = job
        call.watchdog.start(worker, job.run)
        worker.send(job)

    def _replace(self, worker: _WorkerProcess) -> _WorkerProcess:
        worker.end()
        successor = _WorkerProcess(self._messages)
        self._workers[self._workers.index(worker)] = successor
        return successor

    def close(self) -> None:
        """End the workers and every process that they started."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        atexit.unregister(self.close)


@dataclass
class _Call:
    """The state of one call of :meth:`Pool.run`."""

    waiting: list[Job]  # the next one last
    limit: int  # of workers at a time
    busy: dict[_WorkerProcess, Job] = field(default_factory=dict)
    watchdog: Watchdog = field(default_factory=Watchdog)
    deaths: collections.Counter[str] = field(default_factory=collections.Counter)
    progress: dict[str, float] = field(default_factory=dict)  # how far each job ever got

    def process(
        self, worker: _WorkerProcess, item: EpochMessage | ForkReady
    ) -> Iterator[tuple[int, EpochResult]]:
        """Take one item of a worker's message; give the row that it holds."""
        job = self.busy[worker]
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
            member = next((m for m in job.members if m.number == item.number), job)
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

    def note_death(self, worker: _WorkerProcess) -> None:
        """Count the death of a busy worker; give up a job that kills its workers."""
        job = self.busy[worker]
        self.deaths[job.name] += 1
        if self.deaths[job.name] == _MAX_DEATHS:
            raise RuntimeError(
                f"a worker died {_MAX_DEATHS} times on the run with level {job.run.level} and seed "
                f"{job.run.seed}: {worker.exit_reason()}"
            )
        self.watchdog.stop(worker)

    def end_job(self, worker: _WorkerProcess) -> None:
        """Let a worker have nothing to do."""
        self.busy.pop(worker)
        self.watchdog.stop(worker)


class _WorkerProcess:
    """One child process, and the threads that read its messages and what it prints.

    Args:
        messages: Where its messages go; None at last, when it has died.
    """

    def __init__(self, messages: _MessageQueue) -> None:
        # One thread each from the start: two workers of one thread beat one of two, and OpenMP
        # reads this only once.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            # -P and the path first: files in the working directory must not stand in for modules.
            [sys.executable, "-P", "-c", _START, json.dumps(_search_path()), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            # A group of its own, which ends with it: whatever the user's code started.
            start_new_session=True,
        )
        self._parent_pid = os.getpid()
        self._output = ""  # the end of what it printed
        self.is_gone = False
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()
        self._stderr_thread = threading.Thread(target=self._forward_stderr, daemon=True)
        self._stderr_thread.start()
        self._reaper = threading.Thread(target=self._reap, daemon=True)
        self._reaper.start()

    def send(self, job: Job) -> None:
        """Give it a job."""
        assert self._process.stdin is not None
        self._output = ""  # what it printed about an earlier job explains nothing about this one
        # The path and the folder go along: either may have changed since the worker started.
        content = pickle.dumps((_search_path(), os.getcwd(), pickle.dumps(job)))
        with contextlib.suppress(OSError):  # it just died: the listening thread says so
            write_message(self._process.stdin.fileno(), content)

    def exit_reason(self) -> str:
        """Say how it ended, and what it printed last."""
        # Not wait(), which would reap it before its group has ended.
        self._reaper.join(timeout=5)
        self._stderr_thread.join(timeout=1)
        code = self._process.returncode
        if code is None or code >= 0:
            cause = f"it ended with exit code {code}"
        else:
            cause = f"killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                cause += "; is there memory?"
        if quote := _quote(self._output):
            return f"{cause}. It printed last:\n{quote}"
        return f"{cause}. It printed nothing."

    def end(self) -> None:
        """End it and every process that it started."""
        self._kill()
        self._reaper.join()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _listen(self, messages: _MessageQueue) -> None:
        """Pass its messages on until it dies."""
        pipe = self._process.stdout
        assert pipe is not None
        try:
            with pipe, contextlib.suppress(EOFError, OSError):
                while True:
                    messages.put((self, unpickle_message(read_message(pipe.fileno()))))
        finally:
            self.is_gone = True
            messages.put((self, None))

    def _forward_stderr(self) -> None:
        """Print what it prints on this process's standard error, and remember the end of it."""
        pipe = self._process.stderr
        assert pipe is not None
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        with pipe, contextlib.suppress(OSError):
            while part := os.read(pipe.fileno(), 1 << 16):
                text = decode(part)
                self._output = (self._output + text)[-_OUTPUT_LENGTH:]
                # Standard error may be closed, or None.
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    sys.stderr.write(text)
                    sys.stderr.flush()

    def _reap(self) -> None:
        """Wait for its end, then end what it started: its pipes close with the last of them."""
        if hasattr(os, "waitid"):
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
                # Before it is reaped: until then no other group can have its number.
                self._kill()
        self._process.wait()

    def _kill(self) -> None:
        """Kill its process group; in a process forked from the parent this does nothing."""
        if self._process.returncode is not None or os.getpid() != self._parent_pid:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


_MessageQueue: TypeAlias = "queue.SimpleQueue[tuple[_WorkerProcess, Message | None]]"


def _quote(output: str) -> str:
    """Quote what explains a worker's death: Python's fatal error, or the last lines."""
    lines = output.strip().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("Extension modules:"))
    fatal = text.rfind("Fatal Python error:")
    if fatal >= 0:
        return text[fatal:][: 2 * _QUOTE_LENGTH]
    return text[-_QUOTE_LENGTH:]


def _search_path() -> list[str]:
    """Give the module search path, with the working directory spelled out."""
    return [entry or os.getcwd() for entry in sys.path]
