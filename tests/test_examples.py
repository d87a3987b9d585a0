"""Every example runs and draws its picture.

Those that begin with a page's code are run by the test of that page: test_docs.py.
"""

import ast
import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

from example_scripts import EXAMPLES, SCRIPTS, whole_example
from flooding import cli

ROOT = EXAMPLES.parent
FRAMEWORKS = ROOT / "docs" / "frameworks"
# Ranks import the script; a cluster stays with its process.
IN_A_PROCESS = {"cluster", "ddp"}


def blocks_of_pages():
    for page in FRAMEWORKS.glob("*.md"):
        yield from re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


RUN_BY_A_PAGE = {whole_example(block)[1].removesuffix(".png") for block in blocks_of_pages()} - {""}
RUN_HERE = [path for path in SCRIPTS if path.stem not in RUN_BY_A_PAGE]


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_an_example_runs_and_draws_its_picture(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    # A command in this process: starting Python anew takes longer than the training.
    monkeypatch.setattr(subprocess, "run", partial(run_here, monkeypatch, subprocess.run))
    requires(path)
    if path.suffix == ".ipynb":
        run_notebook(path)
    elif path.stem in IN_A_PROCESS:
        run_process(path)
    else:
        matplotlib.use("Agg")
        runpy.run_path(str(path), run_name="__main__")
        plt.close("all")
    assert Path(f"{path.stem}.png").stat().st_size > 1000


def run_here(monkeypatch, run, command, **options):
    if command[1:3] != ["-m", "flooding"]:
        return run(command, **options)
    return call_command_line(monkeypatch, command[3:])


def call_command_line(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["flooding", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def requires(path):
    """Skip an example whose framework is missing."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                pytest.importorskip(name.partition(".")[0])


def run_process(path):
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def run_notebook(path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    client(nbformat.read(path, as_version=4), timeout=100).execute()


def test_the_examples_of_frameworks_are_run_by_their_pages():
    expected = {
        "jax_optax",
        "keras_fit",
        "lightning_callback",
        "sklearn_classifier",
        "transformers_trainer",
    }
    assert expected <= RUN_BY_A_PAGE, "the page's code and the script's must be the same"
    assert len(SCRIPTS) >= 12


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_has_a_stored_picture_and_a_title(path):
    picture = EXAMPLES / "images" / f"{path.stem}.png"
    assert picture.exists(), f"run: python docs/pictures.py {path.stem}"
    assert picture.stat().st_size < 64_000
    if path.suffix == ".py":
        lines = ast.get_docstring(ast.parse(path.read_text())).splitlines()
        assert lines[0].endswith(".")
        assert len(lines) >= 3
