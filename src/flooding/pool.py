"""Worker processes that train Runs: plain child processes with a pipe each, restarted when they die.

``multiprocessing`` is not used: its spawned children import the caller's script again (a script without a
``__main__`` guard then runs itself without end), its executor breaks every pending future when one worker is killed,
and its pool hangs. Here a worker is a plain Python process that calls :func:`serve`; it leaves when its pipe from the
parent closes, or its parent is gone.

The user's code in a worker may fork, start processes and threads, print and read. So the protocol uses file descriptors
of its own and no Python object that a forked child could wait for: standard input is empty, and standard output and
error go to the parent, which passes them on and remembers the end of them for its errors.
"""

from __future__ import annotations

import atexit
import codecs
import collections
import contextlib
import faulthandler
import json
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from flooding.checkpoints import Checkpoints, Pace
from flooding.ledger import Ledger
from flooding.loop import Row, fingerprint, train
from flooding.problem import Record, Run, is_promised
from flooding.sharing import Trunk, past
from flooding.watchdog import Watchdog

__all__ = ["Job", "Pool", "Ready", "can_travel", "lead", "serve", "work"]

_ATTEMPTS = 5  # deaths in a row without getting any further than before
_HEARTBEAT = 5.0  # seconds between two signs of life of a Run whose rows nobody wants
_ORPHAN_CHECK = 1.0  # seconds between two looks of a worker whether its parent is there
_STDERR_KEPT = 1 << 16  # characters of a worker's output that are remembered
_STDERR_QUOTED = 2000  # and those that an error quotes
# Ctrl-C is the parent's to handle, also while a worker still imports.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from flooding.pool import serve; serve(int(sys.argv[2]))"
)


class Job(NamedTuple):
    """What a worker needs to train one Run, or the trunk that several share."""

    number: int
    run: Run
    trajectory: str | None
    ledger: str | None
    fresh: bool = False
    device: str = "cpu"
    threads: int = 1
    first_flooded: bool = False
    dtype: torch.dtype = torch.float32
    settings: dict[str, Any] = {}  # ruff: ignore[mutable-class-default] -- torch's, see flooding.numerics; never changed
    folder: str | None = None  # of checkpoints
    quiet: bool = False  # nobody wants rows but the last
    forks: tuple[Job, ...] = ()  # if there are any, the Run is their trunk and has no Record of its own

    @property
    def name(self) -> str:
        """Name of its checkpoints."""
        return ("trunk-" if self.forks else "") + (self.trajectory or f"run-{self.number}")


class Ready(NamedTuple):
    """Told by a trunk: the Run of this number can go on alone. After the last one the trunk has ended."""

    number: int


