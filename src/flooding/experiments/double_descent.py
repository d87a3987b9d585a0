"""Does flooding make the test loss, and the test error, descend a second time? Judged on raw curves
over the epochs.

The paper says so of the loss (Ishida et al., ICML 2020). The reproduction of our sources looked at
high noise alone and saw no double descent with weight decay, where its levels were never reached:
here a level that was never reached is "not tested", and the statement is judged by the others
alone.

The criterion, on the measured points of one training, clean test labels where there are any,
nothing smoothed: with c(0) the first point and d = (c(0) - min c) / 20, a twentieth of the whole
fall,

- the first minimum m1 is the lowest value before the curve has risen by more than d from its lowest
  value so far, which itself lies more than d below c(0). Without such a rise there is nothing to
  descend from: "no rise".
- the peak p and the second minimum m2, a point after it, are the pair after m1 with the largest p -
  m2. There is a second descent if p - m2 > d. Its recovery is (p - m2) / (p - m1); m1 is regained
  if m2 <= m1.
- the end is the mean of the last ten points. A minimum is chosen, and too low by the more the
  noisier the curve is; the end is not. So flooding is compared with plain training by end - m1.
- the largest fall of a noisy curve is biased too. So a second descent is "lasting" only if the mean
  of the ten points around the peak exceeds the end by more than d and by more than a twentieth of
  the rise p - m1.

Where the curve does not fall below m1 later, d is a twentieth of c(0) - m1. Where it does, c(0) -
m1 alone would take the jitter of the first epochs for a minimum. "Lasting" was added before any
test curve with flooding was seen, because in the validation losses of the level benchmark nearly
every curve falls by d somewhere, without flooding too.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from flooding.experiments import Experiment, Study, describe_provenance, grids
from flooding.experiments.archive import to_half
from flooding.experiments.ishida2020 import NOISES, TASKS, Cell
from flooding.report.document import Report, Table
from flooding.report.stats import (
    Difference,
    format_mean_sd,
    format_p,
    holm,
    mcnemar,
    paired,
    pluralize,
)
from flooding.tasks import adamw, real
from flooding.training.problem import Problem, TestCurve
from flooding.training.record import Record
from flooding.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CURVES",
    "EXPERIMENT",
    "DIGITS_LEVELS",
    "FACTORS",
    "SYNTHETIC_LEVELS",
    "WEIGHT_DECAY",
    "Condition",
    "Descents",
    "Point",
    "combinations",
    "decayed",
    "descents",
    "experiment",
    "listed",
    "plan",
    "study",
]

CURVES = (
    "flooded",
    "test_accuracy",
    "test_accuracy_clean",
    "test_loss",
    "test_loss_clean",
    "train_loss",
)
# Fixed beforehand, not chosen.
SYNTHETIC_LEVELS = (0.0, 0.05, 0.15, 0.3)
DIGITS_LEVELS = (0.0, 0.2, 0.5, 0.8)
FACTORS = ("augmentation", "rate decay", "weight decay")
# Decoupled, times the learning rate. Chosen by the training loss of a plain training with another
# seed (100): at 0.1 it ends where it does without; at 0.5 two to three times as high, and 0.44 with
# augmentation and rate decay, so that at least 0.5 and 0.8 are reached in every combination; at 1.0
# only 0.8 would be.
WEIGHT_DECAY = 0.5

_PARTS = 20  # a twentieth, 5 %: dividing is exact where multiplying by 0.05 is not
_NEAR = 10  # points that are averaged at the end and around the peak
_DIGITS_TEST = 897


class Point(NamedTuple):
    """A point of a curve.

    Args:
        epoch: Epoch it was measured after.
        value: What was measured.
    """

    epoch: int
    value: float


class Descents(NamedTuple):
    """What a curve does: falls, rises, falls again. See the criterion in this module's docstring.

    Args:
        first: The first minimum m1, the lowest point of all where nothing rises.
        peak: The peak p, the highest point after m1 where there is no second descent; None where
            nothing rises.
        second: The second minimum m2; None where there is no second descent.
        step: A twentieth of the whole fall, in the unit of the curve.
        crest: Mean of up to ten points around the peak; NaN where nothing rises.
        end: Mean of the last ten points, of all where there are fewer.
    """

    first: Point
    peak: Point | None
    second: Point | None
    step: float
    crest: float
    end: float

    @property
    def recovery(self) -> float:
        """Share of the rise that the second descent takes back, above 1 below m1; NaN where there
        is none.
        """
        if self.peak is None or self.second is None:
            return math.nan
        return (self.peak.value - self.second.value) / (self.peak.value - self.first.value)

    @property
    def gap(self) -> float:
        """m2 - m1, not above 0 where the first minimum is regained; NaN where there is no second
        descent.
        """
        return math.nan if self.second is None else self.second.value - self.first.value

    @property
    def tail(self) -> float:
        """How far the end lies above the first minimum."""
        return self.end - self.first.value

    @property
    def lasting(self) -> bool:
        """Whether the second descent shows in averages around the peak and at the end, too."""
        if self.peak is None or self.second is None:
            return False
        return self.crest - self.end > max(self.step, (self.peak.value - self.first.value) / _PARTS)


def descents(curve: np.ndarray, epochs: np.ndarray) -> Descents:
    """Find the first minimum, the peak and the second minimum of a curve by the criterion above.

    Of equal values the first counts. A monotone or constant curve has no rise; one that rises to
    its very end has a rise and no second descent.

    Args:
        curve: Loss or error, ``[points]``; those that are not finite were not measured.
        epochs: Their epochs, ``[points]``, ascending.

    Returns:
        What was found.

    Raises:
        ValueError: If there is no finite point, or not an epoch for each point.

    Example:
        >>> found = descents(np.array([9.0, 1.0, 5.0, 2.0]), np.arange(4))
        >>> found.first, found.peak, found.second
        (Point(epoch=1, value=1.0), Point(epoch=2, value=5.0), Point(epoch=3, value=2.0))
        >>> found.recovery, found.gap
        (0.75, 1.0)
        >>> descents(np.array([9.0, 1.0, np.nan, 5.0]), np.arange(4)).second is None  # rises to the end
        True
        >>> descents(np.array([9.0, 5.0, 1.0]), np.arange(3)).peak is None  # no rise
        True
    """
    curve = np.asarray(curve, np.float64)
    measured = np.isfinite(curve)
    if np.shape(epochs) != curve.shape or curve.ndim != 1 or not measured.any():
        got = f"{list(curve.shape)} with {measured.sum()} finite, and {list(np.shape(epochs))}"
        raise ValueError(
            f"a curve must be [points], some finite, with an epoch for each, got {got}. Set a test_curve."
        )
    c, at = curve[measured], np.asarray(epochs)[measured]
    points = [Point(int(epoch), float(value)) for epoch, value in zip(at, c, strict=True)]
    step, end = float(c[0] - c.min()) / _PARTS, float(c[-_NEAR:].mean())
    first = _first_minimum(c, step)
    if first is None:
        return Descents(points[c.argmin()], None, None, step, math.nan, end)
    top, low = (first + i for i in _largest_fall(c[first:]))
    again = bool(c[top] - c[low] > step)
    top = top if again else first + int(c[first:].argmax())
    crest = float(c[max(top - _NEAR // 2, 0) : top + _NEAR // 2].mean())
    return Descents(points[first], points[top], points[low] if again else None, step, crest, end)


def _first_minimum(c: np.ndarray, step: float) -> int | None:
    """Index of the lowest value before the first rise by more than a step; None without a rise."""
    least = np.minimum.accumulate(c)
    # From the start itself nothing rises: there must have been a descent.
    risen = np.flatnonzero((c - least > step) & (c[0] - least > step))
    return int(c[: risen[0]].argmin()) if len(risen) else None


def _largest_fall(c: np.ndarray) -> tuple[int, int]:
    """Indices of a value and a later one that lies below it by the most."""
    low = int((np.maximum.accumulate(c) - c).argmax())
    return int(c[: low + 1].argmax()), low


@dataclass(frozen=True)
class Condition(grids.Cell):
    """One problem, with a test curve, its levels and seeds.

    Args:
        factors: Which of :data:`FACTORS` it has.
    """

    factors: tuple[str, ...] = ()


def plan(quick: bool = False) -> dict[str, list[Condition]]:
    """Plan the conditions: nine synthetic cells, and digits with and without each of three factors.

    Args:
        quick: Two seeds; Two Gaussians for 100 epochs at two levels, and two conditions of digits
            for 40 epochs: the shape of the result in two minutes on two cores.

    Returns:
        The conditions by group, ``synthetic`` and ``digits``.
    """
    seeds = (0, 1) if quick else tuple(range(10))
    max_epochs, levels = (100, (0.0, 0.15)) if quick else (500, SYNTHETIC_LEVELS)
    tasks = ["two-gaussians"] if quick else list(TASKS)
    cells = [Cell(task, noise, levels, seeds, max_epochs) for task in tasks for noise in NOISES]
    chosen = [(), ("weight decay",)] if quick else combinations()
    return {
        "synthetic": [_synthetic(cell) for cell in cells],
        "digits": [_digits(factors, seeds, 40 if quick else 200) for factors in chosen],
    }


def combinations() -> list[tuple[str, ...]]:
    """Give all subsets of the factors, those without weight decay first."""
    switches = (
        dict(zip(reversed(FACTORS), on, strict=True))
        for on in product((False, True), repeat=len(FACTORS))
    )
    return [tuple(factor for factor in FACTORS if on[factor]) for on in switches]


def _synthetic(cell: Cell) -> Condition:
    problem = replace(cell.problem, test_curve=TestCurve(1000, every=2))
    return Condition(cell.title, problem, cell.levels, cell.seeds)


def _digits(factors: tuple[str, ...], seeds: tuple[int, ...], max_epochs: int) -> Condition:
    problem = real("digits", augment="augmentation" in factors, max_epochs=max_epochs)
    problem = decayed(
        replace(problem, test_curve=TestCurve(_DIGITS_TEST, every=1)), factors, WEIGHT_DECAY
    )
    return Condition(" + ".join(["Digits", *factors]), problem, DIGITS_LEVELS, seeds, factors)


def decayed(problem: Problem, factors: Sequence[str], weight_decay: float) -> Problem:
    """Add the two kinds of decay to a problem.

    Args:
        problem: A Problem trained with Adam.
        factors: Which of :data:`FACTORS` to add; augmentation is the caller's.
        weight_decay: Decoupled, times the learning rate.

    Returns:
        The Problem with them.
    """
    if "rate decay" in factors:
        milestones = (problem.max_epochs // 2, problem.max_epochs * 4 // 5)
        schedule = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=milestones, gamma=0.1)
        problem = replace(problem, lr_scheduler=schedule)
    if "weight decay" in factors:
        problem = replace(problem, optimizer=partial(adamw, weight_decay=weight_decay))
    return problem


def experiment(quick: bool = False, seeds: Sequence[int] | None = None) -> Study:
    """Train all conditions and judge every test curve by the criterion of this module.

    Args:
        quick: See :func:`plan`.
        seeds: Other seeds than the ten, such as those that are trained so far.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    groups = plan(quick)
    title = "A second descent of test loss and test error (Ishida et al., 2020)"
    return (yield from study(groups, title, _about(groups), seeds))


