"""The optional libraries of tables, all of which are slow to import."""

from __future__ import annotations

import importlib
from types import ModuleType

from flooding.extras import install_command

__all__ = ["import_engine", "import_library"]


def import_library(name: str) -> ModuleType:
    """Import a library of the extra ``tables``, all of which are optional and slow to import.

    Args:
        name: Name of its module.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"tables need {name}. Install it: {install_command('tables')}") from error


def import_engine(name: str, kind: str) -> ModuleType:
    """Import a library with which pandas reads one kind of file.

    Args:
        name: Name of its module, which is that of its package.
        kind: The kind of file, for the error.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{kind} files need {name}. Install it: pip install {name}; or save the table as CSV."
        ) from error
