"""Datasets and loaders of any batch shape as splits, read into memory once."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from flooding.data import Inputs, Split, Splits, map_tensors
from flooding.numerics import fork_generators

__all__ = ["load_split", "splits"]

log = logging.getLogger("flooding")

_TARGETS = ("labels", "label", "targets", "target", "y")
# Samplers that give each example at most once.
_SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler)
_LIMIT = 1_000_000
_CHUNK = 1000  # batches that are joined at once
_MESSAGE_SECONDS = 5.0  # between two messages while data are read
# How torch's default_collate begins its errors; a worker process of a loader puts its traceback
# before them.
_UNEQUAL = (
    "stack expects each tensor to be equal size",
    "each element in list of batch should be of equal size",
)
_NO_NUMBERS = "batch must contain tensors"


def splits(train: object, val: object, test: object = None, *, limit: int = _LIMIT) -> Splits:
    """Read datasets or loaders into splits, see :func:`load_split`.

    Args:
        train: Examples to fit.
        val: Examples to choose on.
        test: Examples to report on, or None.
        limit: Most examples to read from a source without a length, at least 1.

    Returns:
        The splits.
    """
    # The training loader alone warns that its batch size is not used.
    train_split = load_split(train, limit=limit)
    val_split = _load(val, limit)
    return Splits(train_split, val_split, None if test is None else _load(test, limit))


def load_split(source: object, *, limit: int = _LIMIT) -> Split:
    """Go once through a dataset or loader and keep all its examples in memory.

    A batch may be a pair ``(inputs, targets)``, a longer tuple whose last entry is the targets, or
    a mapping with the targets under ``labels``, ``label``, ``targets``, ``target`` or ``y``; inputs
    may be tensors, NumPy arrays or nested tuples, lists and mappings of them. An item whose target
    is a single number is one example. Class labels become int64.

    Every Run sees the same examples: what a dataset augments at random is frozen here, so give the
    problem an ``augment`` instead. Of a DataLoader the ``collate_fn`` and the workers are used; the
    batches of an epoch are the Problem's own, so the loader's ``batch_size`` is not used, and the
    log says so. A sampler that takes a subset keeps it. Torch's generator and the loader's own are
    left as they were.

    Args:
        source: A map-style or iterable dataset, a DataLoader, or any iterable of batches or
            examples.
        limit: Most examples to read from a source without a length, which may never end; at least
            1.

    Returns:
        The examples, in the order they came.

    Raises:
        ValueError: If there are no examples, a batch has no targets, batches differ in their
            structure, an input is no number, the loader's sampler draws with replacement, or a
            source without a length exceeds ``limit``.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> len(load_split(TensorDataset(torch.zeros(7, 3), torch.arange(7))))
        7
    """
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a whole number of examples of at least 1, got {limit!r}.")
    split = _load(source, limit)
    if isinstance(source, DataLoader):
        size = getattr(source.batch_sampler, "batch_size", None)
        if size is not None:
            log.warning(
                "a Problem makes its own batches: batch_size %d of the loader is not used. "
                "Give Problem(batch_size=%d).",
                size,
                size,
            )
    return split


def _load(source: object, limit: int) -> Split:
    if isinstance(source, DataLoader):
        _check_sampler(source)
    parts = []
    with _preserve_generators(source):
        batches = _read(_batches(source), _read_limit(source, limit))
        # Join some batches at a time: millions of single examples would take much memory.
        while chunk := list(itertools.islice(batches, _CHUNK)):
            parts.append(_join_batches(chunk))
    if not parts:
        raise ValueError(
            "a split must hold at least one example, but the data gave no batch. Give it more data."
        )
    x, y = _join_batches(parts)
    if isinstance(source, DataLoader):
        _warn_drop_last(source, len(y))
    return Split(x, y)


def _samplers(loader: DataLoader) -> list[object]:
    """List the samplers of a loader: of examples, or the user's own of batches and within it."""
    # A loader with a batch size has torch's own batch sampler, whatever samples within it.
    batch_sampler = loader.batch_sampler
    if loader.batch_size is not None or batch_sampler is None:
        return [loader.sampler]
    samplers = (batch_sampler, getattr(batch_sampler, "sampler", None))
    return [s for s in samplers if s is not None and type(s) is not BatchSampler]


def _check_sampler(loader: DataLoader) -> None:
    """Refuse a sampler that repeats examples, and warn of one of the user's own."""
    if isinstance(loader.dataset, IterableDataset):
        return
    for sampler in _samplers(loader):
        name = type(sampler).__name__
        if isinstance(sampler, WeightedRandomSampler) or getattr(sampler, "replacement", False):
            raise ValueError(
                f"a loader's sampler must give each example once, got {name}: what it draws now "
                "would be the data of every epoch. Give the dataset itself, and weights in the "
                "loss, such as CrossEntropyLoss(weight=...)."
            )
        if type(sampler) not in _SAMPLERS:
            log.warning(
                "the loader's %s is asked once: every epoch sees the examples that it gives now.",
                name,
            )


