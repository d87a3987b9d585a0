"""What a training measured, and how results on the validation split are ordered."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from flooding import npz
from flooding.averaging import Monitor
from flooding.text import join_parts
from flooding.training.problem import Problem
from flooding.training.run import Run

__all__ = [
    "AVERAGE",
    "Record",
    "level_order",
    "monitor_prefix",
    "network_prefix",
    "select_best",
    "selection_key",
    "validation_key",
]

AVERAGE = "average."  # begins the names of what the averaged weights measured

# What tells one Record from another at a glance, as far as it was measured.
_SHOWN_METRICS = ("epochs", "last.val_score", "last.val_accuracy", "last.val_loss")


@dataclass(frozen=True, eq=False)
class Record:
    """The measurements of a Run, and apart from them its metadata.

    Args:
        run: The Run, or None in a Record read without one.
        curves: Measured. One float32 value per epoch from 0 (before training) on; NaN where nothing
            was measured. ``train_loss`` and ``train_accuracy`` are means over the batches of the
            epoch as they were trained on, in training mode, without flooding; ``flooded`` is the
            share of steps strictly below the level. ``average.val_loss`` and the like are those of
            the averaged weights, where the Problem has an ``averaging``.
        arrays: Measured. ``best.reliability`` and ``last.reliability``: mean confidence, accuracy
            and count of 15 bins on the noisy test labels, ``[3, 15]``, and ``*.reliability_clean``;
            ``*.probe``: probabilities on the problem's ``probe_inputs``, ``[inputs, classes]``.
        metrics: Measured. Numbers named ``best.*`` (the epoch with the best validation score) and
            ``last.*``; ``average.best.*`` and ``average.last.*`` for averaged weights, with a best
            epoch of their own.
        weights_sha256: Measured. sha256 of the final weights and buffers.
        fingerprint: Measured. sha256 of the parameter shapes and the first batch loss.
        metadata: Time, host, versions and the number of validation examples; never compared.
    """

    run: Run | None
    curves: Mapping[str, np.ndarray] = field(repr=False)
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)
    weights_sha256: str
    fingerprint: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        seed = None if self.run is None else self.run.seed
        level = None if self.level is None else _round(self.level)
        parts: dict[str, object] = {"level": level, "seed": seed}
        for name in _SHOWN_METRICS:
            if name in self.metrics:
                parts[name.removeprefix("last.")] = _round(self.metrics[name])
        return f"Record({join_parts(parts)})"

    @property
    def level(self) -> float | None:
        """The level in the unit of the loss; None without flooding.

        That of the Run if it is a number, else the mean one in force in the last epoch. 0.0 is a
        level: a loss that may be negative is flooded at 0.
        """
        level = None if self.run is None else self.run.level
        if not isinstance(level, (int, float)):
            level = self.metrics.get("last.level", math.nan)
        return float(level) if math.isfinite(level) else None

    def pack(self) -> tuple[bytes, str]:
        """Pack the measurements for storage.

        Returns:
            Curves and arrays as compressed bytes, the rest as JSON; NaN is null there, infinities
            are "inf" and "-inf".
        """
        with io.BytesIO() as file:
            np.savez_compressed(file, **self.curves, **self.arrays)  # type: ignore[arg-type]
            return file.getvalue(), self._numbers_as_json()

    def _numbers_as_json(self) -> str:
        """Write the measurements that are no arrays."""
        # JSON has neither NaN nor infinities.
        metrics: dict[str, float | str | None] = {}
        for name, value in self.metrics.items():
            if math.isfinite(value):
                metrics[name] = value
            else:
                metrics[name] = None if math.isnan(value) else str(value)
        # The names in stored Records stay those of flooding 0.1.0.
        return json.dumps({
            "finals": metrics,
            "weights": self.weights_sha256,
            "fingerprint": self.fingerprint,
        })

    @staticmethod
    def unpack(run: Run | None, arrays: bytes, numbers: str, metadata: str) -> Record:
        """Restore a Record from the parts that :meth:`pack` gave.

        Args:
            run: Its Run, or None.
            arrays: Curves and arrays.
            numbers: The other measurements, as JSON.
            metadata: The metadata, as JSON.

        Returns:
            The Record.

        Raises:
            ValueError: If the parts are not what :meth:`pack` wrote.
        """
        # A damaged row may hold anything, so every part is checked before it is used.
        content = npz.read(arrays)
        try:
            stored, about = json.loads(numbers), json.loads(metadata)
            weights_sha256, fingerprint = stored["weights"], stored["fingerprint"]
            metrics = {}
            for name, value in stored["finals"].items():
                metrics[name] = math.nan if value is None else float(value)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"its numbers cannot be read: {error!r}") from None
        if not isinstance(weights_sha256, str) or not isinstance(fingerprint, str):
            raise ValueError("weights or fingerprint are no text")
        if not isinstance(about, dict):
            raise ValueError("metadata is no object")
        # Only arrays have a dot in their name, apart from the prefix of averaged weights.
        array_names = {name for name in content if "." in name.removeprefix(AVERAGE)}
        curves = {name: values for name, values in content.items() if name not in array_names}
        others = {name: values for name, values in content.items() if name in array_names}
        return Record(run, curves, others, metrics, weights_sha256, fingerprint, about)

    @property
    def content_hash(self) -> str:
        """Hash of all measurements; equal for bit-identical trainings."""
        # Sorted by name, since the order of measurement is no part of the result.
        digest = hashlib.sha256(self._numbers_as_json().encode())
        for name, values in sorted({**self.curves, **self.arrays}.items()):
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def _round(value: float) -> float:
    """Round to four digits."""
    return float(f"{value:.4g}")


def selection_key(loss: float, accuracy: float | None = None) -> tuple[float, float]:
    """Give a key that orders validation results: the larger key is the better result.

    Higher accuracy first, where there is one, then lower loss. NaN is worse than everything.
    Further ties go to the earlier epoch or the smaller level: compare with ``>`` in that order.

    Args:
        loss: Validation loss.
        accuracy: Validation accuracy or another score of which more is better, or None where there
            is none.

    Returns:
        A tuple to compare.

    Example:
        >>> selection_key(0.4, 0.9) > selection_key(0.1, 0.8)
        True
        >>> selection_key(0.4, 0.9) > selection_key(0.5, 0.9)
        True
    """
    # NaN compares as neither larger nor smaller: give it the lowest key.
    if math.isnan(loss) or (accuracy is not None and math.isnan(accuracy)):
        return (-math.inf, -math.inf)
    return (0.0 if accuracy is None else accuracy, -loss)


def validation_key(
    values: Mapping[str, float], problem: Problem | None = None, prefix: str = ""
) -> tuple[float, float]:
    """Give the key of a validation result: by the problem's score, else accuracy, else loss.

    Args:
        values: Measured numbers by name.
        problem: Where they were measured; None has no score of its own.
        prefix: Prefix of the names, such as "last.".

    Returns:
        A tuple to compare, see :func:`selection_key`.
    """
    loss, accuracy = values[f"{prefix}val_loss"], values.get(f"{prefix}val_accuracy")
    score = getattr(problem, "score", None)  # a strategy's own problem may have none
    if score is None:
        return selection_key(loss, accuracy)
    sign = 1 if score.greater_is_better else -1
    return selection_key(loss, sign * values[f"{prefix}val_score"])


def network_prefix(network: Monitor) -> str:
    """Give the prefix of what a network, or the average of its weights, measured.

    Args:
        network: Which of them.

    Returns:
        "average." for the average, else nothing.
    """
    return AVERAGE if network == "average" else ""


def monitor_prefix(problem: object) -> str:
    """Give the prefix of the validation results that controllers see and searches judge by.

    Args:
        problem: A Problem, or what stands for one in a search; None has no averaging.

    Returns:
        "average." where the Problem's averaging says so, else nothing.
    """
    averaging = getattr(problem, "averaging", None)  # a strategy's own problem may have none
    return "" if averaging is None else network_prefix(averaging.monitor)


def level_order(level: float | None) -> float:
    """Give a key that orders levels: no flooding comes before every number.

    Args:
        level: A level, or None for no flooding.

    Returns:
        A number to sort by.

    Example:
        >>> sorted([0.1, 0.0, None, -0.5], key=level_order)
        [None, -0.5, 0.0, 0.1]
    """
    return -math.inf if level is None else level


def select_best(
    records: Iterable[Record], at: Literal["best", "last"], network: Monitor | None = None
) -> Record:
    """Select the Record with the best validation result, on the labels the user has.

    Ties go to the lower validation loss, then to the smaller level; no flooding comes first.

    Args:
        records: Records that differ in their level alone, at least one.
        at: The epoch to judge: each Record's last, or its best (early stopping).
        network: Whose validation results decide: those of the network or of its average. None is
            as the Problem's averaging says.

    Returns:
        One of the Records.

    Raises:
        ValueError: If there are no Records.
    """
    # `max` takes the first of equal keys, so the smaller level goes first.
    ordered = sorted(records, key=lambda record: level_order(record.level))
    if not ordered:
        raise ValueError("records must hold at least one Record, got none.")

    def key(record: Record) -> tuple[float, float]:
        problem = None if record.run is None else record.run.problem
        prefix = monitor_prefix(problem) if network is None else network_prefix(network)
        return validation_key(record.metrics, problem, f"{prefix}{at}.")

    return max(ordered, key=key)
