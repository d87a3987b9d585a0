"""A fleet trains each of its Runs as the single loop does, to 1e-10 in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from flooding import Run, train
from flooding.averaging import EMA, Mean
from flooding.data import Split, Splits
from flooding.levels import Auto, Delayed, Heuristic, Plateau, Range, Warmup
from flooding.methods import IFlood, SoftAD
from flooding.models import mlp
from flooding.testing.controllers import _HostSyncDetector
from flooding.training.fleet import Fleet
from flooding.training.fleet.linear import GradientBuffer, stacked_linear
from flooding.training.fleet.metrics import stacked_loss
from flooding.training.fleet.model import StackedModel
from small import small

TOLERANCE = 1e-10
plateau = partial(Plateau, high=1.0)
# Both loops compute these in float32: sums in another order may differ in their last bit.
FLOAT32 = 1e-6
FLOAT32_NAMES = {"train_loss", "level", "flooded"}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def images(seed):
    """Small images of two classes, different for each seed."""
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        x = torch.randn(n, 2, 5, 5, generator=generator, dtype=torch.float64)
        return Split(x, (x.mean((1, 2, 3)) > 0).long())

    return Splits(split(21), split(12), split(9))


def points(seed, n_inputs=10):
    """Two classes of points, different for each seed, with clean labels."""
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        x = torch.randn(n, n_inputs, generator=generator, dtype=torch.float64)
        clean = (x[:, 0] + x[:, 1] > 0).long()
        flips = torch.rand(n, generator=generator) < 0.1
        return Split(x, clean ^ flips.long(), clean)

    return Splits(split(26), split(18), split(20))


def lines(seed):
    """A line with noise."""
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        noise = 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
        return Split(x, x.sum(1, keepdim=True) + noise)

    return Splits(split(26), split(18), split(20))


def small_data(seed):
    return points(seed)


def problem(**changes):
    """Points, 26 in batches of 10: the last one holds 6."""
    return small(**{"data": small_data, "batch_size": 10, "max_epochs": 4} | changes)


class Attention(nn.Module):
    """Words as an embedding and a layer of attention."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.embedding(x)
        return self.last(self.attention(hidden, hidden, hidden)[0].mean(1))


def words(seed):
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        x = torch.randint(7, (n, 5), generator=generator)
        return Split(x, (x.sum(1) > 15).long())

    return Splits(split(20), split(10), split(10))


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2)
    )


def batch_norm():
    return mlp(10, 2, width=6, depth=2, batch_norm=True)


def rows_of(runs, **options):
    """The rows of a fleet, a list for each Run."""
    rows = {id(run): [] for run in runs}
    for row in Fleet(runs, **options).train():
        rows[id(row.run)].append(row)
    return [rows[id(run)] for run in runs]


def assert_close(values, expected, tolerance=TOLERANCE):
    assert values.keys() == expected.keys()
    for name, value in values.items():
        is_float32 = "accuracy" in name or name.rpartition(".")[2] in FLOAT32_NAMES
        limit = FLOAT32 if is_float32 else tolerance
        assert value == pytest.approx(expected[name], rel=0, abs=limit, nan_ok=True), name


def assert_equal_weights(weights, expected, tolerance=TOLERANCE):
    assert weights.keys() == expected.keys()
    for kind in weights:
        for name, tensor in weights[kind].items():
            torch.testing.assert_close(
                tensor, expected[kind][name], rtol=0, atol=tolerance, msg=f"{kind} {name}"
            )


def assert_agrees(runs, tolerance=TOLERANCE):
    """Every epoch's numbers, the best and last weights and the final metrics are the twin's."""
    for run, rows in zip(runs, rows_of(runs), strict=True):
        twin = list(train(run))
        assert len(rows) == len(twin)
        for row, expected in zip(rows, twin, strict=True):
            assert row.epoch == expected.epoch
            assert_close(row.values, expected.values, tolerance)
            assert (row.losses is None) == (expected.losses is None)
            if row.losses is not None:
                torch.testing.assert_close(row.losses, expected.losses, rtol=0, atol=tolerance)
        assert_equal_weights(rows[-1].weights, twin[-1].weights, tolerance)
        record, single = rows[-1].record, twin[-1].record
        assert record.metrics["best.epoch"] == single.metrics["best.epoch"]
        shares = {n for n in record.metrics if "ece" in n or "over_confidence" in n}
        assert_close(
            {n: v for n, v in record.metrics.items() if n not in shares},
            {n: v for n, v in single.metrics.items() if n not in shares},
            tolerance,
        )


