"""``FloodStep``: the optimiser step whose mean loss is flooded."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial, wraps
from numbers import Real
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from flooding.functional import flood
from flooding.levels import Controller
from flooding.step import messages
from flooding.step.attached import attach, check_shared_parameters, detach, others, replace_other
from flooding.step.checks import caller_stacklevel, check_optimizer, is_multi_pass, pass_methods
from flooding.step.gradients import any_nonzero_gradient, multiply_gradients, to_float32
from flooding.step.inspection import Inspection
from flooding.step.losses import LossSums
from flooding.step.ranks import check_losses, sum_over_ranks
from flooding.step.state import Decision, StepState, decide
from flooding.step.wrappers import inner_optimizer, partitioning_wrapper

__all__ = ["FloodStep"]

# Other optimisers are inspected so long, and only where the loss reaches their parameters.
_INSPECTED_STEPS = 10
# So many dropped steps in a row are more than a GradScaler skips while it looks for its scale. A
# flooded step makes up for a third of a dropped one.
_MAX_DROPPED = 10


class FloodStep(StepState):
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

    ``state`` holds 0-d tensors under the names that :class:`flooding.Flood` uses: ``raw_loss``,
    ``flooded_loss`` (both NaN before the first step) and ``slope`` of the last step, and the
    counts ``n_steps``, ``n_flooded`` (slope below 0) and ``n_nonfinite`` (some loss was NaN or
    infinite). They are attributes, too: ``flood_step.raw_loss``. Steps that a GradScaler skips do
    not count. Several evaluations of a closure are one step, of which the last is kept, or the
    first where SAM decides by it.

    An optimiser has one FloodStep: a second one replaces the first, with a warning. A FloodStep
    cannot be copied or pickled; save its :meth:`state_dict`.

    Args:
        optimizer: The optimiser whose ``step()`` is flooded. Inside the wrappers of Accelerate,
            Lightning Fabric and DeepSpeed (ZeRO 0, 1 and 2) the inner one is found.
        level: Level in the unit of the loss: a real number, a tensor without axes (changes in place
            are followed), None for no flooding, or a controller with ``init()`` and
            ``update(state, info)``, updated after every step. A tensor that becomes NaN or ``inf``
            is an error where it lies on the CPU, and makes the gradients NaN elsewhere.
        objective: What replaces the loss, ``(loss, level) -> value``. Before clipping, slopes
            other than 0 and +-1, such as those of ``soft_flood``, need a call of :meth:`apply`.
        per_microbatch: Let every micro-batch of every rank decide for itself, in its own backward.
            This is flooding with a smaller batch, not flooding of the step; ``state`` then tells
            what the whole step would have done.
        group: Process group whose losses are averaged by torch.distributed; None is all ranks.

    Raises:
        TypeError: If ``optimizer`` is no torch optimiser with step hooks, or ``level`` is none of
            the above.
        ValueError: If the level is NaN, ``inf`` or has axes, the gradients cannot be flipped as
            one (ZeRO 3, an optimiser in backward), or ``per_microbatch`` is asked for with an
            optimiser of several passes.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> flood_step = FloodStep(optimizer, level=1e3)
        >>> for x in torch.ones(4, 3, 2):  # four micro-batches of three examples
        ...     loss = flood_step(model(x).square().mean())
        ...     (loss / 4).backward()
        >>> optimizer.step()
        >>> flood_step.slope, flood_step.n_flooded
        (tensor(-1.), tensor(1))

    References:
        Ishida et al., *Do We Need Zero Training Loss After Achieving Zero Training Error?*, ICML
        2020, eq. (1).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        level: float | Tensor | Controller | None,
        *,
        objective: Callable[[Tensor, Tensor], Tensor] = flood,
        per_microbatch: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        wrapper = partitioning_wrapper(optimizer)
        optimizer = check_optimizer(inner_optimizer(optimizer), level)
        self.optimizer = optimizer
        parameters = self.parameters()
        super().__init__(level, parameters[0].device if parameters else torch.device("cpu"))
        self.objective = objective
        self.per_microbatch = per_microbatch
        self.group = group
        self._multi_pass = is_multi_pass(optimizer)
        if per_microbatch and self._multi_pass:
            name = type(optimizer).__name__
            raise ValueError(messages.NEEDS_ONE_SLOPE.format(name=name))
        self._losses = LossSums()
        # Raw loss, flooded loss and slope: set between the flip and the end of the step.
        self._decision: Decision | None = None
        self._first_pass: Decision | None = None  # that of a step of several passes
        self._is_nonfinite: bool | Tensor = False
        self._shift: float | Tensor = 0.0  # flooded minus raw loss, for what a closure returns
        # A parameter that the last backward left with a gradient, and the versions of both.
        self._param_with_grad: Tensor | None = None
        self._versions = (0, 0)
        self._last_loss: weakref.ref[Tensor] | None = None
        self._last_task = -1  # the last backward of a watched loss
        self._steps = self._dropped = 0
        self._warnings: set[str] = set()
        self._is_replaced = False
        replace_other(self)
        attach(self)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._inspection = Inspection(self)
        self._wrapped: list[tuple[object, str, object]] = []
        self._wrap(optimizer, "zero_grad", self._zero_grad)
        self._passes = pass_methods(optimizer)
        for name in self._passes:
            self._wrap(optimizer, name, partial(self._pass, name))
        self._in_wrapper = False  # whether the wrapper of a partitioned optimiser is stepping
        if wrapper is not None:
            self._wrap(wrapper, "step", self._wrapper_step)

    @torch._disable_dynamo  # torch.compiler.disable would import the compiler now, in a second
    def __call__(self, loss: Tensor) -> Tensor:
        """Watch a micro-batch's loss and return it: the same tensor, value and gradient.

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
        if not (self._hooks and loss.requires_grad) or self._is_last_loss(loss):
            return loss
        for other in others(self):
            if other._is_last_loss(loss) and (self.per_microbatch or other.per_microbatch):
                raise RuntimeError(
                    "per_microbatch=True floods the loss's own backward, for every optimiser, but "
                    "two FloodSteps watch this loss. Watch it by one of them."
                )
        self._last_loss = weakref.ref(loss)
        # With per_microbatch the loss itself is flooded, for every optimiser.
        if not self.per_microbatch:
            self._inspection.start(loss)
        # A copy, since loops write `loss /= k` in place.
        loss.register_hook(partial(self._record_loss, to_float32(loss, copy=True)))
        return loss

    def _is_last_loss(self, loss: Tensor) -> bool:
        return self._last_loss is not None and self._last_loss() is loss

    # What autograd calls.

    def _record_loss(self, loss: Tensor, gradient: Tensor) -> Tensor | None:
        # Only in its backward does the loss belong to the gradients that are accumulating.
        if not self._hooks:
            return None
        task = torch._C._current_graph_task_id()
        if not self._losses.is_open(task):
            self._drop_cleared()
            end_of_pass = partial(self._end_pass, task)
            torch.autograd.Variable._execution_engine.queue_callback(end_of_pass)
        elif not self.per_microbatch:
            self._warn(messages.SEVERAL_LOSSES)
        if self._decision is not None:
            raise RuntimeError(messages.LOSS_AFTER_FLIP)
        self._losses.add(task, loss, gradient)
        if not self.per_microbatch:
            return None
        slope = decide(loss, self.level, self.objective)["slope"]
        return gradient * slope.to(gradient)

    def _end_pass(self, task: int) -> None:
        # A backward that failed does not get here: its loss counts for nothing.
        if not self._losses.end_pass(task):
            return
        self._last_task = task
        # FSDP2 and master weights keep gradients elsewhere between micro-batches: only a gradient
        # that is seen here can vanish.
        self._param_with_grad = None
        for parameter in self.parameters():
            if parameter.grad is not None:
                self._param_with_grad = parameter
                # Each change in place raises a version; reading it waits for no device.
                self._versions = (parameter._version, parameter.grad._version)
                break
        self._inspection.mark_gradients()

    def _drop_cleared(self) -> None:
        # When a backward starts: what has happened to the gradients since the last one ended?
        parameter = self._param_with_grad
        if parameter is None:
            return
        if parameter.grad is None:
            self._drop()
        elif not self._losses.is_empty and parameter.grad._version != self._versions[1]:
            if parameter._version != self._versions[0]:
                self._count_dropped()  # another optimiser has updated the parameters
            # Changed in place: clipped or unscaled, and the sums stay, or set to 0, and they go.
            nonzero = any_nonzero_gradient(self.parameters(), self._device)
            if nonzero is not None:
                self._losses.zero_unless(nonzero)

    # What a user calls.

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
        sums = self._losses.total()
        if self._first_pass is not None and self._decision is None:
            self._decision = self._first_pass  # a later pass takes the slope of the first
        else:
            if self._steps == 0:
                check_losses(sums, self._device, self.group)
            if sums is None:
                raise RuntimeError(messages.NO_LOSS)
            for other in others(self) if self._steps < _INSPECTED_STEPS else ():
                if not other._losses.is_empty and other._last_task == self._last_task:
                    check_shared_parameters(self, other)
            sum_over_ranks(sums, self.group)
            product, factor, nan_losses = sums.unbind()
            self._decision = decide(product / factor, self.level, self.objective)
            loss = self._decision["raw_loss"]
            self._is_nonfinite = ~loss.isfinite() | (nan_losses > 0)
            self._shift = self._decision["flooded_loss"] - loss
            self._first_pass = self._decision if self._multi_pass else None
        self._losses.clear()
        if not self.per_microbatch:
            multiply_gradients(self.parameters(), self._decision["slope"])

    def reset(self) -> None:
        """Forget the losses of a step that is not taken; ``optimizer.zero_grad()`` does it, too."""
        self._decision = self._first_pass = self._param_with_grad = None
        self._losses.clear()

    def remove(self) -> None:
        """Take flooding off: from now on the loop is the plain one, bit for bit."""
        for hook in self._hooks:
            hook.remove()
        for owner, name, wrapped in self._wrapped:
            if vars(owner).get(name) is wrapped:
                delattr(owner, name)
        self._hooks = []
        detach(self)
        self._inspection.end()
        self.reset()

    def __enter__(self) -> FloodStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __reduce_ex__(self, _: object) -> NoReturn:
        # For copy, deepcopy and pickle. A copied optimiser has no hooks: it would train plainly.
        raise TypeError(messages.NO_COPY)

    def _check_not_replaced(self) -> None:
        if self._is_replaced:
            raise RuntimeError(messages.REPLACED.format(name=type(self.optimizer).__name__))

    def parameters(self) -> list[Tensor]:
        """List the parameters of the optimiser.

        Returns:
            The parameters of all its groups, in order.
        """
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _warn(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            warnings.warn(message, stacklevel=caller_stacklevel())

    # What the optimiser calls.

    def _wrap(self, owner: object, name: str, wrapper: Callable[..., object]) -> None:
        method = getattr(owner, name)

        @wraps(method)
        def wrapped(*args: object, **kwargs: object) -> object:
            return wrapper(method, *args, **kwargs)

        self._wrapped.append((owner, name, wrapped))
        vars(owner)[name] = wrapped

    def _zero_grad(self, zero_grad: Callable[..., None], *args: object, **kwargs: object) -> None:
        # A step that a GradScaler skips calls no hook, so zero_grad is where its losses are
        # forgotten.
        self._drop()
        zero_grad(*args, **kwargs)

    def _pass(
        self, name: str, method: Callable[..., object], *args: object, **kwargs: object
    ) -> object:
        # One of SAM's first_step and second_step, called by hand or by step().
        if not self._hooks:
            return method(*args, **kwargs)
        if name == self._passes[0] and self._decision is None:
            self._first_pass = None
        # Of three passes (BSAM) the first draws noise and needs no gradient.
        needs_gradient = name in self._passes[-2:]
        if self._decision is None and (needs_gradient or not self._losses.is_empty):
            self.apply()
        decision = self._decision
        result = method(*args, **kwargs)
        if name == self._passes[-1]:
            self._decision = decision
            self._after_step(self.optimizer)
        else:
            self._decision, self._first_pass = None, decision
        return result

    def _wrapper_step(self, step: Callable[..., object], *args: object, **kwargs: object) -> object:
        # It calls the inner step() once for each part of the parameters, or not at all after an
        # overflow: one decision for all parts, as for the passes of SAM.
        self._first_pass, self._in_wrapper = None, True
        try:
            return step(*args, **kwargs)
        finally:
            self._in_wrapper = False
            self._decision = self._first_pass
            if self._decision is None:
                self._drop()
            else:
                self._after_step(self.optimizer)

    def _before_step(
        self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "The loss of the whole step must be known before the optimiser steps, but step() "
                "was called inside backward(). Use the loss itself, flooding.flood(loss, level), "
                "with an optimiser in backward."
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

    def _flooded(self, closure: Callable[..., object], *args: object, **kwargs: object) -> object:
        self._decision = None
        returned = closure(*args, **kwargs)
        if not self._hooks:  # taken off by the closure
            return returned
        if self._decision is None:
            self.apply()
        # Once only: a step() that calls super().step() runs the hooks twice and wraps the closure
        # twice.
        shift, self._shift = self._shift, 0.0
        return returned + shift if isinstance(returned, Tensor | Real) else returned

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        decision, self._decision = self._decision, None
        if decision is None:
            return
        self._first_pass = decision if self._in_wrapper else None
        if self._in_wrapper:
            return
        self._steps += 1
        self._dropped = max(0, self._dropped - 1)
        if self._steps >= _INSPECTED_STEPS:
            self._inspection.end()
        self.count_step(decision, self._is_nonfinite, getattr(optimizer, "found_inf", None))

    # What would be silently wrong.

    def _drop(self) -> None:
        if not self._losses.is_empty:
            self._count_dropped()
        self._decision = self._param_with_grad = None
        self._losses.clear()

    def _count_dropped(self) -> None:
        self._dropped += 3
        if not self.per_microbatch and self._dropped >= 3 * _MAX_DROPPED:
            self._warn(messages.DROPPED)
