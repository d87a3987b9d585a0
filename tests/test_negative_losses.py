"""Losses that may be negative: level 0 is a level, no flooding is None, and every search says what
it did."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from flooding import Problem, Run, find_level, run_all, search
from flooding.data import Split, Splits
from flooding.level_search.backward import backward
from flooding.level_search.external import ExternalProblem, ObjectiveAdapter
from flooding.level_search.finder import finder
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving
from flooding.level_search.heuristic import heuristic
from flooding.level_search.level_stats import (
    adjacent_levels,
    best_level,
    check_levels,
    effective_level,
    end_of_range_warning,
    interval_ends,
    reached_level,
)
from flooding.level_search.plot import plot_search
from flooding.level_search.policy_gradient import Policy, policy_gradient
from flooding.level_search.range_test import range_test
from flooding.level_search.result import LevelEstimate
from flooding.level_search.tpe import tpe
from flooding.levels import Delayed, Heuristic, PerExample
from flooding.methods import IFlood, WaveBound
from flooding.testing import fake_record
from flooding.training.record import Record, select_best
from small import regression, small

ask = partial(run_all, ledger=False, workers=0)
adam = partial(torch.optim.Adam, lr=1e-2)


class Density(nn.Module):
    """Mean and variance of a Gaussian."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x):
        out = self.net(x)
        return out[:, :1], out[:, 1:].exp()


def gaussian(output, y):
    return functional.gaussian_nll_loss(output[0], y, output[1])


def student(output, y):
    """Minus the log density of Student's t, up to a constant."""
    return (output[1].log() + 2 * (1 + (y - output[0]) ** 2 / (4 * output[1] ** 2)).log()).mean()


def below(loss, output, y):
    """A loss moved below 0: its levels move with it."""
    return loss(output, y) - 5.0


def classifier():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))


def counts(output, y):
    """Minus the log likelihood of a Poisson process, up to a constant."""
    return functional.poisson_nll_loss(output, 10.0 * y.unsqueeze(1))


