"""A comparison of methods on several problems: tables, sentences and the figure of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from flooding.report import stats
from flooding.report.claims import Sentences
from flooding.report.document import Report, Table
from flooding.report.provenance import describe_provenance
from flooding.report.rank_figures import mean_ranks
from flooding.report.stats import Difference, format_mean_sd, format_p
from flooding.training.record import Record, validation_key

__all__ = ["BUDGET", "Pick", "Results", "late_band", "make_report"]

# Trainings for each method, problem and seed.
BUDGET = 4
# Share of the epochs, the last, over which the band of the training loss is taken.
_LATE = 0.1
_FLOODING = ("flooding", "flooding + early stopping")
_UNTUNED = {"plain", "early stopping"}
# Methods whose training loss is not the plain one.
_OTHER_LOSS = {"label smoothing", "dropout"}
# For each metric its title and its digits.
_METRICS = {
    "accuracy": ("Test accuracy in %", 1),
    "nll": ("Test NLL in nats", 3),
    "brier": ("Test Brier score", 3),
    "ece": ("Test ECE", 3),
    "over_confidence": ("Over-confidence: mean confidence minus accuracy", 3),
}
# By rival, the gain and its corrected p.
_Gains: TypeAlias = dict[str, tuple[Difference, float]]


class Pick(NamedTuple):
    """What validation picked for a method on a problem with a seed."""

    record: Record
    # The epoch it is judged at.
    at: Literal["best", "last"]
    setting: str
    # The trainings of all settings.
    tried: tuple[Record, ...]

    def metric(self, name: str) -> float:
        """Give a metric at the epoch of the pick."""
        return self.record.metrics[f"{self.at}.{name}"]

    def test_metric(self, name: str) -> float:
        """Give a test metric on clean labels where there are any, accuracy in percent."""
        metrics, name = self.record.metrics, f"{self.at}.test_{name}"
        value = metrics.get(f"{name}_clean", metrics.get(name, math.nan))
        if name.endswith("accuracy"):
            return 100.0 * value
        return value


class Results(NamedTuple):
    """The picks of a study."""

    # By method, problem and seed.
    picks: Mapping[tuple[str, str, int], Pick]
    # Methods that have settings on every problem.
    methods: list[str]
    # Names of the problems.
    names: list[str]
    seeds: list[int]

    @property
    def cases(self) -> list[tuple[str, int]]:
        """Every problem with every seed."""
        return list(product(self.names, self.seeds))

    def of(self, method: str) -> list[Pick]:
        """Give the picks of a method in all cases."""
        return [self.picks[method, name, seed] for name, seed in self.cases]

    def on(self, name: str) -> Results:
        """Give the results on one problem."""
        return self._replace(names=[name])

    def values(self, method: str, metric: str) -> np.ndarray:
        """Give a test metric as ``[problems, seeds]``."""
        values = [pick.test_metric(metric) for pick in self.of(method)]
        return np.reshape(values, (len(self.names), len(self.seeds)))

    def losses(self, method: str, name: str) -> np.ndarray:
        """Give a loss of all picks of a method, ``[cases]``."""
        return np.array([pick.metric(name) for pick in self.of(method)])

    def mean(self, method: str, metric: str) -> float:
        """Give a test metric, averaged over problems and seeds."""
        return float(self.values(method, metric).mean())

    def accuracies(self, method: str) -> list[float]:
        """Give the accuracy on each problem, averaged over its seeds."""
        return self.values(method, "accuracy").mean(1).tolist()

    def gain(self, method: str, rival: str) -> Difference:
        """Compare accuracies over problems, each averaged over seeds, or over seeds of one."""
        if len(self.names) > 1:
            return stats.paired(self.accuracies(method), self.accuracies(rival))
        a, b = self.values(method, "accuracy")[0], self.values(rival, "accuracy")[0]
        return stats.paired(a.tolist(), b.tolist())

    def gains_by_problem(self, method: str, rival: str) -> list[Difference]:
        """Compare accuracies on each problem, over its seeds."""
        return [self.on(name).gain(method, rival) for name in self.names]

    def gains(self, method: str, rivals: Sequence[str]) -> _Gains:
        """Compare a method with several others, p after Holm's correction."""
        gains = [self.gain(method, rival) for rival in rivals]
        pairs = zip(gains, stats.adjust(gains), strict=True)
        return dict(zip(rivals, pairs, strict=True))

    @property
    def ranks(self) -> dict[str, float]:
        """Mean rank of each method by accuracy."""
        return stats.average_ranks({name: self.accuracies(name) for name in self.methods})


