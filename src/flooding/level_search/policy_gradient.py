"""Policy gradient: an agent picks each epoch's level and learns from the validation accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flooding.level_search.level_stats import check_levels, effective_level, tail_key
from flooding.level_search.protocol import SearchableProblem, Strategy, make_run
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.levels import State, StepInfo
from flooding.training.record import Record
from flooding.training.rng import derive_seed

__all__ = ["Policy", "policy_gradient"]

_FEATURES = 5  # 1, training loss, training accuracy, validation loss, validation accuracy


@dataclass(frozen=True)
class Policy:
    """A level controller that draws each epoch's level from a softmax policy and learns from it.

    With s = (1, training loss, training accuracy, validation loss, validation accuracy) of the last
    epoch, zeros before the first, the policy is pi(a | s) = softmax(W s)_a. After an epoch with
    validation accuracy r,

        W <- W + rate * (r - r_mean) * grad_W ln pi(a | s),

    with r_mean a running mean of r; then the next level is drawn. Where accuracy is not measured, r
    is minus the validation loss. NaN changes nothing. Draws come from a table that depends on the
    seed alone.

    Args:
        levels: Levels to choose from, in the unit of the loss.
        epochs: Epochs of the training, at least 1; later ones repeat the last draw.
        weights: W, a row of five for each level; empty for zeros, which choose each level equally
            often.
        rate: Learning rate, at least 0; 0 keeps the policy as it is.
        greedy: Whether to take the most probable level instead of drawing.
        seed: Seed of the draws.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Williams, *Simple statistical gradient-following algorithms for connectionist reinforcement
        learning*, 1992.
    """

    levels: tuple[float, ...]
    epochs: int
    weights: tuple[tuple[float, ...], ...] = ()
    rate: float = 0.3
    greedy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if None in self.levels:
            raise ValueError(
                "a policy chooses among numbers, got None. "
                "Give a level below every loss, such as 0."
            )
        object.__setattr__(self, "levels", check_levels(self.levels))
        # A row of weights for each level, or none at all.
        lengths = [len(row) for row in self.weights]
        if self.weights and lengths != [_FEATURES] * len(self.levels):
            raise ValueError(
                f"weights must be {_FEATURES} for each of {len(self.levels)} levels, "
                f"got rows of {lengths}."
            )
        if not (self.epochs >= 1 and self.rate >= 0):
            raise ValueError(
                f"epochs must be at least 1 and rate at least 0, got {self.epochs} and {self.rate}."
            )

    def init(self) -> State:
        """Draw the table of noise and the first level."""
        shape = (self.epochs + 1, len(self.levels))
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        # The largest of logits plus Gumbel noise is a draw from their softmax.
        gumbel = -(-uniform.clamp_min(1e-300).log()).log().float()
        weights = self.weights or [[0.0] * _FEATURES] * len(self.levels)
        state = {
            "level": torch.tensor(0.0),
            "started": torch.tensor(True),
            "levels": torch.tensor(self.levels, dtype=torch.float32),
            "noise": gumbel * (not self.greedy),
            "weights": torch.tensor(weights, dtype=torch.float32),
            "features": torch.tensor([1.0] + [0.0] * (_FEATURES - 1)),
            "action": torch.tensor(0),
            "epoch": torch.tensor(0),
            "loss": torch.tensor(0.0),
            "steps": torch.tensor(0.0),
            "mean_reward": torch.tensor(math.nan),
        }
        return self._choose(state)

    def update(self, state: State, info: StepInfo) -> State:
        """Add up the loss of a step; after an epoch learn from it and choose the next level."""
        if info.loss is not None:
            # Within an epoch the loss is summed: its mean is a feature of the next draw.
            loss = info.loss.detach().to(state["loss"].dtype)
            return state | {"loss": state["loss"] + loss, "steps": state["steps"] + 1}
        # The end of an epoch: learn from the action in force.
        accuracy = _convert_like(info.train_accuracy, state["loss"])
        val_loss = _convert_like(info.val_loss, state["loss"])
        val_accuracy = _convert_like(info.val_accuracy, state["loss"])
        state = self._learn(state, -val_loss if info.val_accuracy is None else val_accuracy)
        # Describe the epoch by its features, start new sums, and choose the next level.
        loss = state["loss"] / state["steps"].clamp_min(1)
        features = torch.broadcast_tensors(
            torch.ones_like(loss), loss, accuracy, val_loss, val_accuracy
        )
        next_epoch = {
            # A loss that explodes must not swamp the other features.
            "features": torch.stack(features, -1).nan_to_num(0.0).clamp(-10, 10),
            "epoch": state["epoch"] + 1,
            "loss": torch.zeros_like(loss),
            "steps": torch.zeros_like(loss),
        }
        return self._choose(state | next_epoch)

    def _learn(self, state: State, reward: Tensor) -> State:
        """Update the weights by the reward of the action in force."""
        # The gradient of ln pi(a | s) is (one_hot(a) - pi) times the features.
        actions = torch.arange(len(self.levels), device=reward.device)
        one_hot = (actions == state["action"][..., None]).to(reward.dtype)
        gradient = one_hot - _logits(state).softmax(-1)
        gradient = gradient[..., None] * state["features"][..., None, :]
        # A reward that is not finite changes nothing; the first one is its own mean.
        is_finite = reward.isfinite()
        mean = torch.where(state["mean_reward"].isnan(), reward, state["mean_reward"])
        # An accuracy lies within 1 of its mean anyway; a loss need not.
        advantage = torch.where(is_finite, reward - mean, 0.0).clamp(-1, 1)
        next_mean = mean + 0.1 * (reward - mean)
        return state | {
            "weights": state["weights"] + self.rate * advantage[..., None, None] * gradient,
            "mean_reward": torch.where(is_finite, next_mean, state["mean_reward"]),
        }

    def _choose(self, state: State) -> State:
        """Draw the level of the epoch to come."""
        # Leading axes may be those of several runs: count the axes from the last.
        row = state["epoch"].clamp(max=self.epochs)[..., None, None]
        noise = torch.take_along_dim(state["noise"], row, -2).squeeze(-2)
        action = (_logits(state) + noise).argmax(-1)
        level = torch.take_along_dim(state["levels"], action[..., None], -1).squeeze(-1)
        return state | {"action": action, "level": level}


def policy_gradient(
    problem: SearchableProblem,
    levels: Sequence[float] = tuple(n / 100 for n in range(11)),
    *,
    trainings: int = 20,
    rate: float = 0.3,
    seed: int = 0,
) -> Strategy:
    """Let an agent pick the level of every epoch and learn from the validation accuracy.

    State, actions and reward are the source's. The form of its agent, the number of trainings and
    the learning rates are not known, so this is the smallest agent: see :class:`Policy`. It learns
    after every epoch, while the network trains, and keeps its weights for the next training. All
    trainings but the last draw their levels; the last one takes the most probable level and learns
    nothing. **This is the most expensive search here**: ``trainings`` full trainings one after
    another, none in parallel, for an agent that sees one noisy reward an epoch. The source calls it
    hard to train, at about 50 hours on CIFAR-10. Records need curves.

    Args:
        problem: The Problem.
        levels: Levels to choose from, in the unit of the loss; 0 is plain training for a loss that
            cannot be negative. Another loss needs levels of its own: one below all its values is
            plain training.
        trainings: Trainings in all, at least 2.
        rate: Learning rate of the agent.
        seed: Seed of the trainings and of the draws.

    Yields:
        Lists of one Run each.

    Returns:
        The policy as the last training used it. The estimate is the level it chose most often
        there, between the lowest and the highest it chose.

    Raises:
        ValueError: If ``trainings`` is below 2.
    """
    if trainings < 2:
        raise ValueError(
            f"trainings must be at least 2, got {trainings}. "
            "One learns and one uses what was learnt."
        )
    # All trainings but the last one draw their levels; each continues with the weights of the one
    # before.
    policy = Policy(tuple(levels), problem.max_epochs, rate=rate)
    for number in range(trainings - 1):
        policy = replace(policy, seed=derive_seed(seed, "policy", number))
        [record] = yield [make_run(problem, policy, seed=seed)]
        policy = _trained_policy(policy, record)
    # The last one takes the most probable level of each epoch.
    greedy = replace(policy, rate=0.0, greedy=True, seed=0)
    run = make_run(problem, greedy, seed=seed)
    [record] = yield [run]
    if tail_key(record)[0] == -math.inf:
        warning = (
            "the training with the last policy ended in a NaN validation loss: "
            "train without flooding"
        )
        plain_run = make_run(problem, None, seed=seed)
        no_level = LevelEstimate("policy gradient", None)
        return SearchResult("policy gradient", plain_run, (no_level,), (warning,))

    # The level that was chosen most often there is the estimate.
    chosen = np.array(policy.levels)[_actions(policy, record)]
    values, counts = np.unique(chosen, return_counts=True)
    level = float(values[counts.argmax()])
    note = f"chosen in {counts.max()} of {len(chosen)} epochs of the last training"
    # The epochs at this level alone tell whether it flooded anything.
    epochs = [0, *(np.flatnonzero(chosen == level) + 1)]
    curves = {name: curve[epochs] for name, curve in record.curves.items()}
    constant = replace(record, run=make_run(problem, level, seed=seed), curves=curves)
    selected = effective_level(level, [constant])
    low, high = float(values[0]), float(values[-1])
    estimate = LevelEstimate("policy gradient", selected, low, high, note)
    return SearchResult("policy gradient", run, (estimate,))


def _trained_policy(policy: Policy, record: Record) -> Policy:
    """Show a policy again what a training measured, and return it with the weights it ends with."""
    state = policy.init()
    for epoch, action in enumerate(_actions(policy, record), start=1):
        # The level that was really in force: sums of losses in another order may round to another
        # draw.
        state["action"] = torch.tensor(action)
        # One step with the mean loss of the epoch gives the features that all its steps gave.
        state = policy.update(state, StepInfo(loss=_value_at(record, "train_loss", epoch)))
        end_of_epoch = StepInfo(
            train_accuracy=_value_at(record, "train_accuracy", epoch),
            val_loss=_value_at(record, "val_loss", epoch),
            val_accuracy=_value_at(record, "val_accuracy", epoch),
        )
        state = policy.update(state, end_of_epoch)
    # As tuples, like the field: a policy is a part of a Run's configuration.
    weights = tuple(tuple(row) for row in state["weights"].tolist())
    return replace(policy, weights=weights)


def _actions(policy: Policy, record: Record) -> list[int]:
    """Find the index of the level that was in force in each epoch."""
    levels = np.array(policy.levels)
    return [int(np.abs(levels - level).argmin()) for level in record.curves["level"][1:]]


def _value_at(record: Record, name: str, epoch: int) -> Tensor | None:
    if name not in record.curves:
        return None
    return torch.tensor(float(record.curves[name][epoch]))


def _logits(state: State) -> Tensor:
    """Compute W s: one number for each level."""
    return (state["weights"] * state["features"][..., None, :]).sum(-1)


def _convert_like(value: Tensor | float | None, reference: Tensor) -> Tensor:
    """Convert a number or tensor to the dtype and device of another, detached; None becomes 0."""
    number = 0.0 if value is None else value
    return torch.as_tensor(number, dtype=reference.dtype, device=reference.device).detach()
