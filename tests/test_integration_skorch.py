"""skorch: real nets, searches and pipelines against the loop written by hand, in float64."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from framework_table import cell

pytest.importorskip("skorch", reason="skorch is not installed: flooding[skorch]")
import numpy as np
import skorch
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # ruff: ignore[unused-import]
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Checkpoint, EarlyStopping, EpochScoring, GradientNormClipping
from skorch.dataset import ValidSplit

import flooding.integrations.skorch
import hand_loop as hand
from flooding import Flood
from flooding.integrations.skorch import FloodNetMixin
from flooding.levels import Auto, Delayed, Heuristic, PerClass, Plateau, Warmup
from hand_loop import ACCUMULATE, LEVEL, MICRO, STEPS
from subprocess_checks import added_packages, run_doctests

ROW = "skorch"
X, Y = (t.numpy() for t in hand.data())
EPOCHS = STEPS // 4
OPTIONS = {
    "max_epochs": EPOCHS,
    "batch_size": hand.BATCH,
    "train_split": None,
    "verbose": 0,
    "optimizer": torch.optim.SGD,
    "optimizer__lr": hand.RATE,
    "optimizer__momentum": hand.MOMENTUM,
}


class Module(nn.Module):
    def __init__(self, kind="logits"):
        super().__init__()
        self.net = hand.network(outputs=2 if kind in {"logits", "softmax"} else 1)
        self.kind = kind

    def forward(self, x):
        out = self.net(x)
        if self.kind == "softmax":
            return out.softmax(-1)
        return out.squeeze(-1) if self.kind == "one" else out


class FloodClassifier(FloodNetMixin, NeuralNetClassifier):
    pass


class FloodBinary(FloodNetMixin, NeuralNetBinaryClassifier):
    pass


class FloodRegressor(FloodNetMixin, NeuralNetRegressor):
    pass


def net(level=LEVEL, cls=FloodClassifier, **options):
    options = OPTIONS | {"criterion": nn.CrossEntropyLoss} | options
    return cls(Module, flood_level=level, **options)


def distance(fitted, model):
    return hand.distance(fitted.module_.net.parameters(), model.parameters())


@pytest.fixture(scope="module")
def flooded():
    return hand.train()


def ramp(step):
    return LEVEL * min(step / 60, 1.0)


# The table


def test_one_line(flooded):
    code = "`class Net(FloodNetMixin, NeuralNetClassifier)` and `Net(..., flood_level=0.1)`"
    cell(ROW, "one line", code)
    fitted = net().fit(X, Y)
    assert distance(fitted, flooded) < 1e-12
    plain = NeuralNetClassifier(Module, criterion=nn.CrossEntropyLoss, **OPTIONS).fit(X, Y)
    assert distance(net(None).fit(X, Y), plain.module_.net) == 0
    assert distance(plain, hand.train(None)) < 1e-12


class AccumulatingNet(NeuralNetClassifier):
    """The recipe of skorch's FAQ."""

    def get_loss(self, *args, **kwargs):
        return super().get_loss(*args, **kwargs) / ACCUMULATE

    def train_step(self, batch, **fit_params):
        step = self.train_step_single(batch, **fit_params)
        if len(self.history[-1, "batches"]) % ACCUMULATE == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


class FloodAccumulatingNet(AccumulatingNet, FloodNetMixin, NeuralNetClassifier):
    pass


class FloodedCriterion(nn.CrossEntropyLoss):
    """What a careful user writes without the adapter."""

    def forward(self, *args):
        loss = super().forward(*args)
        return (loss - LEVEL).abs() + LEVEL if self.training else loss


def test_accumulation(flooded):
    fitted = net(cls=FloodAccumulatingNet, batch_size=MICRO).fit(X, Y)
    assert fitted.flood_step_.n_steps == STEPS
    rows = fitted.history[:, ("flooded_loss", "flooded_fraction")]
    assert all(loss >= LEVEL and 0 <= share <= 1 for loss, share in rows)
    options = OPTIONS | {"batch_size": MICRO}
    naive = AccumulatingNet(Module, criterion=FloodedCriterion, **options).fit(X, Y)
    cell(ROW, "accumulation 4", distance(fitted, flooded), naive=distance(naive, flooded))


def test_two_ranks():
    cell(ROW, "two ranks", "not applicable: a net trains in one process")


def test_clipping():
    fitted = net(callbacks=[GradientNormClipping(0.2)]).fit(X, Y)
    cell(ROW, "clipping", distance(fitted, hand.train(max_norm=0.2)))


