"""Problem, Run and Record: what they refuse, what names them, and what they leave alone."""

import dataclasses
import functools
import itertools
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from flooding.data import Split, Splits
from flooding.data.synthetic import two_gaussians
from flooding.levels import Delayed, PerClass, Warmup
from flooding.methods import Flooding, IFlood, SoftAD
from flooding.models import mlp
from flooding.training.config import UnhashableConfigError, to_config
from flooding.training.loop import train
from flooding.training.problem import TestCurve
from flooding.training.record import Record, select_best, selection_key
from flooding.training.rng import derive_seed, fork_rng
from flooding.training.run import Run
from small import normed, regression, small

# Refusals


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "max_epochs"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_problem_refuses_counts_that_are_none(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} must be a whole number of at least 1, got {value!r}\."
    ):
        small(**{name: value})


@pytest.mark.parametrize("max_grad_norm", [0.0, -1.0, math.inf, math.nan])
def test_problem_refuses_a_max_grad_norm_that_is_no_norm(max_grad_norm):
    with pytest.raises(
        ValueError,
        match=rf"max_grad_norm must be a positive norm, got {max_grad_norm}\. Leave it out for no clipping\.",
    ):
        small(max_grad_norm=max_grad_norm)


@pytest.mark.parametrize("name", ["examples", "every"])
def test_test_curve_refuses_counts_below_one(name):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1, got 0\."):
        TestCurve(**{name: 0})


@pytest.mark.parametrize("level", [math.nan, math.inf, -math.inf])
def test_run_refuses_a_level_that_is_not_finite(level):
    with pytest.raises(
        ValueError, match=rf"level must be finite, got {level}\. Use None for plain training\."
    ):
        Run(small(), level)


def test_run_takes_what_is_merely_unusual():
    assert [Run(small(), level).level for level in (-1.0, 0, 7.0)] == [
        -1.0,
        0,
        7.0,
    ]  # densities have negative losses


@pytest.mark.parametrize("seed", [-1, 0.0, None])
def test_run_refuses_a_seed_that_is_none(seed):
    with pytest.raises(
        ValueError, match=rf"seed must be a whole number of at least 0, got {seed}\."
    ):
        Run(small(), seed=seed)


@pytest.mark.parametrize("stop_epoch", [0, -1, 7])
def test_run_refuses_an_end_outside_max_epochs(stop_epoch):
    with pytest.raises(ValueError, match=rf"stop_epoch must .*, got {stop_epoch}\."):
        Run(small(), stop_epoch=stop_epoch)


def test_run_refuses_half_an_epoch():
    with pytest.raises(ValueError, match=r"stop_epoch must .*, got 2\.5\."):
        Run(small(), stop_epoch=2.5)


def test_a_run_ends_at_max_epochs_by_default():
    assert [Run(small(), stop_epoch=stop_epoch).epochs for stop_epoch in (None, 1, 6)] == [6, 1, 6]


