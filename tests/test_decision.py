"""A result says what its strategy compared, and its figure shows it."""

from __future__ import annotations

import numpy as np
import pytest

from flooding.level_search.backward import backward
from flooding.level_search.driver import search
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving
from flooding.level_search.plot import plot_search
from flooding.level_search.tpe import tpe
from flooding.testing import fake_record
from pages import searched
from small import small

PROBLEM = small(max_epochs=30)


def train(runs):
    return [fake_record(run) for run in runs]


def panel(figure, start):
    """The panel of a measure against the level."""
    for axes in figure.axes:
        if axes.get_ylabel().startswith(start) and axes.get_xlabel().startswith("Flood level"):
            return axes
    raise AssertionError(start)


@pytest.mark.parametrize(
    ("strategy", "share"),
    [
        (grid(PROBLEM, [None, 0.1, 0.2], seeds=(0, 1)), 0.0),
        (halving(PROBLEM, [None, 0.1, 0.2, 0.3, 0.4, 0.5], share=0.2), 0.2),
        (backward(PROBLEM, [None, 0.1, 0.2], until_loss=0.5, share=0.1), 0.1),
        (tpe(PROBLEM, trainings=3), 0.1),
    ],
    ids=["grid", "halving", "backward", "tpe"],
)
def test_the_best_of_the_candidates_was_selected(strategy, share):
    result = search(strategy, train)
    decision = result.decision
    assert decision.selected.level == result.level
    assert decision.tail_epochs == max(1, round(share * 30))
    assert not decision.is_smoothed
    # A slow twin for the last round: the mean over seeds of the mean of the last epochs.
    last = [record for record in result.records if record.run.epochs == 30]
    for candidate in decision.candidates:
        tails = []
        for record in last:
            level = getattr(record.run.level, "level", record.run.level)
            if level == candidate.level:
                tails.append(record.curves["val_accuracy"][-decision.tail_epochs :].astype(float))
        assert tails
        assert candidate.score == candidate.compared_score
        assert candidate.score == pytest.approx(np.mean(tails), rel=1e-12)
        assert candidate.is_equal == (candidate is decision.selected)
    scores = [(candidate.score, -candidate.loss) for candidate in decision.candidates]
    assert max(scores) == scores[decision.best]


def test_levels_judged_at_their_best_epochs_are_not_compared():
    assert search(grid(PROBLEM, [None, 0.1], at="best"), train).decision is None


def test_the_figure_draws_what_decided():
    result = searched()
    decision, figure = result.decision, plot_search(result)
    axes = panel(figure, "Validation accuracy")
    label = "mean with its neighbours, which decides"
    [line] = [line for line in axes.get_lines() if line.get_label() == label]
    places = [candidate.level or 0.0 for candidate in decision.candidates]
    assert line.get_xdata() == pytest.approx(places)
    heights = [100 * candidate.compared_score for candidate in decision.candidates]
    assert line.get_ydata() == pytest.approx(heights)
    # The range of one standard error below the best.
    [band] = [patch for patch in axes.patches if "as good" in str(patch.get_label())]
    top = 100 * decision.selected.compared_score
    assert band.get_y() + band.get_height() == pytest.approx(top)
    assert band.get_height() == pytest.approx(100 * decision.standard_error)
    texts = [
        text.get_text()
        for axes in figure.axes
        if axes.get_legend()
        for text in axes.get_legend().get_texts()
    ]
    assert label in texts
    [title] = [
        axes.get_legend().get_title().get_text() for axes in figure.axes if axes.get_legend()
    ]
    assert title == f"By level: mean of each Run's last {decision.tail_epochs} epochs"
    # The loss is averaged as well, though it decides between equal scores alone.
    loss = panel(figure, "Validation loss")
    heights = [candidate.compared_loss for candidate in decision.candidates]
    assert any(
        line.get_marker() == "D" and line.get_ydata() == pytest.approx(heights)
        for line in loss.get_lines()
    )


def test_marks_are_the_means_that_were_judged():
    result = searched(num_seeds=1)
    decision, axes = result.decision, panel(plot_search(result), "Validation accuracy")
    drawn = {}
    for line in axes.get_lines():
        if line.get_marker() == "o" and len(line.get_xdata()) == 1:
            drawn[float(line.get_xdata()[0])] = float(line.get_ydata()[0])
    for candidate in decision.candidates:
        if candidate.level is not None:
            assert drawn[candidate.level] == pytest.approx(100 * candidate.score)
