"""JAX: flooding is a transformation around an optax optimiser.

Handwritten digits with a fifth of the training labels drawn anew. The picture shows the test loss
after every epoch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from flooding.integrations.optax import flood

# 1. Data: 300 examples to train on, the rest to test.
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32")
rng = np.random.default_rng(0)
order = rng.permutation(len(x))
train, test = order[:300], order[300:]
noisy = y.copy()
drawn_anew = train[:60]
noisy[drawn_anew] = rng.integers(10, size=60)


# 2. Model and loss.
def start(seed=0):
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "hidden": jax.random.normal(first, (64, 100)) / 8,
        "output": jax.random.normal(second, (100, 10)) / 10,
    }


def loss_of(params, x, y):
    logits = jax.nn.relu(x @ params["hidden"]) @ params["output"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# 3. Training. `level=None` is plain training, bit for bit.
def fit(level, epochs=150, batch=100):
    optimizer = flood(optax.adam(1e-2), level)
    params = start()
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    test_losses = []
    for epoch in range(epochs):
        for i in range(0, len(train), batch):
            rows = train[i : i + batch]
            params, state = step(params, state, x[rows], noisy[rows])
        test_losses.append(loss_of(params, x[test], y[test]))
    return params, state, test_losses


curves = {}
for level in (None, 0.4):
    params, state, curves[level] = fit(level)
    test_loss = curves[level][-1]
    print(
        f"level {level}: raw loss {state.raw_loss:.2f}, flooded loss {state.flooded_loss:.2f}, "
        f"{state.flooded_fraction:.0%} of the steps flooded, test loss {test_loss:.2f}"
    )


# The picture.
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for level, color in ((None, "tab:red"), (0.4, "tab:blue")):
    name = "plain" if level is None else f"level {level}"
    ax.plot(np.array(curves[level]), color=color, label=name)
ax.set(xlabel="epoch", ylabel="test loss, nats")
ax.legend()
figure.savefig("jax_optax.png", dpi=100)
