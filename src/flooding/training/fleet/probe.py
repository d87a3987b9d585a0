"""What a fleet would cost: seconds a step beside single Runs, and memory a Run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flooding.training.batch import backward, batch_indices, raw_criterion, take_batch
from flooding.training.fleet.optimizer import clip_gradients
from flooding.training.fleet.state import FleetState, start_fleet, try_out
from flooding.training.fleet.step import StackedStep
from flooding.training.isolation import GlobalState, isolated
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.state import start

__all__ = ["Probe", "available_memory", "probe"]

_SECONDS = 0.25  # of measurement of each kind, at most
_STEPS = 12  # likewise
_SIZE = 12  # Runs of the fleet that is measured


@dataclass(frozen=True)
class Probe:
    """What was measured of a fleet.

    Args:
        single: Seconds of a step of one Run that trains alone.
        fleet: Seconds of a step of a fleet, divided by its Runs.
        memory: Bytes that one Run takes in a fleet.
    """

    single: float
    fleet: float
    memory: int

    @property
    def speedup(self) -> float:
        """How many times as many steps a second a fleet takes."""
        return self.single / self.fleet


def probe(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    threads: int = 1,
    settings: Mapping[str, object] | None = None,
    is_timed: bool = True,
) -> Probe:
    """Build a small fleet, and take a few steps of it and of a single Run.

    Args:
        runs: Runs that may train together; the first few are built.
        device: Where they would train.
        threads: torch threads to train with.
        settings: Torch's settings to train under.
        is_timed: Whether to time steps; else both times are 1.

    Returns:
        Times and memory.

    Raises:
        FleetError: If they cannot train together.
        ValueError: If the parts of the Problem do not fit each other.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    place = torch.device(device)
    runs = list(runs[:_SIZE])
    global_state = GlobalState.capture(threads, place, settings)
    with preserve_rng_state(), isolated(global_state):
        fleet = start_fleet(list(enumerate(runs)), place, None, time.time())
        try_out(fleet)
        memory = _measure_memory(fleet)
        if not is_timed:
            return Probe(1.0, 1.0, memory)
        fleet_step = _fleet_step(fleet)
        single_step = _single_step(runs[0], place)
        times = _time_both(single_step, fleet_step, place)
    return Probe(times[0], times[1] / len(runs), memory)


def _fleet_step(fleet: FleetState) -> Callable[[], None]:
    """Give a function that takes one step of all Runs."""
    problem = fleet.members[0].run.problem
    step = StackedStep(fleet.members[0].run, fleet.model)
    size = problem.batch_size
    split = fleet.splits["train"]

    def take_step() -> None:
        x, y = split.batch(slice(0, size))
        fleet.optimizer.zero_grad()
        result = step.backward(x, y, fleet.levels.current)
        if problem.max_grad_norm is not None:
            clip_gradients(fleet.model.trained, problem.max_grad_norm)
        fleet.optimizer.step()
        fleet.levels.end_step(result.mean)

    return take_step


def _single_step(run: Run, device: torch.device) -> Callable[[], None]:
    """Give a function that takes one step of one Run."""
    splits, state = start(run, device)
    criterion = raw_criterion(run)
    index = batch_indices(run, splits.train, 1)[0]
    state.model.train()

    def take_step() -> None:
        x, y = take_batch(run.problem, splits.train, index)
        backward(run, state, criterion, x, y, None)
        state.optimizer.step()

    return take_step


def _time_both(
    first: Callable[[], None], second: Callable[[], None], device: torch.device
) -> tuple[float, float]:
    """Time two kinds of steps in turns: the shortest of each."""
    shortest = [float("inf"), float("inf")]
    spent = [0.0, 0.0]
    for turn in range(_STEPS):
        for kind, step in enumerate((first, second)):
            # The first turn warms up. A slow step is timed once.
            if turn > 1 and spent[kind] > _SECONDS:
                continue
            begin = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - begin
            spent[kind] += seconds
            if turn:
                shortest[kind] = min(shortest[kind], seconds)
    return shortest[0], shortest[1]


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
