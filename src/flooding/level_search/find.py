"""Which level? ``find_level(problem)`` answers; ``search`` drives any strategy on any training
code.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from flooding.atomic import write_atomic
from flooding.data import map_tensors
from flooding.level_search import base as strategies
from flooding.level_search.advisor import advise
from flooding.level_search.base import SearchResult, Strategy
from flooding.level_search.finder import finder
from flooding.training.checks import check_targets
from flooding.training.config import SESSION
from flooding.training.ledger import Ledger
from flooding.training.loop import EpochResult, train
from flooding.training.problem import Problem, Score
from flooding.training.record import Record
from flooding.training.rng import preserve_rng_state
from flooding.training.run import Run
from flooding.training.runner import run_all, run_key
from flooding.training.scratch import scratch_folder

__all__ = ["ExternalProblem", "FoundLevel", "ObjectiveAdapter", "find_level", "search"]


@dataclass(frozen=True, eq=False)
class FoundLevel(SearchResult):
    """What a search found, with what one does with it.

    ``level`` is a number, also 0.0 where the loss may be negative, or None: "train without
    flooding" is a valid answer. ``suggestions`` has every estimate with
    an interval, ``table`` a row per training, ``cost`` the price.
    """

    device: str = "cpu"

    def plot(self) -> Any:
        """Draw validation score and loss against the level, and the curves of all Runs.

        Returns:
            A matplotlib figure.
        """
        from flooding.level_search.plot import found  # matplotlib is an extra

        return found(self)

    def save(self, folder: str | Path) -> Path:
        """Write what was found: ``found.json``, ``table.csv``, ``curves.npz`` and ``search.png``.

        Args:
            folder: Made if it is missing; files of the same names are replaced, each as a whole.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "level": self.level,
            "strategy": self.strategy,
            "seed": self.run.seed,
            "suggestions": [
                {f.name: _plain(getattr(s, f.name)) for f in fields(s)} for s in self.suggestions
            ],
            "cost": {f.name: getattr(self.cost, f.name) for f in fields(self.cost)},
            "warnings": list(self.warnings),
        }
        write_atomic(folder / "found.json", json.dumps(told, indent=1) + "\n")
        rows = self.table
        names = list(dict.fromkeys(name for row in rows for name in row))
        with io.StringIO() as text:
            table = csv.DictWriter(text, names)
            table.writeheader()
            table.writerows(rows)
            write_atomic(folder / "table.csv", text.getvalue())
        curves = {
            f"{n}/{name}": curve
            for n, r in enumerate(self.records)
            for name, curve in r.curves.items()
        }
        with io.BytesIO() as file:
            np.savez_compressed(file, **curves)  # type: ignore[arg-type]
            write_atomic(folder / "curves.npz", file.getvalue())
        from flooding.report.plots import save

        save(self.plot(), folder / "search.png")
        return folder

    @preserve_rng_state()
    def model(self, at: str = "last") -> nn.Module:
        """Train the Run that was found in full, and give its model.

        Args:
            at: "last", which the search judged, or "best": the epoch with the best validation
                result.

        Returns:
            A new module in evaluation mode, on the device of the search.

        Raises:
            ValueError: If ``at`` is neither, or the training code is the caller's own.
        """
        if not isinstance(self.run.problem, Problem):
            raise ValueError(
                f"only a Problem's model can be trained here. Train your own at level {self.level}."
            )
        if at not in {"last", "best"}:
            raise ValueError(f"at must be last or best, got {at!r}.")
        *_, row = train(self.run, device=self.device)
        assert row.weights is not None
        model = self.run.problem.build(self.run.seed).to(self.device)
        model.load_state_dict(row.weights[at])
        return model.eval()


