"""Every strategy keeps the contract; and what each one alone promises."""

import itertools
import logging.handlers
import math
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import flooding
from flooding.data.synthetic import two_gaussians
from flooding.level_search.accordance import accordance, crossing, watch_accordance
from flooding.level_search.advisor import advise, advisor, bayes_error, entropy, label_noise_entropy
from flooding.level_search.backward import backward, has_started
from flooding.level_search.driver import run_concurrently, run_generator, search
from flooding.level_search.finder import finder
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving
from flooding.level_search.heuristic import heuristic
from flooding.level_search.level_stats import tail_key
from flooding.level_search.policy_gradient import Policy, policy_gradient
from flooding.level_search.range_test import range_test
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.level_search.tpe import tpe
from flooding.levels import Delayed, Heuristic, StepInfo
from flooding.metrics import balanced_accuracy
from flooding.testing import check_controller, check_strategy, fake_record
from flooding.training.problem import Score
from flooding.training.run import Run
from small import normed, regression, small

train_runs = partial(flooding.run_all, ledger=False, workers=0)
PROBLEM = small(max_epochs=12)
SCORED = replace(PROBLEM, score=Score(balanced_accuracy, greater_is_better=False))


def fake_records(runs):
    return [fake_record(run) for run in runs]


def changed(record, *, curves=None, metrics=None):
    return replace(
        record,
        curves={**record.curves, **(curves or {})},
        metrics={**record.metrics, **(metrics or {})},
    )


@pytest.mark.parametrize("problem", [PROBLEM, SCORED], ids=["accuracy", "a score to minimise"])
@pytest.mark.parametrize(
    "make",
    [
        grid,
        partial(grid, at="best", seeds=(0, 1)),
        halving,
        partial(halving, eta=2, seeds=(0, 1)),
        backward,
        partial(backward, levels=(0.1, 0.3), until_accuracy=0.7, seeds=(0, 1), share=0.2),
        heuristic,
        partial(heuristic, controller=Heuristic(until_accuracy=0.8), seeds=(0, 1)),
        accordance,
        partial(accordance, direction="up"),
        partial(policy_gradient, trainings=3),
        partial(tpe, trainings=13, batch=3),
        advisor,
        finder,
        range_test,
    ],
    ids=lambda make: str(getattr(make, "keywords", ""))[:30] + getattr(make, "func", make).__name__,
)
def test_every_strategy_keeps_the_contract(make, problem):
    check_strategy(lambda: make(problem))


# Backward


def test_backward_finds_the_controller_of_the_best_level():
    result = search(
        backward(PROBLEM, [None, 0.1, 0.4], until_loss=0.05, seeds=(3, 4)), fake_records
    )
    assert [(r.run.level, r.run.seed) for r in result.records[:3]] == [
        (None, 3),
        (None, 4),
        (Delayed(0.1, 0.05), 3),
    ]
    assert (result.run.level, result.run.seed) == (
        Delayed(0.1, until_loss=0.05),
        3,
    )  # made up to be best near 0.1
    [estimate] = result.estimates
    assert (estimate.level, estimate.low, estimate.high) == (0.1, 0.0, 0.4)
    assert estimate.note == "2 of 2 runs at this level reached a last-batch loss of 0.05"
    assert not result.warnings


def test_backward_counts_the_runs_that_were_never_flooded():
    def run_all(runs):
        plain = {"last.level": -math.inf, "last.val_accuracy": 0.1}
        return [
            changed(r, metrics=plain) if r.run.seed == 1 and r.run.level else r
            for r in fake_records(runs)
        ]

    result = search(backward(PROBLEM, [None, 0.1, 0.2], until_accuracy=0.6, seeds=(0, 1)), run_all)
    assert result.warnings == (
        "2 of 4 runs never reached accuracy 0.6: those levels are plain training: "
        "0.1 (seed 1), 0.2 (seed 1)",
    )
    assert result.estimates[0].note == "1 of 2 runs at this level reached accuracy 0.6"


def test_backward_warns_at_the_end_of_its_grid():
    result = search(backward(PROBLEM, [0.0, 0.05, 0.1], until_loss=0.05), fake_records)
    assert result.warnings == (
        "the best level 0.1 is the largest of the grid: a larger one may be better",
    )


