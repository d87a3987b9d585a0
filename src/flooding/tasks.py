"""The built-in Problems by name."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flooding.data import images, synthetic, tables
from flooding.data.augment import jitter, shift
from flooding.levels import Constant, Controller, Delayed, Heuristic, Plateau, Range, Warmup
from flooding.methods import (
    SAM,
    Flooding,
    GradientPenalty,
    Hinge,
    IFlood,
    Method,
    SoftAD,
    WaveBound,
)
from flooding.models import mlp, small_cnn
from flooding.training.problem import Problem, TestCurve

__all__ = [
    "DATA",
    "FETCHED",
    "REAL",
    "adam",
    "adamw",
    "build_problem",
    "demo_digits",
    "demo_sinusoid",
    "get_task",
    "grid_2d",
    "ishida2020_problem",
    "real",
    "sgd",
]

# The data of the built-in tasks, callables (..., seed) -> Splits.
DATA: dict[str, Callable[..., Any]] = {
    "two-gaussians": synthetic.two_gaussians,
    "sinusoid": synthetic.sinusoid,
    "sinusoid-nd": synthetic.sinusoid_nd,
    "spiral": synthetic.spiral,
    "digits": tables.digits,
}
# Data whose files are fetched at the first use.
FETCHED: dict[str, Callable[..., Any]] = {
    "spambase": tables.spambase,
    "letter": tables.letter,
    "higgs7k": tables.higgs7k,
    "twonorm": tables.twonorm,
    "mnist": images.mnist,
    "fashion-mnist": images.fashion_mnist,
}
# Inputs and classes; the other tasks have a dimension of the user's choice, and two classes.
_SIZES = {
    "sinusoid": (2, 2),
    "spiral": (2, 2),
    "digits": (64, 10),
    "spambase": (57, 2),
    "letter": (16, 26),
    "higgs7k": (28, 2),
    "twonorm": (20, 2),
    "mnist": (784, 10),
    "fashion-mnist": (784, 10),
}

# Fused optimisers take one pass over the parameters: a third of a step's time on the networks here.
adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
adamw = partial(torch.optim.AdamW, lr=1e-3, fused=True)
sgd = partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True)


def ishida2020_problem(data: Callable[..., Any], inputs: int) -> Problem:
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
    """Give the public demo's experiment: Sinusoid with 10 % label noise, 100 training and 100
    validation examples.

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


def demo_digits(epochs: int = 60) -> Problem:
    """Give real images: scikit-learn's handwritten digits, 20 % of training and validation labels
    replaced.

    Args:
        epochs: The max_epochs.

    Returns:
        The Problem: the demo's network on 600 / 300 / 897 images, batches of 100, Adam at 0.001.
    """
    network = partial(mlp, 64, 10, width=500, depth=4, batch_norm=True)
    data = partial(tables.digits, label_noise=0.2)
    return Problem(
        data, network, adam, batch_size=100, max_epochs=epochs, test_curve=TestCurve(500, every=5)
    )


def _plain(name: str, data: Callable[..., Any]) -> Problem:
    """Three hidden layers of 256 units, Adam at 0.001, 100 epochs in batches of 100."""
    inputs, classes = _SIZES[name]
    return Problem(
        data,
        partial(mlp, inputs, classes, width=256, depth=3),
        adam,
        batch_size=100,
        max_epochs=100,
    )


