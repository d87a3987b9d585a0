"""The built-in Problems by name."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature

import torch
from torch import Tensor

from flooding.data import Splits, images, synthetic, tables
from flooding.data.augment import jitter, shift
from flooding.entries import TASKS, check_name, find_entry
from flooding.models import mlp, small_cnn
from flooding.training.problem import Problem, TestCurve

__all__ = [
    "DIGITS",
    "FASHION_MNIST_5K",
    "HIGGS7K",
    "LETTER",
    "REAL",
    "SINUSOID",
    "SINUSOID_ND",
    "SPAMBASE",
    "SPIRAL",
    "TWONORM",
    "TWO_GAUSSIANS",
    "adam",
    "adamw",
    "demo_digits",
    "demo_sinusoid",
    "get_task",
    "grid_2d",
    "ishida2020_problem",
    "real",
    "sgd",
]

# Optimisers in the settings of the experiments. Fused ones take one pass over the parameters, a
# third of a step's time on the networks here.
adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
adamw = partial(torch.optim.AdamW, lr=1e-3, fused=True)
sgd = partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True)


def ishida2020_problem(data: Callable[..., Splits], inputs: int) -> Problem:
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
    """Give the public demo's experiment: Sinusoid with 10 % label noise.

    There are 100 training and 100 validation examples.

    Args:
        optimizer: The demo's :data:`sgd` or :data:`adam`.

    Returns:
        The Problem: four hidden layers of 500 units with batch norm, full batches, 200 epochs.
    """
    network = partial(mlp, 2, 2, width=500, depth=4, batch_norm=True)
    data = partial(synthetic.sinusoid, label_noise=0.1)
    curve = TestCurve(500, every=5)
    return Problem(
        data,
        network,
        optimizer,
        batch_size=200,
        max_epochs=200,
        test_curve=curve,
        probe_inputs=grid_2d,
    )


def grid_2d(points: int = 81, reach: float = 2.2) -> Tensor:
    """Lay a square grid over a plane, for drawing decision boundaries.

    Args:
        points: Points along each side.
        reach: Largest coordinate.

    Returns:
        Points ``[points * points, 2]``, the first coordinate changing fastest.
    """
    side = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(side, side).flip(1)


def demo_digits() -> Problem:
    """Give real images: scikit-learn's handwritten digits with 20 % label noise.

    That share of the training and validation labels is replaced.

    Returns:
        The Problem: :data:`DIGITS` with these labels, 600 / 300 / 897 images, and a test curve.
    """
    problem = _mlp_problem(partial(tables.digits, label_noise=0.2), 64, 10)
    return replace(problem, test_curve=TestCurve(500, every=5))


def _mlp_problem(data: Callable[..., Splits], inputs: int, classes: int) -> Problem:
    """Three hidden layers of 256 units, Adam at 0.001, 100 epochs in batches of 100."""
    network = partial(mlp, inputs, classes, width=256, depth=3)
    return Problem(data, network, adam, batch_size=100, max_epochs=100)


# The built-in tasks; flooding.entries.TASKS names them.
# A partial without arguments, because the keys and archives of these Runs contain it.
TWO_GAUSSIANS = ishida2020_problem(partial(synthetic.two_gaussians), 10)
SINUSOID = ishida2020_problem(partial(synthetic.sinusoid), 2)
SINUSOID_ND = ishida2020_problem(partial(synthetic.sinusoid_nd), 10)
SPIRAL = ishida2020_problem(partial(synthetic.spiral), 2)
DIGITS = _mlp_problem(tables.digits, 64, 10)
SPAMBASE = _mlp_problem(tables.spambase, 57, 2)
LETTER = _mlp_problem(tables.letter, 16, 26)
HIGGS7K = _mlp_problem(tables.higgs7k, 28, 2)
FASHION_MNIST_5K = Problem(images.fashion_mnist, small_cnn, adam, batch_size=100, max_epochs=30)
TWONORM = _mlp_problem(tables.twonorm, 20, 2)

# The real problems on which searches and methods are compared, in one setting.
REAL = {
    "digits": DIGITS,
    "spambase": SPAMBASE,
    "letter": LETTER,
    "higgs7k": HIGGS7K,
    "fashion-mnist-5k": FASHION_MNIST_5K,
    "twonorm": TWONORM,
}
_SHIFTS = {"digits": partial(shift, pixels=1, size=8), "fashion-mnist-5k": partial(shift, pixels=1)}


def real(name: str, *, augment: bool = False, max_epochs: int | None = None) -> Problem:
    """Give one of the real problems on which searches and methods are compared, in one setting.

    Adam at 0.001 and batches of 100. Tables and digits: three hidden layers of 256 units, 100
    epochs. Fashion-MNIST: 4,000 training images, a small convolutional network, 30 epochs.

    Args:
        name: A name of :data:`REAL`.
        augment: Whether training inputs vary: images move by up to one pixel, vectors get Gaussian
            noise of standard deviation 0.1.
        max_epochs: Epochs, where not those of the setting.

    Returns:
        The Problem, its data not read yet.

    Raises:
        ValueError: If there is no such problem, or ``max_epochs`` is below 1.

    Example:
        >>> problem = real("digits", augment=True, max_epochs=5)
        >>> problem.max_epochs, problem.augment.keywords
        (5, {'pixels': 1, 'size': 8})
    """
    check_name("real problem", name, REAL)
    problem = REAL[name]
    if augment:
        problem = replace(problem, augment=_SHIFTS.get(name, partial(jitter, sd=0.1)))
    return problem if max_epochs is None else replace(problem, max_epochs=max_epochs)


def get_task(name: str, **data: object) -> Problem:
    """Give a built-in task in its published setting.

    Args:
        name: A name of :data:`flooding.entries.TASKS`. The synthetic tasks are in the setting of
            :func:`ishida2020_problem`, the others in that of :func:`real`.
        **data: Arguments of its data, such as ``label_noise``.

    Returns:
        The Problem.

    Raises:
        ValueError: If there is no such task, or it has no such argument.

    Example:
        >>> get_task("spiral", label_noise=0.05).max_epochs, get_task("digits").max_epochs
        (500, 100)
    """
    problem = find_entry("task", name, TASKS).load()
    assert isinstance(problem, Problem)
    if not data:
        return problem
    assert callable(problem.data)
    arguments = [argument for argument in signature(problem.data).parameters if argument != "seed"]
    for argument in data:
        check_name(f"an argument of {name}", argument, arguments)
    make_data = partial(problem.data, **data)
    dimension = data.get("dimension")
    if isinstance(dimension, int):  # the network's inputs change with it
        return ishida2020_problem(make_data, dimension)
    return replace(problem, data=make_data)
