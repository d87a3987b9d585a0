"""Messages between a pool and its workers: pickles on a pipe, each with its length before it."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import traceback
from typing import NamedTuple, TypeAlias

from flooding.training.jobs import ForkReady
from flooding.training.record import Record

__all__ = [
    "EpochMessage",
    "Message",
    "PickledError",
    "picklable_error",
    "read_message",
    "unpickle_message",
    "write_message",
]


class EpochMessage(NamedTuple):
    """A row of a Run, without what the parent has already."""

    number: int  # of the Run's job
    epoch: int
    values: dict[str, float]
    record: Record | None


Message: TypeAlias = list[EpochMessage | ForkReady] | BaseException


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
