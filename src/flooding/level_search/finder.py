"""The finder: plain training bounds the level, and a short race of levels decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flooding.level_search.auto import auto
from flooding.level_search.decision import Candidate, Decision
from flooding.level_search.level_stats import lowest_after_start, reached_level, tail_means
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run, make_runs
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.training.record import Record, monitor_prefix, validation_key

__all__ = ["finder"]

_MIN_LEVELS = 5  # levels to race, if the budget allows
_TAIL = 0.125  # share of the raced epochs, the last, to average


@dataclass(frozen=True)
class _Selection:
    """What the race decides: index 0 is plain training, the others are the levels reached."""

    best: int
    own_scores: np.ndarray  # [candidates, 2]: score, minus loss
    scores: np.ndarray  # the same, averaged with the neighbours
    equals: list[int]  # candidates that the data cannot tell from the best one
    standard_error: float  # of the best validation accuracy; 0 where it is unknown


def finder(
    problem: SearchableProblem,
    *,
    budget: float = 3.0,
    seeds: Sequence[int] = (0,),
    shared: bool = True,
) -> Strategy:
    """Find a level for the price of two or three trainings.

    1. Train plainly, in full. The lowest validation loss is the cap of the level: it estimates the
       irreducible loss from above. Where the training loss never falls below the cap, nothing
       overfits, and the result is None.
    2. Race five levels, at a tenth, three tenths ... nine tenths of the way from the lowest
       training loss to the cap, for as many epochs as the budget allows. A level is judged by the
       validation score, averaged over the last epochs, over seeds, and with its neighbours: a good
       level has good neighbours, a lucky one has not. Plain training competes as the lowest level.

    The losses may be negative, and so may the levels.

    Args:
        problem: The Problem.
        budget: About how many trainings to spend for each seed: 1, or above 1. More of it first
            makes the race longer, then adds levels. 1 is one training that chooses its own level,
            see :mod:`flooding.level_search.auto`.
        seeds: Seeds to average.
        shared: Whether the steps before a level is reached are taken once for all levels, as
            :func:`flooding.run_all` does. The race is then longer for the same price.

    Yields:
        The plain Runs, then the race.

    Returns:
        The best level, or None where plain training is as good.

    Raises:
        ValueError: If the budget is neither 1 nor above 1, or a Record lacks the curves of training
            and validation loss.
    """
    if budget == 1:
        return (yield from auto(problem, seeds=seeds))
    if not 1 < budget < math.inf:
        raise ValueError(
            f"budget must be 1 or above 1 training, got {budget}. Try budget=1 or budget=3."
        )

    # 1. Plain training bounds the level: from its lowest training loss to its lowest validation
    # loss.
    plain_records = yield make_runs(problem, [None], seeds)
    cap = _mean_lowest(plain_records, "val_loss")
    floor = _mean_lowest(plain_records, "train_loss")
    plain_run = make_run(problem, None, seed=seeds[0])
    if not (math.isfinite(cap) and math.isfinite(floor)):
        warning = (
            "the training or validation loss is not finite: mend the training before flooding it"
        )
        return SearchResult("finder", plain_run, (), (warning,))
    note = "lowest validation loss of plain training"
    # Without overfitting there is nothing between the two to search.
    cap_estimate = LevelEstimate("cap", cap, min(floor, cap), cap, note)
    if cap - floor < 1e-3 * max(abs(cap), 1e-3):
        warning = (
            "the training loss never falls below the lowest validation loss: "
            "there is nothing to flood"
        )
        return SearchResult("finder", plain_run, (cap_estimate,), (warning,))

    # 2. How many levels can be raced, and for how many epochs?
    race_budget = (budget - 1) * len(seeds) * problem.max_epochs
    levels, stop_epoch = _plan_race(
        plain_records, floor, cap, race_budget, problem.max_epochs, shared
    )
    if not levels:
        warning = (
            f"a budget of {budget:g} leaves no epoch for a race: "
            "spend more, or give the training more epochs"
        )
        return SearchResult("finder", plain_run, (cap_estimate,), (warning,))

    # 3. The race. Without a stop, a Run is a full training that other searches can look up.
    race_stop = None if stop_epoch == problem.max_epochs else stop_epoch
    records = yield make_runs(problem, levels, seeds, stop_epoch=race_stop)
    groups = [records[i : i + len(seeds)] for i in range(0, len(records), len(seeds))]

    # 4. Select a level, and say how sure the selection is.
    race_estimate, warnings, decision = _judge_race(
        levels, groups, plain_records, floor, stop_epoch, problem.max_epochs
    )
    estimates = (race_estimate, _irreducible_loss(floor, cap), cap_estimate)
    run = make_run(problem, race_estimate.level, seed=seeds[0])
    return SearchResult("finder", run, estimates, warnings, decision=decision)


def _judge_race(
    levels: Sequence[float],
    groups: Sequence[Sequence[Record]],
    plain_records: Sequence[Record],
    floor: float,
    stop_epoch: int,
    max_epochs: int,
) -> tuple[LevelEstimate, tuple[str, ...], Decision]:
    """Select the best level of the race; ``groups`` has the Records of each level."""
    # A level that no seed came down to was not tried.
    reached_levels: list[float] = []
    candidates = [plain_records]
    for level, group in zip(levels, groups, strict=True):
        if any(reached_level(record) for record in group):
            reached_levels.append(level)
            candidates.append(group)
    warnings: tuple[str, ...] = ()
    if not reached_levels:
        warnings += (
            f"no level was reached within the {stop_epoch} epochs of the race: "
            "give it more epochs or budget",
        )

    # Is the best one better than plain training by more than chance?
    tail_epochs = max(1, round(_TAIL * stop_epoch))
    selection = _select(candidates, tail_epochs)
    decision = _describe_selection(selection, [None, *reached_levels], tail_epochs)
    level = decision.selected.level
    if level is not None and selection.standard_error and 0 in selection.equals:
        warnings += (
            "plain training may be as good, by its validation score: more seeds, or more "
            "validation data, would show which is better",
        )

    # The interval reaches over all levels that are as good. As a number, plain training is a level
    # that floods nothing: 0, or the lowest loss where that is negative.
    numbers = [min(0.0, floor), *reached_levels]
    equal_levels = [numbers[index] for index in selection.equals]
    note = _race_note(selection, tail_epochs, stop_epoch, max_epochs)
    estimate = LevelEstimate("race", level, min(equal_levels), max(equal_levels), note)
    return estimate, warnings, decision


def _describe_selection(
    selection: _Selection, levels: Sequence[float | None], tail_epochs: int
) -> Decision:
    """Say what was compared, level by level."""
    candidates = []
    for index, level in enumerate(levels):
        score, minus_loss = selection.own_scores[index].tolist()
        compared_score, minus_compared_loss = selection.scores[index].tolist()
        is_equal = index in selection.equals
        candidates.append(
            Candidate(level, score, -minus_loss, compared_score, -minus_compared_loss, is_equal)
        )
    return Decision(tuple(candidates), selection.best, tail_epochs, True, selection.standard_error)


def _irreducible_loss(floor: float, cap: float) -> LevelEstimate:
    """Guess the irreducible loss from plain training alone."""
    guess = _round_level(floor + 0.7 * (cap - floor), cap)
    low, high = min(floor, guess), max(cap, guess)
    return LevelEstimate("irreducible loss", guess, low, high, "0.7 of the way to the cap")


def _race_note(selection: _Selection, tail_epochs: int, stop_epoch: int, max_epochs: int) -> str:
    note = (
        f"judged by the last {tail_epochs} of {stop_epoch} epochs, out of {max_epochs}, "
        "with its neighbours"
    )
    if selection.standard_error:
        best, plain = selection.scores[selection.best][0], selection.scores[0][0]
        note += f": validation accuracy {best:.3f}, {plain:.3f} without flooding"
    return note


def _plan_race(
    plain_records: Sequence[Record],
    floor: float,
    cap: float,
    budget: float,
    max_epochs: int,
    shared: bool,
) -> tuple[list[float], int]:
    """Choose the levels of the race and the epoch at which it stops; ``budget`` is in epochs."""
    # Five levels if the budget allows one epoch of them, else fewer; more than five only if all of
    # them can be trained in full.
    levels: list[float] = []
    stop_epoch = 0
    for count in (1, 2, 3, *range(_MIN_LEVELS, 10 * _MIN_LEVELS)):
        next_levels = _spread_levels(count, floor, cap)
        # All levels of a seed share its plain prefix, each until it is near.
        starts_by_seed = []
        for record in plain_records:
            starts = [0] * len(next_levels)
            if shared:
                starts = [_first_epoch_near(record, level) for level in next_levels]
            starts_by_seed.append(starts)
        # So long may all Runs train together within the budget.
        affordable = _affordable_epochs(starts_by_seed, budget, max_epochs)
        # More levels only make the race shorter: what was affordable so far stays.
        if affordable == 0 or (count > _MIN_LEVELS and affordable < max_epochs):
            break
        levels, stop_epoch = next_levels, affordable
    return levels, stop_epoch


def _spread_levels(count: int, floor: float, cap: float) -> list[float]:
    """Place levels in the middle of equal parts of the range from floor to cap."""
    levels = set()
    for part in range(count):
        levels.add(_round_level(floor + (part + 0.5) / count * (cap - floor), cap))
    return sorted(levels)


def _round_level(level: float, cap: float) -> float:
    """Round a level to about a tenth of a part, so that searches in one ledger share Runs."""
    # Two decimals at least; more where the whole range is small.
    part = max(abs(cap), 1e-12) / _MIN_LEVELS
    return round(level, max(2, math.ceil(-math.log10(part))))


def _first_epoch_near(record: Record, level: float) -> int:
    """Count the epochs before a level is near."""
    # Batches fall below a level a little before the mean of an epoch does.
    near = np.asarray(record.curves["train_loss"])[1:] <= max(2 * level, level)
    return int(near.argmax()) if near.any() else len(near)


def _affordable_epochs(
    starts_by_seed: Sequence[Sequence[int]], budget: float, max_epochs: int
) -> int:
    """Find the last epoch to which Runs can be trained for ``budget`` epochs in all."""
    # The Runs of a seed share a plain prefix; each continues alone from its start on.
    for stop_epoch in range(max_epochs, 0, -1):
        epochs = 0
        for starts in starts_by_seed:
            # The prefix once, as far as the last Run needs it; then each Run from its start on.
            epochs += min(stop_epoch, max(starts))
            epochs += sum(max(0, stop_epoch - start) for start in starts)
        if epochs <= budget:
            return stop_epoch
    return 0


def _mean_lowest(records: Sequence[Record], name: str) -> float:
    """Average the lowest value of a curve over seeds; NaN if a last value is not finite."""
    if any(name not in record.curves for record in records):
        raise ValueError(
            f"the finder needs the curve {name}, got {sorted(records[0].curves)}. "
            "Return it, or use grid."
        )
    return float(np.mean([lowest_after_start(record.curves[name]) for record in records]))


def _select(candidates: Sequence[Sequence[Record]], tail_epochs: int) -> _Selection:
    """Select the best candidate; of equal ones the first."""
    own_scores = np.array([_mean_key(group, tail_epochs) for group in candidates])
    scores = _smooth(own_scores)
    # Score first, then loss, then the smaller level.
    best = max(range(len(scores)), key=lambda i: (*scores[i], -i))
    # Candidates within one standard error of the best are equal to it.
    error = _standard_error(candidates[0], scores[best][0])
    if error:
        equals = [i for i in range(len(scores)) if scores[i][0] >= scores[best][0] - error]
    else:
        # Nothing is known of the noise: as far as the neighbours.
        equals = list(range(max(0, best - 1), min(len(scores), best + 2)))
    return _Selection(best, own_scores, scores, equals, error)


def _mean_key(records: Sequence[Record], tail_epochs: int) -> tuple[float, float]:
    """Average the validation results of one level over seeds: the larger, the better."""
    keys = []
    for record in records:
        problem = record.run and record.run.problem
        means = tail_means(record, tail_epochs)
        keys.append(validation_key(means, problem, monitor_prefix(problem)))
    score, minus_loss = np.mean(keys, axis=0)
    return float(score), float(minus_loss)


def _smooth(scores: np.ndarray) -> np.ndarray:
    """Average each row of ``[levels, 2]`` with its neighbours, with weights 1/4, 1/2, 1/4."""
    # The ends take their own values for a missing neighbour.
    padded = np.pad(scores, ((1, 1), (0, 0)), mode="edge")
    padded = np.where(np.isfinite(padded), padded, np.nan)
    with np.errstate(invalid="ignore"):
        smoothed = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    # A neighbour that diverged says nothing: then a level keeps its own score.
    return np.where(np.isfinite(smoothed), smoothed, scores)


def _standard_error(records: Sequence[Record], score: float) -> float:
    """Give the standard error of a validation accuracy; 0 where it is unknown."""
    examples = sum(record.metadata.get("val_examples", 0) for record in records)
    # A score of the user's is no share of examples.
    for record in records:
        if record.run is not None and record.run.problem.score is not None:
            return 0.0
    if not examples or not 0 < score < 1:
        return 0.0
    # That of a share of independent examples.
    return math.sqrt(score * (1 - score) / examples)
