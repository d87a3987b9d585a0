"""Should I use flooding? What the comparison of methods says, in three lines and one table."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from flooding.report.stats import critical_difference

__all__ = ["Gain", "Method", "evidence", "read_gains", "read_methods", "sentences", "short"]

RESULTS = Path(__file__).parents[1] / "results"
# Rows of the table: the words for them, and the number of trainings.
ROWS = {
    "plain": ("Plain training, last epoch", 1),
    "flooding": ("Flooding, last epoch", 4),
    "auto level + average": ("Auto level, average of the weights", 1),
    "early stopping": ("Plain training, early stopping", 1),
    "early stopping + average": ("Early stopping, average of the weights", 1),
    "dropout": ("Dropout, last epoch", 4),
    "weight decay": ("Weight decay, last epoch", 4),
}


@dataclass(frozen=True)
class Gain:
    """Flooding's last epoch minus another method, in test accuracy.

    Args:
        points: Mean difference in percentage points.
        is_significant: At 5 %, after correction for the number of tests.
    """

    points: float
    is_significant: bool

    def __str__(self) -> str:
        return f"{self.points:+.1f}".replace("-", "−")


@dataclass(frozen=True)
class Method:
    """A method's means over all problems and seeds.

    Args:
        accuracy: On clean test labels, in percent.
        rank: Mean rank by accuracy, 1 the best.
        nll: Negative log-likelihood of the test labels, in nats.
        against_plain: Accuracy minus plain training's, in points; "–" for plain training.
    """

    accuracy: str
    rank: float
    nll: Decimal
    against_plain: str


def _cents(value: Decimal) -> str:
    """Round to two decimals, halves up, as one does by hand."""
    return str(value.quantize(Decimal("0.01"), ROUND_HALF_UP))


def read_methods() -> dict[str, Method]:
    """Read the table of all methods."""
    methods = {}
    with (RESULTS / "bakeoff-overall.csv").open() as file:
        for row in csv.DictReader(file):
            difference = row["minus plain"].split(" ")[0].replace("-", "−")
            nll = Decimal(row["NLL"])
            methods[row["method"]] = Method(row["accuracy %"], float(row["rank"]), nll, difference)
    return methods


def read_gains(page: str) -> dict[str, Gain]:
    """Read how flooding compares with plain training and with early stopping.

    Args:
        page: The page of the comparison.

    Returns:
        The gain over each of the two.
    """
    gains = {}
    pattern = r"flooding against (plain|early stopping): (.*?): ([+-][\d.]+) \["
    for rival, verdict, points in re.findall(rf"^- (?:Planned: )?{pattern}", page, re.MULTILINE):
        gains[rival] = Gain(float(points), verdict in ("wins", "LOSES"))
    return gains


def _find_largest(page: str) -> tuple[str, str]:
    """Find the problem on which flooding gained most over plain training, and its points."""
    match = re.search(r"^- Flooding minus plain: most on (.*?) ([+-][\d.]+) \[", page, re.MULTILINE)
    assert match
    return match[1].replace(", ", " with ") + " label noise", match[2]


def _better_rows(methods: Mapping[str, Method]) -> list[str]:
    """Name the methods of the table that are more accurate than flooding at the last epoch."""
    limit = float(methods["flooding"].accuracy)
    better = []
    for name, (title, _) in ROWS.items():
        is_last = name in methods and "last epoch" in title
        if is_last and float(methods[name].accuracy) > limit:
            better.append(name)
    return better


def _describe_rank(methods: Mapping[str, Method], num_problems: int) -> str:
    best, second, *_ = sorted(methods, key=lambda name: methods[name].rank)
    text = f"{best} has the best mean rank of {len(methods)} methods"
    distance = methods[second].rank - methods[best].rank
    if distance < critical_difference(len(methods), num_problems):
        text += f", but {second} is as good"
    return text


def sentences(methods: Mapping[str, Method], gains: Mapping[str, Gain], page: str) -> list[str]:
    """Write three lines of advice, whose words follow the numbers.

    Args:
        methods: The table of all methods.
        gains: Flooding's gain over plain training and over early stopping.
        page: The page of the comparison, for the problem of the largest gain.

    Returns:
        Three items of a Markdown list.
    """
    plain, stopping = gains["plain"], gains["early stopping"]
    name, points = _find_largest(page)
    doubt = "" if plain.is_significant else ", not significant"
    answer = "use flooding" if plain.is_significant and plain.points > 0 else "try flooding"
    better = _better_rows(methods)
    more = ""
    if better:
        answer += " or another regulariser"
        more = f"; {' and '.join(better)} gained as much or more"
    words = "is as good"
    if stopping.is_significant:
        words = "is better" if stopping.points < 0 else "is worse"
    unsure = "" if stopping.is_significant else ", not significant"
    num_problems = re.search(r"over (\d+) problems", page)
    rank = _describe_rank(methods, int(num_problems[1]) if num_problems else 1)
    return [
        f"- **You keep the last epoch, and labels are noisy: {answer}.** Flooding gained {plain} "
        f"points over plain training on average{doubt}, and {points} on {name}{more}.",
        "- **You can keep the best validation epoch: use early stopping.** It costs one training "
        f"instead of four and {words} (flooding minus it: {stopping} points{unsure}).",
        f"- **You look for the best regulariser: measure.** Here {rank}. "
        "`flooding compare` measures twelve of them on your problem.",
    ]


def _table(methods: Mapping[str, Method]) -> list[str]:
    lines = [
        "| Method | Trainings | Accuracy, % | Minus plain, points | Test NLL, nats |",
        "|---|---|---|---|---|",
    ]
    for name, (title, trainings) in ROWS.items():
        method = methods[name]
        cells = [title, str(trainings), method.accuracy, method.against_plain, _cents(method.nll)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def short() -> str:
    """Write three lines and one table."""
    methods = read_methods()
    page = (RESULTS / "bakeoff.md").read_text()
    numbers = re.search(
        r"^\d+ methods on (\d+) problems, (?:(\d+) to )?(\d+) seeds", page, re.MULTILINE
    )
    assert numbers
    problems, fewest, seeds = numbers.groups()
    note = (
        f"Means over {problems} problems, nearly all with noisy labels, and {fewest or seeds} "
        "seeds. Accuracy is on clean test labels."
    )
    if fewest:
        note += (
            " Differences of rows with plain training, early stopping, flooding or the auto level "
            f"are over {seeds} seeds."
        )
    if "This is a look before the end" in page:
        note += " More seeds are planned, and may change the second line."
    lines = sentences(methods, read_gains(page), page)
    return "\n".join([*lines, "", *_table(methods), "", note])


def _items(page: str, patterns: Sequence[str]) -> list[str]:
    found = []
    for pattern in patterns:
        found += re.findall(rf"^- ({pattern}.*)$", page, re.MULTILINE)
    return found


def evidence() -> str:
    """Give the sentences of the result pages, with intervals and tests."""
    bakeoff = (RESULTS / "bakeoff.md").read_text()
    tests = r"(?:Planned: )?flooding(?: \+ early stopping)? against (?:plain|early stopping): "
    items = _items(bakeoff, ["Flooding minus (?:plain|early stopping): most ", tests])
    table = (RESULTS / "ishida2020.md").read_text()
    cells = _items(table, [r"Accuracy on clean test labels, (?:last|early|flooding's)"])
    link = "[The paper's synthetic table](results/ishida2020.md), cell by cell"
    lines = [f"- {item}" for item in items]
    lines += [f"- {link}. {cell}" for cell in cells]
    images = (RESULTS / "ishida2020_images.md").read_text()
    compared = (
        "last epoch: ",
        "flooding's last epoch against plain early stopping: ",
        "auto level, averaged, against plain training: ",
        "auto level against plain training, both averaged: ",
        "auto level, averaged, against plain early stopping: ",
    )
    link = "[All images](results/ishida2020_images.md)"
    for comparison in compared:
        texts = _items(images, [rf"(?:Fashion-)?MNIST(?:, 20 % label noise)?, {comparison}"])
        lines += [f"- {link}. {text}" for text in texts]
    return "\n".join(lines)
