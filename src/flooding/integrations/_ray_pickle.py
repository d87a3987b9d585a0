"""How Runs travel to other machines: Problems apart, and code of the user's own by value.

The machines have flooding, torch and what else is installed. They need not have the user's script,
notebook or modules: cloudpickle sends the code of those itself.
"""

from __future__ import annotations

import io
import pickle
import sys
import sysconfig
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from flooding.integrations import require_framework
from flooding.training.problem import Problem

with require_framework("ray"):
    from ray import cloudpickle

__all__ = ["dumps", "loads"]

_LOCK = threading.Lock()  # cloudpickle's list of modules is one for all threads
# Whether a module is the user's own; there are thousands, and each Run is pickled.
_VERDICTS: weakref.WeakKeyDictionary[ModuleType, bool] = weakref.WeakKeyDictionary()
_INSTALLED = ("site-packages", "dist-packages")
_STDLIB = Path(sysconfig.get_paths()["stdlib"])


def dumps(item: object, problems: list[Problem] | None = None) -> bytes:
    """Pickle Runs, or a Problem, with the code of the user's own.

    Args:
        item: What is pickled.
        problems: Problems found in ``item`` are appended here, each once, and pickled as their
            index; None pickles them as they are.

    Returns:
        The pickle.

    Raises:
        ValueError: If it cannot be pickled.
    """
    try:
        with _user_modules_by_value():
            return _dumps(item, problems)
    except Exception:  # noqa: BLE001 -- whatever a global of the user's module raises
        pass
    # Not by value: then by the names of its modules, which the machines may be able to import.
    try:
        return _dumps(item, problems)
    except Exception as error:
        raise ValueError(
            f"a Run must be picklable by cloudpickle to travel, got {type(error).__name__}: "
            f"{error}. Build what cannot be pickled inside the model or data function."
        ) from error


def loads(content: bytes, problems: Sequence[Problem] = ()) -> object:
    """Unpickle what :func:`dumps` gave.

    Args:
        content: The pickle.
        problems: The Problems that were found in it.

    Returns:
        What was pickled.
    """
    return _Unpickler(io.BytesIO(content), problems).load()


def _dumps(item: object, problems: list[Problem] | None) -> bytes:
    with io.BytesIO() as file:
        _Pickler(file, problems).dump(item)
        return file.getvalue()


class _Pickler(cloudpickle.Pickler):
    """Leaves Problems out, if they are wanted apart."""

    def __init__(self, file: io.BytesIO, problems: list[Problem] | None) -> None:
        super().__init__(file)
        self._problems = problems

    def persistent_id(self, obj: object) -> int | None:
        if self._problems is None or not isinstance(obj, Problem):
            return None
        for index, problem in enumerate(self._problems):
            if problem is obj:
                return index
        self._problems.append(obj)
        return len(self._problems) - 1


class _Unpickler(pickle.Unpickler):
    """Puts the Problems back."""

    def __init__(self, file: io.BytesIO, problems: Sequence[Problem]) -> None:
        super().__init__(file)
        self._problems = problems

    def persistent_load(self, pid: int) -> Problem:
        return self._problems[pid]


@contextmanager
def _user_modules_by_value() -> Generator[None, None, None]:
    """Have cloudpickle send the code of all modules that are not installed.

    Yields:
        Nothing.
    """
    with _LOCK:
        known = cloudpickle.list_registry_pickle_by_value()
        added: dict[str, ModuleType] = {}  # a module may stand there under two names
        for module in list(sys.modules.values()):
            if not isinstance(module, ModuleType):
                continue  # whatever a program puts there
            try:
                if module not in _VERDICTS:
                    _VERDICTS[module] = _is_users_own(module)
            except Exception:  # noqa: BLE001 -- a lazy module may import anything when it is asked
                continue
            if not _VERDICTS[module] or module.__name__ in {*known, *added}:
                continue
            # One that left its name to another module since then cannot be registered.
            if sys.modules.get(module.__name__) is module:
                cloudpickle.register_pickle_by_value(module)
                added[module.__name__] = module
        try:
            yield
        finally:
            for module in added.values():
                cloudpickle.unregister_pickle_by_value(module)


def _is_users_own(module: ModuleType) -> bool:
    """Tell whether a module is neither installed nor a part of Python or of this library."""
    if sys.modules.get(module.__name__) is not module:
        return False
    file = getattr(module, "__file__", None)
    # Modules that torch makes name no file that is there. A part of this library may lie in a
    # clone, outside of what is installed.
    package = module.__name__.partition(".")[0]
    if file is None or not Path(file).is_absolute() or package == __name__.partition(".")[0]:
        return False
    path = Path(file)
    return not any(name in path.parts for name in _INSTALLED) and _STDLIB not in path.parents
