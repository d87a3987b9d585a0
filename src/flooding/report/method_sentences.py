"""What a comparison of methods says in words: the planned tests, and what is exploratory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flooding.report import stats
from flooding.report.claims import Sentences
from flooding.report.method_results import BUDGET, Results
from flooding.report.stats import Difference

__all__ = ["PLANNED_RIVALS", "PlannedTest", "advise", "planned_tests", "sentences"]

# What flooding's last epoch is tested against.
PLANNED_RIVALS = ("plain", "early stopping")
_BOTH = "flooding + early stopping"
_WORDS = ("no", "one", "two", "three", "four", "five")


class PlannedTest(NamedTuple):
    """Flooding's last epoch against a rival, over problems, or over seeds where there is one.

    Args:
        rival: The rival.
        gain: Flooding minus the rival, in points of test accuracy.
        counts: On how many problems flooding is better, worse and equal.
        p: p of Wilcoxon's signed-rank test, after Holm's correction over the planned tests.
        p_t: The same of Student's t.
    """

    rival: str
    gain: Difference
    counts: str
    p: float
    p_t: float

    @property
    def verdict(self) -> str:
        """The verdict of Wilcoxon's test at 5 %: "better", "worse" or "not shown"."""
        if not self.p < 0.05:
            return "not shown"
        return "better" if self.gain.mean > 0 else "worse"


def planned_tests(results: Results) -> list[PlannedTest]:
    """Test flooding against plain training and against early stopping.

    Args:
        results: The picks.

    Returns:
        A test for each rival that is among the methods.
    """
    rivals = [rival for rival in PLANNED_RIVALS if rival in results.methods]
    pairs = [results.pairs("flooding", rival) for rival in rivals]
    gains = [stats.paired(a, b) for a, b in pairs]
    ps = stats.holm([stats.wilcoxon(a, b) for a, b in pairs])
    tests = []
    for rival, (a, b), gain, p, p_t in zip(
        rivals, pairs, gains, ps, stats.adjust(gains), strict=True
    ):
        signs = np.sign(np.subtract(a, b))
        counts = ", ".join(str(int((signs == sign).sum())) for sign in (1, -1, 0))
        tests.append(PlannedTest(rival, gain, counts, p, p_t))
    return tests


def sentences(results: Results) -> Sentences:
    """Say when to use flooding; a planned test that flooding loses is a failure.

    Args:
        results: The picks.

    Returns:
        The advice and the planned tests, then what is exploratory.
    """
    tests = planned_tests(results)
    unit = f"{len(results.seeds_of('flooding'))} seeds"
    if len(results.names) > 1:
        unit = f"{len(results.names)} problems"
    text = Sentences([], [_advice(results, tests)])
    for test in tests:
        sentence = (
            f"Planned: flooding against {test.rival}: {_verb(test)}: {test.gain} points over "
            f"{unit}, p {stats.format_p(test.p)} (Wilcoxon), {stats.format_p(test.p_t)} (t)."
        )
        text.add(test.verdict != "worse", sentence)
    if len(results.names) > 1:
        text.findings.extend(_extremes(results, "plain"))
        text.findings.extend(_extremes(results, "early stopping"))
    text.findings.append(_ranks(results))
    for method in ("flooding", _BOTH):
        gains = []
        for rival in results.methods:
            is_planned = method == "flooding" and rival in PLANNED_RIVALS
            if rival not in {"flooding", _BOTH} and not is_planned:
                gains.append(f"{rival} {results.gain(method, rival)}")
        if gains:
            text.findings.append(
                f"Exploratory, {method} minus other methods, points over {unit}: "
                f"{'; '.join(gains)}."
            )
    return text


def _verb(test: PlannedTest) -> str:
    """Say how a planned test ends, as :func:`flooding.report.stats.describe_difference` does."""
    return stats.describe_difference(test.gain, test.p).partition(":")[0]


