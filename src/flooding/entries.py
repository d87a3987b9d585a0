"""What the library offers by name: methods, controllers, strategies, data sets, tasks, experiments.

Each is entered here once. The help texts, the shell completion and the documentation's lists are
made from these entries. Somebody's own is given as ``module:object``. Importing this file imports
no framework.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

__all__ = [
    "CONTROLLERS",
    "DATASETS",
    "EXPERIMENTS",
    "METHODS",
    "PLACES",
    "STRATEGIES",
    "TASKS",
    "DatasetEntry",
    "Entry",
    "StrategyEntry",
    "check_name",
    "entry_names",
    "find_entry",
    "join_names",
    "load_object",
    "load_part",
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

    def load(self) -> object:
        """Import the object.

        Returns:
            The object that ``target`` names.
        """
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class StrategyEntry(Entry):
    """A strategy, a function ``(problem, ...) -> generator``.

    Args:
        options: The options of ``flooding find`` that it takes, by the names of its arguments.
    """

    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetEntry(Entry):
    """The data of a task, a function ``(..., seed) -> Splits``.

    Args:
        inputs: Numbers of an example; None where its argument ``dimension`` says so.
        classes: Classes of the targets.
    """

    inputs: int | None = None
    classes: int = 2


_Entry = TypeVar("_Entry", bound=Entry)

# Classes of methods; ``flooding.methods.Method`` is the base class.
METHODS = (
    Entry("flooding", "flooding.methods:Flooding", "flood the batch mean"),
    Entry("iflood", "flooding.methods:IFlood", "flood each example"),
    Entry("adaflood", "flooding.methods:IFlood", "flood each example at a level of its own"),
    Entry("softad", "flooding.methods:SoftAD", "flood each example smoothly"),
    Entry("hinge", "flooding.methods:Hinge", "stop at the level, without ascent"),
    Entry("wavebound", "flooding.methods:WaveBound", "flood at the loss of a moving average"),
    Entry("relaxloss", "flooding.methods:RelaxLoss", "flood and flatten targets in turn"),
    Entry("sam", "flooding.methods:SAM", "sharpness-aware minimisation"),
    Entry("gradient-penalty", "flooding.methods:GradientPenalty", "penalise the gradient norm"),
)
# Classes of controllers; ``flooding.levels.Controller`` is the protocol.
CONTROLLERS = (
    Entry("constant", "flooding.levels:Constant", "one level for the whole training"),
    Entry("auto", "flooding.levels:Auto", "finds its level within the training"),
    Entry("warmup", "flooding.levels:Warmup", "rises linearly over the first steps"),
    Entry("delayed", "flooding.levels:Delayed", "begins when the training set is fitted"),
    Entry("heuristic", "flooding.levels:Heuristic", "follows the validation accuracy"),
    Entry("plateau", "flooding.levels:Plateau", "follows the validation loss"),
    Entry("range", "flooding.levels:Range", "falls over the whole training"),
)
_SEARCH = "flooding.level_search"
# Functions of strategies; flooding.level_search.protocol defines what they are.
STRATEGIES = (
    StrategyEntry(
        "finder", f"{_SEARCH}.finder:finder", "race levels for about 3 trainings", ("budget",)
    ),
    StrategyEntry(
        "auto", f"{_SEARCH}.auto:auto", "find and hold a level in one training: --budget 1"
    ),
    StrategyEntry("grid", f"{_SEARCH}.grid:grid", "train every level in full", ("levels",)),
    StrategyEntry(
        "halving", f"{_SEARCH}.halving:halving", "drop the worse levels early", ("levels",)
    ),
    StrategyEntry("backward", f"{_SEARCH}.backward:backward", "fit first, then flood", ("levels",)),
    StrategyEntry("heuristic", f"{_SEARCH}.heuristic:heuristic", "follow validation accuracy"),
    StrategyEntry(
        "policy-gradient",
        f"{_SEARCH}.policy_gradient:policy_gradient",
        "learn a distribution of levels",
        ("trainings",),
    ),
    StrategyEntry("accordance", f"{_SEARCH}.accordance:accordance", "watch gradient accordance"),
    StrategyEntry("range-test", f"{_SEARCH}.range_test:range_test", "let the level fall once"),
    StrategyEntry(
        "tpe", f"{_SEARCH}.tpe:tpe", "Optuna's tree-structured Parzen estimator", ("trainings",)
    ),
)
_SYNTHETIC, _TABLES, _IMAGES = (
    f"flooding.data.{name}" for name in ("synthetic", "tables", "images")
)
# What `flooding run` trains on; files are fetched at the first use.
DATASETS = (
    DatasetEntry("two-gaussians", f"{_SYNTHETIC}:two_gaussians", "synthetic"),
    DatasetEntry("sinusoid", f"{_SYNTHETIC}:sinusoid", "synthetic", 2),
    DatasetEntry("sinusoid-nd", f"{_SYNTHETIC}:sinusoid_nd", "synthetic"),
    DatasetEntry("spiral", f"{_SYNTHETIC}:spiral", "synthetic", 2),
    DatasetEntry("digits", f"{_TABLES}:digits", "of scikit-learn", 64, 10),
    DatasetEntry("spambase", f"{_TABLES}:spambase", "fetched", 57),
    DatasetEntry("letter", f"{_TABLES}:letter", "fetched", 16, 26),
    DatasetEntry("higgs7k", f"{_TABLES}:higgs7k", "fetched", 28),
    DatasetEntry("twonorm", f"{_TABLES}:twonorm", "fetched", 20),
    DatasetEntry("mnist", f"{_IMAGES}:mnist", "fetched", 784, 10),
    DatasetEntry("fashion-mnist", f"{_IMAGES}:fashion_mnist", "fetched", 784, 10),
)
# Problems in their published setting, what `flooding find` searches on.
TASKS = (
    Entry("two-gaussians", "flooding.tasks:TWO_GAUSSIANS", "synthetic, 10 inputs"),
    Entry("sinusoid", "flooding.tasks:SINUSOID", "synthetic, 2 inputs"),
    Entry("sinusoid-nd", "flooding.tasks:SINUSOID_ND", "synthetic, 10 inputs"),
    Entry("spiral", "flooding.tasks:SPIRAL", "synthetic, 2 inputs"),
    Entry("digits", "flooding.tasks:DIGITS", "images of handwritten digits"),
    Entry("spambase", "flooding.tasks:SPAMBASE", "a table of e-mails"),
    Entry("letter", "flooding.tasks:LETTER", "a table of letter shapes, 26 classes"),
    Entry("higgs7k", "flooding.tasks:HIGGS7K", "a table of particle collisions"),
    Entry("fashion-mnist-5k", "flooding.tasks:FASHION_MNIST_5K", "5,000 images of clothes"),
    Entry("twonorm", "flooding.tasks:TWONORM", "a synthetic table, 20 inputs"),
)
# Where Runs can be trained besides this machine; functions such as ``flooding.run_all``.
PLACES = (Entry("ray", "flooding.integrations.ray:run_all", "a Ray cluster"),)
_STUDIES = "flooding.experiments"
# Published experiments that `flooding reproduce` repeats.
EXPERIMENTS = (
    Entry(
        "ishida2020",
        f"{_STUDIES}.ishida2020:EXPERIMENT",
        "the paper's synthetic table: three tasks, three noises, 51 levels, "
        "with and without early stopping",
    ),
    Entry(
        "ishida2020_settings",
        f"{_STUDIES}.ishida2020_settings:EXPERIMENT",
        "what the paper leaves open: plain training on Two Gaussians in six settings",
    ),
    Entry(
        "kim2022",
        f"{_STUDIES}.kim2022:EXPERIMENT",
        "the published reproduction: forward, backward, heuristic, policy gradient; "
        "its claims as tests",
    ),
    Entry(
        "double_descent",
        f"{_STUDIES}.double_descent:EXPERIMENT",
        "do test loss and error descend a second time: nine synthetic cells, digits in eight ways",
    ),
    Entry(
        "double_descent_cifar10",
        f"{_STUDIES}.double_descent_cifar10:EXPERIMENT",
        "the same on CIFAR-10, reduced for a CPU, in eight ways",
    ),
    Entry(
        "bakeoff",
        f"{_STUDIES}.bakeoff:EXPERIMENT",
        "twenty methods on thirteen problems, each with up to four trainings "
        "to choose its settings",
    ),
    Entry(
        "ishida2020_why",
        f"{_STUDIES}.ishida2020_why:EXPERIMENT",
        "why flooding works: flatter minima, a random walk, memory, over-confidence, as tests",
    ),
    Entry(
        "ishida2020_walk",
        f"{_STUDIES}.ishida2020_walk:EXPERIMENT",
        "the random walk and the Taylor view with plain SGD, in full batches and mini-batches",
    ),
    Entry(
        "ishida2020_held",
        f"{_STUDIES}.ishida2020_held:EXPERIMENT",
        "who holds a preset training loss: flooding, weight decay and dropout, tuned by bisection",
    ),
    Entry(
        "ishida2020_images",
        f"{_STUDIES}.ishida2020_images:EXPERIMENT",
        "all images of MNIST and Fashion-MNIST, smaller network: six levels, auto level, averages",
    ),
    Entry(
        "images5k",
        f"{_STUDIES}.images5k:EXPERIMENT",
        "4,000 real images: MNIST, Fashion-MNIST, CIFAR-10, six levels, "
        "with and without early stopping",
    ),
    Entry(
        "peterson2019",
        f"{_STUDIES}.peterson2019:EXPERIMENT",
        "labels people disagree on (CIFAR-10H): what they say about the level, "
        "and which levels work",
    ),
    Entry(
        "kim2022_cifar10",
        f"{_STUDIES}.kim2022_cifar10:EXPERIMENT",
        "CIFAR-10 with a residual network at two learning rates, reduced for a CPU",
    ),
)


def entry_names(entries: Iterable[Entry]) -> list[str]:
    """List the names of entries.

    Args:
        entries: Such as :data:`METHODS`.

    Returns:
        Their names, in order.
    """
    return [entry.name for entry in entries]


def join_names(names: Sequence[str], word: str = "or") -> str:
    """Join names for a sentence.

    Args:
        names: At least one name.
        word: The word before the last one.

    Returns:
        Such as ``a, b or c``.

    Example:
        >>> join_names(["grid", "halving", "tpe"])
        'grid, halving or tpe'
    """
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def check_name(kind: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that does not exist.

    Args:
        kind: What the names are, for the error: "method" or the like.
        name: The name.
        names: Those that exist.

    Raises:
        ValueError: If there is none of this name.
    """
    names = list(names)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, 1)
    hint = f"Did you mean {near[0]}?" if near else "Choose one of these."
    raise ValueError(
        f"{kind} must be one of {', '.join(names) or 'none at all'}; got {name}. {hint}"
    )


