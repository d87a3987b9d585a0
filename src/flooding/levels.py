"""Level controllers: how the flood level moves during training, as pure functions on a state of tensors.

A controller is a frozen dataclass of plain numbers (so it can be part of a run's key) with two methods: ``init`` gives
the first state, ``update`` the next one. ``state["level"]`` is the level in force, in the unit of the loss, a float32
tensor without axes; ``-inf`` floods nothing. ``state["started"]`` tells whether flooding has begun. Nothing else
is mutable, so a saved state resumes exactly, also in the middle of an epoch, and a controller can be folded over what
another run saw.

``update`` never waits for the device and never branches on a tensor's value: it compiles to one graph for steps and
one for ends of epochs. It is element-wise, so the states of several runs may be stacked along a leading ``runs`` axis.
A state lives where the caller puts it; keep it on the device of the loss.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "Constant",
    "Controller",
    "Delayed",
    "Heuristic",
    "Plateau",
    "Range",
    "Seen",
    "State",
    "Warmup",
    "as_controller",
    "first_flooded",
    "fold",
]

State: TypeAlias = dict[str, Tensor]

# Float32 shares carry errors near 1e-7 and one example of n is worth 1/n: closer than this, two accuracies are equal.
_TIE = 1e-6


class Seen(NamedTuple):
    """What a controller is shown: the loss after every optimiser step, the other four after every epoch.

    Args:
        loss: Raw mean loss of the step's batch, before flooding, a float tensor without axes; None marks the end of
            an epoch.
        train_accuracy: Share of training examples classified correctly, in [0, 1].
        val_loss: Mean validation loss, in the unit of the loss.
        val_accuracy: Share of validation examples classified correctly, in [0, 1].
    """

    loss: Tensor | None = None
    train_accuracy: Tensor | float | None = None
    val_loss: Tensor | float | None = None
    val_accuracy: Tensor | float | None = None


@runtime_checkable
class Controller(Protocol):
    """What moves the level. ``flooding.testing.check_controller`` checks an implementation of your own."""

    def init(self) -> State:
        """Give the state before the first step.

        Returns:
            Tensors by name; ``"level"`` is a float tensor without axes, ``-inf`` while nothing is flooded.
        """
        ...

    def update(self, state: State, seen: Seen) -> State:
        """Give the state after a step or an epoch; the given state stays as it is.

        Args:
            state: The state in force when ``seen`` happened.
            seen: What happened.

        Returns:
            A new state with the same names, dtypes and shapes.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """Keep one level for ever.

    Args:
        level: Level in the unit of the loss; ``-inf`` floods nothing, negative levels are right for densities.

    Raises:
        TypeError: If the level is not a number.
        ValueError: If the level is NaN or ``inf``.

    Example:
        >>> Constant(0.25).init()["level"]
        tensor(0.2500)

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML 2020, eq. (1).
    """

    level: float

    def __post_init__(self) -> None:
        _as_floats(self, "level")
        _require(self.level < math.inf, "level must be finite or -inf", self.level, "Use -inf for no flooding.")

    def init(self) -> State:
        """Give the level."""
        return _first(self.level)

    def update(self, state: State, seen: Seen) -> State:  # ruff: ignore[unused-method-argument]
        """Change nothing."""
        return dict(state)


