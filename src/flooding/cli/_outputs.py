"""The folders that commands write to: the results of another command stay as they are."""

# The checks shared by the functions below raise what their docstrings promise.
# ruff: file-ignore[docstring-extraneous-exception]
from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flooding.atomic import write_atomic
from flooding.cli._options import check_output_folder

if TYPE_CHECKING:
    from flooding.training.problem import Problem

__all__ = ["OutputFolder", "check_new_files", "check_saved_model", "command_id", "output_folder"]

_NAME = "command.json"
_MAX_BYTES = 1 << 20  # of a file that says which command wrote a folder


def command_id(name: str, arguments: Mapping[str, object], problem: Problem) -> str:
    """Hash what decides the result of a command.

    Args:
        name: The command.
        arguments: Its options, without those that say where to write or how to train.
        problem: What it trains. Its data are part of the hash, so that a changed table is another
            command. Code of the user's own cannot be hashed, and is recognised by its name alone.

    Returns:
        64 hexadecimal digits, the same for the same command given again.
    """
    from flooding.training.run import Run
    from flooding.training.runner import run_key

    parts = {"command": name, "problem": run_key(Run(problem)), **arguments}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class OutputFolder:
    """A folder for the results of one command.

    A command that was killed is given again: it may write into what is its own. What another
    command wrote, or anything else of the same name, is replaced with ``--force`` alone.

    Args:
        path: The folder.
        files: Names of the files that the command writes.
        command: The command's :func:`command_id`.
    """

    def __init__(self, path: Path, files: tuple[str, ...], command: str) -> None:
        self.path, self.command = path, command
        self.files = (_NAME, *files)

    @property
    def is_free(self) -> bool:
        """Whether nothing of another command would be replaced."""
        is_empty = not any((self.path / name).exists() for name in self.files)
        return is_empty or _read_command(self.path / _NAME) == self.command

    def check(self, *, force: bool) -> None:
        """Refuse a folder that cannot be one, or holds what another command wrote.

        Args:
            force: Whether to replace that.

        Raises:
            ValueError: If the results would have no place.
        """
        check_output_folder(self.path)
        if force or self.is_free:
            return
        [name, *_] = [name for name in self.files if (self.path / name).exists()]
        raise ValueError(
            f"out must not hold what another command wrote, got {self.path}, which has a {name}. "
            "Name another folder, --out FOLDER, or replace its files: --force."
        )

    def mark(self) -> None:
        """Make the folder, and note whose it is; the files of the command come after this."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / _NAME, json.dumps({"id": self.command}, indent=1) + "\n")


def output_folder(
    out: Path | None, default: str, files: tuple[str, ...], command: str, *, force: bool
) -> OutputFolder:
    """Give the folder for the results of a command, checked.

    Args:
        out: The option; None is the default or, where another command has written there, the first
            free one of NAME-2, NAME-3 and so on.
        default: The default folder.
        files: Names of the files that the command writes.
        command: The command's :func:`command_id`.
        force: Whether to replace what another command has written.

    Returns:
        The folder.

    Raises:
        ValueError: If the results would have no place.
    """
    folder = OutputFolder(out or Path(default), files, command)
    if out is None and not force:
        for number in itertools.count(2):
            if folder.is_free:
                break
            folder = OutputFolder(Path(f"{default}-{number}"), files, command)
    folder.check(force=force)
    return folder


def _read_command(path: Path) -> str | None:
    """Read which command wrote a folder; None where that is unknown."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    command = stored.get("id") if isinstance(stored, dict) else None
    return command if isinstance(command, str) else None


def check_saved_model(folder: Path, command: str, *, force: bool) -> None:
    """Refuse a folder for a model that holds the model of another command, or anything else.

    Args:
        folder: The folder.
        command: The ``origin`` that the command's own model has.
        force: Whether to replace a saved model; other files are never replaced.

    Raises:
        ValueError: If the model would have no place.
    """
    from flooding.tabular import check_folder, read_origin

    check_output_folder(folder.parent)
    check_folder(folder)
    if force or not (folder / "model.json").exists() or read_origin(folder) == command:
        return
    raise ValueError(
        f"save must not hold the model of another command, got {folder}. "
        "Name another folder, --save FOLDER, or replace the model: --force."
    )


def check_new_files(folder: Path, names: tuple[str, ...], *, force: bool) -> None:
    """Refuse to replace files.

    Args:
        folder: Where they are written.
        names: Their names.
        force: Whether to replace them.

    Raises:
        ValueError: If one exists.
    """
    for name in names:
        if not force and (folder / name).exists():
            raise ValueError(
                f"files are not replaced, but {folder / name} exists. "
                "Name another place, or replace it: --force."
            )
