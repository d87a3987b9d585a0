"""What a ``Trainer`` cannot flood, and what its loss is divided by: both before the first step."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flooding.levels import Controller, LevelTable, PerClass, StepInfo
from flooding.step import FloodStep
from flooding.step.attached import others
from flooding.step.checks import check_level
from flooding.step.wrappers import inner_optimizer

if TYPE_CHECKING:
    from flooding.integrations.transformers import FloodTrainerMixin

__all__ = [
    "check_flood_level",
    "check_loss_scale",
    "check_metrics",
    "check_optimizer_step",
    "check_trainer",
    "warn_of_selection",
]

# Heads whose loss is the cross-entropy of `logits` and `labels`, place by place.
_CLASSIFICATION_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForImageClassification",
)
# Optimisers that step inside backward(), as names of TrainingArguments.optim.
_IN_BACKWARD = ("lomo", "adalomo")
# Share of the labels by which the Trainer's count may differ from the loss's own unmentioned.
_COUNT_TOLERANCE = 0.01


def check_flood_level(level: object) -> None:
    """Check the type of a level.

    Args:
        level: What a user passes as ``flood_level``.

    Raises:
        TypeError: If it is no level that a ``Trainer`` can apply.
    """
    if isinstance(level, Controller) and not isinstance(level, type):
        return
    if isinstance(level, LevelTable):
        if not isinstance(level, PerClass):
            raise TypeError(
                "flood_level must be a number, a controller, PerClass or None, got "
                f"{type(level).__name__}: a Trainer has no ids of examples and one level for each "
                "step. With hard labels write Excess's level as one number, level + "
                "target_entropy(labels, classes, label_smoothing)[0]."
            )
        return
    check_level(level)


def check_trainer(trainer: FloodTrainerMixin, level: object) -> None:
    """Check that a trainer's arguments and model allow flooding.

    Args:
        trainer: The trainer.
        level: Its level; not None.

    Raises:
        ValueError: If they do not.
    """
    from transformers.utils import is_sagemaker_mp_enabled

    from flooding.criterion import Flood

    if str(getattr(trainer.args.optim, "value", trainer.args.optim)) in _IN_BACKWARD:
        raise ValueError(
            "The loss of the whole step must be known before the optimiser steps, but "
            f"{trainer.args.optim} steps inside backward(). Use another optim, such as "
            "'adamw_torch'."
        )
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            "DeepSpeed ZeRO 3 partitions the parameters, so their gradients cannot be flipped. Use "
            "stage 0, 1 or 2."
        )
    if is_sagemaker_mp_enabled():
        raise ValueError(
            "Under pipeline parallelism some ranks have no loss, so SageMaker's model parallelism "
            "cannot be flooded. Use data parallelism."
        )
    if isinstance(trainer.compute_loss_func, Flood):
        raise ValueError(
            "compute_loss_func is a Flood already, and flood_level would flood it again. Give its "
            "criterion as compute_loss_func."
        )
    if isinstance(level, PerClass):
        _check_classes(trainer, len(level.levels))


def _check_classes(trainer: FloodTrainerMixin, num_levels: int) -> None:
    """Refuse levels per class where the labels are not seen or the loss is another one."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "get_base_model"):  # of peft
        model = model.get_base_model()
    config = getattr(model, "config", None)
    name = type(model).__name__
    rule = "Levels per class need a head for single-label classification and its plain loss"
    if not name.endswith(_CLASSIFICATION_HEADS) or trainer.label_names != ["labels"]:
        raise ValueError(
            f"{rule}, got {name} with label_names={trainer.label_names}. Write a compute_loss_func "
            "with flooding.flood(losses, levels[labels]), or use one level."
        )
    problem = getattr(config, "problem_type", None)
    if problem not in (None, "single_label_classification"):
        raise ValueError(f"{rule}, got problem_type={problem!r}. Use one level.")
    num_labels = getattr(config, "num_labels", None)
    if num_labels != num_levels:
        raise ValueError(
            f"Levels per class need one level for each label, got {num_levels} levels and "
            f"{num_labels} labels. Set num_labels of the model, or add levels."
        )
    if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
        raise ValueError(
            f"{rule}, got label_smoothing_factor or compute_loss_func. Take it away, or use one "
            "level."
        )


