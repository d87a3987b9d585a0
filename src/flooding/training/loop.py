"""The only training loop: ``train(runs)`` yields a row per epoch.

Printing and tracking are consumers of these rows.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from flooding.data import Split, Splits
from flooding.functional import is_flooded
from flooding.levels import Controller, StepInfo
from flooding.methods import flooded_fraction, objective
from flooding.training.average import keep_best_average, measure_average, update_average
from flooding.training.batch import (
    BatchIndex,
    BatchResult,
    backward,
    batch_indices,
    is_any_flooded,
    plan_batches,
    raw_criterion,
    raw_loss,
    take_batch,
)
from flooding.training.evaluation import (
    epoch_info,
    explain_first_pass,
    is_logits,
    label_metrics,
    make_record,
    mean_level,
    measure_epoch,
    measure_start,
)
from flooding.training.isolation import GlobalState, isolated
from flooding.training.record import Record, validation_key
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.state import (
    Snapshot,
    TrainingState,
    copy_weights,
    eval_weights,
    model_fingerprint,
    restore,
    start,
    take_snapshot,
)

__all__ = [
    "NUMERICS_VERSION",
    "EpochResult",
    "TakeSnapshot",
    "fingerprint",
    "mean_level",
    "record_versions",
    "train",
]

# Raised whenever the same Run gives other bits; a golden Record in the tests watches over it.
NUMERICS_VERSION = 2


class TakeSnapshot(Protocol):
    """Takes a snapshot of a training after an epoch."""

    def __call__(self, *, copied: bool = False) -> Snapshot:
        """Take the snapshot.

        Args:
            copied: Whether to copy the tensors that the next epoch changes.

        Returns:
            A snapshot for ``train(run, resume=snapshot)``.
        """
        ...


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of one Run measured.

    Args:
        run: The Run.
        epoch: 0 before training, then 1 to the Run's epochs.
        values: Measured numbers by name, see :class:`flooding.Record`.
        record: The Record, on the last row of a Run only.
        weights: State dicts by name, on the last row only: ``best``, ``last``, with averaging
            ``average`` (the last) and ``best_average``, and ``first_flooded`` if it was asked for
            and happened.
        losses: Raw losses of the epoch's steps, ``[steps]``, where the Run is plain and takes one
            pass a step.
        snapshot: Takes a snapshot to go on from after this epoch, for ``resume``. It refers to
            tensors that the next row will have changed; ``snapshot(copied=True)`` does not. None
            where there is nothing to go on to.
    """

    run: Run
    epoch: int
    values: dict[str, float]
    record: Record | None = None
    weights: dict[str, dict[str, Tensor]] | None = field(default=None, repr=False)
    losses: Tensor | None = field(default=None, repr=False)
    snapshot: TakeSnapshot | None = field(default=None, repr=False)


def train(
    runs: Run | Iterable[Run],
    *,
    device: str | torch.device = "cpu",
    threads: int = 1,
    keep_first_flooded: bool = False,
    resume: Snapshot | None = None,
    with_record: bool = True,
    settings: Mapping[str, object] | None = None,
) -> Generator[EpochResult, bool | None, None]:
    """Train Runs one after another and yield a row per epoch, the first before training.

    ``rows.send(True)`` ends the current Run: what it returns is that Run's last row. Between two
    rows the caller's generators and thread count are what they were. Nothing is looked up or
    stored: that is :func:`flooding.run_all`.

    Args:
        runs: A Run or several.
        device: Where to train.
        threads: torch threads to train with; one and two give different bits.
        keep_first_flooded: Whether to keep the weights from before the first step whose loss lies
            below the level. Costs a host sync per step until then.
        resume: A snapshot of the same Run, or of a shorter one, as :class:`EpochResult` gives it:
            what follows is bit-identical to what would have followed. The rows up to there are
            yielded again.
        with_record: Whether the last row has a Record, which takes passes over the test split.
        settings: Torch's global settings to train under, see
            :func:`flooding.numerics.capture_settings`; None is those in force when a Run
            starts. Enclosing contexts (``autocast``, ``no_grad``, a default device) have no effect.

    Yields:
        A row per epoch.

    Example:
        >>> from flooding import Problem, Run
        >>> from functools import partial
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
        >>> problem = Problem(data=data, model=model, max_epochs=2)
        >>> [row.epoch for row in train(Run(problem, level=0.2))]
        [0, 1, 2]
    """
    if isinstance(runs, Run):
        runs = [runs]
    for run in runs:
        global_state = GlobalState.capture(threads, torch.device(device), settings)
        yield from _train_run(run, global_state, keep_first_flooded, resume, with_record)


