"""Advisor: what labels alone say about the level, without training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from flooding.level_search.base import LevelEstimate, SearchResult, Strategy
from flooding.training.run import Run

__all__ = ["advise", "advisor", "bayes_error", "entropy", "flip_entropy"]

_RESAMPLES = 1000


def advisor(
    problem: Any,
    *,
    soft_labels: Any = None,
    repeated_labels: Any = None,
    label_noise: float | None = None,
    lowest_val_loss: float | None = None,
    seed: int = 0,
) -> Strategy:
    """Ask nothing: tell what the problem's training labels, and what else is known of them, say
    about the level.

    Args:
        problem: The Problem.
        soft_labels: See :func:`advise`.
        repeated_labels: See :func:`advise`.
        label_noise: See :func:`advise`.
        lowest_val_loss: See :func:`advise`.
        seed: Seed of the data.

    Yields:
        Nothing.

    Returns:
        Plain training, with a suggestion for each thing known: none of them has been tried.
    """
    y, classes = problem.splits(seed).train.y, problem.classes(seed)
    labels = y[problem.target_mask(y)] if classes is not None and y.ndim == 1 else None
    suggestions = advise(
        labels=labels,
        soft_labels=soft_labels,
        repeated_labels=repeated_labels,
        label_noise=label_noise,
        classes=classes,
        lowest_val_loss=lowest_val_loss,
    )
    warnings = ("no level was tried: these are estimates and limits",)
    if labels is None:
        warnings += ("the targets are no classes: they say nothing about the level",)
    yield from ()
    return SearchResult("advisor", Run(problem, None, seed=seed), suggestions, warnings)


def advise(
    *,
    labels: Any = None,
    soft_labels: Any = None,
    repeated_labels: Any = None,
    label_noise: float | None = None,
    classes: int | None = None,
    lowest_val_loss: float | None = None,
    seed: int = 0,
) -> tuple[LevelEstimate, ...]:
    """Estimate levels, and limits to them, for cross-entropy in nats.

    The best loss there is, the irreducible one, is the entropy H(Y|X); published best levels lie a
    little below it. A level above it cannot be right. Intervals of estimates are 95 % bootstraps
    over the examples.

    * Labels: the entropy of their shares, ln C if the classes are balanced. A network that ignores
      its inputs gets there, so this is a limit and no estimate.
    * Soft labels: the mean entropy of the rows is H(Y|X), if the rows are true probabilities. The
      note has their Bayes error.
    * Repeated labels: the mean entropy of the rows' shares, with the jackknife for small counts:
      ``m H - (m - 1) * mean of H without one label``. With three labels or so, what is left of the
      bias is downwards where one label is rare.
    * Label noise: the entropy of labels that are wrong with probability p, see
      :func:`flip_entropy`: H(Y|X) itself if the clean labels follow from the inputs, else less than
      it; the interval reaches to ln C.
    * Lowest validation loss of one plain run: 0.7 times it. The interval, 0.25 to 1 times, is the
      range worth trying, since a validation loss lies above H(Y|X) up to chance.

    Args:
        labels: Class of each example, whole numbers ``[n]``.
        soft_labels: Class probabilities ``[n, C]``, rows of sum 1.
        repeated_labels: How often each class was given to each example, whole numbers ``[n, C]``,
            at least two labels a row.
        label_noise: Probability that a label was replaced by one of the wrong classes, in [0, (C -
            1) / C].
        classes: Number of classes C; by default what the arrays show, else 2 for label noise.
        lowest_val_loss: Lowest validation loss of a plain run, above 0.
        seed: Seed of the bootstrap.

    Returns:
        A suggestion for each argument that is given, in this order; ``classes`` alone gives ln C.

    Raises:
        ValueError: If an array or a number is not as described.

    Example:
        >>> [found] = advise(label_noise=0.1)
        >>> round(found.level, 4), round(found.high, 4)
        (0.3251, 0.6931)

    References:
        Ishida et al., *Is the Performance of My Deep Network Too Good to Be True?*, ICLR 2023, for
        the Bayes error. Quenouille's jackknife of the entropy: Zahl, *Ecology* 58, 1977.
    """
    draw = np.random.default_rng(seed)
    found = []
    if labels is not None:
        found.append(_of_labels(_array(labels), classes, draw))
    if soft_labels is not None:
        rows = _rows("soft_labels", soft_labels)
        if np.abs(rows.sum(1) - 1).max() > 1e-3:
            raise ValueError(
                f"soft_labels must be rows of sum 1, got sums up to {rows.sum(1).max():g}. Divide by them."
            )
        low, high = _interval(1 - rows.max(1), draw)
        note = f"entropy; Bayes error {bayes_error(rows):.4f} ({low:.4f} to {high:.4f})"
        found.append(_mean("soft labels", _entropies(rows), rows.shape[1], draw, note))
    if repeated_labels is not None:
        counts = _rows("repeated_labels", repeated_labels)
        if (counts != np.round(counts)).any() or counts.sum(1).min() < 2:
            raise ValueError(
                "repeated_labels must be whole numbers, two or more a row. Give counts, not shares."
            )
        found.append(
            _mean(
                "repeated labels", _jackknife(counts), counts.shape[1], draw, "entropy, jackknife"
            )
        )
    if label_noise is not None:
        known = classes or max(
            [2] + [np.shape(rows)[1] for rows in (soft_labels, repeated_labels) if rows is not None]
        )
        level = flip_entropy(label_noise, known)
        found.append(
            LevelEstimate(
                "label noise", level, level, math.log(known), "exact where clean labels are certain"
            )
        )
    if lowest_val_loss is not None:
        if not 0 < lowest_val_loss < math.inf:
            known = -math.inf < lowest_val_loss <= 0
            fix = (
                "A share of it is no level: use find_level."
                if known
                else "Did the plain run diverge?"
            )
            raise ValueError(f"lowest_val_loss must be above 0, got {lowest_val_loss}. {fix}")
        v = float(lowest_val_loss)
        found.append(
            LevelEstimate(
                "0.7 x lowest validation loss", 0.7 * v, 0.25 * v, v, "a guess from one plain run"
            )
        )
    if not found and classes is not None:
        limit = math.log(classes)
        found.append(
            LevelEstimate(
                "balanced classes", limit, limit, limit, "a limit: no level above it can be right"
            )
        )
    return tuple(found)


def entropy(probabilities: Any) -> float:
    """Mean entropy of rows of probabilities.

    Args:
        probabilities: Probabilities ``[C]`` or ``[n, C]``; 0 ln 0 counts as 0.

    Returns:
        Nats.

    Example:
        >>> round(entropy([[0.5, 0.5], [1.0, 0.0]]), 4)
        0.3466
    """
    return float(_entropies(np.atleast_2d(_array(probabilities))).mean())


def bayes_error(soft_labels: Any) -> float:
    """Mean probability that the likeliest class is wrong; ``mean_i min(c_i, 1 - c_i)`` for two
    classes.

    Args:
        soft_labels: Class probabilities ``[n, C]``. From few labels an example, it comes out too
            small.

    Returns:
        Error rate in [0, 1 - 1 / C].

    Example:
        >>> round(bayes_error([[0.9, 0.1], [0.3, 0.7]]), 4)
        0.2

    References:
        Ishida et al., ICLR 2023, eq. (4).
    """
    return float((1 - _rows("soft_labels", soft_labels).max(1)).mean())


def flip_entropy(p: float, classes: int = 2) -> float:
    """Entropy of a label that is replaced by one of the wrong classes, each alike, with probability
    p.

    ``h(p) = -p ln p - (1 - p) ln(1 - p)``, and ``p ln(C - 1)`` more for C classes.

    Args:
        p: Probability, in [0, (C - 1) / C].
        classes: Number of classes C, at least 2.

    Returns:
        Nats.

    Raises:
        ValueError: If ``p`` or ``classes`` is out of range.

    Example:
        >>> round(flip_entropy(0.05), 4)
        0.1985
    """
    if classes < 2 or not 0 <= p <= (classes - 1) / classes:
        raise ValueError(
            f"label noise must lie in [0, (C - 1) / C] with C >= 2, got {p} with C = {classes}."
        )
    return entropy([1 - p, p]) + p * math.log(classes - 1)


def _of_labels(labels: np.ndarray, classes: int | None, draw: np.random.Generator) -> LevelEstimate:
    whole = (
        labels.ndim == 1
        and len(labels)
        and (labels == np.round(labels)).all()
        and labels.min() >= 0
    )
    if not whole or labels.max() >= (classes or math.inf):
        raise ValueError(
            f"labels must be whole numbers [n] from 0 to below classes={classes}, got {labels!r}."
        )
    shares = np.bincount(labels.astype(np.int64), minlength=classes or 1) / len(labels)
    level = entropy(shares)
    again = _entropies(draw.multinomial(len(labels), shares, size=_RESAMPLES) / len(labels))
    low, high = np.quantile(again, [0.025, 0.975])
    note = "a limit: no level above it can be right"
    return LevelEstimate(
        "label entropy", level, min(level, float(low)), max(level, float(high)), note
    )


def _mean(
    name: str, values: np.ndarray, classes: int, draw: np.random.Generator, note: str
) -> LevelEstimate:
    """Suggest the mean of entropies of examples, which lies between 0 and ln C."""
    low, high = _interval(values, draw)
    level, low, high = (
        float(np.clip(v, 0.0, math.log(classes))) for v in (values.mean(), low, high)
    )
    return LevelEstimate(name, level, min(level, low), max(level, high), note)


def _interval(values: np.ndarray, draw: np.random.Generator) -> tuple[float, float]:
    """Bootstrap the mean: 95 %."""
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _entropies(rows: np.ndarray) -> np.ndarray:
    return 0.0 - (rows * np.log(np.where(rows > 0, rows, 1.0))).sum(1)  # not -0.0


def _jackknife(counts: np.ndarray) -> np.ndarray:
    """Entropy of each row of counts, less its bias for small counts."""
    n = counts.sum(1, keepdims=True)
    whole, without = _entropies(counts / n), np.zeros(len(counts))
    for c in range(counts.shape[1]):
        fewer = counts - np.eye(counts.shape[1])[c] * (counts[:, [c]] > 0)
        without += counts[:, c] / n[:, 0] * _entropies(fewer / fewer.sum(1, keepdims=True))
    return n[:, 0] * whole - (n[:, 0] - 1) * without


def _rows(name: str, values: Any) -> np.ndarray:
    rows = _array(values)
    if (
        rows.ndim != 2
        or rows.shape[1] < 2
        or len(rows) == 0
        or not np.isfinite(rows).all()
        or rows.min() < 0
    ):
        raise ValueError(
            f"{name} must be [n, C], C at least 2, finite and not negative, got shape {rows.shape}."
        )
    return rows


def _array(values: Any) -> np.ndarray:
    return np.asarray(
        values.detach().cpu().double() if isinstance(values, Tensor) else values, np.float64
    )
