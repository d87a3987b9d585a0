"""Adapters that flood inside the frameworks people train in, with one module for each framework.

``import flooding`` imports none of them, and a module imports its framework alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sized
from contextlib import contextmanager

from flooding.extras import install_command

__all__ = ["count_examples", "require_framework"]


@contextmanager
def require_framework(package: str, extra: str | None = None) -> Generator[None]:
    """Import a framework in the ``with`` block; if it is missing, say how to install it.

    An error inside an installed framework, such as one of its own dependencies that is missing,
    stays as it is.

    Args:
        package: Name by which the framework is imported.
        extra: The extra of flooding that installs it; None if it has the package's name.

    Raises:
        ModuleNotFoundError: If the framework is not installed.

    Example:
        >>> with require_framework("math"):
        ...     import math
        >>> try:
        ...     with require_framework("no_such_framework", extra="lightning"):
        ...         import no_such_framework
        ... except ModuleNotFoundError as error:
        ...     str(error).endswith(install_command("lightning"))
        True
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"flooding needs {package}: {install_command(extra or package)}", name=error.name
        ) from error


def count_examples(data: object) -> int | None:
    """Count the examples of a validation set, for a controller that judges scores by their error.

    Args:
        data: A dataset.

    Returns:
        Its length; None where it has none, as one that is iterable alone.
    """
    if not isinstance(data, Sized):
        return None
    try:
        return len(data) or None
    except (RuntimeError, TypeError, ValueError):
        # A dataset of the user's own may have the method and no length; the number is optional.
        return None
