"""How the code reads, in numbers: ``python benchmarks/readability.py [FOLDER ...]``.

For each folder of Python files: lines, long files and functions, length of code lines, and how
often a construct that a reader has to unfold, a comment or ``Any`` occurs. Docstrings and blank
lines count as lines, but not as code lines.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from dataclasses import dataclass, fields
from pathlib import Path

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Counts:
    """What is counted over a folder."""

    files: int = 0
    lines: int = 0
    code_lines: int = 0
    characters: int = 0  # of the code lines, with their indentation
    longest_line: int = 0
    files_above_500_lines: int = 0
    functions: int = 0
    functions_above_60_lines: int = 0
    functions_above_10_parameters: int = 0
    comprehensions: int = 0
    ternaries: int = 0
    comment_lines: int = 0  # of their own
    trailing_comments: int = 0
    uses_of_any: int = 0


def count_file(path: Path, counts: Counts) -> None:
    """Add the counts of one file."""
    text = path.read_text()
    lines = text.splitlines()
    tree = ast.parse(text)
    counts.files += 1
    counts.lines += len(lines)
    counts.longest_line = max([counts.longest_line, *map(len, lines)])
    counts.files_above_500_lines += len(lines) > 500
    skipped = _docstring_lines(tree)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_comment = token.type == tokenize.COMMENT
        if is_comment and token.line.lstrip().startswith("#"):
            skipped.add(token.start[0])
            counts.comment_lines += 1
        elif is_comment:
            counts.trailing_comments += 1
    for number, line in enumerate(lines, 1):
        if line.strip() and number not in skipped:
            counts.code_lines += 1
            counts.characters += len(line)
    for node in ast.walk(tree):
        counts.comprehensions += isinstance(node, COMPREHENSIONS)
        counts.ternaries += isinstance(node, ast.IfExp)
        counts.uses_of_any += isinstance(node, ast.Name) and node.id == "Any"
        if isinstance(node, FUNCTIONS):
            _count_function(node, counts)


def _count_function(node: ast.FunctionDef | ast.AsyncFunctionDef, counts: Counts) -> None:
    first = node.body[0]
    # The docstring is not part of the length: long ones are welcome.
    start = first.end_lineno if ast.get_docstring(node) else first.lineno - 1
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    counts.functions += 1
    counts.functions_above_60_lines += (node.end_lineno or 0) - (start or 0) > 60
    counts.functions_above_10_parameters += len(parameters) > 10


def _docstring_lines(tree: ast.Module) -> set[int]:
    """Line numbers of all docstrings."""
    numbers: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            docstring = node.body[0]
            numbers.update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return numbers


def report(folder: Path) -> dict[str, str]:
    """Count a folder, and give each figure by its name."""
    counts = Counts()
    for path in sorted(folder.rglob("*.py")):
        count_file(path, counts)
    figures = {}
    for field in fields(counts):
        figures[field.name.replace("_", " ")] = f"{getattr(counts, field.name):,}"
    per_100 = 100 / max(counts.code_lines, 1)
    figures["characters"] = f"{counts.characters / max(counts.code_lines, 1):.1f} a code line"
    for name in ("comprehensions", "ternaries", "comment_lines", "trailing_comments"):
        value = getattr(counts, name)
        figures[name.replace("_", " ")] = f"{value:,} ({value * per_100:.1f} per 100 code lines)"
    return figures


def main() -> None:
    """Print a table with a column for each folder."""
    folders = [Path(name) for name in sys.argv[1:]] or [Path(__file__).parents[1] / "src"]
    columns = [report(folder) for folder in folders]
    print(f"{'':30}", *(f"{str(folder)[-30:]:>34}" for folder in folders))
    for name in columns[0]:
        print(f"{name:30}", *(f"{column[name]:>34}" for column in columns))


if __name__ == "__main__":
    main()
