"""Kill the demo at random moments and start it again: nothing finished is trained twice, no orphan stays, same table.

    python benchmarks/crash.py [--kills 20] [--seed 0]

Each kill is a SIGKILL of the parent or of one worker (a coin decides), at a moment uniform over 1 to 9 s after the
start. After a worker's death the parent must go on, so it is killed too, 1 to 4 s later. Then the demo runs to its end
and is compared with an undisturbed one: tables, the measured part of every Record, and what was started when.
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, value in crash(arguments.kills, arguments.seed).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
