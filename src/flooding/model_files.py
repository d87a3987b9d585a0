"""A trained model in a folder: ``model.json`` describes it and names its other files by digest.

``model.json`` is replaced last, so a reader sees the old model or the new one. Digests reveal
damage, and files that do not belong together. They do not say who wrote them, so a caller must not
run what it reads, nor allocate memory because a file says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from flooding.atomic import write_atomic
from flooding.data.compression import max_bytes

__all__ = ["is_free", "read_model", "write_model"]

_CONFIG = "model.json"
_DIGEST = "[0-9a-f]{16}"
_FILE = re.compile(rf"(weights|preprocessing)-{_DIGEST}\.(safetensors|skops)")
_OLD_FILE = re.compile(rf"weights(-{_DIGEST})?\.pt")  # of flooding 0.1.0, replaced by a new model
_UNFINISHED_FILE = re.compile(rf"\.{_DIGEST}\.part")  # of flooding.atomic


def is_free(folder: Path) -> bool:
    """Say whether a model may be written to a folder.

    Args:
        folder: Where to write.

    Returns:
        True if it does not exist, is empty, or holds nothing but a model or what is left of an
        interrupted save.
    """
    if not folder.exists():
        return not folder.is_symlink()
    return folder.is_dir() and all(_is_model_file(path.name) for path in folder.iterdir())


def _is_model_file(name: str) -> bool:
    patterns = (_FILE, _OLD_FILE, _UNFINISHED_FILE)
    return name == _CONFIG or any(pattern.fullmatch(name) for pattern in patterns)


def write_model(folder: Path, config: Mapping[str, object], files: Mapping[str, bytes]) -> None:
    """Write a model to a folder, or replace the one there.

    Args:
        folder: Where to write, see :func:`is_free`; made if it is missing.
        config: What the model is, as JSON can hold it; must not have the keys ``files`` and
            ``sha256``.
        files: Content of the other files by name, such as ``weights.safetensors``; on the disk a
            digest is part of the name.
    """
    entries, contents = {}, {}
    for name, content in files.items():
        # The digest in the name keeps the files of the old model intact until the end.
        digest = hashlib.sha256(content).hexdigest()
        file = f"{PurePath(name).stem}-{digest[:16]}{PurePath(name).suffix}"
        entries[name] = {"file": file, "sha256": digest}
        contents[file] = content
    stored = {**config, "files": entries}
    stored["sha256"] = _digest(stored)
    # Last: it makes the new files the model.
    contents[_CONFIG] = json.dumps(stored, indent=1, allow_nan=False).encode()

    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        is_complete = False
        before = {path.name for path in folder.iterdir()}
        try:
            for file, content in contents.items():
                write_atomic(folder / file, content)
            is_complete = True
        finally:
            # After success the old model and what crashes left go, after a failure what is new.
            kept_files = set(contents) if is_complete else before
            for path in folder.iterdir():
                if path.name not in kept_files and _is_model_file(path.name):
                    path.unlink(missing_ok=True)
            if not is_complete and not before:
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Keep other writers out, where the system can lock a folder; readers need no lock."""
    descriptor = None
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def read_model(
    folder: Path, model_format: str, names: Collection[str]
) -> tuple[dict[str, object], dict[str, bytes]]:
    """Read what :func:`write_model` wrote, and verify every file before its content is used.

    Args:
        folder: Where it was written.
        model_format: What the configuration must have as its ``format``.
        names: Names of the other files.

    Returns:
        The configuration, and the content of the files by name.

    Raises:
        ValueError: If a file is damaged, cut off, of another model or of another format.
        FileNotFoundError: If a file is missing.
    """
    while True:
        text = _read(folder / _CONFIG)
        config = _parse(text)
        if config.get("format") != model_format:
            raise ValueError(
                f"its format is {str(config.get('format'))[:80]!r}, not {model_format!r}, so "
                "another version of flooding wrote it: train and save it again with this one, or "
                "predict with that one"
            )
        # The configuration first: it names the other files and their digests.
        if config.get("sha256") != _digest(config):
            raise ValueError(
                f"{_CONFIG} was changed after it was written: its sha256 is another one"
            )
        try:
            return config, {name: _read_file(folder, config, name) for name in names}
        except FileNotFoundError:
            if _read(folder / _CONFIG) == text:
                raise
            # The model was replaced meanwhile: read the new one.


def _read_file(folder: Path, config: Mapping[str, object], name: str) -> bytes:
    """Read a file that the configuration names, and verify its digest."""
    entries = config.get("files")
    entry = entries.get(name) if isinstance(entries, dict) else None
    file = entry.get("file") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(file, str):
        raise ValueError(f"{_CONFIG} names no {name}")
    # A path could lead out of the folder.
    if not _FILE.fullmatch(file):
        raise ValueError(
            f"{_CONFIG} names the file {file[:40]!r}, which is no file name of this library"
        )
    content = _read(folder / file)
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise ValueError(
            f"{file} is damaged or belongs to another model: its sha256 is another one"
        )
    return content


def _read(path: Path) -> bytes:
    status = path.stat()  # once: the file may be removed at any moment
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is no file")
    limit = max_bytes()
    if status.st_size > limit:
        raise ValueError(
            f"{path.name} has {status.st_size:,} bytes, more than {limit:,} (FLOODING_MAX_BYTES)"
        )
    return path.read_bytes()


def _digest(config: Mapping[str, object]) -> str:
    """Hash all but the digest itself, whatever the order of keys and the blanks in the file."""
    content = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def _parse(text: bytes) -> dict[str, object]:
    try:
        config = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError(f"{_CONFIG} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{_CONFIG} is no UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{_CONFIG} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{_CONFIG} holds no object")
    return config


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError(f"{_CONFIG} has a key twice")
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{_CONFIG} holds {name}, which is no number")
