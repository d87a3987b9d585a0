"""Differences and their certainty agree with scipy and with the papers' own examples."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flooding.report.stats import (
    average_ranks,
    critical_difference,
    describe_difference,
    format_mean_sd,
    holm,
    mcnemar,
    paired,
    wilcoxon,
)

PS = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_paired_is_students_paired_t_test(n):
    draw = np.random.default_rng(n)
    ours, theirs = draw.normal(1, 2, n), draw.normal(0, 1, n)
    told, expected = paired(ours, theirs), stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert told.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (told.low, told.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert told.mean == pytest.approx((ours - theirs).mean())
    assert told.sd == pytest.approx((ours - theirs).std(ddof=1))
    assert told.n == n


def test_only_pairs_that_differ_count():
    # Five one way, one the other, two alike: 2 (1 + 6) / 2^6.
    ours, theirs = [True] * 5 + [False, True, False], [False] * 5 + [True, True, False]
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours) == pytest.approx(14 / 64)
    assert mcnemar([True, False], [True, False]) == 1
    with pytest.raises(ValueError, match="as many on both sides"):
        mcnemar([True], [])


@pytest.mark.parametrize(
    "gains", [[1.0, 2.0, -0.5, 3.0, 0.1], [1.0, 0.0, 2.0, -2.0, 4.0, 0.0], [0.0, 1.0]]
)
def test_wilcoxons_p_is_the_share_of_signs_as_extreme(gains):
    # By its definition: ranks of the sizes, ties share, and a difference of 0 counts half each way.
    sizes = np.abs(gains)
    ranks = [(sizes < s).sum() + ((sizes == s).sum() + 1) / 2 for s in sizes]
    ranks = np.array(ranks)

    def distance(signs):
        return abs(float(np.dot(signs, ranks)))

    observed = distance(np.sign(gains))
    nonzero = [[-1, 1] if gain else [0] for gain in gains]
    all_signs = list(itertools.product(*nonzero))
    expected = np.mean([distance(signs) >= observed - 1e-9 for signs in all_signs])
    assert wilcoxon(gains, [0.0] * len(gains)) == pytest.approx(expected)


def test_wilcoxon_needs_pairs_that_differ():
    assert wilcoxon([1.0, 2.0], [1.0, 2.0]) == 1
    assert math.isnan(wilcoxon([1.0], [2.0]))
    with pytest.raises(ValueError, match="as many on both sides"):
        wilcoxon([1.0], [])


def test_one_pair_has_no_spread_and_equal_pairs_do_not_differ():
    told = paired([2.0], [1.0])
    assert told.mean == 1
    assert all(map(math.isnan, (told.sd, told.low, told.high, told.p)))
    assert str(told) == "+1.0"
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1
    assert paired([2.0, 3.0], [1.0, 2.0]).p == 0, "the same gain in every pair"


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], []), ([], []), ([1.0, 2.0], [1.0])])
def test_pairs_must_match(ours, theirs):
    with pytest.raises(ValueError, match="as many on both sides"):
        paired(ours, theirs)


@given(PS)
def test_holm_never_lowers_a_p_keeps_order_and_is_bounded(ps):
    adjusted = holm(ps)
    assert all(
        p <= a <= min(1.0, p * len(ps) + 1e-12) or a <= 1.0
        for p, a in zip(ps, adjusted, strict=True)
    )
    assert all(p <= a for p, a in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(ps) * min(ps)))


def test_holm_leaves_out_what_was_not_tested():
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.02)


def test_ranks_share_ties_and_the_largest_comes_first():
    ranks = average_ranks({"a": [3.0, 1.0], "b": [2.0, 1.0], "c": [1.0, 2.0]})
    assert ranks == {"a": (1 + 2.5) / 2, "b": (2 + 2.5) / 2, "c": (3 + 1) / 2}


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_difference_has_the_published_quantiles(methods, q):
    # Demšar, JMLR 2006, table 5a: two-tailed Nemenyi test at 0.05.
    problems = 7
    assert critical_difference(methods, problems) == pytest.approx(
        q * math.sqrt(methods * (methods + 1) / (6 * problems)), rel=5e-4
    )


def test_spread_says_no_more_than_it_knows():
    assert format_mean_sd([], 1) == "–"
    assert format_mean_sd([1.26], 1) == "1.3"
    assert format_mean_sd([1.0, 3.0], 2) == "2.00 ± 1.41"


def test_a_verdict_needs_p_below_5_percent_and_a_tie_needs_every_pair():
    assert describe_difference(paired([1.0, 2.0], [2.0, 1.0]), 1.0).startswith(
        "is not shown to differ: +0.0 ["
    )
    assert (
        describe_difference(paired([1.0, 2.0], [1.0, 2.0]), 1.0)
        == "ties in every pair: +0.0 [+0.0, +0.0]"
    )
    assert describe_difference(paired([1.0], [1.0]), math.nan) == "ties in every pair: +0.0"
    assert describe_difference(paired([1.0], [3.0]), math.nan) == "is not tested, by one pair: -2.0"
    gain = paired([3.0, 4.0, 5.0], [2.0, 2.0, 2.0])
    assert describe_difference(gain, 0.049).startswith("wins: +2.0")
    assert describe_difference(gain, 0.05).startswith("is not shown")
    assert describe_difference(paired([2.0, 2.0, 2.0], [3.0, 4.0, 5.0]), 0.049).startswith(
        "LOSES: -2.0"
    )
    assert describe_difference(gain, math.nan).startswith("is not shown")
