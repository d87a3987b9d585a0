"""Global state of torch that changes the bits of a training: captured, named in keys, pinned while
a Run trains.

Two kinds are treated differently. *Settings*, such as the precision of float32 products, are the
caller's choice: a Run trains under those that were in force when it was started, in this process or
in a worker, and they are part of its key. *Contexts*, such as an enclosing ``autocast`` or
``no_grad``, are switched off while a Run trains: they belong into the model.

Torch has one random generator and one set of switches for all threads of a process, so :data:`LOCK`
is held whenever they are not the caller's own.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

__all__ = [
    "LOCK",
    "capture_settings",
    "cuda_devices",
    "environment",
    "fork_generators",
    "has_global_hooks",
    "pinned",
    "without_contexts",
]

LOCK = threading.RLock()


def _renew_lock() -> None:
    # Another thread may hold it in the moment of a fork, and will never give it back in the child.
    if not LOCK._is_owned():  # type: ignore[attr-defined]
        LOCK._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


# Variables that choose other kernels of torch when it starts.
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


class _Switch(NamedTuple):
    """A global setting of torch."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], Any]
    default: Any


def _flushes_denormals() -> bool:
    # Torch has no getter; the flag is the processor's, so Python's own floats show it.
    return not sys.float_info.min / 2 > 0


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to answer where precisions were set one by one
        return "highest"


def _fp32_switches() -> Generator[_Switch, None, None]:
    """Give the precision of each kind of float32 product, the most general first."""
    yield _Switch(
        "matmul_precision", _matmul_precision, torch.set_float32_matmul_precision, "highest"
    )
    get = getattr(torch._C, "_get_fp32_precision_getter", None)
    if get is None:  # before torch 2.9
        return
    put = torch._C._set_fp32_precision_setter
    kinds = [
        ("generic", "all"),
        ("mkldnn", "all"),
        ("mkldnn", "matmul"),
        ("mkldnn", "conv"),
        ("mkldnn", "rnn"),
    ]
    kinds += [("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn")]
    for backend, operation in kinds:
        default = "tf32" if backend == "cuda" and operation in {"conv", "rnn"} else "none"
        yield _Switch(
            f"fp32.{backend}.{operation}",
            lambda b=backend, o=operation: get(b, o),
            lambda value, b=backend, o=operation: put(b, o, value),
            default,
        )


def _switches() -> Generator[_Switch, None, None]:
    yield from _fp32_switches()
    yield _Switch("flush_denormal", _flushes_denormals, torch.set_flush_denormal, False)
    yield _Switch(
        "deterministic",
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
        0,
    )
    fill = _attribute(torch.utils.deterministic, "fill_uninitialized_memory")
    yield _Switch("fill_uninitialized_memory", *fill, True)
    c, cuda = torch._C, torch.backends.cuda
    private = [
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
    for name, get, put, default in private:
        if hasattr(c, get) and hasattr(c, put):
            yield _Switch(name, getattr(c, get), getattr(c, put), default)
    for name, default in (
        ("allow_fp16_reduced_precision_reduction", True),
        ("allow_bf16_reduced_precision_reduction", True),
        ("allow_fp16_accumulation", False),
    ):
        if hasattr(c, f"_get_cublas_{name}"):
            yield _Switch(f"cublas.{name}", *_attribute(cuda.matmul, name), default)
    mha = torch.backends.mha
    yield _Switch("mha.fastpath", mha.get_fastpath_enabled, mha.set_fastpath_enabled, True)
    if torch.backends.opt_einsum.is_available():
        yield _Switch("opt_einsum", *_attribute(torch.backends.opt_einsum, "enabled"), True)
        yield _Switch(
            "opt_einsum.strategy", *_attribute(torch.backends.opt_einsum, "strategy"), "auto"
        )


_SWITCHES = tuple(_switches())
_SAME_PRECISION = {"none", "ieee"}  # the default, and its name


def capture_settings() -> dict[str, Any]:
    """Read torch's global settings that change bits.

    Returns:
        Those that differ from torch's defaults by name, in types that JSON has. Empty for nearly
        everybody.
    """
    settings = {}
    for switch in _SWITCHES:
        value = switch.get()
        if value != switch.default:
            settings[switch.name] = value
    # Precisions that are named but the default's equal change nothing.
    if settings.get("fp32.generic.all", "none") in _SAME_PRECISION:
        defaults = {switch.name: switch.default for switch in _SWITCHES}
        for name in [name for name, value in settings.items() if value == "ieee"]:
            if defaults[name] == "none":
                del settings[name]
    return settings


@contextmanager
def pinned(settings: Mapping[str, Any]) -> Generator[None, None, None]:
    """Put torch's global settings as they were captured, and give the caller's back.

    Args:
        settings: What :func:`capture_settings` gave.

    Yields:
        Nothing.
    """
    before = {switch.name: switch.get() for switch in _SWITCHES}
    try:
        _assign(settings)
        yield
    finally:
        _assign(before)


def _assign(values: Mapping[str, Any]) -> None:
    for switch in _SWITCHES:  # the general ones first: torch may set the special ones with them
        now, value = switch.get(), values.get(switch.name, switch.default)
        if now != value and not (
            switch.name.startswith("fp32.") and {now, value} == _SAME_PRECISION
        ):
            switch.set(value)


@contextmanager
def without_contexts(device: torch.device) -> Generator[None, None, None]:
    """Switch off what a caller's ``with`` block, or a default device, would change in a training.

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
        # Entered only where it is needed: it slows every call of a torch function.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def fork_generators() -> Generator[None, None, None]:
    """Give torch's random generators back as they were, whatever is drawn in the block; other
    threads wait for it.

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
    """Tell whether somebody watches, and may change, every module or every optimiser of this
    process.

    Returns:
        Whether a global hook of ``torch.nn.Module`` or ``torch.optim.Optimizer`` is registered.
    """
    modules = sys.modules["torch.nn.modules.module"], sys.modules["torch.optim.optimizer"]
    registries = [getattr(module, name, None) or {} for module in modules for name in _HOOKS]
    return any(not _only_watches(hook) for registry in registries for hook in registry.values())


def _only_watches(hook: Any) -> bool:
    # Hooks of torch's own tools and of FloodStep change nothing.
    function = hook.func if isinstance(hook, functools.partial) else hook
    return (getattr(function, "__module__", None) or "").split(".")[0] in {"torch", "flooding"}
