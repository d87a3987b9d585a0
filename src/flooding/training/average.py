"""The average of the weights in a training: its steps, its measurements and its best epoch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from flooding.data import Inputs, Split, Splits
from flooding.training.batch import BatchResult, is_any_flooded, plan_batches, take_batch
from flooding.training.evaluation import measure_epoch
from flooding.training.record import AVERAGE, validation_key
from flooding.training.rng import derive_seed, fork_rng
from flooding.training.run import Run
from flooding.training.state import TrainingState, copy_weights

__all__ = ["keep_best_average", "measure_average", "update_average"]


def update_average(run: Run, state: TrainingState, batch: BatchResult, epoch: int) -> None:
    """Put the weights after a step into the average, once it has begun.

    Args:
        run: The Run.
        state: Its state.
        batch: What the step computed.
        epoch: The epoch, from 1.
    """
    average, averaging = state.average, run.problem.averaging
    if average is None or averaging is None:
        return
    is_flooded = functools.partial(is_any_flooded, batch)
    if average.has_begun or averaging.begins(epoch, is_flooded):
        average.update_parameters(state.model)


def measure_average(
    run: Run, state: TrainingState, splits: Splits, epoch: int, network: Mapping[str, float]
) -> dict[str, float]:
    """Measure the average after an epoch as the network is measured.

    The statistics of batch norm are computed anew first, on the batches of the epoch in their
    order. None of it draws from the generators of the training.

    Args:
        run: The Run.
        state: Its state.
        splits: The splits.
        epoch: The epoch, 0 before training.
        network: What the same epoch measured of the network.

    Returns:
        Numbers by name, each with the prefix "average.".
    """
    average = state.average
    assert average is not None
    values = network  # until the average begins it is the network itself
    if average.has_begun:
        with fork_rng(derive_seed(run.seed, "average", epoch)):
            average.renew_batch_norm(_epoch_inputs(run, state, splits.train, epoch))
            values = measure_epoch(run.problem, average.module, splits, epoch)
    return {f"{AVERAGE}{name}": value for name, value in values.items()}


def _epoch_inputs(run: Run, state: TrainingState, split: Split, epoch: int) -> Iterator[Inputs]:
    """Give the inputs of each batch of an epoch, in the order in which it was trained on."""
    indices, _ = plan_batches(run, state, split, epoch)
    for index in indices:
        x, _ = take_batch(run.problem, split, index)
        yield x


def keep_best_average(
    run: Run, state: TrainingState, values: Mapping[str, float], epoch: int
) -> None:
    """Keep the averaged weights if they are the best so far.

    Args:
        run: The Run.
        state: Its state.
        values: What the epoch measured.
        epoch: The epoch, from 1.
    """
    average = state.average
    assert average is not None
    key = validation_key(values, run.problem, AVERAGE)
    if key > state.best_average:
        state.best_average, state.best_average_epoch = key, epoch
        model = average.module if average.has_begun else state.model
        state.weights["best_average"] = copy_weights(model)
