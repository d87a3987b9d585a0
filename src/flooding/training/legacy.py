"""Configurations as flooding 0.1.0 wrote them, so that its ledgers still answer.

0.1.0 named classes and functions by the module they lived in, and some fields otherwise.
"""

from __future__ import annotations

from typing import Any

__all__ = ["legacy_configs"]

# The module of flooding 0.1.0 in which each class or function lived that a Run can hold.
_MODULES = {
    "adaflood": ("AdaFlood", "AdaFloodLevels", "LastLayer"),
    "baselines": ("GradientPenalty", "SAM"),
    "data": ("Split", "Splits"),
    "data.augment": ("crop_and_flip", "flip", "jitter", "shift"),
    "data.images": (
        "cifar10",
        "cifar100",
        "cifar10h",
        "fashion_mnist",
        "kuzushiji_mnist",
        "mnist",
        "split_images",
        "svhn",
    ),
    "data.synthetic": ("sinusoid", "sinusoid_nd", "spiral", "two_gaussians"),
    "data.tables": (
        "digits",
        "higgs7k",
        "letter",
        "spambase",
        "split_table",
        "twonorm",
        "with_noise",
    ),
    "experiments.bakeoff": (),
    "experiments.double_descent": ("decayed",),
    "experiments.ishida2020_settings": ("_data", "one_logit"),
    "experiments.ishida2020_why": ("bare", "measure"),
    "experiments.kim2022_cifar10": ("network",),
    "functional": ("flood", "soft_flood"),
    "levels": ("Constant", "Delayed", "Heuristic", "Plateau", "Range", "Warmup"),
    "losses": (
        "Excess",
        "Flooding",
        "Hinge",
        "IFlood",
        "PerClass",
        "PerExample",
        "SoftAD",
        "WaveBound",
    ),
    "metrics": ("accuracy", "balanced_accuracy", "brier", "ece", "nll", "over_confidence"),
    "models": ("Standardise", "mlp", "resnet18", "resnet_cifar", "small_cnn"),
    "problem": ("Problem", "Run", "Score", "TestCurve", "Watch"),
    "strategies.accordance": ("watch_accordance",),
    "strategies.policy_gradient": ("Policy",),
    "tasks": ("demo_digits", "demo_sinusoid"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_RENAMED = {"PeriodicMetric": "Watch"}
_FIELDS = {
    "Heuristic": {"min_delta": "change", "step_size": "move"},
    "Plateau": {"step_size": "move", "threshold": "worse"},
    "Problem": {
        "eval_loss": "report",
        "extra_metrics": "watch",
        "lr_scheduler": "schedule",
        "max_epochs": "horizon",
        "max_grad_norm": "clip",
        "probe_inputs": "probe",
    },
    "Run": {"stop_epoch": "until"},
    "Warmup": {"num_steps": "stairs"},
}
_ADAM = {"call": "torch.optim.adam.Adam", "args": [], "with": {"lr": 0.001}}


def legacy_configs(config: dict[str, Any], owner: str = "Problem") -> list[dict[str, Any]]:
    """Give the configurations that flooding 0.1.0 may have written for the same Run.

    Args:
        config: What :meth:`flooding.Run.config` or :func:`flooding.training.config.to_config` gives
            for a Run.
        owner: Whose fields the configuration itself has.

    Returns:
        Two: 0.1.0 left out the default optimiser, but not one like it that was given.
    """
    old = _translate({_FIELDS[owner].get(name, name): value for name, value in config.items()})
    problem = old.get("problem", old)
    with_optimizer = problem if "optimizer" in problem else {**problem, "optimizer": _ADAM}
    return [old, {**old, "problem": with_optimizer} if "problem" in old else with_optimizer]


def _translate(value: Any) -> Any:
    if isinstance(value, str):
        return _legacy_name(value)
    if isinstance(value, list):
        return [_translate(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = _FIELDS.get(str(value.get("is", "")).removeprefix("flooding:"), {})
    return {fields.get(name, name): _translate(item) for name, item in value.items()}


def _legacy_name(name: str) -> str:
    if not name.startswith("flooding:"):
        return name
    name = name.removeprefix("flooding:")
    name = _RENAMED.get(name, name)
    return f"flooding.{_MODULE_OF.get(name, 'unknown')}.{name}"
