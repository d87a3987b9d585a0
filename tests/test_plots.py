"""What is drawn is what was measured: lines, bands, stages, rings and bins, read back from the
figures."""

from __future__ import annotations

import math
import os
import stat
import statistics
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.text import Text

from flooding import Record
from flooding.data import Split, Splits
from flooding.data.synthetic import sinusoid, spiral, two_gaussians
from flooding.report import plots
from flooding.report.figures import WIDTH
from flooding.tasks import grid_2d

NAN = math.nan


def record(arrays=None, ece=0.1, **curves):
    """A Record of these curves and nothing else."""
    curves = {name: np.array(values, np.float32) for name, values in curves.items()}
    return Record(
        None, curves, arrays or {}, {"last.test_ece": ece}, weights_sha256="", fingerprint=""
    )


def curves(seed, epochs=10, level=NAN, every=5):
    """A Record of random curves, all different; test curves every ``every`` epochs."""
    generator = np.random.default_rng(seed)
    named = {"level": [NAN] + [level] * epochs}
    for what in ("loss", "accuracy"):
        for name in ("train", "train_clean", "test", "test_clean"):
            values = generator.random(epochs + 1)
            if name.startswith("test"):
                values[np.arange(epochs + 1) % every != 0] = NAN
            split, *clean = name.split("_")
            named["_".join([split, what, *clean])] = values
    return record(**named)


PLAIN = [curves(seed) for seed in range(3)]
FLOODED = [curves(seed, level=0.25) for seed in range(3, 7)]


def line(axes, start):
    """The one line whose label starts so."""
    (found,) = [one for one in axes.get_lines() if str(one.get_label()).startswith(start)]
    return found


def legends(figure):
    """Every legend text of a figure, titles included."""
    boxes = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return "\n".join(
        text.get_text() for box in boxes for text in (*box.get_texts(), box.get_title())
    )


def by_epoch(records, name):
    """Slow twin: the measured epochs with the values of every seed, in float64."""
    rows = zip(*(map(float, one.curves[name]) for one in records), strict=True)
    return {epoch: row for epoch, row in enumerate(rows) if all(map(math.isfinite, row))}


@pytest.mark.parametrize(
    ("draw", "what"), [(plots.loss_curves, "loss"), (plots.accuracy_curves, "accuracy")]
)
def test_curves_are_means_over_seeds_and_bands_one_standard_deviation(draw, what):
    figure = draw(PLAIN, FLOODED, title="A title")
    (axes,) = figure.axes
    bands = list(axes.collections)
    for records, end in ((PLAIN, "without flooding"), (FLOODED, "with flooding")):
        # Training on the labels the network saw, test on clean ones.
        named = {
            "training (noisy labels)": f"train_{what}",
            "test (clean labels)": f"test_{what}_clean",
        }
        for start, name in named.items():
            expected = by_epoch(records, name)
            drawn = line(axes, f"{start}, {end}")
            assert list(drawn.get_xdata()) == list(expected)
            means = [statistics.fmean(row) for row in expected.values()]
            np.testing.assert_allclose(
                drawn.get_ydata(), means, rtol=1e-14
            )  # two orders of adding in float64
            x, y = bands.pop(0).get_paths()[0].vertices.T
            assert set(x) == set(expected)
            for epoch, mean in zip(expected, means, strict=True):
                deviation = statistics.stdev(expected[epoch])
                np.testing.assert_allclose(
                    [y[x == epoch].min(), y[x == epoch].max()],
                    [mean - deviation, mean + deviation],
                    atol=1e-12,
                )
    assert not bands
    assert axes.get_title() == "A title"
    assert axes.get_xlabel() == "Epoch"
    assert (
        axes.get_ylabel()
        == {"loss": "Loss (nats per example)", "accuracy": "Accuracy (1 − Error)"}[what]
    )
    told = legends(figure)
    assert "without flooding: mean ± s.d. of 3 seeds;\nwith: mean ± s.d. of 4 seeds" in told
    assert all(str(drawn.get_label()) in told.split("\n") for drawn in axes.get_lines())


def test_starts_before_training_and_skips_epochs_without_a_test():
    (axes,) = plots.loss_curves(PLAIN, FLOODED, title="").axes
    assert list(line(axes, "training (noisy labels), with ").get_xdata()) == list(range(11))
    assert list(line(axes, "test (clean labels), with ").get_xdata()) == [0, 5, 10]


