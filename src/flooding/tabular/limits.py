"""How large a table may be."""

from __future__ import annotations

__all__ = ["MAX_COLUMNS", "TableTooLargeError", "check_cells", "too_many"]

# Columns that a table may have.
MAX_COLUMNS = 300_000


class TableTooLargeError(ValueError):
    """A table has more columns or cells than can be read."""


def too_many(limit: str, count: int, source: str) -> TableTooLargeError:
    """Make the error for a table with too many of something.

    Args:
        limit: How many of what it may have.
        count: How many it has.
        source: Name of the file.

    Returns:
        The error.
    """
    return TableTooLargeError(
        f"a table must have at most {limit}, got {count:,} in {source}. Leave columns out."
    )


def check_cells(count: int, source: str, limit: int) -> None:
    """Refuse a compressed table whose cells, at 16 to 64 bytes each, need too much memory.

    Args:
        count: Number of its cells.
        source: Name of the file.
        limit: How many it may have.

    Raises:
        TableTooLargeError: If there are more.
    """
    if count > limit:
        raise TableTooLargeError(
            f"a packed table must hold at most {limit:,} cells, got {count:,} in {source}. "
            "If it is what you expect, set the environment variable FLOODING_MAX_BYTES to a larger "
            "number."
        )
