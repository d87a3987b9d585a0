"""Policy gradient: an agent picks the level of every epoch and learns from the validation
accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flooding.level_search.base import (
    LevelEstimate,
    SearchResult,
    Strategy,
    check_levels,
    make_result,
    tail_mean,
)
from flooding.levels import State, StepInfo
from flooding.training.record import Record
from flooding.training.rng import derive_seed
from flooding.training.run import Run

__all__ = ["Policy", "policy_gradient"]

_FEATURES = 5  # 1, training loss, training accuracy, validation loss, validation accuracy


@dataclass(frozen=True)
class Policy:
    """A level controller that draws each epoch's level from a softmax policy, and learns from what
    follows.

    With s = (1, training loss, training accuracy, validation loss, validation accuracy) of the last
    epoch, zeros before the first, the policy is pi(a | s) = softmax(W s)_a. After an epoch with
    validation accuracy r,

        W <- W + rate * (r - r_mean) * grad_W ln pi(a | s),

    with r_mean a running mean of r; then the next level is drawn. Where accuracy is not measured, r
    is minus the validation loss. NaN teaches nothing. Draws come from a table that depends on the
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
                "a policy chooses among numbers, got None. Give a level below every loss, such as 0."
            )
        object.__setattr__(self, "levels", check_levels(self.levels))
        if self.weights and [len(row) for row in self.weights] != [_FEATURES] * len(self.levels):
            got = [len(row) for row in self.weights]
            raise ValueError(
                f"weights must be {_FEATURES} for each of {len(self.levels)} levels, got rows of {got}."
            )
        if not (self.epochs >= 1 and self.rate >= 0):
            raise ValueError(
                f"epochs must be at least 1 and rate at least 0, got {self.epochs} and {self.rate}."
            )

    def init(self) -> State:
        """Draw the table and the first level."""
        shape = (self.epochs + 1, len(self.levels))
        uniform = torch.rand(
            shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
        )
        state = {
            "level": torch.tensor(0.0),
            "started": torch.tensor(True),
            "levels": torch.tensor(self.levels, dtype=torch.float32),
            # The largest of logits plus Gumbel noise is a draw from their softmax.
            "noise": -(-uniform.clamp_min(1e-300).log()).log().float() * (not self.greedy),
            "weights": torch.tensor(
                self.weights or [[0.0] * _FEATURES] * len(self.levels), dtype=torch.float32
            ),
            "features": torch.tensor([1.0] + [0.0] * (_FEATURES - 1)),
            "action": torch.tensor(0),
            "epoch": torch.tensor(0),
            "loss": torch.tensor(0.0),
            "steps": torch.tensor(0.0),
            "mean_reward": torch.tensor(math.nan),
        }
        return self._choose(state)

    def update(self, state: State, seen: StepInfo) -> State:
        """Add up the loss of a step; after an epoch learn from it and choose the next level."""
        if seen.loss is not None:
            loss = seen.loss.detach().to(state["loss"].dtype)
            return state | {"loss": state["loss"] + loss, "steps": state["steps"] + 1}
        shown = [seen.train_accuracy, seen.val_loss, seen.val_accuracy]
        accuracy, val_loss, val_accuracy = (_like(value, state["loss"]) for value in shown)
        state = self._learn(state, -val_loss if seen.val_accuracy is None else val_accuracy)
        loss = state["loss"] / state["steps"].clamp_min(1)
        parts = torch.broadcast_tensors(
            torch.ones_like(loss), loss, accuracy, val_loss, val_accuracy
        )
        features = (
            torch.stack(parts, -1).nan_to_num(0.0).clamp(-10, 10)
        )  # a loss that explodes must not swamp the rest
        nothing = {"loss": torch.zeros_like(loss), "steps": torch.zeros_like(loss)}
        return self._choose(state | nothing | {"features": features, "epoch": state["epoch"] + 1})

    def _learn(self, state: State, reward: Tensor) -> State:
        """Move the weights by the reward of the action in force."""
        choices = torch.arange(len(self.levels), device=reward.device)
        gradient = (choices == state["action"][..., None]).to(reward.dtype) - _logits(
            state
        ).softmax(-1)
        gradient = gradient[..., None] * state["features"][..., None, :]
        known = reward.isfinite()
        mean = torch.where(state["mean_reward"].isnan(), reward, state["mean_reward"])
        gain = torch.where(known, reward - mean, 0.0).clamp(
            -1, 1
        )  # an accuracy's lies there anyway
        return state | {
            "weights": state["weights"] + self.rate * gain[..., None, None] * gradient,
            "mean_reward": torch.where(known, mean + 0.1 * (reward - mean), state["mean_reward"]),
        }

    def _choose(self, state: State) -> State:
        """Draw the level of the epoch to come."""
        row = state["epoch"].clamp(max=self.epochs)[..., None, None]
        noise = torch.take_along_dim(state["noise"], row, -2).squeeze(-2)
        action = (_logits(state) + noise).argmax(-1)
        level = torch.take_along_dim(state["levels"], action[..., None], -1).squeeze(-1)
        return state | {"action": action, "level": level}


