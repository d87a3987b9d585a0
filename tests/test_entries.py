"""Everything with a name is entered once, and what is made from the entries agrees with them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flooding import Problem, entries
from flooding.data import Splits
from flooding.experiments import Experiment
from flooding.levels import Controller
from flooding.methods import Method
from flooding.tasks import REAL, get_task
from flooding.testing import check_method

ROOT = Path(__file__).parents[1]
KINDS = {
    "methods": entries.METHODS,
    "controllers": entries.CONTROLLERS,
    "strategies": entries.STRATEGIES,
    "datasets": entries.DATASETS,
    "tasks": entries.TASKS,
    "experiments": entries.EXPERIMENTS,
}
LOCAL = [entry for entry in entries.DATASETS if entry.summary != "fetched"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_entry_can_be_loaded_and_has_a_name_of_its_own(kind):
    names = entries.entry_names(KINDS[kind])
    assert len(set(names)) == len(names)
    for entry in KINDS[kind]:
        assert entry.load() is not None
        assert entry.summary
        assert len(entry.summary) < 100


def test_entries_are_what_their_kind_says():
    assert all(issubclass(entry.load(), Method) for entry in entries.METHODS)
    assert all(isinstance(entry.load(), Controller) for entry in entries.CONTROLLERS)
    assert all(isinstance(entry.load(), Problem) for entry in entries.TASKS)
    assert all(isinstance(entry.load(), Experiment) for entry in entries.EXPERIMENTS)


def test_every_method_passes_its_contract_test():
    arguments = {"wavebound": {"epsilon": 0.01}, "gradient-penalty": {"strength": 0.1}}
    for entry in entries.METHODS:
        check_method(entry.load()(**arguments.get(entry.name, {})))


# Those of fetched data are checked in test_tasks, where the files are there.
@pytest.mark.parametrize("entry", LOCAL, ids=lambda entry: entry.name)
def test_the_sizes_of_a_data_set_are_those_of_its_splits(entry):
    splits = entry.load()(seed=0)
    assert isinstance(splits, Splits)
    assert splits.train.x[0].numel() == (entry.inputs or 10)
    assert splits.classes == entry.classes


def test_the_real_problems_are_tasks_of_the_same_names():
    assert all(get_task(name) is problem for name, problem in REAL.items())


def test_an_argument_of_a_task_changes_its_data_and_the_inputs_of_its_network():
    problem = get_task("two-gaussians", dimension=3, label_noise=0.1, n_test=10)
    x = problem.splits(0).test.x
    assert x.shape == (10, 3)
    assert problem.build(seed=0)(x).shape == (10, 2)
    assert get_task("digits", label_noise=0.1).data.keywords == {"label_noise": 0.1}
    with pytest.raises(ValueError, match=r"an argument of digits must be one of .*; got noise"):
        get_task("digits", noise=0.1)


def test_methods_controllers_and_experiments_are_documented():
    cards = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    moving = {*entries.entry_names(entries.CONTROLLERS)} - {"constant"}
    assert {*entries.entry_names(entries.METHODS)} | moving <= cards
    page = (ROOT / "docs" / "results" / "README.md").read_text()
    assert all(f"`flooding reproduce {name}" in page for name in names_with_a_page())
    page = (ROOT / "docs" / "searches.md").read_text()
    for name in entries.entry_names(entries.STRATEGIES):
        assert name in page.replace("_", "-"), name


def names_with_a_page():
    pages = {path.stem for path in (ROOT / "docs" / "results").glob("*.md")}
    return pages & {*entries.entry_names(entries.EXPERIMENTS)}


def test_importing_the_entries_imports_no_framework():
    code = "import sys, flooding.entries; print({'torch', 'numpy', 'typer'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("flooding run sinusoid --method s", ["softad", "sam"]),
        ("flooding run sinusoid --schedule pl", ["plateau"]),
        ("flooding run sin", ["sinusoid", "sinusoid-nd"]),
        ("flooding run sinusoid --model mlp-", ["mlp-bn"]),
        ("flooding find digits --strategy ha", ["halving"]),
        ("flooding find fa", ["fashion-mnist-5k"]),
        ("flooding reproduce kim", ["kim2022", "kim2022_cifar10"]),
    ],
)
def test_a_shell_completes_names(words, expected):
    environment = {
        **os.environ,
        "_FLOODING_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-m", "flooding"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize(
    ("name", "hint"),
    [("softadd", "Did you mean softad?"), ("zzz", "Choose one of these.")],
)
def test_an_unknown_name_is_answered_with_those_that_exist(name, hint):
    message = rf"method must be one of flooding, iflood, .*; got {name}. {re.escape(hint)}$"
    with pytest.raises(ValueError, match=message):
        entries.find_entry("method", name, entries.METHODS)
    with pytest.raises(ValueError, match=message):
        entries.load_part("method", name, entries.METHODS)
