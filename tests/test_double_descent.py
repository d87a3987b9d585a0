"""The criterion on curves whose answer is known, and a report whose numbers follow from its
Records."""

import json
import statistics
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flooding import run_all
from flooding.data.augment import crop_and_flip
from flooding.data.synthetic import two_gaussians
from flooding.experiments import double_descent, double_descent_cifar10
from flooding.experiments.double_descent import Condition, plan
from flooding.level_search.driver import run_generator
from flooding.models import mlp
from flooding.report import descent_rows
from flooding.report.descent_rows import FACTORS
from flooding.report.descents import find_descents
from flooding.training.archive import Archive, pack
from flooding.training.config import to_config
from flooding.training.problem import TestCurve
from flooding.training.record import Record
from small import small

NAN = np.nan
# Integers of float64: sums, differences and quotients by 20 of them keep their order exactly.
CURVES = st.lists(st.integers(-400, 400), min_size=1, max_size=40)


def found(values, epochs=None):
    values = np.array(values, float)
    return find_descents(values, np.arange(len(values)) if epochs is None else np.array(epochs))


def shape(curve):
    return curve.peak is not None, curve.second is not None, curve.lasting


@pytest.mark.parametrize(
    ("values", "first", "peak", "second"),
    [
        ([100, 10, 60, 20, 25], (1, 10), (2, 60), (3, 20)),
        ([100, 10, 60, 5], (1, 10), (2, 60), (3, 5)),
        ([100, 10, 40, 90], (1, 10), (3, 90), None),
        ([100, 10, 40, 90, 87], (1, 10), (3, 90), None),  # falls by 3 of 90, less than a twentieth
        ([100, 0, 50, 45], (1, 0), (2, 50), None),  # falls by a twentieth, not more
        ([100, 50, 20, 10], (3, 10), None, None),
        ([100, 50, 54, 40, 20], (4, 20), None, None),  # rises by 4 = a twentieth, not more
        ([100, 50, 55, 40, 20], (1, 50), (2, 55), (4, 20)),  # and by more
        ([50, 80, 90], (0, 50), None, None),
        # What comes before the first descent does not count
        ([50, 90, 10, 40, 20], (2, 10), (3, 40), (4, 20)),
        ([7, 7, 7], (0, 7), None, None),
        ([7], (0, 7), None, None),
        ([100, 10, 10, 60, 60, 20, 20], (1, 10), (3, 60), (5, 20)),  # of equal values the first
        # The largest fall, not the highest peak
        ([100, 10, 40, 30, 70, 45, 55, 25, 90], (1, 10), (4, 70), (7, 25)),
        ([100, 0, 11, 10, 40, 10, 40, 10], (1, 0), (4, 40), (5, 10)),
        # The jitter of the start is no minimum
        ([500, 499.9, 500, 480, 100, 200, 150], (4, 100), (5, 200), (6, 150)),
    ],
    ids=["second descent", "below the first", "rise to the end", "too small a fall",
         "fall of a step", "monotone", "too small a rise", "large enough a rise", "only rising",
         "rise at the start", "constant", "one point", "ties", "two hills", "equal falls",
         "jitter"],
)  # fmt: skip
def test_the_criterion_finds_what_the_eye_does(values, first, peak, second):
    curve = found(values)
    assert (curve.first, curve.peak, curve.second) == (first, peak, second)


def test_numbers_of_a_second_descent():
    values = [100, 10, 60, 20, *[24] * 10]
    curve = found(values)
    assert curve.step == 4.5
    assert (curve.recovery, curve.gap) == (0.8, 10)
    assert (curve.end, curve.tail) == (24, 14)
    assert curve.crest == statistics.fmean(
        values[0:7]
    )  # five points from the peak on, and the two before it
    again = found([100, 10, 60, 10])
    assert (again.gap, again.recovery) == (0, 1)
    assert found([100, 10, 60, 5]).recovery == 1.1
    none = found([100, 10, 90])
    assert np.isnan([none.recovery, none.gap]).all()
    assert (none.tail, found([100, 10]).tail) == (pytest.approx(200 / 3 - 10), 45)


@pytest.mark.parametrize(
    ("start", "plain", "tail", "lasting"),
    [
        (1000, 198, [100] * 10, True),  # crest 198.2, end 100, against a step of 50
        (
            1000,
            198,
            [140, *[160] * 9],
            False,
        ),  # falls by 60 to its lowest point, and by 40.2 on average
        (
            1000,
            100,
            [100] * 10,
            False,
        ),  # one bad epoch: the largest fall of the curve, and none of its mean
        (
            20,
            198,
            [192] * 10,
            False,
        ),  # falls by 6.2, more than a step of 1 and less than a twentieth of the rise
        (20, 198, [186] * 10, True),  # by 12.2
    ],
)
def test_a_fall_lasts_if_averages_fall(start, plain, tail, lasting):
    curve = found([start, 0, *[plain] * 5, 200, *[plain] * 4, *tail])
    assert curve.peak == (7, 200)
    assert shape(curve) == (True, True, lasting)


