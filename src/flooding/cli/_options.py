"""The options that the commands share, and the checks of their values.

torch takes 2 s to import: every import of the library is inside the function that needs it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import typer

from flooding.entries import Entry

__all__ = [
    "Arguments",
    "AverageName",
    "Fleet",
    "FleetName",
    "Force",
    "Json",
    "Ledger",
    "Overwrite",
    "Quiet",
    "Ray",
    "RayStorage",
    "Workers",
    "check_ledger",
    "check_numbers",
    "check_output_folder",
    "complete",
    "drop_none",
    "fleet_option",
    "option",
    "parse_levels",
]

T = TypeVar("T")

# Values by the name of an option or an argument, each of a type of its own.
Arguments: TypeAlias = Mapping[str, Any]

Ledger = Annotated[
    Path | None,
    typer.Option(help="SQLite file of finished runs.", show_default="the user's state folder"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Train even what the ledger holds.")]
AverageName: TypeAlias = Literal["ema", "mean"]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Worker processes.", show_default="one per core")
]
Ray = Annotated[
    str | None,
    typer.Option(help="Train on a Ray cluster: auto, local or host:port.", metavar="ADDRESS"),
]
RayStorage = Annotated[
    str | None,
    typer.Option(
        "--ray-storage",
        help="Where checkpoints outlive a machine of the cluster: a folder that all of them see, "
        "or a URI such as s3://bucket/checkpoints.",
        metavar="PLACE",
    ),
]
FleetName: TypeAlias = Literal["off", "auto", "on"]
Fleet = Annotated[
    FleetName,
    typer.Option(
        "--fleet",
        help="Train many runs as one set of tensors: on, or auto, where that is faster. Results "
        "agree with single runs within rounding, and are looked up apart from theirs.",
    ),
]

Force = Annotated[
    bool, typer.Option("--force", help="Replace the results of another command, and old files.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors alone.")
]

_LARGEST = 1e30  # of a number with a fraction, so that sums of a few still fit into float32
_MAX = {
    "batch_size": 2**31 - 1,
    "depth": 1000,
    "dimension": 10**6,
    "epochs": 10**7,
    "eval_batch_size": 2**31 - 1,
    "folds": 10**4,
    "seed": 2**63 - 1,
    "seeds": 1000,
    "test_samples": 10**9,
    "threads": 256,
    "train_samples": 10**9,
    "trainings": 10**5,
    "val_samples": 10**9,
    "warmup_steps": 2**53,
    "width": 10**6,
    "workers": 1024,
}


def option(
    help: str,  # ruff: ignore[builtin-argument-shadowing] -- typer's own word
    panel: str,
    *names: str,
    entries: Sequence[Entry] = (),
    **settings: Any,
) -> object:
    """Declare an option.

    Args:
        help: What it sets; ``[0.1]`` at its end is a default that depends on something.
        panel: The panel of the help that shows it.
        *names: Its names, where they do not follow from the parameter's.
        entries: What a shell completes its value from.
        **settings: Of ``typer.Option``.

    Returns:
        For ``Annotated``.
    """
    if entries:
        settings["autocompletion"] = complete(entries)
    # rich takes square brackets for a style.
    escaped = help.replace("[", "\\[")
    return typer.Option(*names, help=escaped, rich_help_panel=panel, **settings)


def complete(entries: Sequence[Entry]) -> Callable[[str], list[tuple[str, str]]]:
    """Make the function that completes the name of an entry in a shell.

    Args:
        entries: Such as :data:`flooding.entries.METHODS`.

    Returns:
        A function of the incomplete word, which gives names and their summaries.
    """

    def names_and_summaries(incomplete: str) -> list[tuple[str, str]]:
        return [(e.name, e.summary) for e in entries if e.name.startswith(incomplete)]

    return names_and_summaries


def fleet_option(name: FleetName) -> bool | Literal["auto"]:
    """Turn the value of ``--fleet`` into that of ``run_all(fleet=)``."""
    return name if name == "auto" else name == "on"


def drop_none(**options: T | None) -> dict[str, T]:
    """Give the options that were set, by name."""
    return {name: value for name, value in options.items() if value is not None}


def check_numbers(options: Mapping[str, object]) -> None:
    """Refuse numbers that nothing can be computed with, before they fail somewhere inside.

    Args:
        options: Options by name, such as the ``locals()`` of a command; only numbers are checked.

    Raises:
        ValueError: If a whole number is above its limit, or any other is not finite or too large
            for float32.
    """
    for name, value in options.items():
        if isinstance(value, float) and not abs(value) <= _LARGEST:
            raise ValueError(f"{name} must be finite and within ±{_LARGEST:g}, got {value:g}.")
        # A bool is an int for Python, and has no limit.
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if value > _MAX[name]:
            raise ValueError(f"{name} must be at most {_MAX[name]:,}, got {_shorten(value)}.")


def _shorten(number: int) -> str:
    digits = str(number)
    return digits if len(digits) <= 30 else f"{digits[:10]}... of {len(digits)} digits"


def parse_levels(name: str, text: str, *, allow_none: bool = False) -> list[float | None]:
    """Read levels with commas.

    Args:
        name: The option.
        text: Its value.
        allow_none: Whether the word none, plain training, may be among them.

    Returns:
        At least one finite number, or None.

    Raises:
        ValueError: If there is something else.
    """
    example = "none,0.1,0.2" if allow_none else "0.1,0.2"
    levels: list[float | None] = []
    for part in text.split(","):
        is_none = allow_none and part.strip() == "none"
        try:
            levels.append(None if is_none else float(part))
        except ValueError:
            raise ValueError(
                f"{name} must be numbers with commas, got {text!r}. Try --{name} {example}."
            ) from None
    for level in levels:
        if level is not None and not math.isfinite(level):
            raise ValueError(f"{name} must be finite, got {level}. Leave --{name} out for none.")
        if level is not None and abs(level) > _LARGEST:
            raise ValueError(
                f"{name} must lie within ±{_LARGEST:g}, got {level:g}. Try --{name} 0.1."
            )
    return levels


def check_output_folder(folder: Path) -> None:
    """Refuse an output folder that cannot be one.

    Args:
        folder: The option's value.

    Raises:
        ValueError: If it is a file, or lies below one, or may not be written.
    """
    # From the folder upwards to the nearest that exists: there the rest would be made.
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"an output folder must not be, or lie below, a broken link, but {path} is one."
            )
        if path.exists() and not path.is_dir():
            raise ValueError(
                f"an output folder must not be, or lie below, a file, but {path} is one. "
                "Choose another."
            )
        if path.exists():
            if not os.access(path, os.W_OK):
                raise ValueError(
                    f"an output folder must be writable, but {path} is not. Choose another."
                )
            return


def check_ledger(ledger: Path | None) -> None:
    """Refuse, before anything is trained, a ledger that has no place or cannot be written.

    Args:
        ledger: The option's value; None is the default place.

    Raises:
        ValueError: If the ledger or its folder is read-only.
    """
    from flooding.training.ledger import absolute_path, default_path

    path = default_path() if ledger is None else absolute_path(ledger)
    # SQLite writes files beside the ledger, so its folder must be writable too.
    nearest = next((parent for parent in path.parents if parent.exists()), path)
    for existing in (nearest, path):
        if existing.exists() and not os.access(existing, os.W_OK):
            raise ValueError(
                f"the ledger {path} must be writable, but {existing} is not. "
                "Name another: --ledger FILE."
            )
