"""Experiments: each a generator that yields Runs, receives their Records and returns a Report; one
file per source.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from flooding.experiments.archive import run_id
from flooding.experiments.experiment import Experiment, Source, Study
from flooding.training.config import UnhashableConfigError
from flooding.training.problem import PeriodicMetric
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["NAMES", "Experiment", "Source", "Study", "describe_provenance", "estimate", "find", "machine"]

# What `flooding reproduce --list` prints. Each name is a module here, with `experiment(quick) ->
# Experiment`, the curves it keeps in an archive (CURVES), and perhaps a reader of its own for
# archives (load).
NAMES = {
    "ishida2020": "the paper's synthetic table: three tasks, three noises, 51 levels, with and without early stopping",
    "ishida2020_settings": "what the paper leaves open: plain training on Two Gaussians in six settings",
    "kim2022": "the published reproduction: forward, backward, heuristic, policy gradient; its claims as tests",
    "double_descent": "do test loss and error descend a second time: nine synthetic cells, digits in eight ways",
    "double_descent_cifar10": "the same on CIFAR-10, reduced for a CPU, in eight ways",
    "bakeoff": "twelve methods on thirteen problems, each with up to four trainings to choose its settings",
    "ishida2020_why": "why flooding works: flatter minima, a random walk, memory, over-confidence, as tests",
    "images5k": "4,000 real images: MNIST, Fashion-MNIST, CIFAR-10, six levels, with and without early stopping",
    "peterson2019": "labels people disagree on (CIFAR-10H): what they say about the level, and which levels work",
    "kim2022_cifar10": "CIFAR-10 with a residual network at two learning rates, reduced for a CPU",
}


def find(name: str) -> ModuleType:
    """Import an experiment by name.

    Args:
        name: A name of :data:`NAMES`.

    Returns:
        Its module.

    Raises:
        ValueError: If there is none.
    """
    if name not in NAMES:
        raise ValueError(
            f"an experiment must be one of {', '.join(NAMES)}; got {name}. See --list."
        )
    return import_module(f"flooding.experiments.{name}")


def describe_provenance(records: Sequence[Record]) -> str:
    """Say on what, and for how long, Records were trained.

    Args:
        records: The Records, at least one.

    Returns:
        A sentence.
    """
    # A Record that several strategies asked for was trained once.
    each = {_name(record): record for record in records}
    told = [record.metadata for record in each.values()]
    hours = sum(float(t.get("seconds", 0.0)) for t in told) / 3600
    places = sorted({str(t["on"]) if "on" in t else machine() for t in told})
    return f"{len(told)} trainings, {hours:.2f} CPU hours; {' and '.join(places)}."


def _name(record: Record) -> str | int:
    """Name a Record by its Run, or by itself where that does not describe itself."""
    try:
        return id(record) if record.run is None else run_id(record.run)
    except UnhashableConfigError:
        return id(record)


def estimate(runs: Sequence[Run], workers: int | None = None) -> float:
    """Estimate how long Runs will take, from three epochs of one Run of each problem and method.

    Problems that differ in their watch alone are one; a
    :class:`~flooding.training.problem.PeriodicMetric` is timed twice.

    Args:
        runs: The Runs; beginnings that will be shared are not subtracted.
        workers: Worker processes; None is one per core.

    Returns:
        Seconds, without the last passes over the test split.
    """
    from flooding.training.loop import train
    from flooding.training.runner import available_cpus

    known: dict[tuple[int | type, ...], tuple[float, float, float]] = {}
    whole = 0.0
    for run in runs:
        watch = run.problem.extra_metrics
        parts = (
            getattr(run.problem, part.name)
            for part in fields(run.problem)
            if part.name != "extra_metrics"
        )
        kind = (*map(id, parts), type(run.method), type(watch))
        if kind not in known:
            plain = (
                replace(run.problem, extra_metrics=None)
                if isinstance(watch, PeriodicMetric)
                else run.problem
            )
            first = replace(run, problem=plain, stop_epoch=min(4, plain.max_epochs))
            ticks = [time.perf_counter() for _ in train(first, conclude=False)]
            known[kind] = (ticks[-1] - ticks[1]) / max(len(ticks) - 2, 1), *_measuring(run)
        epoch, once, again = known[kind]
        times = math.ceil(run.epochs / watch.every) if isinstance(watch, PeriodicMetric) else 0
        whole += epoch * run.epochs + once + again * times
    return whole / max(workers if workers is not None else available_cpus(), 1)


def _measuring(run: Run) -> tuple[float, float]:
    """Seconds of a costly watch, the first time and again (it may keep something), on one thread as
    in a worker.
    """
    import torch

    watch = run.problem.extra_metrics
    if not isinstance(watch, PeriodicMetric):
        return 0.0, 0.0
    model, splits, threads = (
        run.problem.build(run.seed).eval(),
        run.problem.splits(run.seed),
        torch.get_num_threads(),
    )
    torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        watch(model, run.problem, splits)
        then = time.perf_counter()
        watch(model, run.problem, splits)
        return then - began, time.perf_counter() - then
    finally:
        torch.set_num_threads(threads)


def _commit() -> str:
    """Name this code: the last commit that changed it, with a plus where it was changed since, or
    else its version.
    """
    code = Path(__file__).parents[1]
    commands = (
        ["log", "-1", "--format=%h", "--abbrev=7", "--", "."],
        ["status", "--porcelain", "--", "."],
    )
    try:
        commit, changes = (
            subprocess.run(
                ["git", *c], cwd=code, capture_output=True, text=True, check=True
            ).stdout.strip()
            for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        commit = changes = ""
    return commit + "+" * bool(changes) if commit else version("flooding")


@functools.cache
def machine() -> str:
    """Describe processor, cores, memory and versions in one line.

    Returns:
        Such as ``AMD EPYC, 2 cores, 24 GiB, Linux; Python 3.11.7, torch 2.13.0+cpu, flooding 1a2b3c4``.
    """
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, flooding {_commit()}"
    )
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}; {versions}"
