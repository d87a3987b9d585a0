"""A comparison of methods on several problems: tables, sentences and the figure of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from flooding.report import stats
from flooding.report.document import Report, Table
from flooding.report.method_results import BUDGET, Results
from flooding.report.method_sentences import PLANNED_RIVALS, advise, planned_tests, sentences
from flooding.report.provenance import describe_provenance
from flooding.report.rank_figures import mean_ranks
from flooding.report.stats import format_mean_sd, format_p
from flooding.training.record import Record

__all__ = ["late_band", "make_report"]

# Share of the epochs, the last, over which the band of the training loss is taken.
_LATE = 0.1
# Methods that have no settings of their own to choose from: one training, or the finder's level.
_UNTUNED = {
    "plain",
    "early stopping",
    "plain + average",
    "early stopping + average",
    "auto level",
    "auto level + average",
}
_AT_FOUND_LEVEL = {
    "flooding",
    "flooding + early stopping",
    "flooding + average",
    "hinge",
    "hinge + average",
}
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


def make_report(results: Results, records: Sequence[Record], missing: str = "") -> Report:
    """Say when to use flooding, and how the methods compare.

    Args:
        results: The picks.
        records: All Records, for what they cost.
        missing: A sentence about methods that were not trained, or nothing.

    Returns:
        The report.
    """
    methods, names = results.methods, results.names
    # From what most readers look for to the details.
    tables = [_overall(results), _planned(results), _pairs(results)]
    for metric in _METRICS:
        tables.append(_by_problem(results, metric))
    tables += [_with_plain(results), _settings(results)]
    failures, findings = sentences(results)
    unit = "problem" if len(names) > 1 else "seed"
    about = (
        f"{len(methods)} methods on {len(names)} problems, {results.seeds_in_words}, {BUDGET} "
        "trainings for each method, problem and seed: four settings, or the finder's three and "
        "one. Methods are compared in the seeds that both have. The setting is chosen by the last "
        "epoch's validation result on the labels the user has; plain training, early stopping and "
        "the auto level need one training. Equal numbers of trainings are not equal costs: SAM "
        "takes two passes a step, the gradient penalty about three, and AdaFlood trains five "
        "auxiliary networks besides, each for a fifth of the epochs. Class-wise levels are not "
        "among the methods. Test labels are clean unless said otherwise. Two tests are "
        "planned: flooding's last epoch against plain training's, and against plain early "
        f"stopping. They are paired by {unit}: Wilcoxon's signed-rank test, as Demšar (JMLR 2006) "
        "recommends, with Student's t beside it, p after Holm's correction over the two. The plan "
        "was made when the first three seeds were known. Every other comparison is exploratory: "
        "its interval of 95 % is not corrected, and it has no verdict."
    )
    if missing:
        about = f"{about} {missing}"
    figures = {}
    if len(names) > 1:
        caption = (
            "Mean ranks by accuracy (1 is best); methods joined by a bar do not differ at 5 % "
            "(Nemenyi)."
        )
        figures["ranks"] = (caption, partial(mean_ranks, results.ranks, len(names)))
    title, provenance = "Regularisers side by side", describe_provenance(records)
    return Report(title, about, failures, findings, tables, figures, provenance, advise(results))


# Tables.


def _overall(results: Results) -> Table:
    """Tabulate means over problems and seeds, and differences from the two that need no tuning."""
    ranks = results.ranks
    rows = []
    for method in results.methods:
        row = {
            "method": method,
            "seeds": str(len(results.seeds_of(method))),
            "accuracy %": f"{results.mean(method, 'accuracy'):.1f}",
            "rank": f"{ranks[method]:.1f}",
        }
        for rival in PLANNED_RIVALS:
            row[f"minus {rival}"] = "–" if method == rival else str(results.gain(method, rival))
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
        bands = [late_band(pick.record) for pick in results.of(method, results.common_seeds)]
        row["test loss"] = f"{test.mean():.3f}"
        row["gap"] = f"{(test - train).mean():.3f}"
        if method in _OTHER_LOSS or method.endswith("+ average"):
            row["gap"] = "–"
        row["training loss"] = f"{train.mean():.3f}"
        row["its late band"] = f"{np.mean(bands):.3f}"
        rows.append(row)
    unit = "problems" if len(results.names) > 1 else "seeds"
    common = stats.pluralize(len(results.common_seeds), "seed")
    title = (
        f"Means over {len(results.names)} problems and {common}; differences with 95 % intervals "
        f"over {unit}"
    )
    note = (
        "Gap: test minus training loss, not given where the training loss is another one: with "
        "smoothed labels, with units dropped, or that of the network whose average is judged. The "
        "training loss is on noisy labels, and so is "
        "the test loss of synthetic tasks; all other figures are on clean ones. Late band: highest "
        "minus lowest training loss of the last tenth of epochs. Seeds: those that a method was "
        "trained with. Means and ranks are of the seeds that all methods have, differences of "
        "those that both have."
    )
    return Table.from_dicts("overall", title, rows, note)


def _planned(results: Results) -> Table:
    """Tabulate the two planned tests."""
    rows = []
    for test in planned_tests(results):
        rows.append({
            "test": f"flooding − {test.rival}",
            "difference": str(test.gain),
            "better, worse, equal": test.counts,
            "p (Wilcoxon)": format_p(test.p),
            "p (t)": format_p(test.p_t),
            "verdict": test.verdict,
        })
    unit = "problems" if len(results.names) > 1 else "seeds"
    n = len(results.names) if unit == "problems" else len(results.seeds_of("flooding"))
    title = f"The two planned tests: test accuracy in points, paired over {n} {unit}, p after Holm"
    note = "The verdict is that of Wilcoxon's test at 5 %."
    return Table.from_dicts("planned", title, rows, note)


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
        f"n = {len(results.seeds_of('flooding'))}, p after Holm"
    )
    return Table("pairs", title, columns, rows)


def _with_plain(results: Results) -> Table:
    """Give every method plain training as a fifth setting."""
    # The finder may answer "no flooding", which the settings of other methods cannot.
    rows = []
    for method in results.methods:
        if method in _UNTUNED or method in _AT_FOUND_LEVEL:
            continue
        accuracies, num_plain = [], 0
        common = results.seeds_of(method, "plain", "flooding")
        picks = zip(results.of(method, common), results.of("plain", common), strict=True)
        for pick, plain in picks:
            # Validation decides between the method's own pick and plain training.
            best = pick
            if pick.key < plain.key:
                best = plain
                num_plain += 1
            accuracies.append(best.test_metric("accuracy"))
        means = np.reshape(accuracies, (len(results.names), -1)).mean(1).tolist()
        gain = stats.paired(results.accuracies("flooding", common), means)
        rows.append({
            "method": method,
            "accuracy %": f"{np.mean(means):.1f}",
            "plain chosen": f"{num_plain} of {len(accuracies)}",
            "flooding minus it": str(gain),
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
    title = f"{title}, mean ± standard deviation over {results.seeds_in_words}"
    return Table.from_dicts(metric, title, rows)


def _settings(results: Results) -> Table:
    """Tabulate the settings that were picked."""
    rows = []
    for name in results.names:
        row = {"problem": name}
        for method in results.methods:
            if method not in _UNTUNED and method not in _AT_FOUND_LEVEL - {"flooding"}:
                settings = [pick.setting for pick in results.on(name).of(method)]
                row[method] = "; ".join(settings)
        rows.append(row)
    return Table.from_dicts("settings", "Chosen on validation, seed by seed", rows)


def _late_losses(record: Record) -> np.ndarray:
    """Training losses of the last tenth of the epochs."""
    curve = record.curves["train_loss"]
    return curve[-max(2, round(_LATE * (len(curve) - 1))) :]


def late_band(record: Record) -> float:
    """Subtract the lowest from the highest training loss of the last tenth of the epochs."""
    losses = _late_losses(record)
    return float(losses.max() - losses.min())