def check_optimizer_step(trainer: FloodTrainerMixin, optimizer: object) -> None:
    """Check that nothing else steps or floods the parameters of a model.

    Args:
        trainer: The trainer, whose model is about to train.
        optimizer: The optimiser that it calls, with its wrappers.

    Raises:
        ValueError: If an optimiser in backward or another FloodStep does.
    """
    for name, parameter in trainer.model.named_parameters():  # type: ignore[union-attr]
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                "The gradients of a whole step must be there together, but "
                f"{name} has a post-accumulate-grad hook, as layer-wise optimisers (optim="
                f"{str(trainer.args.optim)!r}) have. Use an optim without 'layerwise'."
            )
    inner = inner_optimizer(optimizer)
    if any(flood_step.optimizer is inner for flood_step in others(None)):
        raise ValueError(
            f"The optimiser, {type(inner).__name__}, has a FloodStep already, and flood_level "
            "would flood its steps again. Remove one of the two: flood_step.remove()."
        )


def check_metrics(trainer: FloodTrainerMixin, flood_step: FloodStep, is_validated: bool) -> None:
    """Check that a controller will be shown the metrics that it needs.

    Args:
        trainer: The trainer.
        flood_step: The FloodStep that holds the controller.
        is_validated: Whether the controller is shown validation metrics.

    Raises:
        ValueError: If a metric will be missing.
    """
    val_loss = 1.0 if is_validated else None
    val_accuracy = 0.5 if is_validated and trainer.compute_metrics is not None else None
    try:
        flood_step.update_controller(StepInfo(None, None, val_loss, val_accuracy))
    except TypeError as error:
        kind = type(trainer.flood_level).__name__
        raise ValueError(
            f"{kind} needs a metric that this Trainer does not measure ({error}). A Trainer shows "
            "eval_loss, with eval_strategy='epoch' and one eval_dataset, and eval_accuracy, with a "
            "compute_metrics that returns 'accuracy'; it has no training accuracy."
        ) from error


def warn_of_selection(trainer: FloodTrainerMixin) -> None:
    """Warn where a checkpoint is selected, or training stopped, by the loss of the training set.

    Args:
        trainer: The trainer.
    """
    from transformers import EarlyStoppingCallback

    args, metric = trainer.args, trainer.args.metric_for_best_model
    callbacks = trainer.callback_handler.callbacks
    stops = any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks)
    selects = args.load_best_model_at_end or args.save_strategy == "best"
    if metric is None or not metric.endswith("loss") or not (stops or selects):
        return
    metric = metric.removeprefix("eval_")
    datasets = trainer.eval_dataset
    if isinstance(datasets, dict):
        dataset = datasets.get(metric.removesuffix("_loss"))
    else:
        dataset = datasets if metric == "loss" else None
    if dataset is trainer.train_dataset or "train" in metric:
        warnings.warn(
            f"metric_for_best_model={args.metric_for_best_model!r} is the loss of the training "
            "data, which flooding holds at its level: its lowest value is chance, and early "
            "stopping ends soon after the level is reached. Use the loss of validation data.",
            stacklevel=3,
        )


# What the loss is divided by.


