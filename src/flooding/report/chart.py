"""Charts of a report page: numbers become positions in an SVG, which a template writes.

A chart is drawn for the width of a phone and grows with the page. Every mark, line and text is an
element of the page: a style sheet gives it a colour in light and dark, a screen reader finds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

__all__ = ["Axis", "Band", "Chart", "Line", "Mark", "Rule", "axis_of", "ticks"]

Points: TypeAlias = Sequence[tuple[float, float]]

# Of the drawing, in its own unit: a pixel on a phone.
WIDTH, HEIGHT = 360, 258
# On the right half of the last tick's number has room, above two lines of texts of rules.
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 50, 40
_LETTER = 7.5  # of a rule's text, at its largest
_MAX_POINTS = 250  # of one line: more than a pixel has
_MAX_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """An axis and its ends.

    Args:
        label: Title, with its unit.
        low: Value at the left or lower end.
        high: Value at the other end, above ``low``.
        log: Whether it is logarithmic; both ends are then positive.
        is_whole: Whether only whole numbers have ticks.
    """

    label: str
    low: float
    high: float
    log: bool = False
    is_whole: bool = False

    def to_share(self, value: float) -> float:
        """Give the share of the axis at which a value lies: 0 to 1, or beyond its ends."""
        low, high = self.low, self.high
        if self.log:
            low, high = math.log(low), math.log(high)
            value = math.log(value) if value > 0 else low
        return (value - low) / (high - low)

    def contains(self, value: float) -> bool:
        """Tell whether a value lies between the ends."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Line:
    """A line through points; it is interrupted where a value is not finite.

    Args:
        points: Its points, from left to right.
        group: Index of its group on the page, which gives its colour; None is the colour of text.
        label: What it shows, for whoever points at it.
        look: ``curve``, ``mean``, ``faint``, ``dashed`` or ``decision``.
    """

    points: Points
    group: int | None
    label: str
    look: Literal["curve", "mean", "faint", "dashed", "decision"] = "curve"


@dataclass(frozen=True)
class Mark:
    """A mark at a point.

    Args:
        x: Its position.
        y: Its position.
        group: As that of a line.
        label: What it shows, for whoever points at it or hears the page.
        look: ``dot``, ``ring`` or ``diamond``. Diamonds can be selected.
    """

    x: float
    y: float
    group: int | None
    label: str
    look: Literal["dot", "ring", "diamond"] = "dot"


@dataclass(frozen=True)
class Rule:
    """A straight line across the chart, with a text.

    Args:
        value: Its position; without it, the text alone stands at the end of the axis.
        text: The text.
        look: ``choice`` or ``bound``.
        is_vertical: Whether it stands at a value of the x axis.
    """

    value: float
    text: str
    look: Literal["choice", "bound"] = "bound"
    is_vertical: bool = True


