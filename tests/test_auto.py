"""A level that one training chooses: the rule against a slow twin, and everywhere it is taken."""

import gc
import json
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flooding import Flood, FloodStep, Run, find_level, run_all
from flooding.averaging import EMA
from flooding.level_search.auto import auto
from flooding.level_search.finder import finder
from flooding.level_search.sweep import sweep_of
from flooding.levels import Auto, PerClass, StepInfo, Warmup, epoch_end, simulate
from flooding.methods import IFlood
from flooding.models import mlp
from flooding.testing import check_controller, check_strategy
from flooding.training import loop
from flooding.training.loop import train
from flooding.training.problem import Score
from small import normed, regression, small

NAN = math.nan


def end(val_loss, val_accuracy=None, n_val=None, val_score=None):
    return StepInfo(None, None, val_loss, val_accuracy, n_val, val_score)


START = StepInfo(torch.tensor(2.3))  # the loss of a guess, far above what is learned later


def levels(controller, infos):
    return [state["level"].item() for state in simulate(controller, infos)]


# ---------------------------------------------------------------- the rule


def test_it_keeps_the_protocol():
    check_controller(Auto(epochs=10), compiled=True)
    check_controller(Auto(epochs=500), steps=8)


def falling_share(controller, epoch):
    progress = min(1.0, epoch / controller.sweep_epochs)
    return controller.start_share * (1 - progress) + controller.stop_share * progress


def mean_of(values, controller):
    """Average the values so far with weights that fall by one factor an epoch."""
    decay = math.exp(-1 / (controller.memory * controller.epochs))
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def twin(controller, ends, kind, first_loss):
    """Give the level before training and after every epoch, in plain Python."""
    level, lowest, held = -math.inf, math.inf, None
    shares, scores, recorded, first_score = [], [], [], None
    result = [level]
    for epoch, (val_loss, accuracy) in enumerate(ends, start=1):
        if val_loss < lowest:
            lowest = val_loss
        score = -val_loss if kind == "loss" or math.isnan(val_loss) else accuracy
        if first_score is None and math.isfinite(score):
            first_score = score
        # 1. Record the share that was in force in this epoch.
        if math.isfinite(level) and math.isfinite(score):
            shares.append(falling_share(controller, epoch - 1))
            scores.append(score)
            if epoch <= controller.sweep_epochs:
                recorded.append((mean_of(shares, controller), mean_of(scores, controller)))
        # 2. Choose once.
        if epoch >= controller.sweep_epochs and held is None:
            held = choose(recorded, first_score, kind, controller)
        # 3. The next level.
        share = falling_share(controller, epoch) if held is None else held
        ratio = lowest / first_loss
        trust = (controller.no_trust - ratio) / (controller.no_trust - controller.full_trust)
        level = min(1.0, max(0.0, trust)) * share * lowest
        if not (trust > 0 and ratio > 0 and math.isfinite(level)):
            level = -math.inf
        result.append(level)
    return result


def choose(recorded, first_score, kind, controller):
    if not recorded:
        return (controller.start_share + controller.stop_share) / 2
    best = max(score for _, score in recorded)
    noise = max(0.05 * (best - first_score), 1e-38)
    if kind == "counted":
        p = (50 * best + 1) / 52
        noise = 0.5 * math.sqrt(p * (1 - p) / 50)
    weights = []
    for _, score in recorded:
        z = (best - score) / noise
        weights.append(math.exp(-z * z / 2) if z < 1e3 else 0.0)
    total = sum(weight * share for weight, (share, _) in zip(weights, recorded, strict=True))
    return total / sum(weights)


some_ends = st.lists(
    st.tuples(
        st.sampled_from([0.9, 0.7, 0.5, 0.3, 0.0, -0.2, NAN, math.inf]),
        st.sampled_from([0.5, 0.6, 0.61, 0.9, 1.0, NAN]),
    ),
    max_size=14,
)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    epochs=st.integers(1, 14),
    ends=some_ends,
    kind=st.sampled_from(["accuracy", "counted", "score", "loss"]),
)
def test_the_levels_are_those_of_a_slow_twin(epochs, ends, kind):
    infos = []
    for val_loss, accuracy in ends:
        infos.append(StepInfo(torch.tensor(1.0)))
        infos.append(
            {
                "accuracy": end(val_loss, accuracy),
                "counted": end(val_loss, accuracy, n_val=50),
                "score": end(val_loss, 0.3, 50, val_score=accuracy),
                "loss": end(val_loss),
            }[kind]
        )
    controller = Auto(epochs=epochs, memory=0.1)
    expected = twin(controller, ends, kind, first_loss=1.0)
    # Every second entry is the end of an epoch; float32 against float64.
    assert levels(controller, infos)[::2] == pytest.approx(expected, rel=1e-3)


