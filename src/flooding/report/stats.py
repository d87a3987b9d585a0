"""Statistics of differences: paired tests, Holm's correction, ranks, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flooding.extras import install_command

__all__ = [
    "Difference",
    "adjust",
    "average_ranks",
    "critical_difference",
    "describe_difference",
    "format_count",
    "format_mean_sd",
    "format_median_range",
    "format_p",
    "holm",
    "mcnemar",
    "paired",
    "paired_or_none",
    "pluralize",
    "wilcoxon",
]


class Difference(NamedTuple):
    """A mean of paired differences and how sure it is.

    Args:
        mean: Mean difference.
        sd: Standard deviation of the differences (n - 1); NaN for fewer than two.
        low: Lower end of the 95 % interval of the mean by Student's t; NaN for fewer than two.
        high: Upper end of it.
        p: Two-sided p of Student's paired t test; NaN for fewer than two, 1 where no pair differs.
        n: Number of pairs.
    """

    mean: float
    sd: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        """Write it as ``+1.2 [+0.4, +2.0]``."""
        return self.format(1)

    def format(self, digits: int) -> str:
        """Write the mean and its interval, which a single pair does not have.

        Args:
            digits: Digits after the point.

        Returns:
            Such as ``+1.2 [+0.4, +2.0]``.
        """
        mean = f"{self.mean:+.{digits}f}"
        if self.n == 1:
            return mean
        return f"{mean} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Compare two lists of results, pair by pair.

    Args:
        a: Results, one for each seed.
        b: Results of the same seeds.

    Returns:
        ``a`` minus ``b``.

    Raises:
        ValueError: If the lists differ in length or are empty.

    Example:
        >>> str(paired([3.0, 4.0, 5.0], [2.0, 2.0, 2.0]))
        '+2.0 [-0.5, +4.5]'
    """
    stats = _stats()
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(
            f"pairs must be as many on both sides, at least one, got {len(a)} and {len(b)}."
        )
    gains = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean, n = float(gains.mean()), len(gains)
    if n < 2:
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, n)
    sd = float(gains.std(ddof=1))
    # Student's t of the mean difference, with n - 1 degrees of freedom.
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    # Equal differences have no error: p is 1 if they are 0, and 0 if they are not.
    p = float(mean == 0)
    if error > 0:
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return Difference(mean, sd, mean - half, mean + half, p, n)


def paired_or_none(pairs: Sequence[tuple[float, float]]) -> Difference | None:
    """Compare results pair by pair, where there are pairs.

    Args:
        pairs: Results of the same seed, the one and the other.

    Returns:
        The first minus the second; None where there is no pair.
    """
    if not pairs:
        return None
    a, b = zip(*pairs, strict=True)
    return paired(a, b)


def describe_difference(gain: Difference, p: float) -> str:
    """Say in words how a comparison ends.

    Args:
        gain: What one side gains on the other.
        p: Its p value, corrected where several were tested.

    Returns:
        That it ``wins``, ``LOSES`` or, where p is not below 5 %, ``is not shown to differ``; that
        it ``ties in every pair`` or ``is not tested``, where there is one pair; the difference
        itself.

    Example:
        >>> describe_difference(paired([3.0, 4.0, 5.0], [2.0, 2.0, 2.0]), 0.07)
        'is not shown to differ: +2.0 [-0.5, +4.5]'
    """
    if gain.mean == 0 and not gain.sd > 0:
        return f"ties in every pair: {gain}"
    if gain.n == 1:
        return f"is not tested, by one pair: {gain}"
    if not p < 0.05:
        return f"is not shown to differ: {gain}"
    verb = "wins" if gain.mean > 0 else "LOSES"
    return f"{verb}: {gain}"


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for their number.

    Args:
        ps: p values of tests that were planned together; NaN was not tested and does not count.

    Returns:
        Adjusted p values in the same order.

    References:
        Holm, *A simple sequentially rejective multiple test procedure*, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    tested = [index for index, p in enumerate(ps) if not math.isnan(p)]
    tested.sort(key=lambda index: ps[index])
    adjusted, smallest = [math.nan] * len(ps), 0.0
    # From the smallest p on: each is multiplied by the number of tests left, and never falls.
    for rank, index in enumerate(tested):
        smallest = max(smallest, min(1.0, (len(tested) - rank) * ps[index]))
        adjusted[index] = smallest
    return adjusted