def make_report(results: Results, records: Sequence[Record]) -> Report:
    """Say when to use flooding, and which methods win."""
    _, methods, names, seeds = results
    # From what most readers look for to the details.
    tables = [_overall(results), _pairs(results)]
    for metric in _METRICS:
        tables.append(_by_problem(results, metric))
    tables += [_with_plain(results), _settings(results), _held_loss(results)]
    failures, findings = _sentences(results)
    about = (
        f"{len(methods)} methods on {len(names)} problems, {len(seeds)} seeds, {BUDGET} trainings "
        "for each method, problem and seed: four settings, or the finder's three and one. The "
        "setting is chosen by the last epoch's validation result on the labels the user has; plain "
        "training and early stopping need one training. SAM takes two passes a step, the gradient "
        "penalty about three, AdaFlood trains auxiliary networks besides. Class-wise levels are "
        "not among the methods. Test labels are clean unless said otherwise. Differences are "
        "paired by problem, or by seed where there is one problem; p by Student's t after Holm's "
        "correction."
    )
    figures = {}
    if len(names) > 1:
        caption = (
            "Mean ranks by accuracy (1 is best); methods joined by a bar do not differ at 5 % "
            "(Nemenyi)."
        )
        figures["ranks"] = (caption, partial(mean_ranks, results.ranks, len(names)))
    title, provenance = "Regularisers side by side", describe_provenance(records)
    return Report(title, about, failures, findings, tables, figures, provenance)


# Tables.


def _overall(results: Results) -> Table:
    """Tabulate means over problems and seeds, and differences from the two that need no tuning."""
    ranks, rivals = results.ranks, ("plain", "early stopping")
    # Differences first: their p values are corrected together.
    gains: dict[str, _Gains] = {}
    for rival in rivals:
        gains[rival] = _gains_on(results, rival)
    rows = []
    for method in results.methods:
        row = {
            "method": method,
            "accuracy %": f"{results.mean(method, 'accuracy'):.1f}",
            "rank": f"{ranks[method]:.1f}",
        }
        for rival in rivals:
            gain, p = gains[rival][method]
            row[f"minus {rival}"] = f"{gain} p {format_p(p)}"
            if method == rival:
                row[f"minus {rival}"] = "–"
        titles = {
            "NLL": "nll",
            "Brier": "brier",
            "ECE": "ece",
            "over-confidence": "over_confidence",
        }
        for title, metric in titles.items():
            row[title] = f"{results.mean(method, metric):.3f}"
        # Last the losses, at the epoch that the method is judged at.
        test = results.losses(method, "test_loss")
        train = results.losses(method, "train_loss")
        bands = [late_band(pick.record) for pick in results.of(method)]
        row["test loss"] = f"{test.mean():.3f}"
        row["gap"] = f"{(test - train).mean():.3f}"
        if method in _OTHER_LOSS:
            row["gap"] = "–"
        row["training loss"] = f"{train.mean():.3f}"
        row["its late band"] = f"{np.mean(bands):.3f}"
        rows.append(row)
    unit = "problems" if len(results.names) > 1 else "seeds"
    title = (
        f"Means over {len(results.names)} problems and {len(results.seeds)} seeds; differences "
        f"with 95 % intervals over {unit}"
    )
    note = (
        "Gap: test minus training loss, not told where the training loss is another one: with "
        "smoothed labels, or with units dropped. The training loss is on noisy labels, and so is "
        "the test loss of synthetic tasks; all other figures are on clean ones. Late band: highest "
        "minus lowest training loss of the last tenth of epochs."
    )
    return Table.from_dicts("overall", title, rows, note)


def _gains_on(results: Results, rival: str) -> _Gains:
    """Compare every method with one, p after Holm's correction."""
    gains, ps = [], []
    for method in results.methods:
        gain = results.gain(method, rival)
        gains.append(gain)
        # The rival itself, and what equals it, is not tested.
        ps.append(math.nan if gain.sd == 0 else gain.p)
    pairs = zip(gains, stats.holm(ps), strict=True)
    return dict(zip(results.methods, pairs, strict=True))


def _pairs(results: Results) -> Table:
    """Compare flooding with plain training, problem by problem, paired by seed."""
    columns = ["problem"]
    rows: list[list[str]] = []
    for name in results.names:
        rows.append([name])
    for method, rival in (
        ("flooding", "plain"),
        ("flooding", "early stopping"),
        ("flooding + early stopping", "early stopping"),
    ):
        gains = results.gains_by_problem(method, rival)
        columns += [f"{method} − {rival}", "p"]
        for row, gain, p in zip(rows, gains, stats.adjust(gains), strict=True):
            row += [str(gain), format_p(p)]
    title = (
        "Differences in test accuracy, in points, by problem; paired by seed, "
        f"n = {len(results.seeds)}, p after Holm"
    )
    return Table("pairs", title, columns, rows)


