"""Real images as splits: MNIST and its successors, SVHN, CIFAR-10, -10H and -100."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flooding import npz
from flooding.data import Split, Splits, downloads, make_rng
from flooding.data.compression import DAMAGED, max_bytes
from flooding.data.image_formats import read_batch, read_idx, read_mat
from flooding.data.registry import ARCHIVES, FILES
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
    :mod:`flooding.data.downloads` for where they come from.

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
    """Split Kuzushiji-MNIST: grey images of cursive Japanese characters, 28 x 28, 10 classes.

    See :func:`mnist`.

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
    """Split SVHN: colour images of house numbers, 32 x 32 pixels, 10 classes.

    See :func:`mnist`. Needs SciPy.

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
    """Split CIFAR-100: colour photographs, 32 x 32 pixels, its 100 fine classes.

    See :func:`cifar10`.

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
    """Read the share of people who chose each class for each test image of CIFAR-10 (CIFAR-10H).

    About 51 people labelled an image.

    Returns:
        Float64 ``[10000, 10]``, rows of sum 1, in the order of the official test images.

    References:
        Peterson et al., *Human uncertainty makes classification more robust*, ICCV 2019 (CIFAR-10H,
        CC BY-NC-SA 4.0).
    """
    return np.load(io.BytesIO(downloads.read("cifar10h/cifar10h-probs.npy")), allow_pickle=False)


