"""FloodStep on the optimisers of Accelerate, Lightning Fabric and DeepSpeed, as they stand."""

from __future__ import annotations

import copy
import importlib.util
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from flooding import Flood, FloodStep
from flooding.levels import Warmup
from flooding.step.wrappers import inner_optimizer
from framework_oracle import (
    ACCUMULATE,
    EPOCHS,
    EXAMPLES,
    LEVEL,
    MICRO,
    STEPS,
    Oracle,
    data,
    distance,
    end_ranks,
    network,
    sgd,
    start_ranks,
    stop_ranks,
)
from framework_table import EXACT, FLOAT32, cell

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:::accelerate", "ignore::UserWarning")
WARMUP = Warmup(LEVEL, steps=30)
PACKAGES = {"accelerate": "accelerate", "fabric": "lightning.fabric", "deepspeed": "deepspeed"}


@pytest.fixture(scope="module", autouse=True)
def _start_ranks(request):
    """Start the ranks before the first test, if a selected test needs them."""
    if any("two_ranks" in item.name for item in request.session.items):
        request.getfixturevalue("ranks")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two ranks of each framework, which train while the tests of this file run."""
    started = {}
    for framework, package in PACKAGES.items():
        if importlib.util.find_spec(package.partition(".")[0]) is not None:
            folder = tmp_path_factory.mktemp(framework)
            packages = f"torch._dynamo,{package}"
            process = start_ranks("_accelerate_ranks.py", folder, framework, packages=packages)
            started[framework] = (process, folder)
    yield started
    for process, _ in started.values():
        stop_ranks(process)


def figures_of(ranks, framework):
    if framework not in ranks:
        pytest.skip(f"{PACKAGES[framework]} is not installed")
    figures = end_ranks(*ranks[framework])
    print(framework, figures)
    return figures


class Loop:
    """The loop of Accelerate's documentation; with ``level`` two lines more."""

    def __init__(self, level=None, criterion=None, n=EXAMPLES, norm=None, accumulate=ACCUMULATE):
        self.accelerator = accelerate.Accelerator(gradient_accumulation_steps=accumulate, cpu=True)
        loader = DataLoader(TensorDataset(*data(n)), batch_size=MICRO)
        model = network()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, sgd(model.parameters()), loader
        )
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.norm = norm
        self.flood_step = FloodStep(self.optimizer, level)

    def train(self, epochs=EPOCHS):
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = self.flood_step(self.criterion(self.model(x), y))
                    self.accelerator.backward(loss)
                    if self.norm is not None and self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), self.norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self.model


def naive(**options):
    return Loop(None, Flood(nn.CrossEntropyLoss(), LEVEL), **options).train()


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


def test_the_inner_optimiser_is_found():
    loop = Loop(LEVEL)
    assert type(loop.optimizer).__name__ == "AcceleratedOptimizer"
    assert loop.flood_step.optimizer is loop.optimizer.optimizer
    assert inner_optimizer(loop.optimizer.optimizer) is loop.optimizer.optimizer


def test_accumulation(oracle):
    loop = Loop(LEVEL)
    error = distance(loop.train(), oracle.model)
    cell("Accelerate", "one line", "`FloodStep(optimizer, 0.1)`, `loss = flood_step(loss)`")
    cell("Accelerate", "accumulation 4", error, naive=distance(naive(), oracle.model))
    assert int(loop.flood_step.n_flooded) == oracle.n_flooded
    # A loss without a graph is only returned.
    x, y = data()
    with torch.no_grad():
        loss = F.cross_entropy(loop.model(x), y)
        cell("Accelerate", "evaluation plain", float(loop.flood_step(loss) - loss))
    assert int(loop.flood_step.n_steps) == STEPS


def test_a_last_window_that_is_not_full():
    expected = Oracle(n=112, scale=lambda step: 0.5 if step == 3 else 1.0)
    assert distance(Loop(LEVEL, n=112).train(), expected.model) <= EXACT


def test_clipping():
    expected = Oracle(norm=0.2)
    error = distance(Loop(LEVEL, norm=0.2).train(), expected.model)
    cell("Accelerate", "clipping", error, naive=distance(naive(norm=0.2), expected.model))


def test_a_flood_step_built_before_prepare_is_the_same(oracle):
    loop = Loop()
    loop.flood_step.remove()
    model = network()
    optimizer = sgd(model.parameters())
    loop.flood_step = FloodStep(optimizer, LEVEL)
    loop.model, loop.optimizer = loop.accelerator.prepare(model, optimizer)
    assert distance(loop.train(), oracle.model) <= EXACT


