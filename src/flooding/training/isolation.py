"""Isolation: a Run trains under its own threads, settings and generators, not the caller's."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flooding.numerics import LOCK, capture_settings, pinned, without_contexts
from flooding.training.rng import get_rng_states, set_rng_states

__all__ = ["GlobalState", "isolated"]


class GlobalState(NamedTuple):
    """What of torch's global state a Run trains under.

    Args:
        threads: Number of torch's threads.
        dtype: Torch's default dtype.
        settings: Torch's other settings, see :func:`flooding.numerics.capture_settings`.
        device: Where the Run trains.
    """

    threads: int
    dtype: torch.dtype
    settings: Mapping[str, object]
    device: torch.device

    @staticmethod
    def capture(
        threads: int, device: torch.device, settings: Mapping[str, object] | None = None
    ) -> GlobalState:
        """Capture the global state in force now.

        Args:
            threads: Number of threads to train with.
            device: Where to train.
            settings: Settings to take instead of those in force.

        Returns:
            The state.
        """
        if settings is None:
            settings = capture_settings()
        return GlobalState(threads, torch.get_default_dtype(), settings, device)


class _Trained(Protocol):
    """The generators and the time of what trains: a Run, or a fleet."""

    generator: tuple[Tensor, ...]
    seconds: float


@contextmanager
def isolated(
    global_state: GlobalState, state: _Trained | None = None
) -> Generator[None, None, None]:
    """Run a block under a Run's global state, then restore the caller's.

    No other thread trains meanwhile.

    Args:
        global_state: The Run's global state.
        state: The state of the Run. The block draws from its generators, which go on in the next
            block, and its seconds are counted. None where there is no state yet.

    Yields:
        Nothing.
    """
    threads, dtype, settings, device = global_state
    with LOCK, pinned(settings), without_contexts(device):
        # 1. Remember what the caller has.
        caller_threads, caller_rng = torch.get_num_threads(), get_rng_states(device)
        caller_dtype, begin = torch.get_default_dtype(), time.perf_counter()
        # 2. Set what the Run has. The threads are set even if the number is equal already: torch's
        # own number may not be that of its libraries.
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if state is not None:
            set_rng_states(state.generator, device)
        try:
            yield
        finally:
            # 3. Keep the Run's generators and time, and restore the caller's.
            if state is not None:
                state.generator = get_rng_states(device)
                state.seconds += time.perf_counter() - begin
            set_rng_states(caller_rng, device)
            torch.set_default_dtype(caller_dtype)
            torch.set_num_threads(caller_threads)
