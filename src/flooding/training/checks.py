"""Check that the parts of a Problem fit each other, on its first batch.

The checks run once for a training, so they cost nothing in a step. An error of torch that they
cannot explain keeps its traceback.
"""

from __future__ import annotations

import logging
import numbers
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]
from torch.optim import lr_scheduler
from torch.overrides import TorchFunctionMode

from flooding.data import Splits, map_tensors
from flooding.methods import Method
from flooding.torch_losses import (
    CLASSES,
    ELEMENTWISE,
    is_class_loss,
    is_elementwise_loss,
    loss_name,
    loss_options,
)
from flooding.training.problem import Problem
from flooding.training.rng import derive_seed, fork_rng, preserve_rng_state

__all__ = [
    "check_labels",
    "check_last_batch",
    "check_outputs",
    "check_scheduler",
    "check_targets",
    "check_teacher_loss",
    "explain_dtype_error",
    "first_loss",
]

log = logging.getLogger("flooding")

# What torch's errors about types have in common, and the names of types that are no floats.
_DTYPE_ERROR = re.compile(
    r"dtype|scalar type|same datatype|should be the same|not implemented for|output type"
    r"|Integral inputs|bool tensor"
)
_INTEGER_TYPE = re.compile(r"Long|long|Int\b|int\b|Short|short|Byte|byte|Bool|bool")


# ---------------------------------------------------------------- targets


def check_targets(problem: Problem, splits: Splits) -> None:
    """Check that each split has targets that count, of a type that the loss takes.

    Args:
        problem: The problem.
        splits: Its splits.

    Raises:
        ValueError: If a split has none, or class labels are no int64.
    """
    for name, y in _labels(splits):
        if is_class_loss(problem.loss) and y.dtype not in {torch.int64, torch.uint8}:
            raise ValueError(
                f"class labels must be torch.int64, got {y.dtype} in the {name} split. "
                "Convert them with y.long()."
            )
        if not bool(problem.target_mask(y).any()):
            raise ValueError(
                f"the {name} split must hold at least one target that counts, but all {y.numel()} "
                f"are {int(y.reshape(-1)[0])}, which the loss ignores. Divide the data anew."
            )


def _labels(splits: Splits) -> Iterator[tuple[str, Tensor]]:
    """Go through the class labels of all splits, noisy and clean."""
    for name in ("train", "val", "test"):
        split = getattr(splits, name)
        if split is None:
            continue
        for y in (split.y, split.clean):
            if y is not None and not y.is_floating_point() and not y.is_complex():
                yield name, y


def check_labels(problem: Problem, output: object, splits: Splits) -> None:
    """Check that each class label of all splits has an output.

    On a GPU torch's own check ends the process.

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
    # Each loss of torch must take every label that it does not ignore itself.
    class_losses = [loss for loss in (problem.loss, problem.reported) if is_class_loss(loss)]
    ignore_indices = {loss_options(loss).ignore_index for loss in class_losses}
    for name, y in _labels(splits):
        if y.shape[1:] != output.shape[2:]:
            continue
        for ignore_index in ignore_indices or {problem.ignore_index}:
            labels = y.long()
            if ignore_index is not None:
                labels = labels[labels != ignore_index]
            if not labels.numel():
                continue
            low, high = int(labels.min()), int(labels.max())
            if low >= 0 and high < classes:
                continue
            if class_losses:
                raise ValueError(_label_error(name, low, high, classes))
            # A loss of the user's own may take any label.
            log.warning(
                "labels of the %s split reach from %d to %d, but the model has outputs 0 to %d: "
                "the others count as wrong. If the loss ignores them, give it an attribute or "
                "argument ignore_index.",
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
        f"labels must be 0 to {classes - 1}, since the model has {classes} outputs, got {low} to "
        f"{high} in the {name} split. {fix}."
    )


# ---------------------------------------------------------------- outputs and loss


def check_outputs(loss: Callable[..., object], output: object, y: Tensor) -> None:
    """Check that a model's outputs fit a loss of torch and its targets.

    Losses that are not torch's pass.

    Args:
        loss: The loss.
        output: Outputs of one batch.
        y: Targets of the batch.

    Raises:
        ValueError: If they do not fit.
    """
    has_classes = is_class_loss(loss)
    if not has_classes and not is_elementwise_loss(loss):
        return
    name = loss_name(loss)
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{name} needs outputs that are one tensor, got {_summarize(output)}. Give a loss that "
            f"picks it, such as lambda output, y: {name}({_selection(output)}, y)."
        )
    if has_classes:
        _check_class_shapes(name, output, y)
    else:
        _check_same_shape(name, output.shape, y.shape)


def _selection(output: object) -> str:
    """Write the code that takes the logits out of a model's outputs."""
    if not isinstance(output, Mapping):
        return "output[0]"
    for name in ("logits", "out", *output):
        if name in output:
            return f"output[{name!r}]"
    return "output['logits']"


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
        f"{name} compares outputs with targets one by one, so both must have the same shape, got "
        f"outputs {list(outputs)} and targets {list(targets)}. {fix}."
    )