class Pool:
    """Worker processes, kept warm between calls and started when there is work for them."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        atexit.register(self.close)

    def __len__(self) -> int:
        return len(self._workers)

    def work(self, jobs: Sequence[Job], workers: int) -> Generator[tuple[int, Row | BaseException], None, None]:
        """Train Runs on several workers and pass on what they tell, in the order it happens.

        Args:
            jobs: The Runs, longest first if they differ.
            workers: How many may work at a time, at least 1; never more are used than there are Runs.

        Yields:
            The number of a job, and a row or an exception. The last row of a job carries its Record; trunks have no
            rows.

        Raises:
            RuntimeError: If a Run's worker died five times and the Run got no further, as when memory runs out.
        """
        waiting, busy, died = list(reversed(jobs)), {}, collections.Counter()
        furthest: dict[str, int] = {}
        watchdog = Watchdog()
        limit = min(workers, sum(len(job.forks) or 1 for job in jobs))
        while len(self._workers) < limit:  # at once, since a worker takes two seconds to start
            self._workers.append(_Worker(self._news))
        try:
            self._deal(waiting, busy, limit, watchdog)
            while busy:
                try:
                    worker, news = self._news.get(timeout=watchdog.seconds_left())
                except queue.Empty:
                    watchdog.report()
                    continue
                if worker not in busy:
                    continue
                if self._news.empty():  # also where another run has news all the time
                    watchdog.report()
                job = busy[worker]
                if news is None:  # the worker died
                    died[job.name] += 1
                    if died[job.name] == _ATTEMPTS:
                        raise RuntimeError(
                            f"a worker died {_ATTEMPTS} times on the run with level {job.run.level} and seed "
                            f"{job.run.seed}: {worker.exit_reason()}"
                        )
                    watchdog.stop(worker)
                    self._give(worker, busy.pop(worker), busy, watchdog)
                    continue
                watchdog.feed(worker)
                ended = isinstance(news, BaseException)
                if ended:
                    yield job.number, news
                for item in [] if ended else news:
                    reached = -len(job.forks) if isinstance(item, Ready) else item.epoch
                    if reached > furthest.get(job.name, -(1 << 30)):
                        furthest[job.name], died[job.name] = reached, 0
                    if not isinstance(item, Ready):
                        watchdog.feed(worker, item.epoch)
                        yield job.number, replace(item, run=job.run)
                        ended = item.record is not None
                    else:
                        waiting += [fork for fork in job.forks if fork.number == item.number]
                        job = job._replace(forks=tuple(f for f in job.forks if f.number != item.number))
                        busy[worker], ended = job, not job.forks
                if ended:
                    busy.pop(worker)
                    watchdog.stop(worker)
                self._deal(waiting, busy, limit, watchdog)
        finally:
            for worker in busy:  # left early: what these still do concerns nobody
                worker.end()
                self._workers.remove(worker)

    def _deal(self, waiting: list[Job], busy: dict[_Worker, Job], limit: int, watchdog: Watchdog) -> None:
        """Give what waits to whoever has nothing to do."""
        for worker in list(self._workers):
            if waiting and worker not in busy and len(busy) < limit:
                self._give(worker, waiting.pop(), busy, watchdog)

    def _give(self, worker: _Worker, job: Job, busy: dict[_Worker, Job], watchdog: Watchdog) -> None:
        if worker.gone:  # perhaps long ago, while it had nothing to do
            worker = self._replace(worker)
        busy[worker] = job
        watchdog.start(worker, job.run)
        worker.send(job)

    def _replace(self, worker: _Worker) -> _Worker:
        worker.end()
        fresh = _Worker(self._news)
        self._workers[self._workers.index(worker)] = fresh
        return fresh

    def close(self) -> None:
        """End the workers and every process that they started."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        atexit.unregister(self.close)


