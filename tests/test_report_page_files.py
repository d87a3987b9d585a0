"""Where report pages are written: by Python, in a notebook, and by four commands."""

import base64
import csv
import io
import json
import shlex
import sys

import numpy as np
import pytest
from PIL import Image

from flooding.report.page import Page, Section, Sentences
from pages import check_is_alone, check_structure, elements, parse, rows_of, searched

OWN = """
from matplotlib.figure import Figure
from flooding import Run
from flooding.experiments import Experiment
from flooding.report.document import Report, Table
from small import small

def draw():
    figure = Figure(figsize=(9, 3))
    figure.subplots().plot([1, 2, 3])
    return figure

def start(quick, seeds):
    records = yield [Run(small(max_epochs=2), 0.1)]
    table = Table("t", "A table", ["task", "accuracy"], [["a < b", "87.4 ± 0.9"]])
    figures = {"line": ("A line.", draw)}
    about, failed, found = "About **this**.", ("It failed.",), ("Found.",)
    return Report("Mine", about, failed, found, (table,), figures, "n = 1.")

experiment = Experiment("mine", start, ("train_loss",))
problem = small(max_epochs=10)
"""


@pytest.fixture(scope="module")
def result():
    return searched()


def test_a_page_is_saved_and_replaces_only_a_page(result, tmp_path):
    path = tmp_path / "new" / "page.html"
    page = result.report(path)
    assert path.read_text() == page.html
    result.report(path)
    other = tmp_path / "mine.html"
    other.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match="which is something else"):
        result.report(other)
    assert other.read_text() == "<p>mine</p>"
    with pytest.raises(ValueError, match=r"must end in \.html, got .*page\.pdf"):
        result.report(tmp_path / "page.pdf")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError, match="got the folder"):
        result.report(tmp_path / "folder.html")


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(result):
    page = result.report()
    [frame] = parse(f"<div>{page._repr_html_()}</div>").find("iframe")
    assert frame.attributes["srcdoc"] == page.html
    assert frame.attributes["sandbox"] == "allow-scripts"
    assert frame.attributes["title"]
    assert len(repr(page)) < 60


# The command line


def table(path, columns=("size", "colour", "income"), classes=("no", "yes")):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i in range(60):
            writer.writerow([
                (i * 7) % 11 + 2 * (i % 2),
                ["red", "blue", ""][i % 3],
                classes[i % 2],
            ])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with a small problem and an experiment, in the folder of the test."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "pages_own.py").write_text(OWN)
    sys.modules.pop("pages_own", None)


@pytest.mark.usefixtures("own")
def test_find_writes_a_page_in_its_folder(flooding, tmp_path):
    line = "find --report pages_own:problem --workers 0 --out here"
    code, out, err = flooding(line)
    assert code == 0, err
    assert "Report page:" in out
    html = (tmp_path / "here" / "report.html").read_text()
    root = parse(html)
    check_structure(root)
    check_is_alone(html)
    found = json.loads((tmp_path / "here" / "found.json").read_text())
    [answer] = root.find("p", **{"class": "answer"})
    if found["level"] is None:
        assert answer.text.startswith("Train without flooding")
    else:
        assert f"flood level {found['level']:.4g} " in answer.text
    assert f"flooding {line.replace('--report', '--report=')}" in html or f"flooding {line}" in html
    assert "pages_own:problem" in next(root.find("h1")).text
    # The same command with a file: the same page, but for the command on it.
    code, out, err = flooding(line.replace("--report", "--report page.html") + " --json")
    assert code == 0, err
    assert json.loads(out)["report"] == str(tmp_path / "page.html")
    again = (tmp_path / "page.html").read_text()
    commands = ("find --report page.html", "find --report"), (" --out here --json", " --out here")
    for one, other in commands:
        again = again.replace(one, other)
    assert again == html


