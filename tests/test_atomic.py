"""A file is written whole or not at all, by whoever writes it, and nothing is written through a
link."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flooding import atomic
from flooding.atomic import write_atomic

LETTERS = "abcdefgh"
SIZE = 100_000
WRITER = """
import sys
from flooding.atomic import write_atomic
for _ in range(200):
    write_atomic(sys.argv[1], sys.argv[2] * 100_000)
"""


def read_until(path, ended):
    """Read a file again and again; returns every content that is not whole."""
    torn = []
    while not ended():
        text = path.read_text()
        if len(text) != SIZE or len(set(text)) != 1:
            torn.append(text[:10])
    return torn


def test_two_programs_write_one_file_and_every_reader_sees_a_whole_one(tmp_path):
    path = write_atomic(tmp_path / "a.txt", "z" * SIZE)
    programs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "xy"
    ]
    torn = read_until(path, lambda: all(program.poll() is not None for program in programs))
    assert [program.wait() for program in programs] == [0, 0], "neither may end in an error"
    assert torn == []
    assert os.listdir(tmp_path) == ["a.txt"]


def test_threads_write_one_file(tmp_path):
    path = write_atomic(tmp_path / "a.txt", "z" * SIZE)
    errors = []

    def work(letter):
        try:
            for _ in range(50):
                write_atomic(path, lambda file: file.write(letter.encode() * SIZE))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in LETTERS]
    for thread in threads:
        thread.start()
    torn = read_until(path, lambda: not any(thread.is_alive() for thread in threads))
    assert (torn, errors) == ([], [])
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "content", [b"new", "new", lambda file: file.write(b"new")], ids=["bytes", "text", "function"]
)
def test_a_link_under_the_name_is_replaced_and_its_target_stays(tmp_path, content):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "link").symlink_to(target)
    write_atomic(tmp_path / "link", content)
    assert target.read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"


def test_links_under_the_old_temporary_names_are_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    for name in (".a.txt.part", "a.txt.part", "a.part", f"a.{os.getpid()}.part"):
        (tmp_path / name).symlink_to(target)
    write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert target.read_text() == "precious"


@pytest.mark.parametrize("to", ["target", "nowhere"], ids=["to a file", "dangling"])
def test_a_link_under_a_temporary_name_that_was_guessed_is_not_followed(tmp_path, monkeypatch, to):
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / "target").write_text("precious")
    (tmp_path / ".guessed.part").symlink_to(tmp_path / to)
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "error", [OSError, KeyboardInterrupt, SystemExit, MemoryError], ids=lambda e: e.__name__
)
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write_atomic(tmp_path / "a.txt", "old")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)], ids=["022", "077", "027"]
)
def test_permissions_are_those_of_any_new_file(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        path = write_atomic(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == mode


def test_a_pipe_a_device_and_a_folder_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for path in (tmp_path / "pipe", tmp_path / "null", tmp_path):
        with pytest.raises(OSError, match="must be a file, got a folder, a pipe or a device"):
            write_atomic(path, "x")
    assert not Path(os.devnull).is_file()


def test_a_name_as_long_as_names_can_be(tmp_path):
    assert write_atomic(tmp_path / ("n" * 255), "x").read_text() == "x"
