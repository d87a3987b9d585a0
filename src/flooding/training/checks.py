"""Checks of a Problem's parts against each other, on the first batch: errors with rule, value and
fix.

They are made once for a training, so they cost nothing in a step. An error without an explanation
keeps its traceback.
"""

from __future__ import annotations

import functools
import logging
import numbers
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]
from torch.optim import lr_scheduler
from torch.overrides import TorchFunctionMode

from flooding.data import Splits, map_tensors
from flooding.torch_losses import loss_options
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed, fork_rng, preserve_rng_state

__all__ = [
    "check_labels",
    "check_last_batch",
    "check_outputs",
    "check_scheduler",
    "check_targets",
    "explain_dtype_error",
    "first_loss",
    "is_class_loss",
]

log = logging.getLogger("flooding")
_CLASS_LOSSES = (F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_CLASS_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)

# Losses that compare outputs with targets one by one. Torch broadcasts some of them, with a warning
# at most.
_ELEMENTWISE_LOSSES = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.soft_margin_loss,
    F.multilabel_soft_margin_loss,
    F.hinge_embedding_loss,
    F.kl_div,
)

_ELEMENTWISE_MODULES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.HingeEmbeddingLoss,
    nn.KLDivLoss,
)

_DTYPE_ERROR = re.compile(
    r"dtype|scalar type|same datatype|should be the same|not implemented for|output type|Integral inputs|bool tensor"
)


def _core(loss: Any) -> Any:
    """Look through partials."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _is_one_of(loss: Any, functions: tuple[Any, ...], modules: tuple[type[nn.Module], ...]) -> bool:
    """Tell whether a loss is one of torch's, not a subclass that computes something else."""
    core = _core(loss)
    if not isinstance(core, nn.Module):
        return any(core is function for function in functions)
    return any(isinstance(core, kind) and type(core).forward is kind.forward for kind in modules)


def is_class_loss(loss: Any) -> bool:
    """Tell whether a loss is one of torch's that takes outputs for each class.

    Args:
        loss: The loss.

    Returns:
        Whether it is.
    """
    return _is_one_of(loss, _CLASS_LOSSES, _CLASS_MODULES)


def _is_elementwise(loss: Any) -> bool:
    return _is_one_of(loss, _ELEMENTWISE_LOSSES, _ELEMENTWISE_MODULES)


def _name(loss: Any) -> str:
    core = _core(loss)
    return (
        type(core).__name__
        if isinstance(core, nn.Module)
        else getattr(core, "__name__", type(core).__name__)
    )


def check_targets(problem: Problem, splits: Splits) -> None:
    """Make sure that each split has targets that count, of a type that the loss takes.

    Args:
        problem: The problem.
        splits: Its splits.

    Raises:
        ValueError: If a split has none, or class labels are no int64.
    """
    for name, y in _labels(splits):
        if is_class_loss(problem.loss) and y.dtype not in {torch.int64, torch.uint8}:
            raise ValueError(
                f"class labels must be torch.int64, got {y.dtype} in the {name} split. Convert them with y.long()."
            )
        if not bool(problem.target_mask(y).any()):
            raise ValueError(
                f"the {name} split must hold at least one target that counts, but all {y.numel()} are "
                f"{int(y.reshape(-1)[0])}, which the loss ignores. Divide the data anew."
            )


def _labels(splits: Splits) -> Iterator[tuple[str, Tensor]]:
    """Go through the class labels of all splits, noisy and clean."""
    for name in ("train", "val", "test"):
        split = getattr(splits, name)
        for y in () if split is None else (split.y, split.clean):
            if y is not None and not y.is_floating_point() and not y.is_complex():
                yield name, y


def check_outputs(loss: Callable[..., Any], output: Any, y: Tensor) -> None:
    """Make sure that the outputs of a model fit a loss of torch and its targets; other losses are
    not judged.

    Args:
        loss: The loss.
        output: Outputs of one batch.
        y: Targets of the batch.

    Raises:
        ValueError: If they do not.
    """
    of_classes = is_class_loss(loss)
    if not of_classes and not _is_elementwise(loss):
        return
    name = _name(loss)
    if not isinstance(output, Tensor):
        take = "output[0]"
        if isinstance(output, Mapping):
            take = f"output[{next((k for k in ('logits', 'out', *output) if k in output), 'logits')!r}]"
        raise ValueError(
            f"{name} needs outputs that are one tensor, got {_summary(output)}. Give a loss that picks it, such as "
            f"lambda output, y: {name}({take}, y)."
        )
    if of_classes:
        _check_class_shapes(name, output, y)
    else:
        _check_same_shape(name, output.shape, y.shape)


def _check_same_shape(name: str, outputs: torch.Size, targets: torch.Size) -> None:
    if outputs == targets:
        return
    if outputs == (*targets, 1):
        fix = "Give the targets that axis, y[..., None], or squeeze it from the outputs"
    elif targets == (*outputs, 1):
        fix = "Drop the last axis of the targets, y.squeeze(-1), or give it to the outputs"
    else:
        fix = "Give both the same shape"
    raise ValueError(
        f"{name} compares outputs with targets one by one, so both must have the same shape, got outputs "
        f"{list(outputs)} and targets {list(targets)}. {fix}."
    )


