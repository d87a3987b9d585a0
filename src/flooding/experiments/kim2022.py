"""The published reproduction of flooding: four searches for the level on Two Gaussians.

At 10 % label noise: constant levels ("forward"), flooding once the training set is fitted
("backward"), a level that follows the validation accuracy (heuristic) and an agent (policy
gradient), in mini-batches and with batch norm. Each claim of the source is a test over seeds.
Levels are selected by validation accuracy on noisy labels; test data choose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from flooding.data import synthetic
from flooding.experiments import Experiment, Study, kim2022_results
from flooding.experiments.kim2022_claims import source_claims
from flooding.experiments.kim2022_policy import (
    NARROW,
    WIDE,
    PolicyArchive,
    is_agent,
    random_run,
)
from flooding.experiments.kim2022_results import Results
from flooding.experiments.study import chunk, is_complete, until_missing
from flooding.level_search.driver import run_concurrently
from flooding.level_search.policy_gradient import Policy, policy_gradient
from flooding.level_search.result import SearchResult
from flooding.levels import Delayed, Heuristic
from flooding.levels.base import Level
from flooding.models import mlp
from flooding.report.claims import Judgement, judge, split_by_verdict
from flooding.report.document import Report
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import run_of
from flooding.report.stats import format_mean_sd
from flooding.tasks import adam
from flooding.training.archive import is_missing
from flooding.training.problem import Problem, TestCurve
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["BACKWARD", "CURVES", "EXPERIMENT", "FORWARD", "Plan", "is_exact", "is_later", "load"]
__all__ += ["plan", "setting", "start", "study"]

# Levels of the forward and of the backward search, and the curves that the archive keeps.
FORWARD = tuple(round(0.02 * n, 2) for n in range(19))
BACKWARD = FORWARD[1:15]
# What came later, since the accuracy was still at its top at the end of both ranges. An archive may
# lack it.
LATER_FORWARD = tuple(round(0.02 * n, 2) for n in range(19, 26))
LATER_BACKWARD = tuple(round(0.02 * n, 2) for n in range(15, 19))
CURVES = ("flooded", "level", "test_accuracy", "test_loss", "train_accuracy", "train_loss")
CURVES += ("test_accuracy_clean", "test_loss_clean")
# The policy gradient reads these.
CURVES += ("val_accuracy", "val_loss")
# Loss of an epoch's last batch at which the source's code begins to flood.
_BATCH_LOSS = 1e-4
# The source's text: from zero training error on, from a level of 0.
_TEXT_HEURISTIC = Heuristic(level=0.0, until_accuracy=1.0, low=0.0)
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
        later_forward: More constant levels, which an archive may lack.
        later_backward: More levels at which flooding begins late; the same.
        controls: Trainings with levels drawn at random, for each agent; the same. With them come an
            agent with levels up to 0.5, and the heuristic with the constants of the source's text.
    """

    problem: Problem = field(default_factory=setting)
    forward: tuple[float, ...] = FORWARD
    backward: tuple[float, ...] = BACKWARD
    until_loss: float = _BATCH_LOSS
    heuristic_epochs: int = 1000
    seeds: tuple[int, ...] = tuple(range(10))
    policies: int = 3
    trainings: int = 20
    later_forward: tuple[float, ...] = LATER_FORWARD
    later_backward: tuple[float, ...] = LATER_BACKWARD
    controls: int = 5

    @property
    def longer(self) -> Problem:
        """The Problem with the epochs of the heuristic."""
        return replace(self.problem, max_epochs=self.heuristic_epochs)

    @property
    def runs(self) -> list[Run]:
        """Forward, backward, no flooding for as long as the heuristic, heuristic; seeds last."""
        longer = self.longer
        ways: list[tuple[Problem, Level]] = []
        for level in self.forward:
            # Forward from 0 is plain training.
            ways.append((self.problem, level or None))
        for level in self.backward:
            ways.append((self.problem, Delayed(level, self.until_loss)))
        ways.append((longer, None))
        ways.append((longer, Heuristic(until_loss=self.until_loss)))
        return self._with_seeds(ways)

    @property
    def later_runs(self) -> list[Run]:
        """What an archive may lack: levels forward and backward, the text's heuristic; seeds last.

        The levels drawn at random are :attr:`random_runs`.
        """
        ways: list[tuple[Problem, Level]] = [(self.problem, level) for level in self.later_forward]
        for level in self.later_backward:
            ways.append((self.problem, Delayed(level, self.until_loss)))
        if self.controls:
            ways.append((self.longer, _TEXT_HEURISTIC))
        return self._with_seeds(ways)

    @property
    def random_runs(self) -> list[Run]:
        """Levels drawn at random: from the source's levels and the wide ones, then seeds."""
        runs = []
        for levels, seed, number in product(
            (NARROW, WIDE), self.policy_seeds, range(self.controls)
        ):
            runs.append(random_run(self.problem, levels, seed, number))
        return runs

    def _with_seeds(self, ways: Sequence[tuple[Problem, Level]]) -> list[Run]:
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
    short = Plan(setting(60), (0.0, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 0.02, 120, (0, 1), policies=0)
    return replace(short, later_forward=(), later_backward=(), controls=0)


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Search in the source's four ways and test its claims."""
    chosen = plan(quick)
    if seeds is not None:
        chosen = replace(chosen, seeds=tuple(seeds))
    return study(chosen)


def study(plan: Plan) -> Study:
    """Train a plan, the policy gradient's Runs last, and report on it."""
    asked = plan.runs + plan.later_runs + plan.random_runs
    records = list((yield asked))
    # An agent asks for its next training when it has seen the last.
    agents = []
    if plan.policy_seeds:
        for levels, seed in product(
            (NARROW, WIDE) if plan.controls else (NARROW,), plan.policy_seeds
        ):
            search = policy_gradient(plan.problem, levels, trainings=plan.trainings, seed=seed)
            agents.append(until_missing(search))
    policies = []
    if agents:
        policies = yield from run_concurrently(agents)
    results = _build_results(plan, records, policies)
    for policy in policies:
        records += policy.records
    claims = source_claims(results)
    judgements = judge(claims)
    failures, findings = split_by_verdict(judgements)
    return Report(
        "Searches for the flood level: the published reproduction (kim2022)",
        f"{_describe(plan, results, len(claims))}{_describe_missing(plan, results, records)}",
        failures + _mismatches(results),
        findings,
        kim2022_results.make_tables(results),
        kim2022_results.draw_figures(results),
        describe_provenance(records),
        _answer(judgements, results),
        {"Forward": results.forward, "Backward": {0.0: results.plain, **results.backward}},
    )


def _answer(judgements: Sequence[Judgement], results: Results) -> str:
    """Say how many claims hold, and how accurate the ways are."""
    held = sum(judgement.holds for judgement in judgements)
    texts = []
    for name in ("no flooding", "forward", "backward", "no flooding, stopped"):
        row = results.rows[name]
        texts.append(f"{name} {np.mean(row.accuracy):.1f} %")
    return (
        f"{held} of {len(judgements)} statements are shown to hold "
        f"({len(results.plain)} seeds; the policy gradient {len(results.policies)}). "
        f"Test accuracy on noisy labels: {'; '.join(texts)}."
    )


def _build_results(
    plan: Plan, records: Sequence[Record], policies: Sequence[SearchResult]
) -> Results:
    """Deal the Records to the ways and levels; what an archive lacks is left out."""
    size, rest = len(plan.runs), len(plan.runs) + len(plan.later_runs)
    by_level = chunk(records[:size], len(plan.seeds))
    n = len(plan.forward)
    forward = dict(zip(plan.forward, by_level[:n], strict=True))
    backward = dict(zip(plan.backward, by_level[n:-2], strict=True))
    # A later level counts if every seed was trained.
    later = chunk(records[size:rest], len(plan.seeds))
    n = len(plan.later_forward)
    forward |= _complete_levels(plan.later_forward, later[:n])
    backward |= _complete_levels(plan.later_backward, later[n : n + len(plan.later_backward)])
    text_heuristic = _complete_levels(
        [0.0] if plan.controls else (), later[-1:] if plan.controls else ()
    )
    # Levels drawn at random, by the levels and the seed.
    control: dict[tuple[float, ...], dict[int, list[Record]]] = {NARROW: {}, WIDE: {}}
    for record in records[rest:]:
        if not is_missing(record):
            policy = run_of(record).level
            assert isinstance(policy, Policy)
            by_seed = control[NARROW if max(policy.levels) == max(NARROW) else WIDE]
            by_seed.setdefault(run_of(record).seed, []).append(record)
    n = len(plan.policy_seeds)
    return Results(
        forward,
        backward,
        by_level[-2],
        by_level[-1],
        [policy for policy in policies[:n] if is_complete(policy)],
        text_heuristic.get(0.0, ()),
        [policy for policy in policies[n:] if is_complete(policy)],
        control[NARROW],
        control[WIDE],
    )


def _complete_levels(
    levels: Sequence[float], by_level: Sequence[list[Record]]
) -> dict[float, list[Record]]:
    """Give the Records of those levels that every seed was trained at."""
    trained = {}
    for level, records in zip(levels, by_level, strict=True):
        if not any(is_missing(record) for record in records):
            trained[level] = records
    return trained


def _describe_missing(plan: Plan, results: Results, records: Sequence[Record]) -> str:
    """Say what was not trained, and what it would cost by the trainings that were."""
    names, epochs = [], 0
    full = len(plan.seeds) * plan.problem.max_epochs
    for way, levels, search in (
        ("forward", plan.later_forward, results.forward),
        ("backward", plan.later_backward, results.backward),
    ):
        missing = [level for level in levels if level not in search]
        if missing:
            names.append(f"{way} at {missing[0]:g} to {missing[-1]:g}")
            epochs += len(missing) * full
    if plan.controls and not results.text_heuristic:
        names.append("the heuristic with the constants of the source's text")
        epochs += len(plan.seeds) * plan.heuristic_epochs
    each = len(plan.policy_seeds) * plan.problem.max_epochs
    if plan.controls and plan.policy_seeds and not results.wide_policies:
        names.append(f"an agent with levels up to {max(WIDE):g}")
        epochs += plan.trainings * each
    for control, kind in ((results.control, "its"), (results.wide_control, "the wide")):
        if plan.controls and plan.policy_seeds and not control:
            names.append(f"a policy that draws from {kind} levels at random")
            epochs += plan.controls * each
    if not names:
        return ""
    trained = [record for record in records if not is_missing(record)]
    seconds = sum(float(record.metadata.get("seconds", 0.0)) for record in trained)
    rate = seconds / sum(run_of(record).epochs for record in trained)
    return (
        f" Not trained: {'; '.join(names)}. By the trainings here it would take about "
        f"{epochs * rate / 3600:.1f} CPU hours."
    )


def _describe(plan: Plan, results: Results, claims: int) -> str:
    """Say what was trained and how it is judged."""
    raised = ""
    if plan.until_loss != _BATCH_LOSS:
        raised = f" (the source: {_BATCH_LOSS:g}; raised so that a short training gets there)"
    text_heuristic = ""
    if results.text_heuristic:
        text_heuristic = ", and once more with the constants of the source's text"
    agents = "Without the policy gradient."
    if plan.policy_seeds:
        wide = f" Another agent picks from 0 to {max(WIDE):g}." if results.wide_policies else ""
        control = " As a control, levels are drawn at random." if results.control else ""
        agents = (
            f"Policy gradient: an agent picks each epoch's level from 0 to {max(NARROW):.2f} "
            f"and learns from validation accuracy, over {plan.trainings} trainings; "
            f"{len(plan.policy_seeds)} seeds; judged by its last training, and by whether its "
            f"reward grows.{wide}{control}"
        )
    levels = list(results.forward)
    return (
        "Two Gaussians in 10 dimensions, 10 % of the labels flipped, 1,000 training, 100 "
        "validation and 20,000 test examples, four hidden layers of 500 units with bias and batch "
        f"norm, Adam at 0.001, batches of 200, {plan.problem.max_epochs} epochs, "
        f"{len(plan.seeds)} seeds where the source had one. Forward: constant levels 0, "
        f"{levels[1]:g} ... {levels[-1]:g}, where the source's go in steps of 0.01. "
        "Backward: plain training until an epoch's last batch has a loss of at most "
        f"{plan.until_loss:g}{raised}, then one of {len(results.backward)} levels. Heuristic: from "
        "the same moment on the validation accuracy moves the level, with the parameters of the "
        f"source's code, {plan.heuristic_epochs:,} epochs{text_heuristic}. {agents} The source's "
        "plain phase ran batch norm in evaluation mode from the second epoch on, a defect that is "
        "not repeated here. For each seed the level is chosen among those above 0 by validation "
        "accuracy on noisy labels, ties to the lower validation loss, then to the smaller level; "
        "test data choose nothing. Figures are mean ± standard deviation over seeds; differences "
        "are paired by seed, with the 95 % interval of Student's t and p after Holm's correction "
        f"over the {claims} claims. Stopped: the best validation epoch."
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


# The archive.


def is_exact(run: Run) -> bool:
    """Tell whose curves an archive must not round: those the policy gradient learns from."""
    return isinstance(run.level, Policy)


def is_later(run: Run) -> bool:
    """Tell whether a Run came later, so that an archive may lack it."""
    level = run.level
    if isinstance(level, Policy):
        return not is_agent(run) or max(level.levels) > max(NARROW)
    if isinstance(level, Heuristic):
        return level == _TEXT_HEURISTIC
    if isinstance(level, Delayed):
        return level.level in LATER_BACKWARD
    return level in LATER_FORWARD


def load(path: str | Path) -> PolicyArchive:
    """Read an archive of this experiment, also on another processor than it was trained on."""
    full = plan()
    return PolicyArchive(path, full.problem, full.policy_seeds, full.trainings, is_later)


# What `flooding reproduce kim2022` runs.
EXPERIMENT = Experiment("kim2022", start, CURVES, is_exact=is_exact, load=load)
