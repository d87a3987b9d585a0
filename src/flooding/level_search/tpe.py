"""TPE through Optuna: levels from a range, drawn where earlier ones did well."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flooding.extras import install_command
from flooding.level_search.level_stats import (
    adjacent_levels,
    compare_levels,
    effective_level,
    end_of_range_warning,
    tail_key,
)
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run, make_runs
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.training.record import Record
from flooding.training.rng import derive_seed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

__all__ = ["tpe"]


def tpe(
    problem: SearchableProblem,
    *,
    trainings: int = 20,
    low: float = 0.0,
    high: float = 0.5,
    batch: int = 2,
    share: float = 0.1,
    seed: int = 0,
    storage: str | Path | None = None,
) -> Strategy:
    """Draw levels with Optuna's tree-structured Parzen estimator, train each, select the best.

    Levels are drawn in batches of a fixed size, and Optuna gets the results in the same order.
    Within a batch each level avoids those before it ("constant liar"). The first ten levels are
    random, which is Optuna's default.

    The study lives in memory and begins anew each time, since no storage keeps the state of a
    sampler. With the same seed and the Records of a ledger, a search that was killed draws the same
    levels again. ``storage`` is a copy for Optuna's dashboard. It holds finished trials alone. On
    restart, existing trials are reused and new ones appended.

    Args:
        problem: The Problem.
        trainings: Trainings in all, at least 1.
        low: Smallest level, in the unit of the loss. The defaults are for cross-entropy; a loss
            that may be negative needs a range of its own.
        high: Largest level.
        batch: Levels drawn at a time, at least 1; as many can train at once.
        share: Share of the last epochs to average, see
            :func:`flooding.level_search.level_stats.tail_key`.
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
        raise ValueError(
            "trainings and batch must be at least 1 and low below high, "
            f"got {trainings}, {batch} and [{low}, {high}]."
        )
    try:
        import optuna
    except ImportError as error:
        raise ImportError(f"tpe needs Optuna. Install it: {install_command('optuna')}") from error
    # The copy first: a path that cannot be written is reported before anything is trained.
    with _open_copy(storage) as copy:
        sampler_seed = derive_seed(seed, "tpe") % 2**32
        sampler = optuna.samplers.TPESampler(seed=sampler_seed, constant_liar=True)
        study = _create_study(sampler=sampler)
        distribution = optuna.distributions.FloatDistribution(low, high)
        records: list[Record] = []
        while len(records) < trainings:
            size = min(batch, trainings - len(records))
            trials = [study.ask({"level": distribution}) for _ in range(size)]
            levels = [trial.params["level"] for trial in trials]
            batch_records = yield make_runs(problem, levels, [seed])
            for trial, record in zip(trials, batch_records, strict=True):
                finished = study.tell(trial, _objective(record, share))
                if copy is not None:
                    _add_trial(copy, finished)
            records += batch_records
    decision = compare_levels(records, share)
    best = decision.selected.level
    assert best is not None  # every Run has a level
    levels = sorted(record.level for record in records if record.level is not None)
    selected = effective_level(best, records)
    nearest = adjacent_levels(sorted({low, high, *levels}), best)
    estimate = LevelEstimate("TPE", selected, *nearest)
    warnings = end_of_range_warning(selected, levels, "tried")
    run = make_run(problem, selected, seed=seed)
    return SearchResult("TPE", run, (estimate,), warnings, decision=decision)


def _objective(record: Record, share: float) -> float:
    """Combine score and loss in one number."""
    # The loss decides between equal scores alone, or where there is no score.
    score, minus_loss = tail_key(record, share)
    has_own_score = record.run is not None and record.run.problem.score is not None
    if has_own_score or "last.val_accuracy" in record.metrics:
        return score + 1e-6 * minus_loss
    return minus_loss


def _create_study(**options: Any) -> Study:
    """Create a study without the line that Optuna logs for it."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize", **options)
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def _open_copy(storage: str | Path | None) -> Generator[Study | None, None, None]:
    """Open the study to which a search is copied, if there is one."""
    if storage is None:
        yield None
        return
    import optuna

    file = optuna.storages.RDBStorage(f"sqlite:///{Path(storage).expanduser().absolute()}")
    try:
        yield _create_study(storage=file, study_name="flooding", load_if_exists=True)
    finally:
        file.remove_session()
        file.engine.dispose()


def _add_trial(copy: Study, trial: FrozenTrial) -> None:
    """Add a finished trial, unless it is there from before the search was killed."""
    trials = copy.get_trials(deepcopy=False)
    if trial.number >= len(trials):
        copy.add_trial(trial)
        return
    existing = trials[trial.number]
    if (existing.params, existing.value) != (trial.params, trial.value):
        raise ValueError(
            "the storage must hold this search or nothing, "
            f"got trial {trial.number} with {existing.params} and value {existing.value}. "
            "Give another path."
        )
