"""Damaged files: what was changed counts as missing and is reported; no number is wrong."""

import gzip
import io
import json
import os
import random
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from flooding import Problem, Run, npz, run_all, train
from flooding.data.synthetic import two_gaussians
from flooding.experiments import ishida2020
from flooding.experiments.level_benchmark import SHAPES
from flooding.experiments.synthetic_cells import LEVELS, NOISES, TASKS, cells
from flooding.models import mlp
from flooding.testing import fake_record
from flooding.training.archive import Archive, pack
from flooding.training.checkpoints import Checkpoints
from flooding.training.ledger import Ledger
from flooding.training.ledger_file import LedgerFile
from flooding.training.runner import run_key
from small import small

PROBLEM = small(max_epochs=9)
RUNS = [Run(PROBLEM, level, seed=seed) for level in (None, 0.2, 0.3) for seed in range(8)]
KEYS = [run_key(run) for run in RUNS]


@pytest.fixture(scope="module")
def records():
    return [fake_record(run) for run in RUNS]


@pytest.fixture(scope="module")
def pristine(records, tmp_path_factory):
    """The bytes of a ledger."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    fill(path, records)
    return path.read_bytes()


@pytest.fixture
def path(pristine, tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(pristine)
    return path


def fill(path, records):
    with closing(Ledger(path)) as ledger:
        for key, record in zip(KEYS, records, strict=True):
            ledger.start(key, 9)
            ledger.add(key, record)


def sql(path, order, *values):
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(order, values).fetchall()


def damaged(content, number, seed):
    """Give so many copies with a bit flipped, and a third as many with a sector zeroed, at places a
    seed draws."""
    dice = random.Random(seed)
    for _ in range(number):
        copy, place = bytearray(content), dice.randrange(len(content))
        copy[place] ^= 1 << dice.randrange(8)
        yield bytes(copy)
    for _ in range(number // 3):
        copy, place = bytearray(content), dice.randrange(len(content) // 512) * 512
        copy[place : place + 512] = bytes(512)
        yield bytes(copy)


def mends(path, records):
    """Ask a ledger for everything and put in what it lacks, until it is as if nothing had
    happened."""
    true = {key: record.content_hash for key, record in zip(KEYS, records, strict=True)}
    lost = 0
    for _ in range(3):  # what is damaged may show itself as late as in records()
        with closing(Ledger(path)) as ledger:
            missing = 0
            for key, run, record in zip(KEYS, RUNS, records, strict=True):
                known = ledger.find(run, key)
                assert known is None or known.content_hash == record.content_hash
                if known is None:
                    missing += 1
                    ledger.start(key, 9)
                    ledger.add(key, record)
            read = {key: record.content_hash for key, record in ledger.records()}
            assert read.items() <= true.items()
            ledger.starts()
            lost += missing
            if read == true:
                assert len(ledger) == len(RUNS)
                return lost
    raise AssertionError("something is still missing")


# Ledger


def test_a_ledger_with_a_flipped_bit_or_a_lost_sector_gives_no_other_number(
    pristine, records, tmp_path, caplog
):
    lost, named = 0, 0
    for number, content in enumerate(damaged(pristine, 60, "ledger")):
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(content)
        caplog.clear()
        missing = mends(path, records)
        assert not missing or str(path) in caplog.text, "what is missing is said"
        lost, named = lost + missing, named + (str(path) in caplog.text)
    assert named >= 30
    assert lost >= 10


def test_a_damaged_key_never_stands_for_another_record(pristine, tmp_path):
    # In a table that is out of order SQLite's search may end at another row than the one asked for.
    path = tmp_path / "ledger.sqlite"
    for key in KEYS:
        for digit in "059cf":
            wrong = digit + key[1:]
            if wrong in KEYS:
                continue
            path.write_bytes(pristine.replace(key.encode(), wrong.encode()))
            with closing(Ledger(path)) as ledger:
                assert ledger.find(RUNS[0], wrong) is None


@pytest.mark.parametrize(
    "byte", [0, 16, 18, 20, 28, 47, 100, 103, 4000], ids=lambda byte: f"byte {byte}"
)
def test_a_damaged_first_page_costs_no_record(byte, path, pristine, records, caplog):
    content = bytearray(pristine)
    content[byte] ^= 0xFF
    path.write_bytes(content)
    assert mends(path, records) == 0
    if path.with_name("ledger.sqlite.damaged-1").exists():
        assert f"its {len(RUNS)} good Records are in a new file" in caplog.text
        assert path.with_name("ledger.sqlite.damaged-1").read_bytes() == content
    assert not [
        p for p in path.parent.iterdir() if p.name.startswith(".") or p.name.endswith(".repair")
    ]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.8, 0.95])
def test_a_truncated_ledger_keeps_what_is_left(share, path, pristine, records, caplog):
    path.write_bytes(pristine[: int(len(pristine) * share)])
    missing = mends(path, records)
    assert 0 < missing <= len(RUNS)
    assert missing < len(RUNS) or share < 0.8
    assert "ledger.sqlite.damaged-1 now" in caplog.text


def test_an_empty_file_is_a_new_ledger(path, records):
    path.write_bytes(b"")
    assert mends(path, records) == len(RUNS)


# Statements that change the row of the first key; ?2 is the second key.
CHANGES = {
    "keys swapped": (
        "SET trajectory = 'x' WHERE trajectory = ?1",
        "SET trajectory = ?1 WHERE trajectory = ?2",
        "SET trajectory = ?2 WHERE trajectory = 'x' AND ?1 != 'x'",
    ),
    "another Record's finals": (
        "SET finals = (SELECT finals FROM records WHERE trajectory = ?2) WHERE trajectory = ?1",
    ),
    "another Record's curves": (
        "SET curves = (SELECT curves FROM records WHERE trajectory = ?2) WHERE trajectory = ?1",
    ),
    "another number": (
        "SET finals = json_set(finals, '$.finals.epochs', 8) WHERE trajectory = ?1",
    ),
    "another host": ("""SET circumstances = '{"host": "other"}' WHERE trajectory = ?1""",),
    "no digest": ("SET digest = NULL WHERE trajectory = ?1",),
    "empty": ("SET finals = '', curves = x'', circumstances = '' WHERE trajectory = ?1",),
    "numbers for texts": ("SET finals = 1, curves = 2, circumstances = 3.5 WHERE trajectory = ?1",),
    "no text": ("SET finals = CAST(x'ff00fe' AS TEXT) WHERE trajectory = ?1",),
    "another epoch": ("SET epochs = 8 WHERE trajectory = ?1",),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_was_changed_is_set_aside_and_named_once(change, path, records, caplog):
    for order in CHANGES[change]:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE records {order}", KEYS[: 1 + ("?2" in order)])
    hit = 2 if change == "keys swapped" else 1
    assert mends(path, records) == hit
    said = [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()]
    assert len(said) == hit
    assert all(str(path) in line for line in said)
    assert KEYS[0] in said[0] + said[-1]
    assert sql(path, "SELECT count(*) FROM damaged") == [(hit,)]
    caplog.clear()
    assert mends(path, records) == 0
    assert not caplog.records


def test_a_run_with_a_damaged_record_trains_anew(tmp_path, caplog):
    path, runs = tmp_path / "ledger.sqlite", [Run(PROBLEM, 0.2), Run(PROBLEM, 0.3)]
    first = run_all(runs, ledger=path, workers=0)
    sql(path, "UPDATE records SET finals = replace(finals, '0.1', '0.2')")
    again = run_all(runs, ledger=path, workers=0)
    assert [r.content_hash for r in again] == [r.content_hash for r in first]
    with closing(Ledger(path)) as ledger:
        assert len(ledger.starts()) == 4
    assert caplog.text.count("is damaged") == 2


OLD = """CREATE TABLE records (
    trajectory TEXT NOT NULL,   -- Run.key: everything that fixes the bits but where to stop
    epochs INTEGER NOT NULL,
    finals TEXT NOT NULL,
    curves BLOB NOT NULL,
    circumstances TEXT NOT NULL,
    PRIMARY KEY (trajectory, epochs)
) WITHOUT ROWID;
CREATE TABLE starts (
    trajectory TEXT NOT NULL, epochs INTEGER NOT NULL, at REAL NOT NULL, pid INTEGER NOT NULL
);
PRAGMA application_id=1179406159;
PRAGMA journal_mode=WAL"""


@pytest.fixture
def old(records, tmp_path):
    """A ledger that flooding 0.1.0 wrote."""
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(OLD)
        for key, record in zip(KEYS, records, strict=True):
            curves, finals = record.pack()
            row = (key, 9, finals, curves, json.dumps(dict(record.metadata)))
            db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", row)
    return path


def test_a_ledger_of_0_1_0_answers_and_gets_digests(old, records, caplog):
    assert mends(old, records) == 0
    assert not caplog.records
    sql(old, "UPDATE records SET finals = replace(finals, '1', '2') WHERE trajectory = ?", KEYS[0])
    assert mends(old, records) == 1


def test_a_damaged_ledger_of_0_1_0_saves_what_can_be_read(old, records, caplog):
    content = bytearray(old.read_bytes())
    content[40 * 4096 : 41 * 4096] = os.urandom(4096)
    old.write_bytes(content)
    sql(old, "PRAGMA user_version=0")
    mends(old, records)


@pytest.mark.parametrize("version", [2, 7])
def test_a_ledger_of_a_newer_schema_is_refused_and_left_as_it_is(version, path):
    sql(path, f"PRAGMA user_version={version}")
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=f"got schema {version} .*Upgrade flooding, or name another ledger"
    ):
        Ledger(path)
    assert path.read_bytes() == before


def test_who_has_a_damaged_ledger_open_goes_on_in_the_new_one(path, records):
    with closing(Ledger(path)) as first, closing(Ledger(path)) as second:
        assert second.find(RUNS[0], KEYS[0]) is not None
        page = sql(path, "SELECT rootpage FROM sqlite_master WHERE name = 'records'")[0][0]
        first._file.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with path.open("r+b") as file:
            file.seek(4096 * (page - 1))
            file.write(bytes(4096))
        first._file.connection.execute("PRAGMA cache_size=0")
        with closing(Ledger(path)) as third:
            third.find(RUNS[0], KEYS[0])
        assert path.with_name("ledger.sqlite.damaged-1").exists()
        second.add("new", replace(records[0], run=None))
        assert first.find(RUNS[0], "new") is not None
        with closing(Ledger(path)) as third:
            assert third.find(RUNS[0], "new") is not None


def test_a_ledger_that_was_removed_is_made_again(path, records):
    with closing(Ledger(path)) as ledger:
        path.unlink()
        ledger.add("new", records[0])
    with closing(Ledger(path)) as ledger:
        assert len(ledger) == 1


def test_a_ledger_whose_folder_was_removed_does_not_come_back(path, records):
    with closing(Ledger(path)) as ledger:
        shutil.rmtree(path.parent)
        ledger.add("new", records[0])
    assert not path.parent.exists()


LOCK = """import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
db.execute("COMMIT")"""


@pytest.mark.parametrize("ends", [True, False], ids=["in time", "too late"])
def test_whoever_waits_for_a_locked_ledger_says_for_whom_and_how_long(
    ends, path, records, monkeypatch, caplog
):
    monkeypatch.setattr("flooding.training.ledger_file._SILENCE", 0.3)
    monkeypatch.setattr("flooding.training.ledger_file._PATIENCE", 30.0 if ends else 1.5)
    command = [sys.executable, "-c", LOCK, str(path), "1.5" if ends else "60"]
    with closing(Ledger(path)) as ledger:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "locked\n"
            who = rf"(process {process.pid}|another process)"
            if ends:
                ledger.add("new", records[0])
            else:
                with pytest.raises(
                    OSError,
                    match=rf"{who} has locked it .*End that process, or name another ledger",
                ):
                    ledger.add("new", records[0])
            process.kill()
        assert len(ledger) == len(RUNS) + ends
    [said] = [r.getMessage() for r in caplog.records if "has locked" in r.getMessage()]
    assert f"waiting for it, at most {30 if ends else 2} s. End that process, or" in said
    assert str(path) in said


def test_a_ledger_that_is_locked_can_be_read(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with closing(Ledger(path)) as ledger:
            assert ledger.find(RUNS[0], KEYS[0]) is not None
        assert time.monotonic() - began < 1
        db.execute("ROLLBACK")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_ledger_that_may_not_be_written_names_that(kind, path, records, monkeypatch):
    monkeypatch.setattr(
        "flooding.training.sqlite_file.os.access", lambda place, mode: False
    )  # root may write everything
    with closing(Ledger(path)) as ledger:
        if kind == "file":
            ledger._file.connection.execute("PRAGMA query_only=ON")
        else:
            monkeypatch.setattr(LedgerFile, "_wait", refuse)
        with pytest.raises(
            OSError,
            match=r"must be writable: .*Make the file and its folder writable, or name another",
        ):
            ledger.add("new", records[0])
    assert not path.with_name("ledger.sqlite.damaged-1").exists()


def refuse(_, act):
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    raise error


def test_a_new_ledger_and_its_folders_are_their_owners_alone(tmp_path, records):
    (tmp_path / "there").mkdir(mode=0o755)
    (tmp_path / "there").chmod(0o755)
    path = tmp_path / "there" / "new" / "more" / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        ledger.add("a", records[0])
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    Checkpoints(f"{path}.checkpoints").save("a", 1, {})
    assert modes == dict.fromkeys(
        ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"], 0o600
    )
    [file] = path.with_name("ledger.sqlite.checkpoints").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    folders = [path.parent, path.parent.parent, file.parent, tmp_path / "there"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [
        0o700,
        0o700,
        0o700,
        0o755,
    ]


@pytest.mark.parametrize(
    "special", [os.mkfifo, lambda path: os.symlink("/dev/null", path)], ids=["pipe", "device"]
)
def test_a_pipe_or_device_is_no_ledger(special, tmp_path):
    special(tmp_path / "x")
    with pytest.raises(ValueError, match="must be a regular file"):
        Ledger(tmp_path / "x")


@pytest.mark.parametrize("name", ["FLOODING_LEDGER", "XDG_STATE_HOME", "neither"])
def test_without_a_home_the_ledger_must_be_named(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FLOODING_LEDGER", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(
        "os.path.expanduser", lambda path: str(path)
    )  # what it gives where there is none
    if name == "neither":
        with pytest.raises(
            ValueError, match=r"no home folder.*--ledger FILE, or set FLOODING_LEDGER"
        ):
            Ledger()
    else:
        monkeypatch.setenv(name, str(tmp_path / "x"))
        Ledger().close()
        assert (tmp_path / "x").exists()


# Checkpoints


@pytest.fixture(scope="module")
def state():
    return next(row for row in train(Run(PROBLEM, 0.2)) if row.epoch == 5).snapshot(copied=True)


@pytest.fixture(scope="module")
def sealed(state, tmp_path_factory):
    """The bytes of a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    Checkpoints(folder).save("run", 5, state)
    return (folder / "run-5.pt").read_bytes()


