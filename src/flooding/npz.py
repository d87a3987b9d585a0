"""Read .npz files from anywhere: every fault is one ValueError, and no file unpacks to more than a
limit.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

__all__ = ["read"]

_LIMIT = 1 << 30  # bytes
_CHUNK = 1 << 20
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(source: str | Path | bytes, *, limit: int = _LIMIT) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file.

    The sizes in the zip directory are checked before anything is unpacked, and no entry may be
    larger than its size there. Nothing is unpickled.

    Args:
        source: The file, or its bytes.
        limit: Bytes that all arrays together may take, with their headers.

    Returns:
        The arrays by name; they can be written to.

    Raises:
        ValueError: If the file cannot be read, is damaged or too large, or holds anything but
            arrays of numbers or text. The message is the reason alone: the caller names the file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            entries = [entry for entry in file.infolist() if entry.filename.endswith(".npy")]
            names = Counter(entry.filename for entry in entries)
            if repeated := [name for name, count in names.items() if count > 1]:
                raise ValueError(f"it holds {repeated[0]!r} {names[repeated[0]]} times")
            size = sum(entry.file_size for entry in entries)
            if size > limit:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {limit:,} bytes")
            return {
                e.filename.removesuffix(".npy"): _array(e.filename, _content(file, e))
                for e in entries
            }
    except Exception as error:  # noqa: BLE001 -- damaged bytes raise about twenty kinds of errors
        raise ValueError(str(error) or type(error).__name__) from None


def _content(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytearray:
    """Unpack an entry in chunks: one call of ``read()`` could unpack far more than its size."""
    content = bytearray()
    with file.open(entry) as part:
        while chunk := part.read(_CHUNK):
            content += chunk
    if len(content) != entry.file_size:
        raise ValueError(f"{entry.filename} is cut off")
    return content


def _array(name: str, content: bytearray) -> np.ndarray:
    """Make an array of the bytes of an .npy file."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name!r} has the unknown format {version}")
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds objects, which would have to be unpickled")
    if dtype.kind not in "biufcUS":
        raise ValueError(f"an array must hold numbers or text, got {dtype} in {name!r}")
    rest = content[file.tell() :]
    if (
        min(shape, default=0) < 0
        or dtype.itemsize == 0
        or math.prod(shape) * dtype.itemsize != len(rest)
    ):
        raise ValueError(
            f"{name!r} of shape {str(shape)[:80]} and {dtype} cannot have {len(rest):,} bytes"
        )
    return np.ndarray(shape, dtype, rest, order="F" if is_fortran else "C")
