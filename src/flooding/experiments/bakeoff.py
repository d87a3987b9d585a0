"""A fair bake-off: flooding and its family beside the usual regularisers, with equal budgets.

Every method has four trainings: four settings, fixed beforehand, of which one is selected for each
problem and seed by the validation result of the last epoch. Flooding spends three trainings on the
finder and one on its level. Plain training, early stopping and the level that is chosen within a
training have nothing to select and spend one. Test data choose nothing.

Some rows of :data:`METHODS` came later: :data:`LATER`. An archive may lack them, and the page then
says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import product
from typing import NamedTuple, TypeAlias

import torch
from torch.nn.functional import cross_entropy

from flooding.adaflood import AdaFlood
from flooding.averaging import EMA
from flooding.experiments import Experiment, Study, study
from flooding.experiments.synthetic_cells import cells, synthetic_cell
from flooding.level_search.driver import run_concurrently
from flooding.level_search.finder import finder
from flooding.level_search.result import SearchResult
from flooding.levels import Auto
from flooding.methods import (
    SAM,
    Flooding,
    GradientPenalty,
    Hinge,
    IFlood,
    Method,
    RelaxLoss,
    SoftAD,
)
from flooding.models import mlp
from flooding.report.method_comparison import make_report
from flooding.report.method_results import BUDGET, Pick, Results
from flooding.report.record_metrics import Epoch
from flooding.tasks import adamw, real
from flooding.training.archive import Archive, is_missing
from flooding.training.config import Config, to_config
from flooding.training.problem import Problem
from flooding.training.record import AVERAGE, Record
from flooding.training.run import Run

__all__ = [
    "BUDGET",
    "CURVES",
    "EXPERIMENT",
    "LATER",
    "MAIN",
    "METHODS",
    "STANDARD",
    "Setting",
    "compare",
    "is_exact",
    "is_later",
    "may_lack",
    "problems",
    "start",
    "train_methods",
]

# What the finder reads, and what the late band is taken of.
CURVES = ("train_loss", "val_loss", "val_accuracy", "flooded")
CURVES += (f"{AVERAGE}val_loss", f"{AVERAGE}val_accuracy")
REAL = ("digits", "spambase", "letter", "higgs7k")


@dataclass(frozen=True)
class Setting:
    """One way to train a problem."""

    # The hyper-parameter, for a reader.
    label: str
    problem: Problem
    level: float | AdaFlood | Auto | None = None
    method: Method = field(default_factory=Flooding)

    def run(self, seed: int) -> Run:
        """Make a Run of it."""
        return Run(self.problem, self.level, self.method, seed)


# The settings of each method, from a Problem and its number of classes.


def _plain(problem: Problem, _: int) -> list[Setting]:
    return [Setting("", problem)]


def _auto(problem: Problem, _: int) -> list[Setting]:
    return [Setting("", problem, Auto().with_epochs(problem.max_epochs))]


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


def _relaxloss(problem: Problem, classes: int) -> list[Setting]:
    settings = []
    for share in (0.05, 0.15, 0.3, 0.5):
        level = _level(share, classes)
        settings.append(Setting(f"b {level:g}", problem, level, RelaxLoss()))
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
    """A method: its settings, and the network that its selected training is judged by."""

    # None where the level is the finder's.
    settings: Callable[[Problem, int], list[Setting]] | None
    at: Epoch = "last"
    # Whether the average of the weights is judged, by the choice of a setting or a level, too.
    is_averaged: bool = False
    # At the finder's level.
    method: Method = Flooding()

    def adapt(self, problem: Problem) -> Problem:
        """Give a Problem the average, where it is judged."""
        return replace(problem, averaging=EMA()) if self.is_averaged else problem

    @property
    def prefix(self) -> str:
        """What the names of its metrics begin with."""
        return AVERAGE if self.is_averaged else ""


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
    "auto level": _Competitor(_auto),
    "auto level + average": _Competitor(_auto, is_averaged=True),
    "flooding + average": _Competitor(None, is_averaged=True),
    "plain + average": _Competitor(_plain, is_averaged=True),
    "early stopping + average": _Competitor(_plain, "best", is_averaged=True),
    "hinge": _Competitor(None, method=Hinge()),
    "hinge + average": _Competitor(None, is_averaged=True, method=Hinge()),
    "RelaxLoss": _Competitor(_relaxloss),
}
# The methods that every archive has, and those that came later.
STANDARD = tuple(METHODS)[:12]
LATER = tuple(METHODS)[12:]
# The methods that the questions are about, and those that they are compared with: these have more
# seeds than the others.
MAIN = tuple(
    name for name in METHODS if name.startswith(("plain", "early", "flooding", "auto", "hinge"))
)
# Seeds that every archive has.
_FIRST_SEEDS = 3
_OTHER_SEEDS = 5
_PLANNED_SEEDS = 10


def is_later(run: Run) -> bool:
    """Tell whether a Run belongs to one of :data:`LATER`."""
    is_new_method = isinstance(run.method, (Hinge, RelaxLoss))
    return isinstance(run.level, Auto) or run.problem.averaging is not None or is_new_method


def may_lack(run: Run) -> bool:
    """Tell whether an archive may lack a Run: one of :data:`LATER`, or of a later seed."""
    return is_later(run) or run.seed >= _FIRST_SEEDS


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
    planned = 2 if quick else _PLANNED_SEEDS
    chosen = study.choose_seeds(seeds, planned)
    return compare(problems(quick), chosen, chosen[:_OTHER_SEEDS], planned)


def compare(
    by_name: Mapping[str, tuple[Problem, int]],
    seeds: Sequence[int],
    other_seeds: Sequence[int] | None = None,
    planned: int = 0,
) -> Study:
    """Train every method on every problem and say which wins.

    Args:
        by_name: Problems and their numbers of classes.
        seeds: Seeds of :data:`MAIN`.
        other_seeds: Seeds of the other methods; None is the same.
        planned: How many seeds of :data:`MAIN` are planned; with fewer the report says so.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    results, records = yield from train_methods(by_name, seeds, other_seeds=other_seeds)
    missing = [method for method in LATER if method not in results.methods]
    text = _describe_missing(missing, results)
    if len(results.seeds_of("flooding")) < planned:
        text += (
            f" This is a look before the end: planned are {planned} seeds of flooding, hinge, the "
            "auto level, plain training and early stopping, and half as many of the others. "
            "Verdicts may change with them."
        )
    elif (fewest := min(len(results.seeds_of(method)) for method in results.methods)) < planned / 2:
        text += (
            f" Planned were {planned / 2:g} seeds of the methods that have the fewest; they have "
            f"{fewest}."
        )
    return make_report(results, records, text.strip())


