"""optax and flax: the trainings of ``_integration_jax.py``, and the transformation's edges."""

import importlib.util

import pytest
import torch

from flooding.levels import PerClass, Warmup
from flooding.methods import Flooding
from framework_table import cell
from subprocess_checks import added_packages, launch, results

pytest.importorskip("optax", reason="optax is not installed: flooding[jax]")
pytest.importorskip("flax", reason="flax is not installed: flooding[jax]")
import jax
import jax.numpy as jnp
import numpy as np
import optax

import flooding
from flooding.integrations.optax import FloodState, flood, multi_steps

ROW = "optax"


@pytest.fixture(scope="module")
def measured():
    return results(launch("_integration_jax.py"))


# The table


def test_one_line(measured):
    code = "`flood(optax.sgd(0.1), 0.1)` and `update(grads, state, params, value=loss)`"
    cell(ROW, "one line", code)
    assert measured["one line"] < 1e-10
    assert measured["plain"] < 1e-10
    assert measured["flood in the loss"] < 1e-10


def test_accumulation(measured):
    naive = measured["accumulation, naive"]
    cell(ROW, "accumulation 4", measured["accumulation"], naive=naive)
    assert measured["scan"] < 1e-10


def test_two_devices(measured):
    cell(ROW, "two ranks", measured["shard_map"], naive=measured["shard_map, naive"])
    assert measured["sharded jit"] < 1e-10
    assert measured["shard_map, check_vma=False"] < 1e-10
    assert "differs along the axis d" in measured["shard_map, loss not averaged"]


def test_clipping(measured):
    cell(ROW, "clipping", measured["clipping"])


def test_evaluation(measured):
    cell(ROW, "evaluation plain", 0.0)  # the transformation never sees it


def test_resume(measured):
    cell(ROW, "resume", measured["resume"])


def test_moving_level(measured):
    cell(ROW, "moving level", max(measured["schedule"], measured["level in the state"]))


@pytest.mark.parametrize("case", ["nnx", "linen"])
def test_flax(measured, case):
    assert measured[case] < 1e-10


def test_the_examples_run(measured):
    assert measured["examples"] >= 10


# The slope


def step(level, loss, **options):
    optimizer = flood(optax.sgd(1.0), level, **options)
    state = optimizer.init(jnp.ones(2))
    updates, state = optimizer.update(jnp.array([1.0, 2.0]), state, jnp.ones(2), value=loss)
    return updates, state


@pytest.mark.parametrize(
    ("loss", "level", "slope"),
    [
        (0.5, 0.25, 1.0),
        (0.125, 0.25, -1.0),
        (0.25, 0.25, 0.0),
        (-1.0, -0.5, -1.0),
        (np.inf, 0.25, 1.0),
        (np.nan, 0.25, 1.0),
        (0.125, None, 1.0),
    ],
    ids=[
        "above keeps the gradient",
        "below negates it",
        "at the level it is 0",
        "negative levels",
        "an infinite loss",
        "a loss of NaN",
        "no level",
    ],
)
def test_slope(loss, level, slope):
    updates, state = step(level, loss)
    np.testing.assert_array_equal(updates, -slope * np.array([1.0, 2.0]))
    assert state.slope == slope
    assert state.n_flooded == (slope < 0)
    assert state.n_nonfinite == (not np.isfinite(loss))


def test_the_slope_at_the_level_is_that_of_torch_and_not_of_jax():
    assert jax.grad(flooding.flood)(0.25, 0.25) == 1
    loss = torch.tensor(0.25, requires_grad=True)
    Flooding()(loss, 0.25).backward()
    assert step(0.25, 0.25)[1].slope == loss.grad.item() == 0


def test_values_are_those_of_the_formula():
    _, state = step(0.25, 0.125)
    assert (state.raw_loss, state.flooded_loss, state.level) == (0.125, 0.375, 0.25)
    assert state.flooded_fraction == 1


def test_another_objective():
    _, state = step(0.25, 0.5, objective=flooding.soft_flood)
    assert state.slope == pytest.approx(0.25 / (1 + 0.25**2) ** 0.5)


def test_half_precision_is_compared_in_float32():
    # 0.0500 and 0.0502 are one number in bfloat16: 0.050048828125.
    loss = jnp.asarray(0.05, jnp.bfloat16)
    assert step(0.0502, loss)[1].slope == -1
    assert step(0.05, loss)[1].slope == 1
    optimizer = flood(optax.sgd(1.0), 9.0)
    params = jnp.ones(2, jnp.bfloat16)
    updates, _ = optimizer.update(params, optimizer.init(params), params, value=loss)
    assert updates.dtype == jnp.bfloat16


def test_a_level_that_became_nan_makes_the_gradients_nan():
    optimizer = flood(optax.sgd(1.0), 0.25)
    state = optimizer.init(jnp.ones(2))._replace(level=jnp.nan)
    updates, _ = optimizer.update(jnp.ones(2), state, value=0.5)
    assert np.isnan(updates).all()


def test_changing_the_level_compiles_nothing_anew():
    optimizer = flood(optax.sgd(1.0), 0.25)
    traces = []

    @jax.jit
    def update(state, loss):
        traces.append(1)
        return optimizer.update(jnp.ones(2), state, value=loss)

    state = optimizer.init(jnp.ones(2))
    for level in (0.25, 0.5, 0.75):
        state = optax.tree_utils.tree_set(state, level=jnp.asarray(level))
        updates, state = update(state, jnp.asarray(0.6))
        np.testing.assert_array_equal(updates, -np.ones(2) if level < 0.6 else np.ones(2))
    assert len(traces) == 1


