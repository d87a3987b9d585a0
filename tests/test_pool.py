"""What a user's code may do in a worker: nothing hangs, and its words reach the user."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import psutil
import pytest

import hostile
from flooding import Run, find_level, run_all, train
from flooding.training.jobs import Job
from flooding.training.messages import PickledError, batched, unpickle_message
from flooding.training.pool import _QUOTE_LENGTH, Pool, _quote
from flooding.training.watchdog import Watchdog
from small import normed, small

pytestmark = pytest.mark.usefixtures("time_limit")
# Programs that a test starts import from this folder, and the same library as the test.
SEARCH_PATH = filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(SEARCH_PATH)}


@pytest.fixture(scope="module")
def workers():
    """One pool for all: starting a worker takes seconds."""
    pool = Pool()
    yield pool
    pool.close()


def train_in(pool, *problems, limit=1):
    """Train a Run of each problem in a pool's workers, and give their Records; an exception is
    raised."""
    jobs = [
        Job(number, Run(problem, 0.1), None, None, last_row_only=True)
        for number, problem in enumerate(problems)
    ]
    records = {}
    for number, news in pool.run(jobs, limit):
        if isinstance(news, BaseException):
            raise news
        records[number] = news.record or records.get(number)
    return [records[number] for number in range(len(problems))]


LOADERS = {
    "fork": partial(hostile.from_loaders, workers=1, context="fork"),
    "fork, persistent": partial(hostile.from_loaders, workers=2, context="fork", persistent=True),
    "spawn": partial(hostile.from_loaders, workers=1, context="spawn"),
    "no processes": partial(hostile.from_loaders, workers=0),
}


@pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning"
)  # of JAX, where another test imported it
def test_a_data_loader_with_processes_of_its_own_in_workers_and_here(workers):
    problems = [hostile.problem(data, max_epochs=2) for data in LOADERS.values()]
    [plain] = run_all([Run(hostile.problem(max_epochs=2), 0.1)], ledger=False, workers=0)
    records = train_in(workers, *problems, limit=2)
    records += run_all([Run(problem, 0.1) for problem in problems[:2]], ledger=False, workers=0)
    assert [record.content_hash for record in records] == [plain.content_hash] * 6


ACTIONS = {
    "multiprocessing, fork": partial(hostile.run_process, "fork"),
    "multiprocessing, spawn": partial(hostile.run_process, "spawn"),
    "multiprocessing, forkserver": partial(hostile.run_process, "forkserver"),
    "a pool": partial(hostile.run_pool, "fork"),
    "input()": hostile.read_input,
    "a program that reads": hostile.read_by_a_program,
    "fork": hostile.fork_and_exit,
    "a fork that comes back": hostile.fork_and_return,
    "a fork in a thread": hostile.fork_in_a_thread,
    "3,000 lines": hostile.print_a_lot,
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_code_that_forks_reads_and_prints_trains_as_any_other(action, workers):
    [record] = train_in(workers, hostile.acting(action))
    assert record.metrics["epochs"] == 3


def test_what_a_worker_printed_is_seen_at_once_and_in_the_error(workers, capsys, monkeypatch):
    monkeypatch.setattr("flooding.training.job_queue._MAX_DEATHS", 1)
    with pytest.raises(
        RuntimeError, match=r"(?s)died 1 times.*exit code 9.*the reason is known\nand told"
    ):
        train_in(workers, hostile.acting(hostile.print_and_die))
    assert capsys.readouterr().err.count("the reason is known") == 1


@pytest.mark.parametrize(
    ("action", "cause"),
    [
        (partial(hostile.kill_itself, signal.SIGKILL), "SIGKILL; is there memory"),
        (
            partial(hostile.kill_itself, signal.SIGSEGV),
            r"(?s)SIGSEGV\. It printed last:.*Segmentation fault.*hostile.py",
        ),
        (partial(os._exit, 0), "exit code 0. It printed nothing"),
    ],
    ids=["killed", "segmentation fault", "left"],
)
def test_the_error_says_how_a_worker_died(action, cause, workers, monkeypatch):
    monkeypatch.setattr("flooding.training.job_queue._MAX_DEATHS", 1)
    with pytest.raises(RuntimeError, match=cause):
        train_in(workers, hostile.acting(action))


def test_a_fatal_error_is_quoted_from_its_first_line_however_long_the_paths_are():
    frames = [f'  File "/{"deep/" * 60}file.py", line {i} in f' for i in range(10)]
    printed = "\n".join([
        "earlier",
        "Fatal Python error: Aborted",
        "",
        *frames,
        "Extension modules: numpy (total: 1)",
    ])
    quoted = _quote(printed)
    assert quoted.startswith("Fatal Python error: Aborted")
    assert "Extension modules" not in quoted
    assert len(quoted) <= 2 * _QUOTE_LENGTH
    assert _quote("x" * 9000 + "\nthe reason\n").endswith("x\nthe reason")


@pytest.mark.parametrize(
    ("action", "error", "text"),
    [
        (partial(hostile.leave, 3), SystemExit, "3"),
        (partial(hostile.leave, "no data today"), SystemExit, "no data today"),
        (hostile.interrupt, KeyboardInterrupt, None),
        (hostile.stop_everything, hostile.StopEverythingError, "enough"),
        (hostile.raise_odd, RuntimeError, "OddError: this and that"),
        (hostile.raise_local, RuntimeError, "LocalError: of a class inside a function"),
        (hostile.raise_with_lock, RuntimeError, "ValueError: holds a lock"),
    ],
    ids=["exit code", "exit text", "interrupt", "BaseException", "odd", "local", "lock"],
)
def test_what_is_raised_in_a_worker_is_raised_here_with_its_traceback(action, error, text, workers):
    with pytest.raises(error, match=text) as caught:
        train_in(workers, hostile.acting(action))
    assert any("hostile.py" in note and "self.action()" in note for note in caught.value.__notes__)


def test_an_exit_in_a_worker_is_an_exit_of_the_search():
    with pytest.raises(SystemExit, match="no data today"):
        run_all(
            [
                Run(hostile.acting(partial(hostile.leave, "no data today")), level)
                for level in (None, 0.1)
            ],
            ledger=False,
            workers=1,
        )


def test_an_error_that_cannot_be_rebuilt_here_is_raised_all_the_same():
    error = unpickle_message(
        pickle.dumps(PickledError(b"nonsense", "OddError: text", "its traceback"))
    )
    assert isinstance(error, RuntimeError)
    assert str(error) == "OddError: text"
    assert "its traceback" in error.__notes__[0]


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_a_child_of_a_worker_that_died_ends_with_it_and_holds_nobody_up(
    workers, tmp_path, monkeypatch
):
    monkeypatch.setattr("flooding.training.job_queue._MAX_DEATHS", 1)
    path = tmp_path / "pid"
    with pytest.raises(RuntimeError, match="exit code 7"):
        train_in(workers, hostile.acting(partial(hostile.leave_a_child_and_die, str(path))))
    wait_until(lambda: not is_alive(int(path.read_text())))


# SIGTERM ends a parent as SIGKILL does: Python has no handler for it.
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name)
def test_no_child_of_a_worker_outlives_the_parent(tmp_path, number):
    path = tmp_path / "pid"
    code = (
        # A shell may start the tests, and so their children, with SIGINT ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import hostile; from functools import partial; from flooding import Run, run_all;"
        f"problem = hostile.acting(partial(hostile.leave_a_child, {str(path)!r}));"
        "problem = hostile.problem(model=problem.model, max_epochs=100_000, key='long');"
        "run_all([Run(problem, l) for l in (0.1, 0.2)], ledger=False, workers=1)"
    )
    parent = psutil.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_until(lambda: path.exists() and path.read_text())
    family = parent.children(recursive=True)
    assert len(family) == 2
    parent.send_signal(number)
    _, alive = psutil.wait_procs([parent, *family], timeout=20)
    parent.wait()
    for process in alive:
        process.kill()
    assert alive == []


@pytest.mark.parametrize("where", ["in this process", "in a worker"])
def test_a_run_without_news_for_a_while_says_so(where, workers, caplog, monkeypatch):
    train_in(workers, hostile.problem())  # a worker that still starts has no news either
    monkeypatch.setattr("flooding.training.watchdog.PATIENCE", 0.2)
    problem = hostile.acting(partial(hostile.sleep, 1.5))
    if where == "in a worker":
        train_in(workers, problem)
    else:
        run_all([Run(problem, 0.1)], ledger=False, workers=0)
    lines = [
        record.getMessage() for record in caplog.records if "no news for" in record.getMessage()
    ]
    assert any("level 0.1 and seed 0 after epoch 0" in line for line in lines)
    assert len(lines) < 8, "the wait doubles"


def test_after_a_sleep_of_the_machine_one_line_is_enough(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("flooding.training.watchdog.time.monotonic", lambda: now[0])
    watchdog = Watchdog()
    watchdog.start("here", Run(hostile.problem(), 0.1))
    now[0] = 10_000.0
    for _ in range(5):
        watchdog.report()
    assert len(caplog.messages) == 1
    now[0] = 20_001.0
    watchdog.report()
    assert len(caplog.messages) == 2


def test_a_run_whose_rows_nobody_wants_still_shows_that_it_lives(monkeypatch):
    monkeypatch.setattr("flooding.training.messages._HEARTBEAT", 0.02)
    rows = train(Run(hostile.acting(partial(hostile.sleep, 0.1)), 0.1))
    bundles = list(batched(((0, row) for row in rows), last_row_only=True))
    assert bundles[0] == []
    assert [len(bundle) for bundle in bundles if bundle] == [1]


def test_no_more_workers_are_started_than_there_are_runs():
    pool = Pool()
    try:
        for count in (1, 2):
            train_in(pool, *[small(max_epochs=1)] * count, limit=7)
            assert len(pool) == count
    finally:
        pool.close()


def in_threads(*calls):
    """Call functions in a thread each, all at once, and give what they returned."""
    results = [None] * len(calls)

    def call(number):
        results[number] = calls[number]()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


def dropout_runs():
    """Give Runs that draw from torch's generator, each as what only this process can train."""
    local = normed().model
    return [
        Run(normed(model=lambda: local(), max_epochs=25), level, seed=s)
        for s in (0, 1)
        for level in (None, 0.2, 0.3)
    ]