def study(
    groups: Mapping[str, Sequence[Condition]],
    title: str,
    about: str,
    seeds: Sequence[int] | None = None,
) -> Generator[list[Run], list[Record], Report]:
    """Train conditions and judge every test curve by the criterion of this module.

    Args:
        groups: Conditions by the group they are tabulated and drawn in: "synthetic", "digits" or
            "cifar10".
        title: The report's heading.
        about: What is trained; the criterion is added.
        seeds: Other seeds than the conditions'.

    Yields:
        The Runs.

    Returns:
        The report.
    """
    if seeds is not None:
        groups = {
            g: [replace(c, seeds=tuple(seeds)) for c in conditions]
            for g, conditions in groups.items()
        }
    records = yield [
        run for conditions in groups.values() for condition in conditions for run in condition.runs
    ]
    told = iter(records)
    panels = {
        g: [_Panel(c, [next(told) for _ in c.runs]) for c in conditions]
        for g, conditions in groups.items()
    }
    n = len(next(iter(panels.values()))[0].condition.seeds)
    about = f"{about} {pluralize(n, 'seed')}. Levels were fixed beforehand, and test data choose nothing.\n\n{_CRITERION}"
    return _report(panels, records, title, about)


class _Measure(NamedTuple):
    """What is judged: its name, what its curve is called, its unit, and the digits it is told
    with.
    """

    name: str
    curve: str
    unit: str
    digits: int


