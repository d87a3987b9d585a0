"""Datasets and loaders of any batch shape as splits, gathered in memory once."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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

from flooding.data import Split, Splits, map_tensors
from flooding.numerics import fork_generators

__all__ = ["load_split", "splits"]

log = logging.getLogger("flooding")

_TARGETS = ("labels", "label", "targets", "target", "y")
_SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler)  # each example at most once
_LIMIT = 1_000_000
_SECONDS = 5.0  # between two messages while data are read
# How torch's default_collate begins its errors; a worker process of a loader puts its traceback
# before them.
_UNEQUAL = (
    "stack expects each tensor to be equal size",
    "each element in list of batch should be of equal size",
)
_NO_NUMBERS = "batch must contain tensors"


def splits(train: Any, val: Any, test: Any = None, *, limit: int = _LIMIT) -> Splits:
    """Gather datasets or loaders into splits, see :func:`gather`.

    Args:
        train: Examples to fit.
        val: Examples to choose on.
        test: Examples to report on, or None.
        limit: Most examples to read from a source without a length, at least 1.

    Returns:
        The splits.
    """
    fit = load_split(train, limit=limit)
    return Splits(fit, _gather(val, limit), None if test is None else _gather(test, limit))


def load_split(source: Any, *, limit: int = _LIMIT) -> Split:
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
        >>> len(gather(TensorDataset(torch.zeros(7, 3), torch.arange(7))))
        7
    """
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a whole number of examples of at least 1, got {limit!r}.")
    split = _gather(source, limit)
    size = (
        getattr(source.batch_sampler, "batch_size", None)
        if isinstance(source, DataLoader)
        else None
    )
    if size is not None:
        text = "a Problem makes its own batches: batch_size %d of the loader is not used. Give Problem(batch_size=%d)."
        log.warning(text, size, size)
    return split


def _gather(source: Any, limit: int) -> Split:
    if isinstance(source, DataLoader):
        _check_sampler(source)
    with _preserve_generators(source):
        batches = _read(_batches(source), _read_limit(source, limit))
        parts = [_pair(part) for part in iter(lambda: list(itertools.islice(batches, 1000)), [])]
    if not parts:
        raise ValueError(
            "a split must hold at least one example, but the data gave no batch. Give it more data."
        )
    x, y = _pair(parts)
    if isinstance(source, DataLoader):
        _warn_drop_last(source, len(y))
    return Split(x, y)


def _samplers(loader: DataLoader) -> list[Any]:
    """Give what decides which examples a loader gives: its sampler, or the user's own sampler of
    batches.
    """
    batches = loader.batch_sampler
    if loader.batch_size is not None or batches is None:
        return [loader.sampler]
    inner = getattr(batches, "sampler", None)
    return [
        part for part in (batches, inner) if part is not None and type(part) is not BatchSampler
    ]


def _check_sampler(loader: DataLoader) -> None:
    """Refuse a sampler that repeats examples, and name one that nothing is known about."""
    if isinstance(loader.dataset, IterableDataset):
        return
    for part in _samplers(loader):
        name = type(part).__name__
        if isinstance(part, WeightedRandomSampler) or getattr(part, "replacement", False):
            raise ValueError(
                f"a loader's sampler must give each example once, got {name}: what it draws now would be the data of "
                "every epoch. Give the dataset itself, and weights in the loss, such as CrossEntropyLoss(weight=...)."
            )
        if type(part) not in _SAMPLERS:
            log.warning(
                "the loader's %s is asked once: every epoch sees the examples that it gives now.",
                name,
            )


def _warn_drop_last(loader: DataLoader, n: int) -> None:
    """Say what ``drop_last`` left out."""
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if (
        getattr(loader.batch_sampler, "drop_last", False)
        and not _has_no_length(sampler)
        and n < len(sampler)  # type: ignore[arg-type]
    ):
        log.warning(
            "drop_last of the loader left %d of %d examples out, the same ones in every epoch. Use drop_last=False.",
            len(sampler) - n,  # type: ignore[arg-type]
            len(sampler),  # type: ignore[arg-type]
        )


