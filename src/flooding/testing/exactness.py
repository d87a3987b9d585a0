"""Find out what a training loop of your own floods: the step, each micro-batch, or each example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from flooding.functional import flood
from flooding.testing.rules import require

__all__ = ["Exactness", "check_exact", "measure_exactness"]

MicroBatch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
# Back-propagates one step, given as its micro-batches, and leaves its gradients on the model.
_Backward = Callable[[nn.Module, Loss, float, Sequence[MicroBatch]], None]

EXACT = "floods the step"
# Flooding the step must end so far from every other way, or nothing can be said.
_DISTINCT = 1e-3
_SGD = partial(torch.optim.SGD, lr=0.2, momentum=0.9)
_ADVICE = {
    "floods each micro-batch": (
        "Each micro-batch decides by its own loss. Use FloodStep: loss = flood_step(loss) before "
        "any division."
    ),
    "floods each example": (
        "Each example decides by its own loss (iFlood). Take the mean of the losses first."
    ),
    "does not flood": (
        "The loop is plain. Does the flooded loss, or FloodStep's optimiser, reach the step?"
    ),
    "floods each share of a micro-batch": (
        "The loss was divided by the number of micro-batches before it was flooded. Use FloodStep "
        "on the undivided loss."
    ),
    "floods by the loss divided by the number of micro-batches": (
        "FloodStep watched a loss that was divided already. Call it before the division."
    ),
    "floods by the sum of the micro-batches' losses": (
        "The losses were added up, and their sum compared with the level. Take their mean."
    ),
}
_UNKNOWN = (
    "None of the known ways. Does the loop use the optimiser and every micro-batch, the same level "
    "and loss, and clip as max_grad_norm says?"
)


@dataclass(frozen=True)
class Exactness:
    """How a training loop floods.

    Args:
        verdict: "floods the step", or what it floods instead; "unknown" if nothing matches.
        differences: For each way of flooding, the largest difference of any weight to a training
            that floods so.
        averages: Whether the gradients of the micro-batches are averaged, or else added up.
        tolerance: Up to this difference the trainings are the same.
    """

    verdict: str
    differences: dict[str, float]
    averages: bool
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Whether the loop floods the mean loss of the step."""
        return self.verdict == EXACT

    def __str__(self) -> str:
        """Show the verdict, what to do, and the differences."""
        lines = [f"The loop {self.verdict}."]
        if self.verdict == "unknown":
            lines = [_UNKNOWN]
        elif not self.is_exact:
            lines.append(_ADVICE[self.verdict])
        if not self.averages:
            lines.append("It adds up the gradients of its micro-batches and does not average them.")
        lines.append("Largest difference of a weight to a training that")
        lines += [f"  {name}: {value:.1e}" for name, value in self.differences.items()]
        return "\n".join(lines)


def _mean_loss(model: nn.Module, criterion: Loss, step: Sequence[MicroBatch]) -> Tensor:
    """Compute the mean loss of a whole step, in which micro-batches count alike."""
    return torch.stack([criterion(model(x), y) for x, y in step]).mean()


def _flood_step(
    model: nn.Module, criterion: Loss, level: float, step: Sequence[MicroBatch]
) -> None:
    flood(_mean_loss(model, criterion, step), level).backward()


def _flood_microbatches(
    model: nn.Module, criterion: Loss, level: float, step: Sequence[MicroBatch]
) -> None:
    for x, y in step:
        (flood(criterion(model(x), y), level) / len(step)).backward()


def _flood_examples(
    model: nn.Module, criterion: Loss, level: float, step: Sequence[MicroBatch]
) -> None:
    for x, y in step:
        losses = [
            criterion(model(one_x), one_y)
            for one_x, one_y in zip(x.split(1), y.split(1), strict=True)
        ]
        (flood(torch.stack(losses), level).mean() / len(step)).backward()


def _flood_nothing(
    model: nn.Module, criterion: Loss, level: float, step: Sequence[MicroBatch]
) -> None:
    del level
    _mean_loss(model, criterion, step).backward()


