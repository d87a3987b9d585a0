"""Keras 3: wrap the model, give compile a level.

Handwritten digits with a fifth of the training labels drawn anew. The picture shows the training
loss: flooding stops it at the level.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

from flooding.integrations.keras import flood_model

# 1. Data: 300 examples to train on, the rest to test.
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
rng = np.random.default_rng(0)
order = rng.permutation(len(x))
train, test = order[:300], order[300:]
noisy = y.copy()
drawn_anew = train[:60]
noisy[drawn_anew] = rng.integers(10, size=60)


# 2. The model, wrapped.
def build(level):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((64,)),
        keras.layers.Dense(100, activation="relu"),
        keras.layers.Dense(10),
    ]
    model = flood_model(keras.Sequential(layers))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], flood_level=level)
    return model


# 3. Training. `flood_level=None` is plain training, bit for bit.
histories = {}
for level in (None, 0.4):
    model = build(level)
    history = model.fit(x[train], noisy[train], batch_size=100, epochs=60, verbose=0).history
    histories[level] = history
    test_loss, accuracy = model.evaluate(x[test], y[test], batch_size=500, verbose=0)
    share = np.mean(history.get("flooded_fraction", [0.0]))
    print(
        f"level {level}: {share:.0%} of the steps flooded, test loss {test_loss:.2f}, "
        f"accuracy {accuracy:.1%}"
    )


# The picture.
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for level, color in ((None, "tab:red"), (0.4, "tab:blue")):
    history = histories[level]
    name = "plain" if level is None else f"level {level}"
    ax.semilogy(history.get("raw_loss", history["loss"]), color=color, label=name)
ax.set(xlabel="epoch", ylabel="training loss, nats")
ax.legend()
figure.savefig("keras_fit.png", dpi=100)
