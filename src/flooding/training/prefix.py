"""Prefix sharing: Runs that differ in their level alone take the same steps until one of them
floods.

One plain Run, the trunk, takes those steps for all. A Run leaves it at the start of the epoch that
holds the first step whose slope is not exactly +1, and goes on alone, bit-identical to training
alone from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flooding.levels import Controller, StepInfo
from flooding.methods import Flooding
from flooding.training.loop import EpochResult, mean_level
from flooding.training.run import Run

__all__ = ["SharedPrefix", "can_share", "prefix_run", "replay_rows"]


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
    """Give the plain Run that a Run shares its beginning with."""
    return replace(run, level=None, method=Flooding(), stop_epoch=None)


def replay_rows(run: Run, snapshot: Mapping[str, Any]) -> Iterator[EpochResult]:
    """Give the rows that led to a snapshot of a trunk.

    Args:
        run: The trunk.
        snapshot: Its state.

    Yields:
        Rows without snapshots of their own.
    """
    for epoch, values in enumerate(snapshot["curves"]):
        yield EpochResult(
            run, epoch, values, losses=snapshot["losses"][epoch - 1] if epoch else None
        )


class _Follower:
    """A Run that still takes the trunk's steps."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state: Mapping[str, Tensor] | None = None
        self.levels: list[float] = []  # per epoch
        self.kept: tuple[Mapping[str, Tensor] | None, int] = (
            None,
            0,
        )  # state and epochs at the last snapshot
        if isinstance(run.level, Controller):
            self.state = run.level.init()

    def leaves(self, row: EpochResult) -> bool:
        """Go through the steps of an epoch; tell whether the Run would have flooded in one of
        them.
        """
        losses, level = row.losses, self.run.level
        assert losses is not None
        if level is None:
            self.levels.append(mean_level([]))
            return False
        if self.state is None:
            if not bool((losses > level).all()):  # NaN leaves too, to be sure
                return True
            self.levels.append(mean_level([level] * len(losses)))
            return False
        state = {name: t.to(losses.device) for name, t in self.state.items()}
        seen, bits = [], []
        for loss in losses:
            seen.append(state["level"])
            bits.append(loss > state["level"])
            state = level.update(state, StepInfo(loss=loss))
        if not bool(torch.stack(bits).all()):
            return True
        values = (row.values.get(name) for name in ("train_accuracy", "val_loss", "val_accuracy"))
        self.state = level.update(state, StepInfo(None, *values))
        self.levels.append(mean_level(seen))
        return False

    def near(self, row: EpochResult) -> bool:
        """Tell whether the Run may leave within the next few epochs."""
        if not isinstance(self.run.level, float):
            return self.run.level is not None
        lowest = 0.0 if row.losses is None else float(row.losses.min())
        return row.losses is None or self.run.level >= lowest - 0.5 * abs(lowest)

    def fork(self, snapshot: Mapping[str, Any]) -> dict[str, Any]:
        """Turn the trunk's state into this Run's own."""
        state, epochs = self.kept
        told = dict(snapshot)
        told["controller"] = None if state is None else dict(state)
        told["curves"] = [dict(row) for row in snapshot["curves"]]
        for row, level in zip(told["curves"][1:], self.levels[:epochs], strict=True):
            row["level"] = level
        if self.run.level is not None:
            told["losses"] = None
        return told


class SharedPrefix:
    """Follows the rows of a trunk and tells which Runs leave it.

    Args:
        runs: The Runs that share it, by number.
    """

    def __init__(self, runs: Mapping[int, Run]) -> None:
        self._followers = {number: _Follower(run) for number, run in runs.items()}
        self._snapshot: dict[str, Any] | None = None
        self._trained = 0

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def epochs(self) -> int:
        """The last epoch the trunk can be of use for."""
        return max((f.run.epochs for f in self._followers.values()), default=0)

    def follow(self, row: EpochResult) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """Go through one row of the trunk.

        Args:
            row: The row.

        Yields:
            For every Run that leaves: its number, and epoch and state to go on from; None is "from
            the beginning".
        """
        if row.epoch and row.losses is None:  # an optimiser that takes several passes a step
            for number in list(self._followers):
                del self._followers[number]
                yield number, 0, None
            return
        leaving = [n for n, f in self._followers.items() if row.epoch and f.leaves(row)]
        ended = [
            n for n, f in self._followers.items() if n not in leaving and f.run.epochs == row.epoch
        ]
        self._trained = row.epoch
        for number in leaving:
            yield self._let_go(number)
        if row.snapshot is not None and (
            ended or any(f.near(row) for f in self._followers.values())
        ):
            self._snapshot = row.snapshot(copied=True)
            for follower in self._followers.values():
                follower.kept = (follower.state, len(follower.levels))
        for number in ended:
            yield self._let_go(number)

    def _let_go(self, number: int) -> tuple[int, int, dict[str, Any] | None]:
        """Give a Run its own state; the last to leave pays for the trunk."""
        follower = self._followers.pop(number)
        if self._snapshot is None:
            return number, 0, None
        told = follower.fork(self._snapshot)
        if self._followers:
            told |= {"trained": 0, "seconds": 0.0}
        else:
            told["trained"] = self._trained
        return number, len(told["curves"]) - 1, told