# ---------------------------------------------------------------- edges


def test_the_number_of_epochs_must_be_known():
    with pytest.raises(ValueError, match="Auto needs the number of epochs"):
        Auto().init()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="Auto needs the number of epochs"):
        FloodStep(optimizer, Auto())
    with pytest.raises(ValueError, match="Auto needs the number of epochs"):
        Flood(nn.MSELoss(), Auto())
    with pytest.raises(TypeError, match="needs val_loss after every epoch"):
        simulate(Auto(epochs=5), [StepInfo(val_accuracy=0.5)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"sweep": 0.0},
        {"sweep": 1.0},
        {"floor": NAN},
        {"stop_share": 1.0},
        {"stop_share": 0.0},
        {"full_trust": 0.9},
        {"memory": 1.0},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Auto(**{"epochs": 10} | wrong)


def test_more_validation_examples_narrow_the_choice():
    accuracies = np.concatenate([np.linspace(0.5, 0.9, 30), np.linspace(0.9, 0.6, 40)])
    spreads = []
    for n_val in (20, 200, 20_000):
        infos = [START, *(end(0.6, float(a), n_val) for a in accuracies)]
        controller = Auto(epochs=100)
        state = simulate(controller, infos)[-1]
        weights = controller.weigh(state, infos[-1])
        spreads.append(int((weights > 0.5).sum()))
    assert spreads[0] > spreads[1] > spreads[2] >= 1


def test_without_a_finite_validation_loss_it_is_plain_training():
    ends = [end(value, 0.9) for value in (NAN, math.inf, NAN, math.inf) * 4]
    assert set(levels(Auto(epochs=10), ends)) == {-math.inf}


def test_a_divergence_leaves_the_choice_to_what_was_measured_before():
    good = [START, *(end(0.8, accuracy, 100) for accuracy in (0.5, 0.7, 0.9))]
    bad = [end(NAN, 0.1, 100)] * 9
    controller = Auto(epochs=10)
    level = levels(controller, good + bad)[-1]
    # Mostly the share of the third epoch, which came after two.
    assert level == pytest.approx(0.8 * falling_share(controller, 2), abs=0.01)
    assert levels(controller, good + bad + good)[-1] == level


def test_a_training_that_goes_on_keeps_its_level():
    infos = [START, *(end(0.8, accuracy, 100) for accuracy in (0.5, 0.7, 0.9, 0.8, 0.7, 0.6))]
    result = levels(Auto(epochs=8), infos * 3)
    assert len(set(result[7:])) == 1
    # The lowest validation loss is followed, also later.
    assert levels(Auto(epochs=8), [*infos, end(0.4)])[-1] == pytest.approx(result[-1] / 2)


def test_where_the_loss_is_never_above_the_floor_it_is_plain_training():
    infos = [START, end(-0.5), end(-0.6), end(-0.7)]
    assert set(levels(Auto(epochs=4), infos)) == {-math.inf}
    controller = Auto(epochs=4, floor=-1.0)
    share = falling_share(controller, 1)
    assert levels(controller, infos[:2])[-1] == pytest.approx(-1 + share * 0.5)


def test_trust_in_the_validation_loss_grows_as_it_falls():
    first = StepInfo(torch.tensor(1.0))
    results = [
        levels(Auto(epochs=1000), [first, end(loss)])[-1] for loss in (0.85, 0.775, 0.7, 0.5)
    ]
    # No trust, half of it, and all of it.
    share = falling_share(Auto(epochs=1000), 1)
    assert results == [-math.inf, *(pytest.approx(share * x) for x in (0.5 * 0.775, 0.7, 0.5))]


# ---------------------------------------------------------------- a Run


def test_a_run_fills_in_the_epochs_of_its_problem():
    run = Run(small(), Auto())
    assert run.level == Auto(epochs=6)
    assert run.key() == Run(small(), Auto(epochs=6)).key() != Run(small(), Auto(epochs=7)).key()
    assert Run(small(), Auto(epochs=9)).level.epochs == 9
    assert Run(small(), Auto(), stop_epoch=3).level.epochs == 6


def overfitting(**changes):
    return small(max_epochs=30, **changes)


def test_shared_first_steps_and_a_resumed_training_have_the_same_bits(tmp_path):
    run = Run(overfitting(), Auto())
    [alone] = run_all([run], ledger=False, workers=0)
    runs = [Run(run.problem), run, Run(run.problem, 0.05)]
    shared = run_all(runs, ledger=tmp_path / "ledger.sqlite", workers=0)[1]
    assert shared.content_hash == alone.content_hash
    rows = train(run)
    for row in rows:
        if row.epoch == 11:
            snapshot = row.snapshot(copied=True)
            break
    *_, last = train(run, resume=snapshot)
    assert last.record.content_hash == alone.content_hash
    assert math.isfinite(alone.metrics["last.level"])
    assert alone.curves["flooded"].max() > 0


def test_a_training_that_learns_nothing_is_plain_training():
    still = overfitting(optimizer=partial(torch.optim.SGD, lr=0.0))
    plain, auto_record = run_all([Run(still), Run(still, Auto())], ledger=False, workers=0)
    assert auto_record.curves["flooded"].max() == 0
    assert auto_record.weights_sha256 == plain.weights_sha256
    assert auto_record.metrics["last.level"] == -math.inf
    result = find_level(still, budget=1, workers=0)
    assert result.level is None
    assert "chose no level: they are plain training" in result.warnings[0]


def test_a_level_that_is_never_reached_floods_nothing():
    # With dropout the training loss stays above the validation loss, and so above the level.
    model = partial(mlp, 10, 2, width=30, depth=1, dropout=0.8)
    noisy = small(model=model, optimizer=partial(torch.optim.Adam, lr=1e-2), max_epochs=40)
    plain, auto_record = run_all([Run(noisy), Run(noisy, Auto())], ledger=False, workers=0)
    assert 0 < auto_record.metrics["last.level"] < auto_record.curves["train_loss"][1:].min()
    assert auto_record.curves["flooded"].max() == 0
    assert auto_record.weights_sha256 == plain.weights_sha256


@pytest.mark.parametrize(
    "problem",
    [
        regression(max_epochs=20),
        normed(max_epochs=10),
        small(score=Score(nn.functional.cross_entropy, greater_is_better=False), max_epochs=20),
    ],
    ids=["loss alone", "mini-batches with dropout", "a score of which less is better"],
)
def test_any_problem_can_choose_its_level(problem):
    [record] = run_all([Run(problem, Auto())], ledger=False, workers=0)
    assert math.isfinite(record.metrics["last.level"])
    assert sweep_of(record) is not None


def test_the_score_of_a_problem_reaches_the_controller_with_its_sign():
    seen = []

    class Spy(Auto):
        def update(self, state, info):
            if info.loss is None:
                seen.append(info)
            return super().update(state, info)

    score = Score(nn.functional.cross_entropy, greater_is_better=False)
    problem = small(score=score, max_epochs=2)
    list(train(Run(problem, Spy(epochs=2))))
    assert [info.n_val for info in seen] == [30, 30]
    assert all(info.val_score == pytest.approx(-info.val_loss) for info in seen)


# ---------------------------------------------------------------- loops of the user's own


def loop_levels(problem, kind, epochs=20, restart=None):
    """Train by hand in batches with FloodStep or Flood; give the level of every epoch."""
    splits, model = problem.splits(0), problem.build(0)
    optimizer = problem.optimizer(model.parameters())
    plain = nn.CrossEntropyLoss()
    step, criterion = None, plain
    if kind == "step":
        step = FloodStep(optimizer, Auto(epochs=epochs))
    else:
        criterion = Flood(plain, Auto(epochs=epochs))
    result = []
    for epoch in range(epochs):
        model.train()
        for batch, index in enumerate(torch.arange(40).split(10)):
            if (epoch, batch) == restart:
                # In the middle of an epoch: build anew and load.
                if step is not None:
                    state = step.state_dict()
                    step.remove()
                    step = FloodStep(optimizer, Auto(epochs=epochs))
                    step.load_state_dict(state)
                else:
                    state = criterion.controller_state()
                    criterion = Flood(plain, Auto(epochs=epochs))
                    criterion.load_controller_state(state)
            loss = criterion(model(splits.train.x[index]), splits.train.y[index])
            if step is not None:
                loss = step(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(splits.val.x)
        values = {
            "val_loss": plain(logits, splits.val.y),
            "val_accuracy": (logits.argmax(1) == splits.val.y).float().mean(),
            "n_val": len(splits.val),
        }
        (criterion if step is None else step).on_epoch_end(**values)
        result.append(float((criterion if step is None else step).level))
    return result


def test_both_loops_move_the_level_alike_and_resume_in_the_middle_of_an_epoch():
    by_step = loop_levels(small(), "step")
    assert by_step == loop_levels(small(), "criterion")
    assert math.isfinite(by_step[-1])
    assert len(set(by_step)) > 5
    for kind in ("step", "criterion"):
        assert loop_levels(small(), kind, restart=(7, 2)) == by_step


def test_a_criterion_takes_any_controller():
    criterion = Flood(nn.MSELoss(), Warmup(1.0, steps=2))
    x = torch.ones(3, requires_grad=True)
    seen = []
    for _ in range(3):
        criterion(x, torch.zeros(3)).backward()
        seen.append(criterion.level.item())
    assert seen == [0.5, 1.0, 1.0]
    assert criterion.controller_state().keys() == {"level", "started", "step"}
    criterion.level = 0.25  # from now on a number
    criterion(x, torch.zeros(3))
    assert criterion.level == 0.25
    assert criterion.controller_state() == {}
    criterion.on_epoch_end(val_loss=1.0)  # nothing takes notice
    with pytest.raises(ValueError, match="state must name the same tensors"):
        criterion.load_controller_state({"level": torch.tensor(0.0)})


def test_in_evaluation_a_criterion_shows_its_controller_nothing():
    criterion = Flood(nn.MSELoss(), Warmup(1.0, steps=2)).eval()
    criterion(torch.ones(3, requires_grad=True), torch.zeros(3))
    assert criterion.level == 0


def test_half_precision_leaves_the_state_of_a_controller_alone():
    criterion = Flood(nn.CrossEntropyLoss(), Auto(epochs=5)).half()
    criterion.on_epoch_end(val_loss=0.123456, val_accuracy=0.5)
    assert criterion.controller_state()["lowest"] == torch.tensor(0.123456)


def take_steps(count, kind):
    x = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([x], lr=0.0)
    criterion = Flood(nn.MSELoss(), Auto(epochs=5) if kind == "criterion" else None)
    step = FloodStep(optimizer, Auto(epochs=5) if kind == "step" else None)
    for _ in range(count):
        step(criterion(x, torch.zeros(2))).backward()
        optimizer.step()
    return criterion, step


def leave_after_steps(count, kind):
    take_steps(count, kind)
    gc.collect()


@pytest.mark.parametrize("kind", ["step", "criterion"])
def test_a_loop_that_never_shows_the_end_of_an_epoch_is_warned(kind, monkeypatch):
    monkeypatch.setattr(epoch_end, "_MAX_STEPS", 4)
    take_steps(3, kind)[kind == "step"].on_epoch_end(val_loss=1.0)
    with pytest.warns(UserWarning, match="after 4 steps on_epoch_end"):
        objects = take_steps(9, kind)  # warns once
    del objects
    with pytest.warns(UserWarning, match="after 3 steps on_epoch_end"):
        leave_after_steps(3, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leave_after_steps(9, "none")


def snapshot_at(run, epoch):
    for row in train(run):
        if row.epoch == epoch:
            snapshot = row.snapshot(copied=True)
    return snapshot, row.record


def step_and_criterion():
    criterion, step = take_steps(2, "criterion")[0], take_steps(2, "step")[1]
    return [(criterion, criterion.controller_state), (step, step.state_dict)]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"val_loss": 1.0, "val_accuracy": 80.0}, ValueError, "Divide per cent by 100"),
        ({"val_loss": 1.0, "val_accuracy": -1.0}, ValueError, "val_accuracy must be a share"),
        ({"val_loss": 1.0, "n_val": 0}, ValueError, "n_val must be a number of examples"),
        ({"val_loss": 1.0, "n_val": NAN}, ValueError, "n_val must be a number of examples"),
        ({"val_loss": -math.inf}, ValueError, "val_loss must be above -inf"),
        ({"val_loss": torch.rand(4)}, ValueError, r"one number, got a tensor of shape \(4,\)"),
        ({"val_loss": "0.5"}, TypeError, "val_loss must be a number, got '0.5'"),
        ({"val_loss": 1.0, "n_val": "100"}, TypeError, "n_val must be a number"),
        ({"val_accuracy": 0.5}, TypeError, "Pass val_loss=... to on_epoch_end"),
    ],
)
def test_an_end_of_an_epoch_that_cannot_be_is_refused_and_changes_nothing(values, error, message):
    for owner, state in step_and_criterion():
        before = state()
        with pytest.raises(error, match=message):
            owner.on_epoch_end(**values)
        after = state()
        for name, value in before.items():
            assert torch.allclose(value, after[name], equal_nan=True), name
        owner.on_epoch_end(val_loss=1.0)


