"""What optax and flax do with two devices and float64, against the loop written by hand.

Run as a process of its own: the number of devices and the precision are chosen before JAX starts.
Prints one JSON object, ``{case: difference}``.
"""

from __future__ import annotations

import json
import os
from functools import partial

os.environ["JAX_ENABLE_X64"] = "1"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import flooding
import flooding.integrations.optax
import hand_loop as hand
from flooding.integrations.optax import flood, multi_steps
from hand_loop import ACCUMULATE, LEVEL, MICRO, STEPS
from subprocess_checks import run_cases, run_doctests

torch.set_num_threads(1)
X, Y = (jnp.asarray(t.numpy()) for t in hand.data())
NAMES = ("w1", "b1", "w2", "b2")


def start():
    arrays = [jnp.asarray(p.detach().numpy()).T for p in hand.network().parameters()]
    return dict(zip(NAMES, arrays, strict=True))


def apply(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def raw_loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()


def flooded_loss(params, x, y):
    return flooding.flood(raw_loss(params, x, y), LEVEL)


def distance(params, model):
    arrays = [np.array(params[name].T) for name in NAMES]
    return hand.distance(arrays, model.parameters())


def sgd():
    return optax.sgd(hand.RATE, momentum=hand.MOMENTUM)


def train(optimizer, size=hand.BATCH, steps=STEPS, loss=raw_loss, change=None, give_value=True):
    """The usual loop; ``change`` edits the state before a step."""
    params = start()
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        extra = {"value": value} if give_value else {}
        updates, state = optimizer.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for i, batch in enumerate(hand.batches(size, steps)):
        if change is not None:
            params, state = change(i, params, state)
        params, state = step(params, state, X[batch], Y[batch])
    return params, state


def one_line():
    params, state = train(flood(sgd(), LEVEL))
    assert 0.05 < state.flooded_fraction < 0.95, state.flooded_fraction
    assert state.n_steps == STEPS
    return distance(params, hand.train())


def clipping():
    params, _ = train(flood(optax.chain(optax.clip_by_global_norm(0.2), sgd()), LEVEL))
    return distance(params, hand.train(max_norm=0.2, epsilon=0.0))


def accumulation():
    optimizer = multi_steps(flood(sgd(), LEVEL), ACCUMULATE)
    params, state = train(optimizer, MICRO, STEPS * ACCUMULATE)
    assert state.inner_opt_state.n_steps == STEPS
    return distance(params, hand.train())


def accumulation_naive():
    optimizer = optax.MultiSteps(sgd(), ACCUMULATE, accumulator_dtype=None)
    params, _ = train(optimizer, MICRO, STEPS * ACCUMULATE, loss=flooded_loss, give_value=False)
    return distance(params, hand.train())


def sharded_jit():
    """A batch spread over two devices: the mean is over all of it."""
    mesh = Mesh(np.array(jax.devices()), ("d",))
    optimizer = flood(sgd(), LEVEL)
    params = jax.device_put(start(), NamedSharding(mesh, P()))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        value, grads = jax.value_and_grad(raw_loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    split = NamedSharding(mesh, P("d"))
    for batch in hand.batches():
        params, state = step(
            params, state, jax.device_put(X[batch], split), jax.device_put(Y[batch], split)
        )
    return distance(params, hand.train())


def shard_map(average=True, check=True):
    mesh = Mesh(np.array(jax.devices()), ("d",))
    optimizer = flood(sgd(), LEVEL) if average else sgd()
    params = start()
    state = optimizer.init(params)

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P("d"), P("d")),
        out_specs=(P(), P()),
        check_vma=check,
    )
    def step(params, state, x, y):
        if average:
            # Without this JAX would sum the gradients over the devices by itself.
            local = jax.lax.pcast(params, "d", to="varying") if check else params
            value, grads = jax.lax.pmean(jax.value_and_grad(raw_loss)(local, x, y), "d")
            updates, state = optimizer.update(grads, state, params, value=value)
        else:
            grads = jax.lax.pmean(jax.grad(flooded_loss)(params, x, y), "d")
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for batch in hand.batches():
        params, state = step(params, state, X[batch], Y[batch])
    return distance(params, hand.train())