class _Worker:
    """One child process, and the threads that read what it tells and what it prints."""

    def __init__(self, news: queue.SimpleQueue) -> None:
        # One thread each from the start: two workers of one thread beat one of two, and OpenMP reads this only once.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            # -P and the path first: files in the working directory must not stand in for modules.
            [sys.executable, "-P", "-c", _START, json.dumps(_path()), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,  # a group of its own, which ends with it: whatever the user's code started
        )
        self._creator = os.getpid()
        self._tail = ""
        self.gone = False
        threading.Thread(target=self._listen, args=(news,), daemon=True).start()
        self._stderr_thread = threading.Thread(target=self._forward_stderr, daemon=True)
        self._stderr_thread.start()
        self._reaper = threading.Thread(target=self._reap, daemon=True)
        self._reaper.start()

    def _listen(self, news: queue.SimpleQueue) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            with pipe, contextlib.suppress(EOFError, OSError):
                while True:
                    news.put((self, _unpickle_news(_read(pipe.fileno()))))
        finally:
            self.gone = True
            news.put((self, None))

    def _forward_stderr(self) -> None:
        """Pass what the worker prints on to this process's standard error, and remember the end of it."""
        pipe = self._process.stderr
        assert pipe is not None
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        with pipe, contextlib.suppress(OSError):
            while part := os.read(pipe.fileno(), 1 << 16):
                text = decode(part)
                self._tail = (self._tail + text)[-_STDERR_KEPT:]
                with contextlib.suppress(OSError, ValueError, AttributeError):  # it may be closed, or None
                    sys.stderr.write(text)
                    sys.stderr.flush()

    def _reap(self) -> None:
        """End what the worker started when the worker itself has ended: its pipes close with the last of them."""
        if hasattr(os, "waitid"):
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
                self._kill()  # before it is reaped: until then its group has its number
        self._process.wait()

    def _kill(self) -> None:
        if self._process.returncode is not None or os.getpid() != self._creator:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._process.kill()

    def send(self, job: Job) -> None:
        assert self._process.stdin is not None
        self._tail = ""  # what it printed about an earlier job explains nothing about this one
        with contextlib.suppress(OSError):  # it just died: the listening thread says so
            # The path and the folder go along: either may have changed since the worker started.
            _write(self._process.stdin.fileno(), pickle.dumps((_path(), os.getcwd(), pickle.dumps(job))))

    def exit_reason(self) -> str:
        """Say how the worker ended, and what it said last."""
        self._reaper.join(timeout=5)  # and not wait(), which would reap it before its group has ended
        self._stderr_thread.join(timeout=1)
        code = self._process.returncode
        if code is not None and code < 0:
            cause = f"killed by {signal.Signals(-code).name}"
            cause += "; is there memory?" if code == -signal.SIGKILL else ""
        else:
            cause = f"it ended with exit code {code}"
        tail = _quote(self._tail)
        return f"{cause}. It printed last:\n{tail}" if tail else f"{cause}. It printed nothing."

    def end(self) -> None:
        self._kill()
        self._reaper.join()
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]


def _quote(printed: str) -> str:
    """Return the part of a worker's output that explains its death: Python's fatal error, or the last lines."""
    lines = [line for line in printed.strip().splitlines() if not line.startswith("Extension modules:")]
    text = "\n".join(lines)
    fatal = text.rfind("Fatal Python error:")
    if fatal >= 0:
        return text[fatal:][: 2 * _STDERR_QUOTED]
    return text[-_STDERR_QUOTED:]


def _write(descriptor: int, message: bytes) -> None:
    """Write a message with its length before it."""
    rest = memoryview(struct.pack("<Q", len(message)) + message)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int) -> bytes:
    """Read a message; EOFError where whoever wrote it died, perhaps in the middle."""
    (size,) = struct.unpack("<Q", _read_exactly(descriptor, 8))
    return _read_exactly(descriptor, size)


