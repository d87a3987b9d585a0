"""Archives: Records in a compact file, kept beside the figures that were drawn from them.

Numbers at the last and best epoch are exact. So are curves where they are asked for, else they are
float16: rounded by at most 2^-11 of the value, 2^-25 near zero, and finite ones cut off at 65,504,
which is checked when a file is written. A Record is found by a hash of what describes its Run. A
digest of everything lies in the file; those of flooding 0.1.0 have none, and are checked for what
they must hold.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flooding import npz
from flooding.report.document import write
from flooding.training.config import to_config
from flooding.training.record import Record
from flooding.training.run import Run

__all__ = ["Archive", "pack", "run_id", "to_half", "with_fallback"]

_LARGEST = float(np.finfo(np.float16).max)


class Archive:
    """Records in place of trainings: an ``evaluate`` that looks Runs up in a file.

    Args:
        path: A file that :func:`pack` wrote.

    Attributes:
        seeds: Seeds of its Runs, smallest first.

    Raises:
        ValueError: If the file is no archive, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            held = npz.read(self.path)
            _check(held)
        except ValueError as error:
            raise ValueError(
                f"an archive must be a file of flooding reproduce, got {path}: {error}. Name another, or write "
                "it again."
            ) from None
        self._places = {str(name): place for place, name in enumerate(held["runs"])}
        self._names = [str(name) for name in held["finals_names"]]
        self._finals, self._seconds, self._on = held["finals"], held["seconds"], held["on"].tolist()
        self.seeds = tuple(sorted(set(held["seeds"].tolist())))
        # Every kind of curve lies in one row, with its ends.
        self._curves = {
            name.removeprefix("curve/"): (values, np.concatenate([[0], held[_ends(name)]]))
            for name, values in held.items()
            if name.startswith("curve/")
        }

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, run: Run) -> bool:
        return run_id(run) in self._places

    def __call__(self, runs: Sequence[Run]) -> list[Record]:
        """Look Runs up.

        Args:
            runs: The Runs.

        Returns:
            Their Records, with the curves that were kept.

        Raises:
            ValueError: If one of them is not in the file.
        """
        places = [self._places.get(run_id(run)) for run in runs]
        if None in places:
            missing = places.count(None)
            raise ValueError(
                f"{self.path} lacks {missing} of {len(runs)} runs: it was written by other code, or only a part of the "
                "experiment was trained. Add --more, which trains them, or run it without --from."
            )
        return [
            self._record(run, place)
            for run, place in zip(runs, places, strict=True)
            if place is not None
        ]

    def _record(self, run: Run, place: int) -> Record:
        finals = dict(zip(self._names, self._finals[place].tolist(), strict=True))
        curves = {}
        for name, (values, ends) in self._curves.items():
            if ends[place] < ends[place + 1]:
                curves[name.partition("/")[0]] = values[ends[place] : ends[place + 1]].astype(
                    np.float32
                )
        told = {"seconds": float(self._seconds[place]), "on": self._on[place]}
        return Record(
            run, curves, {}, {n: v for n, v in finals.items() if not np.isnan(v)}, "", "", told
        )


def pack(
    path: str | Path,
    records: Sequence[Record],
    keep: Collection[str],
    on: str,
    exact: Callable[[Run], bool] = lambda run: False,  # noqa: ARG005
) -> Path:
    """Write an archive, whole or not at all.

    Args:
        path: The file, ending in ``.npz``.
        records: Records with Runs that describe themselves; of equal ones the first is kept.
        keep: Curves to keep; a Record may lack some.
        on: What they were trained on, see :func:`flooding.experiments.machine`, where they do not
            say it themselves.
        exact: Tells whose curves to keep in float32: those on which a search decides what to ask
            next.

    Returns:
        The path.
    """
    by_name: dict[str, Record] = {}
    for record in records:
        assert record.run is not None
        by_name.setdefault(run_id(record.run), record)
    kept = list(by_name.values())
    names = sorted({name for record in kept for name in record.metrics})
    wide = [record.run is not None and exact(record.run) for record in kept]
    packed = {
        "runs": np.array(list(by_name)),
        "finals_names": np.array(names, dtype=str),
        "finals": np.array(
            [[r.metrics.get(name, np.nan) for name in names] for r in kept], np.float64
        ),
        "seconds": np.array([r.metadata.get("seconds", np.nan) for r in kept], np.float32),
        "seeds": np.array([record.run.seed for record in kept if record.run is not None]),
        "on": np.array([str(r.metadata.get("on", on)) for r in kept]),
    }
    for name in sorted(keep):
        for kind in {False, True} & set(wide):
            curves = [
                r.curves.get(name, _NONE) if w == kind else _NONE
                for r, w in zip(kept, wide, strict=True)
            ]
            label, row = f"{name}/{'float32' if kind else 'float16'}", np.concatenate(curves)
            if len(row):
                packed[f"curve/{label}"] = row if kind else to_half(row)
                packed[f"ends/{label}"] = np.cumsum([len(curve) for curve in curves])
    packed["digest"] = np.array(_digest(packed))
    with io.BytesIO() as file:
        np.savez_compressed(file, **packed)  # type: ignore[arg-type]
        return write(Path(path), file.getvalue())