def test_a_checkpoint_with_a_flipped_bit_or_a_lost_sector_is_missing(sealed, tmp_path, caplog):
    files, path = Checkpoints(tmp_path), tmp_path / "run-5.pt"
    for content in damaged(sealed, 120, "checkpoint"):
        if content == sealed:  # a sector that was zero before
            continue
        caplog.clear()
        path.write_bytes(content)
        assert files.find("run", 9) is None
        assert str(path) in caplog.text
        assert not path.exists()
    path.write_bytes(sealed)
    assert files.find("run", 9)["best_epoch"] is not None


FOREIGN = {
    "empty": lambda sealed, state: b"",
    "cut off": lambda sealed, state: sealed[:-1],
    "longer": lambda sealed, state: sealed + b"\0",
    "the header alone": lambda sealed, state: sealed[:120],
    "of 0.1.0": lambda sealed, state: saved(state),
    "a pickle": lambda sealed, state: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "of another epoch": lambda sealed, state: sealed.replace(b"run-5\n", b"run-6\n", 1),
    "one long line": lambda sealed, state: b"x" * 5000,
}


def saved(state):
    with io.BytesIO() as file:
        torch.save(state, file)
        return file.getvalue()


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_of_that_name_is_missing(kind, sealed, state, tmp_path, caplog):
    path = tmp_path / "run-5.pt"
    path.write_bytes(FOREIGN[kind](sealed, state))
    assert Checkpoints(tmp_path).find("run", 9) is None
    assert f"the checkpoint {path} cannot be read" in caplog.text
    assert not path.exists()


