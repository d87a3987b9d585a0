"""Advisor: what labels alone say about the level, without training."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from flooding.level_search.protocol import Strategy
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.training.problem import Problem
from flooding.training.run import Run

__all__ = ["advise", "advisor", "bayes_error", "entropy", "label_noise_entropy"]

_RESAMPLES = 1000
_LIMIT_NOTE = "a limit: no level above it can be right"


def advisor(
    problem: Problem,
    *,
    soft_labels: ArrayLike | Tensor | None = None,
    repeated_labels: ArrayLike | Tensor | None = None,
    label_noise: float | None = None,
    lowest_val_loss: float | None = None,
    seed: int = 0,
) -> Strategy:
    """Estimate the level from the problem's training labels, and from what else is known of them.

    Nothing is trained.

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
        Plain training, with an estimate from each thing that is known; no level was tried.
    """
    y, classes = problem.splits(seed).train.y, problem.classes(seed)
    labels = None
    if classes is not None and y.ndim == 1:
        labels = y[problem.target_mask(y)]
    estimates = advise(
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
    return SearchResult("advisor", Run(problem, None, seed=seed), estimates, warnings)


def advise(
    *,
    labels: ArrayLike | Tensor | None = None,
    soft_labels: ArrayLike | Tensor | None = None,
    repeated_labels: ArrayLike | Tensor | None = None,
    label_noise: float | None = None,
    classes: int | None = None,
    lowest_val_loss: float | None = None,
    seed: int = 0,
) -> tuple[LevelEstimate, ...]:
    """Estimate levels, and limits to them, for cross-entropy in nats.

    The irreducible loss is the entropy H(Y|X). Published best levels lie a little below it; a level
    above it cannot be right. Intervals are 95 % bootstraps over the examples.

    * Labels: the entropy of their shares, ln C if the classes are balanced. A network that ignores
      its inputs reaches it, so this is an upper limit.
    * Soft labels: the mean entropy of the rows is H(Y|X), if the rows are true probabilities. The
      note has their Bayes error.
    * Repeated labels: the mean entropy of the rows' shares, with the jackknife for small counts:
      ``m H - (m - 1) * mean of H without one label``. With about three labels a row, the remaining
      bias is downwards where one label is rare.
    * Label noise: the entropy of labels that are wrong with probability p, see
      :func:`label_noise_entropy`. It is H(Y|X) itself if the clean labels follow from the inputs,
      else less; the interval reaches to ln C.
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
        An estimate for each argument that is given, in this order; ``classes`` alone gives ln C.

    Raises:
        ValueError: If an array or a number is not as described.

    Example:
        >>> [estimate] = advise(label_noise=0.1)
        >>> round(estimate.level, 4), round(estimate.high, 4)
        (0.3251, 0.6931)

    References:
        Ishida et al., *Is the Performance of My Deep Network Too Good to Be True?*, ICLR 2023, for
        the Bayes error. Quenouille's jackknife of the entropy: Zahl, *Ecology* 58, 1977.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    # One generator for all bootstraps, in the order of the arguments.
    rng = np.random.default_rng(seed)
    estimates: list[LevelEstimate] = []
    if labels is not None:
        estimates.append(_label_estimate(_to_array(labels), classes, rng))
    if soft_labels is not None:
        estimates.append(_soft_label_estimate(soft_labels, rng))
    if repeated_labels is not None:
        estimates.append(_repeated_label_estimate(repeated_labels, rng))
    if label_noise is not None:
        # The tables tell the number of classes where the caller does not.
        known_classes = classes or _count_classes(soft_labels, repeated_labels)
        estimates.append(_label_noise_estimate(label_noise, known_classes))
    if lowest_val_loss is not None:
        estimates.append(_val_loss_estimate(lowest_val_loss))
    # The number of classes alone still gives the upper limit ln C.
    if not estimates and classes is not None:
        limit = math.log(classes)
        estimates.append(LevelEstimate("balanced classes", limit, limit, limit, _LIMIT_NOTE))
    return tuple(estimates)


