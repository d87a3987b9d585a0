"""A level that is chosen within the training itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from flooding.levels.base import State, StepInfo
from flooding.levels.fields import convert_to_counts, convert_to_floats, require, require_finite
from flooding.levels.state import initial_state, required_metric, to_level_dtype

__all__ = ["Auto"]

# Levels are compared on the same validation examples, so the error of a difference is smaller than
# that of two independent shares.
_PAIRED = 0.5
# Where the noise of a score is unknown: a share of what the training has gained.
_UNKNOWN_NOISE = 0.05


@dataclass(frozen=True)
class Auto:
    """Try shares of the lowest validation loss while the training runs, then hold the best.

    One training chooses its own level. With m the lowest validation loss so far, the level is

        b = floor + g * q * (m - floor)

    1. The share q falls evenly from ``start_share`` to ``stop_share`` over the first
       W = ``sweep`` * ``epochs`` epochs. The share q_t and the validation score s_t of each epoch
       are recorded, as running means over the last ``memory`` * ``epochs`` epochs.
    2. Then q is held at the mean of the recorded shares, each weighted by how likely it is to be as
       good as the best: ``exp(-((max(s) - s_t) / e)^2 / 2)``. m is followed to the end.

    g is the trust in the validation loss as a guide. Where m stays near the loss L of the first
    batch, the loss of a guess, it says nothing about the level, and validation accuracy may grow
    while the validation loss rises. With r = (m - floor) / (L - floor), g is 1 for r up to
    ``full_trust``, 0 for r from ``no_trust`` on, and linear in between. So the first epochs of
    every training are plain, and so is a whole training that learns little.

    The score is ``val_score`` where the training measures one, else the accuracy, else minus the
    validation loss. For an accuracy p, e is half its standard error, ``sqrt(p * (1 - p) / n_val)``,
    since all shares are judged on the same examples; with few validation examples all shares weigh
    alike. For other scores, or without ``n_val``, e is a twentieth of what the score has gained
    since the first epoch.

    Edges: a level that the training loss does not reach floods nothing. An epoch with a NaN
    validation loss or score is not recorded. The level is ``-inf``, plain training, while g is 0
    and until a validation loss is finite; where no epoch was recorded by the end of the sweep, the
    middle of the shares is held. A training that goes on beyond ``epochs`` keeps its share; one
    that ends within the sweep has not chosen any. A loss below the floor has no level, and the
    training is plain from then on.

    Args:
        epochs: Epochs of the training, at least 1. A :class:`flooding.Run` fills in those of its
            Problem; elsewhere they must be given.
        sweep: Share of the epochs in which q falls, in (0, 1).
        start_share: q at the beginning.
        stop_share: q at the end of the sweep, above 0 and below ``start_share``.
        full_trust: Ratio r up to which the validation loss is trusted.
        no_trust: Ratio r from which on nothing is flooded, above ``full_trust``.
        memory: Length of the running means, as a share of the epochs, in [0, 1).
        floor: Lowest loss there can be: 0 for cross-entropy and squared errors. Losses that go
            below 0, as a Gaussian log-likelihood does, need another.

    Raises:
        TypeError: If an argument is not a number of the right kind, or an epoch comes without a
            validation loss.
        ValueError: If a number is out of range, or the epochs are missing when training starts.

    Example:
        >>> from flooding.levels import simulate
        >>> start = StepInfo(torch.tensor(2.3))
        >>> epochs = [StepInfo(val_loss=1.0, val_accuracy=a, n_val=500) for a in (0.8, 0.9, 0.7)]
        >>> states = simulate(Auto(epochs=5, memory=0), [start, *epochs])
        >>> [round(state["level"].item(), 2) for state in states]
        [-inf, -inf, 0.75, 0.75, 0.75]
    """

    epochs: int | None = None
    sweep: float = 0.4
    start_share: float = 0.9
    stop_share: float = 0.6
    full_trust: float = 0.7
    no_trust: float = 0.85
    memory: float = 0.02
    floor: float = 0.0
    # A loop of the user's own must show it the ends of epochs.
    needs_epoch_end: ClassVar[bool] = True
    # Part of the key of a Run, which leaves defaults out: revision 1 had other defaults.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.epochs is not None:
            convert_to_counts(self, "epochs")
        names = ("sweep", "start_share", "stop_share", "full_trust", "no_trust", "memory", "floor")
        convert_to_floats(self, *names)
        require_finite(self, *names)
        fix = "The defaults suit most trainings."
        require(0 < self.sweep < 1, "sweep must lie in (0, 1)", self.sweep, fix)
        rule = f"stop_share must lie above 0 and below start_share = {self.start_share}"
        require(0 < self.stop_share < self.start_share, rule, self.stop_share, fix)
        rule = f"full_trust must lie above 0 and below no_trust = {self.no_trust}"
        require(0 < self.full_trust < self.no_trust, rule, self.full_trust, fix)
        require(0 <= self.memory < 1, "memory must lie in [0, 1)", self.memory, fix)

    @property
    def sweep_epochs(self) -> int:
        """Number of epochs in which the share falls, W.

        Raises:
            ValueError: If the number of epochs is missing.
        """
        if self.epochs is None:
            raise ValueError(
                "Auto needs the number of epochs, got None. Write Auto(epochs=100); a Run fills in "
                "those of its Problem."
            )
        return max(1, round(self.sweep * self.epochs))

    def with_epochs(self, epochs: int) -> Auto:
        """Fill in the number of epochs where it is missing.

        Args:
            epochs: Epochs of the training.

        Returns:
            A controller that has a number of epochs.
        """
        return self if self.epochs is not None else replace(self, epochs=epochs)

    def init(self) -> State:
        """Give the level ``-inf`` and an empty record of the sweep."""
        names = ("first_loss", "first_score", "held_share")
        # Infinite while unknown: unlike NaN, it is equal to itself.
        unknown = {name: torch.tensor(math.inf, dtype=torch.float32) for name in names}
        # Running means of the share and the score, and the weight of what they hold.
        names = ("mean_share", "mean_score", "mean_weight")
        means = {name: torch.tensor(0.0, dtype=torch.float32) for name in names}
        record = torch.full((self.sweep_epochs,), math.inf, dtype=torch.float32)
        return initial_state(
            -math.inf,
            epoch=torch.tensor(0),
            lowest=torch.tensor(math.inf, dtype=torch.float32),
            shares=record,
            scores=record.clone(),
            **unknown,
            **means,
        )

    def update(self, state: State, info: StepInfo) -> State:
        """Note the loss of the first step; after an epoch, record it and move the level."""
        level = state["level"]
        if info.loss is not None:
            loss = to_level_dtype(info.loss, level)
            return state | {"first_loss": _unless_known(state["first_loss"], loss)}

        # 1. The lowest validation loss. Not torch.minimum: it would let one NaN stay for ever.
        val_loss = required_metric(self, info, "val_loss", level)
        lowest = torch.where(val_loss < state["lowest"], val_loss, state["lowest"])
        # A loop without steps has shown no loss of a first batch.
        first_loss = _unless_known(state["first_loss"], val_loss)
        epoch = state["epoch"] + 1
        state = state | {"epoch": epoch, "lowest": lowest, "first_loss": first_loss}

        # 2. Record the share that was in force, and choose once when the sweep ends.
        state |= self._record(state, self._score(info, val_loss))
        chooses = (epoch >= self.sweep_epochs) & state["held_share"].isinf()
        held_share = torch.where(chooses, self._choose(state, info), state["held_share"])

        # 3. The level of the next epoch.
        share = torch.where(held_share.isinf(), self._falling_share(epoch), held_share)
        ratio = (lowest - self.floor) / (first_loss - self.floor)
        trust = (self.no_trust - ratio) / (self.no_trust - self.full_trust)
        next_level = self.floor + trust.clamp(0, 1) * share * (lowest - self.floor)
        # No trust, a loss at the floor or below it, or no finite loss yet: plain training.
        is_above = (lowest > self.floor) & (first_loss > self.floor)
        is_level = (trust > 0) & (ratio > 0) & is_above & next_level.isfinite()
        return state | {
            "level": torch.where(is_level, next_level, -math.inf).to(level.dtype),
            "started": state["started"] | is_level,
            "held_share": held_share.to(level.dtype),
        }

    def weigh(self, state: State, info: StepInfo) -> Tensor:
        """Weigh the recorded shares by how likely each is to be as good as the best.

        Args:
            state: A state.
            info: The end of an epoch, for the number of validation examples.

        Returns:
            Weights, float64, one for each epoch of the sweep; 0 for what was not recorded.
        """
        is_known = state["scores"].isfinite()
        # In float64, so that the order of a sum does not show.
        scores = torch.where(is_known, state["scores"], -math.inf).double()
        best = scores.amax(-1)
        noise = _noise(best, state["first_score"], info)
        z = (best.unsqueeze(-1) - scores) / noise.unsqueeze(-1)
        return torch.where(is_known, torch.exp(-z.square() / 2), 0.0)

    def _falling_share(self, epoch: Tensor) -> Tensor:
        """Give the share that is in force after an epoch of the sweep."""
        progress = (epoch / self.sweep_epochs).clamp(max=1.0)
        return self.start_share * (1 - progress) + self.stop_share * progress

    def _record(self, state: State, score: Tensor) -> State:
        """Add an epoch to the running means, and those to the record of the sweep."""
        level, epoch = state["level"], state["epoch"]
        # An epoch without a level or a score is left out.
        is_valid = level.isfinite() & score.isfinite()
        decay = 0.0 if self.memory == 0 else math.exp(-1 / (self.memory * (self.epochs or 1)))
        values = {
            "share": self._falling_share(epoch - 1),
            "score": score,
            "weight": torch.ones_like(level),
        }
        new = {"first_score": _unless_known(state["first_score"], score)}
        for name, value in values.items():
            mean = state[f"mean_{name}"]
            new[f"mean_{name}"] = torch.where(is_valid, decay * mean + (1 - decay) * value, mean)
        # Element-wise also for stacked states: the epochs are the last axis.
        epochs = torch.arange(1, self.sweep_epochs + 1, device=level.device)
        is_now = (epochs == epoch.unsqueeze(-1)) & is_valid.unsqueeze(-1)
        for name in ("share", "score"):
            # The weight makes up for the zeros with which the means begin.
            mean = (new[f"mean_{name}"] / new["mean_weight"]).unsqueeze(-1)
            new[f"{name}s"] = torch.where(is_now, mean, state[f"{name}s"])
        return new

    def _choose(self, state: State, info: StepInfo) -> Tensor:
        """Average the recorded shares by their weights; their middle where nothing is recorded."""
        weights = self.weigh(state, info)
        # A NaN would survive a weight of 0.
        shares = torch.where(weights > 0, state["shares"], 0.0).double()
        mean = (weights * shares).sum(-1) / weights.sum(-1)
        middle = (self.start_share + self.stop_share) / 2
        return torch.where(mean.isnan(), middle, mean).to(state["level"].dtype)

    def _score(self, info: StepInfo, val_loss: Tensor) -> Tensor:
        """Give the number by which an epoch is judged, NaN where its validation loss is."""
        score = -val_loss
        for value in (info.val_accuracy, info.val_score):
            if value is not None:
                score = to_level_dtype(value, val_loss)
        return torch.where(val_loss.isnan(), val_loss, score)


def _unless_known(known: Tensor, value: Tensor) -> Tensor:
    """Keep a number that is known, else take a finite value."""
    return torch.where(known.isinf() & value.isfinite(), value, known)


def _noise(best: Tensor, first: Tensor, info: StepInfo) -> Tensor:
    """Give the noise of a difference of scores, above 0."""
    tiny = torch.finfo(torch.float32).tiny
    if info.val_score is None and info.val_accuracy is not None and info.n_val is not None:
        n_val = to_level_dtype(info.n_val, best)
        # One success and one failure more: the error of an accuracy of 1 is not 0.
        share = (n_val * best + 1) / (n_val + 2)
        return (_PAIRED * torch.sqrt(share * (1 - share) / n_val)).clamp(min=tiny)
    return (_UNKNOWN_NOISE * (best - first.double())).clamp(min=tiny)
