"""Labels people disagree on: what they say about the level beforehand, and which levels work.

About 51 people labelled each test image of CIFAR-10 (CIFAR-10H). Their disagreement is label noise
that nobody made up; its entropy is the irreducible loss. Networks are trained on some of these
images with one person's label each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from flooding.data import images
from flooding.experiments import Experiment, Study, describe_provenance
from flooding.experiments.grids import CURVES, Cell, falls, flooded_share, percent, reached
from flooding.level_search.advisor import advise, bayes_error
from flooding.level_search.base import LevelEstimate
from flooding.models import small_cnn
from flooding.report.document import Report, Table
from flooding.report.stats import format_mean_sd, format_p, holm, paired
from flooding.tasks import adam
from flooding.training.problem import Problem
from flooding.training.record import Record, select_best

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CURVES", "LEVELS", "counts", "experiment", "setting"]

LEVELS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.4, 0.8, 1.2, 1.6)  # nats; fixed beforehand
PEOPLE = (47, 63)  # fewest and most labels an image has (Peterson et al., section 3)


def setting(max_epochs: int = 60, **sizes: int) -> Problem:
    """Give the setting: a small convolutional network, Adam at 0.001, batches of 100.

    Args:
        max_epochs: Epochs.
        sizes: See :func:`flooding.data.images.cifar10h`.

    Returns:
        The Problem.
    """
    data = partial(images.cifar10h, **sizes)
    return Problem(
        data, partial(small_cnn, channels=3, size=32), adam, batch_size=100, max_epochs=max_epochs
    )


def counts(shares: np.ndarray) -> np.ndarray:
    """Recover how often each class was given, from its share: the smallest possible number of
    people.

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
    found = np.full(shares.shape, np.nan)
    for people in range(PEOPLE[1], PEOPLE[0] - 1, -1):
        whole = np.round(shares * people)
        fits = np.abs(shares * people - whole).max(1) < 1e-6
        found[fits] = whole[fits]
    if np.isnan(found).any():
        lowest, highest = PEOPLE
        raise ValueError(
            f"shares must be those of {lowest} to {highest} people, got {shares[np.isnan(found).any(1)]}."
        )
    return found


