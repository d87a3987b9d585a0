"""The progress of Runs: how many epochs are done, and how long the rest will take.

A call that trains opens one display, and the calls inside it share that display: ``find_level``
opens it, and each ``run_all`` of the search counts its epochs on it.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Container, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from flooding.text import format_duration
from flooding.training.progress_bars import Painter, Write, make_painter

if TYPE_CHECKING:
    from rich.console import Console

    from flooding.training.loop import EpochResult
    from flooding.training.run import Run

__all__ = ["EpochCounter", "ProgressDisplay", "disable", "show_progress"]

OnRow: TypeAlias = "Callable[[EpochResult], object]"

log = logging.getLogger("flooding")
_DELAY = 2.0  # seconds of work before the default shows itself
_REFRESH_TIME = 0.25  # seconds between two drawings
_THREAD_NAME = "flooding progress"


class EpochCounter:
    """Counts the epochs of Runs and estimates the time that is left.

    The estimate extrapolates the current round of Runs from its first row on, since starting
    workers takes seconds that do not recur. Runs that were looked up are done, but say nothing
    about the speed.

    Args:
        clock: Gives the time in seconds; None is the system's.

    Example:
        >>> counter = EpochCounter()
        >>> counter.add([], num_cached=30)
        >>> counter.text()
        '30 of 30 epochs'
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._start_time = self._clock()
        self.num_epochs = 0  # of all Runs so far
        self.num_done = 0
        self.num_planned = 0  # epochs in all, where more Runs will follow
        self.is_open = False  # whether more Runs may follow
        self._end: Literal["finished", "stopped"] | None = None
        # How far each Run is. The Run is kept: another one may not get its id.
        self._epochs: dict[int, tuple[Run, int]] = {}
        # The first row of the round, and what was done since then.
        self._first_row_time: float | None = None
        self._num_since_first_row = 0
        self._seconds_per_epoch: float | None = None  # of the last round

    @property
    def total(self) -> int:
        """Number of epochs in all, as far as it is known."""
        if self._end == "finished":
            return self.num_done
        return max(self.num_epochs, self.num_planned)

    def add(self, runs: Sequence[Run], num_cached: int = 0) -> None:
        """Begin a round.

        Args:
            runs: Runs that are about to train.
            num_cached: Epochs of those that need no training.
        """
        self._seconds_per_epoch = self._speed()
        self._first_row_time, self._num_since_first_row = None, 0
        self.num_epochs += num_cached + sum(run.epochs for run in runs)
        self.num_done += num_cached

    def update(self, run: Run, epoch: int) -> None:
        """Note how far a Run is.

        Args:
            run: The Run.
            epoch: Its last epoch that is done. The first row of a Run that goes on from a
                checkpoint or a shared prefix jumps to its epoch.
        """
        _, before = self._epochs.get(id(run), (run, 0))
        # A worker that died trains some epochs again.
        advance = max(0, epoch - before)
        self._epochs[id(run)] = (run, before + advance)
        self.num_done += advance
        if self._first_row_time is None:
            self.start_clock()
        else:
            self._num_since_first_row += advance

    def skip(self, run: Run) -> None:
        """Count a Run as done that turned out to need no training."""
        self.num_done += run.epochs
        if self._num_since_first_row == 0:
            self._first_row_time = None

    def start_clock(self) -> None:
        """Let the estimate of this round count from now on, unless it does already."""
        if self._first_row_time is None:
            self._first_row_time = self._clock()

    def end(self, *, is_finished: bool) -> None:
        """End the work.

        Args:
            is_finished: Whether all of it is done, though perhaps fewer epochs than planned.
        """
        self._end = "finished" if is_finished else "stopped"

    def _speed(self) -> float | None:
        """Give the seconds for an epoch, None if nothing is known."""
        # Copies: another thread draws while a round begins.
        start_time, num_epochs = self._first_row_time, self._num_since_first_row
        if start_time is None or num_epochs == 0:
            return self._seconds_per_epoch
        return (self._clock() - start_time) / num_epochs

    def seconds_left(self) -> float | None:
        """Estimate how long the epochs that are left will take.

        Returns:
            Seconds, or None before anything is known.
        """
        speed = self._speed()
        return None if speed is None else speed * (self.total - self.num_done)

    def text(self) -> str:
        """Say how far the work is and how long the rest will take.

        Returns:
            One line.
        """
        if self._end == "finished":
            duration = format_duration(self._clock() - self._start_time)
            return f"{self.num_done} epochs in {duration}"
        text = f"{self.num_done} of {self.total} epochs"
        if self._end == "stopped":
            return f"stopped after {text}"
        if self.total == 0:
            return "starting"
        seconds = self.seconds_left()
        if seconds is None or self.num_done >= self.total:
            return text
        left = f"{format_duration(seconds)} left"
        # A planned search may end early. Of any other one only the current round is known.
        if self.total > self.num_epochs:
            return f"{text}, at most {left}"
        if self.is_open and not self.num_planned:
            return f"{text}, about {left} in this round"
        return f"{text}, about {left}"