def test_many_levels_at_once_by_vmap():
    def slope(level):
        optimizer = flood(optax.sgd(1.0), level)
        return optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), value=0.5)[1].slope

    np.testing.assert_array_equal(jax.vmap(slope)(jnp.array([0.25, 0.5, 0.75])), [1, 0, -1])


def test_the_wrapped_optimiser_sees_the_raw_loss():
    optimizer = flood(optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau()), 0.5)
    state = optimizer.init(jnp.ones(2))
    _, state = optimizer.update(jnp.ones(2), state, jnp.ones(2), value=jnp.asarray(0.125))
    assert optax.tree_utils.tree_get(state, "best_value") == 0.125


# Accumulation


def test_steps_of_a_varying_number_of_micro_batches():
    optimizer = multi_steps(flood(optax.sgd(1.0), 0.5), lambda step: 1 + step)
    state = optimizer.init(jnp.ones(()))
    losses = [0.25, 0.25, 1.0]  # a step of one micro-batch, one of two with the mean 0.625
    for loss in losses:
        updates, state = optimizer.update(jnp.ones(()), state, jnp.ones(()), value=loss)
    assert updates == -1
    assert state.inner_opt_state.n_steps == 2
    assert state.inner_opt_state.n_flooded == 1
    assert state.inner_opt_state.raw_loss == 0.625


def test_micro_batches_in_half_precision_are_summed_in_float32():
    params = jnp.ones(2, jnp.bfloat16)
    optimizer = multi_steps(flood(optax.sgd(1.0), 0.5), 2)
    state = optimizer.init(params)
    for number in (1.0, 1.0078125):  # adjacent in bfloat16, so that their mean is no bfloat16
        loss = jnp.asarray(number, jnp.bfloat16)
        updates, state = optimizer.update(params, state, params, value=loss)
    assert state.inner_opt_state.raw_loss == 1.00390625
    assert updates.dtype == jnp.bfloat16


# Bad input


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: flood(0.1, optax.sgd(0.1)), TypeError, r"got float.*flood\(optimizer, level\)"),
        (lambda: flood(optax.sgd(0.1), "0.1"), TypeError, "must be a number.*got str"),
        (lambda: flood(optax.sgd(0.1), float("nan")), ValueError, "finite, got nan"),
        (lambda: flood(optax.sgd(0.1), jnp.ones(3)), ValueError, r"no axes, got shape \(3,\)"),
        (lambda: flood(optax.sgd(0.1), Warmup(0.1, steps=3)), TypeError, "torch code.*tree_set"),
        (
            lambda: flood(optax.sgd(0.1), PerClass(torch.zeros(2))),
            TypeError,
            "a schedule or None, got PerClass",
        ),
        (
            lambda: flood(optax.MultiSteps(optax.sgd(0.1), 4), 0.1),
            ValueError,
            r"multi_steps\(flood",
        ),
        (
            lambda: flood(multi_steps(optax.sgd(0.1), 4), 0.1).init(jnp.ones(2)),
            ValueError,
            r"multi_steps\(flood",
        ),
        (
            lambda: flood(
                optax.chain(
                    optax.clip(1.0), optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()
                ),
                0.1,
            ).init(jnp.ones(2)),
            ValueError,
            r"multi_steps\(flood",
        ),
        (
            lambda: optax.MultiSteps(flood(optax.sgd(0.1), 0.1), 4).init(jnp.ones(2)),
            ValueError,
            r"multi_steps\(flood",
        ),
        (lambda: multi_steps(optax.sgd(0.1), 0), ValueError, "1 micro-batch at least, got 0"),
        (lambda: multi_steps(0.1, 4), TypeError, "got float"),
    ],
    ids=[
        "swapped",
        "text",
        "nan",
        "axes",
        "a controller",
        "a level per class",
        "around MultiSteps",
        "around multi_steps",
        "around a chain with MultiSteps",
        "inside MultiSteps",
        "no micro-batch",
        "no optimiser",
    ],
)
def test_bad_input_is_refused_before_the_first_step(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({}, TypeError, "value=loss"),
        ({"value": jnp.ones(4)}, ValueError, r"got shape \(4,\)"),
        ({"value": 3}, TypeError, r"real number, got int(32|64)"),
        ({"value": 1.0, "value_fn": abs}, ValueError, "line search"),
    ],
    ids=["no loss", "a loss per example", "an integer", "a line search"],
)
@pytest.mark.parametrize(
    "wrap", [lambda o: o, lambda o: multi_steps(o, 2)], ids=["", "multi_steps"]
)
def test_a_bad_loss_is_refused(wrap, extra, error, message):
    optimizer = wrap(flood(optax.sgd(0.1), 0.1))
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(error, match=message):
        jax.jit(partial_update(optimizer, extra))(state)


def partial_update(optimizer, extra):
    return lambda state: optimizer.update(jnp.ones(2), state, jnp.ones(2), **extra)


def test_the_short_name_is_the_same_module():
    assert importlib.util.find_spec("flooding.optax") is not None
    import flooding.optax

    assert flooding.optax.flood is flood
    assert flooding.optax.FloodState is FloodState


def test_the_import_loads_nothing_besides_optax():
    assert added_packages("optax", "flooding.integrations.optax") == {"flooding"}
