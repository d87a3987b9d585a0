"""Rows of a ledger: the tables, and how a Record becomes a row and a row a Record.

The columns have the names of flooding 0.1.0: ``trajectory`` is the Run's key, ``finals`` are the
Record's metrics and ``circumstances`` its metadata.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from typing import TypeAlias

from flooding.training.record import Record
from flooding.training.run import Run

__all__ = [
    "COLUMNS",
    "CREATE_TABLES",
    "HAS_KEY",
    "INSERT",
    "SELECT",
    "LedgerRow",
    "columns",
    "from_row",
    "is_intact",
    "is_valid_text",
    "row_digest",
    "to_row",
]

LedgerRow: TypeAlias = tuple[str, int, str, bytes, str, bytes]  # the columns, then the digest

# json_extract(finals, '$.finals."last.val_loss"') reads a number; curves are numpy's .npz.
_CREATE_RECORDS = """CREATE TABLE IF NOT EXISTS records (
    trajectory TEXT NOT NULL,   -- Run.key: everything that fixes the bits but where to stop
    epochs INTEGER NOT NULL,
    finals TEXT NOT NULL,
    curves BLOB NOT NULL,
    circumstances TEXT NOT NULL,
    digest BLOB,                -- of all of the above; flooding 0.1.0 had none
    PRIMARY KEY (trajectory, epochs)
) WITHOUT ROWID"""

# Every training that began, finished or not: it shows what a crash cost.
_CREATE_STARTS = """CREATE TABLE IF NOT EXISTS starts (
    trajectory TEXT NOT NULL, epochs INTEGER NOT NULL, at REAL NOT NULL, pid INTEGER NOT NULL
)"""

# Statements that create the tables.
CREATE_TABLES = (_CREATE_RECORDS, _CREATE_STARTS)
COLUMNS = ("trajectory", "epochs", "finals", "curves", "circumstances")  # of flooding 0.1.0
# Reads the Records.
SELECT = f"SELECT {', '.join(COLUMNS)}, digest FROM records"
INSERT = "INSERT OR {} INTO records VALUES (?, ?, ?, ?, ?, ?)"  # IGNORE or REPLACE
# Finds also a key that is no longer text, and an epoch that is NULL.
HAS_KEY = "CAST(trajectory AS BLOB) = ? AND epochs IS ?"


def columns(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Name the columns of the table of Records.

    Args:
        connection: An open file.

    Returns:
        The names in order; none if there is no such table.
    """
    return tuple(row[1] for row in connection.execute("PRAGMA table_info(records)"))


def to_row(key: str, record: Record) -> LedgerRow:
    """Make the row of a Record.

    Args:
        key: Key of its Run.
        record: The Record.

    Returns:
        The row with its digest.
    """
    curves, metrics = record.pack()
    metadata = json.dumps(dict(record.metadata))
    values = (key, int(record.metrics["epochs"]), metrics, curves, metadata)
    return (*values, row_digest(*values))


def from_row(run: Run | None, row: LedgerRow) -> Record:
    """Give the Record of a row.

    Args:
        run: Its Run, or None.
        row: The row.

    Returns:
        The Record.

    Raises:
        ValueError: If the row is damaged; the text says how.
    """
    _, epochs, metrics, curves, metadata, digest = row
    if digest != row_digest(*row[:5]):
        raise ValueError("its digest differs")
    record = Record.unpack(run, curves, metrics, metadata)
    if record.metrics.get("epochs") != epochs:
        raise ValueError("its last epoch is another one")
    return record


def is_intact(row: LedgerRow) -> bool:
    """Tell whether a row is as it was written.

    Args:
        row: The row.

    Returns:
        False if its digest differs or its Record cannot be read.
    """
    try:
        from_row(None, row)
    except ValueError:
        return False
    return True


def row_digest(*values: object) -> bytes:
    """Hash the values of a row. A length before each value keeps one from passing for the next.

    Args:
        *values: Bytes, texts and numbers.

    Returns:
        32 bytes.
    """
    digest = hashlib.blake2b(digest_size=32)
    for value in values:
        part = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def is_valid_text(text: str) -> bool:
    """Tell whether a text is not empty and can be written in UTF-8; damaged text cannot."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
