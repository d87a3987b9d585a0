"""Random number generators: seeds for a purpose, and blocks that leave the generators alone."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor

from flooding.numerics import LOCK, cuda_devices, fork_generators

__all__ = [
    "derive_seed",
    "fork_rng",
    "get_rng_states",
    "preserve_rng_state",
    "set_rng_states",
]


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Derive an independent 63-bit seed for a purpose.

    Args:
        seed: The Run's seed.
        purpose: What the numbers are for, such as "model" or "order".
        *indices: Further numbers, such as the epoch.

    Returns:
        A seed for ``torch.Generator.manual_seed``.
    """
    words = np.random.SeedSequence([seed, *purpose.encode(), *indices]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


@contextmanager
def fork_rng(seed: int) -> Generator[None, None, None]:
    """Seed torch's CPU and CUDA generators for a block and restore them afterwards.

    Args:
        seed: A seed as :func:`derive_seed` gives it.

    Yields:
        Nothing.
    """
    with fork_generators():
        if _has_accelerator():
            torch.manual_seed(seed)
        else:
            # torch.manual_seed also notes the seed, with a traceback, for devices that are not
            # there: milliseconds and kilobytes of each call, for ever.
            torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def preserve_rng_state() -> Generator[None, None, None]:
    """Restore the generators of torch, NumPy and Python after a block of a user's code.

    Yields:
        Nothing.
    """
    with LOCK, ExitStack() as before:  # no other thread is in the middle of an epoch
        before.callback(random.setstate, random.getstate())
        # A user's code may draw from NumPy's global generator.
        before.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        before.enter_context(torch.random.fork_rng(devices=cuda_devices()))
        restore = before.pop_all()
    try:
        yield
    finally:
        with LOCK:
            restore.close()


def _has_accelerator() -> bool:
    accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
    return accelerator is None or accelerator.is_available()


def get_rng_states(device: torch.device) -> tuple[Tensor, ...]:
    """Read the states of torch's generators that a training on a device draws from.

    Args:
        device: Where it trains.

    Returns:
        The state of the CPU's generator, and of the device's where that is a GPU.
    """
    cpu_state = torch.get_rng_state()
    if device.type == "cuda":
        return (cpu_state, torch.cuda.get_rng_state(device))
    return (cpu_state,)


def set_rng_states(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Set the states that :func:`get_rng_states` read.

    Args:
        states: The states.
        device: Where the training runs.
    """
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
