"""From a table to a Problem: labels, splits, inputs and a network; and what was assumed, in words.

The rows are divided once, and everything that is fitted to columns is fitted to the training rows
alone, so that a saved model has one preprocessing.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flooding.data import Split, Splits, make_rng
from flooding.models import mlp
from flooding.tabular.messages import join_names, quote, shorten, suggest
from flooding.tabular.preprocessing import (
    Preprocessing,
    check_numbers,
    fit_preprocessing,
    standard_deviation,
)
from flooding.tabular.reading import (
    import_library,
    is_numeric,
    is_position,
    parse_number,
    read_table_and_header,
)
from flooding.training.problem import Problem

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TableProblem", "Target", "table_problem"]

_MAX_CLASSES = 20  # of whole numbers that nobody called classes
_MIN_ROWS_PER_CLASS = 5


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Args:
        name: Name of the column.
        classes: Names of the classes in the order of the logits, or None for a number.
        mean: Mean of the number on the training rows, in the target's unit.
        sd: Standard deviation of the number on the training rows, in the target's unit.
    """

    name: str
    classes: tuple[str, ...] | None = None
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True, eq=False)
class TableProblem:
    """A Problem made from a table, and what belongs to it.

    Args:
        problem: What is trained; replace parts of it with ``dataclasses.replace``.
        preprocessing: How columns became inputs.
        target: What is predicted.
        header: Whether the file began with the names of its columns; None where its kind leaves no
            doubt.
        assumptions: Sentences that say what was assumed.
    """

    problem: Problem
    preprocessing: Preprocessing
    target: Target
    header: bool | None
    assumptions: tuple[str, ...]


