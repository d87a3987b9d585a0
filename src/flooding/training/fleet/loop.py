"""The training loop of a fleet: many Runs as one set of tensors, a row per epoch and Run."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flooding.training.batch import batch_indices
from flooding.training.checks import check_labels, first_loss
from flooding.training.evaluation import epoch_info, make_record
from flooding.training.fleet.metrics import (
    is_logits,
    label_metrics,
    read,
    split_metrics,
    stacked_loss,
)
from flooding.training.fleet.model import Tensors
from flooding.training.fleet.optimizer import clip_gradients, optimizer_key
from flooding.training.fleet.rules import check_group
from flooding.training.fleet.state import (
    FLEET_GENERATOR,
    Member,
    fork,
    measurable,
    start_fleet,
    try_out,
)
from flooding.training.fleet.step import StackedStep
from flooding.training.isolation import GlobalState, isolated
from flooding.training.loop import EpochResult, record_versions
from flooding.training.problem import Problem
from flooding.training.record import AVERAGE, validation_key
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.state import Snapshot, TrainingState, take_snapshot

__all__ = ["Fleet"]


class Fleet:
    """Runs of one Problem that train together, as one model with a leading axis of runs.

    The Runs may differ in seed, level, controller and optimiser. Each has its own data, order of
    batches, initial weights, level, gradient clipping, schedule, best epoch and average. A step
    costs little more than that of one Run where the networks are small.

    A Fleet agrees with single Runs within rounding, not to the bit. Dropout draws other numbers
    than in a single Run: those of a Run depend on the Fleet it trains in.

    Args:
        runs: The Runs.
        device: Where to train.
        threads: torch threads to train with.
        resume: A snapshot of each Run after the same epoch, to go on from. From snapshots of the
            same fleet it goes on to the bit.
        settings: Torch's global settings to train under; None is those in force now.

    Raises:
        FleetError: If the Runs cannot train together; the message says why.
        ValueError: If the parts of the Problem do not fit each other.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
        >>> problem = Problem(data, model, max_epochs=2)
        >>> fleet = Fleet([Run(problem, level) for level in (None, 0.1, 0.2)])
        >>> [row.epoch for row in fleet.train()]
        [0, 0, 0, 1, 1, 1, 2, 2, 2]
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        device: str | torch.device = "cpu",
        threads: int = 1,
        resume: Sequence[Snapshot] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        runs = list(runs)
        check_group(runs)
        self.runs = tuple(runs)
        self._global_state = GlobalState.capture(threads, torch.device(device), settings)
        # Runs that share the numbers of an optimiser follow each other.
        keys = [optimizer_key(run.problem) or "" for run in runs]
        order = sorted(range(len(runs)), key=lambda index: (keys[index], index))
        self._problem = runs[0].problem
        self._num_steps = 0  # of an epoch
        start_time, begin = time.time(), time.perf_counter()
        with preserve_rng_state(), isolated(self._global_state):
            ordered = [(index, runs[index]) for index in order]
            self._state = start_fleet(ordered, self._global_state.device, resume, start_time)
            try_out(self._state)
        self._step = StackedStep(runs[0], self._state.model)
        for member in self._state.members:
            member.seconds += (time.perf_counter() - begin) / len(runs)

    def __len__(self) -> int:
        """Count the Runs that still train."""
        return len(self._state.members)

    @property
    def epoch(self) -> int:
        """The last epoch that was trained, -1 before the first measurement."""
        return self._state.epoch

    # ------------------------------------------------------------ training

    def train(self) -> Generator[EpochResult, bool | None, None]:
        """Train all Runs and yield a row per epoch and Run, the first before training.

        ``rows.send(True)`` ends the Run of the last row: what it returns is that Run's last row.
        A Run that ends leaves the fleet; its last row has its Record and weights.

        Yields:
            Rows, epoch by epoch, as :func:`flooding.training.loop.train` gives them.
        """
        for epoch in range(self.epoch + 1):
            yield from self._rows(epoch)
        while self._state.members:
            epoch, before = self.epoch + 1, self._state.seconds
            with isolated(self._global_state, self._state):
                self._run_epoch(epoch)
            share = (self._state.seconds - before) / len(self._state.members)
            for member in self._state.members:
                member.seconds += share
            yield from self._rows(epoch)

    def _rows(self, epoch: int) -> Generator[EpochResult, bool | None, None]:
        """Yield the rows of an epoch, and let the Runs go that end with it."""
        ended = set()
        for row in range(len(self._state.members)):
            run = self._state.members[row].run
            stop: bool | None = run.epochs == epoch
            if not stop:
                stop = yield self._row(row, epoch)
            if stop and epoch == self.epoch:
                yield self._last_row(row, epoch)
                ended.add(row)
        if ended:
            self._state.keep([row for row in range(len(self._state.members)) if row not in ended])

    def _row(self, row: int, epoch: int) -> EpochResult:
        member = self._state.members[row]
        losses = member.losses[epoch - 1] if 0 < epoch <= len(member.losses) else None
        taker = None
        if epoch == self.epoch:
            taker = functools.partial(self._snapshot, row)
        return EpochResult(
            member.run, epoch, dict(member.curves[epoch]), losses=losses, snapshot=taker
        )

    def _last_row(self, row: int, epoch: int) -> EpochResult:
        """Measure the Record of a Run that ends."""
        member = self._state.members[row]
        begin = time.perf_counter()
        state = measurable(self._state, row)
        with isolated(self._global_state, state):
            record = make_record(member.run, state, member.splits)
        member.seconds += time.perf_counter() - begin
        metadata = {
            "began": member.began,
            "seconds": round(member.seconds, 3),
            "epochs_trained": member.epochs_trained,
            "val_examples": len(member.splits.val),
            "pid": os.getpid(),
            "kernel": "fleet",
            "fleet_size": len(self.runs),
        }
        record = replace(record, metadata={**metadata, **record_versions()})
        result = self._row(row, epoch)
        return replace(result, record=record, weights=state.weights, snapshot=None)

    def _run_epoch(self, epoch: int) -> None:
        """Train one epoch, measure it, and update what changes once an epoch."""
        problem, count = self._problem, len(self._state.members)
        values: dict[str, Tensor] = {}
        if epoch:
            values = self._train_epoch(epoch)
        else:
            check = functools.partial(_check_first, problem, self._state.members)
            forward = functools.partial(self._state.model, training=False)
            train = self._state.splits["train"]
            values = split_metrics(problem, forward, train, "train", check=check)
        values |= self._measure(epoch)
        table = read(values, count)
        levels = [math.nan] * count
        if epoch:
            levels = self._state.levels.fill_constants(
                [row.pop("level") for row in table], self._num_steps
            )
        rates = self._state.optimizer.learning_rates()
        for row, member in enumerate(self._state.members):
            numbers = {"lr": rates[row], "level": levels[row], "flooded": 0.0} | table[row]
            member.curves.append(numbers)
        if epoch:
            self._end_epoch(epoch)

    def _measure(self, epoch: int) -> dict[str, Tensor]:
        """Measure the validation split and the test curve, for the network and the average."""
        values = self._measure_weights(epoch, None)
        if self._state.average is not None:
            averaged = self._state.average.effective(self._state.model)
            for name, value in self._measure_weights(epoch, averaged).items():
                values[f"{AVERAGE}{name}"] = value
        return values

    def _measure_weights(self, epoch: int, parameters: Tensors | None) -> dict[str, Tensor]:
        problem = self._problem
        forward = functools.partial(self._state.model, training=False, parameters=parameters)
        values = split_metrics(problem, forward, self._state.splits["val"], "val")
        curve, test = problem.test_curve, self._state.splits.get("test")
        is_last = epoch == problem.max_epochs
        if curve is not None and test is not None and (epoch % curve.every == 0 or is_last):
            values |= split_metrics(problem, forward, test, "test")
        return values

    def _train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Train on every batch once; give what the epoch measured in training mode."""
        problem, split = self._problem, self._state.splits["train"]
        order, indices = self._plan_batches(epoch)
        means, levels, shares, outputs = [], [], [], []
        for index in indices:
            x, y = split.batch(index)
            self._state.optimizer.zero_grad()
            result = self._step.backward(x, y, self._state.levels.current)
            if problem.max_grad_norm is not None:
                clip_gradients(self._state.model.trained, problem.max_grad_norm)
            self._state.optimizer.step()
            means.append(result.mean)
            levels.append(result.level)
            shares.append(result.share)
            if is_logits(result.output, y):
                outputs.append(result.output.detach())
            self._state.levels.end_step(result.mean)
            if self._state.average is not None:
                share = result.share
                self._state.average.update(
                    self._state.model, epoch, lambda s=share: (s > 0).tolist()
                )
        losses = torch.stack(means)
        counts = [len(split)] if order is None else [index.shape[1] for index in indices]
        self._note_losses(losses, epoch)
        self._num_steps = len(means)
        weights = torch.tensor(counts, dtype=torch.float32, device=losses.device)
        values = {
            "train_loss": (losses.float() * weights.unsqueeze(1)).sum(0) / weights.sum(),
            "level": torch.stack([level.float() for level in levels]).mean(0),
            "flooded": torch.stack(shares).mean(0),
        }
        if outputs:
            eval_loss = stacked_loss(problem.reported)
            labels = split.labels(order)
            values |= label_metrics(eval_loss, "train", torch.cat(outputs, 1), labels)
        return values

    def _plan_batches(self, epoch: int) -> tuple[Tensor | None, list[Any]]:
        """Give the order of each run's examples, and the index of each batch."""
        split = self._state.splits["train"]
        if len(split) <= self._problem.batch_size:
            return None, [slice(None)]
        order_of_seed: dict[int, Tensor] = {}
        for member in self._state.members:
            run = member.run
            if run.seed not in order_of_seed:
                batches = batch_indices(run, member.splits.train, epoch)
                order_of_seed[run.seed] = torch.cat(batches)  # type: ignore[arg-type]
        order = torch.stack([order_of_seed[member.run.seed] for member in self._state.members])
        return order, list(order.split(self._problem.batch_size, dim=1))

    def _note_losses(self, losses: Tensor, epoch: int) -> None:
        """Keep the losses of plain Runs, and the first one of all."""
        if epoch == 1:
            for member, value in zip(self._state.members, losses[0].tolist(), strict=True):
                member.first_loss = value
        for row, member in enumerate(self._state.members):
            member.epochs_trained += 1
            if member.run.level is None:
                member.losses.append(losses[:, row].clone())

    def _end_epoch(self, epoch: int) -> None:
        """Step schedules and controllers, and keep the weights of the Runs that are best so far."""
        problem = self._problem
        latest = [member.curves[-1] for member in self._state.members]
        self._state.optimizer.end_epoch([values["val_loss"] for values in latest])
        if self._state.levels.has_controllers:
            infos = []
            for member, values in zip(self._state.members, latest, strict=True):
                infos.append(epoch_info(problem, values, member.splits.val))
            self._state.levels.end_epoch(infos)
        improved, improved_average = [], []
        for row, (member, values) in enumerate(zip(self._state.members, latest, strict=True)):
            key = validation_key(values, problem)
            if key > member.best:
                member.best, member.best_epoch = key, epoch
                improved.append(row)
            if self._state.average is None:
                continue
            key = validation_key(values, problem, AVERAGE)
            if key > member.best_average:
                member.best_average, member.best_average_epoch = key, epoch
                improved_average.append(row)
        self._keep_weights("best", improved, None)
        if self._state.average is not None and improved_average:
            averaged = self._state.average.effective(self._state.model)
            self._keep_weights("best_average", improved_average, averaged)

    def _keep_weights(self, name: str, rows: list[int], parameters: Tensors | None) -> None:
        """Overwrite the kept weights of some runs by their current ones."""
        if not rows:
            return
        if name not in self._state.best:
            self._state.best[name] = self._state.model.copy_all(parameters)
        else:
            self._state.model.write_rows(self._state.best[name], rows, parameters)

    # ------------------------------------------------------------ single Runs

    def __getitem__(self, index: int) -> TrainingState:
        """Fork one Run: give its state as the single loop has it.

        The fleet goes on as before. ``take_snapshot`` of the state is what ``train(run, resume=)``
        goes on from.

        Args:
            index: Position of the Run in ``runs``.

        Returns:
            A state of its own, with model, optimiser, schedule, controller, average and curves.

        Raises:
            IndexError: If the Run has left the fleet.
        """
        rows = [row for row, member in enumerate(self._state.members) if member.index == index]
        if not rows:
            raise IndexError(
                f"Run {index} does not train in this fleet, which has {len(self)} Runs: it has "
                "left, and its last row has its Record and weights."
            )
        return self._fork(rows[0])

    def _fork(self, row: int) -> TrainingState:
        with preserve_rng_state(), isolated(self._global_state):
            return fork(self._state, row)

    def _snapshot(self, row: int, *, copied: bool = False) -> Snapshot:
        """Take a snapshot of one Run, always as a copy, with the generators that all Runs share."""
        del copied
        snapshot = take_snapshot(self._fork(row), copied=True)
        return {**snapshot, FLEET_GENERATOR: list(self._state.generator)}


def _check_first(problem: Problem, members: Sequence[Member], output: Any, y: Tensor) -> None:
    """Check the labels of every seed and the reported loss before anything is computed."""
    seen = set()
    for row, member in enumerate(members):
        if member.run.seed not in seen:
            seen.add(member.run.seed)
            check_labels(problem, output[row], member.splits)
    first_loss(problem.reported, output[0], y[0])
