"""What people's labels say is compared with the levels that validation chooses, and a claim can
fail."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from flooding.data import files, images
from flooding.data.images import human_labels
from flooding.experiments import peterson2019
from flooding.experiments.peterson2019 import LEVELS, counts, start
from flooding.level_search.advisor import bayes_error, entropy
from flooding.level_search.base import run_generator
from flooding.training.record import Record

SHARES = np.eye(10)[np.arange(200) % 10] * 46 / 50 + 4 / 50 * np.eye(10)[(np.arange(200) + 1) % 10]


@pytest.fixture(autouse=True)
def _without_files(monkeypatch, request):
    if "official" not in request.node.name:
        monkeypatch.setattr(images, "human_labels", lambda: SHARES)


def answer(runs, accuracy=lambda level: 0.6 + level / 10, flooded=0.5, best=20, falls=2.0):
    """Make Records of 20 epochs whose validation follows the test accuracy; the second half is
    flooded."""
    told = []
    for run in runs:
        level = run.level or 0.0
        curves = {
            "train_loss": np.linspace(2.0, 2.0 - falls, 21),
            "val_loss": np.full(21, 1.0),
            "flooded": np.arange(21) > 10,
        }
        curves["flooded"] = 2 * flooded * (level > 0) * curves["flooded"]
        found = accuracy(level) + 0.001 * (run.seed % 2) * (level > 0)
        nll = 2.0 - level + 0.01 * ((7 * run.seed + round(50 * level)) % 5)
        values = {
            "val_accuracy": found,
            "val_loss": 1.0,
            "test_accuracy_clean": found,
            "test_nll": nll,
        }
        finals = {
            f"{at}.{k}": v
            for at in ("last", "best")
            for k, v in {**values, "test_kl_to_posterior": 1.0}.items()
        }
        finals["best.epoch"] = best + run.seed % 2
        told.append(Record(run, curves, {}, finals, "", "", {"seconds": 36.0, "on": "a machine"}))
    return told


def report(**how):
    return run_generator(start(), partial(answer, **how))[0]


def test_counts_are_recovered_from_shares():
    draw = np.random.default_rng(0)
    people = draw.integers(47, 64, 300)
    told = np.stack([draw.multinomial(n, draw.dirichlet(np.ones(10))) for n in people]).astype(
        float
    )
    found = counts(told / people[:, None])
    assert np.allclose(found / found.sum(1, keepdims=True), told / people[:, None])
    assert (found.sum(1) <= people).all()
    assert (found.sum(1) == people).mean() > 0.9
    with pytest.raises(ValueError, match="must be those of 47 to 63 people"):
        counts(np.array([[0.51, 0.49]]))


def test_every_level_is_trained_with_every_seed():
    runs = next(start())
    assert [run.level or 0.0 for run in runs] == list(LEVELS) * 5
    assert sorted({run.seed for run in runs}) == [0, 1, 2, 3, 4]
    assert {run.seed for run in next(start(seeds=[7]))} == {7}
    assert len(next(start(quick=True))) == 6


def test_what_people_say_stands_beside_what_works():
    told = report()
    [advice, levels] = told.tables
    limits = {row[0]: row[1:4] for row in advice.rows}
    assert limits["soft labels"][0] == f"{entropy([0.92, 0.08]):.4f}"
    assert limits["0.7 x lowest validation loss"] == ["0.7000", "0.2500", "1.0000"]
    assert f"Bayes error {bayes_error(SHARES):.4f}" in told.findings[0]
    assert [row[0] for row in levels.rows] == ["plain", *(f"{b:g}" for b in LEVELS[1:])]


def test_a_level_above_the_irreducible_loss_that_is_better_is_a_failure_and_comes_first():
    told = report()  # the larger the level, the better
    failure = told.failures[0]
    assert failure.startswith("Levels up to the irreducible loss are better than those above it")
    assert ": the opposite holds; -" in failure
    assert "points of accuracy, n = 5" in failure
    assert "chosen 0.2, 0.2, 0.2, 0.2, 0.2 against 1.6, 1.6, 1.6, 1.6, 1.6" in failure
    assert any(
        s.startswith("Flooding is better than plain training: holds; +") for s in told.findings
    )
    lower = report(accuracy=lambda level: 0.7 - level / 10)
    assert not any(s.startswith("Levels up to") for s in lower.failures if "accuracy" in s)
    assert any("Levels of 0.25" in s and "the opposite holds" in s for s in lower.failures)
    assert any(
        s.startswith("Flooding is better than plain training: the opposite holds")
        for s in lower.failures
    )
    noise = report(accuracy=lambda level: 0.7)  # nothing but what differs between seeds
    assert any(s.startswith("Levels up to") and ": not shown; " in s for s in noise.failures)


def test_levels_that_were_never_reached_read_not_tested():
    told = report(flooded=0.0)
    [_, levels] = told.tables
    assert [row[1] for row in levels.rows] == ["–", *["0.0 ± 0.0: not tested"] * 9]
    assert not told.failures
    assert "Not reached by every seed, and so not tested: 0.02, 0.05, 0.1" in told.findings[-1]


def test_plain_training_must_be_below_the_largest_level_before_half():
    assert (
        "Plain training is below the largest level, 1.6, after 25 % of the epochs."
        in report().findings
    )  # 2 to 0
    late = "Plain training is not below the largest level, 1.6, before half of the epochs."
    assert late in report(falls=0.8).failures
    assert late in report(falls=0.2).failures


def test_a_best_epoch_before_the_level_was_reached_is_not_tested():
    def shares(best):
        return [row[1:3] for row in report(best=best).tables[1].rows[1:]]

    assert shares(9) == [["50.0 ± 0.0", "0.0 ± 0.0: not tested"]] * 9
    assert (
        shares(10) == [["50.0 ± 0.0", "3.6 ± 5.0: 2 of 5 seeds"]] * 9
    )  # 0, 1 of 11, 0, 1 of 11, 0
    assert shares(20) == [["50.0 ± 0.0", "50.0 ± 0.0"]] * 9


def test_the_page_and_its_picture_are_written(tmp_path):
    names = {path.name for path in report().save(tmp_path, "peterson2019")}
    assert {"peterson2019.md", "peterson2019-levels.png", "peterson2019-advice.csv"} <= names


def test_the_official_shares_have_the_published_figures():
    if files.find("cifar10h/cifar10h-probs.npy") is None:
        pytest.skip("CIFAR-10H is neither in FLOODING_DATA nor in the cache")
    shares = human_labels()
    assert shares.shape == (10_000, 10)
    assert round(bayes_error(shares), 4) == 0.0456
    assert round(entropy(shares), 4) == 0.1545
    people = counts(shares).sum(1)
    assert 47 <= people.min() <= people.max() <= 63


def test_the_setting_has_the_file_at_hand_alone():
    problem = peterson2019.setting()
    assert problem.data.func is images.cifar10h
    assert replace(problem, max_epochs=1).batch_size == 100