class ProgressDisplay:
    """What the calls of one piece of work report their epochs to.

    Args:
        counter: Counts them.
        painter: Draws them; None shows nothing.
        write: Prints a line for each round of Runs; None prints none.
    """

    def __init__(
        self, counter: EpochCounter, painter: Painter | None, write: Write | None = None
    ) -> None:
        self.counter = counter
        self._painter, self._write = painter, write
        # Called before each row; what it raises ends the work.
        self.before_row: Callable[[], object] | None = None
        self._is_over = threading.Event()
        self._is_drawn = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    @property
    def is_shown(self) -> bool:
        """Whether it needs to know the rows."""
        return self._painter is not None

    def on_start(self, runs: Sequence[Run], num_cached: int = 0) -> None:
        """Begin a round.

        Args:
            runs: Runs that are about to train.
            num_cached: Epochs of those that need no training.
        """
        self.counter.add(runs, num_cached)
        if runs and self._write is not None:
            epochs = sum(run.epochs for run in runs)
            self._write(f"training {len(runs)} runs, {epochs} epochs")

    def on_row(self, row: EpochResult) -> None:
        """Count the epochs of a row."""
        if self.before_row is not None:
            self.before_row()
        self.update(row.run, row.epoch)

    def follow(
        self, runs: Sequence[Run], indices: Container[int], on_row: OnRow | None
    ) -> OnRow | None:
        """Begin a round, and count what it trains.

        Args:
            runs: All Runs of the round.
            indices: Those of the Runs that are about to train; the others need no training.
            on_row: A callback of the user's.

        Returns:
            What to call with every row, None if nobody needs them.
        """
        # A caller that passes this display's own callback, as the command line does, began it.
        if on_row == self.on_row:
            return on_row
        trained = [run for index, run in enumerate(runs) if index in indices]
        cached = [run.epochs for index, run in enumerate(runs) if index not in indices]
        self.on_start(trained, sum(cached))
        if not self.is_shown:
            return on_row
        if on_row is None:
            return self.on_row
        call_user = on_row

        def count_and_call(row: EpochResult) -> None:
            self.on_row(row)
            call_user(row)

        return count_and_call

    def update(self, run: Run, epoch: int) -> None:
        """Note how far a Run is."""
        self.counter.update(run, epoch)
        if self._painter is not None and not self._painter.is_live:
            self._draw(self._painter.refresh)

    def open(self, delay: float) -> None:
        """Show itself.

        Args:
            delay: Seconds to wait before.
        """
        if self._painter is None or not self._painter.is_live:
            return
        if delay == 0:
            self._draw(self._painter.start)
        # A notebook knows by the context to which cell an output belongs.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run,
            args=(self._keep_drawing, self._painter, delay),
            name=_THREAD_NAME,
            daemon=True,
        )
        self._thread.start()

    def _keep_drawing(self, painter: Painter, delay: float) -> None:
        """Draw again and again, in a thread, since an epoch may be long."""
        if self._is_over.wait(delay):
            return
        if not self._is_drawn:
            self._draw(painter.start)
        while not self._is_over.wait(_REFRESH_TIME):
            self._draw(painter.refresh)

    def _draw(self, action: Callable[[], None]) -> None:
        """Draw, and give drawing up where that fails."""
        try:
            action()
            self._is_drawn = True
        # A training does not end because a screen went away, for which rich has a SystemExit.
        except (Exception, SystemExit):
            log.debug("the progress can no longer be drawn", exc_info=True)
            self._is_over.set()

    def close(self, *, is_finished: bool) -> None:
        """Draw for the last time.

        Args:
            is_finished: Whether all is done: nothing was raised.
        """
        # In a child that the user's code forked there is no thread, and the screen is the parent's.
        if os.getpid() != self._pid:
            return
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        self.counter.end(is_finished=is_finished)
        if self._painter is not None and self._is_drawn:
            self._draw(self._painter.close)