def test_hostile_columns_and_classes_reach_the_page_as_text(flooding, tmp_path):
    columns = ["</script><script>x()</script>", 'a"b<i>', "income<img src=x>"]
    table(tmp_path / "people.csv", columns, ["no</style>", "<b>yes</b>"])
    target = shlex.quote(columns[2])
    line = f"find people.csv --target {target} --epochs 2 --workers 0 --report"
    code, _, err = flooding(line)
    assert code == 0, err
    html = (tmp_path / "flooding-find" / "report.html").read_text()
    kinds = {node.tag for node in elements(parse(html))}
    assert not kinds & {"img", "i", "b"}
    assert len(list(parse(html).find("script"))) == 2
    assert "income<img src=x>" in parse(html).text


@pytest.mark.usefixtures("own")
def test_compare_writes_a_page(flooding, tmp_path):
    methods = "plain,early-stopping,flooding"
    line = f"compare pages_own:problem --seeds 2 --methods {methods} --workers 0 --report --json"
    code, out, err = flooding(line)
    assert code == 0, err
    ranking = json.loads(out)["ranking"]
    html = (tmp_path / "flooding-compare" / "report.html").read_text()
    root = parse(html)
    check_structure(root)
    check_is_alone(html)
    rows = rows_of(root, "table-ranking")
    assert [row[1] for row in rows] == [row["method"] for row in ranking]
    means = [np.mean(row["validation"]) for row in ranking]
    assert np.allclose([float(row[2]) for row in rows], means, atol=0.051)
    [answer] = root.find("p", **{"class": "answer"})
    winner = ranking[0]
    best = f"{winner['method'].capitalize()} is best on the validation rows: accuracy"
    assert answer.text.startswith(f"{best} {np.mean(winner['validation']):.1f} %")
    assert " ".join(json.loads(out)["sentence"].split()) in root.text
    # A method is shown at the epoch that it is judged at.
    [diagram] = [f for f in root.find("figure") if f.text.startswith("Reliability")]
    at = "best" if winner["method"] == "early stopping" else "last"
    assert f"{winner['method'].capitalize()}, first seed, {at} epoch" in diagram.text


@pytest.mark.usefixtures("own")
def test_reproduce_writes_a_page_from_its_report(flooding, tmp_path):
    code, out, err = flooding("reproduce pages_own:experiment --workers 0 --report")
    assert code == 0, err
    assert "Report page:" in out
    html = (tmp_path / "flooding-results" / "mine.html").read_text()
    root = parse(html)
    check_structure(root)
    check_is_alone(html)
    [answer] = root.find("p", **{"class": "answer"})
    assert answer.text == "1 finding; 1 result could not be reproduced."
    for text in ("It failed.", "Found.", "A line.", "About this.", "a < b", "n = 1."):
        assert text in root.text
    [picture] = root.find("img")
    png = base64.b64decode(picture.attributes["src"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(png)) as image:
        assert image.width == 1000  # of 1350 that were drawn
    assert rows_of(root, "table-t") == [["a < b", "87.4"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("find spiral --report page.pdf", "unexpected extra argument"),
        ("find spiral --report=page.pdf", "must end in .html"),
        ("find spiral --report mine.html", "which is something else"),
        ("compare spiral --report mine.html", "which is something else"),
        ("demo --report mine.html", "which is something else"),
        ("reproduce kim2022 --report mine.html", "which is something else"),
        ("find spiral --report mine.html/page.html", "must not be, or lie below, a file"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_trained(flooding, tmp_path, line, message):
    (tmp_path / "mine.html").write_text("mine")
    code, _, err = flooding(line)
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


def test_a_missing_library_is_an_error_with_the_command_that_installs_it(monkeypatch):
    from flooding.report import page_file

    monkeypatch.setitem(sys.modules, "jinja2", None)
    page_file._environment.cache_clear()
    with pytest.raises(ImportError, match=r"Jinja2, which is missing.*pip install"):
        Page("t", "a", {}, (), [Section("s", "S", [Sentences(["x"])])]).render()
    page_file._environment.cache_clear()
