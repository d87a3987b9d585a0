"""What a fleet would cost: seconds an epoch beside single Runs, and memory a Run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from flooding.data import Split, Splits
from flooding.training.fleet.loop import Fleet
from flooding.training.fleet.state import FleetState, start_fleet, try_out
from flooding.training.isolation import GlobalState, isolated
from flooding.training.loop import train
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run

__all__ = ["Probe", "available_memory", "measure_fleet"]

_SECONDS = 0.3  # of measurement of each kind, at most
_EPOCHS = 40  # likewise
_BATCHES = 8  # of a shortened epoch
_SIZE = 12  # Runs of the fleet that is measured


class _Options(TypedDict):
    """Options of a training, alone and in a fleet."""

    device: str
    threads: int
    settings: Mapping[str, object] | None


@dataclass(frozen=True)
class Probe:
    """What was measured of a fleet.

    Args:
        single: Seconds of an epoch of one Run that trains alone.
        fleet: Seconds of an epoch of a fleet, divided by its Runs.
        memory: Bytes that one Run takes in a fleet.
    """

    single: float
    fleet: float
    memory: int

    @property
    def speedup(self) -> float:
        """How many times as many epochs a second a fleet takes."""
        return self.single / self.fleet


def measure_fleet(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    threads: int = 1,
    settings: Mapping[str, object] | None = None,
    is_timed: bool = True,
) -> Probe:
    """Build a small fleet, and time a few epochs of it and of a single Run.

    Args:
        runs: Runs that may train together; the first few are built.
        device: Where they would train.
        threads: torch threads to train with.
        settings: Torch's settings to train under.
        is_timed: Whether to time epochs; else both times are 1.

    Returns:
        Times and memory.

    Raises:
        FleetError: If they cannot train together.
        ValueError: If the parts of the Problem do not fit each other.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    torch_device = torch.device(device)
    runs = list(runs[:_SIZE])
    global_state = GlobalState.capture(threads, torch_device, settings)
    with preserve_rng_state(), isolated(global_state):
        # Two show all that matters, and large models take long to build.
        fleet = start_fleet(list(enumerate(runs[:2])), torch_device, None, time.time())
        try_out(fleet)
        memory = _measure_memory(fleet)
    times = (1.0, 1.0)
    if is_timed and runs[0].problem.max_epochs > 1:
        times = _time_both(runs, {"device": device, "threads": threads, "settings": settings})
    return Probe(*times, memory)


def _shorten(runs: Sequence[Run]) -> list[Run]:
    """Give Runs of the same steps in shorter epochs, in which measuring keeps its proportion."""
    problem = runs[0].problem
    splits = {run.seed: problem.splits(run.seed) for run in runs}
    examples = len(splits[runs[0].seed].train)
    share = min(1.0, _BATCHES * problem.batch_size / examples)
    if share == 1:
        return [replace(run, stop_epoch=None) for run in runs]

    def take(split: Split) -> Split:
        return split.take(slice(max(2, round(share * len(split)))))

    parts = {}
    for seed, whole in splits.items():
        train_split = whole.train.take(slice(_BATCHES * problem.batch_size))
        parts[seed] = Splits(train_split, take(whole.val), None)
    short = replace(problem, data=lambda *, seed: parts[seed], test_curve=None)
    return [
        replace(run, problem=replace(short, optimizer=run.problem.optimizer), stop_epoch=None)
        for run in runs
    ]


def _time_both(runs: Sequence[Run], options: _Options) -> tuple[float, float]:
    """Time epochs of one Run, and of a fleet for each of its Runs, in turns: the median of each."""
    # On a busy processor the time of this thread alone tells which is faster.
    is_one_thread = options["device"] == "cpu" and options["threads"] == 1
    clock = time.thread_time if is_one_thread else time.perf_counter
    runs = _shorten(runs)
    single = train(runs[0], with_record=False, **options)
    fleet = Fleet(runs, **options).train()
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(min(runs[0].epochs, _EPOCHS)):
        for kind, (rows, count) in enumerate(((single, 1), (fleet, len(runs)))):
            # Epoch 0 is measured but not trained, and epoch 1 warms up.
            if turn > 2 and sum(spent[kind]) > _SECONDS:
                continue
            begin = clock()
            for _ in range(count):
                next(rows)
            if turn > 1 or runs[0].epochs < 4:
                spent[kind].append(clock() - begin)
    single.close()
    fleet.close()
    return statistics.median(spent[0]), statistics.median(spent[1]) / len(runs)


def _measure_memory(fleet: FleetState) -> int:
    """Estimate the bytes that one Run takes: weights, what is saved for backward, data."""
    count = len(fleet.members)
    weights = sum(t.nbytes for t in fleet.model.parameters.values())
    buffers = sum(t.nbytes for t in fleet.model.buffers.values())
    # The weights themselves, gradients, two moments, the best ones, and a copy while they change.
    copies = 6 + 2 * (fleet.average is not None)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    problem = fleet.members[0].run.problem
    x, _ = fleet.splits["train"].batch(slice(0, problem.batch_size))
    before = fleet.model.buffers
    fleet.model.buffers = {name: buffer.clone() for name, buffer in before.items()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fleet.model(x, training=True)
    fleet.model.buffers = before
    # In backward the gradient of each is there as well.
    return (copies * weights + 2 * buffers + 2 * sum(saved.values())) // count


def available_memory(device: str) -> int | None:
    """Give the memory that is free for training, in bytes.

    Args:
        device: Where.

    Returns:
        Bytes, or None where that is unknown.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # no such name, as on Windows
        return None
