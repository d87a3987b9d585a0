"""Splits: training, validation and test examples as tensors, with noisy and clean labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Inputs", "Split", "Splits", "flip_labels", "make_rng", "map_tensors", "sha256"]

# A tensor, or nested tuples, lists and dicts of tensors: what a model takes is known to it alone.
Inputs: TypeAlias = Any


def map_tensors(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Apply a function to every tensor of an input.

    Args:
        function: What to do with each tensor.
        x: A tensor, or nested tuples, lists and dicts of tensors.

    Returns:
        The same structure with each tensor replaced.

    Raises:
        TypeError: If the structure holds something that is not a tensor.
    """
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, dict):
        return type(x)((name, map_tensors(function, value)) for name, value in x.items())
    if isinstance(x, (tuple, list)):
        parts = [map_tensors(function, value) for value in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    raise TypeError(
        "inputs must be tensors, or tuples, lists and dicts of tensors, "
        f"got {type(x).__name__}. Convert arrays with torch.as_tensor."
    )


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Examples of one split; every field has the examples on its first axis.

    Args:
        x: Inputs, a tensor ``[examples, ...]`` or tuples, lists and dicts of such tensors.
        y: Labels the user has, noisy where labels are noisy: int64 classes ``[examples]`` or float
            targets.
        clean: Labels before noise, of the shape of ``y``; None where no noise was added.
        id: Identity of each example, int64 ``[examples]``; by default its position.

    Raises:
        ValueError: If the split is empty, the first axes differ in length or something is no
            tensor.
    """

    x: Inputs
    y: Tensor
    clean: Tensor | None = None
    id: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        for name, value in (("y", self.y), ("clean", self.clean), ("id", self.id)):
            if name == "clean" and value is None:
                continue
            if not isinstance(value, Tensor) or value.ndim == 0:
                kind = "a single number" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{name} must be a tensor [examples, ...], got {kind}. "
                    "Convert it: torch.as_tensor."
                )
        if len(self.y) == 0:
            raise ValueError(
                "a split must hold at least one example, got 0. Give it more data or another split."
            )
        # The class is frozen, so the default is set past its own guard.
        if len(self.id) == 0:
            object.__setattr__(self, "id", torch.arange(len(self.y)))
        # Every tensor must have as many examples as there are labels.
        lengths = [len(self.y), len(self.id)]
        if self.clean is not None:
            lengths.append(len(self.clean))

        def add_length(tensor: Tensor) -> Tensor:
            lengths.append(len(tensor) if tensor.ndim else 0)
            return tensor

        try:
            map_tensors(add_length, self.x)
        except TypeError as error:
            raise ValueError(str(error)) from None
        if len(set(lengths)) > 1:
            raise ValueError(
                f"x, y, clean and id must have equally many examples, got {sorted(set(lengths))}."
            )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"<Split of {len(self)} examples>"

    def take(self, index: Tensor | slice) -> Split:
        """Keep the examples at ``index``, an int64 tensor or a slice."""
        clean = None if self.clean is None else self.clean[index]
        return Split(map_tensors(lambda t: t[index], self.x), self.y[index], clean, self.id[index])

    def to(self, device: torch.device | str) -> Split:
        """Move every tensor to a device."""
        clean = None if self.clean is None else self.clean.to(device)
        return Split(
            map_tensors(lambda t: t.to(device), self.x),
            self.y.to(device),
            clean,
            self.id.to(device),
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """The three splits of a problem.

    Args:
        train: Examples to fit.
        val: Examples to choose on.
        test: Examples to report on; nothing is ever chosen on them. None where there are none.
        posterior: Exact probability of each class for the test inputs and noisy labels,
            ``[test, classes]``, where it is known.
    """

    train: Split
    val: Split
    test: Split | None = None
    posterior: Tensor | None = None

    def __repr__(self) -> str:
        sizes = [0 if split is None else len(split) for split in (self.train, self.val, self.test)]
        return "<Splits of {}, {} and {} examples>".format(*sizes)

    @property
    def classes(self) -> int | None:
        """Number of classes, or None for real-valued targets.

        A target that the loss ignores counts as a class here: only a Problem knows its loss.
        """
        return self.count_classes()

    def count_classes(self, ignore_index: int | None = None) -> int | None:
        """Count the classes.

        Args:
            ignore_index: The target that the loss ignores, which is no class; negative targets
                never are.

        Returns:
            One more than the largest class, or None for real-valued targets.
        """
        # A class may be missing from one split, so look at all of them.
        labels = [split.y for split in (self.train, self.val, self.test) if split is not None]
        if labels[0].is_floating_point():
            return None
        if ignore_index is not None:
            labels = [y[y != ignore_index] for y in labels]
        return max(0, *(int(y.max()) + 1 for y in labels if y.numel()))

    @property
    def sha256(self) -> str:
        """Hash of every tensor of the three splits, with dtypes and shapes; computed once."""
        cached = self.__dict__.get("_sha256")
        if cached is None:
            splits = [s for s in (self.train, self.val, self.test) if s is not None]
            parts = [t for s in splits for t in (s.x, s.y, s.clean, s.id)]
            cached = sha256(*parts, self.posterior)
            object.__setattr__(self, "_sha256", cached)
        return cached


def sha256(*tensors: Inputs) -> str:
    """Hash tensors, or structures of them, with their dtypes and shapes.

    Args:
        *tensors: Tensors, tuples, lists and dicts of tensors, or None for a tensor that is missing.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()

    def add(t: Tensor) -> Tensor:
        flat = t.detach().cpu().contiguous()
        # Shape and dtype too: equal bytes may be other tensors.
        digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
        return t

    for t in tensors:
        # An empty structure would leave no trace of a tensor that is missing.
        if t is None:
            digest.update(b"none")
        else:
            map_tensors(add, t)
    return digest.hexdigest()


def flip_labels(y: Tensor, share: float, classes: int, generator: np.random.Generator) -> Tensor:
    """Replace exactly ``round(n * share)`` distinct labels, each by a wrong class drawn uniformly.

    Halves round to even, as Python's ``round`` does. From one generator state, a larger share flips
    the examples of a smaller one and more.

    Args:
        y: Clean labels, int64 ``[n]``, in 0 ... ``classes - 1``; left unchanged.
        share: Share of labels to replace, in [0, 1).
        classes: Number of classes, at least 2.
        generator: Source of randomness; it is advanced.

    Returns:
        Noisy labels, int64 ``[n]``.

    Raises:
        ValueError: If ``share`` or ``classes`` is out of range, or a label is.

    Example:
        >>> y = torch.zeros(10, dtype=torch.int64)
        >>> int((flip_labels(y, 0.3, 5, np.random.default_rng(0)) != y).sum())
        3
    """
    if not 0 <= share < 1:
        raise ValueError(
            f"label noise must lie in [0, 1), got {share}. "
            "Give the share of labels to flip, not percent."
        )
    if classes < 2:
        raise ValueError(
            f"flipping needs at least 2 classes, got {classes}. "
            "Count the classes of the whole data set."
        )
    if y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(
            f"labels must be int64 of shape [n], got {y.dtype} {list(y.shape)}. "
            "Convert with y.long()."
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"labels must lie in 0 ... {classes - 1}, got {int(y.min())} ... {int(y.max())}. "
            "Renumber them."
        )
    # A prefix of one permutation: the count is exact and the labels distinct by construction.
    index = generator.permutation(len(y))[: round(len(y) * share)]
    noisy = y.numpy().copy()
    noisy[index] = (noisy[index] + generator.integers(1, classes, size=len(index))) % classes
    return torch.from_numpy(noisy)


def make_rng(seed: int, *path: int) -> np.random.Generator:
    """Open the random stream of a seed at a path; streams at different paths are independent.

    Args:
        seed: Non-negative integer.
        *path: Non-negative integers that name the stream.

    Returns:
        A NumPy generator at the start of its stream; NumPy draws the same numbers on every machine.

    Raises:
        ValueError: If ``seed`` is not a non-negative integer.

    Example:
        >>> make_rng(0, 1).random() == make_rng(0, 1).random()
        True
        >>> make_rng(0, 1).random() == make_rng(0, 2).random()
        False
    """
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}. Pass seed=0, 1, ...")
    return np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=path))
