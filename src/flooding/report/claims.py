"""Claims: a difference, its verdict after Holm's correction, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from flooding.report.stats import Difference, adjust, format_p, pluralize

__all__ = ["Claim", "Judgement", "Sentences", "Tally", "judge", "split_by_verdict"]


@dataclass(frozen=True)
class Claim:
    """A statement of a source, and the difference that decides it.

    Args:
        text: The statement.
        difference: The difference; None where there is nothing to compare.
        unit: Unit of the difference, and what it is.
        sign: Sign of the difference if the statement is true; 0 states that there is none.
        digits: Digits of the difference.
        detail: What the sentence ends with.
        rivals: Number of comparisons of which this one is the hardest (Bonferroni).
    """

    text: str
    difference: Difference | None
    unit: str
    sign: Literal[-1, 0, 1] = 1
    digits: int = 1
    detail: str = ""
    rivals: int = 1


class Judgement(NamedTuple):
    """A claim and its p value after Holm's correction; NaN where it could not be tested."""

    claim: Claim
    p: float

    @property
    def holds(self) -> bool:
        """Whether the claim is shown at 5 %; a claim of no difference must be true exactly."""
        difference, sign = self.claim.difference, self.claim.sign
        if difference is None:
            return False
        if sign == 0:
            return difference.mean == 0
        return self.p < 0.05 and difference.mean * sign > 0

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.holds:
            return "holds"
        if self.claim.sign == 0:
            return "does not hold"
        if math.isnan(self.p):
            return "cannot be tested"
        # The opposite was not planned: the hardest of several rivals was picked.
        if self.p * self.claim.rivals < 0.05:
            return "the opposite holds"
        return "not shown"

    @property
    def sentence(self) -> str:
        """The claim, its verdict, and by how much."""
        claim, difference = self.claim, self.claim.difference
        if difference is None:
            return f"{claim.text}: cannot be judged{claim.detail}."
        # A single pair has no p.
        p = ""
        if not math.isnan(self.p):
            p = f", p {format_p(self.p)}"
        size = f"{difference.format(claim.digits)} {claim.unit}, n = {difference.n}{p}"
        return f"{claim.text}: {self.verdict}; {size}{claim.detail}."


class Tally(NamedTuple):
    """How many of several differences are significant.

    Args:
        wins: Number of those above 0 at 5 %.
        losses: Number of those below 0 at 5 %.
        total: Number of those that were tested.
    """

    wins: int
    losses: int
    total: int

    @classmethod
    def of(cls, differences: Sequence[Difference | None], ps: Sequence[float]) -> Tally:
        """Count differences by their corrected p values; NaN and None were not tested."""
        wins = losses = total = 0
        for difference, p in zip(differences, ps, strict=True):
            if difference is not None and not math.isnan(p):
                total += 1
                wins += p < 0.05 and difference.mean > 0
                losses += p < 0.05 and difference.mean < 0
        return cls(wins, losses, total)

    def __str__(self) -> str:
        return f"{self.wins}, {self.losses} of {self.total}"

    def describe(self, noun: str) -> str:
        """Say it in words.

        Args:
            noun: What the differences are of.

        Returns:
            Such as ``significantly better in 5 and worse in none of 9 cells``.
        """
        wins, losses = self.wins or "none", self.losses or "none"
        total = pluralize(self.total, noun)
        return f"significantly better in {wins} and worse in {losses} of {total}"


def judge(claims: Sequence[Claim]) -> list[Judgement]:
    """Test claims that were planned together, with Holm's correction over all of them."""
    ps = adjust([claim.difference for claim in claims])
    return [Judgement(claim, p) for claim, p in zip(claims, ps, strict=True)]


class Sentences(NamedTuple):
    """Sentences of a report, sorted by whether they say what the source claims.

    Args:
        failures: Claims that do not hold.
        findings: What was found.
    """

    failures: list[str]
    findings: list[str]

    def add(self, holds: bool, sentence: str) -> None:
        """Add a sentence to one of the lists."""
        if holds:
            self.findings.append(sentence)
        else:
            self.failures.append(sentence)


def split_by_verdict(judgements: Sequence[Judgement]) -> Sentences:
    """Give the sentences of claims that do not hold, then of those that do."""
    sentences = Sentences([], [])
    for judgement in judgements:
        sentences.add(judgement.holds, judgement.sentence)
    return sentences
