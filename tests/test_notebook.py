"""What people see of objects in a notebook and in Python's own shell."""

from __future__ import annotations

import base64
import code
import io
import logging
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch import nn

from flooding import Flood, FloodStep, Record, Run, flood, soft_flood
from flooding.data import Split, Splits
from flooding.level_search import result_html
from flooding.level_search.external import ExternalProblem
from flooding.level_search.result import LevelEstimate, SearchResult
from flooding.levels import Excess, PerClass, PerExample, Plateau, Warmup
from flooding.methods import IFlood
from flooding.testing import fake_record
from flooding.text import brief
from flooding.training import runner
from flooding.training.loop import train
from small import small

README = Path(__file__).parents[1] / "README.md"
PNG = b"\x89PNG\r\n\x1a\n"

CELLS = [
    """
from functools import partial

import torch
from flooding import Problem, find_level
from flooding.data.synthetic import two_gaussians
from flooding.models import mlp

def network():
    return mlp(10, 2, width=20)

data = partial(two_gaussians, n_test=100, label_noise=0.1)
problem = Problem(data, network, partial(torch.optim.Adam, lr=0.01), max_epochs=20)
""",
    "result = find_level(problem, workers=0, progress=True)",
    "result",
    "problem",
    "import sys; print('matplotlib.pyplot' in sys.modules)",
    # The default waits for two seconds of work.
    "from flooding.training import progress; progress._DELAY = 0.05",
    "print(find_level(problem, workers=0).level)",
    "print(find_level(problem, workers=0, progress=False).level)",
]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The outputs of each cell, in a list."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOODING_LEDGER", str(folder / "ledger.sqlite"))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("IPYTHONDIR", str(folder))
        cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
        book = nbformat.v4.new_notebook(cells=cells)
        NotebookClient(book, timeout=120, startup_timeout=120, kernel_name="python3").execute(
            cwd=str(folder)
        )
    return [cell.outputs for cell in book.cells]


def htmls(outputs):
    """The HTML of each output that has some."""
    return [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]


def pictures(html):
    """The pictures in a page, as bytes."""
    return [
        base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    ]


