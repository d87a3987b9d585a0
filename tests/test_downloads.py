"""Files of data sets are found, or fetched whole, and never used unless they are the official
ones."""

import gzip
import hashlib
import io
import os
import shutil
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pooch
import pytest

from flooding.data import downloads
from flooding.data.downloads import cache, find, read
from flooding.data.registry import FILES
from local_server import serve_answers, serve_folder

NAME = "tables/tiny.tsv"
CONTENT = b"a\ttarget\n1\t0\n2\t1\n"


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Serve one tiny file on this machine as the official one, with an empty cache and no folder of
    data."""
    (tmp_path / "served").mkdir()
    served = tmp_path / "served" / "official.tsv"
    served.write_bytes(CONTENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FLOODING_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "_RETRIES", 0)
    with serve_folder(served.parent) as address:
        checksum = hashlib.sha256(CONTENT).hexdigest()
        monkeypatch.setitem(FILES, NAME, (f"{address}/official.tsv", checksum))
        yield served


@pytest.fixture
def own(official, tmp_path, monkeypatch):
    """Set FLOODING_DATA to an empty folder, and give it."""
    folder = tmp_path / "own"
    (folder / "tables").mkdir(parents=True)
    monkeypatch.setenv("FLOODING_DATA", str(folder))
    return folder


@pytest.mark.parametrize(
    ("ending", "stored"),
    [
        ("", CONTENT),
        (".gz", gzip.compress(CONTENT)),
        (".gz", gzip.compress(CONTENT, 1)),
        (".gz", CONTENT),
        ("", CONTENT.replace(b"\n", b"\r\n")),
    ],
    ids=[
        "plain",
        "compressed",
        "compressed otherwise",
        "not compressed after all",
        "line ends of Windows",
    ],
)
def test_a_file_in_the_users_folder_is_used_however_it_is_stored(own, official, ending, stored):
    official.unlink()
    (own / f"{NAME}{ending}").write_bytes(stored)
    assert find(NAME) == own / f"{NAME}{ending}"
    assert read(NAME) == CONTENT
    assert not cache().exists()


@pytest.mark.parametrize("served", [CONTENT, gzip.compress(CONTENT)], ids=["plain", "compressed"])
def test_a_file_that_is_nowhere_is_downloaded_once(official, served):
    official.write_bytes(served)
    assert find(NAME) is None
    assert read(NAME) == CONTENT
    official.unlink()
    assert read(NAME) == CONTENT
    [path] = [path for path in cache().rglob("*") if path.is_file()]
    assert path.read_bytes() == served
    assert find(NAME) == path


def test_a_download_says_what_and_whence(official, monkeypatch):
    stream = io.StringIO()  # pooch holds the standard error stream of the time of its import
    monkeypatch.setattr(pooch.get_logger().handlers[0], "stream", stream)
    read(NAME)
    assert f"Downloading file '{NAME}' from '{FILES[NAME][0]}' to '{cache()}'" in stream.getvalue()
    read(NAME)
    assert stream.getvalue().count("Downloading") == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_how_far_a_download_is(official, monkeypatch, capsys, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    read(NAME)
    assert ("100%" in capsys.readouterr().err) is is_terminal


def test_a_download_fails_once_and_is_tried_again(official, monkeypatch):
    monkeypatch.setattr(downloads, "_RETRIES", 1)
    good = STATUS + b"Content-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT
    with serve_answers(sends(good[:-5]), sends(good)) as address:
        use(monkeypatch, address)
        assert read(NAME) == CONTENT


def test_several_readers_download_at_the_same_time(official):
    contents = []
    threads = [threading.Thread(target=lambda: contents.append(read(NAME))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [CONTENT] * 8
    assert [path for path in cache().rglob("*") if path.is_file()] == [cache() / NAME]


def test_without_pooch_the_extra_is_named(official, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install .*\[experiments\].*or download http"):
        read(NAME)
    (cache() / NAME).parent.mkdir(parents=True)
    (cache() / NAME).write_bytes(CONTENT)
    assert read(NAME) == CONTENT


def test_the_users_folder_comes_before_the_cache(own):
    read(NAME)
    assert find(NAME).is_relative_to(cache())
    (own / NAME).write_bytes(CONTENT)
    assert find(NAME) == own / NAME


def test_the_cache_is_the_users(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache() == Path("/somewhere/flooding")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache() == Path.home() / ".cache" / "flooding"


def test_without_a_network_the_error_says_which_file_goes_where(own, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/tiny.tsv.gz"
    use(monkeypatch, address)
    with pytest.raises(
        ValueError, match=r"tables/tiny\.tsv must be in the folder \$FLOODING_DATA"
    ) as error:
        read(NAME)
    message = str(error.value)
    assert (
        f"download {address}, put it into a folder as tables/tiny.tsv.gz, and set FLOODING_DATA"
        in message
    )
    assert str(cache()) in message


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (CONTENT[:-1], "with sha256 .* got 16 bytes with "),
        (b"<html>not found</html>", "got 22 bytes"),
        (gzip.compress(CONTENT)[:-4], "got a broken gzip file"),
        (b"\x1f\x8b\x08" + bytes(20), "got a broken gzip file"),
        (b"", "got 0 bytes"),
    ],
    ids=["cut off", "another page", "gzip cut off", "not gzip", "empty"],
)
def test_other_content_is_refused_wherever_it_comes_from(own, official, stored, message):
    official.write_bytes(stored)
    with pytest.raises(
        ValueError, match=rf"official\.tsv must serve the official file.*{message}"
    ) as error:
        read(NAME)
    assert "set FLOODING_DATA" in str(error.value)
    assert find(NAME) is None  # it is not kept
    (own / NAME).write_bytes(stored)
    with pytest.raises(
        ValueError, match=rf"own/tables/tiny\.tsv must be the file .*{message}.*Delete it"
    ):
        read(NAME)


def test_a_folder_that_is_none_is_refused(official, monkeypatch):
    monkeypatch.setenv("FLOODING_DATA", str(official))
    with pytest.raises(ValueError, match=r"FLOODING_DATA must be a folder .* got .*official\.tsv"):
        read(NAME)


def test_a_cache_that_cannot_be_written_is_refused(official, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(official))
    with pytest.raises(
        ValueError, match=r"cache must be a folder that can be written.*Set XDG_CACHE_HOME"
    ):
        read(NAME)


def test_a_write_that_is_cut_off_leaves_nothing(official, monkeypatch):
    def full(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(ValueError, match="no space left"):
        read(NAME)
    assert find(NAME) is None
    assert [path for path in cache().rglob("*") if path.is_file()] == []


def test_a_cached_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError("no space left on device")

    downloads.write_cached(b"old", tmp_path / "decoded" / "a.npz")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="no space left"):
        downloads.write_cached(b"new", tmp_path / "decoded" / "a.npz")
    [path] = (tmp_path / "decoded").iterdir()
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", [name for name in FILES if name != NAME])
def test_the_hash_is_that_of_the_official_file(name):
    if find(name) is None:
        pytest.skip(f"{name} is neither in FLOODING_DATA nor in the cache")
    assert len(read(name)) > 1000


# What a server may do.

STATUS = b"HTTP/1.1 200 OK\r\n"


def sends(content):
    return lambda connection: connection.sendall(content)


def redirects(address):
    return sends(f"HTTP/1.1 302 Found\r\nLocation: {address}\r\nContent-Length: 0\r\n\r\n".encode())


def use(monkeypatch, address):
    monkeypatch.setitem(FILES, NAME, (address, FILES[NAME][1]))


@pytest.mark.parametrize("start", [b"", STATUS, STATUS + b"Content-Length: 9\r\n\r\nfour"])
def test_a_silent_server_is_given_up(official, monkeypatch, start):
    def fall_silent(connection):
        connection.sendall(start)
        time.sleep(2)

    monkeypatch.setattr(downloads, "_TIMEOUT_SECONDS", 0.3)
    with serve_answers(fall_silent) as address:
        use(monkeypatch, address)
        start_time = time.monotonic()
        with pytest.raises(ValueError, match=r"Read timed out.*Try again with a network"):
            read(NAME)
        assert time.monotonic() - start_time < 1.8
    assert [path for path in cache().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            sends(STATUS + b"Content-Length: 200000\r\n\r\n" + bytes(200_000)),
            "more than the 100,000 bytes of FLOODING_MAX_BYTES",
        ),
        (
            sends(STATUS + b"\r\n" + bytes(200_000)),
            "more than the 100,000 bytes of FLOODING_MAX_BYTES",
        ),
        (
            sends(
                STATUS
                + b"Content-Encoding: gzip\r\n\r\n"
                + gzip.compress(bytes(range(256)) * 1000, 1)
            ),
            "more than the 100,000 bytes of FLOODING_MAX_BYTES",
        ),
        (
            sends(STATUS + b"Content-Length: 17\r\n\r\n" + gzip.compress(bytes(10**6))),
            "broken gzip",
        ),
        (
            sends(STATUS + b"\r\n" + gzip.compress(bytes(10**6))),
            "broken gzip file: it unpacks to more than 100,000",
        ),
        (redirects("file:///etc/passwd"), "No connection adapters were found for 'file:"),
        (redirects("ftp://127.0.0.1/x"), "No connection adapters were found for 'ftp:"),
        (redirects("data:,x"), "No connection adapters were found for 'data:"),
        (sends(b"\x1b[31mnonsense\r\n\r\n"), r"x1b"),
        (sends(b""), "without response"),
        (sends(STATUS + b"Content-Length: many\r\n\r\nx"), "invalid literal for int.*Try again"),
        (sends(STATUS + b"Content-Length: 9\r\n\r\nfour"), "4 bytes read, 5 more expected"),
        (sends(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "404"),
    ],
    ids=[
        "huge",
        "huge of unknown length",
        "encoded bomb",
        "cut off",
        "bomb",
        "file",
        "ftp",
        "data",
        "no HTTP",
        "nothing",
        "odd length",
        "a part",
        "no such file",
    ],
)
def test_what_a_server_may_not_send(official, monkeypatch, answer, message):
    monkeypatch.setenv("FLOODING_MAX_BYTES", "100000")
    with serve_answers(answer) as address:
        use(monkeypatch, address)
        with pytest.raises(ValueError, match=message) as error:
            read(NAME)
    assert str(error.value).isprintable()
    assert find(NAME) is None
    assert [path for path in cache().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["length", "chunked", "neither", "redirected"])
def test_what_a_server_may_send(official, monkeypatch, kind):
    length = b"Content-Length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT)
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)
    answers = {"length": length, "chunked": b"Transfer-Encoding: chunked\r\n\r\n" + chunk}
    with ExitStack() as stack:
        address = stack.enter_context(
            serve_answers(sends(STATUS + answers.get(kind, b"\r\n" + CONTENT)))
        )
        if kind == "redirected":
            address = stack.enter_context(serve_answers(redirects(address)))
        use(monkeypatch, address)
        assert read(NAME) == CONTENT


def test_a_stored_bomb_is_refused_within_the_limit(own, monkeypatch):
    monkeypatch.setenv("FLOODING_MAX_BYTES", "100000")
    (own / f"{NAME}.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(
        ValueError,
        match=r"own/tables/tiny.* unpacks to more than 100,000 bytes.*FLOODING_MAX_BYTES",
    ):
        read(NAME)


def test_unfinished_files_of_killed_processes_are_removed_once_they_are_old(official):
    folder = cache() / "tables"
    folder.mkdir(parents=True)
    for name, age in {
        ".a.tsv-0.part": 90_000,
        ".b.tsv-1.part": 80_000,
        "c.part": 90_000,
        "tmpabcd_123": 90_000,
        "tmpabcd_456": 80_000,
    }.items():
        (folder / name).write_text("half")
        os.utime(folder / name, (time.time() - age,) * 2)
    read(NAME)
    assert {path.name for path in folder.iterdir()} == {
        ".b.tsv-1.part",
        "c.part",
        "tiny.tsv",
        "tmpabcd_456",
    }
