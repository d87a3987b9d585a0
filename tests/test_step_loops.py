"""Loops in which FloodStep would silently not flood a step, or flood it by another loss than the
user thinks."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import warnings
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from _ranks import OPTIMIZERS, build, distance, twin
from flooding import levels
from flooding.functional import flood
from flooding.step import FloodStep

FLOAT64 = torch.float64


def weight(value=1.0, level=2.0, **options):
    """A parameter of one number, its plain SGD with learning rate 1, and FloodStep on it."""
    w = nn.Parameter(torch.tensor(value, dtype=FLOAT64))
    optimizer = torch.optim.SGD([w], lr=1.0)
    return w, optimizer, FloodStep(optimizer, level, **options)


def loss_of(w, raw):
    """The loss ``raw`` with gradient 1."""
    return raw + (w - w.detach())


# One FloodStep for an optimiser.


def test_a_second_one_takes_over():
    """A notebook cell run twice. The warning names what is replaced and points at the user's
    line."""
    w, optimizer, old = weight(level=0.5)
    with pytest.warns(UserWarning, match=r"This SGD has had a FloodStep with level 0\.5") as caught:
        new = FloodStep(optimizer, 2.0)
    assert caught[0].filename == __file__
    new(loss_of(w, 1.0)).backward()
    optimizer.step()
    assert w == 2
    assert new.state["n_steps"] == 1
    for use in (lambda: old(loss_of(w, 1.0)), lambda: old(torch.tensor(1.0)), old.apply):
        with pytest.raises(
            RuntimeError, match="replaced by one that was built later on the same SGD"
        ):
            use()
    old.remove()  # as the end of its with block does; the new one stays
    new(loss_of(w, 1.0)).backward()
    optimizer.zero_grad()
    new(loss_of(w, 1.0)).backward()
    optimizer.step()
    assert w == 3
    new.remove()
    assert "zero_grad" not in vars(optimizer)


def test_a_loss_that_the_old_one_watched_is_told_at_the_step():
    w, optimizer, old = weight(level=0.5)
    loss = old(loss_of(w, 1.0))
    with pytest.warns(UserWarning, match="replaces"):
        FloodStep(optimizer, levels.Warmup(2.0, steps=3))
    loss.backward()
    with pytest.raises(RuntimeError, match="needs its loss"):
        optimizer.step()
    assert w == 1
    with pytest.warns(UserWarning, match="with level Warmup"):
        FloodStep(optimizer, 0.1)


def test_after_remove_or_on_a_new_optimiser_nothing_is_said():
    w, optimizer, old = weight()
    old.remove()
    with FloodStep(optimizer, 0.5):
        pass
    again = FloodStep(torch.optim.SGD([w], lr=1.0), 2.0)  # the cell builds its optimiser too
    again(loss_of(w, 1.0)).backward()
    again.optimizer.step()
    assert w == 2


def test_a_refused_second_one_leaves_the_first_in_place():
    w, optimizer, flood_step = weight()
    for wrong in (math.nan, "0.1"):
        with pytest.raises((TypeError, ValueError)):
            FloodStep(optimizer, wrong)
    flood_step(loss_of(w, 1.0)).backward()
    optimizer.step()
    assert w == 2


def test_a_parameter_of_two_flooded_optimisers_is_refused():
    """Both would flip its gradient; one after the other, each for its own losses, is right."""
    w, other = (nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    first, second = torch.optim.SGD([w], lr=1.0), torch.optim.SGD([w, other], lr=1.0)
    one, two = FloodStep(first, 2.0), FloodStep(second, 2.0)
    one(two(loss_of(w, 1.0) + 0 * other)).backward()
    with pytest.raises(RuntimeError, match="1 parameters belong to two optimisers, SGD and SGD"):
        first.step()
    assert w == 1
    for flood_step in (one, two):
        flood_step.reset()
        w.grad = other.grad = None
        flood_step(loss_of(w, 1.0) + (other - other.detach())).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            flood_step.optimizer.step()
    assert w == 3
    assert not caught


# One loss, several optimisers.


class TwoParts(nn.Module):
    """A table and a head, which two optimisers often share between them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.ids, self.y = (
            torch.randint(20, (32,), generator=generator),
            torch.randint(3, (32,), generator=generator),
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

    def loss(self):
        return functional.cross_entropy(self.head(self.table(self.ids)), self.y)

    def optimizers(self):
        return torch.optim.Adam(self.table.parameters(), 0.05), torch.optim.SGD(
            self.head.parameters(), 0.5
        )


def run(net, optimizers, watch, steps=30, order=1):
    for _ in range(steps):
        loss = watch(net.loss())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers[::order]:
            optimizer.step()
    return net.loss().item()


@pytest.mark.parametrize("order", [1, -1], ids=["it steps first", "it steps last"])
def test_another_optimiser_without_a_floodstep_is_told_once(order):
    net = TwoParts()
    table, head = net.optimizers()
    flood_step = FloodStep(head, 50.0)
    with pytest.warns(UserWarning, match="without a FloodStep") as caught:
        run(net, (table, head), flood_step, order=order)
    (only,) = caught
    assert "parameters (1 tensors) that Adam updates without a FloodStep" in str(only.message)
    assert only.filename == __file__


def test_one_each_is_the_whole_network_exactly():
    net, reference = TwoParts(), TwoParts()
    level = net.loss().item() - 0.3
    optimizers = net.optimizers()
    first, second = (FloodStep(optimizer, level) for optimizer in optimizers)
    twins = reference.optimizers()
    run(net, optimizers, lambda loss: first(second(loss)))
    run(reference, twins, lambda loss: flood(loss, level))
    # In float32 the sign decides every gradient alike; the flooded value adds and takes away the
    # level.
    assert distance(net, reference) <= 1e-6
    assert 0 < first.state["n_flooded"] == second.state["n_flooded"] < 30


def test_a_copied_model_and_optimiser_are_told():
    """The copy's optimiser has no hooks: FloodStep watches, and nothing floods."""
    net = TwoParts()
    flood_step = FloodStep(torch.optim.SGD(net.parameters(), lr=0.1), 50.0)
    copied = copy.deepcopy(net)
    other = torch.optim.SGD(copied.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"\(3 tensors\) that SGD updates"):
        run(copied, [other], flood_step, steps=1)


@pytest.mark.parametrize("closure", [False, True], ids=["", "by a closure"])
def test_accumulation_and_clipping_hide_no_other_optimiser(closure):
    net = TwoParts()
    table, head = net.optimizers()
    flood_step = FloodStep(head, 50.0)

    def backward():
        for optimizer in (table, head):
            optimizer.zero_grad()
        for _ in range(2):
            (flood_step(net.loss()) / 2).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)

    def step():
        if closure:
            table.step(backward)
        else:
            backward()
            table.step()
        head.step()

    with pytest.warns(UserWarning, match="Adam updates without"):
        step(), step()


