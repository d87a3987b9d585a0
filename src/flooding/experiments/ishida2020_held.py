"""Does another regulariser hold a preset training loss? Weight decay and dropout by bisection.

Ishida et al., ICML 2020, say that flooding holds the training loss at a level chosen beforehand and
that other regularisers do not. Here the strength of weight decay and of dropout is found by
bisection for each seed, so that the training loss ends at the level. The statements and their
limits were written before any of these trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

from flooding.data import Splits
from flooding.experiments import Experiment, Study, study
from flooding.experiments.ishida2020_why import LEVELS, bare
from flooding.experiments.synthetic_cells import TITLES
from flooding.report import claims, stats
from flooding.report.curve_figures import LevelledPanel, curves_beside_level
from flooding.report.document import Report, Table
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import format_metric, metric_values
from flooding.tasks import adamw
from flooding.training.problem import Problem
from flooding.training.record import Record
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "REGULARISERS", "Regulariser", "bisect", "final_loss", "start"]

# The first level of each task, nats: the preset training losses.
TASK_LEVELS = LEVELS[:3]
ROUNDS = 8
CURVES = ("settled_loss",)


class Regulariser(NamedTuple):
    """A regulariser; a larger strength gives a higher training loss.

    Args:
        name: Its name for a reader.
        lowest: The lowest strength.
        highest: The highest one.
        apply: Gives a Problem with a strength.
        is_logarithmic: Whether strengths are halved by their logarithms.
    """

    name: str
    lowest: float
    highest: float
    apply: Callable[[Problem, float], Problem]
    is_logarithmic: bool = False

    def halve(self, low: float, high: float) -> float:
        """Give the strength in the middle of two."""
        if self.is_logarithmic:
            return float(np.sqrt(low * high))
        return (low + high) / 2


def _with_weight_decay(problem: Problem, strength: float) -> Problem:
    return replace(problem, optimizer=partial(adamw, weight_decay=strength))


def _with_dropout(problem: Problem, share: float) -> Problem:
    assert isinstance(problem.model, partial)
    return replace(problem, model=partial(problem.model, dropout=share))


# At a rate of 0.001, 500 steps of a decay of 100 leave nothing of a weight.
REGULARISERS = (
    Regulariser("weight decay", 1e-3, 100.0, _with_weight_decay, is_logarithmic=True),
    Regulariser("dropout", 0.0, 0.98, _with_dropout),
)
# What is searched for: the number of the task, the regulariser, the seed.
_Case: TypeAlias = tuple[int, Regulariser, int]


def measure_settled_loss(model: nn.Module, problem: Problem, splits: Splits) -> dict[str, float]:
    """Measure the training loss after an epoch, with nothing dropped.

    Args:
        model: The network, in evaluation mode.
        problem: Its Problem.
        splits: The splits.

    Returns:
        ``settled_loss`` in nats.
    """
    with torch.no_grad():
        loss = problem.loss(model(splits.train.x), splits.train.y)
    return {"settled_loss": float(loss)}


def _problem(task: str, max_epochs: int) -> Problem:
    return replace(bare(task, max_epochs), extra_metrics=measure_settled_loss)


def _losses(record: Record) -> np.ndarray:
    """Training loss after each epoch."""
    return record.curves["settled_loss"][1:].astype(float)


def final_loss(record: Record) -> float:
    """Give the final training loss in nats: the mean of the last tenth of the epochs."""
    losses = _losses(record)
    return float(losses[-max(1, len(losses) // 10) :].mean())


def _percent_near(record: Record, level: float) -> float:
    """Give the percentage of the epochs of the second half within a tenth of the level."""
    losses = _losses(record)
    is_near = abs(losses[len(losses) // 2 :] / level - 1) <= 0.1
    return 100 * float(is_near.mean())


class Tuned(NamedTuple):
    """The strength that came nearest to the level, and its training."""

    strength: float
    record: Record


def bisect(
    cases: Sequence[_Case], problems: Sequence[Problem], rounds: int
) -> Generator[list[Run], list[Record], tuple[dict[_Case, Tuned], list[Record]]]:
    """Search the strength that brings the final training loss to the level, for all cases at once.

    Args:
        cases: The cases.
        problems: The Problem of each task.
        rounds: Trainings of each case.

    Yields:
        A Run for each case, ``rounds`` times.

    Returns:
        For each case the strength whose final training loss came nearest, and all Records. The
        strength of a training that diverged counts as too high.
    """
    limits = {case: (case[1].lowest, case[1].highest) for case in cases}
    best: dict[_Case, Tuned] = {}
    distances = dict.fromkeys(cases, np.inf)
    records: list[Record] = []
    for _ in range(rounds):
        strengths = {case: case[1].halve(*limits[case]) for case in cases}
        runs = []
        for (task, regulariser, seed), strength in strengths.items():
            runs.append(Run(regulariser.apply(problems[task], strength), seed=seed))
        trained = yield runs
        records += trained
        for (case, strength), record in zip(strengths.items(), trained, strict=True):
            level, loss = TASK_LEVELS[case[0]][1], final_loss(record)
            low, high = limits[case]
            limits[case] = (strength, high) if loss < level else (low, strength)
            distance = abs(loss - level) if np.isfinite(loss) else np.inf
            if distance < distances[case] or case not in best:
                distances[case] = distance
                best[case] = Tuned(strength, record)
    return best, records


class _Group(NamedTuple):
    """The trainings of one method on one task, one a seed."""

    # A name of REGULARISERS, "flooding" or "none".
    method: str
    task: str
    level: float
    records: Sequence[Record]
    # Of a regulariser: its strengths, and its trainings with the strength of another seed.
    strengths: Sequence[float] = ()
    transferred: Sequence[Record] = ()

    @property
    def title(self) -> str:
        """The task and the level, for a reader."""
        return f"{TITLES[self.task]} at {self.level:g}"


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Preset the training loss of three tasks, and try to hold it in three ways."""
    chosen = study.choose_seeds(seeds, 2 if quick else 10)
    max_epochs = 100 if quick else 500
    rounds = 4 if quick else ROUNDS
    problems = [_problem(task, max_epochs) for task, _ in TASK_LEVELS]
    # Without anything and with flooding: a training for each seed.
    groups, records = yield from _train_reference(problems, chosen)
    # The regularisers: bisection, then the strength that another seed found, where there is one.
    cases: list[_Case] = []
    for task in range(len(TASK_LEVELS)):
        for regulariser in REGULARISERS:
            cases += [(task, regulariser, seed) for seed in chosen]
    tuned, tried = yield from bisect(cases, problems, rounds)
    transferred: list[Record] = []
    if len(chosen) > 1:
        transferred = yield _transfers(cases, tuned, problems, chosen)
    records = [*records, *tried, *transferred]
    # The cases of a task and a regulariser follow each other, seeds in order.
    for start_index in range(0, len(cases), len(chosen)):
        block = cases[start_index : start_index + len(chosen)]
        others = transferred[start_index : start_index + len(chosen)]
        task, regulariser, _ = block[0]
        best = [tuned[case] for case in block]
        groups.append(
            _Group(
                regulariser.name,
                *TASK_LEVELS[task],
                [each.record for each in best],
                [each.strength for each in best],
                others,
            )
        )
    tests = _claims(groups)
    judgements = claims.judge(tests)
    return Report(
        "A preset training loss: who holds it",
        _describe(max_epochs, rounds, len(chosen), len(tests)),
        *claims.split_by_verdict(judgements),
        [_measured(groups, rounds)],
        {"losses": (_CAPTION, partial(_draw, groups))},
        describe_provenance(records),
        _summarise(groups, rounds),
        {f"{group.title}, {group.method}": {group.level: group.records} for group in groups},
    )


