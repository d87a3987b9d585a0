"""The claims of the published reproduction, each as a difference over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flooding.experiments import kim2022_results
from flooding.experiments.kim2022_policy import WIDE, learning_claim
from flooding.experiments.kim2022_results import LONGER, Results, Segment, WayRow
from flooding.level_search.backward import has_started
from flooding.report.claims import Claim
from flooding.report.record_metrics import metric_values, run_of
from flooding.report.stats import Difference, format_count, format_mean_sd, paired, paired_or_none
from flooding.training.record import Record

__all__ = ["source_claims"]


def source_claims(results: Results) -> list[Claim]:
    """List the source's claims, in its order, each with the difference that decides it.

    Args:
        results: All Records of the study.

    Returns:
        The claims; one without a difference where there is nothing to compare.
    """
    begun = format_count(kim2022_results.starts(results.all_backward))
    late = f" ({begun} backward runs began to flood)"
    metrics = {
        "training accuracy": "train_accuracy",
        "test accuracy on noisy labels": "test_accuracy",
        "test accuracy on clean labels": "test_accuracy_clean",
    }
    claims = []
    for title, name in metrics.items():
        text = f"Backward flooding lowers {title} against forward at the same level"
        gain = _backward_minus_forward(results, name)
        claims.append(Claim(text, gain, "points, backward minus forward", -1, detail=late))
    claims += _on_backward(results)
    claims += [_enters_below(results), *_on_the_heuristic(results), _on_stopping(results)]
    if results.policies:
        claims.append(learning_claim(results.policies, results.control))
    if results.wide_policies:
        name = f" with levels up to {max(WIDE):g}"
        claims.append(learning_claim(results.wide_policies, results.wide_control, name))
    return claims


def _on_backward(results: Results) -> list[Claim]:
    """Claim that backward flooding is better than none, and worse than forward flooding."""
    backward, forward = results.rows["backward"], results.rows["forward"]
    levels = [level for level in results.backward if level in results.forward]
    same = WayRow.of_search({level: results.forward[level] for level in levels}, "last")
    begun = format_count(kim2022_results.starts(results.all_backward))
    against_plain = against_forward = against_same = None
    # Where no run began to flood there is no backward flooding to judge.
    if any(kim2022_results.starts(results.all_backward)):
        against_plain = paired(backward.accuracy, results.rows["no flooding"].accuracy)
        against_forward = paired(backward.accuracy, forward.accuracy)
        against_same = paired(backward.accuracy, same.accuracy)
    points, detail = "points of noisy test accuracy", f" ({begun} backward runs began to flood)"
    claim = "Backward flooding is worse than forward flooding, each at its chosen level"
    own = (
        f"{len(results.backward)} levels up to {max(results.backward):g} against "
        f"{len(results.forward) - 1} up to {max(results.forward):g}"
    )
    text = "Backward flooding at its chosen level is better than no flooding"
    how = {"digits": 2, "detail": detail}
    return [
        Claim(text, against_plain, points, 1, **how),
        Claim(f"{claim} ({own})", against_forward, points, -1, **how),
        Claim(f"{claim} (the same {len(levels)} levels)", against_same, points, -1, **how),
    ]


def _backward_minus_forward(results: Results, name: str) -> Difference | None:
    """Compare a metric in percent by seed, averaged over the levels at which backward flooded."""
    pairs = []
    for index in range(len(results.plain)):
        values = []
        for level, records in results.backward.items():
            # A run that never began to flood is plain training.
            if level in results.forward and has_started(records[index]):
                pair = (records[index], results.forward[level][index])
                values.append(metric_values(pair, name, 100.0))
        if values:
            pairs.append(np.mean(values, axis=0).tolist())
    return paired_or_none(pairs)


def _enters_below(results: Results) -> Claim:
    """Claim that forward flooding stays above its level."""
    forward = kim2022_results.forward_segments(results.forward)
    before, after = kim2022_results.backward_segments(results.backward)
    reached = sum(len(segments) for segments in forward)
    total = (len(results.forward) - 1) * len(results.plain)
    text = "The forward search never enters below its level"
    unit = "% of steps below the level from the epoch on that reaches it"
    detail = f" ({reached} of {total} runs reached their level)"
    if not reached:
        return Claim(text, None, unit, 0, detail=detail)
    # What forward flooding does, then, for comparison, what backward flooding does.
    shares, lowest = _seed_means(forward)
    over = "lowest epoch mean of the training loss over the level"
    detail += f"; {over}: {format_mean_sd(lowest, 2)}"
    if any(after):
        shares_after, lowest_after = _seed_means(after)
        _, before_means = _seed_means(before)
        lowest_before = format_mean_sd(before_means, 2)
        detail += (
            f"; backward: {lowest_before} before flooding begins and "
            f"{format_mean_sd(lowest_after, 2)} from there on, with "
            f"{format_mean_sd(shares_after)} % of steps below"
        )
    return Claim(text, paired(shares, [0.0] * len(shares)), unit, 0, detail=detail)


def _seed_means(by_seed: Sequence[Sequence[Segment]]) -> tuple[list[float], list[float]]:
    """Average percentage below and lowest loss over levels, in each seed that has any."""
    shares, lowest = [], []
    for segments in by_seed:
        if segments:
            means = np.mean(segments, axis=0)
            shares.append(100 * float(means[0]))
            lowest.append(float(means[1]))
    return shares, lowest


def _on_the_heuristic(results: Results) -> list[Claim]:
    """Claim that the heuristic is better than nothing, worse than forward, and cheaper."""
    rows, begun = results.rows, kim2022_results.starts(results.heuristic)
    heuristic, longer, forward = rows["heuristic"], rows[LONGER], rows["forward"]
    # Where it never began to flood there is no heuristic to judge.
    against_plain = against_forward = cheaper = None
    if any(begun):
        against_plain = paired(heuristic.accuracy, longer.accuracy)
        against_forward = paired(heuristic.accuracy, forward.accuracy)
        cheaper = paired(heuristic.seconds, forward.seconds)
    detail = f" ({format_count(begun)} heuristic runs began to flood)"
    points, seconds = "points of noisy test accuracy", "CPU seconds a seed"
    cost = heuristic.epochs[0] / results.max_epochs
    forward_cost = forward.epochs[0] / results.max_epochs
    costs = f"({cost:g} trainings a seed against {forward_cost:g})"
    texts = (
        "The heuristic is better than no flooding for as long",
        "The heuristic is worse than the exhaustive forward search",
        f"The heuristic is cheaper than the forward search {costs}",
    )
    return [
        Claim(texts[0], against_plain, points, 1, detail=detail),
        Claim(texts[1], against_forward, points, -1, detail=detail),
        Claim(texts[2], cheaper, seconds, -1, detail=detail),
    ]


def _on_stopping(results: Results) -> Claim:
    """Claim that early stopping beats every flooded final model."""
    # It is compared with the one that leaves most doubt: if that one is beaten, all are.
    rows = results.rows
    rivals: dict[str, Sequence[Record]] = {}
    for level, records in results.forward.items():
        if level > 0:
            rivals[f"forward at {level:g}"] = records
    for level, records in results.backward.items():
        rivals[f"backward at {level:g}"] = records
    for name in ("forward", "backward"):
        rivals[f"{name}, level chosen"] = rows[name].records
    rivals["heuristic"] = results.heuristic
    # Only rivals that were flooded in some seed count.
    stopped, gains = rows["no flooding, stopped"].accuracy, {}
    for name, records in rivals.items():
        gain = _stopped_minus_flooded(stopped, results.plain, records)
        if gain is not None:
            gains[name] = gain
    hardest = max(gains, key=lambda name: _doubt(gains[name]))
    text = "Plain early stopping beats every flooded final model, here the hardest of"
    text = f"{text} {len(gains)} ({hardest})"
    return Claim(text, gains[hardest], "points of noisy test accuracy", 1, rivals=len(gains))


def _stopped_minus_flooded(
    stopped: Sequence[float], plain: Sequence[Record], records: Sequence[Record]
) -> Difference | None:
    """Compare accuracies in percent by seed, in the seeds that were flooded."""
    seeds = [run_of(record).seed for record in plain]
    by_seed = dict(zip(seeds, stopped, strict=True))
    pairs = []
    for record in kim2022_results.started_records(records):
        accuracy = 100.0 * record.metrics["last.test_accuracy"]
        pairs.append((by_seed[run_of(record).seed], accuracy))
    return paired_or_none(pairs)


def _doubt(gain: Difference) -> tuple[float, float]:
    """Give the one-sided p that a gain is not above 0, then the size of the loss."""
    p = gain.p / 2
    if math.isnan(gain.p):
        # A single pair has no p: its sign decides.
        p = float(gain.mean <= 0)
    elif gain.mean <= 0:
        p = 1 - gain.p / 2
    return p, -gain.mean
