"""What Keras does on one back end in float64, against the loop written by hand.

Run as a process of its own with KERAS_BACKEND. Prints one JSON object, ``{case: difference}``; a
case that must be refused gives the error's text.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

os.environ["JAX_ENABLE_X64"] = "1"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np
import torch
from keras import ops

import flooding
import flooding.integrations.host_level
import flooding.integrations.keras
import hand_loop as hand
from flooding.integrations.keras import FloodMixin, FloodModel, flood_model
from flooding.levels import Delayed, Heuristic, Plateau, Warmup
from hand_loop import ACCUMULATE, BATCH, EXAMPLES, LEVEL, MICRO, STEPS
from subprocess_checks import run_cases, run_doctests, run_page

torch.set_num_threads(1)
X, Y = (t.numpy() for t in hand.data())
W = np.linspace(0.2, 1.8, EXAMPLES)
EPOCHS = STEPS // 4
FIT = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
RATE = float(np.float32(hand.RATE))  # Keras keeps the learning rate in float32


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE, momentum=hand.MOMENTUM)


train = partial(hand.train, optimizer=sgd)


def functional_model(cls=keras.Model, penalty=None):
    regularizer = None if penalty is None else keras.regularizers.L2(penalty)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(32, activation="tanh", kernel_regularizer=regularizer)(inputs)
    return with_weights(cls(inputs, keras.layers.Dense(2)(hidden)))


def with_weights(model):
    first, bias, second, last = (p.detach().numpy() for p in hand.network().parameters())
    model.set_weights([first.T, bias, second.T, last])
    return model


def optimizer(**options):
    return keras.optimizers.SGD(hand.RATE, momentum=hand.MOMENTUM, **options)


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(level=LEVEL, model=None, opt=None, **options):
    model = functional_model(FloodModel) if model is None else model
    options = {"metrics": ["accuracy"]} | options
    if isinstance(model, FloodMixin):
        options["flood_level"] = level
    model.compile(opt or optimizer(), cross_entropy(), **options)
    return model


def distance(model, other):
    arrays = [np.ascontiguousarray(a.T) for a in model.get_weights()[:4]]
    return hand.distance(arrays, other.parameters())


def plain_loss(model):
    twin = hand.network()
    with torch.no_grad():
        for p, a in zip(twin.parameters(), model.get_weights()[:4], strict=True):
            p.copy_(torch.as_tensor(np.ascontiguousarray(a.T)))
    return hand.plain_loss(twin)


# Each case gives a difference.


def control():
    """Keras' own plain training."""
    model = compiled(model=functional_model())
    model.fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(model, train(None))


def one_line():
    model = compiled()
    history = model.fit(X, Y, epochs=EPOCHS, **FIT).history
    names = {"accuracy", "loss", "raw_loss", "flooded_fraction", "flood_level"}
    assert set(history) == names, sorted(history)
    assert 0.05 < np.mean(history["flooded_fraction"]) < 0.95
    assert np.allclose(history["flood_level"], LEVEL)
    assert all(a >= LEVEL for a in history["loss"])
    return distance(model, train())


def level_none():
    """Bit for bit the model without the mixin."""
    plain = compiled(model=functional_model())
    flooded = compiled(None)
    histories = [m.fit(X, Y, epochs=3, **FIT).history for m in (plain, flooded)]
    assert histories[0] == histories[1]
    return max(
        float(np.abs(a - b).max())
        for a, b in zip(plain.get_weights(), flooded.get_weights(), strict=True)
    )