def test_other_optimisers_that_do_not_use_its_gradient_are_not_told():
    """A GAN: the generator's watched loss reaches the discriminator, whose own step clears that
    gradient first."""
    generator, discriminator, frozen, free = (nn.Linear(2, 2) for _ in range(4))
    frozen.requires_grad_(False)  # and `free` has gradients, but no optimiser
    g, d = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (generator, discriminator))
    flood_step = FloodStep(g, 50.0)
    x = torch.ones(3, 2)
    for _ in range(12):
        d.zero_grad()
        discriminator(generator(x).detach()).square().mean().backward()
        d.step()
        g.zero_grad()
        flood_step(free(frozen(discriminator(generator(x)))).square().mean()).backward()
        g.step()
    assert flood_step.state["n_steps"] == 12


def test_the_inspection_ends():
    """Nothing is left in the way of other optimisers after ten steps, or after remove()."""
    from torch.optim import optimizer as module

    before = len(module._global_optimizer_pre_hooks)
    for end in ("steps", "remove"):
        net = TwoParts()
        _, head = net.optimizers()
        flood_step = FloodStep(head, 50.0)
        run(net, [head], flood_step, steps=9)
        assert len(module._global_optimizer_pre_hooks) == before + 1
        flood_step.remove() if end == "remove" else run(net, [head], flood_step, steps=1)
        assert len(module._global_optimizer_pre_hooks) == before
    plain = nn.Linear(2, 1)
    alone = FloodStep(torch.optim.SGD(plain.parameters(), lr=0.1), 1.0)
    alone(plain(torch.ones(1, 2)).mean()).backward()
    assert len(module._global_optimizer_pre_hooks) == before


