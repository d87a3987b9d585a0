"""Real images as splits: MNIST and Fashion-MNIST, from their own idx files."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flooding.data import Split, Splits, files, stream
from flooding.data.tables import divide, with_noise

__all__ = ["fashion_mnist", "mnist", "read_idx", "split_images"]


def fashion_mnist(label_noise: float = 0.2, n_train: int = 4000, n_val: int = 1000, *, seed: int) -> Splits:
    """Split Fashion-MNIST: grey images of clothes, 28 x 28 pixels, 10 classes.

    Training and validation images are drawn from the official 60,000; the test split is the official 10,000. See
    :func:`split_images` for what happens to them and :func:`flooding.data.files.read` for where they come from.

    Args:
        label_noise: Share of training and validation labels replaced by a wrong class, in [0, 1).
        n_train: Training images, at least 2.
        n_val: Validation images, at least 2; 60,000 in all at most.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised images, float32 ``[n, 1, 28, 28]``.

    Raises:
        ValueError: If an argument is out of range, or a file is neither here nor to be fetched.

    References:
        Xiao et al., *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms*, 2017.
    """
    return split_images(*_official("fashion-mnist"), n_train, n_val, label_noise, seed=seed)


def mnist(label_noise: float = 0.2, n_train: int = 4000, n_val: int = 1000, *, seed: int) -> Splits:
    """Split MNIST: grey images of handwritten digits, 28 x 28 pixels, 10 classes.

    Training and validation images are drawn from the official 60,000; the test split is the official 10,000. See
    :func:`split_images` for what happens to them and :func:`flooding.data.files.read` for where they come from.

    Args:
        label_noise: Share of training and validation labels replaced by a wrong class, in [0, 1).
        n_train: Training images, at least 2.
        n_val: Validation images, at least 2; 60,000 in all at most.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised images, float32 ``[n, 1, 28, 28]``.

    Raises:
        ValueError: If an argument is out of range, or a file is neither here nor to be fetched.

    References:
        LeCun et al., *Gradient-Based Learning Applied to Document Recognition*, 1998.
    """
    return split_images(*_official("mnist"), n_train, n_val, label_noise, seed=seed)


def _official(folder: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read training images and labels, then test images and labels."""
    names = (f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    x, y, test_x, test_y = (read_idx(files.read(f"{folder}/{name}")) for name in names)
    return x, y, test_x, test_y


def split_images(
    x: np.ndarray,
    y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    n_train: int,
    n_val: int,
    label_noise: float = 0.0,
    *,
    seed: int,
) -> Splits:
    """Draw training and validation images at random, standardise all pixels alike, and make their labels noisy.

    Every pixel becomes ``(pixel - mean) / sd`` with one mean and one (population) standard deviation, those of all
    pixels of the *training* images. Exactly ``round(n * label_noise)`` labels of the training and of the validation
    split become a wrong class, drawn uniformly; test labels stay clean. The draw does not depend on ``label_noise``.

    Args:
        x: Grey images, uint8 ``[images, height, width]``.
        y: Their classes 0 ... C - 1, uint8 ``[images]``.
        test_x: Test images, uint8 ``[n, height, width]``.
        test_y: Their classes, uint8 ``[n]``.
        n_train: Training images, at least 2.
        n_val: Validation images, at least 2; images that are left are not used.
        label_noise: Share of labels to replace, in [0, 1).
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with float32 inputs ``[n, 1, height, width]`` and int64 labels; ``clean`` is None where no noise was
        added.

    Raises:
        ValueError: If the arrays do not match, or a count is out of range.

    Example:
        >>> x, y = np.arange(40, dtype=np.uint8).reshape(10, 2, 2), np.arange(10, dtype=np.uint8) % 2
        >>> splits = split_images(x, y, x[:3], y[:3], n_train=6, n_val=4, seed=0)
        >>> splits.train.x.shape, bool(splits.train.x.mean().abs() < 1e-6), len(splits.test)
        (torch.Size([6, 1, 2, 2]), True, 3)
    """
    for images, labels in ((x, y), (test_x, test_y)):
        if images.dtype != np.uint8 or images.ndim != 3 or labels.dtype != np.uint8 or labels.shape != (len(images),):
            raise ValueError(
                "images must be uint8 [n, height, width] and labels uint8 [n], "
                f"got {images.dtype} {images.shape} and {labels.dtype} {labels.shape}. Convert them with astype."
            )
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(f"test images must be of the size of the others, got {test_x.shape[1:]} and {x.shape[1:]}.")
    train, val, _ = divide(len(x), n_train, n_val, tested=True, seed=seed)
    # A pixel has 256 values: standardise those, not every pixel.
    fit = x[train]
    scaled = ((np.arange(256) - fit.mean()) / (fit.std() or 1.0)).astype(np.float32)
    classes = int(max(y.max(), test_y.max())) + 1

    def inputs(images: np.ndarray) -> Tensor:
        return torch.from_numpy(scaled[images[:, None]])

    def targets(labels: np.ndarray) -> Tensor:
        return torch.from_numpy(labels.astype(np.int64))

    return Splits(
        with_noise(inputs(x[train]), targets(y[train]), label_noise, classes, stream(seed, 1)),
        with_noise(inputs(x[val]), targets(y[val]), label_noise, classes, stream(seed, 2)),
        Split(inputs(test_x), targets(test_y)),
    )


def read_idx(content: bytes) -> np.ndarray:
    """Read unsigned bytes in the idx format, in which MNIST and its successors are kept.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes, the length of each axis as four bytes, most
    significant first, then the numbers, the last axis changing fastest.

    Args:
        content: A whole file, decompressed.

    Returns:
        A uint8 array of the file's shape; it cannot be written to.

    Raises:
        ValueError: If the file is of another format or kind of number, or its length does not match its shape.

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
