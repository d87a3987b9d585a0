"""Write the generated parts of README.md: ``python docs/readme.py``.

The demo is run, or looked up in the ledger.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import typer

from flooding import entries
from flooding.cli import app
from flooding.cli._run import run

ROOT = Path(__file__).parents[1]


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
    """Write what can be named on the command line, a paragraph for each kind."""
    kinds = {
        "Methods (`run --method`, or `module:Method` of your own)": entries.METHODS,
        "Schedules (`run --schedule`, or `module:Controller`)": entries.CONTROLLERS,
        "Strategies (`find --strategy`, or `module:function`)": entries.STRATEGIES,
        "Tasks (`find`, `compare`, or `module:problem`)": entries.TASKS,
        "Data (`run`; fetched once or found in the folder `$FLOODING_DATA`)": entries.DATASETS,
    }
    lines = []
    for title, offered in kinds.items():
        items = [f"`{entry.name}`: {entry.summary}" for entry in offered]
        lines.append(f"- **{title}.** {'; '.join(items)}.")
    return "\n".join(lines)


def demo() -> str:
    """Run the demo and give what it prints, without the paths."""
    command = [sys.executable, "-m", "flooding", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("synth_loss", "boundary"):
        shutil.copy(ROOT / "flooding-demo" / f"{name}.png", ROOT / "docs" / "images")
    lines = done.stdout.split("\nPictures in")[0].splitlines()
    tables = "\n".join(line.rstrip() for line in lines)
    return f"```\n{tables.strip()}\n```"


def advice(folder: Path = ROOT) -> str:
    """Give what the bake-off says in plain words, with a link to the tests behind it.

    Args:
        folder: Folder of the page that it is for.

    Returns:
        One paragraph.
    """
    page = ROOT / "docs" / "results" / "bakeoff.md"
    [summary] = re.findall(r"^- When to use flooding: (.*)$", page.read_text(), re.MULTILINE)
    link = Path(os.path.relpath(page, folder)).as_posix()
    return f"{summary} [The tests behind this]({link}#found)."


def put(text: str, name: str, part: str) -> str:
    """Replace what stands between two markers."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{part}\n{match[2]}", text, flags=re.DOTALL)


def main() -> None:
    """Rewrite README.md."""
    page = ROOT / "README.md"
    text = page.read_text()
    parts = {"names": names(), "options": options(), "advice": advice(), "demo": demo()}
    for name, part in parts.items():
        text = put(text, name, part)
    page.write_text(text)


if __name__ == "__main__":
    main()
