"""Configurations: a value in JSON that is the same in every process.

A configuration names a class or a function of this library by its qualified name alone, such as
``flooding:two_gaussians``, so that moving code to another module changes no key of a Run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flooding.data import Splits, sha256

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from flooding.training.problem import Problem
    from flooding.training.run import Run

__all__ = [
    "SESSION",
    "Config",
    "UnhashableConfigError",
    "changed_fields",
    "has_user_key",
    "is_hashable",
    "to_config",
]

# What a key is made of: numbers, text, and sequences and mappings of them.
Config: TypeAlias = "bool | int | float | str | Sequence[Config] | Mapping[str, Config] | None"

SESSION = "session "  # begins the key of a problem that is looked up in one process only
_LIBRARIES = {"flooding", "torch", "math", "builtins"}  # code that is identified by its name


class UnhashableConfigError(TypeError):
    """Raised for a value without a configuration, such as a lambda."""


def to_config(value: object, *, allow_names: bool = False) -> Config:
    """Turn a value into JSON: equal configurations mean equal behaviour, in every process.

    Fields equal to their default are left out, so that a new field does not change old keys.

    Args:
        value: Numbers, strings, tensors, dataclasses and functions of this library or torch,
            partials of them.
        allow_names: Identify all other code by its name alone. The user's key answers for its
            behaviour.

    Returns:
        Something ``json.dumps`` takes.

    Raises:
        UnhashableConfigError: If the value is code of the user's own, such as a lambda.

    Example:
        >>> to_config(functools.partial(torch.optim.Adam, lr=0.1))
        {'call': 'torch.optim.adam.Adam', 'args': [], 'with': {'lr': 0.1}}
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    config_of = functools.partial(to_config, allow_names=allow_names)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # A NumPy number has the configuration of the Python number.
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [config_of(item) for item in value]
    if isinstance(value, dict):
        return {str(name): config_of(item) for name, item in value.items()}
    # Data are named by their content, which may be large.
    if isinstance(value, Tensor):
        return {"tensor": sha256(value)}
    if isinstance(value, Splits):
        return {"splits": value.sha256}
    if isinstance(value, functools.partial):
        return {
            "call": config_of(value.func),
            "args": config_of(value.args),
            "with": config_of(value.keywords),
        }
    return _config_of_object(value, allow_names)


def _config_of_object(value: object, allow_names: bool) -> Config:
    """Name a class or a function; name a dataclass and list its changed fields."""
    is_definition = isinstance(value, (type, FunctionType, BuiltinFunctionType))
    definition = value if is_definition else type(value)
    name = _config_name(definition)
    if not _is_library_code(definition) and not allow_names:
        raise UnhashableConfigError(_unhashable(name))
    if is_definition:
        return name
    # Whatever is computed in __post_init__ follows from the fields.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        config: dict[str, Config] = {"is": name}
        for field, content in changed_fields(value).items():
            config[field] = to_config(content, allow_names=allow_names)
        return config
    if allow_names:
        return {"a": name}
    raise UnhashableConfigError(_unhashable(name))


def _unhashable(name: str) -> str:
    return (
        f"{name} is code of your own, which cannot be hashed. Give the Problem a key='...' to "
        "look its Records up."
    )


def _config_name(definition: type | FunctionType | BuiltinFunctionType) -> str:
    """Name a definition: without its module, if it is one of this library's."""
    if _top_package(definition) == "flooding":
        return f"flooding:{definition.__qualname__}"
    return f"{definition.__module__}.{definition.__qualname__}"


def _top_package(definition: type | FunctionType | BuiltinFunctionType) -> str:
    return str(definition.__module__).split(".")[0]  # methods of built-in types have no module


def _is_library_code(definition: type | FunctionType | BuiltinFunctionType) -> bool:
    """Tell whether a name identifies the code: that of a library, neither local nor a lambda."""
    if _top_package(definition) not in _LIBRARIES or "<" in definition.__qualname__:
        return False
    return not isinstance(definition, FunctionType) or _is_importable(definition)


def _is_importable(function: FunctionType) -> bool:
    """Tell whether its name leads to a function."""
    # functools.wraps gives a user's function the name of another one.
    value: object = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        value = getattr(value, name, None)
    return value is function


def has_user_key(problem: Problem) -> bool:
    """Tell whether Records of a problem are looked up under a key that the user answers for.

    Args:
        problem: The problem.

    Returns:
        Whether it has a key of the user's.
    """
    return problem.key is not None and not problem.key.startswith(SESSION)


def is_hashable(run: Run) -> bool:
    """Tell whether nothing of a Run is a user's own code.

    Args:
        run: The Run.

    Returns:
        Whether every part has a configuration that is the same in every process.
    """
    try:
        to_config(run)
    except UnhashableConfigError:
        return False
    return True


def changed_fields(value: DataclassInstance) -> dict[str, object]:
    """Get the fields of a dataclass that differ from their defaults.

    Args:
        value: An instance of a dataclass.

    Returns:
        Values by name, in the order of the fields.
    """
    values = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if not _is_default(field, content):
            values[field.name] = content
    return values


def _is_default(field: dataclasses.Field[object], value: object) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if value is default:
        return True
    # 0, 0.0 and False are equal for Python, but different values of a field.
    if type(value) is not type(default):
        return False
    # Pickle makes a new partial of the same parts.
    if isinstance(value, functools.partial):
        try:
            return json.dumps(to_config(value)) == json.dumps(to_config(default))
        except UnhashableConfigError:
            return False
    return isinstance(value, (int, float, str)) and value == default
