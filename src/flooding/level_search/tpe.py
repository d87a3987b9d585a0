"""TPE through Optuna: levels from a range, drawn where earlier ones did well."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flooding.level_search.base import (
    LevelEstimate,
    SearchResult,
    Strategy,
    adjacent_levels,
    best_level,
    end_of_range,
    make_result,
    tail_mean,
)
from flooding.training.record import Record
from flooding.training.rng import derive_seed
from flooding.training.run import Run

__all__ = ["tpe"]


def tpe(
    problem: Any,
    *,
    trainings: int = 20,
    low: float = 0.0,
    high: float = 0.5,
    batch: int = 2,
    share: float = 0.1,
    seed: int = 0,
    storage: str | Path | None = None,
) -> Strategy:
    """Draw levels with Optuna's tree-structured Parzen estimator, train each in full and keep the
    best.

    Levels are asked for in batches of a fixed size, and the results told in the order asked; within
    a batch each level keeps away from those before it ("constant liar"). The first ten are random,
    as Optuna has it.

    The study itself lives in memory and begins anew each time, since no storage keeps the state of
    a sampler: with the same seed and the Records of a ledger, a search that was killed asks the
    very same levels again. ``storage`` is a copy for Optuna's dashboard. Only finished trials are
    written there, so nothing can go stale and no heartbeat is needed; a search that repeats itself
    finds its own trials and writes on behind them.

    Args:
        problem: The Problem.
        trainings: Trainings in all, at least 1.
        low: Smallest level, in the unit of the loss. The defaults are for cross-entropy; a loss
            that may be negative needs a range of its own.
        high: Largest level.
        batch: Levels asked for at a time, at least 1; as many can train at once.
        share: Share of late epochs to average, see :func:`flooding.level_search.base.tail_mean`.
        seed: Seed of the trainings and of the sampler.
        storage: SQLite file for a copy of the study, or None.

    Yields:
        Lists of ``batch`` Runs, the last one perhaps shorter.

    Returns:
        The best level tried, with the interval to the nearest levels tried on either side.

    Raises:
        ImportError: If Optuna is not installed.
        ValueError: If a number is out of range, or the storage holds another search.

    References:
        Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011.
    """
    if trainings < 1 or batch < 1 or not -math.inf < low < high < math.inf:
        got = f"{trainings}, {batch} and [{low}, {high}]"
        raise ValueError(f"trainings and batch must be at least 1 and low below high, got {got}.")
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tpe needs Optuna. Install it: pip install 'flooding[optuna]'") from error
    # The copy first: a path that cannot be written is told before anything is trained.
    with _copied(storage) as copy:
        sampler = optuna.samplers.TPESampler(
            seed=derive_seed(seed, "tpe") % 2**32, constant_liar=True
        )
        study = _study(sampler=sampler)
        records: list[Record] = []
        while len(records) < trainings:
            size = min(batch, trainings - len(records))
            asked = [
                study.ask({"level": optuna.distributions.FloatDistribution(low, high)})
                for _ in range(size)
            ]
            told = yield [Run(problem, trial.params["level"], seed=seed) for trial in asked]
            for trial, record in zip(asked, told, strict=True):
                _write(copy, study.tell(trial, _value(record, share)))
            records += told
    level = best_level(records, share)
    assert level is not None  # every Run has one
    tried = [record.level for record in records if record.level is not None]
    chosen = make_result(level, records)
    suggestion = LevelEstimate("TPE", chosen, *adjacent_levels(sorted({low, high, *tried}), level))
    warnings = end_of_range(chosen, sorted(tried), "tried")
    return SearchResult("TPE", Run(problem, chosen, seed=seed), (suggestion,), warnings)


def _value(record: Record, share: float) -> float:
    """Make one number of score and loss: the loss decides between equal scores alone, or where
    there is no score.
    """
    score, minus_loss = tail_mean(record, share)
    own = record.run is not None and record.run.problem.score is not None
    return score + 1e-6 * minus_loss if own or "last.val_accuracy" in record.metrics else minus_loss


def _study(**options: Any) -> Any:
    """Create a study without the line that Optuna logs for it."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize", **options)
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _copied(storage: str | Path | None) -> Generator[Any, None, None]:
    """Open the study that a search is copied to, if there is one."""
    if storage is None:
        yield None
        return
    import optuna

    file = optuna.storages.RDBStorage(f"sqlite:///{Path(storage).expanduser().absolute()}")
    try:
        yield _study(storage=file, study_name="flooding", load_if_exists=True)
    finally:
        file.remove_session()
        file.engine.dispose()


def _write(copy: Any, trial: Any) -> None:
    """Add a finished trial, or find that it is there from before the search was killed."""
    if copy is None:
        return
    there = copy.get_trials(deepcopy=False)[trial.number :][:1]
    if not there:
        copy.add_trial(trial)
    elif (there[0].params, there[0].value) != (trial.params, trial.value):
        got = f"trial {trial.number} with {there[0].params} and value {there[0].value}"
        raise ValueError(
            f"the storage must hold this search or nothing, got {got}. Give another path."
        )
