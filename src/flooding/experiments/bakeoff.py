"""A fair bake-off: flooding and its family beside the usual regularisers, each with the same budget
of four trainings.

Every method has four settings, fixed beforehand; for each problem and seed one of them is chosen by
the validation result of the last epoch. Flooding spends three trainings on the finder and one on
the level it found. Plain training and early stopping have nothing to choose and spend one. Test
data choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from flooding.adaflood import AdaFlood
from flooding.experiments import Experiment, Study, ishida2020
from flooding.level_search.base import run_concurrently
from flooding.level_search.finder import finder
from flooding.methods import SAM, Flooding, GradientPenalty, IFlood, Method, SoftAD
from flooding.models import mlp
from flooding.report.document import Report, Table
from flooding.report.provenance import describe_provenance
from flooding.report.stats import (
    Difference,
    average_ranks,
    critical_difference,
    describe_difference,
    format_mean_sd,
    format_p,
    holm,
    paired,
    pluralize,
)
from flooding.tasks import adamw, real
from flooding.training.problem import Problem
from flooding.training.record import Record, validation_key
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CURVES", "METHODS", "Setting", "compare", "exact", "experiment", "problems"]

CURVES = (
    "train_loss",
    "val_loss",
    "val_accuracy",
    "flooded",
)  # what the finder reads, and the band of the loss
BUDGET = 4  # trainings for each method, problem and seed
REAL = ("digits", "spambase", "letter", "higgs7k")
_LATE = 0.1  # share of the epochs, the last, over which the band of the training loss is taken


@dataclass(frozen=True)
class Setting:
    """One way to train a problem.

    Args:
        label: The hyper-parameter, for a reader.
        problem: The Problem, changed or not.
        level: Flood level, if any.
        method: How the level acts, or a baseline.
    """

    label: str
    problem: Problem
    level: Any = None
    method: Method = field(default_factory=Flooding)

    def run(self, seed: int) -> Run:
        """Make a Run of it."""
        return Run(self.problem, self.level, self.method, seed)


def _plain(problem: Problem, classes: int) -> list[Setting]:  # noqa: ARG001
    return [Setting("", problem)]


def _weight_decay(problem: Problem, classes: int) -> list[Setting]:  # noqa: ARG001
    """Decouple it, where the optimiser is Adam."""
    make: Any = problem.optimizer
    if isinstance(make, partial) and make.func is torch.optim.Adam:
        make = partial(adamw.func, **make.keywords)
    values = (
        0.1,
        0.5,
        2.0,
        8.0,
    )  # at the learning rate 0.001, 500 steps take 5 to 98 % off a weight
    return [
        Setting(f"{w:g}", replace(problem, optimizer=partial(make, weight_decay=w))) for w in values
    ]


def _dropout(problem: Problem, classes: int) -> list[Setting]:  # noqa: ARG001
    """Nothing for networks of other makers."""
    make: Any = problem.model
    if not (isinstance(make, partial) and make.func is mlp):
        return []
    return [
        Setting(f"{p:g}", replace(problem, model=partial(make, dropout=p)))
        for p in (0.1, 0.25, 0.5, 0.75)
    ]


def _label_smoothing(problem: Problem, classes: int) -> list[Setting]:  # noqa: ARG001
    values = (0.05, 0.1, 0.2, 0.4)
    losses = [(s, partial(cross_entropy, label_smoothing=s)) for s in values]
    return [
        Setting(f"{s:g}", replace(problem, loss=loss, eval_loss=problem.reported))
        for s, loss in losses
    ]


def _sam(problem: Problem, classes: int) -> list[Setting]:  # noqa: ARG001
    return [Setting(f"rho {rho:g}", problem, None, SAM(rho)) for rho in (0.02, 0.05, 0.1, 0.2)]


def _gradient_penalty(problem: Problem, classes: int) -> list[Setting]:  # noqa: ARG001
    return [Setting(f"{g:g}", problem, None, GradientPenalty(g)) for g in (0.001, 0.01, 0.1, 1.0)]


def _iflood(problem: Problem, classes: int) -> list[Setting]:
    levels = [round(share * math.log(classes), 3) for share in (0.05, 0.15, 0.3, 0.5)]
    return [Setting(f"b {level:g}", problem, level, IFlood()) for level in levels]


def _softad(problem: Problem, classes: int) -> list[Setting]:
    places = [
        (round(share * math.log(classes), 3), sigma)
        for share in (0.05, 0.3)
        for sigma in (0.1, 1.0)
    ]
    return [Setting(f"b {b:g}, sigma {s:g}", problem, b, SoftAD(s)) for b, s in places]


def _adaflood(problem: Problem, classes: int) -> list[Setting]:  # noqa: ARG001
    """Auxiliary networks for a fifth of the epochs: their best validation epoch comes early."""
    epochs = max(1, problem.max_epochs // 5)
    return [
        Setting(f"gamma {g:g}", problem, AdaFlood(g, epochs=epochs), IFlood())
        for g in (0.1, 0.3, 0.5, 0.8)
    ]


# Settings of each method, and the epoch its chosen training is judged at. Flooding's level is the
# finder's.
METHODS: dict[str, tuple[Callable[[Problem, int], list[Setting]] | None, str]] = {
    "plain": (_plain, "last"),
    "early stopping": (_plain, "best"),
    "weight decay": (_weight_decay, "last"),
    "dropout": (_dropout, "last"),
    "label smoothing": (_label_smoothing, "last"),
    "SAM": (_sam, "last"),
    "gradient penalty": (_gradient_penalty, "last"),
    "flooding": (None, "last"),
    "flooding + early stopping": (None, "best"),
    "iFlood": (_iflood, "last"),
    "SoftAD": (_softad, "last"),
    "AdaFlood": (_adaflood, "last"),
}


def problems(quick: bool = False) -> dict[str, tuple[Problem, int]]:
    """Give the Problems of the study with their number of classes.

    Args:
        quick: Two of them, short.

    Returns:
        The nine synthetic cells, then the tables, by name.
    """
    cells = ishida2020.cells()
    if quick:
        cell = ishida2020.synthetic_cell("two-gaussians", 0.1, max_epochs=100)
        return {cell.title: (cell.problem, 2), "digits": (real("digits", max_epochs=20), 10)}
    classes = {"digits": 10, "letter": 26}
    return {cell.title: (cell.problem, 2) for cell in cells} | {
        n: (real(n), classes.get(n, 2)) for n in REAL
    }


def experiment(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Compare all methods on the thirteen problems.

    Args:
        quick: Two problems, two seeds, few epochs.
        seeds: Seeds; five unless said otherwise.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    chosen = tuple(seeds if seeds is not None else range(2 if quick else 5))
    return (yield from compare(problems(quick), chosen))


def exact(run: Run) -> bool:
    """Tell whose curves an archive must not round: those the finder reads."""
    return type(run.method) is Flooding


@dataclass(frozen=True)
class _Pick:
    """What validation chose for a method on a problem with a seed."""

    record: Record
    at: str
    setting: str
    tried: tuple[Record, ...]

    def final(self, name: str) -> float:
        """A final on clean labels where there are any."""
        finals = self.record.metrics
        return finals.get(
            f"{self.at}.test_{name}_clean", finals.get(f"{self.at}.test_{name}", math.nan)
        )


Picks = Mapping[tuple[str, str, int], _Pick]  # by method, problem, seed


def compare(
    by_name: Mapping[str, tuple[Problem, int]], seeds: Sequence[int]
) -> Generator[list[Run], list[Record], Report]:
    """Train every method on every problem and say who wins.

    Args:
        by_name: Problems and their numbers of classes.
        seeds: Seeds.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    # Once for all seeds, so that the estimate times each setting once.
    settings = {
        (name, method): make(problem, classes)
        for name, (problem, classes) in by_name.items()
        for method, (make, _) in METHODS.items()
        if make is not None
    }
    plan = [
        (method, name, seed, setting)
        for name in by_name
        for seed in seeds
        for method in METHODS
        for setting in settings.get((name, method), [])
    ]
    records = yield [setting.run(seed) for _, _, seed, setting in plan]
    everything = list(records)
    tried: dict[tuple[str, str, int], list[tuple[Setting, Record]]] = {}
    for (method, name, seed, setting), record in zip(plan, records, strict=True):
        tried.setdefault((method, name, seed), []).append((setting, record))
    picks = {where: _choose(where[0], told) for where, told in tried.items()}
    places = [(name, seed) for name in by_name for seed in seeds]
    founds = yield from run_concurrently([
        finder(by_name[name][0], budget=BUDGET - 1, seeds=[seed]) for name, seed in places
    ])
    finals = yield [found.run for found in founds]
    for (name, seed), found, record in zip(places, founds, finals, strict=True):
        everything += [*found.records, record]
        told = "none" if found.level is None else f"b {found.level:g}"
        for method in ("flooding", "flooding + early stopping"):
            picks[method, name, seed] = _Pick(record, METHODS[method][1], told, (record,))
    return _report(picks, list(by_name), list(seeds), everything)


