"""The published reproduction of flooding: four searches for the level on Two Gaussians at 10 %
label noise.

Constant levels ("forward"), flooding once the training set is fitted ("backward"), a level that
follows the validation accuracy (heuristic) and an agent (policy gradient), in mini-batches and with
batch norm. Each claim of the source is a test over seeds. Levels are chosen by validation accuracy
on noisy labels; test data choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from flooding.data import synthetic
from flooding.experiments import Experiment, Study, describe_provenance
from flooding.experiments.archive import Archive, run_id
from flooding.level_search.backward import has_started
from flooding.level_search.base import SearchResult, run_concurrently
from flooding.level_search.policy_gradient import Policy, policy_gradient
from flooding.levels import Delayed, Heuristic
from flooding.models import mlp
from flooding.report.document import Report, Table
from flooding.report.stats import Difference, format_mean_sd, format_p, holm, paired
from flooding.tasks import adam
from flooding.training.problem import Problem, TestCurve
from flooding.training.record import Record, select_best
from flooding.training.rng import derive_seed
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = [
    "BACKWARD",
    "CURVES",
    "FORWARD",
    "LOGS",
    "PUBLISHED",
    "Plan",
    "exact",
    "experiment",
    "load",
    "plan",
    "setting",
    "study",
]

FORWARD = tuple(round(0.02 * n, 2) for n in range(19))
BACKWARD = FORWARD[1:15]
CURVES = ("flooded", "level", "test_accuracy", "test_loss", "train_accuracy", "train_loss")
CURVES += ("test_accuracy_clean", "test_loss_clean")
CURVES += ("val_accuracy", "val_loss")  # which the policy gradient reads

# What the source printed: test accuracy in percent on noisy labels, and the level. One seed.
PUBLISHED = {
    "no flooding": (77.89, None),
    "forward": (80.62, 0.29),
    "backward": (79.89, 0.26),
    "heuristic": (79.12, 0.21),
}
# Its own logs, recomputed: test accuracy on noisy and on clean labels in percent, test loss in
# nats, level. One seed.
LOGS = {
    "no flooding": (77.7, 84.7, 1.85, None),
    "forward": (80.0, 87.6, 0.55, 0.29),
    "backward": (80.9, None, None, 0.28),
    "heuristic": (79.1, None, None, 0.255),
    "no flooding, stopped": (83.1, 91.3, None, None),
    "forward, stopped": (83.3, None, None, 0.24),
}
_LONGER = "no flooding, as long as the heuristic"
_FAR = 1.5  # points between the source's figures and ours from which on we say so
_LAST = (
    50  # epochs of an average at the end, beside the last epoch, which may be a spike of batch norm
)
_SMOOTH = 12  # epochs to either side of an average
_UNTIL = 1e-4  # loss of an epoch's last batch at which the source's code begins to flood

Search: TypeAlias = Mapping[
    float, Sequence[Record]
]  # by level, smallest first; a Record for each seed


def setting(max_epochs: int = 500) -> Problem:
    """Give the reproduction's setting.

    Args:
        max_epochs: Epochs.

    Returns:
        Two Gaussians at 10 % label noise, 500 training and 50 validation examples a class; four
        hidden layers of 500 units with bias and batch norm, Adam at 0.001, batches of 200.
    """
    data = partial(synthetic.two_gaussians, n_train=1000, n_val=100, n_test=20_000, label_noise=0.1)
    network = partial(mlp, 10, 2, width=500, depth=4, batch_norm=True, bias=True)
    return Problem(
        data,
        network,
        adam,
        batch_size=200,
        max_epochs=max_epochs,
        test_curve=TestCurve(500, every=1),
    )


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Args:
        problem: The Problem.
        forward: Constant levels in nats, 0 first.
        backward: Levels above 0 at which flooding begins late, all of them in ``forward`` too.
        until_loss: Loss of an epoch's last batch, in nats, at which backward and heuristic begin to
            flood.
        heuristic_epochs: Epochs of the heuristic.
        seeds: Seeds.
        policies: How many of the seeds, the first, the policy gradient is tried on.
        trainings: Trainings of each policy gradient.
    """

    problem: Problem = field(default_factory=setting)
    forward: tuple[float, ...] = FORWARD
    backward: tuple[float, ...] = BACKWARD
    until_loss: float = _UNTIL
    heuristic_epochs: int = 1000
    seeds: tuple[int, ...] = tuple(range(10))
    policies: int = 3
    trainings: int = 20

    @property
    def runs(self) -> list[Run]:
        """Everything that can be asked at once: forward, backward, no flooding for as long as the
        heuristic, heuristic.

        Levels come first, then seeds.
        """
        longer = replace(self.problem, max_epochs=self.heuristic_epochs)
        ways = [
            *((self.problem, level or None) for level in self.forward),
            *((self.problem, Delayed(level, self.until_loss)) for level in self.backward),
            (longer, None),
            (longer, Heuristic(until_loss=self.until_loss)),
        ]
        return [Run(where, level, seed=seed) for where, level in ways for seed in self.seeds]

    @property
    def policy_seeds(self) -> tuple[int, ...]:
        """Seeds of the policy gradient."""
        return self.seeds[: self.policies]


