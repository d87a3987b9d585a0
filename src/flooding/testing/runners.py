"""The contract test of a function that turns Runs into Records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flooding.level_search.base import Evaluate
from flooding.testing.rules import require
from flooding.training.problem import Problem
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["check_runner"]


def check_runner(run_all: Evaluate, problem: Problem) -> None:
    """Check that a ``run_all`` of your own, such as a cluster's, keeps what strategies rely on.

    Four short Runs of the problem are trained twice, in different orders. Checked are: a Record for
    each Run, in the order of the Runs, that carries this Run; a validation loss at the end; curves
    with a value before training and one after each epoch; equal measurements for equal Runs,
    whatever else is trained and in whatever order; that a Run of fewer epochs measures what a
    longer one measured until then; that no Runs give no Records.

    Args:
        run_all: Runs to Records, such as :func:`flooding.run_all`.
        problem: A small Problem of two epochs or more whose data, model and loss are reproducible.

    Raises:
        AssertionError: If a rule is broken; the message names it.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem, run_all
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> data = partial(two_gaussians, n_test=100)
        >>> problem = Problem(data, partial(mlp, 10, 2, width=20), max_epochs=3)
        >>> check_runner(partial(run_all, ledger=False, workers=0), problem)
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    shorter = Run(problem, 0.3, stop_epoch=problem.max_epochs - 1)
    runs = [Run(problem), Run(problem, 0.3, seed=1), shorter, Run(problem, 0.3)]
    require(list(run_all([])) == [], "no Runs must give no Records.")
    records = list(run_all(runs))
    _check_records(runs, records)

    # The same Runs in another order.
    repeated = list(run_all(runs[::-1]))[::-1]
    for a, b in zip(records, repeated, strict=True):
        require(
            _content(a.curves) == _content(b.curves) and _content(a.metrics) == _content(b.metrics),
            "the same Run must be measured alike whatever else is asked, in whatever order. Seed "
            "what it draws.",
        )

    # The shorter Run and the longer one.
    rule = "a shorter Run must see what a longer one saw until then."
    short, long = records[2].curves, records[3].curves
    require(short.keys() == long.keys(), rule)
    for name, curve in short.items():
        require(np.array_equal(curve, long[name][: len(curve)], equal_nan=True), rule)


def _check_records(runs: Sequence[Run], records: Sequence[Record]) -> None:
    """Check that each Run has its Record, and what a Record must hold."""
    require(
        len(records) == len(runs),
        f"there must be a Record for each Run, got {len(records)} for {len(runs)}.",
    )
    for run, record in zip(runs, records, strict=True):
        require(
            record.run is run,
            "Records must come in the order asked, each with the Run it was asked for.",
        )
        require(
            "last.val_loss" in record.metrics,
            "metrics must have the validation loss at the end: last.val_loss.",
        )
        lengths = {name: len(curve) for name, curve in record.curves.items()}
        require(
            set(lengths.values()) <= {run.epochs + 1},
            f"curves must have {run.epochs + 1} values, from before training to the last of "
            f"{run.epochs} epochs, got {lengths}.",
        )


def _content(values: Mapping[str, np.ndarray | float]) -> dict[str, bytes]:
    """Give the bytes of numbers or curves: equal for equal bits, NaN included."""
    return {name: np.asarray(value).tobytes() for name, value in values.items()}
