"""Flooding in skorch: ``class C(FloodNetMixin, NeuralNetClassifier)`` takes ``flood_level=``.

The criterion stays the user's own, so ``predict_proba`` and everything else that skorch concludes
from it stay right. A :class:`flooding.FloodStep` on the optimiser floods, which is exact also where
a subclass accumulates gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flooding.integrations import count_examples, require_framework
from flooding.integrations.host_level import check_metrics, is_controller
from flooding.levels import LevelTable
from flooding.step import FloodStep

with require_framework("skorch"):
    from skorch import NeuralNet
    from skorch.callbacks import BatchScoring, Callback, EpochScoring, PassthroughScoring

if TYPE_CHECKING:
    from flooding.levels import Controller

    # What a user's class inherits beside the mixin.
    _Base = NeuralNet
else:
    _Base = object

__all__ = ["FloodNetMixin"]

_SCORINGS = (BatchScoring, EpochScoring, PassthroughScoring)
# Fields of a controller's StepInfo, and the names that skorch's histories give to the metrics.
_METRICS = {
    "train_accuracy": ("train_acc", "train_accuracy"),
    "val_loss": ("valid_loss",),
    "val_accuracy": ("valid_acc", "valid_accuracy"),
}
_FIX = (
    "In skorch: train_split=ValidSplit(5), and for the training accuracy the callback "
    "EpochScoring('accuracy', on_train=True, name='train_acc')."
)


class FloodNetMixin(_Base):
    """Add the parameter ``flood_level`` to a net of skorch.

    ``flood_level`` is a parameter like any other: for ``set_params``, ``clone``, pipelines and
    searches. The training minimises ``|L - b| + b`` for the mean loss ``L`` of each optimiser step;
    validation and prediction stay plain. With None the net is the plain one, bit for bit.

    While a level is set the history has three columns more: ``flooded_loss``, the mean flooded loss
    of the epoch's steps; ``flooded_fraction``, the share of steps below the level; and
    ``flood_level``. ``train_loss`` is the raw loss. ``flood_step_`` is the FloodStep.

    A controller is updated after every step and, with the validation metrics in the history, after
    every epoch. ``fit`` starts it anew, ``partial_fit`` and ``warm_start`` go on. ``pickle`` keeps
    its state; with ``save_params`` and ``Checkpoint`` give the file ``f_flood_step=``, too.

    Give the mixin directly before the class of skorch: what a subclass does to the loss, such as a
    division under gradient accumulation, must come after the loss was watched. For levels per class
    the criterion must return a loss per example: see docs/frameworks/skorch.md.

    Args:
        *args: Arguments of the net.
        flood_level: Level in the unit of the loss: a number, a controller, or None.
        **kwargs: Further arguments of the net.

    Raises:
        TypeError: If the mixin stands where it cannot see the loss of a micro-batch.

    Example:
        >>> import numpy as np, torch
        >>> from skorch import NeuralNetClassifier
        >>> class FloodClassifier(FloodNetMixin, NeuralNetClassifier):
        ...     pass
        >>> net = FloodClassifier(
        ...     torch.nn.Linear, module__in_features=2, module__out_features=2, verbose=0,
        ...     criterion=torch.nn.CrossEntropyLoss, max_epochs=1, flood_level=9.0, train_split=None
        ... )
        >>> net = net.fit(np.ones((8, 2), "float32"), np.ones(8, "int64"))
        >>> net.history[-1, "flooded_fraction"], net.history[-1, "flood_level"]
        (1.0, 9.0)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    flood_step_: FloodStep | None = None
    # The level that `flood_step_` has: a user may have set another one since.
    flood_step_level_: float | Controller | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        classes = cls.__mro__
        for other in classes[classes.index(FloodNetMixin) + 1 :]:
            is_own = not other.__module__.startswith(("skorch.", "sklearn."))
            if is_own and {"get_loss", "train_step"} <= set(vars(other)):
                raise TypeError(
                    f"FloodNetMixin must watch the loss before {other.__name__} changes it, as "
                    "gradient accumulation does. Write "
                    f"class {cls.__name__}({other.__name__}, FloodNetMixin, NeuralNet...)."
                )

    def __init__(
        self, *args: Any, flood_level: float | Controller | None = None, **kwargs: Any
    ) -> None:
        self.flood_level = flood_level
        super().__init__(*args, **kwargs)

    # What skorch calls.

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimiser, and watch it where a level is set.

        Args:
            *args: Arguments of skorch's own method.
            **kwargs: Further arguments of skorch's own method.

        Returns:
            The net.
        """
        result = super().initialize_optimizer(*args, **kwargs)
        self.flood_step_ = None
        self._follow_level()
        return result

    def initialize_callbacks(self) -> Any:
        """Build the callbacks, and the one that logs and shows a controller the epochs.

        Returns:
            The net.
        """
        result = super().initialize_callbacks()
        # After the metrics of an epoch, and before a checkpoint of the user's.
        index = 0
        for i, (_, callback) in enumerate(self.callbacks_):
            if isinstance(callback, _SCORINGS):
                index = i + 1
        self.callbacks_.insert(index, ("flood_log", _FloodLog()))
        return result

    def on_train_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Check what flooding depends on before the first step.

        Args:
            net: The net.
            *args: Arguments of skorch's own method.
            **kwargs: Further arguments of skorch's own method.
        """
        super().on_train_begin(net, *args, **kwargs)
        self._follow_level()
        if self.flood_step_ is None:
            return
        callbacks = [callback for _, callback in self.callbacks_]
        _warn_of_monitors(callbacks)
        if is_controller(self.flood_level):
            self._check_controller(callbacks)

    def on_batch_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Follow a level that was set since the last batch.

        Args:
            net: The net.
            *args: Arguments of skorch's own method.
            **kwargs: Further arguments of skorch's own method.
        """
        super().on_batch_begin(net, *args, **kwargs)
        # Before the step begins: in the middle of it a FloodStep cannot be taken off.
        self._follow_level()

    def get_loss(self, y_pred: Any, y_true: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch, and watch it in training.

        Args:
            y_pred: Outputs.
            y_true: Targets.
            *args: Further arguments of skorch's own method: inputs and the mode.
            **kwargs: The same by name.

        Returns:
            The raw loss.

        Raises:
            ValueError: If a level is set and the loss is not one number.
        """
        loss = super().get_loss(y_pred, y_true, *args, **kwargs)
        is_training = kwargs.get("training", len(args) > 1 and args[1])
        if not is_training or self.flood_step_ is None:
            return loss
        if loss.ndim:
            raise ValueError(
                f"flood_level needs the mean loss of the batch, got shape {tuple(loss.shape)}. Use "
                "criterion__reduction='mean'."
            )
        return self.flood_step_(loss)

    def trim_for_prediction(self) -> None:
        """Remove what only training needs."""
        super().trim_for_prediction()
        self.flood_step_ = None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        # A FloodStep belongs to its optimiser: only what it knows is saved.
        flood_step = state.pop("flood_step_", None)
        if flood_step is not None:
            tensors = flood_step.state_dict()
            state["flood_state_"] = {name: tensor.cpu() for name, tensor in tensors.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        flood_state = state.pop("flood_state_", None)
        super().__setstate__(state)
        if flood_state is not None:
            self.flood_step_ = FloodStep(self.optimizer_, self.flood_level)
            self.flood_step_.load_state_dict(flood_state)
            self.flood_step_level_ = self.flood_level

    # Inside.

    def _follow_level(self) -> None:
        """Bring the FloodStep to the level of the parameter ``flood_level``."""
        level = self.flood_level
        if self.flood_step_ is not None and level is self.flood_step_level_:
            return
        if level is None:
            if self.flood_step_ is not None:
                self.flood_step_.remove()
            self.flood_step_ = None
        elif self.flood_step_ is None:
            self._check_level(level)
            self.flood_step_ = FloodStep(self.optimizer_, level)
        else:
            self._check_level(level)
            self.flood_step_.level = level
        self.flood_step_level_ = level

    def _check_level(self, level: object) -> None:
        """Refuse what the optimiser's step cannot be flooded by."""
        if isinstance(level, LevelTable):
            raise TypeError(
                f"flood_level must be a number, a controller or None, got {type(level).__name__}. "
                "Levels of classes and examples belong into the criterion: "
                "criterion=Flood, criterion__level=..., criterion__method=IFlood()."
            )
        if len(self._optimizers) > 1:
            raise ValueError(
                "flood_level floods the step of one optimiser, but the net has "
                f"{', '.join(self._optimizers)}. Build a FloodStep on each in "
                "initialize_optimizer()."
            )

    def _check_controller(self, callbacks: Iterable[object]) -> None:
        """Check that the history will have what the controller needs."""
        if self.callbacks == "disable":
            raise ValueError(
                "a controller is shown the epochs by a callback, but callbacks='disable'. Leave it "
                "out, or use a number as level."
            )
        columns = set()
        for callback in callbacks:
            if isinstance(callback, _SCORINGS):
                columns.add(getattr(callback, "name_", None) or callback.name)
        available = []
        for name, keys in _METRICS.items():
            needs_split = name.startswith("val_") and self.train_split is None
            if columns.intersection(keys) and not needs_split:
                available.append(name)
        check_metrics(self.flood_level, available, _FIX)  # type: ignore[arg-type]


class _FloodLog(Callback):
    """Write what flooding did into the history, and show a controller the end of the epoch."""

    # ruff: ignore[unused-method-argument]
    def on_epoch_begin(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        self._n_steps = 0 if net.flood_step_ is None else int(net.flood_step_.n_steps)
        self._flooded_losses: list[float] = []
        self._slopes: list[float] = []

    # ruff: ignore[unused-method-argument]
    def on_batch_end(
        self, net: Any, batch: Any = None, training: Any = False, **kwargs: Any
    ) -> None:
        flood_step = net.flood_step_
        if not training or flood_step is None:
            return
        n_steps = int(flood_step.n_steps)
        if n_steps != self._n_steps:  # under gradient accumulation most batches end no step
            self._n_steps = n_steps
            self._flooded_losses.append(float(flood_step.flooded_loss))
            self._slopes.append(float(flood_step.slope))

    # ruff: ignore[unused-method-argument]
    def on_epoch_end(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        flood_step = net.flood_step_
        if flood_step is None:
            return
        # 1. The row of the epoch. An epoch without a step has no mean.
        n_steps = len(self._slopes) or math.nan
        n_flooded = sum(slope < 0 for slope in self._slopes)
        net.history.record("flooded_loss", sum(self._flooded_losses) / n_steps)
        net.history.record("flooded_fraction", n_flooded / n_steps)
        net.history.record("flood_level", float(flood_step.level))
        # 2. The level of the next one.
        row = net.history[-1]
        metrics = {}
        for name, keys in _METRICS.items():
            metrics[name] = next((row[key] for key in keys if key in row), None)
        flood_step.on_epoch_end(**metrics, n_val=count_examples(dataset_valid))


def _warn_of_monitors(callbacks: Iterable[object]) -> None:
    """Warn of callbacks that decide by a loss that flooding holds up."""
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.startswith(("train_loss", "flooded_loss")):
            warnings.warn(
                f"{type(callback).__name__} monitors {monitor!r}, a training loss that flooding "
                "keeps near the level. Use a metric of the validation data, such as 'valid_loss'.",
                stacklevel=4,
            )
