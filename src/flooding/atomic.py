"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["write_atomic"]


def write_atomic(
    path: str | Path, content: bytes | str | Callable[[IO[bytes]], object], *, mode: int = 0o666
) -> Path:
    """Write a file whole or not at all: a reader sees the old file or the new one, never a part.

    The content goes to a temporary file of the same folder, with an unpredictable name and created
    exclusively, which then takes the file's name. So several processes may write one path at once
    (the last one wins), and a symbolic link under either name is never followed: under the file's
    own name it is replaced.

    Nothing is forced onto the disk; after a power cut the old file may be there.

    Args:
        path: The file, in a folder that exists. An old file is replaced.
        content: Its bytes, its text in UTF-8, or a function that writes to an open binary file.
        mode: Permissions of the new file, less those that the process's umask takes away.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written, or if a folder, a pipe or a device has its name.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # Replacing /dev/null or /dev/stdout by a file would harm every other program.
        raise OSError(
            f"{path} must be a file, got a folder, a pipe or a device. Name another file."
        )
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        # "x" is O_CREAT | O_EXCL: fails where anything has the name, also a dangling symbolic link.
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