def test_noise_makes_falls_that_do_not_last():
    start, rise, hill = (
        2 * np.exp(-np.arange(200) / 5),
        np.arange(200) / 100,
        np.exp(-(((np.arange(200) - 60) / 20) ** 2)),
    )
    noise = np.random.default_rng(0).normal(0, 0.05, 200)
    assert shape(found(start + rise)) == (True, False, False)
    assert shape(found(start + rise + noise)) == (True, True, False)
    assert shape(found(start + hill + noise)) == (True, True, True)


def test_unmeasured_epochs_are_passed_over():
    values = [100, 10, 60, 20, 25]
    gaps = np.full(9, NAN)
    gaps[::2] = values
    assert found(gaps) == found(values, epochs=[0, 2, 4, 6, 8])
    assert found([NAN, 100, np.inf, 10, 60, NAN, 20, -np.inf]).second == (6, 20)
    assert found(values, epochs=[5, 10, 20, 40, 80]).peak == (20, 60)


@pytest.mark.parametrize(
    ("values", "epochs"), [([], []), ([NAN, np.inf], [0, 1]), ([1.0, 2.0], [0]), ([[1.0]], [[0]])]
)
def test_what_is_no_curve_is_refused(values, epochs):
    with pytest.raises(ValueError, match="a curve must be"):
        find_descents(np.array(values), np.array(epochs))


def slow(values):
    """Follow the words of the criterion one by one, in exact fractions."""
    d = Fraction(values[0] - min(values), 20)
    for now, value in enumerate(values):
        least = min(values[: now + 1])
        if value - least > d and values[0] - least > d:
            break
    else:
        return values.index(min(values)), None, None
    first = values.index(least)
    later = range(first, len(values))
    falls = {(i, j): values[i] - values[j] for i in later for j in later if i <= j}
    peak, second = max(falls, key=lambda pair: (falls[pair], -pair[1], -pair[0]))
    if falls[peak, second] > d:
        return first, peak, second
    return first, max(later, key=lambda i: (values[i], -i)), None


@given(CURVES)
def test_the_criterion_is_its_words(values):
    curve = found(values)
    points = (curve.first, curve.peak, curve.second)
    assert tuple(None if point is None else point.epoch for point in points) == slow(values)
    assert all(point is None or point.value == values[point.epoch] for point in points)


@given(CURVES, st.integers(-1000, 1000), st.sampled_from([0.125, 0.5, 4.0, 64.0]))
def test_neither_a_constant_nor_the_unit_changes_a_verdict(values, constant, scale):
    curve, moved = found(values), found([scale * (value + constant) for value in values])
    assert shape(moved)[:2] == shape(curve)[:2]
    assert moved.second is None or moved.recovery == curve.recovery
    assert moved.second is None or moved.gap == scale * curve.gap
    assert moved.tail == pytest.approx(scale * curve.tail, abs=1e-9)


@given(CURVES, st.data())
def test_where_nothing_was_measured_changes_no_verdict(values, data):
    gapped = list(values)
    for place in sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)), reverse=True):
        gapped.insert(place, data.draw(st.sampled_from([NAN, np.inf])))
    assert [p and p.value for p in found(gapped)[:3]] == [p and p.value for p in found(values)[:3]]


@given(CURVES)
def test_a_second_minimum_lies_between_what_it_must(values):
    curve = found(values)
    if curve.second is not None:
        assert curve.first.epoch < curve.peak.epoch < curve.second.epoch
        assert curve.peak.value - curve.second.value > curve.step
        assert (curve.recovery >= 1) == (curve.gap <= 0)
    assert not curve.lasting or curve.second is not None


# A report from Records whose curves are known. The turn of a curve is its three values after the
# start; every curve starts at 4 and stays at its last value. Numbers are eighths or sixteenths,
# which float16 holds exactly.
DESCENDS, RISES, FALLS = (1.0, 3.0, 1.5), (1.0, 2.0, 3.0), (1.0, 1.0, 1.0)
STEPS = 24


def record(run, loss, accuracy=(0.5, 0.5, 0.5), flooded=0.0, clean=True, falls=4):
    def drawn(start, turn):
        return np.array(
            [start, *[turn[0]] * 4, *[turn[1]] * 8, *[turn[2]] * (STEPS - 12)], np.float32
        )

    end = "_clean" if clean else ""
    curves = {f"test_loss{end}": drawn(4.0, loss), f"test_accuracy{end}": drawn(0.0, accuracy)}
    if clean:  # noisy labels judge nothing
        curves |= {
            "test_loss": drawn(9.0, (9.0, 9.0, 9.0)),
            "test_accuracy": drawn(0.0, (0.0, 0.0, 0.0)),
        }
    curves["train_loss"] = np.maximum(1 - np.arange(STEPS + 1, dtype=np.float32) / falls, 0)
    curves["flooded"] = np.where(np.arange(STEPS + 1) >= 13, flooded, 0.0).astype(np.float32)
    return Record(run, curves, {}, {}, "", "", {"seconds": 36.0, "on": "a machine"})


