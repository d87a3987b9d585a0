"""Datasets and loaders of any batch shape as splits, gathered in memory once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flooding.data import Split, Splits, map_tensors
from flooding.numerics import fork_generators

__all__ = ["gather", "splits"]

_TARGETS = ("labels", "label", "targets", "target", "y")


def splits(train: Any, val: Any, test: Any = None) -> Splits:
    """Gather datasets or loaders into splits, see :func:`gather`.

    Args:
        train: Examples to fit.
        val: Examples to choose on.
        test: Examples to report on, or None.

    Returns:
        The splits.
    """
    return Splits(gather(train), gather(val), None if test is None else gather(test))


def gather(source: Any) -> Split:
    """Go once through a dataset or loader and keep all its examples in memory.

    A batch may be a pair ``(inputs, targets)``, a longer tuple whose last entry is the targets, or a mapping with the
    targets under ``labels``, ``label``, ``targets``, ``target`` or ``y``; inputs may be tensors or nested tuples, lists
    and mappings of them. Every Run sees the same examples: what a dataset augments at random is frozen here, so give
    the problem an ``augment`` instead. Torch's generator is left as it was.

    Args:
        source: A map-style or iterable dataset, a DataLoader, or any iterable of batches.

    Returns:
        The examples, in the order they came.

    Raises:
        ValueError: If there are no examples, a batch has no targets, or batches differ in their structure.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> len(gather(TensorDataset(torch.zeros(7, 3), torch.arange(7))))
        7
    """
    with fork_generators():
        batches = [_parted(batch) for batch in _batches(source)]
    if not batches:
        raise ValueError("a split must hold at least one example, but the data gave no batch. Give it more data.")
    targets = torch.cat([y for _, y in batches])
    try:
        return Split(_joined([x for x, _ in batches]), targets)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"batches must be tensors that fit together, but they do not ({error}). Pad them to one size."
        ) from None


def _batches(source: Any) -> Iterable[Any]:
    if isinstance(source, Dataset):
        return DataLoader(source, batch_size=256)
    if isinstance(source, Iterable):
        return source
    raise ValueError(f"data must be a dataset, a loader or an iterable of batches, got {type(source).__name__}.")


def _parted(batch: Any) -> tuple[Any, Tensor]:
    """Part a batch into inputs and targets."""
    if isinstance(batch, Mapping):
        names = [name for name in _TARGETS if name in batch]
        if not names:
            raise ValueError(f"a batch must have targets under one of {', '.join(_TARGETS)}, got {sorted(batch)}.")
        return {name: value for name, value in batch.items() if name != names[0]}, torch.as_tensor(batch[names[0]])
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)) and len(batch) >= 2:
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return inputs, torch.as_tensor(batch[-1])
    raise ValueError(f"a batch must be (inputs, targets) or a mapping, got {type(batch).__name__}.")


def _joined(parts: list[Any]) -> Any:
    """Join the inputs of all batches along their first axis."""
    columns = iter(list(zip(*(_leaves(part) for part in parts), strict=True)))
    return map_tensors(lambda _: torch.cat(list(next(columns))).detach(), parts[0])


def _leaves(x: Any) -> list[Tensor]:
    leaves: list[Tensor] = []
    map_tensors(lambda t: (leaves.append(t), t)[1], x)
    return leaves
