"""Records looked up by key: one SQLite file, shared safely by every process that names it. Resume = look-up."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flooding.problem import Record, Run

__all__ = ["Ledger", "default_path"]

# json_extract(finals, '$.finals."last.val_loss"') reads a number; curves are numpy's .npz.
_RECORDS = """CREATE TABLE IF NOT EXISTS records (
    trajectory TEXT NOT NULL,   -- Run.key: everything that fixes the bits but where to stop
    epochs INTEGER NOT NULL,
    finals TEXT NOT NULL,
    curves BLOB NOT NULL,
    circumstances TEXT NOT NULL,
    PRIMARY KEY (trajectory, epochs)
) WITHOUT ROWID"""
# Every training that began, finished or not: it shows what a crash cost.
_STARTS = """CREATE TABLE IF NOT EXISTS starts (
    trajectory TEXT NOT NULL, epochs INTEGER NOT NULL, at REAL NOT NULL, pid INTEGER NOT NULL
)"""
_PATIENCE = 60.0  # seconds to wait for another process's write
_APPLICATION = 0x464C4F4F  # "FLOO", so that some other program's database is refused and not written to


def default_path() -> Path:
    """Tell where the ledger lies when none is named: ``$FLOODING_LEDGER``, else the user's state folder.

    Returns:
        An absolute path; nothing is created.
    """
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("FLOODING_LEDGER") or Path(home) / "flooding" / "ledger.sqlite").absolute()


class Ledger:
    """A file of Records; torn writes and several writers are SQLite's business.

    Args:
        path: The SQLite file; it and its folder are made if they are missing.

    Raises:
        ValueError: If the path is a folder, lies below a regular file, or holds something that is not a ledger.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path or default_path()).expanduser().absolute()
        refusal = f"a ledger must be a SQLite file this tool can open, got {self.path}: "
        try:
            _check(self.path)
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        except (sqlite3.DatabaseError, OSError) as error:
            raise ValueError(f"{refusal}{error}.") from None
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"{refusal}{error}.") from None

    def _prepare(self) -> None:
        """Make the tables in one transaction, so that processes that open a new ledger at once wait for each other."""
        self._db.execute("BEGIN IMMEDIATE")
        held = self._db.execute("PRAGMA application_id").fetchone()[0]
        if held != _APPLICATION:
            if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise sqlite3.DatabaseError("it belongs to another program")
            self._db.execute(f"PRAGMA application_id={_APPLICATION}")
            for table in (_RECORDS, _STARTS):
                self._db.execute(table)
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last Records, never the file
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:  # this one does not wait for a lock by itself
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def find(self, run: Run, trajectory: str) -> Record | None:
        """Look a Run up.

        Args:
            run: The Run; becomes the Record's.
            trajectory: Its key.

        Returns:
            The Record of that trajectory at the Run's last epoch, or None.
        """
        query = "SELECT curves, finals, circumstances FROM records WHERE trajectory = ? AND epochs = ?"
        row = self._db.execute(query, (trajectory, run.epochs)).fetchone()
        return None if row is None else Record.unpack(run, *row)

    def add(self, trajectory: str, record: Record, *, replace: bool = False) -> None:
        """Store a Record.

        Args:
            trajectory: Key of its Run.
            record: What was measured.
            replace: Whether it takes the place of one already there; by default the first one stays.

        A full disk raises an OSError; what the file holds stays whole.
        """
        curves, finals = record.pack()
        row = (trajectory, int(record.finals["epochs"]), finals, curves, json.dumps(dict(record.circumstances)))
        verb = "REPLACE" if replace else "IGNORE"
        self._write(f"INSERT OR {verb} INTO records VALUES (?, ?, ?, ?, ?)", row)

    def start(self, trajectory: str, epochs: int) -> None:
        """Note that a training begins; a full disk as in :meth:`add`."""
        self._write("INSERT INTO starts VALUES (?, ?, ?, ?)", (trajectory, epochs, time.time(), os.getpid()))

    def _write(self, order: str, row: tuple[Any, ...]) -> None:
        try:
            self._db.execute(order, row)
        except sqlite3.OperationalError as error:
            hint = "Free some space there; the same call goes on from what it holds."
            raise OSError(f"the ledger {self.path} must be writable: {error}. {hint}") from None

    def starts(self) -> list[tuple[str, int, float, int]]:
        """List the trainings that began.

        Returns:
            Trajectory, epochs, time and process of each, in order.
        """
        return self._db.execute("SELECT * FROM starts ORDER BY rowid").fetchall()

    def records(self) -> Iterator[tuple[str, Record]]:
        """Go through all Records.

        Yields:
            Trajectory and Record (without its Run).
        """
        query = "SELECT trajectory, curves, finals, circumstances FROM records ORDER BY trajectory, epochs"
        for trajectory, *parts in self._db.execute(query):
            yield trajectory, Record.unpack(None, *parts)

    def __len__(self) -> int:
        return self._db.execute("SELECT count(*) FROM records").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _check(path: Path) -> None:
    if path.is_dir():
        raise ValueError(
            f"a ledger must be a file, got the folder {path}. Name a file in it: {path / 'ledger.sqlite'}."
        )
    for parent in path.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"a ledger must lie in a folder, but {parent} is a file. Choose another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