def test_evaluation():
    fitted = net(2.0, train_split=ValidSplit(4), max_epochs=2).fit(X, Y)
    x, y = (torch.as_tensor(a) for a in (X, Y))
    _, valid = fitted.get_split_datasets(X, Y)
    with torch.no_grad():
        loss = functional.cross_entropy(fitted.module_.net(x[valid.indices]), y[valid.indices])
    cell(ROW, "evaluation plain", abs(fitted.history[-1, "valid_loss"] - loss.item()))


def test_resume():
    # In the middle of a ramp, by files and by pickle.
    half = net(Warmup(LEVEL, steps=60), max_epochs=7).fit(X, Y)
    files = {name: io.BytesIO() for name in ("f_params", "f_optimizer", "f_flood_step")}
    half.save_params(**files)
    other = net(Warmup(LEVEL, steps=60)).initialize()
    for file in files.values():
        file.seek(0)
    other.load_params(**files)
    reference = hand.train(ramp)
    distances = []
    for again in (other, pickle.loads(pickle.dumps(half)), copy.deepcopy(half), half):
        again.set_params(max_epochs=EPOCHS - 7).partial_fit(X, Y)
        distances.append(distance(again, reference))
    assert distances[3] < 1e-12  # the net itself, which the copies left alone
    cell(ROW, "resume", max(distances))


def test_moving_level():
    fitted = net(Warmup(LEVEL, steps=60)).fit(X, Y)
    halves = net(0.0, max_epochs=10).fit(X, Y)
    halves.set_params(flood_level=LEVEL).partial_fit(X, Y)
    values = [
        distance(fitted, hand.train(ramp)),
        distance(halves, hand.train(lambda step: 0.0 if step < 40 else LEVEL)),
    ]
    cell(ROW, "moving level", max(values))


# What skorch concludes from the criterion


def test_predict_proba_is_the_softmax_of_the_logits():
    fitted = net().fit(X, Y)
    with torch.no_grad():
        expected = fitted.module_.net(torch.as_tensor(X)).softmax(-1).numpy()
    np.testing.assert_array_equal(fitted.predict_proba(X), expected)
    np.testing.assert_array_equal(fitted.predict(X), expected.argmax(1))
    assert list(fitted.classes_) == [0, 1]


def test_the_criterion_of_skorch_which_takes_the_logarithm(flooded):
    fitted = net(criterion=nn.NLLLoss, module__kind="softmax").fit(X, Y)
    assert distance(fitted, flooded) < 1e-12


def test_a_binary_classifier():
    targets = Y.astype("float64")

    def loss(scores, y):
        return functional.binary_cross_entropy_with_logits(scores.squeeze(-1), y.double())

    fitted = net(cls=FloodBinary, criterion=nn.BCEWithLogitsLoss, module__kind="one")
    fitted.fit(X, targets)
    assert distance(fitted, hand.train(loss=loss, outputs=1)) < 1e-12
    with torch.no_grad():
        expected = torch.sigmoid(fitted.module_(torch.as_tensor(X))).numpy()
    np.testing.assert_array_equal(fitted.predict_proba(X)[:, 1], expected)
    np.testing.assert_array_equal(fitted.predict(X), expected > 0.5)


def test_a_regressor():
    def loss(scores, y):
        return functional.mse_loss(scores.squeeze(-1), y.double())

    fitted = net(0.15, cls=FloodRegressor, criterion=nn.MSELoss, module__kind="one")
    fitted.set_params(optimizer__lr=0.02).fit(X, Y.astype("float64"))
    reference = hand.train(0.15, loss=loss, outputs=1, optimizer=lambda p: hand.sgd(p, lr=0.02))
    assert distance(fitted, reference) < 1e-12


# Searches


def scores_by_hand(levels):
    """Mean log-loss over three folds for each level, without skorch."""
    scores = []
    for level in levels:
        folds = []
        for train, test in StratifiedKFold(3).split(X, Y):
            x, y = torch.as_tensor(X[train]), torch.as_tensor(Y[train])
            model = hand.network()
            optimizer = hand.sgd(model.parameters())
            for _ in range(5):
                for start in range(0, len(x), hand.BATCH):
                    rows = slice(start, start + hand.BATCH)
                    loss = functional.cross_entropy(model(x[rows]), y[rows])
                    optimizer.zero_grad()
                    ((loss - level).abs() + level).backward()
                    optimizer.step()
            with torch.no_grad():
                folds.append(
                    -log_loss(Y[test], model(torch.as_tensor(X[test])).softmax(-1).numpy())
                )
        scores.append(np.mean(folds))
    return scores


def test_grid_search_over_the_level():
    levels = [0.0, 0.5, 0.6]
    search = GridSearchCV(
        net(max_epochs=5), {"flood_level": levels}, scoring="neg_log_loss", cv=3
    ).fit(X, Y)
    expected = scores_by_hand(levels)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected, rtol=1e-12)
    assert search.best_params_ == {"flood_level": levels[int(np.argmax(expected))]}
    assert len(set(expected)) == 3  # else any order would do


