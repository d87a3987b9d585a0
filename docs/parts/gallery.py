"""The table of the examples: what each shows, and its picture."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["EXAMPLES", "table", "title"]

EXAMPLES = Path(__file__).parents[2] / "examples"


def title(path: Path) -> str:
    """Read the title of a script (first line of its docstring) or of a notebook (its heading)."""
    if path.suffix == ".ipynb":
        first = json.loads(path.read_text())["cells"][0]["source"]
        return "".join(first).splitlines()[0].lstrip("# ")
    return path.read_text().split('"""')[1].splitlines()[0].rstrip(".")


def table() -> str:
    """Write a row for each script and notebook."""
    lines = ["| Example | Picture |", "|---|---|"]
    for path in sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]):
        picture = f"images/{path.stem}.png"
        text = ""
        if (EXAMPLES / picture).exists():
            text = f"[![{title(path)}]({picture})]({path.name})"
        lines.append(f"| [{title(path)}]({path.name}) | {text} |")
    return "\n".join(lines)