# Losses that never led to a flooded step.


def test_losses_dropped_step_after_step_are_told_once():
    w, optimizer, flood_step = weight()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(30):
            flood_step(loss_of(w, 1.0)).backward()
            optimizer.zero_grad()
            assert len(caught) == (i >= 9)
    assert "Again and again the gradients of watched losses were cleared" in str(caught[0].message)
    assert caught[0].filename == __file__


def _ascent_and_descent(w, optimizer, flood_step):
    """SAM as an object beside a plain optimiser: its first pass is not flooded."""
    flood_step(loss_of(w, 1.0)).backward()
    with torch.no_grad():
        w.add_(w.grad)
    optimizer.zero_grad()
    flood_step(loss_of(w, 1.0)).backward()
    optimizer.step()
    optimizer.zero_grad()


def _built_anew(w, _, flood_step):
    """The optimiser that FloodStep knows is no longer the one that steps."""
    other = torch.optim.SGD([w], lr=1.0)
    flood_step(loss_of(w, 1.0)).backward()
    other.step()
    other.zero_grad()


def _written_out(w, _, flood_step):
    """Neither step() nor zero_grad(): the gradients are used and set to 0 by hand."""
    flood_step(loss_of(w, 1.0)).backward()
    with torch.no_grad():
        w.sub_(w.grad)
    w.grad.zero_()


def _model_zero_grad(w, _, flood_step):
    flood_step(loss_of(w, 1.0)).backward()
    w.grad = None


@pytest.mark.parametrize("loop", [_ascent_and_descent, _built_anew, _written_out, _model_zero_grad])
def test_gradients_that_somebody_else_uses_are_told_once(loop):
    w, optimizer, flood_step = weight()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(40):
            loop(w, optimizer, flood_step)
    assert ["somebody else" in str(warning.message) for warning in caught] == [True]


def test_the_base_optimiser_of_sam_is_told():
    """FloodStep(sam.base_optimizer) floods the second pass only."""
    from test_step_sam import Sam, first_and_second_step

    model, batches, level = build()
    sam = Sam(model.parameters())
    flood_step = FloodStep(sam.base_optimizer, level)

    def train():
        for batch in batches[:20]:
            first_and_second_step(model, sam, batch, batch, flood_step)

    with pytest.warns(UserWarning, match="without a flooded step"):
        train()


