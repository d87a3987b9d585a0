"""The contracts pass ours, and catch controllers and strategies that are bad on purpose, each in
one way."""

import math
import random
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flooding import run_all
from flooding.level_search.level_stats import best_level, tail_key
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.levels import Constant, Delayed, Heuristic, Plateau, Range, Warmup
from flooding.metrics import balanced_accuracy
from flooding.testing import check_controller, check_runner, check_strategy, fake_record
from flooding.training.problem import Score
from flooding.training.run import Run
from small import regression, small


class Following:
    """A good controller written by somebody else: half of a moving average of the losses seen."""

    def init(self):
        return {"level": torch.tensor(0.0), "mean": torch.tensor(1.0)}

    def update(self, state, seen):
        if seen.loss is None:
            return state
        loss = seen.loss.detach()
        mean = torch.where(loss.isnan(), state["mean"], 0.9 * state["mean"] + 0.1 * loss)
        return {"level": 0.5 * mean, "mean": mean}


@pytest.mark.parametrize(
    "controller",
    [
        Constant(0.1),
        Constant(-math.inf),
        Warmup(0.1, steps=20),
        Warmup(0.1, steps=20, num_steps=4),
        Range(0.6, 0.0, steps=30),
        Delayed(0.1, until_loss=1e-4),
        Delayed(0.1, until_accuracy=1.0),
        Heuristic(until_loss=1e-4),
        Heuristic(until_accuracy=1.0),
        Plateau(0.1),
        Following(),
    ],
    ids=lambda c: c if isinstance(c, str) else str(c)[:40],
)
def test_good_controllers_pass(controller):
    before = torch.get_rng_state()
    check_controller(controller, compiled=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "controller", [Delayed(0.1, until_loss=1e-4), Delayed(0.1, until_accuracy=1.0)], ids=str
)
def test_the_made_up_training_meets_both_start_conditions(controller, monkeypatch):
    started = []
    update = Delayed.update

    def note(self, state, seen):
        started.append(state["started"])
        return update(self, state, seen)

    monkeypatch.setattr(Delayed, "update", note)
    check_controller(controller)
    assert {bool(t) for t in started if t.device.type == "cpu"} == {False, True}


class Bad(Following):
    """Following with one fault; each subclass breaks one rule."""


class MutatesItsState(Bad):
    def update(self, state, seen):
        if seen.loss is not None:
            state["level"] += 0.01
        return dict(state)


class MutatesItsDict(Bad):
    def update(self, state, seen):
        if seen.loss is not None:
            state["level"] = state["level"] + 0.01
        return state


class MutatesWhatItSees(Bad):
    def update(self, state, seen):
        if seen.loss is not None:
            seen.loss.detach().mul_(2)
        return super().update(state, seen)


class CountsOnItself(Bad):
    calls = 0

    def update(self, state, seen):
        self.calls += 1
        return state | {"level": state["level"] * 0 + self.calls}


class Draws(Bad):
    def update(self, state, seen):
        return state | {"level": torch.rand_like(state["level"])}


class SecondTrainingDiffers(Bad):
    trainings = 0

    def init(self):
        self.trainings += 1
        return super().init() | {"mean": torch.tensor(float(self.trainings))}


class BranchesOnAValue(Bad):
    def update(self, state, seen):
        if seen.loss is not None and seen.loss < 0.1:
            return state | {"level": state["level"] * 0 + 0.2}
        return dict(state)


class ComparesWholeTensors(Bad):
    def update(self, state, seen):
        return state | {"level": state["level"] * 0 + torch.equal(state["level"], state["mean"])}


class ReadsThroughNumpy(Bad):
    def update(self, state, seen):
        return state | {"level": state["level"] * 0 + abs(state["mean"].numpy())}


class MakesItsTensorsAnew(Bad):
    def update(self, state, seen):
        return state | {"level": torch.tensor(0.2)}


class IsPoisonedByNaN(Bad):
    def update(self, state, seen):
        return (
            state
            if seen.loss is None
            else state | {"level": 0.9 * state["level"] + 0.1 * seen.loss.detach()}
        )


