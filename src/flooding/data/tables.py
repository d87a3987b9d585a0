"""Real tables as splits: rows divided by a seed, columns standardised, training labels noisy."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from flooding.data import Split, Splits, downloads, flip_labels, make_rng
from flooding.extras import install_command

__all__ = [
    "digits",
    "higgs7k",
    "letter",
    "spambase",
    "split_indices",
    "split_table",
    "twonorm",
    "with_noise",
]


def digits(label_noise: float = 0.2, n_train: int = 600, n_val: int = 300, *, seed: int) -> Splits:
    """Split scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes.

    See :func:`split_table` for what happens to them. Pixels that are blank in every training image
    stay 0 there.

    Args:
        label_noise: Share of training and validation labels replaced by a wrong class, in [0, 1).
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2; the remaining images (897) are the test split.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised inputs, float32 ``[n, 64]``.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> splits = digits(seed=0)
        >>> [len(s) for s in (splits.train, splits.val, splits.test)], splits.classes
        ([600, 300, 897], 10)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"digits needs scikit-learn. Install it: {install_command('experiments')}"
        ) from error
    x, y = load_digits(return_X_y=True)
    return split_table(x, y, n_train, n_val, label_noise, seed=seed)


def spambase(
    label_noise: float = 0.1, n_train: int = 1000, n_val: int = 500, *, seed: int
) -> Splits:
    """Split Spambase: 4,601 messages by 57 frequencies of words and characters, 2 classes.

    Class 1 is spam. See :func:`split_table` for what happens to them and
    :func:`flooding.data.downloads.read` for where they come from.

    Args:
        label_noise: Share of training and validation labels replaced by the wrong class, in [0, 1).
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2; the remaining messages (3,101) are the test split.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised inputs, float32 ``[n, 57]``.

    Raises:
        ValueError: If an argument is out of range, or the file is neither here nor to be fetched.

    References:
        Hopkins et al., *Spambase*, UCI Machine Learning Repository, 1999; by way of the Penn
        Machine Learning Benchmarks (PMLB).
    """
    return split_table(*_read_pmlb("spambase"), n_train, n_val, label_noise, seed=seed)


def letter(
    label_noise: float = 0.1, n_train: int = 4000, n_val: int = 1000, *, seed: int
) -> Splits:
    """Split Letter: 20,000 distorted capital letters by 16 moments and edge counts.

    Class 0 is A and class 25 is Z. See :func:`split_table` for what happens to them and
    :func:`flooding.data.downloads.read` for where they come from.

    Args:
        label_noise: Share of training and validation labels replaced by a wrong class, in [0, 1).
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2; the remaining letters (15,000) are the test split.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised inputs, float32 ``[n, 16]``.

    Raises:
        ValueError: If an argument is out of range, or the file is neither here nor to be fetched.

    References:
        Frey and Slate, *Letter Recognition Using Holland-Style Adaptive Classifiers*, Machine
        Learning, 1991; by way of PMLB.
    """
    return split_table(*_read_pmlb("letter"), n_train, n_val, label_noise, seed=seed)


def twonorm(
    label_noise: float = 0.0, n_train: int = 4000, n_val: int = 1000, *, seed: int
) -> Splits:
    """Split Twonorm: 7,400 points of two Gaussian classes of unit covariance in 20 dimensions.

    The best boundary is a plane and its error 2.3 %: a problem on which flooding should not help.
    See :func:`split_table` for what happens to them and :func:`flooding.data.downloads.read` for
    where they come from.

    Args:
        label_noise: Share of training and validation labels replaced by the wrong class, in [0, 1).
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2; the remaining points (2,400) are the test split.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised inputs, float32 ``[n, 20]``.

    Raises:
        ValueError: If an argument is out of range, or the file is neither here nor to be fetched.

    References:
        Breiman, *Bias, Variance, and Arcing Classifiers*, 1996; by way of PMLB.
    """
    return split_table(*_read_pmlb("twonorm"), n_train, n_val, label_noise, seed=seed)


def higgs7k(
    label_noise: float = 0.0, n_train: int = 3500, n_val: int = 1500, *, seed: int
) -> Splits:
    """Split 7,500 simulated particle collisions by 28 measurements, 2 classes.

    Class 1 is a Higgs boson, class 0 background. The source has 7,000 training and 500 test rows.
    Its test rows are in every test split; see :func:`split_table` for what happens to the others
    and :func:`flooding.data.downloads.read` for where they come from.

    Args:
        label_noise: Share of training and validation labels replaced by the wrong class, in [0, 1).
        n_train: Training examples of the source's 7,000, at least 2.
        n_val: Validation examples of the source's 7,000, at least 2; the rest and the source's 500
            (2,500 in all) are the test split.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with standardised inputs, float32 ``[n, 28]``.

    Raises:
        ValueError: If an argument is out of range, or a file is neither here nor to be fetched.

    References:
        Baldi et al., *Searching for Exotic Particles in High-Energy Physics with Deep Learning*,
        Nature Communications, 2014; the rows are those of LightGBM's example of binary
        classification.
    """
    x, y = _read_higgs("train")
    test = _read_higgs("test")
    return split_table(x, y, n_train, n_val, label_noise, more_test=test, seed=seed)