def adjust(differences: Sequence[Difference | None]) -> list[float]:
    """Correct the p values of several differences by :func:`holm`.

    Args:
        differences: Differences that were planned together; None was not tested.

    Returns:
        Adjusted p values in the same order, NaN where nothing was tested.
    """
    return holm([math.nan if gain is None else gain.p for gain in differences])


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Ask whether something happens oftener on one side of pairs than on the other.

    Args:
        a: Whether it happens, one for each seed.
        b: Whether it happens in the same seeds on the other side.

    Returns:
        Two-sided exact p of McNemar's test: that of the pairs that differ being a fair coin's; 1
        where none differs.

    Raises:
        ValueError: If the lists differ in length.

    Example:
        >>> mcnemar([True] * 6 + [False], [False] * 7)
        0.03125
    """
    if len(a) != len(b):
        raise ValueError(f"pairs must be as many on both sides, got {len(a)} and {len(b)}.")
    # Pairs in which both sides agree say nothing.
    only_a = only_b = 0
    for in_a, in_b in zip(a, b, strict=True):
        only_a += in_a and not in_b
        only_b += in_b and not in_a
    if only_a + only_b == 0:
        return 1.0
    return float(_stats().binomtest(only_a, only_a + only_b).pvalue)


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> float:
    """Compare two lists of results, pair by pair, by the ranks of their differences.

    Args:
        a: Results, one for each problem.
        b: Results of the same problems.

    Returns:
        Two-sided p of Wilcoxon's signed-rank test, exact for up to 13 pairs. The rank of a
        difference of 0 is split evenly. 1 where no pair differs, NaN for fewer than two pairs.

    Raises:
        ValueError: If the lists differ in length.

    References:
        Demšar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 2006, section
        3.1.3.

    Example:
        >>> wilcoxon([3.0, 4.0, 5.0, 7.0, 6.0], [2.0, 2.0, 2.0, 2.0, 2.0])
        0.0625
    """
    if len(a) != len(b):
        raise ValueError(f"pairs must be as many on both sides, got {len(a)} and {len(b)}.")
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(differences) < 2:
        return math.nan
    if not differences.any():
        return 1.0
    result = _stats().wilcoxon(differences, zero_method="zsplit")
    return float(result.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def average_ranks(results: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Rank methods on each problem, the best first, and average.

    Args:
        results: For each method a result on each problem, the larger the better.

    Returns:
        For each method its mean rank; those that tie share the mean of their ranks.

    References:
        Demšar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 2006, section
        3.2.2.

    Example:
        >>> average_ranks({"a": [0.9, 0.8], "b": [0.7, 0.8]})
        {'a': 1.25, 'b': 1.75}
    """
    table = np.array([list(values) for values in results.values()], np.float64)
    ranks = _stats().rankdata(-table, axis=0)
    return dict(zip(results, ranks.mean(1).tolist(), strict=True))


def critical_difference(methods: int, problems: int) -> float:
    """Give the difference of mean ranks from which on two methods differ at 5 %.

    The test is Nemenyi's.

    Args:
        methods: Number of methods, at least 2.
        problems: Number of problems, at least 1.

    Returns:
        A difference of ranks.

    References:
        Demšar, JMLR 2006, section 3.2.2 and table 5 (q of 10 methods: 3.164).

    Example:
        >>> round(critical_difference(4, 14), 2)  # the paper's own example: 1.25
        1.25
    """
    q = float(_stats().studentized_range.ppf(0.95, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * problems))


def format_p(p: float) -> str:
    """Write a p value.

    Args:
        p: In [0, 1]; NaN was not tested.

    Returns:
        Three digits, ``< 0.001``, or a dash.

    Example:
        >>> format_p(0.0123), format_p(1e-5), format_p(math.nan)
        ('0.012', '< 0.001', '–')
    """
    if math.isnan(p):
        return "–"
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}"


def format_mean_sd(values: Sequence[float], digits: int = 1) -> str:
    """Write mean and standard deviation.

    Args:
        values: One number for each seed.
        digits: Digits after the point.

    Returns:
        ``mean ± sd``, the mean alone of a single value, a dash of none.

    Example:
        >>> format_mean_sd([1.0, 2.0, 3.0]), format_mean_sd([1.0]), format_mean_sd([])
        ('2.0 ± 1.0', '1.0', '–')
    """
    if len(values) == 0:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def format_count(flags: Sequence[bool]) -> str:
    """Write how many of several are true.

    Args:
        flags: One for each.

    Returns:
        Such as ``3 of 4``.

    Example:
        >>> format_count([True, False, True])
        '2 of 3'
    """
    return f"{sum(flags)} of {len(flags)}"


def format_median_range(values: Sequence[float], digits: int = 2) -> str:
    """Write the median of values and their range.

    Args:
        values: At least one number.
        digits: Digits after the point.

    Returns:
        Such as ``0.20 (0.10 to 0.50)``.

    Example:
        >>> format_median_range([0.1, 0.2, 0.5])
        '0.20 (0.10 to 0.50)'
    """
    median, low, high = np.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def pluralize(n: int, noun: str) -> str:
    """Write how many there are of something.

    Args:
        n: How many.
        noun: One of them; its plural ends in s.

    Returns:
        Number and noun.

    Example:
        >>> pluralize(1, "seed"), pluralize(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _stats():
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            f"tests of differences need scipy. Run: {install_command('experiments')}"
        ) from error
    return stats
