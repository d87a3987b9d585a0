"""The synthetic tasks follow their definitions, flip exactly what they say, and their best results
are right."""

import math
import pickle

import numpy as np
import pytest
import torch

from flooding.data.synthetic import (
    flip_entropy,
    sinusoid,
    sinusoid_nd,
    spiral,
    two_gaussians,
    two_gaussians_best_accuracy,
    two_gaussians_irreducible_nll,
    two_gaussians_posterior,
)

TASKS = [two_gaussians, sinusoid, sinusoid_nd, spiral]
all_tasks = pytest.mark.parametrize("task", TASKS, ids=[t.__name__ for t in TASKS])


def three(splits):
    return splits.train, splits.val, splits.test


@all_tasks
def test_sizes_and_dtypes(task):
    splits = task(seed=0)
    assert [len(s) for s in three(splits)] == [100, 100, 20_000]  # the paper's
    for split in three(splits):
        assert split.x.dtype == torch.float32
        assert split.y.dtype == split.clean.dtype == torch.int64
        assert split.x.shape[1] == (2 if task in {sinusoid, spiral} else 10)
        assert set(split.y.tolist()) == {0, 1}


@all_tasks
@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.5, 0.99])
def test_exactly_the_rounded_share_of_every_split_is_flipped(task, share):
    # A widely copied generator flips one label whatever the share: it would give 1, 1, 1 here.
    splits = task(n_train=100, n_val=210, n_test=1030, label_noise=share, seed=3)
    flipped = [int((s.y != s.clean).sum()) for s in three(splits)]
    assert flipped == [round(100 * share), round(210 * share), round(1030 * share)]


@all_tasks
def test_without_noise_there_are_no_clean_labels_apart(task):
    noisy, clean = task(seed=1), task(label_noise=0, seed=1)
    for a, b in zip(three(noisy), three(clean), strict=True):
        assert b.clean is None
        assert torch.equal(a.clean, b.y)


@all_tasks
def test_inputs_do_not_depend_on_label_noise_nor_a_split_on_the_size_of_another(task):
    one = task(n_train=50, n_val=60, n_test=70, label_noise=0.1, seed=5)
    noisier = task(n_train=50, n_val=60, n_test=70, label_noise=0.4, seed=5)
    for a, b in zip(three(one), three(noisier), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.clean, b.clean)
    for counts in ({"n_train": 11}, {"n_val": 11}, {"n_test": 11}):
        other = task(
            **({"n_train": 50, "n_val": 60, "n_test": 70} | counts), label_noise=0.1, seed=5
        )
        kept = [name for name in ("train", "val", "test") if f"n_{name}" not in counts]
        for name in kept:
            a, b = getattr(one, name), getattr(other, name)
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)


@all_tasks
def test_the_seed_decides_everything_and_splits_share_nothing(task):
    first, again, other = task(seed=2), task(seed=2), task(seed=9)
    assert first.sha256 == again.sha256 != other.sha256
    assert not torch.equal(first.train.x, first.val.x)
    flips = [s.y != s.clean for s in (first.train, first.val, other.train)]
    assert not torch.equal(flips[0], flips[1])
    assert not torch.equal(flips[0], flips[2])


