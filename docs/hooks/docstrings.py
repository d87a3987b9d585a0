"""Docstrings as the site shows them: a griffe extension of mkdocstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

__all__ = ["Docstrings", "comment_of"]


def comment_of(lines: list[str], first: int, last: int) -> str:
    """Read the comment of a constant: at the end of its line, or above it.

    A comment above several constants of one line each is that of all of them.

    Args:
        lines: Of the file.
        first: First line of the assignment, from 1.
        last: Its last line.

    Returns:
        The comment's text, empty where there is none.
    """
    match = re.search(r"  # (.*)$", lines[last - 1])
    if match and not match[1].startswith("noqa"):
        return match[1]
    index = first - 2
    while index >= 0 and re.match(r"\w+(: [^=]+)? = .*[^(\[{]$", lines[index]):
        index -= 1
    above = []
    while index >= 0 and lines[index].startswith("#"):
        above.insert(0, lines[index].lstrip("# "))
        index -= 1
    return " ".join(above)


def _plain(text: str) -> str:
    """Turn Sphinx's roles into code, and an example into the section that griffe knows."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Docstrings without Sphinx's roles; a constant's comment is its documentation."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change one object's docstring.

        Args:
            obj: A module, class, function or constant.
            **_: What else griffe passes.
        """
        if obj.docstring is not None:
            obj.docstring.value = _plain(obj.docstring.value)
            # The fields of a named tuple are no arguments that griffe sees.
            if obj.is_class and any(str(base).endswith("NamedTuple") for base in obj.bases):
                text = obj.docstring.value
                obj.docstring.value = re.sub(r"^Args:$", "Attributes:", text, flags=re.MULTILINE)
        elif obj.is_attribute and obj.lineno is not None and isinstance(obj.filepath, Path):
            lines = obj.filepath.read_text().splitlines()
            text = comment_of(lines, obj.lineno, obj.endlineno or obj.lineno)
            if text:
                obj.docstring = griffe.Docstring(text[0].upper() + text[1:], parent=obj)
