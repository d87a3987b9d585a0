"""Where a file of the repository stands on the site.

Pages are written for both: a link is relative to the file in the repository, and the site's build
translates it. Every folder and file is named by its path from the root, with forward slashes.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["EXAMPLES", "PAGES_ELSEWHERE", "ROOT", "page_of", "scripts"]

ROOT = Path(__file__).parents[2]
EXAMPLES = "examples"
# Pages that do not stand in docs/: their file, and their page on the site.
PAGES_ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/levels/README.md": "benchmark-of-levels.md",
    f"{EXAMPLES}/README.md": f"{EXAMPLES}/index.md",
}


def scripts() -> list[Path]:
    """List the examples, scripts and notebooks, by name."""
    folder = ROOT / EXAMPLES
    return sorted([*folder.glob("*.py"), *folder.glob("*.ipynb")])


def page_of(path: str) -> str | None:
    """Find the page, or the file, of the site that shows a file of the repository.

    Args:
        path: From the root of the repository; a folder stands for its README.

    Returns:
        The path of the site's source, or None where the site does not show it.
    """
    if path == "src/flooding":
        return "api/index.md"
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    if path in PAGES_ELSEWHERE:
        return PAGES_ELSEWHERE[path]
    folder, _, name = path.partition("/")
    if folder == "docs":
        return name
    if folder == EXAMPLES:
        is_script = path.endswith((".py", ".ipynb"))
        return f"{EXAMPLES}/{Path(name).stem}.md" if is_script else path
    if path.startswith("src/flooding/"):
        from api_pages import page_of_module

        return page_of_module(path.removeprefix("src/").removesuffix(".py").replace("/", "."))
    return None