def _read_exactly(descriptor: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(descriptor, min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _path() -> list[str]:
    """Give the module search path, with the working directory spelled out."""
    return [entry or os.getcwd() for entry in sys.path]


def can_travel(run: Run) -> bool:
    """Tell whether a Run can go to a worker process.

    Args:
        run: The Run.

    Returns:
        False if it cannot be pickled or refers to code of the ``__main__`` script, which workers do not import.
    """
    try:
        return b"__main__" not in pickle.dumps(run)
    except Exception:  # noqa: BLE001 -- whatever a user's object raises, it cannot travel
        return False


def work(job: Job) -> Iterator[Row]:
    """Train one Run and store its Record, from its checkpoint if there is one; or look it up.

    Args:
        job: The Run and where its Record goes.

    Yields:
        Rows; of a Run that was looked up, the last one alone.
    """
    if job.ledger is None or job.trajectory is None:
        yield from _trained(job, None)
        return
    with contextlib.closing(Ledger(job.ledger)) as ledger, _claimed(job):
        # Once more: another search may have trained it while this one waited.
        record = _known(job, ledger)
        rows = _trained(job, ledger) if record is None else _looked_up(job, record)
        end = None
        for row in rows:
            if row.record is None:
                yield row
            else:
                end = row
    assert end is not None
    yield end  # no longer claimed: whoever is told the end may kill this process at once


def _claimed(job: Job) -> AbstractContextManager[None]:
    return contextlib.nullcontext() if job.folder is None else Checkpoints(job.folder).claimed(job.name)


def _known(job: Job, ledger: Ledger) -> Record | None:
    record = None if job.fresh or job.first_flooded else ledger.find(job.run, job.name)
    if record is not None and is_promised(job.run.problem):
        return record if record.fingerprint == fingerprint(job.run, job.device, job.threads) else None
    return record


def _trained(job: Job, ledger: Ledger | None) -> Iterator[Row]:
    """Train one Run, from its checkpoint if there is one, and store its Record."""
    files = None if job.folder is None or job.first_flooded else Checkpoints(job.folder)
    resume = None if files is None else files.find(job.name, job.run.epochs)
    promised = resume is not None and is_promised(job.run.problem) and len(resume["curves"]) > 1
    if resume is not None and promised and resume["mark"] != fingerprint(job.run, job.device, job.threads):
        raise ValueError(
            f"a checkpoint must have this problem's parameter shapes and first batch loss, but one in {job.folder} "
            "has others: the problem changed. Change its key too."
        )
    first = job.first_flooded
    how: dict[str, Any] = {"device": job.device, "threads": job.threads, "settings": job.settings}
    rows = train(job.run, first_flooded=first, resume=resume, **how)
    pace = None if files is None else Pace(files, job.name)
    if ledger is not None:
        ledger.start(job.name, job.run.epochs)
    for row in rows:
        if row.record is None:
            if pace is not None:
                pace.see(row)
        else:
            if ledger is not None:  # before anybody is told: a killed parent loses nothing
                ledger.add(job.name, row.record, replace=job.fresh)
            if files is not None:
                _leave(files, job, row)
        yield row


def _looked_up(job: Job, record: Record) -> Iterator[Row]:
    """Give the row of a Run that was trained meanwhile; a trunk may have left it a checkpoint."""
    row = Row(job.run, job.run.epochs, {}, record)
    if job.folder is not None:
        _leave(Checkpoints(job.folder), job, row)
    yield row


def _leave(files: Checkpoints, job: Job, row: Row) -> None:
    """Remove the checkpoints of a Run that is done; leave the one where a longer Run may go on."""
    goes_on = job.trajectory is not None and row.epoch < job.run.problem.horizon
    if goes_on and row.snapshot is not None:  # there is none where it was looked up
        files.save(job.name, row.epoch, {**row.snapshot(), "trained": 0, "seconds": 0.0})
    else:
        files.drop(job.name, below=row.epoch if goes_on else row.epoch + 1)


def lead(job: Job) -> Iterator[Ready]:
    """Train a trunk, and leave a checkpoint for each Run that parts from it.

    Args:
        job: The trunk and its forks.

    Yields:
        Who can go on.
    """
    assert job.folder is not None
    files = Checkpoints(job.folder)
    with files.claimed(job.name):  # another search may have led them while this one waited, or before it came here
        known = [fork.number for fork in job.forks if not job.fresh and _is_past(fork, files)]
        yield from map(Ready, known)
        forks = tuple(fork for fork in job.forks if fork.number not in known)
        if forks:
            yield from _lead(job._replace(forks=forks), files)


def _is_past(fork: Job, files: Checkpoints) -> bool:
    """Tell whether another search led a Run beyond its trunk."""
    if files.holds(fork.name, fork.run.epochs):
        return True
    if fork.ledger is None or fork.trajectory is None:
        return False
    with contextlib.closing(Ledger(fork.ledger)) as ledger:
        return _known(fork, ledger) is not None


def _lead(job: Job, files: Checkpoints) -> Iterator[Ready]:
    forks = {fork.number: fork for fork in job.forks}
    runs = {number: fork.run for number, fork in forks.items()}
    trunk = Trunk(runs)
    run = replace(job.run, until=trunk.epochs)
    resume = files.find(job.name, trunk.epochs)
    if resume is not None:
        again = Trunk(runs)
        if any(True for row in past(run, resume) for _ in again.follow(row)):
            resume = None  # somebody new leaves before it
    pace = Pace(files, job.name)
    how: dict[str, Any] = {"device": job.device, "threads": job.threads, "settings": job.settings}
    for row in train(run, resume=resume, conclude=False, **how):
        parting = list(trunk.follow(row))
        for number, epoch, state in parting:
            if state is not None:
                files.save(forks[number].name, epoch, state, only=False)  # a Run of another length may need its own
        if not len(trunk):
            files.drop(job.name, run.epochs + 1)
        yield from (Ready(number) for number, _, _ in parting)
        if not len(trunk):
            break
        pace.see(row)


def serve(parent: int) -> None:
    """Take jobs from a pipe until it closes, and tell rows on another: the life of a worker.

    Args:
        parent: Process number of the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs_in, rows_out = _redirect_streams()
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                # A process that the parent forked may hold the pipe open after the parent's end.
                while os.name == "posix" and not select.select([jobs_in], [], [], _ORPHAN_CHECK)[0]:
                    if os.getppid() != parent:
                        _exit_group()
                jobs.put(_read(jobs_in))
        _exit_group()  # the parent is gone, or wants us gone

    threading.Thread(target=listen, daemon=True).start()
    owner = os.getpid()

    def send(news: Any) -> None:
        if os.getpid() != owner:  # the user's code forked, and the child came back from it
            os._exit(0)
        _write(rows_out, pickle.dumps(news))

    while True:
        message = jobs.get()
        try:
            sys.path[:], folder, packed = pickle.loads(message)
            os.chdir(folder)
            job = pickle.loads(packed)
            torch.set_default_dtype(job.dtype)
            for rows in _gathered(lead(job) if job.forks else work(job), job.quiet):
                send(rows)
        except BaseException as error:  # ruff: ignore[blind-except] -- the parent raises it, whatever it is
            send(_picklable_failure(error))


def _redirect_streams() -> tuple[int, int]:
    """Keep the pipes from and to the parent for the protocol, and give the user's code others.

    Returns:
        The descriptors to read jobs from and to write rows to.
    """
    jobs_in, rows_out = os.dup(0), os.dup(1)  # not inherited by programs that the user's code starts
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = open(os.devnull, encoding="utf-8")  # ruff: ignore[open-file-with-context-handler] -- for good
    os.dup2(2, 1)  # what a user's code prints must not end up in the pipe
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what was printed is seen, also of a death
    faulthandler.enable()
    return jobs_in, rows_out


def _exit_group() -> None:
    """End this process and all it started, also in the middle of an epoch."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _gathered(rows: Iterator[Row] | Iterator[Ready], quiet: bool, seconds: float = 0.1) -> Iterator[list[Row | Ready]]:
    """Bundle rows, without what the parent has or does not need, so that telling costs next to nothing."""
    bundle, told = [], time.monotonic()
    for row in rows:
        urgent = isinstance(row, Ready) or row.record is not None
        if quiet and not urgent:
            if time.monotonic() - told > _HEARTBEAT:
                yield []
                told = time.monotonic()
            continue
        if isinstance(row, Row):
            record = None if row.record is None else replace(row.record, run=None)
            row = Row(None, row.epoch, row.values, record)  # type: ignore[arg-type]
        bundle.append(row)
        if urgent or time.monotonic() - told > seconds:
            yield bundle
            bundle, told = [], time.monotonic()


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


def _unpickle_news(message: bytes) -> Any:
    """Read rows or an exception that a worker sent."""
    news = pickle.loads(message)
    if not isinstance(news, _Failure):
        return news
    try:
        error = pickle.loads(news.packed) if news.packed is not None else RuntimeError(news.summary)
    except Exception:  # ruff: ignore[blind-except] -- its class is not to be found here
        error = RuntimeError(news.summary)
    error.add_note(f"In a worker process:\n{news.trace}")
    return error
