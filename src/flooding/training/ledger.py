"""The ledger: Records looked up by key, in one SQLite file that several processes may share.

Each row carries a digest of its key and its content. A row that is damaged, or lies under another
key than it was written with, counts as missing. A damaged file is moved aside, and its intact rows
go into a new one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from flooding.training.ledger_file import LedgerFile
from flooding.training.ledger_rows import (
    HAS_KEY,
    INSERT,
    SELECT,
    LedgerRow,
    from_row,
    is_intact,
    is_valid_text,
    to_row,
)
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["Ledger", "absolute_path", "default_path"]

log = logging.getLogger("flooding")
_PrimaryKey: TypeAlias = tuple[str, int]  # key of a Run, last epoch


def default_path() -> Path:
    """Give the path of the ledger when none is named.

    That is ``$FLOODING_LEDGER``, else a file in the user's state folder.

    Returns:
        An absolute path; nothing is created. Without a home folder there is none: a ValueError.
    """
    path = os.environ.get("FLOODING_LEDGER")
    if not path:
        # The XDG standard's folder for state that outlives a program.
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        path = Path(state) / "flooding" / "ledger.sqlite"
    return absolute_path(path)


def absolute_path(path: str | Path) -> Path:
    """Make a path absolute, with the home folder in place of ``~``.

    Args:
        path: A path.

    Returns:
        The absolute path.

    Raises:
        ValueError: If there is no home folder.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(
            f"a ledger needs a folder, but there is no home folder for {path}: {error} Name a "
            "file, ledger=FILE or --ledger FILE, or set FLOODING_LEDGER."
        ) from None


