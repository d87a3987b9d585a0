"""Exact flooding of a whole optimiser step: micro-batches, ranks, loss scaling and closures, in any
PyTorch loop.

Flooding is not linear in the loss, so flooding each micro-batch or rank by itself is another
method. Here the raw gradients accumulate and are multiplied by one slope before the optimiser
steps. ``docs/accumulation.md`` is the guide.
"""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial, wraps
from numbers import Real
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from flooding.functional import flood

__all__ = ["FloodStep"]

# Methods of the optimisers that evaluate the loss twice or three times for one update, as SAM does.
_PASSES = ("first_step", "second_step", "third_step")
# How such an optimiser is recognised: by the methods that SAM has, or by those of GSAM.
_MULTI_PASS = (("first_step", "second_step"), ("perturb_weights", "un_perturb"))

# Other optimisers are inspected so long, and only where the loss reaches their parameters.
_INSPECTED_STEPS = 10
# So many dropped steps in a row are more than a GradScaler skips while it looks for its scale. A
# flooded step makes up for a third of a dropped one.
_MAX_DROPPED = 10
# Attribute of a gradient that a watched loss's backward has left on another optimiser's parameter.
_MARK = "_flood_step_mark"
# A graph beyond this size is not inspected; one of this size takes about 0.1 s, once.
_MAX_NODES = 100_000

_NO_LOSS = (
    "A flooded step needs its loss, but none was noted since the last step or zero_grad(). Write "
    "loss = flood_step(loss) before loss.backward(), or take flooding off with flood_step.remove()."
)
_LOSS_AFTER_FLIP = (
    "A step is flipped once, after its last backward, but a watched loss came after apply(). Call "
    "apply() later, keep penalties unwatched, and drop a skipped step with optimizer.zero_grad()."
)