def test_an_epoch_that_one_seed_lost_is_not_drawn():
    lost = curves(1)
    lost.curves["train_loss"][4:] = [NAN, math.inf, *[NAN] * 5]
    (axes,) = plots.loss_curves([curves(0), lost], FLOODED, title="").axes
    assert list(line(axes, "training (noisy labels), without").get_xdata()) == [0, 1, 2, 3]


def test_without_label_noise_no_label_speaks_of_it():
    clean = [record(train_loss=[1, 0.5], test_loss=[1, 0.75], level=[NAN, 0.1])]
    figure = plots.loss_curves(clean, clean, title="")
    assert list(line(figure.axes[0], "test, without flooding").get_ydata()) == [1, 0.75]
    assert "noisy" not in legends(figure)


def test_a_single_seed_has_no_band():
    figure = plots.loss_curves(PLAIN[:1], FLOODED[:1], title="")
    assert not figure.axes[0].collections
    assert "1 seed" in legends(figure)
    assert "±" not in legends(figure)


@pytest.mark.parametrize(
    ("levels", "ends", "label"),
    [
        ([[0.25, 0.25], [0.25, 0.25]], [0.25, 0.25], "flood level 0.25"),
        ([[0.25, 0.25], [0.5, 0.5]], [0.375, 0.375], "flood level 0.375 (0.25 to 0.5)"),
        ([[0.0, 0.25], [0.0, 0.25]], [0.0, 0.25], "flood level 0.25 in the end"),
        ([[-math.inf, 0.25]], [NAN, 0.25], "flood level 0.25"),
        ([[NAN, NAN], [0.25, 0.25]], [0.25, 0.25], "flood level 0.25 in 1 of 2 seeds"),
    ],
    ids=[
        "one level",
        "each seed its own",
        "warm-up",
        "delayed: none before it begins",
        "a seed that chose no flooding",
    ],
)
def test_level_is_drawn_and_named(levels, ends, label):
    flooded = [
        record(train_loss=[1] * 3, test_loss=[1] * 3, level=[NAN, *level]) for level in levels
    ]
    drawn = line(plots.loss_curves(PLAIN, flooded, title="").axes[0], "flood level")
    np.testing.assert_array_equal(drawn.get_ydata(), [NAN, *ends])
    assert list(drawn.get_xdata()) == [0, 1, 2]
    assert drawn.get_label() == label


def test_no_level_is_invented():
    figure = plots.loss_curves(PLAIN, PLAIN, title="")
    assert len(line(figure.axes[0], "no flood level").get_xdata()) == 0


def test_a_negative_loss_stays_in_the_picture():
    below = [record(train_loss=[1, -2], test_loss=[1, -1], level=[NAN, -2])]
    assert plots.loss_curves(below, below, title="").axes[0].get_ylim()[0] == -2
    assert plots.loss_curves(PLAIN, FLOODED, title="").axes[0].get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "got no Record"),
        ([record(train_loss=[1.0], level=[NAN])], "must hold the curve 'test_loss'.*test_curve"),
        ([curves(0), curves(1, epochs=5)], r"equally many epochs, got \[6, 11\]"),
    ],
    ids=["no Record", "no test curve", "two lengths"],
)
def test_what_cannot_be_averaged_is_refused(records, message):
    with pytest.raises(ValueError, match=message):
        plots.loss_curves(records, FLOODED, title="")


