"""Ray: Runs on two nodes of one machine are those of the pool, whatever dies."""

import contextlib
import json
import logging
import os
import pickle
import signal
import sys
import threading
from functools import partial

import fsspec
import pytest
import torch

pytest.importorskip("ray", reason="ray is not installed: flooding[ray]")
import ray
from ray.cluster_utils import Cluster

from flooding import Run, find_level, run_all
from flooding.integrations import _ray_jobs
from flooding.integrations import ray as flooding_ray
from flooding.integrations._ray_jobs import Resources, TaskDriver
from flooding.integrations._ray_pickle import dumps
from flooding.integrations._ray_task import Started, TaskOptions, do_job, versions
from flooding.integrations.ray import _make_resources
from flooding.levels import Plateau, Warmup
from flooding.methods import IFlood
from flooding.models import mlp
from flooding.testing import check_runner
from flooding.training import checkpoints, job_queue
from flooding.training.checkpoint_storage import check_storage
from flooding.training.jobs import Job
from flooding.training.ledger import Ledger
from flooding.training.messages import unpickle_message
from flooding.training.runner import run_key
from small import Dying, normed, small
from subprocess_checks import added_packages

# Ray leaves sockets and its log thread to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::FutureWarning",
    # JAX, which another test may have imported, warns of every fork, and Ray forks.
    "ignore:os.fork:RuntimeWarning",
    "ignore:Exception ignored in.*_at_fork:pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch):
    """What a task changes in its process is changed back where a test runs one in its own."""
    monkeypatch.setattr("flooding.training.progress._is_disabled", False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(os.getcwd())


@pytest.fixture(scope="module")
def cluster():
    """One session of Ray for all tests: two nodes of one core each, one with two GPUs, it says."""
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_gpus": 2})
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


on_ray = partial(flooding_ray.run_all, progress=False)


def hashes(records):
    return [record.content_hash for record in records]


def read_starts(path):
    with contextlib.closing(Ledger(path)) as ledger:
        return ledger.starts()


def count_records(path):
    with contextlib.closing(Ledger(path)) as ledger:
        return len(ledger)


def epochs_trained(records):
    return sum(record.metadata["epochs_trained"] for record in records)


@pytest.mark.usefixtures("cluster")
def test_records_are_those_of_the_pool_and_shared_steps_are_taken_once(tmp_path):
    problem = small(max_epochs=40)
    runs = [Run(problem, level, seed=seed) for seed in (0, 1) for level in (None, 0.1, 0.3, 0.5)]
    runs += [Run(normed(), 0.4), Run(normed(), Warmup(0.4, steps=8)), Run(normed(), Plateau(0.2))]
    runs += [Run(problem, 0.3, IFlood()), Run(problem, 0.3, stop_epoch=5), Run(problem, 0.1)]
    rows, started = [], []
    there = on_ray(
        runs, ledger=tmp_path / "ray.sqlite", on_row=rows.append, on_start=started.extend
    )
    here_rows = []
    here = run_all(runs, ledger=tmp_path / "pool.sqlite", workers=0, on_row=here_rows.append)
    assert hashes(there) == hashes(here)
    assert [record.run for record in there] == runs
    assert epochs_trained(there) == epochs_trained(here)

    def by_run(rows):
        """Epochs of all rows of each Run, in order."""
        return {run: [row.epoch for row in rows if row.run is run] for run in started}

    assert by_run(rows) == by_run(here_rows)
    # The driver alone wrote the ledger, and this machine finds what the cluster trained.
    starts = read_starts(tmp_path / "ray.sqlite")
    assert len(starts) == len(started)
    assert {pid for *_, pid in starts} == {os.getpid()}
    nothing = []
    again = on_ray(runs, ledger=tmp_path / "ray.sqlite", on_start=nothing.extend)
    assert hashes(again) == hashes(here)
    assert not nothing
    local = run_all(runs, ledger=tmp_path / "ray.sqlite", on_start=nothing.extend)
    assert hashes(local) == hashes(here)
    assert not nothing


@pytest.mark.usefixtures("cluster")
def test_the_runner_keeps_the_rules():
    check_runner(partial(on_ray, ledger=False), small(max_epochs=3))


# Fleets


def fleet_runs(**changes):
    return [Run(small(**changes), level, seed=seed) for seed in range(4) for level in (0.1, 0.3)]


@pytest.mark.usefixtures("cluster")
def test_each_node_trains_a_fleet_with_the_bits_of_a_worker_here(tmp_path):
    runs = fleet_runs(max_epochs=20)
    there = on_ray(runs, ledger=tmp_path / "ray.sqlite", fleet=True)
    assert [record.metadata["fleet_size"] for record in there] == [4] * 8
    here = run_all(runs, ledger=tmp_path / "pool.sqlite", workers=2, fleet=True)
    assert hashes(there) == hashes(here)


@pytest.mark.usefixtures("cluster")
def test_each_gpu_or_share_of_one_has_a_fleet_and_its_part_of_the_memory():
    assert TaskDriver(Resources(0.25, 1.0), None).places()[:2] == (2, 1)
    assert TaskDriver(Resources(0.25, 0.25), None).places()[:2] == (8, 4)
    assert TaskDriver(Resources(0.5), None).places()[:2] == (4, 2)


@pytest.mark.usefixtures("cluster")
def test_a_fleet_is_measured_on_the_cluster():
    jobs = [Job(number, run, None, None) for number, run in enumerate(fleet_runs())]
    result = TaskDriver(Resources(), None).places().measure(jobs, 1e4)
    assert result.single > 0
    assert result.fleet > 0
    assert result.available > result.memory


@pytest.mark.usefixtures("cluster")
def test_an_error_while_a_fleet_is_measured_arrives_as_it_is():
    def model():
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        on_ray(fleet_runs(model=model), ledger=False, fleet=True)


@pytest.mark.usefixtures("cluster")
def test_a_search_gives_what_it_gives_here(tmp_path):
    problem = small(max_epochs=30)
    there = find_level(problem, on="ray", ledger=tmp_path / "ray.sqlite")
    here = find_level(problem, workers=0, ledger=tmp_path / "pool.sqlite")
    assert there.level == here.level
    assert hashes(there.records) == hashes(here.records)
    assert there.cost.steps == here.cost.steps
    half = partial(flooding_ray.run_all, num_cpus=0.5)
    again = find_level(problem, on=half, ledger=tmp_path / "ray.sqlite")
    assert hashes(again.records) == hashes(here.records)


def test_a_place_and_workers_exclude_each_other():
    with pytest.raises(ValueError, match="workers=2 and on='ray'"):
        find_level(small(), on="ray", workers=2)
    with pytest.raises(ValueError, match="on must be one of ray; got mars"):
        find_level(small(), on="mars")


# What travels


class Local(torch.nn.Linear):
    """Not importable on the nodes: pytest imports this file under a path of its own."""

    def __init__(self):
        super().__init__(10, 2)

    def forward(self, x):
        return super().forward(x) * SCALE


SCALE = 2.0


@pytest.mark.usefixtures("cluster")
def test_code_of_the_users_own_travels(tmp_path, monkeypatch):
    # A module in a folder that the nodes cannot see.
    (tmp_path / "only_here.py").write_text(
        "import torch\n\ndef model():\n    return torch.nn.Sequential(torch.nn.Linear(10, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    sys.path.remove(str(tmp_path))

    def closure():
        return Local()

    for model in (Local, closure, only_here.model):
        run = Run(small(model=model, max_epochs=2), 0.4)
        [there] = on_ray([run], ledger=False)
        [here] = run_all([run], ledger=False, workers=0)
        assert there.content_hash == here.content_hash


def test_a_module_that_lost_its_name_keeps_no_other_from_travelling(tmp_path, monkeypatch):
    from flooding.integrations._ray_pickle import dumps, loads

    for name in ("nameless", "travels"):
        (tmp_path / f"{name}.py").write_text("def model():\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import nameless

    dumps(nameless.model)  # it is known to be the user's own
    monkeypatch.delitem(sys.modules, "nameless")
    monkeypatch.setitem(sys.modules, "another name", nameless)
    import travels

    monkeypatch.setitem(sys.modules, "a second name", travels)
    content = dumps(travels.model)
    # Where the module is not there the function comes back all the same.
    monkeypatch.delitem(sys.modules, "travels")
    sys.path.remove(str(tmp_path))
    assert loads(content)() is None


@pytest.mark.usefixtures("cluster")
def test_what_cannot_travel_is_refused():
    lock = threading.Lock()

    def model():
        with lock:
            return torch.nn.Linear(10, 2)

    with pytest.raises(ValueError, match="a Run must be picklable by cloudpickle"):
        on_ray([Run(small(model=model))], ledger=False)


@pytest.mark.usefixtures("cluster")
def test_an_error_of_the_users_code_arrives_as_it_is():
    def model():
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine") as raised:
        on_ray([Run(small(model=model))], ledger=False)
    assert "def model" in raised.value.__notes__[0] or "in model" in raised.value.__notes__[0]


# Checkpoints: the task's own code, in this process


def job_items(job, storage, **changes):
    """Do a job as a task of Ray would."""
    options = TaskOptions(storage, versions(), [], os.getcwd(), 0.0)._replace(**changes)
    problems = []
    content = dumps([job], problems)
    return do_job(options, content, None, *map(dumps, problems))


@pytest.mark.parametrize("place", ["folder", "memory://checkpoints"])
def test_a_run_goes_on_from_the_checkpoint_in_the_storage(tmp_path, monkeypatch, place):
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE", 1e9)
    storage = check_storage(str(tmp_path / place) if place == "folder" else place)
    run = Run(small(max_epochs=8), 0.3)
    job = Job(0, run, run_key(run), None)
    items = job_items(job, storage)
    assert isinstance(next(items), Started)
    for _ in range(6):
        next(items)
    items.close()  # as if its machine were gone
    found, find = [], checkpoints.Checkpoints.find
    monkeypatch.setattr(
        checkpoints.Checkpoints, "find", lambda *args: found.append(find(*args)) or found[-1]
    )
    rows = [row for item in job_items(job, storage) if isinstance(item, list) for row in item]
    record = rows[-1].record
    assert len(found[0]["curves"]) > 4
    [undisturbed] = run_all([run], ledger=False, workers=0)
    assert record.content_hash == undisturbed.content_hash
    # A Run that is done leaves nothing behind.
    file_system, path = fsspec.core.url_to_fs(storage)
    assert file_system.ls(path) == []


def test_a_machine_with_another_torch_is_refused():
    job = Job(0, Run(small()), None, None)
    *_, last = job_items(job, None, versions={**versions(), "torch": "0.1"})
    with pytest.raises(ValueError, match=r"the same torch, got 0\.1 where the call was made"):
        raise unpickle_message(pickle.dumps(last))


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "ray://there:10001"}, "ray job submit"),
        ({"num_gpus": -1.0}, "num_gpus must be finite and at least 0"),
        ({"num_cpus": 0.0}, "must need some resource"),
        ({"storage": "nowhere://x"}, "storage must be a folder or a URI"),
    ],
    ids=["the client", "a negative number", "nothing", "an unknown protocol"],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        on_ray([Run(small())], **arguments)


