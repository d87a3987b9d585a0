"""The field's words: names of flooding 0.1.0 that nobody else uses do not come back."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from flooding import FloodStep, Problem, Record, Run, data
from flooding.levels import Heuristic, Plateau, Warmup
from flooding.training import rng

SOURCE = Path(__file__).parents[1] / "src" / "flooding"
# Names that are defined nowhere: no function, class, parameter, variable or attribute.
_WORDS = """
    told found place book twins away stay tied ours theirs sure
    merit choose describes_itself is_promised NotKeyable seeded unchanged usable cores
    trajectory Row ENGINE Trunk trunk_of lead leaves past Pace claimed tidy Ready _deal _give _news
    can_travel _leave _gathered _portable Elsewhere Lifted Found FoundLevel Suggestion together
    drive meant came_down late_means neighbours Seen fold stairs worse waited Teacher sides gather
    divide plane named assemble held_out make_up counted beside name_of horizon until
    finals circumstances measured probe fresh
    _known _or_one _needs _note _landed _grouped _trained _found _taken _differentiate _order
    _conclude _mark _undisturbed _Waits _Arrays _words _Stretch _far _played _held
"""
RETIRED = set(_WORDS.split())


def defined_names(tree):
    """Every name that a file defines, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_a_file_defines_no_retired_name(path):
    names = [
        f"{name} in line {line}"
        for name, line in defined_names(ast.parse(path.read_text()))
        if name in RETIRED
    ]
    assert not names


@pytest.mark.parametrize(
    ("kind", "retired"),
    [
        (Problem, {"horizon", "schedule", "report", "clip", "probe", "watch"}),
        (Run, {"until"}),
        (Record, {"finals", "circumstances", "weights", "measured"}),
        (Warmup, {"stairs"}),
        (Heuristic, {"change", "move"}),
        (Plateau, {"move", "worse"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_class_has_no_retired_field(kind, retired):
    assert not retired & {field.name for field in fields(kind)}
    assert not retired & set(dir(kind))


def test_stream_is_no_function_of_random_numbers():
    assert not hasattr(data, "stream")  # a stream of bytes is called so, and nothing else
    assert not hasattr(rng, "stream")


def test_flood_step_has_the_names_of_flood():
    assert not {"local", "clear", "epoch"} & set(dir(FloodStep))
    shared = {"level", "raw_loss", "flooded_loss", "flooded_fraction", "n_flooded", "n_nonfinite"}
    assert shared <= set(dir(FloodStep))
