"""Files of data sets are found, or fetched whole, and never used unless they are the official ones."""

import gzip
import hashlib
import io
import logging
import os
import socket
from pathlib import Path
from types import MappingProxyType

import pytest

from flooding.data import files
from flooding.data.files import cache, find, read

NAME = "tables/tiny.tsv"
CONTENT = b"a\ttarget\n1\t0\n2\t1\n"


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Serve one tiny file from the disk as its official address, with an empty cache and no folder of data."""
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
    ids=["plain", "compressed", "compressed otherwise", "not compressed after all", "line ends of Windows"],
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


def test_fetching_tells_how_far_it_is_with_and_without_logging(official, monkeypatch, capsys, caplog):
    content = bytes(range(256)) * (20 << 12)  # 20 pieces

    class Answer(io.BytesIO):
        headers = MappingProxyType({"Content-Length": str(len(content))})

    monkeypatch.setattr(files, "urlopen", lambda *_, **__: Answer(content))
    monkeypatch.setitem(files.FILES, NAME, ("https://a.place/tiny.tsv", hashlib.sha256(content).hexdigest()))
    told = ["fetching https://a.place/tiny.tsv", *(f"fetched {part} % of 21 MB" for part in range(10, 110, 10))]
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
    with pytest.raises(ValueError, match=r"tables/tiny\.tsv must be in the folder \$FLOODING_DATA") as error:
        read(NAME)
    told = str(error.value)
    assert f"download {address}, put it into a folder as tables/tiny.tsv.gz, and set FLOODING_DATA" in told
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
    with pytest.raises(ValueError, match=rf"official\.tsv must serve the official file.*{message}") as error:
        read(NAME)
    assert "set FLOODING_DATA" in str(error.value)
    assert find(NAME) is None  # it is not kept
    (own / NAME).write_bytes(stored)
    with pytest.raises(ValueError, match=rf"own/tables/tiny\.tsv must be the file .*{message}.*Delete it"):
        read(NAME)


def test_a_folder_that_is_none_is_refused(official, monkeypatch):
    monkeypatch.setenv("FLOODING_DATA", str(official))
    with pytest.raises(ValueError, match=r"FLOODING_DATA must be a folder .* got .*official\.tsv"):
        read(NAME)


def test_a_cache_that_cannot_be_written_is_refused(official, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(official))
    with pytest.raises(ValueError, match=r"cache must be a folder that can be written.*Set XDG_CACHE_HOME"):
        read(NAME)


def test_a_write_that_is_cut_off_leaves_nothing(official, monkeypatch):
    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="no space left"):
        read(NAME)
    assert find(NAME) is None
    assert [path for path in cache().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", [name for name in files.FILES if name != NAME])
def test_the_hash_is_that_of_the_official_file(name):
    if find(name) is None:
        pytest.skip(f"{name} is neither in FLOODING_DATA nor in the cache")
    assert len(read(name)) > 1000