def test_halving_search_with_epochs_as_the_resource():
    search = HalvingGridSearchCV(
        net(),
        {"flood_level": [None, 0.4, 0.5, 0.6]},
        resource="max_epochs",
        min_resources=2,
        max_resources=4,
        factor=2,
        cv=2,
        scoring="neg_log_loss",
    ).fit(X, Y)
    assert search.n_resources_ == [2, 4]
    assert search.n_candidates_ == [4, 2]
    assert search.best_estimator_.history[-1, "epoch"] == 4


def test_a_pipeline():
    pipeline = Pipeline([("same", FunctionTransformer()), ("net", net(0.0, max_epochs=2))])
    search = GridSearchCV(pipeline, {"net__flood_level": [0.0, LEVEL]}, cv=2).fit(X, Y)
    assert "net__flood_level" in search.best_params_
    fitted = pipeline.set_params(net__flood_level=LEVEL, net__max_epochs=EPOCHS).fit(X, Y)
    assert distance(fitted["net"], hand.train()) < 1e-12


def test_clone_and_parameters(flooded):
    original = net(0.1).fit(X, Y)
    assert original.get_params()["flood_level"] == 0.1
    twin = clone(original)
    assert "flood_step_" not in twin.get_params()
    twin.set_params(flood_level=LEVEL).fit(X, Y)
    assert distance(twin, flooded) < 1e-12
    assert not any(name.startswith("flood_s") for name in original.get_params())


# The level


def test_set_params_acts_in_the_middle_of_a_training():
    class Change(skorch.callbacks.Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.set_params(
                flood_level={10: LEVEL, 15: None}.get(net.history[-1, "epoch"] - 1, net.flood_level)
            )

    fitted = net(0.0, callbacks=[Change()]).fit(X, Y)

    def level(step):
        return 0.0 if step < 40 else LEVEL if step < 60 else None

    assert distance(fitted, hand.train(level)) < 1e-12
    assert "flooded_loss" in fitted.history[14]
    assert "flooded_loss" not in fitted.history[15]


def test_fit_starts_a_controller_anew_and_partial_fit_goes_on():
    fitted = net(Warmup(LEVEL, steps=60), max_epochs=5).fit(X, Y)
    assert fitted.flood_step_.level == pytest.approx(ramp(20))
    fitted.partial_fit(X, Y)
    assert fitted.flood_step_.level == pytest.approx(ramp(40))
    fitted.fit(X, Y)
    assert fitted.flood_step_.level == pytest.approx(ramp(20))


def test_a_controller_sees_the_metrics_of_the_epoch():
    seen = []

    class Spy(Heuristic):
        def update(self, state, info):
            if info.loss is None:
                seen.append((info.train_accuracy, info.val_loss, info.val_accuracy))
            return super().update(state, info)

    scoring = EpochScoring("accuracy", on_train=True, name="train_acc")
    level = Spy(LEVEL, until_accuracy=0.99)
    fitted = net(level, train_split=ValidSplit(4), callbacks=[scoring], max_epochs=3)
    fitted.fit(X, Y)
    rows = fitted.history[:, ("train_acc", "valid_loss", "valid_acc")]
    assert seen[-3:] == list(rows)


def test_an_auto_level_is_told_the_number_of_validation_examples():
    seen = []

    class Watched(Auto):
        def update(self, state, info):
            if info.loss is None:
                seen.append(info.n_val)
            return super().update(state, info)

    level = Watched(epochs=20, full_trust=0.97, no_trust=0.99)
    fitted = net(level, train_split=ValidSplit(4), max_epochs=20).fit(X, Y)
    # Before the first step the controller is checked, without a number.
    assert [int(n) for n in seen if n is not None] == [len(X) // 4] * 20
    lowest = min(fitted.history[:, "valid_loss"])
    assert 0.5 * lowest < fitted.flood_step_.level < lowest


def test_flooding_begins_when_the_training_set_is_fitted():
    fitted = net(Delayed(LEVEL, until_loss=0.45)).fit(X, Y)
    levels = fitted.history[:, "flood_level"]
    assert levels[0] == -np.inf
    start = 4 * levels.index(LEVEL)
    assert 0 < start < STEPS
    assert distance(fitted, hand.train(lambda s: None if s < start else LEVEL)) < 1e-12


# The history


def test_the_history_has_the_raw_loss_the_flooded_loss_and_the_share():
    fitted = net().fit(X, Y)
    for epoch in fitted.history:
        raw = [batch["train_loss"] for batch in epoch["batches"]]
        flooded = [abs(loss - LEVEL) + LEVEL for loss in raw]
        assert epoch["train_loss"] == pytest.approx(np.mean(raw), abs=1e-12)
        assert epoch["flooded_loss"] == pytest.approx(np.mean(flooded), abs=1e-12)
        assert epoch["flooded_fraction"] == np.mean([loss < LEVEL for loss in raw])
        assert epoch["flood_level"] == LEVEL
    assert 0.05 < np.mean(fitted.history[:, "flooded_fraction"]) < 0.95
    assert "flooded_loss" not in net(None, max_epochs=1).fit(X, Y).history[0]


def test_the_columns_are_printed(capsys):
    net(max_epochs=1, verbose=1).fit(X, Y)
    head = capsys.readouterr().out.splitlines()[0]
    assert {"flooded_loss", "flooded_fraction", "flood_level"} <= set(head.split())


def test_a_checkpoint_holds_the_level(tmp_path):
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, f_flood_step="flood_step.pt")
    level = Warmup(LEVEL, steps=60)
    net(level, max_epochs=5, callbacks=[checkpoint]).fit(X, Y)
    other = net(level).initialize()
    other.load_params(checkpoint=checkpoint)
    assert other.flood_step_.level == pytest.approx(ramp(20))


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": "0.1"}, TypeError, "level must be a number"),
        ({"level": float("nan")}, ValueError, "level must be finite"),
        ({"level": PerClass(torch.zeros(2))}, TypeError, "got PerClass.*criterion=Flood"),
        ({"level": Plateau(0.1)}, TypeError, r"Plateau needs val_loss.*train_split=ValidSplit"),
        (
            {"level": Delayed(0.1, until_accuracy=1.0)},
            TypeError,
            r"needs train_accuracy.*EpochScoring\('accuracy', on_train=True",
        ),
        (
            {"level": Warmup(0.1, steps=2), "callbacks": "disable"},
            ValueError,
            "callbacks='disable'",
        ),
        (
            {"criterion__reduction": "none"},
            ValueError,
            r"mean loss of the batch, got shape \(32,\)",
        ),
    ],
    ids=[
        "text",
        "nan",
        "a level per class",
        "a controller without validation",
        "a controller without training accuracy",
        "a controller without callbacks",
        "a loss per example",
    ],
)
def test_bad_input_is_refused_before_the_first_step(options, error, message):
    bad = net(**options)
    with pytest.raises(error, match=message):
        bad.fit(X, Y)
    if getattr(bad, "module_", None) is not None:
        assert hand.distance(bad.module_.net.parameters(), hand.network().parameters()) == 0


