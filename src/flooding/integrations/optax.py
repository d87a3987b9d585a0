"""Flooding for JAX, optax and flax: a gradient transformation that floods the loss of an update.

``update`` receives the gradients of the *raw* loss and that loss as ``value=``, and multiplies the
gradients by one slope. The slope is computed from the loss of the whole update, so the same two
lines are exact under gradient accumulation (:func:`multi_steps`), with sharded batches, and in
``shard_map`` and ``pmap`` where loss and gradients are averaged first. Evaluation is not touched.

In one jitted step without accumulation ``flooding.flood(loss, level)`` inside ``jax.grad`` is
flooding, too, except exactly at the level: JAX gives ``abs`` the slope +1 at 0. Here the slope at
the level is 0, as in torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeAlias

from flooding.functional import flood as flooded_loss
from flooding.integrations import require_framework
from flooding.integrations.host_level import is_controller, level_number

with require_framework("jax"):
    import jax
    import jax.numpy as jnp
    from jax.core import Tracer
with require_framework("optax", extra="jax"):
    import optax

__all__ = ["FloodState", "flood", "multi_steps"]

# Trees of arrays, and the states of optax; JAX has no narrower type for them.
Tree: TypeAlias = Any
Level: TypeAlias = float | jax.Array | optax.Schedule | None


class FloodState(NamedTuple):
    """State of :func:`flood`: a tree of arrays, saved and restored like any state of optax.

    Args:
        inner_state: State of the wrapped optimiser.
        level: Level of the last update, -inf for none. To move a level that is no schedule, set it:
            ``state = optax.tree_utils.tree_set(state, level=0.2)``.
        raw_loss: Raw loss of the last update; NaN before the first.
        flooded_loss: Flooded loss of the last update; NaN before the first.
        slope: What the gradients of the last update were multiplied by.
        n_steps: Number of updates.
        n_flooded: Number of updates with a slope below 0.
        n_nonfinite: Number of updates whose loss was NaN or infinite.
    """

    inner_state: Tree
    level: jax.Array
    raw_loss: jax.Array
    flooded_loss: jax.Array
    slope: jax.Array
    n_steps: jax.Array
    n_flooded: jax.Array
    n_nonfinite: jax.Array

    @property
    def flooded_fraction(self) -> jax.Array:
        """Share of the updates with a slope below 0; NaN before the first."""
        return self.n_flooded / self.n_steps


def flood(
    optimizer: optax.GradientTransformation,
    level: Level,
    *,
    objective: Callable[[jax.Array, jax.Array], jax.Array] = flooded_loss,
) -> optax.GradientTransformationExtraArgs:
    """Flood the loss of every update of an optimiser.

    With ``L`` the raw loss and ``b`` the level, the gradients are multiplied by
    ``d objective(L, b) / dL``, for flooding ``sign(L - b)``: +1 above the level, -1 below it, and 0
    exactly at it. Whatever ``optimizer`` does afterwards, such as clipping, sees the flooded
    gradient. A loss that is NaN or infinite and a level of -inf leave the gradients as they are; a
    level of NaN makes them NaN.

    Args:
        optimizer: What to do with the flooded gradients; transformations that take ``value=`` get
            the raw loss.
        level: Level in the unit of the loss: a number, an array without axes, a schedule (a
            function of the number of updates), or None for no flooding. A number is an array of the
            state, so that changing it compiles nothing anew.
        objective: What replaces the loss, ``(loss, level) -> value``, such as
            :func:`flooding.soft_flood`.

    Returns:
        A transformation whose ``update(grads, state, params, value=loss)`` takes the gradients of
        the raw loss and that loss: one number, averaged over all devices.

    Raises:
        TypeError: If ``optimizer`` is no transformation, or ``level`` none of the above, such as a
            controller, which is torch code. ``update`` raises it without ``value=``.
        ValueError: If the level is NaN, ``inf`` or has axes, or the optimiser accumulates
            gradients. ``update`` raises it if ``value`` is not one number.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = flood(optax.sgd(0.5), level=0.25)
        >>> w = jnp.array(0.25)
        >>> state = optimizer.init(w)
        >>> loss, gradient = jax.value_and_grad(lambda w: w**2)(w)
        >>> update, state = optimizer.update(gradient, state, w, value=loss)
        >>> print(optax.apply_updates(w, update), state.raw_loss, state.slope)
        0.5 0.0625 -1.0

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    _check_optimizer(optimizer)
    inner = optax.with_extra_args_support(optimizer)
    schedule = level if callable(level) else None
    number = 0.0 if schedule else _constant(level)

    def init(params: Tree) -> FloodState:
        _check_not_in_multi_steps()
        inner_state = inner.init(params)
        _check_no_multi_steps(inner_state)
        nan = jnp.asarray(jnp.nan, float)
        count = jnp.zeros((), jnp.int32)
        start = number if schedule is None else schedule(count)
        return FloodState(
            inner_state,
            level=jnp.asarray(start, nan.dtype),
            raw_loss=nan,
            flooded_loss=nan,
            slope=jnp.ones_like(nan),
            n_steps=count,
            n_flooded=count,
            n_nonfinite=count,
        )

    def update(
        updates: Tree, state: FloodState, params: Tree = None, *, value: Any = None, **extra: Any
    ) -> tuple[Tree, FloodState]:
        loss = _check_value(value)
        _check_no_line_search(extra)
        # 1. The level in force. One that was set may be a plain float.
        dtype = state.raw_loss.dtype
        bound = state.level if schedule is None else schedule(state.n_steps)
        bound = jnp.asarray(bound, dtype)
        # 2. One slope for all gradients.
        flooded, slope = _decide(loss, bound, objective)
        updates = jax.tree.map(lambda gradient: gradient * slope.astype(gradient.dtype), updates)
        updates, inner_state = inner.update(
            updates, state.inner_state, params, value=value, **extra
        )
        # 3. What happened.
        state = FloodState(
            inner_state,
            level=bound,
            raw_loss=loss.astype(dtype),
            flooded_loss=flooded.astype(dtype),
            slope=slope.astype(dtype),
            n_steps=state.n_steps + 1,
            n_flooded=state.n_flooded + (slope < 0),
            n_nonfinite=state.n_nonfinite + ~jnp.isfinite(loss),
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _decide(
    loss: jax.Array, level: jax.Array, objective: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Compute the flooded loss and the slope."""
    level = level.astype(jnp.promote_types(loss.dtype, level.dtype))
    loss = loss.astype(level.dtype)
    flooded, slope = jax.value_and_grad(objective)(loss, level)
    # JAX gives abs the slope +1 at 0. The minimum of an objective has slope 0.
    slope = jnp.where(loss == level, 0.0, slope)
    # A level of NaN must not go unnoticed.
    slope = slope + 0 * flooded
    floodable = jnp.isfinite(loss) & (level != -jnp.inf)
    return jnp.where(floodable, flooded, loss), jnp.where(floodable, slope, 1.0)


class _Accumulated(NamedTuple):
    """What MultiSteps averages: the gradients and, as one leaf more, the loss."""

    updates: Tree
    value: jax.Array


def multi_steps(
    optimizer: optax.GradientTransformation,
    every_k_schedule: int | Callable[[jax.Array], jax.Array],
    *,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Accumulate gradients over micro-batches as ``optax.MultiSteps`` does, and their losses, too.

    ``optax.MultiSteps`` passes on the loss of the last micro-batch alone, by which a step must not
    be flooded. Here the loss that ``optimizer`` sees is the mean over the micro-batches, each of
    which counts alike. ``multi_steps(flood(optimizer, level), k)`` floods the step;
    ``flood(multi_steps(optimizer, k), level)`` would flood the micro-batches, and is refused.

    Args:
        optimizer: What to do at the end of a step, such as :func:`flood`.
        every_k_schedule: Micro-batches of a step: a number, or a function of the number of steps.
        accumulator_dtype: Type of the sums; None is the default of JAX, float32 unless x64 is
            enabled.

    Returns:
        A transformation whose ``update`` takes ``value=``, the mean loss of the micro-batch. Its
        state is that of ``optax.MultiSteps``; ``inner_opt_state`` is that of ``optimizer``.

    Raises:
        TypeError: If ``optimizer`` is no transformation. ``update`` raises it without ``value=``.
        ValueError: If there is not at least one micro-batch.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = multi_steps(flood(optax.sgd(1.0), level=0.5), 2)
        >>> w = jnp.array(1.0)
        >>> state = optimizer.init(w)
        >>> for loss in (0.75, 0.5):  # of two micro-batches, with the gradient 1
        ...     update, state = optimizer.update(jnp.array(1.0), state, w, value=loss)
        >>> print(update, state.inner_opt_state.raw_loss)
        -1.0 0.625
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    _check_optimizer(optimizer)
    if isinstance(every_k_schedule, int) and every_k_schedule < 1:
        raise ValueError(f"a step needs 1 micro-batch at least, got {every_k_schedule}. Use 1.")
    if accumulator_dtype is None:
        accumulator_dtype = jnp.zeros((), float).dtype
    inner = optax.with_extra_args_support(optimizer)

    def update_pair(
        pair: Tree, state: Tree, params: Tree = None, **extra: Any
    ) -> tuple[Tree, Tree]:
        inner_params = None if params is None else params.updates
        updates, state = inner.update(pair.updates, state, inner_params, value=pair.value, **extra)
        return _Accumulated(updates, jnp.zeros_like(pair.value)), state

    pair_optimizer = optax.GradientTransformationExtraArgs(
        _init_pair(inner),
        update_pair,  # type: ignore[arg-type]
    )
    every_k: Any = every_k_schedule
    accumulator = optax.MultiSteps(pair_optimizer, every_k, accumulator_dtype=accumulator_dtype)

    def init(params: Tree) -> optax.MultiStepsState:
        return accumulator.init(_Accumulated(params, jnp.zeros((), float)))

    def update(
        updates: Tree, state: Tree, params: Tree = None, *, value: Any = None, **extra: Any
    ) -> tuple[Tree, Tree]:
        # In bfloat16 the mean of the losses would be rounded.
        loss = _check_value(value)
        loss = loss.astype(jnp.promote_types(loss.dtype, jnp.float32))
        pair: Tree = _Accumulated(updates, loss)
        params_pair: Tree = None if params is None else _Accumulated(params, loss)
        pair, state = accumulator.update(pair, state, params_pair, **extra)
        return pair.updates, state

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _init_pair(inner: optax.GradientTransformation) -> optax.TransformInitFn:
    """Build the ``init`` that MultiSteps calls with the parameters and the place of the loss."""

    def init_pair(params: Tree) -> Tree:
        return inner.init(params.updates)

    return init_pair


# How the code of `init_pair` is recognised on the stack.
_INIT_PAIR = _init_pair(optax.identity()).__code__  # type: ignore[attr-defined]


def _check_optimizer(optimizer: object) -> None:
    """Refuse what is no transformation."""
    if isinstance(optimizer, optax.MultiSteps):
        _refuse_multi_steps()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation such as optax.sgd(0.1), got "
            f"{type(optimizer).__name__}. The order is flood(optimizer, level)."
        )


def _refuse_multi_steps() -> None:
    raise ValueError(
        "flooding needs the loss of the whole step, but optax.MultiSteps shows it one "
        "micro-batch. Use multi_steps(flood(optimizer, level), k) of flooding.integrations.optax."
    )


def _check_no_multi_steps(inner_state: Tree) -> None:
    """Refuse an optimiser that accumulates gradients inside of the flooding."""

    def is_multi_steps(node: object) -> bool:
        return isinstance(node, optax.MultiStepsState)

    for node in jax.tree.leaves(inner_state, is_leaf=is_multi_steps):
        if is_multi_steps(node):
            _refuse_multi_steps()


def _check_not_in_multi_steps() -> None:
    """Refuse to be the optimiser of an ``optax.MultiSteps``, which cannot be seen but here.

    It gives the loss of the last micro-batch as that of the step, and nothing tells the two apart.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _INIT_PAIR:
        if frame.f_code is optax.MultiSteps.init.__code__:
            _refuse_multi_steps()
        frame = frame.f_back


def _check_no_line_search(extra: dict[str, Any]) -> None:
    """Refuse an optimiser that evaluates the loss by itself."""
    if "value_fn" in extra:
        raise ValueError(
            "an optimiser with a line search must evaluate the flooded loss, got value_fn=. Give "
            "it lambda params: flooding.flood(loss(params), level), without this transformation."
        )


def _constant(level: Any) -> float | jax.Array:
    """Check a level that is no schedule."""
    if is_controller(level):
        raise TypeError(
            f"the level must be a number, a schedule or None, got {type(level).__name__}, which is "
            "torch code. Use a function of the step, or set the level: "
            "optax.tree_utils.tree_set(state, level=...)."
        )
    if isinstance(level, Tracer):
        if level.ndim:
            raise ValueError(f"the level must have no axes, got shape {level.shape}. Use vmap.")
        return level
    return level_number(level, "a schedule or None")


def _check_value(value: Any) -> jax.Array:
    """Check the loss of an update and give it as an array of floats."""
    if value is None:
        raise TypeError(
            "a flooded update needs the raw loss, got none. Write "
            "optimizer.update(grads, state, params, value=loss)."
        )
    loss = jnp.asarray(value)
    if loss.ndim:
        raise ValueError(
            f"value must be one number, got shape {loss.shape}. Take the mean over the batch."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"value must be a real number, got {loss.dtype}. Give the raw loss.")
    if axes := _varying_axes(loss):
        names = ", ".join(sorted(map(str, axes)))
        raise ValueError(
            f"value must be the loss of the whole batch, but it differs along the axis {names}. "
            "Average loss and gradients first: jax.lax.pmean((loss, grads), axis_name)."
        )
    return loss


def _varying_axes(value: jax.Array) -> Collection[object]:
    """List the axes of a ``shard_map`` along which a value may differ between devices."""
    kind = jax.typeof(value)
    # Earlier versions of JAX call it `vma`.
    return getattr(kind, "vma", None) or getattr(getattr(kind, "mat", None), "varying", ())
