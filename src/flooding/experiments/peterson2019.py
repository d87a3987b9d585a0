"""Labels people disagree on: what they say about the level, and which levels work.

About 51 people labelled each test image of CIFAR-10 (CIFAR-10H). Their disagreement is label noise
that nobody made up; its entropy is the irreducible loss. Networks are trained on some of these
images with one person's label each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flooding.data import images
from flooding.experiments import Experiment, Study, study
from flooding.experiments.grids import CURVES
from flooding.level_search.advisor import advise, bayes_error
from flooding.level_search.result import LevelEstimate
from flooding.models import small_cnn
from flooding.report.claims import Claim, Judgement, Sentences, judge
from flooding.report.document import Report, Table
from flooding.report.level_figures import LevelPanel, accuracy_and_nll
from flooding.report.level_grid import Cell, LevelGrid
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import (
    Epoch,
    format_flooded,
    format_levels,
    format_metric,
    format_percent_range,
    fraction_until_below,
    is_early,
    is_reached,
    metric_values,
)
from flooding.report.stats import format_mean_sd, paired
from flooding.tasks import adam
from flooding.training.problem import Problem
from flooding.training.record import Record, select_best

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EXPERIMENT", "LEVELS", "counts", "setting", "start"]

# In nats; fixed beforehand.
LEVELS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.4, 0.8, 1.2, 1.6)
# Fewest and most labels an image has (Peterson et al., section 3).
PEOPLE = (47, 63)


def setting(max_epochs: int = 60, **sizes: int) -> Problem:
    """Give the setting: a small convolutional network, Adam at 0.001, batches of 100."""
    data = partial(images.cifar10h, **sizes)
    model = partial(small_cnn, channels=3, size=32)
    return Problem(data, model, adam, batch_size=100, max_epochs=max_epochs)


def counts(shares: np.ndarray) -> np.ndarray:
    """Recover how often each class was given, from its share: the fewest people that are possible.

    Where all agree, or halve, the number may come out too small; the entropy of such a row changes
    little or not.

    Args:
        shares: Shares ``[n, classes]`` of 47 to 63 people.

    Returns:
        Whole numbers ``[n, classes]``.

    Raises:
        ValueError: If a row cannot come from so many people.

    Example:
        >>> counts(np.array([[50 / 51, 1 / 51]]))
        array([[50.,  1.]])
    """
    result = np.full(shares.shape, np.nan)
    fewest, most = PEOPLE
    # Fewer people overwrite more.
    for people in range(most, fewest - 1, -1):
        rounded = np.round(shares * people)
        fits = np.abs(shares * people - rounded).max(1) < 1e-6
        result[fits] = rounded[fits]
    if np.isnan(result).any():
        unknown = shares[np.isnan(result).any(1)]
        raise ValueError(f"shares must be those of {fewest} to {most} people, got {unknown}.")
    return result


def start(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all levels on one person's label an image; compare with what labels say beforehand."""
    problem, levels = setting(), LEVELS
    if quick:
        problem = setting(20, n_train=400, n_val=200)
        levels = (0.0, 0.1, 0.4)
    chosen = study.choose_seeds(seeds, 2 if quick else 5)
    cell = Cell("CIFAR-10H", problem, levels, chosen)
    records = yield cell.runs
    grid = study.level_grids([cell], records)[0]
    return _report(grid, images.human_labels(), records)


class _Advice(NamedTuple):
    """What is known about the level beforehand."""

    # By name: estimates from people's labels, and from one plain training.
    estimates: dict[str, LevelEstimate]
    # The entropy of people's labels, in nats.
    irreducible_loss: float
    # Lowest validation loss of plain training, mean over seeds, in nats.
    lowest_loss: float
    # Bayes error of people's labels.
    error: float


def _advise(grid: LevelGrid, shares: np.ndarray) -> _Advice:
    """Ask the advisor, first about people's labels, then about plain training."""
    losses = [np.nanmin(plain.curves["val_loss"]) for plain in grid.at(0.0)]
    lowest, error = float(np.mean(losses)), bayes_error(shares)
    of_people = advise(soft_labels=shares, repeated_labels=counts(shares), label_noise=error)
    of_training = advise(lowest_val_loss=lowest)
    estimates = {some.name: some for some in (*of_people, *of_training)}
    return _Advice(estimates, _nats(estimates["soft labels"]), lowest, error)


def _nats(estimate: LevelEstimate) -> float:
    if estimate.level is None:
        raise TypeError(f"{estimate.name} must suggest a level.")
    return estimate.level