def _flood_shares(
    model: nn.Module, criterion: Loss, level: float, step: Sequence[MicroBatch]
) -> None:
    for x, y in step:
        flood(criterion(model(x), y) / len(step), level).backward()


def _flood_divided(
    model: nn.Module, criterion: Loss, level: float, step: Sequence[MicroBatch]
) -> None:
    k = len(step)
    (k * flood(_mean_loss(model, criterion, step) / k, level)).backward()


def _flood_sum(model: nn.Module, criterion: Loss, level: float, step: Sequence[MicroBatch]) -> None:
    k = len(step)
    (flood(k * _mean_loss(model, criterion, step), level) / k).backward()


_WAYS: dict[str, _Backward] = {
    EXACT: _flood_step,
    "floods each micro-batch": _flood_microbatches,
    "floods each example": _flood_examples,
    "does not flood": _flood_nothing,
    "floods each share of a micro-batch": _flood_shares,
    "floods by the loss divided by the number of micro-batches": _flood_divided,
    "floods by the sum of the micro-batches' losses": _flood_sum,
}
# Those that differ where a step is one micro-batch.
_WITHOUT_PARTS = (EXACT, "floods each example", "does not flood")


def _problem(steps: int, accumulate: int) -> tuple[nn.Module, list[MicroBatch]]:
    """Build a small network and noisy data in float64, four steps of which are an epoch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * accumulate * 8, 5, generator=generator, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    flip = torch.rand(len(y), generator=generator, dtype=torch.float32) < 0.2
    y = torch.where(flip, 1 - y, y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # Drawn in float32, whatever the default dtype is.
        first, last = (nn.Linear(*size, dtype=torch.float32) for size in ((5, 32), (32, 2)))
        model = nn.Sequential(first, nn.Tanh(), last).double()
    epoch = list(zip(x.split(8), y.split(8), strict=True))
    repeats = -(-steps // 4)
    return model, (epoch * repeats)[: steps * accumulate]


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@dataclass(frozen=True)
class _Reference:
    """Trains a copy of the model in each way, with one backward path and one optimiser."""

    model: nn.Module
    micro_batches: Sequence[MicroBatch]
    accumulate: int
    level: float
    criterion: Loss
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
    max_grad_norm: float | None

    def train(self, backward: _Backward, averages: bool) -> Tensor:
        """Train, and give the weights."""
        model = copy.deepcopy(self.model)
        optimizer = self.optimizer(model.parameters())
        for start in range(0, len(self.micro_batches), self.accumulate):
            step = self.micro_batches[start : start + self.accumulate]
            optimizer.zero_grad()
            backward(model, self.criterion, self.level, step)
            if not averages:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(len(step))
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
            optimizer.step()
        return _weights(model)

    def train_all(self, averages: bool) -> dict[str, Tensor]:
        """Train in every known way."""
        ways = _WAYS
        if self.accumulate == 1:
            # A micro-batch is the step, so several ways are the same.
            ways = {name: backward for name, backward in ways.items() if name in _WITHOUT_PARTS}
        return {name: self.train(backward, averages) for name, backward in ways.items()}


def measure_exactness(
    train: Callable[[nn.Module, torch.optim.Optimizer, list[MicroBatch]], object],
    level: float = 0.5,
    accumulate: int = 4,
    *,
    criterion: Loss = nn.functional.cross_entropy,
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = _SGD,
    max_grad_norm: float | None = None,
    steps: int = 40,
    tolerance: float = 1e-10,
) -> Exactness:
    """Find out what a training loop floods, by training beside it in every known way.

    The loop trains a small network in float64 on ``steps * accumulate`` micro-batches of 8 examples
    with 5 features and 2 classes. Slow and obvious loops train copies of the network with the same
    optimiser. The way of flooding that ends with the same weights is the answer.

    Args:
        train: Your loop, ``train(model, optimizer, micro_batches)``. It trains the model in place,
            once over the list of pairs (x, y), and takes a step after every ``accumulate`` of them.
        level: The level that your loop floods at.
        accumulate: Micro-batches in a step.
        criterion: The mean loss of your loop, ``criterion(output, y)``.
        optimizer: Builds the optimiser from the parameters, for your loop and for the others.
        max_grad_norm: The gradient norm to which your loop clips; None if it does not.
        steps: Optimiser steps.
        tolerance: Up to this difference of any weight two trainings are the same. Use 1e-5 for a
            loop that computes in float32.

    Returns:
        The answer; ``print`` it.

    Raises:
        ValueError: If flooding the step ends with the same weights as another way.

    Example:
        >>> def train(model, optimizer, micro_batches):
        ...     for i, (x, y) in enumerate(micro_batches, 1):
        ...         loss = flood(nn.functional.cross_entropy(model(x), y), 0.5)
        ...         (loss / 4).backward()
        ...         if i % 4 == 0:
        ...             optimizer.step()
        ...             optimizer.zero_grad()
        >>> measure_exactness(train).verdict
        'floods each micro-batch'
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    model, micro_batches = _problem(steps, accumulate)
    reference = _Reference(*(
        model,
        micro_batches,
        accumulate,
        level,
        criterion,
        optimizer,
        max_grad_norm,
    ))
    own = copy.deepcopy(model)
    train(own, optimizer(own.parameters()), micro_batches)
    return _compare(_weights(own).double(), reference, tolerance)


