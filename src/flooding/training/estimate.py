"""How long Runs will take, from a few epochs of each kind."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import fields, replace

from flooding.training.problem import PeriodicMetric, Problem
from flooding.training.run import Run

__all__ = ["estimate"]


def estimate(runs: Sequence[Run], workers: int | None = None) -> float:
    """Estimate how long Runs will take, from three epochs of one Run of each problem and method.

    Problems that differ in their extra metrics alone count as one; a
    :class:`~flooding.training.problem.PeriodicMetric` is timed twice.

    Args:
        runs: The Runs; beginnings that will be shared are not subtracted.
        workers: Worker processes; None is one per core.

    Returns:
        Seconds, without the last passes over the test split.
    """
    from flooding.training.runner import available_cpus

    timings: dict[Hashable, tuple[float, float, float]] = {}
    total = 0.0
    for run in runs:
        metric = run.problem.extra_metrics
        kind = (_kind_of(run.problem), type(run.method), type(metric))
        if kind not in timings:
            timings[kind] = (_time_epoch(run), *_time_metric(run))
        epoch, first, again = timings[kind]
        times = math.ceil(run.epochs / metric.every) if isinstance(metric, PeriodicMetric) else 0
        total += epoch * run.epochs + first + again * times
    return total / max(workers if workers is not None else available_cpus(), 1)


def _kind_of(problem: Problem) -> Hashable:
    """Identify a problem by all its parts but the extra metrics."""
    names = [part.name for part in fields(problem) if part.name != "extra_metrics"]
    return tuple(id(getattr(problem, name)) for name in names)


def _time_epoch(run: Run) -> float:
    """Time an epoch in seconds, without periodic metrics."""
    from flooding.training.loop import train

    problem = run.problem
    if isinstance(problem.extra_metrics, PeriodicMetric):
        problem = replace(problem, extra_metrics=None)
    short = replace(run, problem=problem, stop_epoch=min(4, problem.max_epochs))
    ticks = [time.perf_counter() for _ in train(short, with_record=False)]
    # The first epoch warms up.
    return (ticks[-1] - ticks[1]) / max(len(ticks) - 2, 1)


def _time_metric(run: Run) -> tuple[float, float]:
    """Time a periodic metric in seconds: the first time, and again, when it may have a cache."""
    import torch

    metric = run.problem.extra_metrics
    if not isinstance(metric, PeriodicMetric):
        return 0.0, 0.0
    model, splits = run.problem.build(run.seed).eval(), run.problem.splits(run.seed)
    threads = torch.get_num_threads()
    # One thread, as in a worker process.
    torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        metric(model, run.problem, splits)
        middle = time.perf_counter()
        metric(model, run.problem, splits)
        return middle - began, time.perf_counter() - middle
    finally:
        torch.set_num_threads(threads)
