"""Runs on a Ray cluster: another place to train, with the same ledger and the same bits.

Ray places the tasks on machines. What is looked up, what shares its first steps and what is trained
is decided here, as on one machine, and this process alone writes the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from flooding.integrations import require_framework
from flooding.training.fleet_jobs import FleetOption
from flooding.training.ledger import absolute_path, default_path
from flooding.training.loop import EpochResult
from flooding.training.record import Record
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.runner import run_with

with require_framework("ray"):
    import ray
    from ray.util.client import ray as client

from flooding.integrations._ray_jobs import Resources, TaskDriver, count_slots
from flooding.training.checkpoint_storage import check_storage

__all__ = ["connect", "run_all"]

log = logging.getLogger("flooding")


@preserve_rng_state()
def run_all(
    runs: Iterable[Run],
    *,
    address: str | None = None,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    storage: str | Path | Literal[False] | None = None,
    ledger: str | Path | Literal[False] | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    fleet: FleetOption = False,
    on_start: Callable[[list[Run]], object] | None = None,
    on_row: Callable[[EpochResult], object] | None = None,
    progress: bool | None = None,
) -> list[Record]:
    """Look Runs up in the ledger and train those that are not there as tasks of Ray.

    A Record is the one that :func:`flooding.run_all` gives, to the bit, on a machine of the same
    kind. Runs that differ in their level alone take the steps before the first flooded one
    together, and then go on wherever there is room. A Run whose worker or machine dies begins
    again, from its last checkpoint in the storage if there is one. If this process dies, the same
    call goes on from the ledger. Code of the user's own travels with the Runs, also that of a
    script or notebook; flooding, torch and other installed packages must be on every machine in the
    same version.

    Args:
        runs: The Runs.
        address: See :func:`connect`.
        num_cpus: Cores for each Run, which trains on one thread; fractions are allowed.
        num_gpus: GPUs for each Run; with 0.5 two Runs share one. None is 1 on a CUDA device, else
            0.
        resources: Resources of Ray that each Run needs, by name.
        storage: Where checkpoints go that outlive a machine: a folder that every machine sees, or a
            URI that fsspec knows, such as ``s3://bucket/checkpoints``. False is nowhere: a Run that
            is cut off begins anew. None is the folder beside the ledger where the cluster is this
            machine alone, else nowhere, which the log says.
        ledger: SQLite file of Records on this machine; None is the default place, False none at
            all.
        overwrite: Train even what the ledger holds, and replace it there.
        device: Where to train, on the machine that a Run is placed on.
        fleet: Whether Runs train as one set of tensors, a fleet for each task, see
            :func:`flooding.run_all`. What fits, and with "auto" what is faster, is measured by a
            task of its own. With GPUs there is a fleet for each of them, or for each share.
        on_start: Called once with the Runs that must be trained.
        on_row: Called with every row of the Runs that are trained.
        progress: Whether to show a bar, see :func:`flooding.run_all`.

    Returns:
        Records in the order of the Runs.

    Raises:
        ValueError: If an argument is out of range, a Run cannot travel, or the machines have
            different versions.
        ConnectionError: If there is no cluster at the address.
        RuntimeError: If a Run's workers died five times without getting any further, or Ray's
            object store is full.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    runs = list(runs)
    needs = _make_resources(num_cpus, num_gpus, resources, device)
    path = None if storage is None or storage is False else check_storage(str(storage))
    connect(address)
    slots = count_slots(needs)
    if slots == 0:
        log.warning(
            "a run needs %s of one node, and the cluster has not got that now; waiting for it to "
            "grow.",
            needs.by_name(),
        )
    if path is None and storage is not False and runs:
        path = _default_storage(ledger)
    driver = TaskDriver(needs, path)
    return run_with(
        driver,
        runs,
        num_workers=max(1, slots),
        ledger=ledger,
        overwrite=overwrite,
        device=device,
        fleet=fleet,
        on_start=on_start,
        on_row=on_row,
        progress=progress,
        places=driver.places(),
    )


def connect(address: str | None = None) -> None:
    """Connect this process to a Ray cluster, unless it is connected to one.

    The connection stays until the process ends, or until ``ray.shutdown()``.

    Args:
        address: ``"auto"`` is the cluster that runs on this machine or that ``RAY_ADDRESS`` names,
            ``"local"`` a new one of this machine alone, which ends with this process, and
            ``"host:port"`` the one there, which this machine must be a node of. None is "auto" if
            there is such a cluster, else "local".

    Raises:
        ValueError: If the address is that of Ray's client, which cannot pass rows on.
        ConnectionError: If there is no cluster at the address.
    """
    if (address or "").startswith("ray://") or client.is_connected():
        raise ValueError(
            "Runs need a driver on a node of the cluster, got a connection by Ray's client "
            f"({address or 'ray://'}). Submit the script: ray job submit -- python script.py."
        )
    if ray.is_initialized():
        return
    if address in {None, "auto"}:
        try:
            ray.init(address="auto", logging_level=logging.WARNING)
        except ConnectionError:
            if address == "auto":
                raise
            address = "local"
    if address == "local":
        ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING)
    elif address not in {None, "auto"}:
        ray.init(address=address, logging_level=logging.WARNING)


def _make_resources(
    num_cpus: float, num_gpus: float | None, resources: Mapping[str, float] | None, device: str
) -> Resources:
    """Check what each Run needs."""
    if num_gpus is None:
        num_gpus = 1.0 if str(device).startswith("cuda") else 0.0
    needs = Resources(float(num_cpus), float(num_gpus), dict(resources or {}))
    for name, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if not 0 <= amount < float("inf"):
            raise ValueError(f"{name} must be finite and at least 0, got {amount}. Try 1.")
    if not needs.by_name():
        raise ValueError(
            "a Run must need some resource, got none: all of them would begin at once. "
            "Try num_cpus=1."
        )
    return needs


def _default_storage(ledger: str | Path | Literal[False] | None) -> str | None:
    """Give the folder beside the ledger if the cluster is this machine alone."""
    if ledger is False:
        return None
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if addresses <= {ray.util.get_node_ip_address()}:
        return f"{absolute_path(ledger or default_path())}.checkpoints"
    log.info(
        "checkpoints are left out, since no folder is known that all %d machines see: a run that "
        "is cut off begins anew. Name one: storage='s3://bucket/folder', or a shared folder.",
        len(addresses),
    )
    return None
