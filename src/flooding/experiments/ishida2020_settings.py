"""What the paper leaves open: plain training on Two Gaussians under other settings.

The paper does not say whether batches are full, whether the logistic loss has one logit, and how
weights begin. Each variant changes one thing of the setting in
:mod:`flooding.experiments.ishida2020`; the last is the reproduction's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

from flooding.data import Splits
from flooding.experiments import Experiment, Study, kim2022, study
from flooding.experiments.ishida2020 import PUBLISHED
from flooding.experiments.synthetic_cells import NOISES, SyntheticCell, synthetic_cell
from flooding.models import mlp
from flooding.report import stats
from flooding.report.claims import Sentences
from flooding.report.document import Report, Table
from flooding.report.dot_figures import dot_rows
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import metric_values
from flooding.training.problem import Problem
from flooding.training.record import Record
from flooding.training.run import Run

# Points within which a figure counts as the paper's.
_MAX_DISTANCE = 1.5


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


def _data(problem: Problem, **changes: int) -> Callable[[int], Splits]:
    """Change arguments of a problem's data."""
    assert callable(problem.data)
    return partial(problem.data, **changes)


def variants(problem: Problem) -> dict[str, Problem]:
    """Vary the paper's setting as we read it: each variant changes one thing, the last them all."""
    batch_norm = partial(mlp, 10, 2, width=500, depth=5, batch_norm=True)
    reproduction = replace(
        kim2022.setting(),
        data=_data(problem, n_train=1000),
        max_epochs=problem.max_epochs,
        test_curve=None,
    )
    return {
        "as in our table": problem,
        "one logit": replace(problem, model=one_logit),
        "mini-batches of 20": replace(problem, batch_size=20),
        "batch norm": replace(problem, model=batch_norm),
        "200 training examples": replace(problem, data=_data(problem, n_train=200), batch_size=200),
        "the reproduction's": reproduction,
    }


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train plainly in every variant, with ten seeds."""
    chosen = study.choose_seeds(seeds, 2 if quick else 10)
    max_epochs = 100 if quick else 500
    cells = [synthetic_cell("two-gaussians", n, max_epochs=max_epochs) for n in NOISES]
    by_cell = [variants(cell.problem) for cell in cells]
    names = list(by_cell[0])
    runs = []
    for name in names:
        for problems in by_cell:
            runs += [Run(problems[name], seed=seed) for seed in chosen]
    records = yield runs
    # The Records come by variant, then cell, then seed.
    by_variant = study.chunk(study.chunk(records, len(chosen)), len(cells))
    return _report(cells, dict(zip(names, by_variant, strict=True)), records)


def _report(
    cells: Sequence[SyntheticCell],
    results: dict[str, list[list[Record]]],
    records: Sequence[Record],
) -> Report:
    """Report on the Records of each variant, by cell and seed."""
    accuracies: dict[str, list[list[float]]] = {}
    for name, by_cell in results.items():
        accuracies[name] = [metric_values(some, "test_accuracy", 100.0) for some in by_cell]
    base, *others = accuracies
    # Each variant against our own table, cell by cell; all differences are tested together.
    gains: dict[tuple[str, int], stats.Difference] = {}
    for name in others:
        for index in range(len(cells)):
            gains[name, index] = stats.paired(accuracies[name][index], accuracies[base][index])
    ps = dict(zip(gains, stats.adjust(list(gains.values())), strict=True))
    # A row for each variant and, last, the paper's figures.
    rows = []
    for name, by_cell in accuracies.items():
        row = [name]
        for index, values in enumerate(by_cell):
            difference = "–"
            if name != base:
                p = stats.format_p(ps[name, index])
                difference = f"{gains[name, index]}, p {p}"
            row += [stats.format_mean_sd(values), difference]
        rows.append(row)
    paper, columns = ["the paper"], ["setting"]
    for cell in cells:
        paper += [f"{_published(cell):.2f}", "–"]
        columns += [cell.title, "minus our table's"]
    about = (
        "Plain training of the paper's network on Two Gaussians, one thing changed at a time. "
        "Differences are paired by seed, with the 95 % interval of Student's t and p after Holm's "
        "correction over all of them. The reproduction's setting: 1,000 training examples, "
        "mini-batches of 200, four hidden layers with batch norm."
    )
    n = len(accuracies[base][0])
    title = (
        "Plain training, last epoch: test accuracy in % on noisy labels, mean ± standard "
        f"deviation, n = {n}"
    )
    distances = {}
    for name, by_cell in accuracies.items():
        distances[name] = {
            cell.title: _distance(cell, values) for cell, values in zip(cells, by_cell, strict=True)
        }
    caption = (
        "Test accuracy of plain training minus the paper's figure: a dot for each seed, the mean "
        "as a line."
    )
    sentences = _distances(cells, accuracies)
    significant = []
    for (name, index), p in ps.items():
        if p < 0.05:
            significant.append(f"{name}, {cells[index].title} ({gains[name, index]})")
    sentences.findings.append(
        f"Differences from our table that are significant at 5 % (n = {n}): "
        f"{'; '.join(significant) or 'none'}."
    )
    return Report(
        "What the paper does not say",
        about,
        *sentences,
        [Table("settings", title, columns, [*rows, paper])],
        {"distances": (caption, partial(dot_rows, distances, "Points above the paper's figure"))},
        describe_provenance(records),
        _answer(cells, accuracies),
    )


def _distance(cell: SyntheticCell, accuracies: Sequence[float]) -> list[float]:
    """Give the distance of each seed from the paper's figure, in points."""
    return [accuracy - _published(cell) for accuracy in accuracies]


def _is_near(cells: Sequence[SyntheticCell], by_cell: Sequence[Sequence[float]]) -> bool:
    """Tell whether the mean of a setting is near the paper's figure in every cell."""
    means = [np.mean(_distance(cell, values)) for cell, values in zip(cells, by_cell, strict=True)]
    return all(abs(float(mean)) <= _MAX_DISTANCE for mean in means)


def _answer(cells: Sequence[SyntheticCell], accuracies: dict[str, list[list[float]]]) -> str:
    """Say which settings meet the paper's figures."""
    near = [name for name, by_cell in accuracies.items() if _is_near(cells, by_cell)]
    return (
        f"{len(near) or 'None'} of {len(accuracies)} settings of plain training come within "
        f"{_MAX_DISTANCE:g} points of the paper's figure at every label noise: "
        f"{', '.join(near) or 'none'}. The paper does not say which one it has."
    )


def _published(cell: SyntheticCell) -> float:
    """Give the paper's accuracy without flooding, in percent."""
    return PUBLISHED[cell.task, cell.noise][0][0]


def _distances(
    cells: Sequence[SyntheticCell], accuracies: dict[str, list[list[float]]]
) -> Sentences:
    """Say which settings come near the paper's figures in every cell."""
    sentences = Sentences([], [])
    noises = ", ".join(f"{100 * cell.noise:g} %" for cell in cells)
    for name, by_cell in accuracies.items():
        is_near = _is_near(cells, by_cell)
        texts = []
        for cell, values in zip(cells, by_cell, strict=True):
            texts.append(stats.format_mean_sd(_distance(cell, values)))
        within = "within" if is_near else "not within"
        sentences.add(
            is_near,
            f"{name}: {', '.join(texts)} points against the paper's figure at {noises} label "
            f"noise, {within} {_MAX_DISTANCE:g} points in every row (means).",
        )
    return sentences


EXPERIMENT = Experiment("ishida2020_settings", start, ("train_loss",))
