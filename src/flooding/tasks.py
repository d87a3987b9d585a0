"""The built-in Problems by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flooding.data import synthetic, tables
from flooding.models import mlp
from flooding.problem import Problem, TestCurve

__all__ = ["DATA", "adam", "adamw", "demo_digits", "demo_sinusoid", "paper", "plane", "sgd"]

# The data of the built-in tasks, callables (..., seed) -> Splits.
DATA: dict[str, Callable[..., Any]] = {
    "two-gaussians": synthetic.two_gaussians,
    "sinusoid": synthetic.sinusoid,
    "sinusoid-nd": synthetic.sinusoid_nd,
    "spiral": synthetic.spiral,
    "digits": tables.digits,
}

# Fused optimisers take one pass over the parameters: a third of a step's time on the networks here.
adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
adamw = partial(torch.optim.AdamW, lr=1e-3, fused=True)
sgd = partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True)


def paper(data: Callable[..., Any], inputs: int) -> Problem:
    """Give the setting of the paper's synthetic experiments.

    Five hidden layers of 500 units, Adam at 0.001, full batches of 100, 500 epochs.

    Args:
        data: A synthetic task, ``(*, seed) -> Splits``.
        inputs: Number of its inputs.

    Returns:
        The Problem.

    References:
        Ishida et al., ICML 2020, section 4.1.
    """
    return Problem(data, partial(mlp, inputs, 2, width=500, depth=5), adam)


def demo_sinusoid(optimizer: Callable[..., torch.optim.Optimizer]) -> Problem:
    """Give the public demo's experiment: Sinusoid with 10 % label noise, 100 training and 100 validation examples.

    Args:
        optimizer: The demo's :data:`sgd` or :data:`adam`.

    Returns:
        The Problem: four hidden layers of 500 units with batch norm, full batches, 200 epochs.
    """
    network = partial(mlp, 2, 2, width=500, depth=4, batch_norm=True)
    data = partial(synthetic.sinusoid, label_noise=0.1)
    curve = TestCurve(500, every=5)
    return Problem(data, network, optimizer, batch_size=200, horizon=200, test_curve=curve, probe=plane)


def plane(points: int = 81, reach: float = 2.2) -> Tensor:
    """Lay a square grid over a plane, for drawing decision boundaries.

    Args:
        points: Points along each side.
        reach: Largest coordinate.

    Returns:
        Points ``[points * points, 2]``, the first coordinate changing fastest.
    """
    side = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(side, side).flip(1)


def demo_digits(epochs: int = 60) -> Problem:
    """Give real images: scikit-learn's handwritten digits, 20 % of training and validation labels replaced.

    Args:
        epochs: The horizon.

    Returns:
        The Problem: the demo's network on 600 / 300 / 897 images, batches of 100, Adam at 0.001.
    """
    network = partial(mlp, 64, 10, width=500, depth=4, batch_norm=True)
    data = partial(tables.digits, label_noise=0.2)
    return Problem(data, network, adam, batch_size=100, horizon=epochs, test_curve=TestCurve(500, every=5))
