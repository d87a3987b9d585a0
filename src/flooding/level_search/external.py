"""Training code of your own: what stands for its problem, and what turns it into a runner."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from flooding.level_search.protocol import RunAll
from flooding.training.ledger import Ledger
from flooding.training.problem import Score
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["ExternalProblem", "ObjectiveAdapter", "TrainFunction", "as_run_all"]

# A training function of the user's own, ``(level, seed, epochs) -> score`` or a mapping with it.
TrainFunction: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class ExternalProblem:
    """Stands for a Problem whose training code is the caller's.

    Args:
        max_epochs: Epochs of a full training, at least 1.
        greater_is_better: Whether a larger score is the better one.

    Raises:
        ValueError: If ``max_epochs`` is below 1.
    """

    max_epochs: int
    greater_is_better: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.max_epochs, int) or self.max_epochs < 1:
            raise ValueError(
                "max_epochs must be the epochs of a full training, at least 1, "
                f"got {self.max_epochs!r}."
            )

    @property
    def score(self) -> Score:
        """The direction of the score."""
        return Score(lambda _, score: score, self.greater_is_better)


class ObjectiveAdapter:
    """Turns a training function of your own into what a search can call.

    What was trained once is not trained again: by the same object, and with a ``key`` also by the
    next process.

    Args:
        train: ``(level, seed, epochs) -> score``. ``level`` is a number, or None for plain
            training; ``epochs`` is how far to train. It may return a mapping instead: ``score``,
            and whatever else was measured, as numbers or as curves with a value per epoch from 0
            on. The finder needs the curves ``val_loss`` and ``train_loss``.
        key: Name of this training in the ledger; change it whenever the code behind it changes.
        ledger: SQLite file of Records; None is the default file. Unused without a key.

    Example:
        >>> from flooding import search
        >>> from flooding.level_search.grid import grid
        >>> train = ObjectiveAdapter(lambda level, seed, epochs: -abs(level - 0.1))
        >>> search(grid(ExternalProblem(100), [0.0, 0.1, 0.2]), train).level
        0.1
    """

    def __init__(
        self, train: TrainFunction, *, key: str | None = None, ledger: str | Path | None = None
    ) -> None:
        self._train, self._key, self._path = train, key, ledger
        self._cache: dict[tuple[float | None, int, int], Record] = {}

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Train Runs one after another.

        Args:
            runs: Runs with constant levels.

        Returns:
            Their Records, in the same order.
        """
        # Only a key tells the next process that the code behind it is the same.
        ledger = None if self._key is None else Ledger(self._path)
        try:
            return [self._record(run, ledger) for run in runs]
        except Exception as error:
            # Hours of training may be lost here: say how to keep them next time.
            if ledger is None and self._cache:
                error.add_note(
                    f"{len(self._cache)} finished trainings are lost with this process. To keep "
                    "them, and to go on from there: "
                    "search(strategy, ObjectiveAdapter(train, key='a name'))."
                )
            raise
        finally:
            if ledger is not None:
                ledger.close()

    def _record(self, run: Run, ledger: Ledger | None) -> Record:
        """Look the Record of a Run up, or train."""
        level = run.level
        if not (level is None or isinstance(level, float)):
            raise ValueError(
                "a training function of your own takes constant levels, "
                f"got {level}. Use another search."
            )
        cache_key = (level, run.seed, run.epochs)
        # "lifted" is what flooding 0.1.0 wrote.
        ledger_key = f"lifted {self._key} {level} {run.seed}"
        record = self._cache.get(cache_key)
        if record is None and ledger is not None:
            record = ledger.find(run, ledger_key)
        if record is None:
            start = time.perf_counter()
            outcome = self._call(level, run)
            seconds = time.perf_counter() - start
            record = replace(_make_record(run, outcome), metadata={"seconds": seconds})
            if ledger is not None:
                ledger.add(ledger_key, record)
        self._cache[cache_key] = record
        return replace(record, run=run)

    def _call(self, level: float | None, run: Run) -> object:
        try:
            return self._train(level=level, seed=run.seed, epochs=run.epochs)
        except TypeError as error:
            if level is None:
                error.add_note(
                    "level=None asks for plain training: a training function must take it, or give "
                    "levels."
                )
            raise


def as_run_all(function: RunAll | TrainFunction) -> RunAll:
    """Adapt a training function, and leave a function of Runs as it is.

    Args:
        function: ``train(level, seed, epochs)`` or ``run_all(runs)``; its arguments tell which.

    Returns:
        A function of Runs.

    Raises:
        ValueError: If the arguments are of neither.
    """
    if isinstance(function, ObjectiveAdapter):
        return function
    # The names of the arguments tell the two forms apart, the number of them what is wrong.
    parameters = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in parameters}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if "level" in names or (takes_any and "runs" not in names):
        return ObjectiveAdapter(function)
    required = []
    for parameter in parameters:
        is_variadic = parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        if parameter.default is parameter.empty and not is_variadic:
            required.append(parameter.name)
    if len(required) > 1:
        raise ValueError(
            "a search calls train(level, seed, epochs) or run_all(runs), "
            f"got ({', '.join(required)}). Name the arguments so."
        )
    return function


def _make_record(run: Run, outcome: object) -> Record:
    """Make a Record of what a training function returned."""
    if isinstance(outcome, Mapping):
        values = dict(outcome)
    elif np.ndim(_to_numbers(outcome)) > 0:
        raise ValueError(
            f"a training function must return one score, or a mapping, got {outcome!r}."
        )
    else:
        values = {"score": outcome}
    if "score" not in values:
        raise ValueError(
            f"a training function must return a score, or a mapping with one, got {sorted(values)}."
        )
    if values["score"] is None:
        raise ValueError(
            "a training function must return a score, got None. Return the validation score."
        )
    curves: dict[str, np.ndarray] = {}
    metrics: dict[str, float] = {}
    for key, value in values.items():
        name = "val_score" if key == "score" else key
        numbers = _to_numbers(value)
        # A curve is kept whole; its last value is the metric, as is a single number.
        if np.ndim(numbers):
            _check_length(name, numbers, run.epochs)
            curves[name] = np.asarray(numbers, np.float32)
        metrics[f"last.{name}"] = float(np.asarray(numbers).reshape(-1)[-1])
    # Without a loss the score stands for it: the smaller the better.
    score = run.problem.score
    sign = 1 if score is None or score.greater_is_better else -1
    metrics.setdefault("last.val_loss", -sign * metrics["last.val_score"])
    metrics["epochs"] = float(run.epochs)
    return Record(run, curves, {}, metrics, "", "")


def _check_length(name: str, curve: Sized, epochs: int) -> None:
    if len(curve) != epochs + 1:
        raise ValueError(
            f"a curve must have a value before training and one after each of {epochs} epochs, "
            f"got {len(curve)} of {name}."
        )


def _to_numbers(value: object) -> Any:
    """Take a tensor out of its graph, and refuse what is neither numbers nor curves of them."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    # None is let through: a score of None has an error of its own.
    if value is not None and not np.issubdtype(np.asarray(value).dtype, np.number):
        raise ValueError(f"a training function must return numbers, got {value!r}.")
    return value