def conditions(groups):
    """Small conditions by group: title, levels, seeds, factors."""
    problem = small(max_epochs=STEPS, test_curve=TestCurve(50, every=1))
    return {
        group: [
            Condition(
                title,
                replace(problem, batch_size=10 + len(title)),
                levels,
                tuple(range(n)),
                factors,
            )
            for title, levels, n, factors in some
        ]
        for group, some in groups.items()
    }


def reported(monkeypatch, groups, made):
    """Drive the experiment through other conditions with Records that ``made(condition, run)``
    makes."""
    monkeypatch.setattr(double_descent, "plan", lambda quick: groups)
    running = double_descent.start()
    runs = next(running)
    ours = [
        (condition, run) for some in groups.values() for condition in some for run in condition.runs
    ]
    assert [(run.problem, run.level, run.seed) for run in runs] == [
        (r.problem, r.level, r.seed) for _, r in ours
    ]
    with pytest.raises(StopIteration) as end:
        running.send([made(condition, run) for (condition, _), run in zip(ours, runs, strict=True)])
    return end.value.value


GROUPS = {
    "synthetic": [("Cell", (0.0, 0.1, 0.5), 4, ())],
    "digits": [
        ("Digits", (0.0, 0.2), 2, ()),
        ("Digits + weight decay", (0.0, 0.2), 2, ("weight decay",)),
    ],
}


def mixed(condition, run):
    """Flooding brings a second descent in three of four seeds at 0.1; the level 0.5 is reached in
    seeds 1 and 3."""
    if condition.title != "Cell":
        return record(
            run, DESCENDS if run.level else RISES, flooded=0.5 * (run.level > 0), clean=False
        )
    loss = RISES
    if run.level == 0.1 and run.seed < 3:
        loss = (1.0, 3.0, (0.5, 1.0, 1.5)[run.seed])
    share = {0.0: 0.0, 0.1: 0.25, 0.5: 0.5 * (run.seed % 2)}[run.level]
    return record(run, loss, accuracy=(0.75, 0.5, 0.625), flooded=share)


def cell(report, table, row, column):
    (found,) = [t for t in report.tables if t.name == table]
    return found.rows[row][list(found.columns).index(column)]


def test_table_numbers_follow_from_the_curves(monkeypatch):
    report = reported(monkeypatch, conditions(GROUPS), mixed)
    tell = partial(cell, report, "synthetic-loss")
    columns = (
        "second descent",
        "lasting",
        "recovery",
        "regained",
        "m2 − m1",
        "end − m1",
        "epochs of m1, M, m2",
    )
    assert [tell(0, c) for c in columns] == [
        "0 of 4",
        "0 of 4",
        "–",
        "–",
        "–",
        "2.000 ± 0.000",
        "–",
    ]
    # m2 = 0.5, 1, 1.5 of m1 = 1 and M = 3: recovery 1.25, 1, 0.75.
    row = [
        "3 of 4",
        "3 of 4",
        "1.00 ± 0.25",
        "2 of 3",
        "0.000 ± 0.500",
        "0.500 ± 1.080",
        "1, 5, 13",
    ]
    assert [tell(1, c) for c in columns] == row
    # end - m1 is -0.5, 0, 0.5, 2 with flooding and 2 without: differences -2.5, -2, -1.5, 0, sd
    # 1.0801, t = -2.7775, t with 3 degrees of freedom: with x = t / sqrt(3), p = 1 - 2 / pi * (x /
    # (1 + x^2) + atan(x)) = 0.0691, times 2 for two tested rows; 97.5 % quantile 3.1824.
    assert tell(1, "end, flooded − plain") == "-1.500 [-3.219, +0.219]"
    assert tell(1, "p (end)") == "0.138"
    # Three of four differ, all one way: 2 / 2^3, times 2 rows.
    assert (tell(1, "p (lasting)"), tell(0, "p (lasting)"), tell(2, "p (lasting)")) == (
        "0.500",
        "–",
        "1.000",
    )
    assert (tell(1, "p (m2)"), tell(0, "p (end)"), tell(1, "flooded (%)")) == (
        "1.000",
        "–",
        "25.0 ± 0.0",
    )
    # Only the seeds that reached the level: 1 and 3, as without flooding.
    assert [tell(2, c) for c in ("reached", "flooded (%)", "second descent")] == [
        "2 of 4",
        "50.0 ± 0.0",
        "0 of 2",
    ]
    assert tell(2, "end, flooded − plain") == "+0.000 [+0.000, +0.000]"
    assert (tell(0, "no rise"), tell(2, "no rise")) == ("0 of 4", "0 of 2")
    # Error in percent: 100, 25, 50, 37.5, the same with and without flooding.
    tell = partial(cell, report, "synthetic-error")
    assert [tell(1, c) for c in columns[:6]] == [
        "4 of 4",
        "4 of 4",
        "0.50 ± 0.00",
        "0 of 4",
        "12.5 ± 0.0",
        "12.5 ± 0.0",
    ]
    assert tell(1, "p (m2)") == "< 0.001"  # 12.5 above in every seed
    assert (
        cell(report, "digits-loss", 1, "recovery") == "0.75 ± 0.00"
    )  # test labels without a clean twin
    assert report.provenance == "20 trainings, 0.20 CPU hours; a machine."