def _train_run(
    run: Run,
    global_state: GlobalState,
    keep_first_flooded: bool,
    resume: Snapshot | None,
    with_record: bool,
) -> Generator[EpochResult, bool | None, None]:
    """Train one Run."""
    # 1. Build everything, and put it where the snapshot was taken.
    start_time, begin = time.time(), time.perf_counter()
    with preserve_rng_state(), isolated(global_state):
        splits, state = start(run, global_state.device)
    state.seconds = time.perf_counter() - begin
    if resume is not None:
        restore(run, state, resume)

    # 2. One row per epoch; those before the snapshot are only yielded again.
    past_rows = list(state.curves)
    epoch, values, losses = 0, {}, None
    for epoch in range(run.epochs + 1):
        if epoch < len(past_rows):
            values = past_rows[epoch]
        else:
            with isolated(global_state, state):
                values = _run_epoch(run, state, splits, epoch, keep_first_flooded)
        losses = state.losses[epoch - 1] if 0 < epoch <= len(state.losses) else None
        # The row of the last epoch comes with the Record.
        if epoch == run.epochs and with_record:
            break
        snapshot = _snapshot_taker(state, epoch)
        stop = yield EpochResult(run, epoch, dict(values), losses=losses, snapshot=snapshot)
        if stop:
            break
    if not with_record:
        return

    # 3. A last snapshot, since measuring the Record loads the best weights, and the Record.
    snapshot = None
    if epoch < run.problem.max_epochs and _snapshot_taker(state, epoch) is not None:
        final = take_snapshot(state, copied=True)
        snapshot = functools.partial(_return_copy, final)
    with isolated(global_state, state), eval_weights(state):
        record = make_record(run, state, splits)
    metadata = {
        "began": start_time,
        "seconds": round(state.seconds, 3),
        "epochs_trained": state.epochs_trained,
        "val_examples": len(splits.val),
        "pid": os.getpid(),
    }
    record = replace(record, metadata={**metadata, **record_versions()})
    yield EpochResult(run, epoch, values, record, state.weights, losses, snapshot)


def _snapshot_taker(state: TrainingState, epoch: int) -> TakeSnapshot | None:
    """Give what takes a snapshot after an epoch, unless the state is already beyond it."""
    if epoch < len(state.curves) - 1:
        return None
    return functools.partial(take_snapshot, state)


def _return_copy(snapshot: Snapshot, *, copied: bool = True) -> Snapshot:
    """Return a snapshot that is a copy already, whether or not one is asked for."""
    del copied
    return snapshot


def _run_epoch(
    run: Run, state: TrainingState, splits: Splits, epoch: int, keep_first_flooded: bool
) -> dict[str, float]:
    """Train one epoch, measure it, and update what changes once an epoch."""
    problem = run.problem
    values = {}
    if epoch:
        values = _train_epoch(run, state, splits.train, epoch, keep_first_flooded)
    with eval_weights(state):
        if epoch == 0:
            values = measure_start(problem, state, splits)
        network = measure_epoch(problem, state.model, splits, epoch)
        values |= network
        if state.average is not None:
            values |= measure_average(run, state, splits, epoch, network)
        state.curves.append(values)
        if epoch:
            _end_epoch(run, state, values, epoch, splits.val)
    return values


def _end_epoch(
    run: Run, state: TrainingState, values: dict[str, float], epoch: int, val: Split
) -> None:
    """Step the scheduler and the controller, and keep the weights if they are the best so far."""
    scheduler = state.lr_scheduler
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(values["val_loss"])
    elif scheduler is not None:
        scheduler.step()
    if state.controller is not None:
        info = epoch_info(run.problem, values, val)
        state.controller = _controller(run).update(state.controller, info)
    key = validation_key(values, run.problem)
    if key > state.best:
        state.best, state.best_epoch = key, epoch
        state.weights["best"] = copy_weights(state.model)
    if state.average is not None:
        keep_best_average(run, state, values, epoch)


