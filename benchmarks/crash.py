"""Kill the demo, or a search, at random moments and start it again: nothing is lost, no orphan stays, same result.

    python benchmarks/crash.py [--kills 20] [--seed 0]
    python benchmarks/crash.py --search [--kills 100] [--seed 0]

The demo: each kill is a SIGKILL of the parent or of one worker (a coin decides), at a moment uniform over 1 to 9 s
after the start. After a worker's death the parent must go on, so it is killed too, 1 to 4 s later. Then the demo runs
to its end and is compared with an undisturbed one: tables, the measured part of every Record, what was started when.

The search: a grid of 51 levels and 5 seeds with two workers. Each kill waits for the first Record since the last one,
and for a time drawn from an exponential distribution with mean 0.7 s. A coin decides between the parent, which is then
started again, and one of the workers, which the parent must survive. Then the search runs to its end, and its ledger is
compared with an undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from flooding.ledger import Ledger


def command(ledger, out):
    return [sys.executable, "-m", "flooding", "demo", "--ledger", str(ledger), "--out", str(out)]


def kill_once(ledger, out, dice):
    """Start the demo, kill the parent or a worker, and tell who died and whether anybody survived the parent."""
    parent = psutil.Popen(command(ledger, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    return subprocess.run(command(ledger, out), capture_output=True, text=True, check=True).stdout.replace(str(out), "")


def trained_twice(book):
    """Count the starts of a Run after it had finished."""
    ended = {key: record.circumstances["began"] + record.circumstances["seconds"] for key, record in book.records()}
    return sum(at > ended[key] for key, _, at, _ in book.starts() if key in ended)


def crash(kills, seed):
    """Run the experiment and return its figures."""
    dice, folder = random.Random(seed), Path(tempfile.mkdtemp())
    os.chdir(folder)
    calm, stormy = folder / "calm.sqlite", folder / "stormy.sqlite"
    told, orphans = {"parent": 0, "worker": 0}, 0
    for number in range(kills):
        victim, left = kill_once(stormy, folder / "out", dice)
        told[victim] += 1
        orphans += left
        print(f"kill {number + 1}: {victim}, {len(Ledger(stormy)) if stormy.exists() else 0} runs finished", flush=True)
    last, undisturbed = finish(stormy, folder / "out"), finish(calm, folder / "out")
    books = {name: dict(Ledger(path).records()) for name, path in (("calm", calm), ("stormy", stormy))}
    same = {key: r.measured for key, r in books["calm"].items()} == {k: r.measured for k, r in books["stormy"].items()}
    return {
        "kills": told,
        "orphans alive after 5 s": orphans,
        "runs": len(books["stormy"]),
        "trainings begun": len(Ledger(stormy).starts()),
        "finished runs trained again": trained_twice(Ledger(stormy)),
        "measured parts identical": same,
        "tables identical": last == undisturbed,
    }


LEVELS = ",".join(f"{n / 100:g}" for n in range(51))


def search_command(ledger, out):
    task = ["find", "two-gaussians", "--epochs", "40", "--strategy", "grid", "--levels", LEVELS, "--seeds", "5"]
    return [sys.executable, "-m", "flooding", *task, "--workers", "2", "--ledger", str(ledger), "--out", str(out)]


def count(ledger):
    """Count the Records in a ledger that others write to."""
    if not ledger.exists():
        return 0
    book = Ledger(ledger)
    try:
        return len(book)
    finally:
        book.close()


def storm(ledger, out, kills, dice):
    """Kill parents and workers until there were enough kills or nothing is left to do."""
    said = ledger.with_suffix(".log").open("a")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": said}
    told, orphans, parent, known = {"parent": 0, "worker": 0}, 0, None, count(ledger)
    while sum(told.values()) < kills:
        if parent is None or parent.poll() is not None:
            assert parent is None or parent.returncode == 0, ledger.with_suffix(".log").read_text()
            if parent is not None:
                print("the search finished before the last kill")
                break
            parent = psutil.Popen(search_command(ledger, out), **quiet)
        if count(ledger) == known:
            time.sleep(0.05)
            continue
        time.sleep(dice.expovariate(1 / 0.7))
        children = parent.children() if parent.is_running() else []
        victim = "worker" if children and dice.random() < 0.5 else "parent"
        told[victim] += 1
        (dice.choice(children) if victim == "worker" else parent).kill()
        if victim == "parent":
            parent.wait()
            _, alive = psutil.wait_procs(children, timeout=5)
            orphans += len(alive)
            parent = None
        known = count(ledger)
        print(f"kill {sum(told.values())}: {victim}, {known} runs finished", flush=True)
    if parent is not None:
        parent.kill()
        parent.wait()
    return told, orphans


def crash_search(kills, seed):
    """Run the experiment with a search and return its figures."""
    dice, folder = random.Random(seed), Path(tempfile.mkdtemp())
    calm, stormy = folder / "calm.sqlite", folder / "stormy.sqlite"
    told, orphans = storm(stormy, folder / "out", kills, dice)
    answers = []
    for ledger in (stormy, calm):
        done = subprocess.run(search_command(ledger, folder / "out"), capture_output=True, text=True, check=True)
        answers.append(next(line for line in done.stdout.splitlines() if "(grid;" in line).split("(")[0])
    books = [{key: record.measured for key, record in Ledger(path).records()} for path in (calm, stormy)]
    return {
        "kills": told,
        "orphans alive after 5 s": orphans,
        "runs": len(books[1]),
        "trainings begun": len(Ledger(stormy).starts()),
        "finished runs trained again": trained_twice(Ledger(stormy)),
        "ledgers equal": books[0] == books[1],
        "answers equal": answers[0] == answers[1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--search", action="store_true", help="a search instead of the demo")
    parser.add_argument("--kills", type=int, help="20, or 100 of a search")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run, kills = (crash_search, 100) if arguments.search else (crash, 20)
    for name, value in run(arguments.kills or kills, arguments.seed).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
