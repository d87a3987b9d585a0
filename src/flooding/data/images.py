"""Real images as splits: MNIST and its successors, SVHN, CIFAR-10, -10H and -100, from their
official files.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
import pickletools
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flooding import npz
from flooding.data import Split, Splits, files, make_rng
from flooding.data.compression import DAMAGED, LimitedReader, max_bytes
from flooding.data.tables import split_indices, with_noise

__all__ = [
    "SETS",
    "Images",
    "cifar10",
    "cifar10h",
    "cifar100",
    "fashion_mnist",
    "human_labels",
    "kuzushiji_mnist",
    "load",
    "mnist",
    "read_batch",
    "read_idx",
    "read_mat",
    "split_images",
    "svhn",
]

log = logging.getLogger("flooding")


class Images(NamedTuple):
    """A data set as it is published.

    Args:
        x: Training images, uint8 ``[n, height, width]``, colour ones ``[n, 3, height, width]``.
        y: Their classes 0 ... C - 1, uint8 ``[n]``.
        test_x: Test images.
        test_y: Their classes.
    """

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def mnist(label_noise: float = 0.2, n_train: int = 4000, n_val: int = 1000, *, seed: int) -> Splits:
    """Split MNIST: grey images of handwritten digits, 28 x 28 pixels, 10 classes.

    Training and validation images are drawn from the official training images; the test split is
    the official one. See :func:`split_images` for what happens to them and
    :mod:`flooding.data.files` for where they come from.

    Args:
        label_noise: Share of training and validation labels replaced by a wrong class, in [0, 1).
        n_train: Training images, at least 2.
        n_val: Validation images, at least 2; with the training images at most those of the official
            training set.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised images, float32 ``[n, 1, 28, 28]``.

    Raises:
        ValueError: If an argument is out of range, or a file is neither here nor to be fetched.

    References:
        LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998.
    """
    return split_images(*load("mnist"), n_train, n_val, label_noise, seed=seed)


def fashion_mnist(
    label_noise: float = 0.2, n_train: int = 4000, n_val: int = 1000, *, seed: int
) -> Splits:
    """Split Fashion-MNIST: grey images of clothes, 28 x 28 pixels, 10 classes; see :func:`mnist`.

    Args:
        label_noise: Share of training and validation labels replaced.
        n_train: Training images.
        n_val: Validation images; 60,000 in all.
        seed: Non-negative integer.

    Returns:
        Splits with float32 images ``[n, 1, 28, 28]``.

    References:
        Xiao et al., *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms*, 2017.
    """
    return split_images(*load("fashion-mnist"), n_train, n_val, label_noise, seed=seed)


def kuzushiji_mnist(
    label_noise: float = 0.2, n_train: int = 4000, n_val: int = 1000, *, seed: int
) -> Splits:
    """Split Kuzushiji-MNIST: grey images of cursive Japanese characters, 28 x 28, 10 classes; see
    :func:`mnist`.

    Args:
        label_noise: Share of training and validation labels replaced.
        n_train: Training images.
        n_val: Validation images; 60,000 in all.
        seed: Non-negative integer.

    Returns:
        Splits with float32 images ``[n, 1, 28, 28]``.

    References:
        Clanuwat et al., *Deep Learning for Classical Japanese Literature*, 2018.
    """
    return split_images(*load("kuzushiji-mnist"), n_train, n_val, label_noise, seed=seed)


def svhn(label_noise: float = 0.2, n_train: int = 4000, n_val: int = 1000, *, seed: int) -> Splits:
    """Split SVHN: colour images of house numbers, 32 x 32 pixels, 10 classes; see :func:`mnist`.
    Needs SciPy.

    Args:
        label_noise: Share of training and validation labels replaced.
        n_train: Training images.
        n_val: Validation images; 73,257 in all.
        seed: Non-negative integer.

    Returns:
        Splits with float32 images ``[n, 3, 32, 32]``; class 0 is the digit 0.

    References:
        Netzer et al., *Reading Digits in Natural Images with Unsupervised Feature Learning*, 2011.
    """
    return split_images(*load("svhn"), n_train, n_val, label_noise, seed=seed)


def cifar10(
    label_noise: float = 0.0,
    n_train: int = 4000,
    n_val: int = 1000,
    *,
    standardise: bool = True,
    seed: int,
) -> Splits:
    """Split CIFAR-10: colour photographs, 32 x 32 pixels, 10 classes; see :func:`mnist`.

    Args:
        label_noise: Share of training and validation labels replaced.
        n_train: Training images.
        n_val: Validation images; 50,000 in all.
        standardise: See :func:`split_images`.
        seed: Non-negative integer.

    Returns:
        Splits with float32 images ``[n, 3, 32, 32]``, or uint8 ones.

    References:
        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    return split_images(
        *load("cifar10"), n_train, n_val, label_noise, standardise=standardise, seed=seed
    )