def test_checkpoints_of_0_1_0_are_named_once_and_their_runs_begin_anew(tmp_path, caplog):
    # flooding 0.1.0 wrote it for the Run below, stopped after 3 epochs.
    content = gzip.decompress(Path(__file__).with_name("checkpoint_0_1_0.pt.gz").read_bytes())
    data = partial(two_gaussians, n_train=40, n_val=30, n_test=200)
    model, optimizer = partial(mlp, 10, 2, width=2, depth=1), partial(torch.optim.SGD, lr=0.1)
    run = Run(Problem(data, model, optimizer, max_epochs=9), 0.3)
    folder = tmp_path / "ledger.sqlite.checkpoints"
    folder.mkdir()
    for key in ("3764a96b5c97d0f0d578f5b5ef50287bf5b99ed0ab4cf3666eea130ac3132ffc", "another"):
        (folder / f"{key}-3.pt").write_bytes(content)
    [record] = run_all([run], ledger=tmp_path / "ledger.sqlite", workers=0)
    assert record.metadata["epochs_trained"] == 9
    warnings = [line for line in caplog.records if line.levelname == "WARNING"]
    assert [line.getMessage() for line in warnings] == [
        f"2 checkpoints of flooding 0.1.0 in {folder} cannot be read; their runs begin anew. "
        "Delete them."
    ]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("other", ["seed", "epoch", "problem", "prefix"])
