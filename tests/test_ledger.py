"""The ledger: Records come back bit for bit, also after a kill and from two writers."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from flooding.training.ledger import Ledger, default_path
from flooding.training.record import Record
from flooding.training.run import Run
from small import small


def record(number=0.0, epochs=4, run=None):
    """A Record with awkward numbers: NaN, infinities, -0.0, a denormal, one without an exact
    decimal form."""
    odd = np.array([math.nan, math.inf, -0.0, 1e-45, 0.1 + number], np.float32)
    arrays = {
        "last.reliability": np.arange(45, dtype=np.float32).reshape(3, 15) / 7,
        "best.probe": np.random.default_rng(0).random((6, 2), np.float32),
    }
    metrics = {
        "epochs": float(epochs),
        "last.val_loss": 0.1 + 0.2,
        "last.level": math.nan,
        "best.x": -0.0,
        "y": 5e-324,
    }
    metadata = {"host": "here", "seconds": 1.5}
    return Record(
        run,
        {"val_loss": odd, "lr": odd[::-1]},
        arrays,
        metrics | {"n": number},
        "w",
        "f",
        metadata,
    )


def bits(values):
    """Everything about named arrays that can differ: names, types, shapes, bytes."""
    return {
        name: (a.dtype.str, a.shape, np.ascontiguousarray(a).tobytes())
        for name, a in values.items()
    }


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "new" / "folder" / "ledger.sqlite")
    yield ledger
    ledger.close()


def test_a_record_comes_back_bit_for_bit(ledger):
    stored, run = record(), Run(small(), stop_epoch=4)
    ledger.add("a", stored)
    again = Ledger(ledger.path)
    result = again.find(run, "a")
    again.close()
    assert result.run is run
    assert bits(result.curves) == bits(stored.curves)
    assert bits(result.arrays) == bits(stored.arrays)
    assert {n: np.float64(v).tobytes() for n, v in result.metrics.items()} == {
        n: np.float64(v).tobytes() for n, v in stored.metrics.items()
    }
    assert (result.weights_sha256, result.fingerprint) == ("w", "f")
    assert result.metadata == stored.metadata
    assert result.content_hash == stored.content_hash


def test_finals_are_readable_by_plain_sql(ledger):
    ledger.add("a", record())
    with sqlite3.connect(ledger.path) as database:
        (row,) = database.execute(
            """SELECT json_extract(finals, '$.finals."last.val_loss"') FROM records"""
        ).fetchall()
    database.close()
    assert row == (0.1 + 0.2,)


@pytest.mark.parametrize(
    ("replace", "kept"), [(False, 1.0), (True, 2.0)], ids=["the first stays", "replaced"]
)
def test_add_twice(ledger, replace, kept):
    ledger.add("a", record(1.0))
    ledger.add("a", record(2.0), replace=replace)
    assert len(ledger) == 1
    result = ledger.find(Run(small(), stop_epoch=4), "a")
    assert result.metrics["n"] == kept
    assert result.curves["val_loss"][-1] == np.float32(0.1 + kept)


def test_look_up_is_by_key_and_epochs(ledger):
    for key, epochs, number in [("a", 4, 1.0), ("a", 6, 2.0), ("b", 4, 3.0)]:
        ledger.add(key, record(number, epochs))

    def find(key, stop_epoch):
        result = ledger.find(Run(small(), stop_epoch=stop_epoch), key)
        return result and result.metrics["n"]

    assert [find("a", 4), find("a", None), find("b", 4)] == [1.0, 2.0, 3.0]  # the max_epochs is 6
    assert [find("a", 5), find("b", 6), find("c", 4)] == [None, None, None]
    assert [(name, r.run, r.metrics["n"]) for name, r in ledger.records()] == [
        ("a", None, 1.0),
        ("a", None, 2.0),
        ("b", None, 3.0),
    ]


def test_starts_are_listed_in_order(ledger):
    began = time.time()
    for key, epochs in [("c", 3), ("a", 1), ("b", 2)]:
        ledger.start(key, epochs)
        time.sleep(0.002)  # a clock may tick no finer
    starts = ledger.starts()
    assert [(name, epochs, pid) for name, epochs, _, pid in starts] == [
        (n, e, os.getpid()) for n, e in [("c", 3), ("a", 1), ("b", 2)]
    ]
    assert began <= starts[0][2] <= starts[1][2] <= starts[2][2] <= time.time()
    assert len(ledger) == 0  # a start is no Record


def contents(folder):
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.fixture
def busy(tmp_path):
    """A folder with two text files and another program's databases."""
    (tmp_path / "text").write_text("Dear diary, " * 200)
    (tmp_path / "short").write_text("x,y\n")
    for name, mode in [("other.db", "DELETE"), ("wal.db", "WAL")]:
        database = sqlite3.connect(tmp_path / name)
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("CREATE TABLE records (title)")
        database.execute("INSERT INTO records VALUES ('ours')")
        database.commit()
        database.close()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a ledger must be a file, got the folder {0}. Name a file in it: {0}/ledger.sqlite."),
        (
            "text/ledger.sqlite",
            "a ledger must lie in a folder, but {0}/text is a file. Choose another path.",
        ),
        (
            "text/a/b/ledger.sqlite",
            "a ledger must lie in a folder, but {0}/text is a file. Choose another path.",
        ),
        ("text", "must be a SQLite file this tool can open, got {0}/text: file is not a database."),
        (
            "short",
            "must be a SQLite file this tool can open, got {0}/short: file is not a database.",
        ),
        (
            "other.db",
            "must be a SQLite file this tool can open, got {0}/other.db: "
            "it belongs to another program.",
        ),
        pytest.param(
            "wal.db",
            "must be a SQLite file this tool can open, got {0}/wal.db: "
            "it belongs to another program.",
        ),
    ],
    ids=[
        "folder",
        "below a file",
        "far below a file",
        "text",
        "a short text",
        "other program's",
        "other program's WAL",
    ],
)
def test_what_cannot_be_a_ledger_is_refused_and_left_as_it_is(busy, name, message):
    before = contents(busy)
    with pytest.raises(ValueError, match="a ledger must") as error:
        Ledger(busy / name)
    assert message.format(busy) in str(error.value)
    assert contents(busy) == before


