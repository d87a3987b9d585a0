"""The same steps on a processor and on a GPU: exact, scaled, among ranks, without waiting.

The tests on a GPU are skipped where there is none; those on a processor are the same code.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel

from flooding import Flood, FloodStep, Run, levels, run_all
from flooding.functional import flood
from flooding.testing.controllers import _HostSyncDetector
from flooding.training.fleet import Fleet
from small import small

HAS_GPU = torch.cuda.is_available()
no_gpu = pytest.mark.skipif(not HAS_GPU, reason="torch finds no CUDA device")
LEVEL = 0.65
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "fused sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "fused adam": partial(torch.optim.Adam, lr=1e-2, fused=True),
    "fused adamw": partial(torch.optim.AdamW, lr=1e-2, fused=True),
}
CONTROLLERS = {
    "constant": LEVEL,
    "Warmup": levels.Warmup(LEVEL, steps=4),
    "Delayed": levels.Delayed(LEVEL, until_loss=0.68),
    "Plateau": levels.Plateau(LEVEL, high=1.0),
    "Range": levels.Range(0.7, 0.1, steps=4),
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=no_gpu)])
def device(request):
    return torch.device(request.param)


@contextlib.contextmanager
def no_waiting(device):
    """Fail where the host waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with _HostSyncDetector() as detector:
        yield
    assert not detector.names


def build(device, n=24):
    """A network and batches on a device, the same numbers on each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    x, y = torch.randn(8, n, 6), torch.randint(2, (8, n))
    return model.to(device), list(zip(x.to(device), y.to(device), strict=True))


def train(model, batches, optimizer, level, parts=3):
    """Accumulate over parts of every batch."""
    flood_step = FloodStep(optimizer, level)
    for x, y in batches:
        optimizer.zero_grad()
        for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (flood_step(cross_entropy(model(a), b)) / parts).backward()
        optimizer.step()
    return flood_step


def distance(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((a.detach().cpu() - b.detach().cpu()).abs().max()) for a, b in pairs)


def test_the_criterion_floods_while_training_alone(device):
    model, [(x, _), *_] = build(device)
    y = torch.zeros(len(x), 2, device=device)
    criterion = Flood(nn.MSELoss(), 5.0).to(device)
    loss = criterion(model(x), y)
    raw = mse_loss(model(x), y)
    assert loss.device.type == device.type
    torch.testing.assert_close(loss, flood(raw, 5.0))
    [gradient] = torch.autograd.grad(loss, [model[0].weight], retain_graph=True)
    [expected] = torch.autograd.grad(raw, [model[0].weight])
    torch.testing.assert_close(gradient, -expected)
    torch.testing.assert_close(criterion.eval()(model(x), y), raw)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulation_is_the_whole_batch(device, name):
    model, batches = build(device)
    whole = copy.deepcopy(model)
    optimizer = OPTIMIZERS[name](whole.parameters())
    flooded = 0
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(whole(x), y)
        flood(loss, LEVEL).backward()
        flooded += int(loss < LEVEL)
        optimizer.step()
    flood_step = train(model, batches, OPTIMIZERS[name](model.parameters()), LEVEL)
    assert int(flood_step.n_flooded) == flooded
    assert 0 < flooded < len(batches)
    # A gradient whose elements are near 0 gives Adam a step of any sign: hence no tighter limit.
    assert distance(model, whole) < 1e-4


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_a_scaled_step_in_half_precision_is_flooded_and_a_skipped_one_is_not(device, fused):
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    model, batches = build(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=fused)
    flood_step = FloodStep(optimizer, 5.0)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)
    for step, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        before = copy.deepcopy(model)
        with torch.autocast(device.type, dtype):
            loss = flood_step(cross_entropy(model(x), y))
        scaler.scale(loss).backward()
        if step == 3:
            model[0].bias.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert (distance(model, before) == 0) == (step == 3)
    assert int(flood_step.n_steps) == int(flood_step.n_flooded) == len(batches) - 1
    # Far below the level every step goes up.
    x, y = batches[0]
    assert cross_entropy(model(x), y) > cross_entropy(build(device)[0](x), y)


@pytest.fixture
def one_rank(device):
    """A process group of this process alone, by NCCL on a GPU."""
    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, 1, is_master=True)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_rank_is_exact(device):
    model, batches = build(device)
    alone = copy.deepcopy(model)
    ids = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=ids)
    flood_step = train(wrapped, batches, OPTIMIZERS["sgd"](model.parameters()), LEVEL)
    flooded = 0
    optimizer = OPTIMIZERS["sgd"](alone.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(alone(x), y)
        flooded += int(loss < LEVEL)
        flood(loss, LEVEL).backward()
        optimizer.step()
    assert int(flood_step.n_flooded) == flooded
    assert distance(model, alone) < 1e-5


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_a_flooded_step_waits_for_nothing(device, name, fused):
    model, batches = build(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    flood_step = FloodStep(optimizer, CONTROLLERS[name])
    criterion = Flood(nn.CrossEntropyLoss(), LEVEL).to(device)

    def step(x, y):
        optimizer.zero_grad()
        for a, b in zip(x.chunk(2), y.chunk(2), strict=True):
            (flood_step(cross_entropy(model(a), b)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        criterion(model(x), y).backward()

    for number, (x, y) in enumerate(batches):
        # The first steps look for other optimisers, and build what later ones use again.
        with contextlib.nullcontext() if number < 2 else no_waiting(device):
            step(x, y)


def test_a_fleet_agrees_with_single_runs(device):
    name = device.type
    runs = [Run(small(max_epochs=6), level, seed=s) for s in (0, 1) for level in (None, 0.3, 0.6)]
    alone = run_all(runs, ledger=False, workers=0, device=name)
    together = run_all(runs, ledger=False, workers=0, device=name, fleet=True)
    assert {record.metadata["kernel"] for record in together} == {"fleet"}
    for one, other in zip(alone, together, strict=True):
        assert other.metrics["last.train_loss"] == pytest.approx(
            one.metrics["last.train_loss"], abs=1e-4
        )


@no_gpu
def test_a_fleet_on_a_gpu_waits_as_often_with_many_batches_as_with_few():
    waits = []
    for batch_size in (20, 10, 5):
        problem = small(max_epochs=4, batch_size=batch_size)
        rows = Fleet([Run(problem, level) for level in (None, 0.3, 0.6)], device="cuda").train()
        for _ in range(6):
            next(rows)  # the first epochs build what later ones use again
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in range(3):
                    next(rows)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing" in str(warning.message) for warning in caught))
    assert len(set(waits)) == 1, waits