def test_skipped_steps_of_a_scaler_are_not_told():
    """Nine skips while it looks for its scale, then one in four; a step in between is enough."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    flood_step = FloodStep(optimizer, 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    for i in range(60):
        scaler.scale(flood_step(model(torch.ones(1, 1)).square().mean())).backward()
        if i < 9 or i % 4 == 0:
            model.weight.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert flood_step.state["n_steps"] == 60 - 9 - 12


def test_many_micro_batches_are_not_told():
    w, optimizer, flood_step = weight()
    for _ in range(300):
        (flood_step(loss_of(w, 1.0)) / 300).backward()
        w.grad.clamp_(-1, 1)  # changed in place, but not to 0
    optimizer.step()
    assert w.item() == pytest.approx(2)
    assert flood_step.state["raw_loss"].item() == pytest.approx(1)


def test_parameters_that_a_forward_changes_are_not_told():
    """nn.Embedding(max_norm=...) renormalises its weights in place before every micro-batch."""
    table = nn.Embedding(4, 2, max_norm=0.5)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    flood_step = FloodStep(optimizer, 2.0)
    for _ in range(30):
        for raw in (1.0, 2.5):
            out = table(torch.tensor([0, 1])).sum()
            (flood_step(raw + (out - out.detach())) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert flood_step.state["raw_loss"] == 1.75


# Several watched losses in one backward.


@pytest.mark.parametrize(
    "backward",
    [
        lambda f, a, b: (f(a) + f(b)).backward(),
        lambda f, a, b: (0.7 * f(a) + 0.3 * f(b)).backward(),
        lambda f, a, b: torch.autograd.backward([f(a), f(b)]),
        lambda f, a, b: f(f(a) * 2 + b).backward(),
    ],
    ids=["sum", "weighted", "two roots", "a part and the whole"],
)
def test_two_losses_in_one_backward_are_told_once(backward):
    w, optimizer, flood_step = weight()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            backward(flood_step, loss_of(w, 1.5), loss_of(w, 1.0))
            optimizer.step()
            optimizer.zero_grad()
    assert len(caught) == 1
    assert "watch the sum: loss = flood_step(a + b)" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_the_sum_is_watched_as_the_warning_says():
    w, optimizer, flood_step = weight()
    flood_step(loss_of(w, 1.5) + loss_of(w, 1.0)).backward()
    optimizer.step()
    assert flood_step.state["raw_loss"] == 2.5
    assert flood_step.state["slope"] == 1


@pytest.mark.parametrize("local", [False, True])
def test_one_loss_watched_twice_counts_once(local):
    """By a criterion and by the loop. With ``local`` it would be flipped twice."""
    w, optimizer, flood_step = weight(per_microbatch=local)
    for raw in (1.0, 1.5):
        loss = flood_step(flood_step(loss_of(w, raw)))
        loss.backward()
    optimizer.step()
    assert w == 3
    assert flood_step.state["raw_loss"] == 1.25
    assert flood_step.state["slope"] == -1


def test_micro_batches_and_a_retained_graph_are_not_told():
    w, optimizer, flood_step = weight()
    loss = flood_step(loss_of(w, 1.0))
    loss.backward(retain_graph=True)
    loss.backward()
    flood_step(loss_of(w, 2.5)).backward()
    optimizer.step()
    assert flood_step.state["raw_loss"] == 1.5
    assert w == 4


def test_local_by_two_floodsteps_is_refused():
    """The loss's own backward would be flipped twice; one of them floods it for both optimisers."""
    net = TwoParts()
    optimizers = net.optimizers()
    one, two = (FloodStep(optimizer, 50.0, per_microbatch=True) for optimizer in optimizers)
    with pytest.raises(RuntimeError, match="Watch it by one of them"):
        one(two(net.loss()))
    two.remove()
    before = net.loss()
    assert run(net, optimizers, one, steps=5) > before


# Micro-batches whose loss is NaN.


def _masked(i):
    return torch.tensor([-100, -100, -100] if i == 1 else [0, 1, 2])