@dataclass(frozen=True)
class Warmup:
    """Raise the level from ``start`` to ``level`` over the first steps, evenly or in stairs.

    At step k, counted from 0, the level is ``start + (level - start) * r`` with ``r = min(k / steps, 1)``, rounded
    down to a multiple of ``1 / stairs``. ``stairs=1`` keeps ``start`` for ``steps`` steps and then jumps. The level is
    exactly ``start`` at step 0 and exactly ``level`` from step ``steps`` on. A ``start`` above the level lowers it.

    Args:
        level: Level at the end, in the unit of the loss.
        steps: Optimiser steps until the level is reached, at least 1.
        start: Level at step 0; with a loss that is never negative, 0 floods nothing.
        stairs: Number of equal rises, from 1 to ``steps``; None rises at every step.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If a level is not finite, or ``steps`` or ``stairs`` is out of range.

    Example:
        >>> steps = [Seen(torch.tensor(1.0))] * 4
        >>> [state["level"].item() for state in fold(Warmup(1.0, steps=4), steps)]
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> [state["level"].item() for state in fold(Warmup(1.0, steps=4, stairs=2), steps)]
        [0.0, 0.0, 0.5, 0.5, 1.0]
    """

    level: float
    steps: int
    start: float = 0.0
    stairs: int | None = None

    def __post_init__(self) -> None:
        _as_floats(self, "level", "start")
        _require_finite(self, "level", "start")
        _as_counts(self, "steps")
        if self.stairs is not None:
            _as_counts(self, "stairs")
            rule = f"stairs must not exceed steps = {self.steps}"
            _require(self.stairs <= self.steps, rule, self.stairs, "Leave it out to rise at every step.")

    def init(self) -> State:
        """Give ``start`` and a counter of steps."""
        return _first(self.start, step=torch.tensor(0))

    def update(self, state: State, seen: Seen) -> State:
        """Count a step; the end of an epoch changes nothing."""
        return _ramp(state, seen, self.start, self.level, self.steps, self.stairs or self.steps)