# The real problems on which searches and methods are compared, in one setting.
REAL: dict[str, Problem] = {
    "digits": _plain("digits", tables.digits),
    "spambase": _plain("spambase", tables.spambase),
    "letter": _plain("letter", tables.letter),
    "higgs7k": _plain("higgs7k", tables.higgs7k),
    "fashion-mnist-5k": Problem(
        images.fashion_mnist, small_cnn, adam, batch_size=100, max_epochs=30
    ),
    "twonorm": _plain("twonorm", tables.twonorm),
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
        ValueError: If there is no such problem, or the max_epochs is below 1.

    Example:
        >>> problem = real("digits", augment=True, max_epochs=5)
        >>> problem.max_epochs, problem.augment.keywords
        (5, {'pixels': 1, 'size': 8})
    """
    problem = _named("real problem", name, REAL)
    if augment:
        problem = replace(problem, augment=_SHIFTS.get(name, partial(jitter, sd=0.1)))
    return problem if max_epochs is None else replace(problem, max_epochs=max_epochs)


def get_task(name: str, **data: Any) -> Problem:
    """Give a built-in task in its published setting.

    Args:
        name: ``two-gaussians``, ``sinusoid``, ``sinusoid-nd`` or ``spiral`` in the setting of
            :func:`paper`, or a name of :data:`REAL`.
        **data: Arguments of its data, such as ``label_noise``.

    Returns:
        The Problem.

    Raises:
        ValueError: If there is no such task, or it has no such argument.

    Example:
        >>> named("spiral", label_noise=0.05).max_epochs, named("digits").max_epochs
        (500, 100)
    """
    synthetic_ones = {task: make for task, make in DATA.items() if task not in REAL}
    _named("task", name, {**synthetic_ones, **REAL})
    make: Any = synthetic_ones.get(name) or REAL[name].data
    known = [argument for argument in inspect.signature(make).parameters if argument != "seed"]
    for argument in data:
        _named(f"an argument of {name}", argument, known)
    if name in REAL:
        return replace(REAL[name], data=partial(make, **data)) if data else REAL[name]
    return ishida2020_problem(
        partial(make, **data), data.get("dimension", 2 if name in _SIZES else 10)
    )


def build_problem(
    task: str,
    data: dict[str, Any],
    *,
    model: str = "mlp-bn",
    width: int = 500,
    depth: int = 4,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    momentum: float | None = None,
    weight_decay: float = 0.0,
    dropout: float = 0.0,
    label_smoothing: float = 0.0,
    **more: Any,
) -> Problem:
    """Put a Problem together from names and numbers: the door for the command line.

    Args:
        task: A name of :data:`DATA` or :data:`FETCHED`.
        data: Arguments of the task's data, such as ``label_noise``.
        model: ``mlp``, or ``mlp-bn`` with batch norm.
        width: Units of a hidden layer, at least 1.
        depth: Hidden layers, at least 1.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: Step size, above 0.
        momentum: Momentum of sgd in [0, 1); the other optimisers have none.
        weight_decay: L2 penalty, at least 0; decoupled for adamw.
        dropout: Share of hidden units dropped in training, in [0, 1).
        label_smoothing: Share of each training label spread over all classes, in [0, 1); curves and
            finals report the plain loss.
        **more: Fields of :class:`flooding.Problem`.

    Returns:
        The Problem, its data not made yet.

    Raises:
        ValueError: If a name is unknown, a number out of range, or an argument is not one of the
            task's.
    """
    make = _named("task", task, DATA | FETCHED)
    known = [name for name in inspect.signature(make).parameters if name != "seed"]
    for name in data:
        _named(f"an argument of {task}", name, known)
    normed = _named("model", model, {"mlp": False, "mlp-bn": True})
    rule = _named(
        "optimizer",
        optimizer,
        {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW},
    )
    _within("width", width, 1)
    _within("depth", depth, 1)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be finite and above 0, got {learning_rate}.")
    _within("weight_decay", weight_decay, 0)
    _within("dropout", dropout, 0, 1)
    _within("label_smoothing", label_smoothing, 0, 1)
    numbers: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if momentum is not None:
        if optimizer != "sgd":
            raise ValueError(
                f"momentum belongs to sgd, got {momentum} with {optimizer}. Leave one of them out."
            )
        _within("momentum", momentum, 0, 1)
        numbers["momentum"] = momentum
    inputs, classes = _SIZES.get(task, (data.get("dimension", 10), 2))
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(make).parameters.items()
    }
    examples = [(defaults | data).get(name, 0) for name in ("n_train", "n_val", "n_test")]
    batches = [min(more.get(name, size), sum(examples)) for name, size in _BATCHES.items()]
    _check_memory(examples, inputs, width, depth, max(batches))
    network = partial(
        mlp, inputs, classes, width=width, depth=depth, batch_norm=normed, dropout=dropout
    )
    if label_smoothing:
        more |= {
            "loss": partial(cross_entropy, label_smoothing=label_smoothing),
            "eval_loss": cross_entropy,
        }
    return Problem(partial(make, **data), network, partial(rule, **numbers, fused=True), **more)


# What the methods and schedules of the command line are made of, and which of its numbers each
# takes.
METHODS: dict[str, Callable[..., Method]] = {
    "flooding": Flooding,
    "iflood": IFlood,
    "adaflood": IFlood,
    "softad": SoftAD,
    "hinge": Hinge,
    "wavebound": WaveBound,
    "sam": SAM,
    "gradient-penalty": GradientPenalty,
}
SCHEDULES: dict[str, Callable[..., Controller]] = {
    "constant": Constant,
    "warmup": Warmup,
    "delayed": Delayed,
    "heuristic": Heuristic,
    "plateau": Plateau,
    "range": Range,
}


def choose_method(name: str, numbers: dict[str, float]) -> Method:
    """Put a method together from its name and numbers.

    Args:
        name: A name of :data:`METHODS`.
        numbers: Arguments of the method.

    Returns:
        The method.
    """
    return _called("method", name, METHODS, numbers)


def choose_schedule(name: str, numbers: dict[str, float]) -> Controller:
    """Put a level controller together from its name and numbers.

    Args:
        name: A name of :data:`SCHEDULES`.
        numbers: Arguments of the controller; "delayed" and "heuristic" start at a batch loss of
            1e-4 unless told else.

    Returns:
        The controller.
    """
    if name in {"delayed", "heuristic"} and not numbers.keys() & {"until_loss", "until_accuracy"}:
        numbers = {**numbers, "until_loss": 1e-4}
    return _called("schedule", name, SCHEDULES, numbers)


def _called(
    what: str, name: str, known: dict[str, Callable[..., Any]], numbers: dict[str, float]
) -> Any:
    make = _named(what, name, known)
    taken = inspect.signature(make).parameters
    for number in numbers:
        _named(f"an argument of {what} {name}", number, taken)
    missing = [
        n for n, p in taken.items() if p.default is inspect.Parameter.empty and n not in numbers
    ]
    if missing:
        raise ValueError(
            f"{what} {name} needs {', '.join(missing)}, got {', '.join(numbers) or 'nothing'}."
        )
    return make(**numbers)


def _named(what: str, name: str, known: Iterable[str]) -> Any:
    """Look a name up, or say which there are."""
    if name not in (names := list(known)):
        near = difflib.get_close_matches(name, names, 1)
        hint = f"Did you mean {near[0]}?" if near else "Choose one of these."
        raise ValueError(
            f"{what} must be one of {', '.join(names) or 'none at all'}; got {name}. {hint}"
        )
    return known[name] if isinstance(known, dict) else name


_BATCHES = {"batch_size": 100, "eval_batch_size": 500}


def _check_memory(examples: list[int], inputs: int, width: int, depth: int, batch: int) -> None:
    """Refuse data and networks that cannot fit, before the system ends the program for it."""
    parameters = (inputs + 1) * width + (depth - 1) * width**2
    needed = {
        "the data": 16 * sum(examples) * inputs,  # drawn as float64, kept as float32
        # Weights, gradients, Adam's two means and three copies; a layer's outputs and their
        # gradients.
        "the network": 28 * parameters + 12 * batch * width * depth,
    }
    for what, size in needed.items():
        if size > (memory := _memory()):
            raise ValueError(
                f"{what} must fit into {memory / 2**30:.0f} GiB of memory, got {sum(examples):,} examples, {inputs:,} "
                f"inputs, width {width:,}, depth {depth:,} and batches of {batch:,}: about {size // 2**30:,} GiB. "
                "Choose smaller numbers."
            )


def _memory() -> float:
    """Bytes of this machine, or of the container it is."""
    limits = [math.inf]
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def _within(name: str, value: float, least: float, below: float = math.inf) -> None:
    if not least <= value < below:
        bound = (
            f"lie in [{least:g}, {below:g})"
            if below < math.inf
            else f"be finite and at least {least:g}"
        )
        raise ValueError(f"{name} must {bound}, got {value}.")