def _describe_missing(missing: Sequence[str], results: Results) -> str:
    """Say which of the later methods were not trained, and what that would cost."""
    if not missing:
        return ""
    trainings = 0
    finders = set()
    for method in missing:
        competitor = METHODS[method]
        # Plain training and early stopping are one training, judged at two epochs.
        if competitor.settings is _plain and competitor.at == "best":
            continue
        if competitor.settings is not None:
            problem, classes = results.of("plain")[0].record.run.problem, 2  # type: ignore[union-attr]
            trainings += len(competitor.settings(problem, classes))
            continue
        trainings += 1
        # Methods at the finder's level share the search.
        if competitor.is_averaged and competitor.is_averaged not in finders:
            finders.add(competitor.is_averaged)
            trainings += BUDGET - 1
    seconds = [float(pick.record.metadata.get("seconds", 0.0)) for pick in results.of("plain")]
    hours = trainings * sum(seconds) / 3600
    return (
        f"Not trained: {', '.join(missing)}. By the duration of plain training they would take "
        f"about {hours:.1f} CPU hours ({trainings} trainings for each problem and seed)."
    )


_Picks: TypeAlias = "dict[tuple[str, str, int], Pick]"


def train_methods(
    by_name: Mapping[str, tuple[Problem, int]],
    seeds: Sequence[int],
    methods: Sequence[str] | None = None,
    other_seeds: Sequence[int] | None = None,
) -> Generator[list[Run], list[Record], tuple[Results, list[Record]]]:
    """Train methods on every problem, and pick the settings of each on the validation rows.

    Args:
        by_name: Problems and their numbers of classes.
        seeds: Seeds of :data:`MAIN`.
        methods: Names from :data:`METHODS`; None is all of them.
        other_seeds: Seeds of the other methods; None is the same.

    Yields:
        The Runs.

    Returns:
        The picks, without methods that have no settings on a problem or that an archive lacks, and
        all Records. A method has those seeds in which it was trained on every problem.
    """
    if methods is None:
        methods = tuple(METHODS)
    # All methods but those at the finder's level.
    seeds_of = {}
    for method in methods:
        if METHODS[method].settings is not None:
            is_main = method in MAIN or other_seeds is None
            seeds_of[method] = seeds if is_main else other_seeds
    picks, records = yield from _train_settings(by_name, seeds_of)
    # The network's level, and the average's.
    for is_averaged in (False, True):
        chosen = []
        for method in methods:
            competitor = METHODS[method]
            if competitor.settings is None and competitor.is_averaged == is_averaged:
                chosen.append(method)
        if chosen:
            more_picks, more_records = yield from _train_at_found_levels(by_name, seeds, chosen)
            picks |= more_picks
            records += more_records
    complete: _Picks = {}
    compared = []
    for method in methods:
        for seed in seeds:
            # Without a pick on every problem it has no mean over them.
            keys = [(method, name, seed) for name in by_name]
            if all(key in picks for key in keys):
                complete |= {key: picks[key] for key in keys}
                compared.append(method)
    compared = list(dict.fromkeys(compared))
    return Results(complete, compared, list(by_name), list(seeds)), records