def test_checkpoints_of_a_moving_level(tmp_path):
    expected = Oracle(WARMUP)
    cell("Accelerate", "moving level", distance(Loop(WARMUP).train(), expected.model))
    errors = []
    for is_registered in (True, False):
        folder = tmp_path / str(is_registered)
        first, second = Loop(WARMUP), Loop(WARMUP)
        for loop in (first, second):
            if is_registered:
                loop.accelerator.register_for_checkpointing(loop.flood_step)
        first.train(4)
        first.accelerator.save_state(folder)
        second.accelerator.load_state(folder)
        second.train(EPOCHS - 4)
        errors.append(distance(second.model, expected.model))
    cell("Accelerate", "resume", errors[0], naive=errors[1])


def test_two_ranks_of_accelerate(ranks):
    figures = figures_of(ranks, "accelerate")
    for accumulate in (1, 4):
        error, wrong = figures[f"step {accumulate}"], figures[f"naive {accumulate}"]
        cell("Accelerate", "two ranks", error, naive=wrong)
        assert figures[f"apart {accumulate}"] == 0
    assert figures["a rank without a loss"] == 1


# Lightning Fabric.


def fabric_loop(level, criterion=None, norm=None, epochs=range(EPOCHS), state=None):
    fabric = pytest.importorskip("lightning.fabric", reason="Lightning is not installed").Fabric(
        accelerator="cpu", devices=1, precision="64-true"
    )
    model = network()
    model, optimizer = fabric.setup(model, sgd(model.parameters()))
    flood_step = FloodStep(optimizer, level)
    if state is not None:
        state = copy.deepcopy(state)  # an optimiser goes on in the tensors that it loads
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if "flood_step" in state:
            flood_step.load_state_dict(state["flood_step"])
    criterion = criterion or nn.CrossEntropyLoss()
    x, y = data()
    for _ in epochs:
        for i, (a, b) in enumerate(zip(x.split(MICRO), y.split(MICRO), strict=True), 1):
            fabric.backward(flood_step(criterion(model(a), b)) / ACCUMULATE)
            if i % ACCUMULATE == 0:
                if norm is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=norm)
                optimizer.step()
                optimizer.zero_grad()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    return model, state, flood_step


@pytest.fixture
def _double():
    """Fabric converts the outputs of a model to the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
def test_fabric(oracle):
    row = "Fabric"
    wrong = lambda **options: fabric_loop(None, Flood(nn.CrossEntropyLoss(), LEVEL), **options)[0]  # noqa: E731
    cell(row, "one line", "`FloodStep(optimizer, 0.1)`, `loss = flood_step(loss)`")
    model, _, flood_step = fabric_loop(LEVEL)
    error = distance(model, oracle.model)
    cell(row, "accumulation 4", error, naive=distance(wrong(), oracle.model))
    with torch.no_grad():
        x, y = data()
        loss = F.cross_entropy(model(x), y)
        cell(row, "evaluation plain", float(flood_step(loss) - loss))
    clipped = Oracle(norm=0.2).model
    error = distance(fabric_loop(LEVEL, norm=0.2)[0], clipped)
    cell(row, "clipping", error, naive=distance(wrong(norm=0.2), clipped))
    expected = Oracle(WARMUP).model
    cell(row, "moving level", distance(fabric_loop(WARMUP)[0], expected))
    _, state, flood_step = fabric_loop(WARMUP, epochs=range(4))
    unsaved = fabric_loop(WARMUP, epochs=range(4, EPOCHS), state=state)[0]
    state["flood_step"] = flood_step.state_dict()
    resumed = fabric_loop(WARMUP, epochs=range(4, EPOCHS), state=state)[0]
    cell(row, "resume", distance(resumed, expected), naive=distance(unsaved, expected))


def test_two_ranks_of_fabric(ranks):
    figures = figures_of(ranks, "fabric")
    cell("Fabric", "two ranks", figures["step"], naive=figures["naive"])
    assert figures["apart"] == 0


# DeepSpeed, which computes in float32.


def test_two_ranks_of_deepspeed(ranks):
    figures = figures_of(ranks, "deepspeed")
    row = "DeepSpeed ZeRO 0 to 2"
    cell(row, "one line", "`FloodStep(optimizer, 0.1)`, `loss = flood_step(loss)`")
    for column in ("accumulation 4", "two ranks"):
        for stage in (0, 1, 2):
            cell(
                *(row, column, figures[f"stage {stage}"]),
                naive=figures[f"naive {stage}"],
                control=figures[f"control {stage}"],
                tolerance=FLOAT32,
            )
    # ZeRO 1 and 2 step each group of parameters by itself: one decision for all of them.
    assert figures["two groups"] <= FLOAT32
    error, wrong = figures["clipped"], figures["naive clipped"]
    cell(row, "clipping", error, naive=wrong, tolerance=FLOAT32)
    for stage in (0, 1, 2):
        cell(row, "evaluation plain", figures[f"evaluation {stage}"], tolerance=FLOAT32)
    cell(row, "moving level", figures["moving"], tolerance=FLOAT32)
    for stage in (0, 2):
        resumed, wrong = figures[f"resumed {stage}"], figures["naive resumed"]
        cell(row, "resume", resumed, naive=wrong, tolerance=FLOAT32)
    assert figures["stage 3"] == 1


# The same without the frameworks.


class _Wrapper(torch.optim.Optimizer):
    """As Accelerate's: a torch optimiser by name only, without hooks of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure)


