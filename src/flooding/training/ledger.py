"""Records looked up by key: one SQLite file, shared safely by every process that names it. Resume =
look-up.

Each row carries a digest of its key and its content. A row that is damaged, or lies under another
key than it was written with, counts as missing. A damaged file is moved aside, and the rows that
are still good go into a new one.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["Ledger", "absolute_path", "default_path", "make_private"]

log = logging.getLogger("flooding")
T = TypeVar("T")

# json_extract(finals, '$.finals."last.val_loss"') reads a number; curves are numpy's .npz.
_RECORDS = """CREATE TABLE IF NOT EXISTS records (
    trajectory TEXT NOT NULL,   -- Run.key: everything that fixes the bits but where to stop
    epochs INTEGER NOT NULL,
    finals TEXT NOT NULL,
    curves BLOB NOT NULL,
    circumstances TEXT NOT NULL,
    digest BLOB,                -- of all of the above; flooding 0.1.0 had none
    PRIMARY KEY (trajectory, epochs)
) WITHOUT ROWID"""

# Every training that began, finished or not: it shows what a crash cost.
_STARTS = """CREATE TABLE IF NOT EXISTS starts (
    trajectory TEXT NOT NULL, epochs INTEGER NOT NULL, at REAL NOT NULL, pid INTEGER NOT NULL
)"""

_COLUMNS = ("trajectory", "epochs", "finals", "curves", "circumstances")  # of flooding 0.1.0
_PATIENCE = 60.0  # seconds to wait for another process's write
_SILENCE = 2.0  # seconds of waiting before the log says so
_APPLICATION = (
    0x464C4F4F  # "FLOO", so that some other program's database is refused and not written to
)
_SCHEMA = 1  # 0 is flooding 0.1.0
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_NOT_WRITABLE = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_REPLACED = "another process replaced it"
_SPACE = "Free some space there; the same call goes on from what it holds."
_RIGHTS = "Make the file and its folder writable, or name another ledger."


def default_path() -> Path:
    """Tell where the ledger lies when none is named: ``$FLOODING_LEDGER``, else the user's state
    folder.

    Returns:
        An absolute path; nothing is created. Without a home folder there is none: a ValueError.
    """
    named = os.environ.get("FLOODING_LEDGER")
    if not named:
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        named = Path(state) / "flooding" / "ledger.sqlite"
    return absolute_path(named)


def absolute_path(path: str | Path) -> Path:
    """Spell a path out, with the home folder in place of ``~``.

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
            f"a ledger needs a folder, but there is no home folder for {path}: {error} Name a file, "
            "ledger=FILE or --ledger FILE, or set FLOODING_LEDGER."
        ) from None


