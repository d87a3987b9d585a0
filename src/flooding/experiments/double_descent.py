"""Do test loss and test error descend a second time when the training is flooded?

The paper says so of the loss (Ishida et al., ICML 2020). The published reproduction looked at high
noise alone and saw no double descent with weight decay, where its levels were never reached. Here a
level that was never reached is "not tested", and the statement is judged by the other levels alone.
The criterion of a second descent is that of :mod:`flooding.report.descents`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
from torch.optim.lr_scheduler import MultiStepLR

from flooding.experiments import Experiment, Study
from flooding.experiments.study import all_runs, level_grids
from flooding.experiments.synthetic_cells import NOISES, TASKS, SyntheticCell, synthetic_cell
from flooding.report.descent_report import make_report
from flooding.report.descent_rows import FACTORS, Condition, Group
from flooding.report.descents import CRITERION
from flooding.report.record_metrics import MIN_FLOODED_SHARE, format_levels, run_of
from flooding.report.stats import pluralize
from flooding.tasks import adamw, real
from flooding.training.archive import is_missing
from flooding.training.problem import Problem, TestCurve
from flooding.training.record import Record

__all__ = ["CURVES", "EXPERIMENT", "FACTORS", "WEIGHT_DECAY", "Condition"]
__all__ += ["combinations", "decayed", "plan", "start", "study"]

# Curves that the archive keeps.
CURVES = ("flooded", "test_accuracy", "test_accuracy_clean", "test_loss", "test_loss_clean")
CURVES += ("train_loss", "val_loss")
# Fixed beforehand, not selected.
SYNTHETIC_LEVELS = (0.0, 0.05, 0.15, 0.3)
DIGITS_LEVELS = (0.0, 0.2, 0.5, 0.8)
# Decoupled, times the learning rate. Selected by the training loss of a plain training with another
# seed (100). At 0.1 it ends where it does without. At 0.5 it ends two to three times as high, and
# at 0.44 with augmentation and rate decay: at least the levels 0.5 and 0.8 are reached in every
# combination. At 1.0 only 0.8 would be.
WEIGHT_DECAY = 0.5
# Number of test examples, and share of wrong labels among the others.
_DIGITS_TEST = 897
_DIGITS_NOISE = 0.2
_TITLES = {"synthetic": "Synthetic tasks", "digits": "Digits", "cifar10": "CIFAR-10"}


def plan(quick: bool = False) -> dict[str, list[Condition]]:
    """Plan nine synthetic cells, and digits in eight ways; quick takes two minutes on two cores."""
    tasks, subsets = list(TASKS), combinations()
    sizes = (SYNTHETIC_LEVELS, range(10), 500)
    if quick:
        tasks, sizes = ["two-gaussians"], ((0.0, 0.15), (0, 1), 100)
        subsets = [(), ("weight decay",)]
    synthetic = []
    for task, noise in product(tasks, NOISES):
        synthetic.append(_synthetic(synthetic_cell(task, noise, *sizes)))
    # Digits in as many seeds, with and without each factor.
    seeds, max_epochs = synthetic[0].seeds, 40 if quick else 200
    digits = [_digits(factors, seeds, max_epochs) for factors in subsets]
    return {"synthetic": synthetic, "digits": digits}


def combinations() -> list[tuple[str, ...]]:
    """Give all subsets of the factors, those without weight decay first."""
    subsets = []
    for weight_decay, rate_decay, augmentation in product((False, True), repeat=3):
        switches = zip(FACTORS, (augmentation, rate_decay, weight_decay), strict=True)
        subsets.append(tuple(factor for factor, is_on in switches if is_on))
    return subsets


def _synthetic(cell: SyntheticCell) -> Condition:
    """Add a test curve to a cell."""
    problem = replace(cell.problem, test_curve=TestCurve(1000, every=2))
    return Condition(cell.title, problem, cell.levels, cell.seeds, noise=cell.noise)


def _digits(factors: tuple[str, ...], seeds: tuple[int, ...], max_epochs: int) -> Condition:
    """Give the digits with some of the factors."""
    problem = real("digits", augment="augmentation" in factors, max_epochs=max_epochs)
    problem = replace(problem, test_curve=TestCurve(_DIGITS_TEST, every=1))
    problem = decayed(problem, factors, WEIGHT_DECAY)
    title = " + ".join(["Digits", *factors])
    # The test labels are clean.
    noise = {"noise": _DIGITS_NOISE, "is_test_noisy": False}
    return Condition(title, problem, DIGITS_LEVELS, seeds, factors, **noise)


def decayed(problem: Problem, factors: Sequence[str], weight_decay: float) -> Problem:
    """Add those kinds of decay that are among the factors to a problem trained with Adam."""
    if "rate decay" in factors:
        milestones = (problem.max_epochs // 2, problem.max_epochs * 4 // 5)
        schedule = partial(MultiStepLR, milestones=milestones, gamma=0.1)
        problem = replace(problem, lr_scheduler=schedule)
    if "weight decay" in factors:
        problem = replace(problem, optimizer=partial(adamw, weight_decay=weight_decay))
    return problem


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all conditions and judge every test curve."""
    groups = plan(quick)
    title = "A second descent of test loss and test error (Ishida et al., 2020)"
    return study(groups, title, _describe(groups), seeds)