def test_the_mixin_must_see_the_loss_before_it_is_divided():
    with pytest.raises(TypeError, match=r"class Wrong\(AccumulatingNet, FloodNetMixin, NeuralNet"):
        type("Wrong", (FloodNetMixin, AccumulatingNet), {})


def test_several_optimisers_are_refused():
    class Two(FloodClassifier):
        def initialize_optimizer(self, *args, **kwargs):
            self.second_ = torch.optim.SGD(self.module_.parameters(), lr=0.1)
            return super().initialize_optimizer(*args, **kwargs)

    with pytest.raises(ValueError, match="one optimiser, but the net has second, optimizer"):
        net(cls=Two).fit(X, Y)


@pytest.mark.parametrize("monitor", ["train_loss", "flooded_loss"])
def test_a_callback_that_monitors_a_training_loss_gives_a_warning(monitor):
    stopping = EarlyStopping(monitor=monitor, patience=2)
    with pytest.warns(UserWarning, match=f"EarlyStopping monitors '{monitor}'.*valid_loss"):
        net(callbacks=[stopping], max_epochs=1).fit(X, Y)


def test_what_the_criterion_alone_gets_wrong():
    """The reason for the mixin: skorch concludes nothing from a criterion that it does not know."""
    options = {"criterion__criterion": nn.CrossEntropyLoss(), "criterion__level": LEVEL}
    fitted = NeuralNetClassifier(Module, criterion=Flood, **(OPTIONS | options)).fit(X, Y)
    assert np.abs(fitted.predict_proba(X).sum(1) - 1).max() > 0.1


def test_trimmed_for_prediction():
    # Without its criterion skorch knows no logits any more.
    options = {"criterion": nn.NLLLoss, "module__kind": "softmax", "max_epochs": 1}
    fitted = net(**options).fit(X, Y)
    before = fitted.predict_proba(X)
    fitted.trim_for_prediction()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), before)


# The examples, the import


def test_the_examples_run():
    assert run_doctests(flooding.integrations.skorch) >= 4


def test_the_import_loads_nothing_besides_skorch():
    assert added_packages("skorch", "flooding.integrations.skorch") == {"flooding"}