def _train_settings(
    by_name: Mapping[str, tuple[Problem, int]], seeds_of: Mapping[str, Sequence[int]]
) -> Generator[list[Run], list[Record], tuple[_Picks, list[Record]]]:
    """Train every setting of every method, and pick one for each problem and seed of the method."""
    # The settings are made once for all seeds, so that the estimate of the duration times each of
    # them once.
    searches: list[tuple[str, str, int, list[Setting]]] = []
    for name, (problem, classes) in by_name.items():
        settings = {}
        for method in seeds_of:
            competitor = METHODS[method]
            assert competitor.settings is not None
            settings[method] = competitor.settings(competitor.adapt(problem), classes)
        for seed in sorted({seed for seeds in seeds_of.values() for seed in seeds}):
            for method, own in settings.items():
                if own and seed in seeds_of[method]:
                    searches.append((method, name, seed, own))
    runs: list[Run] = []
    for _, _, seed, settings in searches:
        runs += [setting.run(seed) for setting in settings]
    records = list((yield runs))
    # The Records come in the order of the searches, as many as each has settings.
    picks: _Picks = {}
    start = 0
    for method, name, seed, settings in searches:
        tried = records[start : start + len(settings)]
        start += len(settings)
        if not any(is_missing(record) for record in tried):
            picks[method, name, seed] = _pick(METHODS[method], settings, tried)
    return picks, records


def _train_at_found_levels(
    by_name: Mapping[str, tuple[Problem, int]], seeds: Sequence[int], methods: Sequence[str]
) -> Generator[list[Run], list[Record], tuple[_Picks, list[Record]]]:
    """Let the finder choose a level for each problem and seed, and train in full at it."""
    # All are judged by the network, or all by its average, and so is the finder.
    competitors = [METHODS[method] for method in methods]
    cases = list(product(by_name, seeds))
    finders = []
    for name, seed in cases:
        problem = competitors[0].adapt(by_name[name][0])
        search = finder(problem, budget=BUDGET - 1, seeds=[seed])
        finders.append(study.until_missing(search))
    answers: list[SearchResult] = yield from run_concurrently(finders)
    # Methods that judge one training at two epochs share it.
    unique = list(dict.fromkeys(competitor.method for competitor in competitors))
    runs = []
    for answer in answers:
        runs += [replace(answer.run, method=method) for method in unique]
    trained = study.chunk((yield runs), len(unique))
    picks: _Picks = {}
    records: list[Record] = []
    for case, answer, row in zip(cases, answers, trained, strict=True):
        records += [*answer.records, *row]
        label = "none" if answer.level is None else f"b {answer.level:g}"
        for method, competitor in zip(methods, competitors, strict=True):
            record = row[unique.index(competitor.method)]
            if study.is_complete(answer) and not is_missing(record):
                pick = Pick(record, competitor.at, label, (record,), competitor.prefix)
                picks[method, *case] = pick
    return picks, records


def _pick(competitor: _Competitor, settings: Sequence[Setting], records: Sequence[Record]) -> Pick:
    """Pick a setting by its validation result; the first of equals."""
    picks = []
    for setting, record in zip(settings, records, strict=True):
        at, prefix = competitor.at, competitor.prefix
        picks.append(Pick(record, at, setting.label, tuple(records), prefix))
    keys = [pick.key for pick in picks]
    return picks[keys.index(max(keys))]


def is_exact(run: Run, compared: Sequence[Problem] | None = None) -> bool:
    """Tell whose curves an archive must not round: those that the finder reads.

    Args:
        run: The Run.
        compared: The problems; None is those of this experiment.

    Returns:
        Whether it is flooding or plain training on one of the problems as it is, or with averages.
    """
    if type(run.method) is not Flooding or isinstance(run.level, (AdaFlood, Auto)):
        return False
    configs = _own_configs() if compared is None else _configs_of(compared)
    return to_config(replace(run.problem, averaging=None)) in configs


def _configs_of(compared: Sequence[Problem]) -> list[Config]:
    return [to_config(replace(problem, averaging=None)) for problem in compared]


@cache
def _own_configs() -> list[Config]:
    """Describe the experiment's problems once for all Runs."""
    own = [*problems().values(), *problems(quick=True).values()]
    return _configs_of([problem for problem, _ in own])


# What `flooding reproduce bakeoff` runs.
EXPERIMENT = Experiment(
    "bakeoff", start, CURVES, is_exact=is_exact, load=partial(Archive, may_lack=may_lack)
)
