"""The recipes of CONTRIBUTING.md: each adds a part from outside, in Python and by its name."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from flooding import cli

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
RECIPES = ["A method", "A controller", "A strategy", "A task", "An experiment"]
# For trainings of a second.
SHORT = {
    "run": "--epochs 2 --width 8 --depth 1 --test-samples 50",
    "find": "--epochs 3 --workers 0 --out found",
    "reproduce": "--workers 0",
}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(title):
    return PAGE.split(f"### {title}\n")[1].split("\n### ")[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside the library, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODING_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.startswith("my_"):
            del sys.modules[name]


def write_module(recipe, folder):
    """Write a recipe's module, and give its other block."""
    module, use = blocks(section(recipe), "python")
    name = re.match(r"# (my_\w+\.py)\n", module)[1]
    (folder / name).write_text(module)
    return use


def call(line, monkeypatch, capsys):
    """Run a command line, short; give exit code, output and errors."""
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [*words, *shlex.split(SHORT[words[1]])])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def test_there_is_a_recipe_for_each_kind():
    assert re.findall(r"^### (.*)", PAGE, re.MULTILINE) == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works_in_python(recipe, folder):
    use = write_module(recipe, folder)
    intro = PAGE.split("## Five recipes")[1].split("\n### ")[0]
    [problem] = blocks(intro, "python")
    exec(compile(problem + use, f"CONTRIBUTING.md: {recipe}", "exec"), {"__name__": "recipe"})
    if recipe != "An experiment":
        assert re.search(r"^check_\w+\(", use, re.MULTILINE), "it passes its contract test"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works_on_the_command_line(recipe, folder, monkeypatch, capsys):
    write_module(recipe, folder)
    [script] = blocks(section(recipe), "sh")
    lines = script.splitlines()
    assert lines
    for line in lines:
        assert re.search(r"\bmy_\w+:\w+", line)
        code, _, err = call(line, monkeypatch, capsys)
        assert code == 0, err
    if recipe == "An experiment":
        pages = [(folder / name / "my_experiment.md").read_text() for name in ("first", "again")]
        assert pages[0] == pages[1]
        assert "Spiral at one level" in pages[0]


def test_what_is_given_by_name_is_what_trains(folder, monkeypatch, capsys):
    for recipe in ("A method", "A controller"):
        write_module(recipe, folder)
    outputs = set()
    for option in (
        "",
        "--method my_method:SlowAscent",
        "--schedule my_controller:Decay",
        "--schedule my_controller.py:Decay",
    ):
        line = f"flooding run sinusoid --level 0.69 --learning-rate 0.1 {option}"
        code, out, err = call(line, monkeypatch, capsys)
        assert code == 0, err
        outputs.add(out)
    assert len(outputs) == 3, "the last two are one training"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run sinusoid --method my_part:Missing", "has no attribute 'Missing'. Check the names"),
        ("run sinusoid --method missing:Mine", "No module named 'missing'. Check the names"),
        ("run sinusoid --method my_part:", "Try my_module:object"),
        ("run sinusoid --method my_part:number", "must be a method, or a class"),
        ("run sinusoid --method my_part:Other", "got an Other"),
        ("run sinusoid --method my_part:Needs", "method my_part:Needs needs width, got nothing"),
        (
            "run sinusoid --method my_part:Other --sigma 1",
            "an argument of method my_part:Other must be one of none at all; got sigma",
        ),
        ("run sinusoid --method my_part:method --sigma 1", "is built already, got sigma"),
        ("run sinusoid --schedule my_part:number", "must be a controller, or a class of them"),
        ("run sinusoid --schedule my_part:Other --level 0.1", "takes no level, got 0.1"),
        ("run sinusoid --schedule my_part:constant --level 1", "is built already, got level"),
        ("find spiral --strategy my_part:number", "must be a function (problem, *, seeds)"),
        ("find spiral --strategy my_part:search --budget 2", "--budget belongs to finder"),
        ("reproduce my_part:number", "must be a flooding.experiments.Experiment, got an int"),
        ("find my_part:number", "must be a flooding.Problem"),
    ],
)
def test_what_is_no_such_part_is_refused(line, message, folder, monkeypatch, capsys):
    (folder / "my_part.py").write_text(
        "from flooding.levels import Constant\n"
        "from flooding.methods import Flooding\n"
        "number, method, constant = 3, Flooding(), Constant(0.1)\n"
        "class Other: pass\n"
        "class Needs:\n    def __init__(self, width): pass\n"
        "def search(problem, *, seeds): pass\n"
    )
    code, _, err = call(f"flooding {line}", monkeypatch, capsys)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert {path.name for path in folder.iterdir()} <= {"my_part.py", "__pycache__"}


def test_what_is_built_already_is_used_as_it_is(folder, monkeypatch, capsys):
    (folder / "my_built.py").write_text(
        "from flooding.levels import Constant\n"
        "from flooding.methods import SoftAD\n"
        "method, constant = SoftAD(sigma=0.5), Constant(0.6)\n"
    )
    options = "--method my_built:method --schedule my_built:constant --learning-rate 0.1"
    code, own, err = call(f"flooding run sinusoid {options}", monkeypatch, capsys)
    assert code == 0, err
    options = "--method softad --sigma 0.5 --level 0.6 --learning-rate 0.1"
    assert call(f"flooding run sinusoid {options}", monkeypatch, capsys)[1] == own
