"""Prefix sharing: Runs that differ in their level alone take their first steps together.

These Runs take the same steps until one of them floods. One plain Run, the prefix, takes those
steps for all. A Run leaves it at the start of the epoch that holds the first step whose slope is
not exactly +1. It goes on alone, bit-identical to training alone from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from flooding.levels import Controller, State, StepInfo
from flooding.methods import Flooding
from flooding.training.evaluation import epoch_info
from flooding.training.loop import EpochResult, mean_level
from flooding.training.run import Run
from flooding.training.state import Snapshot

__all__ = ["ForkPoint", "SharedPrefix", "can_share", "prefix_run", "replay_rows"]


class ForkPoint(NamedTuple):
    """Where a Run leaves its prefix.

    Args:
        number: Number of the Run.
        epoch: Epoch after which the Run goes on alone.
        snapshot: State to go on from; None is "from the beginning".
    """

    number: int
    epoch: int
    snapshot: Snapshot | None


def can_share(run: Run) -> bool:
    """Tell whether a Run takes plain steps until its batch loss reaches the level.

    Args:
        run: The Run.

    Returns:
        False for methods and levels that change the first step already, or may.
    """
    if not run.method.shares_prefix:
        return False
    return run.level is None or isinstance(run.level, (float, Controller))


def prefix_run(run: Run) -> Run:
    """Give the plain Run that a Run shares its first steps with."""
    return replace(run, level=None, method=Flooding(), stop_epoch=None)


def replay_rows(run: Run, snapshot: Snapshot) -> Iterator[EpochResult]:
    """Give the rows that led to a snapshot of a prefix.

    Args:
        run: The prefix.
        snapshot: Its state.

    Yields:
        Rows without snapshots of their own.
    """
    for epoch, values in enumerate(snapshot["curves"]):
        losses = snapshot["losses"][epoch - 1] if epoch else None
        yield EpochResult(run, epoch, values, losses=losses)


class SharedPrefix:
    """Follows the rows of a prefix and tells which Runs leave it.

    Args:
        runs: The Runs that share it, by number.
    """

    def __init__(self, runs: Mapping[int, Run]) -> None:
        self._followers = {number: _Follower(run) for number, run in runs.items()}
        self._snapshot: Snapshot | None = None  # the latest that a follower may need
        self._snapshot_epoch = 0
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def epochs(self) -> int:
        """The last epoch for which the prefix can be of use."""
        return max((follower.run.epochs for follower in self._followers.values()), default=0)

    def follow(self, row: EpochResult) -> Iterator[ForkPoint]:
        """Compare one row of the prefix with the level of every Run.

        Args:
            row: The row.

        Yields:
            The Runs that leave after this row.
        """
        # An optimiser that takes several passes a step has no losses to compare.
        if row.epoch and row.losses is None:
            for number in list(self._followers):
                del self._followers[number]
                yield ForkPoint(number, 0, None)
            return

        # A Run that would have flooded in this epoch, or may end before the prefix does, leaves.
        diverging, ending = [], []
        for number, follower in self._followers.items():
            if row.epoch and follower.diverges(row):
                diverging.append(number)
            elif follower.run.epochs == row.epoch:
                ending.append(number)
        self._epoch = row.epoch

        # The first ones repeat this epoch on their own: they start from the snapshot before it.
        for number in diverging:
            yield self._fork(number)

        # A snapshot takes time, so that there is one only where a Run may soon need it.
        if row.snapshot is not None and (ending or self._any_may_diverge_soon(row)):
            self._snapshot, self._snapshot_epoch = row.snapshot(copied=True), row.epoch
            for follower in self._followers.values():
                follower.mark_snapshot()

        # The others start from the end of this epoch.
        for number in ending:
            yield self._fork(number)

    def _any_may_diverge_soon(self, row: EpochResult) -> bool:
        return any(follower.may_diverge_soon(row) for follower in self._followers.values())

    def _fork(self, number: int) -> ForkPoint:
        """Give a Run its own state. The last one to leave pays for the prefix."""
        follower = self._followers.pop(number)
        if self._snapshot is None:
            return ForkPoint(number, 0, None)
        snapshot = follower.adapt(self._snapshot)
        if self._followers:
            snapshot |= {"trained": 0, "seconds": 0.0}
        else:
            snapshot["trained"] = self._epoch
        return ForkPoint(number, self._snapshot_epoch, snapshot)


class _Follower:
    """A Run that still takes the steps of its prefix."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._state: State | None = None  # of the controller, if the level is one
        if isinstance(run.level, Controller):
            self._state = run.level.init()
        self._levels: list[float] = []  # mean level in force, per epoch
        self._state_at_snapshot = self._state
        self._epochs_at_snapshot = 0

    def diverges(self, row: EpochResult) -> bool:
        """Tell whether the Run would have flooded in one of the steps of an epoch."""
        losses, level = row.losses, self.run.level
        assert losses is not None
        if isinstance(level, Controller):
            return self._simulate(level, losses, row)
        levels: list[float] = []
        if isinstance(level, float):
            # NaN is not above a level: such a Run leaves, to be sure.
            if not bool((losses > level).all()):
                return True
            levels = [level] * len(losses)
        self._levels.append(mean_level(levels))
        return False

    def _simulate(self, controller: Controller, losses: Tensor, row: EpochResult) -> bool:
        """Show a controller the losses; tell whether one of them is not above its level."""
        assert self._state is not None
        state = {name: tensor.to(losses.device) for name, tensor in self._state.items()}
        levels, above = [], []
        for loss in losses:
            levels.append(state["level"])
            above.append(loss > state["level"])
            state = controller.update(state, StepInfo(loss=loss))
        # One transfer from the device for all steps.
        if not bool(torch.stack(above).all()):
            return True
        self._state = controller.update(state, epoch_info(self.run.problem, row.values))
        self._levels.append(mean_level(levels))
        return False

    def may_diverge_soon(self, row: EpochResult) -> bool:
        """Tell whether the Run may leave within the next few epochs."""
        level = self.run.level
        if not isinstance(level, float):
            return level is not None
        if row.losses is None:
            return True
        lowest = float(row.losses.min())
        return level >= lowest - 0.5 * abs(lowest)

    def mark_snapshot(self) -> None:
        """Note that the prefix took a snapshot after the last epoch."""
        self._state_at_snapshot = self._state
        self._epochs_at_snapshot = len(self._levels)

    def adapt(self, snapshot: Snapshot) -> Snapshot:
        """Turn a snapshot of the prefix into one of this Run: with its controller and levels."""
        curves = [dict(values) for values in snapshot["curves"]]
        levels = self._levels[: self._epochs_at_snapshot]
        for values, level in zip(curves[1:], levels, strict=True):
            values["level"] = level
        adapted = {**snapshot, "curves": curves}
        adapted["controller"] = self._state_at_snapshot
        if self.run.level is not None:
            adapted["losses"] = None
        return adapted
