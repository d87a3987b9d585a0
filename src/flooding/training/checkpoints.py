"""Checkpoints: files from which a Run goes on bit-identically, found by the Run's key and an epoch.

A file begins with its name and a digest of all that follows. A file that does not match its name or
its digest counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import pickle
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from flooding.atomic import write_atomic
from flooding.training.folders import make_private_folder
from flooding.training.loop import EpochResult
from flooding.training.state import Snapshot

__all__ = ["IDLE_LIMIT", "INTERVAL", "CheckpointTimer", "Checkpoints", "state_digest"]

log = logging.getLogger("flooding")
INTERVAL = 30.0  # seconds between two checkpoints of a Run, at least
IDLE_LIMIT = 256 << 20  # bytes of checkpoints that no training waits for
_MAX_SHARE = 0.02  # of the time, for writing them
_HEADER = b"flooding checkpoint, schema 2\n"
# Schema 1 and files without a header are from flooding 0.1.0, whose keys and states were others.
_OLD_HEADERS = (b"flooding checkpoint, schema 1\n", b"PK\x03\x04")
_HOUR = 3600.0  # seconds


class Checkpoints:
    """A folder of checkpoints.

    Every file appears whole or not at all. What cannot be written or read costs time, never a
    result: the log says so and the Run starts from its beginning.

    Args:
        folder: Where they lie; made when the first one is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(
        self,
        name: str,
        epoch: int,
        snapshot: Snapshot,
        *,
        delete_earlier: bool = True,
        is_idle: bool = False,
    ) -> bool:
        """Write a checkpoint.

        Args:
            name: The Run's key, or another name of it.
            epoch: The epoch it was taken after.
            snapshot: A :attr:`flooding.training.loop.EpochResult.snapshot`.
            delete_earlier: Remove earlier ones of the same name.
            is_idle: Whether its Run has finished, so that nothing waits for it: a longer Run may go
                on from it, or never. Such a file is dated back, see :meth:`prune`.

        Returns:
            Whether it was written.
        """
        path = self.folder / f"{name}-{epoch}.pt"
        try:
            make_private_folder(self.folder)
            # 0600: weights may tell something about private data.
            content = _pack(path.stem, snapshot)
            write_atomic(path, lambda file: file.writelines(content), mode=0o600)
        except (OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
            log.warning(
                "no checkpoint in %s (%s); the run goes on without one.", self.folder, error
            )
            return False
        if is_idle:
            changed = time.time() - _HOUR
            with contextlib.suppress(OSError):
                os.utime(path, (changed, changed))
        if delete_earlier:
            self.delete(name, below=epoch)
        return True

    def find(self, name: str, last_epoch: int) -> Snapshot | None:
        """Read the latest checkpoint.

        Args:
            name: The Run's key, or another name of it.
            last_epoch: Later ones are of no use.

        Returns:
            The snapshot, or None.
        """
        for epoch, path in reversed(self._list(name)):
            if epoch > last_epoch:
                continue
            try:
                return _unpack(path)
            except FileNotFoundError:
                continue  # another process went on from it and removed it
            except Exception as error:  # noqa: BLE001 -- whatever a file holds, the Run trains
                log.warning(
                    "the checkpoint %s cannot be read: %s. It is removed; its steps are taken "
                    "anew.",
                    path,
                    error,
                )
                _remove(path)
        return None

    def exists(self, name: str, last_epoch: int) -> bool:
        """Tell whether :meth:`find` would look at a file."""
        return bool(self.epochs(name, last_epoch))

    def epochs(self, name: str, last_epoch: int) -> set[int]:
        """List the epochs after which there is a checkpoint, up to the last one of use."""
        return {epoch for epoch, _ in self._list(name) if epoch <= last_epoch}

    def delete(self, name: str, below: int) -> None:
        """Remove the checkpoints of a name from before an epoch."""
        for epoch, path in self._list(name):
            if epoch < below:
                _remove(path)

    @contextmanager
    def locked(self, name: str) -> Generator[None, None, None]:
        """Lock a Run while it trains: other processes wait for it, and then look it up.

        The lock ends with its process, however that ends. Where locks do not work, both train: the
        result is the same.

        Args:
            name: The Run's key, or another name of it.
        """
        # A thread other than the one that locked may end the training.
        lock = FileLock(self.folder / f"{name}.lock", thread_local=False)
        try:
            make_private_folder(self.folder)
            try:
                # First without waiting, only to tell the user why nothing happens.
                lock.acquire(timeout=0)
            except Timeout:
                log.info("another process trains %s; waiting for it.", lock.lock_file)
                lock.acquire(poll_interval=0.1)
        except (OSError, NotImplementedError) as error:
            log.debug("no lock on %s: %s", lock.lock_file, error)
        try:
            yield
        finally:
            # Whoever waits has the file open; whoever comes later finds the result of the training.
            if lock.is_locked:
                _remove(Path(lock.lock_file))
                lock.release()

    def prune(self, limit: int = 4 << 30, *, idle_limit: int = IDLE_LIMIT) -> None:
        """Remove what a crash left, and the oldest checkpoints until the rest fits the limits.

        Args:
            limit: Bytes that all checkpoints may take.
            idle_limit: Bytes that those may take which are dated an hour back or more. Younger ones
                may belong to a process that still runs.
        """
        now = time.time()
        # Young files may belong to a process that still runs.
        for pattern, age in (("*.part", _HOUR), ("*.lock", 24 * 7 * _HOUR)):
            for _, _, path in self._list_by_age(pattern, before=now - age):
                _remove(path)
        # Then the oldest checkpoints: their Runs are the least likely to go on.
        _remove_until(self._list_by_age("*.pt", before=now - _HOUR), idle_limit)
        _remove_until(self._list_by_age("*.pt"), limit)

    def size(self) -> int:
        """Add up the bytes of all checkpoints.

        Returns:
            Their number; 0 where there is no folder.
        """
        return sum(size for _, size, _ in self._list_by_age("*.pt"))

    def count_old(self) -> int:
        """Count the checkpoints that flooding 0.1.0 wrote, which cannot be read.

        Returns:
            Their number.
        """
        headers = [_read_header(path) for _, _, path in self._list_by_age("*.pt")]
        return sum(header.startswith(_OLD_HEADERS) for header in headers)

    def _list(self, name: str) -> list[tuple[int, Path]]:
        """List epoch and path of the checkpoints of a name, the earliest first."""
        files = []
        for path in self.folder.glob(f"{name}-*.pt"):
            epoch = path.stem.removeprefix(f"{name}-")
            if epoch.isascii() and epoch.isdigit():
                files.append((int(epoch), path))
        return sorted(files)

    def _list_by_age(self, pattern: str, before: float = math.inf) -> list[tuple[float, int, Path]]:
        """List time of change, size and path of files, the oldest first."""
        files = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):  # another process removed it
                    status = path.lstat()
                    if status.st_mtime < before:
                        files.append((status.st_mtime, status.st_size, path))
        return sorted(files)


