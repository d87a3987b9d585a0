"""What flooding adds to a training step of ResNet-20 on the CPU.

    python benchmarks/wrapper.py [--steps 40] [--batch 128]

Plain and flooded steps take turns in one process, so that a drifting machine slows both; the figure
is the ratio of the medians. Since a step takes long and flooding almost nothing, that ratio is
mostly noise: the criterion is therefore also timed by itself, forward and backward from the same
logits. Target: below 1 % of a step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from flooding.criterion import Flood
from flooding.models import resnet_cifar
from flooding.report.provenance import machine

TARGET = 0.01


def taking_turns(calls, n, warm=3):
    """Return seconds of n calls of each function, in turn and the order reversed every time."""
    times = {name: [] for name in calls}
    for turn in range(n + warm):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            tick = time.perf_counter()
            calls[name]()
            if turn >= warm:
                times[name].append(time.perf_counter() - tick)
    return times


def training_step(model, criterion, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step


def table(title, times, unit, name_of_unit):
    print(f"\n{title}")
    print(f"{'':8} {'n':>5} {'median':>9} {'mean':>9} {'sd':>9}   {name_of_unit}")
    for name, each in times.items():
        scaled = [unit * t for t in each]
        mean, sd = statistics.fmean(scaled), statistics.stdev(scaled)
        print(f"{name:8} {len(each):5} {statistics.median(scaled):9.2f} {mean:9.2f} {sd:9.2f}")
    return {name: statistics.median(each) for name, each in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of each kind, at least 2")
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(arguments.batch, 3, 32, 32), torch.randint(10, (arguments.batch,))
    model = resnet_cifar(20)
    criteria = {"plain": nn.CrossEntropyLoss(), "flooded": Flood(nn.CrossEntropyLoss(), level=0.05)}
    print(
        f"{machine()}; 1 thread\nResNet-20, batch {arguments.batch} of 32 x 32 x 3, SGD with "
        "momentum"
    )

    steps = {
        name: training_step(copy.deepcopy(model), criterion, x, y)
        for name, criterion in criteria.items()
    }
    step = table("One training step", taking_turns(steps, arguments.steps), 1e3, "ms")
    print(f"ratio of medians {step['flooded'] / step['plain']:.4f}")

    logits = model(x).detach().requires_grad_()
    alone = {
        name: lambda c=criterion: torch.autograd.grad(c(logits, y), logits)
        for name, criterion in criteria.items()
    }
    own = table(
        "The criterion by itself, forward and backward",
        taking_turns(alone, 50 * arguments.steps),
        1e6,
        "us",
    )
    share = (own["flooded"] - own["plain"]) / step["plain"]
    verdict = "below" if share < TARGET else "NOT below"
    print(
        f"flooding's own time over a plain step {100 * share:.3f} %: {verdict} the target of "
        f"{100 * TARGET:g} %"
    )


if __name__ == "__main__":
    main()
