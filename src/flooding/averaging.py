"""Averaged weights: a running average of the weights along a training, beside the network itself.

With mini-batches the weights of a flooded network walk around at the level, and the last epoch is
one noisy point of that walk. The average of the walk is steadier. A :class:`flooding.Problem` with
``averaging=EMA()`` or ``averaging=Mean()`` keeps such an average while it trains.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

__all__ = ["EMA", "Averaging", "Mean", "Monitor", "WeightAverage"]

# Which network decides: the one of the last epoch, or the average.
Monitor: TypeAlias = Literal["average", "network"]


@dataclass(frozen=True)
class Averaging(ABC):
    """How the weights after the steps of a training are averaged.

    Until the average begins it is the network itself.

    Args:
        monitor: Whose validation results a controller of the level sees and a search judges by:
            those of the average, or those of the network. The best epoch of each is its own.

    Raises:
        ValueError: If ``monitor`` is neither.
    """

    monitor: Monitor = field(default="average", kw_only=True)

    def __post_init__(self) -> None:
        if self.monitor not in {"average", "network"}:
            raise ValueError(
                f"monitor must be average or network, got {self.monitor!r}. Name the network that "
                "you will use."
            )

    @abstractmethod
    def begins(self, epoch: int, is_flooded: Callable[[], bool]) -> bool:
        """Tell whether the average begins with the weights after a step.

        Args:
            epoch: Epoch of the step, from 1.
            is_flooded: Tells whether a loss of the step lay below its level. A call may wait for
                the device.

        Returns:
            Whether it begins. It is asked no more once it has begun.
        """

    @abstractmethod
    def combine(self, averaged: list[Tensor], current: list[Tensor], num_averaged: int) -> None:
        """Put the current weights into the average, in place.

        Args:
            averaged: The average, all of one dtype and device.
            current: The weights of the network, in the same order.
            num_averaged: How many weights the average holds, at least 1.
        """

    def check_epochs(self, max_epochs: int) -> None:  # ruff: ignore[empty-method-without-abstract-decorator]
        """Refuse a training that is too short for the average to begin.

        Args:
            max_epochs: Epochs of a full training.
        """


@dataclass(frozen=True)
class EMA(Averaging):
    """Exponential moving average (EMA) of the weights after every step.

    The average begins with the weights after the first step, ``a_1 = w_1``. With n weights in it,
    ``a_(n+1) = d_n * a_n + (1 - d_n) * w_(n+1)``.

    Without warm-up ``d_n = decay``, and the average remembers about ``1 / (1 - decay)`` steps. With
    it ``d_n = min(decay, (1 + n) / (10 + n))``, so that the first steps are forgotten. ``decay=0``
    without warm-up is the network itself.

    Args:
        decay: Weight of the old average, in [0, 1).
        warmup: Whether the decay rises from 2/11 to its value.
        monitor: See :class:`Averaging`.

    Raises:
        TypeError: If ``decay`` is no number, or ``warmup`` is neither true nor false.
        ValueError: If ``decay`` lies outside [0, 1).

    Example:
        >>> import torch
        >>> averaged = [torch.tensor([0.0])]
        >>> EMA(decay=0.75, warmup=False).combine(averaged, [torch.tensor([1.0])], 1)
        >>> averaged
        [tensor([0.2500])]
        >>> [round(EMA(0.99).decay_after(n), 2) for n in (1, 90, 10_000)]
        [0.18, 0.91, 0.99]

    References:
        Polyak & Juditsky, SIAM J. Control Optim. 30, 1992. The warm-up is that of TensorFlow's
        ``ExponentialMovingAverage``.
    """

    decay: float = 0.99
    warmup: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.decay, Real) or isinstance(self.decay, bool):
            raise TypeError(f"decay must be a number, got {self.decay!r}. Try 0.99.")
        # So that 0 and 0.0 give a Run the same key.
        object.__setattr__(self, "decay", float(self.decay))
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}. Try 0.99.")
        if not isinstance(self.warmup, bool):
            raise TypeError(
                f"warmup must be True or False, got {self.warmup!r}. True suits most trainings."
            )

    def decay_after(self, num_averaged: int) -> float:
        """Give the weight of the old average in the next update.

        Args:
            num_averaged: How many weights the average holds.

        Returns:
            A number in [0, 1).
        """
        if not self.warmup:
            return self.decay
        return min(self.decay, (1 + num_averaged) / (10 + num_averaged))

    def begins(self, epoch: int, is_flooded: Callable[[], bool]) -> bool:  # ruff: ignore[unused-method-argument]
        """Begin with the first step."""
        return True

    def combine(self, averaged: list[Tensor], current: list[Tensor], num_averaged: int) -> None:
        """Move the average towards the current weights, by torch's own function."""
        update = get_ema_multi_avg_fn(self.decay_after(num_averaged))
        update(averaged, current, num_averaged)