def splits(train=40, val=60, classes=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(train + val, 6, generator=generator)
    noise = torch.randn(train + val, 1, generator=generator)
    y = (x[:, :1] + noise > 0).long().squeeze(1) if classes else 0.1 * x[:, :1] + 0.02 * noise
    return Splits(Split(x[:train], y[:train]), Split(x[train:], y[train:]))


def density(**changes):
    """Overfits within its 60 epochs: its training loss falls to about -2.8, its validation loss to
    about -1.7."""
    given = {
        "data": splits(),
        "model": Density,
        "loss": gaussian,
        "optimizer": adam,
        "batch_size": 20,
        "max_epochs": 60,
    }
    return Problem(**given | changes)


def shifted(**changes):
    """Cross-entropy less 5 nats, judged by the accuracy."""
    given = {
        "data": splits(classes=True),
        "model": classifier,
        "loss": partial(below, functional.cross_entropy),
    }
    return density(**given | changes)


@pytest.fixture(scope="module")
def plain_and_zero():
    return ask([Run(density()), Run(density(), 0.0)])


# Record.level


def test_no_flooding_and_level_0_are_two_levels_of_a_record(plain_and_zero):
    plain, zero = plain_and_zero
    assert (plain.level, zero.level) == (None, 0.0)
    assert plain.metrics["last.train_loss"] < -2
    assert abs(zero.metrics["last.train_loss"]) < 0.3
    assert zero.curves["flooded"][1:].mean() > 0.2
    assert not reached_level(plain)
    assert reached_level(zero)


@pytest.mark.parametrize(
    ("run", "last", "level"),
    [
        (Run(small()), math.nan, None),
        (Run(small(), 0.0), 0.0, 0.0),
        (Run(small(), -0.0), 0.0, 0.0),
        (Run(small(), -1.5), -1.5, -1.5),
        (Run(small(), Delayed(0.0, until_loss=0.1)), -math.inf, None),
        (Run(small(), Delayed(0.0, until_loss=0.1)), 0.0, 0.0),
        (Run(small(), Delayed(-1.0, until_loss=0.1)), -1.0, -1.0),
        (Run(small(), method=WaveBound(0.01)), 0.4, 0.4),
        (Run(small(), torch.tensor(-0.5)), -0.5, -0.5),
        (None, math.nan, None),
        (None, 0.0, 0.0),
    ],
    ids=[
        "none",
        "0",
        "-0",
        "negative",
        "never began",
        "began at 0",
        "began below 0",
        "WaveBound",
        "tensor",
    ]
    + ["unknown run, none", "unknown run, 0"],
)
def test_the_level_of_a_record_is_a_number_or_none(run, last, level):
    assert Record(run, {}, {}, {"last.level": last}, "", "").level == level
    assert not isinstance(level, int)


def test_a_record_without_a_level_in_its_finals_has_none():
    assert Record(None, {}, {}, {}, "", "").level is None
    assert (
        Record(
            Run(small(), PerExample(torch.zeros(3), torch.arange(3)), method=IFlood()),
            {},
            {},
            {},
            "",
            "",
        ).level
        is None
    )


def test_levels_of_examples_are_told_by_their_mean():
    levels = PerExample(torch.linspace(-1, 1, 40), torch.arange(40))
    [record] = ask([Run(regression(max_epochs=2), levels, method=IFlood())])
    assert record.level == pytest.approx(0.0, abs=1e-6)


def test_the_level_survives_the_ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    problem = density(max_epochs=2, key="density")
    levels = [None, 0.0, -1.0]
    runs = [Run(problem, level) for level in levels]
    assert [record.level for record in run_all(runs, ledger=path, workers=0)] == levels
    asked = []
    again = run_all(runs, ledger=path, workers=0, on_start=asked.extend)
    assert [record.level for record in again] == levels
    assert asked == []
    assert len({run.key() for run in runs}) == 3


@pytest.mark.parametrize(
    "levels", [(0.1, 0.0, None), (-1.0, None, 0.0), (None, -0.5, -1.0)], ids=str
)
def test_ties_go_to_no_flooding_first(levels):
    equal = {"last.val_accuracy": 0.5, "last.val_loss": 0.7}
    records = [replace(fake_record(Run(small(), b)), curves={}, metrics=equal) for b in levels]
    assert select_best(records, "last").level is None
    assert best_level(records) is None
    numbers = [record for record in records if record.level is not None]
    assert (
        select_best(numbers, "last").level
        == best_level(numbers)
        == min(b for b in levels if b is not None)
    )


# Level 0 in the searches


def test_the_default_grid_has_plain_training_and_says_that_its_levels_are_too_high(plain_and_zero):
    found = find_level(density(), strategy=grid, workers=0)
    rows = found.table
    assert [row["level"] for row in rows] == [None, *(n / 100 for n in range(1, 11))]
    assert rows[0]["train_loss"] == plain_and_zero[0].metrics["last.train_loss"]
    assert all(row["train_loss"] > -0.2 for row in rows[1:])
    assert found.level == min((row["val_loss"], row["level"] or 0.0) for row in rows)[1] or None
    warning = found.warnings[-1]
    lowest, cap = (float(plain_and_zero[0].curves[f"{n}_loss"][1:].min()) for n in ("train", "val"))
    assert warning == (
        f"the training loss fell to {lowest:.3g}, but no level below 0 was tried: give levels "
        "around the lowest "
        f"validation loss of plain training, {cap:.3g} here, or use the finder"
    )


def test_level_0_is_a_flooded_row_beside_no_flooding(plain_and_zero):
    found = find_level(density(), strategy=partial(grid, levels=[0.0, -1.5, None]), workers=0)
    assert [row["level"] for row in found.table] == [None, -1.5, 0.0]
    for row, record in zip(found.table[::2], plain_and_zero, strict=True):
        assert row["train_loss"] == record.metrics["last.train_loss"]
    assert (
        found.level == min((row["val_loss"], row["level"] or -9) for row in found.table)[1] == -1.5
    )
    assert (found.estimates[0].low, found.estimates[0].high) == (-math.inf, 0.0)
    assert not found.warnings


@pytest.mark.parametrize(
    "strategy",
    [
        partial(grid, levels=[0.0, 0.5]),
        partial(grid, levels=[0.0, 0.5], at="best"),
        partial(halving, levels=[0.0, 0.5], least=1.0),
        partial(backward, levels=[0.0, 0.5], until_loss=-0.5),
    ],
    ids=["grid", "grid, best epoch", "halving", "backward"],
)
def test_a_level_0_that_floods_is_the_answer_0_and_not_none(strategy):
    found = find_level(density(max_epochs=25), strategy=strategy, workers=0)
    assert found.level == 0.0
    assert found.estimates[0].level == 0.0
    assert found.run.level == (
        0.0 if found.strategy != "backward" else Delayed(0.0, until_loss=-0.5)
    )
    assert all(row["flooded"] is not None for row in found.table)
    assert (
        "the best level 0 is the smallest of the grid: a smaller one, or no flooding, may be better"
        in found.warnings
    )


@pytest.mark.parametrize("levels", [[0.0, 5.0], [None, 5.0], [None, 0.0, 5.0]], ids=str)
@pytest.mark.parametrize(
    "make", [grid, partial(halving, least=1.0), backward], ids=["grid", "halving", "backward"]
)
def test_a_level_0_that_floods_nothing_is_plain_training(make, levels):
    found = search(make(regression(max_epochs=8), levels), ask)
    assert found.level is None
    assert found.run.level is None
    assert found.estimates[0].level is None
    assert [r.run.level for r in found.records[:1]] in (
        [levels[0]],
        [Delayed(0.0, until_loss=1e-4)],
    )
    assert not any("below 0" in warning or "smallest" in warning for warning in found.warnings)


@pytest.mark.parametrize("levels", [[None, -1.0, -2.0], [-2.5, 0.0, -1.0]], ids=str)
def test_backward_fits_first_at_every_level(levels):
    found = search(backward(density(max_epochs=20), levels, until_loss=-0.5), ask)
    for record in found.records:
        assert record.run.level is None or isinstance(record.run.level, Delayed)
        curve = record.curves["level"][1:]
        assert not np.isfinite(curve[0]), "the first epoch is plain"
    assert {None if r.run.level is None else r.run.level.level for r in found.records} == set(
        levels
    )


def test_backward_says_that_a_start_at_0_is_no_fit():
    found = search(backward(density(max_epochs=20), [None, -1.0]), ask)
    assert found.warnings[0] == (
        "flooding starts at a last-batch loss of 0.0001, but the training loss falls below 0: give "
        "an until_loss near "
        "its lowest value"
    )
    found = search(heuristic(shifted(max_epochs=10), Heuristic(until_loss=1e-4)), ask)
    assert sum("give an until_loss" in warning for warning in found.warnings) == 1
    assert sum("no level below 0 was tried" in warning for warning in found.warnings) == 1


def test_tpe_below_the_range_says_so():
    pytest.importorskip("optuna")

    def lower_is_better(runs):
        return [
            replace(fake_record(r), curves={}, metrics={"last.val_loss": r.level}) for r in runs
        ]

    found = search(tpe(density(), trainings=4, low=0.3, high=0.6), lower_is_better)
    assert found.level == min(r.level for r in found.records)
    assert found.warnings == (
        f"the best level {found.level:g} is the smallest tried: a smaller one, or no flooding, may "
        "be better",
    )
    negative = search(tpe(density(max_epochs=20), trainings=4, low=-2.0, high=-0.5), ask)
    assert -2 <= negative.level < -0.5
    assert not any("below 0" in warning for warning in negative.warnings)


def test_halving_races_plain_training_with_negative_levels():
    found = search(halving(density(), [None, 0.0, -1.0, -1.5, 0.5, 1.0]), ask)
    first = [r.run.level for r in found.records[:6]]
    assert first == [None, -1.5, -1.0, 0.0, 0.5, 1.0]
    assert not {0.0, 0.5, 1.0} & {r.run.level for r in found.records[6:]}
    assert found.level in {None, -1.5, -1.0}
    assert not found.warnings


def test_halving_asks_in_the_order_of_the_levels():
    def none_second(runs):
        score = {0.0: 0.9, None: 0.8}
        finals = [
            {"last.val_accuracy": score.get(r.level, 0.1), "last.val_loss": 0.5} for r in runs
        ]
        return [
            replace(fake_record(r), curves={}, metrics=f) for r, f in zip(runs, finals, strict=True)
        ]

    found = search(halving(small(), [-1.0, None, 0.5, 0.0], eta=2, least=0.5), none_second)
    assert [r.run.level for r in found.records] == [None, -1.0, 0.0, 0.5, None, 0.0]
    assert (found.level, found.estimates[0].low, found.estimates[0].high) == (
        0.0,
        -math.inf,
        0.0,
    )


@pytest.mark.parametrize(
    "loss", [gaussian, student, partial(below, gaussian)], ids=["Gaussian", "Student", "shifted"]
)
def test_the_finder_places_its_levels_between_the_losses_of_either_sign(loss):
    found = search(finder(density(loss=loss)), ask)
    plain = found.records[0]
    floor, cap = (float(plain.curves[f"{n}_loss"][1:].min()) for n in ("train", "val"))
    assert floor < cap < 0
    levels = sorted({r.run.level for r in found.records[1:]})
    assert len(levels) == 5
    np.testing.assert_allclose(
        levels, [floor + (0.1 + 0.2 * n) * (cap - floor) for n in range(5)], atol=0.006
    )
    assert found.level in {None, *levels}
    race = found.estimates[0]
    assert floor - 0.01 <= race.low <= race.high <= cap
    assert not any("below 0" in warning for warning in found.warnings)
    # Honest: the level that was chosen beats plain training at the race's length, by the late mean
    # it is judged by.
    selected, plain_candidate = found.decision.selected, found.decision.candidates[0]
    assert selected.compared_loss <= plain_candidate.compared_loss
    # On Student's loss a few hundredths decide, which processors round differently.
    assert found.level is not None or loss is student
    if found.level is None:
        return
    raced = next(r for r in found.records if r.run.level == found.level)
    late = slice(-max(1, round(0.125 * raced.run.epochs)), None)
    assert (
        raced.curves["val_loss"][late].mean()
        < plain.curves["val_loss"][: raced.run.epochs + 1][late].mean()
    )


def test_a_loss_moved_below_0_has_the_levels_of_the_loss_itself():
    """The gradient is the same, and so is every training; only the unit moves."""
    own, moved = (
        search(finder(shifted(loss=loss)), ask)
        for loss in (functional.cross_entropy, partial(below, functional.cross_entropy))
    )
    a, b = (
        sorted({r.run.level for r in found.records if r.run.level is not None})
        for found in (own, moved)
    )
    np.testing.assert_allclose(np.array(b) + 5, a, atol=0.006)
    assert len(a) == len(b) == 5
    assert (own.level is None) == (moved.level is None)


def test_the_interval_of_plain_training_ends_at_the_lowest_loss_and_not_at_0():
    def never_better(runs):
        return [
            replace(
                r,
                curves={
                    **r.curves,
                    "val_loss": r.curves["val_loss"] * 0 + (9 if r.run.level else -1.0),
                },
            )
            for r in ask(runs)
        ]

    found = search(finder(density()), never_better)
    [race] = [s for s in found.estimates if s.name == "race"]
    assert race.level is None
    assert race.low == pytest.approx(float(found.records[0].curves["train_loss"][1:].min()))
    assert race.low < race.high < 0


def test_the_range_test_falls_from_loss_to_loss():
    found = search(range_test(density()), ask)
    plain, swept = found.records
    assert swept.run.level.start == pytest.approx(float(plain.curves["val_loss"][1:].min()))
    assert swept.run.level.stop == pytest.approx(float(plain.curves["train_loss"][1:].min()))
    assert found.level is None or swept.run.level.stop <= found.level <= swept.run.level.start < 0
    assert not found.warnings


def test_a_policy_at_level_0_floods_a_negative_loss():
    found = search(policy_gradient(density(max_epochs=12), [0.0, 0.5], trainings=2), ask)
    chosen = found.estimates[0]
    assert found.level in {0.0, 0.5}
    assert any("no level below 0 was tried" in warning for warning in found.warnings)

    def at_0(runs):
        return [
            replace(
                r,
                curves={
                    **r.curves,
                    "level": np.zeros_like(r.curves["level"]),
                    "flooded": flooded(r),
                },
            )
            for r in ask(runs)
        ]

    for share, level in ((0.5, 0.0), (0.0, None)):
        flooded = lambda r, share=share: np.full_like(r.curves["flooded"], share)  # noqa: E731
        chosen = search(
            policy_gradient(density(max_epochs=12), [0.0, 0.5], trainings=2), at_0
        ).estimates[0]
        assert chosen.level == level
    with pytest.raises(ValueError, match="a policy chooses among numbers, got None"):
        Policy((None, 0.1), epochs=3)


@pytest.mark.parametrize(
    ("make", "warned"),
    [
        (partial(grid, levels=[None, 0.1]), True),
        (partial(grid, levels=[None, 0.0]), True),
        (partial(grid, levels=[None, -1.0, 0.1]), False),
        (partial(grid, levels=[None]), False),
        (partial(grid, levels=[-1.0, 0.1]), False),
    ],
    ids=["above 0", "at 0", "one below", "plain alone", "without plain"],
)
def test_levels_above_a_negative_loss_are_warned_of(make, warned):
    found = search(make(density(max_epochs=15)), ask)
    assert any("no level below 0 was tried" in warning for warning in found.warnings) == warned


def test_no_warning_where_the_levels_worth_trying_are_positive():
    """Rounded below 0, or a little below it while the validation loss stays above."""

    def moved(lowest, val):
        def run_all(runs):
            curves = [
                {
                    **r.curves,
                    "train_loss": r.curves["train_loss"] + lowest,
                    "val_loss": r.curves["val_loss"] + val,
                }
                for r in map(fake_record, runs)
            ]
            return [
                replace(fake_record(run), curves=c) for run, c in zip(runs, curves, strict=True)
            ]

        return search(grid(small(max_epochs=40)), run_all).warnings

    assert not any("below 0" in w for w in moved(-1.5e-6, -1.0))
    assert not any("below 0" in w for w in moved(-0.2, 0.0))
    assert any("below 0" in w for w in moved(-0.2, -1.0))


def test_a_negative_level_that_was_never_reached_is_warned_of():
    found = search(grid(density(max_epochs=3), [-9.0, -8.0]), ask)
    assert any(w.startswith("no training came down to its level") for w in found.warnings)
    assert not any(map(reached_level, found.records))


# Training code of the user's own


def test_a_function_is_asked_for_none_and_for_0():
    asked = []

    def train(level, seed, epochs):
        asked.append(level)
        return {None: 0.1, 0.0: 0.3, -1.0: 0.2}[level]

    found = search(grid(ExternalProblem(5), [0.0, None, -1.0]), train)
    assert asked == [None, -1.0, 0.0]
    assert found.level == 0.0
    assert [row["level"] for row in found.table] == [None, -1.0, 0.0]


def test_a_function_keeps_none_and_0_apart_in_its_ledger(tmp_path):
    train = ObjectiveAdapter(
        lambda level, seed, epochs: 1.0 if level is None else 0.5,
        key="a",
        ledger=tmp_path / "l.sqlite",
    )
    assert search(grid(ExternalProblem(5), [0.0, None]), train).level is None
    again = ObjectiveAdapter(lambda **_: 1 / 0, key="a", ledger=tmp_path / "l.sqlite")
    assert [
        row["val_score"] for row in search(grid(ExternalProblem(5), [0.0, None]), again).table
    ] == [1.0, 0.5]


def test_a_function_that_takes_no_none_is_told_what_none_is():
    with pytest.raises(TypeError) as raised:
        search(grid(ExternalProblem(5)), lambda level, seed, epochs: -abs(level - 0.1))
    assert any("level=None asks for plain training" in note for note in raised.value.__notes__)


# What is written


@pytest.mark.parametrize("level", [None, 0.0])
def test_files_tell_none_from_0(tmp_path, monkeypatch, level):
    monkeypatch.setattr("flooding.report.plots.save", lambda *_: None)
    found = find_level(
        density(max_epochs=6), strategy=partial(grid, levels=[None, 0.0, 0.5]), workers=0
    )
    folder = replace(found, run=replace(found.run, level=level)).save(tmp_path)
    assert json.loads((folder / "found.json").read_text())["level"] == level
    rows = (folder / "table.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == ["", "0.0", "0.5"]


def test_the_picture_tells_none_from_0(plain_and_zero):
    found = find_level(
        density(max_epochs=15), strategy=partial(grid, levels=[None, -1.0, 0.0]), workers=0
    )
    figure = plot_search(found)
    [axes] = [
        a
        for a in figure.axes
        if a.get_ylabel() == "Validation loss" and a.get_xlabel().startswith("Flood")
    ]
    marks = [
        line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert [line.get_xdata()[0] for line in marks] == [-1.0, 0.0], (
        "plain training has no place among negative levels"
    )
    assert any(str(line.get_label()).startswith("plain training") for line in axes.get_lines())
    alone = find_level(density(max_epochs=25), strategy=partial(grid, levels=[0.0]), workers=0)
    figure = plot_search(alone)
    assert figure.get_suptitle().startswith("grid: flood level 0 (1 Run")
    assert not any(
        "plain" in t.get_text()
        for a in figure.axes
        if a.get_legend()
        for t in a.get_legend().get_texts()
    )


def test_plain_training_has_no_mark_where_level_0_has_one():
    found = find_level(
        density(max_epochs=15), strategy=partial(grid, levels=[None, 0.0, 0.5]), workers=0
    )
    figure = plot_search(replace(found, records=found.records[::-1]))
    [axes] = [
        a for a in figure.axes if a.get_ylabel() == "Validation loss" and "level" in a.get_xlabel()
    ]
    marks = [
        line.get_data()
        for line in axes.get_lines()
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    late = [record.curves["val_loss"][-1] for record in found.records[1:]]  # what the grid judges
    np.testing.assert_allclose(marks, [[[0.0], [late[0]]], [[0.5], [late[1]]]], rtol=1e-5)


def test_the_picture_says_below_where_an_interval_has_no_lower_end():
    found = search(grid(density(max_epochs=15), [None, -1.0]), ask)
    found = replace(
        found,
        estimates=(
            LevelEstimate("a", -1.0, -math.inf, -0.5),
            LevelEstimate("b", -1.0, -math.inf),
        ),
    )
    texts = [text.get_text() for axes in plot_search(found).axes for text in axes.texts]
    assert {"a: -1 (below -0.5)", "b: -1"} <= set(texts)


# Limits


@pytest.mark.parametrize(
    ("problem", "limits"),
    [
        (
            lambda: density(data=splits(classes=True), model=partial(nn.Linear, 6, 1), loss=counts),
            [],
        ),
        (lambda: shifted(), []),
        (lambda: shifted(loss=functional.cross_entropy), ["label entropy"]),
    ],
    ids=["Poisson", "shifted cross-entropy", "cross-entropy"],
)
def test_the_entropy_of_labels_limits_cross_entropy_alone(problem, limits):
    found = find_level(problem(), strategy=partial(grid, levels=[None, -9.0]), workers=0)
    assert [s.name for s in found.estimates if s.name == "label entropy"] == limits


# Pieces


def test_levels_are_checked_and_ordered():
    assert check_levels([0.1, None, -1, 0]) == (None, -1.0, 0.0, 0.1)
    assert check_levels([None]) == (None,)
    for wrong in ([], [None, None], [0.0, -0.0], [math.inf], [None, math.nan]):
        with pytest.raises(ValueError, match="levels must be finite, different and at least one"):
            check_levels(wrong)


@pytest.mark.parametrize(
    ("levels", "level", "ends"),
    [
        ((None, 0.1, 0.2), None, (0.0, 0.1)),
        ((None, 0.1, 0.2), 0.1, (0.0, 0.2)),
        ((None, 0.0, 0.2), 0.0, (-math.inf, 0.2)),
        ((None, -1.0, 0.2), -1.0, (-math.inf, 0.2)),
        ((-1.0, 0.0, 0.2), 0.0, (-1.0, 0.2)),
        ((None,), None, (0.0, 0.0)),
    ],
    ids=str,
)
def test_no_flooding_is_0_beside_positive_levels_alone(levels, level, ends):
    number = interval_ends(levels)
    assert adjacent_levels(list(number.values()), number[level]) == ends


def test_an_answer_of_0_needs_a_flooded_step():
    problem = small(max_epochs=4)
    zero = fake_record(Run(problem, 0.0))
    flooded = replace(zero, curves={**zero.curves, "flooded": np.array([0, 0, 0.5, 0, 0])})
    never = replace(zero, curves={**zero.curves, "flooded": np.zeros(5)})
    unknown = replace(zero, curves={})
    assert effective_level(0.0, [never, flooded]) == 0.0
    assert effective_level(0.0, [never]) is None
    assert effective_level(0.0, [unknown]) == 0.0
    assert effective_level(0.1, [never]) == 0.1
    assert effective_level(None, [flooded]) is None


@pytest.mark.parametrize(
    ("level", "said"),
    [(None, ()), (0.1, ()), (0.2, ("largest",)), (-1.0, ("smallest",))],
    ids=["none", "inside", "largest", "smallest"],
)
def test_an_end_of_the_range_is_told(level, said):
    warnings = end_of_range_warning(level, (-1.0, 0.1, 0.2))
    assert [word in warning for word, warning in zip(said, warnings, strict=True)] == [True] * len(
        said
    )
    assert end_of_range_warning(0.1, (0.1,)) == ()
    assert end_of_range_warning(0.1, (None, 0.1, 0.2)) == ()