def _choose(method: str, told: Sequence[tuple[Setting, Record]]) -> _Pick:
    """Choose a setting by its validation result; the first of equals."""
    at = METHODS[method][1]
    best = max(
        range(len(told)),
        key=lambda i: (*validation_key(told[i][1].metrics, told[i][0].problem, f"{at}."), -i),
    )
    return _Pick(told[best][1], at, told[best][0].label, tuple(record for _, record in told))


def _report(
    picks: Picks, names: Sequence[str], seeds: Sequence[int], records: Sequence[Record]
) -> Report:
    methods = [
        method for method in METHODS if all((method, name, seeds[0]) in picks for name in names)
    ]
    tables = [
        _overall(picks, methods, names, seeds),
        _pairs(picks, names, seeds),
        *(_each(picks, methods, names, seeds, metric) for metric in _TOLD),
        _with_off(picks, methods, names, seeds),
        _settings(picks, methods, names, seeds),
        _held(picks, names, seeds),
    ]
    failures, findings = _words(picks, methods, names, seeds)
    about = (
        f"{len(methods)} methods on {len(names)} problems, {len(seeds)} seeds, {BUDGET} trainings for each method, "
        "problem and seed: four settings, or the finder's three and one. The setting is chosen by the last epoch's "
        "validation result on the labels the user has; plain training and early stopping need one training. SAM takes "
        "two passes a step, the gradient penalty about three, AdaFlood trains auxiliary networks besides. Class-wise "
        "levels are not among the methods. Test labels are clean unless said otherwise. Differences are paired by "
        "problem, or by seed where there is one problem; p by Student's t after Holm's correction."
    )
    figures = {}
    if len(names) > 1:
        caption = "Mean ranks by accuracy (1 is best); methods joined by a bar do not differ at 5 % (Nemenyi)."
        figures["ranks"] = (
            caption,
            partial(_draw_ranks, _ranks(picks, methods, names, seeds), len(names)),
        )
    return Report(
        "Regularisers side by side",
        about,
        failures,
        findings,
        tables,
        figures,
        describe_provenance(records),
    )