def test_one_number_may_be_of_any_kind():
    expected = None
    for loss in (
        0.5,
        np.float32(0.5),
        torch.tensor(0.5),
        torch.tensor([0.5]),
        torch.ones(1, 1) / 2,
    ):
        criterion = take_steps(1, "criterion")[0]
        criterion.on_epoch_end(val_loss=loss, val_accuracy=np.float64(0.5), n_val=np.int64(9))
        assert criterion.level.shape == ()
        expected = criterion.level if expected is None else expected
        assert torch.equal(criterion.level, expected)


def test_every_epoch_is_judged_by_the_same_number():
    for owner, _ in step_and_criterion():
        owner.on_epoch_end(val_loss=1.0, val_accuracy=0.5)
        with pytest.raises(ValueError, match="got val_loss after val_accuracy"):
            owner.on_epoch_end(val_loss=1.0)
        with pytest.warns(UserWarning, match="came twice without a step"):
            owner.on_epoch_end(val_loss=1.0, val_accuracy=NAN)


def test_a_level_that_is_replaced_warns_of_nothing_and_a_refused_one_leaves_the_old(recwarn):
    for owner, _ in step_and_criterion():
        owner.level = 0.3
        with pytest.raises(ValueError, match="needs the number of epochs"):
            owner.level = Auto()
        assert owner.level == pytest.approx(0.3)
    table = PerClass([0.1, 0.2])
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), table, IFlood())
    with pytest.raises(ValueError, match="needs the number of epochs"):
        criterion.level = Auto()
    assert type(criterion.level) is PerClass
    del owner
    gc.collect()
    assert not recwarn


