"""Checkpoints: files from which a Run goes on bit-identically, found by trajectory and epoch."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from flooding.loop import Row

__all__ = ["Checkpoints", "Pace"]

log = logging.getLogger("flooding")

_SECONDS = 30.0  # at most one checkpoint of a Run in this time
_SHARE = 0.02  # of the time, at most, for writing them


class Checkpoints:
    """A folder of checkpoints.

    Every file appears whole or not at all. What cannot be written or read costs time, never a result: the log says so
    and the Run starts from its beginning.

    Args:
        folder: Where they lie; made when the first one is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _files(self, name: str) -> list[tuple[int, Path]]:
        return sorted((int(path.stem.rpartition("-")[2]), path) for path in self.folder.glob(f"{name}-*.pt"))

    def save(self, name: str, epoch: int, state: Mapping[str, Any], *, only: bool = True) -> bool:
        """Write a state.

        Args:
            name: The trajectory.
            epoch: The epoch it was taken after.
            state: A :attr:`flooding.loop.Row.snapshot`.
            only: Remove earlier ones of the same trajectory.

        Returns:
            Whether it was written.
        """
        path = self.folder / f"{name}-{epoch}.pt"
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(dict(state), part)
            part.replace(path)
        except (OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            log.warning("no checkpoint in %s (%s); the run goes on without one.", self.folder, error)
            return False
        if only:
            self.drop(name, below=epoch)
        return True

    def find(self, name: str, until: int) -> dict[str, Any] | None:
        """Read the latest state of a trajectory.

        Args:
            name: The trajectory.
            until: Latest epoch that is of use.

        Returns:
            The state, or None.
        """
        for epoch, path in reversed(self._files(name)):
            if epoch <= until:
                try:
                    return torch.load(path, weights_only=True)
                except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
                    log.warning("the checkpoint %s cannot be read (%s); it is removed.", path, error)
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
        return None

    @contextmanager
    def claimed(self, name: str) -> Generator[None, None, None]:
        """Hold a trajectory while it trains, so that other processes wait for it and then look it up.

        A claim ends with its process, however that ends. Where locks do not work, both train: the result is the same.

        Args:
            name: The trajectory.
        """
        lock = FileLock(self.folder / f"{name}.lock", thread_local=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("another process trains %s; waiting for it.", lock.lock_file)
                lock.acquire(poll_interval=0.1)
        except (OSError, NotImplementedError) as error:
            log.debug("no claim on %s: %s", lock.lock_file, error)
        try:
            yield
        finally:
            if lock.is_locked:  # whoever waits has it open, and whoever comes later finds what was trained
                with contextlib.suppress(OSError):
                    Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()

    def holds(self, name: str, until: int) -> bool:
        """Tell whether :meth:`find` would look at a file."""
        return any(epoch <= until for epoch, _ in self._files(name))

    def drop(self, name: str, below: int) -> None:
        """Remove the checkpoints of a trajectory from before an epoch."""
        for epoch, path in self._files(name):
            if epoch < below:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def tidy(self, limit: int = 4 << 30) -> None:
        """Remove the oldest checkpoints until the rest take at most ``limit`` bytes, and remains of a crash.

        Args:
            limit: Bytes.
        """
        with contextlib.suppress(OSError):
            for pattern, hours in (("*.part", 1), ("*.lock", 24 * 7)):
                for part in self.folder.glob(pattern):
                    if time.time() - part.stat().st_mtime > 3600 * hours:
                        part.unlink(missing_ok=True)
            files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.glob("*.pt"))
            held = sum(size for _, size, _ in files)
            for _, size, path in files:
                if held <= limit:
                    return
                path.unlink(missing_ok=True)
                held -= size


class Pace:
    """Decides when a Run is due for a checkpoint: every 30 s, or rarer where writing takes more than 2 % of the time.

    Args:
        checkpoints: Where they go.
        name: The trajectory.
    """

    def __init__(self, checkpoints: Checkpoints, name: str) -> None:
        self._checkpoints, self._name = checkpoints, name
        self._since, self._cost = time.monotonic(), 0.0

    def see(self, row: Row) -> None:
        """Write a checkpoint after a row, if one is due."""
        if row.snapshot is None or time.monotonic() - self._since < max(_SECONDS, self._cost / _SHARE):
            return
        began = time.monotonic()
        self._checkpoints.save(self._name, row.epoch, row.snapshot())
        self._since = time.monotonic()
        self._cost = self._since - began