@contextmanager
def _preserve_generators(source: Any) -> Generator[None, None, None]:
    """Give torch's generator, and those of a loader and its sampler, back as they were.

    Yields:
        Nothing.
    """
    parts = [source, getattr(source, "sampler", None), getattr(source, "batch_sampler", None)]
    found = [getattr(part, "generator", None) for part in parts if isinstance(source, DataLoader)]
    generators = [g for g in found if isinstance(g, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        with fork_generators():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _has_no_length(source: Any) -> bool:
    try:
        len(source)
    except (TypeError, NotImplementedError):
        return True
    return False


def _read_limit(source: Any, limit: int) -> int | None:
    """Give how many examples to read at most; None where a source is sure to end."""
    data: Any = source.dataset if isinstance(source, DataLoader) else source
    if _has_no_length(data):
        return limit
    return (
        max(limit, len(data))  # type: ignore[arg-type]
        if isinstance(source, DataLoader) or isinstance(data, IterableDataset)
        else None
    )  # type: ignore[arg-type]


def _batches(source: Any) -> Iterable[Any]:
    if isinstance(source, Dataset):
        if not isinstance(source, IterableDataset) and _has_no_length(source):
            raise ValueError(
                f"a dataset must have a length, got {type(source).__name__} without __len__. Define it."
            )
        return DataLoader(source, batch_size=256, collate_fn=_collate)
    if isinstance(source, Iterable) and not isinstance(
        source, (Mapping, Tensor, np.ndarray, str, bytes)
    ):
        return source
    raise ValueError(
        f"data must be a dataset, a loader or an iterable of batches, got {type(source).__name__}. Tensors make a "
        "split without it: flooding.data.Split(x, y)."
    )


def _collate(examples: list[Any]) -> Any:
    try:
        return default_collate(examples)
    except (RuntimeError, TypeError) as error:
        if (advice := _collate_error(error)) is None:
            raise
        raise advice from None


def _collate_error(error: Exception) -> ValueError | None:
    """Say what to do about an error of torch's default_collate."""
    text = str(error)
    if any(part in text for part in _UNEQUAL):
        shapes = text[text.rfind("got [") :] if "got [" in text else "unequal lengths"
        return ValueError(
            f"examples must have one size, {shapes}. Pad them, in the dataset or in a collate_fn."
        )
    if _NO_NUMBERS in text:
        got = text[text.rfind("found") :].removeprefix("found ")
        return ValueError(
            f"examples must be tensors, arrays or numbers, got {got}. Convert them in the dataset."
        )
    return None


def _read(source: Iterable[Any], limit: int | None) -> Iterator[tuple[Any, Tensor]]:
    """Go through the batches, split into inputs and targets; stop with an error where they do not
    end.
    """
    n, tick = 0, time.monotonic()
    items = iter(source)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, TypeError) as error:
            if (advice := _collate_error(error)) is None:
                raise
            raise advice from None
        x, y = _parted(item)
        n += len(y)
        if limit is not None and n > limit:
            raise ValueError(
                f"data without a length must end within limit={limit:,} examples, got more. Cut them, with "
                "itertools.islice for instance, or give a larger limit."
            )
        yield x, y
        if time.monotonic() - tick > _SECONDS:
            tick = time.monotonic()
            say = log.info if limit is None else log.warning
            say(
                "still reading: %d examples%s",
                n,
                "" if limit is None else f" of at most limit={limit:,}",
            )


def _parted(item: Any) -> tuple[Any, Tensor]:
    """Part a batch, or a single example, into inputs and targets ``[examples, ...]``."""
    if isinstance(item, Mapping):
        names = [name for name in _TARGETS if name in item]
        if not names:
            raise ValueError(
                f"a batch must have targets under one of {', '.join(_TARGETS)}, got {', '.join(map(str, item))}. "
                "Rename them."
            )
        x, y = {name: value for name, value in item.items() if name != names[0]}, item[names[0]]
    elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)) and len(item) >= 2:
        x, y = item[0] if len(item) == 2 else tuple(item[:-1]), item[-1]
    else:
        raise ValueError(
            f"a batch must be (inputs, targets) or a mapping, got {type(item).__name__}. Whole tensors make a split "
            "without it: flooding.data.Split(x, y)."
        )
    x, y = _tensors(x, "inputs"), _targets(y)
    if y.ndim == 0:  # one example
        x, y = map_tensors(lambda t: t[None], x), y[None]
    lengths: set[int | None] = set()
    map_tensors(lambda t: (lengths.add(len(t) if t.ndim else None), t)[1], x)
    if lengths != {len(y)}:
        got = (
            ", ".join(sorted("a single number" if n is None else str(n) for n in lengths))
            or "no input"
        )
        raise ValueError(
            f"the inputs and targets of a batch must have equally many examples, got {got} and {len(y)}. Examples one "
            "by one, with several targets each, go into a torch.utils.data.Dataset."
        )
    return x, y