class Checker(HTMLParser):
    """Checks that every tag is closed, and collects the tags."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def searched(**changes):
    """A result of three Records."""
    problem = small(max_epochs=20)
    runs = [Run(problem, level) for level in (None, 0.1, 0.2)]
    parts = {
        "strategy": "by hand",
        "run": runs[1],
        "estimates": (LevelEstimate("race", 0.1, 0.05, 0.2, "judged by eye"),),
        "warnings": ("only three levels",),
        "records": tuple(fake_record(run) for run in runs),
    }
    return SearchResult(**parts | changes)


# The notebook


def test_a_notebook_shows_the_bar(notebook):
    [bar] = htmls(notebook[1])
    assert re.search(r"\d+ epochs in \d+ s", bar)
    assert "━" in bar
    # Nothing else is in the cell, and no complaint about a missing widget.
    assert [output.output_type for output in notebook[1]] == ["display_data"]


def test_a_notebook_shows_the_result(notebook):
    [html] = htmls(notebook[2])
    [picture] = pictures(html)
    assert picture.startswith(PNG)
    assert "Flood level" in html
    assert "SearchResult(level=" in notebook[2][0].data["text/plain"]


def test_pyplot_is_not_imported_for_it(notebook):
    assert notebook[4][0].text == "False\n"


def test_the_default_shows_the_bar_of_long_work(notebook):
    assert re.search(r"\d+ epochs in \d+ s", htmls(notebook[6])[0])


def test_false_shows_no_bar(notebook):
    assert htmls(notebook[7]) == []
    assert [output.output_type for output in notebook[7]] == ["stream"]


# The page of a result


@pytest.fixture(scope="module")
def page():
    """The page of a result."""
    return searched()._repr_html_()


def test_the_table_says_what_matters(page):
    checker = parse(page)
    text = " ".join(checker.text)
    assert "Flood level 0.1" in text
    assert "Selected by by hand: race, from 0.05 to 0.2 (judged by eye)" in text
    assert re.search(r"Cost [\d.]+ trainings' steps, 60 epochs, \d+ s of training", text)
    assert "Warnings only three levels" in text


def test_a_picture_of_the_figure_is_in_the_page(page):
    from matplotlib.image import imread

    [picture] = pictures(page)
    height, width, _ = imread(io.BytesIO(picture)).shape
    assert width == 560
    assert height > 400


def test_it_is_readable_on_a_dark_page(page):
    checker = parse(page)
    for tag, attributes in checker.tags:
        style = attributes.get("style", "")
        if tag == "img":
            assert "background:white" in style  # black text is drawn on it
        else:
            assert "color" not in style
            assert "background" not in style
            assert attributes.keys() <= {"style"}


def test_names_are_escaped():
    name = '<script>alert("1")</script>&\x1b[31m$_$'  # the dollars would be a formula
    result = searched(
        strategy=name,
        estimates=(LevelEstimate(name, 0.1, note=name),),
        warnings=(name, "two"),
    )
    html = result._repr_html_()
    checker = parse(html)
    assert {tag for tag, _ in checker.tags} <= {"div", "table", "tr", "th", "td", "b", "br", "img"}
    assert "\x1b" not in html
    # Strategy and estimate have one name, and then the note and the warning.
    assert html.count("&lt;script&gt;") == 3


def test_without_matplotlib_there_is_a_table_and_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    html = searched()._repr_html_()
    assert pictures(html) == []
    assert "Flood level" in html
    assert re.search(r"<p>[^<]*matplotlib[^<]*pip install[^<]*</p>", html)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"run": Run(small(), None)}, "none: train without flooding"),
        ({"run": Run(small(), Plateau(0.2))}, "0.1, moved by Plateau("),
        ({"run": Run(small(), Plateau(0.2)), "estimates": ()}, "unknown, moved by Plateau("),
        ({"records": (), "estimates": (), "warnings": ()}, "0.1"),
        ({"run": Run(small(), -0.25)}, "-0.25"),
    ],
    ids=["no flooding", "a controller", "a controller without a level", "no records", "negative"],
)
def test_every_kind_of_result_has_a_page(monkeypatch, changes, level):
    monkeypatch.setattr(result_html, "_picture", lambda result: "")  # plots have tests of their own
    html = searched(**changes)._repr_html_()
    assert f"<b>{level}" in html
    parse(html)


def test_a_page_draws_no_pyplot_figure(page):
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    with plt.rc_context({"axes.facecolor": "black", "savefig.facecolor": "black"}):
        black = searched()._repr_html_()
    assert black == page
    assert plt.get_fignums() == before


# Reprs


def _step(level, **options):
    return FloodStep(torch.optim.Adam([torch.zeros(1, requires_grad=True)]), level, **options)


def _tensors():
    split = Split(torch.zeros(30, 4), torch.arange(30) % 2)
    return Splits(split, split)


def local_function():
    return lambda: nn.Linear(10, 2)


SHOWN = {
    "a result": (
        searched,
        r"SearchResult\(level=0.1, strategy='by hand', trainings=3.0, epochs=60, warnings=1\)",
    ),
    "a result with a controller": (
        lambda: searched(run=Run(small(), Plateau(0.2))),
        r"SearchResult\(level=0.1, strategy='by hand', run.level=Plateau\(.*\), trainings=3.0, .*",
    ),
    "an estimate": (
        lambda: LevelEstimate("race", 0.1, 0.05, 0.2),
        r"LevelEstimate\(name='race', level=0.1, low=0.05, high=0.2, note=''\)",
    ),
    "a problem": (
        lambda: small(max_epochs=500),
        r"Problem\(data=two_gaussians\(n_train=40, n_val=30, n_test=200\), "
        r"model=mlp\(10, 2, width=16, depth=2\), optimizer=Adam\(lr=0.01\), max_epochs=500\)",
    ),
    "a problem of tensors": (
        lambda: small(data=_tensors(), model=nn.Linear(4, 2), key="mine"),
        r"Problem\(data=<Splits of 30, 30 and 0 examples>, model=Linear\(.*\), .*key='mine'\)",
    ),
    "a problem of lambdas": (
        lambda: small(model=local_function(), loss=lambda x, y: x.mean()),
        r"Problem\(.*model=<lambda>, .*loss=<lambda>, .*\)",
    ),
    "a run": (
        lambda: Run(small(), 0.3, IFlood(), seed=2, stop_epoch=4),
        r"Run\(level=0.3, seed=2, problem=Problem\(...\), method=IFlood\(\), stop_epoch=4\)",
    ),
    "a run of a table": (
        lambda: Run(small(), PerClass([0.1, 0.2]), IFlood()),
        r"Run\(level=PerClass\(\[0.1, 0.2\]\), seed=0, .*",
    ),
    "a record": (
        lambda: fake_record(Run(small(), 0.3, seed=1)),
        r"Record\(level=0.3, seed=1, epochs=6.0, val_accuracy=0?\.\d+, val_loss=\d+\.\d+\)",
    ),
    "a record without a run": (
        lambda: Record(None, {"x": np.zeros(99)}, {}, {"last.val_loss": 1 / 3}, "", ""),
        r"Record\(level=None, seed=None, val_loss=0.3333\)",
    ),
    "a few levels": (lambda: PerClass([0.1, 1 / 3]), r"PerClass\(\[0.1, 0.3333\]\)"),
    "many levels": (
        lambda: PerExample(torch.arange(1, 901) / 1000, torch.arange(900)),
        r"PerExample\(900 levels, 0.001 to 0.9\)",
    ),
    "an excess": (lambda: Excess(0.1, 2), r"Excess\(level=0.1, classes=2, label_smoothing=0.0\)"),
    "a criterion": (
        lambda: Flood(nn.MSELoss(), 0.1),
        r"Flood\(\n  level=0.1, method=Flooding\(\)\n  \(criterion\): MSELoss\(\)\n\)",
    ),
    "a criterion of a function": (
        lambda: Flood(partial(nn.functional.cross_entropy, label_smoothing=0.1), 0.1),
        r"Flood\(criterion=cross_entropy\(label_smoothing=0.1\), level=0.1, method=Flooding\(\)\)",
    ),
    "a step": (lambda: _step(0.1), r"FloodStep\(Adam, level=0.1\)"),
    "a step without a level": (lambda: _step(None), r"FloodStep\(Adam, level=None\)"),
    "a step of a tensor": (
        lambda: _step(torch.tensor(0.25)),
        r"FloodStep\(Adam, level=tensor\(0.2500\)\)",
    ),
    "a step of a controller": (
        lambda: _step(Warmup(0.3, steps=3)),
        r"FloodStep\(Adam, level=Warmup\(level=0.3, steps=3.*\), now=\S+\)",
    ),
    "a step with other options": (
        lambda: _step(0.1, objective=soft_flood, per_microbatch=True),
        r"FloodStep\(Adam, level=0.1, objective=soft_flood, per_microbatch=True\)",
    ),
    "a row": (
        lambda: list(train(Run(small(max_epochs=1), 0.3)))[-1],
        r"EpochResult\(run=Run\(.*\), epoch=1, values=\{.*\}, record=Record\(.*\)\)",
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_is_short(name):
    make, pattern = SHOWN[name]
    text = repr(make())
    assert re.fullmatch(pattern, text), text
    assert " at 0x" not in text
    if name != "a row":
        assert len(text) <= 300
    if not name.startswith("a criterion"):  # torch's own modules have several lines
        assert text.isprintable()


@pytest.mark.parametrize("level", [PerClass, partial(PerExample, ids=torch.arange(100))])
def test_runs_of_other_tables_cost_more_than_one(level):
    # Their reprs are equal, their levels are not.
    first = torch.linspace(0.1, 0.2, 100)
    second = first.clone()
    second[50] = 0.11
    problem = small()
    runs = [Run(problem, level(levels), IFlood()) for levels in (first, second)]
    assert repr(runs[0]) == repr(runs[1])
    result = searched(records=tuple(fake_record(run) for run in runs))
    assert result.cost.trainings == 2.0


def test_a_search_of_the_users_own_code_has_a_repr():
    run = Run(ExternalProblem(10), 0.1)
    text = repr(SearchResult("grid", run))
    assert text.startswith("SearchResult(level=0.1, strategy='grid', ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"),
        ("\x1b[2J", r"'\x1b[2J'"),
        (sorted, "sorted"),
        (nn.Linear, "Linear"),
        (partial(partial(sorted, key=len), reverse=True), "sorted(key=len, reverse=True)"),
        (np.zeros((3, 4)), "ndarray[3, 4]"),
        (torch.zeros(3), "Tensor[3]"),
        (nn.Sequential(nn.ReLU()), "Sequential(...)"),
        ("x" * 100, "str(...)"),
        (partial(sorted, **{f"argument_{i}": i for i in range(9)}), "sorted(argument_0=0, "),
    ],
    ids=str,
)
def test_values_are_shown_in_a_few_words(value, text):
    shown = brief(value)
    assert shown.startswith(text)
    assert len(shown) <= 60
    assert shown.isprintable()


# Python's own shell


def blocks():
    """The Python blocks of the README."""
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def paste(text):
    """Type a block into Python's shell, line by line; returns what it complained about."""
    shell = code.InteractiveConsole({"__name__": "__main__"})
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        for line in [*text.splitlines(), ""]:
            is_incomplete = shell.push(line)
    assert not is_incomplete
    return errors.getvalue()