_MEASURES = (_Measure("loss", "test_loss", "nats", 3), _Measure("error", "test_accuracy", "%", 1))
_GROUPS = {"synthetic": "Synthetic tasks", "digits": "Digits", "cifar10": "CIFAR-10"}
_UNTESTED = "not tested (level never reached)"


@dataclass(frozen=True)
class _Panel:
    """A condition and its Records, in the order of its Runs."""

    condition: Condition
    records: list[Record]

    def at(self, level: float) -> list[Record]:
        """Its Records at a level, a seed each."""
        return self.records[self.condition.levels.index(level) :: len(self.condition.levels)]


def _kept(record: Record, name: str) -> np.ndarray:
    """Give a curve as an archive keeps it, so that a report from one says the same."""
    return to_half(record.curves[name]).astype(np.float64)


def _curve(record: Record, measure: _Measure) -> np.ndarray:
    """Give test loss in nats or test error in percent per epoch, on clean labels where there are
    any.
    """
    clean = f"{measure.curve}_clean"
    curve = _kept(record, clean if clean in record.curves else measure.curve)
    return curve if measure.name == "loss" else 100 * (1 - curve)


def _flooded(record: Record) -> float:
    """Share of flooded steps from the first epoch that has one; 0 where the level was never
    reached.
    """
    curve = _kept(record, "flooded")
    reached = np.flatnonzero(curve > 0)
    return float(np.nanmean(curve[reached[0] :])) if len(reached) else 0.0


