"""Files of real data sets: from ``$FLOODING_DATA``, from the cache, or downloaded into it once.

``pooch`` downloads. Contents are verified at each use, wherever they come from.
"""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import IO, cast

from flooding.atomic import write_atomic
from flooding.data.compression import DAMAGED, LimitedReader, max_bytes, open_compressed
from flooding.data.registry import ARCHIVES, FILES
from flooding.extras import install_command
from flooding.text import printable

__all__ = ["cache", "find", "read", "read_archive", "write_cached"]

_GZIP = b"\x1f\x8b"
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TIMEOUT_SECONDS = 30.0  # to connect, and between two arrivals of bytes
_RETRIES = 1
_STALE_SECONDS = 86_400.0  # age at which an unfinished file of another process is removed
# How unfinished files are named: by flooding.atomic, and by the tempfile module for pooch.
_UNFINISHED = (".*.part", "tmp????????")


def cache() -> Path:
    """Return the folder of downloaded files.

    Returns:
        ``$XDG_CACHE_HOME/flooding``, else ``~/.cache/flooding``; it may not exist yet.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flooding"


def find(name: str) -> Path | None:
    """Look for a file, compressed (``.gz``) or not, in ``$FLOODING_DATA`` and then in the cache.

    Args:
        name: A name of :data:`flooding.data.registry.FILES`.

    Returns:
        Its path, or None if it is in neither folder.

    Raises:
        ValueError: If ``FLOODING_DATA`` is set and not a folder.
    """
    for folder in _folders():
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    return None


def _folders() -> list[Path]:
    user_folder = os.environ.get("FLOODING_DATA")
    if not user_folder:
        return [cache()]
    if not Path(user_folder).is_dir():
        raise ValueError(
            f"FLOODING_DATA must be a folder of data sets, got {user_folder!r}. "
            "Correct or unset it."
        )
    return [Path(user_folder), cache()]


def read(name: str) -> bytes:
    """Read a file's content, decompressed; download the file if it is in neither folder.

    Line ends may be those of another system: the returned content has the official ones.

    Args:
        name: A name of :data:`flooding.data.registry.FILES`.

    Returns:
        The official content, to the byte.

    Raises:
        ImportError: If the file must be downloaded and ``pooch`` is not installed.
        ValueError: If the file cannot be downloaded, has other content than the official one, or
            cannot be written.
    """
    address, checksum = FILES[name]
    path = find(name)
    if path is not None:
        rule = f"{path} must be the file {address}"
        return _verify_file(path.read_bytes(), checksum, rule, "Delete it")

    suffix = ".gz" if address.endswith(".gz") else ""
    local_name = f"{name}{suffix}"
    rule = f"{address} must serve the official file"
    fix = f"Try again later; or {_manual_fix(address, local_name)}"

    def verify(content: bytes) -> bytes:
        return _verify_file(content, checksum, rule, fix)

    return verify(_download(name, address, local_name, verify).read_bytes())


def read_archive(name: str) -> dict[str, bytes]:
    """Read the files of an archive; download the archive if it is in neither folder.

    The files may lie unpacked in the folder ``name`` of ``$FLOODING_DATA`` or of the cache, or in a
    folder below it, or there in a tar file, compressed or not. Nothing is unpacked to the disk.

    Args:
        name: A name of :data:`flooding.data.registry.ARCHIVES`.

    Returns:
        The official contents by file name.

    Raises:
        ImportError: If the archive must be downloaded and ``pooch`` is not installed.
        ValueError: If the archive cannot be downloaded or read, lacks a file or has another one
            than the official one, or cannot be written.
    """
    address, checksums = ARCHIVES[name]
    for folder in _folders():
        contents = _read_local_archive(folder / name, address, checksums)
        if contents is not None:
            return contents

    local_name = f"{name}/{address.rpartition('/')[2]}"
    rule = f"{address} must serve the official archive"
    fix = f"Try again later; or {_manual_fix(address, local_name)}"

    def verify(content: bytes) -> dict[str, bytes]:
        return _verify_members(
            _unpack(io.BytesIO(content), checksums, rule, fix), checksums, rule, fix
        )

    return verify(_download(name, address, local_name, verify).read_bytes())


def _read_local_archive(
    folder: Path, address: str, checksums: Mapping[str, str]
) -> dict[str, bytes] | None:
    """Read an archive's files from a folder of unpacked files or of tar files."""
    entries = sorted(folder.glob("*"))
    for subfolder in (folder, *entries):
        if all((subfolder / file).is_file() for file in checksums):
            rule = f"{subfolder} must hold the files of {address}"
            contents = {file: (subfolder / file).read_bytes() for file in checksums}
            return _verify_members(contents, checksums, rule, "Delete it")
    for path in entries:
        if path.name.endswith(_TARS):
            rule = f"{path} must hold the files of {address}"
            with path.open("rb") as stream:
                contents = _unpack(stream, checksums, rule, "Delete it")
            return _verify_members(contents, checksums, rule, "Delete it")
    return None