class IsPoisonedByNaNAtAnEpoch(Bad):
    def update(self, state, seen):
        return (
            state | {"level": state["level"] * 0 + seen.val_loss}
            if seen.loss is None
            else dict(state)
        )


class IsPoisonedByNaNOnceFitted(Bad):
    def init(self):
        return super().init() | {"fitted": torch.tensor(False)}

    def update(self, state, seen):
        if seen.loss is None:
            return dict(state)
        level = torch.where(state["fitted"], 0.5 * seen.loss.detach(), state["level"])
        return state | {"level": level, "fitted": state["fitted"] | (seen.loss < 0.1)}


class AveragesNothing(Bad):
    def init(self):
        return super().init() | {"sum": torch.tensor(0.0), "count": torch.tensor(0)}

    def update(self, state, seen):
        if seen.loss is None:
            return dict(state)
        finite = seen.loss.isfinite()
        total = state["sum"] + torch.where(finite, seen.loss.detach(), 0.0)
        count = state["count"] + finite
        return state | {"sum": total, "count": count, "level": total / count}


class GrowsToInfinity(Bad):
    def update(self, state, seen):
        return state | {"level": (state["level"] + 1) * 1e9}


class BeginsAtNaN(Bad):
    def init(self):
        return super().init() | {"level": torch.tensor(math.nan)}


class KeepsTheGraph(Bad):
    def update(self, state, seen):
        return state if seen.loss is None else state | {"mean": seen.loss * 1}


class KeepsTheLossItself(Bad):
    def update(self, state, seen):
        return state if seen.loss is None else state | {"mean": seen.loss.detach()}


class KeepsAFloat(Bad):
    def init(self):
        return super().init() | {"count": 0}


class HasNoLevel(Bad):
    def init(self):
        return {"b": torch.tensor(0.1)}


class GivesATuple(Bad):
    def init(self):
        return (torch.tensor(0.1),)


class ForgetsToReturn(Bad):
    def update(self, state, seen):
        return None


class HasALevelWithAxes(Bad):
    def init(self):
        return super().init() | {"level": torch.zeros(1)}


class HasAWholeLevel(Bad):
    def init(self):
        return super().init() | {"level": torch.tensor(0)}


class WidensItsLevel(Bad):
    def update(self, state, seen):
        return state | {"level": state["level"].double()}


class GrowsAHistory(Bad):
    def init(self):
        return super().init() | {"history": torch.zeros(0)}

    def update(self, state, seen):
        return state | {"history": torch.cat([state["history"], state["mean"][None]])}


class DropsAnEntry(Bad):
    def update(self, state, seen):
        return {"level": state["level"]}


class AddsAnEntry(Bad):
    def update(self, state, seen):
        return state | {"new": state["level"]}


class CannotBePickled(Bad):
    def __init__(self):
        self.rule = lambda loss: 0.5 * loss


class CopiesForgetfully(Bad):
    def __init__(self, level=0.2):
        self.level = level

    def __deepcopy__(self, memo):
        return CopiesForgetfully(level=0.3)

    def update(self, state, seen):
        return state | {"level": state["level"] * 0 + self.level}


class PreparesInInit(Bad):
    def init(self):
        self.scale = 0.5
        return super().init()

    def update(self, state, seen):
        return state | {"level": state["level"] * 0 + self.scale}


class PreparesInInitWithADefault(PreparesInInit):
    scale: Any = 0.25


