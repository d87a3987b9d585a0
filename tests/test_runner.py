"""Look-up, the pool and this process give the same Records, and nothing is trained twice."""

import importlib
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import types
from functools import partial

import psutil
import pytest
import torch

from flooding import Problem, Run, run_all, train
from flooding.data import Split, Splits
from flooding.models import mlp
from flooding.training import jobs
from flooding.training.checkpoints import Checkpoints
from flooding.training.jobs import Job, is_picklable, run_job
from flooding.training.ledger import Ledger
from flooding.training.runner import run_key
from small import Dying, adam, normed, regression, small

pytestmark = pytest.mark.usefixtures("time_limit")
# Programs that a test starts import from this folder, and the same library as the test.
SEARCH_PATH = filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")])
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(SEARCH_PATH)}
LEVELS = (None, 0.0, 0.2, 0.3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def starts(path):
    ledger = Ledger(path)
    result = ledger.starts()
    ledger.close()
    return result


def test_measured_is_bit_identical_here_in_workers_in_a_new_process_and_looked_up(path, tmp_path):
    runs = [Run(normed(), level, seed=seed) for level in LEVELS for seed in (0, 1)]
    here = [r.content_hash for r in run_all(runs, ledger=False, workers=0)]
    away = [r.content_hash for r in run_all(runs, ledger=path, workers=2)]
    looked_up = [r.content_hash for r in run_all(runs, ledger=path, workers=0)]
    assert here == away == looked_up
    assert len(set(here)) == 8
    code = (
        "from small import normed; from flooding import Run, run_all;"
        "print(run_all([Run(normed(), 0.2, seed=1)], ledger=False, workers=0)[0].content_hash)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert output.stdout.strip() == here[LEVELS.index(0.2) * 2 + 1]


def test_a_known_run_is_not_trained_again(path, caplog):
    caplog.set_level(logging.INFO, "flooding")
    runs = [Run(small(), level) for level in LEVELS]
    run_all(runs[:2], ledger=path, workers=0)
    trained = []
    run_all(runs, ledger=path, workers=0, on_start=trained.extend)
    assert trained == runs[2:]
    assert f"2 of 4 runs from the ledger {path}" in caplog.text
    assert len(starts(path)) == 4


def test_overwrite_trains_again_and_replaces(path):
    run = Run(small(), 0.2)
    first = run_all([run], ledger=path, workers=0)[0]
    again = run_all([run], ledger=path, workers=0, overwrite=True)[0]
    assert again.content_hash == first.content_hash
    assert again.metadata["began"] > first.metadata["began"]
    assert run_all([run], ledger=path, workers=0)[0].metadata == again.metadata
    assert len(starts(path)) == 2


def test_equal_runs_are_trained_once_and_each_gets_a_record(path):
    runs = [Run(small(), 0.2), Run(small(), 0.3), Run(small(), 0.2)]
    records = run_all(runs, ledger=path, workers=0)
    assert [record.run for record in records] == runs
    assert records[0].content_hash == records[2].content_hash != records[1].content_hash
    assert len(starts(path)) == 2


def test_a_problem_without_a_key_is_trained_each_time_and_the_log_says_so(path, caplog):
    run = Run(small(loss=lambda output, y: torch.nn.functional.cross_entropy(output, y)), 0.2)
    one, two = (run_all([run], ledger=path, workers=0)[0] for _ in range(2))
    assert one.content_hash == two.content_hash
    assert starts(path) == []
    assert "Give the Problem a key" in caplog.text


def test_a_user_key_finds_the_record_and_refuses_a_changed_problem(path):
    def keyed(width):
        return Run(small(model=lambda: mlp(10, 2, width=width, depth=1), key="mine"), 0.2)

    first = run_all([keyed(8)], ledger=path, workers=0)[0]
    assert run_all([keyed(8)], ledger=path, workers=0)[0].metadata == first.metadata
    with pytest.raises(ValueError, match="Change its key too"):
        run_all([keyed(9)], ledger=path, workers=0)


def test_an_error_in_a_worker_is_raised_here_and_the_pool_lives_on(path):
    bad = Run(Problem(small().data, torch.nn.Linear(3, 2), adam, max_epochs=2), 0.2)
    good = [Run(small(), level) for level in LEVELS]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_all([bad, bad.__class__(bad.problem, 0.3)], ledger=path, workers=2)
    assert len(run_all(good, ledger=path, workers=2)) == 4


def test_what_cannot_travel_trains_here(path, caplog):
    runs = [Run(small(model=lambda: mlp(10, 2, width=8)), level) for level in LEVELS]
    assert not is_picklable(runs[0])
    assert is_picklable(Run(regression()))
    assert len(run_all(runs, ledger=path, workers=2)) == 4
    assert "train in this process" in caplog.text


SCRIPT = """
import torch
from flooding import Problem, Run, run_all
from flooding.data import Split, Splits

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(2, 2)
    def forward(self, x):
        return self.line(x)

x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
part = lambda a, b: Split(x[a:b], (x[a:b, 0] > 0).long())
problem = Problem(Splits(part(0, 20), part(20, 40), part(40, 60)), Net, max_epochs=3, {key})
runs = [Run(problem, level) for level in (None, 0.1, 0.2)]
for options in ({{}}, {{"workers": 2, "overwrite": True}}):
    records = run_all(runs, ledger={ledger!r}, **options)
    print(len(records), "records")
"""


@pytest.mark.parametrize("way", ["script", "standard input", "repl"])
def test_a_pasted_snippet_works_without_a_main_guard(tmp_path, way):
    code = SCRIPT.format(key="key='mine'", ledger=str(tmp_path / "l.sqlite"))
    (tmp_path / "script.py").write_text(code)
    command, fed = {
        "script": ([sys.executable, "script.py"], None),
        "standard input": ([sys.executable, "-"], code),
        "repl": ([sys.executable, "-i", "-q", "-c", ""], "exec(open('script.py').read())\n"),
    }[way]
    done = subprocess.run(
        command, cwd=tmp_path, input=fed, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count("3 records") == 2, done.stderr


def test_a_module_of_the_users_own_goes_to_workers(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        SCRIPT
        .split("runs =")[0]
        .format(key="")
        .replace("part = lambda a, b:", "def part(a, b): return")
    )
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    assert is_picklable(Run(mine.problem, 0.1))
    assert (
        len(run_all([Run(mine.problem, level) for level in LEVELS], ledger=False, workers=1)) == 4
    )


def spawn(path, epochs=100_000):
    code = (
        "from small import small; from flooding import Run, run_all;"
        f"runs = [Run(small(max_epochs={epochs}), l) for l in (0.1, 0.2)];"
        f"run_all(runs, ledger={str(path)!r}, workers=2)"
    )
    return psutil.Popen([sys.executable, "-c", code], env=ENVIRONMENT)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_no_orphan_stays_in_the_middle_of_a_long_step(path):
    # With short steps and a child of the worker: test_pool.py.
    code = (
        "from small import Slow, small; from flooding import Run, run_all;"
        "runs = [Run(small(model=Slow, key='slow'), seed=s) for s in (0, 1)];"
        f"run_all(runs, ledger={str(path)!r}, workers=2)"
    )
    parent = psutil.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    until(lambda: path.exists() and len(starts(path)) == 2)
    workers = parent.children()
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([parent, *workers], timeout=10)
    parent.wait()
    for process in alive:
        process.kill()
    assert alive == []


def test_a_killed_worker_is_replaced_and_its_run_done(path):
    parent = spawn(path, epochs=1500)
    until(lambda: path.exists() and len(starts(path)) == 2)
    parent.children()[0].send_signal(signal.SIGKILL)
    assert parent.wait(timeout=120) == 0
    assert len(starts(path)) == 3
    undisturbed = [
        r.content_hash for r in run_all([Run(small(max_epochs=1500), 0.1)], ledger=False, workers=0)
    ]
    key = run_key(Run(small(max_epochs=1500), 0.1))
    ledger = Ledger(path)
    assert [ledger.find(Run(small(max_epochs=1500), 0.1), key).content_hash] == undisturbed
    ledger.close()


@pytest.mark.parametrize("gets_further", [True, False])
def test_a_run_is_given_up_only_if_its_workers_die_without_getting_further(
    gets_further, path, tmp_path, monkeypatch
):
    monkeypatch.setattr("flooding.training.job_queue._MAX_DEATHS", 2)
    deaths = tmp_path / "deaths"
    # The second one can never count its deaths, and dies at the same step each time.
    model = partial(Dying, str(deaths) if gets_further else "/dev/null", 2)
    runs = [Run(small(model=model, max_epochs=8), 0.1), Run(small(), 0.2)]
    if gets_further:
        records = run_all(runs, ledger=path, workers=2, on_row=lambda row: None)
        assert [len(record.curves["train_loss"]) for record in records] == [9, 7]
        assert deaths.read_text() == "xx"
    else:
        with pytest.raises(RuntimeError, match=r"a worker died 2 times on the run with level 0\.1"):
            run_all(runs, ledger=path, workers=2, on_row=lambda row: None)


def test_a_worker_that_died_while_idle_is_replaced(path):
    runs = [Run(small(), level) for level in LEVELS]
    before = {child.pid for child in psutil.Process().children()}
    run_all(runs[:2], ledger=path, workers=2)
    workers = [
        child
        for child in psutil.Process().children()
        if child.pid not in before or len(before) == 2
    ]
    for worker in workers:
        worker.kill()
    time.sleep(0.5)
    assert len(run_all(runs, ledger=path, workers=2, overwrite=True)) == 4


def test_two_threads_do_not_share_workers():
    runs = [[Run(small(), level, seed=seed) for level in LEVELS] for seed in range(2)]
    alone = [[r.weights_sha256 for r in run_all(each, ledger=False, workers=0)] for each in runs]
    results = [None, None]

    def go(n):
        results[n] = [r.weights_sha256 for r in run_all(runs[n], ledger=False, workers=1)]

    threads = [threading.Thread(target=go, args=(n,)) for n in range(2)]
    [thread.start() for thread in threads]
    [thread.join(timeout=120) for thread in threads]
    assert results == alone


def test_run_all_within_run_all():
    inner = []

    def on_row(row):
        if row.record is not None and not inner:
            inner.extend(
                run_all(
                    [Run(small(), level, seed=7) for level in (0.1, 0.2)], ledger=False, workers=1
                )
            )

    outer = run_all(
        [Run(small(), level) for level in (0.1, 0.2)], ledger=False, workers=1, on_row=on_row
    )
    assert len(outer) == len(inner) == 2
    assert not {r.weights_sha256 for r in outer} & {r.weights_sha256 for r in inner}


USER = """
import torch
from flooding import Problem
from flooding.data.synthetic import two_gaussians
from functools import partial

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(10, 2)
    def forward(self, x):
        return super().forward(x) * {scale}

class Own(torch.optim.SGD):
    pass

def problem(lr=0.1):
    data = partial(two_gaussians, n_train=20, n_val=20, n_test=50)
    return Problem(data, Net, partial(Own, lr=lr), max_epochs=3, key="own")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("owncode", None)

    def load(scale):
        (tmp_path / "owncode.py").write_text(USER.format(scale=scale))
        importlib.invalidate_caches()
        module = sys.modules.get("owncode")
        return importlib.reload(module) if module else importlib.import_module("owncode")

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield load
    sys.dont_write_bytecode = before


def test_workers_see_the_code_as_it_is_now(own):
    for scale in (1, 3):
        module = own(scale)
        runs = [Run(module.problem(), level) for level in (None, 0.1)]
        here, away = (
            [r.weights_sha256 for r in run_all(runs, ledger=False, workers=n)] for n in (0, 1)
        )
        assert here == away


def test_arguments_count_under_a_users_key(own, path):
    module = own(1)
    slow, fast = run_all(
        [Run(module.problem(lr), None) for lr in (1e-6, 0.5)], ledger=path, workers=0
    )
    assert slow.weights_sha256 != fast.weights_sha256
    again = run_all([Run(module.problem(0.5), None)], ledger=path, workers=0)[0]
    assert again.metadata == fast.metadata


def test_data_of_the_users_own_is_made_anew():
    made = []

    def data(*, seed):
        made.append(seed)
        return small().splits(seed + len(made) // 100)

    run_all([Run(small(data=data), None)], ledger=False, workers=0)
    count = len(made)
    run_all([Run(small(data=data), None)], ledger=False, workers=0)
    assert len(made) > count > 0


def test_a_job_a_worker_cannot_read_is_an_error_and_not_a_wait(monkeypatch):
    module = types.ModuleType("made_in_memory")
    exec(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self): super().__init__(10, 2)",
        module.__dict__,
    )
    module.Net.__module__ = "made_in_memory"
    monkeypatch.setitem(sys.modules, "made_in_memory", module)
    runs = [Run(small(model=module.Net), level) for level in (None, 0.1)]
    assert is_picklable(runs[0])
    with pytest.raises(ModuleNotFoundError, match="made_in_memory"):
        run_all(runs, ledger=False, workers=1)


def test_a_message_cut_off_in_the_middle_is_a_death_and_not_a_wait():
    from flooding.training.messages import read_message, write_message

    read, write = os.pipe()
    message = struct.pack("<Q", 1000) + b"x" * 1000
    write_message(write, b"x" * 1000)
    assert os.read(read, 10_000) == message
    os.close(write)
    os.close(read)
    for size in (0, 4, 500):
        read, write = os.pipe()
        os.write(write, message[:size])
        os.close(write)
        with pytest.raises(EOFError):
            read_message(read)
        os.close(read)


def test_workers_take_the_callers_dtype_and_the_key_tells_it():
    runs = [Run(small(data=small().splits(0)), level) for level in (None, 0.1)]
    single = run_key(runs[0])
    torch.set_default_dtype(torch.float64)
    try:
        runs = [Run(small(data=double(small().splits(0))), level) for level in (None, 0.1)]
        here, away = (
            [r.content_hash for r in run_all(runs, ledger=False, workers=n)] for n in (0, 1)
        )
        assert here == away
        assert run_key(runs[0]) != single
    finally:
        torch.set_default_dtype(torch.float32)


def double(splits):
    return Splits(
        *(Split(s.x.double(), s.y, s.clean) for s in (splits.train, splits.val, splits.test))
    )


def test_a_relative_ledger_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    runs = [Run(small(), level) for level in LEVELS]
    run_all(
        runs, ledger="here.sqlite", workers=1, on_start=lambda _: os.chdir(tmp_path / "elsewhere")
    )
    assert len(Ledger(tmp_path / "here.sqlite")) == 4


def test_files_in_the_working_directory_do_not_stand_in_for_modules(tmp_path, monkeypatch):
    for name in (
        "queue",
        "json",
    ):  # one that the library imports, one that a worker needs before its path is set
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not the module you want')")
    code = (
        "from small import small; from flooding import Run, run_all;"
        "print(len(run_all([Run(small(), l) for l in (0.1, 0.2)], ledger=False, workers=1)))"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "2", done.stderr


@pytest.mark.parametrize("options", [{"workers": -1}, {"threads": 0}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(ValueError, match="must be at least"):
        run_all([Run(small())], ledger=False, **options)


def test_two_searches_at_once_share_a_ledger_and_do_not_harm_it(path):
    code = (
        "from small import small; from flooding import Run, run_all;"
        "runs = [Run(small(max_epochs=40), 0.02 * n, seed=s) for s in (0, 1) for n in range(12)];"
        "import sys;"
        f"records = run_all(runs, ledger={str(path)!r}, workers=int(sys.argv[1]));"
        "print(*[record.content_hash for record in records])"
    )
    pipes = {"stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    # One in two workers, and one in its own process.
    both = [subprocess.Popen([sys.executable, "-c", code, n], **pipes) for n in ("2", "0")]
    outputs = [process.communicate(timeout=120)[0].split() for process in both]
    runs = [Run(small(max_epochs=40), 0.02 * n, seed=seed) for seed in (0, 1) for n in range(12)]
    assert (
        outputs[0] == outputs[1] == [r.content_hash for r in run_all(runs, ledger=False, workers=0)]
    )
    ledger = Ledger(path)
    assert sorted(record.content_hash for _, record in ledger.records()) == sorted(outputs[0])
    assert len(ledger.starts()) == 24, (
        "each run was trained by one of them, and looked up by the other"
    )
    ledger.close()
    assert not list(path.with_name("ledger.sqlite.checkpoints").iterdir())


@pytest.mark.parametrize("until", [None, 9])
def test_a_search_that_began_after_the_look_up_of_another_leaves_it_nothing_to_do(
    path, until, monkeypatch
):
    runs = [Run(small(max_epochs=12), 0.1 * n, stop_epoch=until) for n in range(6)]
    alone = [record.content_hash for record in run_all(runs, ledger=False, workers=0)]
    folder = path.with_name("ledger.sqlite.checkpoints")
    between = []

    def other(_):
        run_all(runs, ledger=path, workers=0)
        between.extend(sorted(folder.iterdir()))
        monkeypatch.setattr(jobs, "train", None)

    records = run_all(runs, ledger=path, workers=0, on_start=other)
    assert [record.content_hash for record in records] == alone
    assert sorted(folder.iterdir()) == between
    assert len(between) == (0 if until is None else 6), "only a longer Run has use for a checkpoint"


@pytest.mark.parametrize("until", [None, 9])
def test_what_a_prefix_left_for_a_run_that_was_trained_meanwhile_is_removed(path, tmp_path, until):
    run = Run(small(max_epochs=12), 0.2, stop_epoch=until)
    job = Job(0, run, run_key(run), str(path), checkpoint_folder=str(tmp_path / "files"))
    *_, first = run_job(job)
    kept = sorted((tmp_path / "files").iterdir())
    snapshot = next(row for row in train(run) if row.epoch == 3).snapshot()
    Checkpoints(tmp_path / "files").save(job.name, 3, snapshot, delete_earlier=False)
    [row] = run_job(job)
    assert row.record.content_hash == first.record.content_hash
    assert sorted((tmp_path / "files").iterdir()) == kept


def test_who_receives_the_last_row_may_kill_the_process_and_no_lock_is_left(path, tmp_path):
    run, folder = Run(small(), 0.2), str(tmp_path / "locks")
    job = Job(0, run, run_key(run), str(path), checkpoint_folder=folder)
    locks = (tmp_path / "locks").glob
    for _ in range(2):  # trained, then looked up
        rows = run_job(job)
        while next(rows).record is None:
            assert list(locks("*.lock"))
        assert not list(locks("*.lock"))


def test_what_another_search_trained_meanwhile_is_not_trained_again(path):
    job = Job(0, Run(small(), 0.2), run_key(Run(small(), 0.2)), str(path))
    *_, first = run_job(job)
    rows = list(run_job(job))
    assert [row.record.content_hash for row in rows] == [first.record.content_hash]
    assert len(starts(path)) == 1
    assert len(list(run_job(job._replace(overwrite=True)))) == 7
