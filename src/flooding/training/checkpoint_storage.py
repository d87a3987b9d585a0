"""Checkpoints where every machine of a cluster sees them: in a folder, or at an fsspec URI."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import fsspec

from flooding.atomic import write_atomic
from flooding.training.folders import make_private_folder

__all__ = ["CheckpointStorage", "check_storage"]

log = logging.getLogger("flooding")
_Status = tuple[int, int]  # time of change in nanoseconds, size in bytes


def check_storage(storage: str) -> str:
    """Refuse a place for checkpoints that cannot be one.

    Args:
        storage: A folder, or a URI such as ``s3://bucket/checkpoints``.

    Returns:
        The URI, or the absolute path of the folder.

    Raises:
        ValueError: If nothing knows the URI's protocol, or its package is not installed.
    """
    try:
        file_system, path = fsspec.core.url_to_fs(storage)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"storage must be a folder or a URI that fsspec knows, got {storage!r}: {error}"
        ) from None
    return path if _is_local(file_system) else storage


class CheckpointStorage:
    """Carries a job's checkpoints from the storage to a folder of this machine, and back.

    What cannot be read or written costs time, never a result: the log says so.

    Args:
        storage: A folder, or a URI.
        folder: The folder of this machine.
        names: Names of the job and of its forks; checkpoints of other names are left alone.
    """

    def __init__(self, storage: str, folder: Path, names: Sequence[str]) -> None:
        self._file_system, self._root = fsspec.core.url_to_fs(storage)
        self._folder, self._names = folder, names
        self._uploaded: dict[str, _Status] = {}

    def download(self) -> None:
        """Fetch the checkpoints that the job can go on from."""
        try:
            if not self._file_system.isdir(self._root):
                return
            for path in self._file_system.ls(self._root, detail=False):
                name = PurePosixPath(path).name
                if self._is_wanted(name):
                    self._file_system.get_file(path, str(self._folder / name))
            self._uploaded = self._list()
        except Exception as error:  # noqa: BLE001 -- whatever a file system raises, the Run trains
            log.warning("no checkpoint from %s (%s); the run begins anew.", self._root, error)

    def upload(self) -> None:
        """Write what changed in the folder since the last call, and remove what is gone."""
        current = self._list()
        if current == self._uploaded:
            return
        try:
            for name, status in current.items():
                if self._uploaded.get(name) != status:
                    self._write(name)
            for name in self._uploaded.keys() - current.keys():
                path = f"{self._root}/{name}"
                if self._file_system.exists(path):
                    self._file_system.rm_file(path)
        except Exception as error:  # noqa: BLE001 -- see above
            log.warning("no checkpoint in %s (%s); the run goes on.", self._root, error)
        self._uploaded = current

    def _write(self, name: str) -> None:
        source = self._folder / name
        if _is_local(self._file_system):
            # Whole or not at all, and readable by its owner alone.
            make_private_folder(Path(self._root))
            write_atomic(Path(self._root, name), source.read_bytes(), mode=0o600)
            return
        self._file_system.makedirs(self._root, exist_ok=True)
        self._file_system.put_file(str(source), f"{self._root}/{name}")

    def _list(self) -> dict[str, _Status]:
        files = {}
        for path in self._folder.glob("*.pt"):
            if self._is_wanted(path.name):
                status = path.stat()
                files[path.name] = (status.st_mtime_ns, status.st_size)
        return files

    def _is_wanted(self, file: str) -> bool:
        """Tell whether a file is a checkpoint of one of the names: ``NAME-EPOCH.pt``."""
        name, _, epoch = file.removesuffix(".pt").rpartition("-")
        return file.endswith(".pt") and name in self._names and epoch.isdigit()


def _is_local(file_system: fsspec.AbstractFileSystem) -> bool:
    protocols = file_system.protocol
    return "file" in ([protocols] if isinstance(protocols, str) else protocols)
