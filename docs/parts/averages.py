"""What the average of the weights gains, on every real problem: last, average, best, best average.

Everything is read from the lines of ``benchmarks/averaged_searches.py``; nothing is trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flooding import tasks
from flooding.report.stats import Difference, paired
from rule_of_thumb import label_noise

__all__ = ["Line", "gains", "read", "table"]

LINES = Path(__file__).parents[2] / "benchmarks" / "searches" / "averages.jsonl"
NETWORKS = ("last", "average.last", "best", "average.best")
TRAININGS = {"plain": "plain", "auto": "auto level"}

Line: TypeAlias = "Mapping[str, Mapping[str, float]]"
"""The accuracies of one problem and seed, by training and network."""


def read() -> dict[str, list[Line]]:
    """Read all lines, by problem."""
    by_problem: dict[str, list[Line]] = {}
    for line in LINES.read_text().splitlines():
        row = json.loads(line)
        by_problem.setdefault(row["problem"], []).append(row)
    return {name: by_problem[name] for name in tasks.REAL if name in by_problem}


def _accuracies(lines: Sequence[Line], training: str, network: str) -> list[float]:
    return [100 * line[training][network] for line in lines]


def gains(lines: Sequence[Line], training: str) -> list[float]:
    """Give the average minus the last epoch of the same training, in points, for each seed.

    Args:
        lines: The lines of a problem, one for each seed.
        training: "plain" or "auto".
    """
    averages = _accuracies(lines, training, "average.last")
    lasts = _accuracies(lines, training, "last")
    return [average - last for average, last in zip(averages, lasts, strict=True)]


def _rows(name: str, lines: Sequence[Line], more: Difference) -> list[str]:
    """Write the two rows of a problem; ``more`` is what the average gains more with flooding."""
    rows = []
    title = f"{name}, {100 * label_noise(tasks.REAL[name].data):g} % label noise"
    for training, label in TRAININGS.items():
        means = [np.mean(_accuracies(lines, training, network)) for network in NETWORKS]
        last, average, best, best_average = (f"{mean:.1f}" for mean in means)
        gain = paired(gains(lines, training), [0.0] * len(lines))
        minus_plain = "" if training == "plain" else str(more)
        cells = [title, label, str(len(lines)), last, average, str(gain), minus_plain]
        cells += [best, best_average]
        rows.append(f"| {' | '.join(cells)} |")
        title = ""
    return rows


def table(by_problem: Mapping[str, Sequence[Line]] | None = None) -> str:
    """Write the table, and in words on which problems the average gains more with flooding.

    Args:
        by_problem: The lines of each problem; those of the file if None.

    Returns:
        Markdown.
    """
    by_problem = read() if by_problem is None else by_problem
    rows = [
        "| Problem | Training | n | last | average | gain | minus plain's gain | best "
        "| best average |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[str]] = {"more": [], "less": [], "the same": []}
    for name, lines in by_problem.items():
        more = paired(gains(lines, "auto"), gains(lines, "plain"))
        rows += _rows(name, lines, more)
        group = "the same"
        if more.p < 0.05:
            group = "more" if more.mean > 0 else "less"
        groups[group].append(name)
    texts = {
        "more": "The average gains more with flooding than without on {}.",
        "less": "It gains less with flooding on {}.",
        "the same": "It is not shown to gain more or less with flooding on {}.",
    }
    words = [texts[group].format(", ".join(names)) for group, names in groups.items() if names]
    note = "Each verdict is by the interval of its problem alone, not corrected."
    return "\n".join([*rows, "", " ".join([*words, note])])