@pytest.mark.parametrize(
    ("bad", "error", "rule"),
    [
        (MutatesItsState, AssertionError, "must not change the state it is given"),
        (MutatesItsDict, AssertionError, "must not change the state it is given"),
        (MutatesWhatItSees, AssertionError, "must not change what it is shown"),
        (CountsOnItself, AssertionError, "same bits for the same input"),
        (Draws, AssertionError, "same bits for the same input"),
        (SecondTrainingDiffers, AssertionError, "a second training must give the same states"),
        (
            BranchesOnAValue,
            AssertionError,
            r"must not wait for the device, got 40 \['_local_scalar_dense'\]",
        ),
        (ComparesWholeTensors, AssertionError, r"must not wait for the device, got 50 \['equal'\]"),
        (ReadsThroughNumpy, AssertionError, "must neither read a tensor's value nor mix devices"),
        (
            MakesItsTensorsAnew,
            AssertionError,
            r"must keep state\['level'\] .* on meta, got .* on cpu",
        ),
        (IsPoisonedByNaN, AssertionError, "got nan after a NaN was shown"),
        (IsPoisonedByNaNAtAnEpoch, AssertionError, "got nan after a NaN was shown"),
        (IsPoisonedByNaNOnceFitted, AssertionError, "got nan after a NaN was shown"),
        (AveragesNothing, AssertionError, "got nan after a NaN was shown"),
        (GrowsToInfinity, AssertionError, "must be finite or -inf, got inf after entry"),
        (BeginsAtNaN, AssertionError, "must be finite or -inf, got nan from init"),
        (KeepsTheGraph, AssertionError, r"state\['mean'\] from update keeps a graph"),
        (KeepsTheLossItself, AssertionError, "must not share memory with what is shown"),
        (KeepsAFloat, TypeError, r"state\['count'\] from init must be a tensor, got int"),
        (HasNoLevel, TypeError, r"must hold \"level\", got \['b'\]"),
        (GivesATuple, TypeError, "init must give a dict of tensors by name, got tuple"),
        (ForgetsToReturn, TypeError, "update must give a dict of tensors by name, got NoneType"),
        (HasALevelWithAxes, TypeError, r"float32 or float64 without axes, got torch.float32 \[1\]"),
        (HasAWholeLevel, TypeError, r"float32 or float64 without axes, got torch.int64 \[\]"),
        (
            WidensItsLevel,
            AssertionError,
            r"must keep state\['level'\] torch.float32 .* got torch.float64",
        ),
        (
            GrowsAHistory,
            AssertionError,
            r"must keep state\['history'\] torch.float32 \[0\] .* \[1\]",
        ),
        (DropsAnEntry, AssertionError, r"must keep the names \['level', 'mean'\], got \['level'\]"),
        (AddsAnEntry, AssertionError, r"must keep the names .* got \['level', 'mean', 'new'\]"),
        (CannotBePickled, AssertionError, "must survive deepcopy and pickle"),
        (CopiesForgetfully, AssertionError, "a copied controller must give the same states"),
        (
            PreparesInInit,
            AssertionError,
            "must continue exactly in a new process, got AttributeError",
        ),
        (
            PreparesInInitWithADefault,
            AssertionError,
            "must continue exactly in a new process. Keep all of it",
        ),
    ],
)
def test_bad_controllers_are_caught_by_the_rule_they_break(bad, error, rule):
    with pytest.raises(error, match=rule):
        check_controller(bad())


class DiffersWhenCompiled(Bad):
    def update(self, state, seen):
        return state | {
            "level": state["level"] * 0 + (0.1 if torch.compiler.is_compiling() else 0.2)
        }


class BreaksTheGraph(Bad):
    def update(self, state, seen):
        torch._dynamo.graph_break()
        return super().update(state, seen)


class CompilesAnew(Bad):
    """Every call sees another value of a string, so that each needs a graph of its own."""

    turn = "a"

    def update(self, state, seen):
        self.turn += "a"
        return state | {"level": state["level"] * (1 if self.turn else 0)}


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (DiffersWhenCompiled, "compiled, update must give the same bits"),
        (BreaksTheGraph, "must compile with fullgraph=True"),
        (CompilesAnew, "one graph for steps and one for epochs, got a third"),
    ],
)
def test_what_does_not_compile_is_caught_when_asked(bad, rule):
    check_controller(bad())
    with pytest.raises(AssertionError, match=rule):
        check_controller(bad(), compiled=True)


def test_a_training_of_one_epoch_is_too_short():
    with pytest.raises(ValueError, match="steps must be at least 8, got 7"):
        check_controller(Constant(0.1), steps=7)
    check_controller(Constant(0.1), steps=8)