def test_a_run_on_a_gpu_needs_one(monkeypatch):
    assert _make_resources(1, None, None, "cuda:0").by_name() == {"CPU": 1, "GPU": 1}
    assert _make_resources(1, 0.25, {"tpu": 2}, "cuda").by_name() == {
        "CPU": 1,
        "GPU": 0.25,
        "tpu": 2,
    }
    assert _make_resources(1, None, None, "cpu").by_name() == {"CPU": 1}


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_room_is_said(caplog, monkeypatch):
    monkeypatch.setattr(_ray_jobs, "_PATIENCE", 0.2)

    class Stop(logging.Handler):
        def emit(self, record):
            if "no run has begun" in record.getMessage():
                raise InterruptedError(record.getMessage())

    handler = Stop()
    logging.getLogger("flooding").addHandler(handler)
    try:
        with pytest.raises(InterruptedError, match=r"'GPU': 3\.0\} of a node, and the cluster has"):
            on_ray([Run(small())], ledger=False, num_gpus=3)
    finally:
        logging.getLogger("flooding").removeHandler(handler)
    assert "the cluster has not got that now" in caplog.text


@pytest.mark.usefixtures("cluster")
def test_the_command_line_searches_on_the_cluster(flooding):
    command = "find two-gaussians --epochs 3 --strategy grid --levels none,0.5 --json --ray"
    code, there, _ = flooding(f"{command} auto --out there")
    assert code == 0
    code, here, _ = flooding(f"{command.removesuffix('--ray')} --workers 0 --overwrite --out here")
    assert json.loads(there)["level"] == json.loads(here)["level"]
    code, _, error = flooding(f"{command} local --workers 2")
    assert code == 2
    assert "--workers are processes of this machine" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ray-storage s3://bucket", "got s3://bucket without --ray. Leave it out"),
        ("--ray local --ray-storage nowhere://x", "storage must be a folder or a URI"),
    ],
)
def test_the_command_line_refuses_a_storage_that_cannot_be_one(flooding, words, message):
    code, _, error = flooding(f"find two-gaussians {words}")
    assert code == 2
    assert message in " ".join(error.split())


