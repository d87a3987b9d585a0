"""The picks of a comparison of methods: one training for each method, problem and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    seeds: list[int]

    @property
    def cases(self) -> list[tuple[str, int]]:
        """Every problem with every seed."""
        return list(product(self.names, self.seeds))

    def of(self, method: str) -> list[Pick]:
        """Give the picks of a method in all cases."""
        return [self.picks[method, name, seed] for name, seed in self.cases]

    def on(self, name: str) -> Results:
        """Give the results on one problem."""
        return self._replace(names=[name])

    def values(self, method: str, metric: str) -> np.ndarray:
        """Give a test metric as ``[problems, seeds]``."""
        values = [pick.test_metric(metric) for pick in self.of(method)]
        return np.reshape(values, (len(self.names), len(self.seeds)))

    def losses(self, method: str, name: str) -> np.ndarray:
        """Give a loss of all picks of a method, ``[cases]``."""
        return np.array([pick.metric(name) for pick in self.of(method)])

    def mean(self, method: str, metric: str) -> float:
        """Give a test metric, averaged over problems and seeds."""
        return float(self.values(method, metric).mean())

    def accuracies(self, method: str) -> list[float]:
        """Give the accuracy on each problem, averaged over its seeds."""
        return self.values(method, "accuracy").mean(1).tolist()

    def pairs(self, method: str, rival: str) -> tuple[list[float], list[float]]:
        """Give accuracies by problem, each averaged over seeds, or by seed where there is one."""
        if len(self.names) > 1:
            return self.accuracies(method), self.accuracies(rival)
        a, b = self.values(method, "accuracy")[0], self.values(rival, "accuracy")[0]
        return a.tolist(), b.tolist()

    def gain(self, method: str, rival: str) -> Difference:
        """Compare accuracies over problems, each averaged over seeds, or over seeds of one."""
        return stats.paired(*self.pairs(method, rival))

    def gains_by_problem(self, method: str, rival: str) -> list[Difference]:
        """Compare accuracies on each problem, over its seeds."""
        return [self.on(name).gain(method, rival) for name in self.names]

    @property
    def ranks(self) -> dict[str, float]:
        """Mean rank of each method by accuracy."""
        return stats.average_ranks({name: self.accuracies(name) for name in self.methods})