@dataclass(frozen=True)
class Band:
    """A shaded range of the y axis.

    Args:
        low: Lower end.
        high: Upper end.
        text: What it is.
    """

    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Args:
        name: Its identifier on the page, in letters, digits and dashes.
        title: What it shows, in a few words.
        description: What can be read from it, in sentences.
        x: The x axis.
        y: The y axis.
        lines: Lines.
        marks: Marks.
        rules: Rules.
        bands: Bands.
        legend: Pairs of a look and what it is.
    """

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    rules: Sequence[Rule] = ()
    bands: Sequence[Band] = ()
    legend: Sequence[tuple[str, str]] = ()

    # What the template reads.
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
    width, height = WIDTH, HEIGHT

    def x_of(self, value: float) -> str:
        """Give the horizontal position of a value."""
        return _number(self.left + self.x.to_share(value) * (self.right - self.left))

    def y_of(self, value: float) -> str:
        """Give the vertical position of a value."""
        return _number(self.bottom - self.y.to_share(value) * (self.bottom - self.top))

    def x_ticks(self) -> list[tuple[str, str]]:
        """Give position and text of each tick of the x axis."""
        return [(self.x_of(value), text) for value, text in ticks(self.x)]

    def y_ticks(self) -> list[tuple[str, str]]:
        """Give position and text of each tick of the y axis."""
        return [(self.y_of(value), text) for value, text in ticks(self.y)]

    def path(self, line: Line) -> str:
        """Write the path of a line; a long line has every k-th of its points, and the last."""
        step = max(1, math.ceil(len(line.points) / _MAX_POINTS))
        points = [*line.points[:-1:step], *line.points[-1:]]
        parts, command = [], "M"
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                parts.append(f"{command}{self.x_of(x)} {self.y_of(y)}")
                command = "L"
            else:
                command = "M"
        return "".join(parts)

    def height_of(self, band: Band) -> str:
        """Give the height of a band."""
        share = self.y.to_share(band.high) - self.y.to_share(band.low)
        return _number(share * (self.bottom - self.top))

    def vertical_rules(self) -> list[tuple[Rule, str, str, int]]:
        """Place each rule at a value of the x axis; of texts that would meet, one is higher.

        Returns:
            Rule, its position, and anchor and height of its text.
        """
        rows = []
        lowest, highest = math.inf, -math.inf
        for rule in self.rules:
            if not rule.is_vertical:
                continue
            share = self.x.to_share(rule.value)
            start = self.left + share * (self.right - self.left)
            length = _LETTER * len(rule.text)
            anchor = "start"
            if share >= 0.5:
                anchor, start = "end", start - length
            overlaps = start < highest and lowest < start + length
            y = self.top - (22 if overlaps else 8)
            if not overlaps:
                lowest, highest = min(lowest, start), max(highest, start + length)
            rows.append((rule, self.x_of(rule.value), anchor, y))
        return rows

    def horizontal_rules(self) -> list[tuple[Rule, str]]:
        """Give each rule at a value of the y axis with its position."""
        return [(rule, self.y_of(rule.value)) for rule in self.rules if not rule.is_vertical]


def axis_of(
    label: str,
    values: Iterable[float],
    *,
    log: bool = False,
    margin: float = 0.05,
    is_whole: bool = False,
) -> Axis:
    """Make an axis that holds values.

    Args:
        label: Its title.
        values: The values; those that are not finite, and not positive on a logarithmic axis, do
            not count.
        log: Whether it is logarithmic.
        margin: Share of the axis that is left free at each end.
        is_whole: Whether only whole numbers have ticks.

    Returns:
        The axis, from 0 to 1 without any value.
    """
    known = [float(v) for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not known:
        return Axis(label, 0.1 if log else 0.0, 1.0, log)
    low, high = min(known), max(known)
    if log:
        low, high = math.log(low), math.log(high)
    # A single value has no width.
    width = (high - low) or abs(high) or 1.0
    low, high = low - margin * width, high + margin * width
    if log:
        low, high = math.exp(low), math.exp(high)
    return Axis(label, low, high, log, is_whole)


def ticks(axis: Axis) -> list[tuple[float, str]]:
    """Choose round values of an axis.

    Args:
        axis: The axis.

    Returns:
        Values and their texts, at most seven.

    Example:
        >>> [text for _, text in ticks(Axis("", 0.0, 0.93))]
        ['0', '0.2', '0.4', '0.6', '0.8']
        >>> [text for _, text in ticks(Axis("", 0.02, 3.0, log=True))]
        ['0.1', '1']
    """
    values = _log_ticks(axis) if axis.log else []
    if len(values) < 2:
        step = _round_step((axis.high - axis.low) / _MAX_TICKS)
        step = max(step, 1.0) if axis.is_whole else step
        first, last = math.ceil(axis.low / step), math.floor(axis.high / step)
        values = [step * n for n in range(first, last + 1)]
    # Rounding, so that 0.30000000000000004 is written as 0.3, and a 0 has no sign.
    return [(value, f"{value + 0.0:.6g}") for value in values]


def _round_step(least: float) -> float:
    """Give the smallest of 1, 2 and 5 times a power of ten that is not below a step."""
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return step * power if power >= 1 else step / round(1 / power)


def _log_ticks(axis: Axis) -> list[float]:
    """Give powers of ten, or 1, 2 and 5 times them where few are on the axis; perhaps none."""
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    powers = [10.0**n for n in range(first, last + 1)]
    values = [value for value in powers if axis.contains(value)]
    if len(values) < 2:
        values = [f * p for p in powers for f in (1, 2, 5) if axis.contains(f * p)]
    return values[:: max(1, math.ceil(len(values) / (_MAX_TICKS + 1)))]


def _number(value: float) -> str:
    """Write a position with two digits at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def points_of(values: np.ndarray, first: int = 0) -> list[tuple[float, float]]:
    """Give the points of a curve with a value for each epoch.

    Args:
        values: A value for each epoch.
        first: Epoch of the first value.

    Returns:
        Pairs of epoch and value.
    """
    return [(float(first + n), float(value)) for n, value in enumerate(values)]
