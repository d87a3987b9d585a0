"""The generated parts of the README are those of the code, and its searches run as written."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from flooding import cli
from flooding.cli import _run
from flooding.entries import DATASETS, entry_names

ROOT = Path(__file__).parents[1]


def readme():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_options_is_that_of_the_command_line():
    table = readme().options()
    assert table in (ROOT / "README.md").read_text(), "run: python docs/readme.py"
    assert "`--label-noise` | 0.1; digits 0.2; fetched 0 to 0.2 |" in table
    assert "`--ledger` | the user's state folder |" in table
    assert table.count("\n") > 30


def test_every_built_in_task_is_named():
    text = _run.Task.__metadata__[0].help
    page = (ROOT / "README.md").read_text()
    for name in entry_names(DATASETS):
        assert re.search(rf"\b{name}\b", text)
        assert f"`{name}`" in page


def test_when_to_use_it_is_what_the_bake_off_says():
    text = readme().advice()
    assert text in (ROOT / "README.md").read_text(), "run: python docs/readme.py"
    prose, _, link = text.partition(" [The tests behind this](")
    assert link == "docs/results/bakeoff.md#found)."
    assert len(re.findall(r"\d+(?:\.\d+)?", prose)) <= 5, "a reader keeps no more in mind"
    # Words of statistics belong to the page behind the link.
    assert not re.search(r"\bp\b|Holm|interval|nats|[\[±]", prose)


def test_the_advice_links_from_any_folder():
    text = readme().advice(ROOT / "docs" / "methods")
    assert text.endswith("[The tests behind this](../results/bakeoff.md#found).")


def test_only_the_marked_part_is_replaced():
    put = readme().put
    assert (
        put("a<!-- x:begin -->\nold\n<!-- x:end -->b", "x", r"n\ew")
        == "a<!-- x:begin -->\nn\\ew\n<!-- x:end -->b"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/choosing-a-level.md"])
def test_documented_searches_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    rows = [f"{7 * i % 11 + 2 * (i % 2)},{['yes', 'no'][i % 2]}" for i in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["size,income", *rows]))
    (tmp_path / "new.csv").write_text("size\n3\n9\n")
    lines = re.findall(r"^flooding (?:find|predict) .*", (ROOT / page).read_text(), re.MULTILINE)
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line, comments=True)
        monkeypatch.setattr(
            sys, "argv", words + ["--epochs", "2", "--workers", "0"] * (words[1] == "find")
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, f"{line}: {capsys.readouterr().err}"
    answers = (
        capsys.readouterr().out
        if page == "README.md"
        else (tmp_path / "predictions.csv").read_text()
    )
    assert re.search(r"^income\n(yes|no)\n(yes|no)$", answers, re.MULTILINE)
