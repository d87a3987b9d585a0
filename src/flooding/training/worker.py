"""A worker process: jobs come in on a pipe, and rows go out on another."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import queue
import select
import signal
import sys
import threading

import torch

from flooding.training.fleet_jobs import execute_job
from flooding.training.messages import (
    batched,
    picklable_error,
    read_message,
    write_message,
)
from flooding.training.progress import disable as disable_progress

__all__ = ["serve"]

_ORPHAN_CHECK = 1.0  # seconds between two looks whether the parent is there


def serve(parent_pid: int) -> None:
    """Do jobs from a pipe until it closes: the life of a worker.

    Args:
        parent_pid: Process number of the parent.
    """
    # Ctrl-C is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # And so is the screen.
    disable_progress()
    jobs_in, rows_out = _redirect_streams()
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(jobs_in, messages, parent_pid), daemon=True)
    listener.start()
    worker_pid = os.getpid()

    def send(message: object) -> None:
        # The user's code may have forked, and the child come back from it.
        if os.getpid() != worker_pid:
            os._exit(0)
        write_message(rows_out, pickle.dumps(message))

    while True:
        content = messages.get()
        try:
            # The path and the folder first: without them the job cannot be unpickled.
            sys.path[:], folder, pickled_job = pickle.loads(content)
            os.chdir(folder)
            job = pickle.loads(pickled_job)
            torch.set_default_dtype(job.dtype)
            for batch in batched(execute_job(job), job.last_row_only):
                send(batch)
        except BaseException as error:  # ruff: ignore[blind-except] -- the parent raises it
            send(picklable_error(error))


def _listen(jobs_in: int, messages: queue.SimpleQueue[bytes], parent_pid: int) -> None:
    """Read jobs, and end this process when its parent has ended, also in the middle of an epoch."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            # A process that the parent forked may hold the pipe open after the parent's end.
            while os.name == "posix" and not _is_readable(jobs_in):
                if os.getppid() != parent_pid:
                    _exit_group()
            messages.put(read_message(jobs_in))
    _exit_group()


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], _ORPHAN_CHECK)[0])


def _redirect_streams() -> tuple[int, int]:
    """Keep the pipes from and to the parent for messages, and give the user's code others.

    Returns:
        The descriptors to read jobs from and to write rows to.
    """
    # Copies are not inherited by programs that the user's code starts.
    jobs_in, rows_out = os.dup(0), os.dup(1)
    # The user's code reads nothing ...
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY), encoding="utf-8")
    # ... and what it prints must not end up in the pipe. It is seen at once, also before a death.
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    return jobs_in, rows_out


def _exit_group() -> None:
    """End this process and all it started."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