def shard_map_forgotten_average():
    """A loss that differs between devices is an error, not another method."""
    mesh = Mesh(np.array(jax.devices()), ("d",))
    optimizer = flood(sgd(), LEVEL)
    params = start()

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("d"), P("d")), out_specs=P())
    def step(params, state, x, y):
        value, grads = jax.value_and_grad(raw_loss)(params, x, y)
        return optimizer.update(grads, state, params, value=value)

    try:
        step(params, optimizer.init(params), X[:32], Y[:32])
    except ValueError as error:
        return str(error)
    return "no error"


def resume():
    """After 40 steps everything goes through bytes."""
    optimizer = flood(sgd(), lambda step: LEVEL * jnp.minimum(step / 60, 1.0))

    def change(i, params, state):
        if i != STEPS // 2:
            return params, state
        saved = flax.serialization.to_bytes((params, state))
        fresh = (start(), optimizer.init(start()))
        return flax.serialization.from_bytes(fresh, saved)

    params, _ = train(optimizer, change=change)
    return distance(params, hand.train(lambda step: LEVEL * min(step / 60, 1.0)))


def schedule():
    params, _ = train(flood(sgd(), optax.linear_schedule(0.0, LEVEL, 60)))
    return distance(params, hand.train(lambda step: LEVEL * min(step / 60, 1.0)))


def level_in_the_state():
    def change(i, params, state):
        return params, optax.tree_utils.tree_set(state, level=LEVEL * min(i / 60, 1.0))

    params, _ = train(flood(sgd(), 0.1), change=change)
    return distance(params, hand.train(lambda step: LEVEL * min(step / 60, 1.0)))


def nnx_optimizer():
    class Net(nnx.Module):
        def __init__(self):
            for name, value in start().items():
                setattr(self, name, nnx.Param(value))

        def params(self):
            return {name: getattr(self, name)[...] for name in NAMES}

    model = Net()
    optimizer = nnx.Optimizer(model, flood(sgd(), LEVEL), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        value, grads = nnx.value_and_grad(lambda m: raw_loss(m.params(), x, y))(model)
        optimizer.update(model, grads, value=value)

    for batch in hand.batches():
        step(model, optimizer, X[batch], Y[batch])
    return distance(model.params(), hand.train())


def linen_train_state():
    state = TrainState.create(apply_fn=apply, params=start(), tx=flood(sgd(), LEVEL))

    @jax.jit
    def step(state, x, y):
        value, grads = jax.value_and_grad(raw_loss)(state.params, x, y)
        updates, opt_state = state.tx.update(grads, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    for batch in hand.batches():
        state = step(state, X[batch], Y[batch])
    return distance(state.params, hand.train())


def scan():
    """The whole training in one compiled function."""
    optimizer = multi_steps(flood(sgd(), LEVEL), ACCUMULATE)
    xs = jnp.stack([X[batch] for batch in hand.batches(MICRO, STEPS * ACCUMULATE)])
    ys = jnp.stack([Y[batch] for batch in hand.batches(MICRO, STEPS * ACCUMULATE)])

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(raw_loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    params = start()
    (params, _), _ = jax.jit(partial(jax.lax.scan, step))(
        (params, optimizer.init(params)), (xs, ys)
    )
    return distance(params, hand.train())


def flood_in_the_loss():
    """Without accumulation, the formula inside of jax.grad."""
    params, _ = train(sgd(), loss=flooded_loss, give_value=False)
    return distance(params, hand.train())


CASES = {
    "one line": one_line,
    "plain": lambda: distance(train(flood(sgd(), None))[0], hand.train(None)),
    "clipping": clipping,
    "accumulation": accumulation,
    "accumulation, naive": accumulation_naive,
    "sharded jit": sharded_jit,
    "shard_map": shard_map,
    "shard_map, check_vma=False": partial(shard_map, check=False),
    "shard_map, naive": partial(shard_map, average=False, check=False),
    "shard_map, loss not averaged": shard_map_forgotten_average,
    "resume": resume,
    "schedule": schedule,
    "level in the state": level_in_the_state,
    "nnx": nnx_optimizer,
    "linen": linen_train_state,
    "scan": scan,
    "flood in the loss": flood_in_the_loss,
}

if __name__ == "__main__":
    CASES["examples"] = partial(run_doctests, flooding.integrations.optax)
    print(json.dumps(run_cases(CASES)))
