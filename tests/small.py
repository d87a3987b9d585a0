"""Small problems that train in a blink."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import torch

from flooding import Problem
from flooding.data import Split, Splits
from flooding.data.synthetic import sinusoid, two_gaussians
from flooding.models import mlp

adam = partial(torch.optim.Adam, lr=1e-2)


def small(**changes):
    """Two Gaussians with a network of 2 x 16."""
    data = partial(two_gaussians, n_train=40, n_val=30, n_test=200)
    return Problem(
        **{
            "data": data,
            "model": partial(mlp, 10, 2, width=16, depth=2),
            "optimizer": adam,
            "max_epochs": 6,
        }
        | changes
    )


def normed(**changes):
    """Sinusoid in mini-batches, with batch norm and dropout."""
    data = partial(sinusoid, n_train=50, n_val=30, n_test=200)
    model = partial(mlp, 2, 2, width=16, depth=2, batch_norm=True, dropout=0.2)
    return Problem(
        **{"data": data, "model": model, "optimizer": adam, "max_epochs": 6, "batch_size": 12}
        | changes
    )


def regression(**changes):
    """A line with noise, squared error, inputs in a dict."""
    generator = torch.Generator().manual_seed(0)

    def split(n):
        x = torch.randn(n, 3, generator=generator)
        return Split(
            {"x": x}, x.sum(1, keepdim=True) + 0.1 * torch.randn(n, 1, generator=generator)
        )

    parts = {
        "data": Splits(split(40), split(20), split(20)),
        "model": FromDict,
        "loss": torch.nn.functional.mse_loss,
    }
    return Problem(**parts | {"optimizer": adam, "max_epochs": 6} | changes)


def wide(**changes):
    """A network large enough for the kernels that a lower precision chooses, with denormal
    inputs."""
    x = torch.randn(120, 64, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 1e-40
    y = (x[:, 1] > 0).long()
    parts = Splits(Split(x[:60], y[:60]), Split(x[60:], y[60:]))
    layers = partial(Encoder, 64)
    return small(
        **{"data": parts, "model": layers, "optimizer": adam, "max_epochs": 2, "key": "wide"}
        | changes
    )


class Encoder(torch.nn.Module):
    """Linear layers, attention and an einsum of three."""

    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Linear(width, 128)
        self.attention = torch.nn.TransformerEncoderLayer(128, 4, 64, batch_first=True, dropout=0.1)
        self.mix = torch.nn.Parameter(torch.eye(128) / 128)
        self.last = torch.nn.Linear(128, 2)

    def forward(self, x):
        hidden = self.attention(torch.relu(self.first(x))[:, None])[:, 0]
        return self.last(torch.einsum("bi,ij,jk->bk", hidden, self.mix, self.mix) + x[:, :1].sum())


def noisy(x):
    """Augment with torch's generator."""
    return x + 0.1 * torch.randn_like(x)


class Slow(torch.nn.Linear):
    """A module whose every pass takes a minute."""

    def __init__(self):
        super().__init__(10, 2)

    def forward(self, x):
        time.sleep(60)
        return super().forward(x)


class FromDict(torch.nn.Module):
    """A module that takes a dict."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 1)

    def forward(self, inputs):
        return self.line(inputs["x"])


class Dying(torch.nn.Linear):
    """A module whose process dies, with each of its first trainings a step later; ``spared`` is how
    many of them."""

    def __init__(self, path, spared):
        super().__init__(10, 2)
        self.path, self.spared, self.steps = path, spared, 0

    def forward(self, x):
        if self.training:
            time.sleep(0.15)  # long enough to tell the epoch before
            self.steps += 1
            deaths = len(Path(self.path).read_text()) if Path(self.path).exists() else 0
            if deaths < self.spared and self.steps > deaths + 1:
                with Path(self.path).open("a") as file:
                    file.write("x")
                os._exit(1)
        return super().forward(x)