def grid(problem, levels=(None, 0.3, 0.65), seeds=(0, 1)):
    return [Run(problem, level, seed=seed) for seed in seeds for level in levels]


MODELS = {
    "linear": problem(),
    "full batch": problem(batch_size=26),
    "conv": problem(data=lambda seed: images(seed), model=conv),
    "batch norm": problem(model=batch_norm, batch_size=13),
    "attention": problem(data=lambda seed: words(seed), model=Attention),
    "regression": problem(
        data=lambda seed: lines(seed),
        model=partial(nn.Linear, 3, 1),
        loss=nn.functional.mse_loss,
        score=None,
    ),
    "one data set": problem(data=points(3)),
    "frozen layer": problem(model=lambda: frozen()),
    "tied weights": problem(model=lambda: Tied()),
    "an activation twice": problem(model=lambda: repeated(nn.Tanh())),
    "a layer twice": problem(model=lambda: repeated(nn.Linear(10, 10))),
    "label smoothing": problem(
        loss=partial(nn.functional.cross_entropy, label_smoothing=0.1),
        eval_loss=nn.functional.cross_entropy,
    ),
    "class weights": problem(loss=nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0]).double())),
}


def frozen():
    model = mlp(10, 2, width=6, depth=2)
    model[1].requires_grad_(requires_grad=False)
    return model


def repeated(module):
    """A sequence in which one module stands twice."""
    return nn.Sequential(nn.Linear(10, 10), module, nn.Linear(10, 10), module, nn.Linear(10, 2))