def test_backward_without_flooding_is_plain_training():
    result = search(backward(PROBLEM, [0.1, 0.2], until_loss=1e-9), fake_records)
    assert result.warnings[0].startswith("2 of 2 runs never reached a last-batch loss of 1e-09")
    assert result.run.level is None
    assert result.estimates[0].level is None
    assert result.estimates[0].note.startswith("0 of 1 runs")


def test_a_trained_record_tells_whether_flooding_began():
    result = search(
        backward(small(max_epochs=25), [0.3], until_accuracy=0.9, seeds=(0, 1, 2)), train_runs
    )
    flooded = [bool((r.curves["level"] == np.float32(0.3)).any()) for r in result.records]
    assert [has_started(record) for record in result.records] == flooded
    assert any(flooded)
    # The same trainings, cut off before they are fitted.
    short = train_runs([replace(r.run, stop_epoch=2) for r in result.records])
    assert not any(map(has_started, short))


# Heuristic


def test_heuristic_suggests_where_its_level_ended_and_ranged():
    controller = Heuristic(until_loss=0.5, step_size=0.03, min_delta=0.1)
    result = search(heuristic(PROBLEM, controller, seeds=(0, 1)), fake_records)
    curves = [record.curves["level"] for record in result.records]
    used = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    [estimate] = result.estimates
    assert estimate.level == pytest.approx(np.mean([curve[-1] for curve in curves]))
    assert (estimate.low, estimate.high) == (used.min(), used.max())
    assert estimate.low < estimate.level
    assert result.run is result.records[0].run
    assert not result.warnings


def test_heuristic_says_when_it_never_flooded():
    result = search(heuristic(PROBLEM, Heuristic(until_loss=1e-9), seeds=(0, 1)), fake_records)
    assert result.warnings == (
        "2 of 2 runs never reached a last-batch loss of 1e-09: they are plain training",
    )
    assert result.estimates[0].level is None
    assert result.run.level == Heuristic(until_loss=1e-9)


def test_heuristic_leaves_out_what_diverged():
    controller = Heuristic(until_accuracy=0.6)
    result = search(
        heuristic(PROBLEM, controller, seeds=(0, 1)),
        lambda runs: [fake_record(r, diverges=r.seed == 0) for r in runs],
    )
    assert result.run.seed == 1
    assert result.estimates[0].level == result.records[1].metrics["last.level"]
    assert result.warnings == ("1 of 2 runs ended in a NaN validation loss",)


# Policy gradient

WEIGHTS = ((0.5, 0.1, -0.3, 0.2, 1.0), (-0.5, 0.4, 0.0, 0.1, 0.3), (1.0, -0.2, 0.6, 0.0, -0.4))


@pytest.mark.parametrize(
    "options", [{}, {"greedy": True}, {"weights": WEIGHTS, "rate": 5.0}], ids=str
)
def test_a_policy_is_a_controller(options):
    check_controller(Policy((0.0, 0.1, 0.2), epochs=10, **options), compiled=True)


def test_a_policy_draws_from_the_softmax_of_its_weights():
    n = 20_000
    state = Policy(
        (0.0, 0.1, 0.2), epochs=n, weights=tuple((w, 0, 0, 0, 0) for w in (0.0, 1.0, -1.0))
    ).init()
    draws = (torch.tensor([0.0, 1.0, -1.0]) + state["noise"]).argmax(1)
    expected = torch.tensor([0.0, 1.0, -1.0]).softmax(0)
    error = (expected * (1 - expected) / n).sqrt()
    assert ((draws.bincount() / len(draws) - expected).abs() < 4 * error).all()


def test_a_policy_learns_by_the_gradient_of_the_log_probability():
    policy = Policy((0.0, 0.1, 0.2), epochs=3, weights=WEIGHTS, rate=0.7)
    steps = [[0.9, 0.6], [0.5, 0.4]]
    ends = [(0.5, 0.8, 0.6), (0.7, 0.7, 0.65)]
    state = policy.init()
    for losses, end in zip(steps, ends, strict=True):
        for loss in losses:
            state = policy.update(state, StepInfo(torch.tensor(loss)))
        before, state = state, policy.update(state, StepInfo(None, *end))
    features = torch.tensor([
        1.0,
        0.75,
        0.5,
        0.8,
        0.6,
    ])  # of the first epoch, on which the second level was drawn
    assert before["features"] == pytest.approx(features)
    weights = torch.tensor(
        WEIGHTS, requires_grad=True
    )  # the first reward is its own mean and teaches nothing
    (weights @ features).log_softmax(0)[before["action"]].backward()
    assert weights.grad is not None
    learnt = torch.tensor(WEIGHTS) + 0.7 * (0.65 - 0.6) * weights.grad
    assert torch.allclose(state["weights"], learnt, atol=1e-6)
    assert not torch.equal(state["weights"], torch.tensor(WEIGHTS))
    assert state["features"] == pytest.approx(torch.tensor([1.0, 0.45, 0.7, 0.7, 0.65]))


