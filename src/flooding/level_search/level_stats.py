"""What strategies compute from levels and Records: which level was reached, and which is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from flooding.level_search.decision import Candidate, Decision
from flooding.training.record import AVERAGE, Record, level_order, monitor_prefix, validation_key

__all__ = [
    "adjacent_levels",
    "best_level",
    "check_levels",
    "compare_levels",
    "effective_level",
    "end_of_range_warning",
    "flooded_records",
    "interval_ends",
    "loss_is_negative",
    "lowest_after_start",
    "lowest_finite",
    "reached_level",
    "tail_key",
    "tail_means",
]

# In float32 a loss that cannot be negative may be rounded to this far below 0.
_ROUNDING = 1e-6


def check_levels(levels: Sequence[float | None]) -> tuple[float | None, ...]:
    """Check the levels of a search.

    Args:
        levels: Levels, at least one, none twice; None is no flooding.

    Returns:
        The levels as floats, smallest first, None before them.

    Raises:
        ValueError: If there are none, or one is not finite or there twice.
    """
    floats: list[float | None] = []
    all_finite = True
    for level in levels:
        if level is None:
            floats.append(None)
            continue
        floats.append(float(level))
        all_finite = all_finite and math.isfinite(float(level))
    if not floats or len(set(floats)) < len(floats) or not all_finite:
        raise ValueError(f"levels must be finite, different and at least one, got {list(levels)}.")
    return tuple(sorted(floats, key=level_order))


def interval_ends(levels: Sequence[float | None]) -> dict[float | None, float]:
    """Give each level the number by which it can be the end of an interval.

    Args:
        levels: Levels; None is no flooding.

    Returns:
        Numbers by level. That of None is 0 where all levels are positive, else ``-inf``.
    """
    no_flooding = 0.0
    for level in levels:
        if level is not None and level <= 0:
            no_flooding = -math.inf
    ends: dict[float | None, float] = {}
    for level in levels:
        ends[level] = no_flooding if level is None else level
    return ends


def adjacent_levels(levels: Sequence[float], level: float) -> tuple[float, float]:
    """Give the levels on either side of a level; at an end, the level itself.

    Args:
        levels: Levels, smallest first.
        level: One of them.

    Returns:
        The next lower and the next higher level.
    """
    # At an end the level is its own neighbour.
    index = levels.index(level)
    return levels[max(index - 1, 0)], levels[min(index + 1, len(levels) - 1)]


def end_of_range_warning(
    level: float | None, levels: Sequence[float | None], range_name: str = "of the grid"
) -> tuple[str, ...]:
    """Warn if the best level lies at an end of the levels that were tried.

    Args:
        level: The best level; None is plain training, below which there is nothing.
        levels: All levels tried, smallest first.
        range_name: Of what it is the largest or smallest.

    Returns:
        A warning, or none.
    """
    if level is None or len(levels) < 2:
        return ()
    if level == levels[-1]:
        end, other = "largest", "a larger one"
    elif level == levels[0]:
        end, other = "smallest", "a smaller one, or no flooding,"
    else:
        return ()
    return (f"the best level {level:g} is the {end} {range_name}: {other} may be better",)


def flooded_records(records: Sequence[Record]) -> list[Record]:
    """Select the Records of Runs with a level.

    Args:
        records: Records; one without a Run counts as flooded.

    Returns:
        The Records, in order.
    """
    return [record for record in records if record.run is None or record.run.level is not None]


def reached_level(record: Record) -> bool:
    """Tell whether a Run came down to its level; until then it is plain training.

    Args:
        record: A Record.

    Returns:
        Whether a step was flooded; where that was not measured, whether the training loss reached
        the level. True where neither is known, False without a level.
    """
    curves, level = record.curves, record.level
    # The share of flooded steps is the best evidence; the loss of whole epochs comes next.
    if "flooded" in curves:
        return bool(np.nansum(curves["flooded"]) > 0)
    if level is None:
        return False
    return "train_loss" not in curves or bool((curves["train_loss"][1:] <= level).any())


def effective_level(level: float | None, records: Iterable[Record]) -> float | None:
    """Replace a level 0 that flooded no step by None: it is plain training.

    A loss that cannot be negative is never flooded at 0.

    Args:
        level: The level that was selected, or None.
        records: Records of constant levels, those of this level among them.

    Returns:
        The level, or None.
    """
    if level != 0:
        return level
    for record in records:
        if record.level == 0 and reached_level(record):
            return level
    return None


def lowest_after_start(curve: np.ndarray) -> float:
    """Find the lowest value of a curve since training began.

    Args:
        curve: A value before training, then one after each epoch.

    Returns:
        The lowest value after the first epoch; NaN if the last value is not finite.
    """
    # A training that ends in NaN has diverged, however low its loss once was.
    values = np.asarray(curve, np.float64)[1:]
    return float(np.nanmin(values)) if math.isfinite(values[-1]) else math.nan


def lowest_finite(records: Sequence[Record], name: str) -> float:
    """Find the lowest finite value of a curve of any Record since training began.

    Args:
        records: Records, also without this curve.
        name: Name of the curve.

    Returns:
        The lowest value, NaN if there is none.
    """
    curves = [record.curves.get(name, ())[1:] for record in records]
    # The NaN keeps the concatenation from being empty.
    values = np.concatenate([[math.nan], *curves])
    finite = values[np.isfinite(values)]
    return float(finite.min()) if len(finite) else math.nan


def loss_is_negative(records: Sequence[Record]) -> bool:
    """Tell whether a training loss was below 0: then level 0 is not plain training.

    Args:
        records: Records, also without the curve of the training loss.

    Returns:
        Whether one was, by more than a rounding error.
    """
    return lowest_finite(records, "train_loss") < -_ROUNDING


def tail_means(record: Record, epochs: int) -> dict[str, float]:
    """Average every curve of a Record over its last epochs.

    Args:
        record: A Record.
        epochs: How many epochs, at least 1.

    Returns:
        Means by name; the last value of what has no curve.
    """
    means = {}
    for name, value in record.metrics.items():
        if name.startswith("last."):
            means[name.removeprefix("last.")] = value
        if name.startswith(f"{AVERAGE}last."):
            means[AVERAGE + name.removeprefix(f"{AVERAGE}last.")] = value
    for name, curve in record.curves.items():
        means[name] = float(np.mean(curve[-epochs:], dtype=np.float64))
    return means


def tail_key(record: Record, share: float = 0.0) -> tuple[float, float]:
    """Order Records by their validation results, averaged over the last epochs.

    The average reduces the noise of a small validation split. The results are those of the averaged
    weights, where the problem's averaging says so.

    Args:
        record: A Record.
        share: Share of its epochs to average, in [0, 1]; 0 is the last epoch alone.

    Returns:
        A tuple to compare, the larger the better: the mean score (accuracy, where the problem has
        no score), then minus the mean loss.
    """
    # A curve begins with the value before training, which is no epoch.
    epochs = max((len(curve) - 1 for curve in record.curves.values()), default=0)
    means = tail_means(record, max(1, round(share * epochs)))
    problem = record.run and record.run.problem
    return validation_key(means, problem, monitor_prefix(problem))


def best_level(records: Iterable[Record], share: float = 0.0) -> float | None:
    """Select the level with the best validation result, averaged over seeds.

    Of equal levels the smaller one is selected; no flooding comes first.

    Args:
        records: Records of constant levels.
        share: Share of the last epochs to average, see :func:`tail_key`.

    Returns:
        A level; None is plain training.
    """
    return compare_levels(records, share).selected.level


def compare_levels(records: Iterable[Record], share: float = 0.0) -> Decision:
    """Compare levels by their validation results, averaged over seeds; see :func:`best_level`.

    Args:
        records: Records of constant levels.
        share: Share of the last epochs to average, see :func:`tail_key`.

    Returns:
        The levels and their results, with the best of them.
    """
    keys: dict[float | None, list[tuple[float, float]]] = {}
    num_epochs = 0
    for record in records:
        keys.setdefault(record.level, []).append(tail_key(record, share))
        num_epochs = max([num_epochs, *(len(curve) - 1 for curve in record.curves.values())])
    # `max` takes the first of equal levels, so the order decides.
    levels = sorted(keys, key=level_order)
    means = {level: tuple(np.mean(keys[level], axis=0).tolist()) for level in levels}
    best = max(levels, key=lambda level: means[level])
    candidates = []
    for level in levels:
        score, minus_loss = means[level]
        is_equal = means[level] == means[best]
        candidates.append(Candidate(level, score, -minus_loss, score, -minus_loss, is_equal))
    return Decision(tuple(candidates), levels.index(best), max(1, round(share * num_epochs)))
