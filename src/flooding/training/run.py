"""One training: a problem, a level, a method and a seed."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import numbers
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from flooding.levels import PerClass, PerExample
from flooding.methods import Flooding, Method, WaveBound
from flooding.training.config import NotKeyable, _fields, _is_default, describe
from flooding.training.problem import Problem, _at_least

__all__ = ["Run"]


@dataclass(frozen=True, eq=False)
class Run:
    """One Problem, one level, one method, one seed, and where to stop.

    Args:
        problem: What is trained.
        level: Flood level in the unit of the loss: a number, a tensor, a controller, or None for plain training.
        method: How the level acts; flooding of the mean batch loss unless said otherwise.
        seed: Seed of the data, the weights and the order of the batches, at least 0.
        until: Epoch to stop at, from 1 to the problem's horizon; None is the horizon.

    Raises:
        ValueError: If the level is not finite, the seed is negative or ``until`` is out of range.
    """

    problem: Problem
    level: Any = None
    method: Method = field(default_factory=Flooding)
    seed: int = 0
    until: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", _check_level(self.level))
        if isinstance(self.seed, np.integer):
            object.__setattr__(self, "seed", int(self.seed))
        if isinstance(self.level, (float, Tensor)) and not math.isfinite(self.level):
            raise ValueError(f"level must be finite, got {self.level}. Use None for plain training.")
        _check_method(self.level, self.method)
        _at_least("seed", self.seed, 0)
        if self.until is not None:
            _at_least("until", self.until, 1)
        if self.until is not None and self.until > self.problem.horizon:
            raise ValueError(f"until must lie in 1 to the horizon {self.problem.horizon}, got {self.until}.")

    @property
    def epochs(self) -> int:
        """Number of epochs this Run trains."""
        return self.until or self.problem.horizon

    def key(self, **circumstances: Any) -> str | None:
        """Name the trajectory of this Run, the same in every process.

        ``until`` is not part of it: Records are found by trajectory and epoch.

        Args:
            **circumstances: What else changes bits: engine, device, dtype, threads, kernel.

        Returns:
            64 hexadecimal digits, or None if the problem, the level or the method cannot describe itself and the
            problem has no key.
        """
        problem = self.problem
        told: dict[str, Any] = {"seed": self.seed}
        tell = describe if problem.key is None else functools.partial(describe, named=True)
        try:
            told |= {"level": describe(self.level), "method": describe(self.method)}  # the key answers for neither
            for name, value in ((f.name, value) for f, value in _fields(problem) if not _is_default(f, value)):
                told[name] = problem.splits(self.seed).sha256 if name == "data" else tell(value)
            if hasattr(self.level, "revision"):  # its rule changed, so that Records of the old one are no longer right
                told["revision"] = self.level.revision
            if _has_ignored(problem, self.seed):
                told["ignored targets"] = "left out"  # they were not, in Records of older versions
            if problem.key is None:
                describe(problem.data)  # equal bytes may come from code that will change
        except NotKeyable:
            return None
        return hashlib.sha256(json.dumps({**told, **circumstances}, sort_keys=True).encode()).hexdigest()


def _has_ignored(problem: Problem, seed: int) -> bool:
    splits = problem.splits(seed)
    targets = [split.y for split in (splits.train, splits.val, splits.test) if split is not None]
    return any(not y.is_floating_point() and not bool(problem.target_mask(y).all()) for y in targets)


def _check_level(level: Any) -> Any:
    """Make numbers floats, and refuse what is no level."""
    if isinstance(level, numbers.Real) and not isinstance(level, (bool, np.bool_)):
        return float(level)
    scalar = isinstance(level, Tensor) and level.ndim == 0
    looked_up = hasattr(level, "at") or hasattr(level, "resolve")
    if level is None or scalar or looked_up or (hasattr(level, "update") and hasattr(level, "init")):
        return level
    got = f"a tensor of shape {tuple(level.shape)}" if isinstance(level, Tensor) else repr(level)
    raise ValueError(
        f"level must be a number, a 0-d tensor, PerClass, PerExample, Excess, a controller or None, got {got}. "
        "Wrap a level for each class or example in PerClass or PerExample."
    )


def _check_method(level: Any, method: Method) -> None:
    if isinstance(method, WaveBound) and level is not None:
        raise ValueError(f"WaveBound's level is its teacher's loss, got level={level}. Leave the level out.")
    if (isinstance(level, (PerClass, PerExample)) or hasattr(level, "resolve")) and method.reduction == "mean":
        raise ValueError(
            f"{type(level).__name__} needs a method on each example, got {type(method).__name__}, which floods the "
            "batch mean. Use IFlood()."
        )
