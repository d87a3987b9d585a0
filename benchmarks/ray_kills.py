"""Kill workers, nodes and drivers of Ray at random moments: the ledger is the undisturbed one.

    python benchmarks/ray_kills.py [--kills 20] [--runs 20] [--seed 0]

A cluster of two nodes on this machine, each with one core, is started by this script. A driver, a
process of its own, trains Runs on it and is started again whenever it dies, until all Records are
there; with more Runs if it ends before the last kill. Each kill is a SIGKILL at a random moment,
3 to 20 s after the last one; dice decide between a worker process that trains, the second node (its
raylet; a new node takes its place) and the driver. A worker or node may die only while the driver
lives, which must survive that.

At the end the ledger is compared with one that the pool of this machine wrote: the same keys, the
same measurements. No Run may have begun after its Record was stored, and no process of this script
may be left. Only processes that descend from this script are ever killed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import torch

from flooding import Problem, Run, run_all
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp
from flooding.training.ledger import Ledger

_EPOCHS = 150
_STORE = 80 << 20  # bytes of each node's object store


def make_runs(count: int) -> list[Run]:
    """Give Runs that share their first steps, ten for each seed."""
    problem = Problem(
        partial(two_gaussians, n_test=100, label_noise=0.1),
        partial(mlp, 10, 2, width=50, depth=2),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        max_epochs=_EPOCHS,
    )
    levels = [None, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]
    return [Run(problem, levels[n % len(levels)], seed=n // len(levels)) for n in range(count)]


def drive(address: str, path: str, count: int) -> None:
    """Be the driver: train what the ledger lacks."""
    import ray

    from flooding.integrations import ray as flooding_ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    flooding_ray.run_all(make_runs(count), ledger=path, progress=False)


class Storm:
    """The cluster, its driver and the dice.

    Args:
        path: The ledger.
        count: Number of Runs.
        seed: Of the dice.
    """

    def __init__(self, path: Path, count: int, seed: int) -> None:
        from ray.cluster_utils import Cluster

        self._dice = random.Random(seed)
        self._path, self.count = path, count
        self._more = count
        head = {"num_cpus": 1, "object_store_memory": _STORE, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._node = self._cluster.add_node(num_cpus=1, object_store_memory=_STORE)
        self._driver = self._start_driver()
        self.kills: collections.Counter[str] = collections.Counter()
        self.drivers = 1

    def _start_driver(self) -> psutil.Popen:
        code = "import sys, ray_kills; ray_kills.drive(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        return psutil.Popen(
            [sys.executable, "-c", code, self._cluster.address, str(self._path), str(self.count)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )

    def blow(self, kills: int) -> None:
        """Kill so many times, and then let the driver end."""
        while self.kills.total() < kills:
            time.sleep(self._dice.uniform(3, 20))
            if self._driver.poll() is not None:
                if self._driver.returncode != 0:
                    raise RuntimeError("the driver did not survive a worker or a node")
                self.count += self._more
                self._driver = self._start_driver()
            self._kill(self._dice.choice(["worker", "worker", "node", "driver"]))
        if self._driver.wait() != 0:
            raise RuntimeError("the driver did not survive a worker or a node")

    def _kill(self, victim: str) -> None:
        if victim == "worker":
            workers = list(self._workers())
            if not workers:
                return
            with contextlib.suppress(psutil.NoSuchProcess):  # it just ended
                self._dice.choice(workers).kill()
        elif victim == "node":
            self._cluster.remove_node(self._node, allow_graceful=False)
            self._node = self._cluster.add_node(num_cpus=1, object_store_memory=_STORE)
        else:
            self._driver.kill()
            self._driver.wait()
            self._driver = self._start_driver()
            self.drivers += 1
        self.kills[victim] += 1
        print(
            f"kill {self.kills.total()}: {victim}, {count_records(self._path)} Records",
            flush=True,
        )

    def _workers(self):
        """Give the processes of this cluster that train at the moment."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::flooding"):
                    yield process

    def end(self) -> None:
        """End the driver and the cluster."""
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
            self._driver.kill()
        self._driver.wait()
        self._cluster.shutdown()


def count_records(path: Path) -> int:
    """Count the Records of a ledger."""
    with contextlib.closing(Ledger(path)) as ledger:
        return len(ledger)


def content_hashes(path: Path) -> dict[str, str]:
    """Give what each Record of a ledger measured, by key."""
    with contextlib.closing(Ledger(path)) as ledger:
        return {key: record.content_hash for key, record in ledger.records()}


def count_trained_twice(path: Path) -> int:
    """Count the starts of a Run after its Record was stored."""
    with contextlib.closing(Ledger(path)) as ledger:
        ends = {}
        for key, record in ledger.records():
            ends[key] = record.metadata["began"] + record.metadata["seconds"]
        # A second is what a message may take on a busy machine.
        return sum(at > ends[key] + 1 for key, _, at, _ in ledger.starts() if key in ends)


def main() -> None:
    """Run the experiment and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm, stormy = Path(folder, "calm.sqlite"), Path(folder, "stormy.sqlite")
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        storm = Storm(stormy, options.runs, options.seed)
        try:
            storm.blow(options.kills)
            processes = psutil.Process().children(recursive=True)
        finally:
            storm.end()
        ours = [process for process in processes if process.pid not in before]
        _, alive = psutil.wait_procs(ours, timeout=15)
        run_all(make_runs(storm.count), ledger=calm, progress=False)
        with contextlib.closing(Ledger(stormy)) as ledger:
            starts = len(ledger.starts())
        print({
            "kills": dict(storm.kills),
            "drivers": storm.drivers,
            "Runs": storm.count,
            "trainings begun": starts,
            "begun after its Record was stored": count_trained_twice(stormy),
            "ledger equal to the undisturbed one": content_hashes(calm) == content_hashes(stormy),
            "processes left": len(alive),
        })


if __name__ == "__main__":
    main()
