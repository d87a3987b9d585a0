"""Which Record a Run has in the ledger: keys of Runs, and looking them up."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Literal, TypeAlias

import torch

from flooding.numerics import capture_settings, environment, has_global_hooks
from flooding.training.config import Config, has_user_key
from flooding.training.ledger import Ledger
from flooding.training.loop import NUMERICS_VERSION, fingerprint
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["Kernel", "load_cached", "log_lookup", "run_key", "run_keys"]

log = logging.getLogger("flooding")
# What trains a Run: alone, or in a fleet. Their bits differ.
Kernel: TypeAlias = Literal["single", "fleet"]


def run_key(
    run: Run, *, device: str = "cpu", threads: int = 1, kernel: Kernel = "single"
) -> str | None:
    """Give the key of a Run on a device, under which the ledger stores its Record.

    Args:
        run: The Run.
        device: Where it trains.
        threads: torch threads it trains with.
        kernel: "single", or "fleet" for a Run that trains in one: its bits are others.

    Returns:
        64 hexadecimal digits, or None if a part of the Run cannot be hashed.
    """
    # Global hooks may change anything, and nobody can name them.
    if has_global_hooks():
        return None
    return run.key(**_key_metadata(device, threads, kernel))


def run_keys(runs: list[Run], kernels: list[Kernel], device: str, threads: int) -> list[str | None]:
    """Give the keys of several Runs.

    Args:
        runs: The Runs.
        kernels: What trains each.
        device: Where they train.
        threads: torch threads they train with.

    Returns:
        A key or None for each.
    """
    keys = []
    for run, kernel in zip(runs, kernels, strict=True):
        keys.append(run_key(run, device=device, threads=threads, kernel=kernel))
    return keys


def _key_metadata(device: str, threads: int, kernel: Kernel = "single") -> dict[str, Config]:
    """Describe what changes the bits of every Run; torch's default settings are left out."""
    metadata: dict[str, Config] = {
        "engine": NUMERICS_VERSION,
        "torch": torch.__version__,
        "device": str(device),
        "dtype": str(torch.get_default_dtype()),
        "threads": threads,
        "kernel": kernel,
    }
    settings: dict[str, Config] = {**capture_settings()}
    if settings:
        metadata["settings"] = settings
    if variables := environment():
        metadata["environment"] = {**variables}
    return metadata


def load_cached(
    path: str,
    runs: list[Run],
    keys: list[str | None],
    kernels: list[Kernel],
    device: str,
    threads: int,
) -> dict[int, Record]:
    """Look Runs up in the ledger, single ones also under the keys of flooding 0.1.0.

    Args:
        path: The ledger.
        runs: The Runs.
        keys: The key of each.
        kernels: What trains each.
        device: Where they train.
        threads: torch threads they train with.

    Returns:
        The Records that are there, by the index of each Run.
    """
    records: dict[int, Record] = {}
    metadata = _key_metadata(device, threads)
    with closing(Ledger(path)) as ledger:
        for index, (run, key, kernel) in enumerate(zip(runs, keys, kernels, strict=True)):
            if key is None:
                continue
            record = ledger.find(run, key)
            if record is None and kernel == "single":
                record = _find_legacy(ledger, run, metadata)
            if record is not None:
                records[index] = record
    for record in records.values():
        _check_fingerprint(record, path, device, threads)
    return records


def _find_legacy(ledger: Ledger, run: Run, metadata: dict[str, Config]) -> Record | None:
    for key in run.legacy_keys(**metadata):
        record = ledger.find(run, key)
        if record is not None:
            return record
    return None


def _check_fingerprint(record: Record, path: str, device: str, threads: int) -> None:
    """Refuse a Record under a user's key that comes from other code: the key does not hash it."""
    run = record.run
    if run is None or not has_user_key(run.problem):
        return
    if record.fingerprint != fingerprint(run, device, threads):
        raise ValueError(
            "a Record must have this problem's parameter shapes and first batch loss, but the one "
            f"in {path} has others: the problem changed. Change its key too."
        )


def log_lookup(path: str, count: int, keys: list[str | None]) -> None:
    """Log how many Runs were in the ledger, and why some can never be.

    Args:
        path: The ledger.
        count: How many were there.
        keys: The keys of all Runs.
    """
    log.info("%d of %d runs from the ledger %s", count, len(keys), path)
    if None not in keys:
        return
    if has_global_hooks():
        log.warning(
            "with global hooks of torch.nn or torch.optim every run is trained anew. "
            "Remove them to look runs up."
        )
    else:
        log.warning(
            "a problem without a key is trained anew each time. "
            "Give the Problem a key='...' to look it up."
        )


# Jobs