def test_sentences_follow_from_the_counts(monkeypatch):
    report = reported(monkeypatch, conditions(GROUPS), mixed)
    text = "\n".join(report.findings)
    assert (
        "Synthetic tasks (1 condition), the test loss descends a second time: at level 0.1 in 3 "
        "of 4 trainings "
        "with flooding (lasting in 3), 0 of 4 without (lasting in 0), regaining its first minimum "
        "in 2 of 3 (recovery "
        "1.00 ± 0.25); at level 0.5 in 0 of 2 trainings with flooding (lasting in 0), 0 of 2 "
        "without (lasting in 0)."
    ) in text
    assert (
        "Synthetic tasks, test loss: flooding brings a second descent in 1 of 2 tested rows (0 "
        "not tested)" in text
    )
    assert (
        "Synthetic tasks, test error: flooding brings a second descent in 0 of 2 tested rows"
        in text
    )  # plain does
    # McNemar's least p with 4 seeds is 2 / 2^4, and there are two rows.
    assert (
        "(0 not tested), which the lasting descents of 4 seeds cannot show at 5 % in single rows, "
        "after Holm; " in text
    )
    assert (
        "Digits with weight decay (1 condition), the test loss descends a second time: at level "
        "0.2 in 2 of 2" in text
    )
    assert "Digits with none of these (1 condition)" in text
    # Seeds 0 to 3 have 1 of 1, 1 of 2, 1 of 1, 0 of 2 with flooding and none without: t = 62.5 /
    # 23.936 = 2.611, and as above p = 0.0797, times 3: the differences of digits, 100 in every
    # seed, come before it.
    assert (
        "with flooding minus without: +62.5 [-13.7, +138.7] points, n = 4 seeds, p 0.239." in text
    )
    assert (
        "with flooding minus without: +100.0 [+100.0, +100.0] points, n = 2 seeds, p < 0.001."
        in text
    )
    # Equal differences in all seeds: p = 0.
    assert "its curve ends lower than plain training's in 2 and higher in 0 of them" in text
    # The reproduction's own condition has all three factors: others are told apart from it.
    assert report.failures == []
    assert (
        "“No double descent with weight decay” (the reproduction) is not judged in its own "
        "condition (augmentation, rate decay and weight decay): no level was reached (n = 0). "
        "Other conditions: in 1 of 1 rows with weight decay (Digits + weight decay at 0.2; lasting "
        "in 2 of 2 trainings with flooding, 0 of 2 without), and in 1 of 1 without it."
    ) in text


def test_rows_with_weight_decay_that_show_nothing_are_counted_too(monkeypatch):
    both = [(title, (0.0, 0.2, 0.4), 2, FACTORS) for title in ("Digits", "Others")]
    both.append(("Third", (0.0, 0.2, 0.4), 2, ("weight decay",)))

    def one(condition, run):
        shows = run.level == 0.4 and condition.title != "Digits"
        return record(run, DESCENDS if shows else RISES, flooded=0.5 * (run.level > 0))

    report = reported(monkeypatch, conditions(GROUPS | {"digits": both}), one)
    (said,) = [
        text for text in report.failures if "(the reproduction) does not hold in its" in text
    ]
    assert "in 1 of 4 rows whose level was reached, lasting in 2 of 2 trainings with flo" in said
    assert "Other conditions: in 1 of 2 rows with weight decay (Third at 0.4; lasting in 2" in said


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [({"A", "B"}, "does not hold: rows in"), ({"B"}, "holds here: rows in"), ((), "holds here: r")],
    ids=["at both", "at high noise alone", "nowhere"],
)
def test_label_noise_need_not_be_high(monkeypatch, shown, verdict):
    both = [("A", (0.0, 0.2), 2, ()), ("B", (0.0, 0.2), 2, ())]
    groups = conditions(GROUPS | {"synthetic": both})
    low, high = groups["synthetic"]
    groups["synthetic"] = [replace(low, noise=0.01), replace(high, noise=0.1)]

    def one(condition, run):
        shows = run.level and condition.title in shown
        return record(run, DESCENDS if shows else RISES, flooded=0.5 * (run.level > 0))

    report = reported(monkeypatch, groups, one)
    [said] = [s for s in [*report.failures, *report.findings] if "label noise must be high" in s]
    assert verdict in said
    counts = [f"{int(name in shown)} of 1" for name in "AB"]
    where = "(Synthetic tasks)"
    assert f"1 % {where}: {counts[0]}; 10 % {where}: {counts[1]}." in said
    assert (said in report.failures) == ("A" in shown)


