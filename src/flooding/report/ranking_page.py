"""The report page of a comparison of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from flooding.report.chart import Chart, Line, Mark, axis_of
from flooding.report.document import Table
from flooding.report.document_page import data_table
from flooding.report.groups import level_groups
from flooding.report.method_ranking import RankedMethod, Ranking
from flooding.report.page import Block, Charts, Code, Page, Section, Sentences
from flooding.report.page_charts import Curve, Side, curve_chart, reliability_chart
from flooding.report.page_file import ReportPage
from flooding.training.record import Record

__all__ = ["ranking_page"]


def ranking_page(
    ranking: Ranking,
    records: Sequence[Record],
    asked: Mapping[str, str],
    assumptions: Sequence[str],
    command: str,
) -> ReportPage:
    """Make the page of a ranking.

    Args:
        ranking: The ranking.
        records: All Records, for what they cost.
        asked: What was asked, by name.
        assumptions: Sentences about what was assumed of the data.
        command: The command that repeats it.

    Returns:
        The page.
    """
    report = ranking.report(records)
    cells = ranking.cells()
    names = [row.name for row in ranking.rows]
    last = max(len(names) - 1, 1)
    shares = [None if name == "plain" else rank / last for rank, name in enumerate(names)]
    details = []
    for row in cells:
        details.append([" ".join(f"{title.capitalize()}: {text}." for title, text in row.items())])
    groups = level_groups(names, shares, details)
    table = Table.from_dicts("ranking", ranking.title, cells)
    ranked = data_table(table, range(len(names)), heads=1)
    order: list[Block] = [Sentences([ranking.sentence]), Charts([_rank_chart(ranking)]), ranked]
    sections = [Section("ranking", "Why this order", order, is_selector=True)]
    charts = _pick_charts(ranking)
    if charts:
        blocks: list[Block] = [Charts(charts)]
        sections.append(Section("trainings", "The trainings that were picked", blocks))
    how = [report.about, *assumptions]
    sections.append(Section("how", "How it was done, and what was assumed", [Sentences(how)]))
    repeat: list[Block] = [
        Sentences([report.provenance], is_paragraph=True),
        Code("Repeat it; finished runs are looked up", command),
    ]
    sections.append(Section("repeat", "Cost, versions, and how to repeat it", repeat))
    return Page(report.title, _answer(ranking), asked, (), sections, groups, "method", 0).render()


def _answer(ranking: Ranking) -> str:
    """Say which method is best, and how far from plain training."""
    winner, score = ranking.winner, ranking.score
    title, _, unit = score.title.partition(" %")
    suffix = " %" if ranking.score.title.endswith("%") else unit

    def mean(row: RankedMethod) -> str:
        return f"{np.mean(row.validation):.{score.digits}f}{suffix}"

    text = f"{winner.name.capitalize()} is best on the validation rows: {title} {mean(winner)}"
    plain = [row for row in ranking.rows if row.name == "plain" and row is not winner]
    return f"{text}, plain training {mean(plain[0])}." if plain else f"{text}."


def _rank_chart(ranking: Ranking) -> Chart:
    """Draw the score of each method by its rank."""
    marks, line, score = [], [], ranking.score
    for index, row in enumerate(ranking.rows):
        rank = index + 1
        for value in row.test:
            if math.isfinite(value):
                label = f"{row.name}, test, one seed: {value:.{score.digits}f}"
                marks.append(Mark(rank, value, index, label, "dot"))
        mean = float(np.mean(row.test))
        if math.isfinite(mean):
            label = f"{row.name}, test, mean: {mean:.{score.digits}f}"
            marks.append(Mark(rank, mean, index, label, "ring"))
        mean = float(np.mean(row.validation))
        label = f"{rank}. {row.name}, validation: {mean:.{score.digits}f}"
        marks.append(Mark(rank, mean, index, label, "diamond"))
        line.append((rank, mean))
    title = f"{score.title.partition(' %')[0].capitalize()} of each method"
    return Chart(
        "rank",
        title,
        "Validation results decide the order; test results chose nothing.",
        axis_of("Rank on the validation rows", [mark.x for mark in marks], is_whole=True),
        axis_of(score.title.capitalize(), [mark.y for mark in marks]),
        [Line(line, None, "validation, mean", "decision")],
        marks,
        legend=[
            ("diamond", "validation, mean"),
            ("ring", "test, mean"),
            ("dot", "test, one seed"),
        ],
    )


def _pick_charts(ranking: Ranking) -> list[Chart]:
    """Draw the curves of the first seed's picks, and the reliability of the winner and plain."""
    charts = []
    titles = {
        "train_loss": "Training loss (nats per example)",
        "val_loss": "Validation loss (nats per example)",
        "val_accuracy": "Validation accuracy",
    }
    for name, label in titles.items():
        curves = []
        for index, row in enumerate(ranking.rows):
            curve = row.pick.record.curves.get(name)
            if curve is not None and len(curve) > 1 and bool(np.isfinite(curve).any()):
                values = np.asarray(curve, np.float64)
                text = f"{row.name}, first seed"
                curves.append(Curve(index, text, values, "mean" if index == 0 else "curve"))
        if curves:
            curves.reverse()  # the winner above the others
            text = "The first seed of each method; the winner is thick."
            is_training = name == "train_loss"
            charts.append(
                curve_chart(
                    f"curve-{name.replace('_', '-')}", label, text, curves, is_training=is_training
                )
            )
    compared = []
    for index, row in enumerate(ranking.rows):
        if index == 0 or row.name == "plain":
            title = f"{row.name.capitalize()}, first seed, {row.pick.at} epoch"
            compared.append(Side(index, title, [row.pick.record], row.pick.at))
    diagram = reliability_chart("reliability", compared)
    return charts if diagram is None else [*charts, diagram]
