"""MLflow runs of killed processes: tags that name a run's process, and runs closed by them."""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["HOST_TAG", "PROCESS_TAG", "close_killed", "process_tags"]

HOST_TAG = "flooding.host"
"""Tag of the host since its last start, and of the container."""

PROCESS_TAG = "flooding.process"
"""Tag of the process: its number and when it began."""

_log = logging.getLogger("flooding")


def process_tags() -> dict[str, str]:
    """Name this process.

    Returns:
        Its host since the last start, its number there, and when it began; nothing where the system
        has no ``/proc``.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # Containers of one host have process numbers of their own.
        container = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
        start = _start_time("self")
    except OSError:
        return {}
    if not start:
        return {}
    host = re.sub(r"[^\w.-]", "_", socket.gethostname())
    return {HOST_TAG: f"{host}/{boot}/{container}", PROCESS_TAG: f"{os.getpid()}:{start}"}


def close_killed(client: MlflowClient, experiment_id: str) -> None:
    """Set runs to KILLED whose process on this host has ended without closing them.

    Args:
        client: A client of the store.
        experiment_id: The experiment.
    """
    tags = process_tags()
    if not tags:
        return
    # The host's name has no quotes: see `process_tags`.
    query = f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{tags[HOST_TAG]}'"
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], filter_string=query, page_token=token)
        for run in page:
            process, _, start = run.data.tags.get(PROCESS_TAG, "").partition(":")
            # Another process may have the same number by now; it began at another time.
            if process.isdecimal() and start and _start_time(process) != start:
                client.set_terminated(run.info.run_id, "KILLED")
                _log.warning(
                    "MLflow run %s was left open by a killed process: it is KILLED now.",
                    run.info.run_name,
                )
        token = page.token
        if not token:
            return


def _start_time(process: str) -> str | None:
    """Look up when a process began, in ticks since the host's start; None if it has ended."""
    try:
        text = Path("/proc", process, "stat").read_text(errors="replace")
        # The name of the process, in brackets, may hold anything, also brackets.
        state, *fields = text.rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    is_dead = state in {"Z", "X"}  # a zombie, or gone
    return None if is_dead else fields[18]