def _train_reference(
    problems: Sequence[Problem], seeds: Sequence[int]
) -> Generator[list[Run], list[Record], tuple[list[_Group], list[Record]]]:
    """Train every task without anything and with flooding."""
    runs = []
    for problem, (_, level) in zip(problems, TASK_LEVELS, strict=True):
        for own_level in (None, level):
            runs += [Run(problem, own_level, seed=seed) for seed in seeds]
    records = yield runs
    blocks = iter(study.chunk(records, len(seeds)))
    groups = []
    for task, level in TASK_LEVELS:
        for method in ("none", "flooding"):
            groups.append(_Group(method, task, level, next(blocks)))
    return groups, list(records)


def _transfers(
    cases: Sequence[_Case],
    tuned: dict[_Case, Tuned],
    problems: Sequence[Problem],
    seeds: Sequence[int],
) -> list[Run]:
    """Plan each case with the strength that the seed before it found, the first with the last's."""
    runs = []
    for task, regulariser, seed in cases:
        other = seeds[seeds.index(seed) - 1]
        strength = tuned[task, regulariser, other].strength
        runs.append(Run(regulariser.apply(problems[task], strength), seed=seed))
    return runs


# Tests.


def _claims(groups: Sequence[_Group]) -> list[claims.Claim]:
    """State what the paper says of each method on each task, so that it could fail."""
    tests = []
    for group in groups:
        if group.method == "none":
            continue
        name = group.method.capitalize()
        distances = _distances(group.records, group.level)
        percent = [_percent_near(record, group.level) for record in group.records]
        losses = stats.format_mean_sd([final_loss(record) for record in group.records], 3)
        near = f"; {stats.format_mean_sd(percent)} % of these epochs"
        if group.method == "flooding":
            tests += [
                _claim(
                    f"{name} brings the final training loss within 10 % of the preset one",
                    group,
                    10 - distances,
                    "% of it to spare",
                    f"; final loss {losses}",
                ),
                _claim(
                    f"{name} holds it: most epochs of the second half within 10 %",
                    group,
                    np.array(percent) - 50,
                    "% above one half",
                    near,
                ),
            ]
            continue
        tests += [
            _claim(
                f"{name}, tuned, does not bring the final training loss within 10 % of it",
                group,
                distances - 10,
                "% of it too far",
                f"; final loss {losses}",
            ),
            _claim(
                f"{name}, tuned, does not hold it: most epochs of the second half farther away",
                group,
                50 - np.array(percent),
                "% below one half",
                near,
            ),
        ]
        if group.transferred:
            others = _distances(group.transferred, group.level)
            tests.append(
                _claim(
                    f"{name}, tuned on another seed, misses it by more than 10 %",
                    group,
                    others - 10,
                    "% of it too far",
                    f"; {stats.format_mean_sd(list(others))} % away",
                )
            )
    return tests