@pytest.mark.usefixtures("cluster")
def test_the_command_line_passes_the_storage_on(flooding, tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(flooding_ray, "TaskDriver", lambda *given: passed.append(given) or 1 / 0)
    flooding(f"find two-gaussians --ray auto --ray-storage {tmp_path}/there --out found")
    assert passed[0][1] == str(tmp_path / "there")


def test_importing_flooding_imports_no_ray():
    assert "ray" not in added_packages("torch", "flooding")


# What dies: last, since workers take seconds to start again


@pytest.mark.usefixtures("cluster")
def test_a_run_whose_worker_dies_begins_again_with_the_same_bits(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="flooding")
    deaths = tmp_path / "deaths"
    run = Run(small(model=partial(Dying, str(deaths), 1), max_epochs=4, key="dying"), 0.3)
    [record] = on_ray([run], ledger=tmp_path / "ray.sqlite")
    assert deaths.read_text() == "x"
    assert len(read_starts(tmp_path / "ray.sqlite")) == 2
    assert caplog.text.count("begins again: WorkerCrashedError") == 1
    [undisturbed] = run_all([run], ledger=False, workers=0)
    assert record.content_hash == undisturbed.content_hash


@pytest.mark.usefixtures("cluster")
def test_a_run_that_kills_every_worker_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(job_queue, "_MAX_DEATHS", 1)
    run = Run(small(model=partial(Dying, str(tmp_path / "deaths"), 99)), 0.3)
    with pytest.raises(RuntimeError, match=r"level 0\.3 and seed 0: WorkerCrashedError on "):
        on_ray([run], ledger=False)


@pytest.mark.usefixtures("cluster")
def test_a_fork_whose_checkpoint_went_down_with_its_machine_begins_anew(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="flooding")
    runs = [Run(small(max_epochs=30), level) for level in (None, 0.1, 0.3)]
    lost, get = [], ray.get

    def lose_one(reference):
        """Lose the input of the first task that has a checkpoint."""
        item = get(reference)
        if isinstance(item, Started) and driver[0]._checkpoints and not lost:
            lost.append(item)
            cause = ray.exceptions.ObjectReconstructionFailedError("ab" * 14, None, "lost")
            raise ray.exceptions.RayTaskError("task", "", cause).as_instanceof_cause()
        return item

    driver, start = [], TaskDriver.__init__

    def remember(self, *given):
        driver.append(self)
        start(self, *given)

    monkeypatch.setattr(TaskDriver, "__init__", remember)
    monkeypatch.setattr(_ray_jobs.ray, "get", lose_one)
    records = on_ray(runs, ledger=False)
    assert len(lost) == 1
    assert caplog.text.count("begins again: RayTaskError(ObjectReconstructionFailedError)") == 1
    assert hashes(records) == hashes(run_all(runs, ledger=False, workers=0))


@pytest.mark.parametrize("fleet", [False, True])
@pytest.mark.usefixtures("cluster")
def test_a_full_object_store_is_named(monkeypatch, fleet):
    def put(item):
        raise ray.exceptions.ObjectStoreFullError("no room")

    monkeypatch.setattr(_ray_jobs.ray, "put", put)
    with pytest.raises(RuntimeError, match=r"larger object_store_memory\. ObjectStoreFullError"):
        on_ray([Run(small())], ledger=False, fleet=fleet)


@pytest.mark.usefixtures("cluster")
def test_a_fleet_whose_measurement_kills_its_worker_ends_with_a_sentence():
    driver = os.getpid()

    def model():
        if os.getpid() != driver:
            os.kill(os.getpid(), signal.SIGKILL)
        return mlp(10, 2, width=16, depth=2)

    with pytest.raises(RuntimeError, match=r"a fleet was measured died.*fleet=False"):
        on_ray(fleet_runs(model=model), ledger=False, fleet=True)


@pytest.mark.usefixtures("cluster")
def test_a_call_that_is_cut_off_goes_on_from_the_ledger(tmp_path):
    runs = [Run(small(max_epochs=60), 0.3, seed=seed) for seed in range(6)]
    path, done = tmp_path / "ledger.sqlite", []

    def interrupt(row):
        done.extend([row] if row.record is not None else [])
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_ray(runs, ledger=path, on_row=interrupt)
    assert count_records(path) == 2
    started = []
    records = on_ray(runs, ledger=path, on_start=started.extend)
    assert len(started) == 4
    assert hashes(records) == hashes(run_all(runs, ledger=False, workers=0))


def test_a_run_whose_node_dies_begins_again_elsewhere(cluster, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="flooding")
    # The last test, since one of the two nodes is gone after it.
    node = cluster.list_all_nodes()[1]
    begun = set()

    def kill(row):
        begun.add(row.run.seed)
        # Both nodes are at work then.
        if len(begun) == 2 and node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)

    problem = small(max_epochs=1500)  # long enough to be at work when the node dies
    runs = [Run(problem, level, seed=seed) for seed in (0, 1) for level in (0.1, 0.3, 0.4)]
    records = on_ray(runs, ledger=tmp_path / "ledger.sqlite", on_row=kill)
    assert node not in cluster.list_all_nodes()
    assert "begins again" in caplog.text
    assert hashes(records) == hashes(run_all(runs, ledger=False, workers=0))