def _compare(weights: Tensor, reference: _Reference, tolerance: float) -> Exactness:
    """Find the way of flooding that ends with the same weights."""
    references = reference.train_all(averages=True)
    _check_distinct(references, reference.level)
    differences = _differences(weights, references)
    verdict = _nearest(differences, tolerance)
    if verdict is None and reference.accumulate > 1:
        # No way fits: the same with gradients that are added up.
        added_up = _differences(weights, reference.train_all(averages=False))
        verdict = _nearest(added_up, tolerance)
        if verdict is not None:
            return Exactness(verdict, added_up, False, tolerance)
    return Exactness(verdict or "unknown", differences, True, tolerance)


def _check_distinct(references: dict[str, Tensor], level: float) -> None:
    """Check that flooding the step ends with other weights than everything else."""
    for name, distance in _differences(references[EXACT], references).items():
        if name != EXACT and not distance > _DISTINCT:
            raise ValueError(
                f"a loop that {EXACT} must end apart from the others, but one that {name} ends "
                f"{distance:.0e} from it at level {level}. Choose a level that the loss crosses, "
                "such as 0.5 for cross-entropy, or more steps."
            )


def _differences(weights: Tensor, references: dict[str, Tensor]) -> dict[str, float]:
    differences = {}
    for name, reference in references.items():
        differences[name] = (weights - reference).abs().max().item()
    return differences


def _nearest(differences: dict[str, float], tolerance: float) -> str | None:
    """Give the way that is the same, if there is one."""
    name = min(differences, key=lambda name: differences[name])
    return name if differences[name] <= tolerance else None


def check_exact(
    train: Callable[[nn.Module, torch.optim.Optimizer, list[MicroBatch]], object],
    level: float = 0.5,
    accumulate: int = 4,
    **options: object,
) -> Exactness:
    """Check that a training loop floods the mean loss of the optimiser step.

    Args:
        train: Your loop, see :func:`measure_exactness`.
        level: The level that your loop floods at.
        accumulate: Micro-batches in a step.
        **options: Further options of :func:`measure_exactness`.

    Returns:
        The differences to the known ways of flooding.

    Raises:
        AssertionError: If it floods something else; the message says what, and what to do.

    Example:
        >>> from flooding import FloodStep
        >>> def train(model, optimizer, micro_batches):
        ...     flood_step = FloodStep(optimizer, 0.5)
        ...     for i, (x, y) in enumerate(micro_batches, 1):
        ...         loss = flood_step(nn.functional.cross_entropy(model(x), y))
        ...         (loss / 4).backward()
        ...         if i % 4 == 0:
        ...             optimizer.step()
        ...             optimizer.zero_grad()
        >>> check_exact(train).verdict
        'floods the step'
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    exactness = measure_exactness(train, level, accumulate, **options)  # type: ignore[arg-type]
    require(exactness.is_exact, str(exactness))
    return exactness