class Ledger:
    """A file of Records; SQLite takes care of torn writes and of several writers.

    A new file, and the folders made for it, can be read by their owner alone.

    Args:
        path: The SQLite file; it and its folder are made if they are missing.

    Raises:
        ValueError: If the path is a folder, lies below a regular file, holds something that is not
            a ledger, or a ledger of a newer flooding.
        OSError: If the file cannot be written, or another process locks it for a minute.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = absolute_path(path or default_path())
        self._file = LedgerFile(self.path)

    def find(self, run: Run, key: str) -> Record | None:
        """Look a Run up.

        Args:
            run: The Run; becomes the Record's.
            key: Its key.

        Returns:
            The Record under that key at the Run's last epoch, or None. A damaged one is moved into
            the table ``damaged``, which the log says, and counts as missing.
        """
        primary_key = (key, run.epochs)
        row = self._read_row(primary_key)
        return None if row is None else self._to_record(run, primary_key, row)

    def add(self, key: str, record: Record, *, replace: bool = False) -> None:
        """Store a Record.

        Args:
            key: Key of its Run.
            record: What was measured.
            replace: Whether it takes the place of one already there; by default the first one
                stays.

        A full disk, or a file that may not be written, raises an OSError; what the file holds stays
        whole.
        """
        # Packed outside of the transaction, which then holds the lock for the write alone.
        row = to_row(key, record)
        statement = INSERT.format("REPLACE" if replace else "IGNORE")
        self._file.execute(lambda connection: connection.execute(statement, row))

    def start(self, key: str, epochs: int) -> None:
        """Note that a training begins; a full disk as in :meth:`add`."""
        row = (key, epochs, time.time(), os.getpid())
        statement = "INSERT INTO starts VALUES (?, ?, ?, ?)"
        self._file.execute(lambda connection: connection.execute(statement, row))

    def starts(self) -> list[tuple[str, int, float, int]]:
        """List the trainings that began.

        Returns:
            Key, epochs, time and process of each, in order.
        """
        query = "SELECT * FROM starts ORDER BY rowid"
        return self._file.execute(lambda connection: connection.execute(query).fetchall())

    def records(self) -> Iterator[tuple[str, Record]]:
        """Go through all Records; damaged ones as in :meth:`find`.

        Yields:
            Key and Record (without its Run).
        """
        query = "SELECT trajectory, epochs FROM records ORDER BY trajectory, epochs"
        # Only the keys at once: a Record may be large, and a damaged one must not end the list.
        keys = self._file.execute(lambda connection: connection.execute(query).fetchall())
        for primary_key in keys:
            row = self._read_row(primary_key, is_listed=True)
            record = None if row is None else self._to_record(None, primary_key, row)
            if record is not None:
                yield primary_key[0], record

    def __len__(self) -> int:
        query = "SELECT count(*) FROM records"
        return self._file.execute(lambda connection: connection.execute(query).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_row(self, primary_key: _PrimaryKey, *, is_listed: bool = False) -> LedgerRow | None:
        """Look a row up, which the table may list; a table that is out of order is repaired."""
        row = self._search(primary_key)
        # After damage to a key SQLite's search may end at another row, or find none.
        if row is not None:
            is_misplaced = row[:2] != primary_key
        else:
            is_misplaced = is_listed and self._scan(primary_key)
        if is_misplaced:
            self._file.repair("a row lies in the wrong place")
            row = self._search(primary_key)
        return row

    def _search(self, primary_key: _PrimaryKey) -> LedgerRow | None:
        key = primary_key[0]
        if not (isinstance(key, str) and is_valid_text(key)):
            return None  # a damaged key, which SQLite does not take
        query = f"{SELECT} WHERE trajectory = ? AND epochs = ?"
        return self._file.execute(
            lambda connection: connection.execute(query, primary_key).fetchone()
        )

    def _scan(self, primary_key: _PrimaryKey) -> bool:
        """Tell whether there is a row with a key, by reading all rows."""
        key, epochs = primary_key
        # Compared as bytes, since SQLite refuses text that is no UTF-8.
        raw_key = key.encode(errors="surrogateescape") if isinstance(key, str) else key
        query = f"SELECT count(*) FROM records WHERE {HAS_KEY}"
        [count] = self._file.execute(
            lambda connection: connection.execute(query, (raw_key, epochs)).fetchone()
        )
        return count > 0

    def _to_record(
        self, run: Run | None, primary_key: _PrimaryKey, row: LedgerRow
    ) -> Record | None:
        """Give the Record of a row; a damaged row is moved aside and gives None."""
        try:
            return from_row(run, row)
        except ValueError as error:
            self._move_row_aside(primary_key, error)
        return None

    def _move_row_aside(self, primary_key: _PrimaryKey, reason: Exception) -> None:
        """Move a damaged row into the table ``damaged``, unless the whole file is damaged."""
        # Where the whole file is damaged, the repair sees to every row of it.
        if self._file.check_structure():
            return
        try:
            count = self._file.execute(lambda _: self._move_to_damaged(primary_key))
            if count is None:
                return  # another process replaced it by an intact one
            result = "it lies in the table damaged now"
            if not count:
                self._file.repair("a row cannot be deleted")
                result = "it was left out"
        except (OSError, ValueError) as error:
            result = f"it cannot be moved aside: {error}"
        log.warning(
            "the Record %s of epoch %s in the ledger %s is damaged (%s): %s. It counts as missing.",
            *primary_key,
            self.path,
            reason,
            result,
        )

    def _move_to_damaged(self, primary_key: _PrimaryKey) -> int | None:
        """Move the row under a key into the table ``damaged``; None if it is intact by now."""
        where = "WHERE trajectory = ? AND epochs = ?"
        with self._file.transaction() as connection:
            # Another process may have written the row anew since it was read.
            row = connection.execute(f"{SELECT} {where}", primary_key).fetchone()
            if row is None or is_intact(row):
                return None
            connection.execute(
                "CREATE TABLE IF NOT EXISTS damaged AS SELECT * FROM records WHERE false"
            )
            connection.execute(f"INSERT INTO damaged SELECT * FROM records {where}", primary_key)
            return connection.execute(f"DELETE FROM records {where}", primary_key).rowcount