@pytest.mark.parametrize("others", ["run_all", "train", "find_level"])
def test_training_in_this_process_from_several_threads_gives_the_same_bits(others):
    runs = dropout_runs()
    alone = [record.content_hash for record in run_all(runs, ledger=False, workers=0)]

    def one(run):
        if others == "train":
            *_, row = train(run)
            return row.record.content_hash
        if others == "find_level":
            find_level(small(max_epochs=3, model=lambda: small().model()), workers=0)
        return run_all([run], ledger=False, workers=0)[0].content_hash

    assert in_threads(*(partial(one, run) for run in runs)) == alone


def test_a_single_run_in_a_thread_goes_to_a_worker_whatever_other_threads_draw():
    import torch

    run = Run(normed(max_epochs=60), 0.2)
    alone = run_all([run], ledger=False, workers=0)[0].content_hash
    ended = threading.Event()

    def draw():
        while not ended.is_set():
            torch.randn(3)

    noise = threading.Thread(target=draw)
    noise.start()
    try:
        assert in_threads(lambda: run_all([run], ledger=False)[0].content_hash) == [alone]
    finally:
        ended.set()
        noise.join()


def test_the_callers_generator_is_given_back_whatever_threads_do():
    import torch

    before = torch.get_rng_state()
    in_threads(*(partial(run_all, [run], ledger=False, workers=0) for run in dropout_runs()))
    assert torch.equal(torch.get_rng_state(), before)


def test_folders_of_killed_searches_are_removed_and_those_of_living_ones_stay(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("flooding.training.scratch._MIN_AGE", 0.0)
    from flooding.training.scratch import scratch_folder

    code = (
        f"import tempfile, os; tempfile.tempdir = {str(tmp_path)!r}\n"
        "from flooding.training.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'checkpoint.pt').write_bytes(b'x' * 1000)\n"
        "    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    [left] = tmp_path.iterdir()
    strange = tmp_path / "flooding-of-somebody-else"
    strange.mkdir()
    (tmp_path / "flooding-link").symlink_to(strange)
    with scratch_folder() as living:
        assert not left.exists()
        with scratch_folder() as second:
            assert living.exists() and second.exists()  # noqa: PT018
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "flooding-link",
        "flooding-of-somebody-else",
    ]
