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
class _Watched:
    run: Run
    epoch: int
    since: float
    patience: float


class Watchdog:
    """Knows when each Run in training was last heard of.

    Who waits for news calls :meth:`report` after :meth:`seconds_left`; :meth:`in_background` does
    so in a thread.
    """

    def __init__(self) -> None:
        self._runs: dict[Hashable, _Watched] = {}

    def start(self, trainer: Hashable, run: Run) -> None:
        """Begin to watch a Run.

        Args:
            trainer: Who trains it.
            run: The Run.
        """
        self._runs[trainer] = _Watched(run, 0, time.monotonic(), PATIENCE)

    def feed(self, trainer: Hashable, epoch: int = 0) -> None:
        """Note a sign of life.

        Args:
            trainer: Who trains.
            epoch: The epoch that ended, if one did.
        """
        watched = self._runs[trainer]
        watched.epoch = max(watched.epoch, epoch)
        watched.since, watched.patience = time.monotonic(), PATIENCE

    def stop(self, trainer: Hashable) -> None:
        """End watching; a trainer that is not watched is no error."""
        self._runs.pop(trainer, None)

    def seconds_left(self) -> float:
        """Give the time until a report is due.

        Returns:
            Seconds, at least 0.
        """
        now = time.monotonic()
        due = [watched.since + watched.patience - now for watched in list(self._runs.values())]
        return max(0.0, min(due, default=PATIENCE))

    def report(self) -> None:
        """Log every Run without news for too long, and wait twice as long before the next report of
        it.
        """
        now = time.monotonic()
        for watched in list(self._runs.values()):
            if now - watched.since >= watched.patience:
                watched.patience *= 2
                log.warning(
                    "no news for %.0f s from the run with level %s and seed %d after epoch %d; still waiting. Is an "
                    "epoch that long, or does the problem's code wait for something?",
                    now - watched.since,
                    watched.run.level,
                    watched.run.seed,
                    watched.epoch,
                )

    @contextmanager
    def in_background(self) -> Generator[None, None, None]:
        """Report from a thread while the block trains in this one.

        Yields:
            Nothing.
        """
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(max(0.05, self.seconds_left())):
                self.report()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