def _values(
    picks: Picks, method: str, names: Sequence[str], seeds: Sequence[int], metric: str
) -> np.ndarray:
    """Give a metric as ``[problems, seeds]``; accuracy in percent."""
    times = 100.0 if metric == "accuracy" else 1.0
    return np.array([
        [times * picks[method, name, seed].final(metric) for seed in seeds] for name in names
    ])


def _gain_by_task(by_problem: Mapping[str, float]) -> Difference:
    """Compare over tasks: cells of one task, which share their inputs, count once."""
    tasks: dict[str, list[float]] = {}
    for name, gain in by_problem.items():
        tasks.setdefault(name.partition(",")[0], []).append(gain)
    return paired([float(np.mean(gains)) for gains in tasks.values()], [0.0] * len(tasks))


def _gain(
    picks: Picks, method: str, other: str, names: Sequence[str], seeds: Sequence[int]
) -> Difference:
    """Compare accuracies over problems, each averaged over seeds first; over seeds where there is
    one problem.
    """
    ours, theirs = (_values(picks, m, names, seeds, "accuracy") for m in (method, other))
    axis = 1 if len(names) > 1 else 0
    return paired(ours.mean(axis).tolist(), theirs.mean(axis).tolist())


def _ranks(
    picks: Picks, methods: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, float]:
    return average_ranks({
        m: _values(picks, m, names, seeds, "accuracy").mean(1).tolist() for m in methods
    })


