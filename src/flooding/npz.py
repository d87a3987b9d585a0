"""Read .npz files of unknown origin: every fault is a ValueError, and sizes are limited."""

from __future__ import annotations

import io
import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

__all__ = ["read"]

_MAX_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(source: str | Path | bytes, *, limit: int = _MAX_BYTES) -> dict[str, np.ndarray]:
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
            for name, count in Counter(entry.filename for entry in entries).items():
                if count > 1:
                    raise ValueError(f"it holds {name!r} {count} times")
            size = sum(entry.file_size for entry in entries)
            if size > limit:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {limit:,} bytes")
            arrays = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                arrays[name] = _parse_array(entry.filename, _unpack(file, entry))
            return arrays
    except Exception as error:  # noqa: BLE001 -- damaged bytes raise about twenty kinds of errors
        raise ValueError(str(error) or type(error).__name__) from None


def _unpack(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytearray:
    """Unpack an entry in chunks: one call of ``read()`` could unpack far more than its size."""
    content = bytearray()
    with file.open(entry) as part:
        while chunk := part.read(_CHUNK_BYTES):
            content += chunk
    if len(content) != entry.file_size:
        raise ValueError(f"{entry.filename} is cut off")
    return content


def _parse_array(name: str, content: bytearray) -> np.ndarray:
    """Make an array of the bytes of an .npy file, without copying them."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name!r} has the unknown format {version}")
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds objects, which would have to be unpickled")
    if dtype.kind not in "biufcUS":
        raise ValueError(f"an array must hold numbers or text, got {dtype} in {name!r}")
    # The header must fit the bytes that follow it, since NumPy trusts it.
    data = content[file.tell() :]
    is_possible = min(shape, default=0) >= 0 and dtype.itemsize > 0
    if not is_possible or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(
            f"{name!r} of shape {str(shape)[:80]} and {dtype} cannot have {len(data):,} bytes"
        )
    return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")
