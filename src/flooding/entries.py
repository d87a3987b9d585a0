"""What the library offers by name: methods, controllers, strategies, tasks and experiments.

Each is entered here once. The help texts, the shell completion and the documentation's lists are
made from these entries. Importing this file imports no framework.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONTROLLERS",
    "EXPERIMENTS",
    "METHODS",
    "STRATEGIES",
    "TASKS",
    "Entry",
    "find_entry",
    "names",
]


@dataclass(frozen=True)
class Entry:
    """Something the library offers by name.

    Args:
        name: The name on the command line.
        target: Where it lives, ``module:object``; imported at the first use.
        summary: What it is, in a few words.
    """

    name: str
    target: str
    summary: str

    def load(self) -> Any:
        """Import the object.

        Returns:
            The object that ``target`` names.
        """
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


METHODS = (
    Entry("flooding", "flooding.methods:Flooding", "flood the batch mean"),
    Entry("iflood", "flooding.methods:IFlood", "flood each example"),
    Entry("adaflood", "flooding.methods:IFlood", "flood each example at a level of its own"),
    Entry("softad", "flooding.methods:SoftAD", "flood each example smoothly"),
    Entry("hinge", "flooding.methods:Hinge", "stop at the level, without ascent"),
    Entry("wavebound", "flooding.methods:WaveBound", "flood at the loss of a moving average"),
    Entry("sam", "flooding.methods:SAM", "sharpness-aware minimisation"),
    Entry("gradient-penalty", "flooding.methods:GradientPenalty", "penalise the gradient norm"),
)
CONTROLLERS = (
    Entry("constant", "flooding.levels:Constant", "one level for the whole training"),
    Entry("warmup", "flooding.levels:Warmup", "rises linearly over the first steps"),
    Entry("delayed", "flooding.levels:Delayed", "begins when the training set is fitted"),
    Entry("heuristic", "flooding.levels:Heuristic", "follows the validation accuracy"),
    Entry("plateau", "flooding.levels:Plateau", "follows the validation loss"),
    Entry("range", "flooding.levels:Range", "falls over the whole training"),
)
STRATEGIES = (
    Entry("finder", "flooding.level_search.finder:finder", "race levels for about 3 trainings"),
    Entry("grid", "flooding.level_search.grid:grid", "train every level in full"),
    Entry("halving", "flooding.level_search.halving:halving", "drop the worse half of the levels"),
    Entry("backward", "flooding.level_search.backward:backward", "flood after the fit"),
    Entry("heuristic", "flooding.level_search.heuristic:heuristic", "follow validation accuracy"),
    Entry(
        "policy-gradient",
        "flooding.level_search.policy_gradient:policy_gradient",
        "learn a policy for the level",
    ),
    Entry("accordance", "flooding.level_search.accordance:accordance", "watch gradient accordance"),
    Entry("range-test", "flooding.level_search.range_test:range_test", "let the level fall once"),
    Entry("tpe", "flooding.level_search.tpe:tpe", "tree-structured Parzen estimator of Optuna"),
)
# The data of the tasks, callables ``(..., seed) -> Splits``; files are fetched at the first use.
TASKS = (
    Entry("two-gaussians", "flooding.data.synthetic:two_gaussians", "synthetic"),
    Entry("sinusoid", "flooding.data.synthetic:sinusoid", "synthetic"),
    Entry("sinusoid-nd", "flooding.data.synthetic:sinusoid_nd", "synthetic"),
    Entry("spiral", "flooding.data.synthetic:spiral", "synthetic"),
    Entry("digits", "flooding.data.tables:digits", "of scikit-learn"),
    Entry("spambase", "flooding.data.tables:spambase", "fetched"),
    Entry("letter", "flooding.data.tables:letter", "fetched"),
    Entry("higgs7k", "flooding.data.tables:higgs7k", "fetched"),
    Entry("twonorm", "flooding.data.tables:twonorm", "fetched"),
    Entry("mnist", "flooding.data.images:mnist", "fetched"),
    Entry("fashion-mnist", "flooding.data.images:fashion_mnist", "fetched"),
)
EXPERIMENTS = (
    Entry(
        "ishida2020",
        "flooding.experiments.ishida2020:EXPERIMENT",
        "the paper's synthetic table: three tasks, three noises, 51 levels, with and without early stopping",
    ),
    Entry(
        "ishida2020_settings",
        "flooding.experiments.ishida2020_settings:EXPERIMENT",
        "what the paper leaves open: plain training on Two Gaussians in six settings",
    ),
    Entry(
        "kim2022",
        "flooding.experiments.kim2022:EXPERIMENT",
        "the published reproduction: forward, backward, heuristic, policy gradient; its claims as tests",
    ),
    Entry(
        "double_descent",
        "flooding.experiments.double_descent:EXPERIMENT",
        "do test loss and error descend a second time: nine synthetic cells, digits in eight ways",
    ),
    Entry(
        "double_descent_cifar10",
        "flooding.experiments.double_descent_cifar10:EXPERIMENT",
        "the same on CIFAR-10, reduced for a CPU, in eight ways",
    ),
    Entry(
        "bakeoff",
        "flooding.experiments.bakeoff:EXPERIMENT",
        "twelve methods on thirteen problems, each with up to four trainings to choose its settings",
    ),
    Entry(
        "ishida2020_why",
        "flooding.experiments.ishida2020_why:EXPERIMENT",
        "why flooding works: flatter minima, a random walk, memory, over-confidence, as tests",
    ),
    Entry(
        "images5k",
        "flooding.experiments.images5k:EXPERIMENT",
        "4,000 real images: MNIST, Fashion-MNIST, CIFAR-10, six levels, with and without early stopping",
    ),
    Entry(
        "peterson2019",
        "flooding.experiments.peterson2019:EXPERIMENT",
        "labels people disagree on (CIFAR-10H): what they say about the level, and which levels work",
    ),
    Entry(
        "kim2022_cifar10",
        "flooding.experiments.kim2022_cifar10:EXPERIMENT",
        "CIFAR-10 with a residual network at two learning rates, reduced for a CPU",
    ),
)


def names(entries: Sequence[Entry]) -> list[str]:
    """List the names of entries.

    Args:
        entries: Such as :data:`METHODS`.

    Returns:
        Their names, in order.
    """
    return [entry.name for entry in entries]


def find_entry(kind: str, name: str, entries: Sequence[Entry]) -> Entry:
    """Look an entry up by its name.

    Args:
        kind: What the entries are, for the error: "method" or the like.
        name: The name.
        entries: Such as :data:`METHODS`.

    Returns:
        The entry.

    Raises:
        ValueError: If there is none of this name.
    """
    for entry in entries:
        if entry.name == name:
            return entry
    near = difflib.get_close_matches(name, names(entries), 1)
    hint = f"Did you mean {near[0]}?" if near else "Or give one of your own as module:object."
    raise ValueError(f"{kind} must be one of {', '.join(names(entries))}; got {name}. {hint}")
