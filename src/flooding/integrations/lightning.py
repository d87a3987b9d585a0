"""Flooding in Lightning: ``Trainer(callbacks=[FloodCallback(0.1)])``, the module as it is."""

# Hooks take arguments that they do not need.
# ruff: file-ignore[unused-method-argument]

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from flooding.integrations import count_examples, require_framework
from flooding.levels import Controller, StepInfo
from flooding.step import FloodStep
from flooding.step.state import StepState

with require_framework("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["FloodCallback", "watch_loss"]

_NEEDS_METRIC = (
    "{controller} needs a metric at the end of every epoch that was not logged: {error} Log it in "
    'validation_step, self.log("{monitor}", loss), or name yours: FloodCallback(level, '
    "monitor=..., val_accuracy=..., train_accuracy=...)."
)
_MANUAL = (
    "In manual optimisation a step must know its loss before the backward, but none was watched. "
    "Write loss = watch_loss(self, loss) before self.manual_backward(loss / k); watch_loss is in "
    "flooding.integrations.lightning."
)
_TRAINING_LOSS = (
    "{callback} monitors {monitor!r}, a training loss, which flooding keeps near the level: it "
    "stops or chooses by noise. Monitor a validation metric, such as val_loss."
)


class FloodCallback(Callback):
    """Flood the mean loss of every optimiser step of a Lightning training.

    The loss that ``training_step`` returns is compared with the level, before Lightning divides it
    by ``accumulate_grad_batches`` and scales it. The gradients of the whole step, over
    micro-batches and ranks, are multiplied once, see :class:`flooding.FloodStep`. The module stays
    as it is and logs its raw loss; validation is plain.

    Logged at every step are ``flood/raw_loss``, ``flood/flooded_loss``, ``flood/flooded_fraction``
    (share of the steps so far) and ``flood/level``. The state of a moving level is saved in
    checkpoints. It belongs to the progress of the Trainer: a second ``fit`` of the same Trainer
    goes on with it, a training from step 0 begins anew. What a learning-rate or batch-size finder
    trains is not flooded.

    In manual optimisation ``training_step`` names its loss by :func:`watch_loss`. A step all of
    whose micro-batches return None is plain and does not count.

    Args:
        level: Level in the unit of the loss: a number, a tensor without axes, None for no flooding,
            or a controller. A level for each class belongs in the criterion of the module:
            ``Flood(criterion, PerClass(levels), IFlood())``, which is exact under accumulation.
        monitor: Name under which the module logs its validation loss. A controller is shown it, and
            the two accuracies, at the end of each epoch in which validation ran.
        val_accuracy: Name of the validation accuracy, a share in [0, 1].
        train_accuracy: Name of the training accuracy, a share in [0, 1].

    Raises:
        TypeError: If ``level`` is no level of a step.
        ValueError: If ``level`` is NaN, ``inf`` or has axes.

    Example:
        >>> callback = FloodCallback(0.1)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback.flood_step is None  # before the first fit
        True

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    def __init__(
        self,
        level: float | Tensor | Controller | None,
        monitor: str = "val_loss",
        val_accuracy: str = "val_acc",
        train_accuracy: str = "train_acc",
    ) -> None:
        self.flood_step: FloodStep | None = None  # that of the current or the last fit
        self._state: dict[str, Tensor] = {}  # of a FloodStep that is yet to be built
        self._strategy: Any = None  # whose training_step is watched; None outside of training
        self._has_loss = False  # in the current optimiser step
        self._has_validated = False  # in the current epoch
        self._logged_step = 0
        self.level = level
        self.monitor = monitor
        self.val_accuracy = val_accuracy
        self.train_accuracy = train_accuracy

    @property
    def level(self) -> float | Tensor | Controller | None:
        """The level; a new one may be assigned at any time, and a moving one then begins anew."""
        return self._level

    @level.setter
    def level(self, level: float | Tensor | Controller | None) -> None:
        StepState(level, torch.device("cpu"))  # refuses what is no level of a step
        self._level = level
        self._state = {}
        if self._strategy is not None and self.flood_step is not None:
            self.flood_step.level = level

    # What is checked before the first step.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that nothing else floods the same loss."""
        if stage != "fit":
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        levels = [str(other.level) for other in callbacks if isinstance(other, FloodCallback)]
        if len(levels) > 1:
            raise ValueError(
                f"A step is flooded once, but there are {len(levels)} FloodCallbacks, with levels "
                f"{', '.join(levels)}. Give the Trainer one."
            )
        # A module that nobody has imported has no instances.
        criterion = sys.modules.get("flooding.criterion")
        if criterion and any(isinstance(part, criterion.Flood) for part in pl_module.modules()):
            rank_zero_warn(
                "The module has a Flood criterion and the Trainer a FloodCallback: the loss that "
                "the callback sees is flooded already. Use one of the two, unless this is meant."
            )

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the controller's validation metrics are logged."""
        if isinstance(self.level, Controller):
            self._check_metrics(self._metrics(trainer) | {"train_accuracy": 0.0})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to flood."""
        self._detach()  # after a fit that was interrupted
        if trainer.global_step == 0:
            self._state = {}
        elif not self._state and isinstance(self.level, Controller):
            rank_zero_warn(
                "The checkpoint holds no state of a FloodCallback, so its level begins anew. Load "
                "a checkpoint that was saved with one, if this is not meant."
            )
        if not trainer.enable_validation:
            self._check_metrics({"train_accuracy": 0.0})
        self._warn_of_training_losses(trainer)
        self._attach(trainer, pl_module)
        self._logged_step = trainer.global_step

    def _check_metrics(self, metrics: dict[str, Any]) -> None:
        """Let the controller see an end of an epoch, without effect."""
        try:
            StepState(self.level, torch.device("cpu")).update_controller(StepInfo(None, **metrics))
        except TypeError as error:
            text = _NEEDS_METRIC.format(
                controller=type(self.level).__name__, error=error, monitor=self.monitor
            )
            raise ValueError(text) from error

    def _warn_of_training_losses(self, trainer: Trainer) -> None:
        """Warn of callbacks that stop or choose by a training loss."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(callback, (EarlyStopping, ModelCheckpoint)):
                continue
            name = (callback.monitor or "").lower()
            if name.startswith("flood/") or ("train" in name and "loss" in name):
                kind = type(callback).__name__
                rank_zero_warn(_TRAINING_LOSS.format(callback=kind, monitor=callback.monitor))

    # Flooding.

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Flood the optimiser, and watch what ``training_step`` returns."""
        optimizers = trainer.optimizers
        if len(optimizers) != 1:
            raise ValueError(
                f"FloodCallback floods one optimiser, got {len(optimizers)}. Build a FloodStep on "
                "each one that is to be flooded, in configure_optimizers."
            )
        self.flood_step = FloodStep(optimizers[0], self.level)
        if self._state:
            self.flood_step.load_state_dict(self._state)
        self._has_loss = False
        self._strategy = strategy = trainer.strategy
        # The strategy and not the module: a module may be compiled, copied, or asked for the
        # signature of its training_step.
        strategy.training_step = partial(
            self._training_step, trainer, pl_module, strategy.training_step
        )

    def _detach(self) -> None:
        """Take everything off and keep the state."""
        if self._strategy is None:
            return
        assert self.flood_step is not None
        self._state = self.flood_step.state_dict()
        self.flood_step.remove()
        vars(self._strategy).pop("training_step", None)
        self._strategy = None

    def _training_step(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        training_step: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run the module's ``training_step`` and watch the loss it returns."""
        if self not in trainer.callbacks:  # type: ignore[attr-defined]
            # A finder has put its own callbacks there: what it trains is not flooded.
            self._detach()
            return training_step(*args, **kwargs)
        output = training_step(*args, **kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if pl_module.automatic_optimization and isinstance(loss, Tensor):
            self.watch(loss)
        return output

    def watch(self, loss: Tensor) -> Tensor:
        """Watch a micro-batch's raw mean loss.

        Args:
            loss: The loss, before any division or scaling.

        Returns:
            The loss itself.
        """
        if self._strategy is None or self.flood_step is None:
            return loss
        self._has_loss = True
        return self.flood_step(loss)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Flood again after a step without a loss, or after a finder in the middle of training."""
        if self._strategy is None:
            self._attach(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Let a step without a loss pass."""
        has_loss, self._has_loss = self._has_loss, False
        # DeepSpeed counts micro-batches by itself, and Lightning calls this after each of them.
        if has_loss or self._strategy is None or self._strategy.handles_gradient_accumulation:
            return
        if not pl_module.automatic_optimization:
            raise RuntimeError(_MANUAL)
        # Every training_step returned None, so there is no gradient.
        self._detach()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End flooding."""
        self._detach()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End flooding."""
        self._detach()

    # What is measured.

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the step, if this batch ended one."""
        flood_step = self.flood_step
        if self._strategy is None or flood_step is None or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        values: dict[str, float | Tensor] = {
            "flood/raw_loss": flood_step.raw_loss,
            "flood/flooded_loss": flood_step.flooded_loss,
            "flood/flooded_fraction": flood_step.flooded_fraction,
        }
        if flood_step.level is not None:
            values["flood/level"] = flood_step.level
        pl_module.log_dict(values, on_step=True, on_epoch=False)

    def _metrics(self, trainer: Trainer) -> dict[str, Any]:
        """Read what a controller is shown, averaged over ranks so that all do the same."""
        names = {
            "val_loss": self.monitor,
            "val_accuracy": self.val_accuracy,
            "train_accuracy": self.train_accuracy,
        }
        metrics = {}
        for argument, name in names.items():
            value = trainer.callback_metrics.get(name)
            if value is not None:
                value = trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
            metrics[argument] = value
        return metrics

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this epoch has validation metrics."""
        self._has_validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show a controller the end of an epoch."""
        has_validated, self._has_validated = self._has_validated, False
        if not isinstance(self.level, Controller) or self.flood_step is None:
            return
        # Between two validations the metrics are old, and a controller counts epochs without gain.
        if trainer.enable_validation and not has_validated:
            return
        metrics = self._metrics(trainer)
        self._check_metrics(metrics)
        self.flood_step.on_epoch_end(**metrics, n_val=_count_validation(trainer))

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Give the state to be saved in a checkpoint.

        Returns:
            Tensors by name.
        """
        if self._strategy is not None and self.flood_step is not None:
            return self.flood_step.state_dict()
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        self._state = dict(state_dict)
        if self._strategy is not None and self.flood_step is not None and state_dict:
            self.flood_step.load_state_dict(state_dict)


def _count_validation(trainer: Trainer) -> int | None:
    """Count the validation examples, where one loader has them and all of them are used."""
    loader, limit = trainer.val_dataloaders, trainer.limit_val_batches
    # The number 1 is one batch, the share 1.0 is all of them.
    if isinstance(limit, int) or limit < 1:
        return None
    if isinstance(loader, (list, tuple)) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader) or loader.drop_last:
        return None
    # Another sampler may leave examples out.
    if not isinstance(loader.sampler, (SequentialSampler, DistributedSampler)):
        return None
    return count_examples(loader.dataset)


def watch_loss(module: LightningModule, loss: Tensor) -> Tensor:
    """Watch a loss in manual optimisation, before ``manual_backward`` and any division.

    Without a :class:`FloodCallback`, or outside of training, it does nothing.

    Args:
        module: The module, ``self``.
        loss: Mean loss of one micro-batch.

    Returns:
        The loss itself.

    Example:
        >>> class Manual(LightningModule):
        ...     def training_step(self, batch, batch_idx):
        ...         loss = watch_loss(self, self.net(batch).square().mean())
        ...         self.manual_backward(loss)
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # it has none
        return loss
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, FloodCallback):
            return callback.watch(loss)
    return loss