def _reached(record: Record) -> bool:
    """Tell whether a level was reached by more than a stray batch."""
    return float(np.nanmean(_kept(record, "flooded")[1:])) >= grids.REACHED


@dataclass(frozen=True)
class _Row:
    """A condition at a level, by one measure: what the curve of each seed that reached the level
    does.

    ``found`` and ``plain`` are the same seeds, with flooding and without. Until the level is
    reached both take the same steps, so that leaving seeds out chooses nothing by its outcome. The
    row of level 0 has all seeds, and both are one.
    """

    condition: Condition
    level: float
    seeds: list[int]
    flooded: list[float]
    found: list[Descents]
    plain: list[Descents]

    @cached_property
    def again(self) -> list[Descents]:
        return [found for found in self.found if found.second is not None]

    @property
    def lasting(self) -> int:
        return sum(found.lasting for found in self.found)

    @property
    def regained(self) -> int:
        return sum(found.gap <= 0 for found in self.again)

    @property
    def shows(self) -> bool:
        """Whether flooding brings a lasting second descent: in at least half of the seeds, and
        oftener than plain.
        """
        return 2 * self.lasting >= len(self.found) and self.lasting > sum(
            plain.lasting for plain in self.plain
        )

    @cached_property
    def gap(self) -> Difference | None:
        """m2 against m1, over the seeds that have both."""
        pairs = [
            (found.second.value, found.first.value)
            for found in self.again
            if found.second is not None
        ]
        return paired(*zip(*pairs, strict=True)) if pairs else None

    @cached_property
    def gain(self) -> Difference | None:
        """The end with flooding minus the end without: from one m1, since both begin alike."""
        if not (self.level and self.found):
            return None
        return paired([found.end for found in self.found], [plain.end for plain in self.plain])

    @property
    def p_lasting(self) -> float:
        """Exact p of lasting descents with flooding against without; NaN for plain training."""
        if not (self.level and self.found):
            return math.nan
        return mcnemar(
            [found.lasting for found in self.found], [plain.lasting for plain in self.plain]
        )


def _rows(panels: Sequence[_Panel], measure: _Measure) -> list[_Row]:
    return [_row(panel, level, measure) for panel in panels for level in panel.condition.levels]


def _row(panel: _Panel, level: float, measure: _Measure) -> _Row:
    records, plain = panel.at(level), panel.at(0.0)
    shares = [_flooded(record) for record in records]
    places = [i for i, record in enumerate(records) if level == 0 or _reached(record)]
    found, without = ([_judge(group[i], measure) for i in places] for group in (records, plain))
    seeds = [panel.condition.seeds[i] for i in places]
    return _Row(panel.condition, level, seeds, [shares[i] for i in places], found, without)


def _judge(record: Record, measure: _Measure) -> Descents:
    curve = _curve(record, measure)
    return descents(curve, np.arange(len(curve)))


def _report(
    panels: dict[str, list[_Panel]], records: Sequence[Record], title: str, about: str
) -> Report:
    rows = {(group, m): _rows(some, m) for group, some in panels.items() for m in _MEASURES}
    tables = [_table(group, measure, found) for (group, measure), found in rows.items()]
    failures, findings = _words(rows, panels)
    figures = {
        f"{group}-{m.name}": (
            _caption(group, m),
            partial(_draw, some, m, 3 if group == "synthetic" else 4),
        )
        for group, some in panels.items()
        for m in _MEASURES
    }
    return Report(title, about, failures, findings, tables, figures, describe_provenance(records))


