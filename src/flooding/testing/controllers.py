"""The contract test of a level controller."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from flooding.levels import Controller, State, StepInfo, simulate
from flooding.testing.rules import copy_twice, require

__all__ = ["check_controller"]

_STEPS_PER_EPOCH = 4


def check_controller(controller: Controller, *, steps: int = 40, compiled: bool = False) -> None:
    """Check that a level controller keeps the protocol of :class:`flooding.levels.Controller`.

    The controller gets a made-up training of ``steps`` steps in epochs of four: losses that fall
    from about 3 to 1e-7, and accuracies that rise to 1, some as floats and some as tensors. Checked
    are: the state (tensors by name, with a float ``"level"`` without axes, neither NaN nor inf);
    that ``update`` is pure (bit for bit the same state again, its arguments unchanged, no memory
    shared with them, no graph kept) and keeps names, dtypes, shapes and device; that it never waits
    for the device; that pickled and copied controllers act alike; that a state saved in the middle
    of an epoch and loaded with ``weights_only=True`` continues exactly in a new process; that NaN
    losses and accuracies never make the level NaN. The random numbers are fixed and the global
    generator is left alone.

    Args:
        controller: The controller to check.
        steps: Optimiser steps of the made-up training, at least 8. Take more than the steps of your
            controller.
        compiled: Check also that ``torch.compile(update, fullgraph=True)`` gives the same bits from
            at most two graphs, one for steps and one for epochs. Takes seconds, and resets what was
            compiled before.

    Raises:
        TypeError: If ``init`` or ``update`` gives something that is not a state.
        ValueError: If ``steps`` is below 8.
        AssertionError: If any other rule is broken; the message names it.

    Example:
        >>> from flooding.levels import Warmup
        >>> check_controller(Warmup(0.1, steps=20))
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    if steps < 2 * _STEPS_PER_EPOCH:
        raise ValueError(
            f"steps must be at least {2 * _STEPS_PER_EPOCH}, got {steps}. Two epochs are needed."
        )
    infos = _fake_training(steps)
    # Copies are made before the first call, as in a new process: they lack what init or update
    # leaves on the object.
    deep_copy, pickled_copy = copy_twice(controller, "controller")
    _check_state(controller.init(), "init")
    states = _check_updates(controller, infos)
    _check_waiting(controller, infos)
    _check_device(controller, infos)
    _check_resume(pickled_copy, infos, states)
    require(
        _all_equal(simulate(deep_copy, infos), states),
        "a copied controller must give the same states.",
    )
    _check_nan(controller, infos)
    if compiled:
        _check_compiled(controller, infos)


def _fake_training(steps: int) -> list[StepInfo]:
    """Make up a training: losses with a graph, ends of epochs with floats and tensors in turn."""
    generator = torch.Generator().manual_seed(0)
    infos = []
    for step in range(1, steps + 1):
        progress = min(1.0, 1.5 * step / steps)
        noise = torch.rand(4, generator=generator)
        # The loss has a graph, as that of a real step.
        loss = torch.tensor(3 * 10 ** (-7.5 * progress), requires_grad=True)
        infos.append(StepInfo(loss * (0.5 + noise[0])))
        if step % _STEPS_PER_EPOCH == 0:
            values = (torch.tensor(progress), 0.2 + noise[1], (progress + noise[2]) / 2)
            if step % (2 * _STEPS_PER_EPOCH) == 0:
                infos.append(StepInfo(None, *(t.item() for t in values)))
            else:
                infos.append(StepInfo(None, *values))
    return infos


# ---------------------------------------------------------------- state and updates


def _check_state(state: object, origin: str, like: State | None = None) -> None:
    """Check the form of a state, and that it has the form of an earlier one.

    Raises:
        TypeError: If it is no state at all.
    """
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise TypeError(
            f"{origin} must give a dict of tensors by name, got {type(state).__name__}."
        )
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(
                f"state[{name!r}] from {origin} must be a tensor, got {kind}. Wrap it in "
                "torch.tensor."
            )
        require(
            not value.requires_grad,
            f"state[{name!r}] from {origin} keeps a graph. Detach the loss.",
        )
    if "level" not in state:
        raise TypeError(f'the state from {origin} must hold "level", got {sorted(state)}.')
    level = state["level"]
    if level.ndim or level.dtype not in {torch.float32, torch.float64}:
        raise TypeError(
            f'state["level"] from {origin} must be float32 or float64 without axes, got '
            f"{level.dtype} {list(level.shape)}."
        )
    if like is not None:
        require(
            state.keys() == like.keys(),
            f"update must keep the names {sorted(like)}, got {sorted(state)}.",
        )
        for name, value in state.items():
            before, after = _form(like[name]), _form(value)
            require(before == after, f"update must keep state[{name!r}] {before}, got {after}.")


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _check_level(state: State, when: str) -> None:
    level = state["level"].item()
    require(
        not math.isnan(level) and level < math.inf,
        f"the level must be finite or -inf, got {level} {when}.",
    )


def _check_updates(controller: Controller, infos: Sequence[StepInfo]) -> list[State]:
    """Check every single update, and return the states."""
    states = [controller.init()]
    _check_level(states[0], "from init")
    for i, info in enumerate(infos):
        # 1. The arguments do not change, and the new state is one.
        state_before, info_before = _clone(states[-1]), _clone(info._asdict())
        state = controller.update(states[-1], info)
        _check_state(state, "update", like=state_before)
        _check_level(state, f"after entry {i} of the training")
        require(
            _equal(states[-1], state_before),
            "update must not change the state it is given; build a new one.",
        )
        require(_equal(info._asdict(), info_before), "update must not change what it is shown.")

        # 2. The same input gives the same bits again.
        require(
            _equal(state, controller.update(states[-1], info)),
            "update must give the same bits for the same input; keep nothing on the object.",
        )

        # 3. Writing over the argument leaves the state as it is.
        clone = _clone(state)
        for value in info:
            if isinstance(value, Tensor):
                original = value.detach().clone()
                value.detach().fill_(-1.0)
                is_equal = _equal(state, clone)
                value.detach().copy_(original)
                require(is_equal, "the state must not share memory with what is shown; clone it.")
        states.append(clone)
    require(
        _all_equal(simulate(controller, infos), states),
        "a second training must give the same states as the first.",
    )
    return states


