"""How a missing library is installed: the command fits a clone, a file and an index."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["install_command"]


def install_command(extra: str) -> str:
    """Give the command that installs the libraries of an extra.

    ``pip install 'flooding[plot]'`` asks an index. Where this package was installed from a clone, a
    repository or a file, the index may have none of it, or another version. The command then names
    the same source, which pip notes in ``direct_url.json``.

    Args:
        extra: Name of the extra, such as ``plot``.

    Returns:
        A command for a shell.

    Example:
        >>> "[plot]" in install_command("plot")
        True

    References:
        PEP 610, *Recording the Direct URL Origin of installed distributions*.
    """
    return f"pip install {_requirement(extra, _direct_url())}"


def _direct_url() -> object:
    """Read where the package was installed from; None if that is an index, or unknown."""
    # Slow to import, and needed by an error alone.
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return json.loads(distribution("flooding").read_text("direct_url.json") or "null")
    except (PackageNotFoundError, OSError, ValueError):
        return None


def _requirement(extra: str, source: object) -> str:
    """Write the package with an extra as pip takes it."""
    if not isinstance(source, dict) or not isinstance(source.get("url"), str):
        return f"'flooding[{extra}]'"
    from urllib.parse import unquote, urlparse

    url = source["url"]
    folder = source.get("dir_info")
    if isinstance(folder, dict):
        path = unquote(urlparse(url).path)
        # A clone that was moved or removed cannot be installed from again.
        if not Path(path, "pyproject.toml").is_file():
            return f"'flooding[{extra}]'"
        option = "-e " if folder.get("editable") else ""
        return f"{option}'{path}[{extra}]'"
    repository = source.get("vcs_info")
    if isinstance(repository, dict):
        url = f"{repository.get('vcs')}+{url}@{repository.get('commit_id')}"
    return f"'flooding[{extra}] @ {url}'"