def test_a_checkpoint_of_another_training_is_not_gone_on_from(other, tmp_path, caplog):
    path, run = tmp_path / "ledger.sqlite", Run(PROBLEM, 0.2)
    files = Checkpoints(f"{path}.checkpoints")
    [alone] = run_all([run], ledger=False, workers=0)
    theirs = {
        "seed": replace(run, seed=1),
        "problem": Run(small(max_epochs=9, batch_size=7), 0.2),
    }.get(other, run)
    snapshot = next(row for row in train(theirs) if row.epoch == 3).snapshot()
    name = ("prefix-" if other == "prefix" else "") + run_key(theirs)
    files.save(name, 3, snapshot)
    target = files.folder / f"{run_key(run)}-{4 if other == 'epoch' else 3}.pt"
    (files.folder / f"{name}-3.pt").rename(target)
    [record] = run_all([run], ledger=path, workers=0)
    assert record.content_hash == alone.content_hash
    assert record.metadata["epochs_trained"] == 9
    assert f"{target} cannot be read: it belongs to another training" in caplog.text


def test_an_earlier_checkpoint_stands_in_for_a_damaged_one(state, tmp_path, caplog):
    files = Checkpoints(tmp_path)
    for epoch in (3, 5):
        files.save("run", epoch, {**state, "best_epoch": epoch}, delete_earlier=False)
    path = tmp_path / "run-5.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert files.find("run", 9)["best_epoch"] == 3


