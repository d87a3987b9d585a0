"""Control the global state of torch that changes the bits of a training.

There are two kinds. *Settings*, such as the precision of float32 products, are the caller's choice:
a Run trains under those in force when it was started, in this process or in a worker, and they are
part of its key. *Contexts*, such as an enclosing ``autocast`` or ``no_grad``, are switched off
while a Run trains: they belong in the model.

Torch has one random generator and one set of switches for all threads of a process, so
:data:`LOCK` is held whenever they differ from the caller's.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeAlias

import torch

__all__ = [
    "LOCK",
    "Setting",
    "capture_settings",
    "cuda_devices",
    "environment",
    "fork_generators",
    "has_global_hooks",
    "pinned",
    "without_contexts",
]

# Held while torch's global settings are changed.
LOCK = threading.RLock()


def _renew_lock() -> None:
    # Another thread may hold the lock at the moment of a fork, and never releases it in the child.
    if not LOCK._is_owned():  # type: ignore[attr-defined]
        LOCK._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


# Environment variables that make torch choose other kernels when it starts.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)

_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_module_registration_hooks",
    "_global_optimizer_post_hooks",
    "_global_optimizer_pre_hooks",
    "_global_parameter_registration_hooks",
)


# A value of one of the settings.
Setting: TypeAlias = bool | int | str | list[int]


class _Switch(NamedTuple):
    """A global setting of torch: how to read and write it, and torch's default."""

    name: str
    get: Callable[[], Setting]
    set: Callable[..., object]
    default: Setting


def _flushes_denormals() -> bool:
    # Torch has no getter. The flag is the processor's, so Python's own floats show it.
    return not sys.float_info.min / 2 > 0


def _attribute(owner: object, name: str) -> tuple[Callable[[], Setting], Callable[..., object]]:
    """Give the getter and the setter of an attribute."""
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to answer where precisions were set one by one
        return "highest"


def _fp32_switches() -> Generator[_Switch, None, None]:
    """Give the switches for the precision of float32 products, the most general first."""
    yield _Switch(
        "matmul_precision", _matmul_precision, torch.set_float32_matmul_precision, "highest"
    )
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    if read is None:  # before torch 2.9
        return
    write = torch._C._set_fp32_precision_setter
    kinds = [("generic", "all")]
    for backend in ("mkldnn", "cuda"):
        kinds += [(backend, operation) for operation in ("all", "matmul", "conv", "rnn")]
    for kind in kinds:
        is_tf32 = kind in {("cuda", "conv"), ("cuda", "rnn")}
        get, put = functools.partial(read, *kind), functools.partial(write, *kind)
        yield _Switch(f"fp32.{'.'.join(kind)}", get, put, "tf32" if is_tf32 else "none")


def _switches() -> Generator[_Switch, None, None]:
    # 1. Precision of float32, and denormals.
    yield from _fp32_switches()
    yield _Switch("flush_denormal", _flushes_denormals, torch.set_flush_denormal, False)

    # 2. Deterministic algorithms.
    yield _Switch(
        "deterministic",
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
        0,
    )
    fill = _attribute(torch.utils.deterministic, "fill_uninitialized_memory")
    yield _Switch("fill_uninitialized_memory", *fill, True)

    # 3. Kernels that are switched by a pair of functions of torch._C.
    pairs = [
        ("mkldnn", "_get_mkldnn_enabled", "_set_mkldnn_enabled", True),
        ("mkldnn.deterministic", "_get_mkldnn_deterministic", "_set_mkldnn_deterministic", False),
        ("nnpack", "_get_nnpack_enabled", "_set_nnpack_enabled", True),
        ("sdp.flash", "_get_flash_sdp_enabled", "_set_sdp_use_flash", True),
        ("sdp.math", "_get_math_sdp_enabled", "_set_sdp_use_math", True),
        ("sdp.mem_efficient", "_get_mem_efficient_sdp_enabled", "_set_sdp_use_mem_efficient", True),
        ("sdp.cudnn", "_get_cudnn_sdp_enabled", "_set_sdp_use_cudnn", True),
        ("sdp.order", "_get_sdp_priority_order", "_set_sdp_priority_order", [1, 2, 0, 3, 4]),
        ("cudnn", "_get_cudnn_enabled", "_set_cudnn_enabled", True),
        ("cudnn.benchmark", "_get_cudnn_benchmark", "_set_cudnn_benchmark", False),
        ("cudnn.deterministic", "_get_cudnn_deterministic", "_set_cudnn_deterministic", False),
    ]
    for name, getter, setter, default in pairs:
        if hasattr(torch._C, getter) and hasattr(torch._C, setter):
            yield _Switch(name, getattr(torch._C, getter), getattr(torch._C, setter), default)

    # 4. Kernels that are switched by an attribute.
    for name, default in (
        ("allow_fp16_reduced_precision_reduction", True),
        ("allow_bf16_reduced_precision_reduction", True),
        ("allow_fp16_accumulation", False),
    ):
        if hasattr(torch._C, f"_get_cublas_{name}"):
            matmul = torch.backends.cuda.matmul
            yield _Switch(f"cublas.{name}", *_attribute(matmul, name), default)
    mha = torch.backends.mha
    yield _Switch("mha.fastpath", mha.get_fastpath_enabled, mha.set_fastpath_enabled, True)
    if torch.backends.opt_einsum.is_available():
        yield _Switch("opt_einsum", *_attribute(torch.backends.opt_einsum, "enabled"), True)
        yield _Switch(
            "opt_einsum.strategy", *_attribute(torch.backends.opt_einsum, "strategy"), "auto"
        )


