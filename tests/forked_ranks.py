"""Ranks as forks of one process: to import a framework takes longer than what they train.

``python forked_ranks.py WORLD PACKAGES SCRIPT [ARGUMENT ...]`` imports the packages (with commas
between them), forks, and runs the script in each process, with the environment of torchrun. Where
one rank fails, the others are killed, and the exit code is 1.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
from pathlib import Path


def main() -> None:
    """Import, fork, and wait."""
    world, packages, script, *arguments = sys.argv[1:]
    for package in packages.split(","):
        importlib.import_module(package)
    ranks = set()
    for rank in range(int(world)):
        process = os.fork()
        if not process:
            run(script, arguments, rank, world)
            return
        ranks.add(process)
    has_failed = False
    while ranks:
        process, status = os.wait()
        ranks.discard(process)
        if status and not has_failed:
            has_failed = True
            # They would wait for it.
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    sys.exit(int(has_failed))


def run(script: str, arguments: list[str], rank: int, world: str) -> None:
    """Run the script as a rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "NODE_RANK": "0"}
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
