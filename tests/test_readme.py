"""The generated parts of the README are those of the code."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def readme():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_options_is_that_of_the_command_line():
    table = readme().options()
    assert table in (ROOT / "README.md").read_text(), "run: python docs/readme.py"
    assert "`--label-noise` | 0.1; digits 0.2 |" in table
    assert table.count("\n") > 30


def test_only_the_marked_part_is_replaced():
    put = readme().put
    assert put("a<!-- x:begin -->\nold\n<!-- x:end -->b", "x", r"n\ew") == "a<!-- x:begin -->\nn\\ew\n<!-- x:end -->b"