def _ranks(results: Results) -> str:
    """List the mean ranks, and the NLL of the three methods that the tests compare."""
    by_rank = sorted(results.ranks.items(), key=lambda item: item[1])
    ranks = [f"{method} {rank:.1f}" for method, rank in by_rank]
    nlls = []
    for method in (*PLANNED_RIVALS, "flooding"):
        nlls.append(f"{method} {results.mean(method, 'nll'):.2f}")
    seeds = stats.pluralize(len(results.common_seeds), "seed")
    return (
        f"Mean ranks by accuracy: {', '.join(ranks)}. Test NLL in nats: {', '.join(nlls)} "
        f"({len(results.names)} problems, {seeds} each)."
    )


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
    n = len(results.seeds_of("flooding", rival))
    return [
        f"Flooding minus {rival}: most on {most}; least on {least} points (of the {len(flooded)} "
        f"problems on which the finder flooded any seed; n = {n}, 95 % intervals).",
        "Cells of one task share their inputs: averaged over the noises of each task, flooding "
        f"minus {rival} is {gain} points over {gain.n} tasks (p {stats.format_p(gain.p)}, t, "
        "exploratory).",
    ]


# The advice.


def _advice(results: Results, tests: Sequence[PlannedTest]) -> str:
    """Say in plain words when to use flooding: at most five numbers, the tests are elsewhere."""
    parts = ["When to use flooding:", *_against_rivals(tests)]
    if _BOTH in results.methods and "early stopping" in results.methods:
        parts.append(_on_top_of_stopping(results.gain(_BOTH, "early stopping")))
    parts.append(_best_ranked(results))
    parts.append(f"The figures are mean differences in test accuracy over {_where(results)}.")
    return " ".join(parts)


def advise(results: Results) -> str:
    """Say in two or three sentences when to use flooding.

    Args:
        results: The picks.

    Returns:
        The sentences.
    """
    return " ".join([*_against_rivals(planned_tests(results)), _best_ranked(results)])


def _against_rivals(tests: Sequence[PlannedTest]) -> list[str]:
    by_rival = {test.rival: test for test in tests}
    parts = []
    if "plain" in by_rival:
        parts.append(_against_plain(by_rival["plain"]))
    if "early stopping" in by_rival:
        parts.append(_against_stopping(by_rival["early stopping"]))
    return parts


def _where(results: Results) -> str:
    """Say over what the figures are means, and how many problems are variants of few tasks."""
    if len(results.names) == 1:
        return "the seeds of one problem"
    text = f"{len(results.names)} problems"
    tasks = [name.partition(",")[0] for name in results.names]
    varied = [task for task in tasks if tasks.count(task) > 1]
    if varied:
        text += f", {len(varied)} of which are variants of {len(set(varied))} synthetic tasks"
    return text


def _against_plain(test: PlannedTest) -> str:
    """Advise a reader who keeps the last epoch."""
    start = "If you keep the network of the last epoch,"
    if test.verdict == "better":
        return f"{start} flooding gains {test.gain.mean:.1f} points over plain training."
    if test.verdict == "worse":
        return f"{start} do not flood: it costs {-test.gain.mean:.1f} points."
    return (
        f"{start} flooding is not shown to differ from plain training "
        f"({test.gain.mean:+.1f} points)."
    )


def _against_stopping(test: PlannedTest) -> str:
    """Advise a reader who can keep the best validation epoch."""
    start = "If you can keep the best validation epoch,"
    price = f"one training instead of {_WORDS[BUDGET]}"
    size = f"{abs(test.gain.mean):.1f} points"
    if test.verdict == "worse":
        return f"{start} use plain early stopping: it costs {price} and is {size} better."
    if test.verdict == "better":
        return f"{start} flooding is still {size} better, for {_WORDS[BUDGET]} trainings."
    return (
        f"{start} use plain early stopping: it costs {price} and is as good "
        f"({-test.gain.mean:+.1f} points, not significant)."
    )


def _on_top_of_stopping(gain: Difference) -> str:
    """Say whether flooding adds to early stopping; exploratory."""
    if gain.low > 0:
        return f"Flooding on top of early stopping gains {gain.mean:.1f} points more."
    if gain.high < 0:
        return f"Flooding on top of early stopping costs {-gain.mean:.1f} points."
    return "Flooding on top of early stopping adds nothing that shows."


def _best_ranked(results: Results) -> str:
    """Name the method with the best mean rank; exploratory."""
    ranks = results.ranks
    best, *others = sorted(ranks, key=lambda method: ranks[method])
    doubt = ""
    if others and len(results.names) > 1:
        # Nemenyi's test, as in the figure of ranks.
        distance = ranks[others[0]] - ranks[best]
        if distance < stats.critical_difference(len(ranks), len(results.names)):
            doubt = f" ({others[0]} is as good)"
    if best.startswith("flooding"):
        return f"{best.capitalize()} has the best mean rank{doubt}."
    return f"Try {best}, too: it has the best mean rank{doubt}."