@pytest.mark.usefixtures("_short")
def test_the_readme_can_be_pasted():
    # One session for all, as for a reader; trainings as short as possible.
    text = "\n".join(blocks())
    assert len(blocks()) >= 2
    assert "max_epochs=200" in text
    assert paste(text.replace("max_epochs=200", "max_epochs=3")) == ""


@pytest.fixture
def _short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    # Starting workers takes longer than the trainings.
    monkeypatch.setattr(runner, "_split_by_place", lambda jobs, count, workers: ([], jobs))
    # A command line that ran before in this process lets the log print.
    monkeypatch.setattr(logging.getLogger("flooding"), "handlers", [])
    # On a busy machine even these take longer than the time after which progress is shown.
    monkeypatch.setattr("flooding.training.progress._DELAY", 3600.0)


def test_a_block_without_a_blank_line_after_a_loop_cannot_be_pasted():
    assert "SyntaxError" in paste("for i in range(2):\n    i\nprint(i)\n")
    assert paste("for i in range(2):\n    i\n\nprint(i)\n") == ""
    assert "IndentationError" in paste("def f():\n    x = 1\n\n    return x\n")


def test_the_objective_is_not_shown_where_it_is_the_usual_one():
    assert "objective" not in repr(_step(0.1, objective=flood))