def find_entry(kind: str, name: str, entries: Sequence[_Entry]) -> _Entry:
    """Look an entry up by its name.

    Args:
        kind: What the entries are, for the error: "method" or the like.
        name: The name.
        entries: Such as :data:`METHODS`.

    Returns:
        The entry.

    Raises:
        ValueError: If there is none of this name.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    check_name(kind, name, entry_names(entries))
    return next(entry for entry in entries if entry.name == name)


def load_part(kind: str, name: str, entries: Sequence[Entry]) -> object:
    """Import what a name on the command line stands for.

    Args:
        kind: What is named, for the error: "method" or the like.
        name: The name of an entry, or ``module:object`` for one of the user's own.
        entries: Such as :data:`METHODS`.

    Returns:
        The object.

    Raises:
        ValueError: If there is none of this name, or it cannot be imported.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    if ":" in name:
        return load_object(name)
    return find_entry(kind, name, entries).load()


def load_object(path: str) -> object:
    """Import an object of the user's own.

    The folder of a file, or else the current one, is put first on ``sys.path`` and stays there,
    because worker processes import the module, too.

    Args:
        path: ``module:object``, or ``folder/file.py:object``.

    Returns:
        The object.

    Raises:
        ValueError: If there is no such module, or no such object in it.
    """
    location, _, name = path.rpartition(":")
    if not location or not name:
        raise ValueError(
            f"module:object must name a module and an object in it, got {path}. "
            f"Try my_module:{name or 'object'}."
        )
    module = _import_module(location, path)
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise ValueError(_cannot_import(path, error)) from None


