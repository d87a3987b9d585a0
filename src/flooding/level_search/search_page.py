"""The report page of a search: what was asked, the level, why this one, and all behind it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from flooding import __version__
from flooding.level_search.decision_text import answer, explain_selection, has_loss, unit_of
from flooding.level_search.page_charts import calibration_chart, curve_charts, level_charts
from flooding.level_search.page_groups import Groups, make_groups
from flooding.level_search.plot_data import Measure, measures_of
from flooding.level_search.result import SearchResult
from flooding.report.page import Block, Charts, Code, DataTable, Page, Section, Sentences
from flooding.report.page_file import ReportPage
from flooding.report.provenance import describe_provenance
from flooding.report.stats import pluralize
from flooding.text import brief, format_duration
from flooding.training.problem import Problem

__all__ = ["ReportPage", "SearchAbout", "search_page"]


@dataclass(frozen=True)
class SearchAbout:
    """What a result does not know of itself.

    Args:
        what: What was searched on: a task, a file, or a name.
        asked: Further facts about the question, by name.
        assumptions: Sentences about what was assumed of the data.
        command: The command that repeats the search.
    """

    what: str = ""
    asked: Mapping[str, str] = field(default_factory=dict)
    assumptions: Sequence[str] = ()
    command: str = ""


_NOTHING = SearchAbout()


def search_page(result: SearchResult, about: SearchAbout = _NOTHING) -> ReportPage:
    """Make the report page of a search.

    Args:
        result: The result.
        about: What the result does not know of itself.

    Returns:
        The page. The same result gives the same text.

    Example:
        >>> from flooding import Problem, Run
        >>> from flooding.data.synthetic import two_gaussians
        >>> from flooding.testing import fake_record
        >>> from torch.nn import Linear
        >>> run = Run(Problem(two_gaussians, Linear(10, 2), max_epochs=20), 0.1)
        >>> result = SearchResult("by hand", run, records=(fake_record(run),))
        >>> "Use flood level 0.1" in search_page(result).html
        True
    """
    _, *measures = measures_of(result.records, result.run.problem)
    groups = make_groups(result, measures)
    title = f"Flood level of {about.what}" if about.what else "Flood level"
    sections = [
        _level_section(result, groups, measures),
        _training_section(result, groups),
        _assumptions_section(result, about),
        _repeat_section(result, about),
    ]
    return Page(
        title,
        answer(result),
        _asked(result, about, measures),
        result.warnings,
        [section for section in sections if section is not None],
        groups.shown,
        "level",
        groups.chosen,
    ).render()


def _asked(
    result: SearchResult, about: SearchAbout, measures: Sequence[Measure]
) -> Mapping[str, str]:
    """List the facts of the question."""
    problem = result.run.problem
    seeds = sorted({record.run.seed for record in result.records if record.run is not None})
    facts = {"Searched on": about.what} if about.what else {}
    if isinstance(problem, Problem):
        splits = problem.splits(result.run.seed)
        sizes = [f"{len(splits.train.y)} training", f"{len(splits.val.y)} validation"]
        if splits.test is not None:
            sizes.append(f"{len(splits.test.y)} test")
        facts["Examples"] = ", ".join(sizes)
        if splits.classes:
            facts["Classes"] = str(splits.classes)
        facts["Optimiser"] = brief(problem.optimizer)
    facts["A full training"] = pluralize(problem.max_epochs, "epoch")
    facts["Strategy"] = result.strategy
    if measures:
        facts["Judged by"] = measures[0].label
    if seeds:
        facts["Seeds"] = ", ".join(map(str, seeds))
    return {**facts, **about.asked}


def _level_section(
    result: SearchResult, groups: Groups, measures: Sequence[Measure]
) -> Section | None:
    blocks: list[Block] = []
    charts = level_charts(result, groups, measures)
    if charts:
        blocks.append(Charts(charts))
    sentences = explain_selection(result, measures)
    if sentences:
        blocks.append(Sentences(sentences))
    if result.decision is not None and measures:
        blocks.append(_candidates_table(result, groups, measures))
    if result.estimates:
        blocks.append(_estimates_table(result))
    if not blocks:
        return None
    title = "Why no flooding" if result.run.level is None else "Why this level"
    return Section("why", title, blocks, is_selector=True)


def _candidates_table(
    result: SearchResult, groups: Groups, measures: Sequence[Measure]
) -> DataTable:
    """Rank the levels by what was compared."""
    decision = result.decision
    assert decision is not None
    main = measures[0]
    unit = unit_of(main, result)
    order = sorted(
        range(len(decision.candidates)),
        key=lambda i: (
            i != decision.best,
            -decision.candidates[i].compared_score,
            decision.candidates[i].compared_loss,
        ),
    )
    columns = ["Level", "Rank", f"{main.label}, its own"]
    if decision.is_smoothed:
        columns.append("with its neighbours")
    shows_loss = has_loss(measures) and not main.is_loss
    if shows_loss:
        columns.append("Validation loss")
    columns.append("Verdict")
    rows, row_groups, texts = [], [], {}
    for rank, index in enumerate(order, 1):
        candidate = decision.candidates[index]
        row = [candidate.level, rank, unit.own(candidate)]
        if decision.is_smoothed:
            row.append(unit.compared(candidate))
        if shows_loss:
            row.append(candidate.loss)
        verdict = "chosen" if index == decision.best else "worse"
        if index != decision.best and candidate.is_equal:
            verdict = "as good" if decision.standard_error else "a neighbour of the choice"
        if candidate.level is None:
            texts[rank - 1, 0] = "no flooding"
        rows.append([*row, verdict])
        row_groups.append(groups.of_level(candidate.level))
    caption = "Levels, ranked by what decided"
    return DataTable("levels", caption, columns, rows, row_groups, "", 1, texts)


def _estimates_table(result: SearchResult) -> DataTable:
    rows = []
    for estimate in result.estimates:
        rows.append([estimate.name, estimate.level, estimate.low, estimate.high, estimate.note])
    columns = ["Estimate", "Level", "From", "To", "Note"]
    return DataTable("estimates", "Estimates of the level, with their intervals", columns, rows)


def _training_section(result: SearchResult, groups: Groups) -> Section | None:
    if not result.records:
        return None
    blocks: list[Block] = []
    charts = curve_charts(result, groups)
    diagram = calibration_chart(result, groups)
    if diagram is not None:
        charts.append(diagram)
    if charts:
        blocks.append(Charts(charts))
    blocks.append(_trainings_table(result, groups))
    return Section("trainings", "Every training", blocks)


def _trainings_table(result: SearchResult, groups: Groups) -> DataTable:
    """Show a row for each training, with the results of its last epoch."""
    table = result.table
    names = list(dict.fromkeys(name for row in table for name in row))
    rows, texts = [], {}
    row_groups = [groups.of_record(record) for record in result.records]
    for index, row in enumerate(table):
        rows.append([row.get(name) for name in names])
        # A controller is named as its group is.
        group = row_groups[index]
        if not isinstance(row["level"], float) and group is not None:
            texts[index, 0] = groups.shown[group].name
    columns = [name.replace("_", " ").capitalize() for name in names]
    note = "Results of the last epoch. “Flooded” is the share of steps below the level."
    return DataTable(
        "runs",
        "Trainings, in the order of the search",
        columns,
        rows,
        row_groups,
        note,
        None,
        texts,
    )


def _assumptions_section(result: SearchResult, about: SearchAbout) -> Section | None:
    sentences = list(about.assumptions)
    if isinstance(result.run.problem, Problem):
        sentences.append("The validation split selects the level; the test split selects nothing.")
    sentences.append(
        "A level holds for this setting alone: search again when the data, the network, the "
        "optimiser or the number of epochs change."
    )
    return Section("assumptions", "What was assumed", [Sentences(sentences)])


def _repeat_section(result: SearchResult, about: SearchAbout) -> Section:
    cost = result.cost
    sentences = [
        f"The search cost {cost.steps:.2f} full trainings: {pluralize(cost.epochs, 'epoch')} in "
        f"{pluralize(len(result.records), 'run')}, {format_duration(3600 * cost.hours)} of "
        "training.",
    ]
    if cost.steps < cost.trainings - 0.005:
        saved = 1 - cost.steps / cost.trainings
        sentences.append(f"Shared beginnings saved {saved:.0%} of the steps.")
    if result.records:
        sentences.append(describe_provenance(result.records))
    sentences.append(
        f"This page: flooding {__version__}, Python {platform.python_version()}, torch "
        f"{torch.__version__}."
    )
    blocks: list[Block] = [Sentences(sentences, is_paragraph=True)]
    if about.command:
        blocks.append(Code("Repeat the search; finished runs are looked up", about.command))
    blocks.append(Code("Use the result", _usage(result)))
    return Section("repeat", "Cost, versions, and how to repeat it", blocks)


def _usage(result: SearchResult) -> str:
    """Write the lines that train with the result."""
    level = result.run.level
    if level is None:
        return "loss = criterion(model(x), y)  # as before: without flooding"
    argument = f"{level:.4g}" if isinstance(level, float) else brief(level)
    if not isinstance(level, float) and result.strategy == "auto":
        argument = f"flooding.levels.Auto(epochs={result.run.problem.max_epochs})"
    return f"import flooding\n\ncriterion = flooding.Flood(criterion, {argument})"
