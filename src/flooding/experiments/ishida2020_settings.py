"""What the paper does not say: plain training on Two Gaussians under other settings, beside its
figures.

The paper leaves open whether batches are full, whether the logistic loss has one logit, and how
weights begin. Each variant changes one thing of the setting in
:mod:`flooding.experiments.ishida2020`; the last is the reproduction's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from flooding.experiments import Experiment, Study, describe_provenance, kim2022
from flooding.experiments.ishida2020 import NOISES, PUBLISHED, Cell
from flooding.models import mlp
from flooding.report.document import Report, Table
from flooding.report.stats import Difference, format_mean_sd, format_p, holm, paired
from flooding.training.problem import Problem
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["CURVES", "VARIANTS", "experiment", "one_logit"]

CURVES = ("train_loss",)
_NEAR = 1.5  # points within which a figure counts as the paper's


def one_logit(width: int = 500, depth: int = 5) -> nn.Sequential:
    """Build the paper's network with a single output: the other class's logit is 0.

    Args:
        width: Units of a hidden layer.
        depth: Hidden layers.

    Returns:
        A network from ``[n, 10]`` to ``[n, 2]``, whose cross-entropy is the logistic loss of its
        one logit.
    """
    return nn.Sequential(mlp(10, 1, width=width, depth=depth), nn.ZeroPad1d((1, 0)))


def _data(problem: Problem, **changes: Any) -> Any:
    data: Any = problem.data
    return partial(data, **changes)


# Each changes one thing of the paper's setting as we read it.
VARIANTS: dict[str, Callable[[Problem], Problem]] = {
    "as in our table": lambda problem: problem,
    "one logit": lambda problem: replace(problem, model=one_logit),
    "mini-batches of 20": lambda problem: replace(problem, batch_size=20),
    "batch norm": lambda problem: replace(
        problem, model=partial(mlp, 10, 2, width=500, depth=5, batch_norm=True)
    ),
    "200 training examples": lambda problem: replace(
        problem, data=_data(problem, n_train=200), batch_size=200
    ),
    "the reproduction's": lambda problem: replace(
        kim2022.setting(),
        data=_data(problem, n_train=1000),
        max_epochs=problem.max_epochs,
        test_curve=None,
    ),
}


def experiment(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train plainly in every variant.

    Args:
        quick: Two seeds and 100 epochs.
        seeds: Seeds; ten unless said otherwise.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    chosen = tuple(seeds if seeds is not None else range(2 if quick else 10))
    cells = [Cell("two-gaussians", noise, max_epochs=100 if quick else 500) for noise in NOISES]
    runs = [
        Run(change(cell.problem), seed=s)
        for change in VARIANTS.values()
        for cell in cells
        for s in chosen
    ]
    records = yield runs
    told = iter(records)
    found = {name: [[next(told) for _ in chosen] for _ in cells] for name in VARIANTS}
    return _report(cells, found, records)


def _accuracy(records: Sequence[Record]) -> list[float]:
    return [100 * record.metrics["last.test_accuracy"] for record in records]


def _report(
    cells: Sequence[Cell], found: dict[str, list[list[Record]]], records: Sequence[Record]
) -> Report:
    ours, *others = found
    n = len(found[ours][0])
    gains: dict[tuple[str, int], Difference] = {
        (name, place): paired(_accuracy(found[name][place]), _accuracy(found[ours][place]))
        for name in others
        for place in range(len(cells))
    }
    ps = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
    rows = []
    for name, by_cell in found.items():
        row = [name]
        for place, told in enumerate(by_cell):
            known = (name, place) in gains
            row += [format_mean_sd(_accuracy(told))]
            row += [f"{gains[name, place]}, p {format_p(ps[name, place])}" if known else "–"]
        rows.append(row)
    paper = [
        ["the paper", *(text for cell in cells for text in (f"{_published(cell)[0]:.2f}", "–"))]
    ]
    columns = ["setting", *(text for cell in cells for text in (cell.title, "minus our table's"))]
    title = f"Plain training, last epoch: test accuracy in % on noisy labels, mean ± standard deviation, n = {n}"
    about = (
        "Plain training of the paper's network on Two Gaussians, one thing changed at a time. Differences are paired "
        "by seed, with the 95 % interval of Student's t and p after Holm's correction over all of them. The "
        "reproduction's setting: 1,000 training examples, mini-batches of 200, four hidden layers with batch norm."
    )
    failures, findings = _words(cells, found)
    sure = [
        f"{name}, {cells[place].title} ({gains[name, place]})"
        for (name, place), p in ps.items()
        if p < 0.05
    ]
    findings.append(
        f"Differences from our table that are sure at 5 % (n = {n}): {'; '.join(sure) or 'none'}."
    )
    table = Table("settings", title, columns, rows + paper)
    return Report(
        "What the paper does not say",
        about,
        failures,
        findings,
        [table],
        {},
        describe_provenance(records),
    )


def _published(cell: Cell) -> tuple[float, float, float]:
    return PUBLISHED[cell.task, cell.noise][0]


def _words(
    cells: Sequence[Cell], found: dict[str, list[list[Record]]]
) -> tuple[list[str], list[str]]:
    """Say which settings come near the paper's figures in every row, and how far ours is."""
    off = {
        name: [
            np.array(_accuracy(told)) - _published(cell)[0]
            for cell, told in zip(cells, by_cell, strict=True)
        ]
        for name, by_cell in found.items()
    }
    sentences = {
        name: f"{name}: {', '.join(format_mean_sd(values.tolist()) for values in some)} points against the paper's figure at "
        f"{', '.join(f'{100 * cell.noise:g} %' for cell in cells)} label noise, "
        f"{'within' if _farthest(some) <= _NEAR else 'not within'} {_NEAR:g} points in every row (means)."
        for name, some in off.items()
    }
    far = [s for name, s in sentences.items() if _farthest(off[name]) > _NEAR]
    return far, [s for s in sentences.values() if s not in far]


def _farthest(off: Sequence[np.ndarray]) -> float:
    """Give the largest distance of a mean from the paper's figure."""
    return max(abs(float(values.mean())) for values in off)


EXPERIMENT = Experiment("ishida2020_settings", experiment, CURVES)