def test_a_planted_link_is_neither_written_through_nor_read(state, tmp_path, caplog):
    files, target = Checkpoints(tmp_path / "files"), tmp_path / "precious"
    target.write_text("precious")
    files.folder.mkdir()
    (files.folder / "run-5.pt").symlink_to(target)
    assert files.find("run", 9) is None
    (files.folder / "run-5.pt").symlink_to(target)
    (files.folder / f"run-5.{os.getpid()}.part").symlink_to(target)  # the name that 0.1.0 wrote to
    assert files.save("run", 5, state)
    assert files.find("run", 9) is not None
    assert target.read_text() == "precious"


def test_pipes_folders_and_other_names_among_the_checkpoints_stop_nobody(state, tmp_path, caplog):
    files = Checkpoints(tmp_path)
    for name in ("run-x.pt", "run-5-6.pt", "run-٣.pt", "run-.pt"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "run-7.pt")
    (tmp_path / "run-8.pt").mkdir()
    (tmp_path / "nowhere.pt").symlink_to("nowhere")
    files.save("run", 5, state, delete_earlier=False)
    assert files.find("run", 9) is not None
    files.prune(limit=0)
    assert not (tmp_path / "run-5.pt").exists()


def test_leftovers_of_a_crash_are_removed_in_time(tmp_path):
    old, new = [f"a.{n}.part" for n in range(3)] + ["a.lock"], ["b.part", "b.lock"]
    for name in old + new:
        (tmp_path / name).touch()
        if name in old:
            os.utime(tmp_path / name, (0, 0))
    Checkpoints(tmp_path).prune()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(new)


