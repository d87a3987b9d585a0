"""The scripts and notebooks of examples/, and the pages that begin as some of them do."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EXAMPLES", "SCRIPTS", "whole_example"]

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")])


def whole_example(block: str) -> tuple[str, str]:
    """Find the script that consists of its docstring, a page's block, and a picture.

    So the test of a page runs the script, too, and nothing is trained twice.

    Args:
        block: Python code of a page.

    Returns:
        The script and the name of its picture; the block itself and "" where there is no script.
    """
    for path in SCRIPTS:
        text = path.read_text()
        if path.suffix == ".py" and text.count('"""') >= 2:
            docstring, code = text[3:].split('"""\n\n', 1)
            if code.startswith(block) and docstring:
                return code, f"{path.stem}.png"
    return block, ""
