"""Every optimiser of torch takes the steps in a fleet that it takes for single Runs."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from flooding import Run, train
from flooding.data import Split, Splits
from flooding.models import mlp
from flooding.training.fleet import Fleet, FleetError
from flooding.training.fleet.optimizer import ELEMENTWISE, clip_gradients, optimizer_key
from small import small

# What the optimisers of torch need beyond their defaults, to move at all or to be defined.
SETTINGS = {
    "SGD": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}],
    "Adam": [{"lr": 0.01}, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01}],
    "RMSprop": [{"lr": 0.01, "centered": True, "momentum": 0.5}],
    "Adadelta": [{"lr": 1.0}],
    "ASGD": [{"lr": 0.05, "t0": 2.0}],
    "Muon": [{"lr": 0.01}],
    "Adafactor": [{"lr": 0.01}],
}
REFUSED = {"LBFGS": "computes gradients again", "SparseAdam": "no sparse gradients"}
OPTIMIZERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
)
CASES = [
    pytest.param(name, options, id=f"{name}-{index}")
    for name in OPTIMIZERS
    if name not in REFUSED
    for index, options in enumerate(SETTINGS.get(name, [{"lr": 0.01}]))
]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points(*, seed):
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        x = torch.randn(n, 10, generator=generator)
        return Split(x, (x[:, 0] > 0).long())

    return Splits(split(12), split(6))


def matrices():
    """A network without biases, as Muon takes matrices alone."""
    return nn.Sequential(
        nn.Linear(10, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.ReLU(),
        nn.Linear(6, 2, bias=False),
    )  # fmt: skip


def problem(optimizer, **changes):
    parts = {"data": points, "model": matrices, "max_epochs": 4, "batch_size": 5}
    return small(optimizer=optimizer, **parts | changes)


def steps_of(rows, run):
    """The weights after every epoch."""
    return [_weights(row) for row in rows if row.run is run]


def _weights(row):
    return row.weights["last"] if row.record else row.snapshot(copied=True)["model"]


def weights_of_fleet(runs):
    weights = {id(run): [] for run in runs}
    for row in Fleet(runs).train():
        weights[id(row.run)].append(_weights(row))
    return [weights[id(run)] for run in runs]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_optimiser_takes_the_steps_of_single_runs(name, options):
    shared = problem(partial(getattr(torch.optim, name), **options), max_epochs=3)
    runs = [Run(shared, level, seed=seed) for seed in (0, 1) for level in (None, 0.68)]
    moved = 0.0
    for run, weights in zip(runs, weights_of_fleet(runs), strict=True):
        twin = steps_of(train(run), run)
        for after, expected in zip(weights, twin, strict=True):
            for key, tensor in after.items():
                torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-10)
        moved += float((twin[-1]["0.weight"] - twin[0]["0.weight"]).abs().max())
    assert moved > 1e-5  # else nothing was compared


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_step_for_many_runs_is_refused(name):
    shared = problem(getattr(torch.optim, name))
    with pytest.raises(FleetError, match=REFUSED[name]):
        Fleet([Run(shared, seed=seed) for seed in (0, 1)])


def test_all_optimisers_of_torch_are_known():
    # A new one is not taken for element-wise until somebody has looked at it.
    elementwise = {cls.__name__ for cls in ELEMENTWISE}
    assert set(OPTIMIZERS) - elementwise == {"Adafactor", "LBFGS", "Muon", "SparseAdam"}


class Normed(torch.optim.Optimizer):
    """An optimiser of a user's own, with a norm over each tensor, as LAMB has."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["sum"] = state.get("sum", torch.zeros_like(p)) + p.grad
                p.sub_(group["lr"] * state["sum"] * p.norm() / (p.grad.norm() + 1))


def groups(parameters):
    """Weight decay for matrices alone, which looks at the number of axes."""
    parameters = list(parameters)
    flat = [p for p in parameters if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}],
        lr=0.01,
        weight_decay=0.5,
    )


@pytest.mark.parametrize("optimizer", [Normed, groups], ids=["norms", "groups by axes"])
def test_other_optimisers_get_one_a_run(optimizer):
    shared = problem(optimizer, model=partial(mlp, 10, 2, width=6, depth=1))
    assert optimizer_key(shared) is None
    runs = [Run(shared, level, seed=seed) for seed in (0, 1) for level in (None, 0.68)]
    runs.append(Run(shared, 0.6, seed=2, stop_epoch=2))  # and the others go on
    for run, weights in zip(runs, weights_of_fleet(runs), strict=True):
        for after, expected in zip(weights, steps_of(train(run), run), strict=True):
            for key, tensor in after.items():
                torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-10)


def test_each_run_is_clipped_to_a_norm_of_its_own():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4, 2), (3, 5), (3,)]
    stacked = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for p in stacked:
        p.grad = torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for p in stacked:
            p.grad[1] *= 1e-3  # below the norm: it stays as it is
    expected = []
    for row in range(3):
        single = [nn.Parameter(torch.zeros(shape[1:])) for shape in shapes]
        for p, s in zip(single, stacked, strict=True):
            p.grad = s.grad[row].clone()
        nn.utils.clip_grad_norm_(single, 0.5)
        expected.append([p.grad for p in single])
    clip_gradients(stacked, 0.5)
    for row in range(3):
        for p, grad in zip(stacked, expected[row], strict=True):
            torch.testing.assert_close(p.grad[row], grad, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (partial(torch.optim.Adam, lr=0.01), (True, None)),
        (partial(torch.optim.SGD, lr=0.01, momentum=0.9), (True, None)),
        (partial(torch.optim.Adam, lr=0.01, fused=False), (False, False)),
        (partial(torch.optim.Adam, lr=0.01, foreach=True), (None, None)),
        (partial(torch.optim.RMSprop, lr=0.01), ("has none", "has none")),
    ],
    ids=["Adam", "SGD", "not fused", "foreach", "RMSprop"],
)
def test_steps_are_fused_unless_the_problem_asks_for_others(optimizer, expected):
    fleet = Fleet([Run(problem(optimizer), seed=seed) for seed in (0, 1)])
    for row in fleet.train():
        if row.epoch == 1:
            break
    [block] = fleet._state.optimizer.blocks
    # A run that is forked goes on as it would alone.
    groups = (block.optimizer.param_groups[0], fleet[0].optimizer.param_groups[0])
    assert tuple(group.get("fused", "has none") for group in groups) == expected
