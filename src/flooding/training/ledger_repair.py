"""Repair of a damaged ledger: the file is moved aside, and what can be read of it is salvaged."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from flooding.training.ledger_rows import (
    COLUMNS,
    CREATE_TABLES,
    INSERT,
    SELECT,
    LedgerRow,
    columns,
    is_intact,
    is_valid_text,
    row_digest,
)
from flooding.training.sqlite_file import SIDE_FILES, connect

__all__ = ["APPLICATION_ID", "looks_like_ledger", "move_aside", "salvage"]

# "FLOO". Another program's database is refused and not written to.
APPLICATION_ID = 0x464C4F4F
_PAGE = 4096  # bytes


def looks_like_ledger(path: Path) -> bool:
    """Tell whether a file that SQLite cannot open was a ledger, so that no other file is moved.

    Args:
        path: The file.

    Returns:
        True if its first page has a ledger's number or table.
    """
    with suppress(OSError), path.open("rb") as file:
        page = file.read(_PAGE)
        has_id = page[68:72] == APPLICATION_ID.to_bytes(4, "big")
        return has_id or b"trajectory TEXT NOT NULL" in page
    return False


def move_aside(path: Path) -> Path:
    """Rename a ledger with its log; processes that have it open go on in the renamed files.

    Args:
        path: The ledger.

    Returns:
        The new name, which ends in ``.damaged-1`` or the next free number.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in SIDE_FILES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return aside


def salvage(damaged: Path, target: sqlite3.Connection) -> int:
    """Copy the intact rows of a damaged ledger into a new one.

    Args:
        damaged: The damaged file.
        target: The new ledger, in a transaction.

    Returns:
        Number of Records in the new ledger.
    """
    starts: set[tuple[str, int, float, int]] = set()  # they have no digest: they are no results
    for path in _readable_copies(damaged):
        for row in _read_records(path):
            if is_intact(row):
                target.execute(INSERT.format("IGNORE"), row)
        starts.update(_read_starts(path))
    in_order = sorted(starts, key=lambda start: start[2])
    target.executemany("INSERT INTO starts VALUES (?, ?, ?, ?)", in_order)
    return target.execute("SELECT count(*) FROM records").fetchone()[0]


def _readable_copies(damaged: Path) -> Iterator[Path]:
    """Give a damaged file as it is, then a copy with the first page of a new ledger."""
    yield damaged
    # That page holds the header and where the tables begin. It is the same in every ledger.
    with tempfile.TemporaryDirectory(prefix=".ledger-", dir=damaged.parent) as folder:
        copy, new = Path(folder) / "copy", Path(folder) / "new"
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{damaged}{suffix}", f"{copy}{suffix}")
        with closing(connect(new)) as connection:
            for statement in CREATE_TABLES:
                connection.execute(statement)
        page = bytearray(new.read_bytes()[:_PAGE])
        page[92:96] = bytes(4)  # SQLite then counts the pages itself
        with copy.open("r+b") as file:
            file.write(page)
        yield copy


def _read_records(path: Path) -> Iterator[LedgerRow]:
    """Read as many Records as possible."""
    with suppress(sqlite3.Error), closing(connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")  # SQLite then opens files it would refuse
        # Rows of flooding 0.1.0 have no digest. They are taken as they are.
        has_digest = columns(connection) != COLUMNS
        select = SELECT if has_digest else f"SELECT {', '.join(COLUMNS)} FROM records"
        for where, order in itertools.product(_key_ranges(), ("ASC", "DESC")):
            query = f"{select} {where} ORDER BY trajectory {order}, epochs {order}"
            with suppress(sqlite3.Error):
                for row in connection.execute(query):
                    yield row if has_digest else (*row, row_digest(*row))


def _key_ranges() -> Iterator[str]:
    """Give conditions for parts of the table: a damaged page ends each query."""
    # Without a condition SQLite reads from the first page of rows on, or backwards from the last.
    # It need not search from the root, which may be damaged itself.
    yield ""
    digits = [f"{number:02x}" for number in range(256)]
    for low, high in itertools.pairwise(["", *digits, "g"]):
        yield f"WHERE trajectory >= '{low}' AND trajectory < '{high}'"


def _read_starts(path: Path) -> Iterator[tuple[str, int, float, int]]:
    """Read as many starts as possible, from both ends of the table."""
    with suppress(sqlite3.Error), closing(connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        for order in ("ASC", "DESC"):
            with suppress(sqlite3.Error):
                for row in connection.execute(f"SELECT * FROM starts ORDER BY rowid {order}"):
                    has_types = [type(value) for value in row] == [str, int, float, int]
                    if has_types and is_valid_text(row[0]):
                        yield row
