"""Scripts that compare a framework with the hand-written loop, in processes of their own."""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from example_scripts import whole_example

TESTS = Path(__file__).parent


# Most of a short training in JAX is compilation.
_JAX = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}


def launch(script: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``tests/script`` with one thread and more environment variables."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    variables = os.environ | _JAX | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, str(TESTS / script)],
        env=variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(process: subprocess.Popen[str]) -> dict:
    """Wait for a script and read the JSON object in its last line."""
    try:
        output, errors = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-4000:]
    return json.loads(output.splitlines()[-1])


def run_cases(cases: Mapping[str, Callable[[], float | str]]) -> dict[str, float | str]:
    """Run each case; one that fails gives its traceback, so that it does not hide the others."""
    values: dict[str, float | str] = {}
    for name, case in cases.items():
        try:
            values[name] = case()
        except Exception:  # ruff: ignore[blind-except]: the test that reads it fails with this text
            values[name] = traceback.format_exc()
    return values


def run_page(name: str) -> str:
    """Run the Python blocks of a page of docs/frameworks, in order; give what it printed."""
    text = (TESTS.parent / "docs" / "frameworks" / name).read_text()
    names: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    folder = tempfile.TemporaryDirectory()  # for what a page saves
    with folder as path, contextlib.chdir(path), contextlib.redirect_stdout(printed):
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            # The script of examples/ that begins with the block, if there is one.
            exec(compile(whole_example(block)[0], name, "exec"), names)
    return printed.getvalue()


def run_doctests(*modules: ModuleType) -> int:
    """Run the examples of modules; gives the number of those that ran."""
    attempted = 0
    for module in modules:
        result = doctest.testmod(module)
        assert result.failed == 0, f"examples of {module.__name__}"
        attempted += result.attempted
    return attempted


def added_packages(
    framework: str, adapter: str, variables: dict[str, str] | None = None
) -> set[str]:
    """Packages that an adapter's import loads besides its framework and the standard library."""
    code = (
        f"import sys, {framework}\nbefore = set(sys.modules)\nimport {adapter}\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent / "src")} | (variables or {})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
