"""Says when a Run has had no news for a while, so that nothing that hangs does so in silence."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass

from flooding.training.run import Run

__all__ = ["Watchdog"]

log = logging.getLogger("flooding")
PATIENCE = 60.0  # seconds without news after which the log says so, then twice as many, and so on


@dataclass
class _Entry:
    run: Run
    epoch: int
    last_news: float  # time
    patience: float  # seconds


class Watchdog:
    """Knows when each Run in training last had news.

    Who waits for news calls :meth:`report` after :meth:`seconds_left`; :meth:`in_background` does
    so in a thread.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def start(self, worker: Hashable, run: Run) -> None:
        """Begin to watch a Run.

        Args:
            worker: Who trains it.
            run: The Run.
        """
        self._entries[worker] = _Entry(run, 0, time.monotonic(), PATIENCE)

    def feed(self, worker: Hashable, epoch: int = 0) -> None:
        """Note a sign of life.

        Args:
            worker: Who trains.
            epoch: The epoch that ended, if one did.
        """
        entry = self._entries[worker]
        entry.epoch = max(entry.epoch, epoch)
        entry.last_news, entry.patience = time.monotonic(), PATIENCE

    def stop(self, worker: Hashable) -> None:
        """End watching; a worker that is not watched is no error."""
        self._entries.pop(worker, None)

    def seconds_left(self) -> float:
        """Give the time until a report is due.

        Returns:
            Seconds, at least 0.
        """
        # A copy, since another thread may add entries.
        entries = list(self._entries.values())
        if not entries:
            return PATIENCE
        due = min(entry.last_news + entry.patience for entry in entries)
        return max(0.0, due - time.monotonic())

    def report(self) -> None:
        """Log every Run without news for too long; wait twice as long before its next report."""
        now = time.monotonic()
        for entry in list(self._entries.values()):
            if now - entry.last_news >= entry.patience:
                # One line also after a night in which the machine slept.
                entry.patience = 2 * (now - entry.last_news)
                log.warning(
                    "no news for %.0f s from the run with level %s and seed %d after epoch %d; "
                    "still waiting. Is an epoch that long, or does the problem's code wait for "
                    "something?",
                    now - entry.last_news,
                    entry.run.level,
                    entry.run.seed,
                    entry.epoch,
                )

    @contextmanager
    def in_background(self) -> Generator[None, None, None]:
        """Report from a thread while the block trains in this one.

        Yields:
            Nothing.
        """
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(max(0.05, self.seconds_left())):
                self.report()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
