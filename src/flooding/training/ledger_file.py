"""The file of a ledger: opened, waited for while it is locked, and repaired where it is damaged."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from flooding.training.folders import make_private_folder
from flooding.training.ledger_repair import (
    APPLICATION_ID,
    looks_like_ledger,
    move_aside,
    salvage,
)
from flooding.training.ledger_rows import COLUMNS, CREATE_TABLES, columns, row_digest
from flooding.training.sqlite_file import (
    LOCK_CODES,
    connect,
    error_code,
    file_id,
    has_no_space,
    is_damage,
    lock_holder,
)

__all__ = ["LedgerFile"]

log = logging.getLogger("flooding")
T = TypeVar("T")

_SCHEMA = 1  # 0 is flooding 0.1.0
_PATIENCE = 60.0  # seconds to wait for another process's write
_SILENCE = 0.5  # seconds of waiting before the log says so; a write takes milliseconds
_NOT_WRITABLE = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_FREE_SPACE = "Free some space there; the same call goes on from what it holds."
_MAKE_WRITABLE = "Make the file and its folder writable, or name another: --ledger FILE."


class LedgerFile:
    """A SQLite file with a ledger's tables.

    Args:
        path: Its absolute path; it and its folder are made if they are missing.

    Raises:
        ValueError: If the path cannot be a ledger's, or holds something else.
        OSError: If the file cannot be written, or another process locks it for a minute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection: sqlite3.Connection
        self._id: tuple[int, int] | None = None  # of the file that is open
        self._is_checked = False  # whether SQLite has checked the structure of the whole file
        self._open()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def execute(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Call what runs statements on a connection; once more after a repair of a damaged file."""
        # Another process may have removed or repaired the file that is open.
        if self._id != file_id(self.path) and self.path.parent.is_dir():
            self.connection.close()
            self._open()
        try:
            return self._wait(lambda: action(self.connection))
        except sqlite3.Error as error:
            if not is_damage(error, self.path):
                raise _user_error(self.path, error) from None
            self.repair(error)
        try:
            return self._wait(lambda: action(self.connection))
        except sqlite3.Error as error:
            raise _user_error(self.path, error) from None

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection, None, None]:
        """Write all of a block's statements or none.

        Yields:
            The connection.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def check_structure(self) -> bool:
        """Let SQLite check the whole file, the first time this is called, and repair it.

        Returns:
            Whether the file had to be replaced just now.
        """
        if self._is_checked:
            return False
        self._is_checked = True
        check = "PRAGMA quick_check(1)"
        [fault] = self.execute(lambda connection: connection.execute(check).fetchone())
        if fault != "ok":
            self.repair(fault.replace("\n", " "))
        return fault != "ok"

    def repair(self, reason: object) -> None:
        """Move the damaged file aside, and put what is intact of it into a new one.

        Args:
            reason: What is wrong with it.

        Raises:
            ValueError: If it cannot be replaced.
        """
        with suppress(AttributeError):  # it may never have been opened
            self.connection.close()
        damaged, number = None, 0
        try:
            # One process at a time repairs; the others then open the new file.
            with FileLock(f"{self.path}.repair", timeout=_PATIENCE) as lock:
                if self._id == file_id(self.path):
                    damaged = move_aside(self.path)
                self._connect()
                if damaged is not None:
                    with self.transaction() as connection:
                        number = salvage(damaged, connection)
                with suppress(OSError):
                    Path(lock.lock_file).unlink(missing_ok=True)
        except (OSError, sqlite3.Error, NotImplementedError) as error:
            raise ValueError(
                f"a ledger must be a whole SQLite file, got {self.path}: {reason}. "
                f"It cannot be replaced ({error}). Move it away, or name another ledger."
            ) from None
        if damaged is not None:
            log.warning(
                "the ledger %s is damaged (%s). It is %s now; its %d good Records are in a new "
                "file, and what is missing is trained anew.",
                self.path,
                reason,
                damaged.name,
                number,
            )

    # Opening

    def _open(self) -> None:
        """Open the file, or the new one that takes its place if it is damaged."""
        self._id = None
        try:
            self._connect()
        except (sqlite3.DatabaseError, OSError) as error:
            if not (is_damage(error, self.path) and looks_like_ledger(self.path)):
                raise _user_error(self.path, error) from None
            self.repair(error)

    def _connect(self) -> None:
        """Open the file; one that is missing is made, readable by its owner alone."""
        _check_path(self.path)
        make_private_folder(self.path.parent)
        # SQLite would make it readable by everybody.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._id = file_id(self.path)
        self.connection = connect(self.path, timeout=_SILENCE)
        try:
            self._wait(self._prepare)
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self) -> None:
        """Make the tables if they are missing, and set how the file is written."""
        if self._version() != (APPLICATION_ID, _SCHEMA):
            self._make_tables()
        # A power cut may lose the last Records, never the file.
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.execute("PRAGMA journal_mode=WAL")

    def _version(self) -> tuple[int, int]:
        """Read the number of the program that wrote the file, and the number of its schema."""
        application_id = self.connection.execute("PRAGMA application_id").fetchone()[0]
        schema = self.connection.execute("PRAGMA user_version").fetchone()[0]
        return application_id, schema

    def _make_tables(self) -> None:
        """Make the tables, or add what flooding 0.1.0 did not have."""
        # In a transaction, so that processes wait for each other.
        with self.transaction() as connection:
            # Refuse what another program, or a newer flooding, wrote.
            application_id, schema = self._version()
            names = columns(connection)
            is_empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application_id != APPLICATION_ID and not is_empty and names[:5] != COLUMNS:
                raise _user_error(self.path, "it belongs to another program")
            if schema > _SCHEMA:
                raise ValueError(
                    f"a ledger must be of schema {_SCHEMA} or older, got schema {schema} in "
                    f"{self.path}: a newer flooding wrote it. Upgrade flooding, or name another "
                    "ledger."
                )
            for statement in CREATE_TABLES:
                connection.execute(statement)
            # Nothing tells whether rows of 0.1.0 are as they were written: they are taken as
            # they are.
            if names == COLUMNS:
                connection.execute("ALTER TABLE records ADD COLUMN digest BLOB")
                connection.create_function("digest", len(COLUMNS), row_digest, deterministic=True)
                connection.execute(f"UPDATE records SET digest = digest({', '.join(COLUMNS)})")
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={_SCHEMA}")

    def _wait(self, action: Callable[[], T]) -> T:
        """Act as soon as no other process locks the file; say so when that takes long."""
        start, is_logged = time.monotonic(), False
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                seconds = time.monotonic() - start
                if error_code(error) not in LOCK_CODES or seconds > _PATIENCE:
                    raise
            if seconds > _SILENCE and not is_logged:
                is_logged = True
                log.warning(
                    "%s has locked the ledger %s; waiting for it, at most %.0f s. "
                    "End that process, or name another ledger: --ledger FILE.",
                    lock_holder(self.path),
                    self.path,
                    _PATIENCE,
                )
            time.sleep(0.01)


