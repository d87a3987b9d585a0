"""Methods on one problem, ranked on its validation rows: a table, a sentence and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flooding.report import stats
from flooding.report.document import Report, Table
from flooding.report.figures import PALETTE, new_figure
from flooding.report.method_results import BUDGET, Pick, Results
from flooding.report.provenance import describe_provenance
from flooding.report.stats import format_mean_sd, format_p, pluralize
from flooding.training.record import Record, validation_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MeasuredScore", "RankedMethod", "Ranking", "draw_ranking", "rank_methods"]

# What a winner is compared with: the first of these that it is not itself.
_RIVALS = ("early stopping", "plain")


@dataclass(frozen=True)
class MeasuredScore:
    """The number that methods are ranked by.

    Args:
        title: What it is called, with its unit.
        metric: Its name in a Record, without epoch and split: ``accuracy``, ``loss`` or ``score``.
        scale: What it is multiplied by for a reader.
        digits: Digits after the point.
        unit: Unit of a difference.
    """

    title: str
    metric: str
    scale: float
    digits: int
    unit: str


@dataclass(frozen=True)
class RankedMethod:
    """A method with what it reaches.

    Args:
        name: Its name.
        settings: What validation picked, for each seed.
        validation: The score on the validation rows, for each seed.
        test: The score on the test rows, for each seed; NaN where there are none.
        nll: Negative log-likelihood on the test rows, for each seed; NaN where it is unknown.
        trainings: Trainings of each seed.
        pick: The pick of the first seed, which can be saved.
    """

    name: str
    settings: Sequence[str]
    validation: Sequence[float]
    test: Sequence[float]
    nll: Sequence[float]
    trainings: int
    pick: Pick


@dataclass(frozen=True)
class Ranking:
    """Methods, the best on the validation rows first.

    Args:
        problem: Name of the problem.
        score: What they are ranked by.
        rows: The methods.
        num_seeds: Number of seeds.
    """

    problem: str
    score: MeasuredScore
    rows: Sequence[RankedMethod]
    num_seeds: int

    @property
    def winner(self) -> RankedMethod:
        """The method that is best on the validation rows."""
        return self.rows[0]

    def cells(self) -> list[dict[str, str]]:
        """Write each row as texts by column."""
        digits, texts = self.score.digits, []
        for rank, row in enumerate(self.rows, 1):
            texts.append({
                "rank": str(rank),
                "method": row.name,
                f"validation {self.score.title}": _format(row.validation, digits),
                f"test {self.score.title}": _format(row.test, digits),
                "test NLL": _format(row.nll, 3),
                "trainings": str(row.trainings),
                "setting": "; ".join(dict.fromkeys(row.settings)) or "–",
            })
        return texts

    @property
    def title(self) -> str:
        """Title of the table."""
        return (
            f"Ranked on the validation rows; mean ± standard deviation over "
            f"{pluralize(self.num_seeds, 'seed')}; test rows chose nothing"
        )

    @property
    def sentence(self) -> str:
        """Who wins, and by how much on the test rows."""
        winner = self.winner
        begin = f"Best on the validation rows: {winner.name}."
        rivals = {row.name: row for row in self.rows if row is not winner}
        rival = next((rivals[name] for name in _RIVALS if name in rivals), None)
        if rival is None:
            rival = self.rows[1] if len(self.rows) > 1 else None
        if rival is None or any(math.isnan(value) for value in (*winner.test, *rival.test)):
            return begin
        return f"{begin} {_compare(winner, rival, self.score)}"

    def report(self, records: Sequence[Record]) -> Report:
        """Make the page: one table, one sentence and one picture.

        Args:
            records: All Records, for what they cost.

        Returns:
            The report.
        """
        about = (
            f"Every method had up to {BUDGET} trainings for each seed: four settings, or the "
            "finder's three and one. Plain training and early stopping have nothing to choose and "
            "had one. The setting of each seed, and the order of the methods, follow from the "
            "validation rows alone. A method with early stopping is judged at its best validation "
            "epoch, any other one at the last."
        )
        table = Table.from_dicts("ranking", self.title, self.cells())
        caption = (
            f"{self.score.title.capitalize()} on the test rows (dots: seeds; line: their mean) "
            "and, as a diamond, the mean on the validation rows, which decides the order."
        )
        figures = {"ranking": (caption, partial(draw_ranking, self))}
        title = f"Methods on {self.problem}"
        provenance = describe_provenance(records)
        return Report(title, about, (), [self.sentence], [table], figures, provenance)


def rank_methods(results: Results, score: MeasuredScore) -> Ranking:
    """Rank methods on one problem by their validation results.

    Args:
        results: Picks on a single problem.
        score: What to rank by, which is also what picked the settings.

    Returns:
        The ranking.
    """
    [name] = results.names
    rows = []
    for method in results.methods:
        picks = results.of(method)
        rows.append((_mean_key(picks), _ranked(method, picks, score)))
    # Sorting is stable: of equals, the first method stays first.
    rows.sort(key=lambda row: row[0], reverse=True)
    return Ranking(name, score, [row for _, row in rows], len(results.seeds))


def _mean_key(picks: Sequence[Pick]) -> tuple[float, float]:
    """Average the validation results over seeds: the larger, the better."""
    keys = []
    for pick in picks:
        problem = pick.record.run and pick.record.run.problem
        keys.append(validation_key(pick.record.metrics, problem, f"{pick.at}."))
    best, minus_loss = np.mean(keys, axis=0)
    return float(best), float(minus_loss)


def _ranked(method: str, picks: Sequence[Pick], score: MeasuredScore) -> RankedMethod:
    validation, test, nll = [], [], []
    for pick in picks:
        validation.append(score.scale * pick.metric(f"val_{score.metric}"))
        test.append(score.scale * _test_metric(pick, score.metric))
        nll.append(_test_metric(pick, "nll"))
    settings = [pick.setting for pick in picks if pick.setting]
    trainings = len(picks[0].tried)
    if "flooding" in method:
        trainings = BUDGET
    return RankedMethod(method, settings, validation, test, nll, trainings, picks[0])


def _format(values: Sequence[float], digits: int) -> str:
    """Write mean and standard deviation, a dash for what was not measured."""
    return format_mean_sd([value for value in values if not math.isnan(value)], digits)


def _test_metric(pick: Pick, name: str) -> float:
    """Give a metric on the test rows, with clean labels where there are any."""
    metrics: Mapping[str, float] = pick.record.metrics
    full_name = f"{pick.at}.test_{name}"
    return metrics.get(f"{full_name}_clean", metrics.get(full_name, math.nan))


def _compare(winner: RankedMethod, rival: RankedMethod, score: MeasuredScore) -> str:
    """Say how two methods differ on the test rows."""
    try:
        gain = stats.paired(winner.test, rival.test)
    except ImportError:  # scipy is an extra
        mean = float(np.mean(winner.test) - np.mean(rival.test))
        return (
            f"On the test rows its {score.title} is {mean:+.{score.digits}f} {score.unit} from "
            f"that of {rival.name}, untested, since scipy is not installed."
        )
    verdict = "a difference that chance explains"
    if gain.p < 0.05:
        verdict = "more than chance explains"
    size = f"{gain.format(score.digits)} {score.unit}"
    return (
        f"On the test rows its {score.title} is {size} from that of {rival.name}, {verdict} "
        f"(n = {pluralize(gain.n, 'seed')}, p {format_p(gain.p)}, paired)."
    )


def draw_ranking(ranking: Ranking) -> Figure:
    """Draw the score of each method on the test rows, best validation result on top.

    Args:
        ranking: The ranking.

    Returns:
        The figure.
    """
    with new_figure(0.35 * len(ranking.rows) + 1.3) as figure:
        axes = figure.subplots()
        for index, row in enumerate(ranking.rows):
            colour = PALETTE["flooded"] if "flooding" in row.name else PALETTE["plain"]
            mean = float(np.mean(row.test))
            axes.plot(row.test, [index] * len(row.test), "o", color=colour, alpha=0.6)
            axes.plot([mean, mean], [index - 0.3, index + 0.3], color=colour, lw=2)
            axes.plot([np.mean(row.validation)], [index], "D", mfc="none", color="0.4")
        names = [f"{rank}. {row.name}" for rank, row in enumerate(ranking.rows, 1)]
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel=f"{ranking.score.title}: test (dots), validation (diamonds)")
        axes.invert_yaxis()
        axes.spines[["right", "top"]].set_visible(False)
    return figure