def test_a_greedy_policy_takes_the_most_probable_level():
    weights = tuple((w, 0.0, 0.0, 0.0, 0.0) for w in (0.0, 0.01, -0.01))
    policies = [
        Policy((0.0, 0.1, 0.2), epochs=3, weights=weights, greedy=True, seed=seed)
        for seed in range(20)
    ]
    assert {round(policy.init()["level"].item(), 6) for policy in policies} == {0.1}


def test_states_of_policies_may_be_stacked():
    policies = [Policy((0.0, 0.1, 0.2), epochs=6, seed=seed) for seed in range(3)]
    states = [policy.init() for policy in policies]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    for epoch in range(5):
        for seen in (
            StepInfo(torch.tensor(0.5 - 0.1 * epoch)),
            StepInfo(None, 0.5, 0.6, 0.5 + 0.1 * (epoch % 2)),
        ):
            states = [
                policy.update(state, seen) for policy, state in zip(policies, states, strict=True)
            ]
            stacked = policies[0].update(stacked, seen)
    for name, value in stacked.items():
        assert torch.allclose(value, torch.stack([state[name] for state in states])), name


def test_an_unbounded_loss_leaves_a_policy_finite():
    policy = Policy((0.0, 0.1), epochs=3)
    state = policy.init()
    for loss in (1e30, math.inf, 1.0):
        state = policy.update(
            policy.update(state, StepInfo(torch.tensor(loss))), StepInfo(val_loss=loss)
        )
    assert (
        state["weights"].abs().max() <= 3 * policy.rate * 10
    )  # three rewards, each at most 1 from the mean
    assert state["mean_reward"].isfinite()
    assert state["features"].abs().max() <= 10


def bandit(runs):
    """Validation accuracy is 0.8 in an epoch at level 0.05, and falls with the distance from it."""
    [run] = runs
    draw, policy = np.random.default_rng(run.level.seed), run.level
    state, rows = policy.init(), [(math.nan, 1.0, 0.5, 1.0, 0.5)]
    for _ in range(run.epochs):
        level = state["level"].item()
        right = 0.8 - 4 * abs(level - 0.05) + 0.01 * draw.standard_normal()
        rows.append((level, 0.3, 0.9, 1 - right, right))
        state = policy.update(
            policy.update(state, StepInfo(torch.tensor(0.3))), StepInfo(None, *rows[-1][2:])
        )
    names = ("level", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    curves = dict(zip(names, np.array(rows, np.float32).T, strict=True))
    return [
        changed(
            fake_record(run),
            curves=curves,
            metrics={f"last.{n}": float(c[-1]) for n, c in curves.items()},
        )
    ]


def test_policy_gradient_learns_the_level_that_is_rewarded():
    result = search(policy_gradient(small(max_epochs=100), seed=1), bandit)
    runs = [record.run for record in result.records]
    assert len(runs) == 20
    assert len({run.level.seed for run in runs}) == 20
    assert len({run.level.weights for run in runs}) == 20
    assert {run.seed for run in runs} == {1}
    assert [run.level.greedy for run in runs] == [False] * 19 + [True]
    assert runs[-1].level.rate == 0
    assert result.run is runs[-1]
    [estimate] = result.estimates
    assert estimate.level == pytest.approx(0.05)
    used = result.records[-1].curves["level"][1:]
    assert (estimate.low, estimate.high) == pytest.approx((used.min(), used.max()))


def test_a_policy_is_credited_with_the_level_that_was_played():
    def run_all(runs):
        [record] = fake_records(runs)
        n = len(record.curves["level"])
        level = np.full(n, 0.02)
        if runs[0].level.greedy:
            level[[1, -1]] = 0.0, 0.1
        return [changed(record, curves={"level": level, "val_accuracy": np.linspace(0.2, 0.9, n)})]

    result = search(policy_gradient(PROBLEM, [0.0, 0.02, 0.1], trainings=2), run_all)
    bias = np.array(result.run.level.weights)[:, 0]
    assert bias[1] > 0 > max(bias[0], bias[2])
    assert result.estimates == (
        LevelEstimate(
            "policy gradient", 0.02, 0.0, 0.1, "chosen in 10 of 12 epochs of the last training"
        ),
    )


def test_a_policy_folded_over_a_record_goes_the_way_it_went_in_training():
    policy = Policy((0.0, 0.2, 0.4), epochs=12, rate=2.0, seed=5)
    [record] = train_runs([Run(PROBLEM, policy)])  # full batch: one step an epoch
    state, levels = policy.init(), []
    for epoch in range(1, 13):
        levels.append(state["level"].item())
        shown = {
            n: torch.tensor(record.curves[n][epoch])
            for n in ("train_accuracy", "val_loss", "val_accuracy")
        }
        state = policy.update(state, StepInfo(torch.tensor(record.curves["train_loss"][epoch])))
        state = policy.update(state, StepInfo(**shown))
    assert levels == record.curves["level"][1:].tolist()
    assert len(set(levels)) == 3


def test_a_policy_describes_itself():
    assert Run(PROBLEM, Policy((0.0, 0.1), epochs=3)).key() is not None


# Gradient accordance


def test_watching_leaves_the_model_as_it_was():
    problem = normed()
    model = problem.build(0)
    splits = problem.splits(0)
    problem.loss(model(splits.train.x), splits.train.y).backward()
    next(m for m in model.modules() if isinstance(m, torch.nn.Dropout)).eval()  # a mode of its own
    before = [
        {n: t.clone() for n, t in model.state_dict().items()},
        [p.grad.clone() for p in model.parameters()],
    ]
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    assert set(watch_accordance(model, problem, splits)) == {"accordance"}
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(t, before[0][n]) for n, t in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), generator)