@dataclass
class _EpochLog:
    """What the steps of one epoch computed, as tensors: nothing here waits for the device.

    Args:
        losses: Mean raw loss of each step.
        levels: Level of each step that had one.
        shares: Share of each step's losses below their level, unless the level is one number.
        outputs: Output of each step that gave logits.
    """

    losses: list[Tensor] = field(default_factory=list)
    levels: list[float | Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def _train_epoch(
    run: Run, state: TrainingState, split: Split, epoch: int, keep_first_flooded: bool
) -> dict[str, float]:
    """Train on every batch once.

    Args:
        run: The Run.
        state: Its state.
        split: Its training split.
        epoch: The epoch, from 1.
        keep_first_flooded: Whether to keep the weights from before the first flooded step.

    Returns:
        What the epoch measured in training mode, by name.
    """
    problem, model, optimizer = run.problem, state.model, state.optimizer
    criterion = raw_criterion(run)
    is_constant = _is_constant(run)
    indices, counts = plan_batches(run, state, split, epoch)
    log = _EpochLog()
    model.train()
    for index in indices:
        # 1. Take the batch.
        x, y = take_batch(problem, split, index)
        ids = None
        if state.table is not None:
            ids = split.id[index]

        # 2. Compute the gradients; errors of the very first pass are explained.
        compute = functools.partial(backward, run, state, criterion, x, y, ids)
        if state.is_checked:
            batch = compute()
        else:
            with explain_first_pass(problem, model, y):
                batch = compute()

        # 3. Keep the weights from before the first flooded step.
        if keep_first_flooded and "first_flooded" not in state.weights and is_any_flooded(batch):
            with eval_weights(state):
                state.weights["first_flooded"] = copy_weights(model)

        # 4. Take the step. SAM and its kin compute the gradients again in it.
        if state.needs_closure:
            optimizer.step(lambda compute=compute: float(compute().value))
        else:
            optimizer.step()

        # 5. Log tensors.
        log.losses.append(batch.mean)
        if batch.level is not None:
            log.levels.append(batch.level)
            if not is_constant:
                log.shares.append(_flooded_share(batch, state))
        if is_logits(batch.output, y):
            log.outputs.append(batch.output.detach())

        # 6. Update what follows the steps: the controller, the teacher and the average.
        if state.controller is not None:
            state.controller = _controller(run).update(state.controller, StepInfo(batch.mean))
        if state.teacher is not None:
            state.teacher.update_parameters(model)
        update_average(run, state, batch, epoch)

    # 7. Read the tensors.
    state.epochs_trained += 1
    if epoch == 1:
        state.first_loss = float(log.losses[0])
    if run.level is None and not state.needs_closure:
        state.losses.append(torch.stack(log.losses))
    values = {"lr": float(optimizer.param_groups[0]["lr"])}
    values |= _summarize(run, log, counts)
    if log.outputs:
        labels = _take_labels(split, indices)
        values |= label_metrics(problem, "train", torch.cat(log.outputs), labels)
    return values


def _summarize(run: Run, log: _EpochLog, counts: list[float]) -> dict[str, float]:
    """Average an epoch's losses, weighted by what each is a mean over, its levels and shares."""
    losses, weights = torch.stack(log.losses), torch.tensor(counts)
    train_loss = (losses.float().cpu() * weights).sum() / weights.sum()
    values = {
        "train_loss": float(train_loss),
        "level": mean_level(log.levels),
        "flooded": 0.0,
    }
    if _is_constant(run):
        values["flooded"] = float(is_flooded(losses, run.level).float().mean())
    elif log.shares:
        values["flooded"] = float(torch.stack(log.shares).mean())
    return values


def _controller(run: Run) -> Controller:
    """Give the level of a Run whose state has a controller's state."""
    return cast(Controller, run.level)


def _is_constant(run: Run) -> bool:
    """Tell whether every step compares its batch mean with one number."""
    return isinstance(run.level, float) and run.method.reduction == "mean"


def _flooded_share(batch: BatchResult, state: TrainingState) -> Tensor:
    """Compute the share of a batch's losses that lie below their level."""
    if state.has_ignored:
        return flooded_fraction(batch.loss, batch.level, batch.weight)
    return is_flooded(batch.loss, batch.level).float().mean()


def _take_labels(split: Split, indices: list[BatchIndex]) -> Split:
    """Take the labels of an epoch's examples in their order, and leave the inputs alone."""
    if isinstance(indices[0], slice):
        return split
    order = torch.cat(indices)  # type: ignore[arg-type]
    y = split.y[order]
    if split.clean is None:
        return Split(y, y)
    return Split(y, y, split.clean[order])


def fingerprint(
    run: Run,
    device: str | torch.device = "cpu",
    threads: int = 1,
    settings: Mapping[str, object] | None = None,
) -> str:
    """Hash the parameter shapes and the first batch loss of a Run.

    A Record with another fingerprint cannot be that of the Run.

    Args:
        run: The Run.
        device: Where it trains.
        threads: torch threads it trains with.
        settings: Torch's settings that it trains under; None takes those in force.

    Returns:
        What the Run's Record has as ``fingerprint``.
    """
    short_run = replace(run, problem=replace(run.problem, test_curve=None), stop_epoch=1)
    global_state = GlobalState.capture(threads, torch.device(device), settings)
    with preserve_rng_state(), isolated(global_state):
        splits, state = start(short_run, torch.device(device))
    with isolated(global_state, state), torch.no_grad():
        index = batch_indices(run, splits.train, 1)[0]
        state.model.train()
        x, y = take_batch(run.problem, splits.train, index)
        _, loss, weight = raw_loss(run, state, raw_criterion(run), x, y)
        return model_fingerprint(state.model, float(objective(loss, None, run.method, weight)))


@functools.cache
def record_versions() -> dict[str, str | int]:
    """Give the versions and the machine that a Record names."""
    return {
        "engine": NUMERICS_VERSION,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "machine": platform.machine(),
    }
