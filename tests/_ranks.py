"""A small problem that crosses its level often, its obvious twin, and what spawned ranks do with
it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from flooding.functional import flood
from flooding.step import FloodStep

STEPS, BATCH = 50, 48
# Below a hundredth of these a decision would hang on rounding; every twin asserts that its 50
# decisions do not.
MARGIN = {torch.float32: 1e-5, torch.float64: 1e-9}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


def build(dtype=torch.float64, seed=0):
    """Model, batches of 48 examples and a level.

    The level is the median of the batches' first losses. Their spread (about 0.05) is thousands of
    times the rounding of a mean, so both signs occur often and no decision is a near tie. Tanh and
    not ReLU: no gradient is nearly zero by cancellation, which Adam would scale up to a full step
    in a direction that rounding chooses.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STEPS, BATCH, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (STEPS, BATCH), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    x = x.to(dtype)
    with torch.no_grad():
        first = torch.stack([
            functional.cross_entropy(model(a), b) for a, b in zip(x, y, strict=True)
        ])
    return model, list(zip(x, y, strict=True)), first.median().item()


def parts(k, seed):
    """k uneven sizes, at least 1, that sum to BATCH."""
    generator = torch.Generator().manual_seed(1000 * k + seed)
    cuts = torch.randperm(BATCH - 1, generator=generator)[: k - 1].add(1).sort().values.tolist()
    return [b - a for a, b in zip([0, *cuts], [*cuts, BATCH], strict=True)]


def clip(model, norm):
    """Clip and tell whether that changed anything."""
    if norm is None:
        return False
    total = nn.utils.clip_grad_norm_(model.parameters(), norm)
    return float(total.full_tensor() if hasattr(total, "full_tensor") else total) > norm


def twin(model, batches, level, make, norm=None):
    """The slow, obvious implementation: one forward of the whole batch, its flooded loss, one
    backward, one step."""
    model = copy.deepcopy(model)
    optimizer = make(model.parameters())
    losses, clipped = [], 0
    for x, y in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        flood(loss, level).backward()
        clipped += clip(model, norm)
        optimizer.step()
        losses.append(loss.item())
    below = [loss < level for loss in losses]
    assert min(abs(loss - level) for loss in losses) > MARGIN[next(model.parameters()).dtype]
    assert 10 <= sum(below) <= STEPS - 10
    assert sum(a != b for a, b in pairwise(below)) >= 10
    assert norm is None or clipped > STEPS // 2
    return model, losses


def distance(model, other):
    """Largest difference of two models' parameters."""
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return max((a - b).abs().max().item() for a, b in zip(full, other.parameters(), strict=True))


def train_ranks(
    net, model, batches, level, make, group, k=1, norm=None, exact=True, per_microbatch=False
):
    """Train on this rank's share; ``exact=False`` floods what each rank sees by itself."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    optimizer = make(net.parameters())
    flood_step = FloodStep(
        optimizer,
        level if exact or per_microbatch else None,
        per_microbatch=per_microbatch,
        group=group,
    )
    for step, (x, y) in enumerate(batches):
        sizes = parts(world * k, step)
        mine = list(zip(x.split(sizes), y.split(sizes), strict=True))[rank * k : (rank + 1) * k]
        optimizer.zero_grad()
        for i, (a, b) in enumerate(mine):
            last = i == k - 1
            if hasattr(net, "set_requires_gradient_sync"):
                net.set_requires_gradient_sync(last)
            with contextlib.nullcontext() if last or not hasattr(net, "no_sync") else net.no_sync():
                loss = flood_step(functional.cross_entropy(net(a), b))
                loss = loss if exact or per_microbatch else flood(loss, level)
                (loss * (len(a) * world / BATCH)).backward()  # DDP and FSDP average over ranks
        clip(net, norm)
        optimizer.step()
    return flood_step


def _ddp(group, dtype, name, k=1, norm=None):
    model, batches, level = build(dtype)
    reference, losses = twin(model, batches, level, OPTIMIZERS[name], norm)
    result = {}
    for kind in ("exact", "naive", "local"):
        net = DistributedDataParallel(copy.deepcopy(model), process_group=group)
        options = {"exact": kind == "exact", "per_microbatch": kind == "local"}
        flood_step = train_ranks(
            net, model, batches, level, OPTIMIZERS[name], group, k, norm, **options
        )
        result[kind] = distance(net.module, reference)
        result[kind + " model"] = net.module
        if kind == "exact":
            result["counts"] = abs(
                int(flood_step.state["n_flooded"]) - sum(loss < level for loss in losses)
            )
            result["loss"] = abs(float(flood_step.state["raw_loss"]) - losses[-1])
    result["local and naive"] = distance(result.pop("local model"), result.pop("naive model"))
    result["ranks"] = _spread(result.pop("exact model"), group)
    return result


def _spread(model, group):
    """Largest difference between the ranks' parameters."""
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    every = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, flat, group=group)
    return max((flat - other).abs().max().item() for other in every)


