"""Write ``ledger_0_1_0.sqlite.gz``, a ledger of flooding 0.1.0, which test_legacy.py reads.

This needs the source of flooding 0.1.0, here in /tmp/old/src, and torch 2.13.0 for the CPU::

    PYTHONPATH=/tmp/old/src python tests/ledger_0_1_0.py

Everything is imported in the function, since pytest looks for doctests in this file too.
"""

import gzip
import sqlite3
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

LEDGER = Path(__file__).with_suffix(".sqlite.gz")


def make_runs():
    """Make the Runs with the names of flooding 0.1.0; test_legacy.py makes the same ones."""
    import torch
    from flooding.losses import IFlood, PerClass, SoftAD
    from flooding.problem import Score
    from torch.optim.lr_scheduler import StepLR

    from flooding import Problem, Run, metrics, tasks
    from flooding.data.synthetic import two_gaussians
    from flooding.levels import Heuristic, Plateau, Warmup
    from flooding.models import mlp

    data = partial(two_gaussians, n_train=20, n_val=10, n_test=20)
    small = partial(Problem, data, partial(mlp, 10, 2, width=4, depth=1), horizon=2)
    demo = tasks.demo_sinusoid(tasks.adam)
    sinusoid = partial(tasks.DATA["sinusoid"], n_train=20, n_val=10, n_test=20)
    return {
        "default optimizer": Run(small(), 0.3),
        "explicit Adam": Run(small(optimizer=partial(torch.optim.Adam, lr=1e-3)), 0.3),
        "demo_sinusoid": Run(replace(demo, probe=partial(tasks.plane, points=3)), 0.1, until=1),
        "digits": Run(tasks.real("digits", horizon=2), 0.2, until=1),
        "sinusoid": Run(Problem(sinusoid, partial(mlp, 2, 2, width=4), horizon=2), seed=1),
        "Warmup": Run(small(), Warmup(0.3, steps=4, stairs=2)),
        "Heuristic": Run(small(), Heuristic(until_accuracy=0.5, change=0.1, move=0.1)),
        "Plateau": Run(small(), Plateau(0.3, move=0.1, worse=1.2)),
        "SoftAD": Run(small(), 0.3, SoftAD(sigma=0.5)),
        "PerClass": Run(small(), PerClass(torch.tensor([0.1, 0.2])), IFlood()),
        "schedule and clip": Run(
            small(
                schedule=partial(StepLR, step_size=1),
                clip=1.0,
                report=partial(torch.nn.functional.cross_entropy, label_smoothing=0.0),
                score=Score(metrics.balanced_accuracy),
            ),
            0.3,
        ),
        "key": Run(Problem(data, torch.nn.Linear(10, 2), horizon=2, key="mine"), 0.3),
    }


def main():
    import torch

    from flooding import evaluate

    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the module that the Run named "key" holds
        runs = make_runs()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        records = evaluate(runs.values(), ledger=path, workers=0)
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM starts")  # they name processes of this machine
            database.commit()
            database.execute("PRAGMA journal_mode=DELETE")
            database.execute("VACUUM")
        LEDGER.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    print(len(records), "Records,", LEDGER.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
