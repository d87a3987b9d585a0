"""Divide the rows of a table into training, validation and test."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import numpy as np

from flooding.data import make_rng
from flooding.tabular.labels import Labels
from flooding.tabular.libraries import import_library
from flooding.tabular.messages import pluralize, quote

__all__ = ["drop_small_classes", "split_rows"]

_MAX_DROPPED_SHARE = 0.05  # of the rows, in classes that are too small to divide


def split_sizes(n_rows: int, shares: list[float]) -> list[int]:
    """Give the number of rows of each split but training: at least one.

    Args:
        n_rows: Number of rows of a class, or of all.
        shares: Share of each split.

    Returns:
        Numbers of rows.
    """
    return [max(1, round(n_rows * share)) for share in shares]


def drop_small_classes(
    labels: Labels, val_share: float, test_share: float
) -> tuple[Labels, tuple[str, ...]]:
    """Leave out the rows of classes with too few rows for every split.

    Args:
        labels: The target.
        val_share: Share of validation rows.
        test_share: Share of test rows.

    Returns:
        The target of the other rows, and what was left out; all rows where that would be more than
        5 % of them, or fewer than two classes would remain.
    """
    if labels.classes is None:
        return labels, ()
    shares = [share for share in (val_share, test_share) if share]
    counts = np.bincount(labels.y, minlength=len(labels.classes))
    is_small = np.array([n - sum(split_sizes(n, shares)) < 2 for n in counts.tolist()])
    n_dropped = int(counts[is_small].sum())
    if not n_dropped or (~is_small).sum() < 2 or n_dropped > _MAX_DROPPED_SHARE * len(labels.y):
        return labels, ()
    # Number the other classes anew, in the same order.
    is_row = ~is_small[labels.y]
    numbers = np.cumsum(~is_small) - 1
    classes = np.array(labels.classes, dtype=object)
    dropped = [
        f"{quote(name)} ({pluralize(count, 'row')})"
        for name, count in zip(classes[is_small], counts[is_small].tolist(), strict=True)
    ]
    listing = ", ".join(dropped[:10]) + (f" and {len(dropped) - 10:,} more" * (len(dropped) > 10))
    least = 2 + len(shares)
    sentence = (
        f"Warning: left out {pluralize(n_dropped, 'row')} of classes with too few rows to divide "
        f"(at least {least} are needed): {listing}. Merge them with another class, or add rows"
    )
    sentence += ", or predict a number (--kind regression)." if labels.is_numeric else "."
    smaller = Labels(
        labels.rows[is_row],
        numbers[labels.y[is_row]],
        tuple(classes[~is_small].tolist()),
        labels.is_numeric,
        labels.description,
        labels.sentences,
    )
    return smaller, (sentence,)


def split_rows(labels: Labels, val_share: float, test_share: float, seed: int) -> list[np.ndarray]:
    """Divide rows at random into training, validation and, where it has a share, test.

    Each class is divided apart: ``train_test_split(stratify=...)`` can leave a split without a rare
    class.

    Args:
        labels: The target of the rows.
        val_share: Share of validation rows.
        test_share: Share of test rows.
        seed: Seed of the division.

    Returns:
        Indices of each split, in random order.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If there is one class alone, or a class has too few rows.
    """
    import_library("sklearn")
    from sklearn.model_selection import train_test_split

    y, classes = labels.y, labels.classes
    if classes and len(classes) == 1:
        raise ValueError(
            f"target must have at least 2 classes, got {quote(classes[0])} in every row. "
            "Choose another column."
        )
    generator = make_rng(seed)
    random_state = np.random.RandomState(generator.bit_generator)
    shares = [share for share in (val_share, test_share) if share]
    parts: list[list[np.ndarray]] = [[] for _ in range(1 + len(shares))]
    for label, name in enumerate(classes or [None]):
        rows = np.arange(len(y)) if name is None else np.flatnonzero(y == label)
        sizes = split_sizes(len(rows), shares)
        # One row alone does not vary, and a rare class must be in every split.
        if len(rows) - sum(sizes) < 2:
            raise ValueError(_too_few_rows(len(rows), sizes, name, labels.is_numeric))
        # One generator for all classes: the division follows from the seed and the labels.
        train, other_rows = train_test_split(rows, test_size=sum(sizes), random_state=random_state)
        # Held-out rows come in random order, so their first part is a random sample too.
        pieces = [train, *np.split(other_rows, np.cumsum(sizes[:-1]))]
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    # The classes must not follow one another.
    return [generator.permutation(np.concatenate(part)) for part in parts]


def _too_few_rows(n: int, sizes: list[int], name: str | None, is_numeric: bool) -> str:
    if name is None:
        subject, fix = "with a target", "Give more rows"
    else:
        subject = f"of class {quote(name)}"
        fix = "Drop those rows or merge the class with another"
        if is_numeric:
            fix += ", or predict it as a number: kind='regression' (--kind regression)"
    other_rows = " and ".join(map(str, sizes))
    return (
        f"2 training rows and 1 for every other split are needed at least, got {n} {subject}, "
        f"of which {other_rows} would not be trained on. {fix}."
    )
