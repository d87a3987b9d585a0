"""The generated parts of the pages are those of code and data, and documented searches run."""

import importlib.util
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flooding import cli
from flooding.cli import _run
from flooding.entries import DATASETS, entry_names

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generate():
    """The generator, docs/generate.py, with its parts."""
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_every_part_is_up_to_date(generate):
    for (page, name), write in generate.PARTS.items():
        if name == "demo":  # it trains for minutes
            continue
        text = (ROOT / page).read_text()
        part = f"<!-- {name}:begin -->\n{write()}\n<!-- {name}:end -->"
        assert part in text, f"{page}, {name}: run python docs/generate.py {name}"


def test_every_marked_part_has_a_writer(generate):
    # Those of benchmarks/*.py.
    others = {"searches-synthetic", "searches-real", "auto-level", "table", "pruners", "simulation"}
    pages = [ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        names = re.findall(r"<!-- ([\w-]+):begin -->", page.read_text())
        place = page.relative_to(ROOT).as_posix()
        assert {(place, name) for name in {*names} - others} == {
            key for key in generate.PARTS if key[0] == place
        }


def test_the_table_of_options_is_that_of_the_command_line(generate):
    table = generate.options()
    assert "`--label-noise` | 0.1; digits 0.2; fetched 0 to 0.2 |" in table
    assert "`--ledger` | the user's state folder |" in table
    assert table.count("\n") > 30


def test_every_built_in_task_is_named():
    text = _run.Task.__metadata__[0].help
    page = (ROOT / "docs" / "command-line.md").read_text()
    for name in entry_names(DATASETS):
        assert re.search(rf"\b{name}\b", text)
        assert f"`{name}`" in page


def test_only_the_marked_part_is_replaced(generate):
    assert (
        generate.put("a<!-- x:begin -->\nold\n<!-- x:end -->b", "x", r"n\ew")
        == "a<!-- x:begin -->\nn\\ew\n<!-- x:end -->b"
    )


def test_the_words_of_the_advice_follow_the_numbers(generate):
    advice = generate.advice
    methods = advice.read_methods()
    page = "- Flooding minus plain: most on Spiral, 5 % +1.5 [+0.1, +2.9]; and so on\n"

    def said(plain, stopping):
        gains = {"plain": advice.Gain(*plain), "early stopping": advice.Gain(*stopping)}
        return advice.sentences(methods, gains, page)

    unsure = said((2.1, False), (-1.4, False))
    assert "try flooding or another regulariser.** Flooding gained +2.1 points" in unsure[0]
    assert "on average, not significant, and +1.5 on Spiral with 5 % label noise; " in unsure[0]
    assert "; dropout and weight decay gained as much or more." in unsure[0]
    assert "and is as good (flooding minus it: −1.4 points, not significant)." in unsure[1]
    sure = said((2.1, True), (-1.4, True))
    assert "use flooding or another regulariser.**" in sure[0]
    assert "on average, and +1.5" in sure[0]
    assert "and is better (flooding minus it: −1.4 points)." in sure[1]
    assert "and is worse (flooding minus it: +1.4 points)." in said((2.1, True), (1.4, True))[1]
    assert "try flooding or" in said((-2.1, True), (-1.4, True))[0]
    alone = {name: methods[name] for name in ("plain", "flooding")}
    gains = {"plain": advice.Gain(2.1, True), "early stopping": advice.Gain(-1.4, True)}
    assert "use flooding.** Flooding gained" in advice.sentences(alone, gains, page)[0]
    order = {
        "flooding": replace(methods["flooding"], rank=2.5),
        "SAM": replace(methods["SAM"], rank=1),
    }
    text = advice.sentences(
        order | {"plain": methods["plain"]},
        {"plain": advice.Gain(0, False), "early stopping": advice.Gain(0, False)},
        page,
    )[2]
    assert "SAM has the best mean rank of 3 methods, but flooding is as good." in text
    many = advice.sentences(order, gains, f"{page} over 13 problems")[2]
    assert "SAM has the best mean rank of 2 methods. " in many, "1.5 ranks are much for 13 problems"


def test_a_reader_of_the_advice_keeps_five_numbers_in_mind(generate):
    page = (ROOT / "README.md").read_text().partition("<!-- advice:begin -->\n")[2]
    lines = page.partition("\n\n")[0]
    assert lines.count("\n") == 2
    assert 1 <= len(re.findall(r"\d+(?:\.\d+)?", lines)) <= 5
    # Words of statistics belong to the page behind the link.
    assert not re.search(r"\bp\b|Holm|interval|[\[±]", lines)


def test_the_gains_are_read_from_the_page(generate):
    read = generate.advice.read_gains
    gain = generate.advice.Gain
    page = (
        "- flooding against plain: is not shown to differ: +2.1 [+0.4, +3.9] points, p 0.187.\n"
        "- Planned: flooding against early stopping: LOSES: -1.4 [-2.8, -0.1] points, p 0.023.\n"
        "- flooding + early stopping against plain: wins: +3.2 [+1.2, +5.1] points, p 0.041.\n"
    )
    assert read(page) == {"plain": gain(2.1, False), "early stopping": gain(-1.4, True)}


def test_what_one_training_gains_is_that_of_its_table():
    card = (ROOT / "docs" / "methods" / "auto.md").read_text()

    def all_seeds(row):
        [cells] = re.findall(rf"^\| {re.escape(row)} \|.*\| ([+-]\d.*) \|$", card, re.MULTILINE)
        mean, low, high = map(float, re.findall(r"[+-]\d+\.\d+", cells))
        return mean, low, high

    gain, low, high = all_seeds("last epoch minus exhaustive, 51 levels")
    assert low < 0 < high
    assert abs(gain) < 0.1
    gain, low, _ = all_seeds("last epoch minus plain, last epoch")
    assert low > 0
    page = " ".join((ROOT / "docs" / "choosing-a-level.md").read_text().split())
    assert f"was {gain:.1f} points more accurate than that of plain training, and as good" in page


def test_the_rule_of_thumb_counts_problems_where_flooding_helps(generate):
    row = generate.rule_of_thumb.Row
    text = generate.rule_of_thumb.table([
        row("a", 0.1, (0.4, 0.6), 3, 2.0),
        row("b", 0.1, (0.1, 0.3), 2, 0.9),
    ])
    assert "Start at **0.5 times the lowest validation loss**" in text
    assert "| 10 % | a | 0.50 ± 0.14 | 0.40 to 0.60 | 2 of 3 | +2.0 |" in text
    assert "| 10 % | b | 0.20 ± 0.14 | 0.10 to 0.30 | 2 of 2 | +0.9 |" in text


@pytest.mark.parametrize(
    "page", ["README.md", "docs/start.md", "docs/tables.md", "docs/report-page.md"]
)
def test_documented_searches_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    rows = [f"{7 * i % 11 + 2 * (i % 2)},{['yes', 'no'][i % 2]}" for i in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["size,income", *rows]))
    (tmp_path / "new.csv").write_text("size\n3\n9\n")
    lines = re.findall(r"^flooding (?:find|predict) .*", (ROOT / page).read_text(), re.MULTILINE)
    for line in lines:
        words = shlex.split(line, comments=True)
        monkeypatch.setattr(
            sys, "argv", words + ["--epochs", "2", "--workers", "0"] * (words[1] == "find")
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, f"{line}: {capsys.readouterr().err}"
    if "report" in page:
        assert (tmp_path / "flooding-find" / "report.html").exists()
        return
    assert len(lines) == 2
    answers = capsys.readouterr().out
    if "--out predictions.csv" in lines[-1]:
        answers = (tmp_path / "predictions.csv").read_text()
    assert re.search(r"^income\n(yes|no)\n(yes|no)$", answers, re.MULTILINE)