def policy_gradient(
    problem: Any,
    levels: Sequence[float] = tuple(n / 100 for n in range(11)),
    *,
    trainings: int = 20,
    rate: float = 0.3,
    seed: int = 0,
) -> Strategy:
    """Let an agent pick the level of every epoch and learn from the validation accuracy, over many
    trainings.

    State, actions and reward are the source's; its agent's form, number of trainings and learning
    rates are not known, so here it is the smallest: see :class:`Policy`. The agent learns after
    every epoch, while the network trains, and takes what it learnt to the next training; all but
    the last training draw their levels, the last one takes the most probable level and learns
    nothing. **This is the dearest search here**: ``trainings`` full trainings one after another,
    none in parallel, for an agent that sees one noisy reward an epoch. The source's verdict is that
    it is hard to train, at about 50 hours on CIFAR-10. Records need curves.

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
        The policy as the last training used it. The level suggested is the one it chose most often
        there, between the lowest and the highest it chose.

    Raises:
        ValueError: If ``trainings`` is below 2.
    """
    if trainings < 2:
        raise ValueError(
            f"trainings must be at least 2, got {trainings}. One learns and one uses what was learnt."
        )
    policy = Policy(tuple(levels), problem.max_epochs, rate=rate)
    for number in range(trainings - 1):
        policy = replace(policy, seed=derive_seed(seed, "policy", number))
        [record] = yield [Run(problem, policy, seed=seed)]
        policy = _learnt(policy, record)
    run = Run(problem, replace(policy, rate=0.0, greedy=True, seed=0), seed=seed)
    [record] = yield [run]
    chosen = np.array(policy.levels)[_actions(policy, record)]
    used, counts = np.unique(chosen, return_counts=True)
    level = float(used[counts.argmax()])
    if tail_mean(record)[0] == -math.inf:
        told = "the training with the last policy ended in a NaN validation loss: train without flooding"
        return SearchResult(
            "policy gradient",
            Run(problem, None, seed=seed),
            (LevelEstimate("policy gradient", None),),
            (told,),
        )
    note = f"chosen in {counts.max()} of {len(chosen)} epochs of the last training"
    # The epochs at this level alone tell whether it flooded anything.
    epochs = [0, *(np.flatnonzero(chosen == level) + 1)]
    curves = {name: curve[epochs] for name, curve in record.curves.items()}
    level = make_result(level, [replace(record, run=Run(problem, level, seed=seed), curves=curves)])
    suggestion = LevelEstimate("policy gradient", level, float(used[0]), float(used[-1]), note)
    return SearchResult("policy gradient", run, (suggestion,))


def _learnt(policy: Policy, record: Record) -> Policy:
    """Show a policy again what a training measured, and keep the weights it ends with."""
    names = ("train_accuracy", "val_loss", "val_accuracy")
    state = policy.init()
    for epoch, action in enumerate(_actions(policy, record), start=1):
        # What was really played: sums of losses in another order may round to another draw.
        state = policy.update(
            state | {"action": torch.tensor(action)}, StepInfo(_at(record, "train_loss", epoch))
        )
        state = policy.update(state, StepInfo(None, *(_at(record, name, epoch) for name in names)))
    return replace(policy, weights=tuple(tuple(row) for row in state["weights"].tolist()))


def _actions(policy: Policy, record: Record) -> list[int]:
    """Read off which level each epoch ran at."""
    return [
        int(np.abs(np.array(policy.levels) - level).argmin())
        for level in record.curves["level"][1:]
    ]


def _at(record: Record, name: str, epoch: int) -> Tensor | None:
    return torch.tensor(float(record.curves[name][epoch])) if name in record.curves else None


def _logits(state: State) -> Tensor:
    return (state["weights"] * state["features"][..., None, :]).sum(-1)


def _like(value: Tensor | float | None, like: Tensor) -> Tensor:
    """Bring a number or tensor to the dtype and device of another, without its graph; what is
    missing is 0.
    """
    return torch.as_tensor(
        0.0 if value is None else value, dtype=like.dtype, device=like.device
    ).detach()
