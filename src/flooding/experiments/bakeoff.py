"""A fair bake-off: flooding and its family beside the usual regularisers, with equal budgets.

Every method has four trainings: four settings, fixed beforehand, of which one is selected for each
problem and seed by the validation result of the last epoch. Flooding spends three trainings on the
finder and one on its level. Plain training and early stopping have nothing to select and spend one.
Test data choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from flooding.adaflood import AdaFlood
from flooding.experiments import Experiment, Study, study
from flooding.experiments.synthetic_cells import cells, synthetic_cell
from flooding.level_search.driver import run_concurrently
from flooding.level_search.finder import finder
from flooding.methods import SAM, Flooding, GradientPenalty, IFlood, Method, SoftAD
from flooding.models import mlp
from flooding.report.method_comparison import BUDGET, Pick, Results, make_report
from flooding.report.record_metrics import Epoch
from flooding.tasks import adamw, real
from flooding.training.problem import Problem
from flooding.training.record import Record, validation_key
from flooding.training.run import Run

__all__ = [
    "BUDGET",
    "CURVES",
    "EXPERIMENT",
    "METHODS",
    "Setting",
    "compare",
    "is_exact",
    "problems",
    "start",
    "train_methods",
]

# What the finder reads, and what the late band is taken of.
CURVES = ("train_loss", "val_loss", "val_accuracy", "flooded")
REAL = ("digits", "spambase", "letter", "higgs7k")


@dataclass(frozen=True)
class Setting:
    """One way to train a problem."""

    # The hyper-parameter, for a reader.
    label: str
    problem: Problem
    level: float | AdaFlood | None = None
    method: Method = field(default_factory=Flooding)

    def run(self, seed: int) -> Run:
        """Make a Run of it."""
        return Run(self.problem, self.level, self.method, seed)


# The settings of each method, from a Problem and its number of classes.


def _plain(problem: Problem, _: int) -> list[Setting]:
    return [Setting("", problem)]


def _weight_decay(problem: Problem, _: int) -> list[Setting]:
    """Decouple it, where the optimiser is Adam."""
    optimizer = problem.optimizer
    if isinstance(optimizer, partial) and optimizer.func is torch.optim.Adam:
        optimizer = partial(adamw.func, **optimizer.keywords)
    settings = []
    # At a rate of 0.001, 500 steps take 5 to 98 % off a weight.
    for decay in (0.1, 0.5, 2.0, 8.0):
        decayed = replace(problem, optimizer=partial(optimizer, weight_decay=decay))
        settings.append(Setting(f"{decay:g}", decayed))
    return settings


def _dropout(problem: Problem, _: int) -> list[Setting]:
    """Give no settings for networks that are not ours."""
    settings, model = [], problem.model
    # Networks that are not ours have no such argument.
    if isinstance(model, partial) and model.func is mlp:
        for share in (0.1, 0.25, 0.5, 0.75):
            dropping = replace(problem, model=partial(model, dropout=share))
            settings.append(Setting(f"{share:g}", dropping))
    return settings


def _label_smoothing(problem: Problem, _: int) -> list[Setting]:
    settings = []
    for share in (0.05, 0.1, 0.2, 0.4):
        loss = partial(cross_entropy, label_smoothing=share)
        smoothed = replace(problem, loss=loss, eval_loss=problem.reported)
        settings.append(Setting(f"{share:g}", smoothed))
    return settings


def _sam(problem: Problem, _: int) -> list[Setting]:
    settings = []
    for rho in (0.02, 0.05, 0.1, 0.2):
        settings.append(Setting(f"rho {rho:g}", problem, None, SAM(rho)))
    return settings


def _gradient_penalty(problem: Problem, _: int) -> list[Setting]:
    settings = []
    for weight in (0.001, 0.01, 0.1, 1.0):
        method = GradientPenalty(weight)
        settings.append(Setting(f"{weight:g}", problem, None, method))
    return settings


def _level(share: float, classes: int) -> float:
    """Give a share of the loss of guessing."""
    return round(share * math.log(classes), 3)


def _iflood(problem: Problem, classes: int) -> list[Setting]:
    settings = []
    for share in (0.05, 0.15, 0.3, 0.5):
        level = _level(share, classes)
        settings.append(Setting(f"b {level:g}", problem, level, IFlood()))
    return settings


def _softad(problem: Problem, classes: int) -> list[Setting]:
    settings = []
    for level in (_level(0.05, classes), _level(0.3, classes)):
        for sigma in (0.1, 1.0):
            label = f"b {level:g}, sigma {sigma:g}"
            settings.append(Setting(label, problem, level, SoftAD(sigma)))
    return settings


def _adaflood(problem: Problem, _: int) -> list[Setting]:
    """Train auxiliary networks for a fifth of the epochs: their best validation epoch is early."""
    epochs, settings = max(1, problem.max_epochs // 5), []
    for gamma in (0.1, 0.3, 0.5, 0.8):
        level = AdaFlood(gamma, epochs=epochs)
        settings.append(Setting(f"gamma {gamma:g}", problem, level, IFlood()))
    return settings


class _Competitor(NamedTuple):
    """A method: its settings, and the epoch its selected training is judged at."""

    # None where the level is the finder's.
    settings: Callable[[Problem, int], list[Setting]] | None
    at: Epoch = "last"


# The methods that are compared: their settings by name.
METHODS = {
    "plain": _Competitor(_plain),
    "early stopping": _Competitor(_plain, "best"),
    "weight decay": _Competitor(_weight_decay),
    "dropout": _Competitor(_dropout),
    "label smoothing": _Competitor(_label_smoothing),
    "SAM": _Competitor(_sam),
    "gradient penalty": _Competitor(_gradient_penalty),
    "flooding": _Competitor(None),
    "flooding + early stopping": _Competitor(None, "best"),
    "iFlood": _Competitor(_iflood),
    "SoftAD": _Competitor(_softad),
    "AdaFlood": _Competitor(_adaflood),
}


def problems(quick: bool = False) -> dict[str, tuple[Problem, int]]:
    """Give the Problems by name, with their number of classes: synthetic cells, then tables."""
    if quick:
        cell = synthetic_cell("two-gaussians", 0.1, max_epochs=100)
        digits = real("digits", max_epochs=20)
        return {cell.title: (cell.problem, 2), "digits": (digits, 10)}
    by_name = {cell.title: (cell.problem, 2) for cell in cells()}
    for name in REAL:
        num_classes = {"digits": 10, "letter": 26}.get(name, 2)
        by_name[name] = (real(name), num_classes)
    return by_name


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Compare all methods on the thirteen problems."""
    return compare(problems(quick), study.choose_seeds(seeds, 2 if quick else 5))


