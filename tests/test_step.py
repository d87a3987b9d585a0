"""Flooding a whole optimiser step: equal to flooding its whole batch, in every loop that PyTorch
offers."""

from __future__ import annotations

import copy
import io
import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from _ranks import BATCH, OPTIMIZERS, TOLERANCE, build, clip, distance, parts, twin
from flooding import levels
from flooding import methods as losses
from flooding.functional import flood, soft_flood
from flooding.step import FloodStep

FLOAT64 = torch.float64


def train(model, batches, level, make, k=1, norm=None, exact=True):
    """The loop under test; ``exact=False`` is the naive wrapper, which floods every micro-batch by
    itself."""
    model = copy.deepcopy(model)
    optimizer = make(model.parameters())
    flood_step = FloodStep(optimizer, level if exact else None)
    for step, (x, y) in enumerate(batches):
        sizes = parts(k, step)
        optimizer.zero_grad()
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
            loss = flood_step(functional.cross_entropy(model(a), b))
            loss = loss if exact else flood(loss, level)
            (loss * len(a) / BATCH).backward()
        clip(model, norm)
        optimizer.step()
    return model, flood_step


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
@pytest.mark.parametrize("k", [2, 3, 4, 8, 16])
@pytest.mark.parametrize(
    ("name", "norm"), [("sgd", None), ("sgd", 0.05), ("adam", None), ("adamw", 0.05)]
)
def test_accumulation_equals_the_whole_batch(name, norm, k, dtype):
    model, batches, level = build(dtype)
    reference, losses_ = twin(model, batches, level, OPTIMIZERS[name], norm)
    exact, flood_step = train(model, batches, level, OPTIMIZERS[name], k, norm)
    naive, _ = train(model, batches, level, OPTIMIZERS[name], k, norm, exact=False)
    print(f"exact {distance(exact, reference):.1e}, naive {distance(naive, reference):.1e}")
    assert distance(exact, reference) <= TOLERANCE[dtype]
    # Ten times what float32 is allowed. SGD clipped to 0.05 moves by at most 1e-3 * 0.05 * 10 a
    # step, all in all 0.025.
    assert distance(naive, reference) > 1e-4
    assert flood_step.state["n_flooded"] == sum(loss < level for loss in losses_)
    assert flood_step.state["raw_loss"].item() == pytest.approx(losses_[-1], abs=TOLERANCE[dtype])
    assert flood_step.state["flooded_loss"].item() == pytest.approx(
        flood(losses_[-1], level), abs=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("level", [None, -math.inf, torch.tensor(-math.inf)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_level_is_the_plain_loop_bit_for_bit(name, level):
    model, batches, _ = build(torch.float32)
    flooded, flood_step = train(model, batches, level, OPTIMIZERS[name], k=3)
    plain, _ = _plain(model, batches, OPTIMIZERS[name], k=3)
    assert _same(flooded, plain)
    assert flood_step.state["slope"] == 1
    assert flood_step.state["flooded_loss"] == flood_step.state["raw_loss"]


@pytest.mark.parametrize("local", [False, True])
def test_remove_is_the_plain_loop_bit_for_bit(local):
    """The kill-switch: hooks, zero_grad and a loss watched before, all gone."""
    model, batches, level = build(torch.float32)
    flooded = copy.deepcopy(model)
    optimizer = OPTIMIZERS["adam"](flooded.parameters())
    with FloodStep(optimizer, 10 * level, per_microbatch=local) as flood_step:
        watched = flood_step(functional.cross_entropy(flooded(batches[0][0]), batches[0][1]))
        assert "zero_grad" in vars(optimizer)
    assert "zero_grad" not in vars(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for x, y in batches:
        optimizer.zero_grad()
        loss = flood_step(functional.cross_entropy(flooded(x), y))
        (watched if x is batches[0][0] else loss).backward()
        optimizer.step()
    plain, _ = _plain(model, batches, OPTIMIZERS["adam"])
    assert _same(flooded, plain)
    assert flood_step.state["n_steps"] == 0


def _plain(model, batches, make, k=1):
    model = copy.deepcopy(model)
    optimizer = make(model.parameters())
    for step, (x, y) in enumerate(batches):
        sizes = parts(k, step)
        optimizer.zero_grad()
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
            (functional.cross_entropy(model(a), b) * len(a) / BATCH).backward()
        optimizer.step()
    return model, optimizer


def _same(model, other):
    return all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def _weight(value=1.0, **options):
    """A parameter of one number, its plain SGD with learning rate 1, and FloodStep on it."""
    w = nn.Parameter(torch.tensor(value, dtype=FLOAT64))
    optimizer = torch.optim.SGD([w], lr=1.0)
    return w, optimizer, FloodStep(optimizer, **options)


@pytest.mark.parametrize(
    ("loss", "slope", "non_finite"),
    [
        (0.5, 1, 0),
        (0.125, -1, 0),
        (0.25, 0, 0),
        (math.nan, 1, 1),
        (math.inf, 1, 1),
        (-math.inf, 1, 1),
    ],
    ids=["above", "below", "at the level", "NaN", "inf", "-inf"],
)
def test_slope(loss, slope, non_finite):
    w, optimizer, flood_step = _weight(level=0.25)
    flood_step(loss + 3 * (w - 1)).backward()
    optimizer.step()
    assert w == 1 - 3 * slope
    assert flood_step.state["slope"] == slope
    assert flood_step.state["n_flooded"] == (slope < 0)
    assert flood_step.state["n_nonfinite"] == non_finite


finite = st.floats(-10, 10, allow_subnormal=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(finite, st.floats(0.01, 100), finite), min_size=1, max_size=6), finite)
def test_slope_is_the_sign_of_the_weighted_mean(micro, level):
    """Exact rational arithmetic is the twin; a mean of floats may be off by a few units of 1e-16 x
    its terms."""
    weights = sum(Fraction(c) for _, c, _ in micro)
    excess = sum(Fraction(c) * Fraction(loss) for loss, c, _ in micro) / weights - Fraction(level)
    assume(abs(excess) > 1e-13)
    w, optimizer, flood_step = _weight(0.0, level=level)
    for loss, c, gradient in micro:
        (c * flood_step(loss + gradient * w)).backward()
    optimizer.step()
    slope = 1 if excess > 0 else -1
    assert flood_step.state["slope"] == slope
    assert w.item() == pytest.approx(
        -slope * sum(c * gradient for _, c, gradient in micro), abs=1e-11
    )


@pytest.mark.parametrize("divide", ["loss / k", "loss /= k", "scaled", "sum"])
def test_the_loss_is_returned_as_it_is_and_may_be_scaled_in_any_way(divide):
    w, optimizer, flood_step = _weight(level=2.5)
    for raw in (1.0, 3.0):  # mean 2: below, while their sum and the last one are above
        loss = raw * w
        assert flood_step(loss) is loss
        if divide == "loss /= k":
            loss /= 2
        factor = {"loss / k": 0.5, "loss /= k": 1.0, "scaled": 0.5 * 2**16, "sum": 1.0}[divide]
        (loss * factor).backward()
    optimizer.step()
    assert flood_step.state["raw_loss"] == 2
    assert w.item() > 1


def test_half_precision_losses_are_averaged_in_float32():
    """The mean 1 + 2^-8 is no bfloat16; rounded to the even neighbour 1 it would lie below the
    level."""
    w = nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([w], lr=1.0)
    flood_step = FloodStep(optimizer, 1.002)
    for raw in (1.0, 1 + 2**-7):
        (flood_step(raw * (1 + w - w.detach())) / 2).backward()
    optimizer.step()
    assert flood_step.state["raw_loss"] == 1 + 2**-8
    assert flood_step.state["slope"] == 1


def test_evaluation_is_left_alone():
    _, optimizer, flood_step = _weight(level=2.0)
    loss = torch.tensor(1.0)
    assert flood_step(loss) is loss
    with pytest.raises(RuntimeError, match="none was noted"):
        optimizer.step()


# Loops that pass a closure: the hook fires before it has run.


def _closure_loop(model, batches, level, install, order):
    """What Lightning ("loss first") and skorch ("zero first") do: the closure holds the whole
    step."""
    model = copy.deepcopy(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    watch = install(optimizer, level)
    for x, y in batches:

        def closure(x=x, y=y):
            if order == "zero first":
                optimizer.zero_grad()
            loss = watch(functional.cross_entropy(model(x), y))
            if order == "loss first":
                optimizer.zero_grad()
            loss.backward()
            return loss

        if order == "keyword":
            optimizer.zero_grad()
            optimizer.step(closure=closure)
        else:
            optimizer.step(closure)
    return model


def _naive_hook(optimizer, level):
    """Flips in the pre-hook, and so flips what the last step left behind."""
    seen = []

    def flip(*_):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and seen:
                    p.grad.mul_((seen[-1] - level).sign())

    optimizer.register_step_pre_hook(flip)
    return lambda loss: seen.append(loss.detach()) or loss


@pytest.mark.parametrize("order", ["zero first", "loss first", "keyword"])
def test_closures_are_flipped_after_they_ran(order):
    model, batches, level = build()
    reference, _ = twin(model, batches, level, OPTIMIZERS["sgd"])
    exact = _closure_loop(model, batches, level, FloodStep, order)
    naive = _closure_loop(model, batches, level, _naive_hook, order)
    print(f"exact {distance(exact, reference):.1e}, naive {distance(naive, reference):.1e}")
    assert distance(exact, reference) <= 1e-12
    assert distance(naive, reference) > 1e-3


def test_lightning_accumulates_before_the_closure():
    """Its first micro-batches run outside of step(closure), and zero_grad comes between loss and
    backward."""
    w, optimizer, flood_step = _weight(level=2.0)
    for raws in ((1.0, 2.5), (4.0, 1.0)):
        first, second = raws
        before = w.item()
        loss = flood_step(first * w / w.detach())
        optimizer.zero_grad()
        (loss / 2).backward()

        def closure(second=second):
            loss = flood_step(second * w / w.detach())
            (loss / 2).backward()
            return loss

        optimizer.step(closure)
        mean = sum(raws) / 2
        assert flood_step.state["raw_loss"] == mean
        assert w.item() == pytest.approx(before - math.copysign(mean / before, mean - 2))


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_sees_the_flooded_value_and_gradient(search):
    model, batches, _ = build()
    batches = batches[:1]
    x, y = batches[0]
    level = 0.9

    def run(watch_and_return):
        net = copy.deepcopy(model)
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4, line_search_fn=search)
        closure = watch_and_return(net, optimizer)
        values = [float(optimizer.step(closure)) for _ in range(15)]
        return net, torch.tensor(values)

    def obvious(net, optimizer):
        def closure():
            optimizer.zero_grad()
            value = flood(functional.cross_entropy(net(x), y), level)
            value.backward()
            return value.detach()

        return closure

    def halves(net, optimizer, flood_step):
        def closure():
            if search:
                optimizer.zero_grad()
            else:  # nothing tells that a new evaluation has begun, but the closure itself
                net.zero_grad(set_to_none=False)
            total = 0
            for a, b in zip(x.split([30, 18]), y.split([30, 18]), strict=True):
                loss = flood_step(functional.cross_entropy(net(a), b))
                (loss * len(a) / BATCH).backward()
                total += loss.detach() * len(a) / BATCH
            return total

        return closure

    reference, expected = run(obvious)
    exact, values = run(lambda net, optimizer: halves(net, optimizer, FloodStep(optimizer, level)))
    naive, _ = run(lambda net, optimizer: halves(net, optimizer, _naive_hook(optimizer, level)))
    print(
        f"exact {distance(exact, reference):.1e}, naive {distance(naive, reference):.1e}, values "
        f"{values.tolist()}"
    )
    # A line search compares values: rounding differences of 1e-16 grow with its quotients, hence
    # not 1e-12.
    assert distance(exact, reference) <= 1e-9
    assert torch.allclose(values, expected, atol=1e-9)
    assert distance(naive, reference) > 1e-2
    with torch.no_grad():
        assert functional.cross_entropy(reference(x), y) > level - 0.1  # it is held, not passed
    assert values[0] > level + 0.1


# Half precision: both decisions at the same weights.


def rounding_bound(model, x, unit, k):
    """Largest difference of the mean loss between two ways of splitting a batch, at the same
    weights.

    Two evaluations of a linear layer, rounded to a unit roundoff u after float32 sums over n terms,
    both lie within v * S of the exact one, with v = u + n * 2^-24 and S = |W||x| + |b| (float16's
    underflow, 2^-25, is far less). So they are 2 v S apart, plus (1 + v) |W| times what their
    inputs differ by; all this element by element. Tanh is 1-Lipschitz and rounded too: 2 v |h|
    more. A cross-entropy differs by at most twice the largest difference of its logits. It and the
    means over at most BATCH + k terms are float32: (BATCH + k + 8) * 2^-24 of the largest loss,
    twice.
    """
    inner, outer = (
        [m.detach().float().abs() for m in layer.parameters()]
        for layer in model
        if isinstance(layer, nn.Linear)
    )

    def layer(weight, bias, inputs, apart):
        v = unit + (weight.shape[1] + 1) * 2**-24
        return 2 * v * (inputs @ weight.T + bias) + (1 + v) * apart @ weight.T

    with torch.no_grad():
        hidden = torch.tanh(model[0](x))
        apart = layer(*inner, x.abs(), torch.zeros_like(x))
        apart = apart + 2 * (unit + 8 * 2**-24) * hidden.abs()
        apart = layer(*outer, hidden.abs(), apart).amax(1).mean()
        largest = math.log(3) + 2 * model[2](hidden).abs().max()
        return float(2 * apart + 2 * (BATCH + k + 8) * 2**-24 * largest)


def _half_problem():
    """Batches with easy labels, with hard labels, and with both: losses well below, well above and
    near the level.

    The worst case of bfloat16 is wide (0.2). A small learning rate keeps two thirds of the
    decisions outside of it.
    """
    model, batches, _ = build(torch.float32)
    ruled = []
    with torch.no_grad():
        model[0].weight.mul_(0.5)
        model[2].weight.mul_(4)
        for i, (x, _) in enumerate(batches):
            easy, hard = model(x).argmax(1), model(x).argmin(1)
            ruled.append((
                x,
                (easy, hard, torch.where(torch.arange(BATCH) % 2 == 0, easy, hard))[i % 3],
            ))
        level = sum(functional.cross_entropy(model(x), y).item() for x, y in ruled) / len(ruled)
    return model, ruled, level


HALF = [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.float32, 2**-24)]


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize(("dtype", "unit"), HALF, ids=["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale and clip"])
def test_half_precision_decides_as_the_whole_batch_does(dtype, unit, fused, unscale):
    """With loss scaling and infinities forced at every seventh step, fused and unfused."""
    model, batches, level = _half_problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)
    flood_step = FloodStep(optimizer, level)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**8, growth_interval=10, enabled=dtype != torch.bfloat16
    )
    k, near, near_apart, flips, naive_wrong, skipped, taken = 4, 0, 0, 0, 0, 0, 0
    for step, (x, y) in enumerate(batches):
        sizes = parts(k, step)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            whole = functional.cross_entropy(model(x), y).item()
        before = copy.deepcopy(model)
        micro = []
        for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = flood_step(functional.cross_entropy(model(a), b))
            scaler.scale(loss * len(a) / BATCH).backward()
            micro.append(loss.item() < level)
        forced = scaler.is_enabled() and step % 7 == 3
        if forced:
            model[0].bias.grad[0] = math.inf
        if unscale:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if forced:
            assert _same(model, before)
            skipped += 1
            continue
        taken += 1
        assert not _same(model, before)
        bound = rounding_bound(before, x, unit, k)
        assert abs(flood_step.state["raw_loss"].item() - whole) <= bound
        flips += int(flood_step.state["slope"] < 0)
        naive_wrong += len(set(micro)) > 1
        agree = bool(flood_step.state["slope"] == (1 if whole > level else -1))
        assert agree or abs(whole - level) <= bound
        near += abs(whole - level) <= bound
        near_apart += not agree
    print(
        f"{dtype}: {taken} decisions, {flips} flips, last bound {bound:.1e}; {near} within the "
        "bound, of which "
        f"{near_apart} differ; {naive_wrong} steps where naive micro-batches differ in sign"
    )
    assert flood_step.state["n_steps"] == taken
    assert skipped == (7 if scaler.is_enabled() else 0)
    assert 10 <= flips <= taken - 10
    assert near <= taken // 2
    assert naive_wrong >= 5


