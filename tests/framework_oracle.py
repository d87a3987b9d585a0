"""The problem that the integration tests train, its hand-written loop, and how to start ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from flooding.levels import Controller, StepInfo

LEVEL, MICRO, ACCUMULATE, EPOCHS = 0.6, 8, 4, 10
EXAMPLES = 128  # four steps of four micro-batches of eight in an epoch
STEPS = 4 * EPOCHS


def data(n=EXAMPLES, dtype=torch.float64):
    """Two noisy classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    flip = torch.rand(n, generator=generator, dtype=torch.float32) < 0.2
    return x.to(dtype), torch.where(flip, 1 - y, y)


def network(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # Drawn in float32, whatever the default dtype is.
        first, last = (nn.Linear(*size, dtype=torch.float32) for size in ((5, 32), (32, 2)))
        return nn.Sequential(first, nn.Tanh(), last).to(dtype)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


def flat(model):
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])


def distance(model, other):
    """Largest difference of any weight."""
    return (flat(model) - flat(other)).abs().max().item()


def flood_by_hand(loss, level):
    return loss if level is None else (loss - level).abs() + level


def clip(model, norm=None, value=None):
    if norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), norm)
    if value is not None:
        nn.utils.clip_grad_value_(model.parameters(), value)


class Oracle:
    """Train over whole batches: ``|loss - level| + level``, backward, clip, step.

    ``order`` lists the examples of each step of an epoch, ``scale`` the factor of each step.
    ``level`` is a number, None or a controller, whose ``epoch_info(model)`` tells of an epoch.
    """

    def __init__(
        self,
        level: float | Controller | None = LEVEL,
        *,
        epochs=EPOCHS,
        n=EXAMPLES,
        dtype=torch.float64,
        order=None,
        scale: Callable[[int], float] = lambda step: 1.0,
        epoch_info: Callable[[nn.Module], StepInfo] | None = None,
        new_optimizer_after=None,
        **clipping,
    ):
        x, y = data(n, dtype)
        batches = torch.arange(n).split(MICRO * ACCUMULATE) if order is None else order
        self.model = network(dtype)
        self.losses = []
        self.n_flooded = 0
        optimizer = sgd(self.model.parameters())
        is_controller = isinstance(level, Controller)
        state = level.init() if is_controller else {}
        for epoch in range(epochs):
            if epoch == new_optimizer_after:
                optimizer = sgd(self.model.parameters())
            for step, batch in enumerate(batches):
                now = state["level"] if is_controller else level
                loss = F.cross_entropy(self.model(x[batch]), y[batch])
                optimizer.zero_grad()
                (flood_by_hand(loss, now) * scale(step)).backward()
                clip(self.model, **clipping)
                optimizer.step()
                self.losses.append(loss.item())
                self.n_flooded += now is not None and bool(loss < now)
                if is_controller:
                    state = level.update(state, StepInfo(loss.detach().float()))
            if epoch_info is not None:
                state = level.update(state, epoch_info(self.model))


def rank_order(batch):
    """Examples of each step where rank r of two trains on every second example from r, in turn."""
    mine = torch.arange(EXAMPLES).view(-1, 2)
    return [rows.reshape(-1) for rows in mine.split(batch)]


def start_ranks(
    script: str, folder: Path, *arguments: str, packages: str = "torch._dynamo", world: int = 2
) -> subprocess.Popen:
    """Start ranks of a script in this folder; they meet on this machine's loopback.

    Args:
        script: The script; it is given ``folder`` and ``arguments``.
        folder: Where it writes its figures.
        arguments: What else it is given.
        packages: What to import before the ranks fork, with commas; torch's optimisers import
            ``torch._dynamo``.
        world: Number of ranks.

    Returns:
        The process whose forks the ranks are.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    here = Path(__file__).parent
    launcher = [sys.executable, "-W", "ignore", here / "forked_ranks.py", str(world), packages]
    with open(folder / "ranks.txt", "w") as log:
        return subprocess.Popen(
            [*launcher, here / script, folder, *arguments],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def end_ranks(process: subprocess.Popen, folder: Path, seconds=500) -> dict[str, float]:
    """Wait for the ranks and read the figures that rank 0 has written."""
    try:
        process.wait(timeout=seconds)
        assert process.returncode == 0, (folder / "ranks.txt").read_text()[-3000:]
    finally:
        stop_ranks(process)
    return json.loads((folder / "figures.json").read_text())


def stop_ranks(process: subprocess.Popen) -> None:
    """Kill what still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
