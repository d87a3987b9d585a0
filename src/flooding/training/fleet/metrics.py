"""What the runs of a fleet measure: numbers ``[runs]``, read from the device once an epoch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional
from torch.utils._pytree import tree_map

from flooding.data import Inputs, Split, map_tensors
from flooding.torch_losses import Loss, loss_options
from flooding.training.problem import Problem

__all__ = ["StackedSplit", "is_logits", "label_metrics", "read", "split_metrics", "stacked_loss"]

_Forward = Callable[[Inputs], Any]


@dataclass
class StackedSplit:
    """One split of several seeds, each kept once.

    Args:
        x: Inputs ``[seeds, examples, ...]``.
        y: Targets ``[seeds, examples, ...]``.
        clean: Labels before noise, or None.
        row_of: Which of the seeds each run has, int64 ``[runs]``.
    """

    x: Inputs
    y: Tensor
    clean: Tensor | None
    row_of: Tensor

    @staticmethod
    def stack(splits: Sequence[Split], row_of: Tensor) -> StackedSplit:
        """Stack the splits of several seeds.

        Args:
            splits: A split for each seed.
            row_of: Which of them each run has.

        Returns:
            The stacked split.

        Raises:
            ValueError: If they differ in their shapes.
        """
        try:
            x = tree_map(lambda *parts: torch.stack(parts), *(split.x for split in splits))
            y = torch.stack([split.y for split in splits])
            clean = None
            if splits[0].clean is not None:
                clean = torch.stack([split.clean for split in splits])  # type: ignore[misc]
        except (RuntimeError, TypeError, ValueError):
            sizes = sorted({len(split) for split in splits})
            raise ValueError(
                f"the data of a fleet must have the same shape for every seed, got {sizes} "
                "examples or other inputs. Put each shape into a fleet of its own."
            ) from None
        return StackedSplit(x, y, clean, row_of)

    def __len__(self) -> int:
        return self.y.shape[1]

    def batch(self, index: slice | Tensor) -> tuple[Inputs, Tensor]:
        """Take a batch of every run, as a copy.

        Args:
            index: A slice for all runs, or int64 ``[runs, batch]``.

        Returns:
            Inputs and targets ``[runs, batch, ...]``.
        """
        take = functools.partial(self._take, index=index)
        return map_tensors(take, self.x), take(self.y)

    def labels(self, order: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Give the labels of every run.

        Args:
            order: Examples of each run, int64 ``[runs, examples]``; None is the order of the split.

        Returns:
            Targets ``[runs, examples, ...]``, and the labels before noise or None.
        """
        index = slice(None) if order is None else order
        clean = None if self.clean is None else self._take(self.clean, index)
        return self._take(self.y, index), clean

    def _take(self, tensor: Tensor, index: slice | Tensor) -> Tensor:
        if isinstance(index, slice):
            return tensor[:, index].index_select(0, self.row_of)
        return tensor[self.row_of.unsqueeze(1), index]


def stacked_loss(loss: Loss) -> Callable[[Any, Tensor], Tensor]:
    """Turn a mean loss into one of several runs.

    Args:
        loss: A callable ``(outputs, targets) -> mean``.

    Returns:
        A callable of outputs and targets ``[runs, batch, ...]`` that gives means ``[runs]``.
    """
    options = loss_options(loss)
    is_plain = options.weight is None and options.reduction in {None, "mean"}
    general = vmap(loss)
    if options.function is not functional.cross_entropy or not is_plain:
        return general
    smoothing = options.label_smoothing

    def cross_entropy(output: Any, y: Tensor) -> Tensor:
        if not is_logits(output, y):
            return general(output, y)
        losses = functional.cross_entropy(
            output.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=smoothing
        )
        return losses.view(y.shape).mean(1)

    return cross_entropy


def is_logits(output: object, y: Tensor) -> bool:
    """Tell whether outputs of several runs are one score for each class.

    Args:
        output: Outputs.
        y: Targets.

    Returns:
        Whether they are ``[runs, examples, classes]`` for integer targets ``[runs, examples]``.
    """
    if not isinstance(output, Tensor) or y.is_floating_point():
        return False
    return output.dim() == 3 and y.dim() == 2


def label_metrics(
    eval_loss: Callable[[Any, Tensor], Tensor],
    name: str,
    logits: Tensor,
    labels: tuple[Tensor, Tensor | None],
) -> dict[str, Tensor]:
    """Measure logits against noisy and clean labels.

    Args:
        eval_loss: The stacked loss that is reported.
        name: Name of the split, which begins the names of the numbers.
        logits: Outputs ``[runs, examples, classes]``.
        labels: Targets and labels before noise.

    Returns:
        Numbers ``[runs]`` by name.
    """
    y, clean = labels
    with torch.no_grad():
        classes = logits.argmax(2)
        values = {f"{name}_accuracy": (classes == y).float().mean(1)}
        if clean is not None:
            values[f"{name}_loss_clean"] = eval_loss(logits, clean)
            values[f"{name}_accuracy_clean"] = (classes == clean).float().mean(1)
    return values


def split_metrics(
    problem: Problem,
    forward: _Forward,
    split: StackedSplit,
    name: str,
    examples: int | None = None,
    check: Callable[[Any, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Pass a split of every run through its model, in evaluation mode, and measure it.

    Args:
        problem: The Problem.
        forward: Gives outputs ``[runs, batch, ...]`` of inputs.
        split: The split.
        name: Its name, which begins the names of the numbers.
        examples: How many of the first examples to use; None is all.
        check: Checks outputs and targets before the loss sees them.

    Returns:
        Numbers ``[runs]`` by name.
    """
    size, count = problem.eval_batch_size, min(examples or len(split), len(split))
    eval_loss = stacked_loss(problem.reported)
    with torch.no_grad():
        outputs = []
        for start in range(0, count, size):
            x, _ = split.batch(slice(start, min(start + size, count)))
            outputs.append(forward(x))
        output = torch.cat(outputs, dim=1)
        y, clean = split.labels(None)
        y = y[:, :count]
        if clean is not None:
            clean = clean[:, :count]
        if check is not None:
            check(output, y)
        values = {f"{name}_loss": eval_loss(output, y)}
        if is_logits(output, y):
            values |= label_metrics(eval_loss, name, output, (y, clean))
        if problem.score is not None and name != "train":
            scores = []
            for one_output, one_y in zip(output, y, strict=True):
                scores.append(float(problem.score.function(one_output, one_y)))
            values[f"{name}_score"] = torch.tensor(scores, dtype=torch.float64)
    return values


def read(values: dict[str, Tensor], count: int) -> list[dict[str, float]]:
    """Read numbers of every run from the device, in one transfer.

    Args:
        values: Numbers ``[runs]`` by name.
        count: How many runs.

    Returns:
        Numbers by name, for each run.
    """
    if not values:
        return [{} for _ in range(count)]
    device = next((v.device for v in values.values() if v.device.type != "cpu"), None)
    wide = torch.float32 if device is not None and device.type == "mps" else torch.float64
    columns = [v.detach().to(device=device, dtype=wide) for v in values.values()]
    table = torch.stack(columns, dim=1).tolist()
    return [dict(zip(values, row, strict=True)) for row in table]