@pytest.mark.parametrize(
    "zero", ["optimizer", "to zero", "model", "model to zero", "by hand", "by hand to zero"]
)
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_a_skipped_step_leaves_no_trace(fused, zero):
    """The unfused skip calls no hook: its loss of 100 must not count in the next step, however
    grads are cleared."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, fused=fused)
    flood_step = FloodStep(optimizer, levels.Warmup(4.0, steps=2))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for raw, ruin in ((100.0, True), (2.0, False), (2.0, True), (3.0, False), (2.0, False)):
        for _ in range(2):
            scaler.scale(
                flood_step(raw * (model.weight / model.weight.detach()).sum()) / 2
            ).backward()
        if ruin:
            model.weight.grad.fill_(math.inf)
        before = flood_step.state_dict()
        scaler.step(optimizer)
        scaler.update()
        if ruin:
            assert all(
                torch.equal(flood_step.state[name], before[name]) or before[name].isnan()
                for name in before
            )
        else:
            assert flood_step.state["raw_loss"] == raw
        {
            "optimizer": optimizer.zero_grad,
            "to zero": lambda: optimizer.zero_grad(set_to_none=False),
            "model": model.zero_grad,
            "model to zero": lambda: model.zero_grad(set_to_none=False),
            "by hand to zero": lambda: model.weight.grad.zero_(),
            "by hand": lambda: setattr(model.weight, "grad", None),
        }[zero]()
    assert flood_step.state["n_steps"] == 3
    assert flood_step.state["n_flooded"] == 1  # level 0, 2, 4 at the steps with loss 2, 3, 2


def test_a_loss_that_was_never_back_propagated_does_not_count():
    w, optimizer, flood_step = _weight(level=2.0)
    flood_step(100 * w)
    flood_step(1 * w).backward()
    optimizer.step()
    assert flood_step.state["raw_loss"] == 1


# apply(): clipping, other slopes, penalties.


def test_apply_then_clip_equals_autograd_for_any_slope():
    model, batches, level = build()
    make = OPTIMIZERS["sgd"]
    objective = partial(soft_flood, sigma=0.1)
    for early in (True, False):
        exact, reference = copy.deepcopy(model), copy.deepcopy(model)
        optimizer, other = make(exact.parameters()), make(reference.parameters())
        flood_step = FloodStep(optimizer, level, objective=objective)
        for x, y in batches:
            optimizer.zero_grad(), other.zero_grad()
            for a, b in zip(x.split([30, 18]), y.split([30, 18]), strict=True):
                (flood_step(functional.cross_entropy(exact(a), b)) * len(a) / BATCH).backward()
            objective(functional.cross_entropy(reference(x), y), level).backward()
            if early:
                flood_step.apply()
            clip(exact, 0.01), clip(reference, 0.01)
            optimizer.step(), other.step()
        assert (distance(exact, reference) <= 1e-12) == early


def test_other_methods_of_one_loss_drop_in():
    w, optimizer, flood_step = _weight(level=2.0, objective=losses.Hinge())
    flood_step(1.0 * w).backward()
    optimizer.step()
    assert w == 1
    assert flood_step.state["slope"] == 0


def test_penalties_after_apply_are_not_flipped():
    """Twin: flood(data loss) + penalty in one backward. Watching their sum flips the penalty
    too."""
    model, batches, level = build()

    def penalty(net):
        return 0.1 * sum(p.abs().sum() for p in net.parameters())

    nets = {name: copy.deepcopy(model) for name in ("twin", "exact", "naive")}
    make = OPTIMIZERS["sgd"]
    optimizers = {name: make(net.parameters()) for name, net in nets.items()}
    exact, naive = FloodStep(optimizers["exact"], level), FloodStep(optimizers["naive"], level)
    for x, y in batches:
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        (
            flood(functional.cross_entropy(nets["twin"](x), y), level) + penalty(nets["twin"])
        ).backward()
        exact(functional.cross_entropy(nets["exact"](x), y)).backward()
        exact.apply()
        penalty(nets["exact"]).backward()
        (naive(functional.cross_entropy(nets["naive"](x), y)) + penalty(nets["naive"])).backward()
        for optimizer in optimizers.values():
            optimizer.step()
    assert distance(nets["exact"], nets["twin"]) <= 1e-12
    assert distance(nets["naive"], nets["twin"]) > 1e-3


def test_apply_twice_in_a_step_is_refused():
    w, optimizer, flood_step = _weight(level=2.0)
    flood_step(1 * w).backward()
    flood_step.apply()
    with pytest.raises(RuntimeError, match="flipped once"):
        flood_step(1 * w).backward()
    optimizer.zero_grad()
    flood_step(1 * w).backward()
    optimizer.step()
    assert w == 2


def test_local_floods_each_micro_batch():
    w, optimizer, flood_step = _weight(
        level=4.0, per_microbatch=True
    )  # above the mean, between the two
    for raw, gradient in ((1.0, 5.0), (5.0, 3.0)):
        (flood_step(raw + gradient * (w - w.detach())) / 2).backward()
    optimizer.step()
    assert w == 2  # 1 - (-5 + 3) / 2
    assert flood_step.state["raw_loss"] == 3


# Levels that move, and what is kept.


def test_a_level_may_be_changed_in_place_or_replaced():
    level = torch.tensor(2.0)
    w, optimizer, flood_step = _weight(level=level)
    slopes = []
    for new in (2.0, 0.5, None):
        if new is None:
            flood_step.level = 2.0
        else:
            level.fill_(new)
        optimizer.zero_grad()
        flood_step(1 + w - w.detach()).backward()
        optimizer.step()
        slopes.append(flood_step.state["slope"].item())
    assert slopes == [-1, 1, -1]


def _controlled():
    model, batches, level = build(torch.float32)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    controller = levels.Warmup(level, steps=30, start=level - 0.2)
    return model, optimizer, FloodStep(optimizer, controller), controller, batches


def _run(model, optimizer, flood_step, batches):
    for x, y in batches:
        optimizer.zero_grad()
        flood_step(functional.cross_entropy(model(x), y)).backward()
        optimizer.step()


def test_a_controller_is_updated_after_every_step_and_epoch():
    model, optimizer, flood_step, controller, batches = _controlled()
    state = controller.init()
    for x, y in batches[:35]:
        with torch.no_grad():
            loss = functional.cross_entropy(model(x), y)
        _run(model, optimizer, flood_step, [(x, y)])
        assert flood_step.state["slope"] == (1 if loss > state["level"] else -1)
        state = controller.update(state, levels.StepInfo(loss))
        assert torch.equal(flood_step.level, state["level"])

    class Epochs:
        def init(self):
            return {"level": torch.tensor(0.0), "seen": torch.zeros(3)}

        def update(self, state, seen):
            if seen.loss is not None:
                return state
            return {
                "level": state["level"] + 1,
                "seen": torch.tensor([seen.train_accuracy, seen.val_loss, 0]),
            }

    flood_step.level = Epochs()
    _run(model, optimizer, flood_step, batches[:2])
    assert flood_step.level == 0
    flood_step.on_epoch_end(train_accuracy=0.5, val_loss=0.25, val_accuracy=0.75)
    assert flood_step.level == 1
    assert flood_step.state["controller.seen"].tolist() == [0.5, 0.25, 0]


def test_resume_in_the_middle_of_an_epoch_is_exact():
    model, optimizer, flood_step, _, batches = _controlled()
    _run(model, optimizer, flood_step, batches[:17])
    file = io.BytesIO()
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "flood": flood_step.state_dict(),
    }
    torch.save(saved, file)
    _run(model, optimizer, flood_step, batches[17:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, other, again, _, _ = _controlled()
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["flood"])
    assert again.state["n_steps"] == 17
    _run(resumed, other, again, batches[17:])
    assert _same(model, resumed)
    assert flood_step.state.keys() == again.state.keys()
    assert all(torch.equal(flood_step.state[name], again.state[name]) for name in again.state)
    with pytest.raises(ValueError, match=r"controller\.level"):
        _weight(level=0.1)[2].load_state_dict(saved["flood"])


# Costs: no host sync, compiled models, sparse gradients.


class _Syncs(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += [func] if func is torch.ops.aten._local_scalar_dense.default else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "level",
    [0.1, torch.tensor(2.0), levels.Warmup(2.0, steps=3), None],
    ids=["float", "tensor", "controller", "None"],
)
def test_the_flip_never_waits_for_the_device(level):
    w, optimizer, flood_step = _weight(level=level)
    with _Syncs() as syncs:
        for _ in range(3):
            flood_step(1 * w).backward()
            optimizer.step()
            optimizer.step(lambda: flood_step(1 * w).backward())
        flood_step(1 * w).backward()
        flood_step.apply()
        flood_step.state_dict()
        assert syncs.calls == []
        flood_step.state["raw_loss"].item()
        assert len(syncs.calls) == 1  # the counter counts


def test_compiled_model_and_step():
    """The model and criterion compile to one graph with the watch outside; a compiled step() flips
    as well."""
    model, batches, level = build()
    reference, _ = twin(model, batches, level, OPTIMIZERS["sgd"])
    frames = CompileCounterWithBackend("aot_eager")
    level = torch.tensor(level, dtype=FLOAT64)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    flood_step = FloodStep(optimizer, level)
    compiled = torch.compile(
        lambda x, y: functional.cross_entropy(model(x), y),
        fullgraph=True,
        backend=frames,
        dynamic=False,
    )
    for x, y in batches:
        optimizer.zero_grad()
        for a, b in zip(x.split(24), y.split(24), strict=True):
            (flood_step(compiled(a, b)) / 2).backward()
        optimizer.step()
    assert frames.frame_count == 1
    assert distance(model, reference) <= 1e-12


@pytest.mark.filterwarnings("ignore:Profiler record function")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_a_compiled_step_flips_and_a_compiled_watch_breaks_the_graph_cleanly():
    w, optimizer, flood_step = _weight(level=2.0)
    step = torch.compile(optimizer.step, backend="aot_eager")
    watch = torch.compile(lambda: flood_step(1 + 3 * (w - w.detach())) * 1.0, backend="aot_eager")
    for expected in (4, 7):
        optimizer.zero_grad()
        watch().backward()
        step()
        assert w == expected
    assert flood_step.state["n_steps"] == 2


@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_gradients(coalesced):
    start = torch.arange(10.0).reshape(5, 2)
    table = nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=True)
    dense = nn.Embedding.from_pretrained(start.clone(), freeze=False)
    optimizer, other = (torch.optim.SGD(e.parameters(), lr=0.5) for e in (table, dense))
    flood_step = FloodStep(optimizer, 1e3)
    rows = torch.tensor([1, 1, 4])
    flood_step(table(rows).square().mean()).backward()
    if coalesced:
        table.weight.grad = table.weight.grad.coalesce()
    flood(dense(rows).square().mean(), 1e3).backward()
    optimizer.step(), other.step()
    assert torch.allclose(
        table.weight, dense.weight, rtol=1e-6
    )  # repeated rows add up in another order
    assert (table.weight[[1, 4]] > start[[1, 4]]).all()


def test_several_parameter_dtypes_and_unused_parameters():
    ps = [
        nn.Parameter(torch.ones((), dtype=dtype))
        for dtype in (torch.float32, FLOAT64, torch.bfloat16)
    ]
    optimizer = torch.optim.SGD([*ps, nn.Parameter(torch.ones(2))], lr=1.0)
    flood_step = FloodStep(optimizer, 100.0)
    flood_step(sum(p.double() for p in ps)).backward()
    optimizer.step()
    assert [p.item() for p in ps] == [2, 2, 2]


@pytest.mark.parametrize("closure", [False, True])
def test_an_optimiser_that_calls_super_step_flips_once(closure):
    """Both step() functions run the hooks; a second flip would undo the first."""

    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    w = nn.Parameter(torch.tensor(1.0))
    torch.optim.SGD([
        nn.Parameter(torch.ones(()))
    ])  # torch hooks a class when it is first instantiated
    optimizer = Twice([w], lr=1.0)
    flood_step = FloodStep(optimizer, 2.0)

    def backward():
        optimizer.zero_grad()
        loss = flood_step(1 * w)
        loss.backward()
        return loss

    if closure:
        assert optimizer.step(backward) == 3  # |1 - 2| + 2, shifted once
    else:
        backward()
        optimizer.step()
    assert w == 2
    assert flood_step.state["n_steps"] == 1


# Errors: rule, value, fix.


def test_a_step_without_a_loss_is_refused():
    w, optimizer, flood_step = _weight(level=2.0)
    with pytest.raises(RuntimeError, match="loss = flood_step"):
        optimizer.step()
    flood_step(1 * w).backward()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="loss = flood_step"):
        optimizer.step(lambda: None)
    flood_step.remove()
    optimizer.step()


def test_an_optimiser_in_backward_is_refused():
    w, optimizer, flood_step = _weight(level=2.0)
    w.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    with pytest.raises(RuntimeError, match="inside backward"):
        flood_step(1 * w).backward()
    assert w == 1
    with pytest.raises(ValueError, match="post-accumulate-grad"):
        FloodStep(optimizer, 0.1)


class _Engine:
    """What DeepSpeed and its kin offer: a step of their own."""

    def step(self): ...


def test_engines_are_refused():
    _, optimizer, _ = _weight(level=None)
    for wrong in (_Engine(), None):
        with pytest.raises(TypeError, match=f"got {type(wrong).__name__}"):
            FloodStep(wrong, 0.1)
    optimizer.param_groups[0]["params"][0].ds_id = 0
    with pytest.raises(ValueError, match="DeepSpeed"):
        FloodStep(optimizer, 0.1)


def test_a_loss_per_example_is_refused():
    w, _, flood_step = _weight(level=2.0)
    with pytest.raises(ValueError, match="one element"):
        flood_step(w * torch.ones(3))