def study(
    groups: Mapping[str, Sequence[Condition]],
    title: str,
    about: str,
    seeds: Sequence[int] | None = None,
) -> Study:
    """Train conditions, by the group they are tabulated in, and judge every test curve."""
    conditions: list[Condition] = []
    for group in groups.values():
        conditions += group
    if seeds is not None:
        conditions = [replace(condition, seeds=tuple(seeds)) for condition in conditions]
    records = yield all_runs(conditions)
    # Deal the Records to the conditions, and cut these into their groups again.
    results, rest = [], level_grids(conditions, records)
    for name, group in groups.items():
        part, rest = rest[: len(group)], rest[len(group) :]
        results.append(Group(name, _TITLES[name], part))
    n = pluralize(len(conditions[0].seeds), "seed")
    about = f"{about} {n}.{_describe_missing(conditions, records)}"
    return make_report(results, records, title, f"{about}\n\n{CRITERION} {_READING}")


def _describe_missing(conditions: Sequence[Condition], records: Sequence[Record]) -> str:
    """Say which levels an archive lacks, and what they would cost by those that it has."""
    missing = []
    seconds = 0.0
    for condition in conditions:
        size = len(condition.seeds) * len(condition.levels)
        own, records = records[:size], records[size:]
        lacking = [record for record in own if is_missing(record)]
        trained = [record for record in own if not is_missing(record)]
        each = np.mean([float(record.metadata.get("seconds", 0.0)) for record in trained])
        seconds += float(each) * len(lacking)
        missing += [run_of(record).level for record in lacking]
    if not missing:
        return ""
    levels = format_levels(sorted(set(missing)))
    return (
        f" Not trained: {len(missing)} trainings at level {levels}, by the others about "
        f"{seconds / 3600:.1f} CPU hours."
    )


def _describe(groups: Mapping[str, Sequence[Condition]]) -> str:
    """Say what is trained."""
    synthetic, digits = groups["synthetic"][0], groups["digits"][0]
    return (
        f"{len(groups['synthetic'])} synthetic cells in the paper's setting "
        f"({synthetic.problem.max_epochs} epochs, levels {format_levels(synthetic.levels)}, some "
        "above the irreducible loss of the cells with little noise; 1,000 test examples, clean "
        "labels, every second epoch). Digits with 20 % label noise in "
        f"{len(groups['digits'])} combinations of augmentation (shifts by a pixel), learning-rate "
        "decay (times 0.1 at 1/2 and 4/5 of the epochs) and weight decay (AdamW, "
        f"{WEIGHT_DECAY:g}; otherwise Adam) ({digits.problem.max_epochs} epochs, levels "
        f"{format_levels(digits.levels)}; all {_DIGITS_TEST} test examples, every epoch). Levels "
        "were fixed beforehand, and test data choose nothing."
    )


_READING = (
    "Flooding brings a second descent, in what follows, if it is lasting in at least half of the "
    "seeds and in more of them than without flooding; p (lasting) is McNemar's exact one.\n\n"
    "Rows are over the seeds in which the level was reached, in at least "
    f"{100 * MIN_FLOODED_SHARE:g} % of all steps, and compared with plain training of the same "
    "seeds; a level that no seed reached is not tested. A level above the cap is not a candidate: "
    "the cap is the lowest validation loss of the seed's own plain training, as far as it is known "
    "(at its best and last epoch), or, where the test labels are as noisy as the training labels "
    "and it is lower, the lowest test loss. Figures are mean ± standard deviation over "
    "seeds; recovery and m2 − m1 over those with a second descent; differences are paired by seed, "
    "with the 95 % interval of Student's t; all p are after Holm's correction over the tested rows "
    "of their table, those of all rows together over tables."
)

# What `flooding reproduce double_descent` runs.
EXPERIMENT = Experiment("double_descent", start, CURVES)
