"""Write the generated parts of the pages: ``python docs/generate.py [PART ...]``.

A part stands between two comments of its name. Without names every part is written; "demo" runs
the demo, or looks it up in the ledger.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import typer
from PIL import Image

from flooding import entries
from flooding.cli import app
from flooding.cli._run import run

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "parts"))

import advice
import averages
import exactness
import gallery
import rule_of_thumb


def options() -> str:
    """Write every option of `flooding run` as a Markdown table."""
    lines = ["| Option | Default | What it sets |", "|---|---|---|"]
    annotations = get_type_hints(run)
    for parameter in typer.main.get_command(app).commands["run"].params:  # type: ignore[attr-defined]
        name = next((name for name in parameter.opts if name.startswith("--")), None)
        if name is None:
            continue
        # A default that depends on something stands in brackets at the end of the help.
        help_text = (parameter.help or "").replace("\\[", "[")
        text, _, conditional_default = help_text.partition(" [")
        default = conditional_default.removesuffix(".").removesuffix("]")
        if not default and isinstance(parameter.show_default, str):
            default = parameter.show_default
        if not default and parameter.default is not None and parameter.default is not False:
            default = str(parameter.default)
        text = text.rstrip(".")
        choices = get_args(annotations[parameter.name])
        if get_origin(annotations[parameter.name]) is Literal:
            text = f"{text}: {entries.join_names(choices)}"
        lines.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(lines)


def names() -> str:
    """Write what can be named on the command line, a table for each kind."""
    kinds = {
        "Methods": ("`run --method`, or `module:Method` of your own", entries.METHODS),
        "Schedules": ("`run --schedule`, or `module:Controller`", entries.CONTROLLERS),
        "Strategies": ("`find --strategy`, or `module:function`", entries.STRATEGIES),
        "Tasks": ("`find`, `compare`, or `module:problem`", entries.TASKS),
        "Data": ("`run`; fetched once or found in the folder `$FLOODING_DATA`", entries.DATASETS),
    }
    lines = []
    for title, (use, offered) in kinds.items():
        lines += [f"**{title}**: {use}.", "", "| Name | What it is |", "|---|---|"]
        lines += [f"| `{entry.name}` | {entry.summary} |" for entry in offered]
        lines.append("")
    return "\n".join(lines).rstrip()


def demo() -> str:
    """Run the demo and give what it prints, without the paths."""
    command = [sys.executable, "-m", "flooding", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("synth_loss", "boundary"):
        with Image.open(ROOT / "flooding-demo" / f"{name}.png") as image:
            # A palette takes a third of the space.
            palette = image.convert("RGB").quantize(255, dither=Image.Dither.NONE)
            palette.save(HERE / "images" / f"{name}.png", optimize=True)
    lines = done.stdout.split("\nPictures in")[0].splitlines()
    tables = "\n".join(line.rstrip() for line in lines)
    return f"```\n{tables.strip()}\n```"


# Page and part: what writes it.
PARTS: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "advice"): advice.short,
    ("docs/when-to-use-it.md", "advice"): advice.short,
    ("docs/when-to-use-it.md", "evidence"): advice.evidence,
    ("docs/which-network-to-keep.md", "averages"): averages.table,
    ("docs/choosing-a-level.md", "rule-of-thumb"): rule_of_thumb.table,
    ("docs/exactness.md", "exactness"): exactness.table,
    ("docs/command-line.md", "names"): names,
    ("docs/command-line.md", "options"): options,
    ("docs/demo.md", "demo"): demo,
    ("examples/README.md", "examples"): gallery.table,
}


def put(text: str, name: str, part: str) -> str:
    """Replace what stands between two markers."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{part}\n{match[2]}", text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the pages."""
    chosen = sys.argv[1:] or [name for _, name in PARTS]
    for (page, name), write in PARTS.items():
        if name in chosen:
            path = ROOT / page
            path.write_text(put(path.read_text(), name, write()))


if __name__ == "__main__":
    main()
