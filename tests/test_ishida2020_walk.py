"""The random walk and the Taylor view: what is measured, and verdicts that follow the numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flooding import train
from flooding.experiments import ishida2020_walk as walk
from flooding.level_search.driver import run_generator
from flooding.sharpness import weights
from flooding.training.problem import PeriodicMetric
from flooding.training.record import Record

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def quadratic(model):
    w = model.weight.flatten()
    return 0.5 * w @ A @ w


def point():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    return model


def test_on_a_quadratic_a_pair_of_steps_is_exactly_the_taylor_view():
    model = point()
    before = weights(model).clone()
    cosine, length, fall = walk.pair_of_steps(model, quadratic, rate=0.1)
    slope = A @ before
    assert cosine == pytest.approx(1.0, abs=1e-12)
    assert length == pytest.approx(1.0, abs=1e-12)
    end = before - 0.01 * A @ slope
    assert fall == pytest.approx(1 - float((A @ end).square().sum() / slope.square().sum()))
    assert torch.equal(weights(model), before)


def test_where_the_loss_is_smooth_the_view_becomes_exact_as_the_rate_falls():
    def quartic(model):
        return quadratic(model) + model.weight.pow(4).sum()

    errors = [abs(walk.pair_of_steps(point(), quartic, rate)[1] - 1) for rate in (1e-2, 1e-3, 1e-4)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


def test_a_training_is_measured_along_the_way():
    run = next(run for run in walk.plan_runs(20, [3]) if run.level == 0.25)
    periodic = PeriodicMetric(run.problem.extra_metrics.function, 10)
    *_, row = train(replace(run, problem=replace(run.problem, extra_metrics=periodic)))
    curves = row.record.curves
    assert np.flatnonzero(np.isfinite(curves["pair_cosine"])).tolist() == [0, 10, 20]
    assert curves["moved"][10] == 0
    assert curves["moved"][20] > 0
    assert curves["small_pair_length"][20] > 0


def test_only_the_smooth_networks_have_no_kinks():
    titles = [title for title, _, _ in walk.settings(10)]
    assert len(titles) == 12
    for title, problem, _ in walk.settings(10):
        has_kinks = any(isinstance(part, nn.ReLU) for part in problem.build(0).modules())
        assert has_kinks == ("ReLU" in title)


def made(run, cosine=0.99, length=1.0, fall=0.02, exponent=1.0, drift=0.5):
    """Make up a Record that was at its level in the second half."""
    epochs, jitter = run.epochs, 1 + 0.001 * run.seed
    at = np.arange(epochs + 1)
    half = epochs // 2
    curves = {
        "train_loss": np.full(epochs + 1, run.level or 0.01),
        "flooded": np.where(at > half, 0.5 if run.level else 0.0, 0.0),
        "gradient_norm": 10.0 ** (-drift * jitter * at / epochs),
        "moved": np.abs(at - half).astype(float) ** (exponent * jitter / 2),
    }
    for prefix in ("pair", "small_pair"):
        curves[f"{prefix}_cosine"] = np.full(epochs + 1, cosine * jitter)
        curves[f"{prefix}_length"] = np.full(epochs + 1, length * jitter)
        curves[f"{prefix}_fall"] = np.full(epochs + 1, fall * jitter)
    seen = (at % max(1, epochs // 20) == 0) | (at == epochs)
    for name in curves.keys() - {"train_loss", "flooded"}:
        curves[name] = np.where(seen, curves[name], math.nan)
    finals = {f"last.{name}": float(curve[-1]) for name, curve in curves.items()}
    return Record(run, curves, {}, finals, "", "", {"seconds": 3.0, "on": "a machine"})


def judged(**changes):
    """Give the sentences of a study whose trainings are made up."""
    study = walk.start(quick=True)
    report, _ = run_generator(study, lambda runs: [made(run, **changes) for run in runs])
    return report


def test_verdicts_follow_the_numbers():
    assert judged().failures == []
    broken = {
        "cosine": (0.5, "along -H g"),
        "length": (1.5, "by the length"),
        "fall": (-0.02, "lower the gradient norm"),
        "exponent": (2.0, "walk at random"),
        "drift": (-0.5, "gradient norm falls"),
    }
    for name, (value, text) in broken.items():
        report = judged(**{name: value})
        assert len(report.failures) >= 12, name
        assert all(text in sentence for sentence in report.failures), name


def test_a_task_whose_level_was_not_reached_is_not_tested():
    study = walk.start(quick=True)

    def unreached(run):
        record = made(run)
        if run.level == 0.4:
            record.curves["flooded"][:] = 0
        return record

    report, _ = run_generator(study, lambda runs: [unreached(run) for run in runs])
    [verdicts] = report.tables
    row = dict(zip(verdicts.columns, verdicts.rows[0], strict=True))
    assert row["Spiral, ReLU, full batches"] == "not tested"
    assert row["Sinusoid, ReLU, full batches"].startswith("holds")


def test_the_answer_counts_the_settings_that_hold():
    answer = judged().answer
    assert "direction in 12 of 12 tests with the smooth GELU and in 12 of 12 with" in answer
    assert "with ReLU (length: 12 of 12 and 12 of 12)." in answer
    assert "walk at random in 12 of 12 settings" in answer
    answer = judged(cosine=0.5, drift=-0.5).answer
    assert "direction in 0 of 12 tests with the smooth GELU and in 0 of 12 with" in answer
    assert "with ReLU (length: 12 of 12 and 12 of 12)." in answer
    assert answer.endswith("falls in 0 of 12.")