def _read_pmlb(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a table of PMLB: names, then tab-separated numbers, the class last."""
    content = downloads.read(f"tables/{name}.tsv")
    table = np.loadtxt(io.BytesIO(content), delimiter="\t", skiprows=1)
    return table[:, :-1], np.unique(table[:, -1], return_inverse=True)[1]


def _read_higgs(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read tab-separated numbers, the class first."""
    content = downloads.read(f"tables/higgs7k.{part}")
    table = np.loadtxt(io.BytesIO(content), delimiter="\t")
    return table[:, 1:], table[:, 0].astype(np.int64)


def split_table(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    n_train: int,
    n_val: int,
    label_noise: float = 0.0,
    *,
    more_test: tuple[ArrayLike | Tensor, ArrayLike | Tensor] | None = None,
    seed: int,
) -> Splits:
    """Divide a table at random, standardise it, and add label noise to training and validation.

    Every column becomes ``(column - mean) / sd`` with mean and (population) standard deviation of
    the *training* rows. A column that is constant there is only centred. Exactly
    ``round(n * label_noise)`` labels of the training and of the validation split become a wrong
    class, drawn uniformly; test labels stay clean. The division does not depend on ``label_noise``.

    Args:
        x: Inputs, an array or tensor ``[rows, columns]``.
        y: Classes 0 ... C - 1, integers ``[rows]``.
        n_train: Training rows, at least 2.
        n_val: Validation rows, at least 2; the rest, with ``more_test`` at least 1 row, is the test
            split.
        label_noise: Share of labels to replace, in [0, 1).
        more_test: Inputs and classes, as ``x`` and ``y``, that are in the test split whatever the
            seed; or None.
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with float32 inputs ``[n, columns]`` and int64 labels; ``clean`` is None where no
        noise was added.

    Raises:
        ValueError: If the shapes do not match, a count is out of range, an input is not finite, or
            a label is not a class.

    Example:
        >>> x = torch.arange(20.0).reshape(10, 2)
        >>> splits = split_table(x, torch.arange(10) % 2, n_train=6, n_val=2, seed=0)
        >>> bool(splits.train.x.mean().abs() < 1e-6), len(splits.test)
        (True, 2)
    """
    x, y = _check_table(x, y)
    train, val, test = split_indices(
        len(x), n_train, n_val, tested=more_test is not None, seed=seed
    )
    train_x = x[train]
    # Not `sd == 0`: rounding of the mean can leave a constant column a tiny positive deviation.
    scale = np.where(train_x.min(0) == train_x.max(0), 1.0, train_x.std(0))
    if more_test is not None:
        test_x, test_y = _check_table(*more_test)
        if test_x.shape[1] != x.shape[1]:
            raise ValueError(
                f"more_test must have the {x.shape[1]} columns of x, got {test_x.shape[1]}. "
                "Match them."
            )
        test = np.concatenate([test, np.arange(len(test_x)) + len(x)])
        x, y = np.concatenate([x, test_x]), np.concatenate([y, test_y])
    inputs = torch.from_numpy((x - train_x.mean(0)) / scale).float()
    labels = torch.from_numpy(y.astype(np.int64))
    classes = int(labels.max()) + 1
    return Splits(
        with_noise(inputs[train], labels[train], label_noise, classes, make_rng(seed, 1)),
        with_noise(inputs[val], labels[val], label_noise, classes, make_rng(seed, 2)),
        Split(inputs[test], labels[test]),
    )


def split_indices(
    rows: int, n_train: int, n_val: int, *, tested: bool = False, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide the row numbers 0 ... ``rows - 1`` at random into training, validation and the rest.

    Args:
        rows: Number of examples.
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2.
        tested: Whether there are test examples elsewhere; otherwise at least one row must remain.
        seed: Non-negative integer; the same seed gives the same division.

    Returns:
        Three int64 arrays of row numbers.

    Raises:
        ValueError: If a count is out of range.

    Example:
        >>> [len(part) for part in split_indices(10, 6, 3, seed=0)]
        [6, 3, 1]
    """
    if n_train < 2 or n_val < 2 or n_train + n_val > rows - (not tested):
        rest_rule = "" if tested else " and leave a test row"
        raise ValueError(
            f"n_train and n_val must be at least 2{rest_rule}, got {n_train} and {n_val} of "
            f"{rows} rows. Take fewer."
        )
    train, val, rest = np.split(make_rng(seed, 0).permutation(rows), [n_train, n_train + n_val])
    return train, val, rest


def with_noise(
    x: Tensor, y: Tensor, label_noise: float, classes: int, generator: np.random.Generator
) -> Split:
    """Make a split whose labels are noisy.

    Args:
        x: Inputs ``[n, ...]``.
        y: Clean labels, int64 ``[n]``.
        label_noise: Share of labels to replace by a wrong class, in [0, 1).
        classes: Number of classes, at least 2.
        generator: Source of randomness; it is advanced.

    Returns:
        The split; its ``clean`` is None where no noise was asked for.

    Raises:
        ValueError: If an argument is out of range, see :func:`flooding.data.flip_labels`.
    """
    return Split(x, flip_labels(y, label_noise, classes, generator), y if label_noise else None)


def _check_table(x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(
            f"x must be [rows, columns] and y [rows], got {x.shape} and {y.shape}. "
            "Flatten images first."
        )
    if not np.isfinite(x).all():
        raise ValueError(
            "inputs must be finite, got NaN or infinity. Impute or drop those rows first."
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(
            f"y must be classes 0, 1, ... as integers, got {y.dtype} from {y.min()}. "
            "Number the classes."
        )
    return x, y
