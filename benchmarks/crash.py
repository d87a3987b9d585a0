"""Kill the demo, or a search, at random moments and start it again: the result is the same.

    python benchmarks/crash.py [--kills 20] [--seed 0]
    python benchmarks/crash.py --search [--kills 100] [--seed 0]
    python benchmarks/crash.py --together [--kills 200] [--seed 0]

The demo: each kill is a SIGKILL of the parent or of one worker (a coin decides), at a moment
uniform over 1 to 9 s after the start. After a worker's death the parent must go on, so it is killed
too, 1 to 4 s later. Then the demo runs to its end and is compared with an undisturbed one: tables,
the measured part of every Record, what was started when. Nothing may be lost, and no process may
stay behind.

The search: a grid of 51 levels, and a seed for every 20 signals, with two workers. Each signal
waits for the first Record since the last one, and for a time drawn from an exponential distribution
with mean 0.7 s. Dice decide between the parent and one of its workers, and between KILL, TERM, INT
(for the parent) and STOP, which CONT follows after 1 to 2 s. A parent that ended is started again;
it must survive everything that happens to its workers. Then the search runs to its end, and its
ledger is compared with an undisturbed one.

Together: two such searches with one ledger and one --out, and a Python program that calls
``flooding.run_all`` from four threads, for networks with dropout, in this process and in workers.
The dice choose the program too.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil

from flooding import Problem, Run, run_all
from flooding.data.synthetic import sinusoid
from flooding.models import mlp
from flooding.training.ledger import Ledger


def command(ledger, out):
    return [sys.executable, "-m", "flooding", "demo", "--ledger", str(ledger), "--out", str(out)]


def kill_once(ledger, out, dice):
    """Start the demo and kill the parent or a worker; say which, and how many survived it."""
    parent = psutil.Popen(
        command(ledger, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(dice.uniform(1, 9))
    children = parent.children() if parent.is_running() else []
    victim = "worker" if children and dice.random() < 0.5 else "parent"
    if victim == "worker":
        dice.choice(children).kill()
        time.sleep(dice.uniform(1, 4))
        assert parent.poll() in {None, 0}, "the parent did not survive its worker"
        children = parent.children() if parent.is_running() else []
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    return victim, len(alive)


def finish(ledger, out):
    """Run the demo to its end and return what it prints."""
    return subprocess.run(
        command(ledger, out), capture_output=True, text=True, check=True
    ).stdout.replace(str(out), "")


def count_trained_twice(ledger):
    """Count the starts of a Run after it had finished."""
    ends = {}
    for key, record in ledger.records():
        ends[key] = record.metadata["began"] + record.metadata["seconds"]
    return sum(at > ends[key] for key, _, at, _ in ledger.starts() if key in ends)


def crash(kills, seed):
    """Run the experiment and return its figures."""
    dice, folder = random.Random(seed), Path(tempfile.mkdtemp())
    os.chdir(folder)
    calm, stormy = folder / "calm.sqlite", folder / "stormy.sqlite"
    counts, orphans = {"parent": 0, "worker": 0}, 0
    for number in range(kills):
        victim, left = kill_once(stormy, folder / "out", dice)
        counts[victim] += 1
        orphans += left
        print(f"kill {number + 1}: {victim}, {count(stormy)} runs finished", flush=True)
    last, undisturbed = finish(stormy, folder / "out"), finish(calm, folder / "out")
    hashes = content_hashes(stormy)
    return {
        "kills": counts,
        "orphans alive after 5 s": orphans,
        "runs": len(hashes),
        "trainings begun": len(Ledger(stormy).starts()),
        "finished runs trained again": count_trained_twice(Ledger(stormy)),
        "measured parts identical": content_hashes(calm) == hashes,
        "tables identical": last == undisturbed,
    }


LEVELS = ",".join(f"{n / 100:g}" for n in range(51))


def search_command(ledger, out, seeds):
    task = [
        "find",
        "two-gaussians",
        "--epochs",
        "40",
        "--strategy",
        "grid",
        "--levels",
        LEVELS,
        "--seeds",
        str(seeds),
    ]
    return [
        sys.executable,
        "-m",
        "flooding",
        *task,
        "--workers",
        "2",
        "--ledger",
        str(ledger),
        "--out",
        str(out),
    ]


def threads_command(ledger, seeds):
    return [
        sys.executable,
        str(Path(__file__).absolute()),
        "--threads",
        str(ledger),
        "--seeds",
        str(seeds),
    ]


def train_in_threads(ledger, seeds):
    """Call ``run_all`` from four threads, every other time without workers."""
    network = partial(mlp, 2, 2, width=100, depth=3, dropout=0.2)
    problem = Problem(partial(sinusoid, n_test=100), network, batch_size=20, max_epochs=40)
    runs = [
        [Run(problem, level, seed=seed) for level in (None, 0.2, 0.3, 0.4)]
        for seed in range(2 * seeds)
    ]
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(run_all, part, ledger=ledger, workers=2 * (n % 2))
            for n, part in enumerate(runs)
        ]
        for call in calls:
            call.result()


def count(ledger):
    """Count the Records in a ledger that others write to."""
    if not ledger.exists():
        return 0
    with contextlib.closing(Ledger(ledger)) as records:
        return len(records)


def content_hashes(ledger):
    """Give the hash of every Record in a ledger, by its key."""
    with contextlib.closing(Ledger(ledger)) as records:
        return {key: record.content_hash for key, record in records.records()}


def hit(parent, dice):
    """Send a signal to a program or one of its workers; say which, and who survived a parent."""
    workers = [
        child for child in parent.children(recursive=True) if "serve" in " ".join(child.cmdline())
    ]
    who = "worker" if workers and dice.random() < 0.5 else "parent"
    victim = dice.choice(workers) if who == "worker" else parent
    name = dice.choice(["KILL", "TERM", "STOP"] + ["INT"] * (who == "parent"))
    victim.send_signal(getattr(signal, f"SIG{name}"))
    if name == "STOP":
        time.sleep(dice.uniform(1, 2))
        victim.send_signal(signal.SIGCONT)
    if who == "worker" or name == "STOP":
        return f"{who} {name}", []
    with contextlib.suppress(psutil.TimeoutExpired):
        parent.wait(30)
    if parent.poll() is None:
        parent.kill()
        parent.wait()
        name += ", had to be killed after 30 s"
    _, alive = psutil.wait_procs(workers, timeout=5)
    for orphan in alive:
        orphan.kill()
    return f"{who} {name}", alive


def storm(commands, ledger, kills, dice):
    """Send signals until there were enough or all is done; restart programs that a signal ended."""
    log = ledger.with_suffix(".log").open("a")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": log}
    counts, orphans, finished = collections.Counter(), 0, count(ledger)
    programs = [psutil.Popen(command, **quiet) for command in commands]
    struck, done = (
        set(),
        set(),
    )  # programs that may end with a signal's code, and those with nothing left to do
    while counts.total() < kills and len(done) < len(commands):
        for n, program in enumerate(programs):
            if n not in done and program.poll() is not None:
                assert program.returncode == 0 or n in struck, ledger.with_suffix(
                    ".log"
                ).read_text()[-5000:]
                if program.returncode == 0:
                    done.add(n)
                else:
                    programs[n] = psutil.Popen(commands[n], **quiet)
                struck.discard(n)
        running = [n for n, program in enumerate(programs) if program.poll() is None]
        if not running or count(ledger) == finished:
            time.sleep(0.05)
            continue
        time.sleep(dice.expovariate(1 / 0.7))
        n = dice.choice(running)
        try:
            label, alive = hit(programs[n], dice)
        except psutil.NoSuchProcess:  # it ended meanwhile
            continue
        if label.startswith("parent") and "STOP" not in label:
            struck.add(n)
        counts[label] += 1
        orphans += len(alive)
        finished = count(ledger)
        print(f"{counts.total()}: program {n + 1}, {label}; {finished} runs finished", flush=True)
    if len(done) == len(commands):
        print("everything was trained before the last signal")
    for program in programs:
        if program.poll() is None:
            program.kill()
            program.wait()
    return dict(counts), orphans


def crash_search(kills, seed, together=False):
    """Run the experiment with a search, or with three programs at once, and return its figures."""
    dice, folder = random.Random(seed), Path(tempfile.mkdtemp())
    calm, stormy = folder / "calm.sqlite", folder / "stormy.sqlite"
    seeds = max(1, kills // 20)

    def commands(ledger):
        search = search_command(ledger, folder / "out", seeds)
        return [search, search, threads_command(ledger, seeds)] if together else [search]

    counts, orphans = storm(commands(stormy), stormy, kills, dice)
    answers = []
    for ledger in (stormy, calm):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        programs = [subprocess.Popen(command, **pipes) for command in commands(ledger)]
        printed = [program.communicate() for program in programs]
        assert not any(program.returncode for program in programs), printed
        answers += [
            line.split("(")[0]
            for out, _ in printed
            for line in out.splitlines()
            if "(grid;" in line
        ]
    hashes = content_hashes(stormy)
    left = sorted(path.name for path in folder.rglob("*") if path.suffix in {".part", ".lock"})
    return {
        "signals": counts,
        "orphans alive after 5 s": orphans,
        "runs": len(hashes),
        "trainings begun": len(Ledger(stormy).starts()),
        "finished runs trained again": count_trained_twice(Ledger(stormy)),
        "ledgers equal": content_hashes(calm) == hashes,
        "answers equal": len(set(answers)) == 1,
        "temporary files and locks left": len(left),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", action="store_true", help="a search instead of the demo")
    parser.add_argument(
        "--together", action="store_true", help="two searches and a program with threads, at once"
    )
    parser.add_argument("--kills", type=int, help="20, 100 of a search, 200 together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        train_in_threads(arguments.threads, arguments.seeds)
        return
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's "&" ignores it, also in what is started here
    run, kills = (crash_search, 100) if arguments.search else (crash, 20)
    if arguments.together:
        run, kills = partial(crash_search, together=True), 200
    for name, value in run(arguments.kills or kills, arguments.seed).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
