"""What the ranks of a distributed training do together in a step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from flooding.step import messages

__all__ = ["check_losses", "sum_over_ranks"]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def check_losses(
    sums: Tensor | None, device: torch.device, group: dist.ProcessGroup | None
) -> None:
    """Check that every rank has a loss, so that none waits for the others without end.

    It waits for the device, so call it in the first step only.

    Args:
        sums: The sums of this rank's losses; None without a loss.
        device: Device of the parameters.
        group: The ranks.

    Raises:
        RuntimeError: If some ranks have a loss and others do not, as in pipeline parallelism.
    """
    if not _is_distributed():
        return
    count = torch.full((), sums is not None, device=sums.device if sums is not None else device)
    count = count.float()
    dist.all_reduce(count, group=group)
    n_ranks = dist.get_world_size(group)
    n_missing = n_ranks - int(count)
    if 0 < n_missing < n_ranks:
        raise RuntimeError(messages.SOME_RANKS.format(missing=n_missing, ranks=n_ranks))


def sum_over_ranks(sums: Tensor, group: dist.ProcessGroup | None) -> None:
    """Add up the sums of all ranks in place.

    Args:
        sums: The sums of this rank's losses.
        group: The ranks.
    """
    if _is_distributed():
        dist.all_reduce(sums, group=group)
