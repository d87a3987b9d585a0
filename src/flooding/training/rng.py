"""Random number generators: seeds for a purpose, and blocks that leave the generators as they
were.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from flooding.numerics import LOCK, cuda_devices, fork_generators

__all__ = ["fork_rng", "derive_seed", "preserve_rng_state"]


def derive_seed(seed: int, purpose: str, *more: int) -> int:
    """Derive an independent 63-bit seed for a purpose.

    Args:
        seed: The Run's seed.
        purpose: What the numbers are for, such as "model" or "order".
        *more: Further numbers, such as the epoch.

    Returns:
        A seed for ``torch.Generator.manual_seed``.
    """
    words = np.random.SeedSequence([seed, *purpose.encode(), *more]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


@contextmanager
def fork_rng(seed: int) -> Generator[None, None, None]:
    """Seed torch's CPU and CUDA generators for a block and give them back as they were.

    Args:
        seed: A seed as from :func:`stream`.

    Yields:
        Nothing.
    """
    with fork_generators():
        torch.manual_seed(seed)
        yield


@contextmanager
def preserve_rng_state() -> Generator[None, None, None]:
    """Give the generators of torch, NumPy and Python back as they were, whatever a user's code
    draws in a block.

    Yields:
        Nothing.
    """
    with LOCK, ExitStack() as before:  # no other thread is in the middle of an epoch
        before.callback(random.setstate, random.getstate())
        before.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 -- users draw from it
        before.enter_context(torch.random.fork_rng(devices=cuda_devices()))
        restore = before.pop_all()
    try:
        yield
    finally:
        with LOCK:
            restore.close()