class Subclassed(FloodMixin, keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(32, activation="tanh")
        self.last = keras.layers.Dense(2)

    def call(self, inputs):
        return self.last(self.hidden(inputs))


def subclassed():
    model = Subclassed()
    model(X[:1])
    compiled(model=with_weights(model)).fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(model, train())


def wrapped():
    """flood_model() of a functional model and of a Sequential; the layers are shared."""
    plain = functional_model()
    assert flood_model(plain).layers == plain.layers
    layers = [keras.layers.Dense(32, activation="tanh"), keras.layers.Dense(2)]
    sequential = with_weights(keras.Sequential([keras.Input((5,)), *layers]))
    model = flood_model(sequential)
    assert np.array_equal(model.predict(X, verbose=0), sequential.predict(X, verbose=0))
    compiled(model=model).fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(sequential, train())


def sample_weights():
    model = compiled()
    model.fit(X, Y, epochs=EPOCHS, sample_weight=W, **FIT)
    return distance(model, train(weights=torch.as_tensor(W)))


def regulariser():
    model = compiled(model=functional_model(FloodModel, 0.02))
    history = model.fit(X, Y, epochs=EPOCHS, validation_data=(X, Y), **FIT).history
    assert history["val_loss"][-1] > plain_loss(model) + 0.01  # with the penalty, as in Keras
    return distance(model, train(penalty=0.02))


def clipping():
    model = compiled(opt=optimizer(global_clipnorm=0.2))
    model.fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(model, train(max_norm=0.2, epsilon=0.0))


def clipping_control():
    model = compiled(model=functional_model(), opt=optimizer(global_clipnorm=0.2))
    model.fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(model, train(None, max_norm=0.2, epsilon=0.0))


def between_fits():
    """One compile, two fits, two levels: a compiled function must not keep the first."""
    model = compiled(0.0)
    model.fit(X, Y, epochs=10, **FIT)
    model.flood_level = LEVEL
    model.fit(X, Y, epochs=10, **FIT)
    assert model.flood_level == LEVEL
    return distance(model, train(lambda step: 0.0 if step < 40 else LEVEL))


def ramp(step):
    return LEVEL * min(step / 60, 1.0)


def by_a_callback():
    """Every batch, in the middle of an epoch, by a callback that does not know the model."""
    model = compiled(0.0)
    steps = iter(range(STEPS))

    def begin(batch, logs):
        model.flood_level = ramp(next(steps))

    model.fit(
        X,
        Y,
        epochs=EPOCHS,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_begin=begin)],
        **FIT,
    )
    return distance(model, train(ramp))


def controller():
    model = compiled(Warmup(LEVEL, steps=60))
    model.fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(model, train(ramp))


def delayed():
    """ "No level yet" is -inf; flooding begins at the end of an epoch."""
    model = compiled(Delayed(LEVEL, until_loss=0.45))
    levels = []
    end = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: levels.append(model.flood_level)
    )
    model.fit(X, Y, epochs=EPOCHS, callbacks=[end], **FIT)
    start = 4 * (1 + levels.index(LEVEL))
    assert 0 < start < STEPS, levels
    return distance(model, train(lambda step: None if step < start else LEVEL))


def one_by_one():
    """train_on_batch shows a controller its steps, too."""
    model = compiled(Warmup(LEVEL, steps=60))
    for batch in hand.batches():
        model.train_on_batch(X[batch], Y[batch])
    return distance(model, train(ramp))


def validation_for_a_controller():
    """A Plateau sees the data loss of the validation examples, without the penalty."""
    seen = []

    class Spy(Plateau):
        def update(self, state, info):
            if info.loss is None:
                seen.append((info.val_loss, info.val_accuracy))
            return super().update(state, info)

    model = compiled(Spy(0.3), model=functional_model(FloodModel, 0.02))
    seen.clear()
    model.fit(X, Y, epochs=2, validation_data=(X, Y), validation_freq=2, **FIT)
    val_loss, accuracy = seen[-1]
    assert len(seen) == 3, seen  # twice a trial before the first step, and once after two epochs
    assert 0.5 < accuracy <= 1
    return abs(val_loss - plain_loss(model))


def evaluation():
    """At a level that floods every batch."""
    model = compiled(2.0)
    plain = compiled(model=functional_model())
    numbers = model.evaluate(X, Y, batch_size=BATCH, verbose=0)
    assert numbers == plain.evaluate(X, Y, batch_size=BATCH, verbose=0)  # no number more
    history = model.fit(X, Y, epochs=1, validation_data=(X, Y), **FIT).history
    assert {n for n in history if n.startswith("val_")} == {"val_loss", "val_accuracy"}
    assert history["loss"][0] > 2
    return abs(history["val_loss"][0] - plain_loss(model))


