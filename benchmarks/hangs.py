"""Train where the user's data loaders have processes of their own: nothing hangs or stays.

    python benchmarks/hangs.py [--runs 50] [--limit 180]

Each run is a process of its own: a search or a training whose problem is read by a ``DataLoader``
with 0, 1 or 2 processes, forked, spawned or persistent, by ``find_level``, ``run_all``, the
command line or a notebook. A run that takes longer than the limit counts as hung. After its end
nothing of its process tree, nor of the sessions that its workers began, may be alive five seconds
later. The same seed gives the same runs.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flooding import Problem
from flooding.data import loaders


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 2))

    def forward(self, x):
        return self.layers(x)


generator = torch.Generator().manual_seed(0)
x = torch.randn(200, 4, generator=generator)
y = torch.randint(2, (200,), generator=generator)
options = {options}
loader = DataLoader(TensorDataset(x[:100], y[:100]), 20, **options)
splits = loaders.splits(train=loader, val=TensorDataset(x[100:], y[100:]))
problem = Problem(splits, Net, batch_size=20, max_epochs=30)
"""
CALLS = {
    "find_level": "from flooding import find_level\nprint(find_level(problem).cost)",
    "run_all": (
        "from flooding import Run, run_all\n"
        "print(len(run_all([Run(problem, level) for level in (None, 0.3, 0.5)], workers=2)))"
    ),
    "this process": "from flooding import find_level\nprint(find_level(problem, workers=0).cost)",
}
LOADERS = [
    {"num_workers": 0},
    {"num_workers": 1, "multiprocessing_context": "fork"},
    {"num_workers": 2, "multiprocessing_context": "fork"},
    {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
    {"num_workers": 1, "multiprocessing_context": "spawn"},
    {"num_workers": 2, "multiprocessing_context": "forkserver"},
]
WAYS = ["find_level", "run_all", "this process", "command line", "notebook"]


def write(folder, way, options):
    """Write what a run needs, and give its command."""
    (folder / "mine.py").write_text(MODULE.format(options=options))
    if way == "command line":
        return [sys.executable, "-m", "flooding", "find", "mine:problem", "--out", "out"]
    if way == "notebook":
        cells = ["from mine import problem", CALLS["find_level"]]
        code = (
            "import nbformat, nbclient\n"
            "book = nbformat.v4.new_notebook()\n"
            f"book.cells = [nbformat.v4.new_code_cell(cell) for cell in {cells!r}]\n"
            "nbclient.NotebookClient(book, timeout=600).execute()\n"
        )
        return [sys.executable, "-c", code]
    # A script without a guard would run itself again in every spawned loader: here as users write
    # it, with one.
    body = "\n".join(
        f"    {line}" for line in ["from mine import problem", *CALLS[way].splitlines()]
    )
    (folder / "script.py").write_text(f'if __name__ == "__main__":\n{body}\n')
    return [sys.executable, "script.py"]


def run(way, options, limit):
    """Run one and say how it ended, and how many processes it left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = {"PYTHONPATH": os.pathsep.join([name, os.environ.get("PYTHONPATH", "")])}
        environment = {
            **os.environ,
            **path,
            "FLOODING_LEDGER": str(folder / "ledger.sqlite"),
            "FLOODING_TRIAL": name,
        }
        with (folder / "output").open("wb") as output:
            command = write(folder, way, options)
            process = psutil.Popen(command, cwd=name, env=environment, stdout=output, stderr=output)
            try:
                code = process.wait(timeout=limit)
                ended = "ended" if code == 0 else f"exit code {code}"
            except psutil.TimeoutExpired:
                ended = "hung"
        if ended == "hung":
            process.send_signal(signal.SIGKILL)
            process.wait()
        deadline = time.monotonic() + 5
        while (left := marked(name)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for child in left:
            child.kill()
        if ended != "ended":
            print((folder / "output").read_text(errors="replace")[-3000:], flush=True)
        return ended, len(left)


def marked(name):
    """List the processes that a run started, by a mark in their environment."""
    processes = []
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get("FLOODING_TRIAL") == name
            ):
                processes.append(process)
        except (psutil.Error, OSError):
            continue
    return processes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument(
        "--limit", type=float, default=180.0, help="seconds after which a run counts as hung"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    every = list(itertools.product(WAYS, LOADERS))
    random.Random(arguments.seed).shuffle(every)
    results, left, longest = collections.Counter(), 0, 0.0
    for number, (way, options) in enumerate(
        itertools.islice(itertools.cycle(every), arguments.runs)
    ):
        began = time.monotonic()
        ended, stayed = run(way, options, arguments.limit)
        seconds = time.monotonic() - began
        results[ended] += 1
        left, longest = left + stayed, max(longest, seconds)
        print(
            f"run {number + 1}: {way}, {options}: {ended} after {seconds:.1f} s, {stayed} left",
            flush=True,
        )
    print(f"{dict(results)}, longest {longest:.1f} s, processes left: {left}")


if __name__ == "__main__":
    subprocess.run([sys.executable, "-c", "import nbclient, ipykernel"], check=True)
    main()