class CheckpointTimer:
    """Writes a checkpoint every 30 s, or rarer where writing takes more than 2 % of the time.

    Args:
        checkpoints: Where they go.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._last, self._duration = time.monotonic(), 0.0  # of the last writing

    def save_if_due(self, *rows: tuple[str, EpochResult]) -> None:
        """Write the checkpoints of Runs after an epoch, if it is time.

        Args:
            *rows: The Run's key, or another name of it, and its row; of a fleet those of all Runs.
        """
        start = time.monotonic()
        # A large model takes long to write, and then writes rarely.
        interval = max(INTERVAL, self._duration / _MAX_SHARE)
        rows = tuple((name, row) for name, row in rows if row.snapshot is not None)
        if not rows or start - self._last < interval:
            return
        written = []
        for name, row in rows:
            assert row.snapshot is not None
            snapshot = row.snapshot()
            written.append(self._checkpoints.save(name, row.epoch, snapshot, delete_earlier=False))
        # Only now: whatever ends this process, all Runs of a fleet have one epoch in common.
        if all(written):
            for name, row in rows:
                self._checkpoints.delete(name, below=row.epoch)
        self._last = time.monotonic()
        self._duration = self._last - start


def state_digest(name: str, content: bytes) -> str:
    """Hash a checkpoint.

    Args:
        name: Its name, without the suffix.
        content: What ``torch.save`` wrote.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.blake2b(f"{name}\n".encode(), digest_size=32)
    digest.update(content)
    return digest.hexdigest()


def _pack(name: str, snapshot: Snapshot) -> tuple[bytes, bytes]:
    """Give the bytes of a file: a header with its name and digest, then the snapshot."""
    with io.BytesIO() as file:
        torch.save(dict(snapshot), file)
        content = file.getvalue()
    return _HEADER + f"{name}\n{state_digest(name, content)}\n".encode(), content


def _unpack(path: Path) -> Snapshot:
    """Read a file; nothing is unpickled before its name and its digest match."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        header, name, digest = (file.readline(1000) for _ in range(3))
        if header.startswith(_OLD_HEADERS):
            raise ValueError("flooding 0.1.0 wrote it")
        if header != _HEADER:
            raise ValueError("it has no digest")
        if name != f"{path.stem}\n".encode():
            raise ValueError(f"it belongs to another training, {name[:100]!r}, or is damaged")
        content = file.read()
    if digest != f"{state_digest(path.stem, content)}\n".encode():
        raise ValueError("its digest differs")
    return torch.load(io.BytesIO(content), weights_only=True)


def _read_header(path: Path) -> bytes:
    """Read where a file begins; nothing of what is no regular file or cannot be read."""
    try:
        if path.is_symlink() or not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(len(_HEADER))
    except OSError:
        return b""


def _remove_until(files: Sequence[tuple[float, int, Path]], limit: int) -> None:
    """Remove files, given by age, size and path, from the first on until the rest fits a limit."""
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit:
            return
        _remove(path)
        total -= size


def _remove(path: Path) -> None:
    """Remove a file if that is possible."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
