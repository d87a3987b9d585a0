"""SQLite files: connections, and what an error of SQLite says about the file."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

__all__ = [
    "LOCK_CODES",
    "SIDE_FILES",
    "connect",
    "error_code",
    "file_id",
    "has_no_space",
    "is_damage",
    "lock_holder",
]

# Codes of a file that another process has locked.
LOCK_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
SIDE_FILES = ("-wal", "-shm")  # what SQLite writes beside a file, by the end of the name
_DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_SCHEMA_FAULTS = ("no such", "has no column", "columns but", "unsupported file format")


def connect(path: Path, timeout: float = 5.0) -> sqlite3.Connection:
    """Open a SQLite file.

    Args:
        path: The file.
        timeout: Seconds to wait for another process's lock.

    Returns:
        A connection in autocommit mode, which any thread may use.
    """
    connection = sqlite3.connect(
        path, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    # Damaged text must be readable: its digest tells that it is damaged.
    connection.text_factory = lambda text: text.decode(errors="surrogateescape")
    return connection


def file_id(path: Path) -> tuple[int, int] | None:
    """Give what tells a file from another one under the same path.

    Args:
        path: The file.

    Returns:
        Its device and inode; None if it is not there.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def error_code(error: object) -> int | None:
    """Give SQLite's primary result code.

    Args:
        error: An exception.

    Returns:
        The code; None if the error is not SQLite's.
    """
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_damage(error: BaseException, path: Path) -> bool:
    """Tell whether an error comes from what the file holds, not from its surroundings.

    Args:
        error: An exception.
        path: The file.

    Returns:
        True if the file must be repaired.
    """
    code, extended_code = error_code(error), getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_ERROR:
        # The statements are right. If a table lacks a column, its definition is damaged.
        return any(fault in str(error) for fault in _SCHEMA_FAULTS)
    if code == sqlite3.SQLITE_READONLY:
        # A damaged header may forbid writing, too.
        is_writable = all(
            os.access(file_or_folder, os.W_OK) for file_or_folder in (path, path.parent)
        )
        return extended_code == code and is_writable
    return extended_code == sqlite3.SQLITE_IOERR_SHORT_READ or code in _DAMAGE_CODES


def has_no_space(path: Path) -> bool:
    """Tell whether less than 1 MiB is free on the disk of a file.

    Args:
        path: The file.

    Returns:
        False also where the system does not tell.
    """
    try:
        usage = shutil.disk_usage(path.parent)
    except OSError:
        return False
    return usage.total > 0 and usage.free < 1 << 20


def lock_holder(path: Path) -> str:
    """Name the process that locks a SQLite file for writing.

    Args:
        path: The file.

    Returns:
        "process 4711" where the system tells (Linux), else "another process".
    """
    inodes = set()
    for suffix in ("", *SIDE_FILES):
        if (identity := file_id(Path(f"{path}{suffix}"))) is not None:
            inodes.add(str(identity[1]))
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            # 1: POSIX ADVISORY WRITE 4711 fe:01:1234 120 120
            words = line.split()
            if len(words) < 6 or words[3] != "WRITE":
                continue
            pid, inode = int(words[4]), words[5].rpartition(":")[2]
            if inode in inodes and pid not in {0, -1, os.getpid()}:
                return f"process {pid}"
    return "another process"