def cifar10h(n_train: int = 4000, n_val: int = 1000, *, seed: int) -> Splits:
    """Split the *test* images of CIFAR-10, each with the label of one person.

    Many people labelled these images, and only these. Labels are drawn from :func:`human_labels`,
    so their noise is that of people: it depends on the image. Pixels are standardised as by
    :func:`split_images`.

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
    tables = [_standardised_values(x[train, channel]) for channel in range(_channels(x))]

    def split(rows: np.ndarray, split_number: int) -> Split:
        # Draw each label by inverting the cumulative distribution of the people's labels.
        cumulative = shares[rows].cumsum(1)
        draws = make_rng(seed, split_number).random((len(rows), 1)) * cumulative[:, -1:]
        labels = torch.from_numpy((draws < cumulative).argmax(1))
        return Split(_inputs(x[rows], tables), labels, _targets(y[rows]))

    posterior = torch.from_numpy(shares[test]).float()
    return Splits(split(train, 1), split(val, 2), split(test, 3), posterior)


def load(name: str) -> Images:
    """Read a whole data set, from the cache of decoded images if it has been read before.

    The official files are verified whenever they are decoded. The decoded images lie in one file of
    ``cache()/decoded``, which has checksums and the name of its data set. A cache that cannot be
    written costs time, not a result.

    Args:
        name: A name of :data:`SETS`.

    Returns:
        Images and classes; they cannot be written to or are the caller's own.

    Raises:
        ValueError: If there is no such set, or a file is missing, broken or not the official one.
    """
    if name not in SETS:
        raise ValueError(f"a set of images must be one of {', '.join(SETS)}; got {name!r}.")
    # The file's name changes with the official checksums and with the decoder.
    sources = [
        f"{key} {value}"
        for key, value in (*FILES.items(), *ARCHIVES.items())
        if key.partition("/")[0] == name
    ]
    digest = hashlib.sha256("\n".join([_DECODER_VERSION, *sources]).encode()).hexdigest()[:12]
    path = downloads.cache() / "decoded" / f"{name}-{digest}.npz"
    try:
        return _read_decoded(path)
    except FileNotFoundError:
        pass
    except DAMAGED as error:
        log.warning(
            "the decoded images in %s cannot be read (%s); they are decoded anew.", path, error
        )
    images = SETS[name](name)
    with io.BytesIO() as file:
        np.savez(file, **{_STEM: np.array(path.stem)}, **images._asdict())
        try:
            downloads.write_cached(file.getvalue(), path)
        except ValueError as error:
            log.warning("%s", error)
    return images


def _read_decoded(path: Path) -> Images:
    """Read the decoded images of a data set; refuse those of another one."""
    arrays = npz.read(path, limit=max(max_bytes(), path.stat().st_size))  # its own size is no bomb
    if str(arrays.get(_STEM)) != path.stem:
        raise ValueError(f"it does not say that it is {path.stem}")
    return Images(*(arrays[field] for field in Images._fields))


_STEM = "stem"  # name of the array that holds the file's own name
_DECODER_VERSION = "1"  # to be raised when decoding changes


def _read_idx_set(name: str) -> Images:
    arrays = []
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            arrays.append(read_idx(downloads.read(f"{name}/{part}-{kind}-ubyte")))
    return Images(*arrays)


def _read_mat_set(name: str) -> Images:
    train, test = (
        read_mat(downloads.read(f"{name}/{part}_32x32.mat")) for part in ("train", "test")
    )
    return Images(*train, *test)


def _read_batch_set(name: str) -> Images:
    contents = downloads.read_archive(name)
    *train, (test_x, test_y) = [read_batch(contents[file]) for file in ARCHIVES[name][1]]
    # The list of files has those of the training images first, and the test file last.
    x = np.concatenate([images for images, _ in train])
    y = np.concatenate([labels for _, labels in train])
    return Images(x, y, test_x, test_y)


# Loaders of the sets of images, by name.
SETS: dict[str, Callable[[str], Images]] = {
    "mnist": _read_idx_set,
    "fashion-mnist": _read_idx_set,
    "kuzushiji-mnist": _read_idx_set,
    "svhn": _read_mat_set,
    "cifar10": _read_batch_set,
    "cifar100": _read_batch_set,
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
    """Draw training and validation images at random, standardise them, and add label noise.

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
        >>> x = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
        >>> y = np.arange(10, dtype=np.uint8) % 2
        >>> splits = split_images(x, y, x[:3], y[:3], n_train=6, n_val=4, seed=0)
        >>> splits.train.x.shape, bool(splits.train.x.mean().abs() < 1e-6), len(splits.test)
        (torch.Size([6, 1, 2, 2]), True, 3)
    """
    for images, labels in ((x, y), (test_x, test_y)):
        _check_arrays(images, labels)
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            "test images must be of the size of the others, "
            f"got {test_x.shape[1:]} and {x.shape[1:]}."
        )
    train, val, _ = split_indices(len(x), n_train, n_val, tested=True, seed=seed)

    # A pixel has 256 values: standardise those, not every pixel.
    tables = []
    if standardise:
        for channel in range(_channels(x)):
            tables.append(_standardised_values(x[train] if x.ndim == 3 else x[train, channel]))

    classes = int(max(y.max(), test_y.max())) + 1

    def noisy_split(rows: np.ndarray, split_number: int) -> Split:
        generator = make_rng(seed, split_number)
        return with_noise(
            _inputs(x[rows], tables), _targets(y[rows]), label_noise, classes, generator
        )

    return Splits(
        noisy_split(train, 1),
        noisy_split(val, 2),
        Split(_inputs(test_x, tables), _targets(test_y)),
    )


def _check_arrays(images: np.ndarray, labels: np.ndarray) -> None:
    is_image_array = images.dtype == np.uint8 and images.ndim in {3, 4}
    is_label_array = labels.dtype == np.uint8 and labels.shape == (len(images),)
    if not is_image_array or not is_label_array:
        raise ValueError(
            "images must be uint8 [n, height, width] or [n, channels, height, width] and labels "
            f"uint8 [n], got {images.dtype} {images.shape} and {labels.dtype} {labels.shape}. "
            "Convert them with astype."
        )


def _inputs(images: np.ndarray, tables: Sequence[np.ndarray]) -> Tensor:
    """Replace each pixel by the entry of its channel's table; without tables leave it as it is."""
    images = images if images.ndim == 4 else images[:, None]
    if not tables:
        return torch.from_numpy(images.copy())
    inputs = torch.empty(images.shape)
    for channel, table in enumerate(tables):
        np.take(table, images[:, channel], out=inputs[:, channel].numpy())
    return inputs


def _targets(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _channels(images: np.ndarray) -> int:
    return 1 if images.ndim == 3 else images.shape[1]


def _standardised_values(pixels: np.ndarray) -> np.ndarray:
    """Standardise the 256 values of a channel by the mean and deviation of its training pixels."""
    return ((np.arange(256) - pixels.mean()) / (pixels.std() or 1.0)).astype(np.float32)