def _with_plain(results: Results) -> Table:
    """Give every method plain training as a fifth setting."""
    # The finder may answer "no flooding", which the settings of other methods cannot.
    rows, shape = [], (len(results.names), len(results.seeds))
    for method in results.methods:
        if method in _UNTUNED or method in _FLOODING:
            continue
        accuracies, num_plain = [], 0
        for pick, plain in zip(results.of(method), results.of("plain"), strict=True):
            # Validation decides between the method's own pick and plain training.
            problem = pick.record.run and pick.record.run.problem
            key = validation_key(pick.record.metrics, problem, "last.")
            plain_key = validation_key(plain.record.metrics, problem, "last.")
            best = pick
            if key < plain_key:
                best = plain
                num_plain += 1
            accuracies.append(best.test_metric("accuracy"))
        means = np.reshape(accuracies, shape).mean(1).tolist()
        gain = stats.paired(results.accuracies("flooding"), means)
        rows.append({
            "method": method,
            "accuracy %": f"{np.mean(means):.1f}",
            "plain chosen": f"{num_plain} of {len(accuracies)}",
            "flooding minus it": str(gain),
            "p, uncorrected": format_p(gain.p),
        })
    is_plain = [not pick.record.level for pick in results.of("flooding")]
    none = stats.format_count(is_plain)
    note = f"The finder answered “no flooding” in {none} searches."
    title = "The same where plain training is a fifth setting of every method"
    return Table.from_dicts("with-off", title, rows, note)


def _by_problem(results: Results, metric: str) -> Table:
    """Tabulate one metric by problem."""
    title, digits = _METRICS[metric]
    rows = []
    for name in results.names:
        row = {"problem": name}
        for method in results.methods:
            values = results.on(name).values(method, metric)[0]
            row[method] = format_mean_sd(values.tolist(), digits)
        rows.append(row)
    title = f"{title}, mean ± standard deviation, n = {len(results.seeds)}"
    return Table.from_dicts(metric, title, rows)


def _settings(results: Results) -> Table:
    """Tabulate the settings that were picked."""
    rows = []
    for name in results.names:
        row = {"problem": name}
        for method in results.methods:
            if method not in _UNTUNED and method != _FLOODING[1]:
                settings = [pick.setting for pick in results.on(name).of(method)]
                row[method] = "; ".join(settings)
        rows.append(row)
    return Table.from_dicts("settings", "Chosen on validation, seed by seed", rows)


def _held_loss(results: Results) -> Table:
    """Ask whether other methods can hold the training loss at a preset value, as flooding does."""
    rows = []
    for method in ("flooding", "weight decay", "dropout", "label smoothing"):
        misses, bands = [], []
        for case in results.cases:
            level = results.picks["flooding", *case].record.level or 0.0
            pick = results.picks.get((method, *case))
            if level > 0 and pick is not None:
                # Of the method's settings, the one whose loss comes nearest to the level.
                distances = [_late_distance(record, level) for record in pick.tried]
                nearest = distances.index(min(distances))
                misses.append(distances[nearest] / level)
                bands.append(late_band(pick.tried[nearest]) / level)
        if misses:
            rows.append([
                method,
                stats.format_count([miss <= 0.1 for miss in misses]),
                format_mean_sd(misses, 2),
                format_mean_sd(bands, 2),
            ])
    columns = ["method", "within 10 % of the level", "distance / level", "late band / level"]
    title = "Holding a preset training loss: the finder's level, and the nearest of four settings"
    note = (
        "Distance: mean training loss of the last tenth of the epochs from the level. Flooding is "
        "given the level; the others' four settings are far apart, so that a miss may be the "
        "grid's. The band does not depend on that."
    )
    return Table("held", title, columns, rows, note)


def _late_losses(record: Record) -> np.ndarray:
    """Training losses of the last tenth of the epochs."""
    curve = record.curves["train_loss"]
    return curve[-max(2, round(_LATE * (len(curve) - 1))) :]


def _late_distance(record: Record, level: float) -> float:
    """Compute how far the mean of the late losses is from a level."""
    return abs(float(np.mean(_late_losses(record))) - level)


def late_band(record: Record) -> float:
    """Subtract the lowest from the highest training loss of the last tenth of the epochs."""
    losses = _late_losses(record)
    return float(losses.max() - losses.min())


# Sentences.


