"""A problem: the data, the model, the loss and the optimizer of a training, without the level."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler

from flooding.averaging import Averaging
from flooding.criterion import check_reduction
from flooding.data import Splits, map_tensors
from flooding.methods.base import OptimizerFactory
from flooding.numerics import LOCK, without_contexts
from flooding.text import join_parts
from flooding.torch_losses import Loss, loss_options
from flooding.training.config import UnhashableConfigError, changed_fields, to_config
from flooding.training.rng import derive_seed, fork_rng

__all__ = ["ExtraMetrics", "PeriodicMetric", "Problem", "Score", "TestCurve", "require_at_least"]


@dataclass(frozen=True)
class TestCurve:
    """Curves of the test split along the way; many examples cost more than the training itself.

    Args:
        examples: How many of the first test examples to use, at least 1.
        every: Epochs between two evaluations, at least 1.

    Raises:
        ValueError: If either is below 1.
    """

    __test__ = False  # not a pytest class

    examples: int = 500
    every: int = 5

    def __post_init__(self) -> None:
        for name in ("examples", "every"):
            require_at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Score:
    """The number that a search maximises, or minimises, on the validation split.

    Args:
        function: ``(outputs, targets) -> number``, such as
            :func:`flooding.metrics.balanced_accuracy`.
        greater_is_better: Whether a larger number is the better one.
    """

    function: Callable[[Tensor, Tensor], Tensor | float]
    greater_is_better: bool = True


# A callable (model, problem, splits) -> {name: number}.
ExtraMetrics: TypeAlias = "Callable[[nn.Module, Problem, Splits], Mapping[str, float]]"


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained, without the level: callables and a few numbers.

    A ``functools.partial`` of this library's or torch's functions can be hashed, so Records of such
    a Problem are looked up. Anything else (a lambda, your own class) works too, but is trained
    again each time unless you give the Problem a ``key``.

    Args:
        data: The splits, or a callable ``(*, seed: int) -> Splits``.
        model: A callable without arguments that builds a module, or a module, of which every Run
            gets a copy. torch's generator is seeded by the Run's seed while it builds; other
            generators are not touched. Lazy modules get their shapes from the first training batch.
        optimizer: A callable ``(parameters) -> Optimizer``. One with the methods ``train`` and
            ``eval``, such as a schedule-free one, is switched to its evaluation weights for all
            that is measured and returned.
        loss: Any torch loss ``(outputs, targets) -> scalar``, the mean over the batch. Targets that
            it ignores count nowhere: not in accuracy, score or calibration, and a batch without any
            other target is skipped. A loss of your own names the ignored target by an attribute or
            argument ``ignore_index``; without one it is -100.
        eval_loss: The loss that curves and metrics report, by default ``loss``. Name the plain one
            where ``loss`` has label smoothing or the like.
        batch_size: Examples in a batch, at least 1. The last batch of an epoch may be smaller.
        max_epochs: Epochs of a full training, at least 1; a Run may stop earlier.
        eval_batch_size: Examples in a batch of an evaluation pass, at least 1.
        lr_scheduler: A callable ``(optimizer) -> LRScheduler``, stepped after every epoch: lengths
            are in epochs, such as ``partial(OneCycleLR, max_lr=0.1, total_steps=max_epochs)``.
        max_grad_norm: Largest gradient norm, or None. Clipping follows flooding; the sign commutes
            with it.
        test_curve: Test curves to measure along the way, or None.
        probe_inputs: A callable that gives inputs on which a classifier's probabilities are
            recorded, such as a grid for drawing its decision boundary, or None.
        augment: A callable ``x -> x`` for the inputs of every training batch, drawing from torch's
            generator; or None.
        score: What selects the best epoch and the level, where that is neither accuracy nor the
            loss. Its arguments are outputs ``[n, classes]`` and targets that count.
        extra_metrics: A callable ``(model, problem, splits) -> {name: number}`` whose numbers
            become curves of their own, after every epoch and before the first (less often as a
            :class:`PeriodicMetric`). The model is in evaluation mode and must be left as it was.
        averaging: A running average of the weights to keep beside the network and to measure like
            it, such as :class:`flooding.averaging.EMA`; or None. The network trains as it would
            without one, unless a controller watches the average.
        key: Name under which Records of a problem with code of your own are looked up, together
            with every part that can be hashed. Change it whenever that code changes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> data = partial(two_gaussians, n_test=100)
        >>> problem = Problem(data, model=partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> problem.splits(seed=0).train.x.shape
        torch.Size([100, 10])
    """

    data: Splits | Callable[..., Splits]
    model: nn.Module | Callable[[], nn.Module]
    optimizer: OptimizerFactory = functools.partial(torch.optim.Adam, lr=1e-3)
    loss: Loss = nn.functional.cross_entropy
    eval_loss: Loss | None = None
    batch_size: int = 100
    max_epochs: int = 500
    eval_batch_size: int = 500  # the activations of a 500-unit layer then stay in a 2 MB cache
    lr_scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None
    max_grad_norm: float | None = None
    test_curve: TestCurve | None = None
    probe_inputs: Callable[[], object] | None = None
    augment: Callable[..., object] | None = None
    score: Score | None = None
    extra_metrics: ExtraMetrics | None = None
    averaging: Averaging | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        for name, (ready_type, rule) in _PARTS.items():
            part = getattr(self, name)
            if not isinstance(part, ready_type) and not callable(part):
                raise ValueError(f"{name} must be {rule}, got {type(part).__name__}.")
        check_reduction(self.loss, "loss")
        check_reduction(self.reported, "eval_loss")
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("max_epochs", self.max_epochs, 1)
        require_at_least("eval_batch_size", self.eval_batch_size, 1)
        norm = self.max_grad_norm
        if norm is not None and not (math.isfinite(norm) and norm > 0):
            raise ValueError(
                f"max_grad_norm must be a positive norm, got {norm}. Leave it out for no clipping."
            )
        if self.averaging is not None:
            _check_averaging(self.averaging, self.max_epochs)

    def __repr__(self) -> str:
        # Parts that have their default say nothing.
        parts = changed_fields(self) | {"max_epochs": self.max_epochs}
        return f"Problem({join_parts(parts)})"

    @property
    def reported(self) -> Loss:
        """The loss that curves and metrics report."""
        return self.loss if self.eval_loss is None else self.eval_loss

    @functools.cached_property
    def ignore_index(self) -> int | None:
        """The target that the loss ignores, or None where it names none."""
        index = loss_options(self.loss).ignore_index
        if index is None and self.eval_loss is not None:
            return loss_options(self.eval_loss).ignore_index
        return index

    def target_mask(self, y: Tensor) -> Tensor:
        """Mark the targets that count: all but those that the loss ignores.

        Args:
            y: Class labels of any shape.

        Returns:
            A mask of the shape of ``y``. Where the loss names no target, torch's -100 is ignored.
        """
        return y.long() != (-100 if self.ignore_index is None else self.ignore_index)

    def classes(self, seed: int) -> int | None:
        """Count the classes of a seed's data, without the target that the loss ignores.

        Args:
            seed: The Run's seed.

        Returns:
            The number of classes, or None for real-valued targets.
        """
        return self.splits(seed).count_classes(self.ignore_index)

    def splits(self, seed: int) -> Splits:
        """Make the data of a seed, or reuse it.

        Args:
            seed: The Run's seed.

        Returns:
            The splits; the same object for the same callable and seed while it is among the last
            few used.

        Raises:
            ValueError: If a callable of the user's own makes something else.
        """
        if isinstance(self.data, Splits):
            return self.data
        with LOCK, without_contexts(torch.device("cpu")):
            try:
                # The configuration is the key: equal callables give equal data.
                config = json.dumps(to_config(self.data), sort_keys=True)
            except UnhashableConfigError:
                # A callable of the user's own may read what has changed since: it is called again.
                splits = self.data(seed=seed)
                if not isinstance(splits, Splits):
                    raise ValueError(
                        f"data must give Splits, got {type(splits).__name__}."
                    ) from None
                return splits
            if (config, seed) not in _SPLITS:
                # The oldest goes first: dictionaries keep the order of insertion.
                while len(_SPLITS) >= _MAX_SPLITS:
                    del _SPLITS[next(iter(_SPLITS))]
                _SPLITS[config, seed] = self.data(seed=seed)
            return _SPLITS[config, seed]

    def build(self, seed: int) -> nn.Module:
        """Build the model of a seed, leaving torch's generator as it was.

        Args:
            seed: The Run's seed.

        Returns:
            A fresh module in training mode, or a copy of the problem's module.

        Raises:
            ValueError: If the builder makes no module.
        """
        if isinstance(self.model, nn.Module) and not _is_lazy(self.model):
            return copy.deepcopy(self.model).train()
        with fork_rng(derive_seed(seed, "model")), without_contexts(torch.device("cpu")):
            model = _copy(self.model) if isinstance(self.model, nn.Module) else self.model()
            if not isinstance(model, nn.Module):
                raise ValueError(
                    f"model must build a module, got {type(model).__name__}. Return a "
                    "torch.nn.Module."
                )
            # A lazy module gets its shapes, and draws its weights, on the first batch.
            if _is_lazy(model):
                split = self.splits(seed).train
                model.eval().to(split.y.device)
                with torch.no_grad():
                    model(map_tensors(lambda t: t[: self.batch_size].clone(), split.x))
            return model.train()