def write_cached(content: bytes, path: Path) -> None:
    """Write a file of the cache whole or not at all, so that no process reads half of it.

    Args:
        content: The bytes.
        path: Where to write; missing folders are made.

    Raises:
        ValueError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise ValueError(_cache_advice(path.parent, error)) from None
    _remove_stale(path.parent)


class _DownloadTooLargeError(Exception):
    """A download exceeds ``FLOODING_MAX_BYTES``; another attempt would not help."""


class _LimitedFile:
    """A file that refuses to grow beyond a limit."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit

    def write(self, block: bytes) -> None:
        if self._file.tell() + len(block) > self._limit:
            raise _DownloadTooLargeError(
                f"more than the {self._limit:,} bytes of FLOODING_MAX_BYTES"
            )
        self._file.write(block)

    def flush(self) -> None:
        self._file.flush()


def _download(name: str, address: str, local_name: str, verify: Callable[[bytes], object]) -> Path:
    """Download a file into the cache under ``local_name``.

    pooch writes to a temporary file beside the final one and renames it at the end, so processes
    may download at the same time and no process reads half a file.

    Args:
        name: Name of the data set's file, for the error message.
        address: What to download.
        local_name: Path below the cache.
        verify: Raises a ValueError for content that is not the official one.

    Returns:
        Path of the file.

    Raises:
        ImportError: If pooch is not installed.
        ValueError: If the file cannot be downloaded or written, or ``verify`` refuses it.
    """
    manual_fix = _manual_fix(address, local_name)
    try:
        import requests
        from pooch import HTTPDownloader, Pooch
    except ImportError as error:
        raise ImportError(
            f"downloading {name} needs pooch. Install it: {install_command('experiments')}; "
            f"or {manual_fix}"
        ) from error

    def download(url: str, path: str, pooch: Pooch | None) -> None:
        has_tqdm = importlib.util.find_spec("tqdm") is not None
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        with Path(path).open("wb") as file, ExitStack() as responses:

            def close_later(response: requests.Response, **_: object) -> None:
                # pooch leaves the connection of a failed download open.
                responses.callback(response.close)

            fetch = HTTPDownloader(
                progressbar=has_tqdm and is_terminal,
                chunk_size=1 << 16,
                timeout=_TIMEOUT_SECONDS,
                hooks={"response": close_later},
            )
            try:
                fetch(url, _LimitedFile(file, max_bytes()), pooch)
            except requests.RequestException:
                raise
            except ValueError as error:  # a header that cannot be parsed
                raise requests.RequestException(str(error)) from None
        # Before pooch renames the file: other content never gets the final name.
        verify(Path(path).read_bytes())

    # The registry has no checksum of the file as it is served: ``verify`` checks the content.
    downloads = Pooch(
        path=cache(),
        base_url="",
        registry={local_name: None},  # pyright: ignore[reportArgumentType]
        urls={local_name: address},
        retry_if_failed=_RETRIES,
    )
    try:
        # Not by pooch, which fails where another reader creates the same folder meanwhile.
        (cache() / local_name).parent.mkdir(parents=True, exist_ok=True)
        # pooch's own types name the parameters of a downloader otherwise than it passes them.
        fetched = downloads.fetch(
            local_name,
            downloader=download,  # pyright: ignore[reportArgumentType]
        )
        path = Path(fetched)
    except (requests.RequestException, _DownloadTooLargeError) as error:
        raise ValueError(
            f"{name} must be in the folder $FLOODING_DATA, in {cache()} or at {address}, got "
            f"{printable(str(error))}. Try again with a network; or {manual_fix}."
        ) from None
    except OSError as error:
        raise ValueError(_cache_advice(cache() / Path(local_name).parent, error)) from None
    _remove_stale(path.parent)
    return path


