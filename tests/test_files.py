"""Files of data sets are found, or fetched whole, and never used unless they are the official
ones."""

import gzip
import hashlib
import io
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pytest

from flooding.data import files
from flooding.data.files import cache, find, read

NAME = "tables/tiny.tsv"
CONTENT = b"a\ttarget\n1\t0\n2\t1\n"


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Serve one tiny file from the disk as its official address, with an empty cache and no folder
    of data."""
    served = tmp_path / "official.tsv"
    served.write_bytes(CONTENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FLOODING_DATA", raising=False)
    monkeypatch.setitem(files.FILES, NAME, (served.as_uri(), hashlib.sha256(CONTENT).hexdigest()))
    return served


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
def test_a_file_that_is_nowhere_is_fetched_once(own, official, served):
    official.write_bytes(served)
    assert find(NAME) is None
    assert read(NAME) == CONTENT
    official.unlink()
    assert read(NAME) == CONTENT
    [kept] = [path for path in cache().rglob("*") if path.is_file()]
    assert kept.read_bytes() == served
    assert find(NAME) == kept
    assert (kept.suffix == ".gz") == (served != CONTENT)


def test_fetching_tells_how_far_it_is_with_and_without_logging(
    official, monkeypatch, capsys, caplog
):
    content = bytes(range(256)) * (20 << 12)  # 20 pieces

    class Answer(io.BytesIO):
        headers = MappingProxyType({"Content-Length": str(len(content))})

    monkeypatch.setattr(files, "urlopen", lambda *_, **__: Answer(content))
    monkeypatch.setitem(
        files.FILES, NAME, ("https://a.place/tiny.tsv", hashlib.sha256(content).hexdigest())
    )
    told = [
        "fetching https://a.place/tiny.tsv",
        *(f"fetched {part} % of 21 MB" for part in range(10, 110, 10)),
    ]
    logger = logging.getLogger("flooding")
    monkeypatch.setattr(logger, "handlers", [])  # the command line leaves one of its own
    with monkeypatch.context() as patch:
        patch.setattr(logger, "propagate", False)  # pytest listens to all others
        assert read(NAME) == content
    assert capsys.readouterr().err.splitlines() == told
    find(NAME).unlink()
    with caplog.at_level("INFO", logger="flooding"):
        assert read(NAME) == content
    assert caplog.messages == told
    assert capsys.readouterr().err == ""


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
    monkeypatch.setitem(files.FILES, NAME, (address, files.FILES[NAME][1]))
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(
        ValueError, match=r"tables/tiny\.tsv must be in the folder \$FLOODING_DATA"
    ) as error:
        read(NAME)
    told = str(error.value)
    assert (
        f"download {address}, put it into a folder as tables/tiny.tsv.gz, and set FLOODING_DATA"
        in told
    )
    assert str(cache()) in told


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
    def full(part, path):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="no space left"):
        read(NAME)
    assert find(NAME) is None
    assert [path for path in cache().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", [name for name in files.FILES if name != NAME])
def test_the_hash_is_that_of_the_official_file(name):
    if find(name) is None:
        pytest.skip(f"{name} is neither in FLOODING_DATA nor in the cache")
    assert len(read(name)) > 1000


# What a server may do.

STATUS = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def serve(monkeypatch):
    """Answer one request on this machine by a function of a socket; give the address."""
    servers, threads = [], []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        server.settimeout(10)

        def run():
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(10)
                    connection.recv(10_000)
                    answer(connection)

        servers.append(server)
        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/tiny.tsv"

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(files, "_RATE_SECONDS", 0.3)
    yield start
    for thread in threads:
        thread.join()
    for server in servers:
        server.close()


def drips(start, rest, seconds=0.02):
    """Send a start at once and then a byte now and then, 300 at most."""

    def answer(connection):
        connection.sendall(start)
        for byte in rest[:300]:
            connection.sendall(bytes([byte]))
            time.sleep(seconds)

    return answer


def sends(content):
    return lambda connection: connection.sendall(content)


def redirects(address):
    return sends(f"HTTP/1.1 302 Found\r\nLocation: {address}\r\nContent-Length: 0\r\n\r\n".encode())


def serves(monkeypatch, address):
    monkeypatch.setitem(files.FILES, NAME, (address, files.FILES[NAME][1]))


SLOW = r"got [\d,]+ bytes in 0\.3 s, less than 1024 a second\. Try again"


@pytest.mark.parametrize(
    "answer",
    [
        drips(STATUS + b"Content-Length: 1000000\r\n\r\n", b"x" * 300),
        drips(STATUS + b"\r\n", b"x" * 300),
        drips(STATUS, b"Name: " + b"x" * 300),
        drips(b"", STATUS + b"x" * 300),
        drips(STATUS + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 300),
        drips(STATUS + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"0" * 300),
        lambda connection: time.sleep(2),
    ],
    ids=[
        "content",
        "content of unknown length",
        "header",
        "status",
        "size of a chunk",
        "second chunk",
        "nothing",
    ],
)
def test_a_server_that_drips_is_given_up(official, monkeypatch, serve, answer):
    serves(monkeypatch, serve(answer))
    before, start = threading.active_count(), time.monotonic()
    with pytest.raises(ValueError, match=SLOW):
        read(NAME)
    assert time.monotonic() - start < 4  # the whole takes 6 s
    assert threading.active_count() <= before
    assert not cache().exists()


def test_a_slow_server_is_given_up_behind_a_redirect_and_in_a_handshake(
    official, monkeypatch, serve
):
    serves(monkeypatch, serve(redirects(serve(drips(STATUS + b"\r\n", b"x" * 300)))))
    with pytest.raises(ValueError, match=SLOW):
        read(NAME)
    handshake = drips(b"\x16\x03\x03\x40\x00", b"\x02" * 300)  # the start of a record of TLS
    serves(monkeypatch, serve(handshake).replace("http", "https"))
    with pytest.raises(ValueError, match=SLOW):
        read(NAME)


def test_a_download_has_an_end(official, monkeypatch, serve):
    def forever(connection):
        connection.sendall(STATUS + b"\r\n")
        for _ in range(100):
            connection.sendall(bytes(4096))
            time.sleep(0.05)

    monkeypatch.setattr(files, "_MAX_SECONDS", 0.5)
    serves(monkeypatch, serve(forever))
    with pytest.raises(ValueError, match=r"got no end within 0\.5 s\. Try again"):
        read(NAME)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            sends(STATUS + b"Content-Length: 999999999999\r\n\r\nx"),
            "999,999,999,999 bytes, more than the 100,000 of",
        ),
        (
            sends(STATUS + b"\r\n" + bytes(200_000)),
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
        (redirects("file:///etc/passwd"), "302"),
        (redirects("ftp://127.0.0.1/x"), "a redirect to an address other than http or https"),
        (redirects("data:,x"), "302"),
        (sends(b"\x1b[31mnonsense\r\n\r\n"), r"x1b"),
        (sends(b""), "closed connection"),
        (sends(STATUS + b"Content-Length: many\r\n\r\nx"), "got 1 bytes"),
    ],
    ids=[
        "said to be huge",
        "huge",
        "cut off",
        "bomb",
        "file",
        "ftp",
        "data",
        "no HTTP",
        "nothing",
        "odd length",
    ],
)
def test_what_a_server_may_not_send(official, monkeypatch, serve, answer, message):
    monkeypatch.setenv("FLOODING_MAX_BYTES", "100000")
    serves(monkeypatch, serve(answer))
    with pytest.raises(ValueError, match=message) as error:
        read(NAME)
    assert str(error.value).isprintable()
    assert find(NAME) is None


@pytest.mark.parametrize("kind", ["length", "chunked", "neither", "redirected"])
def test_what_a_server_may_send(official, monkeypatch, serve, kind):
    answers = {
        "length": b"Content-Length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT),
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (len(CONTENT), CONTENT),
    }
    address = serve(sends(STATUS + answers.get(kind, b"\r\n" + CONTENT)))
    serves(monkeypatch, serve(redirects(address)) if kind == "redirected" else address)
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
    for name, age in {".a.tsv-0.part": 90_000, ".b.tsv-1.part": 80_000, "c.part": 90_000}.items():
        (folder / name).write_text("half")
        os.utime(folder / name, (time.time() - age,) * 2)
    read(NAME)
    assert {path.name for path in folder.iterdir()} == {".b.tsv-1.part", "c.part", "tiny.tsv"}
