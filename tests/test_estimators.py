"""scikit-learn estimators: its own contract, and that they are the Run one would write by hand."""

import inspect
import multiprocessing.process
import pickle
import random
import subprocess
from functools import partial

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed: flooding[tables]")
pytest.importorskip("pandas", reason="pandas is not installed: flooding[tables]")
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from flooding import Problem, Run
from flooding.averaging import EMA, Mean
from flooding.data import Split, Splits
from flooding.integrations._typed_columns import type_columns
from flooding.integrations.sklearn import FloodingClassifier, FloodingRegressor
from flooding.levels import Auto, PerClass, Plateau, Warmup
from flooding.models import mlp
from flooding.training.loop import train
from subprocess_checks import added_packages

SMALL = {"width": 16, "depth": 1, "max_epochs": 6, "learning_rate": 0.03}
X, Y = load_iris(return_X_y=True)
SEEDED = SMALL | {"random_state": 0}


def weights(estimator):
    return torch.cat([t.flatten() for t in estimator.network_.state_dict().values()])


def mixed_table(n=60):
    """A column of every kind, some with missing cells; the label follows from two of them."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=n)
    colour = rng.choice(["red", "blue", "green"], n)
    dates = pd.date_range("2020-01-30", periods=n, freq="9D")
    table = pd.DataFrame({
        "size": np.where(rng.random(n) < 0.1, np.nan, size),
        "colour": pd.Categorical(colour),
        "shape": np.where(rng.random(n) < 0.1, None, rng.choice(["round", "flat"], n)),
        "is_ripe": rng.random(n) < 0.5,
        "count": pd.array([*rng.integers(5, size=n - 1), None], dtype="Int64"),
        "picked": dates.tz_localize("Europe/Berlin"),
        "age": pd.to_timedelta(rng.integers(99, size=n), unit="h"),
        "mixed": [None, 0.5, *rng.integers(3, size=n - 2).tolist()],
    })
    return table, np.where((size > 0) == (colour == "red"), "yes", "no")


# The contract.


@parametrize_with_checks([
    FloodingClassifier(**SMALL | {"max_epochs": 8}),
    FloodingRegressor(**SMALL),
])
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", [FloodingClassifier, FloodingRegressor])
def test_sample_weights_are_not_accepted(kind):
    assert "sample_weight" not in inspect.signature(kind.fit).parameters
    with pytest.raises(TypeError, match="sample_weight"):
        kind(**SMALL).fit(X, Y, sample_weight=np.ones(len(Y)))


def test_cross_validation_in_processes_gives_the_same_scores(tmp_path, monkeypatch):
    ledger = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("FLOODING_LEDGER", str(ledger))
    classifier = FloodingClassifier(**SEEDED)
    alone = cross_val_score(classifier, X, Y, cv=3)
    in_processes = cross_val_score(classifier, X, Y, cv=3, n_jobs=2)
    assert alone.tolist() == in_processes.tolist()
    assert not ledger.exists()


def test_training_starts_no_process(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    FloodingClassifier(**SEEDED).fit(X, Y)


def test_a_search_takes_every_kind_of_level():
    levels = [None, 0.2, "auto", Plateau(0.1)]
    search = GridSearchCV(
        FloodingClassifier(**SEEDED), {"level": levels}, cv=2, error_score="raise"
    )
    search.fit(X, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    copied = clone(search.best_estimator_)
    assert copied.get_params() == search.best_estimator_.get_params()


def test_pipeline_hands_on_feature_names():
    frame = pd.DataFrame(X, columns=[f"measure {i}" for i in range(4)])
    pipeline = make_pipeline(StandardScaler(), FloodingClassifier(**SEEDED))
    pipeline.set_output(transform="pandas").fit(frame, Y)
    assert pipeline[-1].feature_names_in_.tolist() == frame.columns.tolist()
    with pytest.raises(ValueError, match="feature names should match"):
        pipeline[-1].predict(frame[frame.columns[::-1]])


def test_a_pickle_predicts_the_same_and_holds_no_rows():
    x = np.random.default_rng(0).normal(size=(2000, 4))
    classifier = FloodingClassifier(**SEEDED | {"max_epochs": 1}).fit(x, x[:, 0] > 0)
    data = pickle.dumps(classifier)
    assert len(data) < x.nbytes / 2
    assert np.array_equal(pickle.loads(data).predict_proba(x), classifier.predict_proba(x))


# Training.


@pytest.mark.parametrize("level", [None, 0.5])
def test_the_network_is_that_of_a_run_written_by_hand(level):
    options = SEEDED | {"early_stopping": False, "level": level}
    classifier = FloodingClassifier(**options).fit(X, Y)
    # The same, from torch and a Run: all rows are trained on, and the batch is a fifth of them.
    x = torch.from_numpy(((X - X.mean(0)) / X.std(0)).astype(np.float32))
    split = Split(x, torch.from_numpy(Y))
    problem = Problem(
        Splits(split, split),
        partial(mlp, 4, 3, width=16, depth=1),
        partial(torch.optim.Adam, lr=0.03, fused=True),
        batch_size=30,
        max_epochs=6,
    )
    seed = np.random.RandomState(0).randint(2**31 - 1)
    *_, row = train(Run(problem, level=level, seed=int(seed)))
    expected = torch.cat([t.flatten() for t in row.weights["last"].values()])
    assert torch.equal(weights(classifier), expected.double())
    assert classifier.level_ == level
    assert classifier.validation_scores_ is None
    assert np.array_equal(classifier.loss_curve_, row.record.curves["train_loss"][1:])


def test_auto_is_the_default_level():
    default = FloodingClassifier(**SEEDED | {"max_epochs": 20}).fit(X, Y)
    explicit = FloodingClassifier(**SEEDED | {"max_epochs": 20, "level": Auto()}).fit(X, Y)
    assert torch.equal(weights(default), weights(explicit))
    assert default.level_ == explicit.level_ > 0


@pytest.mark.parametrize(
    ("estimator", "y"),
    [(FloodingClassifier(), Y), (FloodingRegressor(), X[:, 3])],
    ids=["classifier", "regressor"],
)
def test_early_stopping_keeps_the_network_of_the_best_validation_epoch(estimator, y):
    # Of a controller, so that both hold the same rows out.
    options = SEEDED | {"level": Warmup(0.3, steps=4), "max_epochs": 12}
    best = clone(estimator).set_params(**options).fit(X, y)
    scores = best.validation_scores_
    assert best.n_epochs_ == len(scores) == 12
    assert scores[best.best_epoch_ - 1] == scores.max()
    options |= {"early_stopping": False, "max_epochs": best.best_epoch_}
    short = clone(estimator).set_params(**options).fit(X, y)
    assert short.best_epoch_ == short.n_epochs_ == best.best_epoch_
    assert torch.equal(weights(best), weights(short))


@pytest.mark.parametrize("early_stopping", [True, False])
def test_averaged_weights(early_stopping):
    # At a fixed level, as a controller would watch the average and train another network.
    options = SEEDED | {"early_stopping": early_stopping, "level": 0.3}
    network = FloodingClassifier(**options).fit(X, Y)
    # An average that forgets everything is the network itself.
    same = FloodingClassifier(**options, averaging=EMA(0, warmup=False)).fit(X, Y)
    other = FloodingClassifier(**options, averaging=Mean(start_epoch=1)).fit(X, Y)
    assert torch.equal(weights(network), weights(same))
    assert not torch.equal(weights(network), weights(other))


def test_validation_scores_are_in_the_unit_of_the_target():
    a = FloodingRegressor(**SEEDED).fit(X, X[:, 3])
    b = FloodingRegressor(**SEEDED).fit(X, 4 * X[:, 3])
    # A power of 2 changes no rounding.
    assert np.array_equal(16 * a.validation_scores_, b.validation_scores_)
    assert np.array_equal(4 * a.predict(X), b.predict(X))
    assert np.array_equal(a.loss_curve_, b.loss_curve_)


def test_a_constant_target_is_predicted():
    regressor = FloodingRegressor(**SMALL | {"max_epochs": 60}).fit(X, np.full(len(X), 7.0))
    assert np.abs(regressor.predict(X) - 7).max() < 0.5


# Randomness and global state.


def test_random_state():
    def fit(random_state):
        return weights(FloodingClassifier(**SMALL, random_state=random_state).fit(X, Y))

    assert torch.equal(fit(3), fit(3))
    assert not torch.equal(fit(3), fit(4))
    state = np.random.RandomState(3)
    first, second = fit(state), fit(state)
    assert torch.equal(first, fit(3))
    assert not torch.equal(first, second)
    # None is NumPy's global generator, as everywhere in scikit-learn.
    before = np.random.get_state()  # ruff: ignore[numpy-legacy-random]
    try:
        np.random.seed(3)  # ruff: ignore[numpy-legacy-random]
        assert torch.equal(first, fit(None))
    finally:
        np.random.set_state(before)  # ruff: ignore[numpy-legacy-random]


def test_nothing_global_changes():
    def snapshot():
        _, numbers, *position = np.random.get_state()  # ruff: ignore[numpy-legacy-random]
        settings = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
        generators = (torch.get_rng_state().tolist(), random.getstate(), numbers.tolist())
        return settings, generators, position

    before = snapshot()
    FloodingClassifier(**SEEDED).fit(X, Y).predict_proba(X)
    assert snapshot() == before


# Labels and predictions.


@pytest.mark.parametrize(
    "labels",
    [
        ["b", " a", "B "],
        [7, -1, 3],
        [2.0, 0.0, 1.0],
        [True, True, False],
        ["1.0", "1", "01"],
    ],
    ids=str,
)
def test_labels_come_back_as_they_are(labels):
    y = np.array(labels)[Y]
    classifier = FloodingClassifier(**SEEDED).fit(X, y)
    assert classifier.classes_.tolist() == sorted(set(labels))
    predicted = classifier.predict(X)
    assert predicted.dtype == classifier.classes_.dtype == y.dtype
    assert (predicted == y).mean() > 0.8
    series = pd.Series(list(y))
    assert np.array_equal(FloodingClassifier(**SEEDED).fit(X, series).predict(X), predicted)


def test_probabilities():
    classifier = FloodingClassifier(**SEEDED | {"max_epochs": 30, "level": None}).fit(X, Y)
    p = classifier.predict_proba(X)
    assert p.dtype == np.float64
    assert np.abs(p.sum(1) - 1).max() < 1e-14
    assert np.allclose(np.log(p), classifier.predict_log_proba(X), rtol=1e-12, atol=1e-12)
    assert np.array_equal(classifier.classes_[p.argmax(1)], classifier.predict(X))
    # A row's prediction does not depend on the rows beside it.
    rows = np.concatenate([classifier.predict_proba(X[i : i + 1]) for i in range(0, 150, 10)])
    assert np.abs(rows - p[::10]).max() < 1e-14


# Tables.


def test_a_table_of_all_kinds_of_columns():
    table, y = mixed_table()
    classifier = FloodingClassifier(**SEEDED | {"max_epochs": 40}).fit(table, y)
    assert classifier.feature_names_in_.tolist() == list(table)
    assert classifier.score(table, y) > 0.8
    preprocessing = classifier.preprocessing_
    assert set(preprocessing.dates) == {"picked"}
    assert {"colour", "shape"} < set(preprocessing.categorical_columns)
    assert {"size", "is_ripe", "count", "age", "mixed"} < set(preprocessing.numeric_columns)


def test_new_rows_may_miss_everything_and_have_new_categories():
    table, y = mixed_table()
    classifier = FloodingClassifier(**SEEDED).fit(table, y)
    empty = pd.DataFrame({name: [None] for name in table})
    assert classifier.predict_proba(empty).shape == (1, 2)
    new = table.head(2).assign(colour=["violet", "red"])
    assert np.isfinite(classifier.predict_proba(new)).all()
    # The index says nothing, and the prediction is by row.
    shuffled = table.iloc[::-1]
    assert np.array_equal(classifier.predict(shuffled), classifier.predict(table)[::-1])


def test_a_frame_of_numbers_is_the_array():
    frame = pd.DataFrame(X)  # names that are no strings are none
    from_frame = FloodingClassifier(**SEEDED).fit(frame, Y)
    from_array = FloodingClassifier(**SEEDED).fit(X, Y)
    assert not hasattr(from_frame, "feature_names_in_")
    assert torch.equal(weights(from_frame), weights(from_array))
    assert np.array_equal(from_frame.predict_proba(frame), from_array.predict_proba(X))


def test_columns_are_converted_by_their_dtypes():
    frame = pd.DataFrame({
        "a": pd.Series([1, None], dtype="Int8"),
        "b": pd.Series([True, None], dtype=object),
        "c": pd.to_timedelta([90, None], unit="s"),
        "d": pd.Categorical([1, None]),
        "e": pd.to_datetime(["2020-01-01 23:00", None]).tz_localize("Asia/Tokyo"),
    })
    typed = type_columns(frame, list(frame))
    missing = pd.isna(typed)
    assert missing.iloc[1].all()
    assert typed.iloc[0].tolist() == [1.0, 1.0, 90.0, "1", pd.Timestamp("2020-01-01 23:00")]


# Errors: the rule, the value, the fix.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"level": "Auto"}, r'level must be a number, "auto", .* got \'Auto\'\. Leave it out'),
        ({"level": True}, "level must be a number.*got True"),
        ({"level": Auto}, "level must be a number.*got <class"),
        ({"level": PerClass([0.1, 0.2, 0.3])}, "level must be a number.*got PerClass"),
        ({"level": float("nan")}, "level must be finite, got nan"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"depth": -1}, "depth must be a whole number of at least 0, got -1"),
        ({"max_epochs": 1.5}, "max_epochs must be a whole number of at least 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0}, r"learning_rate must lie in \(0, inf\), got 0\. Try 0.001"),
        ({"validation_fraction": 20}, r"validation_fraction must lie in \(0, 1\), got 20\. Give"),
        ({"early_stopping": "yes"}, "early_stopping must be True or False, got 'yes'"),
        ({"averaging": 0.9}, "averaging must be an Averaging.*got 0.9"),
        ({"averaging": Mean(start_epoch=7)}, "start_epoch must lie in 1 to max_epochs, 6, got 7"),
        ({"device": "cuda:99"}, "device must be there, got 'cuda:99'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_parameter_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        FloodingClassifier(**SEEDED | parameters).fit(X, Y)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (
            [1, "a", 2, "b"] * 15,
            TypeError,
            "column 'size' must hold numbers, text or dates, got mixed",
        ),
        ([[1], [2]] * 30, TypeError, "column 'size' must hold numbers, text or dates, got mixed"),
        ([1j, 2.0] * 30, ValueError, "Complex data not supported: column 'size'"),
        ([1.0, np.inf] * 30, ValueError, "column 'size' must hold finite numbers"),
    ],
    ids=["mixed", "lists", "complex", "infinite"],
)
def test_cells_that_are_no_numbers_text_or_dates(column, error, message):
    table, y = mixed_table()
    with pytest.raises(error, match=message):
        FloodingClassifier(**SEEDED).fit(table.assign(size=column), y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "1"}, "column 'size' must hold numbers as in training, got text. Convert it"),
        ({"colour": 1}, "column 'colour' must hold text as in training, got numbers. Convert it"),
        ({"picked": "2020"}, "column 'picked' must hold dates as in training, got text. Convert"),
    ],
    ids=["numbers", "text", "dates"],
)
def test_new_rows_of_another_kind(change, message):
    table, y = mixed_table()
    classifier = FloodingClassifier(**SEEDED).fit(table, y)
    with pytest.raises(ValueError, match=message):
        classifier.predict(table.assign(**change))


def test_targets_and_tables_that_cannot_be_trained_on():
    classifier = FloodingClassifier(**SEEDED)
    with pytest.raises(ValueError, match="y must have at least 2 classes, got 1 class"):
        classifier.fit(X, np.zeros(len(X)))
    labels = np.array(["a", "b", None] * 50, dtype=object)
    with pytest.raises(
        ValueError, match=r"y must have no missing values, got None in row 2\. Drop"
    ):
        classifier.fit(X, labels)
    with pytest.raises(ValueError, match="at least one column must vary on the training rows"):
        classifier.fit(np.ones_like(X), Y)
    twice = pd.DataFrame(X[:, :2], columns=["a", "a"])
    with pytest.raises(ValueError, match="Expected unique column names"):
        classifier.fit(twice, Y)
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        classifier.fit(pd.DataFrame({"a": [1.0]}), ["a"])
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0] * 3})
    classifier.fit(table, ["u", "v", "v"] * 3)
    with pytest.raises(ValueError, match="X must have at least one row, got none"):
        classifier.predict(table.head(0))


def test_rare_classes_are_trained_on():
    y = np.array([0] * 10 + [1] * 2 + [2])
    x = np.arange(13.0)[:, None]
    assert FloodingClassifier(**SEEDED).fit(x, y).classes_.tolist() == [0, 1, 2]
    # One row of a class of two is validated on where no class has three.
    assert len(FloodingClassifier(**SEEDED).fit(x[:3], y[-3:]).validation_scores_) == 6
    with pytest.raises(ValueError, match="validation needs a class with at least 2 rows, got one"):
        FloodingClassifier(**SEEDED).fit(x[:3], [0, 1, 2])
    options = SEEDED | {"early_stopping": False, "level": 0.1}
    FloodingClassifier(**options).fit(x[:3], [0, 1, 2])


def test_a_training_that_diverges_ends_with_an_error_and_leaves_the_old_network():
    regressor = FloodingRegressor(**SEEDED).fit(X, X[:, 3])
    before = regressor.predict(X)
    regressor.set_params(learning_rate=1e30)
    with pytest.raises(ValueError, match=r"training loss must stay finite, got .* Lower learning"):
        regressor.fit(X, X[:, 3])
    assert np.array_equal(regressor.predict(X), before)


def test_the_import_loads_nothing_besides_scikit_learn():
    # Neither torch nor pandas.
    added = added_packages("sklearn.base", "flooding.integrations.sklearn")
    assert added == {"flooding", "sklearn"}
