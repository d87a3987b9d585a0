"""Does a curve descend a second time? A criterion for losses and errors over the epochs.

:data:`CRITERION` says it in words. It is applied to the measured points of one training, on clean
test labels where there are any; nothing is smoothed. Where the curve never falls below the first
minimum m1 again, d is a twentieth of c(0) − m1. Where it does, c(0) − m1 alone would take the
jitter of the first epochs for a minimum. "Lasting" was added before any test curve with flooding
was seen, because nearly every curve of validation losses falls by d somewhere, also without
flooding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["CRITERION", "Descents", "Point", "find_descents"]

# The criterion of a second descent, for the reader.
CRITERION = (
    "Criterion, on the raw curve c of each training, with c(0) its first point and d a twentieth "
    "of its whole fall c(0) − min c. First minimum m1: the lowest value before the curve has risen "
    "by more than d from its lowest so far, itself more than d below c(0); without such a rise "
    "there is nothing to descend from (“no rise”). Peak M and second minimum m2: the point after "
    "m1 and the later one with the largest M − m2. A second descent exists if M − m2 > d; its "
    "recovery is (M − m2) / (M − m1); m1 is regained if m2 ≤ m1. End: the mean of the last ten "
    "points, which is not chosen, while the minimum of a noisy curve is too low. Noise also makes "
    "falls: a second descent is lasting if the mean of the ten points around M exceeds the end by "
    "more than d and more than (M − m1) / 20."
)

# A twentieth, 5 %: dividing is exact where multiplying by 0.05 is not.
_PARTS = 20
# Points that are averaged at the end and around the peak.
_NEAR = 10


class Point(NamedTuple):
    """A point of a curve.

    Args:
        epoch: The epoch after which it was measured.
        value: The measured value.
    """

    epoch: int
    value: float


class Descents(NamedTuple):
    """The minima of a curve and the peak between them, see :data:`CRITERION`.

    Args:
        first: The first minimum m1, the lowest point of all where nothing rises.
        peak: The peak p, the highest point after m1 where there is no second descent; None where
            nothing rises.
        second: The second minimum m2; None where there is no second descent.
        step: A twentieth of the whole fall, in the unit of the curve.
        crest: Mean of up to ten points around the peak; NaN where nothing rises.
        end: Mean of the last ten points, of all where there are fewer.
    """

    first: Point
    peak: Point | None
    second: Point | None
    step: float
    crest: float
    end: float

    @property
    def recovery(self) -> float:
        """Share of the rise that the second descent takes back; NaN where there is none."""
        if self.peak is None or self.second is None:
            return math.nan
        return (self.peak.value - self.second.value) / (self.peak.value - self.first.value)

    @property
    def gap(self) -> float:
        """Difference m2 - m1; NaN where there is no second descent."""
        return math.nan if self.second is None else self.second.value - self.first.value

    @property
    def tail(self) -> float:
        """Height of the end above the first minimum."""
        return self.end - self.first.value

    @property
    def lasting(self) -> bool:
        """Whether the averages around the peak and at the end show the second descent too."""
        if self.peak is None or self.second is None:
            return False
        rise = self.peak.value - self.first.value
        return self.crest - self.end > max(self.step, rise / _PARTS)


def find_descents(curve: np.ndarray, epochs: np.ndarray) -> Descents:
    """Find the first minimum, the peak and the second minimum of a curve by :data:`CRITERION`.

    Of equal values the first counts. A monotone or constant curve has no rise; one that rises to
    its very end has a rise and no second descent.

    Args:
        curve: Loss or error, ``[points]``; points that are not finite were not measured.
        epochs: Their epochs, ``[points]``, ascending.

    Returns:
        The minima and the peak.

    Raises:
        ValueError: If there is no finite point, or not an epoch for each point.

    Example:
        >>> descents = find_descents(np.array([9.0, 1.0, 5.0, 2.0]), np.arange(4))
        >>> descents.first, descents.peak, descents.second
        (Point(epoch=1, value=1.0), Point(epoch=2, value=5.0), Point(epoch=3, value=2.0))
        >>> descents.recovery, descents.gap
        (0.75, 1.0)
        >>> rising = find_descents(np.array([9.0, 1.0, 5.0]), np.arange(3))
        >>> falling = find_descents(np.array([9.0, 5.0, 1.0]), np.arange(3))
        >>> rising.second, falling.peak
        (None, None)
    """
    curve = np.asarray(curve, np.float64)
    is_measured = np.isfinite(curve)
    if np.shape(epochs) != curve.shape or curve.ndim != 1 or not is_measured.any():
        shapes = (
            f"{list(curve.shape)} with {is_measured.sum()} finite, and {list(np.shape(epochs))}"
        )
        raise ValueError(
            "a curve must be [points], some finite, with an epoch for each, "
            f"got {shapes}. Set a test_curve."
        )
    values, epochs = curve[is_measured], np.asarray(epochs)[is_measured]
    step, end = float(values[0] - values.min()) / _PARTS, float(values[-_NEAR:].mean())

    def point(index: int) -> Point:
        return Point(int(epochs[index]), float(values[index]))

    first = _first_minimum(values, step)
    if first is None:
        return Descents(point(int(values.argmin())), None, None, step, math.nan, end)
    # The largest fall after the first minimum is a second descent if it exceeds a step.
    peak, low = _largest_fall(values[first:])
    second = None
    if values[first + peak] - values[first + low] > step:
        second = point(first + low)
    else:
        peak = int(values[first:].argmax())
    peak += first
    crest = float(values[max(peak - _NEAR // 2, 0) : peak + _NEAR // 2].mean())
    return Descents(point(first), point(peak), second, step, crest, end)


def _first_minimum(values: np.ndarray, step: float) -> int | None:
    """Index of the lowest value before the first rise by more than a step; None without a rise."""
    lowest = np.minimum.accumulate(values)
    # Nothing rises from the start itself: there must have been a descent.
    is_risen = (values - lowest > step) & (values[0] - lowest > step)
    if not is_risen.any():
        return None
    return int(values[: is_risen.argmax()].argmin())


def _largest_fall(values: np.ndarray) -> tuple[int, int]:
    """Indices of a value and of a later one, the largest fall between two."""
    low = int((np.maximum.accumulate(values) - values).argmax())
    return int(values[: low + 1].argmax()), low