def _warn_drop_last(loader: DataLoader, n: int) -> None:
    """Warn of the examples that ``drop_last`` left out."""
    if not getattr(loader.batch_sampler, "drop_last", False):
        return
    # Of an iterable dataset nobody knows how many were left out.
    total = _length(getattr(loader.batch_sampler, "sampler", None))
    if total is not None and n < total:
        log.warning(
            "drop_last of the loader left %d of %d examples out, the same ones in every epoch. "
            "Use drop_last=False.",
            total - n,
            total,
        )


@contextmanager
def _preserve_generators(source: object) -> Generator[None, None, None]:
    """Restore torch's generator, and those of a loader and its samplers, afterwards."""
    generators = []
    if isinstance(source, DataLoader):
        for owner in (source, source.sampler, source.batch_sampler):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generators.append(generator)
    states = [generator.get_state() for generator in generators]
    try:
        with fork_generators():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _length(source: object) -> int | None:
    """Give the length of a source, or None where it has none."""
    if not isinstance(source, Sized):
        return None
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def _read_limit(source: object, limit: int) -> int | None:
    """Give the most examples to read; None where a source is sure to end."""
    data = source.dataset if isinstance(source, DataLoader) else source
    length = _length(data)
    if length is None:
        return limit
    # A loader or an iterable may give more than its length promises.
    may_be_longer = isinstance(source, DataLoader) or isinstance(data, IterableDataset)
    return max(limit, length) if may_be_longer else None


def _batches(source: object) -> Iterable[object]:
    if isinstance(source, Dataset):
        if not isinstance(source, IterableDataset) and _length(source) is None:
            raise ValueError(
                f"a dataset must have a length, got {type(source).__name__} without __len__. "
                "Define it."
            )
        return DataLoader(source, batch_size=256, collate_fn=_collate)
    # These can be iterated too, but not over batches.
    is_data = isinstance(source, (Mapping, Tensor, np.ndarray, str, bytes))
    if isinstance(source, Iterable) and not is_data:
        return source
    raise ValueError(
        "data must be a dataset, a loader or an iterable of batches, "
        f"got {type(source).__name__}. Tensors make a split without it: flooding.data.Split(x, y)."
    )


def _collate(examples: list[object]) -> object:
    try:
        return default_collate(examples)
    except (RuntimeError, TypeError) as error:
        raise (_collate_error(error) or error) from None


def _collate_error(error: Exception) -> ValueError | None:
    """Translate an error of torch's default_collate; None for another error."""
    text = str(error)
    if any(part in text for part in _UNEQUAL):
        shapes = "unequal lengths"
        if "got [" in text:
            shapes = text[text.rfind("got [") :]
        return ValueError(
            f"examples must have one size, {shapes}. Pad them, in the dataset or in a collate_fn."
        )
    if _NO_NUMBERS in text:
        kind = text[text.rfind("found") :].removeprefix("found ")
        return ValueError(
            f"examples must be tensors, arrays or numbers, got {kind}. Convert them in the dataset."
        )
    return None


# A batch: nested tuples, lists and dicts of tensors as inputs, and a tensor of targets.
_Batch: TypeAlias = tuple[Inputs, Tensor]


def _read(source: Iterable[object], limit: int | None) -> Iterator[_Batch]:
    """Read the batches as inputs and targets, at most ``limit`` examples."""
    n, last_message = 0, time.monotonic()
    items = iter(source)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, TypeError) as error:
            raise (_collate_error(error) or error) from None
        x, y = _split_batch(item)
        n += len(y)
        # Checked before the batch is kept: a source that never ends must not fill the memory.
        if limit is not None and n > limit:
            raise ValueError(
                f"data without a length must end within limit={limit:,} examples, got more. "
                "Cut them, with itertools.islice for instance, or give a larger limit."
            )
        yield x, y
        if time.monotonic() - last_message > _MESSAGE_SECONDS:
            last_message = time.monotonic()
            if limit is None:
                log.info("still reading: %d examples", n)
            else:
                log.warning(f"still reading: %d examples of at most limit={limit:,}", n)


def _split_batch(item: object) -> _Batch:
    """Split a batch, or a single example, into inputs and targets ``[examples, ...]``."""
    # Find the targets.
    if isinstance(item, Mapping):
        target = next((name for name in _TARGETS if name in item), None)
        if target is None:
            raise ValueError(
                f"a batch must have targets under one of {', '.join(_TARGETS)}, "
                f"got {', '.join(map(str, item))}. Rename them."
            )
        inputs = {name: value for name, value in item.items() if name != target}
        targets = item[target]
    elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)) and len(item) >= 2:
        inputs = item[0] if len(item) == 2 else tuple(item[:-1])
        targets = item[-1]
    else:
        raise ValueError(
            f"a batch must be (inputs, targets) or a mapping, got {type(item).__name__}. "
            "Whole tensors make a split without it: flooding.data.Split(x, y)."
        )

    # A target that is a single number makes the item one example.
    x, y = _to_tensors(inputs, "inputs"), _to_targets(targets)
    if y.ndim == 0:
        x, y = map_tensors(lambda tensor: tensor[None], x), y[None]

    # Inputs and targets must agree on the number of examples, in every tensor.
    lengths = set()

    def add_length(tensor: Tensor) -> Tensor:
        lengths.add(str(len(tensor)) if tensor.ndim else "a single number")
        return tensor

    map_tensors(add_length, x)
    if lengths != {str(len(y))}:
        raise ValueError(
            "the inputs and targets of a batch must have equally many examples, "
            f"got {', '.join(sorted(lengths)) or 'no input'} and {len(y)}. "
            "Examples one by one, with several targets each, go into a torch.utils.data.Dataset."
        )
    return x, y


