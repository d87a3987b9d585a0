"""Temporary folders. After a kill they are removed by the process that makes the next one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["scratch_folder"]

_PREFIX = "flooding-"
_LOCK_NAME = ".in-use"
# Seconds before a folder without a lock is removed: its process may be just about to lock it.
_MIN_AGE = 60.0


@contextmanager
def scratch_folder() -> Generator[Path, None, None]:
    """Make a temporary folder for a block, and remove those that killed processes left behind.

    Yields:
        The folder, readable by its owner alone.
    """
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        lock = FileLock(Path(name, _LOCK_NAME), thread_local=False)
        # Where locks do not work, nobody removes what a kill left.
        with contextlib.suppress(OSError, NotImplementedError):
            lock.acquire(timeout=0)
        try:
            yield Path(name)
        finally:
            lock.release()


def remove_abandoned() -> None:
    """Remove temporary folders of this user whose process is gone."""
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            if _is_old_and_own(folder):
                _remove_unlocked(folder)


def _is_old_and_own(folder: Path) -> bool:
    try:
        status = (folder / _LOCK_NAME).lstat()
        is_own = not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid()
    except OSError:  # not a folder of this library, or just removed
        return False
    is_old = time.time() - status.st_mtime > _MIN_AGE
    return is_own and is_old and not folder.is_symlink()


def _remove_unlocked(folder: Path) -> None:
    lock = FileLock(folder / _LOCK_NAME, thread_local=False)
    with contextlib.suppress(Timeout, OSError, NotImplementedError), lock.acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
