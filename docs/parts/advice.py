"""Should I use flooding? What the comparison of methods says, in three lines and one table."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

__all__ = ["Gain", "Method", "evidence", "read_gain", "read_methods", "sentences", "short"]

RESULTS = Path(__file__).parents[1] / "results"
SIGNIFICANT = 0.05
# Rows of the table, with the number of trainings and the words for them.
ROWS = {
    "plain": ("Plain training, last epoch", 1),
    "flooding": ("Flooding, last epoch", 4),
    "early stopping": ("Plain training, early stopping", 1),
    "flooding + early stopping": ("Flooding, early stopping", 4),
    "dropout": ("Dropout, last epoch", 4),
    "weight decay": ("Weight decay, last epoch", 4),
}


@dataclass(frozen=True)
class Gain:
    """A difference in test accuracy.

    Args:
        points: In percentage points.
        p: After correction for the number of comparisons.
    """

    points: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Whether it is significant at 5 %."""
        return self.p < SIGNIFICANT

    def __str__(self) -> str:
        text = f"{self.points:+.1f}".replace("-", "−")
        return text if self.is_significant else f"{text} (not significant)"


@dataclass(frozen=True)
class Method:
    """A method's means over all problems and seeds.

    Args:
        accuracy: On clean test labels, in percent.
        nll: Negative log-likelihood of the test labels, in nats.
        against_plain: Its gain over plain training; None for plain training.
        against_stopping: Its gain over early stopping; None for early stopping.
    """

    accuracy: float
    nll: Decimal
    against_plain: Gain | None
    against_stopping: Gain | None


def _cents(value: Decimal) -> str:
    """Round to two decimals, halves up, as one does by hand."""
    return str(value.quantize(Decimal("0.01"), ROUND_HALF_UP))


def read_gain(text: str) -> Gain | None:
    """Read a cell such as ``+2.1 [+0.4, +3.9] p 0.112``; None for a dash."""
    match = re.match(r"([+-][\d.]+) .*p (?:< )?([\d.]+)$", text)
    return Gain(float(match[1]), float(match[2])) if match else None


def read_methods() -> dict[str, Method]:
    """Read the table of all methods."""
    methods = {}
    with (RESULTS / "bakeoff-overall.csv").open() as file:
        for row in csv.DictReader(file):
            methods[row["method"]] = Method(
                float(row["accuracy %"]),
                Decimal(row["NLL"]),
                read_gain(row["minus plain"]),
                read_gain(row["minus early stopping"]),
            )
    return methods


def _read_rivals() -> dict[str, Gain]:
    """Read flooding's gains over each other regulariser, at the same number of trainings."""
    page = (RESULTS / "bakeoff.md").read_text()
    pattern = r"^- flooding against (.*?): .*?([+-][\d.]+) \[.* p (?:< )?([\d.]+)\.$"
    rivals = {}
    for name, points, p in re.findall(pattern, page, re.MULTILINE):
        if name not in ("plain", "early stopping"):
            rivals[name] = Gain(float(points), float(p))
    return rivals


def _compare_rivals(rivals: dict[str, Gain]) -> str:
    better = [name for name, gain in rivals.items() if gain.is_significant and gain.points < 0]
    worse = [name for name, gain in rivals.items() if gain.is_significant and gain.points > 0]
    if not better and not worse:
        return f"none of {len(rivals)} differs significantly in accuracy"
    parts = []
    if better:
        parts.append(f"significantly better: {', '.join(better)}")
    if worse:
        parts.append(f"significantly worse: {', '.join(worse)}")
    return "; ".join(parts)


def _largest(page: str) -> tuple[str, str]:
    """Read the problem on which flooding gained most over plain training, and its points."""
    match = re.search(r"^- Flooding minus plain: most on (.*?) ([+-][\d.]+) \[", page, re.MULTILINE)
    assert match
    return match[1].replace(", ", " with ") + " label noise", match[2]


def sentences(methods: dict[str, Method], rivals: dict[str, Gain], page: str) -> list[str]:
    """Write three lines of advice, whose words follow the numbers.

    Args:
        methods: The table of all methods.
        rivals: Flooding's gains over the other regularisers.
        page: The page of the comparison, for the problem of the largest gain.

    Returns:
        Three items of a Markdown list.
    """
    plain, stopping = methods["flooding"].against_plain, methods["flooding"].against_stopping
    assert plain
    assert stopping
    name, points = _largest(page)
    if stopping.is_significant:
        words = "it is worse" if stopping.points > 0 else "it is better"
        words = f"{words} (flooding minus it: {stopping} points)"
    else:
        words = f"it is as good (flooding minus it: {stopping} points)".replace(
            " (not significant) points", " points, not significant"
        )
    gain = str(plain).replace(" (not significant)", "")
    doubt = "" if plain.is_significant else ", not significant"
    nll = [_cents(methods[key].nll) for key in ("plain", "flooding")]
    return [
        f"- **You keep the last epoch, and labels are noisy: yes, try it.** It gained {points} "
        f"points on {name}, and {gain} on average{doubt}. The test NLL fell from {nll[0]} to "
        f"{nll[1]} nats.",
        "- **You can keep the best validation epoch: use early stopping.** It costs one training "
        f"instead of four, and {words}.",
        "- **You look for the best regulariser: measure.** Of the others, with as many trainings, "
        f"{_compare_rivals(rivals)}. `flooding compare` measures them on your problem.",
    ]


def _table(methods: dict[str, Method]) -> list[str]:
    lines = [
        "| Method | Trainings | Accuracy, % | Minus plain, points | Test NLL, nats |",
        "|---|---|---|---|---|",
    ]
    for name, (title, trainings) in ROWS.items():
        method = methods[name]
        gain = str(method.against_plain or "–").replace(" (not significant)", "")
        mark = r" \*" if method.against_plain and method.against_plain.is_significant else ""
        cells = [title, trainings, f"{method.accuracy:.1f}", f"{gain}{mark}", _cents(method.nll)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def short() -> str:
    """Write three lines and one table."""
    methods = read_methods()
    page = (RESULTS / "bakeoff.md").read_text()
    numbers = re.search(r"^(\d+) methods on (\d+) problems, (\d+) seeds", page, re.MULTILINE)
    assert numbers
    note = (
        f"Means over {numbers[2]} problems, nearly all with noisy labels, and {numbers[3]} seeds; "
        r"accuracy on clean test labels. \*: significant at 5 %, corrected for the number of "
        "comparisons."
    )
    lines = sentences(methods, _read_rivals(), page)
    return "\n".join([*lines, "", *_table(methods), "", note])


def _items(page: str, patterns: Sequence[str]) -> list[str]:
    found = []
    for pattern in patterns:
        found += re.findall(rf"^- ({pattern}.*)$", page, re.MULTILINE)
    return found


def evidence() -> str:
    """Give the sentences of the result pages, with intervals and tests."""
    bakeoff = (RESULTS / "bakeoff.md").read_text()
    items = _items(bakeoff, ["Flooding minus (?:plain|early stopping): most "])
    items += _items(
        bakeoff, [r"flooding(?: \+ early stopping)? against (?:plain|early stopping): "]
    )
    table = (RESULTS / "ishida2020.md").read_text()
    cells = _items(table, [r"Clean labels, (?:last|early|flooding's)"])
    link = "[The paper's synthetic table](results/ishida2020.md), cell by cell"
    lines = [f"- {item}" for item in items]
    lines += [f"- {link}. {cell}" for cell in cells]
    return "\n".join(lines)
