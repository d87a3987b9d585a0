"""Simulate 10,000 Runs on 1,000 workers: what the cluster and its driver would do.

    python benchmarks/cluster_simulation.py [--measure] [--runs 10000]

No such cluster is at hand. What is known are the durations of real Runs, from the archives of two
experiments, and what the driver's own work costs on this machine. ``--measure`` takes the latter
anew, with a local Ray: storing a Record and its start in a ledger, handing out a task, taking in a
message, and looking for messages among many tasks. Each is the fastest of several rounds, since
machines are shared; storing by the clock, since it waits for the disk, and the others by the
processor's time. They go into ``cluster_simulation.json``, which the simulation reads.

The model: machines of 16 workers, of which each trains one Run at a time. Every machine fails after
an exponential time of 100 hours and is back after five minutes; its Runs begin again. One machine
in 20 is three times slower. A worker takes five seconds to start. The driver does one thing at a
time: it takes in all messages that wait, in one go, and hands out as many Runs as ended. Each Run
sends a message when it starts, rows at the interval that the driver asks for, and its Record. Runs
do not share their first steps, since the durations are those after sharing.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import heapq
import itertools
import json
import logging
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flooding import Problem
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp

ROOT = Path(__file__).parents[1]
COSTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "scaling" / "cluster.md"
ARCHIVES = ("bakeoff", "kim2022")
PER_MACHINE = 16
HOURS_TO_FAILURE = 100.0  # of a machine: 1 % fail in an hour
REPAIR = 300.0  # seconds
SLOW_SHARE, SLOWNESS = 0.05, 3.0
START = 5.0  # seconds


class Costs(NamedTuple):
    """Seconds of the driver's work.

    Args:
        store: Storing a Record and the start of its Run.
        submit: Handing out a task.
        message: Taking in a message.
        look: Looking for messages, for each task that is handed out.
    """

    store: float
    submit: float
    message: float
    look: float


# Measuring the driver


def measure() -> Costs:
    """Measure the driver's work on this machine."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        store = _measure_store(Path(folder, "ledger.sqlite"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    try:
        return Costs(store, *_measure_ray())
    finally:
        ray.shutdown()


def _fastest(
    action: Callable[[], object],
    count: int,
    clock: Callable[[], float] = time.process_time,
    rounds: int = 20,
) -> float:
    """Give the seconds of one call, in the fastest of several rounds of so many calls."""
    best = math.inf
    for _ in range(rounds):
        began = clock()
        for _ in range(count):
            action()
        best = min(best, (clock() - began) / count)
    return best


def make_problem() -> Problem:
    """Give a small problem with as many epochs as the paper's."""
    data, model = partial(two_gaussians, n_test=100), partial(mlp, 10, 2, width=20)
    return Problem(data, model, max_epochs=500)


def _measure_store(path: Path) -> float:
    from flooding import Run, run_all
    from flooding.training.ledger import Ledger

    [record] = run_all([Run(make_problem(), 0.3)], ledger=False, workers=0)
    numbers = itertools.count()
    with contextlib.closing(Ledger(path)) as ledger:

        def store() -> None:
            key = f"{next(numbers):064x}"
            ledger.start(key, 500)
            ledger.add(key, record)

        return _fastest(store, 20, time.perf_counter)


def _measure_ray() -> tuple[float, float, float]:
    import ray

    from flooding import Run
    from flooding.integrations._ray_pickle import dumps
    from flooding.training.jobs import Job

    @ray.remote(num_returns="streaming", max_retries=0)
    def talk(content, number):
        for _ in range(number):
            yield [content]

    content = bytes(3000)
    # Messages that are there already.
    stream = talk.remote(content, 401)
    ray.get(stream.completed())

    def take() -> None:
        ray.wait([stream], timeout=0, fetch_local=False)
        ray.get(next(stream))

    message = _fastest(take, 20)
    # Tasks that wait for a resource that is not there.
    waiting: list[ray.ObjectRefGenerator] = []
    needs = talk.options(resources={"none": 1})
    job = Job(0, Run(make_problem(), 0.3), "0" * 64, None)
    submit = _fastest(lambda: waiting.append(needs.remote(dumps(job, []), 1)), 20)

    def look() -> None:
        ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)

    look_seconds = _fastest(look, 3) / len(waiting)
    for each in waiting:
        ray.cancel(each, force=True)
    return submit, message, look_seconds