def test_an_empty_file_becomes_a_ledger(tmp_path):
    (tmp_path / "empty").touch()
    ledger = Ledger(tmp_path / "empty")
    ledger.add("a", record())
    assert len(ledger) == 1
    ledger.close()


def test_the_default_place_is_the_users_to_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FLOODING_LEDGER", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_path() == tmp_path / ".local" / "state" / "flooding" / "ledger.sqlite"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_path() == tmp_path / "state" / "flooding" / "ledger.sqlite"
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "mine"))
    assert default_path() == tmp_path / "mine"
    assert contents(tmp_path) == {}
    Ledger().close()
    assert (tmp_path / "mine").is_file()


# What the processes below do: write Records whose every part follows from a number, so that a torn
# one shows.
WRITER = """
import sys
import numpy as np
from flooding.training.ledger import Ledger
from flooding.training.record import Record

def record(name, number):
    # A few pages each
    values = np.full(3000, number, np.float32) + np.arange(3000, dtype=np.float32)
    metrics = {"epochs": 1.0, "n": float(number)}
    return Record(None, {"val_loss": values}, {"last.x": values}, metrics, name, "f", {})

path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(path)
for number in range(count):
    ledger.start(f"{name}-{number}", 1)
    ledger.add(f"{name}-{number}", record(name, number))
    if number == 20:
        print("busy", flush=True)
"""


def writer(path, name, count):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def whole(ledger):
    """Check every Record against the number it was made from, and give their keys."""
    for name, stored in ledger.records():
        number = int(stored.metrics["n"])
        values = np.full(3000, number, np.float32) + np.arange(3000, dtype=np.float32)
        assert name == f"{stored.weights_sha256}-{number}"
        assert (
            stored.curves["val_loss"].tolist()
            == stored.arrays["last.x"].tolist()
            == values.tolist()
        )
        yield name


def test_two_processes_writing_at_once_lose_nothing(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    writers = [writer(path, name, 200) for name in "ab"]
    for process in writers:
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    ledger = Ledger(path)
    assert set(whole(ledger)) == {f"{name}-{number}" for name in "ab" for number in range(200)}
    starts = [name for name, *_ in ledger.starts()]
    ledger.close()
    assert len(starts) == 400
    order = "".join(name[0] for name in starts)
    assert "ab" in order  # they did write at the same time
    assert "ba" in order


def test_a_killed_writer_leaves_whole_records_and_a_ledger_to_go_on_with(tmp_path):
    path = tmp_path / "ledger.sqlite"
    process = writer(path, "a", 1_000_000)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "busy\n"]
    time.sleep(0.05)  # somewhere in the middle of whatever it does
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    ledger = Ledger(path)
    names = list(whole(ledger))
    assert len(names) >= 21  # those it wrote before it said so
    assert set(names) == {f"a-{number}" for number in range(len(names))}  # and no gap
    assert len(names) <= len(ledger.starts()) <= len(names) + 1
    ledger.add("after", record())
    assert len(ledger) == len(names) + 1
    ledger.close()


def test_a_new_ledger_can_be_opened_by_several_at_once(tmp_path):
    barrier, opened, failed = threading.Barrier(4), [], []

    def open_one(path):
        barrier.wait()
        try:
            opened.append(Ledger(path))
        except ValueError as error:
            failed.append(str(error))

    for trial in range(40):
        threads = [
            threading.Thread(target=open_one, args=[tmp_path / f"{trial}.sqlite"]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for ledger in opened:
        ledger.close()
    assert failed == []
    assert len(opened) == 160


@pytest.mark.parametrize("write", ["add", "start"])
def test_a_full_disk_ends_with_a_sentence_and_keeps_what_the_file_holds(write, tmp_path):
    def act(ledger, n):
        return ledger.add(f"run {n}", record()) if write == "add" else ledger.start("x" * 3000, n)

    def count(ledger):
        return len(ledger if write == "add" else ledger.starts())

    ledger = Ledger(tmp_path / "ledger.sqlite")
    pages = ledger._file.connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._file.connection.execute(f"PRAGMA max_page_count={pages + 3}")
    act(ledger, 0)

    def fill():
        for n in range(1, 1000):
            act(ledger, n)

    with pytest.raises(OSError, match=r"must be writable: .* full\. Free some space there"):
        fill()
    kept = count(ledger)
    assert 0 < kept < 1000
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    assert count(again) == kept
    act(again, 1000)
    assert count(again) == kept + 1
    again.close()
