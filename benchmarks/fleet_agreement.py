"""Do fleets agree with single Runs? Test accuracy over whole trainings, cell by cell.

    python benchmarks/fleet_agreement.py [--cells 0 1] [--levels 0 0.1 0.2] [--epochs 100]
    python benchmarks/fleet_agreement.py                 # nine cells, 51 levels, seed 0, 500 epochs

The nine cells of Ishida et al., ICML 2020: rounding grows over hundreds of epochs, so single
accuracies differ, but their mean must not. The script prints the mean difference of test accuracy
(fleet minus single, points) with its 95 % interval over levels, for each cell and for all, every
difference above three points, and the difference of the training loss.

Trainings of full length have their single side in ``benchmarks/levels``, which another machine
trained: then two differences are mixed, that of fleets and that of processors. With ``--single``
the single side is trained here, too. Everything trained is looked up in the ledger, so the script
may be stopped and started again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from flooding import Run, run_all
from flooding.experiments.level_benchmark import LevelBenchmark
from flooding.experiments.synthetic_cells import LEVELS, cells
from flooding.report.provenance import machine
from flooding.report.stats import paired

ARCHIVE = Path(__file__).parent / "levels"
LEDGER = Path(__file__).with_suffix("") / "ledger.sqlite"
LARGE = 3.0  # points, above which a difference is named


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=list(range(9)), help="0 to 8")
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--width", type=int, help="another width of the layers than 500")
    parser.add_argument("--single", action="store_true", help="train the single side here")
    parser.add_argument("--size", type=int, default=16, help="largest number of runs in a fleet")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--workers", type=int, help="default: one for each core")
    return parser.parse_args()


def plan(given):
    """Give the chosen cells and their Runs."""
    for index, cell in enumerate(cells()):
        if index not in given.cells:
            continue
        problem = cell.problem
        if given.epochs != problem.max_epochs:
            problem = replace(problem, max_epochs=given.epochs)
        if given.width is not None:
            model = problem.model
            keywords = {**model.keywords, "width": given.width}
            problem = replace(problem, model=type(model)(model.func, *model.args, **keywords))
        yield cell, [Run(problem, level, seed=given.seed) for level in given.levels]


def main():
    given = options()
    given.ledger.parent.mkdir(parents=True, exist_ok=True)
    archive = LevelBenchmark(ARCHIVE)
    print(machine(), flush=True)
    everything = ([], [])
    for cell, runs in plan(given):
        begin = time.perf_counter()
        fleet = run_all(runs, ledger=given.ledger, fleet=given.size, workers=given.workers)
        middle = time.perf_counter()
        is_archived = not given.single and all(run in archive for run in runs)
        single = (
            archive(runs)
            if is_archived
            else run_all(runs, ledger=given.ledger, workers=given.workers)
        )
        sides = []
        for records in (fleet, single):
            sides.append([100 * record.metrics["last.test_accuracy"] for record in records])
        for side, values in zip(everything, sides, strict=True):
            side.extend(values)
        losses = [[r.metrics["last.train_loss"] for r in records] for records in (fleet, single)]
        source = "the archive" if is_archived else "here"
        print(
            f"{cell.title}: accuracy {paired(*sides).format(2)} points, train loss "
            f"{paired(*losses).format(4)}; fleet {middle - begin:.0f} s, single side from {source} "
            f"{time.perf_counter() - middle:.0f} s",
            flush=True,
        )
        for run, ours, theirs in zip(runs, *sides, strict=True):
            if abs(ours - theirs) > LARGE:
                print(f"  level {run.level:g}: fleet {ours:.2f} %, single {theirs:.2f} %")
    print(f"all: accuracy {paired(*everything).format(2)} points, n = {len(everything[0])}")


if __name__ == "__main__":
    main()