def table_problem(
    path: str | Path,
    target: str | int,
    *,
    kind: Literal["classification", "regression"] | None = None,
    val_share: float = 0.2,
    test_share: float = 0.2,
    split_seed: int = 0,
    max_epochs: int = 100,
    batch_size: int | None = None,
    width: int = 256,
    depth: int = 3,
    header: bool | None = None,
) -> TableProblem:
    r"""Make a Problem from a table: a ReLU network, Adam at 0.001, and one division of the rows.

    A target of text means classification, and so do whole numbers with at most 20 distinct values
    that have 5 rows each on average; anything else means regression. Classes are divided
    separately: each gives ``round(rows * share)`` rows, but at least one, to validation and to
    test. Rows without a target are dropped.

    Classification uses the cross-entropy; regression the squared error of the target standardised
    on the training rows, so that predicting their mean has a training loss of 1.

    Args:
        path: The file, see :func:`flooding.tabular.read_table`.
        target: Name of the target's column, or its position; -1 is the last.
        kind: What to do instead of what the rule says.
        val_share: Share of rows to choose on, in (0, 1).
        test_share: Share of rows to report on, in [0, 1); 0 is no test split.
        split_seed: Seed of the division.
        max_epochs: Epochs.
        batch_size: Rows in a batch; None: 100, or a fifth of the training rows where that is less.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        header: Whether the first row names the columns; None finds out.

    Returns:
        The Problem with its preprocessing and the sentences that say what was assumed.

    Raises:
        ImportError: If pandas or scikit-learn is not installed.
        ValueError: If the file is no such table, the target is not in it, is all missing or does
            not vary, a class has too few rows to divide, no other column varies, or an argument is
            out of range.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "fruit.csv")
        >>> _ = path.write_text("kind,grams\n" + "apple,150\nfig,40\n" * 10)
        >>> table = table_problem(path, "kind")
        >>> table.target.classes, table.problem.splits(seed=0).train.x.shape
        (('apple', 'fig'), torch.Size([12, 1]))
    """
    _check_arguments(kind, val_share, test_share)
    path = Path(path)
    table, header = read_table_and_header(path, target, header, ())
    name = _find_column(table, target, path)
    inputs = table.dropna(subset=[name])
    values = inputs.pop(name)
    if values.empty:
        raise ValueError(
            f"target must have values, got {quote(name)} with none in {len(table)} rows. "
            "Choose another column."
        )

    # Divide the rows before anything is fitted to them.
    y, classes, description = _make_labels(values, kind)
    is_numeric_class = classes is not None and is_numeric(values)
    parts = _split_rows(y, classes, val_share, test_share, split_seed, is_numeric_class)
    preprocessing = fit_preprocessing(inputs.iloc[parts[0]])
    x = preprocessing.transform(inputs)
    fitted_target = _fit_target(name, classes, y[parts[0]])
    labels = _encode_labels(y, fitted_target)

    # A network of one logit a class, or of one number.
    splits = [Split(x[rows], labels[rows]) for rows in map(torch.from_numpy, parts)]
    n_outputs = len(classes or [name])
    if batch_size is None:
        batch_size = min(100, max(1, len(splits[0]) // 5))
    problem = Problem(
        data=Splits(splits[0], splits[1], splits[2] if test_share else None),
        model=partial(mlp, x.shape[1], n_outputs, width=width, depth=depth),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
        loss=nn.functional.cross_entropy if classes else nn.functional.mse_loss,
        batch_size=batch_size,
        max_epochs=max_epochs,
    )

    assumptions = (
        *_describe_rows(table, path, header, len(y)),
        f"Target {quote(name)}: {description}.",
        *_describe_columns(preprocessing),
        _describe_split(parts, split_seed, classes),
        f"Network: {x.shape[1]:,} inputs, {depth} x {width} ReLU units, "
        f"{n_outputs} output{'s' * (n_outputs > 1)}; "
        f"Adam at 0.001, batches of {batch_size}, {max_epochs} epochs.",
        *_describe_loss(fitted_target),
    )
    return TableProblem(problem, preprocessing, fitted_target, header, assumptions)


def _check_arguments(kind: str | None, val_share: float, test_share: float) -> None:
    if not (0 < val_share < 1 and 0 <= test_share < 1 and val_share + test_share < 1):
        raise ValueError(
            "val_share must lie in (0, 1), test_share in [0, 1), and both together below 1, "
            f"got {val_share} and {test_share}. Give shares of the rows, not percent."
        )
    if kind not in {None, "classification", "regression"}:
        raise ValueError(f"kind must be classification, regression or None, got {kind!r}.")


def _find_column(table: pd.DataFrame, target: str | int, path: Path) -> str:
    """Find the target by its name, else by its position."""
    # A column may be named by a number, so the name goes before the position.
    names = [str(name) for name in table]
    if isinstance(target, str) and target in names:
        return target
    if not is_position(target):
        raise ValueError(
            f"target must be a column of {shorten(path.name)}, got {suggest(str(target), names)}"
        )
    if not -len(names) <= int(target) < len(names):
        raise ValueError(
            f"target must be one of {len(names)} columns of {shorten(path.name)}, got {target}. "
            "-1 is the last."
        )
    return names[int(target)]


# Labels.


def _make_labels(
    values: pd.Series, kind: str | None
) -> tuple[np.ndarray, tuple[str, ...] | None, str]:
    """Make labels of a target without missing values.

    Args:
        values: Numbers or text.
        kind: ``classification`` or ``regression``; None for what the values suggest.

    Returns:
        Class numbers and the names of the classes, or float64 targets and None; and a description
        for the user.

    Raises:
        ValueError: If regression is asked of text, or a number is too large.
    """
    if not is_numeric(values):
        if kind == "regression":
            # Show one of the cells that keep the column from being numeric.
            wrong = next(value for value in values if parse_number(value) is None)
            raise ValueError(
                f"regression needs a target of numbers, got {quote(wrong)} in "
                f"{quote(values.name)}. Remove such rows."
            )
        reason = "you said so" if kind else "it is text"
        return _make_classes(values.to_numpy(dtype=object), reason)

    check_numbers(values)
    # Few whole numbers, each of them often, look like the codes of classes.
    distinct = values.unique()
    is_few = len(distinct) <= min(_MAX_CLASSES, len(values) / _MIN_ROWS_PER_CLASS)
    is_class = is_few and bool((distinct == np.floor(distinct)).all())
    if kind == "regression" or (kind is None and not is_class):
        reason = "you said so" if kind else f"it has {len(distinct):,} different numbers"
        return values.to_numpy(np.float64), None, f"regression, since {reason}"
    reason = "you said so" if kind else "it is a few whole numbers"
    return _make_classes(values.to_numpy(np.float64), reason)


def _make_classes(values: np.ndarray, reason: str) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Number the distinct values in their order; name and count them."""
    distinct, labels, counts = np.unique(values, return_inverse=True, return_counts=True)
    names = tuple(_class_name(value) for value in distinct.tolist())
    sizes = []
    for class_name, count in zip(names, counts, strict=True):
        sizes.append(f"{shorten(class_name)} ({count:,} rows)")
    listing = join_names(sizes)
    return labels, names, f"classification into {len(names)} classes, since {reason}: {listing}"


def _class_name(value: float | str) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # 1 and not 1.0
    return str(value)


def _fit_target(name: str, classes: tuple[str, ...] | None, y: np.ndarray) -> Target:
    """Fit the target to the labels of the training rows."""
    if classes:
        return Target(name, classes)
    if y.min() == y.max():
        raise ValueError(
            f"target must vary on the training rows, got {quote(name)} = {y[0]:g} in all. "
            "Choose another one."
        )
    return Target(name, None, float(y.mean()), float(standard_deviation(y)))


def _encode_labels(y: np.ndarray, target: Target) -> Tensor:
    """Give class numbers as they are, and numbers standardised, ``[rows, 1]``."""
    if target.classes:
        return torch.from_numpy(y)
    return torch.from_numpy((y - target.mean) / target.sd).float()[:, None]


# Splits.


def _split_rows(
    y: np.ndarray,
    classes: tuple[str, ...] | None,
    val_share: float,
    test_share: float,
    seed: int,
    is_numeric_class: bool,
) -> list[np.ndarray]:
    """Divide rows at random into training, validation and, where it has a share, test.

    Each class is divided apart: ``train_test_split(stratify=...)`` can leave a split without a rare
    class.

    Args:
        y: Labels of the rows.
        classes: Names of the classes, or None for numbers.
        val_share: Share of validation rows.
        test_share: Share of test rows.
        seed: Seed of the division.
        is_numeric_class: Whether the classes are numbers, which could be predicted as such.

    Returns:
        Row numbers of each split, in random order.

    Raises:
        ValueError: If there is one class alone, or a class has too few rows.
    """
    import_library("sklearn")
    from sklearn.model_selection import train_test_split

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
        sizes = [max(1, round(len(rows) * share)) for share in shares]
        # One row alone does not vary, and a rare class must be in every split.
        if len(rows) - sum(sizes) < 2:
            raise ValueError(_too_few_rows(len(rows), sizes, name, is_numeric_class))
        # One generator for all classes: the division follows from the seed and the labels.
        train, other_rows = train_test_split(rows, test_size=sum(sizes), random_state=random_state)
        # Held-out rows come in random order, so their first part is a random sample too.
        pieces = [train, *np.split(other_rows, np.cumsum(sizes[:-1]))]
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    # The classes must not follow one another.
    return [generator.permutation(np.concatenate(part)) for part in parts]


def _too_few_rows(n: int, sizes: list[int], name: str | None, is_numeric_class: bool) -> str:
    if name is None:
        subject, fix = "with a target", "Give more rows"
    else:
        subject = f"of class {quote(name)}"
        fix = "Drop those rows or merge the class with another"
    if is_numeric_class:
        fix += ", or predict it as a number: kind='regression' (--kind regression)"
    other_rows = " and ".join(map(str, sizes))
    return (
        f"2 training rows and 1 for every other split are needed at least, got {n} {subject}, "
        f"of which {other_rows} would not be trained on. {fix}."
    )


# What was assumed.


def _describe_rows(
    table: pd.DataFrame, path: Path, header: bool | None, n_labels: int
) -> Iterator[str]:
    suffix = ", named c0, c1 and so on since there is no header" if header is False else ""
    yield f"{shorten(path.name)}: {len(table):,} rows, {table.shape[1]:,} columns{suffix}."
    if n_labels < len(table):
        yield f"Dropped {len(table) - n_labels:,} rows without a target."


def _describe_columns(preprocessing: Preprocessing) -> Iterator[str]:
    numeric, categorical = preprocessing.numeric_columns, preprocessing.categorical_columns
    frequent, incomplete = preprocessing.frequent, set(preprocessing.incomplete)
    if numeric:
        names = join_names(numeric)
        yield f"{len(numeric)} numeric columns, standardised on the training rows: {names}."
    if categorical:
        counts = []
        for name in categorical:
            counts.append(f"{shorten(name)} ({len(frequent[name])})")
        names = join_names(counts)
        yield (f"{len(categorical)} columns of categories, with how many are told apart: {names}.")
    silent = [name for name in categorical if not frequent[name]]
    if silent:
        yield (
            f"{len(silent)} of them tell nothing, since no value occurs twice; "
            f"numbers written oddly? {join_names(silent)}."
        )
    gaps = [name for name in numeric if name in incomplete]
    if gaps:
        yield (
            f"{len(gaps)} columns have missing values; the training median stands in for "
            f"numbers: {join_names(gaps)}."
        )
    blanks = [name for name in categorical if name in incomplete]
    if blanks:
        yield (
            f"{len(blanks)} columns of categories have missing values, which are a category of "
            f"their own: {join_names(blanks)}."
        )
    dropped = preprocessing.dropped_columns
    if dropped:
        yield (
            f"Dropped {len(dropped)} columns that are constant, or text that never repeats: "
            f"{join_names(dropped)}."
        )


def _describe_loss(target: Target) -> Iterator[str]:
    if target.classes is None:
        yield (
            f"Loss: squared error of the target in units of {target.sd:.6g} "
            "(its training deviation)."
        )


def _describe_split(parts: list[np.ndarray], seed: int, classes: tuple[str, ...] | None) -> str:
    names = ("training", "validation", "test")
    sizes = []
    for part, name in zip(parts, names, strict=False):  # there may be no test split
        sizes.append(f"{len(part):,} {name}")
    suffix = ", each class alike" if classes else ""
    return f"Split by seed {seed}{suffix}: {', '.join(sizes)} rows."
