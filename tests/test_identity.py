"""What identifies a Run must not change with pickling, another process, or a moved class."""

import importlib
import json
import os
import pickle
import pkgutil
import subprocess
import sys
from collections import defaultdict
from functools import partial
from types import FunctionType

import pytest
import torch

from flooding import Problem, Run, run_all
from flooding.data.synthetic import two_gaussians
from flooding.levels import Delayed, Heuristic, PerClass, Warmup
from flooding.methods import IFlood, SoftAD
from flooding.models import mlp
from flooding.training.legacy import legacy_configs
from flooding.training.problem import PeriodicMetric, TestCurve

# Rooms whose classes and functions can be part of a Run.
ROOMS = (
    "data",
    "models",
    "methods",
    "levels",
    "metrics",
    "adaflood",
    "level_search",
    "tasks",
    "experiments",
    "training.problem",
    "training.run",
)


def problem(**changes):
    """A Problem with the default optimizer."""
    data = partial(two_gaussians, n_train=20, n_val=10, n_test=20)
    return Problem(data, partial(mlp, 10, 2, width=4, depth=1), max_epochs=2, **changes)


# Pickling


def test_a_pickled_problem_with_the_default_optimizer_has_the_same_key():
    run = Run(problem(), 0.3)
    copy = pickle.loads(pickle.dumps(run))
    assert copy.problem.optimizer is not run.problem.optimizer  # else nothing is tested
    assert copy.key() == run.key()


def test_a_pickled_problem_has_the_same_key_in_another_process(tmp_path):
    run = Run(problem(), Delayed(0.3, until_loss=0.1))
    path = tmp_path / "run.pickle"
    path.write_bytes(pickle.dumps(run))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).key())"
    key = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    assert key == run.key()


def test_a_record_is_found_by_a_pickled_problem(tmp_path):
    run = Run(problem(), 0.3)
    [record] = run_all([run], ledger=tmp_path / "ledger.sqlite", workers=0)
    started = []
    [same] = run_all(
        [pickle.loads(pickle.dumps(run))],
        ledger=tmp_path / "ledger.sqlite",
        workers=0,
        on_start=started.extend,
    )
    assert started == []
    assert same.content_hash == record.content_hash


def test_the_default_optimizer_and_an_equal_one_have_one_key():
    key = Run(problem()).key()
    assert Run(problem(optimizer=partial(torch.optim.Adam, lr=1e-3))).key() == key
    others = [
        partial(torch.optim.Adam, lr=2e-3),
        partial(torch.optim.Adam, 1e-3),  # a positional argument, of another meaning
        partial(torch.optim.AdamW, lr=1e-3),
        torch.optim.Adam,
    ]
    assert key not in {Run(problem(optimizer=other)).key() for other in others}


def test_an_optimizer_of_the_users_own_is_not_taken_for_the_default():
    run = Run(problem(optimizer=partial(lambda parameters, lr: None, lr=1e-3)))
    assert run.key() is None


# Names


@pytest.mark.parametrize(
    ("definition", "run"),
    [
        (Problem, lambda: Run(problem())),
        (Run, lambda: Run(problem())),
        (TestCurve, lambda: Run(problem(test_curve=TestCurve(5)))),
        (PeriodicMetric, lambda: Run(problem(extra_metrics=PeriodicMetric(two_gaussians, 2)))),
        (Delayed, lambda: Run(problem(), Delayed(0.3, until_loss=0.1))),
        (Warmup, lambda: Run(problem(), Warmup(0.3, steps=4))),
        (PerClass, lambda: Run(problem(), PerClass(torch.tensor([0.1, 0.2])), IFlood())),
        (SoftAD, lambda: Run(problem(), 0.3, SoftAD(sigma=0.5))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_key_does_not_depend_on_the_module_of_a_class(definition, run, monkeypatch):
    key, config = run().key(), run().config()
    assert definition.__module__ not in json.dumps(config)
    monkeypatch.setattr(definition, "__module__", "flooding.elsewhere")
    assert run().key() == key


@pytest.mark.parametrize("function", [mlp, two_gaussians])
def test_a_key_does_not_depend_on_the_module_of_a_function(function, monkeypatch):
    key = Run(problem()).key()
    elsewhere = type(sys)("flooding.elsewhere")
    setattr(elsewhere, function.__name__, function)
    monkeypatch.setitem(sys.modules, "flooding.elsewhere", elsewhere)
    monkeypatch.setattr(function, "__module__", "flooding.elsewhere")
    assert Run(problem()).key() == key


def public_definitions():
    """Collect the modules of all public classes and functions by their qualified names."""
    result = defaultdict(set)
    for room in ROOMS:
        package = importlib.import_module(f"flooding.{room}")
        modules = [package]
        for info in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{package.__name__}."):
            modules.append(importlib.import_module(info.name))
        for module in modules:
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if isinstance(value, (type, FunctionType)):
                    result[value.__qualname__].add(value.__module__)
    return result


# Names of several modules: they make or draw Runs, or compute a level, and are no part of a Run.
NEVER_IN_A_RUN = {
    *("Cell", "cells", "exact", "experiment", "load", "plan", "setting"),
    *("draw", "find", "flip_entropy", "search", "study", "start", "is_exact", "Measure"),
    *("compare_levels", "is_later"),
}


def test_configuration_names_are_unique_over_the_library():
    names = public_definitions()
    assert {"mlp", "two_gaussians", "Flooding", "Warmup", "watch_accordance"} <= set(names)
    duplicates = {}
    for name, modules in names.items():
        if len(modules) > 1 and name not in NEVER_IN_A_RUN:
            duplicates[name] = modules
    assert duplicates == {}


# flooding 0.1.0


def test_the_configuration_of_0_1_0_has_its_names():
    run = Run(
        problem(
            max_grad_norm=1.0,
            extra_metrics=PeriodicMetric(two_gaussians, every=2),
            eval_loss=torch.nn.functional.cross_entropy,
        ),
        Heuristic(until_loss=0.1, min_delta=0.5),
        seed=3,
    )
    config = run.config()
    assert config is not None
    old, with_optimizer = legacy_configs(config)
    assert old == {
        "seed": 3,
        "level": {"is": "flooding.levels.Heuristic", "until_loss": 0.1, "change": 0.5},
        "method": {"is": "flooding.losses.Flooding"},
        "data": run.problem.splits(3).sha256,
        "model": {
            "call": "flooding.models.mlp",
            "args": [10, 2],
            "with": {"width": 4, "depth": 1},
        },
        "report": "torch.nn.functional.cross_entropy",
        "horizon": 2,
        "clip": 1.0,
        "watch": {
            "is": "flooding.problem.Watch",
            "function": "flooding.data.synthetic.two_gaussians",
            "every": 2,
        },
    }
    adam = {"call": "torch.optim.adam.Adam", "args": [], "with": {"lr": 0.001}}
    assert with_optimizer == {**old, "optimizer": adam}
