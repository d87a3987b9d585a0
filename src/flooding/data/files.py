"""Files of real data sets: in ``$FLOODING_DATA`` or the user's cache, else fetched once; verified
at each use.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import hashlib
import io
import logging
import os
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from flooding.atomic import write_atomic
from flooding.data.compression import DAMAGED, LimitedReader, max_bytes, open_compressed
from flooding.text import printable

__all__ = ["ARCHIVES", "FILES", "cache", "find", "keep", "read", "read_archive"]

log = logging.getLogger("flooding")

_PMLB = "https://github.com/EpistasisLab/pmlb/raw/master/datasets"
_LIGHTGBM = "https://github.com/microsoft/LightGBM/raw/v4.5.0/examples/binary_classification"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_KUZUSHIJI = "http://codh.rois.ac.jp/kmnist/dataset/kmnist"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_CIFAR = "https://www.cs.toronto.edu/~kriz"
_CIFAR10H = "https://github.com/jcpeterson/cifar-10h/raw/master/data"
_GZIP = b"\x1f\x8b"

# When a download is given up: too slow for a while, or too long in all.
_MIN_RATE = 1024  # bytes per second
_RATE_SECONDS = 30.0
_MAX_SECONDS = 3600.0
_STALE_SECONDS = 86_400.0  # age at which an unfinished file of another process is removed

# Address and sha256 of each file. The hash is that of the content: a file may be compressed anew,
# or not at all. Where only the md5 of the file as it is served is published ("md5:..."), it must be
# kept as it is.
FILES: dict[str, tuple[str, str]] = {
    "tables/spambase.tsv": (
        f"{_PMLB}/spambase/spambase.tsv.gz",
        "69715f29b059c51b89c708afdcc7af1304685f5425d4614abf59cc61bcde97ae",
    ),
    "tables/letter.tsv": (
        f"{_PMLB}/letter/letter.tsv.gz",
        "1ce967cac310120042a497760cb642e21b26d813e87c87fa1bb13896da6c812c",
    ),
    "tables/twonorm.tsv": (
        f"{_PMLB}/twonorm/twonorm.tsv.gz",
        "8b6ffbf0465d6791555327dcbd82187ba5d9b8e88a01ecbeea7b56cace075041",
    ),
    "tables/higgs7k.train": (
        f"{_LIGHTGBM}/binary.train",
        "41c42dc14f86960256bf872fc8ae6286c688b44f43b4057b29428787fc1e0444",
    ),
    "tables/higgs7k.test": (
        f"{_LIGHTGBM}/binary.test",
        "d99ebec91acd99638f00c727c251c947a1d17ddfcbea27bfef6b0dc5e5fb1db3",
    ),
    "fashion-mnist/train-images-idx3-ubyte": (
        f"{_FASHION}/train-images-idx3-ubyte.gz",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "fashion-mnist/train-labels-idx1-ubyte": (
        f"{_FASHION}/train-labels-idx1-ubyte.gz",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "fashion-mnist/t10k-images-idx3-ubyte": (
        f"{_FASHION}/t10k-images-idx3-ubyte.gz",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "fashion-mnist/t10k-labels-idx1-ubyte": (
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "mnist/train-images-idx3-ubyte": (
        f"{_MNIST}/train-images-idx3-ubyte.gz",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "mnist/train-labels-idx1-ubyte": (
        f"{_MNIST}/train-labels-idx1-ubyte.gz",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "mnist/t10k-images-idx3-ubyte": (
        f"{_MNIST}/t10k-images-idx3-ubyte.gz",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "mnist/t10k-labels-idx1-ubyte": (
        f"{_MNIST}/t10k-labels-idx1-ubyte.gz",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "kuzushiji-mnist/train-images-idx3-ubyte": (
        f"{_KUZUSHIJI}/train-images-idx3-ubyte.gz",
        "md5:bdb82020997e1d708af4cf47b453dcf7",
    ),
    "kuzushiji-mnist/train-labels-idx1-ubyte": (
        f"{_KUZUSHIJI}/train-labels-idx1-ubyte.gz",
        "md5:e144d726b3acfaa3e44228e80efcd344",
    ),
    "kuzushiji-mnist/t10k-images-idx3-ubyte": (
        f"{_KUZUSHIJI}/t10k-images-idx3-ubyte.gz",
        "md5:5c965bf0a639b31b8f53240b1b52f4d7",
    ),
    "kuzushiji-mnist/t10k-labels-idx1-ubyte": (
        f"{_KUZUSHIJI}/t10k-labels-idx1-ubyte.gz",
        "md5:7320c461ea6c1c855c0b718fb2a4b134",
    ),
    "svhn/train_32x32.mat": (f"{_SVHN}/train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
    "svhn/test_32x32.mat": (f"{_SVHN}/test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
    "cifar10h/cifar10h-probs.npy": (
        f"{_CIFAR10H}/cifar10h-probs.npy",
        "436ae98620e00073f9d08585ac870573b588853e7af9f54eb1647408114af77d",
    ),
}

# Address of an archive, and the published md5 of each of its files that is used.
ARCHIVES: dict[str, tuple[str, dict[str, str]]] = {
    "cifar10": (
        f"{_CIFAR}/cifar-10-python.tar.gz",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    "cifar100": (
        f"{_CIFAR}/cifar-100-python.tar.gz",
        {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def cache() -> Path:
    """Tell where fetched files are kept: ``$XDG_CACHE_HOME/flooding``, else ``~/.cache/flooding``.

    Returns:
        The folder; nothing is created.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flooding"


