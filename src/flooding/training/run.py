"""One training: a problem, a level, a method and a seed."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from flooding.levels import Auto, Controller, Level, LevelSource, LevelTable
from flooding.methods import Flooding, Method
from flooding.methods.base import check_method
from flooding.text import join_parts
from flooding.training.checks import check_teacher_loss
from flooding.training.config import Config, UnhashableConfigError, changed_fields, to_config
from flooding.training.legacy import legacy_configs
from flooding.training.problem import Problem, require_at_least

__all__ = ["Run"]


@dataclass(frozen=True, eq=False)
class Run:
    """One Problem, one level, one method, one seed, and where to stop.

    Args:
        problem: What is trained.
        level: Flood level in the unit of the loss: a number, a tensor, a table of levels, a
            controller, or None for plain training.
        method: How the level acts; by default it floods the mean loss of a batch.
        seed: Seed of the data, the weights and the order of the batches, at least 0.
        stop_epoch: Epoch to stop at, from 1 to the problem's max_epochs; None is max_epochs.

    Raises:
        ValueError: If the level is not finite, the seed is negative or ``stop_epoch`` is out of
            range, or the level or the loss does not fit the method.
    """

    problem: Problem
    level: Level | LevelSource[Problem] = None
    method: Method = field(default_factory=Flooding)
    seed: int = 0
    stop_epoch: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "level", _check_level(self.level))
        # A level that depends on the length of the training gets it from the Problem.
        if isinstance(self.level, Auto):
            level = self.level.with_epochs(self.problem.max_epochs)
            object.__setattr__(self, "level", level)
        if isinstance(self.seed, np.integer):
            object.__setattr__(self, "seed", int(self.seed))
        if isinstance(self.level, (float, Tensor)) and not math.isfinite(self.level):
            raise ValueError(
                f"level must be finite, got {self.level}. Use None for plain training."
            )
        check_method(self.method)
        _check_level_source(self.level, self.method)
        # A search on training code of the user's own has a stand-in, which knows no loss.
        if isinstance(self.problem, Problem):
            check_teacher_loss(self.problem.loss, self.method)
        require_at_least("seed", self.seed, 0)
        if self.stop_epoch is not None:
            require_at_least("stop_epoch", self.stop_epoch, 1)
        if self.stop_epoch is not None and self.stop_epoch > self.problem.max_epochs:
            raise ValueError(
                f"stop_epoch must lie in 1 to max_epochs, {self.problem.max_epochs}, "
                f"got {self.stop_epoch}."
            )

    def __repr__(self) -> str:
        parts: dict[str, object] = {"level": self.level, "seed": self.seed}
        parts |= changed_fields(self)
        return f"Run({join_parts(parts)})"

    @property
    def epochs(self) -> int:
        """Number of epochs this Run trains."""
        return self.stop_epoch or self.problem.max_epochs

    def key(self, **metadata: Config) -> str | None:
        """Hash everything that fixes the measurements of this Run, the same in every process.

        ``stop_epoch`` is not part of it: Records are found by key and epoch.

        Args:
            **metadata: What else changes bits: version of the numerics, device, dtype, threads,
                kernel.

        Returns:
            64 hexadecimal digits, or None if a part cannot be hashed and the problem has no key.
        """
        config = self.config()
        return None if config is None else _hash({**config, **metadata})

    def legacy_keys(self, **metadata: Config) -> list[str]:
        """Give the keys under which flooding 0.1.0 may have stored this Run.

        Args:
            **metadata: As for :meth:`key`.

        Returns:
            Keys of 64 hexadecimal digits; none if a part cannot be hashed.
        """
        config = self.config()
        if config is None:
            return []
        return [_hash({**old, **metadata}) for old in legacy_configs(config)]

    def config(self) -> dict[str, Config] | None:
        """Describe everything that fixes the measurements of this Run at each epoch.

        Where it stops and where it trains is left out.

        Returns:
            What ``json.dumps`` takes; None if a part cannot be hashed and the problem has no key.
        """
        problem = self.problem
        config: dict[str, Config] = {"seed": self.seed}
        has_key = problem.key is not None
        try:
            # The user's key answers for the code of the problem, not for the level or the method.
            config |= {"level": to_config(self.level), "method": to_config(self.method)}
            for name, value in changed_fields(problem).items():
                if name == "data":
                    config[name] = problem.splits(self.seed).sha256
                else:
                    config[name] = to_config(value, allow_names=has_key)
            # Records of a controller's old rule are wrong, so a changed rule raises its revision.
            revision = getattr(self.level, "revision", None)
            if revision is not None:
                config["revision"] = revision
            # Older versions counted ignored targets, so their Records are wrong.
            if _has_ignored_targets(problem, self.seed):
                config["ignored targets"] = "left out"
            # A data function of the user's own may change: without a key it is refused too.
            if not has_key:
                to_config(problem.data)
        except UnhashableConfigError:
            return None
        return config


def _hash(config: dict[str, Config]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _has_ignored_targets(problem: Problem, seed: int) -> bool:
    splits = problem.splits(seed)
    for split in (splits.train, splits.val, splits.test):
        if split is None or split.y.is_floating_point():
            continue
        if not bool(problem.target_mask(split.y).all()):
            return True
    return False


def _check_level(level: object) -> Level | LevelSource[Problem]:
    """Make numbers floats, and refuse what is no level."""
    if isinstance(level, numbers.Real) and not isinstance(level, (bool, np.bool_)):
        return float(level)
    if level is None or (isinstance(level, Tensor) and level.ndim == 0):
        return level
    is_level = isinstance(level, (Controller, LevelTable, LevelSource))
    if is_level and not isinstance(level, type):
        return level
    got = f"a tensor of shape {tuple(level.shape)}" if isinstance(level, Tensor) else repr(level)
    raise ValueError(
        "level must be a number, a 0-d tensor, PerClass, PerExample, Excess, a controller or None, "
        f"got {got}. Wrap a level for each class or example in PerClass or PerExample."
    )


def _check_level_source(level: Level | LevelSource[Problem], method: Method) -> None:
    """Refuse a level that the method cannot use."""
    name = type(method).__name__
    if method.level_source == "teacher" and level is not None:
        raise ValueError(
            f"{name}'s level is its teacher's loss, got level={level}. Leave the level out."
        )
    is_table = isinstance(level, LevelTable) and not level.has_batch_mean
    if (is_table or isinstance(level, LevelSource)) and method.reduction == "mean":
        raise ValueError(
            f"{type(level).__name__} needs a method on each example, got {name}, which floods the "
            "batch mean. Use IFlood()."
        )