PROBLEM = small(max_epochs=10)


def good(levels=(0.0, 0.1, 0.2), ask=None, finish=None):
    """A grid with a fault to be put in."""
    records = yield [Run(PROBLEM, level) for level in levels] if ask is None else ask()
    level = best_level(records)
    result = SearchResult("good", Run(PROBLEM, level or None), (LevelEstimate("good", level),))
    return result if finish is None else finish(records)


def result_of(level, *suggestions):
    return SearchResult("bad", Run(PROBLEM, level), suggestions)


def asks_nothing():
    yield from ()
    return result_of(None)


def test_good_strategies_pass():
    check_strategy(good)
    check_strategy(asks_nothing)


def asks_for_ever():
    while True:
        yield [Run(PROBLEM)]


def ignores_nan(records):
    return result_of(max(records, key=lambda r: r.metrics.get("last.val_accuracy", 0)).level)


def trusts_the_last(records):
    return result_of(records[-1].level)


def trusts_the_first(records):  # level 0, which is found as None
    return result_of(records[0].level or None)


def needs_accuracy(records):
    return result_of(
        max(records, key=lambda r: (tail_key(r), r.metrics["last.val_accuracy"])).level or None
    )


def needs_one_that_is_sound(records):
    return result_of(next(r.level for r in records if tail_key(r) > (-math.inf, -math.inf)) or None)


calls = []


def changes_its_mind():
    calls.append(0)
    return result_of(None, LevelEstimate("bad", None, note=str(len(calls))))


def other_runs():
    calls.append(0)
    return [Run(PROBLEM, 0.1, seed=len(calls))]


def draws(generator):
    generator()
    return [Run(PROBLEM, 0.1)]


@pytest.mark.parametrize(
    ("bad", "error", "rule"),
    [
        (lambda: good(ask=lambda: Run(PROBLEM)), TypeError, "must yield lists of Runs, got Run"),
        (lambda: good(ask=lambda: [0.1]), TypeError, r"must yield lists of Runs, got \[0.1\]"),
        (lambda: good(ask=list), AssertionError, "must not yield an empty list"),
        (lambda: good(levels=(0.1, 0.2, 0.1)), AssertionError, "must not hold the same Run twice"),
        (asks_for_ever, AssertionError, "a strategy must end, got 1000 lists"),
        (
            lambda: good(finish=lambda _: None),
            TypeError,
            "must return a SearchResult with a Run, got None",
        ),
        (
            lambda: good(finish=lambda _: SearchResult("bad", 0.1)),
            TypeError,
            "must return a SearchResult with a Run",
        ),
        (
            lambda: good(finish=lambda _: result_of(0.1, LevelEstimate("bad", 0.1, 0.2, 0.3))),
            AssertionError,
            "low <= level",
        ),
        (
            lambda: good(finish=lambda _: result_of(0.1, LevelEstimate("bad", None, 0.4, 0.3))),
            AssertionError,
            "low <= level",
        ),
        (
            lambda: good(finish=lambda _: changes_its_mind()),
            AssertionError,
            "make a strategy find the same, got",
        ),
        (lambda: good(ask=other_runs), AssertionError, "make a strategy ask the same Runs"),
        (
            lambda: good(finish=ignores_nan),
            AssertionError,
            "whose validation loss is NaN must not be chosen",
        ),
        (
            lambda: good((0.0, 0.2), finish=trusts_the_last),
            AssertionError,
            "is NaN must not be chosen .*, got 0.2",
        ),
        (
            lambda: good(finish=trusts_the_first),
            AssertionError,
            "is NaN must not be chosen .*, got 0.0",
        ),
        (lambda: good(finish=needs_accuracy), KeyError, "last.val_accuracy"),
        (lambda: good(finish=needs_one_that_is_sound), RuntimeError, "StopIteration"),
        (
            lambda: good(ask=lambda: draws(lambda: torch.rand(1))),
            AssertionError,
            "generators must be left alone",
        ),
        (
            lambda: good(ask=lambda: draws(np.random.rand)),
            AssertionError,
            "generators must be left alone",
        ),
        (
            lambda: good(ask=lambda: draws(random.random)),
            AssertionError,
            "generators must be left alone",
        ),
    ],
)
def test_bad_strategies_are_caught_by_the_rule_they_break(bad, error, rule):
    with pytest.raises(error, match=rule):
        check_strategy(bad)