def find(name: str) -> Path | None:
    """Look for a file, compressed (``.gz``) or not, in ``$FLOODING_DATA`` and then in the cache.

    Args:
        name: A name of :data:`FILES`.

    Returns:
        Its path, or None if it is in neither folder.

    Raises:
        ValueError: If ``FLOODING_DATA`` is set and not a folder.
    """
    paths = (folder / f"{name}{ending}" for folder in _folders() for ending in (".gz", ""))
    return next((path for path in paths if path.is_file()), None)


def _folders() -> list[Path]:
    own = os.environ.get("FLOODING_DATA")
    if own and not Path(own).is_dir():
        raise ValueError(
            f"FLOODING_DATA must be a folder of data sets, got {own!r}. Correct or unset it."
        )
    return [*([Path(own)] if own else []), cache()]


def read(name: str) -> bytes:
    """Read a file's content, decompressed; one that is nowhere yet is fetched into the cache.

    The content is verified each time. Line ends may be those of another system: what is returned
    has the official ones.

    Args:
        name: A name of :data:`FILES`.

    Returns:
        The official content, to the byte.

    Raises:
        ValueError: If the file cannot be fetched, has other content than the official one, or
            cannot be kept.
    """
    address, known = FILES[name]
    path = find(name)
    if path is not None:
        return _verified(
            path.read_bytes(), known, f"{path} must be the file {address}", "Delete it"
        )
    stored_as = f"{name}{'.gz' * address.endswith('.gz')}"
    fetched, own = _fetched(name, address, stored_as)
    content = _verified(
        fetched, known, f"{address} must serve the official file", f"Try again later; or {own}"
    )
    keep(fetched, cache() / f"{name}{'.gz' * fetched.startswith(_GZIP)}")
    return content


def read_archive(name: str) -> dict[str, bytes]:
    """Read the files of an archive; one that is nowhere yet is fetched into the cache.

    They may lie unpacked in the folder ``name`` of ``$FLOODING_DATA`` or of the cache, or below it,
    or there in a tar file, compressed or not. Each is verified each time. Nothing is unpacked to
    the disk.

    Args:
        name: A name of :data:`ARCHIVES`.

    Returns:
        The official contents by file name.

    Raises:
        ValueError: If the archive cannot be fetched or read, lacks a file or has another one than
            the official one, or cannot be kept.
    """
    address, known = ARCHIVES[name]
    for folder in _folders():
        base = folder / name
        for place in (base, *sorted(path for path in base.glob("*") if path.is_dir())):
            if all((place / file).is_file() for file in known):
                rule = f"{place} must hold the files of {address}"
                return _checked(
                    {file: (place / file).read_bytes() for file in known}, known, rule, "Delete it"
                )
        for path in sorted(path for path in base.glob("*") if path.name.endswith(_TARS)):
            rule = f"{path} must hold the files of {address}"
            with path.open("rb") as stream:
                return _checked(
                    _unpacked(stream, known, rule, "Delete it"), known, rule, "Delete it"
                )
    place = f"{name}/{address.rpartition('/')[2]}"
    fetched, own = _fetched(name, address, place)
    rule, fix = f"{address} must serve the official archive", f"Try again later; or {own}"
    found = _checked(_unpacked(io.BytesIO(fetched), known, rule, fix), known, rule, fix)
    keep(fetched, cache() / place)
    return found