def _distances(records: Sequence[Record], level: float) -> np.ndarray:
    """Give the distance of each final loss from the level in percent, 100 if it is not finite."""
    distances = np.array([100 * abs(final_loss(record) / level - 1) for record in records])
    return np.where(np.isfinite(distances), distances, 100.0)


def _claim(
    text: str, group: _Group, differences: np.ndarray, unit: str, detail: str
) -> claims.Claim:
    """Make a claim from differences whose mean is above 0 if it is true."""
    difference = stats.paired(differences.tolist(), [0.0] * len(differences))
    return claims.Claim(f"{text}. {group.title}", difference, unit, detail=detail)


def _summarise(groups: Sequence[_Group], rounds: int) -> str:
    """Say who holds the preset loss, at what price, and what accuracy comes with it."""
    near: dict[str, list[float]] = {}
    accuracies: dict[str, list[float]] = {}
    distances: dict[str, list[float]] = {}
    for group in groups:
        percent = [_percent_near(record, group.level) for record in group.records]
        near.setdefault(group.method, []).extend(percent)
        values = metric_values(group.records, "test_accuracy_clean", 100.0)
        accuracies.setdefault(group.method, []).extend(values)
        misses = _distances(group.transferred, group.level).tolist()
        distances.setdefault(group.method, []).extend(misses)

    names = [each.name for each in REGULARISERS]
    shares = [f"{name} in {np.mean(near[name]):.0f} %" for name in names]
    text = (
        f"Flooding is within 10 % of a preset training loss in {np.mean(near['flooding']):.0f} % "
        f"of the late epochs; {' and '.join(shares)}, tuned by {rounds} trainings"
    )
    if distances[names[0]]:
        misses = [f"{np.mean(distances[name]):.0f} %" for name in names]
        text += f". Tuned on another seed they end {' and '.join(misses)} away"
    ends = [f"{name} {np.mean(accuracies[name]):.1f} %" for name in ("flooding", *names)]
    return f"{text}. Clean accuracy: {', '.join(ends)}, plain {np.mean(accuracies['none']):.1f} %."


