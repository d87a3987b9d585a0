"""The pages: every Python block runs, every ``# -> value`` holds, every link leads somewhere, every
method has a card.

Convention: an expression on a line of its own that ends in ``# -> text`` is evaluated, and its
``repr`` must be that text. A page's blocks run from top to bottom in one namespace.
docs/accumulation.md is run by test_docs_accumulation.py, which also measures its loop; here only
its links are checked. A page of docs/frameworks is skipped where a package that it imports is
missing, and may raise the warnings of its framework.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import io
import re
import shlex
import textwrap
import tokenize
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from example_scripts import whole_example
from flooding import adaflood, averaging, cli, criterion, levels, methods

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
INDEX = ROOT / "docs" / "methods" / "README.md"
CARDS = [page for page in PAGES if page.parent == INDEX.parent and page != INDEX]
RUN_ELSEWHERE = {ROOT / "docs" / "accumulation.md"}
FRAMEWORKS = ROOT / "docs" / "frameworks"
SECTIONS = [
    "Formula",
    "How to use",
    "Suggested settings",
    "Helps and clashes",
    "Edges",
    "Attribution",
]

# Appended to every documented command, where the last word counts: the command as written, but
# small.
SMALL = shlex.split(
    "--width 16 --depth 2 --epochs 3 --train-samples 40 --val-samples 40 --test-samples 100"
)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=_name)
each_card = pytest.mark.parametrize("page", CARDS, ids=_name)


def fences(page: Path) -> list[tuple[int, str, str]]:
    """Line number of the first line, language and text of every fenced block, indented ones too."""
    text = page.read_text()
    found = re.finditer(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    blocks = [(text[: m.start(3)].count("\n") + 1, m[2], textwrap.dedent(m[3])) for m in found]
    assert 2 * len(blocks) == len(re.findall(r"^ *```", text, re.MULTILINE)), (
        "a fence is not closed"
    )
    return blocks


def prose(page: Path) -> str:
    """A page without its fenced blocks and inline code."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def arrows(code: str) -> dict[int, str]:
    """What the ``# -> text`` comments of a block say, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = [(t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT]
    return {line: text[4:].strip() for line, text in comments if text.startswith("# ->")}


def run_block(code: str, names: dict, where: str = "block", line: int = 1) -> int:
    """Run a block and check its arrows; returns how many it checked."""
    expected = arrows(code)
    wanted = dict(expected)
    for statement in ast.parse(code).body:
        text = wanted.pop(statement.end_lineno or 0, None)
        value = isinstance(statement, ast.Expr) and text is not None
        assert value or text is None, (
            f"{where}: only an expression has a value, line {line + statement.lineno - 1}"
        )
        ast.increment_lineno(statement, line - 1)
        if value:
            got = repr(eval(compile(ast.Expression(statement.value), where, "eval"), names))
            assert got == text, f"{where}:{statement.lineno} says {text}, got {got}"
        else:
            exec(compile(ast.Module([statement], []), where, "exec"), names)
    assert not wanted, f"{where}: these arrows follow no expression at the outer level: {wanted}"
    return len(expected)


@pytest.fixture
def _reader(tmp_path, monkeypatch):
    """Give a page an empty folder, a ledger of its own and fixed seeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def imports(code: str) -> set[str]:
    """Packages that a block imports."""
    packages = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            packages |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module or "")
    return {name.partition(".")[0] for name in packages}


@pytest.fixture
def _frameworks(page):
    """Skip a page whose framework is missing; leave frameworks their warnings."""
    if page.parent != FRAMEWORKS:
        yield
        return
    for _, language, code in fences(page):
        for package in imports(code) if language == "python" else ():
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("_reader", "_frameworks")
@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE], ids=_name)
def test_every_block_runs_and_every_arrow_holds(page):
    names = {"__name__": "__main__"}  # a page is pasted
    checks, pictures = 0, []
    for line, language, code in fences(page):
        # Any other spelling would be coloured alike and never run.
        assert language == "python" or not language.lower().startswith("py"), (
            f"line {line}: write ```python"
        )
        if language == "python":
            # A block with which a script of examples/ begins: the whole script, which also draws.
            code, picture = whole_example(code)
            pictures += [picture] if picture else []
            checks += run_block(code, names, _name(page), line) + code.count("assert ")
    assert all(Path(picture).stat().st_size > 1000 for picture in pictures)
    assert checks or page not in CARDS, "a card needs a claim that can fail: an assert, or an arrow"