def test_a_state_of_other_epochs_is_refused_when_it_is_loaded():
    for owner, state in step_and_criterion():
        saved = state()
        owner.level = Auto(epochs=100)
        load = getattr(owner, "load_controller_state", None) or owner.load_state_dict
        with pytest.raises(ValueError, match=r"must have shape \(40,\), got \(2,\)"):
            load(saved)
    snapshot = snapshot_at(Run(small(max_epochs=10), Auto()), 5)[0]
    longer = Run(small(max_epochs=20), Auto())
    with pytest.raises(ValueError, match=r"must have shape \(8,\), got \(4,\)"):
        list(train(longer, resume=snapshot))


def test_a_loss_below_the_floor_is_never_raised_on_purpose():
    infos = [StepInfo(torch.tensor(-1.9)), *[end(-2.0 - t / 10) for t in range(8)]]
    assert set(levels(Auto(epochs=10), infos)) == {-math.inf}
    # A validation loss above that of the first batch looks like a ratio that is trusted.
    above = [StepInfo(torch.tensor(-1.9)), *[end(-0.9 - t / 20) for t in range(8)]]
    assert set(levels(Auto(epochs=10), above)) == {-math.inf}
    good = [StepInfo(torch.tensor(-0.5)), *[end(-2.0 - t / 10) for t in range(8)]]
    assert -4 < levels(Auto(epochs=10, floor=-4.0), good)[-1] < -2
    for owner, _ in step_and_criterion():
        with pytest.warns(UserWarning, match=r"below the floor of Auto, 0.*Auto\(floor=...\)"):
            owner.on_epoch_end(val_loss=-0.1)