def cifar100(
    label_noise: float = 0.0,
    n_train: int = 4000,
    n_val: int = 1000,
    *,
    standardise: bool = True,
    seed: int,
) -> Splits:
    """Split CIFAR-100: colour photographs, 32 x 32 pixels, its 100 fine classes; see
    :func:`cifar10`.

    Args:
        label_noise: Share of training and validation labels replaced.
        n_train: Training images.
        n_val: Validation images; 50,000 in all.
        standardise: See :func:`split_images`.
        seed: Non-negative integer.

    Returns:
        Splits with float32 images ``[n, 3, 32, 32]``, or uint8 ones.

    References:
        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    return split_images(
        *load("cifar100"), n_train, n_val, label_noise, standardise=standardise, seed=seed
    )


def human_labels() -> np.ndarray:
    """Give the shares of people who gave each class to each test image of CIFAR-10, about 51 people
    an image.

    Returns:
        Float64 ``[10000, 10]``, rows of sum 1, in the order of the official test images.

    References:
        Peterson et al., *Human uncertainty makes classification more robust*, ICCV 2019 (CIFAR-10H,
        CC BY-NC-SA 4.0).
    """
    return np.load(io.BytesIO(files.read("cifar10h/cifar10h-probs.npy")), allow_pickle=False)


def cifar10h(n_train: int = 4000, n_val: int = 1000, *, seed: int) -> Splits:
    """Split the *test* images of CIFAR-10, the only ones that many people labelled; each gets one
    person's label.

    Labels are drawn from :func:`human_labels`, so their noise is that of people: it depends on the
    image. Pixels are standardised as by :func:`split_images`.

    Args:
        n_train: Training images, at least 2.
        n_val: Validation images, at least 2; the test images are the rest of the 10,000.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with float32 images ``[n, 3, 32, 32]``, a person's label as ``y`` in all three, the
        official one as ``clean``, and the shares of the test images as ``posterior``, which is
        exact up to the number of people.

    Raises:
        ValueError: If a count is out of range, or a file is neither here nor to be fetched.

    References:
        See :func:`human_labels`.
    """
    _, _, x, y = load("cifar10")
    shares = human_labels()
    train, val, test = split_indices(len(x), n_train, n_val, seed=seed)
    tables = [_standardised(x[train, channel]) for channel in range(_channels(x))]

    def split(rows: np.ndarray, source: int) -> Split:
        reached = shares[rows].cumsum(1)
        at = make_rng(seed, source).random((len(rows), 1)) * reached[:, -1:]
        told = torch.from_numpy((at < reached).argmax(1))
        return Split(_inputs(x[rows], tables), told, _targets(y[rows]))

    posterior = torch.from_numpy(shares[test]).float()
    return Splits(split(train, 1), split(val, 2), split(test, 3), posterior)


def load(name: str) -> Images:
    """Read a whole data set; from the cache of decoded images where it has been read before.

    The official files are verified whenever they are decoded, and the decoded images, in one file
    of ``cache()/decoded``, by that file's checksums and by what it says it holds. A cache that
    cannot be written costs time, not a result.

    Args:
        name: A name of :data:`SETS`.

    Returns:
        Images and classes; they cannot be written to or are the caller's own.

    Raises:
        ValueError: If there is no such set, or a file is missing, broken or not the official one.
    """
    if name not in SETS:
        raise ValueError(f"a set of images must be one of {', '.join(SETS)}; got {name!r}.")
    told = [
        f"{key} {value}"
        for key, value in (*files.FILES.items(), *files.ARCHIVES.items())
        if _belongs(key, name)
    ]
    mark = hashlib.sha256("\n".join([_DECODER, *told]).encode()).hexdigest()[:12]
    path = files.cache() / "decoded" / f"{name}-{mark}.npz"
    try:
        return _decoded(path)
    except FileNotFoundError:
        pass
    except DAMAGED as error:
        log.warning(
            "the decoded images in %s cannot be read (%s); they are decoded anew.", path, error
        )
    found = SETS[name](name)
    with io.BytesIO() as file:
        np.savez(file, **{_STEM: np.array(path.stem)}, **found._asdict())
        try:
            files.keep(file.getvalue(), path)
        except ValueError as error:
            log.warning("%s", error)
    return found


def _decoded(path: Path) -> Images:
    """Read the cache of a data set, which must not be that of another one."""
    arrays = npz.read(path, limit=max(max_bytes(), path.stat().st_size))  # its own size is no bomb
    if str(arrays.get(_STEM)) != path.stem:
        raise ValueError(f"it does not say that it is {path.stem}")
    return Images(*(arrays[field] for field in Images._fields))


_STEM = "stem"  # names the array that holds the file's own name
_DECODER = "1"  # to be raised when decoding changes


def _belongs(key: str, name: str) -> bool:
    return key.partition("/")[0] == name


def _idx_set(name: str) -> Images:
    """Read training images and labels, then test images and labels."""
    names = (
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )
    return Images(*(read_idx(files.read(f"{name}/{part}")) for part in names))


def _mat_set(name: str) -> Images:
    return Images(
        *(a for part in ("train", "test") for a in read_mat(files.read(f"{name}/{part}_32x32.mat")))
    )


def _batch_set(name: str) -> Images:
    """Read pickled batches, the test batch last."""
    contents = files.read_archive(name)
    *training, (test_x, test_y) = [read_batch(contents[part]) for part in files.ARCHIVES[name][1]]
    x, y = (np.concatenate(parts) for parts in zip(*training, strict=True))
    return Images(x, y, test_x, test_y)


SETS: dict[str, Callable[[str], Images]] = {
    "mnist": _idx_set,
    "fashion-mnist": _idx_set,
    "kuzushiji-mnist": _idx_set,
    "svhn": _mat_set,
    "cifar10": _batch_set,
    "cifar100": _batch_set,
}


def split_images(
    x: np.ndarray,
    y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    n_train: int,
    n_val: int,
    label_noise: float = 0.0,
    *,
    standardise: bool = True,
    seed: int,
) -> Splits:
    """Draw training and validation images at random, standardise all pixels alike, and make their
    labels noisy.

    Every pixel becomes ``(pixel - mean) / sd`` with one mean and one (population) standard
    deviation for each channel, those of all its pixels in the *training* images. Exactly
    ``round(n * label_noise)`` labels of the training and of the validation split become a wrong
    class, drawn uniformly; test labels stay clean. The draw does not depend on ``label_noise``.

    Args:
        x: Grey images, uint8 ``[images, height, width]``, or with channels
            ``[images, channels, height, width]``.
        y: Their classes 0 ... C - 1, uint8 ``[images]``.
        test_x: Test images, uint8, of the same size.
        test_y: Their classes, uint8 ``[n]``.
        n_train: Training images, at least 2.
        n_val: Validation images, at least 2; images that are left are not used.
        label_noise: Share of labels to replace, in [0, 1).
        standardise: False leaves pixels as bytes, a quarter of the memory, for a network that
            begins with :class:`flooding.models.Standardise`.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with inputs ``[n, channels, height, width]``, float32 or uint8, and int64 labels;
        ``clean`` is None where no noise was added.

    Raises:
        ValueError: If the arrays do not match, or a count is out of range.

    Example:
        >>> x, y = np.arange(40, dtype=np.uint8).reshape(10, 2, 2), np.arange(10, dtype=np.uint8) % 2
        >>> splits = split_images(x, y, x[:3], y[:3], n_train=6, n_val=4, seed=0)
        >>> splits.train.x.shape, bool(splits.train.x.mean().abs() < 1e-6), len(splits.test)
        (torch.Size([6, 1, 2, 2]), True, 3)
    """
    for images, labels in ((x, y), (test_x, test_y)):
        if (
            images.dtype != np.uint8
            or images.ndim not in {3, 4}
            or labels.dtype != np.uint8
            or labels.shape != (len(images),)
        ):
            raise ValueError(
                "images must be uint8 [n, height, width] or [n, channels, height, width] and labels uint8 [n], "
                f"got {images.dtype} {images.shape} and {labels.dtype} {labels.shape}. Convert them with astype."
            )
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"test images must be of the size of the others, got {test_x.shape[1:]} and {x.shape[1:]}."
        )
    train, val, _ = split_indices(len(x), n_train, n_val, tested=True, seed=seed)
    # A pixel has 256 values: standardise those, not every pixel.
    fit = (
        [x[train] if x.ndim == 3 else x[train, channel] for channel in range(_channels(x))]
        if standardise
        else []
    )
    tables = [_standardised(pixels) for pixels in fit]
    classes = int(max(y.max(), test_y.max())) + 1
    return Splits(
        with_noise(
            _inputs(x[train], tables), _targets(y[train]), label_noise, classes, make_rng(seed, 1)
        ),
        with_noise(
            _inputs(x[val], tables), _targets(y[val]), label_noise, classes, make_rng(seed, 2)
        ),
        Split(_inputs(test_x, tables), _targets(test_y)),
    )


def _inputs(images: np.ndarray, tables: Sequence[np.ndarray]) -> Tensor:
    """Replace each pixel by the entry of its channel's table; without tables leave it as it is."""
    images = images if images.ndim == 4 else images[:, None]
    if not tables:
        return torch.from_numpy(images.copy())
    found = torch.empty(images.shape)
    for channel, table in enumerate(tables):
        np.take(table, images[:, channel], out=found[:, channel].numpy())
    return found


