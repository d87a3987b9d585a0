"""Ctrl-C while a command runs: the first one ends the work in order, the second one at once."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

from flooding.cli._console import errors

__all__ = ["MESSAGE", "count", "note_interrupts", "raise_again"]

MESSAGE = "Interrupted. Finished runs are in the ledger: the same command goes on from there."
_count = 0


def count() -> int:
    """Number of interrupts since the command began."""
    return _count


def raise_again() -> None:
    """Raise KeyboardInterrupt if there was one before.

    Code that catches every exception, as libraries do while they import others, may have caught the
    first one. Called with each row of a training, this ends the work all the same.

    Raises:
        KeyboardInterrupt: If the work should have ended already.
    """
    if _count:
        raise KeyboardInterrupt


@contextmanager
def note_interrupts() -> Generator[None, None, None]:
    """Count Ctrl-C while a command runs; the second one ends the program at once."""
    global _count
    _count = 0
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def on_signal(*_: object) -> None:
        global _count
        _count += 1
        if _count > 1:
            with contextlib.suppress(Exception):
                errors.show_cursor()
                os.write(2, f"{MESSAGE}\n".encode())
            os._exit(130)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        # After an interrupt the next one ends the program at once, also in the middle of its end.
        if not _count:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # Registered last, so called first at the end of the interpreter.
        atexit.unregister(_ignore_interrupts)
        atexit.register(_ignore_interrupts)


def _ignore_interrupts() -> None:
    """Let Ctrl-C do nothing any more: the work is done or given up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