def test_a_level_above_the_cap_is_no_candidate(monkeypatch):
    def capped(condition, run):
        made = record(run, DESCENDS if run.level else RISES, flooded=0.5)
        # Plain training is as low as 0.3 with seed 0 and 0.1 with seed 1.
        losses = np.full(len(made.curves["train_loss"]), 0.3 if run.seed == 0 else 0.1, np.float32)
        return replace(made, curves={**made.curves, "val_loss": losses})

    many = GROUPS | {"synthetic": [("Cell", (0.0, 0.2, 0.4), 2, ())]}
    report = reported(monkeypatch, conditions(many), capped)
    assert cell(report, "synthetic-loss", 1, "reached") == "1 of 2; 1 above the cap"
    assert cell(report, "synthetic-loss", 2, "reached") == "0 of 2; 2 above the cap"
    assert cell(report, "synthetic-loss", 2, "second descent").startswith("not a candidate")
    text = " ".join([*report.failures, *report.findings])
    assert "at level 0.4 not a candidate (above the lowest loss of plain training)" in text
    assert "tested rows (0 not tested, 1 not a candidate)" in text


def test_when_flooding_can_begin_is_told_and_late_is_a_failure(monkeypatch):
    both = GROUPS | {
        "digits": [("Digits", (0.0, 0.9), 2, ()), ("Digits + weight decay", (0.0, 0.2), 2, ())]
    }

    def falling(falls):
        made = reported(
            monkeypatch, conditions(both), lambda c, run: record(run, DESCENDS, falls=falls)
        )
        told = "plain training is below the largest level before half of the epochs in"
        return [
            [text.split(f"{told} ")[1] for text in some if told in text]
            for some in (made.findings, made.failures)
        ]

    # From 1 to 0 in 4 epochs: below 0.5 after 3 of 24, below 0.9 after 1, below 0.2 after 4.
    early = [
        "1 of 1 condition, in every seed, after 12 % of them.",
        "2 of 2 conditions, in every seed, after 4 to 17 % of them.",
    ]
    assert falling(4) == [early, []]
    # In 24: below 0.5 after 13, below 0.9 after 3, below 0.2 after 20.
    late = [
        "0 of 1 condition, in every seed.",
        "1 of 2 conditions, in every seed, after 12 % of them.",
    ]
    assert falling(24) == [[], late]


def test_a_verdict_on_weight_decay_has_the_p_of_its_table(monkeypatch):
    # Nine seeds: 2 / 2^9 = 0.0039 for each row that shows it; times 16 rows it is 0.06, times 8 it
    # were 0.03.
    plan_ = [(f"Digits {i}", (0.0, 0.2), 9, FACTORS if i < 8 else ()) for i in range(16)]
    groups = conditions(GROUPS | {"digits": plan_})
    for place, condition in enumerate(groups["digits"]):
        groups["digits"][place] = replace(
            condition, problem=replace(condition.problem, max_grad_norm=1.0 + place)
        )
    report = reported(
        monkeypatch,
        groups,
        lambda c, run: record(
            run, DESCENDS if run.level and c.title != "Cell" else RISES, flooded=0.5, clean=False
        ),
    )
    assert cell(report, "digits-loss", 1, "p (lasting)") == "0.062"
    assert any(
        "weight decay) by the criterion, which no single row shows at 5 %: flooding" in text
        for text in report.failures
    )


def test_enough_seeds_can_show_it_with_weight_decay(monkeypatch):
    many = GROUPS | {"digits": [("Digits + weight decay", (0.0, 0.2), 6, FACTORS)]}
    report = reported(monkeypatch, conditions(many), mixed)
    told = (
        "(the reproduction) does not hold in its own condition (augmentation, rate decay and "
        "weight decay): flooding brings a second descent of the test loss in 1 of 1 row whose level"
    )
    assert any(told in text for text in report.failures), "2 / 2^6"


def test_enough_seeds_can_show_it_in_single_rows(monkeypatch):
    many = GROUPS | {"synthetic": [("Cell", (0.0, 0.1, 0.5), 8, ())]}
    report = reported(
        monkeypatch,
        conditions(many),
        lambda c, run: record(run, DESCENDS if run.level == 0.1 else RISES, flooded=0.5),
    )
    told = (
        "a second descent in 1 of 2 tested rows (0 not tested), by the numbers of lasting "
        "descents in 1 of them at 5 %"
    )
    assert any(told in text for text in report.findings), "2 / 2^8 for each of two rows"


def test_a_level_never_reached_is_not_tested(monkeypatch):
    def unreached(
        condition, run
    ):  # the curves would show a second descent, had anything been flooded
        return record(run, DESCENDS if run.level else RISES, clean=False)

    report = reported(monkeypatch, conditions(GROUPS), unreached)
    for table in report.tables:
        for row in table.rows:
            if row[1] != "0":
                assert row[2].startswith("0 of ")
                assert row[3:5] == ["0.0", "not tested (level never reached)"]
                assert set(row[5:]) == {"–"}
    assert report.failures == []
    assert any(
        "is not judged: with weight decay no level was reached (n = 0)" in text
        for text in report.findings
    )
    assert any("in 0 of 0 tested rows (2 not tested)" in text for text in report.findings)
    assert any("at level 0.5 not tested (level never reached)." in text for text in report.findings)


