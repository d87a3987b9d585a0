"""Two Gaussians, Sinusoid, Spiral: binary tasks whose noise and best result are known.

Every function returns :class:`~flooding.data.Splits` with float32 inputs and int64 labels. Exactly
``round(n * p)`` distinct labels of *each* split are flipped; ``clean`` keeps the labels before.
Each split draws inputs and flips from streams of its own, so one split's size or the label noise
changes nothing else.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flooding.data import Split, Splits, flip_labels, make_rng

__all__ = [
    "flip_entropy",
    "sinusoid",
    "sinusoid_nd",
    "spiral",
    "spiral_best_accuracy",
    "two_gaussians",
    "two_gaussians_best_accuracy",
    "two_gaussians_irreducible_nll",
    "two_gaussians_posterior",
]

Draw = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def two_gaussians(
    n_train: int = 100,
    n_val: int = 100,
    n_test: int = 20_000,
    label_noise: float = 0.1,
    dimension: int = 10,
    negative_mean: float = 1.0,
    *,
    seed: int,
) -> Splits:
    """Draw two Gaussian classes of unit covariance around 0 and around ``negative_mean``.

    ``x | y ~ N(y * negative_mean * (1, ..., 1), I)``. The classes are equal in every split; of an
    odd number class 0 gets the extra example. The name follows the public demo, whose *positive*
    class has mean 0 and whose *negative* class has this mean: its positives are class 0 here. At
    ``negative_mean = 0`` nothing can be learnt.

    Args:
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2.
        n_test: Test examples, at least 2.
        label_noise: Share of flipped labels in each split, in [0, 1).
        dimension: Number of coordinates, at least 1.
        negative_mean: Mean of class 1 in every coordinate.
        seed: Non-negative integer; the same seed gives the same data.

    Returns:
        Splits with inputs ``[n, dimension]`` and, in ``posterior``, the exact probabilities of the
        noisy labels of the test inputs, ``[n_test, 2]``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> splits = two_gaussians(n_test=1000, label_noise=0.05, seed=0)
        >>> splits.train.x.shape, int((splits.train.y != splits.train.clean).sum())
        (torch.Size([100, 10]), 5)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, section 4.1.
    """
    _check_at_least("dimension", dimension, 1)
    _check_finite("negative_mean", negative_mean)

    def draw(n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = generator.permutation(np.arange(n) < n // 2)
        return generator.standard_normal((n, dimension)) + negative_mean * y[:, None], y

    train, val, test = _draw_splits(draw, (n_train, n_val, n_test), label_noise, seed)
    return Splits(train, val, test, two_gaussians_posterior(test.x, label_noise, negative_mean))


def sinusoid(
    n_train: int = 100,
    n_val: int = 100,
    n_test: int = 20_000,
    label_noise: float = 0.1,
    *,
    seed: int,
) -> Splits:
    """Draw points uniformly from the disc of radius 2, divided by a sinusoid.

    ``y = 1`` if ``1.5 * x1 + sin(1.5 * x2) > 0``, else 0.

    Args:
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2.
        n_test: Test examples, at least 2.
        label_noise: Share of flipped labels in each split, in [0, 1).
        seed: Non-negative integer; the same seed gives the same data.

    Returns:
        Splits with inputs ``[n, 2]``; ``posterior`` is exact, since only the flips are random.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> splits = sinusoid(seed=0)
        >>> bool((splits.train.x.norm(dim=1) <= 2).all())
        True

    References:
        Ishida et al., ICML 2020, section 4.1.
    """

    def draw(n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        # The square root makes the density uniform in area.
        radius, angle = 2 * np.sqrt(generator.random(n)), 2 * np.pi * generator.random(n)
        x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return x, 1.5 * x[:, 0] + np.sin(1.5 * x[:, 1]) > 0

    return _with_flip_posterior(
        _draw_splits(draw, (n_train, n_val, n_test), label_noise, seed), label_noise
    )


def sinusoid_nd(
    n_train: int = 100,
    n_val: int = 100,
    n_test: int = 20_000,
    label_noise: float = 0.1,
    dimension: int = 10,
    *,
    seed: int,
) -> Splits:
    """Draw ``x = 2 * N(0, I)``, divided by a sinusoid in the first two coordinates.

    ``y = 1`` if ``x1 + sin(x2) > 0``, else 0; the other coordinates carry nothing.

    Args:
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2.
        n_test: Test examples, at least 2.
        label_noise: Share of flipped labels in each split, in [0, 1).
        dimension: Number of coordinates, at least 2.
        seed: Non-negative integer; the same seed gives the same data.

    Returns:
        Splits with inputs ``[n, dimension]``; ``posterior`` is exact, since only the flips are
        random.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sinusoid_nd(dimension=5, seed=0).val.x.shape
        torch.Size([100, 5])
    """
    _check_at_least("dimension", dimension, 2)

    def draw(n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x = 2 * generator.standard_normal((n, dimension))
        return x, x[:, 0] + np.sin(x[:, 1]) > 0

    return _with_flip_posterior(
        _draw_splits(draw, (n_train, n_val, n_test), label_noise, seed), label_noise
    )


def spiral(
    n_train: int = 100,
    n_val: int = 100,
    n_test: int = 20_000,
    label_noise: float = 0.1,
    spiral_noise: float = 1.0,
    *,
    seed: int,
) -> Splits:
    """Draw two interleaved spirals with Gaussian jitter.

    At angle ``a``, class 1 lies at ``a * (cos a, sin a)`` and class 0 at
    ``(a + pi) * (cos a, sin a)``, each plus ``N(0, spiral_noise^2)`` per coordinate. Each class has
    its angles evenly spaced over [0, 4 pi], both ends included; of an odd number class 0 gets the
    extra example. Without jitter, splits of equal size hold equal points.

    Args:
        n_train: Training examples, at least 2.
        n_val: Validation examples, at least 2.
        n_test: Test examples, at least 2.
        label_noise: Share of flipped labels in each split, in [0, 1).
        spiral_noise: Standard deviation of the jitter, at least 0.
        seed: Non-negative integer; the same seed gives the same data.

    Returns:
        Splits with inputs ``[n, 2]`` in random order.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> splits = spiral(n_train=10, label_noise=0, seed=0)
        >>> int(splits.train.y.sum()), splits.train.clean
        (5, None)

    References:
        Ishida et al., ICML 2020, section 4.1.
    """
    _check_finite("spiral_noise", spiral_noise)
    if spiral_noise < 0:
        raise ValueError(
            f"spiral_noise must be at least 0, got {spiral_noise}. It is a standard deviation."
        )

    def draw(n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        ones = n // 2
        angle = np.concatenate([
            np.linspace(0, 4 * np.pi, ones),
            np.linspace(0, 4 * np.pi, n - ones),
        ])
        y = np.arange(n) < ones
        x = (angle + np.pi * ~y)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        order = generator.permutation(n)
        return x[order] + spiral_noise * generator.standard_normal((n, 2)), y[order]

    train, val, test = _draw_splits(draw, (n_train, n_val, n_test), label_noise, seed)
    return Splits(train, val, test)


def spiral_best_accuracy(label_noise: float = 0.0, spiral_noise: float = 1.0) -> float:
    """Integrate the best reachable accuracy on noisy labels of Spiral, for angles drawn uniformly.

    The clean classes overlap, since their points are jittered: ``A`` is the integral of
    ``max(p0(x), p1(x)) / 2`` over the plane, with ``p_y`` the density of class y; noisy as in
    :func:`two_gaussians_best_accuracy`.

    Args:
        label_noise: Probability of a flip, in [0, 1).
        spiral_noise: Standard deviation of the jitter, above 0.

    Returns:
        Accuracy in [0.5, 1], to about three digits.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> round(spiral_best_accuracy(), 3), round(spiral_best_accuracy(0.1), 3)
        (0.905, 0.824)
    """
    _check_noise(label_noise)
    _check_finite("spiral_noise", spiral_noise)
    if spiral_noise <= 0:
        raise ValueError(
            f"spiral_noise must be above 0, got {spiral_noise}. "
            "Without it the classes do not overlap."
        )
    clean, p = _spiral_clean_accuracy(spiral_noise), min(label_noise, 1 - label_noise)
    return (1 - p) * clean + p * (1 - clean)


@functools.cache
def _spiral_clean_accuracy(spiral_noise: float) -> float:
    """Integrate the best accuracy on clean labels of Spiral over a grid."""
    step = spiral_noise / 5
    reach = 5 * math.pi + 5 * spiral_noise
    side = torch.arange(-reach, reach + step, step, dtype=torch.float64)
    angle = torch.linspace(
        0, 4 * math.pi, max(400, math.ceil(100 / spiral_noise)), dtype=torch.float64
    )
    arms = [
        radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        for radius in (angle + math.pi, angle)
    ]
    scale = 2 * math.pi * spiral_noise**2 * len(angle)
    kernel = -0.5 / spiral_noise**2

    def along(coordinates: Tensor) -> Tensor:
        return (kernel * (side[:, None] - coordinates) ** 2).exp()

    # The kernel is a product over the two coordinates, so its sum over an arm is one product of
    # matrices: the grid's density.
    density = [along(arm[:, 0]) @ along(arm[:, 1]).T for arm in arms]
    return float(torch.maximum(*density).sum()) / scale * step**2 / 2


def two_gaussians_posterior(
    x: Tensor, label_noise: float = 0.0, negative_mean: float = 1.0
) -> Tensor:
    """Give the exact probabilities of the noisy labels at inputs of Two Gaussians.

    With ``m = negative_mean`` and ``d`` coordinates the clean log-odds of class 1 are
    ``m * sum(x) - d * m^2 / 2``; a flip with probability ``p`` mixes the classes,
    ``(1 - p) * q + p * (1 - q)``. Computed in float64.

    Args:
        x: Inputs, ``[n, dimension]``.
        label_noise: Probability ``p`` of a flip, in [0, 1).
        negative_mean: Mean of class 1 in every coordinate.

    Returns:
        Probabilities of class 0 and class 1, ``[n, 2]``, in the dtype of ``x``.

    Example:
        >>> two_gaussians_posterior(torch.full((1, 10), 0.5), label_noise=0.1)
        tensor([[0.5000, 0.5000]])
    """
    wide = x.double()
    log_odds = negative_mean * wide.sum(1) - wide.shape[1] * negative_mean**2 / 2
    clean = torch.sigmoid(torch.stack([-log_odds, log_odds], dim=1))
    return _mix_by_flips(clean, label_noise).to(x.dtype)


def two_gaussians_irreducible_nll(
    label_noise: float = 0.0, dimension: int = 10, negative_mean: float = 1.0
) -> float:
    """Integrate the lowest negative log-likelihood on noisy labels of Two Gaussians, ``H(Y | X)``.

    The clean log-odds are normal with mean and variance ``+-d2 / 2`` and
    ``d2 = dimension * negative_mean^2``, so one integral over them is enough. No flood level above
    this can be right.

    Args:
        label_noise: Probability of a flip, in [0, 1).
        dimension: Number of coordinates, at least 1.
        negative_mean: Mean of class 1 in every coordinate.

    Returns:
        Conditional entropy in nats per example, in [0, ln 2].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(two_gaussians_irreducible_nll(p), 4) for p in (0, 0.01, 0.05, 0.1)]
        [0.1435, 0.1814, 0.2902, 0.3911]
    """
    distance = _mean_distance(label_noise, dimension, negative_mean)
    # The trapezoid rule converges geometrically on a smooth integrand that vanishes at both ends.
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_odds = distance**2 / 2 + distance * z
    noisy = _mix_by_flips(torch.sigmoid(torch.stack([-log_odds, log_odds], dim=1)), label_noise)
    entropy = torch.special.entr(noisy).sum(1)
    return float(torch.trapezoid(torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * entropy, z))


def two_gaussians_best_accuracy(
    label_noise: float = 0.0, dimension: int = 10, negative_mean: float = 1.0
) -> float:
    """Give the best reachable accuracy on noisy labels of Two Gaussians.

    ``(1 - p) * A + p * (1 - A)`` for ``p <= 1/2``, with
    ``A = Phi(sqrt(dimension) * |negative_mean| / 2)`` the best clean accuracy; above 1/2 the best
    rule predicts the flipped class.

    Args:
        label_noise: Probability ``p`` of a flip, in [0, 1).
        dimension: Number of coordinates, at least 1.
        negative_mean: Mean of class 1 in every coordinate.

    Returns:
        Accuracy in [0.5, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(two_gaussians_best_accuracy(p), 4) for p in (0, 0.01, 0.05, 0.1)]
        [0.9431, 0.9342, 0.8988, 0.8545]
    """
    clean = (1 + math.erf(_mean_distance(label_noise, dimension, negative_mean) / math.sqrt(8))) / 2
    p = min(label_noise, 1 - label_noise)
    return (1 - p) * clean + p * (1 - clean)


def flip_entropy(label_noise: float, classes: int = 2) -> float:
    """Give the entropy that flips add to a deterministic task: ``h(p) + p * ln(classes - 1)``.

    ``h(p) = -p ln p - (1 - p) ln(1 - p)``, 0 at ``p = 0``. A flip goes to every wrong class alike.

    Args:
        label_noise: Probability ``p`` of a flip, in [0, 1).
        classes: Number of classes, at least 2.

    Returns:
        Conditional entropy of the noisy label in nats.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(flip_entropy(p), 4) for p in (0.01, 0.05, 0.1)]
        [0.056, 0.1985, 0.3251]
    """
    _check_noise(label_noise)
    _check_at_least("classes", classes, 2)
    if label_noise == 0:
        return 0.0
    h = -label_noise * math.log(label_noise) - (1 - label_noise) * math.log1p(-label_noise)
    return h + label_noise * math.log(classes - 1)


def _draw_splits(
    draw: Draw, counts: tuple[int, int, int], label_noise: float, seed: int
) -> list[Split]:
    """Draw the three splits and flip labels, each from a stream of its own."""
    for name, n in zip(("n_train", "n_val", "n_test"), counts, strict=True):
        _check_at_least(name, n, 2)
    _check_noise(label_noise)
    splits = []
    for position, n in enumerate(counts):
        x, labels = draw(n, make_rng(seed, position, 0))
        clean = torch.from_numpy(labels).long()
        y = flip_labels(clean, label_noise, 2, make_rng(seed, position, 1))
        splits.append(Split(torch.from_numpy(x).float(), y, clean if label_noise else None))
    return splits


def _with_flip_posterior(splits: list[Split], label_noise: float) -> Splits:
    """Add the posterior of a task in which nothing but the flips is random."""
    train, val, test = splits
    clean = test.y if test.clean is None else test.clean
    return Splits(
        train, val, test, _mix_by_flips(torch.nn.functional.one_hot(clean, 2).float(), label_noise)
    )


def _mix_by_flips(probabilities: Tensor, label_noise: float) -> Tensor:
    """Mix two-class probabilities ``[n, 2]`` by flips."""
    return (1 - label_noise) * probabilities + label_noise * probabilities.flip(1)


def _mean_distance(label_noise: float, dimension: int, negative_mean: float) -> float:
    """Distance between the class means: the standard deviation of the log-odds in each class."""
    _check_noise(label_noise)
    _check_at_least("dimension", dimension, 1)
    _check_finite("negative_mean", negative_mean)
    return math.sqrt(dimension) * abs(negative_mean)


def _check_noise(label_noise: float) -> None:
    if not 0 <= label_noise < 1:
        raise ValueError(
            f"label_noise must lie in [0, 1), got {label_noise}. Give a share, not percent."
        )


def _check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(
            f"{name} must be an integer of at least {least}, got {value!r}. "
            f"Pass {name}={least} or more."
        )


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}. Leave it out for the default.")