def _report(grid: LevelGrid, shares: np.ndarray, records: Sequence[Record]) -> Report:
    advice = _advise(grid, shares)
    sentences = _describe_labels(grid, advice)
    judgements = _judge_advice(grid, advice, sentences)
    about = (
        f"The {len(shares):,} test images of CIFAR-10, divided anew for each seed; each image has "
        "one label, drawn from those that people gave it. A convolutional network of two layers, "
        f"Adam at 0.001, batches of 100, {len(grid.at(0.0)[0].curves['val_loss']) - 1} epochs, "
        f"{len(grid.records)} seeds. Accuracy is against the official labels; NLL against one "
        "person's label; the divergence is that from people's shares, which is what the expected "
        "NLL loses against the irreducible loss. The level is chosen by the last epoch's "
        "validation accuracy on people's labels, ties to the lower validation loss, then to the "
        "smaller level. Test data choose nothing. Mean ± standard deviation over seeds; "
        "differences paired by seed, with the 95 % interval of Student's t and p after Holm's "
        "correction over all of them. All seeds divide the same images anew, so that their test "
        "images overlap: the intervals are about training and its data. Groups of levels differ "
        "in number, and validation chooses better among more. Not shown is not refuted."
    )
    caption = (
        "Test accuracy and NLL at the last epoch against the level: mean and standard deviation "
        "over seeds. Dashed: plain training with early stopping. Upright: the irreducible loss "
        "that people's labels show. Shaded: 0.25 to 1 times the lowest validation loss of plain "
        "training."
    )
    return Report(
        "Labels people disagree on",
        about,
        *sentences,
        [_estimates(advice), _levels(grid)],
        {"levels": (caption, partial(_draw, grid, advice))},
        describe_provenance(records),
        _answer(advice, judgements),
        {grid.cell.title: grid.by_level},
    )


def _answer(advice: _Advice, judgements: Sequence[Judgement]) -> str:
    """Say what labels tell of the level, and how many statements hold."""
    held = sum(judgement.holds for judgement in judgements)
    opposite = sum(judgement.verdict == "the opposite holds" for judgement in judgements)
    limit, lowest = advice.irreducible_loss, advice.lowest_loss
    return (
        f"People's labels allow a loss of {limit:.2f} nats; plain training comes down to "
        f"{lowest:.2f} on validation data. Of {len(judgements)} statements about good levels, "
        f"{held or 'none'} is shown to hold; the opposite holds for {opposite or 'none'}."
    )


def _estimates(advice: _Advice) -> Table:
    rows = []
    for estimate in advice.estimates.values():
        rows.append({
            "from": estimate.name,
            "nats": f"{_nats(estimate):.4f}",
            "low": f"{estimate.low:.4f}",
            "high": f"{estimate.high:.4f}",
            "note": estimate.note,
        })
    title = "What labels say about the level, and one plain training"
    note = (
        "Label noise: wrong classes drawn uniformly, as often as people's labels differ from the "
        "likeliest one."
    )
    return Table.from_dicts("advice", title, rows, note)


def _levels(grid: LevelGrid) -> Table:
    rows = []
    for level in grid.cell.levels:
        records = grid.at(level)
        rows.append({
            "level": f"{level:g}" if level else "plain",
            "flooded %": _flooded(records, level, "last"),
            "flooded %, stopped": _flooded(records, level, "best"),
            "accuracy %": format_mean_sd(_accuracies(records)),
            "accuracy %, stopped": format_mean_sd(_accuracies(records, "best")),
            "NLL": format_metric(records, "test_nll", digits=3),
            "NLL, stopped": format_metric(records, "test_nll", at="best", digits=3),
            "divergence": format_metric(records, "test_kl_to_posterior", digits=3),
        })
    title = f"Test results, last epoch and best validation epoch, n = {len(grid.records)}"
    note = (
        "Flooded: share of the steps up to that epoch; weights without one before it are those of "
        "plain training, though not its best ones where its best epoch comes later."
    )
    return Table.from_dicts("levels", title, rows, note)


def _flooded(records: Sequence[Record], level: float, at: Epoch) -> str:
    """Write the share of flooded steps, and how many seeds reached the level if not all did."""
    if not level:
        return "–"
    shares = format_flooded(records, at)
    count = sum(is_reached(record, at) for record in records)
    if count == len(records):
        return shares
    if not count:
        return f"{shares}: not tested"
    return f"{shares}: {count} of {len(records)} seeds"


