"""A small training that crosses its level often, written by hand over whole batches in float64.

Adapters of frameworks train the same network on the same batches, and must end at the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVEL, STEPS = 0.5, 80
# A batch is 4 micro-batches; an epoch is 4 batches.
MICRO, ACCUMULATE, BATCH, EXAMPLES = 8, 4, 32, 128
RATE, MOMENTUM = 0.2, 0.9

sgd = partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM)


def data() -> tuple[Tensor, Tensor]:
    """Two classes in five dimensions; a fifth of the labels is flipped."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 5, generator=generator, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    flip = torch.rand(EXAMPLES, generator=generator) < 0.2
    return x, torch.where(flip, 1 - y, y)


def network(outputs: int = 2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, outputs)]
        return nn.Sequential(*layers).double()


def batches(size: int = BATCH, steps: int = STEPS, first: int = 0) -> Iterator[slice]:
    """Slices of the data, in order, again and again."""
    for step in range(first, steps):
        start = step * size % EXAMPLES
        yield slice(start, start + size)


def train(
    level: float | Callable[[int], float] | None = LEVEL,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    optimizer: Callable[..., torch.optim.Optimizer] = sgd,
    max_norm: float | None = None,
    epsilon: float = 1e-6,
    penalty: float = 0.0,
    weights: Tensor | None = None,
    outputs: int = 2,
    steps: int = STEPS,
) -> nn.Sequential:
    """Train with ``|L - b| + b``, the formula itself.

    ``penalty`` is of the squared weights of the first layer and is not flooded; ``weights`` are of
    the examples, and the mean divides by their number. Clipping adds ``epsilon`` to the norm, as
    torch does.
    """
    x, y = data()
    model = network(outputs)
    opt = optimizer(model.parameters())
    for step, batch in enumerate(batches(steps=steps)):
        if weights is None:
            raw = loss(model(x[batch]), y[batch])
        else:
            each = functional.cross_entropy(model(x[batch]), y[batch], reduction="none")
            raw = (each * weights[batch]).mean()
        bound = level(step) if callable(level) else level
        total = raw if bound is None else (raw - bound).abs() + bound
        total = total + penalty * model[0].weight.square().sum()
        opt.zero_grad()
        total.backward()
        if max_norm is not None:
            norm = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm()
            for p in model.parameters():
                p.grad *= min(1.0, max_norm / (norm.item() + epsilon))
        opt.step()
    return model


def plain_loss(model: nn.Module) -> float:
    x, y = data()
    with torch.no_grad():
        return functional.cross_entropy(model(x), y).item()


def vector(parameters) -> Tensor:
    return torch.cat([torch.as_tensor(p).detach().double().reshape(-1) for p in parameters])


def distance(a, b) -> float:
    """The largest difference of any weight."""
    return (vector(a) - vector(b)).abs().max().item()