class FloodStep:
    """Flood the mean loss of an optimiser step, however that step is split.

    With micro-batch losses ``l_i`` (of every rank) whose gradients the loop adds up with factors
    ``c_i``, the step's loss is ``L = sum(c_i * l_i) / sum(c_i)`` and the gradients are multiplied
    once by ``d flood(L, level) / dL``: +1 above the level, -1 below it, 0 exactly at it. The
    factors are read off the backward pass, so ``loss / k``, ``loss * n_i / n``, a GradScaler's
    scale or plain sums need no second mention. Nothing on this path waits for the device.

    An infinite loss keeps the gradients of its step. A NaN loss is left out of the mean: torch
    gives it for an empty or fully masked micro-batch, with a gradient of 0. Where every loss of a
    step is NaN, its gradients stay as they are.

    Optimisers of several passes (SAM and its kin, by ``first_step`` and ``second_step`` or by a
    closure) decide once per step, from the loss of the first pass, and the gradients of every pass
    are multiplied by that slope. LBFGS decides at each evaluation, as a line search needs it.

    The loss is noted when its backward ends and forgotten after the step, at
    ``optimizer.zero_grad()`` and once the gradients have become None or 0 again, so a step that a
    GradScaler skips, or a backward that fails, leaves nothing behind. Whatever is added to the
    gradients before the flip is flipped too: back-propagate penalties after :meth:`apply`.

    A UserWarning is given, once each: when watched losses are dropped again and again (ten times
    in a row, or at every step for some fifteen steps); when several of them take part in one
    backward; and when, within the first ten steps, another optimiser without a FloodStep updates
    parameters by the gradient of a watched loss.

    ``state`` holds tensors without axes, to be read at leisure: ``loss`` (raw), ``value``
    (flooded; both NaN before the first step) and ``slope`` of the last step, and the numbers of
    ``steps``, ``flooded`` (slope below 0) and ``non_finite`` ones (some loss was NaN or infinite);
    steps that a GradScaler skips do not count. Several evaluations of a closure are one step, of
    which the last is kept, or the first where SAM decides by it.

    An optimiser has one FloodStep: a second one replaces the first, with a warning. A FloodStep
    cannot be copied or pickled; save its :meth:`state_dict`.

    Args:
        optimizer: The optimiser whose ``step()`` is flooded: the inner one where a library wraps
            it.
        level: Level in the unit of the loss: a real number, a tensor without axes (changes in place
            are followed), None for no flooding, or a controller with ``init()`` and
            ``update(state, seen)``, updated after every step. A tensor that becomes NaN or ``inf``
            is an error where it lies on the CPU, and makes the gradients NaN elsewhere.
        objective: What replaces the loss, ``(loss, level) -> value``. Slopes other than 0 and +-1,
            such as those of ``soft_flood``, do not commute with clipping: call :meth:`apply` before
            it.
        per_microbatch: Let every micro-batch of every rank decide for itself, in its own backward. This is
            flooding with a smaller batch, not flooding of the step; ``state`` then tells what the
            whole step would have done.
        group: Process group whose losses are averaged once torch.distributed is initialised; None
            is all ranks.

    Raises:
        TypeError: If ``optimizer`` is no torch optimiser with step hooks, or ``level`` is none of
            the above.
        ValueError: If the level is NaN, ``inf`` or has axes, the gradients cannot be flipped as
            one, or ``per_microbatch`` is asked for with an optimiser of several passes.

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
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        level: Any,
        *,
        objective: Callable[[Tensor, Any], Tensor] = flood,
        per_microbatch: bool = False,
        group: Any = None,
    ) -> None:
        _check_optimizer(optimizer, level)
        self.optimizer, self.objective, self.per_microbatch, self.group = (
            optimizer,
            objective,
            per_microbatch,
            group,
        )
        methods = set(dir(optimizer))
        self._multi_pass = any(methods.issuperset(names) for names in _MULTI_PASS)
        if per_microbatch and self._multi_pass:
            raise ValueError(
                f"per_microbatch decides in every backward, but {type(optimizer).__name__} needs one slope "
                "for all passes of a step. Use per_microbatch=False."
            )
        # sum(c * loss), sum(c) and the number of NaN losses, shape (3,): of the open step, and of
        # backward passes that have not ended, by the id of their graph task.
        self._sums: Tensor | None = None
        self._running: dict[int, Tensor] = {}
        self._decision: dict[str, Tensor] | None = (
            None  # set between the flip and the end of the step
        )
        self._first_pass: dict[str, Tensor] | None = None  # decision of a step of several passes
        self._non_finite: Any = False
        self._shift: Any = 0.0
        self._landed: Tensor | None = (
            None  # a parameter that the last backward left with a gradient
        )
        self._versions = (0, 0)  # of that parameter and its gradient
        self._watched: weakref.ref[Tensor] | None = None  # the last watched loss
        self._last_task = -1  # id of the last backward of a watched loss
        self._steps = self._dropped = 0
        self._warned: set[str] = set()
        self._replaced = False
        parameters = self._parameters()
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self._nan_loss, self._zero = torch.tensor([0.0, 0.0, 1.0]), torch.tensor(0.0)
        state = {
            "loss": math.nan,
            "value": math.nan,
            "slope": 1.0,
            "steps": 0,
            "flooded": 0,
            "non_finite": 0,
        }
        self.state: dict[str, Tensor] = {
            name: torch.tensor(x, device=self._device) for name, x in state.items()
        }
        self.level = level
        self._replace_other()
        _ATTACHED[id(self)] = weakref.ref(self, partial(_forget, id(self)))
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        # Parameters of others that the watched loss reaches; None before the first loss.
        self._foreign: list[Tensor] | None = None
        self._foreign_hook: Any = None
        self._mark = object()  # on the gradients of those parameters
        self._wrappers: dict[str, Any] = {}
        self._wrap("zero_grad", self._zero_grad)
        self._passes = [name for name in _PASSES if self._multi_pass and hasattr(optimizer, name)]
        for name in self._passes:
            self._wrap(name, partial(self._pass, name))

    @property
    def level(self) -> Any:
        """The level in force; assigning a new level or controller is allowed between steps."""
        return self.state["controller.level"] if self._controller else self._level

    @level.setter
    def level(self, level: Any) -> None:
        is_controller = hasattr(level, "init") and hasattr(level, "update")
        is_controller = is_controller and not isinstance(level, type)
        checked = None if is_controller else _checked(level)
        self._controller, self._level = level if is_controller else None, checked
        self.state = {
            name: tensor
            for name, tensor in self.state.items()
            if not name.startswith("controller.")
        }
        if self._controller:
            self.state |= {
                f"controller.{k}": v.to(self._device) for k, v in self._controller.init().items()
            }

    @torch.compiler.disable
    def __call__(self, loss: Tensor) -> Tensor:
        """Watch a micro-batch's loss and return it, the same tensor with the same value and
        gradient.

        Give it the mean over the micro-batch, before any division by the number of micro-batches
        and any scaling. A loss without gradient (evaluation) is only returned, and so is the loss
        that was watched last. Call it outside of a compiled function.

        Args:
            loss: Mean loss of one micro-batch, one element.

        Returns:
            ``loss`` itself; with ``per_microbatch`` its backward is flooded.

        Raises:
            TypeError: If ``loss`` is no tensor.
            ValueError: If ``loss`` has more than one element.
            RuntimeError: If a newer FloodStep has replaced this one, or two watch ``loss`` and one
                of them is ``per_microbatch``.
        """
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"loss must be a tensor, got {type(loss).__name__}. Give the loss before .item()."
            )
        if loss.numel() != 1:
            raise ValueError(
                f"loss must have one element, got shape {tuple(loss.shape)}. Take the mean first."
            )
        self._check_not_replaced()
        # The same tensor twice, say by a criterion and by the loop, is one loss.
        if not (self._hooks and loss.requires_grad) or self._last_watched() is loss:
            return loss
        for other in self._others() if len(_ATTACHED) > 1 else ():
            if other._last_watched() is loss and (self.per_microbatch or other.per_microbatch):
                raise RuntimeError(
                    "per_microbatch=True floods the loss's own backward, for every optimiser, but two "
                    "FloodSteps watch this loss. Watch it by one of them."
                )
        self._watched = weakref.ref(loss)
        if self._foreign is None:
            self._inspect(loss)
        # A copy, since loops write `loss /= k` in place.
        loss.register_hook(partial(self._note, _wide(loss, copy=True)))
        return loss

    def _last_watched(self) -> Tensor | None:
        return None if self._watched is None else self._watched()

    def _note(self, loss: Tensor, factor: Tensor) -> Tensor | None:
        # Only in its backward does the loss belong to the gradients that are accumulating.
        if not self._hooks:
            return None
        task = torch._C._current_graph_task_id()
        if task not in self._running:
            self._drop_cleared()
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._look, task))
        elif not self.per_microbatch:
            self._warn(
                "Several watched losses took part in one backward. Their mean, weighted by the "
                "factors of their gradients, is compared with the level, and not their sum. If they "
                "are terms of one loss, watch the sum: loss = flood_step(a + b). If they are "
                "micro-batches of one loss, ignore this."
            )
        if self._decision is not None:
            raise RuntimeError(_LOSS_AFTER_FLIP)
        scale = _wide(factor)
        product = scale * loss
        if self._nan_loss.device != loss.device or self._nan_loss.dtype != product.dtype:
            self._nan_loss = torch.tensor([0, 0, 1]).to(product)
            self._zero = torch.zeros_like(product)
        noted = torch.stack([product, scale, self._zero])
        noted = torch.where(product.isnan(), self._nan_loss, noted)
        self._running[task] = self._running[task] + noted if task in self._running else noted
        return factor * self._decide(loss)[0]["slope"].to(factor) if self.per_microbatch else None

    def _look(self, task: int) -> None:
        # A backward that failed does not get here: its loss counts for nothing.
        noted = self._running.pop(task, None)
        if noted is None:
            return
        self._sums = noted if self._sums is None else self._sums + noted
        self._last_task = task
        # FSDP2 and master weights keep gradients elsewhere between micro-batches: only a grad seen
        # here can vanish.
        self._landed = next(
            (parameter for parameter in self._parameters() if parameter.grad is not None), None
        )
        if self._landed is not None and self._landed.grad is not None:
            # Each change in place counts a version up; reading it does not wait for the device.
            self._versions = (self._landed._version, self._landed.grad._version)
        for parameter in self._foreign or ():
            if parameter.grad is not None:
                setattr(parameter.grad, _MARK, self._mark)

    def _drop_cleared(self) -> None:
        # When a backward starts: what has happened to the gradients since the last one ended?
        landed = self._landed
        if landed is None:
            return
        if landed.grad is None:
            self._drop()
        elif self._sums is not None and landed.grad._version != self._versions[1]:
            if landed._version != self._versions[0]:
                self._count_dropped()  # somebody else has updated the parameters
            # Changed in place: clipped or unscaled, and the sums stay, or set to 0, and they go.
            nonzero = _any_nonzero(self._parameters(), self._device)
            if nonzero is not None:
                self._sums = torch.where(nonzero, self._sums, torch.zeros_like(self._sums))

    @torch.no_grad()
    def apply(self) -> None:
        """Flip the accumulated gradients now; the coming ``step()`` does not flip them again.

        Needed before clipping when ``objective`` has other slopes, and before the backward of
        penalties, which must not be flipped. Call it on every rank, after the last backward (and
        after ``scaler.unscale_``).

        Raises:
            RuntimeError: If no watched loss has been back-propagated since the last step, or
                another FloodStep would flip the same gradients.
        """
        self._check_not_replaced()
        if self._sums is None and self._running:
            # Compiled autograd calls no _look().
            self._sums = torch.stack(list(self._running.values())).sum(0)
        self._running.clear()
        if self._first_pass is not None and self._decision is None:
            self._decision = self._first_pass
        elif self._sums is None:
            raise RuntimeError(_NO_LOSS)
        else:
            if self._steps < _INSPECTED_STEPS and len(_ATTACHED) > 1:
                self._check_others()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(self._sums, group=self.group)
            product, factor, nan_losses = self._sums.unbind()
            self._decision, finite = self._decide(product / factor)
            self._non_finite = ~finite | (nan_losses > 0)
            self._shift = self._decision["value"] - self._decision["loss"]
            self._first_pass = self._decision if self._multi_pass else None
        self._sums = None
        if not self.per_microbatch:
            _multiply(
                [p.grad for p in self._parameters() if p.grad is not None], self._decision["slope"]
            )

    def reset(self) -> None:
        """Forget the losses of a step that will not be taken; ``optimizer.zero_grad()`` does so by
        itself.
        """
        self._sums = self._decision = self._first_pass = self._landed = None
        self._running.clear()

    def on_epoch_end(
        self, *, train_accuracy: Any = None, val_loss: Any = None, val_accuracy: Any = None
    ) -> None:
        """Show a controller the end of an epoch; other levels take no notice.

        Args:
            train_accuracy: Share of training examples classified correctly, in [0, 1].
            val_loss: Mean validation loss in the unit of the loss.
            val_accuracy: Share of validation examples classified correctly, in [0, 1]. Give all
                ranks the same.
        """
        self.state = self._updated(None, train_accuracy, val_loss, val_accuracy)

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the counters, the last step and the controller's state: tensors only, to be saved
        between steps.

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
            raise ValueError(
                f"state must name the same tensors, but {odd} differ. Build it with the same level."
            )
        self.state = {name: state[name].clone().to(self._device) for name in self.state}
        self.reset()

    def remove(self) -> None:
        """Take flooding off: from now on the loop is the plain one, bit for bit."""
        for hook in self._hooks:
            hook.remove()
        for name, wrapper in self._wrappers.items():
            if vars(self.optimizer).get(name) is wrapper:
                delattr(self.optimizer, name)
        self._hooks = []
        _ATTACHED.pop(id(self), None)
        self._end_inspection()
        self.reset()

    def __enter__(self) -> FloodStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __reduce_ex__(self, _: Any) -> NoReturn:
        # For copy, deepcopy and pickle. A copied optimiser has no hooks: it would train plainly.
        raise TypeError(
            "A FloodStep belongs to its optimiser and cannot be copied or pickled. Build a new one "
            "on the copied optimiser: new.load_state_dict(old.state_dict()) carries its state over."
        )

    def _others(self) -> list[FloodStep]:
        # list() of a dict is atomic: another thread may build a FloodStep meanwhile.
        every = [reference() for reference in list(_ATTACHED.values())]
        return [other for other in every if other is not None and other is not self]

    def _check_not_replaced(self) -> None:
        if self._replaced:
            raise RuntimeError(
                "This FloodStep was replaced by one that was built later on the same "
                f"{type(self.optimizer).__name__}. Use the later one."
            )

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=_stacklevel())

    # What the optimiser calls.

    def _wrap(self, name: str, wrapper: Callable[..., Any]) -> None:
        method = getattr(self.optimizer, name)

        @wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(method, *args, **kwargs)

        self._wrappers[name] = wrapped
        vars(self.optimizer)[name] = wrapped

    def _zero_grad(self, zero_grad: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        # A step that a GradScaler skips calls no hook, so zero_grad is where its losses are
        # forgotten.
        self._drop()
        zero_grad(*args, **kwargs)

    def _pass(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # One of SAM's first_step and second_step, called by hand or by step().
        if not self._hooks:
            return method(*args, **kwargs)
        if name == self._passes[0] and self._decision is None:
            self._first_pass = None
        # Of three passes (BSAM) the first draws noise and needs no gradient.
        needs_gradient = name in self._passes[-2:]
        if self._decision is None and (needs_gradient or self._sums is not None):
            self.apply()
        decision = self._decision
        result = method(*args, **kwargs)
        if name == self._passes[-1]:
            self._decision = decision
            self._after_step(self.optimizer)
        else:
            self._decision, self._first_pass = None, decision
        return result

    def _before_step(
        self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "The loss of the whole step must be known before the optimiser steps, but step() was called inside "
                "backward(). Use the loss itself, flooding.flood(loss, level), with an optimiser in backward."
            )
        # The hook fires before a closure has run: flipping now would flip the last step's
        # gradients.
        closure = kwargs.get("closure")
        if closure is None and len(args) > 1:
            closure = args[1]
        if closure is None and self._multi_pass:
            closure = getattr(self.optimizer, "forward_backward_func", None)  # of GSAM
        if closure is None:
            if self._decision is None:
                self.apply()
            return None
        if self._decision is None:
            self._first_pass = None
        flooded = partial(self._flooded, closure)
        if len(args) > 1:
            return (args[0], flooded, *args[2:]), kwargs
        return args, {**kwargs, "closure": flooded}

    def _flooded(self, closure: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._decision = None
        returned = closure(*args, **kwargs)
        if self._decision is None:
            self.apply()
        # Once only: a step() that calls super().step() runs the hooks twice and wraps the closure
        # twice.
        shift, self._shift = self._shift, 0.0
        return returned + shift if isinstance(returned, Tensor | Real) else returned

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        decision, self._decision = self._decision, None
        if decision is None:
            return
        self._first_pass = None
        self._steps += 1
        self._dropped = max(0, self._dropped - 1)
        if self._steps >= _INSPECTED_STEPS:
            self._end_inspection()  # not where it warns: torch is going through its hooks there
        state = self._updated(decision["loss"], None, None, None) | decision
        state["steps"] = state["steps"] + 1
        state["flooded"] = state["flooded"] + (decision["slope"] < 0)
        state["non_finite"] = state["non_finite"] + self._non_finite
        # A fused optimiser is called also for the step that it then skips.
        if (found_inf := getattr(optimizer, "found_inf", None)) is not None:
            state = {
                name: torch.where(found_inf == 0, tensor, self.state[name])
                for name, tensor in state.items()
            }
        self.state = state

    # What the level makes of the loss.

    def _decide(self, loss: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # Autograd gives the slope of any objective, and torch's own 0 at the level, without a
        # second formula.
        level = -math.inf if self.level is None else self.level
        _check_value(level)
        with torch.enable_grad():
            raw = loss.detach().requires_grad_()
            value = self.objective(raw, level)
            (slope,) = torch.autograd.grad(value, raw)
        value = value.detach()
        # A NaN level has slope 0, which would go unnoticed: NaN where the value is not finite.
        slope = torch.add(slope, value, alpha=0)
        finite = loss.isfinite()
        floods = finite & (level != -math.inf)
        value = torch.where(floods, value, loss)
        slope = torch.where(floods, slope, torch.ones_like(slope))
        return {"loss": loss, "value": value, "slope": slope}, finite

    def _updated(
        self, loss: Tensor | None, train_accuracy: Any, val_loss: Any, val_accuracy: Any
    ) -> dict[str, Tensor]:
        if not self._controller:
            return dict(self.state)
        seen = SimpleNamespace(
            loss=loss, train_accuracy=train_accuracy, val_loss=val_loss, val_accuracy=val_accuracy
        )
        prefix = "controller."
        memory = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
        return self.state | {
            prefix + k: v for k, v in self._controller.update(memory, seen).items()
        }

    # What would be silently wrong.

    def _drop(self) -> None:
        if self._sums is not None:
            self._count_dropped()
        self._sums = self._decision = self._landed = None
        self._running.clear()

    def _count_dropped(self) -> None:
        self._dropped += 3
        if not self.per_microbatch and self._dropped >= 3 * _MAX_DROPPED:
            self._warn(
                "Again and again the gradients of watched losses were cleared, or used by somebody "
                "else, without a flooded step. Only step() of the optimiser given to FloodStep "
                "floods: is another one, a copy, or a method of another name called, or zero_grad() "
                "before step()?"
            )

    def _replace_other(self) -> None:
        for other in self._others():
            if other.optimizer is self.optimizer:
                level = type(other._controller).__name__ if other._controller else other._level
                warnings.warn(
                    f"This {type(self.optimizer).__name__} has had a FloodStep with level {level}, "
                    "which the new one replaces. If this is meant, call remove() on the old one first.",
                    stacklevel=_stacklevel(),
                )
                other.remove()
                other._replaced = True

    def _check_others(self) -> None:
        for other in self._others():
            if other._sums is None or other._last_task != self._last_task:
                continue
            own = set(map(id, self._parameters()))
            if shared := sum(id(parameter) in own for parameter in other._parameters()):
                raise RuntimeError(
                    f"{shared} parameters belong to two optimisers, "
                    f"{type(self.optimizer).__name__} and {type(other.optimizer).__name__}, whose "
                    "FloodSteps watch losses of the same backward: their gradients would be flipped "
                    "twice. Call one of the two."
                )

    def _inspect(self, loss: Tensor) -> None:
        # With per_microbatch the loss's own backward is flooded, for every optimiser.
        leaves = [] if self.per_microbatch else _leaves(loss)
        own = set(map(id, self._parameters()))
        self._foreign = [leaf for leaf in leaves if id(leaf) not in own]
        if self._foreign:
            # A global hook: it must not keep this object alive.
            hook: Any = partial(_before_any_step, weakref.ref(self))
            self._foreign_hook = register_optimizer_step_pre_hook(hook)

    def _end_inspection(self) -> None:
        self._foreign = []
        if self._foreign_hook is not None:
            self._foreign_hook.remove()
            self._foreign_hook = None

    def _before_foreign_step(self, optimizer: torch.optim.Optimizer) -> None:
        # A GAN's second optimiser owns parameters that the loss reaches, but clears their
        # gradients.
        if not self._foreign or any(o.optimizer is optimizer for o in (self, *self._others())):
            return
        own = set(map(id, self._parameters()))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        marked = [p for p in parameters if getattr(p.grad, _MARK, None) is self._mark]
        reached = [p for p in marked if id(p) not in own]
        if reached:
            self._foreign = []
            name = type(optimizer).__name__
            self._warn(
                f"The watched loss reaches parameters ({len(reached)} tensors) that {name} updates "
                "without a FloodStep: they descend also below the level. Build one FloodStep on each "
                "optimiser and watch the loss by each, loss = first(second(loss)). Ignore this if "
                "they are meant to descend."
            )


@torch.compiler.disable
def _before_any_step(reference: weakref.ref[FloodStep], optimizer: Any, *_: Any) -> None:
    if (flood_step := reference()) is not None:
        flood_step._before_foreign_step(optimizer)


def _stacklevel() -> int:
    # Of the nearest line that is neither ours nor torch's, counted from the caller.
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in ("torch", "flooding"):
        frame, level = frame.f_back, level + 1
    return level


def _wide(tensor: Tensor, copy: bool = False) -> Tensor:
    # Wide, since bfloat16 cannot tell 0.0500 from 0.0502.
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().reshape(()).to(dtype, copy=copy)


def _multiply(gradients: Iterable[Tensor], slope: Tensor) -> None:
    by_kind: dict[Any, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        # A shard is multiplied as the plain tensor it is: right for every placement, and no DTensor
        # dispatch.
        own: Any = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # pyright: ignore
        by_kind[own.device, own.dtype].append(own)
    for (device, dtype), tensors in by_kind.items():
        torch._foreach_mul_(tensors, slope.to(device, dtype))


def _any_nonzero(parameters: Iterable[Tensor], device: torch.device) -> Tensor | None:
    # None where this cannot be told: a shard may be 0 or empty while the others are not.
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if any(hasattr(gradient, "to_local") for gradient in gradients):
        return None
    values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return torch.stack([value.any().to(device) for value in values]).any()


def _leaves(loss: Tensor) -> list[Tensor]:
    # The tensors whose gradients a backward of the loss accumulates.
    nodes, visited, leaves = [loss.grad_fn], set(), []
    while nodes and len(visited) < _MAX_NODES:
        node: Any = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return leaves


def _check_value(level: Any) -> None:
    # A tensor on another device would have to be waited for; tolist() only reads memory.
    number: Any = level.tolist() if isinstance(level, Tensor) and level.is_cpu else 0.0
    if not number < math.inf:
        raise ValueError(f"level must be finite or -inf, got {number}. Use None for no flooding.")


def _checked(level: Any) -> Any:
    if level is None:
        return None
    if isinstance(level, Tensor):
        if level.ndim:
            raise ValueError(
                f"level must have no axes, got shape {tuple(level.shape)}. One step has one level."
            )
        if level.dtype is torch.bool or level.is_complex():
            raise TypeError(f"level must be a real number, got a tensor of {level.dtype}.")
        _check_value(level)
        return level
    if not isinstance(level, Real) or isinstance(level, bool):
        kind = level.__name__ if isinstance(level, type) else type(level).__name__
        raise TypeError(
            f"level must be a number, a tensor, None or a controller, got {kind}. Write float(...) "
            "for text and arrays, and build a controller's class first."
        )
    try:
        number = float(level)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not number < math.inf:
        raise ValueError(f"level must be finite or -inf, got {number}. Use None for no flooding.")
    return number


def _check_optimizer(optimizer: Any, level: Any) -> None:
    if isinstance(level, torch.optim.Optimizer):
        raise TypeError("level is an optimiser. The order is FloodStep(optimizer, level).")
    if not (
        isinstance(optimizer, torch.optim.Optimizer)
        and getattr(type(optimizer).step, "hooked", False)
    ):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer that calls step hooks, got {type(optimizer).__name__}. Give "
            "the inner optimiser of a wrapper; engines that step by themselves need flooding.flood(loss, level)."
        )
    for parameter in (
        parameter for group in optimizer.param_groups for parameter in group["params"]
    ):
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                "The gradients of a whole step must be there together, but a parameter has a post-accumulate-grad "
                "hook, as an optimiser in backward has. Use flooding.flood(loss, level), or add harmless hooks later."
            )
        if hasattr(parameter, "ds_id"):
            raise ValueError(
                "Parameters partitioned by DeepSpeed cannot be flipped. Use flooding.flood(loss, level)."
            )


# Every FloodStep whose hooks are on its optimiser, by its id.
_ATTACHED: dict[int, weakref.ref[FloodStep]] = {}


def _forget(key: int, _: weakref.ref[FloodStep]) -> None:
    _ATTACHED.pop(key, None)
