"""The reproduction's policy gradient: whether its agent learns, and how an archive finds its Runs.

An agent's reward is the validation accuracy after an epoch. If it learns, its late trainings have a
higher reward than its early ones, and than those of a policy that draws at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flooding.level_search.policy_gradient import Policy, policy_gradient
from flooding.level_search.result import SearchResult
from flooding.report.claims import Claim
from flooding.report.document import Table
from flooding.report.search_figures import learning_curves
from flooding.report.stats import format_mean_sd, paired
from flooding.training.archive import Archive, run_id
from flooding.training.problem import Problem
from flooding.training.record import Record
from flooding.training.rng import derive_seed
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NARROW", "WIDE", "LearningCurve", "PolicyArchive", "draw_learning", "is_agent"]
__all__ += ["learning_claim", "learning_curve", "learning_table", "random_run"]

# The source's levels, and levels up to the largest that flooding is of use at.
NARROW = tuple(n / 100 for n in range(11))
WIDE = tuple(n / 20 for n in range(11))


def random_run(problem: Problem, levels: Sequence[float], seed: int, number: int) -> Run:
    """Make a Run whose levels are drawn at random: the control of an agent.

    Args:
        problem: The Problem.
        levels: Levels to draw from.
        seed: Seed of the training.
        number: Which of several such Runs.

    Returns:
        A Run of a policy that does not learn.
    """
    draws = derive_seed(seed, "random policy", number)
    policy = Policy(tuple(levels), problem.max_epochs, rate=0.0, seed=draws)
    return Run(problem, policy, seed=seed)


def is_agent(run: Run) -> bool:
    """Tell whether a Run is a training of an agent, not of the control."""
    return isinstance(run.level, Policy) and (run.level.greedy or run.level.rate > 0)


class LearningCurve(NamedTuple):
    """What an agent's trainings measured, in the order in which they were trained.

    Args:
        rewards: Mean validation accuracy of a training's epochs in percent, ``[agents,
            trainings]``.
        levels: Mean level of a training's epochs in nats, ``[agents, trainings]``.
    """

    rewards: np.ndarray
    levels: np.ndarray

    @property
    def halves(self) -> tuple[slice, slice]:
        """The early and the late trainings: as many each, without the last one, which draws not."""
        learning = self.rewards.shape[1] - 1
        size = learning // 2
        return slice(0, size), slice(learning - size, learning)


def learning_curve(policies: Sequence[SearchResult]) -> LearningCurve:
    """Measure the trainings of several agents, as many each.

    Args:
        policies: A search for each agent.

    Returns:
        Their curve.
    """
    rewards, levels = [], []
    for policy in policies:
        rewards.append([_reward(record) for record in policy.records])
        levels.append([_mean_level(record) for record in policy.records])
    return LearningCurve(np.array(rewards), np.array(levels))


def _reward(record: Record) -> float:
    """Average the validation accuracy over the epochs of a training, in percent."""
    # The first entry is the state before training.
    return 100 * float(np.mean(record.curves["val_accuracy"][1:], dtype=float))


def _mean_level(record: Record) -> float:
    return float(np.mean(record.curves["level"][1:], dtype=float))


def learning_claim(
    policies: Sequence[SearchResult], control: Mapping[int, Sequence[Record]], name: str = ""
) -> Claim:
    """Claim that the policy gradient learns.

    Args:
        policies: A search for each agent.
        control: Trainings of the random policy, by seed; empty where they were not trained.
        name: What tells this agent from another one, or nothing.

    Returns:
        Whether the reward of late trainings exceeds that of early ones.
    """
    text = f"The policy gradient{name} learns: late trainings have a higher reward than early ones"
    unit = "points of validation accuracy"
    curve = learning_curve(policies)
    early, late = curve.halves
    if not early.stop:
        return Claim(text, None, unit, detail=" with so few trainings")
    before, after = curve.rewards[:, early].mean(1), curve.rewards[:, late].mean(1)
    size = early.stop
    detail = (
        f"; the mean level of an epoch goes from {_level_of(curve, early)} in the first {size} to "
        f"{_level_of(curve, late)} in the last {size} trainings that draw"
    )
    seeds = [policy.run.seed for policy in policies]
    if all(seed in control for seed in seeds):
        random = [float(np.mean([_reward(record) for record in control[seed]])) for seed in seeds]
        gain = paired(after.tolist(), random)
        detail += f"; the late trainings minus a policy that draws at random: {gain} points"
    else:
        detail += "; against a policy that draws at random: not trained"
    gain = paired(after.tolist(), before.tolist())
    return Claim(text, gain, unit, 1, digits=2, detail=detail)


def _level_of(curve: LearningCurve, trainings: slice) -> str:
    return f"{curve.levels[:, trainings].mean():.3f}"


def learning_table(curves: Mapping[str, LearningCurve]) -> Table:
    """Tabulate reward and level of each training.

    Args:
        curves: The curve of each kind of agent, by its name.

    Returns:
        A row for each training.
    """
    first = next(iter(curves.values()))
    rows = []
    for number in range(first.rewards.shape[1]):
        row = {"training": str(number + 1)}
        for name, curve in curves.items():
            row[f"{name}: reward %"] = format_mean_sd(curve.rewards[:, number].tolist(), 2)
            row[f"{name}: level"] = format_mean_sd(curve.levels[:, number].tolist(), 3)
        rows.append(row)
    n = len(first.rewards)
    title = f"Learning curve of the policy gradient, mean ± standard deviation, n = {n} agents"
    note = (
        "Reward: mean validation accuracy of the epochs of a training. Level: their mean level in "
        "nats. The last training takes the most probable level and learns nothing."
    )
    return Table.from_dicts("policy", title, rows, note)


def draw_learning(
    policies: Sequence[SearchResult], control: Mapping[int, Sequence[Record]]
) -> Figure:
    """Draw reward and level against the number of the training, a line for each agent.

    Args:
        policies: A search for each agent.
        control: Trainings of the random policy, by seed.

    Returns:
        The figure.
    """
    curve = learning_curve(policies)
    random = [_reward(record) for records in control.values() for record in records]
    seeds = [policy.run.seed for policy in policies]
    return learning_curves(curve.rewards, curve.levels, seeds, random)


class PolicyArchive(Archive):
    """An archive that looks up an agent's trainings by their number.

    They are the last in the file: the first training of each agent, the second of each, and so on.
    They cannot be looked up by their Runs. These hold the agent's weights, whose last bits differ
    between processors with other vector units.

    Args:
        path: The file.
        problem: The Problem of the agents.
        seeds: Seeds of the agents.
        trainings: Trainings of each agent.
        may_lack: See :class:`flooding.training.archive.Archive`.

    Raises:
        ValueError: If an agent has another number of trainings.
    """

    def __init__(
        self,
        path: str | Path,
        problem: Problem,
        seeds: Sequence[int],
        trainings: int,
        may_lack: Callable[[Run], bool],
    ) -> None:
        super().__init__(path, may_lack)
        # The first training of an agent has no learned weights, and is found by its Run.
        firsts = {}
        for levels in (NARROW, WIDE):
            for seed in seeds:
                name = run_id(next(policy_gradient(problem, levels, seed=seed))[0])
                if name in self.indices:
                    firsts[levels, seed] = self.indices[name]
        # The later ones follow in turn.
        self._rows: dict[tuple[tuple[float, ...], int], range] = {}
        for agent, first in firsts.items():
            self._rows[agent] = range(first, len(self), len(firsts))
            if len(self._rows[agent]) != trainings:
                raise ValueError(
                    f"{path} must end with {trainings} trainings of each agent. Write it again."
                )

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up."""
        others = iter(super().__call__([run for run in runs if not self._has_agent(run)]))
        records = []
        for run in runs:
            if self._has_agent(run):
                records.append(self.record_at(self._row(run), run))
            else:
                records.append(next(others))
        return records

    def __contains__(self, run: Run) -> bool:
        return self._has_agent(run) if is_agent(run) else super().__contains__(run)

    def _has_agent(self, run: Run) -> bool:
        """Tell whether a Run is a training of an agent of this file."""
        return is_agent(run) and self._agent(run) in self._rows

    def _agent(self, run: Run) -> tuple[tuple[float, ...], int]:
        """Name the agent by its levels and its seed."""
        assert isinstance(run.level, Policy)
        return tuple(float(level) for level in run.level.levels if level is not None), run.seed

    def _row(self, run: Run) -> int:
        """Find a training by its number; the last one draws no levels at random."""
        assert isinstance(run.level, Policy)
        rows = self._rows[self._agent(run)]
        last = len(rows) - 1
        if run.level.greedy:
            return rows[last]
        seeds = [derive_seed(run.seed, "policy", number) for number in range(last)]
        return rows[seeds.index(run.level.seed)]