def _targets(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _channels(images: np.ndarray) -> int:
    return 1 if images.ndim == 3 else images.shape[1]


def _standardised(fit: np.ndarray) -> np.ndarray:
    """Give what each of the 256 values of a channel becomes."""
    return ((np.arange(256) - fit.mean()) / (fit.std() or 1.0)).astype(np.float32)


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
        raise ValueError(
            f"an idx file of unsigned bytes must begin with 00 00 08, got {content[:3].hex(' ') or 'nothing'}. "
            "Decompress it, or fetch it anew."
        )
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"an idx file of shape {shape} must have {start + math.prod(shape)} bytes, got {len(content)}. "
            "Fetch it anew."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


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
        _check_unpacked(content)
        held = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        x, y = held["X"], held["y"].ravel()
    except Exception as error:  # noqa: BLE001 -- SciPy's reader raises many kinds for a broken file
        raise ValueError(
            f"a MATLAB file must hold X and y, got {type(error).__name__}: {error}. Fetch it anew."
        ) from None
    if (
        x.dtype != np.uint8
        or x.ndim != 4
        or y.shape != x.shape[3:]
        or not set(np.unique(y)) <= set(range(11))
    ):
        raise ValueError(
            f"X must be uint8 [h, w, channels, n] with digits y, got {x.dtype} {x.shape} and {y.shape}."
        )
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), (y % 10).astype(np.uint8)


