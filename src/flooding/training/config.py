"""Configurations: a description of a value that is the same in every process.

A configuration names a class or a function of this library by its qualified name alone, such as
``flooding:two_gaussians``, so that moving code to another module changes no key of a Run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flooding.data import Splits, sha256

if TYPE_CHECKING:
    from flooding.training.problem import Problem
    from flooding.training.run import Run

__all__ = [
    "SESSION",
    "UnhashableConfigError",
    "changed_fields",
    "has_user_key",
    "is_hashable",
    "to_config",
]

SESSION = "session "  # begins the key of a problem that is looked up in one process only
_LIBRARIES = {"flooding", "torch", "math", "builtins"}  # whose code is named, not described


class UnhashableConfigError(TypeError):
    """Raised for a value without a configuration that is the same in every process, such as a
    lambda.
    """


def to_config(value: Any, *, allow_names: bool = False) -> Any:
    """Describe a value in JSON such that equal configurations mean equal behaviour, in every
    process.

    Fields equal to their default are left out, so that a new field does not change old keys.

    Args:
        value: Numbers, strings, tensors, dataclasses and functions of this library or torch,
            partials of them.
        allow_names: Describe everything else by its name alone, whose behaviour a user's key
            answers for.

    Returns:
        Something ``json.dumps`` takes.

    Raises:
        UnhashableConfigError: If the value has no such description, as a lambda or a user's own
            class.
    """
    config_of = functools.partial(to_config, allow_names=allow_names)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [config_of(item) for item in value]
    if isinstance(value, dict):
        return {str(name): config_of(item) for name, item in value.items()}
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


def _config_of_object(value: Any, allow_names: bool) -> Any:
    """Describe a class, a function or a dataclass by its name and fields."""
    is_definition = isinstance(value, (type, FunctionType, BuiltinFunctionType))
    definition = value if is_definition else type(value)
    library = definition.__module__.split(".")[0]
    is_library = library in _LIBRARIES and "<" not in definition.__qualname__
    if isinstance(value, FunctionType):
        is_library = is_library and _is_importable(value)
    name = f"{definition.__module__}.{definition.__qualname__}"
    if library == "flooding":
        name = f"flooding:{definition.__qualname__}"
    if is_definition and (is_library or allow_names):
        return name
    if dataclasses.is_dataclass(value) and (is_library or allow_names):
        fields = changed_fields(value)
        return {
            "is": name,
            **{field: to_config(v, allow_names=allow_names) for field, v in fields.items()},
        }
    if allow_names:
        return {"a": name}
    raise UnhashableConfigError(
        f"{name} is code of your own, which cannot be hashed. Give the Problem a key='...' to look its Records up."
    )


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


def changed_fields(value: Any) -> dict[str, Any]:
    """Give the fields of a dataclass that differ from their defaults.

    Args:
        value: An instance of a dataclass.

    Returns:
        Values by name, in the order of the fields.
    """
    values = {}
    for field in dataclasses.fields(value):
        if not _is_default(field, getattr(value, field.name)):
            values[field.name] = getattr(value, field.name)
    return values


def _is_importable(function: FunctionType) -> bool:
    """Tell whether a name leads to this function: ``functools.wraps`` gives a user's function
    another's name.
    """
    value: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        value = getattr(value, name, None)
    return value is function


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if value is default:
        return True
    if type(value) is not type(default):
        return False
    if isinstance(
        value, functools.partial
    ):  # a pickled partial is another object with the same parts
        try:
            return json.dumps(to_config(value)) == json.dumps(to_config(default))
        except UnhashableConfigError:
            return False
    return isinstance(value, (int, float, str)) and value == default
