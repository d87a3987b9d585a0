"""Make text of unknown origin, such as names in a user's file, safe for a terminal or a page."""

from __future__ import annotations

import re

__all__ = ["one_line", "printable"]


def printable(text: object) -> str:
    r"""Escape, as ``repr`` does, every character that a terminal would interpret or not show.

    These are control characters (escape sequences, line breaks, tabs), marks that change the
    direction of writing, invisible characters and undecodable bytes of file names.

    Args:
        text: A name or a sentence.

    Returns:
        One line of printable characters.

    Example:
        >>> print(printable("naïve\x1b[31m\u202e\n"))
        naïve\x1b[31m\u202e\n
    """
    text = str(text)
    if text.isprintable():
        return text
    characters = []
    for c in text:
        characters.append(c if c.isprintable() else c.encode("unicode_escape").decode())
    return "".join(characters)


def one_line(text: object) -> str:
    r"""Put a message of several lines on one, and make it printable.

    Args:
        text: A message, such as that of an exception.

    Returns:
        One line; each line break with the blanks around it has become a space.

    Example:
        >>> one_line("Error(s) in loading:\n\tsize mismatch")
        'Error(s) in loading: size mismatch'
    """
    return printable(re.sub(r"\s*[\r\n]\s*", " ", str(text).strip()))