@preserve_rng_state()
def find_level(
    problem: Problem,
    *,
    budget: float = 3.0,
    seeds: int | Sequence[int] = 1,
    device: str = "cpu",
    strategy: Callable[..., Strategy] | None = None,
    ledger: str | Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on_start: Callable[[list[Run]], object] | None = None,
    on_row: Callable[[EpochResult], object] | None = None,
) -> FoundLevel:
    """Find the flood level of a problem for the price of a few trainings.

    Nothing of the caller's is changed: models are copied, optimisers and schedules are built anew
    from the problem, generators are given back as they were, also after an exception or an
    interrupt. Finished trainings are in the ledger, so that the same call goes on where an
    interrupted one stopped; those of a problem that cannot describe itself are kept for the length
    of the call.

    Args:
        problem: What is trained.
        budget: Trainings to spend for each seed, above 1.
        seeds: How many seeds to average, or which. With fixed data a seed changes weights and order
            alone.
        device: Where to train.
        strategy: Another search, ``(problem, *, seeds) -> generator`` (or ``seed``, for one seed),
            such as ``partial(flooding.level_search.grid.grid, levels=[None, 0.1, 0.2])``; it has a
            budget of its own.
        ledger: SQLite file of Records; None is the default place.
        overwrite: Train even what the ledger holds.
        workers: Worker processes; None is one per core, 0 trains in this process.
        on_start: Called with the Runs of each round that must be trained.
        on_row: Called with every row of the Runs that are trained.

    Returns:
        The level and everything behind it.

    Raises:
        ValueError: If the data cannot be searched on, or an argument is out of range.

    Example:
        >>> from functools import partial
        >>> from flooding import Problem
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.models import mlp
        >>> data = partial(two_gaussians, n_test=100, label_noise=0.1)
        >>> problem = Problem(data, partial(mlp, 10, 2, width=50), max_epochs=40)
        >>> found = find_level(problem, workers=0)
        >>> found.level is None or 0 < found.level < 0.7, found.cost.steps < 3.1
        (True, True)
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise ValueError(f"seeds must be at least one, got {seeds}. Try seeds=1.")
    if not isinstance(problem, Problem):
        got = f"got {type(problem).__name__}. For training code of your own there is search(strategy, train)."
        raise ValueError(f"find_level needs a Problem, such as Problem(data, model), {got}")
    problem = replace(problem, eval_loss=None)  # levels are in the unit of the loss that is trained
    _check(problem, chosen[0])
    make = strategy or partial(finder, budget=budget)
    if not callable(make):
        raise ValueError(
            f"strategy must be a function, such as flooding.level_search.halving.halving, got {strategy!r}."
        )
    names = inspect.signature(make).parameters
    if "seeds" not in names and "seed" in names:
        make = _of_one_seed(make)
    with _session(problem, chosen[0], ledger) as (known, path):

        def evaluate(runs: list[Run]) -> list[Record]:
            how = {
                "overwrite": overwrite,
                "workers": workers,
                "device": device,
                "on_start": on_start,
                "on_row": on_row,
            }
            return run_all(runs, ledger=path, **how)  # type: ignore[arg-type]

        found = strategies.search(make(known, seeds=chosen), evaluate)
    found = replace(found, run=replace(found.run, problem=problem))
    labels = problem.splits(chosen[0]).train.y
    is_entropy = not labels.is_floating_point() and not strategies.may_be_negative(found.records)
    limits = advise(labels=labels[problem.target_mask(labels)]) if is_entropy else ()
    given = {f.name: getattr(found, f.name) for f in fields(found)}
    return FoundLevel(**given | {"suggestions": (*found.suggestions, *limits), "device": device})


def _of_one_seed(strategy: Callable[..., Strategy]) -> Callable[..., Strategy]:
    def make(problem: Problem, seeds: Sequence[int]) -> Strategy:
        if len(seeds) > 1:
            raise ValueError(f"this strategy takes one seed, got {len(seeds)}. Try seeds=1.")
        return strategy(problem, seed=seeds[0])

    return make


def _check(problem: Problem, seed: int) -> None:
    """Refuse what a search cannot judge, before anything is trained."""
    splits = problem.splits(seed)
    check_targets(problem, splits)
    for name in ("train", "val"):
        y = getattr(splits, name).y
        n, y = len(y), y if y.is_floating_point() else y[problem.target_mask(y)]
        if not y.is_floating_point() and y.ndim == 1 and len(y.unique()) < 2:
            raise ValueError(
                f"the {name} split must hold at least two classes, got only class {int(y[0])}. Divide the data anew."
            )
        if y.is_floating_point() and not bool(y.isfinite().all()):
            raise ValueError(
                f"targets must be finite, got NaN or infinity in the {name} split. Drop those examples."
            )
        inputs: list[Tensor] = []
        map_tensors(lambda t, kept=inputs: (kept.append(t), t)[1], getattr(splits, name).x)
        if not all(bool(t.isfinite().all()) for t in inputs if t.is_floating_point()):
            raise ValueError(
                f"inputs must be finite, got NaN or infinity in the {name} split. Impute or drop them."
            )
        if all(bool((t == t[:1]).all()) for t in inputs):
            raise ValueError(
                f"inputs must vary, but all {n} examples of the {name} split are the same. Check them."
            )


@contextmanager
def _session(
    problem: Problem, seed: int, ledger: str | Path | None
) -> Generator[tuple[Problem, Any], None, None]:
    """Give a problem that can be looked up, and the ledger: for some only as long as the search
    takes.

    Yields:
        The problem to search on, and the path of the ledger.
    """
    if run_key(Run(problem, seed=seed)) is not None:
        yield problem, ledger
        return
    with scratch_folder() as folder:
        yield replace(problem, key=f"{SESSION}{uuid.uuid4()}"), folder / "ledger.sqlite"


@dataclass(frozen=True)
class ExternalProblem:
    """Stands for a Problem whose training code is the caller's.

    Args:
        max_epochs: Epochs of a full training, at least 1.
        greater_is_better: Whether a larger score is the better one.
    """

    max_epochs: int
    greater_is_better: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.max_epochs, int) or self.max_epochs < 1:
            raise ValueError(
                f"max_epochs must be the epochs of a full training, at least 1, got {self.max_epochs!r}."
            )

    @property
    def score(self) -> Score:
        """The direction of the score."""
        return Score(lambda _, score: score, self.greater_is_better)


class ObjectiveAdapter:
    """A training function of your own as something strategies can ask.

    What was trained once is not trained again: by the same object, and with a ``key`` also by the
    next process.

    Args:
        train: ``(level, seed, epochs) -> score``. ``level`` is a number, or None for plain
            training; ``epochs`` is how far to train. It may return a mapping instead: ``score``,
            and whatever else was measured, as numbers or as curves with a value per epoch from 0
            on. The finder needs the curves ``val_loss`` and ``train_loss``.
        key: Name of this training in the ledger; change it whenever the code behind it changes.
        ledger: SQLite file of Records; None is the default place. Unused without a key.

    Example:
        >>> from flooding.level_search.grid import grid
        >>> found = search(grid(Elsewhere(100), [0.0, 0.1, 0.2]), lambda level, seed, epochs: -abs(level - 0.1))
        >>> found.level
        0.1
    """

    def __init__(
        self, train: Callable[..., Any], *, key: str | None = None, ledger: str | Path | None = None
    ) -> None:
        self._train, self._key, self._path = train, key, ledger
        self._known: dict[Any, Record] = {}

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Train Runs one after another."""
        book = None if self._key is None else Ledger(self._path)
        try:
            return [self._one(run, book) for run in runs]
        except Exception as error:
            if book is None and self._known:
                error.add_note(
                    f"{len(self._known)} finished trainings are lost with this process. To keep them, and to go on "
                    "from there: search(strategy, Lifted(train, key='a name'))."
                )
            raise
        finally:
            if book is not None:
                book.close()

    def _one(self, run: Run, book: Ledger | None) -> Record:
        level = run.level
        if not (level is None or isinstance(level, float)):
            raise ValueError(
                f"a training function of your own takes constant levels, got {level}. Use another search."
            )
        place = (level, run.seed, run.epochs)
        name = f"lifted {self._key} {level} {run.seed}"
        record = self._known.get(place) or (None if book is None else book.find(run, name))
        if record is None:
            tick = time.perf_counter()
            told = self._call(level, run)
            record = replace(_recorded(run, told), metadata={"seconds": time.perf_counter() - tick})
            if book is not None:
                book.add(name, record)
        self._known[place] = record
        return replace(record, run=run)

    def _call(self, level: float | None, run: Run) -> Any:
        try:
            return self._train(level=level, seed=run.seed, epochs=run.epochs)
        except TypeError as error:
            if level is None:
                error.add_note(
                    "level=None asks for plain training: a training function must take it, or give levels."
                )
            raise