_SWITCHES = tuple(_switches())
_SAME_PRECISION = ("none", "ieee")  # two names of one precision


def capture_settings() -> dict[str, Setting]:
    """Read torch's global settings that change bits.

    Returns:
        Those that differ from torch's defaults, by name, in types that JSON has; mostly none.
    """
    settings = {}
    for switch in _SWITCHES:
        value = switch.get()
        if value != switch.default:
            settings[switch.name] = value
    # "ieee" where the default is "none" changes nothing, unless the general one is another.
    if settings.get("fp32.generic.all", "none") in _SAME_PRECISION:
        for switch in _SWITCHES:
            if switch.default == "none" and settings.get(switch.name) == "ieee":
                del settings[switch.name]
    return settings


@contextmanager
def pinned(settings: Mapping[str, object]) -> Generator[None, None, None]:
    """Apply captured global settings of torch in a block, and restore the caller's after it.

    Args:
        settings: As :func:`capture_settings` gives them.

    Yields:
        Nothing.
    """
    before = {switch.name: switch.get() for switch in _SWITCHES}
    try:
        # As a rule nothing differs, and one look at the switches is enough.
        if not all(_is_same(s, before[s.name], settings) for s in _SWITCHES):
            _assign(settings)
        yield
    finally:
        _assign(before)


def _assign(values: Mapping[str, object]) -> None:
    # The general ones come first: torch may set the special ones with them.
    for switch in _SWITCHES:
        if not _is_same(switch, switch.get(), values):
            switch.set(values.get(switch.name, switch.default))


def _is_same(switch: _Switch, current: object, values: Mapping[str, object]) -> bool:
    """Tell whether a switch has its value already; "none" and "ieee" are one precision."""
    value = values.get(switch.name, switch.default)
    if current == value:
        return True
    is_precision = switch.name.startswith("fp32.")
    return is_precision and current in _SAME_PRECISION and value in _SAME_PRECISION


@contextmanager
def without_contexts(device: torch.device) -> Generator[None, None, None]:
    """Switch off the contexts and the default device of the caller for a block.

    Args:
        device: Where the Run trains.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        # Only where it is needed: the context slows every call of a torch function.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def fork_generators() -> Generator[None, None, None]:
    """Restore torch's random generators after a block; other threads wait for its end.

    Yields:
        Nothing.
    """
    with LOCK, torch.random.fork_rng(devices=cuda_devices()):
        yield


def cuda_devices() -> list[int]:
    """List the CUDA devices whose generators may have been used.

    Returns:
        Their numbers; empty before CUDA is initialised.
    """
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def environment() -> dict[str, str]:
    """Read the environment variables that choose other kernels.

    Returns:
        Those that are set, by name.
    """
    return {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}


def has_global_hooks() -> bool:
    """Tell whether a hook may change every module or every optimiser of this process.

    Returns:
        Whether a global hook of ``torch.nn.Module`` or ``torch.optim.Optimizer`` is registered.
    """
    for module in ("torch.nn.modules.module", "torch.optim.optimizer"):
        for name in _HOOKS:
            registry = getattr(sys.modules[module], name, None) or {}
            if not all(map(_is_known_hook, registry.values())):
                return True
    return False


def _is_known_hook(hook: object) -> bool:
    """Tell whether a hook is of torch's own tools or of FloodStep, which change nothing."""
    function = hook.func if isinstance(hook, functools.partial) else hook
    return (getattr(function, "__module__", None) or "").split(".")[0] in {"torch", "flooding"}
