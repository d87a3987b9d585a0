"""The formulas, once: flooding and its smooth twin for floats, NumPy, torch and JAX arrays alike.

Nothing here imports a framework: the functions use operators and the array's own methods. Where the
mean is taken *is* the method: ``flood(losses.mean(), b)`` is flooding, ``flood(losses, b).mean()``
is iFlood, and a tensor of levels gives AdaFlood or class-wise flooding by broadcasting.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

__all__ = ["SIGMA_MIN", "adaflood_level", "flood", "is_flooded", "soft_flood"]

# A float, or an array of NumPy, torch or JAX: only its operators and own methods are used.
Array: TypeAlias = Any

# Below this (residual / sigma)^2 leaves the range of float32 for losses up to 1e3.
SIGMA_MIN = 1e-6


def _to_float32(x: Array) -> Array:
    """Widen float16 and bfloat16 arrays to float32; leave everything else alone."""
    # torch.compile has no attributes for a number that changes between calls.
    if isinstance(x, (int, float)):
        return x
    dtype = getattr(x, "dtype", None)
    if dtype is None or dtype.itemsize >= 4 or "float" not in str(dtype):
        return x
    return x.float() if hasattr(x, "float") else x.astype("float32")


def _explain_types(loss: object, level: object) -> str:
    """Explain operands that have no arithmetic with each other, such as a level that is text."""
    types = f"a loss of type {type(loss).__name__} and a level of type {type(level).__name__}"
    fix = "Pass the numbers themselves."
    if isinstance(level, str):
        fix = f"Convert it: float({level!r:.40})."
    return f"loss and level must be numbers or arrays of one library, got {types}. {fix}"


def flood(loss: Array, level: Array | None) -> Array:
    """Keep a loss near a level: ``|loss - level| + level``.

    Above the level this is the loss itself (up to rounding), below it is ``2 * level - loss``:
    gradient descent above, ascent below. Exactly at the level the slope is 0 in torch and +1 in
    JAX. Half-precision input is widened to float32 first, since bfloat16 cannot tell 0.0500 from
    0.0502. NaN stays NaN.

    Args:
        loss: Loss or losses in any unit, a float or an array of any shape.
        level: Flood level in the unit of ``loss``; a float, or an array that broadcasts against
            ``loss``. Negative levels are right for densities. ``None`` returns ``loss`` untouched,
            bit for bit.

    Returns:
        The flooded loss, of the broadcast shape.

    Raises:
        TypeError: If the two have no arithmetic with each other, such as a level read as a string.

    Example:
        >>> flood(0.5, 0.125), flood(0.0, 0.125)
        (0.5, 0.25)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1). Xie et al., *iFlood*, ICLR 2022 (element-wise use).
    """
    if level is None:
        return loss
    try:
        loss, level = _to_float32(loss), _to_float32(level)
        return abs(loss - level) + level
    except TypeError as error:
        raise TypeError(_explain_types(loss, level)) from error


def soft_flood(loss: Array, level: Array, sigma: float = 1.0, eta: float = 1.0) -> Array:
    """Flood smoothly: ``eta * level + sigma^2 * rho((loss - level) / sigma)``.

    Here ``rho(x) = sqrt(1 + x^2) - 1``. The slope is ``sigma * x / sqrt(1 + x^2)`` with
    ``x = (loss - level) / sigma``: 0 at the level and growing with the distance from it. As
    ``sigma`` falls to 0 the slope over ``sigma`` becomes the sign of :func:`flood`. ``rho`` is
    computed as ``x^2 / (1 + sqrt(1 + x^2))``, which keeps small ``x``, in float32 or wider.

    Args:
        loss: Loss or losses, a float or an array of any shape.
        level: Level in the unit of ``loss``; broadcasts against it.
        sigma: Width of the smooth region in the unit of ``loss``, at least ``SIGMA_MIN``.
        eta: Weight of the level in the value; it does not change the gradient with respect to
            ``loss``.

    Returns:
        The softly flooded loss, of the broadcast shape.

    Raises:
        TypeError: If loss and level have no arithmetic with each other.
        ValueError: If ``sigma`` is not finite or is below ``SIGMA_MIN``.

    Example:
        >>> soft_flood(0.3, 0.3), round(soft_flood(1.3, 0.3), 4)
        (0.3, 0.7142)

    References:
        Holland & Nakatani, *SoftAD*, NeurIPS 2024, arXiv 2310.10006.
    """
    if not (math.isfinite(sigma) and sigma >= SIGMA_MIN):
        raise ValueError(
            f"sigma must be finite and at least {SIGMA_MIN:g}, got {sigma}. Use flood() for the "
            "limit."
        )
    try:
        loss, level = _to_float32(loss), _to_float32(level)
        x = (loss - level) / sigma
        return eta * level + sigma**2 * (x * x / (1 + (1 + x * x) ** 0.5))
    except TypeError as error:
        raise TypeError(_explain_types(loss, level)) from error


def is_flooded(loss: Array, level: Array | None) -> Array:
    """Tell where a loss lies strictly below its level, that is where flooding ascends.

    Use this and not ``flood(loss, level) != loss``: adding the level back rounds, so that
    comparison over-counts.

    Args:
        loss: Loss or losses, a float or an array.
        level: Level in the same unit; ``None`` floods nothing.

    Returns:
        A bool, or a boolean array of the broadcast shape. NaN is never flooded.

    Raises:
        TypeError: If the two cannot be compared.

    Example:
        >>> is_flooded(0.05, 0.1), is_flooded(0.1, 0.1), is_flooded(0.2, None)
        (True, False, False)
    """
    if level is None:
        level = -math.inf
    try:
        return _to_float32(loss) < _to_float32(level)
    except TypeError as error:
        raise TypeError(_explain_types(loss, level)) from error


def adaflood_level(probability: Array, gamma: float) -> Array:
    """Level per example from a held-out probability: ``-ln((1 - gamma) * p + gamma)``.

    ``gamma = 0`` gives the held-out loss itself, ``gamma = 1`` gives 0, that is plain training.

    Args:
        probability: Held-out probability of the true label in [0, 1], a float or an array.
        gamma: Trust in the label in [0, 1]. At 0 a probability of 0 gives an infinite level.

    Returns:
        Levels in nats, of the shape of ``probability``.

    Raises:
        ValueError: If ``gamma`` lies outside [0, 1].

    Example:
        >>> round(adaflood_level(0.5, 0.0), 4), adaflood_level(0.5, 1.0)
        (0.6931, 0.0)

    References:
        Bae et al., *AdaFlood*, TMLR 2024, arXiv 2311.02891.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(
            f"gamma must lie in [0, 1], got {gamma}. 1 is plain training, 0 the raw held-out loss."
        )
    mixed = (1 - gamma) * _to_float32(probability) + gamma
    return 0.0 - _log(mixed)  # a minus sign would turn the level of a certain example into -0.0


def _log(x: Array) -> Array:
    """Take the natural logarithm in the array's own namespace."""
    if hasattr(x, "log"):
        return x.log()
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__().log(x)
    if x > 0:
        return math.log(x)
    return -math.inf if x == 0 else math.nan