# The display that is open in this thread or task, and the right to draw in this process.
_CURRENT: contextvars.ContextVar[ProgressDisplay | None] = contextvars.ContextVar(
    "flooding_progress", default=None
)
_SCREEN = threading.Lock()
_is_disabled = False


def disable() -> None:
    """Show nothing in this process: it is a worker."""
    global _is_disabled
    _is_disabled = True


@contextmanager
def show_progress(
    progress: bool | None,
    *,
    num_planned: int = 0,
    is_open: bool = False,
    console: Console | None = None,
    write: Write | None = None,
) -> Generator[ProgressDisplay, None, None]:
    """Show the progress of a block, on the display of the caller if one is open.

    Nothing is drawn in a worker process, nor while another thread draws. Whatever happens in the
    block, the display is closed.

    Args:
        progress: True shows it at once, False never. None shows it after two seconds, if standard
            error is a terminal or this is a notebook.
        num_planned: Epochs that the block is planned to train, where that is known beforehand.
        is_open: Whether Runs may follow that are not known yet.
        console: Where to draw a bar in a terminal; None is standard error.
        write: Prints lines about each round; None prints none.

    Yields:
        The display.

    Raises:
        ValueError: If ``progress`` is something else.
    """
    if progress is not None and not isinstance(progress, bool):
        raise ValueError(
            f"progress must be True, False or None, got {progress!r}. None shows it when the work "
            "takes longer than two seconds."
        )
    current = _CURRENT.get()
    if current is None or progress is False:
        opened = _open_display(progress, console, write)
    else:
        opened = contextlib.nullcontext(current)
    with opened as display, _planned(display.counter, num_planned, is_open):
        yield display


@contextmanager
def _open_display(
    progress: bool | None, console: Console | None, write: Write | None
) -> Generator[ProgressDisplay, None, None]:
    """Open a display, and close it in any case.

    Yields:
        The display, which shows nothing where nothing shall be or can be shown.
    """
    is_worker = _is_disabled or multiprocessing.parent_process() is not None
    with contextlib.ExitStack() as stack:
        counter, painter = EpochCounter(), None
        # Two bars of two threads would overwrite each other.
        if progress is not False and not is_worker and _SCREEN.acquire(blocking=False):
            stack.callback(_SCREEN.release)
            painter = make_painter(counter, always=bool(progress), console=console, write=write)
        display = ProgressDisplay(counter, painter, None if painter is None else write)
        stack.callback(_CURRENT.reset, _CURRENT.set(display))
        try:
            display.open(0.0 if progress else _DELAY)
            yield display
        except BaseException:
            display.close(is_finished=False)
            raise
        display.close(is_finished=True)


@contextmanager
def _planned(counter: EpochCounter, num_planned: int, is_open: bool) -> Generator[None, None, None]:
    """Say what is known of the Runs to come, for the length of a block.

    Yields:
        Nothing.
    """
    before = counter.num_planned, counter.is_open
    if num_planned:
        counter.num_planned = counter.num_epochs + num_planned
    counter.is_open |= is_open
    try:
        yield
    finally:
        counter.num_planned, counter.is_open = before