def _unpacked(stream: IO[bytes], wanted: dict[str, str], rule: str, fix: str) -> dict[str, bytes]:
    """Read files from a tar file, compressed or not, as it passes by."""
    found: dict[str, bytes] = {}
    try:
        limited: Any = LimitedReader(open_compressed(stream), max_bytes())
        with tarfile.open(fileobj=limited, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                # Holes of a sparse file take no bytes of the archive, so the limit would not count
                # them.
                plain = member.isfile() and not member.issparse()
                content = archive.extractfile(member) if plain and name in wanted else None
                if content is not None:
                    found[name] = content.read()
    except DAMAGED as error:
        raise ValueError(f"{rule}, got a broken archive: {error}. {fix}.") from None
    return found


def _checked(
    found: dict[str, bytes], known: dict[str, str], rule: str, fix: str
) -> dict[str, bytes]:
    """Compare contents with their published md5, as a checksum against damage."""
    for name, md5 in known.items():
        if name not in found:
            raise ValueError(f"{rule}, but {name} is missing. {fix}.")
        got = hashlib.md5(found[name], usedforsecurity=False).hexdigest()
        if got != md5:
            raise ValueError(
                f"{rule}, but {name} must have md5 {md5}, got {len(found[name])} bytes with {got}. {fix}."
            )
    return found


def _fetched(name: str, address: str, place: str) -> tuple[bytes, str]:
    """Fetch a file; give its bytes, and what a user can do if it is not the right one."""
    own = (
        f"download {address}, put it into a folder as {place}, and set FLOODING_DATA to that folder"
    )
    _tell(f"fetching {address}")
    try:
        return _download(address), own
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"{name} must be in the folder $FLOODING_DATA, in {cache()} or at {address}, got "
            f"{printable(str(error))}. Try again with a network; or {own}."
        ) from None


