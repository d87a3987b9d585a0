"""What was assumed of a table, in sentences for its user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from flooding.tabular.messages import join_names, pluralize, quote, shorten
from flooding.tabular.preprocessing import Preprocessing
from flooding.tabular.raw_table import RawTable
from flooding.tabular.reading import is_date, is_numeric

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["describe_columns", "describe_left_out", "describe_rows", "describe_split", "limit"]

_MAX_SENTENCES = 60  # about columns of one table
_MAX_LOST = 60  # names of columns that are not used


def describe_rows(raw: RawTable) -> Iterator[str]:
    """Say how large a table is.

    Args:
        raw: The table.

    Yields:
        Sentences.
    """
    suffix = ", named c0, c1 and so on since there is no header" if raw.header is False else ""
    rows, columns = pluralize(raw.num_rows, "row"), pluralize(len(raw.names), "column")
    yield f"{raw.source}: {rows}, {columns}{suffix}."
    yield from raw.sentences


def describe_left_out(reasons: Mapping[str, str], n_rows: int, is_used: bool) -> Iterator[str]:
    """Say which columns number the rows.

    Args:
        reasons: Why each of them says nothing of new rows.
        n_rows: Number of rows.
        is_used: Whether they are used all the same, since there are no others.

    Yields:
        Sentences.
    """
    for name, reason in list(reasons.items())[:_MAX_SENTENCES]:
        title, cells = shorten(name), pluralize(n_rows, "cell")
        if is_used:
            yield f"Warning: {title} {reason} ({cells}); it is used, as there is no other column."
        else:
            yield f"Left out {title}, which {reason} ({cells}). To use it: --use {title}."


def limit(sentences: tuple[str, ...]) -> Iterator[str]:
    """Cut a list of sentences about columns, and say how many were cut.

    Args:
        sentences: A sentence or two for each column.

    Yields:
        The first of them.
    """
    yield from sentences[:_MAX_SENTENCES]
    rest = len(sentences) - _MAX_SENTENCES
    if rest > 0:
        names = list(dict.fromkeys(s.split(":")[0] for s in sentences[_MAX_SENTENCES:]))
        yield f"{rest:,} more such remarks concern {join_names(names, _MAX_LOST)}."


def describe_columns(preprocessing: Preprocessing, train: pd.DataFrame) -> Iterator[str]:
    """Say how columns became inputs.

    Args:
        preprocessing: The fitted preprocessing.
        train: The training rows.

    Yields:
        Sentences.
    """
    numeric, categorical = preprocessing.numeric_columns, preprocessing.categorical_columns
    frequent, incomplete = preprocessing.frequent, set(preprocessing.incomplete)
    if numeric:
        yield (
            f"{pluralize(len(numeric), 'numeric column')}, standardised on the training rows: "
            f"{join_names(numeric)}."
        )
    if categorical:
        counts = [f"{shorten(name)} ({len(frequent[name])})" for name in categorical]
        yield (
            f"{pluralize(len(categorical), 'column')} of categories, with the number that is kept: "
            f"{join_names(counts)}."
        )
    silent = [name for name in categorical if not frequent[name]]
    if silent:
        verb = "tells" if len(silent) == 1 else "tell"
        yield (
            f"{len(silent)} of them {verb} nothing, since no value occurs twice; "
            f"numbers written oddly? {join_names(silent, _MAX_LOST)}."
        )
    yield from _describe_gaps(preprocessing, train, incomplete)
    yield from _describe_dropped(preprocessing, train)


def _describe_gaps(
    preprocessing: Preprocessing, train: pd.DataFrame, incomplete: set[str]
) -> Iterator[str]:
    """Say which columns have missing values, and how many."""
    kinds = (
        (preprocessing.numeric_columns, "replaced by the training median"),
        (preprocessing.categorical_columns, "which are a category of their own"),
    )
    columns = {str(name): values for name, values in train.items()}
    for names, action in kinds:
        gaps = []
        for name in names:
            if name in incomplete and name in columns:
                count = int(columns[name].isna().to_numpy().sum())
                gaps.append(f"{shorten(name)} ({pluralize(count, 'cell')})")
        if gaps:
            yield (f"Missing values in the training rows, {action}: {join_names(gaps, _MAX_LOST)}.")


def _describe_dropped(preprocessing: Preprocessing, train: pd.DataFrame) -> Iterator[str]:
    """Say which columns are not used."""
    columns = {str(name): values for name, values in train.items()}
    constant, unique = [], []
    for name in preprocessing.dropped_columns:
        values = columns[name]
        repeats = is_numeric(values) or is_date(values) or values.nunique(dropna=False) <= 1
        (constant if repeats else unique).append(name)
    rows = pluralize(len(train), "training row")
    if constant:
        pronoun, verb = ("it", "it differs") if len(constant) == 1 else ("them", "they differ")
        yield (
            f"Left out as constant in {rows}: {join_names(constant, _MAX_LOST)}. "
            f"To use {pronoun}, give rows in which {verb}."
        )
    if unique:
        examples = [f"{shorten(name)} (such as {_example(columns[name])})" for name in unique]
        yield (
            f"Left out as text that never repeats in {rows}: {join_names(examples, _MAX_LOST)}. "
            "To use such text, write numbers or categories instead."
        )


def _example(values: pd.Series) -> str:
    present = values.dropna()
    return quote(str(present.iloc[0])[:30]) if len(present) else "no value"


def describe_split(parts: list[np.ndarray], seed: int, classes: tuple[str, ...] | None) -> str:
    """Say how the rows were divided.

    Args:
        parts: Row numbers of each split.
        seed: Seed of the division.
        classes: Names of the classes, or None for numbers.

    Returns:
        A sentence.
    """
    names = ("training", "validation", "test")
    sizes = []
    for part, name in zip(parts, names, strict=False):  # there may be no test split
        sizes.append(f"{len(part):,} {name}")
    suffix = ", each class alike" if classes else ""
    return f"Split by seed {seed}{suffix}: {', '.join(sizes)} rows."
