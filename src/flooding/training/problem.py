"""What is trained, without the level."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flooding.criterion import check_reduction, loss_options
from flooding.data import Splits, map_tensors
from flooding.numerics import LOCK, without_contexts
from flooding.training.config import UnhashableConfigError, to_config
from flooding.training.rng import derive_seed, fork_rng

__all__ = ["PeriodicMetric", "Problem", "Score", "TestCurve"]


@dataclass(frozen=True)
class TestCurve:
    """Ask for curves of the test set along the way; more costs more than the training does.

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
    """What a search maximises, or minimises, on the validation split.

    Args:
        function: ``(outputs, targets) -> number``, such as
            :func:`flooding.metrics.balanced_accuracy`.
        greater_is_better: Whether a larger number is the better one.
    """

    function: Callable[[Any, Tensor], Any]
    greater_is_better: bool = True


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained, without the level: callables and a few numbers.

    Callables that are ``functools.partial`` of this library's or torch's functions describe
    themselves, so that their Records can be looked up. Anything else (a lambda, your own class)
    works too, but is trained anew each time unless you give it a ``key``.

    Args:
        data: The splits, or a callable ``(*, seed: int) -> Splits``.
        model: A callable without arguments that builds a module, or a module, of which every Run
            gets a copy. Builders that draw from torch's generator find it seeded by the Run's seed;
            other generators are not touched. Lazy modules get their shapes from the first training
            batch.
        optimizer: A callable ``(parameters) -> Optimizer``. One with the methods ``train`` and
            ``eval``, such as a schedule-free one, is switched to its evaluation weights for all
            that is measured and returned.
        loss: Any torch loss ``(outputs, targets) -> scalar``, the mean over the batch. Targets that
            it ignores count nowhere: not in accuracy, score or calibration, and a batch without any
            other target is skipped. A loss of your own says which by an attribute or argument
            ``ignore_index``; without one it is -100.
        eval_loss: The loss that curves and metrics report, by default ``loss``. Name the plain one
            where ``loss`` has label smoothing or the like.
        batch_size: Examples in a batch, at least 1. The last batch of an epoch may be smaller.
        eval_batch_size: Examples in a batch of an evaluation pass, at least 1.
        max_epochs: Epochs that fix the schedule, at least 1.
        lr_scheduler: A callable ``(optimizer) -> LRScheduler``, stepped after every epoch: lengths
            are in epochs, such as ``partial(OneCycleLR, max_lr=0.1, total_steps=max_epochs)``.
        max_grad_norm: Largest gradient norm, or None. Applied after flooding; the sign commutes
            with it.
        test_curve: Test curves to measure along the way, or None.
        probe_inputs: A callable that gives inputs on which a classifier's probabilities are kept,
            such as a grid for drawing its decision boundary, or None.
        augment: A callable ``x -> x`` for the inputs of every training batch, drawing from torch's
            generator; or None.
        score: What the best epoch and a search are judged by, where that is neither accuracy nor
            the loss. Of outputs ``[n, classes]`` it sees those with a target that counts.
        extra_metrics: A callable ``(model, problem, splits) -> {name: number}`` whose numbers
            become curves of their own, after every epoch and before the first (more rarely as a
            :class:`Watch`); it sees the model in evaluation mode and must leave it as it was.
        key: Name under which Records of a problem that cannot describe itself are looked up,
            together with every part that can. Change it whenever the code behind it changes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> problem = Problem(data=partial(two_gaussians, n_test=100), model=partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> problem.splits(seed=0).train.x.shape
        torch.Size([100, 10])
    """

    data: Splits | Callable[..., Splits]
    model: nn.Module | Callable[[], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer] = functools.partial(torch.optim.Adam, lr=1e-3)
    loss: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy
    eval_loss: Callable[[Any, Tensor], Tensor] | None = None
    batch_size: int = 100
    max_epochs: int = 500
    eval_batch_size: int = 500  # the activations of a 500-unit layer then stay in a 2 MB cache
    lr_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    max_grad_norm: float | None = None
    test_curve: TestCurve | None = None
    probe_inputs: Callable[[], Any] | None = None
    augment: Callable[[Any], Any] | None = None
    score: Score | None = None
    extra_metrics: Callable[[nn.Module, Problem, Splits], Mapping[str, float]] | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        for name, fix in _CALLED.items():
            value = getattr(self, name)
            ready = isinstance(value, {"data": Splits, "model": nn.Module}.get(name, ()))
            if not ready and not callable(value):
                raise ValueError(f"{name} must be {fix}, got {type(value).__name__}.")
        check_reduction(self.loss, "loss")
        check_reduction(self.reported, "eval_loss")
        require_at_least("batch_size", self.batch_size, 1)
        require_at_least("max_epochs", self.max_epochs, 1)
        require_at_least("eval_batch_size", self.eval_batch_size, 1)
        if self.max_grad_norm is not None and not (
            math.isfinite(self.max_grad_norm) and self.max_grad_norm > 0
        ):
            raise ValueError(
                f"max_grad_norm must be a positive norm, got {self.max_grad_norm}. Leave it out for no clipping."
            )

    @property
    def reported(self) -> Callable[[Any, Tensor], Tensor]:
        """The loss that curves and metrics report."""
        return self.loss if self.eval_loss is None else self.eval_loss

    @functools.cached_property
    def ignore_index(self) -> int | None:
        """The target that the loss ignores, or None where it names none."""
        index = loss_options(self.loss).ignore_index
        return (
            loss_options(self.eval_loss).ignore_index
            if index is None and self.eval_loss is not None
            else index
        )

    def target_mask(self, y: Tensor) -> Tensor:
        """Tell which targets count, all but those that the loss ignores.

        Args:
            y: Class labels of any shape.

        Returns:
            A mask of the shape of ``y``. -100, torch's own, is ignored where the loss names nothing
            else.
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
        """Make, or look up, the data of a seed.

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
                config = json.dumps(to_config(self.data), sort_keys=True)
            except (
                UnhashableConfigError
            ):  # a callable of the user's own may read what has changed since
                splits = self.data(seed=seed)
                if not isinstance(splits, Splits):
                    rule = f"data must give {_CALLED['data'].split(' or ')[0]}"
                    raise ValueError(f"{rule}, got {type(splits).__name__}.") from None
                return splits
            if (config, seed) not in _SPLITS:
                while len(_SPLITS) >= _KEPT_SPLITS:
                    del _SPLITS[next(iter(_SPLITS))]
                _SPLITS[config, seed] = self.data(seed=seed)
            return _SPLITS[config, seed]

    def build(self, seed: int) -> nn.Module:
        """Build the model of a seed, leaving torch's generator as it was.

        Args:
            seed: The Run's seed.

        Returns:
            A fresh module in training mode, or a copy of the module given.

        Raises:
            ValueError: If the builder makes no module.
        """
        if isinstance(self.model, nn.Module) and not _is_lazy(self.model):
            return copy.deepcopy(self.model).train()
        with fork_rng(derive_seed(seed, "model")), without_contexts(torch.device("cpu")):
            model = _copy(self.model) if isinstance(self.model, nn.Module) else self.model()
            if not isinstance(model, nn.Module):
                raise ValueError(
                    f"model must build a module, got {type(model).__name__}. Return a torch.nn.Module."
                )
            if _is_lazy(model):
                split = self.splits(seed).train
                model.eval().to(split.y.device)
                with torch.no_grad():
                    model(map_tensors(lambda t: t[: self.batch_size].clone(), split.x))
            return model.train()


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except ValueError as error:  # of torch, for the buffers of lazy batch norm
        raise ValueError(
            f"a module that is built already must allow a copy, but a lazy {type(model).__name__} does not. Give a "
            "function that builds it."
        ) from error


def _is_lazy(model: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class PeriodicMetric:
    """A Problem's ``watch`` that is not asked after every epoch, since what it measures is costly.

    Args:
        function: A callable ``(model, problem, splits) -> {name: number}``.
        every: Epochs between two measurements, at least 1; the first is before training, one more
            after the last.
    """

    function: Callable[[nn.Module, Problem, Splits], Mapping[str, float]]
    every: int = 1

    def __post_init__(self) -> None:
        require_at_least("every", self.every, 1)

    def __call__(self, model: nn.Module, problem: Problem, splits: Splits) -> Mapping[str, float]:
        """Measure."""
        return self.function(model, problem, splits)


_CALLED = {  # what each part of a Problem must be
    "data": "Splits or a callable seed -> Splits (flooding.data.loaders.splits reads datasets and loaders)",
    "model": "a module or a callable that builds one",
    "optimizer": "a callable parameters -> optimizer, such as partial(torch.optim.SGD, lr=0.1)",
    "loss": "a callable (outputs, targets) -> mean loss",
}

_KEPT_SPLITS = 16
_SPLITS: dict[
    tuple[str, int], Splits
] = {}  # by description, so that a look-up does not draw the data again


def require_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