# ---------------------------------------------------------------- a search


def negative(output, target):
    return -torch.exp(-((output - target) ** 2)).mean() * 3 - 1


def test_a_search_says_that_a_loss_below_the_floor_is_not_flooded():
    result = find_level(regression(loss=negative, max_epochs=15), budget=1, workers=0, ledger=False)
    assert result.level is None
    [below, plain] = result.warnings
    assert "below the floor of Auto, 0" in below
    assert plain == "1 of 1 runs chose no level: they are plain training"


def test_the_sweep_is_that_of_the_network_that_the_controller_saw():
    for monitor in ("average", "network"):
        problem = overfitting(averaging=EMA(0.9, monitor=monitor), batch_size=10)
        snapshot, record = snapshot_at(Run(problem, Auto()), 20)
        held_share = snapshot["controller"]["held_share"].item()
        assert sweep_of(record).held_share == pytest.approx(held_share, 1e-6)


def test_the_table_of_a_search_shows_what_differs_from_the_defaults():
    result = find_level(overfitting(), budget=1, workers=0, ledger=False)
    assert result.table[0]["level"] == "Auto(epochs=30)"


def test_where_no_level_was_chosen_nothing_is_said_of_coming_down_to_it():
    result = find_level(small(max_epochs=3), budget=1, workers=0, ledger=False)
    assert result.warnings == ("1 of 1 runs chose no level: they are plain training",)


