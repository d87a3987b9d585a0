"""FloodStep with optimisers of several passes: one decision a step, from the first pass, for every
pass."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from _ranks import build, distance
from flooding import levels
from flooding.step import FloodStep

RHO, LR = 0.5, 0.05


class Sam(torch.optim.Optimizer):
    """SAM as davda54/sam has it, in a few lines."""

    def __init__(self, params):
        super().__init__(params, {"rho": RHO})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=LR)
        self.param_groups = self.base_optimizer.param_groups

    def _with_gradient(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        norm = torch.stack([p.grad.norm() for p in self._with_gradient()]).norm() + 1e-12
        for p in self._with_gradient():
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * (RHO / norm))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p in self._with_gradient():
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


def pairs(batches):
    """The two passes of a step see two batches, whose losses often lie on two sides of the
    level."""
    return list(zip(batches, batches[1:] + batches[:1], strict=True))


def by_hand(model, batches, level):
    """SAM on the flooded loss without any optimiser: both passes have the slope of the first one's
    loss."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    slopes, second = [], []
    for (x, y), (x2, y2) in pairs(batches):
        loss = functional.cross_entropy(model(x), y)
        slope = 1.0 if loss > level else -1.0
        gradients = [slope * g for g in torch.autograd.grad(loss, parameters)]
        norm = torch.stack([g.norm() for g in gradients]).norm() + 1e-12
        with torch.no_grad():
            old = [p.clone() for p in parameters]
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(g * (RHO / norm))
        perturbed = functional.cross_entropy(model(x2), y2)
        gradients = torch.autograd.grad(perturbed, parameters)
        with torch.no_grad():
            for p, o, g in zip(parameters, old, gradients, strict=True):
                p.copy_(o - LR * slope * g)
        slopes.append(slope)
        second.append(1.0 if perturbed > level else -1.0)
    # Both signs occur, and the second pass would often have chosen the other one.
    assert min(slopes.count(1.0), slopes.count(-1.0)) >= 5
    assert sum(a != b for a, b in zip(slopes, second, strict=True)) >= 5
    return model, slopes


def _backward(model, x, y, watch, k=1):
    for a, b in zip(x.chunk(k), y.chunk(k), strict=True):
        (watch(functional.cross_entropy(model(a), b)) / k).backward()


def first_and_second_step(model, optimizer, first, second, watch):
    _backward(model, *first, watch)
    optimizer.first_step(zero_grad=True)
    _backward(model, *second, watch)
    optimizer.second_step(zero_grad=True)


def zero_grad_by_the_user(model, optimizer, first, second, watch):
    for batch, step in ((first, optimizer.first_step), (second, optimizer.second_step)):
        optimizer.zero_grad()
        _backward(model, *batch, watch)
        step()


def micro_batches(model, optimizer, first, second, watch):
    _backward(model, *first, watch, k=3)
    optimizer.first_step(zero_grad=True)
    _backward(model, *second, watch, k=3)
    optimizer.second_step(zero_grad=True)


def only_the_first_is_watched(model, optimizer, first, second, watch):
    _backward(model, *first, watch)
    optimizer.first_step(zero_grad=True)
    _backward(model, *second, lambda loss: loss)
    optimizer.second_step(zero_grad=True)


def model_zero_grad(model, optimizer, first, second, watch):
    _backward(model, *first, watch)
    optimizer.first_step()
    model.zero_grad()
    _backward(model, *second, watch)
    optimizer.second_step()
    model.zero_grad(set_to_none=False)


def a_closure(model, optimizer, first, second, watch):
    """The idiom of the README: a backward, then step(closure)."""
    batches = iter((first, second))

    def closure():
        x, y = next(batches)
        loss = watch(functional.cross_entropy(model(x), y))
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)
    optimizer.zero_grad()


def a_closure_by_keyword(model, optimizer, first, second, watch):
    batches = iter((first, second))

    def closure():
        optimizer.zero_grad()
        _backward(model, *next(batches), watch, k=2)

    closure()
    optimizer.step(closure=closure)


IDIOMS = [
    first_and_second_step,
    zero_grad_by_the_user,
    micro_batches,
    only_the_first_is_watched,
    model_zero_grad,
    a_closure,
    a_closure_by_keyword,
]


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda f: f.__name__)
def test_sam_floods_both_passes_by_the_first_ones_sign(idiom):
    model, batches, level = build()
    expected, slopes = by_hand(model, batches, level)
    optimizer = Sam(model.parameters())
    flood_step = FloodStep(optimizer, level)
    taken = []
    for (x, y), second in pairs(batches):
        with torch.no_grad():
            loss = functional.cross_entropy(model(x), y)
        idiom(model, optimizer, (x, y), second, flood_step)
        taken.append(flood_step.state["slope"].item())
        assert flood_step.state["raw_loss"].item() == pytest.approx(loss.item(), abs=1e-12)
    assert taken == slopes
    assert distance(model, expected) <= 1e-12
    assert flood_step.state["n_steps"] == len(batches)
    assert flood_step.state["n_flooded"] == slopes.count(-1.0)