def _check_class_shapes(name: str, output: Tensor, y: Tensor) -> None:
    shapes = f"got outputs {list(output.shape)} and targets {list(y.shape)}"
    # 1. Targets of the type of labels, or probabilities of the classes.
    if y.is_floating_point():
        if y.shape == output.shape and name in {"cross_entropy", "CrossEntropyLoss"}:
            return
        raise ValueError(
            f"class labels of {name} must be int64, got {y.dtype} {list(y.shape)}. "
            "Convert with y.long()."
        )
    # 2. An axis of classes.
    if output.ndim < 2:
        raise ValueError(
            f"{name} needs outputs [n, classes], {shapes}. Does the model squeeze or flatten them?"
        )
    if output.shape[1] < 2:
        raise ValueError(
            f"{name} needs an output for each of at least two classes, {shapes}. For one logit use "
            "BCEWithLogitsLoss and float targets of the outputs' shape."
        )
    # 3. The other axes.
    shape = output.shape[:1] + output.shape[2:]
    if y.shape == shape:
        return
    if y.shape == output.shape:
        fix = "For one-hot targets use y.argmax(1)"
    elif y.ndim == output.ndim and y.shape[1] == 1:
        fix = "Drop an axis of the targets: y.squeeze(1)"
    elif y.shape == output.shape[:-1]:
        fix = "Classes are on axis 1: give output.movedim(-1, 1) to the loss"
    else:
        fix = "Outputs are [n, classes, ...], labels [n, ...]"
    raise ValueError(f"targets of {name} must have shape {list(shape)}, {shapes}. {fix}.")


def first_loss(
    loss: Callable[..., object], output: object, y: Tensor, *, trained: str | None = None
) -> Any:
    """Call a loss on the first batch, and check its arguments and what it returns.

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
            "the loss must return the mean of a batch, a 0-d tensor, got "
            f"{_summarize(value)}. Return that part alone."
        )
    if trained is not None and not isinstance(value, Tensor):
        raise ValueError(
            f"the loss must have a gradient, got the number {value}. Compute it from the outputs, "
            "in torch and without .item()."
        )
    if trained != "none" and isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(
            "the loss must return the mean of a batch, a 0-d tensor, got shape "
            f"{list(value.shape)}. Use reduction='mean', or .mean()."
        )
    return value


def _summarize(value: object) -> str:
    """Describe a value that should have been a tensor."""
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} of {', '.join(map(str, value))}"
    return f"{kind} of {len(value)}" if isinstance(value, (tuple, list)) else kind


def _broadcast_detector(output: object, y: Tensor) -> AbstractContextManager[object]:
    """Give a detector where outputs and targets could be broadcast, else an empty context."""
    n = len(y)
    if isinstance(output, Tensor) and n > 1 and sorted([output.shape, y.shape]) == [(n,), (n, 1)]:
        return _BroadcastDetector(n)
    return nullcontext()


class _BroadcastDetector(TorchFunctionMode):
    """Detects that a loss combines outputs [n, 1] with targets [n], which gives [n, n].

    A function of torch that does so is refused, arithmetic of the user's own is warned of once.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.has_warned = n, False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        shapes = [t.shape for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        is_suspicious = sorted(shapes) == [(self.n,), (self.n, 1)]
        if is_suspicious and any(func is function for function in ELEMENTWISE):
            _check_same_shape(func.__name__, *shapes)
        result = func(*args, **kwargs)
        is_broadcast = isinstance(result, Tensor) and result.shape == (self.n, self.n)
        if is_suspicious and is_broadcast and not self.has_warned:
            self.has_warned = True
            log.warning(
                "the loss combines tensors of shapes %s and %s into every pair of them. If that is "
                "not meant, give outputs and targets the same shape, such as y[:, None].",
                *(list(shape) for shape in shapes),
            )
        return result