class DeepSpeedZeroOptimizer:
    """Steps each group of parameters by itself, or skips the step after an overflow."""

    __module__ = "deepspeed.runtime.zero.stage_1_and_2"

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.has_overflow = False

    def step(self):
        groups = self.optimizer.param_groups
        for group in [] if self.has_overflow else groups:
            self.optimizer.param_groups = [group]
            self.optimizer.step()
        self.optimizer.param_groups = groups


class DeepSpeedZeroOptimizer_Stage3(DeepSpeedZeroOptimizer): ...  # noqa: N801


class MegatronLMOptimizerWrapper(_Wrapper): ...


def _weights(n=1):
    weights = [nn.Parameter(torch.tensor(1.0)) for _ in range(n)]
    return weights, torch.optim.SGD([{"params": [w]} for w in weights], lr=1.0)


def test_wrappers_inside_wrappers():
    (w,), optimizer = _weights()
    outer = _Wrapper(_Wrapper(optimizer))
    flood_step = FloodStep(outer, 2.0)
    assert flood_step.optimizer is optimizer
    flood_step(1 * w).backward()
    outer.step()
    assert w == 2


def test_a_wrapper_that_holds_no_optimiser_is_refused():
    for wrong in (_Wrapper(None), _Wrapper(object())):
        with pytest.raises(TypeError, match="step hooks, got"):
            FloodStep(wrong, 0.1)
    loop = _Wrapper(None)
    loop.optimizer = loop
    with pytest.raises(TypeError, match="got _Wrapper"):
        FloodStep(loop, 0.1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(DeepSpeedZeroOptimizer_Stage3, "ZeRO 3"), (MegatronLMOptimizerWrapper, "pipeline")],
)
def test_wrappers_that_step_by_themselves_are_refused(kind, reason):
    _, optimizer = _weights()
    with pytest.raises(ValueError, match=f"{kind.__name__} cannot be flooded.*{reason}"):
        FloodStep(_Wrapper(kind(optimizer)), 0.1)


def test_one_decision_for_all_parts_of_a_partitioned_optimiser():
    weights, optimizer = _weights(3)
    zero = DeepSpeedZeroOptimizer(optimizer)
    flood_step = FloodStep(_Wrapper(zero), 4.0)
    for expected, slope in ((2.0, -1), (1.0, 1)):
        flood_step(sum(weights)).backward()
        zero.step()
        assert weights == [expected] * 3
        assert flood_step.slope == slope
        for weight in weights:
            weight.grad = None
    assert flood_step.n_steps == 2
    assert flood_step.n_flooded == 1
    flood_step.remove()
    assert "step" not in vars(zero)


def test_an_overflow_drops_the_losses_of_its_step():
    (w,), optimizer = _weights()
    zero = DeepSpeedZeroOptimizer(optimizer)
    flood_step = FloodStep(zero, 2.0)
    zero.has_overflow = True
    flood_step(100 * w).backward()
    zero.step()
    w.grad = None
    zero.has_overflow = False
    flood_step(1 * w).backward()
    zero.step()
    assert flood_step.n_steps == 1
    assert w == 2  # with the dropped loss the mean would be above the level
