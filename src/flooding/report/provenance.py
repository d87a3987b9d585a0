"""Provenance: on what machine, with what versions and for how long Records were trained."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from flooding.training.archive import is_missing, run_id
from flooding.training.config import UnhashableConfigError
from flooding.training.record import Record

__all__ = ["describe_provenance", "machine"]


def describe_provenance(records: Sequence[Record]) -> str:
    """Say on what, and for how long, Records were trained.

    Args:
        records: The Records, at least one. Those that an archive lacks do not count.

    Returns:
        A sentence.
    """
    # A Record that several strategies asked for was trained once.
    unique = {_identity(record): record for record in records if not is_missing(record)}
    seconds, machines = 0.0, set()
    for record in unique.values():
        seconds += float(record.metadata.get("seconds", 0.0))
        # A Record that names no machine was trained on this one.
        if "on" in record.metadata:
            machines.add(str(record.metadata["on"]))
        else:
            machines.add(machine())
    names = " and ".join(sorted(machines))
    return f"{len(unique)} trainings, {seconds / 3600:.2f} CPU hours; {names}."


def _identity(record: Record) -> str | int:
    """Identify a Record by its Run, or by itself where the Run cannot be hashed."""
    if record.run is None:
        return id(record)
    try:
        return run_id(record.run)
    except UnhashableConfigError:
        return id(record)


@functools.cache
def machine() -> str:
    """Describe processor, cores, memory and versions in one line.

    Returns:
        Such as ``AMD EPYC, 2 cores, 24 GiB, Linux; Python 3.11.7, torch 2.13.0+cpu, flooding
        1a2b3c4``.
    """
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    hardware = f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"
    python, torch_version = platform.python_version(), torch.__version__
    return f"{hardware}; Python {python}, torch {torch_version}, flooding {_commit()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def _commit() -> str:
    """Name the last commit of this code, with a plus where it was changed since, or the version."""
    try:
        commit = _git("log", "-1", "--format=%h", "--abbrev=7", "--", ".")
        changes = _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return version("flooding")
    if not commit:
        return version("flooding")
    if changes:
        return f"{commit}+"
    return commit


def _git(*arguments: str) -> str:
    code = Path(__file__).parents[1]
    options = {"cwd": code, "capture_output": True, "text": True, "check": True}
    return subprocess.run(["git", *arguments], **options).stdout.strip()