def _sentences(results: Results) -> Sentences:
    """Say when to use flooding, and which methods win; those that beat flooding are failures."""
    rivals = [method for method in results.methods if method not in _FLOODING]
    gains = {method: results.gains(method, rivals) for method in _FLOODING}
    # The advice first, then the extremes, then every comparison.
    sentences = Sentences([], [_advice(results, gains)])
    unit = f"{len(results.seeds)} seeds"
    if len(results.names) > 1:
        unit = f"{len(results.names)} problems"
        sentences.findings.extend(_extremes(results, "plain"))
        sentences.findings.extend(_extremes(results, "early stopping"))
    for method, by_rival in gains.items():
        for rival, (gain, p) in by_rival.items():
            words = stats.describe_difference(gain, p)
            sentence = f"{method} against {rival}: {words} points over {unit}, p {format_p(p)}."
            loses = gain.mean < 0 and p < 0.05
            sentences.add(not loses, sentence)
    return sentences


def _extremes(results: Results, rival: str) -> list[str]:
    """Say on which problems flooding gains most and least, and compare over tasks."""
    flooded: list[tuple[float, str]] = []
    by_task: dict[str, list[float]] = {}
    gains = results.gains_by_problem("flooding", rival)
    for name, gain in zip(results.names, gains, strict=True):
        picks = results.on(name).of("flooding")
        if any(pick.record.level for pick in picks):
            flooded.append((gain.mean, f"{name} {gain}"))
        # Cells of one task, which share their inputs, count once.
        task = name.partition(",")[0]
        by_task.setdefault(task, []).append(gain.mean)
    # From the least to the most; three of either end are named.
    flooded.sort(key=lambda item: item[0])
    texts = [text for _, text in flooded]
    most, least = "; ".join(texts[:-4:-1]), "; ".join(texts[:3])
    means = [float(np.mean(values)) for values in by_task.values()]
    gain = stats.paired(means, [0.0] * len(means))
    return [
        f"Flooding minus {rival}: most on {most}; least on {least} points (of the {len(flooded)} "
        f"problems on which the finder flooded any seed; n = {len(results.seeds)}, 95 % "
        "intervals).",
        "Cells of one task share their inputs: averaged over the noises of each task, flooding "
        f"minus {rival} is {gain} points over {gain.n} tasks (p {format_p(gain.p)}, uncorrected).",
    ]


def _advice(results: Results, gains: Mapping[str, _Gains]) -> str:
    """Say in plain words when to use flooding and when not."""
    last, stopped = gains["flooding"], gains["flooding + early stopping"]
    winners: list[str] = []
    losers: list[str] = []
    for rival, (gain, p) in last.items():
        # Plain training and early stopping have a sentence of their own.
        if not p < 0.05 or rival in _UNTUNED:
            continue
        if gain.mean > 0:
            losers.append(rival)
        else:
            winners.append(rival)
    unsure = "not shown to differ"
    than = "than plain training"
    plain = _compare(
        last["plain"], f"better {than}", f"worse {than}", f"{unsure} from plain training"
    )
    best = _compare(last["early stopping"], "worse", "better", unsure)
    nothing = "adds nothing that shows"
    both = _compare(stopped["early stopping"], "adds to it", "costs accuracy", nothing)
    by_rank = sorted(results.ranks.items(), key=lambda item: item[1])
    ranks = [f"{method} {rank:.1f}" for method, rank in by_rank]
    nlls = []
    for method in ("plain", "early stopping", "flooding"):
        nlls.append(f"{results.mean(method, 'nll'):.2f}")
    n = stats.pluralize(len(results.seeds), "seed")
    if len(results.names) > 1:
        n = f"{len(results.names)} problems, {n} each"
    return (
        f"When to use flooding: if the last epoch's network is kept, flooding is {plain}. If the "
        "best validation epoch can be kept, plain early stopping, one training instead of "
        f"{BUDGET}, is {best}, and flooding on top of early stopping {both}. Of the other methods "
        f"with as many trainings, some with dearer steps, {_join(losers)} shown to be worse than "
        f"flooding's last epoch and {_join(winners)} shown to be better. Mean ranks by accuracy: "
        f"{', '.join(ranks)}. Test NLL: plain {nlls[0]}, "
        f"early stopping {nlls[1]}, flooding {nlls[2]} nats (n = {n}, intervals are 95 % and not "
        f"corrected, p is after Holm over {len(last)} comparisons)."
    )


def _compare(result: tuple[Difference, float], higher: str, lower: str, unsure: str) -> str:
    """Choose the words that a gain of flooding deserves."""
    gain, p = result
    words = unsure
    if p < 0.05:
        words = higher if gain.mean > 0 else lower
    return f"{words} (flooding minus it: {gain} points, p {format_p(p)})"


def _join(methods: Sequence[str]) -> str:
    if not methods:
        return "none is"
    verb = "is" if len(methods) == 1 else "are"
    return f"{', '.join(methods)} {verb}"
