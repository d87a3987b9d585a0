"""Exact flooding of a whole optimiser step: micro-batches, ranks, loss scaling and closures, in any PyTorch loop.

Flooding is not linear in the loss, so flooding each micro-batch or rank by itself is another method. Here the raw
gradients accumulate and are multiplied by one slope before the optimiser steps. ``docs/accumulation.md`` is the guide.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from flooding.functional import flood

__all__ = ["FloodStep"]


class FloodStep:
    """Flood the mean loss of an optimiser step, however that step is split.

    With micro-batch losses ``l_i`` (of every rank) whose gradients the loop adds up with factors ``c_i``, the step's
    loss is ``L = sum(c_i * l_i) / sum(c_i)`` and the gradients are multiplied once by ``d flood(L, level) / dL``: +1
    above the level, -1 below it, 0 exactly at it. The factors are read off the backward pass, so ``loss / k``,
    ``loss * n_i / n``, a GradScaler's scale or plain sums need no second mention. A loss that is not finite keeps its
    gradients. Nothing on this path waits for the device.

    The loss is noted when its backward runs and forgotten after the step, at ``optimizer.zero_grad()`` and once the
    gradients have become None again, so a step that a GradScaler skips leaves nothing behind. Whatever is added to the
    gradients before the flip is flipped too: back-propagate penalties after :meth:`apply`.

    ``state`` holds tensors without axes, to be read at leisure: ``loss`` (raw), ``value`` (flooded; both NaN before
    the first step) and ``slope`` of the last step, and the numbers of ``steps``, ``flooded`` (slope below 0) and
    ``non_finite`` ones; steps that a GradScaler skips do not count. Several evaluations of a closure are one step, of
    which the last is kept.

    Args:
        optimizer: The optimiser whose ``step()`` is flooded: the inner one where a library wraps it.
        level: Level in the unit of the loss: a float, a tensor without axes (changes in place are followed), None for
            no flooding, or a controller with ``init()`` and ``update(state, seen)``, updated after every step.
        objective: What replaces the loss, ``(loss, level) -> value``. Slopes other than 0 and +-1, such as those of
            ``soft_flood``, do not commute with clipping: call :meth:`apply` before it.
        local: Let every micro-batch of every rank decide for itself, in its own backward. This is flooding with a
            smaller batch, not flooding of the step; ``state`` then tells what the whole step would have done.
        group: Process group whose losses are averaged once torch.distributed is initialised; None is all ranks.

    Raises:
        TypeError: If ``optimizer`` is no torch optimiser with step hooks, or ``level`` is none of the above.
        ValueError: If the level is NaN, ``inf`` or has axes, or the gradients cannot be flipped as one.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> flood_step = FloodStep(optimizer, level=1e3)
        >>> for x in torch.ones(4, 3, 2):  # four micro-batches of three examples
        ...     loss = flood_step(model(x).square().mean())
        ...     (loss / 4).backward()
        >>> optimizer.step()
        >>> flood_step.state["slope"], flood_step.state["flooded"]
        (tensor(-1.), tensor(1))

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML 2020, eq. (1).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        level: Any,
        *,
        objective: Callable[[Tensor, Any], Tensor] = flood,
        local: bool = False,
        group: Any = None,
    ) -> None:
        _check_optimizer(optimizer)
        self.optimizer, self.objective, self.local, self.group = optimizer, objective, local, group
        self._sums: Tensor | None = None  # sum(c * loss) and sum(c) of the open step, shape (2,)
        self._decision: dict[str, Tensor] | None = None  # set between the flip and the end of the step
        self._shift: Any = 0.0
        self._landed: Tensor | None = None  # a parameter that the last backward left with a gradient
        self._device = self._parameters()[0].device
        state = {"loss": math.nan, "value": math.nan, "slope": 1.0, "steps": 0, "flooded": 0, "non_finite": 0}
        self.state: dict[str, Tensor] = {name: torch.tensor(x, device=self._device) for name, x in state.items()}
        self.level = level
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._watch_zero_grad()

    @property
    def level(self) -> Any:
        """The level in force; assigning a new level or controller is allowed between steps."""
        return self.state["controller.level"] if self._controller else self._level

    @level.setter
    def level(self, level: Any) -> None:
        self._controller = level if hasattr(level, "init") and hasattr(level, "update") else None
        self._level = None if self._controller else _checked(level)
        self.state = {name: tensor for name, tensor in self.state.items() if not name.startswith("controller.")}
        if self._controller:
            self.state |= {f"controller.{k}": v.to(self._device) for k, v in self._controller.init().items()}

    @torch.compiler.disable
    def __call__(self, loss: Tensor) -> Tensor:
        """Watch a micro-batch's loss and return it, the same tensor with the same value and gradient.

        Give it the mean over the micro-batch, before any division by the number of micro-batches and any scaling. A
        loss without gradient (evaluation) is only returned. Call it outside of a compiled function.

        Args:
            loss: Mean loss of one micro-batch, one element.

        Returns:
            ``loss`` itself; with ``local`` its backward is flooded.

        Raises:
            ValueError: If ``loss`` has more than one element.
        """
        if loss.numel() != 1:
            raise ValueError(f"loss must have one element, got shape {tuple(loss.shape)}. Take the mean first.")
        if self._hooks and loss.requires_grad:
            loss.register_hook(partial(self._note, _wide(loss)))
        return loss

    def _note(self, loss: Tensor, factor: Tensor) -> Tensor | None:
        # Noted when its backward starts: only then does the loss belong to the gradients that are accumulating.
        if not self._hooks:
            return None
        if self._landed is not None and self._landed.grad is None:
            self.clear()
        torch.autograd.Variable._execution_engine.queue_callback(self._look)
        if self._decision is not None:
            raise RuntimeError(
                "A step is flipped once, after its last backward, but a watched loss came after apply(). Call apply() "
                "later, keep penalties unwatched, and drop a skipped step with optimizer.zero_grad()."
            )
        scale = _wide(factor)
        noted = torch.stack([scale * loss, scale])
        self._sums = noted if self._sums is None else self._sums + noted
        return factor * self._decide(loss)["slope"].to(factor) if self.local else None

    def _look(self) -> None:
        # FSDP2 and master weights keep gradients elsewhere between micro-batches: only a grad seen here can vanish.
        self._landed = next((parameter for parameter in self._parameters() if parameter.grad is not None), None)

    @torch.no_grad()
    def apply(self) -> None:
        """Flip the accumulated gradients now; the coming ``step()`` does not flip them again.

        Needed before clipping when ``objective`` has other slopes, and before the backward of penalties, which must
        not be flipped. Call it on every rank, after the last backward (and after ``scaler.unscale_``).

        Raises:
            RuntimeError: If no watched loss has been back-propagated since the last step.
        """
        if self._sums is None:
            raise RuntimeError(
                "A flooded step needs its loss, but none was noted since the last step or zero_grad(). Write "
                "loss = flood_step(loss) before loss.backward(), or take flooding off with flood_step.remove()."
            )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sums, group=self.group)
        self._decision = self._decide(self._sums[0] / self._sums[1])
        self._shift = self._decision["value"] - self._decision["loss"]
        self._sums = None
        if not self.local:
            _multiply([p.grad for p in self._parameters() if p.grad is not None], self._decision["slope"])

    def clear(self) -> None:
        """Forget the losses of a step that will not be taken; ``optimizer.zero_grad()`` does so by itself."""
        self._sums = self._decision = self._landed = None

    def epoch(self, *, train_accuracy: Any = None, val_loss: Any = None, val_accuracy: Any = None) -> None:
        """Show a controller the end of an epoch; other levels take no notice.

        Args:
            train_accuracy: Share of training examples classified correctly, in [0, 1].
            val_loss: Mean validation loss in the unit of the loss.
            val_accuracy: Share of validation examples classified correctly, in [0, 1]. Give all ranks the same.
        """
        self.state = self._updated(None, train_accuracy, val_loss, val_accuracy)

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the counters, the last step and the controller's state: tensors only, to be saved between steps.

        Returns:
            Tensors by name.
        """
        return {name: tensor.clone() for name, tensor in self.state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a :meth:`state_dict`, also in the middle of an epoch.

        Args:
            state: What :meth:`state_dict` gave, for the same kind of level.

        Raises:
            ValueError: If the names differ from this object's.
        """
        if odd := sorted(state.keys() ^ self.state.keys()):
            raise ValueError(f"state must name the same tensors, but {odd} differ. Build it with the same level.")
        self.state = {name: state[name].clone().to(self._device) for name in self.state}
        self.clear()

    def remove(self) -> None:
        """Take flooding off: from now on the loop is the plain one, bit for bit."""
        for hook in self._hooks:
            hook.remove()
        if vars(self.optimizer).get("zero_grad") is self._zero_grad:
            del self.optimizer.zero_grad
        self._hooks = []
        self.clear()

    def __enter__(self) -> FloodStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _watch_zero_grad(self) -> None:
        # A step that a GradScaler skips calls no hook, so zero_grad is where its losses are forgotten.
        zero_grad = self.optimizer.zero_grad

        @wraps(zero_grad)
        def watched(*args: Any, **kwargs: Any) -> None:
            self.clear()
            zero_grad(*args, **kwargs)

        self._zero_grad = watched
        vars(self.optimizer)["zero_grad"] = watched

    def _decide(self, loss: Tensor) -> dict[str, Tensor]:
        # Autograd gives the slope of any objective, and torch's own 0 at the level, without a second formula.
        level = -math.inf if self.level is None else self.level
        with torch.enable_grad():
            raw = loss.detach().requires_grad_()
            value = self.objective(raw, level)
            (slope,) = torch.autograd.grad(value, raw)
        floods = loss.isfinite() & (level != -math.inf)
        value = torch.where(floods, value.detach(), loss)
        return {"loss": loss, "value": value, "slope": torch.where(floods, slope, torch.ones_like(slope))}

    def _before_step(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "The loss of the whole step must be known before the optimiser steps, but step() was called inside "
                "backward(). Use the loss itself, flooding.flood(loss, level), with an optimiser in backward."
            )
        # The hook fires before a closure has run: flipping now would flip the last step's gradients.
        if closure := kwargs.get("closure"):
            return args, {**kwargs, "closure": partial(self._flooded, closure)}
        if len(args) > 1 and args[1] is not None:
            return (args[0], partial(self._flooded, args[1]), *args[2:]), kwargs
        if self._decision is None:
            self.apply()
        return None

    def _flooded(self, closure: Callable[[], Any]) -> Any:
        self._decision = None
        returned = closure()
        if self._decision is None:
            self.apply()
        # Once only: a step() that calls super().step() runs the hooks twice and wraps the closure twice.
        shift, self._shift = self._shift, 0.0
        return None if returned is None else returned + shift

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        decision, self._decision = self._decision, None
        if decision is None:
            return
        state = self._updated(decision["loss"], None, None, None) | decision
        state["steps"] = state["steps"] + 1
        state["flooded"] = state["flooded"] + (decision["slope"] < 0)
        state["non_finite"] = state["non_finite"] + ~decision["loss"].isfinite()
        # A fused optimiser is called also for the step that it then skips.
        if (found_inf := getattr(optimizer, "found_inf", None)) is not None:
            state = {name: torch.where(found_inf == 0, tensor, self.state[name]) for name, tensor in state.items()}
        self.state = state

    def _updated(self, loss: Tensor | None, train_accuracy: Any, val_loss: Any, val_accuracy: Any) -> dict[str, Tensor]:
        if not self._controller:
            return dict(self.state)
        seen = SimpleNamespace(loss=loss, train_accuracy=train_accuracy, val_loss=val_loss, val_accuracy=val_accuracy)
        prefix = "controller."
        memory = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        return self.state | {prefix + k: v for k, v in self._controller.update(memory, seen).items()}