# Archives


@pytest.fixture(scope="module")
def packed(records, tmp_path_factory):
    """The bytes of an archive, and what it gives."""
    path = pack(
        tmp_path_factory.mktemp("archive") / "a.npz",
        records,
        ("train_loss", "val_loss"),
        "a machine",
    )
    return path.read_bytes(), numbers(path)


def numbers(path):
    return [
        repr((r.metrics, {n: c.tolist() for n, c in r.curves.items()}, r.metadata))
        for r in Archive(path)(RUNS)
    ]


def test_an_archive_with_a_flipped_bit_or_a_lost_sector_gives_no_other_number(packed, tmp_path):
    content, true = packed
    path, refused = tmp_path / "a.npz", []
    for changed in damaged(content, 200, "archive"):
        path.write_bytes(changed)
        try:
            assert numbers(path) == true
        except ValueError as error:
            refused.append(str(error))
    sentence = re.compile(
        re.escape(f"an archive must be a file of flooding reproduce, got {path}: ")
        + ".+ write it again."
    )
    assert all(map(sentence.fullmatch, refused))
    assert len(refused) > 150


def test_an_archive_cut_at_any_place_is_refused(packed, tmp_path):
    path = tmp_path / "a.npz"
    for size in range(0, len(packed[0]), 61):
        path.write_bytes(packed[0][:size])
        with pytest.raises(ValueError, match="an archive must be"):
            Archive(path)


WRONG = {
    "without a name": lambda a: a.pop("on"),
    "without ends": lambda a: a.pop("ends/val_loss/float16"),
    "an unknown name": lambda a: a.update(more=np.ones(3)),
    "an unknown kind": lambda a: a.update({
        "curve/x/int8": np.ones(3, np.int8),
        "ends/x/int8": np.ones(24, np.int64),
    }),
    "finals cut": lambda a: a.update(finals=a["finals"][1:]),
    "finals of one axis": lambda a: a.update(finals=a["finals"][0]),
    "finals as text": lambda a: a.update(finals=a["finals"].astype(str)),
    "seeds as numbers with a point": lambda a: a.update(seeds=a["seeds"] + 0.5),
    "runs as numbers": lambda a: a.update(runs=np.arange(24)),
    "a run twice": lambda a: a.update(runs=a["runs"][[0, *range(23)]]),
    "one number for all": lambda a: a.update(seconds=np.float32(1)),
    "ends fall": lambda a: a.update({"ends/val_loss/float16": a["ends/val_loss/float16"][::-1]}),
    "ends overflow": lambda a: a["ends/val_loss/float16"].__setitem__(
        slice(0, 2), [1 << 62, -(1 << 62)]
    ),
    "ends beyond": lambda a: a.update({"ends/val_loss/float16": a["ends/val_loss/float16"] + 1}),
    "ends of one fewer": lambda a: a.update({
        "ends/val_loss/float16": a["ends/val_loss/float16"][1:]
    }),
    "curves of float64": lambda a: a.update({
        "curve/val_loss/float16": a["curve/val_loss/float16"].astype(float)
    }),
    "objects": lambda a: a.update(runs=a["runs"].astype(object)),
    "dates": lambda a: a.update(seconds=np.zeros(24, "datetime64[s]")),
}


@pytest.mark.parametrize("change", WRONG)
def test_an_archive_without_a_digest_must_still_be_one(change, packed, tmp_path):
    path = tmp_path / "a.npz"
    arrays = npz.read(packed[0])
    del arrays["digest"]  # as those of 0.1.0
    np.savez(path, **arrays)
    assert numbers(path) == packed[1]
    WRONG[change](arrays)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"an archive must be .* write it again\.$"):
        Archive(path)


def test_an_archive_whose_numbers_were_changed_is_refused(packed, tmp_path):
    arrays = npz.read(packed[0])
    arrays["finals"][3, 2] += 1e-9
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match="its digest differs"):
        Archive(tmp_path / "a.npz")


def header(shape):
    with io.BytesIO() as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": shape}
        )
        return file.getvalue()


