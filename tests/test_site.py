"""The site: it builds strictly, documents every public name, and works in a real browser.

``python docs/check_site.py`` checks every page in the browser; here a few stand for all.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from browser import overflow, serious_faults, serve, visit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import check_site  # noqa: E402

sys.path.remove(str(ROOT / "docs"))
HOOKS = ROOT / "docs" / "hooks"
SOURCE = ROOT / "src"
pytest.importorskip("mkdocs", reason="the site needs pip install -e '.[docs]'")


def hook(name):
    sys.path.insert(0, str(HOOKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(HOOKS))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; any warning fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


# The reference


def public_names():
    """Every name of an ``__all__``, with its module; read anew, without the hook."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if "._" in name or name.startswith("flooding.cli"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield from ((name, item) for item in ast.literal_eval(node.value))


def test_every_public_name_is_on_a_page_of_the_reference(site):
    ids, links = set(), set()
    for path in site.glob("api/*/index.html"):
        text = path.read_text()
        ids |= set(re.findall(r'id="(flooding\.[\w.]+)"', text))
        # "Also here": a link to where the name is documented.
        pairs = re.findall(r'href="[^"]*#([\w.]+)"><code>(\w+)</code>', text)
        links |= {(path.parent.name, name) for target, name in pairs if target.endswith(name)}
    names = list(public_names())
    assert len(names) > 800
    missing = []
    for module, name in names:
        page = ".".join(module.split(".")[:2])
        if f"{module}.{name}" not in ids and (page, name) not in links:
            missing.append(f"{module}.{name}")
    assert not missing


def test_every_public_name_is_documented():
    griffe = pytest.importorskip("griffe")
    hook("api_pages")
    extensions = griffe.load_extensions(str(HOOKS / "docstrings.py"))
    package = griffe.load("flooding", search_paths=[str(SOURCE)], extensions=extensions)
    undocumented = []
    for module, name in public_names():
        item = package[module.removeprefix("flooding").lstrip(".")] if "." in module else package
        item = item[name]
        item = item.final_target if item.is_alias else item
        if item.docstring is None or not item.docstring.value.strip():
            undocumented.append(f"{module}.{name}")
    assert not undocumented


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("# Above,\n# in two lines.\nLEVEL = 1", 3, "Above, in two lines."),
        ("LEVEL = 1  # in nats", 1, "in nats"),
        ("# Of another one.\n\nLEVEL = 1", 3, ""),
    ],
    ids=["above", "at the end of the line", "not its own"],
)
def test_the_comment_of_a_constant_documents_it(text, line, expected):
    assert hook("docstrings").comment_of(text.splitlines(), line, line) == expected


# Links and pages


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[a](which-network-to-keep.md#x)", "[a](which-network-to-keep.md#x)"),
        ("[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("[a](decisions/)", "[a](decisions/README.md)"),
        ("[a](../src/flooding/step/flood_step.py)", "[a](api/flooding.step.md)"),
        ("[a](../examples/own_loop.py)", "[a](examples/own_loop.md)"),
        ("[![i](images/boundary.png)](demo.md)", "[![i](images/boundary.png)](demo.md)"),
        ("[`a`](../constraints.txt)", "`a`"),
        ("[a](#here) and [b](https://arxiv.org)", "[a](#here) and [b](https://arxiv.org)"),
        ("```\n[a](nowhere.md)\n```", "```\n[a](nowhere.md)\n```"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(link, expected, monkeypatch):
    monkeypatch.syspath_prepend(HOOKS)  # a hook imports another one when it is first called
    assert hook("links").translate(link, "docs/page.md", "page.md") == expected


def test_a_link_of_a_page_elsewhere_and_a_broken_one(monkeypatch):
    monkeypatch.syspath_prepend(HOOKS)
    translate = hook("links").translate
    assert translate("[a](docs/demo.md)", "README.md", "index.md") == "[a](demo.md)"
    assert translate("[a](../LICENSE)", "docs/x.md", "x.md") == "a"
    page = "examples/index.md"
    assert translate("[a](../docs/demo.md)", "examples/README.md", page) == "[a](../demo.md)"
    with pytest.raises(FileNotFoundError, match=r"docs/x.md links to nowhere.md, which is not"):
        translate("[a](nowhere.md)", "docs/x.md", "x.md")


def test_the_navigation_has_a_page_once_it_is_there(tmp_path):
    expand = hook("extra_pages")._expand
    assert expand({"Scaling": "scaling/"}, tmp_path) == []
    assert expand({"a": ["scaling/"]}, tmp_path) == []
    (tmp_path / "scaling").mkdir()
    for name in ("fleet.md", "README.md", "cluster.md"):
        (tmp_path / "scaling" / name).write_text("# x\n")
    pages = ["scaling/README.md", "scaling/cluster.md", "scaling/fleet.md"]
    assert expand({"Scaling": "scaling/"}, tmp_path) == [{"Scaling": pages}]
    assert expand({"a": [{"b": "b.md"}, "scaling/"]}, tmp_path) == [{"a": [{"b": "b.md"}, *pages]}]


def test_an_example_is_a_page_with_its_picture(site):
    page = (site / "examples" / "own_loop" / "index.html").read_text()
    assert 'src="../images/own_loop.png"' in page
    assert 'class="figure" href="../images/own_loop.png"' in page
    assert (site / "examples" / "images" / "own_loop.png").exists()


# In a browser


@pytest.fixture(scope="module")
def address(site):
    with serve(site) as started:
        yield started


@pytest.mark.parametrize(
    "page",
    [
        "",
        "choosing-a-level/",
        "api/flooding.criterion/",
        "examples/",
        "exactness/",
        "results/ishida2020/",
    ],
)
def test_a_page_loads_cleanly_fits_a_phone_and_can_be_used_by_all(browser, address, page):
    with visit(browser, f"{address}/{page}") as seen:
        assert serious_faults(seen.page) == []
        with check_site.dark_colours(seen.page):
            assert serious_faults(seen.page) == []
        seen.page.set_viewport_size({"width": 360, "height": 800})
        assert overflow(seen.page) == 0
        assert seen.errors == []
        assert seen.outside == []


def test_search_finds_flood_step(browser, address):
    with visit(browser, f"{address}/") as seen:
        seen.page.keyboard.press("/")
        seen.page.keyboard.type("FloodStep")
        results = seen.page.locator(".md-search-result__link")
        results.first.wait_for(timeout=60_000)
        links = [link.get_attribute("href") for link in results.all()]
        assert any("flooding.FloodStep" in link for link in links), links
        assert seen.errors == []
        assert seen.outside == []
