"""What a strategy compared to select its level, for the figure and the report page."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Candidate", "Decision"]


@dataclass(frozen=True)
class Candidate:
    """A level that a strategy compared with others.

    Args:
        level: The level; None is plain training.
        score: Its own validation score or accuracy, averaged over epochs and seeds: the larger the
            better, so that a score of which less is better has the other sign. 0 where there is
            neither, and the loss decides.
        loss: Its own validation loss, averaged in the same way.
        compared_score: What was compared: the score, or its mean with the neighbours.
        compared_loss: What decides between equal scores.
        is_equal: Whether the data cannot tell it from the best one; always true of the best.
    """

    level: float | None
    score: float
    loss: float
    compared_score: float
    compared_loss: float
    is_equal: bool


@dataclass(frozen=True)
class Decision:
    """The comparison that selected a level.

    Args:
        candidates: The levels that were compared, smallest first, plain training before them.
        best: Index of the selected one.
        tail_epochs: Number of epochs, the last ones of each Run, that a result is averaged over.
        is_smoothed: Whether each candidate was averaged with its neighbours, with weights 1/4, 1/2
            and 1/4.
        standard_error: That of the best validation accuracy; 0 where it is unknown.
    """

    candidates: tuple[Candidate, ...]
    best: int
    tail_epochs: int
    is_smoothed: bool = False
    standard_error: float = 0.0

    @property
    def selected(self) -> Candidate:
        """The selected candidate."""
        return self.candidates[self.best]
