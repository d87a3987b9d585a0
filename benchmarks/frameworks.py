"""Measure the table of docs/frameworks/README.md with the real frameworks, and draw it.

    python benchmarks/frameworks.py [--draw-only]

The integration tests write a cell for each thing they check. Cells of frameworks that are not
installed here stay as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from framework_table import FOLDER_VARIABLE, draw, read_cells  # noqa: E402

CELLS = ROOT / "docs" / "frameworks" / "cells.jsonl"
PAGE = CELLS.with_name("README.md")


def measure(folder: str) -> None:
    """Run the integration tests; each process writes its cells into the folder."""
    tests = sorted(str(path) for path in (ROOT / "tests").glob("test_integration_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    subprocess.run(command, cwd=ROOT, env=os.environ | {FOLDER_VARIABLE: folder}, check=True)


def main() -> None:
    """Measure, store the cells and rewrite the table on the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw-only", action="store_true", help="draw the stored cells again")
    files = [CELLS] if CELLS.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        if not parser.parse_args().draw_only:
            measure(folder)
            files += sorted(Path(folder).glob("*.jsonl"))
        cells = read_cells(*files)
    CELLS.write_text("".join(json.dumps(entry) + "\n" for entry in cells))
    pattern = r"(<!-- table:begin -->\n).*?(<!-- table:end -->)"
    table = draw(cells)
    page = re.sub(pattern, lambda m: f"{m[1]}{table}\n{m[2]}", PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(page)
    print(table)


if __name__ == "__main__":
    main()