def test_accordance_is_that_of_fixed_separate_sub_batches():
    problem = small(batch_size=7)
    splits, model = problem.splits(0), problem.build(0).eval()
    seen = []

    def loss(outputs, y):
        seen.append(tuple(y.tolist()))
        return problem.loss(outputs, y)

    noted = replace(problem, loss=loss)
    identified = replace(splits, train=replace(splits.train, y=splits.train.id % 2))
    accordances = [
        watch_accordance(model, noted, identified, batches=4, seed=seed)["accordance"]
        for seed in (0, 0, 1)
    ]
    assert accordances[0] == accordances[1] != accordances[2]
    assert [len(y) for y in seen] == [7] * 12
    gradients = []
    order = torch.randperm(
        40,
        generator=torch.Generator().manual_seed(flooding.training.rng.derive_seed(0, "accordance")),
    )
    for part in order[:28].reshape(4, 7):
        model.zero_grad()
        problem.loss(model(splits.train.x[part]), identified.train.y[part]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    cosines = [
        torch.cosine_similarity(a, b, dim=0) for a, b in itertools.permutations(gradients, 2)
    ]
    assert accordances[0] == pytest.approx(float(sum(cosines)) / 12, abs=1e-6)


def test_accordance_trains_plainly_and_reads_off_the_loss():
    problem = normed(max_epochs=8)
    result = search(accordance(problem, batches=3), train_runs)
    [record] = result.records
    assert record.weights_sha256 == train_runs([Run(problem)])[0].weights_sha256
    assert np.isfinite(record.curves["accordance"]).all()
    assert record.run.key() is not None
    assert record.run.level is None
    assert result.run.problem is problem


def crossed(curve, loss):
    def run_all(runs):
        return [
            changed(
                fake_record(runs[0]),
                curves={"accordance": np.array(curve), "train_loss": np.array(loss)},
            )
        ]

    return run_all


@pytest.mark.parametrize(
    ("direction", "smoothing", "level", "low", "high"),
    [
        ("down", 1, 0.5, 0.5, 0.5),  # at epoch 2, the first at or below 0
        ("down", 2, 0.45, 0.4, 0.5),  # running means .9, .65, .2, -.1 cross at epoch 3
        ("up", 1, 0.3, 0.3, 0.3),  # at epoch 4
    ],
)
def test_accordance_takes_the_smoothed_loss_where_it_crosses(
    direction, smoothing, level, low, high
):
    run_all = crossed([0.9, 0.4, 0.0, -0.2, 0.1, -0.3], [0.9, 0.7, 0.5, 0.4, 0.3, 0.2])
    result = search(accordance(PROBLEM, direction=direction, smoothing=smoothing), run_all)
    [estimate] = result.estimates
    assert (estimate.level, estimate.low, estimate.high) == pytest.approx((level, low, high))
    assert result.run.level == estimate.level
    assert not result.warnings


@pytest.mark.parametrize(
    "curve", [[0.9, 0.4, 0.1], [-0.1, -0.2, -0.3], [0.2, math.nan, -0.3]], ids=str
)
def test_accordance_that_never_crosses_gives_no_level(curve):
    result = search(accordance(PROBLEM, smoothing=1), crossed(curve, [0.9, 0.5, 0.1]))
    assert result.run.level is None
    assert result.estimates[0].level is None
    assert result.warnings[0].startswith(
        "the accordance never crossed zero downwards: it went from"
    )


def test_crossings():
    assert crossing([0.5, -0.5, 0.5, -0.5], "down") == 1
    assert crossing([0.5, -0.5, 0.5, -0.5], "up") == 2
    assert crossing([-0.5, 0.0], "up") == 1
    assert crossing([0.0, -0.5], "down") is None  # it was never above
    assert crossing([], "down") is None


# TPE


def near(best):
    """Make up a validation accuracy that falls with the distance from the best level."""

    def run_all(runs):
        metrics = [
            {"last.val_accuracy": 0.9 - abs(run.level - best), "last.val_loss": 0.5} for run in runs
        ]
        return [
            replace(changed(fake_record(r), metrics=m), curves={})
            for r, m in zip(runs, metrics, strict=True)
        ]

    return run_all


def test_tpe_closes_in():
    searches = [search(tpe(PROBLEM, seed=seed), near(0.2)) for seed in range(8)]
    away = [[abs(record.level - 0.2) for record in result.records[10:]] for result in searches]
    # Even draws from [0, 0.5] are 0.13 away in the mean, with a standard error of 0.009 here.
    assert np.mean(away) < 0.1


def test_tpe_asks_batches_and_takes_the_best():
    result = search(tpe(PROBLEM, trainings=25, batch=4), near(0.2))
    levels = np.array([record.level for record in result.records])
    assert len(levels) == 25
    assert ((levels >= 0) & (levels <= 0.5)).all()
    best = levels[np.abs(levels - 0.2).argmin()]
    [estimate] = result.estimates
    assert result.run.level == estimate.level == best
    assert estimate.low == max(levels[levels < best])
    assert estimate.high == min(levels[levels > best])
    strategy = tpe(PROBLEM, trainings=7, batch=4)
    runs = next(strategy)
    assert len(runs) == 4
    assert len(strategy.send(fake_records(runs))) == 3


def test_tpe_tells_each_level_its_own_value():
    strategy = tpe(PROBLEM, trainings=16, batch=2)
    wrong = tpe(PROBLEM, trainings=16, batch=2)
    run_all = near(0.1)

    def swapped(runs):
        return run_all(runs)[::-1]

    asked = [
        [r.level for r in search(s, e).records] for s, e in ((strategy, run_all), (wrong, swapped))
    ]
    assert sorted(asked[0]) != sorted(asked[1])


def test_tpe_is_told_that_nan_is_worst_and_that_the_loss_breaks_ties(tmp_path):
    optuna = pytest.importorskip("optuna")

    def run_all(runs):
        low, high = fake_records(runs[:2])
        equal = {"last.val_accuracy": 0.5}
        return [
            replace(changed(low, metrics=equal | {"last.val_loss": 0.4}), curves={}),
            replace(changed(high, metrics=equal | {"last.val_loss": 0.3}), curves={}),
            fake_record(runs[2], diverges=True),
        ]

    search(tpe(PROBLEM, trainings=3, batch=3, storage=tmp_path / "study.sqlite"), run_all)
    study = optuna.load_study(
        study_name="flooding", storage=f"sqlite:///{tmp_path / 'study.sqlite'}"
    )
    values = [trial.value for trial in study.trials]
    assert values[2] == -math.inf
    assert values[0] < values[1]
    assert values[:2] == pytest.approx([0.5, 0.5], abs=1e-5)


def test_a_killed_tpe_repeats_itself_and_its_copy_is_whole(tmp_path):
    optuna = pytest.importorskip("optuna")
    make = partial(tpe, PROBLEM, trainings=14, seed=3)
    whole = [record.level for record in search(make(), near(0.3)).records]
    path = tmp_path / "study.sqlite"
    strategy = make(storage=path)
    assert not path.exists()
    runs = next(strategy)
    assert path.exists(), "the storage is there before anything is train_runs"
    for _ in range(5):
        runs = strategy.send(near(0.3)(runs))
    strategy.close()
    result = search(make(storage=path), near(0.3))
    assert [record.level for record in result.records] == whole
    study = optuna.load_study(study_name="flooding", storage=f"sqlite:///{path}")
    assert [trial.params["level"] for trial in study.trials] == whole
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    with pytest.raises(ValueError, match="the storage must hold this search or nothing"):
        search(make(storage=path), near(0.1))


def test_a_killed_search_trains_only_what_its_ledger_lacks(tmp_path):
    started = []
    ledger = partial(
        flooding.run_all, ledger=tmp_path / "runs.sqlite", workers=0, on_start=started.extend
    )
    make = partial(tpe, small(max_epochs=2), trainings=6, storage=tmp_path / "study.sqlite")

    def killed(runs):
        if len(started) == 4:
            raise KeyboardInterrupt
        return ledger(runs)

    with pytest.raises(KeyboardInterrupt):
        search(make(), killed)
    result = search(make(), ledger)
    assert [run.level for run in started] == [record.level for record in result.records]
    assert len(started) == 6


def test_tpe_logs_nothing_and_leaves_optunas_verbosity_alone():
    optuna = pytest.importorskip("optuna")
    handler = logging.handlers.BufferingHandler(100)
    logging.getLogger("optuna").addHandler(handler)
    before = optuna.logging.get_verbosity()
    try:
        search(tpe(PROBLEM, trainings=2), fake_records)
    finally:
        logging.getLogger("optuna").removeHandler(handler)
    assert handler.buffer == []
    assert optuna.logging.get_verbosity() == before


def test_tpe_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install .*\[optuna\]'"):
        next(tpe(PROBLEM))


# Advisor


@pytest.mark.parametrize(
    ("p", "h"), [(0.01, 0.0560), (0.05, 0.1985), (0.1, 0.3251)]
)  # the definition, by hand
def test_known_noise_gives_its_entropy(p, h):
    [estimate] = advise(label_noise=p)
    assert estimate.level == estimate.low == pytest.approx(h, abs=5e-5)
    assert estimate.high == pytest.approx(math.log(2))
    assert label_noise_entropy(p, 10) == pytest.approx(entropy([1 - p] + [p / 9] * 9))
    [estimate] = advise(label_noise=p, classes=10)
    assert (estimate.level, estimate.high) == pytest.approx((
        label_noise_entropy(p, 10),
        math.log(10),
    ))


def test_labels_limit_the_level():
    [estimate] = advise(labels=np.arange(300) % 3)
    assert estimate.level == estimate.high == pytest.approx(math.log(3))
    assert math.log(3) - 0.05 < estimate.low < math.log(3)
    [estimate] = advise(labels=torch.tensor([0] * 90 + [1] * 10))
    assert estimate.level == pytest.approx(label_noise_entropy(0.1))
    assert estimate.low < estimate.level < estimate.high
    [estimate] = advise(classes=4)
    assert estimate.level == pytest.approx(math.log(4))


def test_soft_labels_give_the_known_entropy_and_bayes_error():
    exact = two_gaussians(seed=0, label_noise=0.1, n_test=20_000).posterior
    [estimate] = advise(soft_labels=exact)
    # Conditional entropy and best accuracy on noisy labels at 10 % noise, by numerical integration.
    assert estimate.low - 0.002 < 0.3911 < estimate.high + 0.002
    assert estimate.high - estimate.low < 0.01
    assert bayes_error(exact) == pytest.approx(1 - 0.8545, abs=0.003)
    assert f"Bayes error {bayes_error(exact):.4f}" in estimate.note


def test_the_bootstrap_has_the_width_of_the_standard_error():
    c = np.random.default_rng(1).uniform(size=(2000, 1))
    rows = np.hstack([c, 1 - c])
    [estimate] = advise(soft_labels=rows)
    each = np.array([entropy(row) for row in rows])
    assert estimate.high - estimate.low == pytest.approx(
        2 * 1.96 * each.std() / math.sqrt(2000), rel=0.1
    )
    assert advise(soft_labels=rows) == (estimate,)
    assert advise(soft_labels=rows, seed=1) != (estimate,)


@pytest.mark.parametrize("labels", [3, 5, 10])
def test_the_jackknife_takes_away_bias_of_few_labels(labels):
    # All outcomes of so many labels that are wrong with probability 0.1, each as often as it is
    # expected in 10^6.
    p = [math.comb(labels, k) * 0.1**k * 0.9 ** (labels - k) for k in range(labels + 1)]
    often = [round(1e6 * q) for q in p]
    counts = np.repeat([[labels - k, k] for k in range(labels + 1)], often, axis=0)[::50]
    plug_in = entropy(counts / labels)
    [estimate] = advise(repeated_labels=counts)
    assert abs(estimate.level - label_noise_entropy(0.1)) < 0.45 * abs(
        plug_in - label_noise_entropy(0.1)
    )
    # By hand: for (2, 1), 3 H(2/3, 1/3) - 2 (2 ln 2 + 0) / 3; 3 labels that agree give 0.
    [two] = advise(repeated_labels=[[2, 1], [3, 0], [0, 3], [3, 0]])
    assert two.level == pytest.approx((3 * label_noise_entropy(1 / 3) - 4 / 3 * math.log(2)) / 4)


def test_a_validation_loss_gives_a_guess_and_everything_known_is_told_in_order():
    given = {"label_noise": 0.2, "lowest_val_loss": 0.5, "classes": 3}
    estimate = advise(
        labels=[0, 1, 2, 2], soft_labels=[[0.2, 0.3, 0.5]], repeated_labels=[[1, 1, 0]], **given
    )
    names = [
        "label entropy",
        "soft labels",
        "repeated labels",
        "label noise",
        "0.7 x lowest validation loss",
    ]
    assert [s.name for s in estimate] == names
    assert (estimate[-1].level, estimate[-1].low, estimate[-1].high) == (0.35, 0.125, 0.5)
    assert all(s.low <= s.level <= s.high for s in estimate)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [0.5, 1]}, "labels must be whole numbers"),
        ({"labels": [-100, 1]}, "labels must be whole numbers"),
        ({"labels": [0, 3], "classes": 3}, "to below classes=3"),
        ({"soft_labels": [[0.5, 0.6]]}, "rows of sum 1, got sums up to 1.1"),
        ({"soft_labels": [0.5, 0.5]}, r"soft_labels must be \[n, C\]"),
        ({"soft_labels": [[1.5, -0.5]]}, "not negative"),
        ({"repeated_labels": [[0.5, 0.5]]}, "whole numbers"),
        ({"repeated_labels": [[3, 0], [1, 0]]}, "two or more a row"),
        ({"label_noise": 0.6}, r"lie in \[0, \(C - 1\) / C\]"),
        (
            {"lowest_val_loss": math.nan},
            "lowest_val_loss must be above 0, got nan. Did the plain run diverge",
        ),
        (
            {"lowest_val_loss": -1.5},
            r"lowest_val_loss must be above 0, got -1.5. A share .* use find_level",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_advised_on_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        advise(**given)


def test_the_advisor_trains_nothing():
    def never(runs):
        raise AssertionError

    result = search(advisor(PROBLEM, label_noise=0.1), never)
    assert result.run.level is None
    assert result.records == ()
    assert [s.name for s in result.estimates] == ["label entropy", "label noise"]
    assert result.estimates[0] == advise(labels=PROBLEM.splits(0).train.y)[0]
    result = search(advisor(regression(), lowest_val_loss=0.3), never)
    assert len(result.estimates) == 1
    assert "the targets are no classes" in result.warnings[1]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            lambda: backward(PROBLEM, [0.1], until_loss=0.1, until_accuracy=1.0),
            "exactly one of until_loss",
        ),
        (
            lambda: accordance(PROBLEM, direction="both"),
            "direction must be 'down' or 'up', got 'both'",
        ),
        (lambda: accordance(PROBLEM, smoothing=0), "smoothing must be at least 1"),
        (lambda: policy_gradient(PROBLEM, trainings=1), "trainings must be at least 2, got 1"),
        (lambda: policy_gradient(PROBLEM, rate=-1.0), "rate at least 0"),
        (lambda: tpe(PROBLEM, low=0.5, high=0.5), "low below high"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_trained(strategy, message):
    with pytest.raises(ValueError, match=message):
        next(strategy())


@pytest.mark.parametrize("batches", [1, 41])
def test_accordance_needs_a_workable_number_of_batches(batches):
    with pytest.raises(
        ValueError, match=f"batches must lie in 2 to the 40 training examples, got {batches}"
    ):
        watch_accordance(PROBLEM.build(0), PROBLEM, PROBLEM.splits(0), batches=batches)


def test_weights_of_a_policy_must_fit_its_levels():
    with pytest.raises(
        ValueError, match=r"weights must be 5 for each of 2 levels, got rows of \[5, 5, 5\]"
    ):
        Policy((0.0, 0.1), epochs=3, weights=WEIGHTS)


def test_side_by_side_each_finds_what_it_finds_alone():
    makes = [
        partial(finder, seeds=[0]),
        partial(halving, seeds=[1]),
        partial(tpe, trainings=13, batch=3),
        grid,
    ]
    alone = [search(make(PROBLEM), fake_records) for make in makes]
    asked = []

    def ask(runs):
        asked.append(len(runs))
        return fake_records(runs)

    result, records = run_generator(run_concurrently([make(PROBLEM) for make in makes]), ask)
    for one, other in zip(alone, result, strict=True):
        assert repr(one.run) == repr(other.run)
        assert one.estimates == other.estimates
        assert [r.content_hash for r in one.records] == [r.content_hash for r in other.records]
    assert len(asked) < sum(map(len, ([1, 1], [1] * 3, [1] * 5, [1]))), "rounds are shared"
    assert len(records) == sum(len(one.records) for one in alone)
    assert run_generator(run_concurrently([]), ask) == ([], [])


def test_side_by_side_a_failure_closes_all():
    closed = []

    def waits(name):
        try:
            yield [Run(PROBLEM, 0.1)]
            yield [Run(PROBLEM, 0.2)]
        finally:
            closed.append(name)

    def fails(runs):
        raise RuntimeError("the cluster is gone")

    with pytest.raises(RuntimeError, match="cluster"):
        run_generator(run_concurrently([waits("a"), waits("b")]), fails)
    assert sorted(closed) == ["a", "b"]


def test_drive_gives_what_a_generator_returns_and_counts_its_records():
    def two_rounds():
        first = yield [Run(PROBLEM, 0.1)]
        second = yield [Run(PROBLEM, 0.2), Run(PROBLEM, 0.3)]
        return len(first) + len(second)

    value, records = run_generator(two_rounds(), fake_records)
    assert value == 3
    assert [record.level for record in records] == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="a Record for each Run, got 0 for 1"):
        run_generator(two_rounds(), lambda runs: [])
    assert isinstance(search(grid(PROBLEM, [0.0, 0.1]), fake_records), SearchResult)


