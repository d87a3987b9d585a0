"""Every test starts with one thread: one and two give different bits."""

import logging
import os
import shlex
import signal
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

# Keras takes tensorflow unless told otherwise, before it is imported.
os.environ.setdefault("KERAS_BACKEND", "torch")
# Compiling takes most of the time of JAX's tests; what they compare is exact without it, too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Only tests are collected, which import their helpers. Else every worker would import each helper
# once more to look for examples in its docstrings, and with them Keras, Lightning and transformers.
_FILES = [path.name for path in Path(__file__).parent.glob("*.py")]
collect_ignore = [name for name in _FILES if not name.startswith("test_")]

# No deadline: the machines are shared. The same examples in CI, so that what it says depends on the
# change alone.
hypothesis.settings.register_profile("shared", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def browser():
    """A headless chromium, see browser.py; a test that needs it is skipped where it is missing."""
    import browser as chromium

    reason = chromium.missing()
    if reason:
        pytest.skip(reason)
    with chromium.launch() as started:
        yield started


@pytest.fixture
def time_limit():
    """Fail a test that hangs, as a fault in the messages between processes does.

    The alarm interrupts whatever the main thread waits for. It repeats, so that a hang while the
    test is cleaned up ends as well.
    """

    def interrupt(number, frame):
        pytest.fail("the test took longer than 100 s: something hangs")

    if not hasattr(signal, "SIGALRM"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 100, 10)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def flooding(tmp_path, monkeypatch, capsys):
    """Run the command line in a folder of its own; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))

    from flooding import cli  # few tests need it

    # A command lets the library's log print; a later test of the same process must not see that.
    log = logging.getLogger("flooding")
    handlers, level = log.handlers, log.level

    def run(line):
        monkeypatch.setattr(sys, "argv", ["flooding", *shlex.split(line)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, " ".join(captured.out.split()), " ".join(captured.err.split())

    yield run
    log.handlers = handlers
    log.setLevel(level)