def test_apply_before_each_pass_flips_once():
    """As clipping with other slopes needs it."""
    model, batches, level = build()
    expected, _ = by_hand(model, batches, level)
    optimizer = Sam(model.parameters())
    flood_step = FloodStep(optimizer, level)
    for first, second in pairs(batches):
        for batch, step in ((first, optimizer.first_step), (second, optimizer.second_step)):
            _backward(model, *batch, flood_step)
            flood_step.apply()
            with pytest.raises(RuntimeError, match="needs its loss"):
                flood_step.apply()
            step(zero_grad=True)
    assert distance(model, expected) <= 1e-12


def test_no_level_and_a_removed_one_are_plain_sam():
    plain, batches, level = build()
    models = {"none": copy.deepcopy(plain), "removed": copy.deepcopy(plain)}
    optimizers = {name: Sam(model.parameters()) for name, model in models.items()}
    flood_steps = {
        name: FloodStep(optimizers[name], None if name == "none" else 10 * level) for name in models
    }
    flood_steps["removed"].remove()
    assert not {"first_step", "second_step", "zero_grad"} & vars(optimizers["removed"]).keys()
    optimizer = Sam(plain.parameters())
    for first, second in pairs(batches)[:5]:
        first_and_second_step(plain, optimizer, first, second, lambda loss: loss)
        for name, model in models.items():
            first_and_second_step(model, optimizers[name], first, second, flood_steps[name])
    assert distance(models["none"], plain) == 0
    assert distance(models["removed"], plain) == 0


def test_a_controller_counts_a_pair_of_passes_once():
    model, batches, level = build()
    optimizer = Sam(model.parameters())
    flood_step = FloodStep(optimizer, levels.Warmup(level, steps=10, start=0.0))
    for first, second in pairs(batches)[:5]:
        first_and_second_step(model, optimizer, first, second, flood_step)
    assert flood_step.level.item() == pytest.approx(level / 2)


def test_a_step_broken_off_between_the_passes_decides_anew():
    model, batches, _ = build()
    batch, level = batches[0], torch.tensor(0.0)
    optimizer = Sam(model.parameters())
    flood_step = FloodStep(optimizer, level)
    _backward(model, *batch, flood_step)
    optimizer.first_step(zero_grad=True)  # slope +1; then the second batch fails
    optimizer.zero_grad()
    level.fill_(10.0)
    first_and_second_step(model, optimizer, batch, batch, flood_step)
    assert flood_step.state["slope"] == -1
    assert flood_step.state["n_steps"] == 1


def test_a_first_pass_without_a_watched_loss_is_refused():
    model, batches, level = build()
    optimizer = Sam(model.parameters())
    FloodStep(optimizer, level)
    _backward(model, *batches[0], lambda loss: loss)
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="needs its loss"):
        optimizer.first_step(zero_grad=True)
    with pytest.raises(RuntimeError, match="needs its loss"):
        optimizer.step(lambda: None)
    assert distance(model, before) == 0


def test_local_is_refused():
    with pytest.raises(ValueError, match="one slope for all passes"):
        FloodStep(Sam([nn.Parameter(torch.ones(1))]), 0.1, per_microbatch=True)


def test_a_closure_with_arguments_of_its_own():
    """Composer's SAM calls closure(ddp_sync=False) and steps plainly in between."""

    class Interval(Sam):
        calls = 0

        def step(self, closure):
            closure = torch.enable_grad()(closure)
            loss = closure(ddp_sync=False)
            if self.calls % 2 == 0:
                self.first_step(zero_grad=True)
                closure()
                self.second_step()
            else:
                self.base_optimizer.step()
            self.calls += 1
            return loss

    synced = []

    def closure(ddp_sync=True):
        synced.append(ddp_sync)
        optimizer.zero_grad()
        loss = watch(slope * functional.cross_entropy(model(x), y))
        loss.backward()
        return loss

    start, batches, level = build()
    model, expected = copy.deepcopy(start), copy.deepcopy(start)
    optimizer, slope = Interval(model.parameters()), 1.0
    watch = flood_step = FloodStep(optimizer, level)
    slopes = []
    for x, y in batches:  # ruff: ignore[unused-loop-control-variable] (the closure uses them)
        optimizer.step(closure)
        slopes.append(flood_step.state["slope"].item())
    assert synced[:4] == [False, True, False, False]
    flooded, model = model, expected
    optimizer, watch = Interval(model.parameters()), lambda loss: loss
    for (x, y), slope in zip(batches, slopes, strict=True):
        with torch.no_grad():
            assert slope == (1.0 if functional.cross_entropy(model(x), y) > level else -1.0)
        optimizer.step(closure)
    assert distance(flooded, expected) <= 1e-12
    assert flood_step.state["n_steps"] == len(batches)