def _check_class_shapes(name: str, output: Tensor, y: Tensor) -> None:
    shapes = f"got outputs {list(output.shape)} and targets {list(y.shape)}"
    expected = output.shape[:1] + output.shape[2:]
    if y.is_floating_point():
        if y.shape == output.shape and name in {"cross_entropy", "CrossEntropyLoss"}:
            return  # probabilities of the classes
        raise ValueError(
            f"class labels of {name} must be int64, got {y.dtype} {list(y.shape)}. Convert with y.long()."
        )
    if output.ndim < 2:
        raise ValueError(
            f"{name} needs outputs [n, classes], {shapes}. Does the model squeeze or flatten them?"
        )
    if output.shape[1] < 2:
        raise ValueError(
            f"{name} needs an output for each of at least two classes, {shapes}. For one logit use "
            "BCEWithLogitsLoss and float targets of the outputs' shape."
        )
    if y.shape == expected:
        return
    if y.shape == output.shape:
        fix = "For one-hot targets use y.argmax(1)"
    elif y.ndim == output.ndim and y.shape[1] == 1:
        fix = "Drop an axis of the targets: y.squeeze(1)"
    elif y.shape == output.shape[:-1]:
        fix = "Classes are on axis 1: give output.movedim(-1, 1) to the loss"
    else:
        fix = "Outputs are [n, classes, ...], labels [n, ...]"
    raise ValueError(f"targets of {name} must have shape {list(expected)}, {shapes}. {fix}.")


def check_labels(problem: Problem, output: Any, splits: Splits) -> None:
    """Make sure that each class label of all splits has an output: on a GPU torch's own check ends
    the process.

    Args:
        problem: The problem.
        output: Outputs of one batch ``[n, classes, ...]``.
        splits: All splits.

    Raises:
        ValueError: If a loss of torch would meet a label without an output.
    """
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] < 2:
        return
    classes = output.shape[1]
    known = [loss for loss in (problem.loss, problem.reported) if is_class_loss(loss)]
    ignored = {loss_options(loss).ignore_index for loss in known} or {problem.ignore_index}
    for name, y in _labels(splits):
        for index in ignored:
            labels = y.long() if index is None else y.long()[y.long() != index]
            if y.shape[1:] != output.shape[2:] or not labels.numel():
                continue
            low, high = int(labels.min()), int(labels.max())
            if low >= 0 and high < classes:
                continue
            if known:
                raise ValueError(_label_error(name, low, high, classes))
            log.warning(
                "labels of the %s split reach from %d to %d, but the model has outputs 0 to %d: the others count as "
                "wrong. If the loss ignores them, give it an attribute or argument ignore_index.",
                *(name, low, high, classes - 1),
            )
            return


def _label_error(name: str, low: int, high: int, classes: int) -> str:
    if (low, high) == (1, classes):
        fix = "Count from 0: y - 1"
    elif low < 0 or high == 255:
        marker = low if low < 0 else high
        fix = f"If {marker} marks what to leave out, set ignore_index={marker} in the loss"
    else:
        fix = f"Give the model {high + 1} outputs, or renumber the labels"
    return (
        f"labels must be 0 to {classes - 1}, since the model has {classes} outputs, got {low} to {high} in the {name} "
        f"split. {fix}."
    )


def first_loss(
    loss: Callable[..., Any], output: Any, y: Tensor, *, trained: str | None = None
) -> Any:
    """Call a loss on the first batch, and make sure that its arguments fit and that it returns a
    loss.

    Args:
        loss: The loss.
        output: Outputs of the batch.
        y: Its targets.
        trained: Reduction of the method that differentiates it, "mean" or "none"; None for a loss
            that is reported.

    Returns:
        What the loss returned.

    Raises:
        ValueError: If it cannot be a loss.
    """
    check_outputs(loss, output, y)
    with _broadcast_detector(output, y):
        value = loss(output, y)
    if not isinstance(value, (Tensor, numbers.Real)):
        raise ValueError(
            f"the loss must return the mean of a batch, a 0-d tensor, got {_summary(value)}. Return that part alone."
        )
    if trained is not None and not isinstance(value, Tensor):
        raise ValueError(
            f"the loss must have a gradient, got the number {value}. Compute it from the outputs, in torch and without "
            ".item()."
        )
    if trained != "none" and isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            f"the loss must return the mean of a batch, a 0-d tensor, got shape {list(value.shape)}. Use "
            "reduction='mean', or .mean()."
        )
    return value


