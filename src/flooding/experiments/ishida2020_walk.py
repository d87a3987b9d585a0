"""The random walk and the Taylor view, with plain SGD: what the paper's argument speaks of.

Ishida et al., ICML 2020, say that flooded weights walk at random at the level and drift to places
where the gradient is small: a step down and a step up again, with learning rate h, are together a
step of gradient descent on the squared gradient norm, w - h^2 H g, but for terms of third order.
Here both are tested along trainings by SGD without momentum, in full batches and in mini-batches,
on the tasks and the networks of :mod:`flooding.experiments.ishida2020_why`. The tests and their
limits were written before any of these trainings; learning rate and epochs were chosen by whether
the training loss of one other seed reached the levels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from flooding import metrics, sharpness
from flooding.data import Splits
from flooding.experiments import Experiment, Study, study
from flooding.experiments.ishida2020_claims import (
    GRADIENT_DRIFT,
    RANDOM_WALK,
    Explanation,
    Outcome,
    explanation_claims,
)
from flooding.experiments.ishida2020_why import (
    LEVELS,
    bare,
    halfway_weights,
    paired_runs,
    verdict_table,
)
from flooding.experiments.synthetic_cells import TASKS, TITLES
from flooding.models import mlp
from flooding.report import claims
from flooding.report.curve_figures import PairedRecords, paired_curves
from flooding.report.document import Report
from flooding.report.provenance import describe_provenance
from flooding.report.stats import format_count, format_mean_sd
from flooding.training.problem import Problem
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BATCH_SIZES",
    "EXPERIMENT",
    "RATE",
    "SMALL",
    "measure_walk",
    "pair_of_steps",
    "plan_runs",
    "start",
]

# The first level of each task, nats.
TASK_LEVELS = LEVELS[:3]
BATCH_SIZES = {"full batches": 100, "mini-batches": 20}
ACTIVATIONS = ("ReLU", "GELU")
# Learning rate of plain SGD, at which every level is reached.
RATE = 0.2
# The Taylor view is one of small steps: it is measured at this share of the learning rate, too.
SMALL = 0.1
_EPOCHS = 500
_PAIR = ("cosine", "length", "fall")
_MEASURED = ("gradient_norm", "moved", *(f"pair_{name}" for name in _PAIR))
_MEASURED += tuple(f"small_pair_{name}" for name in _PAIR)
CURVES = ("flooded", "train_loss", *_MEASURED)


def smooth_mlp(inputs: int) -> nn.Sequential:
    """Build the network of :func:`flooding.experiments.ishida2020_why.bare` with GELU for ReLU.

    Args:
        inputs: Number of input features.

    Returns:
        A network from ``[n, inputs]`` to ``[n, 2]`` whose loss has all derivatives.
    """
    layers = mlp(inputs, 2, width=100, depth=3)
    return nn.Sequential(*(nn.GELU() if isinstance(x, nn.ReLU) else x for x in layers))


def settings(max_epochs: int) -> list[tuple[str, Problem, float]]:
    """List the title, the Problem and the level of each setting."""
    chosen = []
    for (task, level), activation in product(TASK_LEVELS, ACTIVATIONS):
        for batches, batch_size in BATCH_SIZES.items():
            optimizer = partial(torch.optim.SGD, lr=RATE)
            problem = replace(bare(task, max_epochs), optimizer=optimizer, batch_size=batch_size)
            if activation == "GELU":
                problem = replace(problem, model=partial(smooth_mlp, TASKS[task][1]))
            chosen.append((f"{TITLES[task]}, {activation}, {batches}", problem, level))
    return chosen


def plan_runs(max_epochs: int, seeds: Sequence[int]) -> list[Run]:
    """Plan the settings, each without and with flooding, then seeds."""
    chosen = [(problem, level) for _, problem, level in settings(max_epochs)]
    return paired_runs(chosen, measure_walk, max_epochs, seeds)


def measure_walk(
    model: nn.Module,
    measured_problem: Problem,
    splits: Splits,
    *,
    problem: Problem,
    level: float | None,
    seed: int,
) -> dict[str, float]:
    """Measure where a network in training is, and what two opposite steps would do there.

    Args:
        model: The network.
        measured_problem: Its Problem.
        splits: The splits.
        problem: The Problem without this metric.
        level: Flood level of the Run.
        seed: Its seed.

    Returns:
        ``gradient_norm`` of the training loss; ``moved``: distance of the weights from those
        half-way through the training; what :func:`pair_of_steps` gives at the learning rate
        (``pair_cosine`` ...) and at a tenth of it (``small_pair_cosine`` ...).
    """

    def loss(network: nn.Module) -> Tensor:
        # In double precision, since rounding would hide terms of third order.
        return measured_problem.loss(network(splits.train.x.double()), splits.train.y)

    with torch.enable_grad():
        train_loss = measured_problem.loss(model(splits.train.x), splits.train.y)
        values = {"gradient_norm": float(metrics.gradient_norm(model, train_loss))}
    weights = sharpness.weights(model)
    values["moved"] = float((weights - halfway_weights(problem, level, seed).to(weights)).norm())
    network = copy.deepcopy(model).double()
    for prefix, rate in (("pair", RATE), ("small_pair", SMALL * RATE)):
        for name, value in zip(_PAIR, pair_of_steps(network, loss, rate), strict=True):
            values[f"{prefix}_{name}"] = value
    return values


def pair_of_steps(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], rate: float
) -> tuple[float, float, float]:
    """Take a step down and one up again on the same data, and compare both with the Taylor view.

    Args:
        model: The network; its weights are put back.
        loss: Gives the loss, a scalar, of a network.
        rate: Learning rate h of both steps.

    Returns:
        The cosine between the way of both steps and -H g; the length of that way over that of
        h^2 H g; by how much both steps lower the squared gradient norm, as a share of it. NaN where
        the gradient or H g is 0.
    """
    start = sharpness.weights(model).clone()
    slope = _slope(model, loss)
    predicted = -(rate**2) * sharpness.hessian_product(model, lambda: [loss(model)], slope)
    _set_weights(model, start - rate * slope)
    end = start - rate * slope + rate * _slope(model, loss)
    _set_weights(model, end)
    end_slope = _slope(model, loss)
    _set_weights(model, start)
    way = end - start
    cosine = torch.dot(way, predicted) / (way.norm() * predicted.norm())
    fall = 1 - end_slope.square().sum() / slope.square().sum()
    return float(cosine), float(way.norm() / predicted.norm()), float(fall)


def _slope(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """Give the gradient of the loss as one vector."""
    with torch.enable_grad():
        slopes = torch.autograd.grad(loss(model), list(model.parameters()))
    return torch.cat([slope.reshape(-1) for slope in slopes])


def _set_weights(model: nn.Module, weights: Tensor) -> None:
    with torch.no_grad():
        nn.utils.vector_to_parameters(weights, model.parameters())


def _late(pairs: PairedRecords, name: str) -> list[float]:
    """Mean of a measured curve over the second half of each flooded training."""
    means = []
    for record in pairs.flooded:
        curve = record.curves[name].astype(float)
        means.append(float(np.nanmean(curve[len(curve) // 2 :])))
    return means


def _direction(pairs: PairedRecords, name: str) -> Outcome:
    """Say how much the cosine exceeds 0.9."""
    cosines = _late(pairs, name)
    note = f"cosine {format_mean_sd(cosines, 2)}"
    return [cosine - 0.9 for cosine in cosines], note


def _length(pairs: PairedRecords, name: str) -> Outcome:
    """Say how much of a tenth the length's distance from the predicted one leaves to spare."""
    ratios = _late(pairs, name)
    note = f"{format_mean_sd(ratios, 2)} times the predicted length"
    return [0.1 - abs(ratio - 1) for ratio in ratios], note


