"""Compressed files, read within a limit: a file of 600 KB may unpack to 600 MB."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from typing import IO, Protocol

__all__ = ["DAMAGED", "MAX_BYTES", "LimitedReader", "max_bytes", "open_compressed"]

# Bytes to which a compressed file may unpack, unless FLOODING_MAX_BYTES says otherwise.
MAX_BYTES = 1 << 30

#: What readers of compressed files, archives and arrays raise for damaged ones.
DAMAGED: tuple[type[Exception], ...] = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_BLOCK = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def max_bytes() -> int:
    """Look up how many bytes a compressed file may unpack to: ``$FLOODING_MAX_BYTES``, else 1 GiB.

    Returns:
        The limit in bytes, at least 1.

    Raises:
        ValueError: If the variable is not a positive whole number.
    """
    text = os.environ.get("FLOODING_MAX_BYTES")
    if not text:
        return MAX_BYTES
    if not text.isdecimal() or not text.isascii() or len(text) > 18 or int(text) < 1:
        raise ValueError(
            f"FLOODING_MAX_BYTES must be a whole number of bytes above 0, got {text[:40]!r}. "
            "Correct or unset it."
        )
    return int(text)


class LimitedReader:
    """A stream that raises an error instead of yielding more than ``limit`` bytes.

    Args:
        stream: The file to read from.
        limit: Number of bytes, at least 0.
    """

    def __init__(self, stream: _Readable, limit: int) -> None:
        self._stream, self._limit, self._remaining = stream, limit, limit

    def read(self, size: int = -1) -> bytes:
        """Read bytes.

        Args:
            size: At most this many; the whole rest if it is negative.

        Returns:
            The bytes; fewer than ``size`` only at the end, none behind it.

        Raises:
            ValueError: If the stream holds more than the limit.
        """
        with io.BytesIO() as content:
            while size < 0 or content.tell() < size:
                block_size = _BLOCK
                if size >= 0:
                    block_size = min(size - content.tell(), _BLOCK)
                # One byte beyond the limit tells an excess from an end at the limit.
                block = self._stream.read(min(block_size, self._remaining + 1))
                if not block:
                    break
                self._remaining -= len(block)
                if self._remaining < 0:
                    raise ValueError(_too_large(self._limit))
                content.write(block)
            return content.getvalue()


def _too_large(limit: int) -> str:
    return (
        f"it unpacks to more than {limit:,} bytes. If it is what you expect, "
        "set the environment variable FLOODING_MAX_BYTES to a larger number"
    )


def open_compressed(stream: IO[bytes]) -> io.BufferedIOBase | IO[bytes]:
    """Open a file that may be compressed (gzip, bzip2, xz), judged by its first bytes.

    Args:
        stream: A file that can seek, at its beginning.

    Returns:
        A stream of the decompressed bytes; the same stream if it is not compressed.
    """
    head = stream.read(6)
    stream.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)
    if head.startswith(b"BZh"):
        return bz2.BZ2File(stream)
    if head == b"\xfd7zXZ\0":
        return lzma.LZMAFile(stream)
    return stream
