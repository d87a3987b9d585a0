"""The selection of a level in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flooding.level_search.decision import Candidate
from flooding.level_search.plot_data import Measure, is_in_nats
from flooding.level_search.result import SearchResult
from flooding.report.stats import pluralize
from flooding.text import brief

__all__ = ["ScoreUnit", "answer", "describe_candidates", "explain_selection", "has_loss", "unit_of"]


@dataclass(frozen=True)
class ScoreUnit:
    """Turns what a strategy compared into the numbers that a reader knows.

    Args:
        scale: Factor of the score, negative where less is better.
        is_loss: Whether the loss decided.
        name: What decided, such as "validation accuracy".
        suffix: Unit, such as " %".
    """

    scale: float
    is_loss: bool
    name: str
    suffix: str

    def own(self, candidate: Candidate) -> float:
        """Give the result of a candidate alone."""
        return candidate.loss if self.is_loss else self.scale * candidate.score

    def compared(self, candidate: Candidate) -> float:
        """Give the result that was compared."""
        if self.is_loss:
            return candidate.compared_loss
        return self.scale * candidate.compared_score

    def gain(self, a: Candidate, b: Candidate) -> float:
        """Tell by how much ``a`` is better than ``b``, each alone; negative where it is worse."""
        if self.is_loss:
            return b.loss - a.loss
        return abs(self.scale) * (a.score - b.score)

    def text(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{value + 0.0:.4g}{self.suffix}"  # adding 0 takes the sign off a negative 0

    def difference_text(self, value: float) -> str:
        """Write a difference of two values with its unit."""
        suffix = " points" if self.suffix == " %" else self.suffix
        return f"{value:.3g}{suffix}"


def unit_of(measure: Measure, result: SearchResult) -> ScoreUnit:
    """Tell in what unit the deciding score is shown.

    Args:
        measure: The measure that decides: the first one on the validation split.
        result: The result.

    Returns:
        The unit.
    """
    if measure.is_loss:
        suffix = " nats" if is_in_nats(result.run.problem) else ""
        return ScoreUnit(-1.0, True, "validation loss", suffix)
    if measure.name.endswith("accuracy"):
        return ScoreUnit(100.0, False, "validation accuracy", " %")
    score = result.run.problem.score
    sign = 1.0 if score is None or score.greater_is_better else -1.0
    return ScoreUnit(sign, False, "validation score", "")


def answer(result: SearchResult) -> str:
    """Say in one sentence what to do.

    Args:
        result: The result of a search.

    Returns:
        A sentence.
    """
    level = result.run.level
    if level is None:
        return "Train without flooding: no level did better on the validation split."
    unit = " nats" if is_in_nats(result.run.problem) else ""
    if isinstance(level, (float, Tensor)):
        number = f"{float(level):.4g}"
        return f"Use flood level {number}{unit}: criterion = flooding.Flood(criterion, {number})."
    if result.level is None:
        return f"Train with {brief(level)}, which moves the level by itself."
    return f"Train with {brief(level)}, which moves the level; here it ended at {result.level:.4g}."


def has_loss(measures: Sequence[Measure]) -> bool:
    """Tell whether a validation loss was measured apart from the score."""
    return any(measure.is_loss for measure in measures)


def explain_selection(result: SearchResult, measures: Sequence[Measure]) -> list[str]:
    """Say why a level was selected, and why others were not.

    Args:
        result: The result of a search.
        measures: What was measured on the validation split, the deciding one first.

    Returns:
        Sentences; those of the strategy's estimate alone, where it compared no levels.
    """
    decision = result.decision
    if decision is None or not measures:
        estimates = [f"{e.name}: {e.note}." for e in result.estimates[:1] if e.note]
        return [f"The strategy {result.strategy} compares no levels with each other.", *estimates]
    unit, best = unit_of(measures[0], result), decision.selected
    num_seeds = len({record.run.seed for record in result.records if record.run is not None})
    how = [f"over the last {pluralize(decision.tail_epochs, 'epoch')}"]
    if decision.tail_epochs == 1:
        how = ["in the last epoch"]
    if num_seeds > 1:
        how.append(f"over {num_seeds} seeds")
    if decision.is_smoothed:
        how.append("with its neighbours (weights 1/4, 1/2, 1/4)")
    sentences = [
        f"Each level was judged by its {unit.name} {_join(how)}.",
        f"{_name(best, capital=True)} was best: {unit.text(unit.compared(best))}.",
    ]
    if decision.is_smoothed:
        luckier = [c for c in decision.candidates if unit.gain(c, best) > 0]
        if luckier:
            top = max(luckier, key=lambda c: unit.gain(c, best))
            sentences.append(
                f"On its own, {_name(top)} did better: {unit.text(unit.own(top))} against "
                f"{unit.text(unit.own(best))}. Its neighbours did worse, so its own result may be "
                "luck; a good level has good neighbours."
            )
    if decision.standard_error:
        error = unit.difference_text(abs(unit.scale) * decision.standard_error)
        equal = [_name(c) for c in decision.candidates if c.is_equal and c is not best]
        if equal:
            sentences.append(
                f"Within one standard error ({error}) the validation data cannot tell it from "
                f"{_join(equal)}."
            )
        else:
            sentences.append(f"All others are worse by more than one standard error ({error}).")
    return sentences


def describe_candidates(
    result: SearchResult, measures: Sequence[Measure]
) -> Mapping[float | None, list[str]]:
    """Describe each level that was compared.

    Args:
        result: The result of a search.
        measures: What was measured on the validation split, the deciding one first.

    Returns:
        Sentences by level; None is plain training.
    """
    decision = result.decision
    if decision is None or not measures:
        return {}
    unit, best = unit_of(measures[0], result), decision.selected
    texts: dict[float | None, list[str]] = {}
    for candidate in decision.candidates:
        own = f"{unit.name.capitalize()} {unit.text(unit.own(candidate))}"
        if decision.is_smoothed:
            own += f", with its neighbours {unit.text(unit.compared(candidate))}"
        sentences = [f"{own}."]
        if has_loss(measures) and not unit.is_loss:
            sentences = [f"{own}. Validation loss {candidate.loss:.4g}."]
        if candidate is best:
            sentences.append("It was chosen.")
        else:
            gap = unit.difference_text(abs(unit.compared(best) - unit.compared(candidate)))
            verdict = "Not chosen"
            if candidate.is_equal and decision.standard_error:
                verdict = "As good within chance, but not the best"
            sentences.append(f"{verdict}: it is {gap} behind {_name(best)} in what was compared.")
        texts[candidate.level] = sentences
    return texts


def _name(candidate: Candidate, *, capital: bool = False) -> str:
    name = "no flooding" if candidate.level is None else f"level {candidate.level:.4g}"
    return name.capitalize() if capital else name


def _join(parts: Sequence[str]) -> str:
    """Join words as in a sentence."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