def _import_module(location: str, path: str) -> ModuleType:
    """Import a module by its name or by its file."""
    file = Path(location) if location.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ValueError(_cannot_import(path, f"{file} is missing"))
    folder, name = (
        (os.getcwd(), location) if file is None else (str(file.parent.absolute()), file.stem)
    )
    # First, so that a module of the user's is found before an installed one of the same name.
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that the user's own code imports is an error of that code.
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(_cannot_import(path, error)) from None
    except (TypeError, ValueError) as error:
        # Python refuses names with empty parts, such as "..", with errors of its own.
        if all(name.split(".")):
            raise
        raise ValueError(_cannot_import(path, error)) from None
    except SystemExit as error:
        raise ValueError(
            f"a module must go on after its import, but {location} called sys.exit({error}). "
            "Put its script below if __name__ == '__main__'."
        ) from None
    # An already imported module of the same name would be taken silently for the file.
    source = getattr(module, "__file__", None)
    if file is not None and (source is None or not file.samefile(source)):
        raise ValueError(
            f"the name of {file} must not be that of another module, "
            f"but {name} is {source or 'built in'}. Rename it."
        )
    return module


def _cannot_import(path: str, reason: object) -> str:
    return (
        f"module:object must name something that can be imported, got {path}: {reason}. "
        "Check the names."
    )
