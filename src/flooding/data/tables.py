"""Real tables as splits: divided by seed, standardised on training rows, labels noisy in training and validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flooding.data import Split, Splits, flip_labels, stream

__all__ = ["digits", "split_table"]


def digits(label_noise: float = 0.2, n_train: int = 600, n_val: int = 300, *, seed: int) -> Splits:
    """Split scikit-learn's bundled handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes.

    See :func:`split_table` for what happens to them. Pixels that are blank in every training image stay 0 there.

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
        raise ImportError("digits needs scikit-learn. Install it: pip install 'flooding[experiments]'") from error
    x, y = load_digits(return_X_y=True)
    return split_table(x, y, n_train, n_val, label_noise, seed=seed)


def split_table(x: Any, y: Any, n_train: int, n_val: int, label_noise: float = 0.0, *, seed: int) -> Splits:
    """Divide a table at random, standardise it, and make the training and validation labels noisy.

    Every column becomes ``(column - mean) / sd`` with mean and (population) standard deviation of the *training*
    rows. A column that is constant there is only centred. Exactly ``round(n * label_noise)`` labels of the training
    and of the validation split become a wrong class, drawn uniformly; test labels stay clean. The division does not
    depend on ``label_noise``.

    Args:
        x: Inputs, an array or tensor ``[rows, columns]``.
        y: Classes 0 ... C - 1, integers ``[rows]``.
        n_train: Training rows, at least 2.
        n_val: Validation rows, at least 2; the rest, at least 1, is the test split.
        label_noise: Share of labels to replace, in [0, 1).
        seed: Non-negative integer; the same seed gives the same splits.

    Returns:
        Splits with float32 inputs ``[n, columns]`` and int64 labels; ``clean`` is None where no noise was added.

    Raises:
        ValueError: If the shapes do not match, a count is out of range, an input is not finite, or a label is not
            a class.

    Example:
        >>> x = torch.arange(20.0).reshape(10, 2)
        >>> splits = split_table(x, torch.arange(10) % 2, n_train=6, n_val=2, seed=0)
        >>> bool(splits.train.x.mean().abs() < 1e-6), len(splits.test)
        (True, 2)
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x must be [rows, columns] and y [rows], got {x.shape} and {y.shape}. Flatten images first.")
    if not np.isfinite(x).all():
        raise ValueError("inputs must be finite, got NaN or infinity. Impute or drop those rows first.")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(f"y must be classes 0, 1, ... as integers, got {y.dtype} from {y.min()}. Number the classes.")
    if n_train < 2 or n_val < 2 or n_train + n_val >= len(x):
        raise ValueError(
            f"n_train and n_val must be at least 2 and leave a test row, got {n_train} and {n_val} of {len(x)} rows. "
            "Take fewer."
        )
    train, val, test = np.split(stream(seed, 0).permutation(len(x)), [n_train, n_train + n_val])

    fit = x[train]
    # Not `sd == 0`: rounding of the mean can leave a constant column a tiny positive deviation.
    scale = np.where(fit.min(0) == fit.max(0), 1.0, fit.std(0))
    inputs = torch.from_numpy((x - fit.mean(0)) / scale).float()
    labels = torch.from_numpy(y.astype(np.int64))
    classes = int(labels.max()) + 1

    def noisy(rows: np.ndarray, flips: np.random.Generator) -> Split:
        clean = labels[rows]
        return Split(inputs[rows], flip_labels(clean, label_noise, classes, flips), clean if label_noise else None)

    return Splits(noisy(train, stream(seed, 1)), noisy(val, stream(seed, 2)), Split(inputs[test], labels[test]))
