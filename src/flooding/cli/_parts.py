"""Method, controller, strategy and experiment by their names on the command line.

A name is that of an entry, or ``module:object`` for one of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import cast

from flooding.averaging import EMA, Averaging, Mean
from flooding.cli._options import drop_none
from flooding.entries import (
    CONTROLLERS,
    EXPERIMENTS,
    METHODS,
    PLACES,
    STRATEGIES,
    check_name,
    entry_names,
    find_entry,
    join_names,
    load_object,
    load_part,
)
from flooding.experiments import Experiment
from flooding.level_search.protocol import Strategy
from flooding.levels import Controller
from flooding.methods import Method
from flooding.training.record import Record

__all__ = [
    "describe",
    "load_experiment",
    "load_place",
    "load_strategy",
    "make_averaging",
    "make_controller",
    "make_method",
    "required_parameters",
]

_UNTIL_LOSS = 1e-4  # of the code of Kim et al. 2022


def load_place(
    ray: str | None, workers: int | None, storage: str | None = None
) -> Callable[..., list[Record]] | None:
    """Give what trains Runs on a cluster.

    Args:
        ray: The option's value: ``auto``, ``local`` or an address; None is this machine.
        workers: Worker processes of this machine, which a cluster has no use for.
        storage: Where checkpoints outlive a machine of the cluster.

    Returns:
        A function such as :func:`flooding.run_all`; None is this machine.

    Raises:
        ValueError: If a cluster and workers are both named, or a storage without a cluster, or
            nothing knows the storage.
    """
    if ray is None:
        if storage is not None:
            raise ValueError(
                f"--ray-storage is for the checkpoints of a cluster, got {storage} without --ray. "
                "Leave it out, or add --ray auto."
            )
        return None
    if workers is not None:
        raise ValueError(
            f"--workers are processes of this machine, got {workers} beside --ray {ray}. "
            "Leave one of them out."
        )
    run_all = cast(Callable[..., list[Record]], find_entry("place", "ray", PLACES).load())
    if storage is None:
        return partial(run_all, address=ray)
    from flooding.training.checkpoint_storage import check_storage

    # Refused now, not after the data were read.
    return partial(run_all, address=ray, storage=check_storage(storage))


def make_averaging(name: str | None) -> Averaging | None:
    """Build an average of the weights.

    Args:
        name: ``ema`` or ``mean``; None is no average.

    Returns:
        The averaging, with its default numbers.
    """
    if name is None:
        return None
    return {"ema": EMA, "mean": Mean}[name]()


def make_method(name: str, arguments: Mapping[str, float]) -> Method:
    """Build a method.

    Args:
        name: Its name, or ``module:object``: a class, or a method that is built.
        arguments: Arguments of its class.

    Returns:
        The method.

    Raises:
        ValueError: If the name or an argument is unknown, an argument is missing, or it is no
            method.
    """
    method = load_part("method", name, METHODS)
    if isinstance(method, type):
        method = _call("method", name, method, arguments)
    elif arguments:
        options = ", ".join(arguments)
        raise ValueError(f"method {name} is built already, got {options}. Leave the numbers out.")
    if not isinstance(method, Method):
        raise ValueError(
            f"{name} must be a method, or a class without required arguments that inherits from "
            f"flooding.methods.Method, got {describe(method)}."
        )
    return method


def make_controller(
    name: str, level: object, num_steps: int, arguments: Mapping[str, float]
) -> Controller:
    """Build a controller of the level.

    Args:
        name: Its name, or ``module:object``: a class, or a controller that is built.
        level: The user's level.
        num_steps: Steps of the whole training, for a controller that asks.
        arguments: Other arguments of its class. One that takes ``until_loss`` and gets no
            condition begins at a batch loss of 1e-4.

    Returns:
        The controller.

    Raises:
        ValueError: If the name or an argument is unknown, an argument is missing, or it is no
            controller.
    """
    controller = load_part("schedule", name, CONTROLLERS)
    # A class of controllers has the same methods, so it must be told from an instance.
    is_built = isinstance(controller, Controller) and not isinstance(controller, type)
    if callable(controller) and not is_built:
        values = _controller_arguments(name, controller, level, num_steps, arguments)
        controller = _call("schedule", name, controller, values)
    elif is_built and (level is not None or arguments):
        options = ", ".join(drop_none(level=level, **arguments))
        raise ValueError(f"schedule {name} is built already, got {options}. Leave the numbers out.")
    if not isinstance(controller, Controller):
        raise ValueError(
            f"{name} must be a controller, or a class of them, with init() and update(state, info),"
            f" got {describe(controller)}."
        )
    return controller


def _controller_arguments(
    name: str,
    controller: Callable[..., object],
    level: object,
    num_steps: int,
    arguments: Mapping[str, float],
) -> dict[str, object]:
    """Add to the user's arguments of a controller those that follow from the other options."""
    parameters = signature(controller).parameters
    values: dict[str, object] = {}
    # The user's level, also where the class has a default of its own.
    if "level" in parameters:
        values["level"] = level
    # What a class requires besides: a fall begins at the level, and takes the whole training.
    derived = {"start": level, "stop": 0.0, "steps": num_steps}
    for parameter in required_parameters(controller):
        if parameter in derived:
            values[parameter] = derived[parameter]
    if values.keys() & {"level", "start"} and not isinstance(level, float):
        raise ValueError(
            f"schedule {name} needs one level, got {level or 'none'}. Add --level 0.1."
        )
    if level is not None and not values.keys() & {"level", "start"}:
        raise ValueError(f"schedule {name} takes no level, got {level}. Leave --level out.")
    # A class that can wait for a fit, and was given no condition, waits for the source's.
    has_condition = arguments.keys() & {"until_loss", "until_accuracy"}
    until_loss = parameters.get("until_loss")
    if until_loss is not None and until_loss.default is None and not has_condition:
        values["until_loss"] = _UNTIL_LOSS
    return {**values, **arguments}