@pytest.mark.parametrize("masked", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize("factor", ["1 / k", "n_i / n"])
def test_a_fully_masked_micro_batch_counts_for_nothing(masked, factor):
    """torch's mean over no target is NaN with a gradient of 0, whatever its factor; plain training
    goes on."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(3, 4, 5, generator=generator, dtype=FLOAT64),
        torch.randint(3, (3, 4), generator=generator),
    )
    y[masked] = -100
    model = nn.Linear(5, 3, dtype=FLOAT64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    flood_step = FloodStep(optimizer, 50.0)
    start = copy.deepcopy(model)
    whole = functional.cross_entropy(model(x.flatten(0, 1)), y.flatten())
    (gradient,) = torch.autograd.grad(whole, model.weight)
    n = (y != -100).sum()
    for a, b in zip(x, y, strict=True):
        scale = (b != -100).sum() / n if factor == "n_i / n" else 0.5
        (flood_step(functional.cross_entropy(model(a), b)) * scale).backward()
    optimizer.step()
    assert flood_step.state["slope"] == -1
    assert flood_step.state["raw_loss"].item() == pytest.approx(whole.item(), abs=1e-12)
    assert flood_step.state["n_nonfinite"] == 1  # said, though the step was flooded
    assert torch.allclose(model.weight, start.weight + 0.1 * gradient, rtol=0, atol=1e-12)


def test_an_empty_micro_batch_counts_for_nothing():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    flood_step = FloodStep(optimizer, 50.0)
    for n in (3, 0):
        (flood_step(functional.mse_loss(model(torch.ones(n, 2)), torch.zeros(n, 1))) / 2).backward()
    optimizer.step()
    assert flood_step.state["slope"] == -1
    assert flood_step.state["n_nonfinite"] == 1
    assert model.weight.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_a_factor_of_0_leaves_any_loss_out(value):
    w, optimizer, flood_step = weight()
    (flood_step(loss_of(w, value)) * 0).backward()
    flood_step(loss_of(w, 1.0)).backward()
    optimizer.step()
    assert w == 2
    assert flood_step.state["raw_loss"] == 1


@pytest.mark.parametrize("raws", [(math.nan,), (math.nan, math.nan), (math.nan, math.inf)], ids=str)
def test_where_no_loss_is_finite_the_gradients_stay(raws):
    w, optimizer, flood_step = weight()
    for raw in raws:
        flood_step(loss_of(w, raw)).backward()
    optimizer.step()
    assert w == 1 - len(raws)
    assert flood_step.state["slope"] == 1
    assert not flood_step.state["raw_loss"].isfinite()
    assert flood_step.state["n_nonfinite"] == 1


# Copies.


class Trainer:
    """Model, optimiser and FloodStep in one object."""

    def __init__(self):
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.flood_step = FloodStep(self.optimizer, 0.5)


@pytest.mark.parametrize("whole", [False, True], ids=["alone", "in a trainer"])
@pytest.mark.parametrize(
    "make",
    [copy.deepcopy, pickle.dumps, lambda x: torch.save(x, io.BytesIO())],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_refused(make, whole):
    trainer = Trainer()
    with pytest.raises(TypeError, match="Build a new one on the copied optimiser"):
        make(trainer if whole else trainer.flood_step)


def test_a_shallow_copy_is_refused_and_the_way_out_works():
    trainer = Trainer()
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.copy(trainer.flood_step)
    model, optimizer = copy.deepcopy((trainer.model, trainer.optimizer))
    new = FloodStep(optimizer, 50.0)
    new.load_state_dict(trainer.flood_step.state_dict())
    before = copy.deepcopy(model)
    new(model(torch.ones(1, 2)).square().mean()).backward()
    assert torch.equal(before.weight, trainer.model.weight)
    gradient = model.weight.grad.clone()
    optimizer.step()
    assert torch.allclose(model.weight, before.weight + 0.1 * gradient)


@pytest.mark.parametrize("parts", [False, True], ids=["", "while it inspects another optimiser"])
def test_it_is_freed_with_its_optimiser(parts):
    net = TwoParts()
    _, head = net.optimizers()
    flood_step = FloodStep(head, 50.0)
    (flood_step(net.loss()) if parts else net.loss()).backward()
    reference = weakref.ref(flood_step)
    del net, head, flood_step
    gc.collect()
    assert reference() is None
    w, optimizer, _ = weight(level=None)
    w.grad = torch.ones_like(w)
    with pytest.raises(RuntimeError, match="needs its loss"):  # the hook that is left does no harm
        optimizer.step()


# Levels.


@pytest.mark.parametrize(
    "level",
    [
        np.float32(0.5),
        np.float64(0.5),
        np.float16(0.5),
        Fraction(1, 2),
        torch.tensor(0.5),
        np.array(0.5)[()],
    ],
    ids=lambda level: type(level).__name__,
)
def test_every_real_number_is_a_level(level):
    w, optimizer, flood_step = weight(level=level)
    for raw in (0.25, 0.75):
        flood_step(loss_of(w, raw)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert flood_step.state["slope"] == math.copysign(1, raw - 0.5)
    flood_step.level = np.int64(3)
    assert flood_step.level == 3


@pytest.mark.parametrize(
    ("level", "error", "says"),
    [
        (math.nan, ValueError, "must be finite or -inf, got nan"),
        (math.inf, ValueError, "must be finite or -inf, got inf"),
        (np.float32("nan"), ValueError, "must be finite or -inf, got nan"),
        (10**400, ValueError, "must be finite or -inf, got inf"),
        (torch.tensor(math.nan), ValueError, "must be finite or -inf, got nan"),
        (torch.tensor(math.inf), ValueError, "must be finite or -inf, got inf"),
        (torch.zeros(2), ValueError, "must have no axes"),
        (torch.zeros(1), ValueError, "must have no axes"),
        (True, TypeError, "got bool"),
        (np.True_, TypeError, "got bool"),
        (torch.tensor(True), TypeError, "torch.bool"),
        (torch.tensor(1j), TypeError, "complex64"),
        (1j, TypeError, "got complex"),
        ("0.1", TypeError, r"got str. Write float\(...\)"),
        (np.array(0.1), TypeError, "got ndarray"),
        ([0.1], TypeError, "got list"),
        (levels.Warmup, TypeError, "got Warmup.* build a controller's class first"),
        (lambda: 0.1, TypeError, "got function"),
        (nn.CrossEntropyLoss(), TypeError, "got CrossEntropyLoss"),
    ],
    ids=lambda x: str(x)[:20] if not callable(x) else getattr(x, "__name__", "module"),
)
def test_impossible_levels_are_refused(level, error, says):
    with pytest.raises(error, match=f"level must.*{says}" if "must" not in says else says):
        weight(level=level)
    w, optimizer, flood_step = weight(level=2.0)
    with pytest.raises(error):
        flood_step.level = level
    flood_step(loss_of(w, 1.0)).backward()
    optimizer.step()
    assert w == 2  # the old level is still in force


def test_swapped_arguments_are_named():
    _, optimizer, _ = weight()
    with pytest.raises(TypeError, match=r"The order is FloodStep\(optimizer, level\)"):
        FloodStep(0.1, optimizer)
    with pytest.raises(TypeError, match="got Linear"):
        FloodStep(nn.Linear(1, 1), 0.1)


class NotANumber:
    """A controller whose level is lost at the second step."""

    def init(self):
        return {"level": torch.tensor(2.0)}

    def update(self, state, seen):
        return {"level": state["level"] * math.nan}


@pytest.mark.parametrize("lost", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("local", [False, True], ids=["", "local"])
def test_a_level_that_becomes_nan_stops_before_the_gradients_change(lost, local):
    level = torch.tensor(2.0)
    w, optimizer, flood_step = weight(level=level, per_microbatch=local)
    level.fill_(lost)

    def step():
        flood_step(loss_of(w, 1.0)).backward()
        optimizer.step()

    with pytest.raises(ValueError, match=f"level must be finite or -inf, got {lost}"):
        step()
    assert w == 1
    level.fill_(2.0)
    if local:  # its backward failed
        flood_step(loss_of(w, 1.0)).backward()
    optimizer.step()
    assert w == 2
    assert flood_step.state["n_steps"] == 1


def test_a_controller_that_loses_its_level_stops():
    w, optimizer, flood_step = weight(level=NotANumber())
    flood_step(loss_of(w, 1.0)).backward()
    optimizer.step()
    optimizer.zero_grad()
    flood_step(loss_of(w, 1.0)).backward()
    with pytest.raises(ValueError, match="got nan"):
        optimizer.step(lambda: None)
    assert w == 2


@pytest.mark.parametrize("local", [False, True], ids=["", "local"])
def test_where_the_level_is_not_read_a_nan_makes_the_gradients_nan(local):
    """As on a GPU, whose memory is not read: its slope would be 0, and nobody would know."""
    w, optimizer, flood_step = weight(
        objective=lambda loss, level: flood(loss, level * math.nan), per_microbatch=local
    )
    flood_step(loss_of(w, 1.0)).backward()
    optimizer.step()
    assert w.isnan()
    assert flood_step.state["slope"].isnan()
    assert flood_step.state["flooded_loss"].isnan()


# Backward passes that fail, and gradients that are cleared by other means.


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("out of memory")


CLEAR = {
    "optimizer.zero_grad": lambda net, optimizer: optimizer.zero_grad(),
    "model.zero_grad": lambda net, optimizer: net.zero_grad(),
    "to zero": lambda net, optimizer: net.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("clear", CLEAR)
@pytest.mark.parametrize("before", [0, 2], ids=["first backward", "third backward"])
def test_a_backward_that_fails_leaves_nothing_behind(clear, before):
    """The head has its gradient already when the body's backward fails."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    flood_step = FloodStep(optimizer, 2.0)

    def backward(raw, fails=False):
        hidden = net[0](torch.ones(1, 1))
        out = net[1](_Fails.apply(hidden) if fails else hidden).sum()
        flood_step(raw + (out - out.detach())).backward()

    for _ in range(before):
        backward(100.0)
    with pytest.raises(ValueError, match="out of memory"):
        backward(100.0, fails=True)
    CLEAR[clear](net, optimizer)
    backward(1.0)
    optimizer.step()
    assert flood_step.state["raw_loss"] == 1
    assert flood_step.state["slope"] == -1


def test_a_failed_micro_batch_that_is_tried_again_counts_once():
    w, optimizer, flood_step = weight()
    flood_step(loss_of(w, 1.0)).backward()
    with pytest.raises(ValueError, match="out of memory"):
        (flood_step(loss_of(_Fails.apply(w), 100.0))).backward()
    flood_step(loss_of(w, 2.0)).backward()
    optimizer.step()
    assert flood_step.state["raw_loss"] == 1.5
    assert w == 3


def test_sparse_gradients_set_to_zero_are_seen():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.0)
    flood_step = FloodStep(optimizer, 2.0)
    for raw in (100.0, 1.0):
        table.zero_grad(set_to_none=False)
        flood_step(loss_of(table(torch.tensor([1, 1])).sum(), raw)).backward()
    optimizer.step()
    assert flood_step.state["raw_loss"] == 1