def _share(pairs: PairedRecords, name: str) -> Outcome:
    """Give the falls of the squared gradient norm, in percent."""
    falls = [100 * fall for fall in _late(pairs, name)]
    return falls, f"{format_mean_sd(falls, 1)} % a pair"


_STEPS = "A step down and one up"
_DIRECTION = f"{_STEPS} move the weights along -H g"
_LENGTH = f"{_STEPS} move them by the length of h^2 H g"
_RATES = {"pair": "at the learning rate", "small_pair": "at a tenth of it"}


def _explanations() -> list[Explanation]:
    """List the statements: the walk, the drift, and the Taylor view at both rates."""
    statements = [RANDOM_WALK, GRADIENT_DRIFT]
    for prefix, when in _RATES.items():
        direction = f"{_DIRECTION}, cosine above 0.9 ({when})"
        length = f"{_LENGTH}, within a tenth ({when})"
        fall = f"{_STEPS} lower the gradient norm ({when})"
        statements += [
            Explanation(direction, "above 0.9", partial(_direction, name=f"{prefix}_cosine")),
            Explanation(length, "to spare", partial(_length, name=f"{prefix}_length")),
            Explanation(fall, "% of its square", partial(_share, name=f"{prefix}_fall")),
        ]
    return statements


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train three tasks in full and in mini-batches by SGD, and test both views."""
    chosen = study.choose_seeds(seeds, 3 if quick else 10)
    max_epochs = 100 if quick else _EPOCHS
    records = yield plan_runs(max_epochs, chosen)
    groups, results = iter(study.chunk(records, len(chosen))), []
    for title, _, level in settings(max_epochs):
        results.append(PairedRecords(title, level, next(groups), next(groups)))
    explanations = _explanations()
    tests = []
    for explanation in explanations:
        tests += explanation_claims(explanation, results)
    judgements = claims.judge(tests)
    return Report(
        "The random walk and the Taylor view",
        _describe(max_epochs, len(chosen), len(tests)),
        *claims.split_by_verdict(judgements),
        [verdict_table(explanations, judgements, [pairs.title for pairs in results], _NOTE)],
        _figures(results),
        describe_provenance(records),
        _summarise(judgements),
        {pairs.title: {0.0: pairs.plain, pairs.level: pairs.flooded} for pairs in results},
    )


def _figures(
    results: Sequence[PairedRecords],
) -> dict[str, tuple[str, Callable[[], Figure]]]:
    """Draw what was measured along the trainings, a figure for each task."""
    figures: dict[str, tuple[str, Callable[[], Figure]]] = {}
    per_task = len(results) // len(TASK_LEVELS)
    for (task, level), pairs in zip(TASK_LEVELS, study.chunk(results, per_task), strict=True):
        caption = (
            f"{TITLES[task]}, level {level:g}, along the training: mean and standard deviation "
            "over seeds."
        )
        columns = [each._replace(title=each.title.partition(", ")[2]) for each in pairs]
        draw = partial(paired_curves, columns, _LABELS, ("gradient_norm",))
        figures[f"along-{task}"] = caption, draw
    return figures


def _summarise(judgements: Sequence[claims.Judgement]) -> str:
    """Say in how many settings the Taylor view, the walk and the drift hold."""

    def count(statement: str, part: str = "") -> str:
        texts = [(judgement.claim.text, judgement.holds) for judgement in judgements]
        return format_count([
            holds for text, holds in texts if text.startswith(statement) and part in text
        ])

    return (
        "A step down and one up move the weights in the predicted direction in "
        f"{count(_DIRECTION, 'GELU')} tests with the smooth GELU and in "
        f"{count(_DIRECTION, 'ReLU')} with ReLU (length: {count(_LENGTH, 'GELU')} and "
        f"{count(_LENGTH, 'ReLU')}). At the level they walk at random in "
        f"{count(RANDOM_WALK.text)} settings; the gradient norm falls in "
        f"{count(GRADIENT_DRIFT.text)}."
    )


def _describe(max_epochs: int, seeds: int, tests: int) -> str:
    """Say what is trained and how it is judged."""
    return (
        "Ishida et al., ICML 2020, argue that flooded weights walk at random at the level and "
        "drift to places where the gradient is small. The Taylor view says why: a step down and a "
        "step up again on the same data move the weights by -h^2 H g, a step of gradient descent "
        "on the squared gradient norm, but for terms of third order in the learning rate h, where "
        "the loss is smooth. Three tasks at 10 % label noise with levels of 0.3, 0.25 and 0.4, 100 "
        "training examples, three hidden layers of 100 units, ReLU as everywhere else or GELU, "
        "which is smooth; SGD "
        f"without momentum at {RATE:g}, full batches and mini-batches of "
        f"{BATCH_SIZES['mini-batches']}, {max_epochs:,} epochs, {seeds} seeds. At 21 moments of "
        "each training the pair of steps is taken on all training data, in double precision, and "
        f"taken back; once at the learning rate, once at {SMALL:g} of it. The means are over the "
        "second half of the training and over seeds in which a quarter of its steps were flooded. "
        "Learning rate and epochs were chosen by whether the training loss of seed 100, which is "
        "not among these, came to the levels; the statements and their limits were written before "
        f"any of these trainings. Intervals of 95 % and p by Student's t over seeds, p after "
        f"Holm's correction over all {tests} tests."
    )


_NOTE = "Not tested: fewer than two seeds in which a quarter of the late steps were flooded."
_LABELS = {
    "train_loss": "Training loss",
    "gradient_norm": "Gradient norm",
    "moved": "Distance from half-way",
    "pair_cosine": "Cosine, rate h",
    "small_pair_cosine": "Cosine, rate h/10",
}


# What `flooding reproduce ishida2020_walk` runs.
EXPERIMENT = Experiment("ishida2020_walk", start, CURVES)
