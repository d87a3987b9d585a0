"""A preset training loss: the bisection finds it where there is one, and verdicts follow the
numbers."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from flooding import train
from flooding.experiments import ishida2020_held as held
from flooding.level_search.driver import run_generator
from flooding.training.record import Record
from flooding.training.run import Run

DECAY, DROPOUT = held.REGULARISERS


def strength_of(run):
    """Read the weight decay or the share dropped off a Run; None where there is neither."""
    if "dropout" in run.problem.model.keywords:
        return run.problem.model.keywords["dropout"]
    return run.problem.optimizer.keywords.get("weight_decay")


def fake(run, loss=lambda run: run.level or 0.01):
    """Make up a Record with a constant training loss."""
    value = loss(run)
    curve = np.full(run.epochs + 1, value, np.float32)
    metrics = {"last.test_accuracy_clean": 0.9, "last.settled_loss": value}
    return Record(run, {"settled_loss": curve}, {}, metrics, "", "", {"seconds": 1.0, "on": "one"})


def report(loss, seeds=(0, 1, 2)):
    study = held.start(seeds=seeds)
    return run_generator(study, lambda runs: [fake(run, loss) for run in runs])[0]


@pytest.mark.parametrize("regulariser", held.REGULARISERS, ids=lambda each: each.name)
@pytest.mark.parametrize("goal", [0.1, 0.5, 0.9])
def test_the_bisection_finds_the_strength_of_a_rising_loss(regulariser, goal):
    lowest, highest = regulariser.lowest, regulariser.highest
    if regulariser.is_logarithmic:
        at_goal = lowest * (highest / lowest) ** goal
    else:
        at_goal = lowest + goal * (highest - lowest)
    level = held.TASK_LEVELS[0][1]

    def loss(run):
        return level * strength_of(run) / at_goal

    problem = held._problem("two-gaussians", 20)
    case = (0, regulariser, 3)
    search = held.bisect([case], [problem], 12)
    (tuned, records), _ = run_generator(search, lambda runs: [fake(run, loss) for run in runs])
    assert tuned[case].strength == pytest.approx(at_goal, rel=0.02)
    assert len(records) == 12
    assert all(record.run.seed == 3 for record in records)


def test_a_training_that_diverged_was_too_strong():
    problem = held._problem("two-gaussians", 20)
    case = (0, DROPOUT, 0)
    tried = []

    def loss(run):
        tried.append(strength_of(run))
        return np.nan if tried[-1] > 0.3 else 0.1

    search = held.bisect([case], [problem], 8)
    (tuned, _), _ = run_generator(search, lambda runs: [fake(run, loss) for run in runs])
    assert all(later < earlier for earlier, later in pairwise(tried) if earlier > 0.3)
    assert tuned[case].strength <= 0.3


def test_the_training_loss_is_measured_with_nothing_dropped():
    problem = DROPOUT.apply(held._problem("sinusoid", 3), 0.5)
    *_, row = train(Run(problem, seed=1))
    curve = row.record.curves["settled_loss"]
    assert np.isfinite(curve).all()
    network = problem.build(1)
    network.load_state_dict(row.weights["last"])
    data = problem.data(seed=1).train
    with torch.no_grad():
        loss = problem.loss(network.eval()(data.x), data.y)
    assert float(loss) == pytest.approx(float(curve[-1]), rel=1e-4)


def test_each_seed_is_tried_with_the_strength_of_another():
    problems = [held._problem(task, 20) for task, _ in held.TASK_LEVELS]
    cases = [(0, DECAY, seed) for seed in (4, 5, 6)]
    tuned = {case: held.Tuned(float(case[2]), None) for case in cases}
    runs = held._transfers(cases, tuned, problems, (4, 5, 6))
    assert [run.seed for run in runs] == [4, 5, 6]
    assert [strength_of(run) for run in runs] == [6.0, 4.0, 5.0]


def test_where_others_cannot_hold_the_loss_the_paper_is_right():
    def loss(run):
        # It jumps past the level at one strength.
        strength = strength_of(run)
        if strength is None:
            return run.level or 0.01
        return 0.01 + 0.0001 * run.seed if strength < 0.5 else 0.69 + 0.0001 * run.seed

    result = report(loss)
    assert result.failures == []
    assert len(result.findings) == 3 * (2 + 3 + 3)
    assert "loss in 100 % of the late epochs; weight decay in 0 % and dropout in 0 %, tuned" in (
        result.answer
    )


def test_where_others_can_the_report_says_so():
    def loss(run):
        strength = strength_of(run)
        if strength is None:
            return 2.0 * (run.level or 0.01)
        upper = DROPOUT.highest if "dropout" in run.problem.model.keywords else DECAY.highest
        return 2.0 * strength / upper * (1 + 1e-4 * run.seed)

    result = report(loss)
    assert result.findings == []
    assert len(result.failures) == 3 * (2 + 3 + 3)
    # Both of flooding's statements, and all of the others' on three tasks.
    assert sum("the opposite holds" in sentence for sentence in result.failures) == 24
    assert "weight decay in 100 % and dropout in 100 %" in result.answer


def test_the_final_loss_is_of_the_last_tenth_and_the_band_of_the_second_half():
    run = Run(held._problem("two-gaussians", 100))
    record = fake(run)
    curve = np.full(101, 1.0, np.float32)
    # Epochs 76 to 95 lie at the level, the last five at 1.2 times.
    curve[76:96], curve[96:] = 0.3, 0.36
    record.curves["settled_loss"] = curve
    assert held.final_loss(record) == pytest.approx(0.33)
    assert held._percent_near(record, 0.3) == pytest.approx(40.0)
    assert held._distances([record], 0.3).tolist() == pytest.approx([10.0])
    curve[-1] = np.nan
    assert held._distances([record], 0.3).tolist() == [100.0]


def test_one_seed_has_no_other_one():
    result = report(lambda run: run.level or 0.2, seeds=(0,))
    sentences = [*result.failures, *result.findings]
    assert not any("another seed" in sentence for sentence in sentences)
    assert "another seed" not in result.answer
    [table] = result.tables
    assert {row[6] for row in table.rows} == {"–"}


def test_the_table_has_every_method_on_every_task():
    result = report(lambda run: run.level or 0.2)
    [table] = result.tables
    assert len(table.rows) == 3 * 4
    assert [row[1] for row in table.rows[:4]] == ["–", "flooding", "weight decay", "dropout"]
    assert [row[2] for row in table.rows[:4]] == ["1", "1", str(held.ROUNDS), str(held.ROUNDS)]


def test_the_short_form_runs(tmp_path):
    study = held.start(quick=True, seeds=[0, 1])

    def trained(runs):
        records = []
        for run in runs:
            short = replace(run, problem=replace(run.problem, max_epochs=4))
            *_, row = train(short)
            records.append(replace(row.record, run=run))
        return records

    result = run_generator(study, trained)[0]
    names = {path.name for path in result.save(tmp_path, "ishida2020_held")}
    assert {"ishida2020_held.md", "ishida2020_held-losses.png"} <= names