def test_ends_are_compared_and_not_distances_from_two_minima(monkeypatch):
    def lower(condition, run):
        return record(run, (0.5, 0.5, 0.5) if run.level else RISES, flooded=0.5 * (run.level > 0))

    report = reported(monkeypatch, conditions(GROUPS), lower)
    assert cell(report, "synthetic-loss", 1, "end, flooded − plain") == "-2.500 [-2.500, -2.500]"
    assert cell(report, "synthetic-loss", 1, "end − m1") == "0.000 ± 0.000"


def test_a_stray_batch_does_not_reach_a_level(monkeypatch):
    def stray(condition, run):
        return record(
            run, DESCENDS if run.level else RISES, flooded=0.015 * (run.level > 0)
        )  # in half of the epochs

    report = reported(monkeypatch, conditions(GROUPS), stray)
    assert all(
        row[2].startswith("0 of ") for table in report.tables for row in table.rows if row[1] != "0"
    )
    reached = reported(
        monkeypatch, conditions(GROUPS), lambda c, run: record(run, RISES, flooded=0.03)
    )
    assert cell(reached, "synthetic-loss", 1, "reached") == "4 of 4"


def test_claims_are_judged_by_rows_whose_level_was_reached(monkeypatch):
    def nowhere(condition, run):
        return record(run, RISES, flooded=0.5 * (run.level > 0))

    report = reported(monkeypatch, conditions(GROUPS), nowhere)
    assert report.failures[0] == (
        "Cell: flooding brings no second descent of the test loss at any level that was reached. "
        "Lasting descents: "
        "level 0.1: 0 of 4 seeds with flooding, 0 of 4 without; level 0.5: 0 of 4 seeds with "
        "flooding, 0 of 4 without."
    )
    assert len(report.failures) == 3
    told = "(the reproduction) is not judged in its own condition"
    rest = "Other conditions: in 0 of 1 rows with weight decay, and in 0 of 1 without it."
    assert any(told in text and rest in text for text in report.findings)
    own = {"digits": [("Digits", (0.0, 0.2), 2, ()), ("All", (0.0, 0.2), 2, FACTORS)]}
    report = reported(monkeypatch, conditions(GROUPS | own), nowhere)
    told = "(the reproduction) is not judged, since no condition has one, in its own condition"
    assert any(told in text for text in report.findings)

    def otherwise(condition, run):
        shows = run.level and condition.title == "Digits"
        turn = (
            FALLS if condition.title == "Cell" and run.seed == 1 else DESCENDS if shows else RISES
        )
        return record(run, turn, flooded=0.5 * (0 < run.level < 0.5))

    report = reported(monkeypatch, conditions(GROUPS | own), otherwise)
    told = "(the reproduction) holds here in its own condition (augmentation, rate decay and weight"
    [said] = [text for text in report.findings if told in text]
    assert (
        "in 0 of 1 row whose level was reached; lasting descents in 0 of 2 trainings with" in said
    )
    assert "and in 1 of 1 without it." in said
    assert report.failures[0].endswith(
        "0 of 4 seeds with flooding, 0 of 4 without, no rise in 1 with, 1 without; never reached: "
        "0.5."
    )

    def anyway(condition, run):  # and what plain training does, flooding does not bring
        return record(run, DESCENDS, flooded=0.5 * (run.level > 0))

    report = reported(monkeypatch, conditions(GROUPS), anyway)
    assert len(report.failures) == 3
    assert "level 0.1: 4 of 4 seeds with flooding, 4 of 4 without" in report.failures[0]


def test_flooding_brings_what_at_least_half_of_the_seeds_show(monkeypatch):
    def seen(condition, run, seeds):
        shows = run.level == 0.1 and run.seed < seeds
        return record(run, DESCENDS if shows else RISES, flooded=0.5 * (run.level > 0))

    report = reported(monkeypatch, conditions(GROUPS), partial(seen, seeds=1))
    assert "level 0.1: 1 of 4 seeds with flooding, 0 of 4 without" in report.failures[0]
    report = reported(monkeypatch, conditions(GROUPS), partial(seen, seeds=2))
    assert not any(text.startswith("Cell") for text in report.failures)


def test_epochs_are_medians(monkeypatch):
    def late(condition, run):
        made, by = record(run, DESCENDS, flooded=0.5 * (run.level > 0)), (0, 2, 10, 4)[run.seed]
        return replace(
            made,
            curves={
                n: np.concatenate([c[:1].repeat(by), c])[: len(c)] for n, c in made.curves.items()
            },
        )

    report = reported(monkeypatch, conditions(GROUPS), late)
    # m1, M and m2 at 1, 5, 13 and 2, 10 and 4 epochs later; the level is not reached before the end
    # in the last.
    assert cell(report, "synthetic-loss", 0, "epochs of m1, M, m2") == "4, 8, 16"


