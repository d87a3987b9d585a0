"""Flood the optimiser steps of transformers' ``Trainer``: a mixin and one argument.

``class FloodTrainer(FloodTrainerMixin, Trainer)``, then ``FloodTrainer(..., flood_level=0.1)``.
``docs/frameworks/transformers.md`` is the guide.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flooding.integrations import count_examples, require_framework
from flooding.integrations._trainer_checks import (
    check_flood_level,
    check_loss_scale,
    check_metrics,
    check_optimizer_step,
    check_trainer,
    warn_of_selection,
)
from flooding.levels import Controller, Level, PerClass
from flooding.step import FloodStep

with require_framework("transformers"):
    from transformers import Trainer
    from transformers.trainer_callback import ExportableState, TrainerCallback

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

    from flooding.integrations._class_levels import ClassLevelLoss

    _Base = Trainer
else:
    _Base = object

__all__ = ["FloodTrainerMixin"]


class FloodTrainerMixin(_Base):
    """Flood the mean loss of every optimiser step of a transformers ``Trainer``.

    With the losses ``s_i`` that ``Trainer`` back-propagates for the micro-batches (shares of the
    step), the step's loss is ``L = sum(s_i)``, averaged over ranks, and its gradient is multiplied
    once by ``d flood(L, flood_level) / dL``: +1 above the level, -1 below it, 0 exactly at it. So
    it does not matter where the loss comes from: the model's head, label smoothing,
    ``compute_loss_func``, or a ``compute_loss`` of your own. Evaluation is plain.
    ``flood_level=None`` is plain training, bit for bit.

    A head that takes ``num_items_in_batch`` and ignores it (``BertForSequenceClassification``)
    makes Trainer's gradients and logged loss too large by the number of micro-batches. This is
    found out once, in the first step, corrected and warned about.

    A controller is shown ``eval_loss`` and ``eval_accuracy`` at each evaluation; without an
    ``eval_strategy``, or with several validation sets, it is shown the end of each epoch. Its
    state and the counts are in the checkpoint's ``trainer_state.json``, and continue with
    ``resume_from_checkpoint``.

    ``PerClass`` floods each example by itself, and the sum over the examples of the step is divided
    as ``Trainer`` divides it. It needs a head for single-label classification.

    Beside Trainer's ``loss`` the log holds ``raw_loss`` and ``flooded_loss`` (means over the steps
    since the last log), ``flooded_fraction`` (share of all steps so far) and ``flood_level``, the
    level in force. With ``PerClass`` the first three are means over this rank's examples, and
    ``loss`` is the flooded one.

    ``flood_step`` is the :class:`flooding.FloodStep` of the training; None before the first one,
    without a level, and with ``PerClass``.

    Args:
        *args: Arguments of the ``Trainer``.
        flood_level: Level in the unit of the loss that ``Trainer`` logs: a number, a tensor without
            axes, a controller, ``PerClass``, or None for no flooding.
        **kwargs: Arguments of the ``Trainer``.

    Raises:
        TypeError: If ``flood_level`` is no level, or the mixin does not come before ``Trainer``.
        ValueError: If the level cannot be applied to this model or these ``TrainingArguments``.

    Example:
        >>> from transformers import Trainer
        >>> class FloodTrainer(FloodTrainerMixin, Trainer):
        ...     pass

        ``FloodTrainer(model, args, train_dataset=..., flood_level=0.1).train()`` trains.

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    flood_level: Level
    flood_step: FloodStep | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(FloodTrainerMixin):
            raise TypeError(
                f"FloodTrainerMixin must come before Trainer, but {cls.__name__} names it later. "
                f"Write class {cls.__name__}(FloodTrainerMixin, Trainer)."
            )

    def __init__(self, *args: Any, flood_level: Level = None, **kwargs: Any) -> None:
        if not isinstance(self, Trainer):
            name = type(self).__name__
            raise TypeError(
                f"FloodTrainerMixin needs a Trainer, but {name} is none. Write class "
                "FloodTrainer(FloodTrainerMixin, Trainer)."
            )
        check_flood_level(flood_level)
        self.flood_level, self.flood_step = flood_level, None
        super().__init__(*args, **kwargs)
        if flood_level is not None:
            check_trainer(self, flood_level)
        self._flooding = _FloodCallback(self)
        self.add_callback(self._flooding)
        self.add_callback(_FloodState(self._flooding))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer.train`` does, with flooded steps.

        Args:
            *args: As for ``Trainer.train``.
            **kwargs: As for ``Trainer.train``.

        Returns:
            What ``Trainer.train`` returns.
        """
        try:
            return super().train(*args, **kwargs)
        finally:
            self._flooding.detach()

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Back-propagate a micro-batch as ``Trainer.training_step`` does.

        Args:
            model: The model.
            inputs: The micro-batch.
            num_items_in_batch: Number of items of the whole step, or None.

        Returns:
            The loss as ``Trainer`` scales it, without its graph.
        """
        self._flooding.check_first_loss(model, inputs, num_items_in_batch)
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as ``Trainer.log`` does; a log of the training loss gets the figures of flooding.

        Args:
            logs: Values by name.
            *args: As for ``Trainer.log``.
            **kwargs: As for ``Trainer.log``.
        """
        if "loss" in logs:
            logs = logs | self._flooding.logs()
        super().log(logs, *args, **kwargs)


class _FloodCallback(TrainerCallback):
    """Attach flooding to a trainer, show metrics to its controller, and sum what is logged.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: FloodTrainerMixin) -> None:
        self.trainer = trainer
        self.class_loss: ClassLevelLoss | None = None
        self.is_validated = False  # whether evaluations take the place of the ends of epochs
        self.num_epochs = self.evaluated_step = 0
        self._accelerator: Any = None  # whose backward is watched
        self._is_scale_known = True  # whether the loss is known to be scaled as Trainer believes
        self._sums: Tensor | None = None  # of raw loss, flooded loss and 1, since the last log

    # What the Trainer calls.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any
    ) -> None:
        """Check everything, and attach flooding to the optimiser that steps."""
        trainer, level = self.trainer, self.trainer.flood_level
        self.detach()  # of a training that auto_find_batch_size begins again
        trainer.flood_step = self._sums = None
        self.num_epochs = self.evaluated_step = 0
        self._link_state(state)
        if level is None:
            return
        # 1. What cannot be flooded is refused before the first step.
        check_flood_level(level)
        check_trainer(trainer, level)
        optimizer = kwargs["optimizer"]
        check_optimizer_step(trainer, optimizer)
        warn_of_selection(trainer)
        if isinstance(level, PerClass):
            # Here, since most trainings do without, and an import takes its time.
            from flooding.integrations._class_levels import ClassLevelLoss

            self.class_loss = ClassLevelLoss(level.to(args.device))
            trainer.compute_loss_func = self.class_loss
            return

        # 2. What a controller will be shown, and where it was in a checkpoint.
        step = FloodStep(optimizer, level)  # type: ignore[arg-type]
        trainer.flood_step = step
        self.is_validated = args.eval_strategy != "no" and not isinstance(
            trainer.eval_dataset, dict
        )
        check_metrics(trainer, step, self.is_validated)
        if state.global_step:
            self._resume(step, state)

        # 3. Every loss passes here, wherever it was computed and whatever has scaled it.
        self._is_scale_known = False
        self._accelerator = trainer.accelerator
        backward = trainer.accelerator.backward

        def watched_backward(loss: Tensor, **options: Any) -> None:
            backward(self._watch(step, loss), **options)

        trainer.accelerator.backward = watched_backward

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Add a step's losses to the sums; waits for no device."""
        step = self.trainer.flood_step
        if step is None or self.trainer.accelerator.optimizer_step_was_skipped:
            return
        losses = torch.stack([step.raw_loss, step.flooded_loss, torch.ones_like(step.raw_loss)])
        self._sums = losses if self._sums is None else self._sums + losses

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Show a controller the end of an epoch, unless evaluations take its place."""
        step = self.trainer.flood_step
        if step is not None and not self.is_validated:
            step.on_epoch_end()
            self.num_epochs += 1

    def on_evaluate(
        self, _: Any, state: TrainerState, *__: Any, metrics: dict[str, float], **context: Any
    ) -> None:
        """Show a controller the validation metrics, once a step."""
        step = self.trainer.flood_step
        if step is None or not self.is_validated or not self.trainer.is_in_train:
            return
        # Not at eval_on_start, and not twice where a user evaluates as well.
        if "eval_loss" in metrics and state.global_step > self.evaluated_step:
            self.evaluated_step = state.global_step
            accuracy = metrics.get("eval_accuracy")
            loader = context.get("eval_dataloader")
            is_cut = self.trainer.args.dataloader_drop_last
            n_val = None if is_cut else count_examples(getattr(loader, "dataset", None))
            step.on_epoch_end(val_loss=metrics["eval_loss"], val_accuracy=accuracy, n_val=n_val)

    # What the mixin and the state call.

    def check_first_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items: Tensor | int | None
    ) -> None:
        """Check once what the loss of a training is divided by."""
        if not self._is_scale_known:
            self._is_scale_known = check_loss_scale(self.trainer, model, inputs, num_items)

    def detach(self) -> None:
        """Take flooding off; the figures of the training stay."""
        if self.trainer.flood_step is not None:
            self.trainer.flood_step.remove()
        if self._accelerator is not None:
            del self._accelerator.backward  # the class's own is in force again
            self._accelerator = None
        if self.class_loss is not None:
            self.trainer.compute_loss_func = None
            self.class_loss = None
        self._is_scale_known = True

    def logs(self) -> dict[str, float]:
        """Give the figures since the last log; reading them waits for the device, as a log does."""
        if self.class_loss is not None:
            return self.class_loss.logs()
        step, sums, self._sums = self.trainer.flood_step, self._sums, None
        if step is None or sums is None:
            return {}
        raw, flooded, count = sums.tolist()
        figures = {
            "raw_loss": raw / count,
            "flooded_loss": flooded / count,
            "flooded_fraction": float(step.flooded_fraction),
        }
        level = float(step.level)  # type: ignore[arg-type]
        # Before a controller has begun there is none in force.
        return figures if level == -math.inf else figures | {"flood_level": level}

    def saved_state(self) -> dict[str, Any]:
        """Give what a checkpoint needs, as plain numbers."""
        step = self.trainer.flood_step
        if step is None:
            return {}
        values = {name: tensor.tolist() for name, tensor in step.state_dict().items()}
        return {
            "flood_step": values,
            "num_epochs": self.num_epochs,
            "evaluated_step": self.evaluated_step,
        }

    # Only used here.

    def _watch(self, step: FloodStep, share: Tensor) -> Tensor:
        """Watch a share of the step's loss: of k micro-batches it is ``k * share`` with 1 / k."""
        k = self.trainer.current_gradient_accumulation_steps
        if k == 1:
            return step(share)
        return step(share * k) / k

    def _link_state(self, state: TrainerState) -> None:
        """Add the state to the checkpoints of this training."""
        for callback in self.trainer.callback_handler.callbacks:
            # Trainer builds stateful callbacks anew where it restores them.
            if isinstance(callback, _FloodState):
                callback.flooding = self
        # A checkpoint of plain training has no entry, but Trainer looks it up when it saves.
        entries: Any = state.stateful_callbacks
        entries.setdefault(_FloodState.__name__, _FloodState().state())

    def _resume(self, step: FloodStep, state: TrainerState) -> None:
        """Continue from the checkpoint that the Trainer has loaded."""
        entries: Any = state.stateful_callbacks
        saved = entries[_FloodState.__name__]["attributes"]["saved"]
        if not saved:
            if isinstance(self.trainer.flood_level, Controller):
                warnings.warn(
                    "The checkpoint holds no state of flooding, so the controller starts from its "
                    f"beginning at step {state.global_step}. Ignore this after plain training.",
                    stacklevel=2,
                )
            return
        tensors = {}
        for name, value in saved["flood_step"].items():
            dtype = step.state[name].dtype if name in step.state else None
            tensors[name] = torch.tensor(value, dtype=dtype)
        step.load_state_dict(tensors)
        self.num_epochs, self.evaluated_step = saved["num_epochs"], saved["evaluated_step"]
        # A checkpoint at the last step of an epoch is saved before the epoch ends, and the Trainer
        # resumes behind the end.
        while not self.is_validated and self.num_epochs < int(state.epoch):
            step.on_epoch_end()
            self.num_epochs += 1


class _FloodState(TrainerCallback, ExportableState):
    """Keep the state of flooding in ``trainer_state.json``.

    Args:
        flooding: What knows the state; None where Trainer builds this object from a checkpoint.
    """

    def __init__(self, flooding: _FloodCallback | None = None) -> None:
        self.flooding = flooding
        self.saved: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """Give the state in the form that Trainer saves."""
        saved = self.saved if self.flooding is None else self.flooding.saved_state()
        return {"args": {}, "attributes": {"saved": saved}}
