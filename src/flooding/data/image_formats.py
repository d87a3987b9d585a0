"""Readers of the formats in which sets of images are published: idx, MATLAB, pickled batches.

Every reader takes the bytes of a whole file and refuses what is not of its format. None runs code
from the file, and none allocates memory because the file says so.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zlib

import numpy as np

from flooding.data.compression import LimitedReader, max_bytes

__all__ = ["read_batch", "read_idx", "read_mat"]

_COMPRESSED = 15  # kind of a compressed variable of a MATLAB file
_MEMO_OPERATIONS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


def read_idx(content: bytes) -> np.ndarray:
    """Read unsigned bytes in the idx format, in which MNIST and its successors are kept.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes, the length of each axis as
    four bytes, most significant first, then the numbers, the last axis changing fastest.

    Args:
        content: A whole file, decompressed.

    Returns:
        A uint8 array of the file's shape; it cannot be written to.

    Raises:
        ValueError: If the file is of another format or kind of number, or its length does not match
            its shape.

    Example:
        >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        array([7, 8, 9], dtype=uint8)
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        start = content[:3].hex(" ") or "nothing"
        raise ValueError(
            f"an idx file of unsigned bytes must begin with 00 00 08, got {start}. "
            "Decompress it, or fetch it anew."
        )
    header_size = 4 + 4 * content[3]
    shape = [
        int.from_bytes(content[start : start + 4], "big") for start in range(4, header_size, 4)
    ]
    expected_size = header_size + math.prod(shape)
    if len(content) != expected_size:
        raise ValueError(
            f"an idx file of shape {shape} must have {expected_size} bytes, got {len(content)}. "
            "Fetch it anew."
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def read_mat(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the images and classes of a MATLAB file in the format of SVHN.

    Args:
        content: A whole file: ``X`` is uint8 ``[height, width, channels, n]``, ``y`` the digits
            ``[n, 1]``, 10 for 0.

    Returns:
        Images uint8 ``[n, channels, height, width]`` and classes uint8 ``[n]``, 0 for the digit 0.

    Raises:
        ImportError: If SciPy is not installed.
        ValueError: If the file cannot be read or holds something else.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            "SVHN needs SciPy. Install it: pip install 'flooding[experiments]'"
        ) from error
    try:
        _check_unpacked_size(content)
        variables = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        x, y = variables["X"], variables["y"].ravel()
    except Exception as error:  # noqa: BLE001 -- SciPy's reader raises many kinds for a broken file
        raise ValueError(
            f"a MATLAB file must hold X and y, got {type(error).__name__}: {error}. Fetch it anew."
        ) from None
    is_image_array = x.dtype == np.uint8 and x.ndim == 4
    if not is_image_array or y.shape != x.shape[3:] or not set(np.unique(y)) <= set(range(11)):
        raise ValueError(
            f"X must be uint8 [h, w, channels, n] with digits y, "
            f"got {x.dtype} {x.shape} and {y.shape}."
        )
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), (y % 10).astype(np.uint8)


def _check_unpacked_size(content: bytes) -> None:
    """Refuse a MATLAB file that unpacks to more than the limit, before SciPy unpacks it."""
    byte_order = "<" if content[126:128] == b"IM" else ">"
    position, unpacked_size = 128, 0  # the variables follow a header of 128 bytes
    while position + 8 <= len(content):
        # Each variable begins with its kind and its size in the file.
        kind, size = struct.unpack_from(f"{byte_order}II", content, position)
        position += 8
        if kind == _COMPRESSED:
            stream = _ZlibReader(content[position : position + size])
            reader = LimitedReader(stream, max_bytes() - unpacked_size)
            while block := reader.read(1 << 20):
                unpacked_size += len(block)
        position += size


class _ZlibReader:
    """Decompresses bytes piece by piece."""

    def __init__(self, content: bytes) -> None:
        self._rest, self._zlib = content, zlib.decompressobj()

    def read(self, size: int) -> bytes:
        block = self._zlib.decompress(self._rest, size)
        self._rest = self._zlib.unconsumed_tail
        return block


def read_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read a pickled batch of CIFAR-10 or CIFAR-100. Nothing but arrays of numbers is unpickled.

    Args:
        content: A whole file: ``data`` is uint8 ``[n, 3072]``, the colours one after another;
            ``labels``, or ``fine_labels`` of CIFAR-100, are the classes.

    Returns:
        Images uint8 ``[n, 3, 32, 32]`` and classes uint8 ``[n]``.

    Raises:
        ValueError: If the file is broken or holds anything else.
    """
    try:
        # The unpickler allocates a memo as large as the largest index, whatever that is.
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in _MEMO_OPERATIONS and int(argument or 0) > len(content):
                raise ValueError(f"the memo's index {argument:,}")
        batch = _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
        x = batch[b"data"]
        labels = batch[b"fine_labels" if b"fine_labels" in batch else b"labels"]
        # Lists of lists may be endless.
        if not isinstance(labels, np.ndarray) and not all(type(label) is int for label in labels):
            raise ValueError("labels that are no whole numbers")
        y = np.asarray(labels)
        if x.dtype != np.uint8 or x.shape != (len(y), 3072) or y.min() < 0 or y.max() > 255:
            raise ValueError(f"images {x.dtype} {x.shape} and labels {y.shape}")
    except Exception as error:  # noqa: BLE001 -- a broken pickle raises any kind
        raise ValueError(
            f"a batch must hold images and labels of CIFAR, got {error}. Fetch it anew."
        ) from None
    return x.reshape(-1, 3, 32, 32), y.astype(np.uint8)


def _empty_array(array_type: object, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Make an array of no size, which the pickle then fills: it has to bring every byte."""
    if array_type != _NDARRAY or shape != (0,):
        raise ValueError(f"an array of shape {str(shape)[:80]} without its numbers")
    return np.zeros(0, code.decode())


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickles arrays of numbers in plain containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if module.partition(".")[0] != "numpy" or name not in _ALLOWED_GLOBALS:
            raise ValueError(f"{module}.{name}, which is not an array of numbers")
        return _ALLOWED_GLOBALS[name]


_NDARRAY = "ndarray"  # stands for the class, which a pickle must not call
_ALLOWED_GLOBALS = {"_reconstruct": _empty_array, "ndarray": _NDARRAY, "dtype": np.dtype}