def _about(groups: Mapping[str, Sequence[Condition]]) -> str:
    synthetic, digits = groups["synthetic"][0], groups["digits"][0]
    return (
        f"{len(groups['synthetic'])} synthetic cells in the paper's setting ({synthetic.problem.max_epochs} epochs, "
        f"levels {listed(synthetic.levels)}, some above the irreducible loss of the cells with little noise; 1,000 "
        "test examples, clean labels, every second epoch). Digits with 20 % label noise in "
        f"{len(groups['digits'])} combinations of augmentation (shifts by a pixel), learning-rate decay "
        f"(times 0.1 at 1/2 and 4/5 of the epochs) and weight decay (AdamW, {WEIGHT_DECAY:g}; otherwise Adam) "
        f"({digits.problem.max_epochs} epochs, levels {listed(digits.levels)}; all {_DIGITS_TEST} test examples, every "
        "epoch)."
    )


_CRITERION = (
    "Criterion, on the raw curve c of each training, with c(0) its first point and d a twentieth of its whole fall "
    "c(0) − min c. First minimum m1: the lowest value before the curve has risen by more than d from its lowest so "
    "far, itself more than d below c(0); without such a rise there is nothing to descend from (“no rise”). Peak M "
    "and second minimum m2: the point after m1 and the later one with the largest M − m2. A second descent exists "
    "if M − m2 > d; its recovery is (M − m2) / (M − m1); m1 is regained if m2 ≤ m1. End: the mean of the last ten "
    "points, which is not chosen, while the minimum of a noisy curve is too low. Noise also makes falls: "
    "a second descent is lasting if the mean of the ten points around M exceeds the end by more than d and more "
    "than (M − m1) / 20. Flooding brings a second descent, in what follows, if it is lasting in at least half of "
    "the seeds and in more of them than without flooding; p (lasting) is McNemar's exact one.\n\n"
    f"Rows are over the seeds in which the level was reached, in at least {100 * grids.REACHED:g} % of all steps, and "
    "compared with plain training of the same seeds; a level that no seed reached is not tested. Figures are mean ± "
    "standard deviation over seeds; recovery and "
    "m2 − m1 over those with a second descent; differences are paired by seed, with the 95 % interval of Student's "
    "t; all p are after Holm's correction over the tested rows of their table, those of all rows together over tables."
)

_COLUMNS = (
    *(
        "Condition",
        "level",
        "reached",
        "flooded (%)",
        "second descent",
        "lasting",
        "p (lasting)",
        "no rise",
    ),
    *(
        "epochs of m1, M, m2",
        "recovery",
        "regained",
        "m2 − m1",
        "p (m2)",
        "end − m1",
        "end, flooded − plain",
        "p (end)",
    ),
)


def _table(group: str, measure: _Measure, rows: Sequence[_Row]) -> Table:
    gaps, gains = _holm([row.gap for row in rows]), _holm([row.gain for row in rows])
    lasting = holm([row.p_lasting for row in rows])
    cells = [_cells(row, measure, *ps) for row, *ps in zip(rows, lasting, gaps, gains, strict=True)]
    n = len(rows[0].condition.seeds)
    title = f"{_GROUPS[group]}: does the test {measure.name} ({measure.unit}) descend a second time? n = {n}"
    note = (
        "Flooded: share of steps, from the first epoch with such a step on. Epochs: medians. p (lasting): McNemar, "
        "flooded against plain; p (m2): m2 against m1; p (end): ends, flooded against plain."
    )
    return Table(f"{group}-{measure.name}", title, _COLUMNS, cells, note)


def _holm(differences: Sequence[Difference | None]) -> list[float]:
    return holm([math.nan if difference is None else difference.p for difference in differences])


def _cells(
    row: _Row, measure: _Measure, p_lasting: float, p_gap: float, p_gain: float
) -> list[str]:
    found, again, digits = row.found, row.again, measure.digits
    n, seeds = len(found), len(row.condition.seeds)
    begun = [row.condition.title, f"{row.level:g}", f"{n} of {seeds}" if row.level else "–"]
    if n == 0:
        return [*begun, "0.0", _UNTESTED, *["–"] * (len(_COLUMNS) - len(begun) - 2)]
    return [
        *begun,
        format_mean_sd([100 * share for share in row.flooded]) if row.level else "–",
        f"{len(again)} of {n}",
        f"{row.lasting} of {n}",
        format_p(p_lasting),
        f"{sum(f.peak is None for f in found)} of {n}",
        _epochs(again),
        format_mean_sd([f.recovery for f in again], 2),
        f"{row.regained} of {len(again)}" if again else "–",
        format_mean_sd([f.gap for f in again], digits),
        format_p(p_gap),
        format_mean_sd([f.tail for f in found], digits),
        _difference(row.gain, digits),
        format_p(p_gain),
    ]