def _recorded(run: Run, told: Any) -> Record:
    """Make a Record of what a training function returned."""
    values = dict(told) if isinstance(told, Mapping) else {"score": told}
    if not isinstance(told, Mapping) and np.ndim(_number(told)) > 0:
        raise ValueError(f"a training function must return one score, or a mapping, got {told!r}.")
    if "score" not in values:
        raise ValueError(
            f"a training function must return a score, or a mapping with one, got {sorted(values)}."
        )
    if values["score"] is None:
        raise ValueError(
            "a training function must return a score, got None. Return the validation score."
        )
    values = {
        ("val_score" if name == "score" else name): _number(value) for name, value in values.items()
    }
    for name, value in values.items():
        if np.ndim(value) and len(value) != run.epochs + 1:
            raise ValueError(
                f"a curve must have a value before training and one after each of {run.epochs} epochs, got "
                f"{len(value)} of {name}."
            )
    curves = {
        name: np.asarray(value, np.float32) for name, value in values.items() if np.ndim(value)
    }
    finals = {
        f"last.{name}": float(np.asarray(value).reshape(-1)[-1]) for name, value in values.items()
    }
    sign = 1 if getattr(run.problem.score, "greater_is_better", True) else -1
    finals.setdefault("last.val_loss", -sign * finals["last.val_score"])
    return Record(run, curves, {}, finals | {"epochs": float(run.epochs)}, "", "")


