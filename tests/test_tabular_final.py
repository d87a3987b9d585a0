"""Which network is kept after a search, and the models without a network beside it."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from flooding import Problem, Run
from flooding.averaging import EMA
from flooding.data import Split, Splits
from flooding.levels import Auto, Heuristic, Plateau
from flooding.metrics import balanced_accuracy
from flooding.models import mlp
from flooding.tabular import baselines
from flooding.tabular.baselines import fit_constant, fit_models, measure
from flooding.tabular.final_model import select_network
from flooding.testing import fake_record
from flooding.training.loop import train
from flooding.training.problem import Score

EPOCHS = ("best", "last")


def rows(n, seed, noise=0.3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    labels = (x[:, 0] + noise * rng.normal(size=n) > 0).astype(np.int64)
    return Split(torch.from_numpy(x).float(), torch.from_numpy(labels))


def numbers(n, seed):
    split = rows(n, seed)
    return Split(split.x, (split.x[:, :1] + split.x[:, 1:2].square() - 1))


@pytest.fixture(scope="module")
def problem():
    data = Splits(rows(60, 0), rows(40, 1), rows(50, 2))
    optimizer = partial(torch.optim.Adam, lr=0.05)
    model = partial(mlp, 3, 2, width=16, depth=1)
    return Problem(data, model, optimizer, batch_size=20, max_epochs=8)


@pytest.fixture(scope="module")
def regression():
    data = Splits(numbers(60, 0), numbers(40, 1), numbers(50, 2))
    return Problem(data, partial(mlp, 3, 1, width=8, depth=1), loss=mse_loss, max_epochs=3)


def last_row(run):
    *_, row = train(run)
    return row


# The network that is kept


@pytest.mark.parametrize("at", EPOCHS)
def test_the_weights_are_those_of_the_epoch(problem, at):
    run = Run(problem, 0.3)
    final = select_network(run, at=at)
    expected = last_row(final.choice.run)
    for name, tensor in expected.weights[at].items():
        assert torch.equal(final.weights[name], tensor)
    assert final.epochs == expected.record.metrics[f"{at}.epoch"]
    assert final.test_metrics["test_loss"] == expected.record.metrics[f"{at}.test_loss"]


def test_candidates_are_plain_training_with_and_without_stopping_and_the_flooded_network(problem):
    final = select_network(Run(problem, 0.3))
    plain, flooded = last_row(Run(problem)).record, last_row(Run(problem, 0.3)).record
    expected = {
        "plain training": plain.metrics["last.val_loss"],
        "plain training, early stopping": plain.metrics["best.val_loss"],
        "flooded, level 0.3, early stopping": flooded.metrics["best.val_loss"],
    }
    assert {c.name: c.metrics["val_loss"] for c in final.candidates} == expected


def test_without_a_level_plain_training_is_kept(problem):
    final = select_network(Run(problem, None))
    assert [c.name for c in final.candidates] == [
        "plain training",
        "plain training, early stopping",
    ]
    assert final.choice is final.candidates[1]
    assert select_network(Run(problem, None), at="last").choice.name == "plain training"


def made(run, val, loss=0.5, epoch=3.0):
    record = fake_record(run)
    metrics = dict(record.metrics)
    for at in EPOCHS:
        metrics |= {f"{at}.val_accuracy": val, f"{at}.val_loss": loss, f"{at}.epoch": epoch}
    return replace(record, metrics=metrics)


@pytest.mark.parametrize(
    ("plain", "flooded", "name"),
    [
        ((0.8, 0.5), (0.9, 0.6), "flooded"),
        ((0.9, 0.6), (0.8, 0.5), "plain training, early stopping"),
        ((0.9, 0.6), (0.9, 0.5), "flooded"),
        ((0.9, 0.5), (0.9, 0.5), "plain training, early stopping"),
        ((0.9, 0.5), (math.nan, math.nan), "plain training, early stopping"),
    ],
    ids=["better", "worse", "lower loss", "equal", "diverged"],
)
def test_validation_decides_and_plain_training_is_the_first_of_equals(
    problem, monkeypatch, plain, flooded, name
):
    from flooding.tabular import final_model

    def trained(run, device):
        values = plain if run.level is None else flooded
        record = made(run, *values)
        weights = {epoch: {"w": torch.zeros(1)} for epoch in EPOCHS}
        yield type("Row", (), {"record": record, "weights": weights, "epoch": 8})()

    monkeypatch.setattr(final_model, "train", trained)
    final = select_network(Run(problem, 0.3))
    assert final.choice.name.startswith(name)
    # At the last epoch the search has decided, over several epochs and seeds.
    assert select_network(Run(problem, 0.3), at="last").choice.name == "flooded, level 0.3"


def test_plain_training_of_the_search_is_not_trained_again(problem):
    started = []
    record = made(Run(problem), val=0.0, loss=9.0)
    final = select_network(Run(problem, 0.3), records=[record], on_start=started.extend)
    assert [run.level for run in started] == [0.3]
    assert final.candidates[0].metrics["val_loss"] == 9.0
    # A shorter one, one of another seed or another score is another training.
    for other in (
        Run(problem, stop_epoch=2),
        Run(problem, seed=1),
        Run(replace(problem, score=Score(balanced_accuracy))),
    ):
        started.clear()
        select_network(Run(problem, 0.3), records=[made(other, 0.0)], on_start=started.extend)
        assert None in [run.level for run in started]


def test_a_refit_trains_on_both_splits_for_as_many_epochs(problem):
    final = select_network(Run(problem, 0.3), refit=True)
    splits = problem.splits(0)
    both = Split(
        torch.cat([splits.train.x, splits.val.x]), torch.cat([splits.train.y, splits.val.y])
    )
    again = replace(problem, data=Splits(both, splits.val, splits.test))
    expected = last_row(Run(again, final.choice.run.level, stop_epoch=final.epochs))
    for name, tensor in expected.weights["last"].items():
        assert torch.equal(final.weights[name], tensor)
    assert final.is_refit
    assert final.test_metrics["test_loss"] == expected.record.metrics["last.test_loss"]
    assert final.epochs == final.choice.metrics["epoch"]


@pytest.fixture(scope="module")
def averaged(problem):
    return replace(problem, averaging=EMA(0.5), max_epochs=4)


@pytest.mark.parametrize(
    ("at", "prefix"), [("average", "average.last."), ("best_average", "average.best.")]
)
def test_averaged_weights_are_compared_with_averaged_weights(averaged, at, prefix):
    final = select_network(Run(averaged, 0.3), at=at)
    plain, flooded = last_row(Run(averaged)), last_row(Run(averaged, 0.3))
    suffix = ", averaged" if at == "average" else ", averaged, early stopping"
    expected = {
        "plain training": plain.record.metrics["last.val_loss"],
        "plain training, early stopping": plain.record.metrics["best.val_loss"],
        f"plain training{suffix}": plain.record.metrics[f"{prefix}val_loss"],
        f"flooded, level 0.3{suffix}": flooded.record.metrics[f"{prefix}val_loss"],
    }
    assert {c.name: c.metrics["val_loss"] for c in final.candidates} == expected
    row = flooded if final.choice.is_flooded else plain
    for name, tensor in row.weights[at].items():
        assert torch.equal(final.weights[name], tensor)
    assert final.epochs == row.record.metrics[f"{prefix}epoch"]
    if at == "average":
        assert final.choice.is_flooded


def test_a_refit_of_averaged_weights_keeps_their_average(averaged):
    final = select_network(Run(averaged, 0.3), at="best_average", refit=True)
    splits = averaged.splits(0)
    both = Split(
        torch.cat([splits.train.x, splits.val.x]), torch.cat([splits.train.y, splits.val.y])
    )
    again = replace(averaged, data=Splits(both, splits.val, splits.test))
    expected = last_row(Run(again, final.choice.run.level, stop_epoch=final.epochs))
    for name, tensor in expected.weights["average"].items():
        assert torch.equal(final.weights[name], tensor)


def test_plain_training_without_the_average_is_another_training(problem, averaged):
    started = []
    record = made(Run(replace(averaged, averaging=None)), 0.0)
    select_network(Run(averaged, 0.3), records=[record], at="average", on_start=started.extend)
    assert [run.level for run in started] == [None, 0.3]


def test_what_the_search_has_trained_is_not_trained_again(problem):
    started = []
    run = Run(problem, Auto(epochs=8))
    row = last_row(run)
    for at in EPOCHS:
        final = select_network(
            run,
            records=[row.record],
            weights=row.weights,
            compare_plain=False,
            at=at,
            on_start=started.extend,
        )
        assert len(final.candidates) == 1
        assert final.choice.metrics["val_loss"] == row.record.metrics[f"{at}.val_loss"]
        for name, tensor in row.weights[at].items():
            assert torch.equal(final.weights[name], tensor)
    assert started == []
    with pytest.raises(ValueError, match="weights need the Record of their Run"):
        select_network(run, weights=row.weights)


@pytest.mark.parametrize(
    "level", [Auto(epochs=8), Heuristic(0.3, until_loss=0.5), Plateau(0.3)], ids=repr
)
def test_a_level_that_follows_the_validation_rows_is_not_refitted(problem, level):
    with pytest.raises(ValueError, match=f"got {type(level).__name__}. Leave refit out"):
        select_network(Run(problem, level), refit=True)


def test_an_average_needs_one(problem):
    with pytest.raises(ValueError, match="best_average needs averaged weights"):
        select_network(Run(problem), at="best_average")


def test_another_epoch_is_refused(problem):
    with pytest.raises(ValueError, match=r"at must be one of best, last, .*, got 'first'"):
        select_network(Run(problem), at="first")


# Models without a network


def test_the_constant_is_the_majority_class_or_the_mean(problem, regression):
    y = problem.splits(0).train.y
    share = float(y.double().mean())
    constant = fit_constant(problem)
    test = problem.splits(0).test.y
    assert constant.name == "majority class"
    assert constant.metrics["test_accuracy"] == float((test == round(share)).double().mean())
    nll = -float((test * math.log(share) + (1 - test) * math.log(1 - share)).mean())
    assert constant.metrics["test_loss"] == pytest.approx(nll, rel=1e-6)
    constant = fit_constant(regression)
    splits = regression.splits(0)
    expected = float((splits.test.y - splits.train.y.mean()).square().mean())
    assert constant.name == "mean"
    assert constant.metrics["test_loss"] == pytest.approx(expected, rel=1e-6)


def test_models_are_those_of_scikit_learn(problem, regression):
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import log_loss

    splits = problem.splits(0)
    x, y = splits.train.x.numpy(), splits.train.y.numpy()
    by_name = {model.name: model for model in fit_models(problem)}
    for name, twin in (
        ("logistic regression", LogisticRegression(max_iter=1000)),
        ("gradient boosting", HistGradientBoostingClassifier(random_state=0)),
    ):
        twin.fit(x, y)
        for split_name, split in (("val", splits.val), ("test", splits.test)):
            metrics = by_name[name].metrics
            accuracy = twin.score(split.x.numpy(), split.y.numpy())
            assert metrics[f"{split_name}_accuracy"] == pytest.approx(accuracy)
            loss = log_loss(split.y.numpy(), twin.predict_proba(split.x.numpy()))
            assert metrics[f"{split_name}_loss"] == pytest.approx(loss, rel=1e-6)
    splits = regression.splits(0)
    ridge = Ridge().fit(splits.train.x.numpy(), splits.train.y.numpy().ravel())
    expected = np.mean((ridge.predict(splits.val.x.numpy()) - splits.val.y.numpy().ravel()) ** 2)
    [model, _] = fit_models(regression)
    assert model.name == "ridge regression"
    assert model.metrics["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_score_of_the_problem_is_measured(problem):
    scored = replace(problem, score=Score(balanced_accuracy))
    constant = fit_constant(scored)
    assert constant.metrics["val_score"] == 0.5


def test_a_probability_of_zero_has_a_finite_loss(problem):
    split = problem.splits(0).val
    certain = np.zeros((len(split), 2))
    certain[:, 0] = 1.0
    values = measure(problem, split, baselines._log(certain), "val")
    assert math.isfinite(values["val_loss"])
    assert values["val_loss"] > float(cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1])))


def test_a_large_table_is_fitted_by_a_sample(problem, monkeypatch):
    monkeypatch.setattr(baselines, "_MAX_ROWS", 50)
    assert [model.rows for model in fit_models(problem)] == [50, 50]
    sample = baselines._sample(60, 0)
    assert len(sample.unique()) == 50
    assert torch.equal(sample, baselines._sample(60, 0))


# Levels that are chosen in training


@pytest.mark.parametrize(
    ("levels", "epoch", "at", "name"),
    [
        ([-math.inf, -math.inf, 0.5, 0.4], 3, "last", "flooded, level 0.4 (chosen in training)"),
        (
            [-math.inf, -math.inf, 0.5, 0.4],
            2,
            "best",
            "flooded, level 0.5 (chosen in training), early stopping",
        ),
        ([-math.inf, -math.inf, 0.5], 1, "best", "auto level, plain until then, early stopping"),
        ([-math.inf] * 4, 3, "last", "auto level, none chosen: plain training"),
        (
            [-math.inf, 0.5, -math.inf, -math.inf],
            3,
            "last",
            "flooded, no level any more (chosen in training)",
        ),
    ],
    ids=["last", "best", "plain epoch", "none", "lost"],
)
def test_a_level_chosen_in_training_is_named_for_the_epoch_that_is_kept(
    problem, levels, epoch, at, name
):
    run = Run(problem, Auto(epochs=3))
    record = made(run, 0.9, epoch=float(epoch))
    record = replace(record, curves={**record.curves, "level": np.array(levels)})
    weights = {network: {"w": torch.zeros(1)} for network in EPOCHS}
    plain = made(Run(problem), 0.1)
    final = select_network(run, records=[record, plain], weights=weights, at=at)
    assert final.candidates[-1].name == name