def _describe_labels(grid: LevelGrid, advice: _Advice) -> Sentences:
    """Say what people's labels tell, and whether the levels are tested."""
    sentences = Sentences([], [])
    limit, lowest = advice.irreducible_loss, advice.lowest_loss
    soft, again = advice.estimates["soft labels"], advice.estimates["repeated labels"]
    sentences.findings.append(
        f"People's labels: Bayes error {advice.error:.4f}, irreducible loss {limit:.4f} nats "
        f"[{soft.low:.4f}, {soft.high:.4f}]; corrected for the small number of labels an image "
        f"{_nats(again):.4f} [{again.low:.4f}, {again.high:.4f}] (n = 10,000 images)."
    )
    sentences.findings.append(
        f"Lowest validation loss of plain training: {lowest:.3f} nats, {lowest / limit:.1f} times "
        f"the irreducible loss (n = {len(grid.records)} seeds)."
    )
    largest = grid.cell.levels[-1]
    fractions = fraction_until_below(grid.at(0.0), largest)
    early = is_early(fractions)
    verb, when = "is not", "before half of the epochs"
    if early:
        verb, when = "is", f"after {format_percent_range(fractions)} of the epochs"
    sentences.add(early, f"Plain training {verb} below the largest level, {largest:g}, {when}.")
    # A level that some seed did not reach is no level for the comparisons.
    tested = _tested_levels(grid)
    untested = [level for level in grid.cell.levels[1:] if level not in tested]
    if untested:
        levels = format_levels(untested)
        sentences.findings.append(f"Not reached by every seed, and so not tested: {levels}.")
    return sentences


def _tested_levels(grid: LevelGrid) -> list[float]:
    """List the levels that every seed reached: others are plain training, at least in part."""
    n = len(grid.records)
    return [level for level in grid.cell.levels[1:] if grid.count_reached(level) == n]


def _judge_advice(grid: LevelGrid, advice: _Advice, sentences: Sentences) -> list[Judgement]:
    """Judge whether the levels that work keep to what labels and losses say."""
    # Only levels that every seed reached, divided by what is said about them.
    levels, limit = _tested_levels(grid), advice.irreducible_loss
    low = advice.estimates["0.7 x lowest validation loss"].low
    below, above, inside, outside = [], [], [], []
    for level in levels:
        by_limit = below if level <= limit else above
        by_limit.append(level)
        by_range = inside if low <= level <= advice.lowest_loss else outside
        by_range.append(level)
    limit_text = "Levels up to the irreducible loss are better than those above it"
    range_text = "Levels of 0.25 to 1 times the lowest validation loss are better than others"
    comparisons: list[tuple[str, list[float], list[float], Epoch]] = [
        ("Flooding is better than plain training", levels, [0.0], "last"),
        (f"{limit_text} (our advisor's limit)", below, above, "last"),
        (f"{range_text} (our advisor)", inside, outside, "last"),
        ("Flooding's last epoch is better than plain early stopping", levels, [0.0], "best"),
    ]
    # All comparisons are tested together.
    claims = []
    for text, a, b, at in comparisons:
        # A group may be empty, such as that of levels above the irreducible loss.
        if a and b:
            claims += _claims(text, _pick_levels(grid, a), _pick_levels(grid, b), at)
    judgements = judge(claims)
    for judgement in judgements:
        sentences.add(judgement.holds, judgement.sentence)
    return judgements


def _pick_levels(grid: LevelGrid, levels: Sequence[float]) -> list[Record]:
    """Pick among some levels on validation, seed by seed."""
    by_level = [grid.at(level) for level in levels]
    return [select_best(records, "last") for records in zip(*by_level, strict=True)]


def _claims(text: str, a: Sequence[Record], b: Sequence[Record], at: Epoch) -> list[Claim]:
    """Claim that trainings, at their last epoch, are better than others of the same seeds."""
    detail = f"; chosen {_format_chosen(a)} against {_format_chosen(b)}"
    accuracy = paired(_accuracies(a), _accuracies(b, at))
    saved = metric_values(a, "test_nll", -1.0)
    nll = paired(saved, metric_values(b, "test_nll", -1.0, at))
    return [
        Claim(text, accuracy, "points of accuracy", detail=detail),
        Claim(text, nll, "nats of NLL saved", digits=3, detail=detail),
    ]


def _format_chosen(records: Sequence[Record]) -> str:
    """List the levels of several Records; 0 is plain training."""
    return format_levels(record.level or 0.0 for record in records)


def _accuracies(records: Sequence[Record], at: Epoch = "last") -> list[float]:
    """Test accuracies in percent, against the official labels."""
    return metric_values(records, "test_accuracy_clean", 100.0, at)


def _draw(grid: LevelGrid, advice: _Advice) -> Figure:
    cell = grid.cell
    accuracy = grid.curve("test_accuracy_clean", 100.0)
    nll = grid.curve("test_nll")
    panel = LevelPanel(cell.title, cell.levels, accuracy, nll)
    advised = (0.25 * advice.lowest_loss, advice.lowest_loss)
    return accuracy_and_nll(panel, advice.irreducible_loss, advised)


# What `flooding reproduce peterson2019` runs.
EXPERIMENT = Experiment("peterson2019", start, CURVES)
