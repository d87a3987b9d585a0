"""Files of tables: their bytes, unpacked, and which kind of file they are."""

# The checks shared by the functions below raise what their docstrings promise.
from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import stat
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from flooding.data.compression import DAMAGED, LimitedReader, max_bytes
from flooding.tabular.messages import join_names, shorten

__all__ = ["KINDS", "TABLE_SUFFIXES", "FileContent", "is_stream", "read_file"]

#: The kinds of files that can be read, for error messages.
KINDS = (
    "CSV, TSV and other separated text, .npz, .xlsx, .xls, .ods, .parquet, .feather, .orc, "
    "JSON and JSON lines, .dta, .sas7bdat and .xpt, also packed as .gz, .bz2, .xz or .zip"
)
_OPENERS: dict[str, Callable[..., io.BufferedIOBase]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_PACKED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}
_BY_START = {
    b"PAR1": "parquet",
    b"ARROW1": "feather",
    b"FEA1": "feather",
    b"ORC": "orc",
    b"\xd0\xcf\x11\xe0": "xls",
    b"<stata_dta>": "dta",
}
_BY_SUFFIX = {
    ".npz": "npz",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".orc": "orc",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".xls": "xls",
    ".ods": "ods",
    ".dta": "dta",
    ".sas7bdat": "sas7bdat",
    ".xpt": "xpt",
}
_TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".data")
#: What the name of a table may end with.
TABLE_SUFFIXES = frozenset({*_TEXT_SUFFIXES, ".zip", *_OPENERS, *_BY_SUFFIX})
# What is refused by its first bytes, and what to call it.
_UNSUPPORTED = {
    b"$FL2": "an SPSS file",
    b"$FL3": "an SPSS file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x93NUMPY": "a single NumPy array",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RDX3": "an R data file",
    b"RDX2": "an R data file",
    b"X\n\0\0\0": "an R data file",
    b"MATLAB 5": "a MATLAB file",
    b"\x7fELF": "a program",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML document",
    b"@relation": "an ARFF file",
    b"@RELATION": "an ARFF file",
}


@dataclass(frozen=True)
class FileContent:
    """A file, read and unpacked.

    Args:
        data: Its content.
        kind: ``text``, ``npz``, ``json``, ``xlsx`` and so on.
        source: Its name, for sentences.
        size_limit: How many cells it may have, where it was compressed.
        sentences: What was assumed of it.
    """

    data: bytes
    kind: str
    source: str
    size_limit: int | None
    sentences: tuple[str, ...] = ()


