"""Pages of the site that do not stand in docs/: the reference, the examples, and those of the root.

Also the navigation: an entry of mkdocs.yml that ends in a slash is a folder, and stands for all of
its pages; one that is missing is left out, and the build says so.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import api_pages
from repository import EXAMPLES, PAGES_ELSEWHERE, ROOT, scripts

__all__ = ["on_config", "on_files"]

# Below a warning, which `mkdocs build --strict` refuses.
_log = logging.getLogger("mkdocs.hooks.extra_pages")


def _title(path: Path) -> str:
    """Read the first heading, to sort by."""
    lines = path.read_text().splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), path.stem)


def _expand(entry: Any, folder: Path) -> list[Any]:
    """Replace a folder by its pages, the README first, and drop what is not there."""
    if isinstance(entry, dict):
        [(title, value)] = entry.items()
        if isinstance(value, list):
            inner = [item for part in value for item in _expand(part, folder)]
            return [{title: inner}] if inner else []
        expanded = _expand(value, folder)
        if not expanded:
            return []
        return [{title: expanded}] if value.endswith("/") else [{title: value}]
    if not entry.endswith("/"):
        return [entry]
    if entry == "api/":
        return ["api/index.md", *(page for page in api_pages.pages() if page != "api/index.md")]
    if entry == f"{EXAMPLES}/":
        return [f"{EXAMPLES}/index.md", *(f"{EXAMPLES}/{path.stem}.md" for path in scripts())]
    files = sorted((folder / entry).glob("*.md"), key=lambda path: (path.stem != "README", path))
    if not files:
        _log.info("The navigation leaves out %s: there are no pages.", entry)
    return [f"{entry}{path.name}" for path in files]


def on_config(config: Any) -> Any:
    """Write out the folders of the navigation."""
    folder = Path(config["docs_dir"])
    config["nav"] = [item for entry in config["nav"] for item in _expand(entry, folder)]
    return config


def _notebook(path: Path) -> str:
    """Write a notebook's cells as Markdown."""
    cells = json.loads(path.read_text())["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _script(path: Path) -> str:
    """Write a script's docstring as text, its picture, and the whole script below."""
    text = path.read_text()
    _, docstring, _code = text.split('"""', 2)
    title, _, about = docstring.partition("\n")
    name = path.relative_to(ROOT).as_posix()
    picture = ROOT / EXAMPLES / "images" / f"{path.stem}.png"
    parts = [f"# {title.rstrip('.')}", about.strip()]
    if picture.exists():
        parts.append(f"![What the script draws](images/{path.stem}.png)")
    parts.append(f"The whole script, `{name}`:\n\n```python\n{text.rstrip()}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in PAGES_ELSEWHERE.items():
        if (ROOT / source).exists() and files.get_file_from_path(page) is None:
            # The first page of the site is docs/index.md, not the README.
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for path in scripts():
        text = _notebook(path) if path.suffix == ".ipynb" else _script(path)
        files.append(File.generated(config, f"{EXAMPLES}/{path.stem}.md", content=text))
    for path in sorted((ROOT / EXAMPLES / "images").glob("*")):
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for page, text in api_pages.pages().items():
        files.append(File.generated(config, page, content=text))
    return files