def test_problem_run_and_record_are_frozen_and_equal_only_to_themselves():
    run = Run(small(), 0.3)
    for thing in (run, run.problem, Record(run, {}, {}, {}, "", "")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            thing.seed = 1
        assert thing != dataclasses.replace(thing)
        assert {thing: 1}[thing] == 1


# Descriptions


def test_describe_is_explicit():
    assert to_config(None) is None
    assert to_config([True, 1, 1.5, "a", (2,)]) == [True, 1, 1.5, "a", [2]]
    assert to_config({"a": {1: torch.float16}}) == {"a": {"1": "torch.float16"}}
    assert to_config(torch.device("cuda", 1)) == "cuda:1"
    assert to_config(functional.cross_entropy) == "torch.nn.functional.cross_entropy"
    assert to_config(math.sqrt) == "math.sqrt"
    assert to_config(torch.relu) == "torch._VariableFunctionsClass.relu"
    assert to_config(torch.optim.SGD) == "torch.optim.sgd.SGD"
    assert to_config(int) == "builtins.int"
    assert to_config(partial(torch.optim.SGD, lr=0.1)) == {
        "call": "torch.optim.sgd.SGD",
        "args": [],
        "with": {"lr": 0.1},
    }
    assert to_config(partial(mlp, 10, 2)) == {
        "call": "flooding:mlp",
        "args": [10, 2],
        "with": {},
    }
    assert to_config(Flooding()) == {"is": "flooding:Flooding"}
    assert to_config(SoftAD(sigma=0.5)) == {"is": "flooding:SoftAD", "sigma": 0.5}
    assert to_config(TestCurve(7)) == {"is": "flooding:TestCurve", "examples": 7}


def test_describe_tells_tensors_and_splits_by_content():
    x = torch.arange(6.0)
    assert to_config(x) == to_config(x.clone())
    others = [x.double(), x.reshape(2, 3), x.flip(0), x + 1e-6]
    assert len({json.dumps(to_config(t)) for t in [x, *others]}) == 5
    long = torch.zeros(5000)
    assert to_config(long) != to_config(
        long.index_fill(0, torch.tensor(2500), 1)
    )  # though both print alike
    assert to_config(PerClass(torch.tensor([0.1, 0.2]))) != to_config(
        PerClass(torch.tensor([0.1, 0.3]))
    )
    assert to_config(splits_of(x)) == to_config(splits_of(x.clone())) != to_config(splits_of(x + 1))


def test_describe_leaves_out_fields_at_their_default():
    assert to_config(Delayed(0.3, until_loss=0.1)) == to_config(
        Delayed(**defaults(Delayed) | {"level": 0.3, "until_loss": 0.1})
    )
    assert to_config(small(max_grad_norm=None, test_curve=None)) == to_config(small())
    assert set(to_config(small())) == {"is", "data", "model", "optimizer", "max_epochs"}


def test_a_new_field_with_a_default_changes_no_description():
    old = dataclasses.make_dataclass("Thing", [("a", int)], frozen=True)
    new = dataclasses.make_dataclass(
        "Thing", [("a", int), ("b", float, 0.5), ("c", str | None, None)], frozen=True
    )
    old.__module__ = new.__module__ = "flooding.things"
    assert to_config(old(1)) == to_config(new(1)) == {"is": "flooding:Thing", "a": 1}
    assert to_config(new(1, 0.6)) == {"is": "flooding:Thing", "a": 1, "b": 0.6}
    told = [json.dumps(to_config(new(1, b))) for b in (0, 0.0, False)]
    assert len(set(told)) == 3  # equal for Python, but not one thing


def defaults(kind):
    return {
        f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING
    }


def splits_of(x):
    split = Split(x, torch.zeros(len(x), dtype=torch.int64))
    return Splits(split, split, split)


@dataclasses.dataclass(frozen=True)
class Mine:
    level: float = 0.1


def mine():
    return 1


def of_module(name):
    def function():
        return 1

    function.__module__, function.__qualname__ = name, "function"
    return function


NOT_KEYABLE = {
    "lambda": lambda: 1,
    "own function": mine,
    "own class": Mine,
    "own dataclass": Mine(),
    "function of the script": of_module("__main__"),
    "partial of an own function": partial(mine, 1),
    "in a partial": partial(mlp, 10, mine),
    "in a keyword": partial(mlp, activation=lambda x: x),
    "in a list": [1, mine],
    "in a dict": {"a": mine},
    "module instance": nn.Linear(1, 1),
    "bound method": nn.Linear(1, 1).forward,
    "set": {1},
    "bytes": b"1",
    "array": np.ones(1),
    "object": object(),
}


@pytest.mark.parametrize("value", NOT_KEYABLE.values(), ids=NOT_KEYABLE)
def test_what_has_no_description_says_so(value):
    with pytest.raises(
        UnhashableConfigError,
        match=r"is code of your own, which cannot be hashed\. Give the Problem a key='\.\.\.' to look its",
    ):
        to_config(value)


def test_a_local_function_of_this_library_has_no_description():
    function = of_module("flooding.models")
    function.__qualname__ = "mlp.<locals>.function"
    with pytest.raises(
        UnhashableConfigError,
        match=r"flooding:mlp\.<locals>\.function is code of your own",
    ):
        to_config(function)


@pytest.mark.parametrize("module", ["torchtricks", "torch_models", "mathematics", "builtins2.x"])
def test_a_users_module_is_not_taken_for_ours_by_its_name(module):
    with pytest.raises(UnhashableConfigError):
        to_config(of_module(module))


def test_a_wrapped_function_is_not_taken_for_what_it_wraps():
    @functools.wraps(functional.cross_entropy)
    def twice(*given, **more):
        return 2 * functional.cross_entropy(*given, **more)

    with pytest.raises(UnhashableConfigError):
        to_config(twice)


# Keys


def base(**changes):
    return Run(**{"problem": small(), "level": 0.3} | changes)


def data(**changes):
    return small(
        data=partial(two_gaussians, **{"n_train": 40, "n_val": 30, "n_test": 200} | changes)
    )


def different():
    """Runs of which no two share a trajectory."""
    adam = torch.optim.Adam
    return {
        "base": base(),
        "plain": base(level=None),
        "level": base(level=0.31),
        "controller": base(level=Delayed(0.3, until_loss=0.02)),
        "controller's argument": base(level=Delayed(0.3, until_loss=0.01)),
        "other controller": base(level=Warmup(0.3, steps=5)),
        "tensor": base(level=torch.tensor(0.3)),
        "classes": base(level=PerClass(torch.tensor([0.3, 0.2])), method=IFlood()),
        "method": base(method=IFlood()),
        "method with arguments": base(method=SoftAD()),
        "method's argument": base(method=SoftAD(sigma=0.5)),
        "seed": base(seed=1),
        "data noise": base(problem=data(label_noise=0.05)),
        "data size": base(problem=data(n_train=41)),
        "test size": base(problem=data(n_test=201)),
        "width": base(problem=small(model=partial(mlp, 10, 2, width=17, depth=2))),
        "lr": base(problem=small(optimizer=partial(adam, lr=2e-2))),
        "fused": base(problem=small(optimizer=partial(adam, lr=1e-2, fused=True))),
        "optimizer": base(problem=small(optimizer=partial(torch.optim.SGD, lr=1e-2))),
        "loss": base(problem=small(loss=functional.multi_margin_loss)),
        "smoothing": base(
            problem=small(loss=partial(functional.cross_entropy, label_smoothing=0.1))
        ),
        "report": base(problem=small(eval_loss=functional.multi_margin_loss)),
        "batch size": base(problem=small(batch_size=20)),
        "evaluation batch size": base(problem=small(eval_batch_size=100)),
        "max_epochs": base(problem=small(max_epochs=7)),
        "schedule": base(
            problem=small(lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2))
        ),
        "clip": base(problem=small(max_grad_norm=1.0)),
        "clip's value": base(problem=small(max_grad_norm=2.0)),
        "test curve": base(problem=small(test_curve=TestCurve())),
        "named": base(problem=small(key="mine")),
        "other name": base(problem=small(key="mine 2")),
        "named, level": base(problem=small(key="mine"), level=0.31),
        "named, method": base(problem=small(key="mine"), method=IFlood()),
        "named, seed": base(problem=small(key="mine"), seed=1),
        "named, max_epochs": base(problem=small(key="mine", max_epochs=7)),
        "named, batch size": base(problem=small(key="mine", batch_size=20)),
        "no partial": base(problem=regression(model=partial(mlp, 3, 1))),
    }


