"""The pages of the API reference: one for each module or package of the library.

A name is documented once: in its package if the package's ``__all__`` has it, else in its module.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from dataclasses import dataclass

from repository import ROOT

__all__ = ["Module", "modules", "page_of_module", "pages"]

_SOURCE = ROOT / "src"
# The command line has a page of its own; it is not called from Python.
_NOT_FOR_PYTHON = ("flooding.cli", "flooding.__main__")


@dataclass(frozen=True)
class Module:
    """A public module, read without importing it.

    Args:
        name: With its packages and dots.
        summary: First sentence of its docstring.
        names: Its ``__all__``.
        origins: For each name that it imports or looks up elsewhere, the module where it is
            defined.
    """

    name: str
    summary: str
    names: tuple[str, ...]
    origins: dict[str, str]


def _read(name: str, text: str) -> Module:
    tree = ast.parse(text)
    names: list[str] = []
    origins = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            origins |= {alias.asname or alias.name: node.module for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    origins = {item: origins[item] for item in names if item in origins}
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return Module(name, summary, tuple(names), origins)


@functools.cache
def modules() -> dict[str, Module]:
    """Read every module with public names, by its name."""
    found = {}
    for path in sorted(_SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(_SOURCE).with_suffix("").parts).removesuffix(".__init__")
        is_private = any(part.startswith("_") for part in name.split("."))
        if is_private or name.startswith(_NOT_FOR_PYTHON):
            continue
        module = _read(name, path.read_text())
        if module.names:
            found[name] = module
    return found


def _homes() -> dict[tuple[str, str], str]:
    """For each name and the module that defines it: the package or module that documents it."""
    homes: dict[tuple[str, str], str] = {}
    # The shortest path wins: flooding.Flood before flooding.criterion.Flood.
    for module in sorted(modules().values(), key=lambda module: module.name.count(".")):
        for name in module.names:
            origin = module.name
            while name in modules()[origin].origins if origin in modules() else False:
                origin = modules()[origin].origins[name]
            homes.setdefault((name, origin), module.name)
    return homes


def _package(name: str) -> str:
    """Name the page of a module: ``flooding.levels`` for ``flooding.levels.auto``."""
    return ".".join(name.split(".")[:2])


def page_of_module(name: str) -> str | None:
    """Find the page on which a module is documented.

    Args:
        name: Of the module, with dots.

    Returns:
        The path of the page's source, or None for a private module.
    """
    name = name.removesuffix(".__init__")
    return f"api/{_package(name)}.md" if name in modules() else None


def _section(module: Module, homes: dict[tuple[str, str], str]) -> list[str]:
    own, elsewhere = [], []
    for name in module.names:
        origin = module.name
        while origin in modules() and name in modules()[origin].origins:
            origin = modules()[origin].origins[name]
        home = homes[name, origin]
        if home == module.name:
            own.append(name)
        else:
            elsewhere.append(f"[`{name}`][{home}.{name}]")
    is_first = module.name.count(".") < 2
    lines = ["## Names" if is_first else f"## {module.name}", "", module.summary, ""]
    for name in own:
        lines += [f"::: {module.name}.{name}", ""]
    if elsewhere:
        lines += [f"Also here: {', '.join(elsewhere)}.", ""]
    return lines


def pages() -> dict[str, str]:
    """Write every page of the reference.

    Returns:
        Markdown by the path of the page's source.
    """
    homes = _homes()
    by_page = defaultdict(list)
    for module in modules().values():
        by_page[_package(module.name)].append(module)
    index = [
        "# API reference",
        "",
        "Every public name, with its source. Names are imported from the module under which they "
        "are listed.",
        "",
        "| Page | What it holds |",
        "|---|---|",
    ]
    written = {}
    for name, members in by_page.items():
        index.append(f"| [{name}]({name}.md) | {members[0].summary} |")
        lines = [f"# {name}", ""]
        for module in members:
            lines += _section(module, homes)
        written[f"api/{name}.md"] = "\n".join(lines)
    written["api/index.md"] = "\n".join(index) + "\n"
    return written