def test_a_made_up_record_is_one():
    problem = replace(PROBLEM, max_epochs=40)
    record = fake_record(Run(problem, Delayed(0.1, until_loss=0.01), stop_epoch=20))
    curve = record.curves["level"]
    assert math.isnan(curve[0])
    assert curve[1] == -math.inf
    assert curve[-1] == np.float32(0.1)
    assert record.curves["train_loss"].min() < 0.01 < record.metrics["last.train_loss"]
    assert {len(values) for values in record.curves.values()} == {21}
    assert record.metrics["epochs"] == 20
    assert record.metrics["best.val_accuracy"] == pytest.approx(
        record.curves["val_accuracy"][1:].max()
    )
    assert fake_record(record.run).content_hash == record.content_hash
    best = best_level(fake_record(Run(problem, level)) for level in (0.0, 0.02, 0.1, 0.3, 0.5))
    assert best == 0.1
    sick = fake_record(Run(problem, 0.1), diverges=True)
    assert tail_key(sick) == tail_key(sick, 0.5) == (-math.inf, -math.inf)


def test_a_made_up_record_measures_what_the_problem_does():
    watched = replace(PROBLEM, extra_metrics=lambda model, problem, splits: {"norm": 3.0})
    assert fake_record(Run(watched)).curves["norm"].tolist() == pytest.approx(
        np.linspace(1, -1, 11).tolist()
    )
    scored = replace(PROBLEM, score=Score(balanced_accuracy, greater_is_better=False))
    metrics = fake_record(Run(scored)).metrics
    assert metrics["last.val_score"] == -metrics["last.val_accuracy"]
    assert not any(
        "accuracy" in name for name in fake_record(Run(regression()), accuracy=False).metrics
    )


# Evaluators


def trained(runs):
    return run_all(runs, ledger=False, workers=0)


def shuffled(runs):
    return trained(runs)[::-1]


def short(runs):
    return trained(runs)[:-1]


def strangers(runs):
    return [replace(record, run=None) for record in trained(runs)]


def blind(runs):
    return [
        replace(r, metrics={n: v for n, v in r.metrics.items() if n != "last.val_loss"})
        for r in trained(runs)
    ]


def without_a_beginning(runs):
    return [replace(r, curves={n: c[1:] for n, c in r.curves.items()}) for r in trained(runs)]


def by_place(runs):
    """Measure by where a Run stands in the list."""
    records = enumerate(trained(runs))
    return [
        replace(r, metrics={**r.metrics, "last.val_loss": r.metrics["last.val_loss"] + index})
        for index, r in records
    ]


def ignores_until(runs):
    longer = trained([replace(run, stop_epoch=None) for run in runs])
    cut = zip(runs, longer, strict=True)
    return [
        replace(r, run=run, curves={n: c[-run.epochs - 1 :] for n, c in r.curves.items()})
        for run, r in cut
    ]


def test_a_runner_that_keeps_the_rules_passes():
    check_runner(trained, small(max_epochs=3))
    check_runner(partial(run_all, ledger=False, workers=2), small(max_epochs=3))
    check_runner(lambda runs: [fake_record(run) for run in runs], small(max_epochs=3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shuffled, "in the order asked"),
        (short, "got 3 for 4"),
        (strangers, "each with the Run it was asked for"),
        (blind, "last.val_loss"),
        (without_a_beginning, "curves must have 4 values"),
        (by_place, "measured alike whatever else is asked"),
        (ignores_until, "a shorter Run must see"),
        (lambda runs: trained(runs) or [None], "no Runs must give no Records"),
    ],
)
def test_a_runner_that_breaks_a_rule_fails_with_its_name(bad, message):
    with pytest.raises(AssertionError, match=message):
        check_runner(bad, small(max_epochs=3))