# Thresholds by hand: the training loss starts at 1, so near zero is below 0.05; the test loss
# starts at 1, so it has risen again where it exceeds its lowest value by more than 0.05.
@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (
            [1, 0.5, 0.3, 0.1, 0.04, 0.0],
            [1, 0.6, 0.5, 0.7, 0.9, 1.2],
            {"A": (0, 2), "B": (2, 4), "C": (4, 5)},
        ),
        ([1, 0.5, 0.3, 0.3, 0.3, 0.3], [1, 0.6, 0.5, 0.4, 0.3, 0.2], {"A": (0, 5)}),
        ([1, 0.5, 0.3, 0.3, 0.3, 0.3], [1, 0.5, 0.7, 0.9, 0.54, 0.53], {"A": (0, 1), "B": (1, 3)}),
        ([1, 0.5, 0.01, 0.3, 0.01, 0.0], [1, 0.6, NAN, 0.5, NAN, NAN], {"A": (0, 3), "C": (4, 5)}),
        ([1, 0.01, 0.01, 0.0, 0.0, 0.0], [1, 0.9, 0.8, 0.5, 0.9, 1.2], {"A": (0, 1), "C": (1, 5)}),
        ([1, 0.5, 0.3, 0.2, 0.2, 0.2], [1, NAN, 0.5, NAN, 0.9, NAN], {"A": (0, 2), "B": (2, 5)}),
        ([1, 0.5, 0.3, 0.2, 0.2, 0.2], [1, 1.1, 1.2, 1.3, 1.4, 1.5], {"B": (0, 5)}),
        ([1, 0.5, 0.01, NAN, NAN, NAN], [1, 0.5, 0.5, 0.5, 0.5, 0.5], {"A": (0, 1)}),
        ([0, 0, 0], [1, 1, 1], {}),
        ([-1, -2, -3], [-1, -2, -3], {"A": (0, 2)}),
        ([-1, -0.5, -0.01, 0.0], [1, 0.9, 0.8, 0.7], {"A": (0, 2), "C": (2, 3)}),
    ],
    ids=[
        "all three",
        "the test loss only falls",
        "it rises and falls back",
        "near zero means for good",
        "near zero before the lowest test loss leaves no B",
        "between measurements the test loss stays what it was",
        "the test loss only rises",
        "a NaN is not near zero, and a tie is no rise",
        "a loss that starts at zero has no stages",
        "a negative loss is not near zero",
        "unless it is near zero",
    ],
)
def test_stages(train, test, expected):
    assert plots.stages(np.array(train, float), np.array(test, float)) == expected


def slow_stages(train, test):
    """Slow twin: the definition, epoch by epoch."""
    last = len(train) - 1
    measured = [e for e in range(last + 1) if math.isfinite(test[e])]
    lowest = min(measured, key=lambda e: (test[e], e))
    zero = next(
        (
            e
            for e in range(last + 1)
            if all(abs(v) < plots.NEAR_ZERO * abs(train[0]) for v in train[e:])
        ),
        None,
    )
    found = {}
    if lowest > 0:
        found["A"] = (0, lowest if zero is None else min(lowest, zero))
    for epoch in range(lowest + 1, (last if zero is None else zero) + 1):
        now = test[max(e for e in measured if e <= epoch)]
        if now - test[lowest] > plots.NEAR_ZERO * abs(test[measured[0]]):
            found["B"] = (lowest, epoch)
    if zero is not None:
        found["C"] = (zero, last)
    return found


def test_stages_agree_with_the_definition_on_random_curves():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        n = int(generator.integers(2, 15))
        train = np.exp(-generator.uniform(0, 1.5) * np.arange(n)) * generator.uniform(0.5, 1, n)
        test = generator.random(n) + generator.uniform(-0.2, 0.2) * np.arange(n)
        test[1:][generator.random(n - 1) < 0.4] = NAN
        found = plots.stages(train, test)
        assert found == slow_stages(train.tolist(), test.tolist())
        seen.add("".join(found))
    assert {"A", "B", "AB", "AC", "ABC", "BC"} <= seen  # the curves reach every case


def test_stages_need_a_test_loss():
    with pytest.raises(ValueError, match="test_loss must be measured"):
        plots.stages(np.ones(3), np.full(3, NAN))


def test_concept_shades_the_stages_it_finds_and_names_those_it_does_not():
    # The mean of two seeds is "all three" above; with flooding it only falls.
    train, test = np.array([1, 0.5, 0.3, 0.1, 0.04, 0.0]), np.array([1, 0.6, 0.5, 0.7, 0.9, 1.2])
    plain = [record(train_loss=train * f, test_loss=test * f, level=[NAN] * 6) for f in (0.5, 1.5)]
    flat, falls = [1, 0.5, 0.3, 0.3, 0.3, 0.3], [1, 0.6, 0.5, 0.4, 0.3, 0.2]
    flooded = [record(train_loss=flat, test_loss=falls, level=[NAN] + [0.25] * 5)]
    a, b = plots.concept(plain, flooded).axes
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in a.patches]
    assert spans == [(0, 2), (2, 4), (4, 5)]
    assert [text.get_text() for text in a.texts] == ["A", "B", "C"]
    assert [text.get_text() for text in b.texts] == ["A"]
    assert len(b.patches) == 1
    told = [text.get_text() for text in b.get_legend().get_texts()]
    assert [text.split(":")[0] for text in told[:3]] == ["A", "B is absent", "C is absent"]
    assert "(epochs 0 to 5)" in told[0]
    assert "mean ± s.d. of 2 seeds" in a.get_title()
    assert "1 seed" in b.get_title()
    np.testing.assert_allclose(
        line(a, "training").get_ydata(), train, rtol=1e-6
    )  # curves are float32
    (band,) = b.collections
    assert band.get_label() == "0 to the flood level 0.25"
    x, y = band.get_paths()[0].vertices.T
    assert set(y) == {0, 0.25}
    assert (x.min(), x.max()) == (1, 5)