def keys():
    return {name: run.key() for name, run in different().items()}


def test_each_change_changes_the_key():
    found = keys()
    assert all(len(key) == 64 and int(key, 16) for key in found.values())
    same = [pair for pair in itertools.combinations(found, 2) if found[pair[0]] == found[pair[1]]]
    assert same == []
    assert (
        len(
            {base().key(threads=n, device=d) for n in (1, 2) for d in ("cpu", "cuda")}
            | {base().key()}
        )
        == 5
    )


def test_equal_runs_have_equal_keys():
    key = base().key(threads=1)
    assert base(stop_epoch=2).key(threads=1) == key  # where to stop is no part of the trajectory
    assert base(problem=small(), method=Flooding()).key(threads=1) == key
    assert (
        base(problem=small(max_grad_norm=None, batch_size=100, loss=functional.cross_entropy)).key(
            threads=1
        )
        == key
    )
    splits = data().splits(0)
    assert (
        base(problem=small(data=splits)).key()
        == base(problem=small(data=data(seed=0).data)).key()
        == base().key()
    )


def test_a_single_label_changes_the_key():
    splits = data().splits(0)
    y = splits.train.y.clone()
    y[3] = 1 - y[3]
    other = dataclasses.replace(splits, train=dataclasses.replace(splits.train, y=y))
    assert base(problem=small(data=splits)).key() != base(problem=small(data=other)).key()


def test_a_posterior_changes_the_key():
    splits = data().splits(0)
    other = dataclasses.replace(splits, posterior=splits.posterior.flip(1))
    assert base(problem=small(data=splits)).key() != base(problem=small(data=other)).key()


def test_keys_and_streams_are_equal_in_another_process():
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
import test_problem
print(json.dumps([test_problem.keys(), test_problem.derive_seed(3, "model", 4)]))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    told = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert json.loads(told) == [keys(), derive_seed(3, "model", 4)]


class MyLevel(Delayed):
    """A user's own controller."""