def check_teacher_loss(loss: Callable[..., object], method: Method) -> None:
    """Check that a method whose level is its teacher's loss gets a loss with a plain mean.

    Such a method averages the losses itself, without the weights of torch's mean.

    Args:
        loss: The loss.
        method: The method.

    Raises:
        ValueError: If the mean of the loss divides by class weights.
    """
    if method.level_source != "teacher":
        return
    options = loss_options(loss)
    if options.weight is not None and options.function in (*CLASSES, F.mse_loss, F.l1_loss):
        raise ValueError(
            f"{type(method).__name__} takes the plain mean of the losses, so the loss must have no "
            f"weight, got {loss_name(loss)} with weight={options.weight.tolist()!s:.80}. Leave the "
            "weight out, or use IFlood(), which keeps it."
        )


# ---------------------------------------------------------------- types


@contextmanager
def explain_dtype_error(
    dtype: torch.dtype, x: object, y: Tensor | None = None
) -> Generator[None, None, None]:
    """Turn torch's error about types into one that names the tensor to convert.

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
        advice = _dtype_advice(str(error), dtype, x, y)
        if advice is None:
            raise
        raise ValueError(advice) from error


def _dtype_advice(text: str, dtype: torch.dtype, x: object, y: Tensor | None) -> str | None:
    """Name the tensor behind torch's error about types, or None where it is not known."""
    input_dtypes = [] if x is None else _collect_dtypes(x)
    # 1. An embedding got floats.
    if "indices" in text and any(t.is_floating_point for t in input_dtypes):
        return (
            f"an embedding takes inputs of torch.int64, got {input_dtypes[0]}. Convert them with "
            "x.long()."
        )
    if _DTYPE_ERROR.search(text) is None:
        return None
    # 2. The model got inputs of another type; integers only where the error names integers.
    names_integers = _INTEGER_TYPE.search(text) is not None
    wrong = []
    for input_dtype in input_dtypes:
        if input_dtype != dtype and (input_dtype.is_floating_point or names_integers):
            wrong.append(input_dtype)
    wrong.sort(key=lambda t: not t.is_floating_point)
    if wrong:
        return (
            f"inputs must have the type of the model's parameters, {dtype}, got {wrong[0]}. "
            f"Convert them with x.to({dtype})."
        )
    # 3. The loss got targets of another type.
    if y is not None and y.dtype != dtype:
        return (
            f"targets must have the type of the outputs, {dtype}, got {y.dtype}. Convert them with "
            f"y.to({dtype})."
        )
    return None


def _collect_dtypes(x: object) -> list[torch.dtype]:
    dtypes = []

    def collect(tensor: Tensor) -> Tensor:
        dtypes.append(tensor.dtype)
        return tensor

    map_tensors(collect, x)
    return dtypes


# ---------------------------------------------------------------- scheduler and batch norm


def check_scheduler(scheduler: lr_scheduler.LRScheduler | None, epochs: int) -> None:
    """Check that a learning-rate schedule counts epochs: it is stepped after each, not each batch.

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
            f"schedules are stepped once an epoch, so OneCycleLR needs total_steps={epochs}, the "
            f"max_epochs, got {scheduler.total_steps}. Give partial(OneCycleLR, max_lr=..., "
            f"total_steps={epochs})."
        )
    for length in ("total_size", "T_max", "T_0", "total_iters", "step_size"):
        value = getattr(scheduler, length, None)
        if isinstance(value, (int, float)) and value > epochs:
            log.warning(
                "schedules are stepped once an epoch: the %s of %g of %s is more than the "
                "max_epochs, %d.",
                {"total_size": "cycle"}.get(length, length),
                value,
                name,
                epochs,
            )


def check_last_batch(problem: Problem, seed: int) -> None:
    """Check that batch norm never gets a single example, which has no variance.

    Args:
        problem: The problem.
        seed: Seed of the data and the weights.

    Raises:
        ValueError: If the last batch of an epoch holds one example that the model cannot train on.
    """
    split = problem.splits(seed).train
    size = len(split) % problem.batch_size or min(len(split), problem.batch_size)
    if size > 1:
        return
    model = problem.build(seed).to(split.y.device)
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    # Not every batch norm needs a variance, so the model is tried.
    with preserve_rng_state(), fork_rng(derive_seed(seed, "check")), torch.no_grad():
        try:
            model(map_tensors(lambda t: t[:1].clone(), split.x))
        except Exception as error:  # ruff: ignore[blind-except] -- the first batch raises it again
            if "more than 1 value per channel" not in str(error):
                return
        else:
            return
    raise ValueError(
        f"with batch norm no batch may hold a single example, but {len(split)} examples in batches "
        f"of {problem.batch_size} leave one over. Choose another batch_size, or a model without "
        "batch norm."
    )
