"""Write the generated parts of README.md: `python docs/readme.py` runs the demo, from its ledger if that knows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import typer

from flooding.cli import app

ROOT = Path(__file__).parents[1]


def options() -> str:
    """Write every option of `flooding run` as a Markdown table."""
    lines = ["| Option | Default | What it sets |", "|---|---|---|"]
    for parameter in typer.main.get_command(app).commands["run"].params:  # type: ignore[attr-defined]
        name = next((name for name in parameter.opts if name.startswith("--")), None)
        if name is None:
            continue
        text, _, told = (parameter.help or "").replace("\\[", "[").partition(" [")
        shown = parameter.show_default if isinstance(parameter.show_default, str) else ""
        unset = parameter.default is None or parameter.default is False
        default = (
            told.removesuffix(".").removesuffix("]")
            or shown
            or ("" if unset else str(parameter.default))
        )
        lines.append(f"| `{name}` | {default} | {text.rstrip('.')} |")
    return "\n".join(lines)


def demo() -> str:
    """Run the demo and give what it prints, without the paths."""
    command = [sys.executable, "-m", "flooding", "demo"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in ("synth_loss", "boundary"):
        shutil.copy(ROOT / "flooding-demo" / f"{name}.png", ROOT / "docs" / "images")
    tables = "\n".join(line.rstrip() for line in told.split("\nPictures in")[0].splitlines())
    return f"```\n{tables.strip()}\n```"


def advice() -> str:
    """Give what the bake-off says in plain words, and what the paper's table says cell by cell."""
    pages = ROOT / "docs" / "results"
    page = (pages / "bakeoff.md").read_text()
    [told] = re.findall(r"^- When to use flooding: (.*)$", page, re.MULTILINE)
    where = re.findall(
        r"^- (Flooding minus (?:plain|early stopping): most .*)$", page, re.MULTILINE
    )
    table = (pages / "ishida2020.md").read_text()
    cells = re.findall(
        r"^- Clean labels, (.*?: flooding wins \d+ and loses \d+ of .*?\))", table, re.MULTILINE
    )
    where.append(
        f"Cell by cell, in [the paper's synthetic table](docs/results/ishida2020.md): {'; '.join(cells)}."
    )
    return "\n".join([told[0].upper() + told[1:], "", *(f"- {sentence}" for sentence in where)])


def put(text: str, name: str, part: str) -> str:
    """Replace what stands between two markers."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{part}\n{found[2]}", text, flags=re.DOTALL)


def main() -> None:
    """Rewrite README.md."""
    page = ROOT / "README.md"
    text = page.read_text()
    for name, part in {"options": options(), "advice": advice(), "demo": demo()}.items():
        text = put(text, name, part)
    page.write_text(text)


if __name__ == "__main__":
    main()
