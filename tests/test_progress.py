"""What is shown while Runs train: how much, where, when, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from functools import partial

import pytest

from flooding import Run, find_level, run_all, search
from flooding.cli import _console
from flooding.level_search.external import ExternalProblem, ObjectiveAdapter
from flooding.level_search.grid import grid
from flooding.training import progress as progress_module
from flooding.training.loop import EpochResult
from flooding.training.progress import EpochCounter, show_progress
from flooding.training.progress_bars import Lines
from reporting import reporting
from small import small

SHOW_CURSOR = "\x1b[?25h"
here = partial(run_all, ledger=False, workers=0)


class Screen:
    """Standard error as a terminal that remembers what was written on it."""

    def __init__(self, capsys):
        self._capsys, self._err, self.out = capsys, "", ""

    def getvalue(self):
        """What was written."""
        out, err = self._capsys.readouterr()
        self.out += out
        self._err += err
        return self._err

    def clear(self):
        """Forget what was written."""
        self.getvalue()
        self._err = ""

    @property
    def text(self):
        """What was written, without escape sequences and line breaks."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]", "", self.getvalue())


@pytest.fixture
def screen(capsys, monkeypatch):
    """Standard error as a terminal of 100 columns, and standard output as a pipe."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    # pytest replaces the streams before the test begins, so that their class is patched.
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: self is not sys.stdout)
    yield Screen(capsys)
    # Whatever happened, nothing of the bar is left.
    assert progress_module._CURRENT.get() is None
    assert not progress_module._SCREEN.locked()
    names = [thread.name for thread in threading.enumerate()]
    assert progress_module._THREAD_NAME not in names


@pytest.fixture
def clock():
    """A clock that stands still until it is moved."""
    return [0.0]


@pytest.fixture
def counter(clock):
    return EpochCounter(lambda: clock[0])


def run_of(epochs, seed=0):
    return Run(small(max_epochs=epochs), seed=seed)


# Counting


def test_the_estimate_begins_with_the_first_row(counter, clock):
    first, second = run_of(10), run_of(10, seed=1)
    counter.add([first, second])
    assert counter.text() == "0 of 20 epochs"
    clock[0] = 100.0  # until the workers are there
    counter.update(first, 0)
    clock[0] = 122.0
    counter.update(first, 1)
    assert counter.text() == "1 of 20 epochs, about 7 min left"
    assert counter.seconds_left() == pytest.approx(22 * 19)
    clock[0] = 130.0
    counter.update(second, 3)
    assert counter.seconds_left() == pytest.approx(30 / 4 * 16)


def test_runs_that_were_looked_up_are_done_and_say_nothing_about_the_speed(counter, clock):
    run = run_of(10)
    counter.add([run], num_cached=90)
    assert counter.text() == "90 of 100 epochs"
    counter.update(run, 0)
    clock[0] = 2.0
    counter.update(run, 1)
    assert counter.seconds_left() == pytest.approx(2 * 9)


def test_a_run_that_goes_on_from_a_checkpoint_did_not_train_that_fast(counter, clock):
    run = run_of(100)
    counter.add([run])
    counter.update(run, 90)
    clock[0] = 3.0
    counter.update(run, 91)
    assert counter.text() == "91 of 100 epochs, about 27 s left"


def test_epochs_that_a_new_worker_trains_again_count_once(counter):
    run = run_of(10)
    counter.add([run])
    for epoch in (0, 1, 2, 3, 0, 1, 2, 3, 4):
        counter.update(run, epoch)
    assert counter.num_done == 4


def test_a_planned_search_takes_at_most_what_is_planned(counter, clock):
    plain, flooded = run_of(10), run_of(10, seed=1)
    counter.num_planned, counter.is_open = 30, True
    counter.add([plain])
    for epoch in range(11):
        counter.update(plain, epoch)
        clock[0] += 1
    assert counter.text() == "10 of 30 epochs, at most 22 s left"
    # The second round is longer than planned, and the last.
    counter.add([flooded, *[run_of(10, seed) for seed in range(2, 5)]])
    assert counter.text() == "10 of 50 epochs, about 44 s left"
    counter.end(is_finished=True)
    assert counter.text() == "10 epochs in 11 s"
    assert counter.total == counter.num_done == 10


def test_of_an_unknown_search_only_the_round_is_estimated(counter, clock):
    run = run_of(10)
    counter.is_open = True
    counter.add([run])
    counter.update(run, 0)
    clock[0] = 5.0
    counter.update(run, 5)
    assert counter.text() == "5 of 10 epochs, about 5 s left in this round"


# Showing


def test_a_bar_in_a_terminal(screen):
    here([run_of(6), run_of(6, seed=1)], progress=True)
    assert "training" in screen.text
    assert re.search(r"━ 12 epochs in \d+ s$", screen.text.rstrip())
    assert "━" in screen.text
    assert screen.getvalue().endswith(SHOW_CURSOR)
    assert screen.out == ""


@pytest.mark.parametrize(("delay", "is_shown"), [(30.0, False), (0.02, True)])
def test_the_default_waits(screen, monkeypatch, delay, is_shown):
    monkeypatch.setattr(progress_module, "_DELAY", delay)
    here([run_of(3)], on_row=lambda row: time.sleep(0.1))
    assert bool(screen.getvalue()) is is_shown


def test_the_default_waits_for_two_seconds():
    assert progress_module._DELAY == 2.0


def test_a_long_epoch_is_shown_before_it_ends(screen, monkeypatch):
    monkeypatch.setattr(progress_module, "_DELAY", 0.05)
    with show_progress(None) as display:
        display.on_start([run_of(10)])
        time.sleep(0.5)
        assert "0 of 10 epochs" in screen.text


def test_false_is_silent_also_in_the_calls_inside(screen, monkeypatch):
    monkeypatch.setattr(progress_module, "_DELAY", 0.0)
    search(grid(small(), [0.1]), partial(run_all, ledger=False, workers=0), progress=False)
    with show_progress(False):
        here([run_of(3)], progress=True)
    assert screen.getvalue() == ""


@pytest.mark.parametrize("progress", ["auto", 1, 0.0])
def test_anything_else_is_refused(progress):
    with pytest.raises(ValueError, match="progress must be True, False or None, got"):
        here([run_of(3)], progress=progress)


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_into_a_pipe(monkeypatch, capfd, progress):
    monkeypatch.setattr("flooding.training.progress_bars._SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(progress_module, "_DELAY", 0.0)
    here([run_of(3)], progress=progress, on_row=lambda row: time.sleep(0.02))
    assert capfd.readouterr() == ("", "")


def test_true_prints_lines_into_a_pipe(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def wait(row):
        now[0] += 4.0

    here([run_of(9)], progress=True, on_row=wait)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "3 of 9 epochs, about 24 s left",
        "6 of 9 epochs, about 12 s left",
        "9 of 9 epochs",
    ]


def test_lines_say_nothing_where_nothing_was_done(monkeypatch, counter):
    now, lines = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    counter.add([run_of(10)])
    painter = Lines(counter, lines.append)
    for now[0] in (0.0, 11.0, 22.0):
        painter.refresh()
    assert lines == []


@pytest.mark.parametrize("columns", [20, 50, 75, 200])
def test_numbers_are_not_cut_in_a_narrow_terminal(screen, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    run = run_of(100000)
    with show_progress(True) as display:
        display.counter.is_open = True
        display.on_start([run])
        display.update(run, 0)
        time.sleep(0.02)
        display.update(run, 12345)
        display._draw(display._painter.refresh)
    words = screen.text.replace(" ", "")
    assert re.search(r"12345of100000epochs,about\d+sleftinthisround", words)


def test_without_rich_there_are_lines(screen, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr("flooding.training.progress_bars._SECONDS_BETWEEN_LINES", 0)
    here([run_of(3)], progress=True)
    assert re.fullmatch(r"(\d of 3 epochs(, about \d+ s left)?\n)+", screen.getvalue())


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_simple_terminal_has_lines(screen, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("flooding.training.progress_bars._SECONDS_BETWEEN_LINES", 0)
    here([run_of(3)], progress=True)
    assert "3 of 3 epochs\n" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()


def test_what_the_user_prints_goes_where_it_went(screen):
    here([run_of(3)], progress=True, on_row=lambda row: print(f"epoch {row.epoch}"))
    assert "epoch 0" not in screen.text
    assert screen.out == "epoch 0\nepoch 1\nepoch 2\nepoch 3\n"


def test_the_bits_are_the_same(screen):
    runs = [run_of(6), Run(small(), 0.5)]
    shown, silent = here(runs, progress=True), here(runs, progress=False)
    assert [one.content_hash for one in shown] == [one.content_hash for one in silent]


# Ends


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_closes_the_bar(screen, error):
    def fail(row):
        if row.epoch == 2:
            raise error

    with pytest.raises(error):
        here([run_of(6)], progress=True, on_row=fail)
    assert screen.text.rstrip().endswith("stopped after 2 of 6 epochs")
    assert not hasattr(sys.stderr, "rich_proxied_file")
    assert screen.getvalue().endswith(SHOW_CURSOR)


def test_a_screen_that_goes_away_ends_no_training(caplog, screen, monkeypatch):
    def fail(text):
        raise OSError("the terminal hung up")

    # A command line that ran before in this process would print the log on that terminal.
    log = logging.getLogger("flooding")
    monkeypatch.setattr(log, "handlers", [])
    with caplog.at_level(logging.DEBUG, "flooding"):
        with show_progress(True) as display:
            display.on_start([run_of(6)])
            monkeypatch.setattr(sys.stderr.rich_proxied_file, "write", fail)
            time.sleep(0.4)
        assert [record.message for record in caplog.records]
    monkeypatch.undo()


# Calls inside calls


def test_a_search_has_one_bar_of_all_its_epochs(screen, tmp_path, monkeypatch):
    # The search may take less time than passes between two drawings.
    monkeypatch.setattr("flooding.training.progress._REFRESH_TIME", 0.002)
    options = {"ledger": tmp_path / "ledger.sqlite", "workers": 0, "progress": True}
    result = find_level(small(max_epochs=10), **options)
    epochs = sum(record.run.epochs for record in result.records)
    assert f"{epochs} epochs in" in screen.text
    assert screen.getvalue().count(SHOW_CURSOR) == 1
    assert "of 30 epochs" in screen.text  # three trainings are planned

    # The second time all of them are looked up, and done.
    screen.clear()
    find_level(small(max_epochs=10), **options)
    assert f"{epochs} epochs in" in screen.text


def test_workers_report_their_epochs_and_draw_nothing(screen):
    seen = []
    with show_progress(True) as display:
        display.counter.update = lambda run, epoch: seen.append(epoch)
        runs = [Run(reporting(max_epochs=3), seed=seed) for seed in range(2)]
        run_all(runs, ledger=False, workers=1)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]
    # What the workers print on standard error comes here, too.
    assert "shown: False" in screen.text


def test_workers_send_no_rows_that_nobody_sees(monkeypatch):
    seen = []
    monkeypatch.setattr(EpochCounter, "update", lambda self, run, epoch: seen.append(epoch))
    here([run_of(6)])
    assert seen == []


def test_equal_runs_are_trained_once_and_counted_twice(screen):
    here([run_of(6), run_of(6)], progress=True)
    assert "12 epochs in" in screen.text


def test_of_two_threads_one_draws(screen):
    with show_progress(True):
        shown = []

        def other():
            with show_progress(True) as display:
                shown.append(display.is_shown)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert shown == [False]


def test_no_bar_over_another_one_of_rich(screen):
    from rich.progress import Progress

    with Progress(auto_refresh=False, console=_console.Terminal(stderr=True)) as bar:
        bar.add_task("mine", total=3)
        with show_progress(None) as display:
            assert not display.is_shown


def test_a_child_of_multiprocessing_draws_nothing(screen, monkeypatch):
    with show_progress(True) as display:
        assert display.is_shown
    monkeypatch.setattr(progress_module.multiprocessing, "parent_process", lambda: "a parent")
    with show_progress(True) as display:
        assert not display.is_shown


# Training code of the user's own


def test_a_training_function_is_counted_run_by_run(screen):
    texts = []

    def train(level, seed, epochs):
        texts.append(progress_module._CURRENT.get().counter.text())
        time.sleep(0.01)
        return -abs(level - 0.2)

    result = search(grid(ExternalProblem(100), [0.1, 0.2, 0.3]), train, progress=True)
    assert result.level == 0.2
    assert texts[0] == "0 of 300 epochs"
    for done, text in zip((100, 200), texts[1:], strict=True):
        assert re.fullmatch(rf"{done} of 300 epochs, about \d+ s left in this round", text)
    assert "300 epochs in" in screen.text


def test_what_a_training_function_has_stored_says_nothing_about_the_speed(screen):
    def train(level, seed, epochs):
        time.sleep(0.02)
        return -level

    adapter = ObjectiveAdapter(train)
    adapter([Run(ExternalProblem(100), level) for level in (0.1, 0.2)])
    with show_progress(True) as display:
        search(grid(ExternalProblem(100), [0.1, 0.2]), adapter)
        assert display.counter.num_done == 200
        assert display.counter._speed() is None


def test_a_runner_of_the_users_own_is_counted_when_it_is_done(screen):
    def runner(runs):
        return here(runs, progress=False)

    search(grid(small(max_epochs=6), [0.1, 0.2]), runner, progress=True)
    assert "12 epochs in" in screen.text


def test_this_librarys_runner_is_counted_once(screen):
    search(grid(small(max_epochs=6), [0.1, 0.2]), here, progress=True)
    assert "12 epochs in" in screen.text


# The command line


def test_the_command_line_counts_what_it_passes_on_once(screen):
    with _console.progress() as (on_start, on_row):
        here([run_of(6), run_of(6)], on_start=on_start, on_row=on_row)
    assert "training 1 runs, 6 epochs" in screen.text
    assert re.search(r" 6 epochs in \d+ s$", screen.text.rstrip())
    assert screen.getvalue().count(SHOW_CURSOR) == 1


def test_the_command_line_shows_a_search_on_its_own_bar(screen):
    with _console.progress():
        search(grid(small(max_epochs=6), [0.1, 0.2]), here)
    assert "training 2 runs, 12 epochs" in screen.text
    assert "12 epochs in" in screen.text
    assert screen.getvalue().count(SHOW_CURSOR) == 1


def test_the_command_line_prints_lines_into_a_pipe(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = run_of(10)
    with _console.progress() as (on_start, on_row):
        on_start([run, run])
        for epoch in [0, 0, 1, *range(2, 6)]:  # two begin; the first epoch comes late
            now[0] += 11.0
            on_row(EpochResult(run, epoch, {}))
    captured = capsys.readouterr().err.splitlines()
    assert captured[0] == "training 2 runs, 20 epochs"
    assert captured[1] == "1 of 20 epochs, about 7 min left"  # 22 s for one epoch
    assert captured[-1] == "5 of 20 epochs, about 3 min left"


def test_forced_colours_draw_no_bar_into_a_pipe(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_console.progress())
        here([run_of(3)])
    assert "\x1b" not in capsys.readouterr().err