def test_compiled_autograd_notes_its_losses():
    """It calls no callback at the end of a backward."""
    compiled_autograd = pytest.importorskip("torch._dynamo.compiled_autograd")
    if not hasattr(compiled_autograd, "_enable"):
        pytest.skip("another name in this torch")
    w, optimizer, flood_step = weight()
    for raws in ((1.0, 1.5), (1.0, 4.0)):
        with compiled_autograd._enable(lambda graph: graph):
            for raw in raws:
                (flood_step(loss_of(w, raw)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert flood_step.state["raw_loss"] == sum(raws) / 2
    assert w == 1  # up and down


# What is no loss.


@pytest.mark.parametrize(
    "loss", [{"loss": 1}, (torch.ones(()), 2), 0.5, None], ids=lambda x: type(x).__name__
)
def test_what_is_no_tensor_is_refused(loss):
    with pytest.raises(TypeError, match=f"loss must be a tensor, got {type(loss).__name__}"):
        weight()[2](loss)


def test_the_twin_still_holds_with_every_watcher_at_work():
    """Ten times the exact loop of test_step.py beside an idle second pair, so that nothing is
    shared by mistake."""
    model, batches, level = build()
    reference, losses = twin(model, batches, level, OPTIMIZERS["sgd"])
    _, _, idle = weight(level=50.0)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    flood_step = FloodStep(optimizer, level)
    for x, y in batches:
        optimizer.zero_grad()
        flood_step(functional.cross_entropy(model(x), y)).backward()
        optimizer.step()
    assert distance(model, reference) <= 1e-12
    assert flood_step.state["n_flooded"] == sum(loss < level for loss in losses)
    assert idle.state["n_steps"] == 0