# ---------------------------------------------------------------- devices


class _HostSyncDetector(TorchDispatchMode):
    """Notes every operation whose result the host must wait for."""

    # The four through which a tensor's values reach Python or a shape.
    _SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func.overloadpacket.__name__ in self._SYNCS:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _check_waiting(controller: Controller, infos: Sequence[StepInfo]) -> None:
    with _HostSyncDetector() as detector:
        simulate(controller, infos)
    require(
        not detector.names,
        f"update must not wait for the device, got {len(detector.names)} {detector.names[:1]}. "
        "Use torch.where instead of if, float() or .item() on a tensor.",
    )


def _check_device(controller: Controller, infos: Sequence[StepInfo]) -> None:
    """Check on the meta device, whose tensors have no values.

    Reading a value fails there, and a tensor made elsewhere shows.

    Raises:
        AssertionError: If a value is read or devices are mixed.
    """
    state = _to_meta(controller.init())
    for info in infos:
        try:
            new_state = controller.update(state, StepInfo(**_to_meta(info._asdict())))
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise AssertionError(
                "update must neither read a tensor's value nor mix devices; make new tensors from "
                f"those of the state, got {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        _check_state(new_state, "update", like=state)
        state = new_state


# ---------------------------------------------------------------- copies and saved states


def _check_resume(
    controller: Controller, infos: Sequence[StepInfo], states: Sequence[State]
) -> None:
    """Check that a saved state continues exactly with a controller that has seen nothing before.

    Raises:
        AssertionError: If it does not.
    """
    # Mostly in the middle of an epoch, which has five entries.
    for i in range(2, len(infos), 7):
        file = io.BytesIO()
        torch.save(states[i], file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        rule = (
            f"a state saved before entry {i} of the training must continue exactly in a new process"
        )
        try:
            resumed = list(itertools.accumulate(infos[i:], controller.update, initial=state))
        except (AttributeError, KeyError) as error:
            raise AssertionError(
                f"{rule}, got {type(error).__name__}: {error}. Keep all of it in the state."
            ) from error
        require(_all_equal(resumed, states[i:]), f"{rule}. Keep all of it in the state.")


# ---------------------------------------------------------------- NaN


def _check_nan(controller: Controller, infos: Sequence[StepInfo]) -> None:
    nan_infos = [_with_nan(info) for info in infos]
    # Every third entry, so that steps and ends of epochs (every fifth) get a NaN and recover.
    mixed = list(infos)
    mixed[2::3] = nan_infos[2::3]
    for training in (mixed, nan_infos):
        for state in simulate(controller, training):
            _check_level(state, "after a NaN was shown")


def _with_nan(info: StepInfo) -> StepInfo:
    values = {}
    for name, value in info._asdict().items():
        values[name] = None if value is None else value * math.nan
    return StepInfo(**values)


# ---------------------------------------------------------------- torch.compile


def _check_compiled(controller: Controller, infos: Sequence[StepInfo]) -> None:
    """Check that update compiles without a break, and not anew as the level moves.

    Raises:
        AssertionError: If it does not.
    """
    from torch._dynamo.exc import TorchDynamoException  # seconds to import

    graphs = 0

    def count_graph(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        if graphs > 2:
            raise RuntimeError("a third graph")  # the compiler turns it into its own error
        return graph.forward

    # Tensors only: a Python float is a new constant to the compiler each time.
    tensor_infos = []
    for info in infos:
        values = (None if value is None else torch.as_tensor(value).detach() for value in info)
        tensor_infos.append(StepInfo(*values))
    torch.compiler.reset()
    update = torch.compile(controller.update, fullgraph=True, backend=count_graph)
    try:
        states = list(itertools.accumulate(tensor_infos, update, initial=controller.init()))
    except TorchDynamoException as error:
        if graphs > 2:
            raise AssertionError(
                "update must compile to one graph for steps and one for epochs, got a third. Keep "
                "what changes in tensors."
            ) from error
        raise AssertionError(
            f"update must compile with fullgraph=True, got {type(error).__name__}."
        ) from error
    require(
        _all_equal(states, simulate(controller, tensor_infos)),
        "compiled, update must give the same bits.",
    )


# ---------------------------------------------------------------- states and infos


def _to_meta(values: Mapping[str, object]) -> dict[str, Any]:
    result = {}
    for name, value in values.items():
        result[name] = value.detach().to("meta") if isinstance(value, Tensor) else value
    return result


def _clone(values: Mapping[str, object]) -> dict[str, Any]:
    result = {}
    for name, value in values.items():
        result[name] = value.detach().clone() if isinstance(value, Tensor) else value
    return result


def _equal(a: Mapping[str, object], b: Mapping[str, object]) -> bool:
    """Compare bit for bit, NaN with NaN."""
    return a.keys() == b.keys() and all(_bits(a[name]) == _bits(b[name]) for name in a)


def _all_equal(a: Sequence[State], b: Sequence[State]) -> bool:
    return len(a) == len(b) and all(map(_equal, a, b))


def _bits(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.dtype, value.shape, value.detach().reshape(-1).view(torch.uint8).tolist()