@all_tasks
def test_global_generators_are_left_alone(task):
    before, numpy_before = torch.random.get_rng_state(), pickle.dumps(np.random.get_state())  # ruff: ignore[numpy-legacy-random]
    task(seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert numpy_before == pickle.dumps(np.random.get_state())  # ruff: ignore[numpy-legacy-random]


@all_tasks
def test_classes_are_mixed_along_the_split(task):
    y = task(label_noise=0, seed=4).test.y
    first = y[:10_000].double().mean() - y[10_000:].double().mean()
    assert abs(first) < 4.5 / math.sqrt(10_000) * math.sqrt(
        0.5
    )  # difference of two means of 10,000 coins


@pytest.mark.parametrize("task", [two_gaussians, spiral])
def test_classes_are_equal_and_class_0_gets_the_odd_example(task):
    splits = task(n_train=100, n_val=101, n_test=2, label_noise=0, seed=0)
    assert [int(s.y.sum()) for s in three(splits)] == [50, 50, 1]


@pytest.mark.parametrize(("dimension", "mean"), [(10, 1.0), (3, -2.0)])
def test_two_gaussians_have_their_means_and_unit_covariance(dimension, mean):
    split = two_gaussians(label_noise=0, dimension=dimension, negative_mean=mean, seed=0).test
    for label, centre in ((0, 0.0), (1, mean)):
        x = split.x[split.y == label].double()
        n = len(x)
        assert ((x.mean(0) - centre).abs() < 4.5 / math.sqrt(n)).all()
        # Var of an entry of the sample covariance is (1 + [i = j]) / n for unit normal coordinates.
        bound = 4.5 * (1 + torch.eye(dimension)).div(n).sqrt()
        assert ((torch.cov(x.T) - torch.eye(dimension)).abs() < bound).all()


def test_sinusoid_labels_point_by_point():
    split = sinusoid(n_test=2000, label_noise=0, seed=0).test
    for (x1, x2), y in zip(split.x.tolist(), split.y.tolist(), strict=True):
        side = 1.5 * x1 + math.sin(1.5 * x2)
        assert abs(side) < 1e-6 or y == (
            side > 0
        )  # labels come from the inputs before rounding to float32


def test_sinusoid_is_uniform_on_the_disc_of_radius_2():
    x = sinusoid(seed=0).test.x.double()
    n, radius = len(x), x.norm(dim=1)
    assert radius.max() <= 2 + 1e-6
    assert radius.max() > 1.99
    for r in (0.5, 1.0, 1.5):
        share = r * r / 4
        assert abs((radius < r).double().mean() - share) < 4.5 * math.sqrt(share * (1 - share) / n)
    # Each coordinate of a uniform point on a disc of radius R has mean 0 and variance R^2 / 4 = 1.
    assert (x.mean(0).abs() < 4.5 / math.sqrt(n)).all()


@pytest.mark.parametrize("dimension", [2, 10])
def test_sinusoid_nd_labels_point_by_point_and_scale(dimension):
    split = sinusoid_nd(n_test=4000, label_noise=0, dimension=dimension, seed=0).test
    for x, y in zip(split.x.tolist(), split.y.tolist(), strict=True):
        side = x[0] + math.sin(x[1])
        assert abs(side) < 1e-6 or y == (side > 0)
    sd = split.x.double().std(0)
    assert ((sd - 2).abs() < 4.5 * 2 / math.sqrt(2 * 4000)).all()


@pytest.mark.parametrize(("label", "count", "shift"), [(1, 4, 0.0), (0, 5, math.pi)])
def test_spiral_without_jitter_is_the_two_curves(label, count, shift):
    split = spiral(n_train=9, label_noise=0, spiral_noise=0, seed=0).train
    drawn = split.x[split.y == label]
    radius = drawn.norm(dim=1)
    assert len(drawn) == count
    assert not torch.equal(radius, radius.sort().values)  # shuffled
    for k, (x1, x2) in enumerate(drawn[radius.argsort()].tolist()):
        angle = 4 * math.pi * k / (count - 1)
        assert x1 == pytest.approx((angle + shift) * math.cos(angle), abs=1e-5)
        assert x2 == pytest.approx((angle + shift) * math.sin(angle), abs=1e-5)


def test_spiral_jitter_has_the_stated_standard_deviation():
    # The order is drawn before the jitter, so the same seed without jitter gives the points
    # themselves.
    still, moved = (spiral(label_noise=0, spiral_noise=s, seed=0).test for s in (0.0, 0.5))
    assert torch.equal(still.y, moved.y)
    jitter = (moved.x - still.x).double()
    n = len(jitter)
    assert (jitter.mean(0).abs() < 4.5 * 0.5 / math.sqrt(n)).all()
    assert ((jitter.std(0) - 0.5).abs() < 4.5 * 0.5 / math.sqrt(2 * n)).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_two_gaussians_posterior_is_bayes_rule(share):
    splits = two_gaussians(n_test=200, label_noise=share, dimension=3, negative_mean=0.7, seed=0)
    for x, found in zip(splits.test.x.tolist(), splits.posterior.tolist(), strict=True):
        density = [math.prod(math.exp(-((v - mean) ** 2) / 2) for v in x) for mean in (0.0, 0.7)]
        joint = [
            (1 - share) * density[0] + share * density[1],
            (1 - share) * density[1] + share * density[0],
        ]
        assert found == pytest.approx([j / sum(joint) for j in joint], rel=1e-5)  # float32


def test_posterior_keeps_small_probabilities():
    # Log-odds of class 1: 2 * sum(x) - 10 * 2^2 / 2 = -80. One minus the other probability would be
    # 0.
    posterior = two_gaussians_posterior(
        torch.full((1, 10), -3.0, dtype=torch.float64), negative_mean=2.0
    )
    assert posterior[0, 1].item() == pytest.approx(math.exp(-80), rel=1e-12, abs=0)


@pytest.mark.parametrize("task", [sinusoid, sinusoid_nd])
def test_posterior_of_a_deterministic_task_is_the_flip(task):
    splits = task(n_test=500, label_noise=0.2, seed=0)
    expected = [[0.8, 0.2] if y == 0 else [0.2, 0.8] for y in splits.test.clean.tolist()]
    assert torch.allclose(splits.posterior, torch.tensor(expected))
    assert task(label_noise=0, n_test=500, seed=0).posterior.max() == 1
    assert spiral(n_test=500, seed=0).posterior is None


@pytest.mark.parametrize(
    ("share", "nll", "accuracy"),
    # Computed by an independent integration when the project was planned.
    [(0.0, 0.1435, 0.9431), (0.01, 0.1814, 0.9342), (0.05, 0.2902, 0.8988), (0.1, 0.3911, 0.8545)],
)
def test_best_results_on_two_gaussians(share, nll, accuracy):
    assert two_gaussians_irreducible_nll(share) == pytest.approx(nll, abs=5e-5)
    assert two_gaussians_best_accuracy(share) == pytest.approx(accuracy, abs=5e-5)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.8])