def entropy(probabilities: ArrayLike | Tensor) -> float:
    """Mean entropy of rows of probabilities.

    Args:
        probabilities: Probabilities ``[C]`` or ``[n, C]``; 0 ln 0 counts as 0.

    Returns:
        Nats.

    Example:
        >>> round(entropy([[0.5, 0.5], [1.0, 0.0]]), 4)
        0.3466
    """
    return float(_entropies(np.atleast_2d(_to_array(probabilities))).mean())


def bayes_error(soft_labels: ArrayLike | Tensor) -> float:
    """Mean probability that the likeliest class is wrong.

    For two classes ``mean_i min(c_i, 1 - c_i)``.

    Args:
        soft_labels: Class probabilities ``[n, C]``. Shares of few labels a row give too small an
            error.

    Returns:
        Error rate in [0, 1 - 1 / C].

    Example:
        >>> round(bayes_error([[0.9, 0.1], [0.3, 0.7]]), 4)
        0.2

    References:
        Ishida et al., ICLR 2023, eq. (4).
    """
    return float((1 - _check_rows("soft_labels", soft_labels).max(1)).mean())


def label_noise_entropy(p: float, classes: int = 2) -> float:
    """Entropy of a label that is wrong with probability p, every wrong class being as likely.

    ``h(p) = -p ln p - (1 - p) ln(1 - p)``, and ``p ln(C - 1)`` more for C classes.

    Args:
        p: Probability, in [0, (C - 1) / C].
        classes: Number of classes C, at least 2.

    Returns:
        Nats.

    Raises:
        ValueError: If ``p`` or ``classes`` is out of range.

    Example:
        >>> round(label_noise_entropy(0.05), 4)
        0.1985
    """
    # Beyond (C - 1) / C the given label would be less likely than each of the others.
    if classes < 2 or not 0 <= p <= (classes - 1) / classes:
        raise ValueError(
            f"label noise must lie in [0, (C - 1) / C] with C >= 2, got {p} with C = {classes}."
        )
    return entropy([1 - p, p]) + p * math.log(classes - 1)


def _label_estimate(
    labels: np.ndarray, classes: int | None, rng: np.random.Generator
) -> LevelEstimate:
    """Limit the level by the entropy of the class shares."""
    valid = labels.ndim == 1 and len(labels) > 0 and bool((labels == np.round(labels)).all())
    if not valid or labels.min() < 0 or labels.max() >= (classes or math.inf):
        raise ValueError(
            f"labels must be whole numbers [n] from 0 to below classes={classes}, got {labels!r}."
        )
    n = len(labels)
    # Classes without an example have share 0, which adds nothing to the entropy.
    shares = np.bincount(labels.astype(np.int64), minlength=classes or 1) / n
    level = entropy(shares)
    # Resampling the labels of n examples is a multinomial draw of their shares.
    resampled = _entropies(rng.multinomial(n, shares, size=_RESAMPLES) / n)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return LevelEstimate(
        "label entropy", level, min(level, float(low)), max(level, float(high)), _LIMIT_NOTE
    )


def _soft_label_estimate(
    soft_labels: ArrayLike | Tensor, rng: np.random.Generator
) -> LevelEstimate:
    rows = _check_rows("soft_labels", soft_labels)
    sums = rows.sum(1)
    if np.abs(sums - 1).max() > 1e-3:
        raise ValueError(
            f"soft_labels must be rows of sum 1, got sums up to {sums.max():g}. Divide by them."
        )
    # The Bayes error of a row is what its likeliest class leaves.
    low, high = _bootstrap_interval(1 - rows.max(1), rng)
    note = f"entropy; Bayes error {bayes_error(rows):.4f} ({low:.4f} to {high:.4f})"
    return _mean_estimate("soft labels", _entropies(rows), rows.shape[1], rng, note)