def load_strategy(
    name: str,
    *,
    levels: Sequence[float | None] | None,
    budget: float | None,
    trainings: int | None,
) -> Callable[..., Strategy]:
    """Import a search strategy and give it its options.

    Args:
        name: Its name, or ``module:object``: a function ``(problem, *, seeds) -> generator``.
        levels: Levels to try.
        budget: Trainings to spend for each seed.
        trainings: Trainings to spend in all.

    Returns:
        What :func:`flooding.find_level` takes for a strategy.

    Raises:
        ValueError: If the name is unknown, it is no function, or it does not take an option.
    """
    options = drop_none(levels=levels, budget=budget, trainings=trainings)
    # A strategy of the user's own takes the options that its signature names.
    if ":" in name:
        strategy = load_object(name)
        accepted = signature(strategy).parameters if callable(strategy) else {}
    else:
        entry = find_entry("strategy", name, STRATEGIES)
        strategy, accepted = entry.load(), entry.options
    if not callable(strategy):
        raise ValueError(
            f"{name} must be a function (problem, *, seeds) that gives a generator, "
            f"got {describe(strategy)}."
        )
    for option in options:
        if option not in accepted:
            # Name those that do take it: one of them is what the user may have meant.
            takers = entry_names(e for e in STRATEGIES if option in e.options)
            raise ValueError(
                f"--{option} belongs to {join_names(takers, 'and')}, got --strategy {name}. "
                "Leave it out."
            )
    return cast("Callable[..., Strategy]", partial(strategy, **options))


def load_experiment(name: str) -> Experiment:
    """Import an experiment.

    Args:
        name: Its name, or ``module:object``.

    Returns:
        The experiment.

    Raises:
        ValueError: If the name is unknown, or it is no experiment.
    """
    experiment = load_part("experiment", name, EXPERIMENTS)
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{name} must be a flooding.experiments.Experiment, got {describe(experiment)}."
        )
    return experiment


def _call(
    kind: str, name: str, function: Callable[..., object], arguments: Mapping[str, object]
) -> object:
    """Call a class with arguments from the command line, and say what is wrong with them."""
    # First what is too much, then what is missing, so that each error names one thing to change.
    for argument in arguments:
        check_name(f"an argument of {kind} {name}", argument, signature(function).parameters)
    missing = [name for name in required_parameters(function) if name not in arguments]
    if missing:
        got = ", ".join(arguments) or "nothing"
        raise ValueError(f"{kind} {name} needs {', '.join(missing)}, got {got}.")
    return function(**arguments)


def required_parameters(function: Callable[..., object]) -> list[str]:
    """List the parameters without a default.

    Args:
        function: A function or a class.

    Returns:
        Their names; none for what is built in and has no signature.
    """
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def describe(value: object) -> str:
    """Say what a value of the user's own is.

    Args:
        value: Anything.

    Returns:
        Such as "a str", for an error.
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
