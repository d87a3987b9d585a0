"""Messages of workers: lists of rows. On a pipe each is a pickle with its length before it."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from flooding.training.jobs import ForkReady, PrefixEpoch
from flooding.training.loop import EpochResult
from flooding.training.record import Record

__all__ = [
    "EpochMessage",
    "Message",
    "News",
    "PickledError",
    "batched",
    "picklable_error",
    "read_message",
    "unpickle_message",
    "write_message",
]

_HEARTBEAT = 5.0  # seconds between two signs of life of a Run whose rows nobody wants
_BATCH_TIME = (
    0.1  # seconds for which rows are collected, so that sending them costs next to nothing
)


class EpochMessage(NamedTuple):
    """A row of a Run, without what the parent has already."""

    number: int  # of the Run's job
    epoch: int
    values: dict[str, float]
    record: Record | None


# What a worker sends: its news, or what it failed with.
News: TypeAlias = EpochMessage | ForkReady | PrefixEpoch
Message: TypeAlias = list[News] | BaseException


def batched(
    rows: Iterator[tuple[int, EpochResult]] | Iterator[ForkReady | PrefixEpoch],
    last_row_only: bool,
    interval: float = _BATCH_TIME,
) -> Iterator[list[News]]:
    """Collect rows in lists, and leave out what the parent does not need.

    The last row of a Run and a fork that is ready go at once.

    Args:
        rows: What a job gives.
        last_row_only: Whether the parent needs only the row that has the Record.
        interval: Seconds for which rows are collected.

    Yields:
        Lists to send; an empty one is a sign of life.
    """
    batch: list[News] = []
    last_sent = time.monotonic()
    for row in rows:
        is_urgent = isinstance(row, ForkReady)
        if not isinstance(row, ForkReady | PrefixEpoch):
            is_urgent = row[1].record is not None
        seconds = time.monotonic() - last_sent
        if is_urgent or not last_row_only:
            batch.append(_to_message(row))
            is_due = is_urgent or seconds > interval
        else:
            is_due = seconds > _HEARTBEAT
        if is_due:
            yield batch
            batch, last_sent = [], time.monotonic()


def _to_message(row: tuple[int, EpochResult] | ForkReady | PrefixEpoch) -> News:
    """Leave out what the parent has, or cannot use: the Run, weights and snapshots."""
    if isinstance(row, ForkReady | PrefixEpoch):
        return row
    number, result = row
    record = result.record
    if record is not None:
        record = replace(record, run=None)
    return EpochMessage(number, result.epoch, result.values, record)


class PickledError(NamedTuple):
    """An exception on its way to the parent, which may not be able to rebuild it."""

    content: bytes | None
    summary: str
    trace: str


def write_message(descriptor: int, content: bytes) -> None:
    """Write a message with its length before it.

    Args:
        descriptor: A pipe.
        content: The message.
    """
    rest = memoryview(struct.pack("<Q", len(content)) + content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read_message(descriptor: int) -> bytes:
    """Read a message; EOFError where whoever wrote it died, perhaps in the middle.

    Args:
        descriptor: A pipe.

    Returns:
        The message.
    """
    (size,) = struct.unpack("<Q", _read_exactly(descriptor, 8))
    return _read_exactly(descriptor, size)


def _read_exactly(descriptor: int, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        part = os.read(descriptor, min(size - len(content), 1 << 20))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def picklable_error(error: BaseException) -> PickledError:
    """Make of an exception what can be pickled whatever it holds.

    Args:
        error: The exception.

    Returns:
        Its pickle if it has one, its text and its traceback.
    """
    trace = "".join(traceback.format_exception(error))
    summary = f"{type(error).__name__}: {error}"
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # ruff: ignore[blind-except] -- exceptions with odd constructors
        content = None
    return PickledError(content, summary, trace)


def unpickle_message(content: bytes) -> Message:
    """Read what a worker sent.

    Args:
        content: A pickled list, or a pickled :class:`PickledError`.

    Returns:
        The list or the exception, with the worker's traceback as a note.
    """
    message = pickle.loads(content)
    if not isinstance(message, PickledError):
        return message
    error = RuntimeError(message.summary)
    if message.content is not None:
        # Its class may not be found in this process. Its text is known in any case.
        with contextlib.suppress(Exception):
            error = pickle.loads(message.content)
    error.add_note(f"In a worker process:\n{message.trace}")
    return error