def _repeated_label_estimate(
    repeated_labels: ArrayLike | Tensor, rng: np.random.Generator
) -> LevelEstimate:
    counts = _check_rows("repeated_labels", repeated_labels)
    if (counts != np.round(counts)).any() or counts.sum(1).min() < 2:
        raise ValueError(
            "repeated_labels must be whole numbers, two or more a row. Give counts, not shares."
        )
    # The shares of few labels look surer than they are: correct their entropy.
    entropies = _jackknife_entropies(counts)
    return _mean_estimate("repeated labels", entropies, counts.shape[1], rng, "entropy, jackknife")


def _count_classes(*tables: ArrayLike | Tensor | None) -> int:
    """Count the columns of the widest table, at least two."""
    num_classes = 2
    for table in tables:
        if table is not None:
            num_classes = max(num_classes, np.shape(table)[1])
    return num_classes


def _label_noise_estimate(label_noise: float, classes: int) -> LevelEstimate:
    level = label_noise_entropy(label_noise, classes)
    note = "exact where clean labels are certain"
    return LevelEstimate("label noise", level, level, math.log(classes), note)


def _val_loss_estimate(lowest_val_loss: float) -> LevelEstimate:
    """Guess the level from the lowest validation loss of a plain run."""
    if not 0 < lowest_val_loss < math.inf:
        fix = "Did the plain run diverge?"
        if -math.inf < lowest_val_loss <= 0:
            fix = "A share of it is no level: use find_level."
        raise ValueError(f"lowest_val_loss must be above 0, got {lowest_val_loss}. {fix}")
    loss = float(lowest_val_loss)
    return LevelEstimate(
        "0.7 x lowest validation loss", 0.7 * loss, 0.25 * loss, loss, "a guess from one plain run"
    )


def _mean_estimate(
    name: str, entropies: np.ndarray, classes: int, rng: np.random.Generator, note: str
) -> LevelEstimate:
    """Estimate the level by the mean entropy of examples, which lies between 0 and ln C."""
    mean, interval = entropies.mean(), _bootstrap_interval(entropies, rng)
    # The jackknife may leave the range that an entropy has.
    level, low, high = np.clip([mean, *interval], 0.0, math.log(classes)).tolist()
    return LevelEstimate(name, level, min(level, low), max(level, high), note)


def _bootstrap_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Give the 95 % bootstrap interval of a mean."""
    n = len(values)
    means = [values[rng.integers(n, size=n)].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _entropies(rows: np.ndarray) -> np.ndarray:
    """Give the entropy of each row of probabilities, in nats."""
    # 0 ln 0 counts as 0. The difference from 0.0 is never -0.0.
    logs = np.log(np.where(rows > 0, rows, 1.0))
    return 0.0 - (rows * logs).sum(1)


def _jackknife_entropies(counts: np.ndarray) -> np.ndarray:
    """Give the entropy of each row of counts, less its bias for small counts."""
    n = counts.sum(1, keepdims=True)
    plug_in = _entropies(counts / n)
    # Mean entropy of the row without one of its labels, each label left out in turn.
    without_one = np.zeros(len(counts))
    one_hot = np.eye(counts.shape[1])
    for column in range(counts.shape[1]):
        # A row without such a label stays whole; its weight below is 0.
        fewer = counts - one_hot[column] * (counts[:, [column]] > 0)
        entropies = _entropies(fewer / fewer.sum(1, keepdims=True))
        without_one += counts[:, column] / n[:, 0] * entropies
    return n[:, 0] * plug_in - (n[:, 0] - 1) * without_one


def _check_rows(name: str, values: ArrayLike | Tensor) -> np.ndarray:
    rows = _to_array(values)
    is_table = rows.ndim == 2 and rows.shape[1] >= 2 and len(rows) > 0
    if not is_table or not np.isfinite(rows).all() or rows.min() < 0:
        raise ValueError(
            f"{name} must be [n, C], C at least 2, finite and not negative, got shape {rows.shape}."
        )
    return rows


def _to_array(values: ArrayLike | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, np.float64)