_NONE = np.empty(0, np.float32)
_KINDS = {
    "runs": "U",
    "finals_names": "U",
    "finals": "f",
    "seconds": "f",
    "seeds": "iu",
    "on": "U",
}  # of NumPy's dtypes


def _check(held: Mapping[str, np.ndarray]) -> None:
    """Check an archive's digest, and what its arrays are: a ValueError says what is wrong."""
    curves = {name for name in held if name.startswith("curve/")}
    if missing := sorted(({*_KINDS} | set(map(_ends, curves))) - set(held)):
        raise ValueError(f"it lacks {missing[0]}")
    if odd := sorted(set(held) - {*_KINDS, *curves, *map(_ends, curves), "digest"}):
        raise ValueError(f"it holds {odd[0][:100]}, which is unknown")
    if "digest" in held and str(held["digest"]) != _digest(held):
        raise ValueError("it is damaged: its digest differs")
    count, names = len(held["seeds"].ravel()), len(held["finals_names"].ravel())
    shapes = {**dict.fromkeys(_KINDS, (count,)), "finals_names": (names,), "finals": (count, names)}
    for name, kinds in _KINDS.items():
        if held[name].shape != shapes[name] or held[name].dtype.kind not in kinds:
            raise ValueError(
                f"{name} is of another shape or type: {held[name].shape} of {held[name].dtype}"
            )
    for name in ("runs", "finals_names"):
        if len(np.unique(held[name])) < len(held[name]):
            raise ValueError(f"two of its {name} are the same")
    for name in curves:
        values, ends = held[name], held[_ends(name)]
        kind = name.rpartition("/")[2]
        whole = values.ndim == 1 and values.dtype.name == kind and kind in {"float16", "float32"}
        cut = (
            np.concatenate([[0], ends])
            if ends.shape == (count,) and ends.dtype == np.int64
            else np.array([1, 0])
        )
        if not whole or cut[-1] != len(values) or (cut[1:] < cut[:-1]).any():
            raise ValueError(f"{name} is of another shape or type than its ends say")


def _ends(curve: str) -> str:
    return f"ends/{curve.removeprefix('curve/')}"


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash names, types, shapes and values of all arrays but the digest."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        if name != "digest":
            digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def with_fallback(
    held: Any, train: Callable[[list[Run]], list[Record]]
) -> Callable[[list[Run]], list[Record]]:
    """Look up what an archive has, and train the rest.

    Args:
        held: An :class:`Archive`, or another ``evaluate`` with ``in``.
        train: An ``evaluate`` that trains.

    Returns:
        An ``evaluate`` of both.
    """

    def ask(runs: list[Run]) -> list[Record]:
        known = [run in held for run in runs]
        trained = iter(train([run for run, there in zip(runs, known, strict=True) if not there]))
        return [
            held([run])[0] if there else next(trained)
            for run, there in zip(runs, known, strict=True)
        ]

    return ask


def to_half(curve: np.ndarray) -> np.ndarray:
    """Round to float16, and check that no value is further off than stated above.

    Args:
        curve: Values of any shape; NaN and infinities stay.

    Returns:
        The same shape in float16.

    Raises:
        ValueError: If a value is.
    """
    known = np.isfinite(curve)
    cut = np.where(known, np.clip(curve.astype(np.float64), -_LARGEST, _LARGEST), curve)
    half = cut.astype(np.float16)
    off = np.abs(half[known].astype(np.float64) - cut[known])
    if not (off <= 2.0**-11 * np.abs(cut[known]) + 2.0**-25).all():
        raise ValueError("a curve is rounded by more than this format states. Report this.")
    return half


def run_id(run: Run) -> str:
    """Name a Run by what describes it, the data by its function and arguments.

    Args:
        run: The Run.

    Returns:
        20 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(to_config(run), sort_keys=True).encode()).hexdigest()[:20]