def experiment(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all levels on one person's label an image; compare with what the labels say beforehand.

    Args:
        quick: Two seeds, three levels, 400 training images and 20 epochs.
        seeds: Other seeds than the five.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    problem = setting(20, n_train=400, n_val=200) if quick else setting()
    levels = (0.0, 0.1, 0.4) if quick else LEVELS
    chosen = tuple(seeds) if seeds is not None else tuple(range(2 if quick else 5))
    records = yield Cell("CIFAR-10H", problem, levels, chosen).runs
    told = iter(records)
    return _report(
        _Study(levels, [[next(told) for _ in levels] for _ in chosen]), images.human_labels()
    )


@dataclass(frozen=True)
class _Study:
    """Records by seed, then by level."""

    levels: tuple[float, ...]
    table: list[list[Record]]

    @property
    def v(self) -> float:
        """Lowest validation loss of plain training, mean over seeds."""
        return float(np.mean([np.nanmin(plain.curves["val_loss"]) for plain, *_ in self.table]))

    @property
    def epochs(self) -> int:
        return len(self.table[0][0].curves["val_loss"]) - 1

    @property
    def tested(self) -> list[float]:
        """Levels above 0 that every seed reached: others are plain training, at least in part."""
        return [level for level in self.levels if level and all(map(reached, self.at(level)))]

    def at(self, level: float) -> list[Record]:
        place = self.levels.index(level)
        return [records[place] for records in self.table]

    def picks(self, levels: Sequence[float]) -> list[Record]:
        """What validation chooses among some levels, seed by seed."""
        return [
            select_best([records[self.levels.index(b)] for b in levels], "last")
            for records in self.table
        ]


def _values(
    records: Sequence[Record], name: str, times: float = 1.0, at: str = "last"
) -> list[float]:
    return [times * record.metrics[f"{at}.{name}"] for record in records]


def _accuracy(records: Sequence[Record], at: str = "last") -> list[float]:
    """Test accuracy in percent, against the official labels."""
    return _values(records, "test_accuracy_clean", 100.0, at)


def _known(shares: np.ndarray, v: float) -> dict[str, LevelEstimate]:
    """What is known before a level is tried, and from one plain training."""
    of_people = advise(
        soft_labels=shares, repeated_labels=counts(shares), label_noise=bayes_error(shares)
    )
    return {found.name: found for found in (*of_people, *advise(lowest_val_loss=v))}


def _nats(suggestion: LevelEstimate) -> float:
    if suggestion.level is None:
        raise TypeError(f"{suggestion.name} must suggest a level.")
    return suggestion.level


def _report(study: _Study, shares: np.ndarray) -> Report:
    known = _known(shares, study.v)
    limit = _nats(known["soft labels"])
    inside = [b for b in study.levels if known["0.7 x lowest validation loss"].low <= b <= study.v]
    failures, findings = _words(study, known, limit, inside, bayes_error(shares))
    about = (
        f"The {len(shares):,} test images of CIFAR-10, divided anew for each seed; each image has one label, drawn "
        "from those that people gave it. A convolutional network of two layers, Adam at 0.001, batches of 100, "
        f"{study.epochs} epochs, {len(study.table)} seeds. Accuracy is against the official "
        "labels; NLL against one person's label; the divergence is that from people's shares, which is what the "
        "expected NLL loses against the irreducible loss. The level is chosen by the last epoch's validation accuracy "
        "on people's labels, ties to the lower validation loss, then to the smaller level. Test data choose nothing. "
        "Mean ± standard deviation over seeds; differences paired by seed, with the 95 % interval of Student's t and p "
        "after Holm's correction over all of them. All seeds divide the same images anew, so that their test images "
        "overlap: the intervals are about training and its data. Groups of levels differ in number, and validation "
        "chooses better among more. Not shown is not refuted."
    )
    caption = (
        "Test accuracy and NLL at the last epoch against the level: mean and standard deviation over seeds. Dashed: "
        "plain training with early stopping. Upright: the irreducible loss that people's labels show. Shaded: 0.25 to "
        "1 times the lowest validation loss of plain training."
    )
    figures = {"levels": (caption, partial(_draw, study, limit, (0.25 * study.v, study.v)))}
    records = [record for row in study.table for record in row]
    tables = [_advice(known), _levels(study)]
    return Report(
        "Labels people disagree on",
        about,
        failures,
        findings,
        tables,
        figures,
        describe_provenance(records),
    )


def _advice(known: dict[str, LevelEstimate]) -> Table:
    rows = [
        [s.name, f"{_nats(s):.4f}", f"{s.low:.4f}", f"{s.high:.4f}", s.note] for s in known.values()
    ]
    columns = ["from", "nats", "low", "high", "note"]
    note = "Label noise: wrong classes drawn uniformly, as often as people's labels differ from the likeliest one."
    return Table(
        "advice", "What labels say about the level, and one plain training", columns, rows, note
    )


def _levels(study: _Study) -> Table:
    rows = []
    for level in study.levels:
        told = study.at(level)
        rows.append([
            f"{level:g}" if level else "plain",
            *(_flooded(told, at) if level else "–" for at in ("last", "best")),
            format_mean_sd(_accuracy(told)),
            format_mean_sd(_accuracy(told, "best")),
            format_mean_sd(_values(told, "test_nll"), 3),
            format_mean_sd(_values(told, "test_nll", at="best"), 3),
            format_mean_sd(_values(told, "test_kl_to_posterior"), 3),
        ])
    columns = [
        "level",
        "flooded %",
        "flooded %, stopped",
        "accuracy %",
        "accuracy %, stopped",
        "NLL",
        "NLL, stopped",
    ]
    title = f"Test results, last epoch and best validation epoch, n = {len(study.table)}"
    note = (
        "Flooded: share of the steps up to that epoch; weights without one before it are those of plain training, "
        "though not its best ones where its best epoch comes later."
    )
    return Table("levels", title, [*columns, "divergence"], rows, note)


def _flooded(records: Sequence[Record], at: Literal["best", "last"]) -> str:
    """Tell the share of flooded steps up to an epoch, and how many seeds reached the level before
    it.
    """
    seeds = sum(reached(record, at) for record in records)
    partly = f": {seeds} of {len(records)} seeds" if seeds else ": not tested"
    return format_mean_sd([flooded_share(r, at) for r in records]) + (
        partly if seeds < len(records) else ""
    )


def _words(
    study: _Study,
    known: dict[str, LevelEstimate],
    limit: float,
    inside: Sequence[float],
    error: float,
) -> tuple[list[str], list[str]]:
    """Say what people's labels tell, and whether the levels that work keep to it."""
    soft, again = known["soft labels"], known["repeated labels"]
    findings = [
        f"People's labels: Bayes error {error:.4f}, irreducible loss {limit:.4f} nats [{soft.low:.4f}, "
        f"{soft.high:.4f}]; corrected for the small number of labels an image {_nats(again):.4f} [{again.low:.4f}, "
        f"{again.high:.4f}] (n = 10,000 images).",
        f"Lowest validation loss of plain training: {study.v:.3f} nats, {study.v / limit:.1f} times the irreducible "
        f"loss (n = {len(study.table)} seeds).",
    ]
    failures: list[str] = []
    shares = falls(study.at(0.0), study.levels[-1])
    if all(share < 0.5 for share in shares):
        when = f"after {percent(shares)} of the epochs"
        findings.append(f"Plain training is below the largest level, {study.levels[-1]:g}, {when}.")
    else:
        failures.append(
            f"Plain training is not below the largest level, {study.levels[-1]:g}, before half of the epochs."
        )
    tested = study.tested
    below, above = [b for b in tested if b <= limit], [b for b in tested if b > limit]
    inside, outside = [b for b in tested if b in inside], [b for b in tested if b not in inside]
    if untested := [f"{b:g}" for b in study.levels if b and b not in tested]:
        findings.append(f"Not reached by every seed, and so not tested: {', '.join(untested)}.")
    statements = [
        ("Flooding is better than plain training", tested, [0.0]),
        (
            "Levels up to the irreducible loss are better than those above it (our advisor's limit)",
            below,
            above,
        ),
        (
            "Levels of 0.25 to 1 times the lowest validation loss are better than others (our advisor)",
            inside,
            outside,
        ),
    ]
    sides = {
        text: (study.picks(ours), study.picks(theirs), "last")
        for text, ours, theirs in statements
        if ours and theirs
    }
    text = "Flooding's last epoch is better than plain early stopping"
    if tested:
        sides |= {text: (study.picks(tested), study.at(0.0), "best")}
    gains = {
        (text, what): paired(measure(ours, "last"), measure(theirs, at))
        for text, (ours, theirs, at) in sides.items()
        for what, measure in (("points of accuracy", _accuracy), ("nats of NLL saved", _saved))
    }
    for (text, what), p in zip(gains, holm([gain.p for gain in gains.values()]), strict=True):
        gain, (ours, theirs, _) = gains[text, what], sides[text]
        verdict = (
            "not shown" if not p < 0.05 else "holds" if gain.mean > 0 else "the opposite holds"
        )
        digits = (
            f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            if what.startswith("nats")
            else str(gain)
        )
        levels, others = (", ".join(f"{r.level:g}" for r in some) for some in (ours, theirs))
        sentence = f"{text}: {verdict}; {digits} {what}, n = {gain.n}, p {format_p(p)}; chosen {levels} against {others}."
        (findings if verdict == "holds" else failures).append(sentence)
    return failures, findings


def _saved(records: Sequence[Record], at: str = "last") -> list[float]:
    """Test NLL on people's labels, its sign turned."""
    return _values(records, "test_nll", -1.0, at)


def _draw(study: _Study, limit: float, tried: tuple[float, float]) -> Figure:
    """Draw accuracy and NLL against the level."""
    from flooding.report.plots import PALETTE, drawn, unique

    with drawn(8.0, 3.4) as figure:
        panels = figure.subplots(1, 2)
        measures = (
            ("test_accuracy_clean", 100.0, "Test accuracy (%)"),
            ("test_nll", 1.0, "Test NLL (nats)"),
        )
        for axes, (name, times, told) in zip(panels, measures, strict=True):
            seen = np.array([_values(records, name, times) for records in study.table])
            mean = seen.mean(0)
            axes.axvspan(*tried, color="0.92", label="0.25 to 1 x lowest validation loss")
            axes.axvline(limit, color="0.3", lw=1, label="irreducible loss")
            axes.plot(study.levels, mean, "o-", color=PALETTE["flooded"], label="last epoch")
            if len(seen) > 1:
                sd = seen.std(0, ddof=1)
                axes.fill_between(
                    study.levels, mean - sd, mean + sd, color=PALETTE["flooded"], alpha=0.2, lw=0
                )
            stopped = np.mean(_values(study.at(0.0), name, times, "best"))
            axes.axhline(stopped, color=PALETTE["plain"], ls="--", label="plain, early stopping")
            axes.set(xlabel="Flood level (nats)", ylabel=told)
            axes.set_xlim(-0.02, 1.02 * study.levels[-1])
        figure.legend(*unique(list(panels)), loc="outside lower center", ncols=2)
    return figure


EXPERIMENT = Experiment("peterson2019", experiment, CURVES)
