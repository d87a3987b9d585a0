"""Ray: Runs on two nodes of one machine are those of the pool, whatever dies."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray", reason="ray is not installed: flooding[ray]")
import ray
from ray.cluster_utils import Cluster

from flooding import Run, find_level, run_all
from flooding.integrations import _ray_jobs
from flooding.integrations import ray as flooding_ray
from flooding.levels import Plateau, Warmup
from flooding.methods import IFlood
from flooding.testing import check_runner
from flooding.training import job_queue
from flooding.training.ledger import Ledger
from small import Dying, normed, small

TESTS = Path(__file__).parent
# Ray leaves sockets and its log thread to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def cluster():
    """One session of Ray for all tests: two nodes of one core each."""
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
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


# What dies


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
def test_a_full_object_store_is_named(monkeypatch):
    def put(item):
        raise ray.exceptions.ObjectStoreFullError("no room")

    monkeypatch.setattr(_ray_jobs.ray, "put", put)
    with pytest.raises(RuntimeError, match=r"larger object_store_memory\. ObjectStoreFullError"):
        on_ray([Run(small())], ledger=False)


DRIVER = """
import sys
from functools import partial
import ray
from flooding import Run
from flooding.integrations.ray import run_all
from test_integration_ray import driver_runs
def began(runs):
    print("began", flush=True)
run_all(driver_runs(), address=sys.argv[1], ledger=sys.argv[2], on_start=began)
"""


def driver_runs():
    return [Run(small(max_epochs=200), 0.3, seed=seed) for seed in range(6)]


def test_a_killed_driver_goes_on_from_the_ledger(cluster, tmp_path):
    path = tmp_path / "ledger.sqlite"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, cluster.address, str(path)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert driver.stdout.readline() == "began\n"
        while count_records(path) < 2:
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    kept = count_records(path)
    assert 2 <= kept < 6
    started = []
    records = on_ray(driver_runs(), ledger=path, on_start=started.extend)
    assert len(started) == 6 - kept
    assert hashes(records) == hashes(run_all(driver_runs(), ledger=False, workers=0))


def test_a_run_whose_node_dies_begins_again_elsewhere(cluster, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="flooding")
    node = cluster.add_node(num_cpus=1, resources={"mortal": 1}, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    killed = []

    def kill(row):
        if row.epoch == 3 and not killed:
            cluster.remove_node(node, allow_graceful=False)
            killed.append(node)
            cluster.add_node(num_cpus=1, resources={"mortal": 1}, object_store_memory=80 << 20)

    problem = small(max_epochs=300)
    # A prefix and its forks: their checkpoints go down with the node.
    runs = [Run(problem, level) for level in (0.1, 0.3, 0.4)]
    records = on_ray(runs, ledger=tmp_path / "l.sqlite", resources={"mortal": 1}, on_row=kill)
    assert killed
    assert "begins again" in caplog.text
    assert hashes(records) == hashes(run_all(runs, ledger=False, workers=0))