def is_stream(path: str | Path) -> bool:
    """Say whether a path is standard input, or a pipe that a shell opened for this program.

    A pipe with a name is none: nobody knows whether anything will be written to it.

    Args:
        path: A path; ``-`` is standard input.

    Returns:
        False for a file, a folder, a named pipe, a device, and what does not exist.
    """
    text = str(path)
    if text == "-":
        return True
    if not text.startswith(("/dev/fd/", "/dev/stdin", "/proc/")):
        return False
    try:
        mode = Path(text).stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def read_file(path: str | Path) -> FileContent:
    """Read a file or standard input, unpack it within the limit, and tell its kind.

    Args:
        path: The file; ``-`` is standard input.

    Returns:
        Its content.

    Raises:
        ValueError: If it does not exist, is empty, damaged or too large, or of no supported kind.
    """
    path = Path(path)
    source = "standard input" if str(path) == "-" else shorten(path)
    data = _read_bytes(path, source)
    suffix, size_limit = path.suffix.lower(), None
    packing = suffix if suffix in _OPENERS else _packing_of(data)
    sentences: tuple[str, ...] = ()
    if packing is not None:
        size_limit = max(max_bytes() // 16, len(data))
        data = _unpack(data, packing, source)
        suffix = path.with_suffix("").suffix.lower() if suffix in _OPENERS else suffix
    is_zip = data[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(data))
    if is_zip and not _is_document(data, suffix):
        size_limit = max(max_bytes() // 16, len(data))
        data, suffix, sentence = _read_zip(data, source)
        sentences = (sentence,)
    if not data or data.isspace():
        raise ValueError(f"a table must hold rows, got the empty file {source}. Give it data.")
    kind = _find_kind(data, suffix, source)
    # Archives and formats with compression of their own are limited as packed files are.
    if kind in {"npz", "xlsx", "ods", "parquet", "feather", "orc"}:
        size_limit = max(max_bytes() // 16, len(data))
    return FileContent(data, kind, source, size_limit, sentences)


def _read_bytes(path: Path, source: str) -> bytes:
    """Read a file, or a stream up to the limit."""
    if not is_stream(path) and not path.is_file():
        reason = "a folder" if path.is_dir() else "which does not exist"
        reason = "a pipe or a device" if path.exists() and not path.is_dir() else reason
        raise ValueError(f"a table must be a file, got {source}, {reason}. Check the path.")
    try:
        if not is_stream(path):
            return path.read_bytes()
        with contextlib.ExitStack() as stack:
            stream = sys.stdin.buffer
            if str(path) != "-":
                stream = stack.enter_context(path.open("rb"))
            if not stream.isatty():
                return LimitedReader(stream, max_bytes()).read()
    except DAMAGED as error:
        rule = "a table must be a file that can be read"
        raise ValueError(f"{rule}, got {source}: {shorten(error)}.") from error
    raise ValueError(
        f"a table must be a file or a pipe, got {source}, a terminal. Redirect it: - < table.csv."
    )


def _packing_of(data: bytes) -> str | None:
    return next((suffix for start, suffix in _PACKED.items() if data.startswith(start)), None)


def _unpack(data: bytes, packing: str, source: str) -> bytes:
    """Unpack a compressed file: a small one may unpack to more than the memory."""
    try:
        with _OPENERS[packing](io.BytesIO(data)) as stream:
            return LimitedReader(stream, max_bytes()).read()
    except DAMAGED as error:
        rule = "a table must be a file that can be read and unpacked"
        raise ValueError(f"{rule}, got {source}: {shorten(error)}.") from error


def _is_document(data: bytes, suffix: str) -> bool:
    """Say whether a zip archive is an .npz file or a spreadsheet."""
    if suffix == ".npz":
        return True
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    arrays = [name for name in names if name.endswith(".npy")]
    return bool(arrays) or "[Content_Types].xml" in names or "mimetype" in names


def _read_zip(data: bytes, source: str) -> tuple[bytes, str, str]:
    """Read the one file of a zip archive; give its content, its suffix and a sentence."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = []
            for entry in archive.infolist():
                path = PurePath(entry.filename)
                is_hidden = path.name.startswith(".") or "__MACOSX" in path.parts
                if not entry.is_dir() and not is_hidden:
                    entries.append(entry)
            if len(entries) != 1:
                names = join_names([entry.filename for entry in entries]) or "none"
                raise ValueError(f"it must hold one file, got {names}. Unpack the one you mean")
            with archive.open(entries[0]) as stream:
                content = LimitedReader(stream, max_bytes()).read()
    except DAMAGED as error:
        rule = "a table must be a file that can be read and unpacked"
        raise ValueError(f"{rule}, got {source}: {shorten(error)}.") from error
    name = entries[0].filename
    return content, PurePath(name).suffix.lower(), f"{source} holds {shorten(name)}."


def _find_kind(data: bytes, suffix: str, source: str) -> str:
    """Tell the kind of a file by its first bytes, else by the ending of its name."""
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:64]
    for magic, kind in _UNSUPPORTED.items():
        if start.startswith(magic) and suffix != ".npz":
            raise ValueError(
                f"this kind of file is not supported, got {source}, {kind}. A table can be {KINDS}."
            )
    if data[257:262] == b"ustar":
        raise ValueError(
            f"this kind of file is not supported, got {source}, a tar archive. "
            f"A table can be {KINDS}."
        )
    for magic, kind in _BY_START.items():
        if data.startswith(magic):
            return kind
    if data[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(data)):
        return _document_kind(data, suffix, source)
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    # A row of a text table may begin with a brace, but not with a name in quotation marks in it.
    first = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    compact = b"".join(data[:4096].split())
    is_json = first == b"{" and compact.lstrip(b"\xef\xbb\xbf").startswith(b'{"')
    return "json" if is_json or compact.startswith((b'[{"', b'\xef\xbb\xbf[{"')) else "text"


def _document_kind(data: bytes, suffix: str, source: str) -> str:
    """Tell an .npz file and spreadsheets from one another."""
    if suffix == ".npz":
        return "npz"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if "mimetype" in names:
        return "ods"
    if any(name.startswith("xl/") for name in names):
        return "xlsx"
    raise ValueError(
        f"this kind of file is not supported, got {source}, a document that is no spreadsheet. "
        f"A table can be {KINDS}."
    )
