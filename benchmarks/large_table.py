"""``flooding find`` on a large table: seconds, the epochs that it chooses, and what it says.

    python benchmarks/large_table.py [--rows 200000]

The made-up table has ten columns of numbers, two of categories and a noisy binary target. The
command runs as a user would give it, with every setting at its default, in a folder of its own and
with an empty ledger. The target is 120 seconds for 200,000 rows on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from flooding.report.provenance import machine


def made_up_table(rows: int) -> pd.DataFrame:
    """Make a table whose target depends on five of its columns and flips at 10 %."""
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((rows, 10))
    region = rng.choice(["north", "south", "east", "west"], rows)
    level = rng.choice(["low", "middle", "high"], rows)
    score = numbers[:, 0] + numbers[:, 1] * numbers[:, 2] + (region == "north") - (level == "low")
    flips = rng.random(rows) < 0.1
    frame = pd.DataFrame(numbers, columns=[f"x{number}" for number in range(10)])
    return frame.assign(region=region, level=level, bought=np.where((score > 0) ^ flips, "y", "n"))


def main() -> None:
    """Time one search in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        made_up_table(options.rows).to_csv(Path(folder, "table.csv"), index=False)
        command = [sys.executable, "-m", "flooding", "find", "table.csv", "--target", "bought"]
        environment = {**os.environ, "FLOODING_LEDGER": str(Path(folder, "ledger.sqlite"))}
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        seconds = time.monotonic() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    for line in (done.stdout + done.stderr).splitlines():
        if re.search(r"epochs|level", line):
            print(f"  {line.strip()}")
    print(
        f"{options.rows:,} rows: {seconds:.1f} s, "
        f"{usage.ru_utime + usage.ru_stime:.1f} s of the processors"
    )


if __name__ == "__main__":
    main()