# The simulation


def durations(count: int, scale: float, dice: np.random.Generator) -> np.ndarray:
    """Draw durations of Runs from archives, in seconds."""
    seconds = []
    for name in ARCHIVES:
        with np.load(ROOT / "docs" / "results" / f"{name}.npz") as archive:
            seconds.append(archive["seconds"])
    known = np.concatenate(seconds)
    return scale * dice.choice(known[np.isfinite(known) & (known > 0)], count)


@dataclass
class Result:
    """What a simulation found; seconds, and shares of all workers' time or of the driver's."""

    makespan: float
    useful: float
    repeated: float
    driver_busy: float
    records_a_second: float
    longest_wait: float
    deaths: int


@dataclass
class _Machine:
    slowness: float
    epoch: int = 0  # how often it has failed
    running: dict[int, float] = field(default_factory=dict)  # begin of each Run


class Simulation:
    """One simulation.

    Args:
        lengths: Durations of the Runs, in seconds.
        workers: How many Runs are trained at a time.
        costs: Of the driver's work.
        rows: Whether the driver wants every row, to show progress, or Records alone.
        dice: Random numbers.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        workers: int,
        costs: Costs,
        rows: bool,
        dice: np.random.Generator,
    ) -> None:
        self._lengths, self._workers, self._costs, self._dice = lengths, workers, costs, dice
        self._interval = 0.1 + 0.002 * workers if rows else 5.0
        count = -(-workers // PER_MACHINE)
        slow = dice.random(count) < SLOW_SHARE
        self._machines = [_Machine(SLOWNESS if each else 1.0) for each in slow]
        self._events: list[tuple[float, int, str, tuple]] = []
        self._numbers = itertools.count()
        self._waiting = list(range(len(lengths)))[::-1]  # not handed out yet
        self._pending: collections.deque[int] = (
            collections.deque()
        )  # handed out, and without a worker
        self._free: list[int] = []  # the machine of each free worker
        self._mail: list[tuple[float, str, int]] = []  # time, kind, Run
        self._driver_free, self._busy, self._longest = 0.0, 0.0, 0.0
        self._driver_called = False
        self._useful = self._repeated = 0.0
        self._done, self._deaths, self._handed_out = 0, 0, 0

    def _at(self, when: float, kind: str, *details: object) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind, details))

    def run(self) -> Result:
        """Simulate until the last Record is stored."""
        for index, machine in enumerate(self._machines):
            for _ in range(min(PER_MACHINE, self._workers - index * PER_MACHINE)):
                self._at(START, "free", index, machine.epoch)
            self._at(self._dice.exponential(3600 * HOURS_TO_FAILURE), "fail", index)
        self._wake_driver(0.0)
        now = 0.0
        while self._done < len(self._lengths):
            now, _, kind, details = heapq.heappop(self._events)
            getattr(self, f"_on_{kind}")(now, *details)
        now = max(now, self._driver_free)
        total = now * self._workers
        return Result(
            now,
            self._useful / total,
            self._repeated / total,
            self._busy / now,
            len(self._lengths) / now,
            self._longest,
            self._deaths,
        )

    def _on_free(self, now: float, machine: int, epoch: int) -> None:
        """A worker takes the next Run that was handed out."""
        if self._machines[machine].epoch != epoch:
            return
        if not self._pending:
            self._free.append(machine)
            return
        run = self._pending.popleft()
        self._machines[machine].running[run] = now
        self._send(now, "started", run)
        seconds = self._lengths[run] * self._machines[machine].slowness
        self._at(now + seconds, "end", machine, epoch, run)
        if self._interval < seconds:
            self._at(now + self._interval, "row", machine, epoch, run)

    def _on_row(self, now: float, machine: int, epoch: int, run: int) -> None:
        if self._machines[machine].epoch == epoch and run in self._machines[machine].running:
            self._send(now, "row", run)
            self._at(now + self._interval, "row", machine, epoch, run)

    def _on_end(self, now: float, machine: int, epoch: int, run: int) -> None:
        if self._machines[machine].epoch != epoch:
            return
        self._useful += now - self._machines[machine].running.pop(run)
        self._send(now, "record", run)
        self._on_free(now, machine, epoch)

    def _on_fail(self, now: float, index: int) -> None:
        machine = self._machines[index]
        machine.epoch += 1
        self._free = [each for each in self._free if each != index]
        for run, began in machine.running.items():
            self._repeated += now - began
            self._deaths += 1
            self._send(now, "death", run)
        machine.running.clear()
        for _ in range(min(PER_MACHINE, self._workers - index * PER_MACHINE)):
            self._at(now + REPAIR, "free", index, machine.epoch)
        self._at(now + REPAIR + self._dice.exponential(3600 * HOURS_TO_FAILURE), "fail", index)

    def _send(self, now: float, kind: str, run: int) -> None:
        self._mail.append((now, kind, run))
        self._wake_driver(now)

    def _wake_driver(self, now: float) -> None:
        """Have the driver look for messages as soon as it has nothing else to do."""
        if not self._driver_called:
            self._driver_called = True
            self._at(max(now, self._driver_free), "driver")

    def _on_driver(self, now: float) -> None:
        """The driver takes in what is there, and hands out what it may."""
        self._driver_called = False
        cost = self._costs.look * self._handed_out
        mail, self._mail = self._mail, []
        for sent, kind, run in mail:
            cost += self._costs.message
            self._longest = max(self._longest, now + cost - sent)
            if kind == "record":
                cost += self._costs.store
                self._done += 1
                self._handed_out -= 1
            elif kind == "death":
                self._handed_out -= 1
                self._waiting.append(run)
        for _ in range(64):
            if not self._waiting or self._handed_out >= 2 * self._workers + 64:
                break
            cost += self._costs.submit
            self._handed_out += 1
            self._at(now + cost, "handed", self._waiting.pop())
        else:
            # There is more to hand out after the next look for messages.
            self._wake_driver(now + cost)
        self._busy += cost
        self._driver_free = now + cost

    def _on_handed(self, now: float, run: int) -> None:
        """A Run that was handed out goes to a free worker, or waits for one."""
        self._pending.append(run)
        if self._free:
            machine = self._free.pop()
            self._on_free(now, machine, self._machines[machine].epoch)


# The table


def draw(costs: Costs, count: int) -> str:
    """Simulate and draw the table."""
    lines = [
        "| Runs | Workers | Median Run | Rows | Time | Workers train | Trained twice | Driver busy "
        "| Records a second | Longest wait for the driver |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = [
        (count, 16, 1.0, True),
        (count, 100, 1.0, True),
        (count, 1000, 1.0, True),
        (count, 1000, 1.0, False),
        (count, 1000, 30.0, False),
        (10 * count, 5000, 1.0, False),
        (10 * count, 20_000, 1.0, False),
    ]
    for number, workers, scale, rows in cases:
        dice = np.random.default_rng(0)
        lengths = durations(number, scale, dice)
        result = Simulation(lengths.tolist(), workers, costs, rows, dice).run()
        lines.append(
            f"| {number:,} | {workers:,} | {_time(float(np.median(lengths)))} "
            f"| {'every' if rows else 'last'} | {_time(result.makespan)} | {result.useful:.0%} "
            f"| {result.deaths} Runs, {result.repeated:.1%} | {result.driver_busy:.0%} "
            f"| {result.records_a_second:.1f} | {_time(result.longest_wait)} |"
        )
        print(lines[-1], flush=True)
    limit = 1 / (costs.store + costs.submit + 2 * costs.message)
    lines.append(
        f"\nOn this machine the driver stores at most {1 / costs.store:,.0f} Records a second, and "
        f"sees at most {limit:,.0f} Runs a second through from handing out to storing: storing "
        f"takes {1e3 * costs.store:.1f} ms, handing out {1e3 * costs.submit:.1f} ms, a message "
        f"{1e6 * costs.message:.0f} µs, and a look for messages {1e6 * costs.look:.1f} µs for each "
        "task that is handed out."
    )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Measure, simulate and rewrite the table on the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure the driver anew")
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    if options.measure:
        COSTS.write_text(json.dumps(measure()._asdict(), indent=1) + "\n")
    table = draw(Costs(**json.loads(COSTS.read_text())), options.runs)
    pattern = r"(<!-- simulation:begin -->\n).*?(<!-- simulation:end -->)"
    page = re.sub(pattern, lambda m: f"{m[1]}{table}\n{m[2]}", PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