def test_a_budget_is_a_number():
    for wrong in ("1", None, True):
        with pytest.raises(TypeError, match="budget must be a number of trainings"):
            find_level(overfitting(), budget=wrong)


def test_the_search_keeps_its_protocol():
    check_strategy(lambda: auto(small(max_epochs=20)))
    check_strategy(lambda: finder(small(max_epochs=20), budget=1, seeds=[0, 1]))


def test_a_budget_of_one_is_one_training_and_its_network(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    result = find_level(overfitting(), budget=1, ledger=path, workers=0)
    assert result.strategy == "auto"
    assert (result.cost.trainings, result.cost.steps) == (1.0, 1.0)
    [record] = result.records
    assert result.level == pytest.approx(record.metrics["last.level"])
    held, cap = result.estimates[:2]
    assert held.low <= held.level <= held.high <= cap.level
    *_, row = train(Run(overfitting(), Auto()))

    # The network is the one of that training: nothing is trained again.
    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "train", refuse)
    for epoch in ("last", "best"):
        weights = result.model(epoch).state_dict()
        assert all(torch.equal(weights[name], row.weights[epoch][name]) for name in weights)


def test_a_record_from_the_ledger_is_trained_again_for_its_network(tmp_path):
    path = tmp_path / "ledger.sqlite"
    first = find_level(overfitting(), budget=1, ledger=path, workers=0)
    second = find_level(overfitting(), budget=1, ledger=path, workers=0)
    assert first.weights is not None
    assert second.weights is None
    weights = first.model().state_dict(), second.model().state_dict()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_picture_is_validation_against_the_level(tmp_path):
    result = find_level(overfitting(), budget=1, ledger=tmp_path / "l.sqlite", workers=0)
    figure = result.plot()
    by_level = [axes for axes in figure.axes if axes.get_xlabel().startswith("Flood level")]
    assert len(by_level) == 2
    record = result.records[0]
    sweep = sweep_of(record)
    dots = by_level[0].get_lines()[0]
    level = np.float64(record.curves["level"][1 : sweep.epochs + 1])
    top = int(np.where(np.isfinite(level), level, -1).argmax())
    assert np.array_equal(dots.get_xdata(), level[top:])
    assert len(level[top:]) > 1


def test_the_command_line_runs_it(flooding):
    sizes = "--width 16 --depth 2 --test-samples 50 --epochs 12"
    code, out, err = flooding(f"run two-gaussians --schedule auto {sizes}")
    assert code == 0, err
    assert "level" in out
    code, _, err = flooding(f"run two-gaussians --schedule auto --level 0.1 {sizes}")
    assert code == 2
    assert "schedule auto takes no level, got 0.1" in err


def test_the_command_line_finds_a_level_in_one_training_and_saves_its_network(flooding, tmp_path):
    lines = ["size,colour,income"]
    for i in range(90):
        size = (i * 7) % 11
        lines.append(f"{size},{['red', 'blue', ''][i % 3]},{int(size > 4)}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    line = "find table.csv --target income --budget 1 --epochs 40 --workers 0 --save model"
    code, out, err = flooding(line)
    assert code == 0, err
    assert "(auto; 1.00 trainings' steps, 40 epochs" in out
    assert (
        "In your own loop: criterion = flooding.Flood(criterion, flooding.levels.Auto(epochs=40))"
        in out
    )
    summary = json.loads((tmp_path / "flooding-find" / "found.json").read_text())
    assert 0 < summary["level"] < 0.7
    code, out, err = flooding("predict model table.csv")
    assert code == 0, err
