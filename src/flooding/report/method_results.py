"""The picks of a comparison of methods: one training for each method, problem and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from flooding.report import stats
from flooding.report.stats import Difference
from flooding.training.record import Record, validation_key

__all__ = ["BUDGET", "Pick", "Results"]

# Trainings for each method, problem and seed.
BUDGET = 4


class Pick(NamedTuple):
    """What validation picked for a method on a problem with a seed."""

    record: Record
    # The epoch it is judged at.
    at: Literal["best", "last"]
    setting: str
    # The trainings of all settings.
    tried: tuple[Record, ...]
    # Whose metrics count: "" is the network, "average." the average of its weights.
    prefix: str = ""

    def metric(self, name: str) -> float:
        """Give a metric at the epoch of the pick; a training has one loss, that of the network."""
        prefix = "" if name == "train_loss" else self.prefix
        return self.record.metrics[f"{prefix}{self.at}.{name}"]

    @property
    def key(self) -> tuple[float, float]:
        """The validation result: the larger, the better."""
        problem = self.record.run and self.record.run.problem
        return validation_key(self.record.metrics, problem, f"{self.prefix}{self.at}.")

    def test_metric(self, name: str) -> float:
        """Give a test metric on clean labels where there are any, accuracy in percent."""
        metrics, name = self.record.metrics, f"{self.prefix}{self.at}.test_{name}"
        value = metrics.get(f"{name}_clean", metrics.get(name, math.nan))
        if name.endswith("accuracy"):
            return 100.0 * value
        return value


class Results(NamedTuple):
    """The picks of a study."""

    # By method, problem and seed.
    picks: Mapping[tuple[str, str, int], Pick]
    # Methods that have settings on every problem.
    methods: list[str]
    # Names of the problems.
    names: list[str]
    # Of any method; a method may have fewer.
    seeds: list[int]

    def seeds_of(self, *methods: str) -> list[int]:
        """List the seeds that methods have in common."""
        common = []
        for seed in self.seeds:
            keys = product(methods, self.names, [seed])
            if all(key in self.picks for key in keys):
                common.append(seed)
        return common

    @property
    def common_seeds(self) -> list[int]:
        """The seeds that all methods have."""
        return self.seeds_of(*self.methods)

    @property
    def seeds_in_words(self) -> str:
        """How many seeds the methods have, such as "3 to 10 seeds"."""
        counts = [len(self.seeds_of(method)) for method in self.methods]
        fewest = stats.pluralize(min(counts), "seed")
        if min(counts) == max(counts):
            return fewest
        return f"{min(counts)} to {stats.pluralize(max(counts), 'seed')}"

    def of(self, method: str, seeds: Sequence[int] | None = None) -> list[Pick]:
        """Give the picks of a method, problem by problem, with its own seeds or with others."""
        if seeds is None:
            seeds = self.seeds_of(method)
        return [self.picks[method, name, seed] for name, seed in product(self.names, seeds)]

    def on(self, name: str) -> Results:
        """Give the results on one problem."""
        return self._replace(names=[name])

    def values(self, method: str, metric: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Give a test metric as ``[problems, seeds]``."""
        values = [pick.test_metric(metric) for pick in self.of(method, seeds)]
        return np.reshape(values, (len(self.names), -1))

    def losses(self, method: str, name: str) -> np.ndarray:
        """Give a loss of the picks of a method in the seeds that all methods have."""
        return np.array([pick.metric(name) for pick in self.of(method, self.common_seeds)])

    def mean(self, method: str, metric: str) -> float:
        """Give a test metric, averaged over problems and the seeds that all methods have."""
        return float(self.values(method, metric, self.common_seeds).mean())

    def accuracies(self, method: str, seeds: Sequence[int] | None = None) -> list[float]:
        """Give the accuracy on each problem, averaged over seeds."""
        return self.values(method, "accuracy", seeds).mean(1).tolist()

    def pairs(self, method: str, rival: str) -> tuple[list[float], list[float]]:
        """Give accuracies in the seeds that both have.

        Returns:
            By problem, each averaged over seeds, or by seed where there is one problem.
        """
        common = self.seeds_of(method, rival)
        if len(self.names) > 1:
            return self.accuracies(method, common), self.accuracies(rival, common)
        a, b = (self.values(each, "accuracy", common)[0] for each in (method, rival))
        return a.tolist(), b.tolist()

    def gain(self, method: str, rival: str) -> Difference:
        """Compare accuracies over problems, each averaged over seeds, or over seeds of one."""
        return stats.paired(*self.pairs(method, rival))

    def gains_by_problem(self, method: str, rival: str) -> list[Difference]:
        """Compare accuracies on each problem, over its seeds."""
        return [self.on(name).gain(method, rival) for name in self.names]

    @property
    def ranks(self) -> dict[str, float]:
        """Mean rank of each method by accuracy, in the seeds that all methods have."""
        seeds = self.common_seeds
        return stats.average_ranks({name: self.accuracies(name, seeds) for name in self.methods})