# The same with every optimiser of pytorch_optimizer that takes several passes.

SGD = torch.optim.SGD
KIN = {
    "SAM": lambda o, m: o.SAM(m.parameters(), SGD, lr=LR, rho=RHO),
    "FriendlySAM": lambda o, m: o.FriendlySAM(m.parameters(), SGD, lr=LR, rho=RHO),
    "LookSAM": lambda o, m: o.LookSAM(m.parameters(), SGD, lr=LR, rho=RHO, k=3),
    "WSAM": lambda o, m: o.WSAM(m, m.parameters(), SGD, lr=LR, rho=RHO),
    "GSAM": lambda o, m: o.GSAM(
        m.parameters(), SGD(m.parameters(), lr=LR), m, SimpleNamespace(step=lambda: RHO)
    ),
    "BSAM": lambda o, m: o.BSAM(m.parameters(), num_data=48, lr=LR, rho=RHO, weight_decay=1.0),
}


def train_kin(name, model, batches, watch, slopes):
    """One step a batch by the class's own idiom; ``slopes`` multiply the loss of all passes of a
    step."""
    library = pytest.importorskip("pytorch_optimizer")
    model = copy.deepcopy(model)
    optimizer = KIN[name](library, model)
    watch = watch(optimizer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for (x, y), slope in zip(batches, slopes, strict=True):

            def closure(x=x, y=y, slope=slope):
                optimizer.zero_grad()
                with torch.enable_grad():  # GSAM leaves it to the closure
                    out = model(x)
                    loss = watch(slope * functional.cross_entropy(out, y))
                loss.backward()
                return (out, loss) if name == "GSAM" else loss

            if name == "GSAM stored":
                optimizer.set_closure(
                    lambda out, y, s=slope: watch(s * functional.cross_entropy(out, y)), x, y
                )
                optimizer.step()
                continue
            if name not in ("WSAM", "GSAM"):
                closure()
            optimizer.step(closure)
    return model, watch


KIN["GSAM stored"] = KIN["GSAM"]


@pytest.mark.parametrize("name", KIN)
def test_kin_of_sam_equal_a_loss_of_the_first_passes_sign(name):
    """The twin trains without FloodStep on slope * loss; its slopes are checked against its own
    first losses."""
    model, batches, level = build()
    seen = []

    def flooded(optimizer):
        flood_step = FloodStep(optimizer, level)
        optimizer.register_step_post_hook(lambda *_: seen.append(flood_step.state["slope"].item()))
        return flood_step

    exact, flood_step = train_kin(name, model, batches, flooded, [1.0] * len(batches))
    assert flood_step.state["n_steps"] == len(batches)
    assert min(seen.count(1.0), seen.count(-1.0)) >= 2
    first = []

    def logged(optimizer):
        started = []
        optimizer.register_step_post_hook(lambda *_: started.clear())

        def watch(loss):
            first.extend([] if started else [loss.item()])
            started.append(loss)
            return loss

        return watch

    twin, _ = train_kin(name, model, batches, logged, seen)
    assert [loss * slope > level for loss, slope in zip(first, seen, strict=True)] == [
        s > 0 for s in seen
    ]
    plain, _ = train_kin(name, model, batches, lambda _: lambda loss: loss, [1.0] * len(batches))
    print(f"{name}: {distance(exact, twin):.1e}, without flooding {distance(plain, twin):.1e}")
    assert distance(exact, twin) <= 1e-9
    assert distance(plain, twin) > 1e-2


def test_three_passes_by_hand():
    """BSAM's first pass draws noise: with no loss before it, the second pass decides."""
    library = pytest.importorskip("pytorch_optimizer")
    model, batches, _ = build()
    x, y = batches[0]
    optimizer = KIN["BSAM"](library, model)
    flood_step = FloodStep(optimizer, 10.0)
    _backward(model, x, y, flood_step)
    for _ in range(3):
        optimizer.first_step()
        optimizer.zero_grad()
        _backward(model, x, y, flood_step)
        raw = model[2].bias.grad.clone()
        optimizer.second_step()
        assert torch.equal(model[2].bias.grad, -raw)
        optimizer.zero_grad()
        _backward(model, x, y, flood_step)
        raw = model[2].bias.grad.clone()
        optimizer.third_step()
        assert torch.equal(model[2].bias.grad, -raw)
    assert flood_step.state["n_steps"] == 3
    assert flood_step.state["n_flooded"] == 3