@pytest.mark.parametrize("mean", [0.5, -3.0])
def test_best_results_agree_with_sums_over_the_inputs(share, mean):
    # In one dimension, straight from the joint density of x and the noisy label, by the midpoint
    # rule.
    step, nll, accuracy = 1e-3, 0.0, 0.0
    x = np.arange(-15, 15, step) + step / 2
    density = [np.exp(-((x - m) ** 2) / 2) / math.sqrt(2 * math.pi) / 2 for m in (0.0, mean)]
    joint = [
        (1 - share) * density[0] + share * density[1],
        (1 - share) * density[1] + share * density[0],
    ]
    both = joint[0] + joint[1]
    for j in joint:
        seen = j > 0
        nll -= step * float((j[seen] * np.log(j[seen] / both[seen])).sum())
    accuracy = step * float(np.maximum(*joint).sum())
    assert two_gaussians_irreducible_nll(share, 1, mean) == pytest.approx(nll, abs=1e-9)
    assert two_gaussians_best_accuracy(share, 1, mean) == pytest.approx(
        accuracy, abs=1e-6
    )  # kink at the boundary


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1])
def test_best_results_agree_with_a_sample(share):
    # n fixed beforehand; the exact posterior scored on drawn noisy labels.
    splits = two_gaussians(n_test=100_000, label_noise=share, seed=11)
    posterior, y = splits.posterior.double(), splits.test.y
    n = len(y)
    losses = -posterior.gather(1, y[:, None]).log()
    assert abs(losses.mean() - two_gaussians_irreducible_nll(share)) < 4 * losses.std() / math.sqrt(
        n
    )
    best = two_gaussians_best_accuracy(share)
    found = (posterior.argmax(1) == y).double().mean()
    assert abs(found - best) < 4 * math.sqrt(best * (1 - best) / n)
    # Calibration: inside any slice of the posterior the labels come out as often as it says.
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (posterior[:, 1] > low) & (posterior[:, 1] <= low + 0.2)
        excess = (y[inside] - posterior[inside, 1]).mean()
        assert abs(excess) < 4.5 * 0.5 / math.sqrt(int(inside.sum()))