def splits_of(split):
    return Splits(split, split, split)


def test_scatter_draws_every_point_once_by_its_label_and_rings_the_flipped():
    tasks = {
        "Sinusoid": sinusoid(n_test=2, label_noise=0.07, seed=1),
        "Spiral": spiral(n_train=40, n_test=2, seed=1),
    }
    figure = plots.scatter(tasks)
    for axes, (name, splits), flips in zip(figure.axes, tasks.items(), (7, 4), strict=True):
        train = splits.train
        looks = set()
        for number in (0, 1):
            drawn = line(axes, f"class {number}")
            np.testing.assert_array_equal(
                np.stack(drawn.get_data(), 1), train.x[train.y == number].double()
            )
            looks.add((drawn.get_marker(), drawn.get_color()))
        assert all(
            len(set(each)) == 2 for each in zip(*looks, strict=True)
        )  # marker and colour both differ
        ringed = np.stack(line(axes, "flipped").get_data(), 1)
        np.testing.assert_array_equal(ringed, train.x[train.y != train.clean].double())
        assert axes.get_title() == f"{name}\n{flips} of {len(train)} flipped"
        assert len(ringed) == flips
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "class 0",
        "class 1",
        "flipped label",
    ]


def test_scatter_of_ten_dimensions_projects_on_the_class_means_and_says_so():
    train = two_gaussians(n_test=2, seed=0).train
    (axes,) = plots.scatter({"Two Gaussians": splits_of(train)}).axes
    assert axes.get_xlabel() == "$x_1$"
    assert axes.get_ylabel() == r"projection on $\mu_1 - \mu_0$"
    means = [
        [statistics.fmean(x[train.clean == c, j].tolist()) for j in range(10)]
        for c in (0, 1)
        for x in [train.x]
    ]
    way = [one - zero for zero, one in zip(*means, strict=True)]
    drawn, points = line(axes, "class 1"), train.x[train.y == 1].tolist()
    expected = [sum(p * q for p, q in zip(x, way, strict=True)) / math.hypot(*way) for x in points]
    np.testing.assert_allclose(drawn.get_ydata(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(drawn.get_xdata(), train.x[train.y == 1, 0].double())


def test_scatter_without_noise_rings_nothing():
    (axes,) = plots.scatter({"Spiral": spiral(n_test=2, label_noise=0, seed=0)}).axes
    assert len(line(axes, "flipped").get_xdata()) == 0
    assert "0 of 100" in axes.get_title()


@pytest.mark.parametrize(
    ("x", "y"), [((6, 2), [0, 1, 2, 0, 1, 2]), ((6, 1), [0, 1] * 3)], ids=["3 classes", "1-d"]
)
def test_scatter_refuses_what_it_would_draw_in_part(x, y):
    split = Split(torch.zeros(x), torch.tensor(y))
    with pytest.raises(ValueError, match=r"labels 0 or 1, got .*two-class tasks only"):
        plots.scatter({"task": splits_of(split)})


def believer(height):
    """A Record that holds ``sigmoid(height)`` on the plane."""
    p = torch.sigmoid(height).numpy()
    return record({"last.probe": np.stack([1 - p, p], 1)})


def boundary_points(axes, dashes):
    """Vertices of the contours of one line style."""
    contours = [c for c in axes.collections if not isinstance(c, QuadMesh)]
    chosen = [c for c in contours if (c.get_linestyle()[0][1] is not None) == dashes]
    return np.concatenate([path.vertices for c in chosen for path in c.get_paths()])


def test_decision_boundary_draws_the_probe_the_right_way_round():
    probe, splits = grid_2d(points=21), sinusoid(n_test=2, seed=0)
    # Without flooding the boundary is x1 = 0.5, with it x2 = -1; the truth is handed in as x1 = x2.
    plain, flooded = believer(4 * (probe[:, 0] - 0.5)), believer(4 * (probe[:, 1] + 1))
    figure = plots.decision_boundary(plain, flooded, splits, probe, truth=lambda x1, x2: x1 - x2)
    *panels, bar = figure.axes
    for axes, one, coordinate, value in zip(
        panels, (plain, flooded), (0, 1), (0.5, -1), strict=True
    ):
        (mesh,) = [c for c in axes.collections if isinstance(c, QuadMesh)]
        np.testing.assert_array_equal(mesh.get_array().ravel(), one.arrays["last.probe"][:, 1])
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
        centres = (
            mesh.get_coordinates()[:-1, :-1] + np.diff(mesh.get_coordinates()[:2, :2, 0]).max() / 2
        )
        np.testing.assert_allclose(centres.reshape(-1, 2), probe, atol=1e-6)  # the grid is float32
        # Linear interpolation of a sigmoid between points 0.22 apart is off by less than a tenth of
        # that.
        np.testing.assert_allclose(
            boundary_points(axes, dashes=False)[:, coordinate], value, atol=0.02
        )
        true = boundary_points(axes, dashes=True)
        np.testing.assert_allclose(true[:, 0], true[:, 1], atol=1e-6)
        assert len(line(axes, "flipped").get_xdata()) == 10
        assert "10 of 100 labels flipped" in axes.get_title()
    assert bar.get_ylabel() == "P(class 1)"
    assert set(legends(figure).split("\n")) >= {
        "class 0",
        "class 1",
        "flipped label",
        "predicted boundary",
        "true boundary",
    }


def test_decision_boundary_without_truth_does_not_claim_one():
    probe = grid_2d(points=5)
    one = believer(probe[:, 0] - 0.1)
    figure = plots.decision_boundary(one, one, sinusoid(n_test=2, seed=0), probe)
    assert "true boundary" not in legends(figure)


@pytest.mark.parametrize(
    "arrays", [{}, {"last.probe": np.zeros((9, 3), np.float32)}], ids=["none", "3 classes"]
)
def test_decision_boundary_needs_the_probe(arrays):
    probe = grid_2d(points=3)
    with pytest.raises(ValueError, match=r"must hold 'last.probe' of shape \[9, 2\], got"):
        plots.decision_boundary(
            record(arrays), believer(probe[:, 0]), sinusoid(n_test=2, seed=0), probe
        )


def binned(seed, bins=15):
    """A Record with random reliability bins; the first is empty, the second empty in even seeds."""
    generator = np.random.default_rng(seed)
    count = generator.integers(1, 50, bins).astype(float)
    count[0] = 0
    count[1] *= seed % 2
    rows = np.stack([generator.random(bins), generator.random(bins), count]).astype(np.float32)
    rows[:2, count == 0] = NAN
    return record({"last.reliability": rows}, ece=0.125 * (1 + seed))


def test_reliability_pools_the_seeds_by_counts():
    plain, flooded = [binned(0), binned(1)], [binned(2), binned(3), binned(4)]
    figure = plots.reliability(plain, flooded)
    diagram, histogram = figure.axes
    bars = iter(histogram.containers)
    for records, name in ((plain, "without"), (flooded, "with ")):
        points, shares = [], []
        rows = [one.arrays["last.reliability"].astype(float) for one in records]
        total = sum(row[2].sum() for row in rows)
        for b in range(15):
            # Slow twin: every example one by one.
            confidence = [row[0, b] for row in rows for _ in range(int(row[2, b]))]
            accuracy = [row[1, b] for row in rows for _ in range(int(row[2, b]))]
            if confidence:
                points.append((statistics.fmean(confidence), statistics.fmean(accuracy)))
            shares.append(len(confidence) / total)
        np.testing.assert_allclose(np.stack(line(diagram, name).get_data(), 1), points, rtol=1e-12)
        container = next(bars)
        np.testing.assert_allclose([bar.get_height() for bar in container], shares, rtol=1e-12)
        middles = [15 * (bar.get_x() + bar.get_width() / 2) for bar in container]
        assert [math.floor(middle) for middle in middles] == list(range(15))
    assert (
        list(line(diagram, "perfectly").get_xdata())
        == list(line(diagram, "perfectly").get_ydata())
        == [0, 1]
    )
    told = legends(figure)
    # ECE 0.125, 0.25 and 0.375, 0.5, 0.625: standard deviations 0.125 / sqrt(2) and 0.125 by hand.
    assert "without flooding: ECE 0.188 ± 0.088, 2 seeds" in told
    assert "with flooding: ECE 0.500 ± 0.125, 3 seeds" in told


def test_reliability_of_one_seed_has_no_deviation():
    assert "without flooding: ECE 0.125, 1 seed\n" in legends(
        plots.reliability([binned(0)], [binned(1)])
    )


def test_reliability_needs_a_classifier():
    with pytest.raises(ValueError, match=r"must hold 'last.reliability'.*classifiers"):
        plots.reliability(PLAIN, [binned(0)])


def every_figure():
    """One figure of each kind, with the longest labels that occur."""
    probe, sinus = grid_2d(points=11), sinusoid(n_test=2, seed=0)
    many = [curves(seed, epochs=200, level=0.123 + 0.0111 * seed) for seed in range(12)]
    yield plots.loss_curves(many, many, title="Sinusoid, 10 % label noise, SGD with momentum: loss")
    yield plots.accuracy_curves(
        many, many[:5], title="Sinusoid, 10 % label noise, SGD with momentum: accuracy"
    )
    yield plots.concept(many, many[:5])
    tasks = {
        "Two Gaussians": two_gaussians(n_test=2, seed=0),
        "Sinusoid": sinus,
        "Spiral": spiral(n_test=2, seed=0),
    }
    yield plots.scatter(tasks)
    height = probe[:, 0] - 0.1
    yield plots.decision_boundary(
        believer(height), believer(height), sinus, probe, truth=lambda a, b: a + np.sin(b)
    )
    yield plots.reliability([binned(0), binned(1)], [binned(2), binned(3)])


def test_every_text_is_large_enough_inside_the_figure_and_no_legend_covers_data():
    for figure in every_figure():
        figure.draw_without_rendering()
        assert figure.get_figwidth() == WIDTH
        assert all(text.get_fontsize() >= 10 for text in figure.findobj(Text) if text.get_text())
        # Everything visible, in inches: a label that is cut off would reach beyond the figure.
        drawn = figure.get_tightbbox()
        assert drawn.x0 >= 0
        assert drawn.y0 >= 0
        assert drawn.x1 <= figure.get_figwidth()
        assert drawn.y1 <= figure.get_figheight()
        boxes = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
        assert boxes
        for box in boxes:
            assert not any(
                box.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes
            )


def test_nothing_global_is_used_or_changed(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    with matplotlib.rc_context({"font.size": 33.0}):
        # dict's own items: asking matplotlib for the backend would import pyplot.
        before = dict(dict.items(matplotlib.rcParams))
        assert before["font.size"] == 33
        assert len(list(every_figure())) == 6
        assert dict(dict.items(matplotlib.rcParams)) == before


def test_save_writes_the_same_bytes_whatever_the_style_of_the_user(tmp_path):
    figure = plots.loss_curves(PLAIN, FLOODED, title="t")
    first = plots.save(figure, tmp_path / "new" / "folder" / "a.png")
    again = plots.save(figure, tmp_path / "b.png")
    with matplotlib.rc_context({
        "font.size": 30,
        "lines.linewidth": 9,
        "savefig.bbox": "tight",
        "font.family": "serif",
    }):
        other = plots.save(plots.loss_curves(PLAIN, FLOODED, title="t"), tmp_path / "c.png")
    assert first == tmp_path / "new" / "folder" / "a.png"
    content = first.read_bytes()
    assert content == again.read_bytes() == other.read_bytes()
    # PNG: width and height are the two big-endian words at 16; 5.6 x 5.6 inches of 150 dots.
    assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [840, 840]
    assert not any(word in content for word in (b"tEXt", b"tIME", b"Software"))
    different = plots.save(plots.loss_curves(PLAIN, FLOODED, title="u"), tmp_path / "d.png")
    assert different.read_bytes() != content


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path, figure = tmp_path / "a.png", plots.loss_curves(PLAIN, FLOODED, title="")
    path.write_text("old")

    def torn(file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", torn)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.png"]
    monkeypatch.undo()
    plots.save(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["a.png"]
    (tmp_path / "usual").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("below", ["file/a.png", "file/deeper/a.png"])
def test_save_below_a_regular_file_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(
        NotADirectoryError,
        match=r"must lie in a folder, got .*a\.png below a regular file\. Name another",
    ):
        plots.save(plots.reliability([binned(0)], [binned(1)]), tmp_path / below)


def test_save_as_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png, got .*a\.pdf"):
        plots.save(plots.reliability([binned(0)], [binned(1)]), tmp_path / "a.pdf")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.loss_curves(PLAIN, FLOODED, title=""),
        lambda: plots.concept(PLAIN, FLOODED),
        lambda: plots.scatter({"Spiral": spiral(n_test=2, seed=0)}),
        lambda: plots.reliability([binned(0)], [binned(1)]),
    ],
    ids=["loss_curves", "concept", "scatter", "reliability"],
)
def test_missing_matplotlib_names_the_install_line(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install .*\[plot\]'"):
        draw()
