"""Save and load a trained network: ``model.json`` describes it and names its weights by digest.

``model.json`` is replaced last, so a reader sees the old model or the new one. Digests reveal
damage, and files that do not belong together. They do not prove who wrote a file, so nothing that
is read here is executed, and no file decides how much memory is allocated.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flooding.atomic import write_atomic
from flooding.data.compression import max_bytes
from flooding.text import printable

__all__ = ["is_free", "read_model", "write_model"]

log = logging.getLogger("flooding")

_CONFIG = "model.json"
_OLD_WEIGHTS = "weights.pt"
_WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.pt")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part")  # of flooding.atomic
# All classes and functions that the pickle of a state dict refers to.
_ALLOWED_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|"
    r"torch (Float|Double|Half|BFloat16|Long)Storage"
)


def is_free(folder: Path) -> bool:
    """Tell whether a model may be written to a folder.

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
    if name in {_CONFIG, _OLD_WEIGHTS}:
        return True
    return bool(_WEIGHTS.fullmatch(name) or _TEMPORARY.fullmatch(name))


def write_model(folder: Path, config: Mapping[str, object], weights: Mapping[str, Tensor]) -> None:
    """Write a model to a folder, or replace the one there.

    Args:
        folder: Where to write, see :func:`is_free`; made if it is missing.
        config: Description of the network, as JSON can hold it, without the keys ``weights`` and
            ``sha256``.
        weights: State dict.
    """
    # 1. The content of both files.
    content = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in weights.items()}, content)
    data = content.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    name = f"weights-{digest[:16]}.pt"
    full_config = {**config, "weights": {"file": name, "sha256": digest}}
    full_config["sha256"] = _digest(full_config)
    text = json.dumps(full_config, indent=1, allow_nan=False)

    # 2. The weights, then the file that names them.
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        is_complete = False
        before = {path.name for path in folder.iterdir()}
        try:
            write_atomic(folder / name, data)
            write_atomic(folder / _CONFIG, text.encode())
            is_complete = True
        finally:
            # 3. After success remove the old model and what crashes left, else what is new.
            current = {name, _CONFIG} if is_complete else before
            for path in folder.iterdir():
                if path.name not in current and _is_model_file(path.name):
                    path.unlink(missing_ok=True)
            if not is_complete and not before:
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Lock a folder against other writers, where the system can; readers need no lock."""
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


def read_model(folder: Path, old_format: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model that :func:`write_model` wrote, and verify both files before use.

    Args:
        folder: Where it was written.
        old_format: The ``format`` of models without digests, which flooding 0.1.0 wrote.

    Returns:
        The configuration and the state dict.

    Raises:
        ValueError: If a file is damaged, cut off, of another model, or holds anything else.
        FileNotFoundError: If a file is missing.
    """
    while True:
        # 1. The description, and whether it is as it was written.
        text = _read(folder / _CONFIG, max_bytes())
        config = _parse_config(text)
        has_digest = config.get("format") != old_format
        if has_digest and config.get("sha256") != _digest(config):
            raise ValueError(
                f"{_CONFIG} was changed after it was written: its sha256 is another one"
            )
        # 2. The weights that it names, and whether they are those.
        entry = config.get("weights") if has_digest else {"file": _OLD_WEIGHTS, "sha256": None}
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise ValueError(f"{_CONFIG} names no weights")
        name, digest = entry["file"], entry.get("sha256")
        if has_digest and not _WEIGHTS.fullmatch(name):
            raise ValueError(
                f"{_CONFIG} names the weights {name[:40]!r}, which is no file name of this library"
            )
        try:
            data = _read(folder / name, max_bytes())
        except FileNotFoundError:
            if _read(folder / _CONFIG, max_bytes()) != text:
                continue  # the model was replaced meanwhile
            raise
        if has_digest and hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(
                f"{name} is damaged or belongs to another model: its sha256 is another one"
            )
        weights = _load_state_dict(name, data)
        if not has_digest:
            log.warning(
                "%s was saved without digests, by flooding 0.1.0: its weights have checksums, but "
                "a changed number in %s cannot be noticed. Save the model again.",
                printable(str(folder)),
                _CONFIG,
            )
        return config, weights


def _read(path: Path, limit: int) -> bytes:
    status = path.stat()  # once: the file may be removed at any moment
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path.name} is no file")
    if status.st_size > limit:
        raise ValueError(
            f"{path.name} has {status.st_size:,} bytes, more than {limit:,} (FLOODING_MAX_BYTES)"
        )
    return path.read_bytes()


def _digest(config: Mapping[str, object]) -> str:
    """Hash all but the digest itself, whatever the order of keys and the blanks in the file."""
    content = {key: value for key, value in config.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _parse_config(text: bytes) -> dict[str, Any]:
    try:
        config = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_require_distinct_keys,
            parse_constant=_refuse_constant,
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


def _require_distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"{_CONFIG} has a key twice")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{_CONFIG} holds {name}, which is no number")


def _load_state_dict(name: str, data: bytes) -> dict[str, Tensor]:
    """Load a state dict, executing nothing and allocating no more than the file has bytes."""
    # 1. The archive is unpacked, undamaged, and its pickle refers to nothing but tensors.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not is_stored or sum(member.file_size for member in members) > len(data):
            raise ValueError(f"{name} is packed, unlike what torch.save writes")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{name} is damaged: the checksum of {damaged!r} is another one")
        pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"{name} is no file of torch.save")
        for operation, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if operation.name == "GLOBAL" and not _ALLOWED_GLOBALS.fullmatch(str(argument)):
                raise ValueError(f"{name} holds {str(argument)[:80]!r}, not tensors alone")
    # 2. The content is a state dict whose tensors are no larger than the file.
    weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(map(_is_state_entry, weights.items())):
        raise ValueError(f"{name} holds something else than a state dict")
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > len(data):
        raise ValueError(f"{name} holds tensors that are larger than the file")
    return weights


def _is_state_entry(entry: tuple[object, object]) -> bool:
    name, tensor = entry
    is_dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    return isinstance(name, str) and is_dense