def _download(address: str) -> bytes:
    """Fetch a file and log how far it is; an OSError if it is too large or comes too slowly."""
    limit = max_bytes()
    with (
        io.BytesIO() as content,
        _deadline(content.tell) as connected,
        urlopen(address, connected, timeout=30) as response,
    ):
        length = response.headers.get("Content-Length") or "0"
        total, tenths = int(length) if length.isdecimal() else 0, 0
        if total > limit:
            raise OSError(f"{total:,} bytes, more than the {limit:,} of FLOODING_MAX_BYTES")
        # `read1` returns what has arrived; `read` would wait for a whole block.
        while block := response.read1(1 << 20):
            content.write(block)
            if content.tell() > limit:
                raise OSError(f"more than the {limit:,} bytes of FLOODING_MAX_BYTES")
            if total and (done := 10 * content.tell() // total) > tenths:
                tenths = done
                _tell(f"fetched {10 * done} % of {total / 1e6:.0f} MB")
        return content.getvalue()


@contextmanager
def _deadline(
    received: Callable[[], int],
) -> Generator[Callable[[socket.socket], None], None, None]:
    """Shut the connections of a download down once it is too slow.

    A thread watches it, since a server that sends one byte now and then, be it of a handshake, a
    header or the size of a chunk, keeps every single read within its timeout.

    Args:
        received: Tells how many bytes have come.

    Yields:
        A function that registers a connection.

    Raises:
        OSError: If the transfer failed or was shut down.
    """
    sockets: list[socket.socket] = []
    reasons: list[str] = []
    finished = threading.Event()

    def watch() -> None:
        start, before = time.monotonic(), 0
        while not reasons and not finished.wait(min(_RATE_SECONDS, _MAX_SECONDS)):
            now = received()
            if time.monotonic() - start >= _MAX_SECONDS:
                reasons.append(f"no end within {_MAX_SECONDS:g} s")
            elif now - before < _MIN_RATE * _RATE_SECONDS:
                reasons.append(
                    f"{now - before:,} bytes in {_RATE_SECONDS:g} s, less than {_MIN_RATE} a second"
                )
            before = now
        if reasons:
            for connection in list(sockets):
                _shut(connection)

    def register(connection: socket.socket) -> None:
        sockets.append(connection)
        if reasons:
            _shut(connection)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield register
        if reasons:  # a connection that was shut down reads like one that has ended
            raise OSError(reasons[0])
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the response, too
        raise OSError(reasons[0] if reasons else str(error)) from None
    finally:
        finished.set()
        watcher.join()
        for connection in sockets:
            connection.close()


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it may be closed already
        connection.shutdown(socket.SHUT_RDWR)


def urlopen(address: str, connected: Callable[[socket.socket], None], timeout: float) -> Any:
    """Open an address, and pass a duplicate of each socket on that is connected for it.

    Args:
        address: What to fetch.
        connected: Called with the duplicates, which it has to close.
        timeout: Seconds that a single read may take.

    Returns:
        The response, a binary stream with ``headers``.
    """
    return build_opener(_Redirects(), _WatchedHTTP(connected), _WatchedHTTPS(connected)).open(
        address, timeout=timeout
    )


class _Watched:
    """Part of a handler that reports each connection it makes."""

    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._connected = connected

    def do_open(self, http_class: Callable[..., Any], req: Request, **options: Any) -> Any:
        def make_connection(*args: Any, **more: Any) -> Any:
            connection = http_class(*args, **more)
            create = connection._create_connection

            def create_and_report(*address: Any) -> socket.socket:
                created = create(*address)
                self._connected(created.dup())  # TLS takes the socket itself over
                return created

            connection._create_connection = create_and_report
            return connection

        return super().do_open(make_connection, req, **options)  # pyright: ignore[reportAttributeAccessIssue]


class _WatchedHTTP(_Watched, HTTPHandler):
    pass


class _WatchedHTTPS(_Watched, HTTPSHandler):
    pass


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to web addresses alone."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme not in {"http", "https"}:
            raise HTTPError(
                req.full_url, code, "a redirect to an address other than http or https", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _tell(text: str) -> None:
    """Tell by logging, or where nobody has set that up on the standard error stream."""
    if log.hasHandlers():
        log.info(text)
    elif sys.stderr is not None:
        sys.stderr.write(f"{text}\n")


def _verified(stored: bytes, known: str, rule: str, fix: str) -> bytes:
    if known.startswith("md5:"):
        _checked({"it": stored}, {"it": known.removeprefix("md5:")}, rule, fix)
    try:
        compressed = open_compressed(io.BytesIO(stored)) if stored.startswith(_GZIP) else None
        content = LimitedReader(compressed, max_bytes()).read() if compressed else stored
    except DAMAGED as error:
        raise ValueError(f"{rule}, got a broken gzip file: {error}. {fix}.") from None
    if known.startswith("md5:"):
        return content
    for text in (content, content.replace(b"\r\n", b"\n")):
        if hashlib.sha256(text).hexdigest() == known:
            return text
    found = hashlib.sha256(content).hexdigest()
    raise ValueError(f"{rule} with sha256 {known}, got {len(content)} bytes with {found}. {fix}.")


def keep(content: bytes, path: Path) -> None:
    """Write a file of the cache whole or not at all, so that no other process reads half of it.

    Args:
        content: Its bytes.
        path: Where; folders are made.

    Raises:
        ValueError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        _remove_stale(path.parent)
    except OSError as error:
        raise ValueError(
            f"the cache must be a folder that can be written, got {path.parent}: {error}. Set XDG_CACHE_HOME to one."
        ) from None


def _remove_stale(folder: Path) -> None:
    """Remove unfinished files that a killed process left behind."""
    for path in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
