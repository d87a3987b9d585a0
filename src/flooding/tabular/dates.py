"""Dates and times as people write them, and the parts of a date that a network can use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flooding.tabular.libraries import import_library

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PARTS", "date_part", "find_date_format", "parse_dates", "parse_time"]

_TIME = (
    r"(?P<hours>[0-9]{1,3}):(?P<minutes>[0-5][0-9])(?::(?P<seconds>[0-5][0-9](?:[.,][0-9]{1,9})?))?"
    r"\s*(?P<half>[AaPp]\.?[Mm]\.?)?"
)
_DURATION = re.compile(rf"(?:(?P<days>-?[0-9]+) days?,? )?{_TIME}")
_ZONE = r"\s*(?:Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2})?"
_DATE = re.compile(
    rf"(?P<date>\S.*?)(?:(?:T|,?\s+)(?P<time>{_TIME.replace('?P<', '?P<t_')}){_ZONE})?"
)
# The month first for slashes, as in the United States; the day first for points and dashes.
_FORMATS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%Y-%m",
    "%Y/%m",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%m.%d.%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d.%m.%y",
    "%d-%m-%y",
    "%y/%m/%d",
    "%d %b %Y",
    "%d %B %Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%b %d %Y",
    "%B %d %Y",
    "%Y %b %d",
    "%b-%Y",
    "%b %Y",
    "%B %Y",
    "%a, %d %b %Y",
    "%a %d %b %Y",
    "%A, %B %d, %Y",
)
_SAMPLE = 200  # cells on which the likely formats are tried
_FEW = 10  # cells on which every format is tried
_WEEKDAYS = np.array(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], dtype=object)

#: The parts of a date, and whether each of them is a number; the others are categories.
PARTS = {
    "year": True,
    "month": False,
    "day": True,
    "weekday": False,
    "hour": False,
    "minute": True,
    "elapsed days": True,
}


def parse_time(cell: str) -> float | None:
    """Read a time of day or a duration.

    Args:
        cell: Such as ``14:30``, ``2:30 pm``, ``26:15:00`` or ``2 days 03:00:00``.

    Returns:
        Hours, or None for other text.

    Example:
        >>> [parse_time(cell) for cell in ("14:30", "2:30 pm", "26:15:00", "1 day 01:00:00", "7")]
        [14.5, 14.5, 26.25, 25.0, None]
    """
    match = _DURATION.fullmatch(cell)
    if match is None:
        return None
    hours = int(match["hours"])
    if match["half"]:
        if not 1 <= hours <= 12:
            return None
        hours = hours % 12 + 12 * (match["half"][0] in "pP")
    seconds = float((match["seconds"] or "0").replace(",", "."))
    return 24 * int(match["days"] or 0) + hours + int(match["minutes"]) / 60 + seconds / 3600


def find_date_format(cells: Sequence[str], min_share: float) -> tuple[str | None, str | None]:
    """Find the format in which nearly all of some cells are dates.

    Where the day and the month could be either, dates in order of time decide; else the month is
    first where slashes separate them, and the day elsewhere.

    Args:
        cells: Different texts, in the order of the file.
        min_share: Share of them that must be dates.

    Returns:
        The format, or None; and another format that reads them all as well, or None.
    """
    sample = cells[:: max(1, len(cells) // _SAMPLE)]
    num_candidates = sum(_could_be_date(cell) for cell in sample)
    if not sample or num_candidates < min_share * len(sample):
        return None, None
    # A day above 12 may be rare: then the sample does not decide, but all cells do.
    formats = []
    for date_format in _FORMATS:
        # A few cells rule out most formats.
        if not np.isfinite(_timestamps(sample[:_FEW], date_format)).any():
            continue
        if np.isfinite(_timestamps(sample, date_format)).mean() >= min_share:
            formats.append(date_format)
    readings = {}
    for date_format in formats:
        timestamps = _timestamps(cells, date_format)
        if np.isfinite(timestamps).mean() >= min_share:
            readings[date_format] = timestamps
    return _choose_format(readings)


def _choose_format(readings: dict[str, np.ndarray]) -> tuple[str | None, str | None]:
    """Choose the format that reads the most cells, and name a rival that reads them otherwise."""
    if not readings:
        return None, None
    shares = {name: np.isfinite(values).mean() for name, values in readings.items()}
    best = max(shares, key=lambda name: shares[name])
    for rival, values in readings.items():
        if shares[rival] < shares[best] or np.array_equal(values, readings[best], equal_nan=True):
            continue
        if _is_sorted(readings[best]):
            return best, None
        if _is_sorted(values):
            return rival, None
        return best, rival
    return best, None


def _could_be_date(cell: str) -> bool:
    """Say whether a cell has at least two parts or eight digits, of which some are numbers."""
    if len(cell) > 60 or not any(map(str.isdigit, cell)):
        return False
    return re.match(r"\w+[-/., ]+\w", cell) is not None


def _is_sorted(timestamps: np.ndarray) -> bool:
    values = timestamps[np.isfinite(timestamps)]
    steps = np.diff(values)
    return bool((steps >= 0).all() or (steps <= 0).all())


def _timestamps(cells: Iterable[str], date_format: str) -> np.ndarray:
    """Read seconds since 1970, NaN where a cell is no date of this format."""
    pandas = import_library("pandas")
    dates, seconds = [], []
    for cell in cells:
        match = _DATE.fullmatch(cell)
        hours = math.nan
        # A date has a digit; pandas takes "now" and "today" for dates, too.
        if match is not None and re.search(r"[0-9]", match["date"]):
            hours = _clock_hours(match["time"])
        dates.append("" if match is None or math.isnan(hours) else match["date"])
        seconds.append(3600 * hours)
    days = pandas.to_datetime(
        pandas.Series(dates, dtype=str), format=date_format, errors="coerce", exact=True
    )
    # The wall clock: the hour of a place tells more than that of Greenwich.
    days = days.to_numpy(dtype="datetime64[s]")
    values = days.astype(np.int64) + np.array(seconds)
    values[np.isnat(days)] = np.nan
    return values


def _clock_hours(time: str | None) -> float:
    """Give the hours of a time of day, 0 without one, and NaN for what no clock shows."""
    hours = parse_time(time) if time else 0.0
    return hours if hours is not None and hours < 24 else math.nan


def parse_dates(cells: Iterable[str], date_format: str) -> dict[str, float]:
    """Read the cells that are dates of a format, each of them with a time or without one.

    Args:
        cells: Different texts.
        date_format: The format of the day, for ``strptime``.

    Returns:
        Seconds since 1970 by their text, on the clock that the cell shows; other text is left out.

    Example:
        >>> parse_dates(["02.01.1970", "02.01.1970 00:01", "now"], "%d.%m.%Y")
        {'02.01.1970': 86400.0, '02.01.1970 00:01': 86460.0}
    """
    cells = list(cells)
    timestamps = _timestamps(cells, date_format).tolist()
    pairs = zip(cells, timestamps, strict=True)
    return {cell: value for cell, value in pairs if not math.isnan(value)}


def date_part(dates: pd.Series, part: str) -> pd.Series:
    """Compute one part of every date.

    Args:
        dates: A column of dates, with NaT where one is missing.
        part: A key of :data:`PARTS`.

    Returns:
        Numbers as float64, or text; NaN where the date is missing.
    """
    pandas = import_library("pandas")
    if part == "elapsed days":
        elapsed = (dates - pandas.Timestamp(1970, 1, 1)).dt.total_seconds() / 86400
        return elapsed.astype(np.float64)
    attribute = "day_of_week" if part == "weekday" else part
    values = getattr(dates.dt, attribute).to_numpy(dtype=np.float64)
    if PARTS[part]:
        return pandas.Series(values, index=dates.index)
    is_missing = np.isnan(values)
    numbers = np.where(is_missing, 0, values).astype(int)
    if part == "weekday":
        text = _WEEKDAYS[numbers]
    else:
        text = np.array([f"{number:02d}" for number in range(25)], dtype=object)[numbers]
    text[is_missing] = np.nan
    return pandas.Series(text, index=dates.index, dtype=str)