def check_loss_scale(
    trainer: FloodTrainerMixin,
    model: nn.Module,
    inputs: dict[str, Any],
    num_items: Tensor | int | None,
) -> bool:
    """Find out whether a loss divides by ``num_items_in_batch``, as ``Trainer`` takes for granted.

    A loss that ignores it is a micro-batch's mean. ``Trainer`` would add the means up instead of
    averaging them; here ``model_accepts_loss_kwargs`` is set to False, so that it averages.

    Args:
        trainer: The trainer, before its first step.
        model: Its wrapped model.
        inputs: A micro-batch.
        num_items: Number of items of the step, or None where the ``Trainer`` averages anyhow.

    Returns:
        Whether it is known; a loss of 0 or NaN does not tell.

    Raises:
        ValueError: If a ``compute_loss_func`` ignores it.
    """
    is_declared = getattr(trainer, "loss_is_scaled_for_ga", None) is not None
    parts = trainer.current_gradient_accumulation_steps * trainer.accelerator.num_processes
    if num_items is None or is_declared or parts == 1:
        return False
    losses = _losses_without_gradient(trainer, model, inputs, (num_items, 2 * num_items))
    # 1. All ranks must come to the same answer, and a rank may have no label at all.
    loss, half = losses.tolist()
    is_divided = loss != half and not math.isnan(loss)
    is_ignored = loss == half != 0
    flags: Any = torch.tensor([is_divided, is_ignored], device=losses.device).long()
    flags = trainer.accelerator.reduce(flags, reduction="sum")
    any_divided, any_ignored = flags.tolist()
    if any_divided or not any_ignored:
        if any_divided and trainer.accelerator.num_processes == 1:
            _warn_of_count(trainer, model, inputs, num_items, loss, half)
        return bool(any_divided)

    # 2. It is ignored.
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func must divide by num_items_in_batch, which counts the items of the "
            f"whole step, but ignores it: gradients would be {parts} times too large. Return the "
            "sum over the items / num_items_in_batch."
        )
    trainer.model_accepts_loss_kwargs = False
    name = type(trainer.accelerator.unwrap_model(model)).__name__
    warnings.warn(
        f"{name} takes num_items_in_batch and ignores it, so Trainer's gradients and logged loss "
        f"would be {parts} times too large. This is corrected: model_accepts_loss_kwargs is now "
        "False. Set trainer.model_accepts_loss_kwargs = False yourself to silence this.",
        stacklevel=3,
    )
    return True


def _losses_without_gradient(
    trainer: FloodTrainerMixin,
    model: nn.Module,
    inputs: dict[str, Any],
    counts: tuple[Tensor | int | None, ...],
) -> Tensor:
    """Compute a micro-batch's loss for several values of ``num_items_in_batch``."""
    inputs = trainer._prepare_inputs(inputs)
    model.eval()  # training_step() calls train() before it goes on
    losses = []
    devices = range(torch.cuda.device_count())
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        for count in counts:
            torch.manual_seed(0)  # some heads draw random numbers in evaluation, too
            with trainer.compute_loss_context_manager():
                # compute_loss() takes the labels out of the dictionary.
                loss: Any = trainer.compute_loss(model, dict(inputs), num_items_in_batch=count)
            losses.append(loss.detach().double().mean())
    return torch.stack(losses)


def _warn_of_count(
    trainer: FloodTrainerMixin,
    model: nn.Module,
    inputs: dict[str, Any],
    num_items: Tensor | int,
    loss: float,
    half: float,
) -> None:
    """Warn where ``Trainer`` counts other items than the loss averages over."""
    from transformers import Trainer

    is_own = type(trainer).compute_loss is Trainer.compute_loss
    if not is_own or trainer.compute_loss_func is not None or trainer.label_smoother is not None:
        return
    mean = float(_losses_without_gradient(trainer, model, inputs, (None,)))
    _, count = trainer.get_batch_samples(iter([inputs]), 1, trainer.args.device)
    if count is None or not mean:
        return
    # loss = S / n + x, half = S / 2n + x and mean = S / c + x, where x is not divided: an auxiliary
    # loss. c is the number of items that the loss averages over.
    rest = 2 * half - loss
    own_count = (loss - rest) * float(num_items) / (mean - rest)
    num_labels = float(count)
    if abs(own_count - num_labels) > _COUNT_TOLERANCE * num_labels:
        warnings.warn(
            f"Trainer counts {num_labels:.0f} labels in a micro-batch whose loss averages "
            f"{own_count:.0f}, so its loss, also without flooding, is {own_count / num_labels:.2f} "
            "times the mean. flood_level is compared with Trainer's loss.",
            stacklevel=4,
        )