def _to_targets(targets: object) -> Tensor:
    """Convert targets to a tensor, class labels to int64."""
    is_list = isinstance(targets, (list, tuple))
    y = _to_vector(targets) if is_list else _to_tensors(targets, "targets")
    if not isinstance(y, Tensor):
        raise ValueError(
            f"the targets of a batch must be one tensor, got {type(targets).__name__}. "
            "Number the classes."
        )
    return y if y.is_floating_point() or y.is_complex() else y.long()


def _to_vector(values: Sequence[object]) -> Tensor | None:
    """Convert numbers, or rows of them of one length, to a tensor; None for anything else."""
    has_arrays = any(isinstance(value, (np.ndarray, np.generic)) for value in values)
    try:
        return torch.tensor(np.asarray(values) if has_arrays else values)
    except (ValueError, TypeError, RuntimeError):
        return None


def _to_tensors(x: object, name: str) -> Inputs:
    """Convert the arrays and numbers of a structure to tensors."""
    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "biuf":
        # Torch takes neither foreign byte orders nor negative strides.
        if x.dtype.isnative:
            native = np.ascontiguousarray(x)
        else:
            native = x.astype(x.dtype.newbyteorder("="))
        return torch.tensor(native).reshape(x.shape)
    if isinstance(x, (bool, int, float)):
        return torch.tensor(x)
    if isinstance(x, Mapping):
        return {key: _to_column(value, str(key)) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return _rebuild(x, [_to_tensors(value, name) for value in x])
    fix = "Convert it in the dataset, or leave it out."
    if name == "targets":
        fix = "Number the classes from 0."
    value = f"{x!r:.40}" if isinstance(x, (str, bytes)) or x is None else type(x).__name__
    raise ValueError(
        f"inputs and targets must be tensors or arrays of numbers, got {value} in {name}. {fix}"
    )


def _to_column(value: object, name: str) -> Inputs:
    """Convert an entry of a mapping, where lists are vectors as in Hugging Face's datasets."""
    if not isinstance(value, (list, tuple)) or len(value) == 0:
        return _to_tensors(value, name)
    # Arrays in a list are columns of their own, not rows of one vector.
    if any(isinstance(row, (Tensor, np.ndarray)) for row in value):
        return _to_tensors(value, name)
    vector = _to_vector(value)
    if vector is not None:
        return vector
    if all(isinstance(row, (list, tuple)) for row in value):
        lengths = sorted({len(row) for row in value})
        raise ValueError(
            f"rows of {name} must be numbers of one length, got lengths {lengths[:5]}. Pad them."
        )
    return _to_tensors(value, name)


def _rebuild(structure: tuple | list, parts: list[Inputs]) -> Inputs:
    """Make a tuple, named tuple or list like another one of other parts."""
    # A named tuple takes its parts as arguments.
    if hasattr(structure, "_fields"):
        return type(structure)(*parts)
    return type(structure)(parts)


def _join_batches(batches: list[_Batch]) -> _Batch:
    """Join batches of inputs and targets."""
    x = _join([inputs for inputs, _ in batches], "inputs")
    y = _join([targets for _, targets in batches], "targets")
    return x, y


def _join(parts: list[Inputs], name: str) -> Inputs:
    """Join the same structure of all batches along the first axis of its tensors."""
    first = parts[0]
    if isinstance(first, Tensor):
        shapes = sorted({tuple(part.shape[1:]) for part in parts if isinstance(part, Tensor)})
        if len(shapes) > 1 or not all(isinstance(part, Tensor) for part in parts):
            examples = " and ".join(str(list(shape)) for shape in shapes[:3])
            raise ValueError(
                f"the {name} of all batches must fit together, got examples of {examples}. "
                "Pad them."
            )
        return torch.cat(parts)
    # Only equal structures can be joined part by part.
    structures = sorted({_describe_structure(part) for part in parts})
    if len(structures) > 1:
        raise ValueError(
            f"the {name} of all batches must fit together, got {' and '.join(structures[:3])}. "
            "Give them one structure."
        )
    if isinstance(first, dict):
        joined = {}
        for key in first:
            joined[key] = _join([part[key] for part in parts], str(key))
        return joined
    return _rebuild(first, [_join(list(column), name) for column in zip(*parts, strict=True)])


def _describe_structure(part: Tensor | dict | tuple | list) -> str:
    if isinstance(part, dict):
        return f"a mapping of {', '.join(sorted(map(str, part)))}"
    if isinstance(part, Tensor):
        return "a tensor"
    return f"a {type(part).__name__} of {len(part)}"