def _check_averaging(averaging: object, max_epochs: int) -> None:
    if not isinstance(averaging, Averaging):
        raise ValueError(
            "averaging must be an Averaging, such as flooding.averaging.EMA(), or None, got "
            f"{averaging!r}."
        )
    averaging.check_epochs(max_epochs)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except ValueError as error:  # of torch, for the buffers of lazy batch norm
        raise ValueError(
            "a module that is built already must allow a copy, but a lazy "
            f"{type(model).__name__} does not. Give a function that builds it."
        ) from error


def _is_lazy(model: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class PeriodicMetric:
    """A Problem's ``extra_metrics`` that are too costly to measure after every epoch.

    Args:
        function: A callable ``(model, problem, splits) -> {name: number}``.
        every: Epochs between two measurements, at least 1; the first is before training, one more
            after the last.
    """

    function: ExtraMetrics
    every: int = 1

    def __post_init__(self) -> None:
        require_at_least("every", self.every, 1)

    def __call__(self, model: nn.Module, problem: Problem, splits: Splits) -> Mapping[str, float]:
        """Measure."""
        return self.function(model, problem, splits)


# The parts of a Problem that are callables: what they may be instead, and the rule in words.
_PARTS: dict[str, tuple[type | tuple[()], str]] = {
    "data": (
        Splits,
        "Splits or a callable seed -> Splits (flooding.data.loaders.splits reads datasets and "
        "loaders)",
    ),
    "model": (nn.Module, "a module or a callable that builds one"),
    "optimizer": (
        (),
        "a callable parameters -> optimizer, such as partial(torch.optim.SGD, lr=0.1)",
    ),
    "loss": ((), "a callable (outputs, targets) -> mean loss"),
}

# Splits by the configuration of their callable and seed, so that a look-up does not make the data
# again.
_SPLITS: dict[tuple[str, int], Splits] = {}
_MAX_SPLITS = 16


def require_at_least(name: str, value: object, least: int) -> None:
    """Refuse a value that is no whole number of at least ``least``.

    Args:
        name: Name of the argument.
        value: Its value.
        least: The smallest allowed.

    Raises:
        ValueError: If the value is another.
    """
    is_bool = isinstance(value, bool)  # which is an int to Python
    if is_bool or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