def _epochs(again: Sequence[Descents]) -> str:
    told = [
        [point.epoch for point in (f.first, f.peak, f.second) if point is not None] for f in again
    ]
    return ", ".join(f"{epoch:.0f}" for epoch in np.median(told, axis=0)) if told else "–"


def _difference(difference: Difference | None, digits: int) -> str:
    if difference is None:
        return "–"
    mean, low, high = (
        f"{value:+.{digits}f}" for value in (difference.mean, difference.low, difference.high)
    )
    return mean if difference.n < 2 else f"{mean} [{low}, {high}]"


def listed(levels: Sequence[float]) -> str:
    """Name levels, for a sentence."""
    return ", ".join(f"{level:g}" for level in levels)


def _words(
    rows: dict[tuple[str, _Measure], list[_Row]], panels: Mapping[str, Sequence[_Panel]]
) -> tuple[list[str], list[str]]:
    """Say which claims of the sources do not hold, and what was found."""
    failures, findings = [], []
    loss = [row for (_, measure), some in rows.items() if measure.name == "loss" for row in some]
    failures += _unseen(loss)
    for group, some in panels.items():
        begun, sentence = _begun(group, some)
        (findings if begun else failures).append(sentence)
    groups = [
        some
        for (_, m), some in rows.items()
        if m.name == "loss" and any(r.condition.factors for r in some)
    ]
    ps = [p for some in groups for p in holm([row.p_lasting for row in some])]  # as in their tables
    holds, sentence = _with_weight_decay([row for some in groups for row in some], ps)
    (findings if holds else failures).append(sentence)
    gains = {key: _lasting_by_seed(some) for key, some in rows.items()}
    for ((group, measure), some), p in zip(rows.items(), _holm(list(gains.values())), strict=True):
        findings.append(_verdict(group, measure, some, gains[group, measure], p))
        findings += [
            _counts(f"{title} ({_number(part)})", measure, part)
            for title, part in _parts(group, some)
        ]
    return failures, findings


def _begun(group: str, panels: Sequence[_Panel]) -> tuple[bool, str]:
    """Say in how many conditions flooding at the largest level can begin before half of the
    training.
    """
    shares = [grids.falls(panel.at(0.0), panel.condition.levels[-1]) for panel in panels]
    early = [some for some in shares if all(share < 0.5 for share in some)]
    when = (
        f", after {grids.percent([share for some in early for share in some])} of them"
        if early
        else ""
    )
    return len(early) == len(panels), (
        f"{_GROUPS[group]}: plain training is below the largest level before half of the epochs in {len(early)} of "
        f"{pluralize(len(panels), 'condition')}, in every seed{when}."
    )


def _flooding(rows: Sequence[_Row]) -> list[_Row]:
    """Rows with flooding whose level was reached."""
    return [row for row in rows if row.level and row.found]


def _unseen(rows: Sequence[_Row]) -> Iterator[str]:
    """Name the conditions in which no level that was reached brings a second descent of the
    loss.
    """
    for title in dict.fromkeys(row.condition.title for row in rows):
        tested = _flooding([row for row in rows if row.condition.title == title])
        if tested and not any(row.shows for row in tested):
            counts = "; ".join(
                f"level {row.level:g}: {_lasting(row)}{_risen(row)}" for row in tested
            )
            never = [
                row.level
                for row in rows
                if row.condition.title == title and row.level and not row.found
            ]
            yield (
                f"{title}: flooding brings no second descent of the test loss at any level that was reached. "
                f"Lasting descents: {counts}{f'; never reached: {listed(never)}' if never else ''}."
            )


def _lasting(row: _Row) -> str:
    n = len(row.found)
    return f"{row.lasting} of {n} seeds with flooding, {sum(plain.lasting for plain in row.plain)} of {n} without"


def _risen(row: _Row) -> str:
    """Say in how many seeds there is nothing to descend from, if in any."""
    ours, theirs = (sum(f.peak is None for f in some) for some in (row.found, row.plain))
    return f", no rise in {ours} with, {theirs} without" if ours + theirs else ""


