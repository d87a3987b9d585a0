"""Methods and levels of a user's own: everything the loop asks for is asked of the object."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from flooding import Flood, Run, train
from flooding.levels import Controller, LevelSource, LevelTable, PerClass, Warmup
from flooding.methods import SAM, Flooding, GradientPenalty, Hinge, IFlood, Method, WaveBound
from flooding.training.prefix import can_share
from small import small


@dataclass(frozen=True)
class Own(Method):
    """Flooding again, written by a user in one line."""

    def __call__(self, loss, level):
        return (loss - level).abs() + level


@dataclass(frozen=True)
class Penalised(Flooding):
    """Flooding with a hook more."""

    strength: float = 0.0

    def penalty(self, loss, parameters):
        return self.strength * sum(p.square().sum() for p in parameters)


class Halved(Flooding):
    """Flooding that trains with half of the problem's learning rate."""

    def wrap_optimizer(self, make_optimizer, parameters):
        optimizer = make_optimizer(parameters)
        optimizer.param_groups[0]["lr"] /= 2
        return optimizer


@dataclass(frozen=True)
class Everywhere(LevelTable):
    """The same level for every example, looked up."""

    level: float

    def lookup(self, target, ids=None):
        return torch.full(target.shape, self.level)

    def to(self, device):
        return self


class EverywhereSource:
    """Computes that table when the Run trains."""

    cost = 3
    levels = Everywhere(0.4)

    def resolve(self, problem, seed, device):
        return self


def losses(run):
    return list(train(run))[-1].record.curves["train_loss"].tolist()


def test_a_method_of_ones_own_is_a_class_of_one_function():
    # The value may round differently from flooding's slope, so this is close and not equal.
    assert losses(Run(small(), 0.4, Own())) == pytest.approx(losses(Run(small(), 0.4)), rel=1e-4)
    criterion = Flood(nn.MSELoss(), 0.5, Own())
    x = torch.tensor([0.1], requires_grad=True)
    assert criterion(x, torch.zeros(1)).item() == pytest.approx(0.99)


def test_the_loop_adds_a_penalty_and_uses_the_optimiser_of_the_method():
    plain = losses(Run(small(), 0.4))
    assert losses(Run(small(), 0.4, Penalised())) == pytest.approx(plain, rel=1e-4)
    assert losses(Run(small(), 0.4, Penalised(1.0)))[-1] > plain[-1] + 0.01
    rates = [list(train(Run(small(), 0.4, m)))[-1].values["lr"] for m in (Flooding(), Halved())]
    assert rates[1] == rates[0] / 2


@pytest.mark.parametrize(
    "method",
    [lambda loss, level: loss, "flooding", None, 0.1, object()],
    ids=["function", "text", "None", "number", "object"],
)
def test_what_is_no_method_is_refused_alike(method):
    builds = [lambda: Run(small(), 0.1, method)]
    if method is not None:  # for a criterion None is flooding, so that its class path builds it
        builds.append(lambda: Flood(nn.MSELoss(), 0.1, method))
    for build in builds:
        with pytest.raises(TypeError, match=r"must be a method .* inherit from flooding\.methods"):
            build()


def test_a_class_of_a_method_and_a_wrong_reduction_are_refused():
    class Summed(Own):
        reduction = "sum"

    with pytest.raises(TypeError, match=r"Build it first: Own\(\)"):
        Run(small(), 0.1, Own)
    with pytest.raises(ValueError, match=r"must be 'mean' or 'none', got 'sum'. Set Summed.red"):
        Run(small(), 0.1, Summed())
    with pytest.raises(NotImplementedError, match=r"must define __call__\(loss, level\)"):
        Method()(torch.tensor(1.0), 0.1)


def test_a_subclass_with_hooks_of_its_own_promises_nothing():
    assert Flooding.shares_prefix
    assert Flooding.has_slope

    class Renamed(Flooding):
        pass

    class Promising(Penalised):
        shares_prefix: ClassVar[bool] = True

        def __call__(self, loss, level):
            return loss

    assert [Renamed.shares_prefix, Renamed.has_slope] == [True, True]
    assert [Penalised.shares_prefix, Penalised.has_slope] == [False, False]
    assert [Halved.shares_prefix, Halved.has_slope] == [False, False]
    assert [Promising.shares_prefix, Promising.has_slope] == [True, False]


@pytest.mark.parametrize(
    ("method", "shares"),
    [(Flooding(), True), (Hinge(), True), (SAM(), False), (GradientPenalty(0.1), False)]
    + [(IFlood(), False), (Own(), False), (Penalised(), False)],
    ids=repr,
)
def test_prefix_sharing_asks_the_method(method, shares):
    assert can_share(Run(small(), 0.1, method)) is shares


@pytest.mark.parametrize(
    ("method", "needs_run"),
    [(Flooding(), False), (IFlood(), False), (Own(), False), (WaveBound(0.1), True)]
    + [(SAM(), True), (GradientPenalty(0.1), True), (Penalised(), True), (Halved(), True)],
    ids=lambda value: type(value).__name__,
)
def test_a_criterion_refuses_methods_that_need_a_loop(method, needs_run):
    assert method.needs_run is needs_run
    if needs_run:
        with pytest.raises(TypeError, match=r"Use a Run|Call objective"):
            Flood(nn.CrossEntropyLoss(reduction=method.reduction), 0.1, method)
    else:
        Flood(nn.CrossEntropyLoss(reduction=method.reduction), 0.1, method)


def test_a_table_of_ones_own_acts_as_the_level_it_holds():
    expected = losses(Run(small(), 0.4, IFlood()))
    assert losses(Run(small(), Everywhere(0.4), IFlood())) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="Everywhere needs a method on each example, got Flooding"):
        Run(small(), Everywhere(0.4))

    logits, y = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])
    criterion = Flood(nn.CrossEntropyLoss(reduction="none"), Everywhere(2.0), IFlood())
    number = Flood(nn.CrossEntropyLoss(reduction="none"), torch.tensor(2.0), IFlood())
    assert torch.equal(criterion(logits, y), number(logits, y))


def test_a_source_of_levels_is_resolved_when_the_run_trains():
    record = list(train(Run(small(), EverywhereSource(), IFlood())))[-1].record
    expected = losses(Run(small(), Everywhere(0.4), IFlood()))
    assert record.curves["train_loss"].tolist() == expected
    assert record.metadata["epochs_trained"] == 3 + small().max_epochs


@pytest.mark.parametrize("level", [Warmup, PerClass, EverywhereSource], ids=lambda x: x.__name__)
def test_the_class_of_a_level_is_no_level(level):
    with pytest.raises(ValueError, match="level must be a number"):
        Run(small(), level, IFlood())


def test_the_kinds_of_level_are_told_apart():
    for kind, level in {
        Controller: Warmup(0.1, 5),
        LevelTable: Everywhere(0.1),
        LevelSource: EverywhereSource(),
    }.items():
        kinds = [k for k in (Controller, LevelTable, LevelSource) if isinstance(level, k)]
        assert kinds == [kind]