def _number(value: Any) -> Any:
    """Take a tensor out of its graph, and refuse what is neither numbers nor curves of them."""
    value = value.detach().cpu() if isinstance(value, Tensor) else value
    if value is not None and not np.issubdtype(np.asarray(value).dtype, np.number):
        raise ValueError(f"a training function must return numbers, got {value!r}.")
    return value


def search(strategy: Strategy, evaluate: Callable[..., Any] | None = None) -> FoundLevel:
    """Drive a strategy on any training code.

    Args:
        strategy: A fresh generator, such as ``grid(problem)`` of :mod:`flooding.level_search.grid`.
        evaluate: Runs to Records in the same order; or a plain
            ``train(level, seed, epochs) -> score``, see :class:`Lifted`; None is
            :func:`flooding.run_all`.

    Returns:
        What the strategy found.

    Raises:
        ValueError: If ``strategy`` is a function that was not called, or a generator that has
            begun, or ``evaluate`` cannot be called as either of the two.
    """
    if not isinstance(strategy, Generator):
        raise ValueError(
            f"a search needs a strategy that was called, such as grid(problem), got {strategy!r}."
        )
    if inspect.getgeneratorstate(strategy) != inspect.GEN_CREATED:
        raise ValueError(
            "a strategy can be driven once. Make a new one: search(grid(problem), ...)."
        )
    if evaluate is None:
        evaluate = _trained
    elif not isinstance(evaluate, ObjectiveAdapter):
        evaluate = _lifted(evaluate)
    found = strategies.search(strategy, evaluate)
    return FoundLevel(**{f.name: getattr(found, f.name) for f in fields(found)})


def _trained(runs: list[Run]) -> list[Record]:
    if not all(isinstance(run.problem, Problem) for run in runs):
        raise ValueError(
            "Elsewhere stands for training code of your own. Pass it: search(strategy, train)."
        )
    return run_all(runs)


def _lifted(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Lift a training function, and leave an evaluate as it is."""
    given = inspect.signature(evaluate).parameters.values()
    names = {p.name for p in given}
    if "level" in names or ("runs" not in names and any(p.kind is p.VAR_KEYWORD for p in given)):
        return ObjectiveAdapter(evaluate)
    needed = [p.name for p in given if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    if len(needed) > 1:
        told = f"train(level, seed, epochs) or evaluate(runs), got ({', '.join(needed)})"
        raise ValueError(f"a search calls {told}. Name the arguments so.")
    return evaluate


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