class Tied(nn.Module):
    """The same weight twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(10, 10)
        self.second = nn.Linear(10, 10)
        self.second.weight = self.first.weight
        self.last = nn.Linear(10, 2)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.mark.parametrize("name", MODELS)
def test_each_kind_of_model_and_data_agrees(name):
    assert_agrees(grid(MODELS[name]))


@pytest.mark.parametrize(
    "level",
    [
        Warmup(0.6, steps=5),
        Range(0.7, 0.3, steps=9),
        plateau(0.5, patience=1),
        Delayed(0.6, until_loss=0.69),
        Heuristic(0.5, until_accuracy=0.5),
        Auto(),
        torch.tensor(0.6),
    ],
    ids=lambda level: type(level).__name__,
)
def test_each_kind_of_level_agrees(level):
    runs = [*grid(problem(), (level, None, 0.6)), Run(problem(), plateau(0.65, low=0.1), seed=2)]
    shared = runs[0].problem
    assert_agrees([replace(run, problem=shared) for run in runs])


@pytest.mark.parametrize("method", [IFlood(), SoftAD()], ids=lambda m: type(m).__name__)
def test_other_methods_agree(method):
    shared = problem()
    assert_agrees([Run(shared, level, method, seed) for level in (None, 0.5) for seed in (0, 1)])


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": 0.2},
        {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=2)},
        {"lr_scheduler": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)},
        {"averaging": EMA(0.9)},
        {"averaging": Mean()},
        {"averaging": Mean(start_epoch=2)},
        {"score": None, "eval_batch_size": 7},
    ],
    ids=["clip", "StepLR", "ReduceLROnPlateau", "EMA", "Mean", "Mean from 2", "small passes"],
)
def test_each_part_of_a_problem_agrees(changes):
    shared = problem(**changes)
    assert_agrees(grid(shared, (None, 0.62, plateau(0.6, patience=1))))


def test_runs_may_differ_in_the_numbers_of_their_optimiser():
    shared = problem()
    optimizers = [partial(torch.optim.Adam, lr=lr) for lr in (0.01, 0.03)]
    optimizers.append(partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    problems = [replace(shared, optimizer=optimizer) for optimizer in optimizers]
    # Not in order, so that the fleet has to sort them.
    runs = [Run(p, level, seed=s) for s in (0, 1) for level in (None, 0.5) for p in problems]
    assert_agrees(runs)


def test_runs_that_end_leave_and_the_others_go_on():
    shared = problem()
    runs = [
        Run(shared, 0.5, seed=0, stop_epoch=2),
        Run(shared, 0.5, seed=1),
        Run(shared, plateau(0.6), seed=1, stop_epoch=3),
        Run(shared, plateau(0.6), seed=2),
    ]
    assert_agrees(runs)


def test_a_caller_ends_a_run():
    shared = problem()
    runs = grid(shared, (None, 0.5), (0,))
    rows = Fleet(runs).train()
    ended, last = [], {}
    row = next(rows)
    while True:
        stop = row.run is runs[0] and row.epoch == 2 and row.record is None
        if row.record is not None:
            ended.append((runs.index(row.run), row.epoch))
            last[runs.index(row.run)] = row
        try:
            row = rows.send(True) if stop else next(rows)
        except StopIteration:
            break
    assert ended == [(0, 2), (1, 4)]
    twin = list(train(replace(runs[0], stop_epoch=2)))[-1]
    assert_equal_weights(last[0].weights, twin.weights)


@pytest.mark.parametrize("averaging", [None, EMA(0.9)], ids=["alone", "averaged"])
def test_a_run_forks_and_goes_on_alone(averaging):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=2)
    shared = problem(averaging=averaging, lr_scheduler=schedule)
    runs = grid(shared, (None, 0.6, plateau(0.6)), (0,))
    fleet = Fleet(runs)
    snapshots = {}
    for row in fleet.train():
        if row.epoch == 2:
            snapshots[runs.index(row.run)] = row.snapshot(copied=True)
            assert fleet[runs.index(row.run)].model.training
    for index, run in enumerate(runs):
        rest = list(train(run, resume=snapshots[index]))
        twin = list(train(run))
        assert_close(rest[-1].values, twin[-1].values)
        assert_equal_weights(rest[-1].weights, twin[-1].weights)
    with pytest.raises(IndexError, match="has left"):
        fleet[0]


def test_a_fleet_goes_on_from_snapshots_of_single_runs():
    shared = problem(averaging=EMA(0.9))
    runs = grid(shared, (None, 0.6, plateau(0.6)))
    snapshots = []
    for run in runs:
        for row in train(run):
            if row.epoch == 2:
                snapshots.append(row.snapshot(copied=True))
    for run, rows in zip(runs, rows_of(runs, resume=snapshots), strict=True):
        twin = list(train(run))
        assert [row.epoch for row in rows] == [row.epoch for row in twin]
        assert_close(rows[-1].values, twin[-1].values)
        assert_equal_weights(rows[-1].weights, twin[-1].weights)


def test_dropout_draws_other_numbers_in_each_run():
    shared = problem(model=partial(mlp, 10, 2, width=64, depth=1, dropout=0.5))
    runs = [Run(shared, seed=0) for _ in range(2)]
    last = [rows[-1].weights["last"] for rows in rows_of(runs)]
    # The two have the same data and initial weights.
    assert not torch.equal(last[0]["1.weight"], last[1]["1.weight"])


def test_a_fleet_repeats_itself_and_leaves_the_callers_generator_alone():
    model = partial(mlp, 10, 2, width=6, depth=2, batch_norm=True, dropout=0.2)
    shared = problem(model=model, batch_size=13, max_epochs=2)
    runs = grid(shared, (None, 0.5), (0, 1))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = rows_of(runs)
    assert torch.equal(torch.rand(2), expected)
    torch.rand(5)
    second = rows_of(runs)
    for a, b in zip(first, second, strict=True):
        assert a[-1].record.content_hash == b[-1].record.content_hash


def test_more_steps_wait_no_more_often_for_the_device():
    waits = []
    for batch_size in (26, 5):
        sgd = partial(torch.optim.SGD, lr=0.1)  # torch's Adam reads its own step on the CPU
        shared = problem(batch_size=batch_size, optimizer=sgd, max_grad_norm=1.0)
        rows = Fleet(grid(shared, (None, 0.6, Auto(), plateau(0.5)))).train()
        epochs = []
        for row in rows:
            if row.epoch == 2:
                break
        with _HostSyncDetector() as detector:
            for row in rows:
                epochs.append(row.epoch)
                if row.epoch == 3:
                    break
        assert 3 in epochs
        waits.append(len(detector.names))
    assert waits[0] == waits[1]


GRIDS = {
    "Plateau": ([plateau(level, patience=1) for level in (0.5, 0.6, 0.7)], 1),
    "Warmup": ([Warmup(level, steps=5) for level in (0.5, 0.6, 0.7)], 1),
    "Heuristic": ([Heuristic(level, until_accuracy=0.5) for level in (0.4, 0.5)], 1),
    # These differ in more than numbers, so each has a state of its own.
    "patience": ([plateau(0.6, patience=patience) for patience in (1, 2, 3)], 3),
    "condition": ([Delayed(0.6, until_loss=0.69), Delayed(0.6, until_accuracy=0.5)], 2),
    "equal": ([plateau(0.6), plateau(0.6)], 1),
}


@pytest.mark.parametrize("name", GRIDS)
def test_controllers_that_differ_in_numbers_share_a_state(name):
    levels, count = GRIDS[name]
    shared = problem()
    runs = [Run(shared, level, seed=seed) for seed in (0, 1) for level in levels]
    # One that ends early: the others keep their numbers.
    runs.append(Run(shared, levels[0], seed=2, stop_epoch=2))
    runs.reverse()
    assert len(Fleet(runs)._state.levels._groups) == count
    assert_agrees(runs)


@dataclass(frozen=True)
class Nearest:
    """A controller that is not element-wise in its own number: it branches on it."""

    level: float

    def init(self):
        return {"level": torch.tensor(self.level), "started": torch.tensor(True)}

    def update(self, state, info):
        if info.loss is None and self.level > 0.55:
            return state | {"level": state["level"] + 0.01}
        return dict(state)


def test_a_controller_that_branches_on_its_number_keeps_a_state_of_its_own():
    shared = problem()
    runs = [Run(shared, Nearest(level)) for level in (0.5, 0.6)]
    assert len(Fleet(runs)._state.levels._groups) == 2
    assert_agrees(runs)


def test_the_gradient_of_a_linear_layer_keeps_its_memory():
    places = []
    fleet = Fleet([Run(problem(), seed=seed) for seed in (0, 1)])
    for row in fleet.train():
        if row.run is fleet.runs[0] and 0 < row.epoch < 4:
            weights = [p for p in fleet._state.model.trained if p.dim() == 3]
            places.append([p.grad.data_ptr() for p in weights])
    assert places == [places[0]] * 3


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_stacked_linear_layer_has_the_gradients_of_torch(has_bias):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, requires_grad=True)
        for shape in ((3, 4, 2, 5), (3, 6, 5), (3, 6))
    )
    buffer = GradientBuffer()
    for _ in range(2):  # the second pass overwrites what the first one left
        weight.grad = bias.grad = x.grad = None
        output = stacked_linear(x, weight, bias if has_bias else None, buffer)
        output.square().sum().backward()
    for row in range(3):
        single = [t.detach()[row].clone().requires_grad_() for t in (x, weight, bias)]
        expected = nn.functional.linear(single[0], single[1], single[2] if has_bias else None)
        torch.testing.assert_close(output[row], expected)
        expected.square().sum().backward()
        for stacked, own in zip((x, weight, bias), single, strict=True):
            if own.grad is not None:
                torch.testing.assert_close(stacked.grad[row], own.grad)


@pytest.mark.parametrize("size", [100, 3], ids=["large tensors", "small tensors"])
def test_the_best_weights_of_some_runs_are_overwritten(size):
    model = StackedModel([nn.Linear(200, size) for _ in range(3)])
    kept = model.copy_all()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter.add_(1)
    for rows in ([0, 2], [0, 1, 2]):
        model.write_rows(kept, rows)
        for row in range(3):
            for name, tensor in kept.items():
                change = 1.0 if row in rows else 0.0
                torch.testing.assert_close(tensor[row], before[name][row] + change)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (partial(mlp, 10, 2, width=6, depth=2), points),
        (partial(mlp, 10, 2, width=6, depth=2, dropout=0.5), points),
        (batch_norm, points),
        (conv, images),
        (Attention, words),
    ],
    ids=["linear", "dropout", "batch norm", "convolution", "attention"],
)
def test_losses_and_gradients_of_a_fleet_compile_to_one_graph(model, data):
    torch.compiler.reset()
    stacked = StackedModel([model() for _ in range(3)])
    train = [data(seed).train for seed in range(3)]
    x, y = (torch.stack([getattr(split, part) for split in train]) for part in "xy")
    loss_of = stacked_loss(nn.functional.cross_entropy)

    def losses(parameters):
        return loss_of(stacked(x, training=True, parameters=parameters), y)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(losses, fullgraph=True, backend=counter)
    results = []
    for compute in (losses, compiled):
        for parameter in stacked.parameters.values():
            parameter.grad = None
        torch.manual_seed(0)
        values = compute(stacked.parameters)
        values.sum().backward()
        gradients = {name: tensor.grad for name, tensor in stacked.parameters.items()}
        results.append((values.detach(), gradients))
    assert counter.frame_count == 1
    (expected, expected_gradients), (values, gradients) = results
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(gradients, expected_gradients)


def test_models_on_several_devices_are_refused():
    with pytest.raises(ValueError, match=r"one device, got cpu and meta\. Move them"):
        StackedModel([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