def make_private(folder: Path) -> None:
    """Make a folder, and those above it, for their owner alone; those that are there stay as they
    are.

    Args:
        folder: The folder.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


class Ledger:
    """A file of Records; torn writes and several writers are SQLite's business.

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
        self._is_checked = False  # whether SQLite has checked the structure of the whole file
        self._open()

    # Opening

    def _open(self) -> None:
        """Open the file, or the new one that takes its place if it is damaged."""
        self._file: tuple[int, int] | None = None
        try:
            self._connect()
        except (sqlite3.DatabaseError, OSError) as error:
            if not (_is_damage(error, self.path) and _was_ledger(self.path)):
                raise _refusal(self.path, error) from None
            self._repair(error)

    def _connect(self) -> None:
        _check(self.path)
        make_private(self.path.parent)
        with suppress(FileExistsError):  # SQLite would make it readable by everybody
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._file = _identity(self.path)
        self._db = _connection(self.path, timeout=1.0)
        try:
            self._wait(self._prepare)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        if self._version() != (_APPLICATION, _SCHEMA):
            self._make_tables()
        self._db.execute(
            "PRAGMA synchronous=NORMAL"
        )  # a power cut may lose the last Records, never the file
        self._db.execute("PRAGMA journal_mode=WAL")

    def _version(self) -> tuple[int, int]:
        application, schema = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        )
        return application, schema

    def _make_tables(self) -> None:
        """Make the tables, or add what flooding 0.1.0 did not have; processes wait for each
        other.
        """
        with self._transaction() as db:
            application, schema = self._version()
            columns = _columns(db)
            is_empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application != _APPLICATION and not is_empty and columns[:5] != _COLUMNS:
                raise _refusal(self.path, "it belongs to another program")
            if schema > _SCHEMA:
                raise ValueError(
                    f"a ledger must be of schema {_SCHEMA} or older, got schema {schema} in {self.path}: a newer "
                    "flooding wrote it. Upgrade flooding, or name another ledger."
                )
            for table in (_RECORDS, _STARTS):
                db.execute(table)
            if (
                columns == _COLUMNS
            ):  # nothing tells whether these rows are as they were: they are taken as they are
                db.execute("ALTER TABLE records ADD COLUMN digest BLOB")
                db.create_function("digest", 5, _digest, deterministic=True)
                db.execute(f"UPDATE records SET digest = digest({', '.join(_COLUMNS)})")
            db.execute(f"PRAGMA application_id={_APPLICATION}")
            db.execute(f"PRAGMA user_version={_SCHEMA}")

    # Statements

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection, None, None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _wait(self, act: Callable[[], T]) -> T:
        """Act as soon as no other process locks the file; say so when that takes long."""
        began, is_said = time.monotonic(), False
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - began
                if _code(error) not in _LOCKED or waited > _PATIENCE:
                    raise
            if waited > _SILENCE and not is_said:
                is_said = True
                log.warning(
                    "%s has locked the ledger %s; waiting for it, at most %.0f s.",
                    _holder(self.path) or "another process",
                    self.path,
                    _PATIENCE,
                )
            time.sleep(0.01)

    def _do(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Act on the file that lies under the path now; on a new one, if that is damaged."""
        if self._file != _identity(self.path) and self.path.parent.is_dir():
            self._db.close()  # somebody removed or repaired the one that was open
            self._open()
        for is_last in (False, True):
            try:
                return self._wait(lambda: act(self._db))
            except sqlite3.Error as error:
                if is_last or not _is_damage(error, self.path):
                    raise _refusal(self.path, error) from None
                self._repair(error)
        raise AssertionError

    def find(self, run: Run, trajectory: str) -> Record | None:
        """Look a Run up.

        Args:
            run: The Run; becomes the Record's.
            trajectory: Its key.

        Returns:
            The Record of that trajectory at the Run's last epoch, or None. A damaged one is moved
            into the table ``damaged``, which the log says, and counts as missing.
        """
        row = self._row_at((trajectory, run.epochs))
        return None if row is None else self._record_of(run, (trajectory, run.epochs), row)

    def _row_at(self, key: tuple[str, int]) -> tuple[Any, ...] | None:
        return self._do(
            lambda db: db.execute(f"{_SELECT} WHERE trajectory = ? AND epochs = ?", key).fetchone()
        )

    def _record_of(
        self, run: Run | None, key: tuple[str, int], row: tuple[Any, ...] | None
    ) -> Record | None:
        """Give the Record of a row; one that is damaged, or cannot be found by its key, is set
        aside.
        """
        try:
            return _record(run, row)
        except ValueError as error:
            self._set_aside(key, error)
        return None

    def add(self, trajectory: str, record: Record, *, replace: bool = False) -> None:
        """Store a Record.

        Args:
            trajectory: Key of its Run.
            record: What was measured.
            replace: Whether it takes the place of one already there; by default the first one
                stays.

        A full disk, or a file that may not be written, raises an OSError; what the file holds stays
        whole.
        """
        row, verb = _row(trajectory, record), "REPLACE" if replace else "IGNORE"
        self._do(
            lambda db: db.execute(f"INSERT OR {verb} INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
        )

    def start(self, trajectory: str, epochs: int) -> None:
        """Note that a training begins; a full disk as in :meth:`add`."""
        row = (trajectory, epochs, time.time(), os.getpid())
        self._do(lambda db: db.execute("INSERT INTO starts VALUES (?, ?, ?, ?)", row))

    def starts(self) -> list[tuple[str, int, float, int]]:
        """List the trainings that began.

        Returns:
            Trajectory, epochs, time and process of each, in order.
        """
        return self._do(lambda db: db.execute("SELECT * FROM starts ORDER BY rowid").fetchall())

    def records(self) -> Iterator[tuple[str, Record]]:
        """Go through all Records; damaged ones as in :meth:`find`.

        Yields:
            Trajectory and Record (without its Run).
        """
        query = "SELECT trajectory, epochs FROM records ORDER BY trajectory, epochs"
        for key in self._do(lambda db: db.execute(query).fetchall()):
            is_key = isinstance(key[0], str) and _is_text(key[0])
            record = self._record_of(None, key, self._row_at(key) if is_key else None)
            if record is not None:
                yield key[0], record

    def __len__(self) -> int:
        return self._do(lambda db: db.execute("SELECT count(*) FROM records").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Damage

    def _set_aside(self, key: tuple[str, int], reason: Exception) -> None:
        """Move a damaged row into the table ``damaged``, unless the whole file is damaged."""
        if self._check_structure():
            return
        name = (
            key[0].encode(errors="surrogateescape") if isinstance(key[0], str) else key[0],
            key[1],
        )

        def act(_: sqlite3.Connection) -> str:
            with self._transaction() as db:
                rows = db.execute(f"{_SELECT} WHERE {_IS_ROW}", name).fetchall()
                if all(map(_is_good, rows)):
                    return _REPLACED
                db.execute(
                    "CREATE TABLE IF NOT EXISTS damaged AS SELECT * FROM records WHERE false"
                )
                db.execute(f"INSERT INTO damaged SELECT * FROM records WHERE {_IS_ROW}", name)
                is_gone = db.execute(f"DELETE FROM records WHERE {_IS_ROW}", name).rowcount
            return "it lies in the table damaged now" if is_gone else ""

        try:
            fate = (
                self._do(act) or self._repair("a row lies in the wrong place") or "it was left out"
            )
        except (OSError, ValueError) as error:
            fate = f"it cannot be moved aside: {error}"
        if fate == _REPLACED:
            return
        log.warning(
            "the Record %s of epoch %s in the ledger %s is damaged (%s): %s. It counts as missing.",
            ascii(key[0])[:80],
            key[1],
            self.path,
            reason,
            fate,
        )

    def _check_structure(self) -> bool:
        """Let SQLite check the whole file, once; tell whether it had to be replaced."""
        if self._is_checked:
            return False
        self._is_checked = True
        [fault] = self._do(lambda db: db.execute("PRAGMA quick_check(1)").fetchone())
        if fault != "ok":
            self._repair(fault.replace("\n", " "))
        return fault != "ok"

    def _repair(self, reason: object) -> None:
        """Move a damaged file aside, and put what is good of it into a new one."""
        with suppress(AttributeError):  # it may never have been opened
            self._db.close()
        try:
            with FileLock(f"{self.path}.repair", timeout=_PATIENCE) as lock:
                is_mine = self._file == _identity(self.path)  # else another process was here before
                aside = _move_aside(self.path) if is_mine else None
                self._connect()
                number = 0 if aside is None else self._rescue(aside)
                with suppress(OSError):
                    Path(lock.lock_file).unlink(missing_ok=True)
        except (OSError, sqlite3.Error, NotImplementedError) as error:
            raise ValueError(
                f"a ledger must be a whole SQLite file, got {self.path}: {reason}. It cannot be replaced ({error}). "
                "Move it away, or name another ledger."
            ) from None
        if aside is not None:
            log.warning(
                "the ledger %s is damaged (%s). It is %s now; its %d good Records are in a new file, and what is "
                "missing is trained anew.",
                self.path,
                reason,
                aside.name,
                number,
            )

    def _rescue(self, aside: Path) -> int:
        """Take the good rows of a damaged file; tell how many Records there are."""
        starts: set[tuple[Any, ...]] = set()  # these have no digest: they are no results
        with self._transaction() as db:
            for path in _openable(aside):
                for row in _reachable_records(path):
                    if _is_good(row):
                        db.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
                starts |= {
                    row
                    for row in _reachable_starts(path)
                    if [*map(type, row)] == [str, int, float, int]
                }
            ordered = sorted((row for row in starts if _is_text(row[0])), key=lambda row: row[2])
            db.executemany("INSERT INTO starts VALUES (?, ?, ?, ?)", ordered)
            return db.execute("SELECT count(*) FROM records").fetchone()[0]


_SELECT = f"SELECT {', '.join(_COLUMNS)}, digest FROM records"
# Finds also what no longer is text, or lies elsewhere
_IS_ROW = "CAST(trajectory AS BLOB) = ? AND epochs = ?"


def _row(trajectory: str, record: Record) -> tuple[Any, ...]:
    """Make the row of a Record."""
    curves, finals = record.pack()
    told = (
        trajectory,
        int(record.metrics["epochs"]),
        finals,
        curves,
        json.dumps(dict(record.metadata)),
    )
    return (*told, _digest(*told))


def _digest(*values: Any) -> bytes:
    """Hash the values of a row; a length before each keeps one from passing for the next."""
    digest = hashlib.blake2b(digest_size=32)
    for value in values:
        part = value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _record(run: Run | None, row: tuple[Any, ...] | None) -> Record:
    """Give the Record of a row; a ValueError says why there is none."""
    if row is None:
        raise ValueError("it cannot be found by its key")
    _, epochs, finals, curves, circumstances, digest = row
    if digest != _digest(*row[:5]):
        raise ValueError("its digest differs")
    record = Record.unpack(run, curves, finals, circumstances)
    if record.metrics.get("epochs") != epochs:
        raise ValueError("its last epoch is another one")
    return record


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _is_good(row: tuple[Any, ...]) -> bool:
    try:
        _record(None, row)
    except ValueError:
        return False
    return True


def _connection(path: Path, timeout: float = 5.0) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    db.text_factory = lambda text: text.decode(
        errors="surrogateescape"
    )  # damaged text: the digest tells
    return db


def _columns(db: sqlite3.Connection) -> tuple[str, ...]:
    return tuple(row[1] for row in db.execute("PRAGMA table_info(records)"))


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell one file from another under the same path."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check(path: Path) -> None:
    if path.is_dir():
        raise ValueError(
            f"a ledger must be a file, got the folder {path}. Name a file in it: {path / 'ledger.sqlite'}."
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


def _code(error: BaseException) -> int | None:
    """Give SQLite's primary result code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_damage(error: BaseException, path: Path) -> bool:
    """Tell whether an error comes from what the file holds, not from its surroundings."""
    code = _code(error)
    if (
        code == sqlite3.SQLITE_ERROR
    ):  # the statements are right: if a table lacks a column, its definition is damaged
        return any(
            words in str(error)
            for words in ("no such", "has no column", "columns but", "unsupported file format")
        )
    if code == sqlite3.SQLITE_READONLY:  # the header says so as well
        whole = getattr(error, "sqlite_errorcode", None) == code
        return whole and all(os.access(place, os.W_OK) for place in (path, path.parent))
    short = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_SHORT_READ
    return short or code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


def _was_ledger(path: Path) -> bool:
    """Tell whether a file that SQLite cannot open looks like a ledger, so that no other file is
    moved.
    """
    with suppress(OSError), path.open("rb") as file:
        page = file.read(4096)
        return page[68:72] == _APPLICATION.to_bytes(4, "big") or b"trajectory TEXT NOT NULL" in page
    return False


def _refusal(path: Path, error: Exception | str) -> Exception:
    """Give the error to raise: rule, value and fix."""
    code, number = (
        (None, None) if isinstance(error, str) else (_code(error), getattr(error, "errno", None))
    )
    if code in _LOCKED:
        holder = _holder(path) or "another process"
        return OSError(
            f"the ledger {path} must be free within {_PATIENCE:.0f} s, but {holder} has locked it ({error}). "
            "End that process, or name another ledger; the same call goes on from what this one holds."
        )
    is_full = code == sqlite3.SQLITE_FULL or number in {errno.ENOSPC, errno.EDQUOT}
    if is_full or (code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN} and _has_no_space(path)):
        return OSError(f"the ledger {path} must be writable: {error}. {_SPACE}")
    if code in _NOT_WRITABLE or number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return OSError(f"the ledger {path} must be writable: {error}. {_RIGHTS}")
    if code == sqlite3.SQLITE_IOERR:
        return OSError(
            f"the ledger {path} must be writable: {error}. Check that disk, or name a ledger on another."
        )
    return ValueError(
        f"a ledger must be a SQLite file this tool can open, got {path}: {error}. Name another ledger."
    )


