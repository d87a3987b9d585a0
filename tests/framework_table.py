"""The table of docs/frameworks: what each framework's own training differs from the oracle by.

An integration test calls :func:`cell` once for each cell. The call checks the number, and writes it
down where ``FLOODING_FRAMEWORK_CELLS`` names a folder. ``python benchmarks/frameworks.py`` runs the
integration tests so, stores the cells in ``docs/frameworks/cells.jsonl`` and draws the table.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["COLUMNS", "EXACT", "FLOAT32", "FOLDER_VARIABLE", "cell", "draw", "read_cells"]

FOLDER_VARIABLE = "FLOODING_FRAMEWORK_CELLS"
COLUMNS = (
    "one line",
    "accumulation 4",
    "two ranks",
    "clipping",
    "evaluation plain",
    "resume",
    "moving level",
)
EXACT = 1e-10  # in float64
FLOAT32 = 1e-5  # where a framework computes in float32 only
# Order of the rows; a framework that is not named here follows in alphabetical order.
_ROWS = (
    "Lightning",
    "Fabric",
    "Accelerate",
    "DeepSpeed ZeRO 0 to 2",
    "transformers",
    "Keras 3 on torch",
    "Keras 3 on JAX",
    "optax",
    "skorch",
)
# What a cell without a number says: it begins with one of these.
_REASONS = ("refused: ", "not applicable: ")

Cell = dict[str, object]


def cell(
    framework: str,
    column: str,
    value: float | str,
    *,
    naive: float | None = None,
    control: float | None = None,
    tolerance: float = EXACT,
) -> None:
    """Check one cell of the table and write it down.

    Args:
        framework: The row, such as "Lightning".
        column: One of ``COLUMNS``.
        value: Largest difference of any weight (or of a loss, for "evaluation plain") to the
            hand-written loop, or text: "refused: why", "not applicable: why", or the user's code
            for "one line".
        naive: The same difference for what a user would write without the adapter.
        control: The same difference for the framework's own plain training, where it is not 0.
        tolerance: Largest difference that is exact, ``EXACT`` or ``FLOAT32``.
    """
    assert column in COLUMNS, f"column must be one of {COLUMNS}, got {column!r}"
    if isinstance(value, str):
        is_reason = value.startswith(_REASONS) or column == "one line"
        assert is_reason, f"text must start with one of {_REASONS}, got {value!r}"
    else:
        assert tolerance in (EXACT, FLOAT32)
        assert value <= tolerance, f"{framework}, {column}: {value:.1e} is above {tolerance:.0e}"
    if naive is not None:
        assert naive > 1e-3, f"{framework}, {column}: the naive line is exact as well, {naive:.1e}"
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return
    entry = {
        "framework": framework,
        "column": column,
        "value": value,
        "naive": naive,
        "control": control,
        "tolerance": tolerance,
    }
    # Tests run in several processes, and each of them has a file of its own.
    with open(Path(folder) / f"{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")


def read_cells(*files: Path) -> list[Cell]:
    """Read cells, in the order of the table; of two for one place the later file's counts.

    Of two numbers in one file the larger one counts.

    Args:
        *files: Files of JSON lines.

    Returns:
        The cells.
    """
    cells: dict[tuple[int, str, int], Cell] = {}
    for file in files:
        of_file: dict[tuple[int, str, int], Cell] = {}
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            name, column = entry["framework"], entry["column"]
            row = _ROWS.index(name) if name in _ROWS else len(_ROWS)
            key = row, name, COLUMNS.index(column)
            earlier = of_file.get(key)
            is_number = not isinstance(entry["value"], str)
            if earlier is None or (is_number and entry["value"] >= earlier["value"]):
                of_file[key] = entry
        cells |= of_file
    return [cells[key] for key in sorted(cells)]


def draw(cells: list[Cell]) -> str:
    """Draw the Markdown table.

    Args:
        cells: The cells, in the order of the table.

    Returns:
        The table; a cell that was not measured is empty.
    """
    lines = [
        f"| Framework | {' | '.join(column.capitalize() for column in COLUMNS)} |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    rows: dict[str, dict[str, str]] = {}
    for entry in cells:
        rows.setdefault(str(entry["framework"]), {})[str(entry["column"])] = _text(entry)
    for framework, row in rows.items():
        texts = [row.get(column, "") for column in COLUMNS]
        lines.append(f"| {framework} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _text(entry: Cell) -> str:
    value = entry["value"]
    if isinstance(value, str):
        return value
    text = "0" if value == 0 else f"{value:.0e}"
    if entry["control"] is not None:
        text += f", control {entry['control']:.0e}"
    if entry["naive"] is not None:
        text += f" ({entry['naive']:.2g})"
    return text
