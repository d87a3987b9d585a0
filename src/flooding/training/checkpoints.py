"""Checkpoints: files from which a Run goes on bit-identically, found by trajectory and epoch.

A file begins with its name and a digest of all that follows. Whatever does not match, or has no
digest, counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import pickle
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from flooding.training.ledger import make_private
from flooding.training.loop import EpochResult

__all__ = ["CheckpointTimer", "Checkpoints"]

log = logging.getLogger("flooding")
_SECONDS = 30.0  # at most one checkpoint of a Run in this time
_SHARE = 0.02  # of the time, at most, for writing them
_KIND = b"flooding checkpoint, schema 1\n"


class Checkpoints:
    """A folder of checkpoints.

    Every file appears whole or not at all. What cannot be written or read costs time, never a
    result: the log says so and the Run starts from its beginning.

    Args:
        folder: Where they lie; made when the first one is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _files(self, name: str) -> list[tuple[int, Path]]:
        epochs = (
            (path.stem.removeprefix(f"{name}-"), path) for path in self.folder.glob(f"{name}-*.pt")
        )
        return sorted(
            (int(epoch), path) for epoch, path in epochs if epoch.isascii() and epoch.isdigit()
        )

    def save(self, name: str, epoch: int, state: Mapping[str, Any], *, only: bool = True) -> bool:
        """Write a state.

        Args:
            name: The trajectory.
            epoch: The epoch it was taken after.
            state: A :attr:`flooding.training.loop.EpochResult.snapshot`.
            only: Remove earlier ones of the same trajectory.

        Returns:
            Whether it was written.
        """
        path, part = self.folder / f"{name}-{epoch}.pt", None
        try:
            make_private(self.folder)
            content = _seal(path.stem, state)
            # A new file under a name nobody can guess, readable by its owner alone.
            number, part = tempfile.mkstemp(".part", f"{path.stem}.", self.folder)
            with os.fdopen(number, "wb") as file:
                file.writelines(content)
            os.replace(part, path)
        except (OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
            if part is not None:
                with contextlib.suppress(OSError):
                    os.unlink(part)
            log.warning(
                "no checkpoint in %s (%s); the run goes on without one.", self.folder, error
            )
            return False
        if only:
            self.delete(name, below=epoch)
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
                    return _unseal(path)
                except FileNotFoundError:
                    continue  # another process went on from it and removed it
                except Exception as error:  # noqa: BLE001 -- whatever a file holds, the Run trains
                    log.warning(
                        "the checkpoint %s cannot be read: %s. It is removed; its steps are taken anew.",
                        path,
                        error,
                    )
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
        return None

    @contextmanager
    def locked(self, name: str) -> Generator[None, None, None]:
        """Hold a trajectory while it trains, so that other processes wait for it and then look it
        up.

        A claim ends with its process, however that ends. Where locks do not work, both train: the
        result is the same.

        Args:
            name: The trajectory.
        """
        lock = FileLock(self.folder / f"{name}.lock", thread_local=False)
        try:
            make_private(self.folder)
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
            if (
                lock.is_locked
            ):  # whoever waits has it open, and whoever comes later finds what was trained
                with contextlib.suppress(OSError):
                    Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()

    def exists(self, name: str, until: int) -> bool:
        """Tell whether :meth:`find` would look at a file."""
        return any(epoch <= until for epoch, _ in self._files(name))

    def delete(self, name: str, below: int) -> None:
        """Remove the checkpoints of a trajectory from before an epoch."""
        for epoch, path in self._files(name):
            if epoch < below:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def prune(self, limit: int = 4 << 30) -> None:
        """Remove the oldest checkpoints until the rest take at most ``limit`` bytes, and remains of
        a crash.

        Args:
            limit: Bytes.
        """
        for pattern, hours in (("*.part", 1), ("*.lock", 24 * 7)):
            for _, _, path in self._by_age(pattern, until=time.time() - 3600 * hours):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        files = self._by_age("*.pt")
        held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if held <= limit:
                return
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            held -= size

    def _by_age(self, pattern: str, until: float = math.inf) -> list[tuple[float, int, Path]]:
        """List time of change, size and path of files, the oldest first."""
        files = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):  # another process removed it
                    status = path.lstat()
                    files.append((status.st_mtime, status.st_size, path))
        return sorted(file for file in files if file[0] < until)


def _seal(name: str, state: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Give the bytes of a file: what it is, its name and digest, then the state."""
    with io.BytesIO() as file:
        torch.save(dict(state), file)
        content = file.getvalue()
    return _KIND + f"{name}\n{_digest(name, content)}\n".encode(), content


def _unseal(path: Path) -> dict[str, Any]:
    """Read a file; nothing is unpickled before its name and its digest match."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        kind, name, digest = (file.readline(1000) for _ in range(3))
        if kind != _KIND:
            raise ValueError("it has no digest: flooding 0.1.0 wrote it, or it is damaged")
        if name != f"{path.stem}\n".encode():
            raise ValueError(f"it belongs to another training, {name[:100]!r}, or is damaged")
        content = file.read()
    if digest != f"{_digest(path.stem, content)}\n".encode():
        raise ValueError("its digest differs")
    return torch.load(io.BytesIO(content), weights_only=True)


def _digest(name: str, content: bytes) -> str:
    digest = hashlib.blake2b(f"{name}\n".encode(), digest_size=32)
    digest.update(content)
    return digest.hexdigest()


class CheckpointTimer:
    """Decides when a Run is due for a checkpoint: every 30 s, or rarer where writing takes more
    than 2 % of the time.

    Args:
        checkpoints: Where they go.
        name: The trajectory.
    """

    def __init__(self, checkpoints: Checkpoints, name: str) -> None:
        self._checkpoints, self._name = checkpoints, name
        self._since, self._cost = time.monotonic(), 0.0

    def see(self, row: EpochResult) -> None:
        """Write a checkpoint after a row, if one is due."""
        if row.snapshot is None or time.monotonic() - self._since < max(
            _SECONDS, self._cost / _SHARE
        ):
            return
        began = time.monotonic()
        self._checkpoints.save(self._name, row.epoch, row.snapshot())
        self._since = time.monotonic()
        self._cost = self._since - began
