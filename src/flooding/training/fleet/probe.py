"""What a fleet would cost: seconds an epoch beside single Runs, and memory a Run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from flooding.data import Split, Splits, map_tensors
from flooding.training.fleet.loop import Fleet
from flooding.training.fleet.state import FleetState, start_fleet, try_out
from flooding.training.isolation import GlobalState, isolated
from flooding.training.loop import train
from flooding.training.rng import fork_rng, preserve_rng_state
from flooding.training.run import Run

__all__ = ["Probe", "available_memory", "measure_fleet"]

_SHARE = 0.03  # of the planned work, for measuring, at most
_SECONDS = 0.3  # of measurement of each kind, at most
_EPOCHS = 40  # likewise
_BATCHES = 8  # of a shortened epoch
_SIZES = range(4, 13)  # Runs of the fleet that is measured
_BUILD = 2  # epochs that building a Run and its first epoch cost about
_MIN_TURNS = 4  # epochs of each kind, two of which count
_MIN_SPEEDUP = 1.1  # below that single Runs are taken
# Single Runs that differ in their level share their first steps, from 2 to 50 % of all
# (`benchmarks/search.py`): fleets, which share none, must make up for that.
_MIN_SPEEDUP_OVER_SHARING = 1.5
# Multiply-adds of a Run's forward pass on the CPU, up to which fleets were faster wherever measured
# (`benchmarks/fleet.py`; convolutions and batch norm as well).
_MAX_WORK = 2e8
_MAX_WORK_OVER_SHARING = 2e7


class _Options(TypedDict):
    """Options of a training, alone and in a fleet."""

    device: str
    threads: int
    settings: Mapping[str, object] | None


@dataclass(frozen=True)
class Probe:
    """What was measured of a fleet.

    Args:
        single: Seconds of an epoch of one Run that trains alone; None if not measured.
        fleet: Seconds of an epoch of a fleet, divided by its Runs; None if not measured.
        memory: Bytes that one Run takes in a fleet.
        work: Multiply-adds of a Run's forward pass on one batch.
        available: Bytes that were free where it was measured; None if unknown.
    """

    single: float | None
    fleet: float | None
    memory: int
    work: float = 0.0
    available: int | None = None

    def is_faster(self, device: str = "cpu", *, shares: bool = False) -> bool:
        """Tell whether Runs train faster in a fleet: as measured, or else by a rule of sizes.

        Args:
            device: Where they train.
            shares: Whether they would share their first steps if they trained one by one.

        Returns:
            Whether a fleet pays.
        """
        if self.single is None or self.fleet is None:
            limit = _MAX_WORK_OVER_SHARING if shares else _MAX_WORK
            return torch.device(device).type != "cpu" or self.work <= limit
        speedup = _MIN_SPEEDUP_OVER_SHARING if shares else _MIN_SPEEDUP
        return self.single / self.fleet > speedup


def measure_fleet(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    threads: int = 1,
    settings: Mapping[str, object] | None = None,
    planned_epochs: float = 0.0,
) -> Probe:
    """Build a small fleet; where much is planned, time a few epochs of it and of a single Run.

    Args:
        runs: Runs that may train together; the first few are built.
        device: Where they would train.
        threads: torch threads to train with.
        settings: Torch's settings to train under.
        planned_epochs: Epochs of a single Run that are to be trained before the call ends. At most
            3 % of them are spent on timing; with fewer than that takes nothing is timed.

    Returns:
        Memory, work, and times.

    Raises:
        FleetError: If they cannot train together.
        ValueError: If the parts of the Problem do not fit each other.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    torch_device = torch.device(device)
    global_state = GlobalState.capture(threads, torch_device, settings)
    with preserve_rng_state(), isolated(global_state):
        # Two show all that matters, and large models take long to build.
        fleet = start_fleet(list(enumerate(runs[:2])), torch_device, None, time.time())
        try_out(fleet)
        memory, work = _measure_memory(fleet), _count_work(fleet)
    available = available_memory(device)
    # An epoch that is timed has few batches, so it is worth less than a planned one.
    examples = len(fleet.splits["train"])
    share = min(1.0, _BATCHES * runs[0].problem.batch_size / examples)
    budget = _SHARE * planned_epochs / share
    del fleet
    timing = _plan_timing(budget, len(runs), runs[0].problem.max_epochs)
    if timing is None:
        return Probe(None, None, memory, work, available)
    size, turns = timing
    options: _Options = {"device": device, "threads": threads, "settings": settings}
    return Probe(*_time_both(_shorten(runs[:size]), turns, options), memory, work, available)


def _plan_timing(budget: float, num_runs: int, max_epochs: int) -> tuple[int, int] | None:
    """Give the size of the fleet to time and the epochs; None if the budget is too small."""
    # Beside the fleet one Run trains alone, and building a Run counts as epochs, too.
    size = min(num_runs, _SIZES[-1], int(budget / (_MIN_TURNS + _BUILD)) - 1)
    if size < min(num_runs, _SIZES[0]):
        return None
    turns = min(_EPOCHS, max_epochs, int(budget / (size + 1)) - _BUILD)
    return (size, turns) if turns >= _MIN_TURNS else None


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


def _time_both(runs: Sequence[Run], turns: int, options: _Options) -> tuple[float, float]:
    """Time epochs of one Run, and of a fleet for each of its Runs, in turns: the median of each."""
    # On a busy processor the time of this thread alone tells which is faster.
    is_one_thread = options["device"] == "cpu" and options["threads"] == 1
    clock = time.thread_time if is_one_thread else time.perf_counter
    single = train(runs[0], with_record=False, **options)
    fleet = Fleet(runs, **options).train()
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for kind, (rows, count) in enumerate(((single, 1), (fleet, len(runs)))):
            # Epoch 0 is measured but not trained, and epoch 1 warms up.
            if turn > 2 and sum(spent[kind]) > _SECONDS:
                continue
            begin = clock()
            for _ in range(count):
                next(rows)
            if turn > 1:
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


def _count_work(fleet: FleetState) -> float:
    """Count about the multiply-adds of one Run's forward pass on one batch."""
    template, problem = fleet.model.template, fleet.members[0].run.problem
    work = 0

    def note(module: nn.Module, _: object, output: object) -> None:
        nonlocal work
        # Each output is a sum over the inputs of one row of a matrix, or of one filter.
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1 and isinstance(output, Tensor):
                work += parameter[0].numel() * output.numel()

    examples = min(8, problem.batch_size)
    x, y = fleet.splits["train"].batch(slice(0, examples))
    handles = [module.register_forward_hook(note) for module in template.modules()]
    with torch.no_grad(), fork_rng(0):
        template.eval()(map_tensors(lambda t: t[0], x))
    for handle in handles:
        handle.remove()
    return work * min(problem.batch_size, len(fleet.splits["train"])) / y.shape[1]


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