class _BroadcastDetector(TorchFunctionMode):
    """Watches a loss of the user's own for outputs [n, 1] that meet targets [n], which makes [n, n]
    of them.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.seen = n, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [t.shape for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)]
        meet = sorted(shapes) == [(self.n,), (self.n, 1)]
        if meet and any(func is function for function in _ELEMENTWISE_LOSSES):
            _check_same_shape(func.__name__, *shapes)
        result = func(*args, **(kwargs or {}))
        if (
            meet
            and not self.seen
            and isinstance(result, Tensor)
            and result.shape == (self.n, self.n)
        ):
            self.seen = True
            log.warning(
                "the loss combines tensors of shapes %s and %s into every pair of them. If that is not meant, give "
                "outputs and targets the same shape, such as y[:, None].",
                *(list(shape) for shape in shapes),
            )
        return result


def _broadcast_detector(output: Any, y: Tensor) -> AbstractContextManager[Any]:
    n = len(y)
    suspicious = (
        isinstance(output, Tensor) and n > 1 and sorted([output.shape, y.shape]) == [(n,), (n, 1)]
    )
    return _BroadcastDetector(n) if suspicious else nullcontext()


def _summary(value: Any) -> str:
    """Name a value that should have been a tensor."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} of {', '.join(map(str, value))}"
    return f"{kind} of {len(value)}" if isinstance(value, (tuple, list)) else kind


@contextmanager
def explain_dtype_error(
    dtype: torch.dtype, x: Any, y: Tensor | None = None
) -> Generator[None, None, None]:
    """Turn torch's error about types on the first batch into one that names the tensor to convert.

    Args:
        dtype: Type of the model's parameters.
        x: Inputs, if the block passes them to the model; else None.
        y: Targets, if the block passes them to the loss; else None.

    Yields:
        Nothing.

    Raises:
        ValueError: If inputs or targets of another type are the cause.
        RuntimeError: As it was, if they are not.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        problem = _dtype_advice(str(error), dtype, x, y)
        if problem is None:
            raise
        raise ValueError(problem) from error


def _dtype_advice(text: str, dtype: torch.dtype, x: Any, y: Tensor | None) -> str | None:
    """Name the tensor behind torch's error about types, or None where it is not known."""
    types: list[torch.dtype] = []
    if x is not None:
        map_tensors(lambda t: (types.append(t.dtype), t)[1], x)
    if "indices" in text and any(t.is_floating_point for t in types):
        return (
            f"an embedding takes inputs of torch.int64, got {types[0]}. Convert them with x.long()."
        )
    if _DTYPE_ERROR.search(text) is None:
        return None
    whole = re.search(r"Long|long|Int\b|int\b|Short|short|Byte|byte|Bool|bool", text) is not None
    wrong = [t for t in types if t != dtype and (t.is_floating_point or whole)]
    wrong.sort(key=lambda t: not t.is_floating_point)
    if wrong:
        return (
            f"inputs must have the type of the model's parameters, {dtype}, got {wrong[0]}. Convert them with "
            f"x.to({dtype})."
        )
    if y is not None and y.dtype != dtype:
        return f"targets must have the type of the outputs, {dtype}, got {y.dtype}. Convert them with y.to({dtype})."
    return None


def check_scheduler(scheduler: Any, epochs: int) -> None:
    """Make sure that a learning-rate schedule is counted in epochs: it is stepped after each, not
    after each batch.

    Args:
        scheduler: The scheduler, or None.
        epochs: How often it will be stepped.

    Raises:
        ValueError: If it is a OneCycleLR for another number of steps.
    """
    for part in getattr(scheduler, "_schedulers", []):  # SequentialLR, ChainedScheduler
        if not isinstance(part, lr_scheduler.OneCycleLR) or part.total_steps > epochs:
            check_scheduler(part, epochs)
    name = type(scheduler).__name__
    if isinstance(scheduler, lr_scheduler.OneCycleLR) and scheduler.total_steps != epochs:
        raise ValueError(
            f"schedules are stepped once an epoch, so OneCycleLR needs total_steps={epochs}, the max_epochs, got "
            f"{scheduler.total_steps}. Give partial(OneCycleLR, max_lr=..., total_steps={epochs})."
        )
    for length in ("total_size", "T_max", "T_0", "total_iters", "step_size"):
        value = getattr(scheduler, length, None)
        if isinstance(value, (int, float)) and value > epochs:
            log.warning(
                "schedules are stepped once an epoch: the %s of %g of %s is more than the max_epochs of %d epochs.",
                {"total_size": "cycle"}.get(length, length),
                value,
                name,
                epochs,
            )


def check_last_batch(problem: Problem, seed: int) -> None:
    """Make sure that batch norm never meets a single example, of which it cannot take the variance.

    Args:
        problem: The problem.
        seed: Seed of the data and the weights.

    Raises:
        ValueError: If the last batch of an epoch holds one example that the model cannot train on.
    """
    split = problem.splits(seed).train
    left = len(split) % problem.batch_size or min(len(split), problem.batch_size)
    if left > 1:
        return
    model = problem.build(seed).to(split.y.device)
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    with preserve_rng_state(), fork_rng(derive_seed(seed, "check")), torch.no_grad():
        try:
            model(map_tensors(lambda t: t[:1].clone(), split.x))
        except Exception as error:  # ruff: ignore[blind-except] -- they come again with the first batch
            if "more than 1 value per channel" not in str(error):
                return
        else:
            return
    raise ValueError(
        f"with batch norm no batch may hold a single example, but {len(split)} examples in batches of "
        f"{problem.batch_size} leave one over. Choose another batch_size, or a model without batch norm."
    )
