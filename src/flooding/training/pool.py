"""A pool of worker processes."""

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
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from flooding.training.jobs import (
    ForkReady,
    Job,
    _Failure,
    _picklable_failure,
    run_job,
    run_shared_prefix,
)
from flooding.training.loop import EpochResult
from flooding.training.watchdog import Watchdog

__all__ = ["Pool", "serve"]

_ATTEMPTS = 5  # deaths in a row without getting any further than before
_HEARTBEAT = 5.0  # seconds between two signs of life of a Run whose rows nobody wants
_ORPHAN_CHECK = 1.0  # seconds between two looks of a worker whether its parent is there
_STDERR_KEPT = 1 << 16  # characters of a worker's output that are remembered
_STDERR_QUOTED = 2000  # and those that an error quotes

# Ctrl-C is the parent's to handle, also while a worker still imports.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from flooding.training.pool import serve; serve(int(sys.argv[2]))"
)


class Pool:
    """Worker processes, kept warm between calls and started when there is work for them."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        atexit.register(self.close)

    def __len__(self) -> int:
        return len(self._workers)

    def run(
        self, jobs: Sequence[Job], workers: int
    ) -> Generator[tuple[int, EpochResult | BaseException], None, None]:
        """Train Runs on several workers and pass on what they tell, in the order it happens.

        Args:
            jobs: The Runs, longest first if they differ.
            workers: How many may work at a time, at least 1; never more are used than there are
                Runs.

        Yields:
            The number of a job, and a row or an exception. The last row of a job carries its
            Record; trunks have no rows.

        Raises:
            RuntimeError: If a Run's worker died five times and the Run got no further, as when
                memory runs out.
        """
        waiting, busy, died = list(reversed(jobs)), {}, collections.Counter()
        furthest: dict[str, int] = {}
        watchdog = Watchdog()
        limit = min(workers, sum(len(job.forks) or 1 for job in jobs))
        while len(self._workers) < limit:  # at once, since a worker takes two seconds to start
            self._workers.append(_Worker(self._messages))
        try:
            self._dispatch(waiting, busy, limit, watchdog)
            while busy:
                try:
                    worker, news = self._messages.get(timeout=watchdog.seconds_left())
                except queue.Empty:
                    watchdog.report()
                    continue
                if worker not in busy:
                    continue
                if self._messages.empty():  # also where another run has news all the time
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
                    self._assign(worker, busy.pop(worker), busy, watchdog)
                    continue
                watchdog.feed(worker)
                ended = isinstance(news, BaseException)
                if ended:
                    yield job.number, news
                for item in [] if ended else news:
                    reached = -len(job.forks) if isinstance(item, ForkReady) else item.epoch
                    if reached > furthest.get(job.name, -(1 << 30)):
                        furthest[job.name], died[job.name] = reached, 0
                    if not isinstance(item, ForkReady):
                        watchdog.feed(worker, item.epoch)
                        yield job.number, replace(item, run=job.run)
                        ended = item.record is not None
                    else:
                        waiting += [fork for fork in job.forks if fork.number == item.number]
                        job = job._replace(
                            forks=tuple(f for f in job.forks if f.number != item.number)
                        )
                        busy[worker], ended = job, not job.forks
                if ended:
                    busy.pop(worker)
                    watchdog.stop(worker)
                self._dispatch(waiting, busy, limit, watchdog)
        finally:
            for worker in busy:  # left early: what these still do concerns nobody
                worker.end()
                self._workers.remove(worker)

    def _dispatch(
        self, waiting: list[Job], busy: dict[_Worker, Job], limit: int, watchdog: Watchdog
    ) -> None:
        """Give what waits to whoever has nothing to do."""
        for worker in list(self._workers):
            if waiting and worker not in busy and len(busy) < limit:
                self._assign(worker, waiting.pop(), busy, watchdog)

    def _assign(
        self, worker: _Worker, job: Job, busy: dict[_Worker, Job], watchdog: Watchdog
    ) -> None:
        if worker.gone:  # perhaps long ago, while it had nothing to do
            worker = self._replace(worker)
        busy[worker] = job
        watchdog.start(worker, job.run)
        worker.send(job)

    def _replace(self, worker: _Worker) -> _Worker:
        worker.end()
        fresh = _Worker(self._messages)
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
        # One thread each from the start: two workers of one thread beat one of two, and OpenMP
        # reads this only once.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            # -P and the path first: files in the working directory must not stand in for modules.
            [sys.executable, "-P", "-c", _START, json.dumps(_path()), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            # A group of its own, which ends with it: whatever the user's code started
            start_new_session=True,
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
        """Pass what the worker prints on to this process's standard error, and remember the end of
        it.
        """
        pipe = self._process.stderr
        assert pipe is not None
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        with pipe, contextlib.suppress(OSError):
            while part := os.read(pipe.fileno(), 1 << 16):
                text = decode(part)
                self._tail = (self._tail + text)[-_STDERR_KEPT:]
                with contextlib.suppress(
                    OSError, ValueError, AttributeError
                ):  # it may be closed, or None
                    sys.stderr.write(text)
                    sys.stderr.flush()

    def _reap(self) -> None:
        """End what the worker started when the worker itself has ended: its pipes close with the
        last of them.
        """
        if hasattr(os, "waitid"):
            with contextlib.suppress(OSError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
                self._kill()  # before it is reaped: until then its group has its number
        self._process.wait()

    def _kill(self) -> None:
        if self._process.returncode is not None or os.getpid() != self._creator:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL) if hasattr(
                os, "killpg"
            ) else self._process.kill()

    def send(self, job: Job) -> None:
        assert self._process.stdin is not None
        self._tail = ""  # what it printed about an earlier job explains nothing about this one
        with contextlib.suppress(OSError):  # it just died: the listening thread says so
            # The path and the folder go along: either may have changed since the worker started.
            _write(
                self._process.stdin.fileno(),
                pickle.dumps((_path(), os.getcwd(), pickle.dumps(job))),
            )

    def exit_reason(self) -> str:
        """Say how the worker ended, and what it said last."""
        self._reaper.join(
            timeout=5
        )  # and not wait(), which would reap it before its group has ended
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
    """Return the part of a worker's output that explains its death: Python's fatal error, or the
    last lines.
    """
    lines = [
        line for line in printed.strip().splitlines() if not line.startswith("Extension modules:")
    ]
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
            for rows in _batched(run_shared_prefix(job) if job.forks else run_job(job), job.quiet):
                send(rows)
        except BaseException as error:  # ruff: ignore[blind-except] -- the parent raises it, whatever it is
            send(_picklable_failure(error))


def _redirect_streams() -> tuple[int, int]:
    """Keep the pipes from and to the parent for the protocol, and give the user's code others.

    Returns:
        The descriptors to read jobs from and to write rows to.
    """
    jobs_in, rows_out = (
        os.dup(0),
        os.dup(1),
    )  # not inherited by programs that the user's code starts
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


def _batched(
    rows: Iterator[EpochResult] | Iterator[ForkReady], quiet: bool, seconds: float = 0.1
) -> Iterator[list[EpochResult | ForkReady]]:
    """Bundle rows, without what the parent has or does not need, so that telling costs next to
    nothing.
    """
    bundle, told = [], time.monotonic()
    for row in rows:
        urgent = isinstance(row, ForkReady) or row.record is not None
        if quiet and not urgent:
            if time.monotonic() - told > _HEARTBEAT:
                yield []
                told = time.monotonic()
            continue
        if isinstance(row, EpochResult):
            record = None if row.record is None else replace(row.record, run=None)
            row = EpochResult(None, row.epoch, row.values, record)  # type: ignore[arg-type]
        bundle.append(row)
        if urgent or time.monotonic() - told > seconds:
            yield bundle
            bundle, told = [], time.monotonic()


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
