"""Configurations as flooding 0.1.0 wrote them, so that Records of its ledgers are still found.

0.1.0 named classes and functions by their modules, and gave some of them and of their fields other
names.
"""

from __future__ import annotations

from flooding.training.config import Config

__all__ = ["legacy_configs", "legacy_run_configs"]

# Classes and functions that a Run can hold, by their modules in flooding 0.1.0.
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
    "tasks": ("plane",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
# Classes and functions by their names today.
_OLD_NAMES = {"PeriodicMetric": "Watch", "grid_2d": "plane"}
# Fields by class and by their names today.
_OLD_FIELDS = {
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
_DEFAULT_OPTIMIZER: Config = {"call": "torch.optim.adam.Adam", "args": [], "with": {"lr": 0.001}}


def legacy_configs(config: dict[str, Config]) -> list[dict[str, Config]]:
    """Translate the configuration of a Run to those that flooding 0.1.0 may have written for it.

    Args:
        config: What :meth:`flooding.Run.config` gives.

    Returns:
        One or two: 0.1.0 left out the default optimizer, but not an equal one given by the user.
    """
    old = {}
    for name, value in config.items():
        old[_OLD_FIELDS["Problem"].get(name, name)] = _translate(value)
    if "optimizer" in old:
        return [old]
    return [old, {**old, "optimizer": _DEFAULT_OPTIMIZER}]


def legacy_run_configs(config: Config) -> list[Config]:
    """Translate the configuration of a Run in an archive to those that 0.1.0 may have written.

    Args:
        config: What :func:`flooding.training.config.to_config` gives for a Run.

    Returns:
        One or two, as :func:`legacy_configs`.
    """
    old = _translate(config)
    if not isinstance(old, dict) or not isinstance(old["problem"], dict):
        return [old]
    if "optimizer" in old["problem"]:
        return [old]
    return [old, {**old, "problem": {**old["problem"], "optimizer": _DEFAULT_OPTIMIZER}}]


def _translate(value: Config) -> Config:
    if isinstance(value, str):
        return _translate_name(value)
    if isinstance(value, list):
        return [_translate(item) for item in value]
    if not isinstance(value, dict):
        return value
    # A dataclass has its name under "is"; other dicts keep the names of their entries.
    fields = _OLD_FIELDS.get(str(value.get("is", "")).removeprefix("flooding:"), {})
    old = {}
    for name, item in value.items():
        old[fields.get(name, name)] = _translate(item)
    return old


def _translate_name(name: str) -> str:
    if not name.startswith("flooding:"):
        return name
    name = name.removeprefix("flooding:")
    name = _OLD_NAMES.get(name, name)
    return f"flooding.{_MODULE_OF.get(name, 'unknown')}.{name}"
