"""From a table to a Problem: labels, splits, inputs and a network; and what was assumed, in words.

The rows are divided once, and everything that is fitted to columns is fitted to the training rows
alone, so that a saved model has one preprocessing.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from flooding.data import Split, Splits
from flooding.models import mlp
from flooding.tabular.labels import Labels, make_labels
from flooding.tabular.markers import Markers
from flooding.tabular.messages import pluralize, quote, suggest
from flooding.tabular.numbers import Decimal
from flooding.tabular.preprocessing import (
    Preprocessing,
    check_numbers,
    fit_preprocessing,
    standard_deviation,
)
from flooding.tabular.raw_table import RawTable
from flooding.tabular.reading import (
    Source,
    TypedTable,
    find_names,
    import_library,
    is_position,
    judge_columns,
    judge_decimal,
    read_raw,
)
from flooding.tabular.screening import describe_duplicates, describe_imbalance, find_row_ids
from flooding.tabular.sentences import (
    describe_columns,
    describe_left_out,
    describe_rows,
    describe_split,
    limit,
)
from flooding.tabular.splits import drop_small_classes, split_rows
from flooding.training.problem import Problem

__all__ = ["TableProblem", "Target", "make_problem", "table_problem"]

_MAX_EPOCHS = 100
_MIN_EPOCHS = 3
_ROWS_TO_VISIT = 750_000  # training rows in all epochs of one training
_BATCH_SIZE = 100
_MAX_BATCH_SIZE = 1000
_MAX_STEPS_PER_EPOCH = 400  # beyond which batches grow


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
    path: Source,
    target: str | int,
    *,
    kind: Literal["classification", "regression"] | None = None,
    val_share: float = 0.2,
    test_share: float = 0.2,
    split_seed: int = 0,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    width: int = 256,
    depth: int = 3,
    header: bool | None = None,
    drop: Collection[str] = (),
    use: Collection[str] = (),
    text: Collection[str] = (),
    na: Collection[str] | None = None,
    encoding: str | None = None,
    decimal: Decimal | None = None,
) -> TableProblem:
    r"""Make a Problem from a table: a ReLU network, Adam at 0.001, and one division of the rows.

    A target of text means classification, and so do whole numbers with at most 20 distinct values
    that have 5 rows each on average; anything else means regression. The classes are the strings of
    the file. Classes are divided separately: each gives ``round(rows * share)`` rows, but at least
    one, to validation and to test. Rows without a target are dropped, and so are those of classes
    with too few rows, up to 5 % of all. Columns that number the rows are left out.

    Classification uses the cross-entropy; regression the squared error of the target standardised
    on the training rows, so that predicting their mean has a training loss of 1.

    Sentences that say what was assumed name options as the command line has them: ``--use`` is
    ``use=`` here.

    Args:
        path: A file, ``-`` for standard input, or a DataFrame: see
            :func:`flooding.tabular.read_table`.
        target: Name of the target's column, or its position; -1 is the last.
        kind: What to do instead of what the rule says.
        val_share: Share of rows to choose on, in (0, 1).
        test_share: Share of rows to report on, in [0, 1); 0 is no test split.
        split_seed: Seed of the division.
        max_epochs: Epochs; None: 100, or fewer where the training rows are more than 7,500, so
            that all epochs visit 750,000 rows; at least 3.
        batch_size: Rows in a batch; None: 100, or a fifth of the training rows where that is less,
            or a 400th, up to 1,000, where that is more.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        header: Whether the first row names the columns; None finds out.
        drop: Names of columns to leave out.
        use: Names of columns to use even though they number the rows.
        text: Names of columns to leave as text even where they hold numbers.
        na: What is missing beside the empty cell; None for the usual texts.
        encoding: Of a text file; None finds out.
        decimal: The decimal sign where a column leaves a doubt; None judges by the file.

    Returns:
        The Problem with its preprocessing and the sentences that say what was assumed.

    Raises:
        ImportError: If pandas, scikit-learn, or the library of a kind of file is not installed.
        ValueError: If the file is no such table, the target is not in it, is all missing or does
            not vary, a class has too few rows to divide, no other column varies, or an argument is
            out of range.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "fruit.csv")
        >>> _ = path.write_text("kind,grams\n" + "apple,150\nfig,40\n" * 10)
        >>> table = table_problem(path, "kind")
        >>> table.target.classes, table.problem.splits(seed=0).train.x.shape
        (('apple', 'fig'), torch.Size([12, 1]))
    """
    _check_arguments(kind, val_share, test_share)
    raw = read_raw(path, target, header=header, encoding=encoding)
    name = _find_column(raw, target)
    na = None if na is None else tuple(na)
    sign = judge_decimal(raw, decimal)
    cells = raw.columns[raw.names.index(name)]
    labels = make_labels(name, cells, kind=kind, na=na, decimal=sign)
    if labels.classes is None:
        check_numbers(import_library("pandas").Series(labels.y, name=name))

    # Divide the rows before anything is fitted to them.
    labels, small_classes = drop_small_classes(labels, val_share, test_share)
    parts = split_rows(labels, val_share, test_share, split_seed)
    inputs = _read_inputs(raw, name, drop=drop, use=use, text=text, na=na, decimal=sign)
    rows = inputs.frame.iloc[labels.rows]
    train = rows.iloc[parts[0]]
    preprocessing = fit_preprocessing(train, inputs.formats, na)
    x = preprocessing.transform(rows)
    fitted_target = _fit_target(name, labels, parts[0])
    splits = _make_splits(x, _encode_labels(labels.y, fitted_target), parts)
    problem = make_problem(
        splits,
        fitted_target,
        width=width,
        depth=depth,
        max_epochs=max_epochs,
        batch_size=batch_size,
    )
    assumptions = (
        *describe_rows(raw),
        f"Target {quote(name)}: {labels.description}.",
        *labels.sentences,
        *small_classes,
        *describe_imbalance(labels.y, labels.classes),
        *inputs.sentences,
        *describe_columns(preprocessing, train),
        describe_split(parts, split_seed, labels.classes),
        *describe_duplicates(splits),
        _describe_network(problem, splits[0], fitted_target, width, depth, max_epochs),
        *_describe_loss(fitted_target),
    )
    # A new file may have the columns that are left out.
    used = {name, *preprocessing.sources}
    unused = [column for column in raw.names if column not in used]
    preprocessing = replace(preprocessing, dropped_columns=tuple(unused))
    return TableProblem(problem, preprocessing, fitted_target, raw.header, assumptions)


def _check_arguments(kind: str | None, val_share: float, test_share: float) -> None:
    if not (0 < val_share < 1 and 0 <= test_share < 1 and val_share + test_share < 1):
        raise ValueError(
            "val_share must lie in (0, 1), test_share in [0, 1), and both together below 1, "
            f"got {val_share} and {test_share}. Give shares of the rows, not percent."
        )
    if kind not in {None, "classification", "regression"}:
        raise ValueError(f"kind must be classification, regression or None, got {kind!r}.")


def _find_column(raw: RawTable, target: str | int) -> str:
    """Find the target by its name, else by its position."""
    # A column may be named by a number, so the name goes before the position.
    if isinstance(target, str) and target in raw.names:
        return target
    if not is_position(target):
        raise ValueError(
            f"target must be a column of {raw.source}, got {suggest(str(target), raw.names)}"
        )
    if not -len(raw.names) <= int(target) < len(raw.names):
        raise ValueError(
            f"target must be one of {len(raw.names)} columns of {raw.source}, got {target}. "
            "-1 is the last."
        )
    return raw.names[int(target)]


# Inputs.


def _read_inputs(
    raw: RawTable,
    target: str,
    *,
    drop: Collection[str],
    use: Collection[str],
    text: Collection[str],
    na: Markers,
    decimal: Decimal,
) -> TypedTable:
    """Read every column but the target, those to drop, and those that number the rows."""
    dropped = find_names("drop", drop, raw)
    text, use = find_names("text", text, raw), find_names("use", use, raw)
    if target in dropped:
        raise ValueError(f"drop must not name the target, got {quote(target)}. Leave it out.")
    names = [name for name in raw.names if name not in {target, *dropped}]
    table = judge_columns(raw, names, text=text, na=na, decimal=decimal)
    sentences = list(limit(table.sentences))
    if dropped:
        cells = pluralize(raw.num_rows, "cell")
        listing = ", ".join(map(quote, dropped))
        sentences.insert(0, f"Dropped as you said, of {cells} each: {listing}.")
    row_ids = find_row_ids(table.frame, {*use, *text})
    is_used = len(row_ids) == len(names)
    sentences += describe_left_out(row_ids, raw.num_rows, is_used)
    frame = table.frame if is_used else table.frame.drop(columns=list(row_ids))
    return TypedTable(frame, table.formats, tuple(sentences))


# Targets.


def _fit_target(name: str, labels: Labels, train: np.ndarray) -> Target:
    """Fit the target to the labels of the training rows."""
    if labels.classes:
        return Target(name, labels.classes)
    y = labels.y[train]
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


# Problems.


def _make_splits(x: Tensor, y: Tensor, parts: list[np.ndarray]) -> list[Split]:
    return [Split(x[rows], y[rows]) for rows in map(torch.from_numpy, parts)]


def make_problem(
    splits: list[Split],
    target: Target,
    *,
    width: int,
    depth: int,
    max_epochs: int | None,
    batch_size: int | None,
) -> Problem:
    """Make a Problem: a network of one logit a class, or of one number.

    Args:
        splits: Training, validation and, if there is one, test rows.
        target: What is predicted.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        max_epochs: Epochs; None for what :func:`table_problem` says.
        batch_size: Rows in a batch; None for what :func:`table_problem` says.

    Returns:
        The Problem, with Adam at 0.001.
    """
    n_train = len(splits[0])
    if batch_size is None:
        batch_size = min(_BATCH_SIZE, max(1, n_train // 5))
        batch_size = max(batch_size, min(_MAX_BATCH_SIZE, n_train // _MAX_STEPS_PER_EPOCH))
    if max_epochs is None:
        max_epochs = _choose_epochs(n_train)
    n_outputs = len(target.classes or [target.name])
    return Problem(
        data=Splits(splits[0], splits[1], splits[2] if len(splits) > 2 else None),
        model=partial(mlp, splits[0].x.shape[1], n_outputs, width=width, depth=depth),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
        loss=nn.functional.cross_entropy if target.classes else nn.functional.mse_loss,
        batch_size=batch_size,
        max_epochs=max_epochs,
    )


def _choose_epochs(n_train: int) -> int:
    return max(_MIN_EPOCHS, min(_MAX_EPOCHS, _ROWS_TO_VISIT // n_train))


def _describe_network(
    problem: Problem,
    train: Split,
    target: Target,
    width: int,
    depth: int,
    max_epochs: int | None,
) -> str:
    inputs, outputs = train.x.shape[1], len(target.classes or [target.name])
    suffix = ""
    if max_epochs is None and problem.max_epochs < _MAX_EPOCHS:
        suffix = f", as many as suit {len(train):,} training rows: to change it, --epochs"
    return (
        f"Network: {pluralize(inputs, 'input')}, {depth} x {width} ReLU units, "
        f"{pluralize(outputs, 'output')}; Adam at 0.001, batches of {problem.batch_size:,}, "
        f"{pluralize(problem.max_epochs, 'epoch')}{suffix}."
    )


def _describe_loss(target: Target) -> list[str]:
    if target.classes is not None:
        return []
    return [
        f"Loss: squared error of the target in units of {target.sd:.6g} (its training deviation)."
    ]