def _check_path(path: Path) -> None:
    """Refuse a path that cannot be a ledger's."""
    if path.is_dir():
        raise ValueError(
            f"a ledger must be a file, got the folder {path}. "
            f"Name a file in it: {path / 'ledger.sqlite'}."
        )
    if path.exists() and not path.is_file():
        raise ValueError(
            f"a ledger must be a regular file, got the device or pipe {path}. Name another path."
        )
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(
                f"a ledger must lie in a folder, but {parent} is a file. Choose another path."
            )


def _user_error(path: Path, error: Exception | str) -> Exception:
    """Give the error to raise: rule, value and fix."""
    code, number = error_code(error), getattr(error, "errno", None)
    if code in LOCK_CODES:
        return OSError(
            f"the ledger {path} must be free within {_PATIENCE:.0f} s, but {lock_holder(path)} has "
            f"locked it ({error}). End that process, or name another ledger: --ledger FILE. The "
            "same call goes on from what this one holds."
        )
    # SQLite does not always say that the disk is full.
    is_full = code == sqlite3.SQLITE_FULL or number in {errno.ENOSPC, errno.EDQUOT}
    if code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}:
        is_full = is_full or has_no_space(path)
    rule = f"the ledger {path} must be writable: {error}."
    if is_full:
        return OSError(f"{rule} {_FREE_SPACE}")
    if code in _NOT_WRITABLE or number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return OSError(f"{rule} {_MAKE_WRITABLE}")
    if code == sqlite3.SQLITE_IOERR:
        return OSError(f"{rule} Check that disk, or name a ledger on another.")
    return ValueError(
        f"a ledger must be a SQLite file this tool can open, got {path}: {error}. "
        "Name another ledger."
    )