def _targets(y: Any) -> Tensor:
    """Give targets as a tensor, class labels as int64."""
    t = _vector(y) if isinstance(y, (list, tuple)) else _tensors(y, "targets")
    if not isinstance(t, Tensor):
        raise ValueError(
            f"the targets of a batch must be one tensor, got {type(y).__name__}. Number the classes."
        )
    return t if t.is_floating_point() or t.is_complex() else t.long()


def _vector(values: Sequence[Any]) -> Tensor | None:
    """Give plain numbers, or rows of them of one length, as a tensor; None where they are something
    else.
    """
    arrays = any(isinstance(value, (np.ndarray, np.generic)) for value in values)
    try:
        return torch.tensor(np.asarray(values) if arrays else values)
    except (ValueError, TypeError, RuntimeError):
        return None


def _tensors(x: Any, name: str) -> Any:
    """Give the arrays and numbers of a structure as tensors."""
    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "biuf":
        native = (
            np.ascontiguousarray(x) if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
        )
        return torch.tensor(native).reshape(x.shape)
    if isinstance(x, (bool, int, float)):
        return torch.tensor(x)
    if isinstance(x, Mapping):
        return {key: _column(value, str(key)) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        parts = [_tensors(value, name) for value in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    hint = (
        "Number the classes from 0."
        if name == "targets"
        else "Convert it in the dataset, or leave it out."
    )
    raise ValueError(
        f"inputs and targets must be tensors or arrays of numbers, got {_type_name(x)} in {name}. {hint}"
    )


def _column(value: Any, name: str) -> Any:
    """Give an entry of a mapping as tensors; there a list of numbers is a vector, as in Hugging
    Face's datasets.
    """
    numbers = isinstance(value, (list, tuple)) and not any(
        isinstance(v, (Tensor, np.ndarray)) for v in value
    )
    vector = _vector(value) if numbers and len(value) else None
    if (
        vector is None
        and numbers
        and value
        and all(isinstance(row, (list, tuple)) for row in value)
    ):
        lengths = sorted({len(row) for row in value})
        raise ValueError(
            f"rows of {name} must be numbers of one length, got lengths {lengths[:5]}. Pad them."
        )
    return _tensors(value, name) if vector is None else vector


def _type_name(x: Any) -> str:
    return f"{x!r:.40}" if isinstance(x, (str, bytes)) or x is None else type(x).__name__


def _pair(batches: list[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """Join batches of inputs and targets."""
    return _joined([x for x, _ in batches], "inputs"), _joined([y for _, y in batches], "targets")


def _joined(parts: list[Any], name: str) -> Any:
    """Join the same structure of all batches along the first axis of its tensors."""
    first = parts[0]
    if isinstance(first, Tensor):
        shapes = sorted({tuple(part.shape[1:]) for part in parts if isinstance(part, Tensor)})
        if len(shapes) > 1 or not all(isinstance(part, Tensor) for part in parts):
            got = " and ".join(str(list(shape)) for shape in shapes[:3])
            raise ValueError(
                f"the {name} of all batches must fit together, got examples of {got}. Pad them."
            )
        return torch.cat(parts)
    structures = sorted({_structure(part) for part in parts})
    if len(structures) > 1:
        got = " and ".join(structures[:3])
        raise ValueError(
            f"the {name} of all batches must fit together, got {got}. Give them one structure."
        )
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], str(key)) for key in first}
    columns = [_joined(list(column), name) for column in zip(*parts, strict=True)]
    return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)


def _structure(part: Any) -> str:
    if isinstance(part, dict):
        return f"a mapping of {', '.join(sorted(map(str, part)))}"
    return "a tensor" if isinstance(part, Tensor) else f"a {type(part).__name__} of {len(part)}"