def bomb(path, size, lie=False):
    """A small file whose one array unpacks to so many bytes; it may say that they are fewer."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("runs.npy", "w", force_zip64=True) as part,
    ):
        part.write(header((size // 8,)))
        for _ in range(size >> 24):
            part.write(bytes(1 << 24))
    if lie:
        content = bytearray(path.read_bytes())
        at = content.rindex(b"PK\x01\x02")
        content[at + 24 : at + 28] = struct.pack("<I", 1000)
        path.write_bytes(content)


@pytest.mark.parametrize("lie", [False, True], ids=["honest", "lying"])
def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_does(lie, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    bomb(path, 256 << 20, lie)
    assert path.stat().st_size < 1 << 20
    chunks = []
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda part, n=None: (chunks.append(n), read(part, n))[1]
    )
    with pytest.raises(
        ValueError, match="runs" if lie else "unpacks to 268,435,5.. bytes, more than"
    ):
        npz.read(path, limit=128 << 20)
    assert len(chunks) <= 1
    assert None not in chunks


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (header((1 << 40,)) + bytes(800), "cannot have 800 bytes"),
        (header((-1, -100)) + bytes(800), "cannot have 800 bytes"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "format"),
        (b"\x93NUMPY\x01\x00\xff\xff" + bytes(100), "."),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, "."),
        (b"", "."),
    ],
    ids=[
        "a huge shape",
        "a negative shape",
        "another format",
        "a header cut off",
        "a header of nonsense",
        "nothing",
    ],
)
def test_an_array_that_is_none_is_one_error(content, match, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("runs.npy", content)
    with pytest.raises(ValueError, match=match):
        npz.read(path)
    with pytest.raises(ValueError, match="an archive must be"):
        Archive(path)


def test_arrays_come_back_as_numpy_reads_them(tmp_path):
    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 4)),
        "text": np.array(["é", "ab"]),
        "bits": np.array([True, False]),
        "big": np.arange(3, dtype=">f8"),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    back = npz.read(tmp_path / "a.npz")
    assert list(back) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(back[name], values, strict=True)
        back[name][...] = back[name]  # can be written to


def level_benchmark(folder, **changes):
    rng = np.random.default_rng(0)
    table = {name: rng.random(shape, np.float32) for name, shape in SHAPES.items()}
    told = "engine 1, torch 2, a machine, 0.5 core hours"
    names = {
        "tasks": list(TASKS),
        "noises": NOISES,
        "levels": LEVELS,
        "told": told,
    }
    table |= {"last_epoch": np.full((3, 3, 51), 500.0), "best_epoch": np.full((3, 3, 51), 7.0)}
    table = {name: value for name, value in (table | names | changes).items() if value is not None}
    np.savez(folder / "seed0.npz", **table)
    return folder


def test_a_level_benchmark_that_is_whole_is_read(tmp_path):
    (tmp_path / "seedling.npz").write_bytes(b"x")
    held = ishida2020.load(level_benchmark(tmp_path))
    [record] = held([Run(cells()[0].problem, 0.1)])
    assert len(record.curves["val_loss"]) == 501


@pytest.mark.parametrize(
    "changes",
    [
        {"val_loss": None},
        {"val_loss": np.zeros((3, 3, 51))},
        {"val_loss": np.full((3, 3, 51, 501), "a")},
        {"best_epoch": np.full((3, 3, 51), 501.0)},
        {"best_epoch": np.full((3, 3, 51), np.nan)},
        {"levels": np.arange(51)},
        {"tasks": ["a", "b", "c"]},
        {"told": "nothing"},
        {"told": None},
        {"last_more": np.zeros(2)},
    ],
    ids=lambda changes: " ".join(f"{name} {np.shape(value)}" for name, value in changes.items()),
)
def test_a_level_benchmark_that_is_not_whole_is_one_error(changes, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"a file of the level benchmark must be whole, got .*seed0.*\. Get it from git",
    ):
        ishida2020.load(level_benchmark(tmp_path, **changes))


@pytest.mark.parametrize("size", [0, 1000, 20_000])
def test_a_truncated_level_benchmark_is_one_error(size, tmp_path):
    path = level_benchmark(tmp_path) / "seed0.npz"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="a file of the level benchmark must be whole"):
        ishida2020.load(tmp_path)