def _gap(pick: _Pick) -> float:
    """Test minus training loss, on the labels of each."""
    return (
        pick.record.metrics[f"{pick.at}.test_loss"] - pick.record.metrics[f"{pick.at}.train_loss"]
    )


def _band(record: Record) -> float:
    """Highest minus lowest training loss of the late epochs."""
    late = _late_losses(record)
    return float(late.max() - late.min())


def _overall(
    picks: Picks, methods: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> Table:
    """Tabulate means over problems and seeds, and what differs from plain training and from early
    stopping.
    """
    ranks = _ranks(picks, methods, names, seeds)
    plain = [_gain(picks, m, "plain", names, seeds) for m in methods]
    stopped = [_gain(picks, m, "early stopping", names, seeds) for m in methods]
    adjusted = [holm([math.nan if g.sd == 0 else g.p for g in gains]) for gains in (plain, stopped)]
    rows = []
    for i, method in enumerate(methods):
        mine = [picks[method, name, seed] for name in names for seed in seeds]
        metrics = [
            f"{_values(picks, method, names, seeds, metric).mean():.3f}"
            for metric in ("nll", "brier", "ece", "over_confidence")
        ]
        rows.append([
            method,
            f"{_values(picks, method, names, seeds, 'accuracy').mean():.1f}",
            f"{ranks[method]:.1f}",
            *(
                "–" if method == against else f"{gains[i]} p {format_p(ps[i])}"
                for against, gains, ps in (
                    ("plain", plain, adjusted[0]),
                    ("early stopping", stopped, adjusted[1]),
                )
            ),
            *metrics,
            f"{np.mean([pick.record.metrics[f'{pick.at}.test_loss'] for pick in mine]):.3f}",
            "–" if method in _OTHER_LOSS else f"{np.mean([_gap(pick) for pick in mine]):.3f}",
            f"{np.mean([pick.record.metrics[f'{pick.at}.train_loss'] for pick in mine]):.3f}",
            f"{np.mean([_band(pick.record) for pick in mine]):.3f}",
        ])
    columns = [
        "method",
        "accuracy %",
        "rank",
        "minus plain",
        "minus early stopping",
        "NLL",
        "Brier",
        "ECE",
    ]
    columns += ["over-confidence", "test loss", "gap", "training loss", "its late band"]
    unit = "problems" if len(names) > 1 else "seeds"
    title = f"Means over {len(names)} problems and {len(seeds)} seeds; differences with 95 % intervals over {unit}"
    note = (
        "Gap: test minus training loss, not told where the training loss is another one: with smoothed labels, or with "
        "units dropped. The training loss is on noisy labels, and so is the test loss of synthetic tasks; all other "
        "figures are on clean ones. Late band: highest minus lowest training loss of the last tenth of epochs."
    )
    return Table("overall", title, columns, rows, note)


_TOLD = {  # title, digits
    "accuracy": ("Test accuracy in %", 1),
    "nll": ("Test NLL in nats", 3),
    "brier": ("Test Brier score", 3),
    "ece": ("Test ECE", 3),
    "over_confidence": ("Over-confidence: mean confidence minus accuracy", 3),
}
_OTHER_LOSS = {
    "label smoothing",
    "dropout",
}  # whose training loss cannot be set against a test loss


def _pairs(picks: Picks, names: Sequence[str], seeds: Sequence[int]) -> Table:
    """Compare flooding with plain training, problem by problem, paired by seed."""
    rows: list[list[str]] = [[name] for name in names]
    columns = ["problem"]
    for ours, theirs in (
        ("flooding", "plain"),
        ("flooding", "early stopping"),
        ("flooding + early stopping", "early stopping"),
    ):
        gains = [_gain(picks, ours, theirs, [name], seeds) for name in names]
        columns += [f"{ours} − {theirs}", "p"]
        for row, gain, p in zip(rows, gains, holm([gain.p for gain in gains]), strict=True):
            row += [str(gain), format_p(p)]
    title = f"Differences in test accuracy, in points, by problem; paired by seed, n = {len(seeds)}, p after Holm"
    return Table("pairs", title, columns, rows)


def _with_off(
    picks: Picks, methods: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> Table:
    """Ask how much it matters that the finder may answer "no flooding", which other methods'
    settings cannot.
    """
    rows = []
    for method in methods:
        if METHODS[method][0] in {None, _plain}:
            continue
        means, off = [], 0
        for name in names:
            found = []
            for seed in seeds:
                pick, plain = picks[method, name, seed], picks["plain", name, seed]
                problem = pick.record.run and pick.record.run.problem
                better = validation_key(pick.record.metrics, problem, "last.") >= validation_key(
                    plain.record.metrics, problem, "last."
                )
                found.append(100 * (pick if better else plain).final("accuracy"))
                off += not better
            means.append(float(np.mean(found)))
        flooding = [
            float(_values(picks, "flooding", [name], seeds, "accuracy").mean()) for name in names
        ]
        gain = paired(flooding, means)
        rows.append([
            method,
            f"{np.mean(means):.1f}",
            f"{off} of {len(names) * len(seeds)}",
            str(gain),
            format_p(gain.p),
        ])
    none = sum(not picks["flooding", name, seed].record.level for name in names for seed in seeds)
    columns = ["method", "accuracy %", "plain chosen", "flooding minus it", "p, uncorrected"]
    note = f"The finder answered “no flooding” in {none} of {len(names) * len(seeds)} searches."
    return Table(
        "with-off",
        "The same where plain training is a fifth setting of every method",
        columns,
        rows,
        note,
    )


def _each(
    picks: Picks, methods: Sequence[str], names: Sequence[str], seeds: Sequence[int], metric: str
) -> Table:
    """Tabulate one metric by problem."""
    title, digits = _TOLD[metric]
    rows = []
    for name in names:
        values = [_values(picks, m, [name], seeds, metric)[0].tolist() for m in methods]
        rows.append([name, *(format_mean_sd(v, digits) for v in values)])
    return Table(
        metric, f"{title}, mean ± standard deviation, n = {len(seeds)}", ["problem", *methods], rows
    )


def _settings(
    picks: Picks, methods: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> Table:
    """Tabulate what was chosen."""
    chosen = [
        m for m in methods if m not in {"plain", "early stopping", "flooding + early stopping"}
    ]
    rows = [
        [name, *("; ".join(picks[m, name, seed].setting for seed in seeds) for m in chosen)]
        for name in names
    ]
    return Table("settings", "Chosen on validation, seed by seed", ["problem", *chosen], rows)


def _held(picks: Picks, names: Sequence[str], seeds: Sequence[int]) -> Table:
    """Ask whether weight decay and dropout can hold the training loss at a preset value, as
    flooding does.
    """
    rows = []
    for method in ("flooding", "weight decay", "dropout", "label smoothing"):
        misses, bands = [], []
        for name in names:
            for seed in seeds:
                level = picks["flooding", name, seed].record.level or 0.0
                if level > 0 and (method, name, seed) in picks:
                    tried = picks[method, name, seed].tried
                    ends = [float(np.mean(_late_losses(record))) for record in tried]
                    nearest = min(range(len(tried)), key=lambda i: abs(ends[i] - level))
                    misses.append(abs(ends[nearest] - level) / level)
                    bands.append(_band(tried[nearest]) / level)
        if misses:
            within = sum(miss <= 0.1 for miss in misses)
            rows.append([
                method,
                f"{within} of {len(misses)}",
                format_mean_sd(misses, 2),
                format_mean_sd(bands, 2),
            ])
    columns = ["method", "within 10 % of the level", "distance / level", "late band / level"]
    title = "Holding a preset training loss: the finder's level, and the nearest of four settings"
    note = (
        "Distance: mean training loss of the last tenth of the epochs from the level. Flooding is given the level; the "
        "others' four settings are far apart, so that a miss may be the grid's. The band does not depend on that."
    )
    return Table("held", title, columns, rows, note)


def _late_losses(record: Record) -> np.ndarray:
    curve = record.curves["train_loss"]
    return curve[-max(2, round(_LATE * (len(curve) - 1))) :]


def _words(
    picks: Picks, methods: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> tuple[list[str], list[str]]:
    """Say when to use flooding, and who wins, those that beat flooding first."""
    failures, findings = [], []
    unit = f"{len(names)} problems" if len(names) > 1 else f"{len(seeds)} seeds"
    ours = ("flooding", "flooding + early stopping")
    told = {
        row: _against(picks, row, [m for m in methods if m not in ours], names, seeds)
        for row in ours
    }
    findings.append(_advice(picks, told, methods, names, seeds))
    flooded = [
        name for name in names if any(picks[ours[0], name, seed].record.level for seed in seeds)
    ]
    for other in ("plain", "early stopping") if len(names) > 1 else ():
        gains = {name: _gain(picks, ours[0], other, [name], seeds) for name in names}
        by_problem = {name: gain.mean for name, gain in gains.items()}
        ordered = sorted(flooded, key=by_problem.__getitem__)
        least, most = ([f"{n} {gains[n]}" for n in part] for part in (ordered[:3], ordered[:-4:-1]))
        findings.append(
            f"Flooding minus {other}: most on {'; '.join(most)}; least on {'; '.join(least)} points (of the "
            f"{len(flooded)} problems on which the finder flooded any seed; n = {len(seeds)}, 95 % intervals)."
        )
        gain = _gain_by_task(by_problem)
        findings.append(
            f"Cells of one task share their inputs: averaged over the noises of each task, flooding minus {other} is "
            f"{gain} points over {gain.n} tasks (p {format_p(gain.p)}, uncorrected)."
        )
    for row, others in told.items():
        for other, (gain, p) in others.items():
            sentence = f"{row} against {other}: {describe_difference(gain, p)} points over {unit}, p {format_p(p)}."
            (failures if gain.mean < 0 and p < 0.05 else findings).append(sentence)
    return failures, findings


def _against(
    picks: Picks, row: str, others: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, tuple[Difference, float]]:
    """Compare a method with others: what it gains, and p after Holm's correction."""
    gains = [_gain(picks, row, other, names, seeds) for other in others]
    return dict(zip(others, zip(gains, holm([gain.p for gain in gains]), strict=True), strict=True))


def _advice(
    picks: Picks,
    told: Mapping[str, Mapping[str, tuple[Difference, float]]],
    methods: Sequence[str],
    names: Sequence[str],
    seeds: Sequence[int],
) -> str:
    """Say in plain words when to use flooding and when not."""

    def compared(row: str, other: str, better: str, worse: str, unsure: str) -> str:
        gain, p = told[row][other]
        verdict = unsure if not p < 0.05 else better if gain.mean > 0 else worse
        return f"{verdict} (flooding minus it: {gain} points, p {format_p(p)})"

    last, stopped = "flooding", "flooding + early stopping"
    others = {m: found for m, found in told[last].items() if m not in {"plain", "early stopping"}}
    sure = {
        sign: [m for m, (g, p) in others.items() if p < 0.05 and sign * g.mean > 0]
        for sign in (1, -1)
    }
    nll = {
        m: f"{_values(picks, m, names, seeds, 'nll').mean():.2f}"
        for m in ("plain", "early stopping", last)
    }
    n = pluralize(len(seeds), "seed")
    n = f"{len(names)} problems, {n} each" if len(names) > 1 else n
    ordered = sorted(_ranks(picks, methods, names, seeds).items(), key=lambda item: item[1])
    ranks = ", ".join(f"{m} {rank:.1f}" for m, rank in ordered)
    kept = compared(
        last,
        "plain",
        "better than plain training",
        "worse than plain training",
        "not shown to differ from plain training",
    )
    best = compared(last, "early stopping", "worse", "better", "not shown to differ")
    both = compared(
        stopped, "early stopping", "adds to it", "costs accuracy", "adds nothing that shows"
    )
    return (
        f"When to use flooding: if the last epoch's network is kept, flooding is {kept}. If the best validation epoch "
        f"can be kept, plain early stopping, one training instead of {BUDGET}, is {best}, and flooding on top of early "
        f"stopping {both}. Of the other methods with as many trainings, some with dearer steps, {_named(sure[1])} "
        f"shown to be worse than flooding's last epoch and {_named(sure[-1])} shown to be better. Mean ranks by "
        f"accuracy: {ranks}. Test NLL: "
        f"plain {nll['plain']}, early stopping {nll['early stopping']}, flooding {nll[last]} nats (n = {n}, "
        f"intervals are 95 % and not corrected, p is after Holm over {len(told[last])} comparisons)."
    )


def _named(methods: Sequence[str]) -> str:
    return f"{', '.join(methods)} {'is' if len(methods) == 1 else 'are'}" if methods else "none is"


def _draw_ranks(ranks: Mapping[str, float], problems: int) -> Figure:
    """Draw mean ranks on a line, and bars over those that do not differ."""
    from flooding.report.plots import PALETTE, drawn

    ordered = sorted(ranks.items(), key=lambda item: item[1])
    distance = critical_difference(len(ordered), problems)
    with drawn(7.5, 0.32 * len(ordered) + 1.2) as figure:
        axes = figure.subplots()
        for place, (name, rank) in enumerate(ordered):
            colour = (
                PALETTE["flooded" if "flooding" in name else "plain"]
                if name != "plain"
                else "black"
            )
            axes.plot([rank], [place], "o", color=colour)
            axes.annotate(
                f"{name}  {rank:.1f}",
                (rank, place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
            )
        for place, (first, last) in enumerate(_groups([rank for _, rank in ordered], distance)):
            axes.plot(
                [first, last], [-0.6 - 0.3 * place] * 2, color="0.4", lw=3, solid_capstyle="butt"
            )
        axes.set(
            xlabel=f"mean rank by accuracy (critical difference {distance:.1f}, {problems} problems)"
        )
        axes.set(xlim=(0.5, len(ordered) + 0.5), yticks=[])
        axes.invert_yaxis()
        axes.spines[["left", "right", "top"]].set_visible(False)
    return figure


def _groups(ranks: Sequence[float], distance: float) -> list[tuple[float, float]]:
    """Find the largest stretches of sorted ranks no wider than a distance, those of one rank left
    out.
    """
    found: list[tuple[float, float]] = []
    for first in ranks:
        last = max(rank for rank in ranks if rank - first <= distance)
        if last > first and not (found and found[-1][1] == last):
            found.append((first, last))
    return found


EXPERIMENT = Experiment("bakeoff", experiment, CURVES, is_exact=exact)