def _wide(tensor: Tensor) -> Tensor:
    # Wide, since bfloat16 cannot tell 0.0500 from 0.0502; a copy, since loops write `loss /= k` in place.
    return tensor.detach().clone().reshape(()).to(torch.promote_types(tensor.dtype, torch.float32))


def _multiply(gradients: Iterable[Tensor], slope: Tensor) -> None:
    by_kind: dict[Any, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        # A shard is multiplied as the plain tensor it is: right for every placement, and no DTensor dispatch.
        own: Any = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # pyright: ignore
        by_kind[own.device, own.dtype].append(own)
    for (device, dtype), tensors in by_kind.items():
        torch._foreach_mul_(tensors, slope.to(device, dtype))


def _checked(level: Any) -> Any:
    if not (level is None or isinstance(level, Tensor | float | int)):
        raise TypeError(f"level must be a number, a tensor, None or a controller, got {type(level).__name__}.")
    if isinstance(level, Tensor) and level.ndim:
        raise ValueError(f"level must have no axes, got shape {tuple(level.shape)}. One step has one level.")
    if isinstance(level, float | int) and not level < math.inf:
        raise ValueError(f"level must be finite or -inf, got {level}. Use None for no flooding.")
    return level


def _check_optimizer(optimizer: Any) -> None:
    if not (isinstance(optimizer, torch.optim.Optimizer) and getattr(type(optimizer).step, "hooked", False)):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer that calls step hooks, got {type(optimizer).__name__}. Give "
            "the inner optimiser of a wrapper; engines that step by themselves need flooding.flood(loss, level)."
        )
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                "The gradients of a whole step must be there together, but a parameter has a post-accumulate-grad "
                "hook, as an optimiser in backward has. Use flooding.flood(loss, level), or add harmless hooks later."
            )
        if hasattr(parameter, "ds_id"):
            raise ValueError("Parameters partitioned by DeepSpeed cannot be flipped. Use flooding.flood(loss, level).")
