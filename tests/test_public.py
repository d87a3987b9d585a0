"""What a user gets from ``import flooding``, and the ladder of its modules."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flooding

ROOT = Path(__file__).parents[1]


def python(code):
    """Run code in a fresh process, with warnings as errors, and give what it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    ["import flooding", "from flooding.functional import flood", "from flooding import flood"],
)
def test_no_framework_is_imported_before_it_is_needed(statement):
    frameworks = [
        *("torch", "numpy", "jax", "scipy", "sklearn", "matplotlib", "typer", "rich"),
        *("mlflow", "tensorboard"),
    ]
    code = f"import sys\n{statement}\nprint(*set({frameworks}) & set(sys.modules))"
    assert python(code) == []


def test_every_public_name_can_be_imported_in_any_order():
    for names in ("flooding.__all__", "reversed(flooding.__all__)"):
        words = python(
            f"import flooding\nfor n in {names}: print(n, type(getattr(flooding, n)).__name__)"
        )
        kinds = dict(zip(words[::2], words[1::2], strict=True))
        assert sorted(kinds) == flooding.__all__
        assert set(kinds.values()) == {"function", "type"}


@pytest.mark.parametrize("name", flooding.__all__)
def test_no_name_is_also_a_modules(name):
    # Importing a module flooding.train would bind the module over the function of that name.
    assert importlib.util.find_spec(f"flooding.{name}") is None


def test_there_are_few_public_names_and_dir_shows_them():
    assert len(flooding.__all__) <= 15
    assert flooding.__all__ == sorted(flooding.__all__)
    assert set(flooding.__all__) == set(flooding._MODULE_OF)
    assert {*flooding.__all__, "__version__", "__doc__"} <= set(dir(flooding))
    shown = python("import flooding\nprint(*dir(flooding))")  # before anything was looked up
    assert set(flooding.__all__) <= set(shown)


def test_every_public_name_is_the_one_of_its_module_and_has_a_docstring():
    for name, home in flooding._MODULE_OF.items():
        module = importlib.import_module(home)
        assert name in module.__all__
        assert getattr(module, name).__module__ == home
        assert getattr(module, name).__doc__


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(
        AttributeError, match=r"module 'flooding' has no attribute 'flod'\. It has .*\bflood\b"
    ) as error:
        _ = flooding.flod
    assert all(name in str(error.value) for name in flooding.__all__)
    assert not hasattr(flooding, "__path_that_is_not__")


def test_modules_import_only_from_lines_below_their_own():
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as lint; lint()",
        "--no-cache",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
