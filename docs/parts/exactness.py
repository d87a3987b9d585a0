"""How far the pasted line is from flooding, and how far the adapters are: from the stored cells."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["table"]

CELLS = Path(__file__).parents[1] / "frameworks" / "cells.jsonl"
COLUMNS = ("accumulation 4", "two ranks", "clipping")
TITLES = ("accumulation of 4", "two ranks", "accumulation and clipping")


def table() -> str:
    """Write, for each framework, adapter and pasted line side by side."""
    rows: dict[str, dict[str, str]] = {}
    for line in CELLS.read_text().splitlines():
        cell = json.loads(line)
        is_number = not isinstance(cell["value"], str)
        if cell["column"] in COLUMNS and is_number and cell["naive"] is not None:
            exact = f"{cell['value']:.0e}" if cell["value"] else "0"
            text = f"{exact} against **{cell['naive']:.2g}**"
            rows.setdefault(cell["framework"], {})[cell["column"]] = text
    titles = " | ".join(f"{title}: adapter against pasted line" for title in TITLES)
    lines = [f"| Framework | {titles} |", "|---|---|---|---|"]
    for framework, cells in rows.items():
        texts = [cells.get(column, "–") for column in COLUMNS]
        lines.append(f"| {framework} | {' | '.join(texts)} |")
    return "\n".join(lines)