@dataclass(frozen=True)
class Mean(Averaging):
    """Mean of the weights after every step from some step on: stochastic weight averaging (SWA).

    With n weights in it, ``a_(n+1) = a_n + (w_(n+1) - a_n) / (n + 1)``. A training that floods no
    step has no first flooded step: its average then is the network itself.

    Args:
        start_epoch: Epoch with whose first step the mean begins, at least 1; None begins with the
            first step of which a loss lies strictly below its level. Until then that waits for the
            device once a step.
        monitor: See :class:`Averaging`.

    Raises:
        ValueError: If ``start_epoch`` is no whole number of at least 1.

    Example:
        >>> import torch
        >>> averaged = [torch.tensor([1.0])]
        >>> for n, weight in enumerate((2.0, 6.0), start=1):
        ...     Mean().combine(averaged, [torch.tensor([weight])], n)
        >>> averaged
        [tensor([3.])]

    References:
        Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*, UAI
        2018; it averages once an epoch, at a learning rate of its own.
    """

    start_epoch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        epoch = self.start_epoch
        if epoch is None:
            return
        is_whole = isinstance(epoch, (int, np.integer)) and not isinstance(epoch, bool)
        if not is_whole or epoch < 1:
            raise ValueError(
                f"start_epoch must be a whole number of at least 1, got {epoch!r}. Leave it out to "
                "begin with the first flooded step."
            )
        object.__setattr__(self, "start_epoch", int(epoch))

    def begins(self, epoch: int, is_flooded: Callable[[], bool]) -> bool:
        """Begin with the start epoch, or with the first flooded step."""
        if self.start_epoch is None:
            return is_flooded()
        return epoch >= self.start_epoch

    def combine(self, averaged: list[Tensor], current: list[Tensor], num_averaged: int) -> None:
        """Add the current weights to the mean, by torch's own function."""
        get_swa_multi_avg_fn()(averaged, current, num_averaged)

    def check_epochs(self, max_epochs: int) -> None:
        """Refuse a start after the last epoch.

        Args:
            max_epochs: Epochs of a full training.

        Raises:
            ValueError: If the mean would never begin.
        """
        if self.start_epoch is not None and self.start_epoch > max_epochs:
            raise ValueError(
                f"start_epoch must lie in 1 to max_epochs, {max_epochs}, got {self.start_epoch}. "
                "Begin earlier, or leave it out."
            )


class WeightAverage(AveragedModel):
    """A copy of a model whose weights are a running average of the model's.

    Parameters are averaged. Buffers are copies of the model's own; those of batch norm are renewed
    by :meth:`renew_batch_norm`, since averaged weights have other activations. What torch's class
    saves in ``state_dict`` is all that changes.

    The average has the dtype of the weights. In fewer than 32 bits small moves are lost in rounding
    and it stalls, of which a warning tells.

    Args:
        model: The model that trains; it is deep-copied.
        averaging: How to average.

    Raises:
        TypeError: If ``averaging`` is no :class:`Averaging`.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, Mean())
        >>> for weight in (1.0, 2.0, 6.0):
        ...     _ = nn.init.constant_(model.weight, weight)  # stands for a step of the optimiser
        ...     average.update_parameters(model)
        >>> average.module.weight.item(), model.weight.item()
        (3.0, 6.0)
    """

    def __init__(self, model: nn.Module, averaging: Averaging) -> None:
        if not isinstance(averaging, Averaging):
            got = averaging.__name__ if isinstance(averaging, type) else repr(averaging)
            raise TypeError(f"averaging must be an EMA or a Mean, got {got}. Write EMA().")
        _warn_of_low_precision(model)
        # torch names the type of a list of weights "list or tuple", and always gives a list.
        super().__init__(model, multi_avg_fn=cast("Any", self._combine))
        self.averaging = averaging

    @property
    def has_begun(self) -> bool:
        """Whether any weights were averaged."""
        return int(self.n_averaged) > 0

    def _combine(self, averaged: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
        # The count that torch gives lies on the device, and reading it would wait for the device;
        # this one does not.
        self.averaging.combine(averaged, current, int(self.n_averaged))

    def renew_batch_norm(self, inputs: Iterable[object]) -> None:
        """Compute the statistics of batch norm anew: their means over batches.

        The module passes the batches in training mode, so that its dropout draws from torch's
        generators. Layers that stay in evaluation mode then, as frozen ones do, keep the statistics
        of the model. Without others nothing happens. An error leaves all statistics as they were.

        Args:
            inputs: Batches of inputs of the model, in the order in which to pass them.

        Raises:
            ValueError: If there is no batch.
        """
        was_training = self.module.training
        norms = [m for m in self.module.modules() if isinstance(m, _BatchNorm)]
        self.module.train()
        frozen = [norm for norm in norms if not norm.training]
        self.module.train(was_training)
        if len(frozen) == len(norms):
            return
        saved = {norm: [b.clone() for b in norm.buffers(recurse=False)] for norm in norms}
        momenta = {norm: norm.momentum for norm in norms}
        num_batches = 0

        def restore(layers: Iterable[_BatchNorm]) -> None:
            for layer in layers:
                for buffer, old in zip(layer.buffers(recurse=False), saved[layer], strict=True):
                    buffer.copy_(old)

        def batches() -> Iterator[list[object]]:
            nonlocal num_batches
            restore(frozen)  # torch has reset the statistics of all layers by now
            for x in inputs:
                num_batches += 1
                yield [x]  # torch takes the first item of a list or a tuple for the inputs

        try:
            update_bn(batches(), self.module)
            if num_batches == 0:
                raise ValueError(
                    "inputs must hold a batch at least, got none: statistics of batch norm cannot "
                    "be computed from nothing. A generator can be used only once."
                )
        except BaseException as error:
            restore(norms)
            error.add_note(
                "renew_batch_norm() takes batches of inputs alone: of a loader of pairs, "
                "(x for x, y in loader)."
            )
            raise
        finally:
            for norm in norms:
                norm.momentum = momenta[norm]
            self.module.train(was_training)


def _warn_of_low_precision(model: nn.Module) -> None:
    """Warn of weights in which an average loses small moves."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize < 4:
            warnings.warn(
                f"the average of {name} has its dtype, {parameter.dtype}, in which small moves are "
                "lost in rounding: the average stalls. Train weights of float32, and compute in "
                "mixed precision by torch.autocast.",
                UserWarning,
                stacklevel=3,
            )
            return