def plan(quick: bool = False) -> Plan:
    """Plan the study.

    Args:
        quick: Two seeds, four levels, 60 epochs and no policy gradient, in two to three minutes on
            two cores. Flooding begins at a batch loss of 0.02 instead of 1e-4, which 60 epochs
            would not reach.

    Returns:
        The plan.
    """
    if not quick:
        return Plan()
    return Plan(setting(60), (0.0, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 0.02, 120, (0, 1), policies=0)


def experiment(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Search in the source's four ways and test its claims.

    Args:
        quick: See :func:`plan`.
        seeds: Other seeds than the ten; the policy gradient is tried on the first three.

    Yields:
        The Runs: all but the policy gradient's at once, then those.

    Returns:
        The report.
    """
    chosen = plan(quick)
    return (yield from study(chosen if seeds is None else replace(chosen, seeds=tuple(seeds))))


def study(plan: Plan) -> Generator[list[Run], list[Record], Report]:
    """Train a plan and report on it.

    Args:
        plan: The plan.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    records = yield plan.runs
    agents = [
        policy_gradient(plan.problem, trainings=plan.trainings, seed=seed)
        for seed in plan.policy_seeds
    ]
    policies = (yield from run_concurrently(agents)) if agents else []
    told = iter(records)

    def by_level(levels: Sequence[float]) -> dict[float, list[Record]]:
        return {level: [next(told) for _ in plan.seeds] for level in levels}

    forward, backward, [longer] = (
        by_level(plan.forward),
        by_level(plan.backward),
        by_level([0.0]).values(),
    )
    results = _Results(plan, forward, backward, longer, list(told), policies)
    return _report(results, [*records, *(record for found in policies for record in found.records)])


@dataclass(frozen=True)
class _Row:
    """What one way to train ends with: a Record for each seed, where it is judged, and what it took
    to get there.
    """

    records: Sequence[Record]
    at: Literal["best", "last"]
    spent: Sequence[Sequence[Record]]
    levels: Sequence[float]  # of those that were flooded

    def values(self, name: str, times: float = 1.0) -> list[float]:
        return [times * record.metrics[f"{self.at}.{name}"] for record in self.records]

    @property
    def accuracy(self) -> list[float]:
        return self.values("test_accuracy", 100.0)

    @property
    def late(self) -> list[float]:
        """Test accuracy on noisy labels, averaged over the last epochs, of the examples of the test
        curve.
        """
        return [
            float(np.nanmean(record.curves["test_accuracy"][-_LAST:])) for record in self.records
        ]

    @property
    def epochs(self) -> list[int]:
        return [sum(_run(record).epochs for record in tried) for tried in self.spent]

    @property
    def seconds(self) -> list[float]:
        return [sum(float(r.metadata.get("seconds", 0.0)) for r in tried) for tried in self.spent]


@dataclass(frozen=True)
class _Results:
    """All Records, in their places."""

    plan: Plan
    forward: Search
    backward: Search
    longer: Sequence[Record]  # no flooding, as long as the heuristic
    heuristic: Sequence[Record]
    policies: Sequence[SearchResult]

    @property
    def plain(self) -> Sequence[Record]:
        return self.forward[0.0]

    @property
    def rows(self) -> dict[str, _Row]:
        """The rows of the table by their names."""
        agents = {"policy gradient": _played(self.policies, self.plain)} if self.policies else {}
        return {
            "no flooding": _trained(self.plain, "last"),
            _LONGER: _trained(self.longer, "last"),
            "forward": _chosen(self.forward, "last"),
            "backward": _chosen(self.backward, "last"),
            "heuristic": _trained(self.heuristic, "last"),
            **agents,
            "no flooding, stopped": _trained(self.plain, "best"),
            "forward, stopped": _chosen(self.forward, "best"),
        }


def _trained(
    records: Sequence[Record], at: Literal["best", "last"], tried: Sequence[Sequence[Record]] = ()
) -> _Row:
    """Make a row of Records; without ``tried`` they are all it took."""
    flooded = [r for r in records if _run(r).level is not None and has_started(r)]
    levels = [record.level or 0.0 for record in flooded]
    return _Row(records, at, tried or [[record] for record in records], levels)


def _chosen(search: Search, at: Literal["best", "last"]) -> _Row:
    """Choose a level above 0 for each seed, on the validation split."""
    tried = list(zip(*(records for level, records in search.items() if level > 0), strict=True))
    return _trained([select_best(records, at) for records in tried], at, tried)


def _played(policies: Sequence[SearchResult], plain: Sequence[Record]) -> _Row:
    """Judge each agent by its last training, which is among its Records; by plain training where it
    gave up.
    """
    by_seed = {_run(record).seed: record for record in plain}
    ends = [by_seed[f.run.seed] if f.run.level is None else f.records[-1] for f in policies]
    return _Row(
        ends,
        "last",
        [found.records for found in policies],
        [found.level or 0.0 for found in policies],
    )


def _run(record: Record) -> Run:
    assert record.run is not None
    return record.run


def _waits(records: Sequence[Record]) -> list[bool]:
    """Tell which of those that wait for a fit began to flood."""
    return [has_started(record) for record in records if isinstance(_run(record).level, Delayed)]


class _Stretch(NamedTuple):
    """How a stretch of a training lies to its level."""

    below: float  # share of steps strictly below the level in force
    lowest: float  # lowest mean training loss of an epoch, over the level


def _reached(search: Search) -> list[list[_Stretch]]:
    """Look at each seed's trainings from the epoch on that reaches the level."""
    found: list[list[_Stretch]] = [[] for _ in search[0.0]]
    for level, records in search.items():
        for stretches, record in zip(found, records, strict=True):
            at = np.flatnonzero(
                (record.curves["flooded"] > 0) | (record.curves["train_loss"] <= level)
            )
            if level > 0 and len(at):
                stretches.append(_stretch(record, level, slice(max(1, at[0]), None)))
    return found


def _switched(search: Search, seeds: int) -> tuple[list[list[_Stretch]], list[list[_Stretch]]]:
    """Look at each seed's trainings before flooding begins, and from there on."""
    before: list[list[_Stretch]] = [[] for _ in range(seeds)]
    after: list[list[_Stretch]] = [[] for _ in range(seeds)]
    for level, records in search.items():
        for place, record in enumerate(records):
            if has_started(record):
                before[place].append(_stretch(record, level, slice(1, _start(record))))
                after[place].append(_stretch(record, level, slice(_start(record), None)))
    return before, after


def _start(record: Record) -> int:
    """Give the first epoch with a level in force; until then it is minus infinity."""
    return int(np.isfinite(record.curves["level"]).argmax())


def _stretch(record: Record, level: float, epochs: slice) -> _Stretch:
    flooded, losses = (record.curves[name][epochs] for name in ("flooded", "train_loss"))
    return _Stretch(float(flooded.mean(dtype=float)), float(losses.min()) / level)


def _by_seed(stretches: Sequence[Sequence[_Stretch]], name: str, times: float = 1.0) -> list[float]:
    """Average over levels, in each seed that has any."""
    return [
        times * float(np.mean([getattr(s, name) for s in levels])) for levels in stretches if levels
    ]


@dataclass(frozen=True)
class _Claim:
    """A claim of the source, and a difference that decides it; None where there is nothing to tell
    it from.

    ``sign`` is the sign that the claim gives the difference; 0 is a claim that there is none.
    """

    text: str
    difference: Difference | None
    sign: int
    unit: str
    more: str = ""
    picked: int = 1  # rivals of which the one with most doubt is told

    def holds(self, p: float) -> bool:
        if self.difference is None:
            return False
        return (
            self.difference.mean == 0
            if self.sign == 0
            else p < 0.05 and self.difference.mean * self.sign > 0
        )

    def sentence(self, p: float) -> str:
        """Say what was claimed, whether it holds, and by how much."""
        found = self.difference
        if found is None:
            return f"{self.text}: cannot be judged{self.more}."
        sure = "" if math.isnan(p) else f", p {format_p(p)}"
        return (
            f"{self.text}: {self._verdict(p)}; {found} {self.unit}, n = {found.n}{sure}{self.more}."
        )

    def _verdict(self, p: float) -> str:
        if self.holds(p):
            return "holds"
        if self.sign == 0:
            return "does not hold"
        if math.isnan(p):
            return "cannot be tested"
        return "not shown" if not p * self.picked < 0.05 else "the opposite holds"  # Bonferroni


def _claims(results: _Results) -> list[_Claim]:
    """Give the source's claims, in its order."""
    began = _waits([record for records in results.backward.values() for record in records])
    late = f" ({sum(began)} of {len(began)} backward runs began to flood)"
    points = "points, backward minus forward"
    return [
        *(
            _Claim(
                f"Backward flooding lowers {what} against forward at the same level",
                gain,
                -1,
                points,
                late,
            )
            for what, name in (
                ("training accuracy", "train_accuracy"),
                ("test accuracy on noisy labels", "test_accuracy"),
                ("test accuracy on clean labels", "test_accuracy_clean"),
            )
            for gain in [_matched(results, name)]
        ),
        _outside(results),
        *_about_the_heuristic(results),
        _early_stopping(results),
    ]


def _matched(results: _Results, name: str) -> Difference | None:
    """Compare backward to forward in each seed, averaged over the levels at which backward began to
    flood.
    """
    pairs = []
    for place in range(len(results.plan.seeds)):
        both = [
            (ours[place], results.forward[level][place]) for level, ours in results.backward.items()
        ]
        both = [
            [100 * r.metrics[f"last.{name}"] for r in pair] for pair in both if has_started(pair[0])
        ]
        if both:
            pairs.append(np.mean(both, axis=0).tolist())
    return paired(*zip(*pairs, strict=True)) if pairs else None


def _outside(results: _Results) -> _Claim:
    reached, (before, after) = (
        _reached(results.forward),
        _switched(results.backward, len(results.plan.seeds)),
    )
    text, count = "The forward search never enters below its level", sum(map(len, reached))
    more = f" ({count} of {(len(results.forward) - 1) * len(results.plan.seeds)} runs reached their level)"
    if not count:
        return _Claim(text, None, 0, "", more)
    shares = _by_seed(reached, "below", 100.0)
    more += f"; lowest epoch mean of the training loss over the level: {format_mean_sd(_by_seed(reached, 'lowest'), 2)}"
    if any(after):
        lowest = [format_mean_sd(_by_seed(stretches, "lowest"), 2) for stretches in (before, after)]
        more += f"; backward: {lowest[0]} before flooding begins and {lowest[1]} from there on"
        more += f", with {format_mean_sd(_by_seed(after, 'below', 100.0))} % of steps below"
    unit = "% of steps below the level from the epoch on that reaches it"
    return _Claim(text, paired(shares, [0.0] * len(shares)), 0, unit, more)


def _about_the_heuristic(results: _Results) -> list[_Claim]:
    rows, began = results.rows, _waits(results.heuristic)
    ours, late = rows["heuristic"], f" ({sum(began)} of {len(began)} heuristic runs began to flood)"

    def claim(text: str, sign: int, row: str, name: str, unit: str) -> _Claim:
        difference = paired(getattr(ours, name), getattr(rows[row], name)) if any(began) else None
        return _Claim(text, difference, sign, unit, late)

    points = "points of noisy test accuracy"
    max_epochs = results.plan.problem.max_epochs
    times = [f"{row.epochs[0] / max_epochs:g}" for row in (ours, rows["forward"])]
    text = f"The heuristic is cheaper than the forward search ({times[0]} trainings a seed against {times[1]})"
    return [
        claim(
            "The heuristic is better than no flooding for as long", 1, _LONGER, "accuracy", points
        ),
        claim(
            "The heuristic is worse than the exhaustive forward search",
            -1,
            "forward",
            "accuracy",
            points,
        ),
        claim(text, -1, "forward", "seconds", "CPU seconds a seed"),
    ]


def _early_stopping(results: _Results) -> _Claim:
    """Compare with the flooded final model that leaves most doubt: if that one is beaten, all
    are.
    """
    rows = results.rows
    rivals = {
        f"forward at {level:g}": records for level, records in results.forward.items() if level > 0
    }
    rivals |= {f"backward at {level:g}": records for level, records in results.backward.items()}
    rivals |= {f"{name}, level chosen": rows[name].records for name in ("forward", "backward")}
    rivals |= {"heuristic": results.heuristic}
    ours = dict(zip(results.plan.seeds, rows["no flooding, stopped"].accuracy, strict=True))
    gains = {name: gain for name, records in rivals.items() if (gain := _against(ours, records))}
    hardest = max(gains, key=lambda name: _doubt(gains[name]))
    text = f"Plain early stopping beats every flooded final model, here the hardest of {len(gains)} ({hardest})"
    return _Claim(text, gains[hardest], 1, "points of noisy test accuracy", picked=len(gains))


def _against(ours: Mapping[int, float], records: Sequence[Record]) -> Difference | None:
    """Compare accuracies by seed with the last epochs of those Records that were flooded."""
    theirs = {
        _run(r).seed: 100 * r.metrics["last.test_accuracy"] for r in records if has_started(r)
    }
    return paired([ours[seed] for seed in theirs], list(theirs.values())) if theirs else None


def _doubt(gain: Difference) -> tuple[float, float]:
    """Give the one-sided p that a gain is not above 0, 0 or 1 for a single pair; then the size of
    the loss.
    """
    if math.isnan(gain.p):
        return float(gain.mean <= 0), -gain.mean
    return gain.p / 2 if gain.mean > 0 else 1 - gain.p / 2, -gain.mean


def _report(results: _Results, records: Sequence[Record]) -> Report:
    claims = _claims(results)
    ps = holm([math.nan if claim.difference is None else claim.difference.p for claim in claims])
    told = [(claim.holds(p), claim.sentence(p)) for claim, p in zip(claims, ps, strict=True)]
    failures = [sentence for holds, sentence in told if not holds] + _far(results)
    findings = [sentence for holds, sentence in told if holds]
    tables = [_published(results), _levels(results)]
    title = "Searches for the flood level: the published reproduction (kim2022)"
    about = _about(results.plan, len(claims))
    return Report(
        title, about, failures, findings, tables, _figures(results), describe_provenance(records)
    )


def _about(plan: Plan, claims: int) -> str:
    raised = (
        ""
        if plan.until_loss == _UNTIL
        else f" (the source: {_UNTIL:g}; raised so that a short training gets there)"
    )
    agents = (
        "Policy gradient: an agent picks each epoch's level from 0 to 0.10 and learns from validation accuracy, over "
        f"{plan.trainings} trainings; {len(plan.policy_seeds)} seeds; judged by its last training, and in no claim."
    )
    return (
        "Two Gaussians in 10 dimensions, 10 % of the labels flipped, 1,000 training, 100 validation and 20,000 test "
        "examples, four hidden layers of 500 units with bias and batch norm, Adam at 0.001, batches of 200, "
        f"{plan.problem.max_epochs} epochs, {len(plan.seeds)} seeds where the source had one. Forward: "
        f"constant levels 0, {plan.forward[1]:g} ... {plan.forward[-1]:g}, where the source's go in steps of 0.01. "
        "Backward: plain training until an epoch's last batch has a loss of at most "
        f"{plan.until_loss:g}{raised}, then one of {len(plan.backward)} levels. Heuristic: from the same moment on the "
        "validation accuracy moves the level, with the parameters of the source's code, "
        f"{plan.heuristic_epochs:,} epochs. {agents if plan.policy_seeds else 'Without the policy gradient.'} "
        "The source's plain phase ran batch norm in evaluation mode from the second epoch on, a defect that is not "
        "repeated here. For each seed the level is chosen among those above 0 by validation accuracy on noisy labels, "
        "ties to the lower validation loss, then to the smaller level; test data choose nothing. Figures are mean ± "
        "standard deviation over seeds; differences are paired by seed, with the 95 % interval of Student's t and p "
        f"after Holm's correction over the {claims} claims. Stopped: the best validation epoch."
    )


def _far(results: _Results) -> list[str]:
    """Say where the source's figures are not ours, neither those it printed nor those of its
    logs.
    """
    said = []
    for name, row in results.rows.items():
        known = {
            "printed": PUBLISHED.get(name, (None,))[0],
            "in its logs": LOGS.get(name, (None,))[0],
        }
        figures = {where: figure for where, figure in known.items() if figure is not None}
        ours = float(np.mean(row.accuracy))
        if figures and min(abs(ours - figure) for figure in figures.values()) > _FAR:
            theirs = " and ".join(
                f"{figure:g} % {where} ({ours - figure:+.1f})" for where, figure in figures.items()
            )
            said.append(
                f"Noisy test accuracy, {name}: {format_mean_sd(row.accuracy)} % against {theirs}."
            )
    return said


def _published(results: _Results) -> Table:
    """Tabulate every way beside what the source printed and what its logs say."""
    columns = [
        "way",
        "noisy %",
        f"noisy %, last {_LAST} epochs",
        "clean %",
        "NLL",
        "level",
        "n",
        "began",
        "never began",
        "trainings",
        "CPU hours",
    ]
    columns += [
        "printed: noisy %",
        "printed: level",
        "logs: noisy %",
        "logs: clean %",
        "logs: NLL",
        "logs: level",
    ]
    rows = []
    for name, row in results.rows.items():
        began = _waits([record for tried in row.spent for record in tried])
        trainings = np.mean(row.epochs) / results.plan.problem.max_epochs
        source = (*PUBLISHED.get(name, (None,) * 2), *LOGS.get(name, (None,) * 4))
        rows.append([
            name,
            format_mean_sd(row.accuracy),
            format_mean_sd([100 * late for late in row.late]) if row.at == "last" else "–",
            format_mean_sd(row.values("test_accuracy_clean", 100.0)),
            format_mean_sd(row.values("test_nll"), 3),
            _told_levels(row),
            len(row.records),
            *((sum(began), len(began) - sum(began)) if began else ("–", "–")),
            f"{trainings:g}",
            f"{np.mean(row.seconds) / 3600:.2f}",
            *("–" if figure is None else f"{figure:g}" for figure in source),
        ])
    note = (
        "Noisy, clean: test accuracy on those labels, of 20,000 examples, over the last epochs of the curve's 500; NLL "
        "on noisy ones. Level: median (range) of the flooded. Began: runs of the search that reached the start "
        "condition; the others are plain training. Trainings, CPU hours: a "
        f"seed's, in units of {results.plan.problem.max_epochs} epochs and as measured; a beginning that several runs "
        "share is measured once, as a rule in no flooding's. The printed figures mix statistics: 77.89 and 79.12 are "
        "last epochs, 79.89 is an average (its last epoch is 80.43; its level is 0.29 elsewhere in the source), 80.62 "
        "is in no log, 0.21 is a smoothed level. Logs: recomputed from the source's own, last epochs of one seed, each "
        "search's best level by test accuracy; 0.55 is the lowest loss of any of its levels; backward's own run "
        "without flooding has 76.8 %."
    )
    return Table(
        "published", "Ways to a level, mean ± standard deviation over n seeds", columns, rows, note
    )


def _told_levels(row: _Row) -> str:
    """Write the levels of a row, and how many of its Records were never flooded though they were to
    be.
    """
    never = _waits(row.records).count(False)
    label = f"{never} of {len(row.records)} never flooded: plain training" if never else ""
    if not row.levels:
        return label or "–"
    levels = f"{np.median(row.levels):.2f} ({min(row.levels):.2f} to {max(row.levels):.2f})"
    return f"{levels}; {label}" if label else levels


_MEASURES = {
    "training accuracy %": ("train_accuracy", 100.0, 1),
    "noisy %": ("test_accuracy", 100.0, 1),
    "clean %": ("test_accuracy_clean", 100.0, 1),
    "training loss": ("train_loss", 1.0, 3),
}


def _levels(results: _Results) -> Table:
    """Tabulate every level, forward beside backward."""
    n = len(results.plan.seeds)
    titles = [*_MEASURES, "steps flooded %"]
    rows = []
    for level, records in results.forward.items():
        late = results.backward.get(level, [])
        flooded = [record for record in late if has_started(record)]
        count = f"{len(flooded)} of {len(late)}" if late else "–"
        rows.append([f"{level:g}", *_measured(records), *_measured(flooded), count])
    columns = [
        "level",
        *(f"{way}: {title}" for way in ("forward", "backward") for title in titles),
        "backward: began",
    ]
    note = (
        "Last epoch; steps flooded: share of all steps strictly below the level in force. Backward: those runs alone "
        "that began to flood."
    )
    return Table(
        "levels",
        f"Each level, forward and backward, mean ± standard deviation, n = {n}",
        columns,
        rows,
        note,
    )


def _measured(records: Sequence[Record]) -> list[str]:
    told = [
        format_mean_sd([times * record.metrics[f"last.{name}"] for record in records], digits)
        for name, times, digits in _MEASURES.values()
    ]
    return [
        *told,
        format_mean_sd([100 * float(record.curves["flooded"][1:].mean()) for record in records]),
    ]


def _figures(results: _Results) -> dict:
    """Name the figures there is data for."""
    began = [record for records in results.backward.values() for record in records]
    count = f"{sum(_waits(began))} of {len(began)} runs, those that began to flood"
    late = {
        level: [r for r in records if has_started(r)] for level, records in results.backward.items()
    }
    late = {level: records for level, records in late.items() if records}
    backward = {0.0: results.plain} | late
    flooded = [record for record in results.heuristic if has_started(record)]
    rise = "Accuracies below those after a twentieth of the epochs are not shown."
    lines = "Faint: mean over seeds; above it the same smoothed. Noisy labels; the test curves are of 500 examples."
    lines = f"{lines} {rise}"
    figures = {
        "forward": (
            f"Forward: a line for each level. {lines}",
            partial(_draw_search, results.forward),
        )
    }
    if late:
        figures["backward"] = (f"Backward, {count}. {lines}", partial(_draw_search, backward))
        common = {level: results.forward[level] for level in backward}
        told = "Training accuracy, forward beside backward: against the epoch, and at the last epoch against the level"
        figures["training-accuracy"] = (
            f"{told} (mean and standard deviation; backward: {count}). {rise}",
            partial(_draw_both, common, backward),
        )
    if flooded:
        told = f"The heuristic's level and losses, {len(flooded)} of {len(results.heuristic)} runs, those that began to"
        figures["heuristic"] = (
            f"{told} flood. Epochs count from there.",
            partial(_draw_heuristic, flooded),
        )
    return figures


class _Curve(NamedTuple):
    name: str
    label: str
    times: float = 1.0


_TRAIN_ACCURACY = _Curve("train_accuracy", "Training accuracy (%)", 100.0)
_TRAIN_LOSS, _TEST_LOSS = (
    _Curve("train_loss", "Training loss (nats)"),
    _Curve("test_loss", "Test loss (nats)"),
)
_PANELS = (
    _TRAIN_LOSS,
    _TRAIN_ACCURACY,
    _TEST_LOSS,
    _Curve("test_accuracy", "Test accuracy (%)", 100.0),
)


def _draw_search(search: Search) -> Figure:
    """Draw losses and accuracies against the epoch, a line for each level."""
    from flooding.report.plots import drawn, unique

    with drawn(9.0, 6.5) as figure:
        panels = list(figure.subplots(2, 2, sharex=True).flat)
        colours = _colours(figure, panels, search)
        for axes, curve in zip(panels, _PANELS, strict=True):
            _draw_lines(axes, search, curve, colours)
            axes.set_ylabel(curve.label)
            if curve.name.endswith("accuracy"):
                _spread_out([axes])
        for axes in panels[2:]:
            axes.set_xlabel("Epoch")
        figure.legend(*unique(panels), loc="outside lower center", ncols=2)
    return figure


def _draw_both(forward: Search, backward: Search) -> Figure:
    """Draw training accuracy of both against the epoch, and at the last epoch against the level."""
    from flooding.report.plots import PALETTE, drawn

    with drawn(11.0, 4.2) as figure:
        *panels, last = figure.subplots(1, 3)
        panels[1].sharey(panels[0])
        colours = _colours(figure, panels, forward)
        looks = (("forward", "flooded", "o"), ("backward", "plain", "s"))
        for axes, search, (name, colour, marker) in zip(
            panels, (forward, backward), looks, strict=True
        ):
            _draw_lines(axes, search, _TRAIN_ACCURACY, colours)
            axes.set(title=name.capitalize(), xlabel="Epoch")
            values = [
                [100 * r.metrics["last.train_accuracy"] for r in records]
                for records in search.values()
            ]
            bars = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
            means = [np.mean(v) for v in values]
            last.errorbar(
                list(search),
                means,
                bars,
                color=PALETTE[colour],
                marker=marker,
                capsize=3,
                label=name,
            )
        _spread_out(panels)
        panels[0].set_ylabel(_TRAIN_ACCURACY.label)
        last.set(title="Last epoch", xlabel="Flood level (nats)", ylabel=_TRAIN_ACCURACY.label)
        last.legend()
    return figure


def _draw_heuristic(records: Sequence[Record]) -> Figure:
    """Draw level, training loss and test loss one above the other, epochs counted from where
    flooding begins.
    """
    from flooding.report.plots import PALETTE, drawn, unique

    with drawn(7.5, 7.5) as figure:
        panels = list(figure.subplots(3, 1, sharex=True))
        for axes, curve in zip(
            panels, (_Curve("level", "Flood level (nats)"), _TRAIN_LOSS, _TEST_LOSS), strict=True
        ):
            lines = [_aligned(record, curve.name) for record in records]
            for at, values in lines:
                axes.plot(at, values, color=PALETTE["flooded"], alpha=0.25, lw=0.8, label="a seed")
            at, mean = _mean_line(lines)
            axes.plot(at, mean, color="black", lw=1.8, label=f"mean, n = {len(records)}")
            axes.axvline(0, color="0.5", ls=":", label="flooding begins")
            axes.set_ylabel(curve.label)
        panels[-1].set_xlabel("Epochs since flooding began")
        figure.legend(*unique(panels), loc="outside lower center", ncols=3)
    return figure


def _aligned(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Give a curve where it was measured, its epochs counted from the start of flooding."""
    curve = record.curves[name]
    at = np.flatnonzero(np.isfinite(curve))
    return at - _start(record), curve[at]


def _mean_line(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Average lines over the stretch that all have, straight between their points."""
    at = np.arange(max(line[0][0] for line in lines), min(line[0][-1] for line in lines) + 1)
    return at, np.mean([np.interp(at, *line) for line in lines], axis=0)


def _spread_out(panels: Sequence[Axes]) -> None:
    """Let accuracies begin at their least after a twentieth of the epochs: the rise would leave no
    room for lines.

    The panels share their vertical axis.
    """
    lines = [
        np.asarray(line.get_ydata(), dtype=float) for axes in panels for line in axes.get_lines()
    ]
    least, most = (
        min(line[len(line) // 20 :].min() for line in lines),
        max(line.max() for line in lines),
    )
    panels[0].set_ylim(least - 1, most + 1)


def _draw_lines(axes: Axes, search: Search, curve: _Curve, colours: ScalarMappable) -> None:
    """Draw the mean over seeds of each level, raw and smoothed; plain training dashed."""
    for level, records in search.items():
        mean = curve.times * np.mean(
            [record.curves[curve.name] for record in records], axis=0, dtype=float
        )
        at = np.flatnonzero(np.isfinite(mean))
        colour = colours.to_rgba(level)  # type: ignore[arg-type]
        axes.plot(at, mean[at], color=colour, alpha=0.25, lw=0.7)
        label, dashes = ("flooded", "-") if level else ("no flooding", "--")
        axes.plot(at, _smooth(at, mean[at]), color=colour, lw=1.5, ls=dashes, label=label)


def _smooth(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average over the epochs around, as many on either side, so that a slope stays where it is."""
    reach = np.minimum(_SMOOTH, np.minimum(at - at[0], at[-1] - at))
    near = np.abs(at[:, None] - at) <= reach[:, None]
    return near @ values / near.sum(1)


def _colours(figure: Figure, panels: Sequence[Axes], levels: Search) -> ScalarMappable:
    """Give each level its colour, and draw the bar."""
    from matplotlib.ticker import MaxNLocator

    from flooding.report.plots import level_colours

    colours = level_colours(0.0, max(levels))
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10])  # as many as fit would not let the layout settle
    figure.colorbar(colours, ax=list(panels), label="Flood level (nats)", ticks=ticks)
    return colours


def exact(run: Run) -> bool:
    """Tell whose curves an archive must not round: those the policy gradient learns from."""
    return isinstance(run.level, Policy)


def load(path: str | Path) -> Archive:
    """Read an archive of this experiment in place of trainings, also on another processor than it
    was trained on.

    Args:
        path: A file that :func:`flooding.experiments.archive.pack` wrote.

    Returns:
        An ``evaluate`` for its Runs.
    """
    return _Archive(path, plan())


class _Archive(Archive):
    """An archive that finds an agent's trainings by their turn.

    They are the last in the file: the first training of each seed, the second of each, and so on.
    Not by their names: these hold the agent's weights, whose last bits differ between processors of
    other vector units.
    """

    def __init__(self, path: str | Path, plan: Plan) -> None:
        super().__init__(path)
        firsts = {
            seed: run_id(next(policy_gradient(plan.problem, seed=seed))[0])
            for seed in plan.policy_seeds
        }
        held = {seed: self._places[name] for seed, name in firsts.items() if name in self._places}
        self._turns = {seed: range(place, len(self), len(held)) for seed, place in held.items()}
        if any(len(turns) != plan.trainings for turns in self._turns.values()):
            raise ValueError(
                f"{path} must end with {plan.trainings} trainings of each agent. Write it again."
            )

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up, see :class:`flooding.experiments.archive.Archive`."""
        if not all(isinstance(run.level, Policy) and run.seed in self._turns for run in runs):
            return super().__call__(runs)
        return [self._record(run, self._turns[run.seed][self._turn(run)]) for run in runs]

    def __contains__(self, run: Run) -> bool:
        return (
            run.seed in self._turns if isinstance(run.level, Policy) else super().__contains__(run)
        )

    def _turn(self, run: Run) -> int:
        """Tell which of its trainings an agent asks for; the last one draws nothing."""
        draws = [
            derive_seed(run.seed, "policy", number)
            for number in range(len(self._turns[run.seed]) - 1)
        ]
        return len(draws) if run.level.greedy else draws.index(run.level.seed)


EXPERIMENT = Experiment("kim2022", experiment, CURVES, is_exact=exact, load=load)