def files(level, reference):
    """Save and load in the middle of the training, and go on."""
    model = compiled(level)
    model.fit(X, Y, epochs=7, **FIT)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)
        weights = Path(folder) / "model.weights.h5"
        model.save_weights(weights)
        plain = functional_model()
        plain.load_weights(weights)  # the level is no weight
    assert loaded.flood_level == model.flood_level
    loaded.fit(X, Y, epochs=EPOCHS - 7, **FIT)
    return distance(loaded, reference)


def files_of_a_plain_model():
    model = compiled(None)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        loaded = keras.saving.load_model(Path(folder) / "model.keras")
    assert loaded.flood_level is None
    loaded.fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(loaded, train(None))


def many_steps():
    """Several steps in one execution, on JAX; a compiled step on torch."""
    if keras.backend.backend() == "jax":
        model = compiled(steps_per_execution=4)
    else:
        model = compiled(run_eagerly=True)
    model.fit(X, Y, epochs=EPOCHS, **FIT)
    return distance(model, train())


def two_devices():
    if keras.backend.backend() != "jax":
        return 0.0
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    try:
        assert len(keras.distribution.list_devices()) == 2
        model = compiled()
        model.fit(X, Y, epochs=EPOCHS, **FIT)
        return distance(model, train())
    finally:
        keras.distribution.set_distribution(None)


def slope_at_the_level():
    """A loss that is exactly at the level has gradient 0: the weights stay."""

    def loss(y, p):
        return 0.25 + 0 * ops.mean(y) + ops.mean(p) - ops.stop_gradient(ops.mean(p))

    model = functional_model(FloodModel)
    before = model.get_weights()
    moved = []
    for level in (0.25, 0.125):
        model.compile(keras.optimizers.SGD(1.0), loss, flood_level=level)
        model.fit(X, Y, epochs=1, **FIT)
        moved.append(
            max(
                float(np.abs(a - b).max()) for a, b in zip(before, model.get_weights(), strict=True)
            )
        )
    assert moved[1] > 0.01, "the test has no gradient"
    return moved[0]


def edge_losses():
    """Not-a-number, infinity and "no level yet" pass through with slope 1."""
    from flooding.integrations.keras_level import ModelLevel

    level = ModelLevel(0.5)
    got = [float(level.flood(ops.convert_to_tensor(x))) for x in (np.inf, np.nan, 0.25, 0.75)]
    level.assign(None)
    got.append(float(level.flood(ops.convert_to_tensor(0.25))))
    level.variables.level.assign(np.nan)
    got.append(float(level.flood(ops.convert_to_tensor(0.25))))
    wanted = [np.inf, np.nan, 0.75, 0.75, 0.25, np.nan]
    return 0.0 if np.array_equal(got, wanted, equal_nan=True) else 1.0


# What one would write without the adapter.


class FloodLoss(keras.losses.Loss):
    def __init__(self, level):
        super().__init__()
        self.inner, self.level = cross_entropy(), level

    def call(self, y_true, y_pred):
        return flooding.flood(self.inner(y_true, y_pred), self.level)


def naive(size=BATCH, **options):
    model = functional_model()
    model.compile(optimizer(**options), FloodLoss(LEVEL))
    model.fit(X, Y, epochs=EPOCHS, **(FIT | {"batch_size": size}))
    return distance(model, train())


def naive_evaluation():
    model = functional_model()
    model.compile(optimizer(), FloodLoss(2.0))
    return abs(model.evaluate(X, Y, batch_size=BATCH, verbose=0) - plain_loss(model))


class FloatLevel(keras.Model):
    level = 0.0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return flooding.flood(loss, self.level) if training else loss


def naive_between_fits():
    model = functional_model(FloatLevel)
    model.compile(optimizer(), cross_entropy())
    model.fit(X, Y, epochs=10, **FIT)
    model.level = LEVEL
    model.fit(X, Y, epochs=10, **FIT)
    return distance(model, train(lambda step: 0.0 if step < 40 else LEVEL))


