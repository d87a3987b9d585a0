"""Readers of three published image formats: MNIST's idx, SVHN's MATLAB files, CIFAR's pickles.

Every reader takes the bytes of a whole file and raises ValueError if they have another format. No
reader runs code from the file. No reader trusts a size that the file claims: memory is allocated
only for bytes that are there.
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
from flooding.extras import install_command

__all__ = ["read_batch", "read_idx", "read_mat"]

_MI_COMPRESSED = 15  # data type of a compressed variable, as the MATLAB format names it
# Pickle's opcodes that store an object in the memo, a table of objects to refer to later.
_MEMO_OPCODES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


def read_idx(content: bytes) -> np.ndarray:
    """Read an idx file of unsigned bytes, the format of MNIST and its successors.

    The header is two zero bytes, the byte 8 for the type (unsigned bytes), one byte for the number
    of axes, and the length of each axis as a big-endian integer of four bytes. The numbers follow
    in C order.

    Args:
        content: A whole file, decompressed.

    Returns:
        A read-only uint8 array of the file's shape.

    Raises:
        ValueError: If the file has another format or type of number, or its length does not match
            its shape.

    Example:
        >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        array([7, 8, 9], dtype=uint8)
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        first_bytes = content[:3].hex(" ") or "nothing"
        raise ValueError(
            f"an idx file of unsigned bytes must begin with 00 00 08, got {first_bytes}. "
            "Decompress it, or fetch it anew."
        )
    header_size = 4 + 4 * content[3]
    # Lengths that a truncated header lacks are read as 0; the check of the size then fails.
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
        content: A whole file. ``X`` is uint8 ``[height, width, channels, n]``. ``y`` holds the
            digits ``[n, 1]``, where 10 stands for the digit 0.

    Returns:
        Images uint8 ``[n, channels, height, width]`` and classes uint8 ``[n]``, from 0 to 9.

    Raises:
        ImportError: If SciPy is not installed.
        ValueError: If the file cannot be read or holds something else.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f"SVHN needs SciPy. Install it: {install_command('experiments')}"
        ) from error
    try:
        _check_unpacked_size(content)
        variables = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        x = variables["X"]
        y = variables["y"].ravel()
    except Exception as error:  # noqa: BLE001 -- SciPy's reader raises many kinds for a broken file
        raise ValueError(
            f"a MATLAB file must hold X and y, got {type(error).__name__}: {error}. Fetch it anew."
        ) from None
    has_images = x.dtype == np.uint8 and x.ndim == 4
    has_digits = all(digit in range(11) for digit in np.unique(y))
    if not has_images or not has_digits or y.shape != x.shape[3:]:
        raise ValueError(
            f"X must be uint8 [h, w, channels, n] with digits y, "
            f"got {x.dtype} {x.shape} and {y.shape}."
        )
    images = np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    classes = (y % 10).astype(np.uint8)  # 10 stands for the digit 0
    return images, classes


def _check_unpacked_size(content: bytes) -> None:
    """Raise ValueError if a MATLAB file unpacks to more than the limit, before SciPy unpacks it."""
    # The header of 128 bytes ends with the letters MI, written as one 16-bit integer: a
    # little-endian file has IM there.
    byte_order = "<" if content[126:128] == b"IM" else ">"
    position = 128
    unpacked_size = 0
    while position + 8 <= len(content):
        # Each variable begins with its data type and its size in the file.
        data_type, size = struct.unpack_from(f"{byte_order}II", content, position)
        position += 8
        if data_type == _MI_COMPRESSED:
            stream = _ZlibReader(content[position : position + size])
            # The reader raises as soon as all variables together exceed the limit.
            reader = LimitedReader(stream, max_bytes() - unpacked_size)
            while block := reader.read(1 << 20):
                unpacked_size += len(block)
        position += size


class _ZlibReader:
    """A stream that decompresses bytes block by block, so that few are in memory at a time."""

    def __init__(self, content: bytes) -> None:
        self._compressed = content
        self._decompressor = zlib.decompressobj()

    def read(self, size: int) -> bytes:
        block = self._decompressor.decompress(self._compressed, size)
        self._compressed = self._decompressor.unconsumed_tail
        return block


def read_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read a pickled batch of CIFAR-10 or CIFAR-100.

    Only arrays of numbers and plain containers are unpickled; the file can call nothing else.

    Args:
        content: A whole file. ``data`` is uint8 ``[n, 3072]``: all red pixels of an image, then the
            green, then the blue ones. The classes are ``labels``, in CIFAR-100 ``fine_labels``.

    Returns:
        Images uint8 ``[n, 3, 32, 32]`` and classes uint8 ``[n]``.

    Raises:
        ValueError: If the file is broken or holds anything else.
    """
    try:
        # The unpickler allocates a memo as large as the largest index. An honest index is below the
        # number of bytes, since every entry takes at least one.
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in _MEMO_OPCODES and int(argument or 0) > len(content):
                raise ValueError(f"the memo's index {argument:,}")
        batch = _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
        x = batch[b"data"]
        labels = batch[b"fine_labels" if b"fine_labels" in batch else b"labels"]
        # Nested lists may contain each other, and np.asarray would expand them without end.
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


def _empty_array(array_type: object, shape: tuple[int, ...], type_code: bytes) -> np.ndarray:
    """Create an empty array for the pickle to fill, in place of NumPy's ``_reconstruct``."""
    # An array of another shape would be allocated before the pickle delivers a single number.
    if array_type != _NDARRAY or shape != (0,):
        # The shape comes from the file, so that its text may be of any length.
        raise ValueError(f"an array of shape {str(shape)[:80]} without its numbers")
    return np.zeros(0, type_code.decode())


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickles arrays of numbers in plain containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> object:
        """Look up a global that the pickle names."""
        if module.partition(".")[0] != "numpy" or name not in _ALLOWED_GLOBALS:
            raise ValueError(f"{module}.{name}, which is not an array of numbers")
        return _ALLOWED_GLOBALS[name]


# A pickle passes ndarray to _reconstruct. It gets this string in place of the class, which it could
# call to allocate an array of any size.
_NDARRAY = "ndarray"
_ALLOWED_GLOBALS = {"_reconstruct": _empty_array, "ndarray": _NDARRAY, "dtype": np.dtype}
