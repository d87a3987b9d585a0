"""What flooding adds to a training step inside Keras, optax and skorch, on the CPU.

    python benchmarks/adapters.py [--rounds 12] [--steps 5] [--width 1536] [--batch 512]

Each framework trains in a process of its own. Its plain and its flooded training take turns, a few
steps each, so that a drifting machine slows both. Times are of the CPU, without the waits for other
processes; the figure is the ratio of the medians. The network has four dense layers and 5.2 million
weights; with batches of 512 a step costs about 16 billion operations, half of that of ResNet-20
with batches of 128. On a small network, ``--width 16 --batch 32``, the difference is what flooding
costs, and not the noise of a large one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise

INPUTS, CLASSES = 256, 10
FRAMEWORKS = {
    "optax": {},
    "Keras on torch": {"KERAS_BACKEND": "torch"},
    "Keras on JAX": {"KERAS_BACKEND": "jax"},
    "skorch": {},
}


def data(n_batches, batch):
    import numpy as np

    rng = np.random.default_rng(0)
    n = batch * n_batches
    return rng.standard_normal((n, INPUTS)).astype("float32"), rng.integers(CLASSES, size=n)


def optax_trainings(steps, width, batch):
    import jax
    import jax.numpy as jnp
    import optax

    from flooding.integrations.optax import flood

    x, y = map(jnp.asarray, data(1, batch))
    sizes = [INPUTS, width, width, width, CLASSES]

    def loss_of(params, x, y):
        for weight in params[:-1]:
            x = jax.nn.relu(x @ weight)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params[-1], y).mean()

    def training(optimizer):
        keys = jax.random.split(jax.random.key(0), len(sizes))
        shapes = zip(keys, sizes, sizes[1:], strict=False)
        params = [jax.random.normal(key, (n, m)) / n**0.5 for key, n, m in shapes]
        optimizer = optax.with_extra_args_support(optimizer)
        memory = [params, optimizer.init(params)]

        @jax.jit
        def step(params, state):
            loss, grads = jax.value_and_grad(loss_of)(params, x, y)
            updates, state = optimizer.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        def run():
            for _ in range(steps):
                memory[:] = step(*memory)
            jax.block_until_ready(memory)

        return run

    return {"plain": training(optax.adam(1e-3)), "flooded": training(flood(optax.adam(1e-3), 1.0))}


def keras_trainings(steps, width, batch):
    import keras

    from flooding.integrations.keras import flood_model

    x, y = data(steps, batch)

    def training(level):
        layers = [keras.layers.Dense(width, activation="relu") for _ in range(3)]
        model = keras.Sequential([keras.Input((INPUTS,)), *layers, keras.layers.Dense(CLASSES)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if level is None:
            model.compile("adam", loss)
        else:
            model = flood_model(model)
            model.compile("adam", loss, flood_level=level)
        return lambda: model.fit(x, y, batch_size=batch, verbose=0)

    return {"plain": training(None), "flooded": training(1.0)}


def skorch_trainings(steps, width, batch):
    import torch
    from skorch import NeuralNetClassifier
    from torch import nn

    from flooding.integrations.skorch import FloodNetMixin

    class FloodClassifier(FloodNetMixin, NeuralNetClassifier):
        pass

    x, y = data(steps, batch)

    def training(cls, **level):
        sizes = [INPUTS, width, width, width]
        layers = []
        for n, m in pairwise(sizes):
            layers += [nn.Linear(n, m), nn.ReLU()]
        module = nn.Sequential(*layers, nn.Linear(width, CLASSES))
        net = cls(
            module,
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            batch_size=batch,
            max_epochs=1,
            train_split=None,
            verbose=0,
            **level,
        ).initialize()
        return lambda: net.partial_fit(x, y)

    return {
        "plain": training(NeuralNetClassifier),
        "flooded": training(FloodClassifier, flood_level=1.0),
    }


def measure(framework, rounds, steps, width, batch):
    builders = {"optax": optax_trainings, "skorch": skorch_trainings}
    runs = builders.get(framework, keras_trainings)(steps, width, batch)
    times = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            tick = time.process_time()
            runs[name]()
            if turn >= 2:  # the first two compile
                times[name].append((time.process_time() - tick) / steps)
    plain, flooded = (statistics.median(times[name]) for name in ("plain", "flooded"))
    spread = statistics.stdev(times["plain"]) / plain
    print(
        f"{framework:15} {1e3 * plain:9.2f} {1e3 * flooded:9.2f} {flooded / plain:7.3f} "
        f"{100 * spread:6.1f} % {rounds:4}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each kind, at least 2")
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--framework", help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.framework is not None:
        measure(**vars(arguments))
        return
    print(f"{'':15} {'plain ms':>9} {'flooded':>9} {'ratio':>7} {'sd':>8} {'n':>4}", flush=True)
    numbers = []
    for name in ("rounds", "steps", "width", "batch"):
        numbers += [f"--{name}", str(getattr(arguments, name))]
    for framework, variables in FRAMEWORKS.items():
        command = [sys.executable, __file__, *numbers, "--framework", framework]
        subprocess.run(command, env=os.environ | variables, check=True)


if __name__ == "__main__":
    main()