def test_a_monotone_curve_has_no_rise_in_the_table(monkeypatch):
    report = reported(
        monkeypatch, conditions(GROUPS), lambda _, run: record(run, FALLS, flooded=0.5 * run.level)
    )
    row = [cell(report, "synthetic-loss", 1, c) for c in ("no rise", "second descent", "end − m1")]
    assert row == ["4 of 4", "0 of 4", "0.000 ± 0.000"]


def test_an_archive_gives_the_same_report(monkeypatch, tmp_path):
    def uneven(condition, run):
        made = mixed(condition, run)
        draw = np.random.default_rng([run.seed, int(10 * run.level), len(condition.title)])
        noise = {
            n: draw.normal(0, 0.01, STEPS + 1).astype(np.float32)
            for n in made.curves
            if n != "flooded"
        }
        return replace(
            made, curves={n: c + noise.get(n, np.float32(0)) for n, c in made.curves.items()}
        )

    groups = conditions(GROUPS)
    for some in groups.values():  # an archive knows a Run by what describes it
        some[:] = [
            replace(c, problem=replace(c.problem, max_grad_norm=1.0 + len(c.title))) for c in some
        ]
    kept = []
    live = reported(monkeypatch, groups, lambda c, r: kept.append(uneven(c, r)) or kept[-1])
    archive = Archive(pack(tmp_path / "a.npz", kept, double_descent.CURVES, "a machine"))
    again = reported(monkeypatch, groups, lambda _, run: archive([run])[0])
    assert again.markdown("x") == live.markdown("x")


def test_the_plan_is_what_was_asked():
    groups = plan()
    cells, digits = groups["synthetic"], groups["digits"]
    assert [len(some) for some in (cells, digits)] == [9, 8]
    assert [sum(len(c.runs) for c in some) for some in (cells, digits)] == [360, 320]
    for cell_ in cells:
        assert (cell_.levels, cell_.seeds) == ((0.0, 0.05, 0.15, 0.3), tuple(range(10)))
        assert (cell_.problem.max_epochs, cell_.problem.test_curve) == (500, TestCurve(1000, 2))
    assert cells[5].title == "Sinusoid, 10 %"
    assert len({c.factors for c in digits}) == 8
    for d in digits:
        problem, told = d.problem, json.dumps(to_config(d.runs[1]))  # every one describes itself
        assert (d.levels, problem.max_epochs, problem.test_curve) == (
            (0.0, 0.2, 0.5, 0.8),
            200,
            TestCurve(897, 1),
        )
        assert ("augmentation" in d.factors) == (problem.augment is not None)
        assert (
            ("rate decay" in d.factors)
            == (problem.lr_scheduler is not None)
            == ("[100, 160]" in told)
        )
        (group,) = problem.optimizer([torch.zeros(1, requires_grad=True)]).param_groups
        assert (group["weight_decay"], group["lr"]) == (
            0.5 if "weight decay" in d.factors else 0,
            1e-3,
        )
        assert all(factor in d.title for factor in d.factors)
    quick = plan(quick=True)
    assert [(c.levels, c.seeds, c.problem.max_epochs) for c in quick["synthetic"]] == [
        ((0.0, 0.15), (0, 1), 100)
    ] * 3
    assert [(c.factors, c.seeds, c.problem.max_epochs) for c in quick["digits"]] == [
        ((), (0, 1), 40),
        (("weight decay",), (0, 1), 40),
    ]


def test_images_have_the_same_eight_ways():
    conditions_ = double_descent_cifar10.plan()
    assert [c.factors for c in conditions_] == [c.factors for c in plan()["digits"]]
    # The three levels of each condition, and one more with augmentation.
    assert sum(len(c.runs) for c in conditions_) == 8 * 3 * 3 + 4 * 3
    for c in conditions_:
        (group,) = c.problem.optimizer([torch.zeros(1, requires_grad=True)]).param_groups
        assert group["weight_decay"] == (
            double_descent_cifar10.WEIGHT_DECAY if "weight decay" in c.factors else 0
        )
        augmented = "augmentation" in c.factors
        assert augmented == (c.problem.augment is crop_and_flip)
        assert (c.problem.max_epochs, c.levels[1:]) == (
            (100, (0.9, 1.0, 1.2)) if augmented else (60, (0.3, 0.8))
        )
        assert ("rate decay" in c.factors) == (c.problem.lr_scheduler is not None)
        assert (c.levels[0], c.seeds, c.problem.test_curve) == (0.0, (0, 1, 2), TestCurve(2000, 1))
    runs = next(double_descent_cifar10.start(quick=True, seeds=[3]))
    assert {(run.seed, run.epochs) for run in runs} == {(3, 6)}