def _has_no_space(path: Path) -> bool:
    try:
        usage = shutil.disk_usage(path.parent)
        return usage.total > 0 and usage.free < 1 << 20
    except OSError:
        return False


def _holder(path: Path) -> str | None:
    """Name the process that locks a ledger for writing, where the system tells (Linux)."""
    inodes = {
        str(found[1]) for end in ("", "-shm", "-wal") if (found := _identity(Path(f"{path}{end}")))
    }
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: POSIX ADVISORY WRITE 4711 fe:01:1234 120 120
            is_lock = (
                len(words) > 5 and words[3] == "WRITE" and words[5].rpartition(":")[2] in inodes
            )
            if is_lock and int(words[4]) not in {0, -1, os.getpid()}:
                return f"process {words[4]}"
    return None


def _move_aside(path: Path) -> Path:
    """Rename a ledger with its log; processes that have it open go on in the renamed files."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    for end in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{end}").rename(f"{aside}{end}")
    return aside


def _openable(aside: Path) -> Iterator[Path]:
    """Give a damaged file as it is, then a copy with the first page of a new ledger."""
    # That page holds the header and where the tables begin: the same in every ledger.
    yield aside
    with tempfile.TemporaryDirectory(prefix=".ledger-", dir=aside.parent) as folder:
        copy, new = Path(folder) / "copy", Path(folder) / "new"
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{aside}{end}", f"{copy}{end}")
        with closing(_connection(new)) as db:
            for table in (_RECORDS, _STARTS):
                db.execute(table)
        page = bytearray(new.read_bytes()[:4096])
        page[92:96] = bytes(4)  # SQLite then counts the pages itself
        with copy.open("r+b") as file:
            file.write(page)
        yield copy


def _reachable_records(path: Path) -> Iterator[tuple[Any, ...]]:
    """Read Records from both ends, of all keys and by their first digits: a damaged page ends each
    reading.
    """
    firsts = [f"{number:02x}" for number in range(256)]
    with suppress(sqlite3.Error), closing(_connection(path)) as db:
        db.execute("PRAGMA writable_schema=ON")  # SQLite then opens files it would refuse
        is_old = _columns(db) == _COLUMNS
        columns = f"{', '.join(_COLUMNS)}, {'NULL' if is_old else 'digest'}"
        for low, high in [("", "\U0010ffff"), *itertools.pairwise(["", *firsts, "g"])]:
            for order in ("ASC", "DESC"):
                query = (
                    f"SELECT {columns} FROM records WHERE trajectory >= ? AND trajectory < ? "
                    f"ORDER BY trajectory {order}, epochs {order}"
                )
                with suppress(sqlite3.Error):
                    for row in db.execute(query, (low, high)):
                        yield (*row[:5], _digest(*row[:5])) if is_old else row


def _reachable_starts(path: Path) -> Iterator[tuple[Any, ...]]:
    with suppress(sqlite3.Error), closing(_connection(path)) as db:
        db.execute("PRAGMA writable_schema=ON")
        for order in ("ASC", "DESC"):
            with suppress(sqlite3.Error):
                yield from db.execute(f"SELECT * FROM starts ORDER BY rowid {order}")
