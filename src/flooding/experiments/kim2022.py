"""The published reproduction of flooding: four searches for the level on Two Gaussians.

At 10 % label noise: constant levels ("forward"), flooding once the training set is fitted
("backward"), a level that follows the validation accuracy (heuristic) and an agent (policy
gradient), in mini-batches and with batch norm. Each claim of the source is a test over seeds.
Levels are selected by validation accuracy on noisy labels; test data choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from flooding.data import synthetic
from flooding.experiments import Experiment, Study, kim2022_results
from flooding.experiments.kim2022_results import LONGER, Results, Segment
from flooding.experiments.study import chunk
from flooding.level_search.backward import has_started
from flooding.level_search.driver import run_concurrently
from flooding.level_search.policy_gradient import Policy, policy_gradient
from flooding.levels import Delayed, Heuristic
from flooding.levels.base import Level
from flooding.models import mlp
from flooding.report.claims import Claim, judge, split_by_verdict
from flooding.report.document import Report
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import metric_values, run_of
from flooding.report.stats import Difference, format_count, format_mean_sd, paired, paired_or_none
from flooding.tasks import adam
from flooding.training.archive import Archive, run_id
from flooding.training.problem import Problem, TestCurve
from flooding.training.record import Record
from flooding.training.rng import derive_seed
from flooding.training.run import Run

__all__ = ["BACKWARD", "CURVES", "EXPERIMENT", "FORWARD", "Plan", "is_exact", "load", "plan"]
__all__ += ["setting", "start", "study"]

# Levels of the forward and of the backward search, and the curves that the archive keeps.
FORWARD = tuple(round(0.02 * n, 2) for n in range(19))
BACKWARD = FORWARD[1:15]
CURVES = ("flooded", "level", "test_accuracy", "test_loss", "train_accuracy", "train_loss")
CURVES += ("test_accuracy_clean", "test_loss_clean")
# The policy gradient reads these.
CURVES += ("val_accuracy", "val_loss")
# Loss of an epoch's last batch at which the source's code begins to flood.
_BATCH_LOSS = 1e-4
# Points between the source's figures and ours from which on we say so.
_MAX_DISTANCE = 1.5


def setting(max_epochs: int = 500) -> Problem:
    """Give the reproduction's setting: wide layers with bias and batch norm, mini-batches."""
    sizes = {"n_train": 1000, "n_val": 100, "n_test": 20_000}
    return Problem(
        partial(synthetic.two_gaussians, **sizes, label_noise=0.1),
        partial(mlp, 10, 2, width=500, depth=4, batch_norm=True, bias=True),
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
    until_loss: float = _BATCH_LOSS
    heuristic_epochs: int = 1000
    seeds: tuple[int, ...] = tuple(range(10))
    policies: int = 3
    trainings: int = 20

    @property
    def runs(self) -> list[Run]:
        """Forward, backward, no flooding for as long as the heuristic, heuristic; seeds last."""
        longer = replace(self.problem, max_epochs=self.heuristic_epochs)
        ways: list[tuple[Problem, Level]] = []
        for level in self.forward:
            # Forward from 0 is plain training.
            ways.append((self.problem, level or None))
        for level in self.backward:
            ways.append((self.problem, Delayed(level, self.until_loss)))
        ways.append((longer, None))
        ways.append((longer, Heuristic(until_loss=self.until_loss)))
        runs = []
        for problem, level in ways:
            runs += [Run(problem, level, seed=seed) for seed in self.seeds]
        return runs

    @property
    def policy_seeds(self) -> tuple[int, ...]:
        """Seeds of the policy gradient."""
        return self.seeds[: self.policies]


def plan(quick: bool = False) -> Plan:
    """Plan the study; quick takes two to three minutes on two cores."""
    if not quick:
        return Plan()
    # Flooding begins at a batch loss of 0.02, since 60 epochs would not reach 1e-4.
    return Plan(setting(60), (0.0, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 0.02, 120, (0, 1), policies=0)


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Search in the source's four ways and test its claims."""
    chosen = plan(quick)
    if seeds is not None:
        chosen = replace(chosen, seeds=tuple(seeds))
    return study(chosen)


def study(plan: Plan) -> Study:
    """Train a plan, the policy gradient's Runs last, and report on it."""
    records = list((yield plan.runs))
    # An agent asks for its next training when it has seen the last.
    policies = []
    if plan.policy_seeds:
        agents = []
        for seed in plan.policy_seeds:
            agents.append(policy_gradient(plan.problem, trainings=plan.trainings, seed=seed))
        policies = yield from run_concurrently(agents)
    # Deal the Records to the ways and levels.
    by_level = chunk(records, len(plan.seeds))
    n = len(plan.forward)
    forward = dict(zip(plan.forward, by_level[:n], strict=True))
    backward = dict(zip(plan.backward, by_level[n:-2], strict=True))
    results = Results(forward, backward, by_level[-2], by_level[-1], policies)
    for policy in policies:
        records += policy.records
    claims = _claims(results)
    failures, findings = split_by_verdict(judge(claims))
    return Report(
        "Searches for the flood level: the published reproduction (kim2022)",
        _describe(plan, len(claims)),
        failures + _mismatches(results),
        findings,
        [kim2022_results.published_table(results), kim2022_results.levels_table(results)],
        kim2022_results.draw_figures(results),
        describe_provenance(records),
    )


def _describe(plan: Plan, claims: int) -> str:
    """Say what is trained and how it is judged."""
    raised = ""
    if plan.until_loss != _BATCH_LOSS:
        raised = f" (the source: {_BATCH_LOSS:g}; raised so that a short training gets there)"
    agents = "Without the policy gradient."
    if plan.policy_seeds:
        agents = (
            "Policy gradient: an agent picks each epoch's level from 0 to 0.10 and learns from "
            f"validation accuracy, over {plan.trainings} trainings; {len(plan.policy_seeds)} "
            "seeds; judged by its last training, and in no claim."
        )
    return (
        "Two Gaussians in 10 dimensions, 10 % of the labels flipped, 1,000 training, 100 "
        "validation and 20,000 test examples, four hidden layers of 500 units with bias and batch "
        f"norm, Adam at 0.001, batches of 200, {plan.problem.max_epochs} epochs, "
        f"{len(plan.seeds)} seeds where the source had one. Forward: constant levels 0, "
        f"{plan.forward[1]:g} ... {plan.forward[-1]:g}, where the source's go in steps of 0.01. "
        "Backward: plain training until an epoch's last batch has a loss of at most "
        f"{plan.until_loss:g}{raised}, then one of {len(plan.backward)} levels. Heuristic: from "
        "the same moment on the validation accuracy moves the level, with the parameters of the "
        f"source's code, {plan.heuristic_epochs:,} epochs. {agents} The source's plain phase ran "
        "batch norm in evaluation mode from the second epoch on, a defect that is not repeated "
        "here. For each seed the level is chosen among those above 0 by validation accuracy on "
        "noisy labels, ties to the lower validation loss, then to the smaller level; test data "
        "choose nothing. Figures are mean ± standard deviation over seeds; differences are paired "
        "by seed, with the 95 % interval of Student's t and p after Holm's correction over the "
        f"{claims} claims. Stopped: the best validation epoch."
    )


def _mismatches(results: Results) -> list[str]:
    """Say where our figures are far from both the source's printed ones and its logs."""
    sentences = []
    for name, row in results.rows.items():
        # Either may be missing, and either may be near.
        figures = {"printed": kim2022_results.PUBLISHED.get(name, (None,))[0]}
        figures["in its logs"] = kim2022_results.LOGS.get(name, (None,))[0]
        accuracy = float(np.mean(row.accuracy))
        texts, distances = [], []
        for where, figure in figures.items():
            if figure is not None:
                texts.append(f"{figure:g} % {where} ({accuracy - figure:+.1f})")
                distances.append(abs(accuracy - figure))
        if distances and min(distances) > _MAX_DISTANCE:
            values, source = format_mean_sd(row.accuracy), " and ".join(texts)
            sentences.append(f"Noisy test accuracy, {name}: {values} % against {source}.")
    return sentences


# The source's claims.


def _claims(results: Results) -> list[Claim]:
    """List the source's claims, in its order."""
    begun = format_count(kim2022_results.starts(results.all_backward))
    late = f" ({begun} backward runs began to flood)"
    metrics = {
        "training accuracy": "train_accuracy",
        "test accuracy on noisy labels": "test_accuracy",
        "test accuracy on clean labels": "test_accuracy_clean",
    }
    claims = []
    for title, name in metrics.items():
        text = f"Backward flooding lowers {title} against forward at the same level"
        gain = _backward_minus_forward(results, name)
        claims.append(Claim(text, gain, "points, backward minus forward", -1, detail=late))
    return [*claims, _enters_below(results), *_on_the_heuristic(results), _on_stopping(results)]


def _backward_minus_forward(results: Results, name: str) -> Difference | None:
    """Compare a metric in percent by seed, averaged over the levels at which backward flooded."""
    pairs = []
    for index in range(len(results.plain)):
        values = []
        for level, records in results.backward.items():
            # A run that never began to flood is plain training.
            if has_started(records[index]):
                pair = (records[index], results.forward[level][index])
                values.append(metric_values(pair, name, 100.0))
        if values:
            pairs.append(np.mean(values, axis=0).tolist())
    return paired_or_none(pairs)


def _enters_below(results: Results) -> Claim:
    """Claim that forward flooding stays above its level."""
    forward = kim2022_results.forward_segments(results.forward)
    before, after = kim2022_results.backward_segments(results.backward)
    reached = sum(len(segments) for segments in forward)
    total = (len(results.forward) - 1) * len(results.plain)
    text = "The forward search never enters below its level"
    unit = "% of steps below the level from the epoch on that reaches it"
    detail = f" ({reached} of {total} runs reached their level)"
    if not reached:
        return Claim(text, None, unit, 0, detail=detail)
    # What forward flooding does, then, for comparison, what backward flooding does.
    shares, lowest = _seed_means(forward)
    over = "lowest epoch mean of the training loss over the level"
    detail += f"; {over}: {format_mean_sd(lowest, 2)}"
    if any(after):
        shares_after, lowest_after = _seed_means(after)
        _, before_means = _seed_means(before)
        lowest_before = format_mean_sd(before_means, 2)
        detail += (
            f"; backward: {lowest_before} before flooding begins and "
            f"{format_mean_sd(lowest_after, 2)} from there on, with "
            f"{format_mean_sd(shares_after)} % of steps below"
        )
    return Claim(text, paired(shares, [0.0] * len(shares)), unit, 0, detail=detail)


def _seed_means(by_seed: Sequence[Sequence[Segment]]) -> tuple[list[float], list[float]]:
    """Average percentage below and lowest loss over levels, in each seed that has any."""
    shares, lowest = [], []
    for segments in by_seed:
        if segments:
            means = np.mean(segments, axis=0)
            shares.append(100 * float(means[0]))
            lowest.append(float(means[1]))
    return shares, lowest


def _on_the_heuristic(results: Results) -> list[Claim]:
    """Claim that the heuristic is better than nothing, worse than forward, and cheaper."""
    rows, begun = results.rows, kim2022_results.starts(results.heuristic)
    heuristic, longer, forward = rows["heuristic"], rows[LONGER], rows["forward"]
    # Where it never began to flood there is no heuristic to judge.
    against_plain = against_forward = cheaper = None
    if any(begun):
        against_plain = paired(heuristic.accuracy, longer.accuracy)
        against_forward = paired(heuristic.accuracy, forward.accuracy)
        cheaper = paired(heuristic.seconds, forward.seconds)
    detail = f" ({format_count(begun)} heuristic runs began to flood)"
    points, seconds = "points of noisy test accuracy", "CPU seconds a seed"
    cost = heuristic.epochs[0] / results.max_epochs
    forward_cost = forward.epochs[0] / results.max_epochs
    costs = f"({cost:g} trainings a seed against {forward_cost:g})"
    texts = (
        "The heuristic is better than no flooding for as long",
        "The heuristic is worse than the exhaustive forward search",
        f"The heuristic is cheaper than the forward search {costs}",
    )
    return [
        Claim(texts[0], against_plain, points, 1, detail=detail),
        Claim(texts[1], against_forward, points, -1, detail=detail),
        Claim(texts[2], cheaper, seconds, -1, detail=detail),
    ]


def _on_stopping(results: Results) -> Claim:
    """Claim that early stopping beats every flooded final model."""
    # It is compared with the one that leaves most doubt: if that one is beaten, all are.
    rows = results.rows
    rivals: dict[str, Sequence[Record]] = {}
    for level, records in results.forward.items():
        if level > 0:
            rivals[f"forward at {level:g}"] = records
    for level, records in results.backward.items():
        rivals[f"backward at {level:g}"] = records
    for name in ("forward", "backward"):
        rivals[f"{name}, level chosen"] = rows[name].records
    rivals["heuristic"] = results.heuristic
    # Only rivals that were flooded in some seed count.
    stopped, gains = rows["no flooding, stopped"].accuracy, {}
    for name, records in rivals.items():
        gain = _stopped_minus_flooded(stopped, results.plain, records)
        if gain is not None:
            gains[name] = gain
    hardest = max(gains, key=lambda name: _doubt(gains[name]))
    text = "Plain early stopping beats every flooded final model, here the hardest of"
    text = f"{text} {len(gains)} ({hardest})"
    return Claim(text, gains[hardest], "points of noisy test accuracy", 1, rivals=len(gains))


def _stopped_minus_flooded(
    stopped: Sequence[float], plain: Sequence[Record], records: Sequence[Record]
) -> Difference | None:
    """Compare accuracies in percent by seed, in the seeds that were flooded."""
    seeds = [run_of(record).seed for record in plain]
    by_seed = dict(zip(seeds, stopped, strict=True))
    pairs = []
    for record in kim2022_results.started_records(records):
        accuracy = 100.0 * record.metrics["last.test_accuracy"]
        pairs.append((by_seed[run_of(record).seed], accuracy))
    return paired_or_none(pairs)


def _doubt(gain: Difference) -> tuple[float, float]:
    """Give the one-sided p that a gain is not above 0, then the size of the loss."""
    p = gain.p / 2
    if math.isnan(gain.p):
        # A single pair has no p: its sign decides.
        p = float(gain.mean <= 0)
    elif gain.mean <= 0:
        p = 1 - gain.p / 2
    return p, -gain.mean


# The archive.


def is_exact(run: Run) -> bool:
    """Tell whose curves an archive must not round: those the policy gradient learns from."""
    return isinstance(run.level, Policy)


def load(path: str | Path) -> Archive:
    """Read an archive of this experiment, also on another processor than it was trained on."""
    return _PolicyArchive(path, plan())


class _PolicyArchive(Archive):
    """An archive that looks up an agent's trainings by their number.

    They are the last in the file: the first training of each seed, the second of each, and so on.
    They cannot be looked up by their Runs. These hold the agent's weights, whose last bits differ
    between processors with other vector units.
    """

    def __init__(self, path: str | Path, plan: Plan) -> None:
        super().__init__(path)
        # The first training of an agent has no learned weights, and is found by its Run.
        firsts = {}
        for seed in plan.policy_seeds:
            name = run_id(next(policy_gradient(plan.problem, seed=seed))[0])
            if name in self.indices:
                firsts[seed] = self.indices[name]
        # The later ones follow in turn.
        n = plan.trainings
        self._rows: dict[int, range] = {}
        for seed, first in firsts.items():
            self._rows[seed] = range(first, len(self), len(firsts))
            if len(self._rows[seed]) != n:
                raise ValueError(
                    f"{path} must end with {n} trainings of each agent. Write it again."
                )

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up."""
        if not all(self._is_agent(run) for run in runs):
            return super().__call__(runs)
        records = []
        for run in runs:
            row = self._rows[run.seed][self._number(run)]
            records.append(self.record_at(row, run))
        return records

    def __contains__(self, run: Run) -> bool:
        if isinstance(run.level, Policy):
            return self._is_agent(run)
        return super().__contains__(run)

    def _is_agent(self, run: Run) -> bool:
        return isinstance(run.level, Policy) and run.seed in self._rows

    def _number(self, run: Run) -> int:
        """Tell which of its trainings an agent asks for; the last one draws no levels at random."""
        assert isinstance(run.level, Policy)
        last = len(self._rows[run.seed]) - 1
        if run.level.greedy:
            return last
        seeds = [derive_seed(run.seed, "policy", number) for number in range(last)]
        return seeds.index(run.level.seed)


# What `flooding reproduce kim2022` runs.
EXPERIMENT = Experiment("kim2022", start, CURVES, is_exact=is_exact, load=load)