def _with_weight_decay(rows: Sequence[_Row], ps: Sequence[float]) -> tuple[bool, str]:
    """Judge the reproduction's statement; say whether it holds here, or is not judged."""
    claim = "“No double descent with weight decay” (the reproduction)"
    decayed = [row for row in _flooding(rows) if "weight decay" in row.condition.factors]
    if not decayed:
        return True, f"{claim} is not judged: with weight decay no level was reached (n = 0)."
    others = [row for row in _flooding(rows) if "weight decay" not in row.condition.factors]
    shown, bare = ([row for row in some if row.shows] for some in (decayed, others))
    count = f"in {len(shown)} of {len(decayed)} rows with weight decay whose level was reached"
    if not shown:  # it says something where there are second descents without weight decay
        verdict = "holds here" if bare else "is not judged, since weight decay makes no difference"
        return True, (
            f"{claim} {verdict}: flooding brings a second descent of the test loss {count}, and in {len(bare)} of "
            f"{len(others)} without it."
        )
    where = "; ".join(f"{row.condition.title} at {row.level:g}" for row in shown)
    sure = any(
        row.shows and p < 0.05
        for row, p in zip(rows, ps, strict=True)
        if "weight decay" in row.condition.factors
    )
    verdict = (
        "does not hold"
        if sure
        else "does not hold by the criterion, which no single row shows at 5 %"
    )
    return False, (
        f"{claim} {verdict}: flooding brings a second descent of the test loss {count} ({where}), lasting in "
        f"{_trainings(shown)}. All rows with weight decay: {_trainings(decayed)}, each of which counts once for every "
        "level it is compared with. The table has p row by row."
    )


def _trainings(rows: Sequence[_Row]) -> str:
    """Tell in how many trainings a second descent lasts; those without flooding count once a
    row.
    """
    k, n = sum(row.lasting for row in rows), sum(len(row.found) for row in rows)
    plain = sum(found.lasting for row in rows for found in row.plain)
    return f"{k} of {n} trainings with flooding, {plain} of {n} without"


def _lasting_by_seed(rows: Sequence[_Row]) -> Difference | None:
    """Compare, in each seed, how many of the trainings have a lasting descent, in percent."""
    pairs: dict[int, list[tuple[float, float]]] = {}
    for row in _flooding(rows):
        for seed, found, plain in zip(row.seeds, row.found, row.plain, strict=True):
            pairs.setdefault(seed, []).append((100.0 * found.lasting, 100.0 * plain.lasting))
    shares = [np.mean(some, axis=0).tolist() for some in pairs.values()]
    return paired(*zip(*shares, strict=True)) if shares else None


def _verdict(
    group: str, measure: _Measure, rows: Sequence[_Row], gain: Difference | None, p: float
) -> str:
    tested = _flooding(rows)
    untested = sum(row.level > 0 for row in rows) - len(tested)
    gains = [
        (row.gain.mean, p)
        for row, p in zip(rows, _holm([row.gain for row in rows]), strict=True)
        if row.gain
    ]
    sure = sum(
        row.shows and p < 0.05
        for row, p in zip(rows, holm([row.p_lasting for row in rows]), strict=True)
    )
    n = len(rows[0].condition.seeds)
    told = f"by the numbers of lasting descents in {sure} of them at 5 %"
    if tested and len(tested) * 2 * 0.5**n >= 0.05:  # McNemar's least p, times Holm's first factor
        told = (
            f"which the lasting descents of {n} seeds cannot show at 5 % in single rows, after Holm"
        )
    lower, higher = (sum(sign * mean > 0 and p < 0.05 for mean, p in gains) for sign in (-1, 1))
    more = (
        ""
        if gain is None
        else (
            " All rows together, a seed's share of lasting descents, with flooding minus without: "
            f"{gain} points, n = {gain.n} seeds, p {format_p(p)}."
        )
    )
    return (
        f"{_GROUPS[group]}, test {measure.name}: flooding brings a second descent in "
        f"{sum(row.shows for row in tested)} of {len(tested)} tested rows ({untested} not tested), {told}; "
        f"its curve ends lower than plain training's in {lower} and higher "
        f"in {higher} of them at 5 % (Holm, n = {n} seeds or as many as reached the level)."
        f"{more}"
    )


def _parts(group: str, rows: Sequence[_Row]) -> Iterator[tuple[str, list[_Row]]]:
    """Give what is told together: the synthetic tasks, and digits with each factor and without
    any.
    """
    if group == "synthetic":
        yield _GROUPS[group], list(rows)
        return
    name = _GROUPS[group]
    parts = {
        f"{name} with {factor}": [row for row in rows if factor in row.condition.factors]
        for factor in FACTORS
    }
    parts[f"{name} with none of these"] = [row for row in rows if not row.condition.factors]
    yield from ((title, part) for title, part in parts.items() if part)