@pytest.mark.parametrize(
    "run",
    [
        base(problem=small(model=lambda: nn.Linear(10, 2))),
        base(problem=small(model=nn.Linear(10, 2))),
        base(problem=small(loss=nn.CrossEntropyLoss())),
        base(problem=small(optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))),
        base(problem=small(data=lambda *, seed: data().splits(seed))),
        base(level=MyLevel(0.3, until_loss=0.1)),
        base(
            level=MyLevel(0.3, until_loss=0.1), problem=small(key="mine")
        ),  # the key names the problem only
        base(method=Mine()),
    ],
    ids=["model", "module", "loss", "optimizer", "data", "level", "level with a key", "method"],
)
def test_what_cannot_describe_itself_has_no_key(run):
    assert run.key() is None


def test_a_problem_with_a_key_has_one_whatever_it_holds():
    model = {"model": lambda: nn.Linear(10, 2), "data": lambda *, seed: data().splits(seed)}
    mine = base(problem=small(key="mine", **model)).key()
    assert mine is not None
    assert (
        base(problem=small(key="mine", **model | {"model": lambda: nn.Linear(10, 3)})).key() == mine
    )
    # What can describe itself counts all the same, so that a sweep under one key is not one Record.
    assert (
        base(problem=small(key="mine", optimizer=partial(torch.optim.SGD, lr=0.123), **model)).key()
        != mine
    )
    assert base(problem=small(key="mine", max_grad_norm=0.5, **model)).key() != mine
    assert base(problem=small(key="yours", **model)).key() != mine


# Data, models and randomness


def test_splits_are_made_once_for_a_seed():
    problem = data()
    assert problem.splits(0) is problem.splits(0)
    assert problem.splits(0).sha256 != problem.splits(1).sha256
    splits = problem.splits(0)
    assert small(data=splits).splits(5) is splits


def test_a_module_is_copied_and_not_shared():
    module = nn.Sequential(nn.Linear(10, 2), nn.Dropout(0.5)).eval()
    before = [p.clone() for p in module.parameters()]
    problem = small(model=module)
    one, two = problem.build(0), problem.build(1)
    assert one is not two
    assert one.training
    assert not module.training  # the user's own stays as it was
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    pointers = [p.data_ptr() for m in (module, one, two) for p in m.parameters()]
    assert len(set(pointers)) == 6
    *_, row = train(Run(problem, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert not torch.equal(row.weights["last"]["0.weight"], before[0])


def test_build_depends_on_the_seed_alone_and_leaves_the_generator():
    problem, built = normed(), []
    with torch.random.fork_rng():
        for outside in (1, 2):
            torch.manual_seed(outside)
            before = torch.get_rng_state()
            built += [problem.build(0), problem.build(1)]
            assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in built]
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
    assert all(m.training for m in built)


@pytest.mark.parametrize("fails", [False, True], ids=["as it should", "with an error"])
def test_seeded_gives_the_generator_back(fails):
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        try:
            with fork_rng(7):
                drawn.append(torch.rand(3))
                if fails:
                    raise RuntimeError
        except RuntimeError:
            pass
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0], torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_streams_are_repeatable_and_distinct():
    paths = [
        (seed, purpose, *more)
        for seed in (*range(30), 2**31, 2**63)
        for purpose in ("model", "order", "train")
        for more in [(), *((epoch,) for epoch in range(30))]
    ]
    seeds = [derive_seed(*path) for path in paths]
    assert seeds == [derive_seed(*path) for path in paths]
    assert len(set(seeds)) == len(seeds)
    assert all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # all 63 bits are in use


def test_numbers_from_neighbouring_streams_are_uncorrelated():
    n = 20_000
    paths = [
        (0, "model"),
        (1, "model"),
        (0, "order"),
        (0, "order", 0),
        (0, "order", 1),
        (1, "order", 0),
    ]
    drawn = np.stack([
        torch.randn(n, generator=torch.Generator().manual_seed(derive_seed(*p))).numpy()
        for p in paths
    ])
    correlations = np.corrcoef(drawn)[np.triu_indices(len(paths), 1)]
    assert np.abs(correlations).max() < 4.5 / math.sqrt(n)  # 15 pairs: chance of a false alarm 1e-4


# Choosing


numbers = st.floats(allow_nan=True, allow_infinity=True)


def worse(a, b):
    """The slow twin: whether result a = (loss, accuracy) is worse than b, rule by rule."""
    if math.isnan(a[0]) or math.isnan(b[0]):
        return math.isnan(a[0]) and not math.isnan(b[0])
    if a[1] is not None and a[1] != b[1]:
        return a[1] < b[1]
    return a[0] > b[0]