def test_images_are_judged_by_the_same_criterion():
    def answer(runs):
        return [
            record(run, RISES if run.level == 0 else FALLS, flooded=0.5, clean=False)
            for run in runs
        ]

    report = run_generator(double_descent_cifar10.start(), answer)[0]
    assert [t.name for t in report.tables] == ["cifar10-loss", "cifar10-error"]
    assert report.title == "A second descent on CIFAR-10, reduced"
    assert "3 seeds" in report.about
    assert "second minimum m2" in report.about
    assert any(
        sentence.startswith("CIFAR-10 with weight decay (4 conditions)")
        for sentence in report.findings
    )


def test_the_rate_falls_twice_and_other_seeds_can_be_asked():
    (decayed,) = [c for c in plan()["digits"] if c.factors == ("rate decay",)]
    optimizer = decayed.problem.optimizer([torch.zeros(1, requires_grad=True)])
    schedule, rates = decayed.problem.lr_scheduler(optimizer), []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[i] for i in (99, 100, 159, 160)] == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])
    runs = next(double_descent.start(seeds=range(4, 6)))
    assert {run.seed for run in runs} == {4, 5}
    assert len(runs) == 136


def test_quick_is_trained_and_drawn(monkeypatch, tmp_path):
    """All of quick's conditions, cut to 4 epochs, small networks and few test examples."""
    tiny = {"model": partial(mlp, 10, 2, width=16, depth=1), "max_epochs": 4}
    groups = plan(quick=True)
    data = partial(two_gaussians, n_test=100, label_noise=0.1)
    groups["synthetic"] = [
        replace(c, problem=replace(c.problem, data=data, **tiny), levels=(0.0, 0.9))
        for c in groups["synthetic"]
    ]
    groups["digits"] = [
        replace(c, problem=replace(c.problem, max_epochs=3)) for c in groups["digits"]
    ]
    monkeypatch.setattr(double_descent, "plan", lambda quick: groups)
    # So short a training has learnt nothing, and any level lies above its losses.
    monkeypatch.setattr(descent_rows, "_cap", lambda *_: np.inf)
    running = double_descent.start(quick=True)
    runs = next(running)
    assert len(runs) == 3 * 2 * 2 + 2 * 2 * 4
    with pytest.raises(StopIteration) as end:
        running.send(run_all(runs, ledger=False, workers=0))
    report = end.value.value
    assert [t.name for t in report.tables] == [
        "synthetic-loss",
        "synthetic-error",
        "digits-loss",
        "digits-error",
    ]
    assert [len(t.rows) for t in report.tables] == [6, 6, 8, 8]
    assert cell(report, "digits-loss", 1, "second descent") == "not tested (level never reached)"
    assert cell(report, "synthetic-loss", 1, "reached") == "2 of 2"
    files = report.save(tmp_path, "double_descent")
    pictures = [file for file in files if file.suffix == ".png"]
    assert [file.stem.removeprefix("double_descent-") for file in pictures] == [
        t.name for t in report.tables
    ]
    assert all(file.stat().st_size > 5000 for file in pictures)


def test_figures_show_each_level_that_was_reached(monkeypatch):
    report = reported(monkeypatch, conditions(GROUPS), mixed)
    figure = report.figures["synthetic-loss"][1]()
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["without flooding", "level 0.1", "level 0.5"]
    assert lines["level 0.1"].get_ydata()[-1] == pytest.approx((0.5 + 1 + 1.5 + 3) / 4)
    band = (
        axes.collections[1].get_paths()[0].vertices[:, 1]
    )  # where seeds differ: 1.5 and their deviation
    assert band.min() == pytest.approx(1.5 - statistics.stdev([0.5, 1, 1.5, 3]))
    assert axes.get_yscale() == "log"
    figure = report.figures["digits-error"][1]()
    assert [axes.get_title() for axes in figure.axes] == ["Digits", "Digits + weight decay"]
    assert figure.axes[0].get_yscale() == "linear"
    unreached = reported(monkeypatch, conditions(GROUPS), lambda _, run: record(run, RISES))
    (axes,) = unreached.figures["synthetic-loss"][1]().axes
    assert [line.get_label() for line in axes.get_lines()] == ["without flooding"]


def test_a_level_looks_the_same_in_every_panel(monkeypatch):
    decayed = ("Digits + weight decay", (0.0, 0.4), 2, ("weight decay",))
    groups = conditions(GROUPS | {"digits": [GROUPS["digits"][0], decayed]})
    report = reported(
        monkeypatch, groups, lambda _, run: record(run, RISES, flooded=0.5 * (run.level > 0))
    )
    drawn = [axes.get_lines() for axes in report.figures["digits-error"][1]().axes]
    looks = [
        {
            line.get_label(): (*np.atleast_1d(line.get_color()), line.get_linestyle())
            for line in lines
        }
        for lines in drawn
    ]
    assert [list(panel) for panel in looks] == [
        ["without flooding", f"level {level}"] for level in (0.2, 0.4)
    ]
    assert looks[0]["without flooding"] == looks[1]["without flooding"]
    assert looks[0]["level 0.2"] != looks[1]["level 0.4"]
