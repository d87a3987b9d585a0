"""How the command line ends: one line for every error, and an exit code.

0: done. 1: an error in code of the user's own, or a bug. 2: bad input. 130: interrupted.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import typer

from flooding.cli import _interrupts
from flooding.cli._console import console, discard_output, errors
from flooding.text import one_line, printable

__all__ = ["finish_output", "open_streams", "report_error", "show_warnings"]

_TRACEBACK_HINT = "With FLOODING_TRACEBACK=1 set, its traceback is printed, too."
_PACKAGE = Path(__file__).parents[1]


def report_error(error: BaseException) -> int:
    """Print one line about what ended a command, and with ``FLOODING_TRACEBACK`` set its traceback.

    Args:
        error: What was raised.

    Returns:
        The exit code.
    """
    if isinstance(error, typer.Exit):
        return error.exit_code
    # A console of typer's ends the program where its reader leaves, as `--help | head` does.
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        return 0
    if isinstance(error, BrokenPipeError) and _reader_left():
        return 0
    if os.environ.get("FLOODING_TRACEBACK"):
        for line in "".join(traceback.format_exception(error)).splitlines():
            errors.print_line(line)
    # A library that is interrupted while it is imported may raise an error of its own instead.
    if isinstance(error, KeyboardInterrupt) or _interrupts.count():
        errors.print_line(_interrupts.MESSAGE)
        return 130
    message, code = _explain(error)
    if message:
        errors.print_line("error: ", style="red", end="")
        errors.print_line(message)
    return code


def _reader_left() -> bool:
    """Tell whether the reader of the output has left, as ``head`` does; then drop the rest."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
        return True
    return False


def _explain(error: BaseException) -> tuple[str, int]:
    """Say what happened in one line, and give the exit code."""
    kind, text = type(error).__name__, one_line(error)
    summary = f"{kind}: {text.rstrip('.')}" if text else kind
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's, of an option
        return _explain_usage(error, one_line(format_message())), 2
    locations = _locations(error)
    own = _own_location(locations)
    source = f" It comes from your code, {own}." if own else ""
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return (
            f"there is too little memory: {summary}. "
            f"Choose a smaller network, batch or data set.{source}",
            2,
        )
    # What this package raises itself has a rule, a value and a fix: nothing is added.
    if _is_deliberate(locations):
        return f"{text or kind}{source}", 2
    # Any other error whose innermost frames include the user's code is that code's.
    if own:
        return f"in your code, {own}: {summary}. {_TRACEBACK_HINT}", 1
    if isinstance(error, RuntimeError) and "home directory" in text:
        return f"there is no home folder: {text} Set HOME, or name the ledger: --ledger FILE.", 2
    if isinstance(error, (ValueError, ImportError, OSError)):
        return text or kind, 2
    bug = "If no code of your own is part of it, this is a bug."
    return f"unexpected {summary}. {bug} {_TRACEBACK_HINT}", 1


def _explain_usage(error: BaseException, text: str) -> str:
    """Repeat what typer says of an option that is missing, unknown or of another type."""
    if not text:  # the help was printed instead
        return ""
    context = getattr(error, "ctx", None)
    return f"{text} See {context.command_path if context else 'flooding'} --help."


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    is_about_memory = "out of memory" in text or "can't allocate" in text
    return isinstance(error, RuntimeError) and is_about_memory


def _locations(error: BaseException) -> list[tuple[str, int]]:
    """List the files and lines that an error came from, here or in a worker, innermost last."""
    locations = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    for note in getattr(error, "__notes__", ()):  # a worker's traceback
        for file, line in re.findall(r'File "(.+?)", line (\d+)', note):
            locations.append((file, int(line)))
    if isinstance(error, SyntaxError) and error.filename:
        locations.append((error.filename, error.lineno or 0))
    return locations


def _own_location(locations: list[tuple[str, int]]) -> str | None:
    """Find the last line of the user's own code."""
    own = [location for location in locations if not _is_library(location[0])]
    return f"{printable(own[-1][0])}, line {own[-1][1]}" if own else None


def _is_deliberate(locations: list[tuple[str, int]]) -> bool:
    """Tell whether this package raised the error itself, and so has said what is wrong."""
    if not locations or not Path(locations[-1][0]).is_relative_to(_PACKAGE):
        return False
    return linecache.getline(*locations[-1]).lstrip().startswith("raise ")


def _is_library(file: str) -> bool:
    """Tell whether a file is Python's, an installed package's or this package's."""
    path = Path(file)
    if file.startswith("<") or {"site-packages", "dist-packages"} & {*path.parts}:
        return True
    return any(path.is_relative_to(folder) for folder in (_PACKAGE, sysconfig.get_path("stdlib")))


@contextmanager
def show_warnings() -> Generator[None, None, None]:
    """Print Python's warnings as one line each, without the line of code."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        errors.print_line(f"warning: {one_line(message)}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def open_streams() -> None:
    """Make standard streams that a shell closed, and let none fail at an odd character."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Open as long as the program runs.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def finish_output() -> None:
    """Write what is waiting, so that an error of a full disk is reported as any other."""
    for stream in (console.file, errors.file):
        try:
            stream.flush()
        except BrokenPipeError:
            discard_output(stream)