def _check_unpacked(content: bytes) -> None:
    """Refuse a MATLAB file whose compressed variables exceed the limit, before SciPy unpacks
    them.
    """
    at, unpacked = 128, 0  # behind the header
    while at + 8 <= len(content):
        order = "<" if content[126:128] == b"IM" else ">"
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind == 15:  # compressed
            variable = LimitedReader(
                _ZlibReader(content[at + 8 : at + 8 + size]), max_bytes() - unpacked
            )
            while block := variable.read(1 << 20):
                unpacked += len(block)
        at += 8 + size


class _ZlibReader:
    """Decompresses bytes piece by piece."""

    def __init__(self, content: bytes) -> None:
        self._left, self._zlib = content, zlib.decompressobj()

    def read(self, size: int) -> bytes:
        block = self._zlib.decompress(self._left, size)
        self._left = self._zlib.unconsumed_tail
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
        # An index of the memo, which may be any, is what the unpickler allocates for.
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in {"PUT", "BINPUT", "LONG_BINPUT"} and int(argument or 0) > len(
                content
            ):
                raise ValueError(f"the memo's index {argument:,}")
        held = _Arrays(io.BytesIO(content), encoding="bytes").load()
        x, labels = held[b"data"], held[b"fine_labels" if b"fine_labels" in held else b"labels"]
        if not isinstance(labels, np.ndarray) and not all(type(label) is int for label in labels):
            raise ValueError("labels that are no whole numbers")  # lists of lists may be endless
        y = np.asarray(labels)
        if x.dtype != np.uint8 or x.shape != (len(y), 3072) or y.min() < 0 or y.max() > 255:
            raise ValueError(f"images {x.dtype} {x.shape} and labels {y.shape}")
    except Exception as error:  # noqa: BLE001 -- a broken pickle raises any kind
        raise ValueError(
            f"a batch must hold images and labels of CIFAR, got {error}. Fetch it anew."
        ) from None
    return x.reshape(-1, 3, 32, 32), y.astype(np.uint8)


def _empty_array(kind: Any, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Make the array that a pickle then fills, of no size: the pickle has to bring every byte."""
    if kind != _NDARRAY or shape != (0,):
        raise ValueError(f"an array of shape {str(shape)[:80]} without its numbers")
    return np.zeros(0, code.decode())


_NDARRAY = "ndarray"  # stands for the class, which a pickle must not call


class _Arrays(pickle.Unpickler):
    """Unpickles arrays of numbers in plain containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": _empty_array, "ndarray": _NDARRAY, "dtype": np.dtype}
        if module.partition(".")[0] != "numpy" or name not in known:
            raise ValueError(f"{module}.{name}, which is not an array of numbers")
        return known[name]