@dataclass(frozen=True)
class Range:
    """Lower the level evenly from ``start`` to ``stop``, so that one training visits every level: the range test.

    At step k, counted from 0, the level is ``start + (stop - start) * min(k / steps, 1)``. Flooding holds the loss near
    the level, so the validation curves of this run, drawn against the level, show which level is good.

    Args:
        start: Level at step 0 in the unit of the loss, about ln C for C balanced classes.
        stop: Level from step ``steps`` on; below ``start``.
        steps: Optimiser steps of the fall, at least 1; as a rule all of them.

    Raises:
        TypeError: If an argument is not a number of the right kind.
        ValueError: If a level is not finite, ``stop`` is not below ``start``, or ``steps`` is below 1.

    Example:
        >>> steps = [Seen(torch.tensor(1.0))] * 2
        >>> [state["level"].item() for state in fold(Range(0.5, 0.0, steps=2), steps)]
        [0.5, 0.25, 0.0]
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        _as_floats(self, "start", "stop")
        _require_finite(self, "start", "stop")
        _as_counts(self, "steps")
        _require(self.stop < self.start, f"stop must lie below start = {self.start}", self.stop, "Use Warmup to rise.")

    def init(self) -> State:
        """Give ``start`` and a counter of steps."""
        return _first(self.start, step=torch.tensor(0))

    def update(self, state: State, seen: Seen) -> State:
        """Count a step; the end of an epoch changes nothing."""
        return _ramp(state, seen, self.start, self.stop, self.steps, stairs=self.steps)


@dataclass(frozen=True)
class Delayed:
    """Train plainly until the training set is fitted, then flood at one level: "backward" flooding.

    The condition is looked at after every epoch and flooding begins with the next one, so the loss rises to the level
    from below. Exactly one of the two published conditions is given. ``until_loss`` looks at the *last* batch of the
    epoch, as the source's code does; a loop without epochs decides whenever it calls ``update(state, Seen())``.
    Accuracies closer than 1e-6 count as equal, so a rounded mean of 0.99999994 is 1. NaN never begins.

    Args:
        level: Level once flooding has begun, in the unit of the loss.
        until_loss: Begin when the loss of an epoch's last batch is at most this; 1e-4 in the source's code.
        until_accuracy: Begin when an epoch's training accuracy is at least this, in (0, 1]; 1.0, zero training error,
            in the source's text.

    Raises:
        TypeError: If an argument is not a number, or an epoch is shown without the accuracy that is waited for.
        ValueError: If a number is out of range, or not exactly one condition is given.

    Example:
        >>> seens = [Seen(torch.tensor(5e-5)), Seen(train_accuracy=0.5), Seen(torch.tensor(1e-6))]
        >>> [state["level"].item() for state in fold(Delayed(0.25, until_loss=1e-4), seens)]
        [-inf, -inf, 0.25, 0.25]
    """

    level: float
    until_loss: float | None = None
    until_accuracy: float | None = None

    def __post_init__(self) -> None:
        _as_floats(self, "level")
        _require_finite(self, "level")
        given = [name for name in ("until_loss", "until_accuracy") if getattr(self, name) is not None]
        rule = "exactly one of until_loss and until_accuracy must be given"
        _require(len(given) == 1, rule, " and ".join(given) or None, "Use until_loss=1e-4 or until_accuracy=1.0.")
        _as_floats(self, *given)
        _require_finite(self, *given)
        if self.until_accuracy is not None:
            rule = "until_accuracy must lie in (0, 1]"
            _require(0 < self.until_accuracy <= 1, rule, self.until_accuracy, "Give a share, not points.")

    def init(self) -> State:
        """Give ``-inf``, and room for the loss of the last batch."""
        return _first(-math.inf, last_loss=torch.tensor(math.inf, dtype=torch.float32))

    def update(self, state: State, seen: Seen) -> State:
        """Note the loss of a step; after an epoch, begin if the condition holds."""
        if seen.loss is not None:
            # A copy: the loss may live in a buffer that the next step writes over.
            return state | {"last_loss": _like(seen.loss, state["level"]).clone()}
        if self.until_accuracy is not None:
            fitted = _shown(self, seen, "train_accuracy", state["level"]) >= self.until_accuracy - _TIE
        else:
            assert self.until_loss is not None  # exactly one is given
            fitted = state["last_loss"] <= self.until_loss
        begins = fitted & ~state["started"]
        return state | {
            "level": torch.where(begins, self.level, state["level"]),
            "started": state["started"] | begins,
        }


@dataclass(frozen=True)
class Heuristic(Delayed):
    """Train plainly until the training set is fitted, then let the validation accuracy move the level.

    Flooding begins as in :class:`Delayed`, with ``b = level`` and reference r = 0. After every later epoch, with v the
    validation accuracy in points, v >= r + change gives r <- v and b <- b + move; else v < r - change gives r <- v and
    b <- b - move; b is clipped to [low, high]. So the first flooded epoch always runs at ``level``, and the reference
    is the accuracy at the last change, not the best one. Differences closer than 1e-4 points count as equal. The
    defaults are the source's code's; its text starts at ``level=0`` and clips to [0, 0.5]. A NaN accuracy changes
    nothing.

    Args:
        level: Level b at which flooding begins, in the unit of the loss; within [low, high].
        until_loss: As in :class:`Delayed`.
        until_accuracy: As in :class:`Delayed`.
        change: Difference in validation accuracy that counts, in points, at least 0; on 100 validation examples the
            default means any change.
        move: Step of the level, in the unit of the loss, above 0.
        low: Lowest level.
        high: Highest level.

    Raises:
        TypeError: If an argument is not a number, or an epoch is shown without the accuracies that are used.
        ValueError: If a number is out of range, or not exactly one condition is given.

    Example:
        >>> seens = [Seen(train_accuracy=1.0, val_accuracy=0.9), Seen(train_accuracy=1.0, val_accuracy=0.9)]
        >>> [round(state["level"].item(), 4) for state in fold(Heuristic(until_accuracy=1.0), seens)]
        [-inf, 0.0001, 0.0151]
    """

    level: float = 1e-4
    change: float = 0.4
    move: float = 0.015
    low: float = 1e-4
    high: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _as_floats(self, "change", "move", "low", "high")
        _require_finite(self, "change", "move", "low", "high")
        _require(self.change >= 0, "change must be at least 0", self.change, "Give it in points, such as 0.4.")
        _require_clip(self)

    def init(self) -> State:
        """Give ``-inf`` and a reference of 0 points."""
        return super().init() | {"reference": torch.tensor(0.0, dtype=torch.float32)}

    def update(self, state: State, seen: Seen) -> State:
        """Note the loss of a step; after an epoch, begin, or move the level."""
        new = super().update(state, seen)
        if seen.loss is not None:
            return new
        points = 100 * _shown(self, seen, "val_accuracy", state["level"])
        gain = points - state["reference"] + 100 * _TIE
        # The old `started`: the epoch that ends the plain phase was not flooded and moves nothing.
        rises = state["started"] & (gain >= self.change)
        falls = state["started"] & (gain < -self.change)
        return new | {
            "level": _move(new["level"], rises, falls, self),
            "reference": torch.where(rises | falls, points, state["reference"]),
        }


@dataclass(frozen=True)
class Plateau:
    """Raise the level when the validation loss climbs, lower it when it stands still.

    After every epoch, with v the validation loss and m the lowest so far, this epoch included: v > worse * m gives
    b <- b + move; else, when m has stood for ``patience`` epochs, b <- b - move and the count of epochs begins anew.
    b is clipped to [low, high]. Where m is negative, v > m / worse raises b; the ratio means little for losses around
    0, and ``low`` and ``high`` need other values. A NaN loss counts as an epoch without improvement. Flooding is on
    from the first step.

    Args:
        level: Level b at the start, in the unit of the loss, as a rule from a grid; within [low, high].
        patience: Epochs without improvement before the level is lowered, at least 1.
        move: Step of the level, in the unit of the loss, above 0.
        worse: Ratio of validation loss to its lowest value beyond which the level rises, at least 1.
        low: Lowest level.
        high: Highest level.

    Raises:
        TypeError: If an argument is not a number, or an epoch is shown without a validation loss.
        ValueError: If a number is out of range.

    Example:
        >>> seens = [Seen(val_loss=1.0), Seen(val_loss=1.2), Seen(val_loss=1.1)]
        >>> [round(state["level"].item(), 2) for state in fold(Plateau(0.1), seens)]
        [0.1, 0.1, 0.15, 0.15]
    """

    level: float
    patience: int = 8
    move: float = 0.05
    worse: float = 1.15
    low: float = 0.0
    high: float = 0.4
    revision: ClassVar[int] = 2  # in the key of a Run: before, losses below 0 were compared the wrong way round

    def __post_init__(self) -> None:
        _as_floats(self, "level", "move", "worse", "low", "high")
        _require_finite(self, "level", "move", "worse", "low", "high")
        _as_counts(self, "patience")
        _require(self.worse >= 1, "worse must be at least 1", self.worse, "Give a ratio, such as 1.15.")
        _require_clip(self)

    def init(self) -> State:
        """Give the level, no lowest loss yet, and a count of 0 epochs."""
        return _first(self.level, lowest=torch.tensor(math.inf, dtype=torch.float32), waited=torch.tensor(0))

    def update(self, state: State, seen: Seen) -> State:
        """Move the level after an epoch; a step changes nothing."""
        if seen.loss is not None:
            return dict(state)
        loss = _shown(self, seen, "val_loss", state["level"])
        # Not torch.minimum: it would let one NaN stay for ever.
        improves = loss < state["lowest"]
        lowest = torch.where(improves, loss, state["lowest"])
        waited = torch.where(improves, 0, state["waited"] + 1)
        climbs = loss > torch.maximum(self.worse * lowest, lowest / self.worse)  # the latter for negative losses
        stands = ~climbs & (waited >= self.patience)
        return state | {
            "level": _move(state["level"], climbs, stands, self),
            "lowest": lowest,
            "waited": torch.where(stands, 0, waited),
        }


def as_controller(level: Any) -> Controller:
    """Turn what a user calls a level into a controller.

    Args:
        level: A controller, which is returned as it is; a number, or a tensor or array of one number without axes, in
            the unit of the loss; or None for no flooding, which becomes ``Constant(-inf)``.

    Returns:
        A controller.

    Example:
        >>> as_controller(0.25), as_controller(None)
        (Constant(level=0.25), Constant(level=-inf))
    """
    if isinstance(level, Controller):
        return level
    return Constant(-math.inf if level is None else level)


def fold(controller: Controller, seens: Sequence[Seen]) -> list[State]:
    """Give the states a controller would have had, had it been shown what another run saw.

    Args:
        controller: The controller.
        seens: Steps and ends of epochs, in the order in which they happened.

    Returns:
        ``len(seens) + 1`` states: entry i is in force when ``seens[i]`` happens, the last one afterwards.

    Example:
        >>> states = fold(Warmup(1.0, steps=2), [Seen(torch.tensor(3.0)), Seen(val_loss=2.0)])
        >>> [state["level"].item() for state in states]
        [0.0, 0.5, 0.5]
    """
    return list(accumulate(seens, controller.update, initial=controller.init()))


def first_flooded(controller: Controller, seens: Sequence[Seen]) -> int | None:
    """Find the first step at which a controller would have changed what a plain run did.

    That is the first step whose loss is at most the level in force: at the level itself the slope is 0 already. Up to
    it the controlled run is the plain one, so what lies before need not be trained again. A NaN loss is never flooded.

    Args:
        controller: The controller.
        seens: Steps and ends of epochs of a plain run, in order, with the losses exactly as the run computed them.

    Returns:
        Index of the step, counted from 0 and over steps alone; None if no step would have changed.

    Example:
        >>> losses = [Seen(torch.tensor(loss)) for loss in (0.9, 0.4, 0.1)]
        >>> first_flooded(Constant(0.5), losses), first_flooded(Constant(0.05), losses)
        (1, None)
    """
    state, step = controller.init(), 0
    for seen in seens:
        if seen.loss is not None:
            if seen.loss <= state["level"]:
                return step
            step += 1
        state = controller.update(state, seen)
    return None


def _first(level: float, **entries: Tensor) -> State:
    """Build the first state of a controller; flooding has begun unless the level is -inf."""
    return {"level": torch.tensor(level, dtype=torch.float32), "started": torch.tensor(level > -math.inf)} | entries


def _like(value: Tensor | float, level: Tensor) -> Tensor:
    """Bring a number or tensor to the dtype and device of the level, without its graph."""
    return torch.as_tensor(value, dtype=level.dtype, device=level.device).detach()


def _shown(controller: Controller, seen: Seen, name: str, level: Tensor) -> Tensor:
    """Read an entry that must be there at the end of an epoch.

    Returns:
        The entry, like the level.

    Raises:
        TypeError: If it is missing.
    """
    value = getattr(seen, name)
    if value is None:
        kind = type(controller).__name__
        raise TypeError(f"{kind} needs {name} after every epoch, got None. Pass Seen({name}=...) to update.")
    return _like(value, level)


def _ramp(state: State, seen: Seen, start: float, stop: float, steps: int, stairs: int) -> State:
    """Count a step and place the level between start and stop, rounded down to a stair."""
    if seen.loss is None:
        return dict(state)
    step = (state["step"] + 1).clamp(max=steps)
    share = (step * stairs // steps).to(state["level"].dtype) / stairs
    # Weighted, not start + (stop - start) * share: exact at both ends.
    return state | {"level": start * (1 - share) + stop * share, "step": step}


def _move(level: Tensor, up: Tensor, down: Tensor, clip: Heuristic | Plateau) -> Tensor:
    """Move a level up or down by one step within its clip; leave it alone, -inf included, where neither is true."""
    moved = torch.where(up, level + clip.move, level - clip.move).clamp(clip.low, clip.high)
    return torch.where(up | down, moved, level)


def _require(holds: bool, rule: str, value: Any, fix: str) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value}. {fix}")


def _require_finite(controller: Any, *names: str) -> None:
    for name in names:
        value = getattr(controller, name)
        _require(math.isfinite(value), f"{name} must be finite", value, "Did it come from an empty record?")


def _require_clip(controller: Heuristic | Plateau) -> None:
    low, level, high = controller.low, controller.level, controller.high
    _require(controller.move > 0, "move must be above 0", controller.move, "Use Constant or Delayed to stand still.")
    rule = f"level must lie in [low, high] = [{low}, {high}]"
    _require(low <= level <= high, rule, level, "Change the level or the clip.")


def _as_floats(controller: Any, *names: str) -> None:
    """Make fields plain floats, so that 0, 0.0 and a NumPy 0 give one key.

    Raises:
        TypeError: If a field is not one number.
    """
    for name in names:
        value = getattr(controller, name)
        if not hasattr(value, "__float__") or getattr(value, "ndim", 0) != 0:
            raise TypeError(f"{name} must be one number, got {value!r}. A level with axes belongs in the loss.")
        object.__setattr__(controller, name, float(value))
        _require(not math.isnan(float(value)), f"{name} must not be NaN", value, "Did it come from an empty record?")


def _as_counts(controller: Any, *names: str) -> None:
    """Make fields plain positive ints.

    Raises:
        TypeError: If a field is not a whole number.
    """
    for name in names:
        value = getattr(controller, name)
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number, got {value!r}. Round it first.")
        object.__setattr__(controller, name, operator.index(value))
        _require(operator.index(value) >= 1, f"{name} must be at least 1", value, "Count optimiser steps or epochs.")
