"""The picture of a search shows what was measured: marks, lines, colours and limits, read back from
the figure."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from functools import partial
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Annotation, Text

from flooding import Run
from flooding.level_search.advisor import advisor
from flooding.level_search.driver import search
from flooding.level_search.external import ExternalProblem
from flooding.level_search.finder import finder
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving
from flooding.level_search.plot import plot_search
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.levels import Delayed, Warmup
from flooding.report.plots import PALETTE
from flooding.testing import fake_record
from flooding.training.problem import Score
from small import small

NAN, INF = math.nan, math.inf
PROBLEM = small(max_epochs=40)
ACCURACY, LOSS, TRAINING = (
    "Validation accuracy (%)",
    "Validation loss (nats per example)",
    "Training loss",
)


def fake_records(runs, **options):
    """Made-up Records."""
    return [fake_record(run, **options) for run in runs]


def result_by_hand(*levels, chosen=0.1, estimates=(), seeds=(0,), problem=PROBLEM, stop_epoch=None):
    """A result of these levels, as if somebody had chosen by hand."""
    runs = [
        Run(problem, level, seed=seed, stop_epoch=None if level is None else stop_epoch)
        for level in levels
        for seed in seeds
    ]
    return SearchResult(
        "by hand", Run(problem, chosen), tuple(estimates), (), tuple(fake_records(runs))
    )


def change(record, **curves):
    """A Record with other curves, and metrics to match."""
    curves = {name: np.array(values, np.float32) for name, values in curves.items()}
    metrics = {f"last.{name}": float(values[-1]) for name, values in curves.items()}
    return replace(
        record, curves={**record.curves, **curves}, metrics={**record.metrics, **metrics}
    )


def panel(figure, label, by="level"):
    """The panel of this measure against the level or the epoch."""
    starts = {"level": "Flood level", "epoch": "Epoch"}[by]
    (axes,) = [
        a
        for a in figure.axes
        if a.get_ylabel().startswith(label) and a.get_xlabel().startswith(starts)
    ]
    return axes


def marks(axes, size=None):
    """Place, height and line of every mark drawn, large or small."""
    lines = [
        line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata())
    ]
    sizes = [line.get_markersize() for line in lines]
    chosen = [line for line, ms in zip(lines, sizes, strict=True) if size is None or ms == size]
    return [(x, y, line) for line in chosen for x, y in zip(*line.get_data(), strict=True)]


def labelled(axes, start):
    """The one line whose label starts so."""
    (line,) = [line for line in axes.get_lines() if str(line.get_label()).startswith(start)]
    return line


def uprights(axes):
    """Vertical lines, by place."""
    lines = [
        line
        for line in axes.get_lines()
        if len(line.get_xdata()) == 2 and list(line.get_ydata()) == [0, 1]
    ]
    return {line.get_xdata()[0]: line for line in lines}


def legend(figure):
    """Legend texts."""
    return [
        text.get_text()
        for axes in figure.axes
        if axes.get_legend()
        for text in axes.get_legend().get_texts()
    ]


def strip(figure):
    """The axes with the estimates."""
    (axes,) = [a for a in figure.axes if len(a.get_yticks()) == 0 and a.axison]
    return axes


def colour_bar(figure):
    (axes,) = [a for a in figure.axes if a.get_label() == "<colorbar>"]
    return axes


def slow_tail_mean(record, name, stop_epoch=None):
    """Slow twin: the mean of the last quarter of the epochs."""
    values = [float(value) for value in record.curves[name]][
        : None if stop_epoch is None else stop_epoch + 1
    ]
    return statistics.fmean(values[-max(1, round((len(values) - 1) / 4)) :])


def test_four_panels():
    figure = plot_search(result_by_hand(None, 0.1, 0.2))
    names = [(axes.get_ylabel(), axes.get_xlabel()) for axes in figure.axes if axes.get_ylabel()]
    assert sorted(names[:4]) == [
        ("Training loss (nats per example)", "Epoch"),
        (ACCURACY, "Epoch"),
        (ACCURACY, "Flood level (nats)"),
        (LOSS, "Flood level (nats)"),
    ]
    assert names[4:] == [("Flood level (nats)", "")]  # the colour bar
    assert (
        figure.get_suptitle() == "by hand: flood level 0.1 (3 Runs for the price of 3.0 trainings)"
    )


@pytest.mark.parametrize(
    ("label", "name", "times"), [(ACCURACY, "val_accuracy", 100), (LOSS, "val_loss", 1)]
)
def test_a_mark_for_each_run_and_one_for_the_mean_of_its_seeds(label, name, times):
    result = result_by_hand(0.0, 0.1, 0.3, seeds=(0, 1, 2))
    figure = plot_search(result)
    axes = panel(figure, label)
    each = {(r.run.level, r.run.seed): times * slow_tail_mean(r, name) for r in result.records}
    small = marks(axes, size=0.6 * 8)
    np.testing.assert_allclose(
        [(x, y) for x, y, _ in small], [(level, v) for (level, _), v in each.items()]
    )
    assert {line.get_alpha() for *_, line in small} == {0.4}
    means = [
        (level, statistics.fmean(each[level, seed] for seed in range(3)))
        for level in (0.0, 0.1, 0.3)
    ]
    np.testing.assert_allclose([(x, y) for x, y, _ in marks(axes, size=8)], means)
    assert {line.get_alpha() for *_, line in marks(axes, size=8)} == {None}
    assert {"mean of 3 seeds, 40 epochs", "one seed"} <= set(legend(figure))


def test_runs_that_stopped_early_are_hollow_and_smaller():
    problem = small(max_epochs=36)
    figure = plot_search(search(halving(problem, [0.05, 0.1, 0.2, 0.3]), fake_records))
    drawn = marks(panel(figure, ACCURACY))
    assert len(drawn) == 4 + 1 + 1
    sizes = sorted({line.get_markersize() for *_, line in drawn})
    assert sizes == pytest.approx([4, 8 / math.sqrt(3), 8])  # a ninth would be too small to see
    assert [line.get_markerfacecolor() == "white" for *_, line in drawn] == [True] * 5 + [False]
    assert {"Run, 36 epochs", "Run, 4 to 12 of 36 epochs", "the smaller, the shorter"} <= set(
        legend(figure)
    )


@pytest.mark.parametrize(
    ("label", "name", "times"), [(ACCURACY, "val_accuracy", 100), (LOSS, "val_loss", 1)]
)
def test_plain_training_is_a_dashed_line_and_a_mark_where_the_others_stopped(label, name, times):
    result = result_by_hand(None, 0.1, 0.2, stop_epoch=12, seeds=(0, 1))
    axes = panel(plot_search(result), label)
    plain = [record for record in result.records if record.run.level is None]
    line = labelled(axes, "plain training, 40 epochs")
    assert line.get_linestyle() == "--"
    np.testing.assert_allclose(
        line.get_ydata(), [times * statistics.fmean(slow_tail_mean(r, name) for r in plain)] * 2
    )
    ((_, height, mark),) = [m for m in marks(axes, size=8) if m[0] == 0]
    assert height == pytest.approx(
        times * statistics.fmean(slow_tail_mean(r, name, stop_epoch=12) for r in plain), rel=1e-12
    )
    assert mark.get_markerfacecolor() == "white"
    assert to_hex(mark.get_color()) == to_hex(line.get_color()) == to_hex("0.5")


def test_plain_training_that_stopped_says_so():
    runs = [
        Run(PROBLEM, stop_epoch=10),
        Run(PROBLEM, stop_epoch=30),
        Run(PROBLEM, 0.1, stop_epoch=20),
    ]
    records = fake_records(runs)
    figure = plot_search(SearchResult("stopped", runs[2], records=tuple(records)))
    line = labelled(panel(figure, ACCURACY), "plain training, 30 of 40 epochs")
    np.testing.assert_allclose(line.get_ydata(), 100 * slow_tail_mean(records[1], "val_accuracy"))
    assert (
        len(marks(panel(figure, ACCURACY))) == 2
    )  # the other, and plain training as it was after 20 epochs


def test_plain_training_has_no_place_far_from_the_levels():
    assert [
        x
        for x, *_ in marks(panel(plot_search(result_by_hand(None, 5.0, 5.1, chosen=5.0)), ACCURACY))
    ] == [
        5.0,
        5.1,
    ]


def test_a_level_of_zero_that_floods_is_not_plain():
    result = result_by_hand(-0.2, 0.0, 0.2, chosen=0.0)
    records = tuple(change(record, flooded=np.linspace(0, 1, 41)) for record in result.records)
    figure = plot_search(replace(result, records=records))
    assert not any("plain" in text for text in legend(figure))
    assert colour_bar(figure).get_ylim() == (-0.2, 0.2)


@pytest.mark.parametrize("label", [ACCURACY, LOSS])
def test_the_choice_is_a_line_with_a_flag(label):
    figure = plot_search(result_by_hand(None, 0.05, 0.1, 0.2))
    axes = panel(figure, label)
    assert list(uprights(axes)) == [0.1]
    assert to_hex(uprights(axes)[0.1].get_color()) == to_hex(PALETTE["flooded"])
    flags = {text.get_text(): text for text in panel(figure, ACCURACY).texts}
    assert list(flags) == ["chosen: 0.1"]
    assert flags["chosen: 0.1"].xy == (0.1, 1.0)


def test_no_flooding_is_said_and_no_line_drawn():
    figure = plot_search(result_by_hand(0.0, 0.05, 0.1, chosen=None))
    assert [text.get_text() for text in panel(figure, ACCURACY).texts] == ["chosen: no flooding"]
    assert not uprights(panel(figure, ACCURACY))
    assert not uprights(panel(figure, LOSS))
    assert "no flooding" in figure.get_suptitle()
    grey, *others = [
        line for line in panel(figure, ACCURACY, "epoch").get_lines() if line.get_alpha() is None
    ][:3]
    assert grey.get_linewidth() > max(line.get_linewidth() for line in others)


def test_limits_are_lines_and_one_far_off_does_not_stretch_the_axis():
    limits = [
        LevelEstimate("cap", 0.3, 0.01, 0.3),
        LevelEstimate("label entropy", 2.303, 2.29, 2.303),
    ]
    figure = plot_search(
        result_by_hand(None, 0.1, 0.2, estimates=[*limits, LevelEstimate("race", 0.15)])
    )
    axes = panel(figure, ACCURACY)
    assert sorted(uprights(axes)) == [0.1, 0.3]
    assert axes.get_xlim()[1] < 0.4
    assert {text.get_text() for text in axes.texts} == {
        "chosen: 0.1",
        "cap: 0.3",
        "label entropy: 2.3 →",
    }
    heights = [text.get_position()[1] for text in axes.texts]
    assert np.diff(heights).min() >= 16  # points: a row for each


def test_estimates_are_bars_on_the_same_axis():
    estimates = [
        LevelEstimate("race", 0.1, 0.05, 0.15),
        LevelEstimate("no interval", 0.12),
        LevelEstimate("off", 2.303, 0.2, 2.303),
        LevelEstimate("against", None, 0.0, 0.05),
        LevelEstimate("nothing", None),
        LevelEstimate("open", 0.15, 0.1, INF),
    ]
    figure = plot_search(result_by_hand(None, 0.1, 0.2, estimates=estimates))
    axes = strip(figure)
    ends = panel(figure, ACCURACY).get_xlim()
    assert axes.get_xlim() == ends
    bars = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "None"]
    np.testing.assert_allclose(bars, [[0.05, 0.15], [0.2, ends[1]], [0.0, 0.05], [0.1, ends[1]]])
    points = [
        (line.get_xdata()[0], line.get_marker())
        for line in axes.get_lines()
        if line.get_marker() != "None"
    ]
    off = (ends[1], ">")  # of the bar, and of the level in it
    assert points == [(0.1, "D"), (0.12, "D"), off, off, off, (0.15, "D")]
    assert [text.get_text() for text in axes.texts] == [
        "race: 0.1 (0.05 to 0.15)",
        "no interval: 0.12",
        "off: 2.3 (0.2 to 2.3)",
        "against: no flooding (0 to 0.05)",
        "nothing: no flooding",
        "open: 0.15 (above 0.1)",
    ]


def test_without_estimates_there_is_no_axis_for_them():
    runs = [Run(PROBLEM, Warmup(0.2, steps=5))]
    figure = plot_search(SearchResult("controllers", runs[0], records=tuple(fake_records(runs))))
    assert not [
        axes for axes in figure.axes if axes.get_xlabel().startswith("Flood level") and axes.axison
    ]


def test_the_axis_of_a_single_level_reaches_to_the_estimates():
    # A tensor's 0.1 is float32, 1.5e-9 beside the Run's own.
    result = result_by_hand(
        0.1, chosen=torch.tensor(0.1), estimates=[LevelEstimate("cap", 0.3, 0.01, 0.3)]
    )
    low, high = panel(plot_search(result), ACCURACY).get_xlim()
    assert -0.1 < low < 0.01 < 0.3 < high < 0.4


def test_colours_are_those_of_the_bar():
    result = result_by_hand(None, 0.05, 0.1, 0.3)
    figure = plot_search(result)
    bar = colour_bar(figure)
    assert bar.get_ylim() == (0.05, 0.3)
    assert bar.get_ylabel() == "Flood level (nats)"
    shades = bar.collections[-1] if bar.collections else None
    assert shades is not None
    by_level = {x: to_hex(line.get_color()) for x, _, line in marks(panel(figure, ACCURACY))}
    assert to_hex(shades.cmap(0.0)) == by_level[0.05]
    assert to_hex(shades.cmap(1.0)) == by_level[0.3]
    assert to_hex(shades.cmap(0.2)) == by_level[0.1]
    curves = [
        line
        for line in panel(figure, TRAINING, "epoch").get_lines()
        if line.get_alpha() is not None
    ]
    drawn = {to_hex(line.get_color()) for line in curves if len(line.get_xdata())}
    assert drawn == {*by_level.values()}
    assert by_level[0.0] == to_hex("0.5")


def test_a_single_level_has_a_bar_from_zero():
    assert colour_bar(plot_search(result_by_hand(None, 0.1))).get_ylim() == (0.0, 0.1)
    assert not [
        a
        for a in plot_search(result_by_hand(None, chosen=None)).axes
        if a.get_label() == "<colorbar>"
    ]


def slow_smooth(values, window):
    """Slow twin: the mean of the known neighbours of each known value."""
    around = [values[max(0, i - window // 2) : i + window // 2 + 1] for i in range(len(values))]
    known = [[v for v in near if math.isfinite(v)] for near in around]
    return [
        statistics.fmean(k) if math.isfinite(v) else NAN for k, v in zip(known, values, strict=True)
    ]


def test_curves_are_faint_as_measured_and_smooth_over_that():
    result = result_by_hand(None, 0.1, chosen=0.1, problem=small(max_epochs=80))
    noise = np.random.default_rng(0).random((2, 81)) + 0.1
    noise[1, [7, 30]] = [INF, NAN]
    records = [change(r, train_loss=row) for r, row in zip(result.records, noise, strict=True)]
    figure = plot_search(replace(result, records=tuple(records)))
    lines = [line for line in panel(figure, TRAINING, "epoch").get_lines() if len(line.get_xdata())]
    for i, record in enumerate(records):
        raw, smooth = lines[2 * i : 2 * i + 2]
        values = record.curves["train_loss"].astype(float)
        np.testing.assert_array_equal(raw.get_ydata(), np.where(np.isfinite(values), values, NAN))
        np.testing.assert_allclose(smooth.get_ydata(), slow_smooth(values.tolist(), 5), rtol=1e-12)
        assert raw.get_alpha() < 0.5
        assert smooth.get_alpha() is None
    assert lines[1].get_linewidth() < lines[3].get_linewidth()  # the choice
    assert {
        "plain training",
        "level, in its colour",
        "the choice",
        "faint: each epoch; lines: mean of 5",
    } <= set(legend(figure))


def test_the_loss_axis_is_logarithmic_where_the_loss_is_positive():
    result = result_by_hand(None, 0.1, 0.2)
    axes = panel(plot_search(result), TRAINING, "epoch")
    assert axes.get_yscale() == "log"
    # Plain training falls to 1e-6: it leaves the panel a hundred times below the lowest level, 5 %
    # of margin aside.
    assert 5e-4 < axes.get_ylim()[0] < 1e-3 < 1 < axes.get_ylim()[1]
    narrow = tuple(change(r, train_loss=np.linspace(0.6, 0.5, 41)) for r in result.records)
    assert (
        panel(plot_search(replace(result, records=narrow)), TRAINING, "epoch").get_yscale() == "log"
    )
    below = tuple(change(r, train_loss=r.curves["train_loss"] - 1) for r in result.records)
    assert (
        panel(plot_search(replace(result, records=below)), TRAINING, "epoch").get_yscale()
        == "linear"
    )
    zero = tuple(change(r, train_loss=np.zeros(41)) for r in result.records)
    assert (
        panel(plot_search(replace(result, records=zero)), TRAINING, "epoch").get_yscale()
        == "linear"
    )


def test_levels_that_move_have_curves_only():
    runs = [
        Run(PROBLEM),
        Run(PROBLEM, Delayed(0.1, until_loss=1e-3)),
        Run(PROBLEM, Warmup(0.2, steps=5)),
    ]
    alone = SearchResult("controllers", runs[1], records=tuple(fake_records(runs)))
    figure = plot_search(alone)
    assert not [a for a in figure.axes if a.get_ylabel() == LOSS]
    assert panel(figure, TRAINING, "epoch")
    assert panel(figure, ACCURACY, "epoch")
    assert colour_bar(figure).get_ylim() == pytest.approx(
        (0.1, 0.2), rel=1e-6
    )  # a state is float32
    assert "level that moves, coloured by its last" in legend(figure)

    mixed = replace(alone, records=(*alone.records, fake_record(Run(PROBLEM, 0.3))))
    figure = plot_search(mixed)
    assert [x for x, *_ in marks(panel(figure, ACCURACY))] == [0.0, 0.3]
    assert to_hex(marks(panel(figure, ACCURACY))[0][2].get_color()) == to_hex("0.5")
    styles = [line.get_linestyle() for line in panel(figure, TRAINING, "epoch").get_lines()]
    assert styles[1:8:2] == ["-", "--", "--", "-"]


def test_a_tensor_is_a_level_like_a_number():
    figure = plot_search(result_by_hand(None, torch.tensor(0.25), 0.5, chosen=torch.tensor(0.25)))
    assert [x for x, *_ in marks(panel(figure, ACCURACY))] == [0.0, 0.25, 0.5]
    assert list(uprights(panel(figure, ACCURACY))) == [0.25]


def external_search(train, seeds=(0,)):
    return search(grid(ExternalProblem(100), [0.0, 0.1, 0.2], seeds=seeds), train)


def test_a_function_without_curves_has_the_panels_by_level_alone():
    figure = plot_search(
        external_search(
            lambda level, seed, epochs: {"score": 1 - abs(level - 0.1), "val_loss": 0.5 + level}
        )
    )
    score, loss = (
        panel(figure, "Validation score (higher is better)"),
        panel(figure, "Validation loss"),
    )
    assert loss.get_ylabel() == "Validation loss"
    assert score.get_xlabel() == loss.get_xlabel() == "Flood level (unit of the loss)"
    assert score.get_position().y0 > loss.get_position().y1
    assert score.get_position().width == pytest.approx(loss.get_position().width)
    np.testing.assert_allclose([y for _, y, _ in marks(score)], [0.9, 1.0, 0.9])
    np.testing.assert_allclose([y for _, y, _ in marks(loss)], [0.5, 0.6, 0.7])
    assert not [a for a in figure.axes if a.get_xlabel() == "Epoch"]
    assert {"Run, 100 epochs"} == set(legend(figure)), "nobody knows whether level 0 flooded"
    plain = search(
        grid(ExternalProblem(100), [None, 0.1]), lambda level, seed, epochs: 1 - (level or 0.0)
    )
    assert {"Run, 100 epochs", "plain training, 100 epochs"} == set(legend(plot_search(plain)))


def test_a_score_without_a_curve_leaves_its_panel_to_the_loss():
    result = result_by_hand(None, 0.1, 0.2, problem=replace(PROBLEM, score=Score(float)))
    names = ("train_loss", "val_loss")
    records = tuple(
        replace(r, curves={name: r.curves[name] for name in names}) for r in result.records
    )
    figure = plot_search(replace(result, records=records))
    ends = [record.metrics["last.val_score"] for record in records]
    assert [y for _, y, _ in marks(panel(figure, "Validation score"))] == ends
    assert panel(figure, LOSS, "epoch").get_lines()


@pytest.mark.parametrize("worst", [0.8, NAN], ids=["finite", "one is NaN"])
def test_a_loss_that_stands_for_the_score_is_not_drawn(worst):
    figure = plot_search(
        external_search(lambda level, seed, epochs: worst if level == 0.2 else 0.9)
    )
    assert [a.get_ylabel() for a in figure.axes if a.get_ylabel()] == [
        "Validation score (higher is better)"
    ]


def test_without_a_score_the_loss_is_drawn_alone():
    problem = replace(PROBLEM, loss=torch.nn.functional.mse_loss)
    figure = plot_search(
        search(grid(problem, [0.0, 0.1, 0.2]), partial(fake_records, accuracy=False))
    )
    assert {a.get_ylabel() for a in figure.axes if a.get_ylabel()} == {
        "Validation loss",
        "Training loss",
        "Flood level (unit of the loss)",
    }
    assert len(panel(figure, "Validation loss", "epoch").get_lines()) > 3


def test_a_score_of_the_users_own_takes_the_place_of_the_accuracy():
    problem = replace(PROBLEM, score=Score(float, greater_is_better=False))
    result = search(grid(problem, [0.0, 0.1]), fake_records)
    axes = panel(plot_search(result), "Validation score (lower is better)")
    # What the grid judges is the last epoch.
    np.testing.assert_allclose(
        [y for _, y, _ in marks(axes)], [r.curves["val_score"][-1] for r in result.records]
    )


def test_what_diverged_has_no_mark_and_is_counted():
    result = result_by_hand(None, 0.05, 0.1, 0.2, 0.3, 0.4)
    plain, nan, good, inf, huge, score = result.records
    half = np.arange(41) > 20
    records = (
        plain,
        fake_record(nan.run, diverges=True),
        good,
        change(inf, val_loss=np.where(half, INF, 1.0)),
        change(huge, val_loss=np.where(half, 100.0, 1.0), train_loss=np.where(half, 3e38, 1.0)),
        change(score, val_accuracy=np.full(41, NAN)),
    )
    figure = plot_search(replace(result, records=records))
    assert figure.get_suptitle().replace("\n", " ").endswith("; 4 diverged)")
    for label in (ACCURACY, LOSS):
        assert [x for x, y, _ in marks(panel(figure, label)) if math.isfinite(y)] == [0.0, 0.1]
    assert panel(figure, LOSS).get_ylim()[1] < 2
    assert panel(figure, TRAINING, "epoch").get_ylim()[1] < 1000


def test_plain_training_that_diverged_has_no_line():
    result = result_by_hand(None, 0.1, 0.2)
    records = (fake_record(result.records[0].run, diverges=True), *result.records[1:])
    figure = plot_search(replace(result, records=records))
    assert not any(text.startswith("plain training,") for text in legend(figure))


def every_figure():
    """Results of every kind, with many texts."""
    limits = [
        LevelEstimate("cap", 0.29, 0.01, 0.3),
        LevelEstimate("label entropy", 0.3, 0.28, 0.31),
    ]
    yield search(finder(PROBLEM, seeds=(0, 1, 2)), fake_records)
    yield search(grid(PROBLEM, [n / 50 for n in range(26)], seeds=(0, 1)), fake_records)
    yield result_by_hand(None, 0.1, 0.2, 0.3, chosen=0.3, estimates=limits)
    yield result_by_hand(
        None,
        0.1,
        0.2,
        0.3,
        chosen=0.1,
        estimates=[*limits, *[LevelEstimate(f"way {n}", 0.1) for n in range(6)]],
    )
    yield result_by_hand(0.0, 0.1, 0.2, chosen=None, estimates=limits[::-1])
    yield result_by_hand(None, 1e-4, 2e-4, chosen=1e-4)
    runs = [
        Run(PROBLEM),
        Run(PROBLEM, 0.1),
        Run(PROBLEM, 0.2, stop_epoch=20),
        Run(PROBLEM, Warmup(0.2, steps=5)),
    ]
    runs += [replace(run, seed=1) for run in runs]
    yield SearchResult("everything", runs[1], tuple(limits), (), tuple(fake_records(runs)))
    yield SearchResult("controllers", runs[3], (), (), tuple(fake_records(runs[3:4])))
    yield SearchResult(
        "moving",
        runs[3],
        (LevelEstimate("warmup", 0.2, 0.1, 0.3),),
        (),
        tuple(fake_records(runs[3:4])),
    )
    yield result_by_hand(None, chosen=None)
    yield search(grid(PROBLEM, [0.0, 0.1]), partial(fake_records, accuracy=False, diverges=True))
    yield search(advisor(PROBLEM, label_noise=0.1, lowest_val_loss=0.4), fake_records)
    yield SearchResult("nothing", Run(PROBLEM))
    yield external_search(lambda level, seed, epochs: level, seeds=(0, 1))
    yield external_search(lambda level, seed, epochs: {"score": level, "val_loss": 1.0})


def texts(figure):
    """Every text that is seen."""
    yield from (figure._suptitle, *(text for axes in figure.axes for text in axes.texts))
    for axes in figure.axes:
        if axes.get_legend():
            yield from (*axes.get_legend().get_texts(), axes.get_legend().get_title())
        for axis in (axes.xaxis, axes.yaxis):
            if axes.axison:
                yield axis.label
                low, high = sorted(axis.get_view_interval())
                shown = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
                yield from (
                    label for place, label in shown if low <= place <= high and label.get_visible()
                )


@pytest.mark.parametrize("result", list(every_figure()), ids=lambda result: result.strategy)
def test_every_text_is_large_enough_inside_the_figure_and_apart_from_the_others(result):
    figure = plot_search(result)
    figure.draw_without_rendering()
    shown = [text for text in texts(figure) if text.get_text()]
    assert min(text.get_fontsize() for text in shown) >= 10
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in shown]
    for _, box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert [
        (a, b) for (a, box), (b, other) in combinations(boxes, 2) if box.padded(-1).overlaps(other)
    ] == []
    flags = [text for axes in figure.axes for text in axes.texts if isinstance(text, Annotation)]
    for high, low in permutations(flags, 2):
        if high.axes is low.axes and high.get_position()[1] > low.get_position()[1]:
            box, pole = (
                Text.get_window_extent(low),
                high.axes.transData.transform((high.xy[0], 0))[0],
            )
            assert not box.x0 + 1 < pole < box.x1 - 1
    inside = [box.get_window_extent() for axes in figure.axes if (box := axes.get_legend())]
    seen = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
    assert not any(box.overlaps(other) for box in inside for other in seen)


def test_a_wide_legend_does_not_push_the_panels_apart():
    stops = {0.1: 3000, 0.2: 4000}
    runs = [
        Run(small(max_epochs=5000), level, seed=seed, stop_epoch=stops[level])
        for level in stops
        for seed in (0, 1)
    ]
    record = fake_record(Run(PROBLEM, 0.1))
    figure = plot_search(
        SearchResult("wide", runs[0], records=tuple(replace(record, run=run) for run in runs))
    )
    figure.draw_without_rendering()
    texts = {
        text.get_text(): text
        for text in next(a for a in figure.axes if a.get_legend()).get_legend().get_texts()
    }
    assert (
        texts["mean of 2 seeds, 3000 to 4000 of 5000 epochs"].get_window_extent().x1
        < figure.bbox.x1
    )
    assert (
        colour_bar(figure).get_position().x0 - panel(figure, ACCURACY, "epoch").get_position().x1
        < 0.05
    )


def test_the_first_epochs_may_leave_the_panel_of_the_score():
    result = result_by_hand(None, 0.1, 0.2)
    climb = np.where(np.arange(41) < 4, 0.1, 0.8 + 0.001 * np.arange(41))
    records = tuple(change(record, val_accuracy=climb) for record in result.records)
    assert (
        panel(plot_search(replace(result, records=records)), ACCURACY, "epoch").get_ylim()[0] > 80
    )


def test_nothing_global_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    assert plot_search(result_by_hand(None, 0.1, 0.2)).axes


def test_missing_matplotlib_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install .*\[plot\]'"):
        plot_search(result_by_hand(None, 0.1, 0.2))
