"""Gradient accumulation: FloodStep, and what the pasted line does instead.

A step is split into four micro-batches. The pasted line floods each of them by its own loss, so
parts of a step pull against each other. FloodStep decides by the mean loss of the whole step.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn import functional

from flooding import FloodStep, flood
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp

LEVEL, PARTS = 0.3, 4
train = two_gaussians(n_test=10, label_noise=0.1, seed=0).train


def fit(is_pasted, steps=300):
    torch.manual_seed(0)
    model = mlp(10, 2, width=50, depth=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    flood_step = None if is_pasted else FloodStep(optimizer, LEVEL)
    losses = []
    for _ in range(steps):
        order = torch.randperm(len(train))
        step_loss = 0.0
        for rows in order.chunk(PARTS):
            loss = functional.cross_entropy(model(train.x[rows]), train.y[rows])
            step_loss += float(loss.detach()) / PARTS
            loss = flood(loss, LEVEL) if is_pasted else flood_step(loss)
            (loss / PARTS).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step_loss)
    return losses


figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, is_pasted, color in (("pasted line", True, "tab:red"), ("FloodStep", False, "tab:blue")):
    losses = fit(is_pasted)
    ax.plot(losses, color=color, label=name)
    late = torch.tensor(losses[-200:])
    print(f"{name}: loss of the last 200 steps {late.mean():.3f} ± {late.std():.3f}, level {LEVEL}")
ax.axhline(LEVEL, color="gray", linestyle=":", label="level")
ax.set(xlabel="step", ylabel="loss of the step, nats", ylim=(0, 0.8))
ax.legend()
figure.savefig("accumulation.png", dpi=100)