def _measured(groups: Sequence[_Group], rounds: int) -> Table:
    """Tabulate where each method ends."""
    rows = []
    tasks = [task for task, _ in TASK_LEVELS]
    for group in sorted(groups, key=lambda group: tasks.index(group.task)):
        percent = [_percent_near(record, group.level) for record in group.records]
        row = {
            "task and preset loss": group.title,
            "method": "–" if group.method == "none" else group.method,
            "trainings": str(rounds if group.strengths else 1),
            "strength": stats.format_median_range(group.strengths) if group.strengths else "–",
            "final training loss": stats.format_mean_sd(list(map(final_loss, group.records)), 3),
            "epochs within 10 %": stats.format_mean_sd(percent),
            "final training loss, strength of another seed": "–",
            "clean test accuracy %": format_metric(group.records, "test_accuracy_clean", 100.0),
        }
        if group.transferred:
            losses = list(map(final_loss, group.transferred))
            row["final training loss, strength of another seed"] = stats.format_mean_sd(losses, 3)
        rows.append(row)
    title = f"Mean ± standard deviation over {len(groups[0].records)} seeds"
    note = (
        "Final training loss: mean of the last tenth of the epochs, in nats. Epochs within 10 %: "
        "in percent of those of the second half. Strength: median (range) of the weight decay, or "
        "of the share dropped."
    )
    return Table.from_dicts("measured", title, rows, note)


_CAPTION = (
    "Training loss after each epoch, with nothing dropped: mean and standard deviation over seeds. "
    "Grey: within 10 % of the preset loss."
)


def _draw(groups: Sequence[_Group]) -> Figure:
    """Draw the training losses of all methods, a panel for each task."""
    panels = []
    for task, level in TASK_LEVELS:
        curves = {}
        for group in groups:
            if group.task == task:
                label = "plain" if group.method == "none" else group.method
                curves[label] = np.array([_losses(record) for record in group.records])
        panels.append(LevelledPanel(f"{TITLES[task]} at {level:g}", level, curves))
    return curves_beside_level(panels, 0.1, "Training loss (nats)")


def _describe(max_epochs: int, rounds: int, seeds: int, tests: int) -> str:
    """Say what is trained and how it is judged."""
    decay, dropout = REGULARISERS
    return (
        "Ishida et al., ICML 2020, say that flooding holds the training loss at a level chosen "
        "beforehand, and that other regularisers do not. Three tasks at 10 % label noise with "
        "preset losses of 0.3, 0.25 and 0.4, near the best known flood levels; 100 training "
        "examples, three hidden layers of 100 units, Adam at 0.001 (weight decay: AdamW), full "
        f"batches, {max_epochs} epochs, {seeds} seeds. The strength of a regulariser is found for "
        f"each seed by bisection with {rounds} trainings, weight decay between {decay.lowest:g} "
        f"and {decay.highest:g}, dropout between {dropout.lowest:g} and {dropout.highest:g}, so "
        "that the mean training loss of the last tenth of the epochs comes to the preset one; the "
        "nearest counts. It is tried on the next seed, too. The training loss is measured after "
        "each epoch with nothing dropped. A statement holds if it is shown at 5 %; the opposite "
        "of one on a regulariser says that it does hold the loss. The statements and their limits "
        "were written before any of these trainings. Intervals of 95 % and p by Student's t over "
        f"seeds, p after Holm's correction over all {tests} tests."
    )


def is_exact(run: Run) -> bool:  # noqa: ARG001
    """Tell whose curves an archive must not round: the bisection reads all of them."""
    return True


# What `flooding reproduce ishida2020_held` runs.
EXPERIMENT = Experiment("ishida2020_held", start, CURVES, is_exact=is_exact)
