"""The loop against the obvious implementation, and what it leaves alone."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch

from flooding import Problem, Run, train
from flooding.data import Split, Splits
from flooding.levels import Delayed, Excess, PerClass, PerExample
from flooding.methods import SAM, Flooding, GradientPenalty, IFlood, SoftAD, WaveBound
from flooding.training.loop import fingerprint
from flooding.training.problem import TestCurve
from flooding.training.record import select_best
from slow_twin import by_hand
from small import normed, regression, small

decay = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)


def last(run, **extra):
    return list(train(run, **extra))[-1]


@pytest.mark.parametrize(
    "level", [None, 0.3, 0.65], ids=["plain", "flooded", "flooded from the start"]
)
@pytest.mark.parametrize(
    "problem",
    [small(), normed(), small(lr_scheduler=decay, max_grad_norm=0.1)],
    ids=["full", "batches", "schedule and clip"],
)
def test_weights_and_losses_equal_the_obvious_loop_bit_for_bit(problem, level):
    run = Run(problem, level, seed=3)
    weights, losses = by_hand(run)
    row = last(run)
    assert all(torch.equal(row.weights["last"][name], weights[name]) for name in weights)
    sizes = [
        len(part) for part in torch.arange(len(problem.splits(3).train)).split(problem.batch_size)
    ]
    epochs = np.average(np.reshape(losses, (6, -1)), axis=1, weights=sizes)
    np.testing.assert_allclose(row.record.curves["train_loss"][1:], epochs, rtol=1e-6)
    if problem.batch_size == 100:  # one batch an epoch: the very same numbers
        assert row.record.curves["train_loss"][1:].tolist() == np.float32(losses).tolist()
        assert row.record.curves["flooded"][1:].tolist() == [
            float(level is not None and x < level) for x in losses
        ]


def test_level_zero_equals_plain_training_of_a_loss_that_is_never_negative():
    assert (
        last(Run(small(), 0.0)).record.weights_sha256
        == last(Run(small(), None)).record.weights_sha256
    )


def test_flooding_changes_the_weights_only_after_a_loss_below_the_level():
    rows = {level: last(Run(small(max_epochs=30), level)) for level in (None, 0.5)}
    plain, flooded = (rows[level].record.curves["train_loss"] for level in (None, 0.5))
    below = int(np.argmax(plain[1:] < 0.5)) + 1
    assert 1 < below < 30
    assert plain[: below + 1].tolist() == flooded[: below + 1].tolist()
    assert plain[below + 1] != flooded[below + 1]
    assert flooded[-5:].mean() > plain[-5:].mean()


def test_a_row_per_epoch_from_before_training_and_a_record_at_the_end():
    rows = list(train([Run(small(), 0.3), Run(small(), None)]))
    assert [row.epoch for row in rows] == [*range(7), *range(7)]
    assert [row.record is not None for row in rows] == ([False] * 6 + [True]) * 2
    record = rows[6].record
    assert {len(curve) for curve in record.curves.values()} == {7}
    for name in ("val_loss", "val_accuracy", "train_loss", "flooded", "level"):
        np.testing.assert_array_equal(
            record.curves[name], np.float32([row.values[name] for row in rows[:7]])
        )
        assert np.float32(record.metrics[f"last.{name}"]) == record.curves[name][-1]
    best = choose_epoch(record)
    assert record.metrics["best.epoch"] == best
    assert np.float32(record.metrics["best.val_loss"]) == record.curves["val_loss"][best]


def test_a_record_tells_of_how_many_examples_its_validation_is():
    assert last(Run(small(), stop_epoch=1)).record.metadata["val_examples"] == 30


def choose_epoch(record):
    accuracy, loss = record.curves["val_accuracy"], record.curves["val_loss"]
    return max(range(1, len(loss)), key=lambda e: (accuracy[e], -loss[e], -e))


def test_send_ends_a_run_and_gives_its_record():
    rows = train([Run(small(), 0.3), Run(small(), None, seed=1)])
    assert [next(rows).epoch for _ in range(3)] == [0, 1, 2]
    ended = rows.send(True)
    assert ended.record.metrics["epochs"] == 2
    assert (
        ended.record.weights_sha256 == last(Run(small(), 0.3, stop_epoch=2)).record.weights_sha256
    )
    assert next(rows).run.seed == 1


def test_until_stops_on_the_way_of_the_longer_run():
    short, whole = (last(Run(normed(), 0.3, stop_epoch=until)).record for until in (3, None))
    for name, curve in short.curves.items():
        np.testing.assert_array_equal(curve, whole.curves[name][:4])


def test_the_callers_generator_and_threads_stay_as_they_were_between_rows():
    torch.set_num_threads(2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for _ in train(Run(normed(), 0.3)):
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_two_interleaved_trainings_do_not_disturb_each_other():
    alone = last(Run(normed(), 0.3)).record.content_hash
    one, two = train(Run(normed(), 0.3)), train(Run(normed(), 0.3))
    rows = [(next(one), torch.rand(1), next(two)) for _ in range(7)][-1]
    assert rows[0].record.content_hash == rows[2].record.content_hash == alone


def test_test_curves_are_measured_where_asked():
    record = last(Run(small(max_epochs=7, test_curve=TestCurve(50, every=3)), None)).record
    assert np.flatnonzero(~np.isnan(record.curves["test_loss"])).tolist() == [0, 3, 6, 7]
    assert "test_loss" not in last(Run(small(), None)).record.curves
    assert last(Run(small(max_epochs=7), None)).record.weights_sha256 == record.weights_sha256


def test_finals_are_metrics_of_the_best_and_the_last_weights():
    run = Run(normed(max_epochs=20), 0.3)
    row, test = last(run), run.problem.splits(0).test
    model = run.problem.build(0).eval()
    for at in ("best", "last"):
        model.load_state_dict(row.weights[at])
        with torch.no_grad():
            result = model(test.x)
        assert row.record.metrics[f"{at}.test_accuracy"] == pytest.approx(
            (result.argmax(1) == test.y).float().mean()
        )
        clean = (result.argmax(1) == test.clean).float().mean()
        assert row.record.metrics[f"{at}.test_accuracy_clean"] == pytest.approx(clean)
        nll = torch.nn.functional.cross_entropy(result, test.y)
        assert row.record.metrics[f"{at}.test_nll"] == pytest.approx(float(nll), rel=1e-5)


def test_the_probe_keeps_probabilities():
    record = last(Run(small(probe_inputs=partial(torch.zeros, 5, 10)), None)).record
    assert record.arrays["last.probe"].shape == (5, 2)
    np.testing.assert_allclose(record.arrays["last.probe"].sum(1), 1, rtol=1e-6)


def test_regression_with_inputs_in_a_dict():
    record = last(Run(regression(max_epochs=50), 0.05)).record
    assert record.metrics["last.train_loss"] < record.curves["train_loss"][0] / 2
    assert record.metrics["best.epoch"] == 1 + np.argmin(record.curves["val_loss"][1:])
    assert "last.val_accuracy" not in record.metrics


def test_a_controller_moves_the_level():
    curves = last(Run(small(max_epochs=60), Delayed(0.5, until_loss=0.2))).record.curves
    begun = int(np.argmax(curves["level"] == 0.5))
    assert np.isneginf(curves["level"][1:begun]).all()
    assert (curves["level"][begun:] == 0.5).all()
    assert curves["train_loss"][begun - 1] <= 0.2 < curves["train_loss"][-1]


def test_per_example_methods_see_their_own_levels():
    problem = small(max_epochs=60)
    ids = problem.splits(0).train.id
    levels = torch.where(ids % 2 == 0, 0.1, 0.6)
    run = Run(problem, PerExample(levels, ids), IFlood())
    model, split = problem.build(0).eval(), problem.splits(0).train
    model.load_state_dict(last(run).weights["last"])
    losses = torch.nn.functional.cross_entropy(model(split.x), split.y, reduction="none").detach()
    assert losses[ids % 2 == 0].mean() < 0.3 < 0.5 < losses[ids % 2 == 1].mean()


def test_a_per_example_method_needs_a_loss_with_a_reduction():
    problem = small(loss=lambda output, y: torch.nn.functional.cross_entropy(output, y))
    with pytest.raises(ValueError, match="reduction='none'"):
        last(Run(problem, 0.3, SoftAD()))


def test_a_diverging_run_ends_and_is_never_chosen():
    diverging = last(Run(small(optimizer=partial(torch.optim.SGD, lr=1e12)), 0.2)).record
    assert not np.isfinite(diverging.metrics["last.val_loss"])
    sound = last(Run(small(), 0.3)).record
    assert select_best([diverging, sound], "last") is sound
    assert select_best([diverging, sound], "best") is sound


def test_first_flooded_weights_come_from_before_the_first_step_below_the_level():
    run = Run(small(max_epochs=40), 0.5)
    row = last(run, keep_first_flooded=True)
    below = int(np.argmax(row.record.curves["flooded"] > 0))
    model, split = run.problem.build(0), run.problem.splits(0).train
    model.load_state_dict(row.weights["first_flooded"])
    assert (
        torch.nn.functional.cross_entropy(model(split.x), split.y).item()
        == row.record.curves["train_loss"][below]
    )
    assert "first_flooded" not in last(Run(small(), 1e-9), keep_first_flooded=True).weights


def test_a_frozen_model_is_refused():
    frozen = torch.nn.Linear(10, 2).requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="require a gradient"):
        last(Run(Problem(small().data, frozen, max_epochs=1)))


def test_wavebound_floods_at_its_teacher():
    problem = regression(max_epochs=40, batch_size=10)
    curves = last(Run(problem, None, WaveBound(epsilon=0.01, decay=0.9))).record.curves
    plain = last(Run(problem, None)).record.curves
    assert curves["flooded"][-5:].mean() > 0
    assert np.isfinite(curves["level"][1:]).all()
    assert (curves["level"][1:] != curves["train_loss"][1:]).any()
    assert (plain["train_loss"] != curves["train_loss"]).any()


def test_sam_equals_its_two_passes_by_hand_and_keeps_the_callers_optimiser():
    problem = small(optimizer=partial(torch.optim.SGD, lr=0.1), max_epochs=3)
    model, split = problem.build(0), problem.splits(0).train
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def gradient():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(split.x), split.y).backward()

    for _ in range(3):
        gradient()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        moves = [0.05 * p.grad / norm for p in model.parameters()]
        with torch.no_grad():
            [p.add_(move) for p, move in zip(model.parameters(), moves, strict=True)]
        gradient()
        with torch.no_grad():
            [p.sub_(move) for p, move in zip(model.parameters(), moves, strict=True)]
        optimizer.step()
    weights = last(Run(problem, None, SAM(0.05))).weights["last"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)
    assert (
        last(Run(problem, None)).record.weights_sha256
        != last(Run(problem, None, SAM(0.05))).record.weights_sha256
    )


def test_sam_with_a_level_holds_the_loss():
    plain, held = (
        last(Run(small(max_epochs=60), level, SAM(0.05))).record.metrics["last.train_loss"]
        for level in (None, 0.4)
    )
    assert plain < 0.1 < 0.3 < held


def test_the_gradient_penalty_equals_its_formula_and_lowers_the_gradient():
    problem = small(
        optimizer=partial(torch.optim.SGD, lr=0.1),
        max_epochs=1,
        model=partial(torch.nn.Linear, 10, 2),
    )
    model, split = problem.build(0).double(), problem.splits(0).train
    x = torch.cat([split.x, torch.ones(40, 1)], 1).double()
    w = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    # Closed form for softmax regression: g = (p - y)^T x / n, and d(|g|^2 / 2)/dw through the
    # softmax Jacobian.
    p, y = (x @ w.T).softmax(1), torch.nn.functional.one_hot(split.y, 2).double()
    g = (p - y).T @ x / 40
    v = x @ g.T
    hv = (p * (v - (p * v).sum(1, keepdim=True))).T @ x / 40
    expected = w - 0.1 * (g + 0.5 * hv)
    result = last(Run(problem, None, GradientPenalty(0.5))).weights["last"]
    torch.testing.assert_close(
        torch.cat([result["weight"], result["bias"][:, None]], 1).double(),
        expected,
        rtol=0,
        atol=1e-6,
    )


def test_lbfgs_gets_the_closure_it_wants():
    problem = small(
        optimizer=partial(torch.optim.LBFGS, lr=0.5, line_search_fn="strong_wolfe"), max_epochs=8
    )
    record = last(Run(problem, None)).record
    assert record.curves["train_loss"][-1] < 0.1
    held = last(Run(problem, 0.3)).record
    assert 0.2 < held.curves["train_loss"][-1] < 0.45


def test_what_is_reported_is_the_plain_loss_where_training_uses_another():
    smooth = partial(torch.nn.functional.cross_entropy, label_smoothing=0.2)
    problem = small(loss=smooth, eval_loss=torch.nn.functional.cross_entropy)
    row = last(Run(problem))
    model, split = problem.build(0).eval(), problem.splits(0).val
    model.load_state_dict(row.weights["last"])
    with torch.no_grad():
        plain, smoothed = (
            float(loss(model(split.x), split.y)) for loss in (problem.eval_loss, smooth)
        )
    assert row.record.metrics["last.val_loss"] == pytest.approx(plain, rel=1e-5)
    assert abs(plain - smoothed) > 1e-3
    assert row.record.weights_sha256 == last(Run(small(loss=smooth))).record.weights_sha256


def test_a_training_example_without_a_level_is_an_error_before_training():
    problem = small()
    ids = problem.splits(0).train.id
    with pytest.raises(ValueError, match="every training example needs a level"):
        next(train(Run(problem, PerExample(torch.zeros(39), ids[:39]), IFlood())))


def test_a_per_example_method_without_a_level_is_plain_training():
    plain, each = (last(Run(small(), None, method)).record for method in (Flooding(), IFlood()))
    np.testing.assert_allclose(each.curves["train_loss"], plain.curves["train_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0])),
        partial(
            torch.nn.functional.cross_entropy, weight=torch.tensor([1.0, 5.0]), label_smoothing=0.1
        ),
        partial(torch.nn.functional.cross_entropy, ignore_index=0),
    ],
    ids=["module with class weights", "function with class weights", "ignored class"],
)
def test_per_example_methods_keep_torchs_weighted_mean(loss):
    problem = small(loss=loss)
    plain, unflooded = (
        last(Run(problem, level, m)).record for level, m in ((None, Flooding()), (-10.0, IFlood()))
    )
    np.testing.assert_allclose(
        unflooded.curves["train_loss"], plain.curves["train_loss"], rtol=1e-4
    )
    assert (unflooded.curves["flooded"] == 0).all()


def test_excess_levels_of_soft_targets_are_averaged_for_the_batch_mean():
    x = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).repeat(20, 1)
    parts = [Split(x[:20], soft[:20]), Split(x[20:30], soft[20:30]), Split(x[30:], soft[30:])]
    problem, mean = small(data=Splits(*parts)), 0.1 + np.log(2) / 2
    row, constant = last(Run(problem, Excess(0.1, classes=2))), last(Run(problem, mean))
    np.testing.assert_allclose(row.record.curves["level"][1:], mean, rtol=1e-6)
    for name, tensor in constant.weights[
        "last"
    ].items():  # and the mean is what acts, not each example's level
        torch.testing.assert_close(row.weights["last"][name], tensor)


def test_what_a_run_cannot_mean_is_refused():
    with pytest.raises(ValueError, match="Leave the level out"):
        Run(small(), 0.3, WaveBound(epsilon=0.01))
    with pytest.raises(ValueError, match="Use IFlood"):
        Run(small(), PerClass(torch.tensor([0.1, 0.2])))


def test_a_delayed_run_that_never_starts_counts_as_plain_and_is_stored_whole(tmp_path):
    record = last(Run(small(), Delayed(0.3, until_loss=1e-9))).record
    assert record.level is None
    assert record.metrics["last.level"] == -np.inf
    restored = type(record).unpack(record.run, *record.pack(), "{}")
    assert restored.content_hash == record.content_hash
    assert restored.metrics["last.level"] == -np.inf


def test_a_level_per_example_meets_its_own_examples_losses_where_these_have_several_outputs():
    problem = regression(max_epochs=30, optimizer=partial(torch.optim.SGD, lr=0.1))
    ids = problem.splits(0).train.id
    levels = torch.where(ids < 20, 0.0, 3.0)
    split, model = problem.splits(0).train, problem.build(0)
    optimizer = problem.optimizer(model.parameters())
    for _ in range(30):
        losses = (model(split.x) - split.y).square().squeeze(1)
        optimizer.zero_grad()
        ((losses - levels).abs() + levels).mean().backward()
        optimizer.step()
    result = last(Run(problem, PerExample(levels, ids), IFlood())).weights["last"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(result[name], tensor)


def test_the_closure_of_lbfgs_returns_what_was_differentiated():
    values = []

    class Spy(torch.optim.SGD):
        def step(self, closure):
            values.append(closure())

    raw = last(Run(small(optimizer=partial(Spy, lr=0.1), max_epochs=2), 2.0)).record.curves[
        "train_loss"
    ][1]
    assert values[0] == pytest.approx(2 * 2.0 - raw, rel=1e-6)


class NoClosure(torch.optim.SGD):
    def step(self):
        super().step()


class Caching(torch.nn.Linear):
    """Keeps a tensor of its first forward pass, and something else in its state dict."""

    def __init__(self):
        super().__init__(10, 2)
        self.scale = None

    def forward(self, x):
        if self.scale is None:
            self.scale = x.new_ones(2) * 2
        return super().forward(x) * self.scale

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        assert state == {"version": 1}


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class OfPair(torch.nn.Linear):
    def forward(self, pair):
        return super().forward(pair.left + pair.right)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": partial(NoClosure, lr=0.1)},
        {"model": Caching},
        {
            "lr_scheduler": partial(
                torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0
            )
        },
        {"model": partial(torch.nn.utils.parametrizations.weight_norm, torch.nn.Linear(10, 2))},
    ],
    ids=[
        "an optimiser without closure",
        "a module that caches",
        "a schedule that wants the loss",
        "weight norm",
    ],
)
def test_users_modules_optimisers_and_schedules_train(changes):
    record = last(Run(small(max_epochs=5, **changes), 0.3)).record
    assert record.curves["train_loss"][-1] < record.curves["train_loss"][0]
    if "lr_scheduler" in changes:
        assert record.curves["lr"][-1] < record.curves["lr"][0]


def test_inputs_in_a_named_tuple():
    def split(n, seed):
        x = torch.randn(n, 10, generator=torch.Generator().manual_seed(seed))
        return Split(Pair(x, 2 * x), (x[:, 0] > 0).long())

    problem = small(data=Splits(*(split(20, n) for n in range(3))), model=partial(OfPair, 10, 2))
    assert np.isfinite(last(Run(problem, 0.3)).record.metrics["last.val_loss"])


def test_a_consumer_cannot_change_the_record():
    rows = train(Run(small(), 0.3))
    for row in rows:
        row.values["val_loss"] = -1.0
    assert (row.record.curves["val_loss"] > 0).all()


@pytest.mark.parametrize("method", [Flooding(), IFlood()])
def test_the_fingerprint_is_that_of_the_first_batch(method):
    loss = partial(torch.nn.functional.cross_entropy, label_smoothing=0.1)
    for problem in (small(loss=loss, eval_loss=torch.nn.functional.cross_entropy), normed()):
        run = Run(problem, 0.3, method)
        assert fingerprint(run) == last(run).record.fingerprint
    assert fingerprint(run) != fingerprint(Run(normed(batch_size=10), 0.3, method))


@pytest.mark.parametrize(
    "level", ["0.3", True, float("nan"), torch.tensor([0.1, 0.5]), torch.tensor(torch.nan), {}]
)
def test_what_is_no_level_is_refused(level):
    with pytest.raises(ValueError, match="level must be"):
        Run(small(), level)


def test_numpy_numbers_are_levels_and_seeds():
    run = Run(small(), np.float32(0.25), seed=np.int64(3))
    assert (run.level, run.seed) == (0.25, 3)
    assert run.key() == Run(small(), 0.25, seed=3).key()