CASES = {
    "control": control,
    "control, clipping": clipping_control,
    "one line": one_line,
    "level None": level_none,
    "subclass": subclassed,
    "wrapped": wrapped,
    "sample weights": sample_weights,
    "regulariser": regulariser,
    "clipping": clipping,
    "between fits": between_fits,
    "by a callback": by_a_callback,
    "controller": controller,
    "delayed": delayed,
    "train_on_batch": one_by_one,
    "validation for a controller": validation_for_a_controller,
    "evaluation": evaluation,
    "files": lambda: files(LEVEL, train()),
    "files, controller": lambda: files(Warmup(LEVEL, steps=60), train(ramp)),
    "files, plain": files_of_a_plain_model,
    "many steps": many_steps,
    "two devices": two_devices,
    "slope at the level": slope_at_the_level,
    "edge losses": edge_losses,
    "accumulation, naive": lambda: naive(MICRO, gradient_accumulation_steps=ACCUMULATE),
    "evaluation, naive": naive_evaluation,
    "between fits, naive": naive_between_fits,
}


# Each refusal gives the text of the error or warning.


class OwnTrainStep(FloodModel):
    def train_step(self, *args):
        state = args[0] if len(args) > 1 else None
        return ({"loss": ops.zeros(())}, state) if len(args) > 1 else {"loss": ops.zeros(())}


class OwnController(Warmup):
    pass


def fit_with(*callbacks, level=LEVEL, **options):
    options = {"validation_data": (X, Y)} | options
    compiled(level).fit(X, Y, epochs=1, callbacks=list(callbacks), **(FIT | options))


def accumulating_later():
    model = compiled()
    model.optimizer = optimizer(gradient_accumulation_steps=4)
    model.fit(X, Y, epochs=1, **FIT)


def set_without_a_level():
    model = compiled(None)
    model.flood_level = 0.1


def wrong_order():
    class Net(keras.Model, FloodMixin):
        pass


def save_own_controller():
    with tempfile.TemporaryDirectory() as folder:
        compiled(OwnController(LEVEL, steps=3)).save(Path(folder) / "model.keras")


REFUSALS = {
    "accumulation": lambda: compiled(opt=optimizer(gradient_accumulation_steps=4)),
    "accumulation, later": accumulating_later,
    "text": lambda: compiled("0.1"),
    "nan": lambda: compiled(float("nan")),
    "axes": lambda: compiled(np.ones(3)),
    "no loss": lambda: functional_model(FloodModel).compile(optimizer(), flood_level=0.1),
    "no level": set_without_a_level,
    "order": wrong_order,
    "controller, executions": lambda: compiled(Warmup(0.1, steps=3), steps_per_execution=4),
    "controller, no validation": lambda: fit_with(level=Plateau(0.1), validation_data=None),
    "controller, no metrics": lambda: compiled(Heuristic(0.1, until_loss=0.1), metrics=None).fit(
        X, Y, validation_data=(X, Y), **FIT
    ),
    "controller, backup": lambda: fit_with(
        keras.callbacks.BackupAndRestore(tempfile.gettempdir()), level=Warmup(0.1, steps=3)
    ),
    "own train_step": lambda: compiled(model=functional_model(OwnTrainStep)).fit(
        X, Y, epochs=1, **FIT
    ),
    "not functional": lambda: flood_model(Subclassed()),
    "monitor": lambda: fit_with(keras.callbacks.EarlyStopping("loss")),
    "monitor, raw": lambda: fit_with(keras.callbacks.ReduceLROnPlateau("raw_loss")),
    "controller of one's own": save_own_controller,
}


def refusal(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="keras")
        try:
            case()
        except Exception as error:  # ruff: ignore[blind-except]: its text is the result
            return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def main():
    # The page and the examples are in float32, as Keras starts.
    modules = (flooding.integrations.keras, flooding.integrations.host_level)
    first = {"examples": partial(run_doctests, *modules)}
    if keras.backend.backend() == "jax":  # test_docs.py runs it on torch
        first["page"] = partial(run_page, "keras.md")
    measured = run_cases(first)
    keras.config.set_floatx("float64")
    measured |= run_cases(CASES)
    measured |= {f"refused: {name}": refusal(case) for name, case in REFUSALS.items()}
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