@given(
    results=st.lists(
        st.tuples(numbers, st.sampled_from([0.0, 0.5, 0.9, 1.0])), min_size=3, max_size=3
    )
)
@example(results=[(math.nan, 1.0), (math.inf, 0.0), (0.1, 0.0)])
@settings(max_examples=200, deadline=None)
def test_selection_is_a_total_order(results):
    for a, b in itertools.product(results, repeat=2):
        one, two = selection_key(*a), selection_key(*b)
        assert (one < two) == worse(a, b)
        assert (one < two) + (one == two) + (one > two) == 1
    a, b, c = sorted(results, key=lambda r: selection_key(*r))
    assert not worse(b, a)
    assert not worse(c, b)
    assert not worse(c, a)


@given(losses=st.lists(numbers, min_size=2, max_size=2))
@settings(max_examples=100, deadline=None)
def test_without_accuracy_the_lower_loss_is_better(losses):
    a, b = losses
    assert (selection_key(a) < selection_key(b)) == worse((a, None), (b, None))


@pytest.mark.parametrize("other", [(0.1, 0.5), (math.inf, 0.0)])
def test_a_nan_accuracy_is_worse_than_everything(other):
    assert selection_key(0.1, math.nan) < selection_key(*other)
    assert selection_key(*other) > selection_key(0.1, math.nan)


def judged(level, loss, accuracy=None, at="last"):
    finals = {f"{at}.val_loss": loss, "last.level": math.nan} | (
        {} if accuracy is None else {f"{at}.val_accuracy": accuracy}
    )
    return Record(Run(small(), level), {}, {}, finals, "", "")


@pytest.mark.parametrize(
    ("results", "level"),
    [
        ([(0.1, 0.5, 0.8), (0.2, 0.6, 0.9)], 0.2),
        ([(0.1, 0.5, 0.9), (0.2, 0.4, 0.9)], 0.2),
        ([(0.2, 0.5, 0.9), (0.1, 0.5, 0.9)], 0.1),
        ([(0.2, math.nan, 1.0), (0.3, 9.0, 0.1)], 0.3),
        ([(0.2, 0.5), (0.1, 0.6)], 0.2),
        ([(0.2, 0.5, 0.9), (0.1, 0.5, 0.9), (None, 0.5, 0.9)], None),
    ],
    ids=[
        "accuracy",
        "loss breaks ties",
        "then the smaller level",
        "NaN loses",
        "no accuracy",
        "plain counts as 0",
    ],
)
@pytest.mark.parametrize("at", ["best", "last"])
def test_choose_takes_the_best_validation_result(results, level, at):
    records = [
        judged(*result, at=at) if len(result) == 3 else judged(*result, None, at)
        for result in results
    ]
    assert select_best(iter(records), at).run.level == level
    assert select_best(records[::-1], at).run.level == level


def test_choose_refuses_nothing():
    with pytest.raises(ValueError, match=r"records must hold at least one Record, got none\."):
        select_best([], "last")


# Records


def measured(**changes):
    curve = np.array([0.1, math.nan], np.float32)
    given = {
        "curves": {"a": curve},
        "arrays": {"last.b": curve},
        "metrics": {"x": 0.1},
        "weights_sha256": "w",
    }
    return Record(**{"run": None, "fingerprint": "f"} | given | changes).content_hash


def test_measured_tells_what_was_measured_and_nothing_else():
    assert measured() == measured(run=Run(small()), metadata={"host": "there"})
    curve = np.array([0.1, math.nan], np.float32)
    next_up = np.nextafter(curve, np.float32(1))
    changed = [
        measured(curves={"a": next_up}),
        measured(curves={"b": curve}),
        measured(arrays={"last.b": next_up}),
        measured(arrays={}),
        measured(metrics={"x": math.nextafter(0.1, 1)}),
        measured(metrics={"x": math.nan}),
        measured(weights_sha256="v"),
        measured(fingerprint="g"),
    ]
    assert len({measured(), *changed}) == 9


def test_the_level_of_a_record_is_the_runs_or_the_one_in_force_at_the_end():
    def level(run, last):
        return Record(run, {}, {}, {"last.level": last}, "", "").level

    delayed = Run(small(), Delayed(0.3, until_loss=0.1))
    assert [level(Run(small(), 0.3), 0.25), level(delayed, 0.25), level(None, 0.25)] == [
        0.3,
        0.25,
        0.25,
    ]
    assert [level(Run(small(), None), math.nan), level(None, math.nan)] == [
        None,
        None,
    ]  # plain training