@each_card
def test_a_card_has_its_sections_in_order(page):
    assert {language for _, language, _ in fences(page)} <= {"python", "sh", "text"}
    assert re.findall(r"^## (.*)$", prose(page), re.MULTILINE) == SECTIONS
    title, sentence = page.read_text().split("\n\n")[:2]
    assert title.startswith("# ")
    assert sentence.endswith((".", "?"))
    assert not sentence.startswith(("#", "`", "|"))


@each_page
def test_links_between_pages_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} is not there"
        assert ROOT in file.parents, f"{target} is not in the repository"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = [
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
            ]
            assert anchor in slugs, f"{target}: no such heading"


def _index() -> dict[str, list[str]]:
    """The index: card by card the classes it stands for."""
    rows = re.findall(
        r"^\| \[[^\]]+\]\((\w[\w-]*\.md)\) \|([^|]*)\|", INDEX.read_text(), re.MULTILINE
    )
    return {card: re.findall(r"`(\w+)`", classes) for card, classes in rows}


def _public(module) -> list[str]:
    # Data classes and modules, which a user builds. Protocols, base classes and StepInfo are not.
    names = []
    for name in module.__all__:
        value = getattr(module, name)
        is_module = inspect.isclass(value) and issubclass(value, nn.Module)
        is_abstract = inspect.isabstract(value)
        is_data = inspect.isclass(value) and dataclasses.is_dataclass(value) and not is_abstract
        if is_module or is_data:
            names.append(name)
    return names


def test_the_index_lists_every_card_once():
    assert sorted(_index()) == sorted(page.name for page in CARDS)


@pytest.mark.parametrize(
    "name",
    [name for module in (methods, levels, criterion, averaging) for name in _public(module)],
)
def test_every_public_class_has_a_card_that_runs_it(name):
    cards = [card for card, classes in _index().items() if name in classes]
    assert len(cards) == 1, f"docs/methods/README.md must list {name} for one card, not for {cards}"
    code = "".join(
        code for _, language, code in fences(INDEX.parent / cards[0]) if language == "python"
    )
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    assert name in used, f"{cards[0]} never uses {name}"


def test_the_index_names_nothing_that_is_not_there():
    modules = (adaflood, averaging, methods, levels, criterion)
    known = {name for module in modules for name in module.__all__}
    assert {name for classes in _index().values() for name in classes} <= known


def _commands(page: Path) -> list[list[str]]:
    codes = [code.replace("\\\n", "") for _, language, code in fences(page) if language == "sh"]
    lines = [line for code in codes for line in code.splitlines()]
    return [
        shlex.split(line, comments=True)[2:] for line in lines if line.startswith("flooding run ")
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "\nflooding run" in page.read_text()], ids=_name
)
def test_documented_commands_run(page):
    assert _commands(page)
    for words in _commands(page):
        if "--mlflow" in words:
            pytest.importorskip("mlflow")
            pytest.importorskip("tensorboard")
        result = CliRunner().invoke(cli.app, ["run", *words, *SMALL])
        assert result.exit_code == 0, result.output or result.exception


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 + 1  # -> 3", "says 3, got 2"),
        ("x = 2  # -> 2", "only an expression"),
        ("for i in range(2):\n    i  # -> 0\n    pass", "outer level"),
        ("(1 +  # -> 1\n 1)", "outer level"),
    ],
    ids=["a wrong value", "a statement", "inside a loop", "inside an expression"],
)
def test_an_arrow_that_does_not_hold_fails(code, message):
    with pytest.raises(AssertionError, match=message):
        run_block(code, {})


def test_an_arrow_that_holds_counts():
    assert run_block("x = 1\nx + 1  # -> 2\nf'{x}'  # -> '1'\n", {}) == 2
