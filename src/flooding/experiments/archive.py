"""Archives: Records in a compact file, kept beside the figures that were drawn from them.

Numbers at the last and best epoch are float32, curves float16: rounded by at most 2^-11 of the value, 2^-25 near zero,
and cut off at 65,504. Both are checked when a file is written. A Record is found by a hash of what describes its Run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from flooding.problem import Record, Run, describe

__all__ = ["Archive", "pack", "to_half"]

_LARGEST = float(np.finfo(np.float16).max)


class Archive:
    """Records in place of trainings: an ``evaluate`` that looks Runs up in a file.

    Args:
        path: A file that :func:`pack` wrote.

    Raises:
        ValueError: If the file is no archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with np.load(self.path, allow_pickle=False) as file:
                held = {name: file[name] for name in file.files}
            self._places = {str(name): place for place, name in enumerate(held.pop("runs"))}
            self._names = [str(name) for name in held.pop("finals_names")]
            self._finals, self._seconds = held.pop("finals"), held.pop("seconds")
            self.told = {"on": str(held.pop("on"))}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"an archive must be a file of flooding reproduce, got {path}: {error}.") from None
        self._curves = held

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up.

        Args:
            runs: The Runs.

        Returns:
            Their Records, with the curves that were kept.

        Raises:
            ValueError: If one of them is not in the file.
        """
        places = [self._places.get(name_of(run)) for run in runs]
        if None in places:
            missing = places.count(None)
            raise ValueError(
                f"{self.path} lacks {missing} of {len(runs)} runs: it was written by other code, or only a part of the "
                "experiment was trained. Run it without --from."
            )
        return [self._record(run, place) for run, place in zip(runs, places, strict=True) if place is not None]

    def _record(self, run: Run, place: int) -> Record:
        finals = dict(zip(self._names, self._finals[place].tolist(), strict=True))
        finals = {name: value for name, value in finals.items() if not np.isnan(value)}
        curves = {name: held[place, : run.epochs + 1].astype(np.float32) for name, held in self._curves.items()}
        told = {**self.told, "seconds": float(self._seconds[place])}
        return Record(run, {n: c for n, c in curves.items() if not np.isnan(c).all()}, {}, finals, "", "", told)


def pack(path: str | Path, records: Sequence[Record], keep: Collection[str], on: str) -> Path:
    """Write an archive, whole or not at all.

    Args:
        path: The file, ending in ``.npz``.
        records: Records with Runs that describe themselves; of equal ones the first is kept.
        keep: Curves to keep; those that a Record lacks are left out.
        on: What they were trained on, see :func:`flooding.experiments.machine`.

    Returns:
        The path.
    """
    by_name = {}
    for record in records:
        assert record.run is not None
        by_name.setdefault(name_of(record.run), record)
    kept = list(by_name.values())
    names = sorted({name for record in kept for name in record.finals})
    finals = [[record.finals.get(name, np.nan) for name in names] for record in kept]
    longest = max(len(curve) for record in kept for curve in record.curves.values())
    curves = {}
    for name in sorted(keep):
        curve = np.full((len(kept), longest), np.nan, np.float32)
        for place, record in enumerate(kept):
            if name in record.curves:
                curve[place, : len(record.curves[name])] = record.curves[name]
        curves[name] = to_half(curve)
    with io.BytesIO() as file:
        np.savez_compressed(
            file,
            runs=np.array(list(by_name)),
            finals_names=np.array(names),
            finals=np.array(finals, np.float32),
            seconds=np.array([record.circumstances.get("seconds", np.nan) for record in kept], np.float32),
            on=np.array(on),
            **curves,  # type: ignore[arg-type]
        )
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(file.getvalue())
        os.replace(part, path)
    return path


def to_half(curve: np.ndarray) -> np.ndarray:
    """Round to float16, and check that no value is further off than stated above.

    Args:
        curve: Values of any shape; NaN stays.

    Returns:
        The same shape in float16.
    """
    cut = np.clip(curve.astype(np.float64), -_LARGEST, _LARGEST)
    half = cut.astype(np.float16)
    off = np.abs(half.astype(np.float64) - cut)
    assert (np.isnan(cut) | (off <= 2.0**-11 * np.abs(cut) + 2.0**-25)).all(), "rounded by more than stated"
    return half


def name_of(run: Run) -> str:
    """Name a Run by what describes it, the data by its function and arguments."""
    return hashlib.sha256(json.dumps(describe(run), sort_keys=True).encode()).hexdigest()[:20]