def _number(rows: Sequence[_Row]) -> str:
    return pluralize(len({row.condition.title for row in rows}), "condition")


def _counts(title: str, measure: _Measure, rows: Sequence[_Row]) -> str:
    levels = sorted({row.level for row in rows if row.level})
    told = "; ".join(_count(level, [row for row in rows if row.level == level]) for level in levels)
    return f"{title}, the test {measure.name} descends a second time: {told}."


def _count(level: float, rows: Sequence[_Row]) -> str:
    """Count over the conditions at one level, where every seed that reached it appears once."""
    found, plain = [f for row in rows for f in row.found], [p for row in rows for p in row.plain]
    if not found:
        return f"at level {level:g} {_UNTESTED}"
    (k, lasting), (j, plainly) = (
        (sum(d.second is not None for d in some), sum(d.lasting for d in some))
        for some in (found, plain)
    )
    again = [f for f in found if f.second is not None]
    regained = sum(f.gap <= 0 for f in again)
    tail = f", regaining its first minimum in {regained} of {k} (recovery {format_mean_sd([f.recovery for f in again], 2)})"
    return (
        f"at level {level:g} in {k} of {len(found)} trainings with flooding (lasting in {lasting}), {j} of "
        f"{len(plain)} without (lasting in {plainly})" + (tail if k else "")
    )


def _caption(group: str, measure: _Measure) -> str:
    return (
        f"{_GROUPS[group]}: test {measure.name} against epoch, not smoothed, mean and one standard deviation over all "
        "seeds. A level that no seed reached is not drawn: its curve is that of plain training."
    )


def _draw(panels: Sequence[_Panel], measure: _Measure, columns: int) -> Figure:
    """Draw the mean curve of each level, a panel for each condition."""
    from flooding.report.plots import drawn, unique

    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    with drawn(1.5 + 2.6 * columns, 1.2 + 2.4 * lines) as figure:
        grid = figure.subplots(lines, columns, sharex="col", sharey="row", squeeze=False)
        levels = sorted({level for panel in panels for level in panel.condition.levels})
        for axes, panel in zip(grid.flat, panels, strict=False):
            _lines(axes, panel, measure, levels)
            axes.set_title(panel.condition.title.replace(" + weight", "\n+ weight"), fontsize=9.0)
        for axes in grid[-1]:
            axes.set_xlabel("Epoch")
        for line in grid:
            line[0].set_ylabel(f"Test {measure.name} ({measure.unit})")
            if measure.name == "loss":
                _logarithmic(line)
        figure.legend(*unique(list(grid.flat)), loc="outside lower center", ncols=4)
    return figure


def _logarithmic(panels: Sequence[Axes]) -> None:
    """Give panels that share their axis a logarithmic one, with plain numbers beside it."""
    from matplotlib.ticker import LogLocator

    panels[0].set_yscale("log")
    axis = panels[0].yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
    # A band may reach below 0, which such an axis cannot show.
    lowest = [
        np.min(np.asarray(line.get_ydata(), float)) for axes in panels for line in axes.get_lines()
    ]
    panels[0].set_ylim(bottom=0.8 * float(min(lowest)))


def _lines(axes: Axes, panel: _Panel, measure: _Measure, levels: Sequence[float]) -> None:
    """Draw a panel; ``levels`` are those of all panels, each of which has one look everywhere."""
    from matplotlib import colormaps

    from flooding.report.plots import PALETTE

    shades = [
        PALETTE["plain"],
        *colormaps["viridis"](np.linspace(0.0, 0.85, max(len(levels) - 1, 1))),
    ]
    dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    for level in panel.condition.levels:
        place = levels.index(level)
        records = panel.at(level)
        if level and not any(_reached(record) for record in records):
            continue
        curves = np.stack([_curve(record, measure) for record in records])
        at = np.flatnonzero(np.isfinite(curves).all(0))
        mean = curves[:, at].mean(0)
        label = f"level {level:g}" if level else "without flooding"
        axes.plot(
            at, mean, color=shades[place], ls=dashes[place % len(dashes)], lw=1.3, label=label
        )
        if len(curves) > 1:
            sd = curves[:, at].std(0, ddof=1)
            axes.fill_between(at, mean - sd, mean + sd, color=shades[place], alpha=0.15, lw=0)


EXPERIMENT = Experiment("double_descent", experiment, CURVES)