def _fsdp(mesh, dtype, name, k, norm=None):
    from torch.distributed.fsdp import fully_shard

    model, batches, level = build(dtype)
    reference, _ = twin(model, batches, level, OPTIMIZERS[name], norm)
    result = {}
    for kind in ("exact", "naive"):
        net = copy.deepcopy(model)
        fully_shard(net[0], mesh=mesh)
        fully_shard(net, mesh=mesh)
        train_ranks(
            net, model, batches, level, OPTIMIZERS[name], mesh.get_group(), k, norm, kind == "exact"
        )
        result[kind] = distance(net, reference)
    return result


def _masked(dtype):
    """Rank 1 has no valid target: its mean is NaN, and its gradient 0."""
    model, batches, _ = build(dtype)
    x, y = batches[0]
    y = y.clone()
    y[16:32] = -100
    reference, net = copy.deepcopy(model), DistributedDataParallel(copy.deepcopy(model))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (reference, net)]
    level = 50.0
    flood_step = FloodStep(optimizers[1], level)
    whole = functional.cross_entropy(reference(x), y)
    flood(whole, level).backward()
    rank = dist.get_rank()
    loss = flood_step(
        functional.cross_entropy(net(x[16 * rank : 16 * rank + 16]), y[16 * rank : 16 * rank + 16])
    )
    (loss * ((rank != 1) * 3 / 2)).backward()
    for optimizer in optimizers:
        optimizer.step()
    return {
        "exact": distance(net.module, reference),
        "plain": distance(reference, model),
        "loss": abs(float(flood_step.state["raw_loss"]) - whole.item()),
        "slope": float(flood_step.state["slope"]),
        "non_finite": int(flood_step.state["n_nonfinite"]),
    }


def rank_main(rank, world, folder):
    """Run every check on this rank; rank 0 writes the figures."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    from torch.distributed.device_mesh import DeviceMesh

    pair = dist.new_group([0, 1])
    mesh = DeviceMesh("cpu", [0, 1])
    figures = {}
    for dtype in (torch.float32, torch.float64):
        figures["ddp, 3 ranks", dtype] = _ddp(None, dtype, "sgd")
        figures["a masked rank", dtype] = _masked(dtype)
        figures["ddp, 3 ranks, 3 micro-batches, clipped", dtype] = _ddp(
            None, dtype, "adamw", 3, 0.05
        )
        if rank < 2:
            figures["ddp, 2 ranks", dtype] = _ddp(pair, dtype, "adam")
            figures["ddp, 2 ranks, 4 micro-batches", dtype] = _ddp(pair, dtype, "sgd", 4)
            figures["fsdp2, 2 ranks", dtype] = _fsdp(mesh, dtype, "sgd", 1)
            figures["fsdp2, 2 ranks, 3 micro-batches, clipped", dtype] = _fsdp(
                mesh, dtype, "adam", 3, 0.05
            )
    if rank == 0:
        by_name = {f"{name}, {dtype}": figures[name, dtype] for name, dtype in figures}
        (Path(folder) / "figures.json").write_text(json.dumps(by_name))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    rank_main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), sys.argv[1])