def _manual_fix(address: str, local_name: str) -> str:
    return (
        f"download {address}, put it into a folder as {local_name}, "
        "and set FLOODING_DATA to that folder"
    )


def _cache_advice(folder: Path, error: OSError) -> str:
    return (
        f"the cache must be a folder that can be written, got {folder}: {error}. "
        "Set XDG_CACHE_HOME to one."
    )


def _remove_stale(folder: Path) -> None:
    """Remove unfinished files that a killed process left behind."""
    for pattern in _UNFINISHED:
        for path in folder.glob(pattern):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def _verify_file(stored: bytes, checksum: str, rule: str, fix: str) -> bytes:
    """Decompress a file and compare its checksum; return the official content."""
    md5 = checksum.removeprefix("md5:") if checksum.startswith("md5:") else None
    if md5 is not None:
        _check_md5("it", stored, md5, rule, fix)
    content = stored
    if stored.startswith(_GZIP):
        try:
            stream = open_compressed(io.BytesIO(stored))
            content = LimitedReader(stream, max_bytes()).read()
        except DAMAGED as error:
            raise ValueError(f"{rule}, got a broken gzip file: {error}. {fix}.") from None
    if md5 is not None:
        return content

    # Git and editors of other systems may have changed the line ends.
    for candidate in (content, content.replace(b"\r\n", b"\n")):
        if hashlib.sha256(candidate).hexdigest() == checksum:
            return candidate
    digest = hashlib.sha256(content).hexdigest()
    raise ValueError(
        f"{rule} with sha256 {checksum}, got {len(content)} bytes with {digest}. {fix}."
    )


def _verify_members(
    contents: dict[str, bytes], checksums: Mapping[str, str], rule: str, fix: str
) -> dict[str, bytes]:
    """Compare the files of an archive with their published md5, as a checksum against damage."""
    for name, md5 in checksums.items():
        if name not in contents:
            raise ValueError(f"{rule}, but {name} is missing. {fix}.")
        _check_md5(name, contents[name], md5, rule, fix)
    return contents


def _check_md5(name: str, content: bytes, md5: str, rule: str, fix: str) -> None:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise ValueError(
            f"{rule}, but {name} must have md5 {md5}, got {len(content)} bytes with {digest}. "
            f"{fix}."
        )


def _unpack(stream: IO[bytes], names: Mapping[str, str], rule: str, fix: str) -> dict[str, bytes]:
    """Read named files from a tar file, compressed or not, in one pass."""
    contents: dict[str, bytes] = {}
    try:
        # A stream is read in one pass: a tar file needs no other method of it than `read`.
        limited = cast("IO[bytes]", LimitedReader(open_compressed(stream), max_bytes()))
        with tarfile.open(fileobj=limited, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                # The limit does not count the holes of a sparse file: they take no bytes.
                is_plain = member.isfile() and not member.issparse()
                if not is_plain or name not in names:
                    continue
                file = archive.extractfile(member)
                if file is not None:
                    contents[name] = file.read()
    except DAMAGED as error:
        raise ValueError(f"{rule}, got a broken archive: {error}. {fix}.") from None
    return contents
