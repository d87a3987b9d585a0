"""The report page of ``flooding demo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flooding.cli import _demo_report as demo
from flooding.cli._report import command_line
from flooding.levels import Auto
from flooding.report.chart import Chart
from flooding.report.document import Table
from flooding.report.document_page import data_table, small_png
from flooding.report.groups import level_groups
from flooding.report.page import Block, Charts, Code, Page, Picture, Section, Sentences
from flooding.report.page_charts import Curve, Side, chart_name, curve_chart, reliability_chart
from flooding.report.page_file import ReportPage
from flooding.report.provenance import describe_provenance
from flooding.report.record_metrics import run_of
from flooding.training.record import Record

__all__ = ["demo_page"]

_CURVES = {
    "train_loss": "Training loss (nats per example)",
    "val_loss": "Validation loss (nats per example)",
}
_AUTO = "auto level"
_PICTURES = {
    "boundary": "Where the networks draw the boundary on Sinusoid, without and with flooding."
}
_ABOUT = (
    "Sinusoid as in the method's public demo, and real handwritten digits. Each is trained "
    "without flooding, at several flood levels, and once with a level that is chosen while it runs "
    "(the auto level).",
    "A level is chosen on the validation labels, which are noisy, as yours are. The test split "
    "chooses nothing.",
)


def demo_page(
    tasks: Sequence[demo.Task],
    records: Sequence[Sequence[Record]],
    summaries: Sequence[Mapping[str, object]],
    folder: Path,
) -> ReportPage:
    """Make the page of the demo.

    Args:
        tasks: The tasks.
        records: The Records of each.
        summaries: Title, rows and result of each, as printed.
        folder: Where the pictures are.

    Returns:
        The page.
    """
    everything = [record for some in records for record in some]
    levels = sorted({record.level or 0.0 for record in everything if not _is_auto(record)})
    # By rank, since levels of different tasks may be close to each other; the auto level is last.
    names = [_level_name(level) for level in levels] + [_AUTO]
    shares = [None, *(rank / len(levels) for rank in range(1, len(names)))]
    index_of = {name: index for index, name in enumerate(names)}
    sections = [
        _task_section(number, task, some, summary, index_of)
        for number, (task, some, summary) in enumerate(zip(tasks, records, summaries, strict=True))
    ]
    pictures: list[Block] = []
    for name, caption in _PICTURES.items():
        pictures.append(Picture(small_png((folder / f"{name}.png").read_bytes()), caption))
    sections.append(Section("boundary", "The boundary", pictures))
    sections.append(Section("how", "How it was done", [Sentences(_ABOUT)]))
    repeat: list[Block] = [
        Sentences([describe_provenance(everything)], is_paragraph=True),
        Code("Repeat it; finished runs are looked up", command_line()),
    ]
    sections.append(Section("repeat", "Cost, versions, and how to repeat it", repeat))
    asked = {
        "Tasks": "; ".join(task.title for task in tasks),
        "Seeds": ", ".join(map(str, tasks[0].seeds)),
    }
    answer = _answer(tasks[-1], records[-1])
    return Page(
        "What flooding does", answer, asked, (), sections, level_groups(names, shares)
    ).render()


def _answer(task: demo.Task, records: Sequence[Record]) -> str:
    """Say what happened on the real data."""
    rows = demo.summary(records)
    means = {}
    for name in ("plain training", "plain + early stopping", "flooding", demo.AUTO):
        means[name] = float(np.mean(demo.accuracy(rows[name])))
    return (
        f"{task.title}: flooding reaches {means['flooding']:.1f} % test accuracy, the auto level "
        f"{means[demo.AUTO]:.1f} %, plain training {means['plain training']:.1f} %, and plain "
        f"early stopping {means['plain + early stopping']:.1f} %."
    )


def _is_auto(record: Record) -> bool:
    return isinstance(run_of(record).level, Auto)


def _level_name(level: float) -> str:
    return f"level {level:g}" if level else "no flooding"


def _group(record: Record) -> str:
    """Name the group of a training: by its level, or that it chose its level itself."""
    return _AUTO if _is_auto(record) else _level_name(record.level or 0.0)


def _task_section(
    number: int,
    task: demo.Task,
    records: Sequence[Record],
    summary: Mapping[str, object],
    index_of: Mapping[str, int],
) -> Section:
    """Show the table, the sentences, the curves and the reliability of a task."""
    rows = summary["rows"]
    assert isinstance(rows, dict)
    table = Table.from_dicts(
        f"task-{number}", str(summary["title"]), [{"": name, **row} for name, row in rows.items()]
    )
    table = Table(table.name, table.title, ["Row", *table.columns[1:]], table.rows)
    picks = demo.summary(records)
    compared = []
    for name, row in (("Plain training", "plain training"), ("Flooding", "flooding")):
        chosen = [record for record, _ in picks[row]]
        compared.append(Side(index_of[_group(chosen[0])], name, chosen))
    charts = [_curves(number, name, label, records, index_of) for name, label in _CURVES.items()]
    diagram = reliability_chart(f"reliability-{number}", compared)
    if diagram is not None:
        charts.append(diagram)
    blocks: list[Block] = [
        Sentences(str(summary["result"]).split("\n")),
        data_table(table),
        Charts(charts),
    ]
    return Section(f"task-{number}-title", task.title, blocks, is_selector=number == 0)


def _curves(
    number: int,
    name: str,
    label: str,
    records: Sequence[Record],
    index_of: Mapping[str, int],
) -> Chart:
    curves = []
    for record in records:
        name_of_group = _group(record)
        text = f"{name_of_group.capitalize()}, seed {run_of(record).seed}"
        curve = np.asarray(record.curves[name], np.float64)
        curves.append(Curve(index_of[name_of_group], text, curve))
    text = "A line for each training, coloured by its flood level."
    is_training = name == "train_loss"
    return curve_chart(
        chart_name("curve", name, str(number)),
        label,
        text,
        curves,
        is_training=is_training,
    )
