"""Text for people: names of unknown origin made safe for a terminal or a page, values in short."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

__all__ = ["brief", "format_duration", "join_parts", "one_line", "printable"]


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


def brief(value: object, width: int = 60) -> str:
    """Show a value in a few words on one line, without addresses in memory.

    Args:
        value: Anything.
        width: Characters at most, at least 1.

    Returns:
        A function or a class by its name, a partial as a call, an array by its shape, anything else
        by its ``repr``, or by its class where that is long.

    Example:
        >>> brief(functools.partial(sorted, reverse=True))
        'sorted(reverse=True)'
        >>> brief(object())
        'object(...)'
    """
    if isinstance(value, functools.partial):
        arguments = [brief(argument, width) for argument in value.args]
        arguments += [f"{name}={brief(part, width)}" for name, part in value.keywords.items()]
        text = f"{brief(value.func, width)}({', '.join(arguments)})"
    elif name := getattr(value, "__qualname__", ""):
        text = str(name).rpartition("<locals>.")[2]
    elif shape := getattr(value, "shape", ()):
        text = f"{type(value).__name__}{list(shape)}"
    else:
        text = repr(value)
        if not text.isprintable() or " at 0x" in text or len(text) > width:
            text = f"{type(value).__name__}(...)"
    return text if len(text) <= width else f"{text[: width - 1]}…"


def format_duration(seconds: float) -> str:
    """Write a duration in the unit in which people would say it.

    Args:
        seconds: The duration.

    Returns:
        Seconds below a minute and a half, then minutes, from an hour and a half on hours.

    Example:
        >>> [format_duration(seconds) for seconds in (4.2, 100, 6000)]
        ['4 s', '2 min', '1.7 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def join_parts(parts: Mapping[str, object]) -> str:
    """Show named values as the arguments of a call.

    Args:
        parts: Values by name.

    Returns:
        One line.

    Example:
        >>> join_parts({"level": 0.1, "optimizer": dict})
        'level=0.1, optimizer=dict'
    """
    return ", ".join(f"{name}={brief(value)}" for name, value in parts.items())