def test_limits_of_the_best_results():
    assert two_gaussians_irreducible_nll(0.1, negative_mean=0) == pytest.approx(
        math.log(2), abs=1e-12
    )
    assert two_gaussians_best_accuracy(0.1, negative_mean=0) == pytest.approx(0.5, abs=1e-15)
    # Far apart, only the flips remain.
    assert two_gaussians_irreducible_nll(0.1, negative_mean=10) == pytest.approx(
        flip_entropy(0.1), abs=1e-12
    )
    assert two_gaussians_best_accuracy(0.9, negative_mean=10) == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize(
    ("share", "entropy"), [(0.0, 0.0), (0.01, 0.0560), (0.05, 0.1985), (0.1, 0.3251)]
)
def test_flip_entropy_by_hand(share, entropy):
    assert flip_entropy(share) == pytest.approx(
        entropy, abs=5e-5
    )  # -p ln p - (1 - p) ln(1 - p) on a calculator


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_flip_entropy_of_the_listed_distribution(classes, share):
    listed = [1 - share] + [share / (classes - 1)] * (classes - 1)
    assert flip_entropy(share, classes) == pytest.approx(
        -sum(p * math.log(p) for p in listed), rel=1e-12
    )
    assert flip_entropy((classes - 1) / classes, classes) == pytest.approx(
        math.log(classes), rel=1e-12
    )


@all_tasks
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_train": 1}, "n_train must be an integer of at least 2, got 1"),
        ({"n_val": 0}, "n_val must be an integer of at least 2, got 0"),
        ({"n_test": 2.5}, "n_test must be an integer of at least 2, got 2.5"),
        ({"label_noise": 1.0}, r"label_noise must lie in \[0, 1\), got 1.0"),
        ({"label_noise": -0.1}, r"label_noise must lie in \[0, 1\), got -0.1"),
        ({"label_noise": float("nan")}, r"label_noise must lie in \[0, 1\), got nan"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
    ],
)
def test_wrong_arguments_are_refused(task, wrong, message):
    with pytest.raises(ValueError, match=message):
        task(**({"seed": 0} | wrong))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: two_gaussians(dimension=0, seed=0),
            "dimension must be an integer of at least 1, got 0",
        ),
        (
            lambda: two_gaussians(negative_mean=math.inf, seed=0),
            "negative_mean must be finite, got inf",
        ),
        (
            lambda: sinusoid_nd(dimension=1, seed=0),
            "dimension must be an integer of at least 2, got 1",
        ),
        (lambda: spiral(spiral_noise=-1.0, seed=0), "spiral_noise must be at least 0, got -1.0"),
        (lambda: spiral(spiral_noise=math.nan, seed=0), "spiral_noise must be finite, got nan"),
        (lambda: two_gaussians_irreducible_nll(1.5), "label_noise must lie in"),
        (lambda: two_gaussians_best_accuracy(dimension=0), "dimension must be"),
        (lambda: flip_entropy(0.1, 1), "classes must be an integer of at least 2, got 1"),
    ],
)
def test_wrong_arguments_of_one_function_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_seed_must_be_given():
    with pytest.raises(TypeError, match="seed"):
        two_gaussians()
