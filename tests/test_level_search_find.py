"""find_level answers, touches nothing, goes on where it stopped, and refuses what cannot be
judged."""

import json
import logging
import random
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flooding import Problem, Run, find_level, run_all, search
from flooding.data import Split, Splits
from flooding.data.synthetic import two_gaussians
from flooding.level_search.accordance import accordance
from flooding.level_search.external import ExternalProblem, ObjectiveAdapter
from flooding.level_search.finder import finder
from flooding.level_search.grid import grid
from flooding.level_search.halving import halving
from flooding.level_search.range_test import range_test
from flooding.level_search.result import SearchResult
from flooding.models import mlp
from flooding.training.ledger import Ledger
from flooding.training.loop import NUMERICS_VERSION
from flooding.training.problem import Score
from flooding.training.runner import run_key
from small import FromDict, adam, regression

assert NUMERICS_VERSION  # the keys below carry it


def noisy(**changes):
    """Overfits within its 40 epochs."""
    data = partial(two_gaussians, n_train=40, n_val=30, n_test=50, label_noise=0.1)
    defaults = {
        "data": data,
        "model": partial(mlp, 10, 2, width=32, depth=2),
        "optimizer": adam,
        "max_epochs": 40,
    }
    return Problem(**defaults | changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_a_level_below_the_cap_at_the_stated_cost(path):
    result = find_level(noisy(), ledger=path, workers=0)
    cap = next(s.level for s in result.estimates if s.name == "cap")
    plain = result.records[0]
    assert plain.run.level is None
    assert 0 < cap <= 1.05 * plain.curves["val_loss"][1:].min() + 0.05
    assert result.level is None or 0 < result.level <= cap
    assert 1 < result.cost.steps <= 3.05
    assert {"race", "irreducible loss", "cap"} <= {s.name for s in result.estimates}
    assert all(s.level is None or s.low <= s.level <= s.high for s in result.estimates)


def test_more_budget_races_longer_and_more_seeds_cost_as_many_times_more(path):
    for budget in (2.0, 3.0, 5.0, 9.0):
        result = find_level(
            noisy(), budget=budget, ledger=path.with_name(f"{budget}.sqlite"), workers=0
        )
        assert 0.45 * budget < result.cost.steps <= 1.05 * budget
    result = find_level(noisy(), seeds=3, ledger=path, workers=0)
    assert 5 < result.cost.steps <= 9.15
    assert {record.run.seed for record in result.records} == {0, 1, 2}


def test_the_same_call_trains_nothing_again(path):
    first = find_level(noisy(), ledger=path, workers=0)
    started = []
    second = find_level(noisy(), ledger=path, workers=0, on_start=started.extend)
    assert started == []
    assert (first.level, first.estimates) == (second.level, second.estimates)


def test_an_interrupted_search_goes_on(path):
    whole = find_level(noisy(), ledger=False or path.with_name("other.sqlite"), workers=0)
    rows = []

    def interrupt(row):
        rows.append(row)
        if len(rows) == 60:  # in the race
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_level(noisy(), ledger=path, workers=0, on_row=interrupt)
    trained = []
    again = find_level(noisy(), ledger=path, workers=0, on_start=trained.extend)
    assert len(trained) < len(whole.records)
    assert again.level == whole.level
    assert [r.content_hash for r in again.records] == [r.content_hash for r in whole.records]


def draw(*_, **__):
    """Seed and draw as users' code does, from every generator."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(7)
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002


def drawn_data(seed):
    draw()
    return two_gaussians(seed=seed, n_train=40, n_val=30, n_test=50, label_noise=0.1)


def drawn_augment(x):
    draw()
    return x


class Counted(nn.Module):
    """A user's module that fails at its third training, draws from every generator and works in
    place."""

    made = 0
    fail = 3

    def __init__(self):
        super().__init__()
        draw()
        Counted.made += 1
        self.line = mlp(10, 2, width=32, depth=2)

    def forward(self, x):
        draw()
        x -= 0.1
        if self.training and Counted.made == Counted.fail:
            raise RuntimeError("out of luck")
        return self.line(x)


def test_state_is_never_touched_also_after_an_exception(path):
    model = mlp(10, 2, width=8)
    data = drawn_data(0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    inputs = [split.x.clone() for split in (data.train, data.val, data.test)]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    threads = torch.get_num_threads()

    def untouched():
        assert torch.equal(states[0], torch.get_rng_state())
        assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
        assert states[2] == random.getstate()
        assert torch.get_num_threads() == threads
        assert all(
            torch.equal(split.x, x)
            for split, x in zip((data.train, data.val, data.test), inputs, strict=True)
        )

    result = find_level(
        noisy(model=model, data=drawn_data, augment=drawn_augment), ledger=path, workers=0
    )
    untouched()
    result.model()
    untouched()
    Counted.made, Counted.fail = 0, 3
    with pytest.raises(RuntimeError, match="out of luck"):
        find_level(noisy(model=Counted, data=data, key="counted"), ledger=path, workers=0)
    assert Counted.made == 3
    untouched()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("epoch", [0, 2, 45])
def test_state_is_not_touched_by_an_interrupt(epoch, path):
    def interrupt(row):
        nonlocal epoch
        epoch -= 1
        if epoch < 0:
            raise KeyboardInterrupt

    model = mlp(10, 2, width=8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with pytest.raises(KeyboardInterrupt):
        find_level(noisy(model=model, data=drawn_data), ledger=path, workers=0, on_row=interrupt)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_function_that_raises_on_its_third_call_loses_nothing(path):
    calls = []

    def train(level, seed, epochs):
        calls.append(level)
        if len(calls) == 3:
            raise RuntimeError("the machine went away")
        return 1 - abs(level - 0.2)

    levels = [0.0, 0.1, 0.2, 0.3]
    with pytest.raises(RuntimeError, match="went away"):
        search(grid(ExternalProblem(100), levels), ObjectiveAdapter(train, key="mine", ledger=path))
    result = search(
        grid(ExternalProblem(100), levels), ObjectiveAdapter(train, key="mine", ledger=path)
    )  # as a new process would
    assert calls == [0.0, 0.1, 0.2, 0.2, 0.3]
    assert result.level == 0.2


def test_an_external_function_remembers_without_a_ledger_too():
    calls = []

    def train(level, seed, epochs):
        calls.append((level, epochs))
        return abs(level - 0.2)

    adapter = ObjectiveAdapter(train)
    problem = ExternalProblem(max_epochs=9, greater_is_better=False)
    assert search(halving(problem, [0.1, 0.2, 0.3], eta=3, least=1 / 3), adapter).level == 0.2
    assert calls == [(0.1, 3), (0.2, 3), (0.3, 3), (0.2, 9)]
    search(halving(problem, [0.1, 0.2, 0.3], eta=3, least=1 / 3), adapter)
    assert len(calls) == 4


def test_an_external_function_with_curves_can_use_the_finder():
    def train(level, seed, epochs):
        *_, row = __import__("flooding").train(Run(noisy(), level, seed=seed, stop_epoch=epochs))
        curves = row.record.curves
        return {
            "score": curves["val_accuracy"],
            "val_loss": curves["val_loss"],
            "train_loss": curves["train_loss"],
        }

    external = search(finder(ExternalProblem(max_epochs=40), shared=False), train)
    own = search(finder(noisy(), shared=False), partial(run_all, ledger=False, workers=0))
    assert external.level == own.level
    assert external.cost.trainings == own.cost.trainings <= 3.05


def test_an_external_function_may_give_a_score_beside_curves():
    def train(level, seed, epochs):
        *_, row = __import__("flooding").train(Run(noisy(), level, seed=seed, stop_epoch=epochs))
        curves = {name: row.record.curves[name] for name in ("val_loss", "train_loss")}
        return {"score": row.record.metrics["last.val_accuracy"], **curves}

    problem = ExternalProblem(max_epochs=40)
    own = search(grid(noisy(), [0.0, 0.1, 0.3]), partial(run_all, ledger=False, workers=0))
    assert search(grid(problem, [0.0, 0.1, 0.3]), train).level == own.level
    assert search(finder(problem, shared=False), train).cost.trainings <= 3.05
    with pytest.raises(ValueError, match="the finder needs the curve val_loss"):
        search(finder(problem), lambda level, seed, epochs: 0.5)


def test_an_external_function_must_return_a_score():
    with pytest.raises(ValueError, match="must return a score"):
        search(grid(ExternalProblem(100), [0.1]), lambda level, seed, epochs: {"loss": 0.3})


def test_a_problem_that_cannot_be_hashed_is_searched_and_leaves_no_trace(path, monkeypatch):
    monkeypatch.setenv("FLOODING_LEDGER", str(path))
    problem = noisy(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    result = find_level(problem, workers=0)
    assert result.run.problem.key is None
    assert not path.exists()
    assert result.level == find_level(noisy(), workers=0).level


def test_regression_is_judged_by_its_loss(path):
    result = find_level(regression(max_epochs=30), ledger=path, workers=0)
    assert "val_accuracy" not in result.table[0]
    assert result.level is None or result.level > 0


def recall(logits, y):
    """Score by the recall of class 1."""
    return (logits.argmax(1)[y == 1] == 1).float().mean()


def test_a_score_of_the_users_decides(path):
    problem = noisy(score=Score(recall))
    result = search(grid(problem, [0.0, 0.2, 0.6]), partial(run_all, ledger=path, workers=0))
    scores = {row["level"]: (row["val_score"], -row["val_loss"]) for row in result.table}
    assert (result.level or 0.0) == max(scores, key=lambda level: scores[level])
    worst = replaced(problem, score=Score(recall, greater_is_better=False))
    result = search(grid(worst, [0.0, 0.2, 0.6]), partial(run_all, ledger=path, workers=0))
    assert (result.level or 0.0) == min(
        scores, key=lambda level: (scores[level][0], -scores[level][1])
    )


def replaced(problem, **changes):
    from dataclasses import replace

    return replace(problem, **changes)


def test_dict_inputs_and_no_test_split(path):
    data = regression().data
    result = find_level(
        regression(data=Splits(data.train, data.val), model=FromDict), ledger=path, workers=0
    )
    assert isinstance(result, SearchResult)
    assert not any("test" in name for record in result.records for name in record.metrics)


def test_where_nothing_overfits_the_answer_is_none(path):
    data = partial(two_gaussians, n_train=400, n_val=400, n_test=50)
    problem = noisy(
        data=data,
        model=partial(nn.Linear, 10, 2),
        optimizer=partial(torch.optim.SGD, lr=1e-3),
        max_epochs=5,
    )
    result = find_level(problem, ledger=path, workers=0)
    assert result.level is None
    assert all(record.run.level is None for record in result.records)
    assert "nothing to flood" in result.warnings[0]


def test_a_training_that_diverges_is_said_so(path):
    result = find_level(
        regression(optimizer=partial(torch.optim.SGD, lr=1e30)), ledger=path, workers=0
    )
    assert result.level is None
    assert "not finite" in result.warnings[0]


X = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))


def splits(y_train, y_val, x=X):
    return Splits(Split(x, torch.as_tensor(y_train)), Split(X, torch.as_tensor(y_val)))


BOTH = [0, 1] * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": splits([1] * 20, BOTH)},
            "train split must hold at least two classes, got only class 1",
        ),
        ({"data": splits(BOTH, [0] * 20)}, "val split must hold at least two classes"),
        ({"data": splits(BOTH, BOTH, X.where(X < 2, float("nan")))}, "inputs must be finite"),
        ({"data": splits(BOTH, BOTH, torch.ones(20, 10))}, "inputs must vary"),
        ({"data": splits([0.0] * 19 + [float("nan")], [0.5] * 20)}, "targets must be finite"),
    ],
)
def test_data_that_cannot_be_judged_is_refused_before_training(changes, message, path):
    with pytest.raises(ValueError, match=message):
        find_level(noisy(**changes), ledger=path, workers=0)
    assert not path.exists()


def detached(output, y):
    return nn.functional.cross_entropy(output, y).detach()


def test_other_bad_input(path):
    with pytest.raises(ValueError, match="budget must be 1 or above 1"):
        find_level(noisy(), budget=0.5, ledger=path, workers=0)
    with pytest.raises(ValueError, match="seeds must be at least one"):
        find_level(noisy(), seeds=0, ledger=path, workers=0)
    with pytest.raises(ValueError, match="loss must have a gradient"):
        find_level(noisy(loss=detached), ledger=path, workers=0)
    with pytest.raises(ValueError, match="at least one example"):
        find_level(
            noisy(
                data=Splits(
                    Split(torch.zeros(2, 10), torch.tensor([0, 1])),
                    Split(torch.zeros(0, 10), torch.zeros(0)),
                )
            )
        )


def test_what_is_saved_can_be_read_again(path, tmp_path):
    result = find_level(noisy(), ledger=path, workers=0)
    folder = result.save(tmp_path / "search")
    summary = json.loads((folder / "found.json").read_text())
    assert summary["level"] == result.level
    assert summary["cost"]["steps"] == result.cost.steps
    lines = (folder / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(result.records)
    with np.load(folder / "curves.npz") as curves:
        assert np.array_equal(curves["0/val_loss"], result.records[0].curves["val_loss"])
    assert (folder / "search.png").stat().st_size > 10_000
    assert sorted(p.name for p in folder.iterdir()) == [
        "curves.npz",
        "found.json",
        "search.png",
        "table.csv",
    ]


def test_the_model_is_the_runs_own(path):
    result = find_level(noisy(), ledger=path, workers=0)
    model = result.model()
    assert not model.training
    [record] = run_all([result.run], ledger=path, workers=0)
    splits = result.run.problem.splits(0)
    accuracy = float((model(splits.val.x).argmax(1) == splits.val.y).float().mean())
    assert accuracy == pytest.approx(record.metrics["last.val_accuracy"])
    with pytest.raises(ValueError, match="last or best"):
        result.model("first")


def test_two_searches_on_one_ledger_share_its_runs(path, caplog):
    caplog.set_level(logging.INFO, "flooding")
    find_level(noisy(), ledger=path, workers=0)
    started = []
    find_level(
        noisy(),
        strategy=partial(grid, levels=[0.0]),
        ledger=path,
        workers=0,
        on_start=started.extend,
    )
    find_level(noisy(), budget=4.0, ledger=path, workers=0, on_start=started.extend)
    assert started
    assert started[0].level == 0.0  # the plain runs of the second search are known
    ledger = Ledger(path)
    assert ledger.find(Run(noisy()), run_key(Run(noisy()))) is not None
    ledger.close()


def test_where_the_loss_falls_slowly_the_race_reaches_further_for_the_same_price(path):
    slow = noisy(optimizer=partial(torch.optim.Adam, lr=1.5e-3), max_epochs=80)
    shared = search(finder(slow), partial(run_all, ledger=path, workers=0))
    alone = search(
        finder(slow, shared=False), partial(run_all, ledger=path.with_name("b.sqlite"), workers=0)
    )
    last_epochs = [
        max(r.run.epochs for r in result.records if r.run.level is not None)
        for result in (shared, alone)
    ]
    assert last_epochs[0] > 1.3 * last_epochs[1] >= 0.39 * 80
    assert shared.cost.steps <= 3.05
    assert alone.cost.trainings <= 3.05


@pytest.mark.parametrize("max_epochs", [1, 2, 3])
def test_a_short_training_stays_within_its_budget_or_says_so(path, max_epochs):
    result = find_level(
        noisy(max_epochs=max_epochs, batch_size=4), budget=1.01, ledger=path, workers=0
    )
    assert result.level is None
    assert len(result.records) == 1
    assert "leaves no epoch" in result.warnings[0] or "nothing to flood" in result.warnings[0]


def test_a_level_that_was_not_reached_cannot_win(path):
    result = find_level(noisy(max_epochs=8), ledger=path, workers=0)
    flooded = {
        r.run.level: r.curves["flooded"].sum() for r in result.records if r.run.level is not None
    }
    assert result.level is None or flooded[result.level] > 0
    lazy = noisy(max_epochs=30, optimizer=partial(torch.optim.SGD, lr=1e-4))
    result = search(grid(lazy, [0.0, 0.1, 0.2]), partial(run_all, ledger=path, workers=0))
    assert "no training came down to its level" in result.warnings[-1]


def test_ignored_labels_are_no_class(path):
    data = two_gaussians(n_train=40, n_val=30, n_test=50, label_noise=0.1, seed=0)
    data.train.y[:3] = -100
    assert find_level(noisy(data=data), ledger=path, workers=0).estimates


def test_what_a_users_function_raises_is_what_one_sees():
    with pytest.raises(StopIteration):
        search(grid(ExternalProblem(3), [0.1]), lambda level, seed, epochs: next(iter([])))
    with pytest.raises(ValueError, match="a strategy that was called"):
        search(grid, lambda level, seed, epochs: 0.0)
    with pytest.raises(ValueError, match="got None"):
        search(grid(ExternalProblem(3), [0.1]), lambda level, seed, epochs: None)
    with pytest.raises(ValueError, match="at least 1"):
        ExternalProblem(0)


def test_range_test_takes_the_level_of_the_best_stretch(path):
    result = find_level(noisy(), strategy=range_test, ledger=path, workers=0)
    plain, swept = result.records
    cap = plain.curves["val_loss"][1:].min()
    assert swept.curves["level"][1] <= cap
    assert swept.curves["level"][-1] < swept.curves["level"][1]
    assert result.level is None or 0 < result.level <= cap
    assert result.cost.steps == pytest.approx(2, abs=0.05)
    with pytest.raises(ValueError, match="takes one seed, got 2"):
        find_level(noisy(), strategy=range_test, seeds=2, ledger=path, workers=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_level(mlp(10, 2)), "find_level needs a Problem, .* got Sequential|got MLP"),
        (
            lambda: find_level(ExternalProblem(30)),
            "find_level needs a Problem, .* search.strategy, train",
        ),
        (
            lambda: find_level(noisy(), strategy="halving"),
            "strategy must be a function, .* got 'halving'",
        ),
        (lambda: find_level(noisy(), device="cuda:77"), "device must be there, got 'cuda:77'"),
        (
            lambda: Problem(torch.utils.data.DataLoader([1]), mlp),
            "data must be Splits .*loaders.splits",
        ),
        (
            lambda: noisy(optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)),
            "optimizer must be .* got SGD",
        ),
        (lambda: noisy(loss=nn.CrossEntropyLoss(reduction="none")), "mean, got reduction='none'"),
        (lambda: search(grid(ExternalProblem(3), [0.1])), "Pass it: search.strategy, train"),
        (
            lambda: search(accordance(ExternalProblem(3)), lambda runs: runs),
            "needs a Problem, got ExternalProblem",
        ),
        (
            lambda: search(grid(ExternalProblem(3), [0.1]), lambda b, seed, epochs: 1.0),
            "got .b, seed, epochs.* Name",
        ),
        (
            lambda: search(grid(ExternalProblem(3), [0.1]), lambda level, **_: "0.9"),
            "must return numbers, got '0.9'",
        ),
        (
            lambda: search(grid(ExternalProblem(3), [0.1]), lambda level, **_: (0.9, 3.0)),
            "one score, or a mapping",
        ),
        (
            lambda: search(grid(ExternalProblem(3), [0.1]), lambda **_: {"score": [1.0] * 3}),
            "after each of 3 epochs, got 3",
        ),
        (
            lambda: search(grid(ExternalProblem(3), [0.1]), lambda **_: 1.0).model(),
            "Train your own at level",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(call, message, path, monkeypatch):
    monkeypatch.setenv("FLOODING_LEDGER", str(path))
    with pytest.raises(ValueError, match=message):
        call()


def test_a_strategy_is_driven_once_and_lost_trainings_are_counted():
    def train(level, seed, epochs):
        if level > 0.1:
            raise RuntimeError("the machine went away")
        return 1 - level

    strategy = grid(ExternalProblem(9), [0.05, 0.1, 0.2])
    with pytest.raises(RuntimeError, match="went away") as caught:
        search(strategy, train)
    assert "2 finished trainings are lost" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="driven once"):
        search(strategy, train)


def test_a_tensor_is_a_score_and_hours_are_counted():
    def train(**arguments):
        time.sleep(0.01)
        return torch.tensor(1.0 - arguments["level"], requires_grad=True)

    result = search(grid(ExternalProblem(9), [0.1, 0.2]), train)
    assert result.level == 0.1
    assert result.cost.hours > 0.02 / 3600
    assert result.cost.epochs == 18