def test_the_finder_says_when_plain_training_lies_within_chance():
    def search_with(examples):
        def run_all(runs):
            return [
                replace(r, metadata={"val_examples": examples} if examples else {})
                for r in fake_records(runs)
            ]

        return search(finder(PROBLEM), run_all)

    few, many, unknown = search_with(10), search_with(10**9), search_with(None)
    assert few.level == many.level == unknown.level
    assert any("plain training may be as good" in warning for warning in few.warnings)
    assert few.estimates[0].low == 0
    assert few.estimates[0].high > many.estimates[0].high
    assert (many.estimates[0].low, many.estimates[0].high) == (many.level, many.level)
    assert not any(
        "plain training may be as good" in w for result in (many, unknown) for w in result.warnings
    )
    assert unknown.estimates[0].low < unknown.level < unknown.estimates[0].high, "its neighbours"


def two_levels(problem, *, seeds=(0,)):
    """A strategy of a user's own."""
    records = yield [Run(problem, level, seed=seed) for level in (0.1, 0.3) for seed in seeds]
    best = max(records, key=tail_key)
    return SearchResult("two levels", best.run, (LevelEstimate("mine", best.run.level, 0.1, 0.3),))


def test_a_strategy_of_a_users_own_is_driven_like_any_other():
    check_strategy(lambda: two_levels(PROBLEM))
    result = search(two_levels(PROBLEM), fake_records)
    assert result.level == 0.1  # fake Records are best near 0.1
    assert [record.level for record in result.records] == [0.1, 0.3]
    trained = flooding.find_level(PROBLEM, strategy=two_levels, seeds=[3], workers=0)
    assert trained.strategy == "two levels"
    assert {record.run.seed for record in trained.records} == {3}
    # What find_level adds: the limit that the labels set.
    assert [estimate.name for estimate in trained.estimates] == ["mine", "label entropy"]