def compare(by_name: Mapping[str, tuple[Problem, int]], seeds: Sequence[int]) -> Study:
    """Train every method on every problem and say which wins.

    Args:
        by_name: Problems and their numbers of classes.
        seeds: Seeds.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    results, records = yield from train_methods(by_name, seeds)
    return make_report(results, records)


def train_methods(
    by_name: Mapping[str, tuple[Problem, int]],
    seeds: Sequence[int],
    methods: Sequence[str] = tuple(METHODS),
) -> Generator[list[Run], list[Record], tuple[Results, list[Record]]]:
    """Train methods on every problem, and pick the settings of each on the validation rows.

    Args:
        by_name: Problems and their numbers of classes.
        seeds: Seeds.
        methods: Names from :data:`METHODS`.

    Yields:
        The Runs.

    Returns:
        The picks, without methods that have no settings on a problem, and all Records.
    """
    # All methods but flooding. The settings are made once for all seeds, so that the estimate of
    # the duration times each of them once.
    searches: list[tuple[str, str, int, list[Setting]]] = []
    for name, (problem, classes) in by_name.items():
        settings = {}
        for method in methods:
            make_settings = METHODS[method].settings
            if make_settings is not None:
                settings[method] = make_settings(problem, classes)
        for seed in seeds:
            for method, own in settings.items():
                if own:
                    searches.append((method, name, seed, own))
    runs: list[Run] = []
    for _, _, seed, settings in searches:
        runs += [setting.run(seed) for setting in settings]
    records = list((yield runs))
    # The Records come in the order of the searches, as many as each has settings.
    picks: dict[tuple[str, str, int], Pick] = {}
    start = 0
    for method, name, seed, settings in searches:
        tried = records[start : start + len(settings)]
        picks[method, name, seed] = _pick(METHODS[method].at, settings, tried)
        start += len(settings)
    flooded_methods = [method for method in methods if METHODS[method].settings is None]
    if flooded_methods:
        flooded_picks, flooded_records = yield from _search_levels(by_name, seeds, flooded_methods)
        picks |= flooded_picks
        records += flooded_records
    compared = list(methods)
    for method, name in product(methods, by_name):
        if (method, name, seeds[0]) not in picks and method in compared:
            # It has no settings on this problem, and so no mean over problems.
            compared.remove(method)
    return Results(picks, compared, list(by_name), list(seeds)), records


def _search_levels(
    by_name: Mapping[str, tuple[Problem, int]], seeds: Sequence[int], methods: Sequence[str]
) -> Generator[list[Run], list[Record], tuple[dict[tuple[str, str, int], Pick], list[Record]]]:
    """Let the finder choose a level for each problem and seed, and train in full at it."""
    cases = list(product(by_name, seeds))
    finders = []
    for name, seed in cases:
        finders.append(finder(by_name[name][0], budget=BUDGET - 1, seeds=[seed]))
    answers = yield from run_concurrently(finders)
    flooded = yield [answer.run for answer in answers]
    picks: dict[tuple[str, str, int], Pick] = {}
    records: list[Record] = []
    for (name, seed), answer, record in zip(cases, answers, flooded, strict=True):
        records += [*answer.records, record]
        label = "none" if answer.level is None else f"b {answer.level:g}"
        for method in methods:
            picks[method, name, seed] = Pick(record, METHODS[method].at, label, (record,))
    return picks, records


def _pick(at: Epoch, settings: Sequence[Setting], records: Sequence[Record]) -> Pick:
    """Pick a setting by its validation result; the first of equals."""
    keys = []
    for setting, record in zip(settings, records, strict=True):
        keys.append(validation_key(record.metrics, setting.problem, f"{at}."))
    best = keys.index(max(keys))
    return Pick(records[best], at, settings[best].label, tuple(records))


def is_exact(run: Run) -> bool:
    """Tell whose curves an archive must not round: those the finder reads."""
    return type(run.method) is Flooding


# What `flooding reproduce bakeoff` runs.
EXPERIMENT = Experiment("bakeoff", start, CURVES, is_exact=is_exact)
