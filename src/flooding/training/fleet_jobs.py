"""Jobs of fleets: which Runs train together, and a worker's training of them."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import torch

from flooding.training.checkpoints import Checkpoints, CheckpointTimer
from flooding.training.fleet import Fleet, FleetError, group_key, refusal
from flooding.training.fleet.probe import Probe, measure_fleet
from flooding.training.jobs import (
    ForkReady,
    Job,
    PrefixEpoch,
    check_fingerprint,
    find_record,
    prune_checkpoints,
    row_of_record,
    run_job,
    run_shared_prefix,
)
from flooding.training.ledger import Ledger
from flooding.training.loop import EpochResult
from flooding.training.prefix import can_share
from flooding.training.run import Run
from flooding.training.state import Snapshot

__all__ = [
    "FleetOption",
    "Places",
    "check_fleet_option",
    "execute_job",
    "may_join",
    "measure_jobs",
    "plan_fleets",
    "refusal",
    "run_fleet",
]

log = logging.getLogger("flooding")
# Whether Runs train in fleets, or the largest size of one; "auto": where that is faster.
FleetOption: TypeAlias = bool | int | Literal["auto"]
_MAX_SIZE = 256  # Runs of a fleet: from there on more of them are hardly faster
_MEMORY_SHARE = 0.5  # of what is free


def measure_jobs(jobs: Sequence[Job], planned_epochs: float) -> Probe:
    """Measure a fleet of some jobs in this process.

    Args:
        jobs: Jobs of Runs that may train together.
        planned_epochs: See :func:`flooding.training.fleet.probe.measure_fleet`.

    Returns:
        What was measured.

    Raises:
        FleetError: If they cannot train together.
        ValueError: If the parts of the Problem do not fit each other.
    """  # ruff: ignore[docstring-extraneous-exception]: raised one call further down
    first = jobs[0]
    return measure_fleet(
        [job.run for job in jobs],
        device=first.device,
        threads=first.threads,
        settings=first.settings,
        planned_epochs=planned_epochs,
    )


class Places(NamedTuple):
    """Where fleets train.

    Args:
        slots: How many train at a time.
        sharing: How many of these share the memory of one machine or GPU.
        measure: Measures a fleet of some jobs where it would train, see :func:`measure_jobs`.
    """

    slots: int = 1
    sharing: int = 1
    measure: Callable[[Sequence[Job], float], Probe] = measure_jobs


def check_fleet_option(fleet: FleetOption) -> None:
    """Refuse what is no option for fleets.

    Args:
        fleet: The option.

    Raises:
        ValueError: If it is neither a bool, a number of at least 2 nor "auto".
    """
    if fleet == "auto" or isinstance(fleet, bool):
        return
    if not isinstance(fleet, int) or fleet < 2:
        raise ValueError(
            f"fleet must be True, False, 'auto' or a largest number of Runs of at least 2, got "
            f"{fleet!r}."
        )


def may_join(run: Run) -> bool:
    """Tell whether nothing speaks against a Run's training in a fleet, before it is built.

    Args:
        run: The Run.

    Returns:
        Whether it may.
    """
    return refusal(run) is None


def plan_fleets(
    jobs: Sequence[Job], fleet: FleetOption, places: Places
) -> tuple[list[Job], list[Job]]:
    """Put jobs into fleets.

    Args:
        jobs: Jobs of Runs that may join a fleet, each with the key of a fleet's Record.
        fleet: Whether fleets are wanted, a largest size, or "auto" for where they are faster.
        places: Where they train.

    Returns:
        Jobs of fleets, and the jobs that are to train one by one.
    """
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(group_key(job.run), []).append(job)
    fleets, alone = [], []
    for group in groups.values():
        size = _fleet_size(group, fleet, places)
        if size is None:
            alone += group
        else:
            fleets += [_make_fleet(part) for part in _divide(group, size)]
    return fleets, alone


def _fleet_size(group: Sequence[Job], fleet: FleetOption, places: Places) -> int | None:
    """Choose how many Runs of a group train together; None trains them one by one."""
    if fleet == "auto" and len(group) < 2:
        return None
    # Measured is a fleet of the size that each place gets.
    share = math.ceil(len(group) / places.slots)
    planned = sum(job.run.epochs for job in group) / min(places.slots, len(group))
    try:
        result = places.measure(
            group[:share] if share > 1 else group, planned if fleet == "auto" else 0.0
        )
    except FleetError as error:
        log.warning("%d runs train one by one: %s", len(group), error)
        return None
    if fleet == "auto" and not _is_faster(result, group):
        return None
    largest = _MAX_SIZE if isinstance(fleet, bool) or fleet == "auto" else fleet
    largest = min(largest, _fitting(result, places))
    # As many fleets as fill the places equally.
    count = math.ceil(len(group) / largest)
    count = math.ceil(count / places.slots) * places.slots
    return math.ceil(len(group) / min(count, len(group)))


def _is_faster(result: Probe, group: Sequence[Job]) -> bool:
    """Tell whether a group trains faster in fleets, and log why."""
    sharing = [job.run.seed for job in group if can_share(job.run)]
    is_faster = result.is_faster(group[0].device, shares=len(sharing) > len(set(sharing)))
    kind = "in fleets" if is_faster else "one by one"
    if result.single is None or result.fleet is None:
        log.info(
            "too few epochs to time a fleet; a step of a run takes %.2g multiply-adds: "
            "%d runs train %s",
            result.work,
            len(group),
            kind,
        )
    else:
        log.info(
            "an epoch of a run takes %.3g ms in a fleet and %.3g ms alone: %d runs train %s",
            1e3 * result.fleet,
            1e3 * result.single,
            len(group),
            kind,
        )
    return is_faster


def _fitting(result: Probe, places: Places) -> int:
    """Give the number of Runs that fit into the memory of one place."""
    if result.available is None:
        return _MAX_SIZE
    share = _MEMORY_SHARE * result.available / places.sharing
    fitting = max(1, int(share / max(result.memory, 1)))
    if fitting < _MAX_SIZE:
        log.info(
            "a run takes about %.3g MB in a fleet, so %d train together",
            result.memory / 1e6,
            fitting,
        )
    return fitting


def _divide(group: Sequence[Job], size: int) -> list[list[Job]]:
    """Divide a group; Runs of one seed stay together, since they share their data."""
    ordered = sorted(group, key=lambda job: job.run.seed)
    return [list(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def _make_fleet(members: Sequence[Job]) -> Job:
    for member in members:
        if member.overwrite:
            _checkpoints(member).delete(member.name, member.run.epochs + 1)
    return members[0]._replace(members=tuple(members))


# ---------------------------------------------------------------- in a worker


def execute_job(
    job: Job,
) -> Iterator[tuple[int, EpochResult]] | Iterator[ForkReady | PrefixEpoch]:
    """Do a job of any kind: a prefix, a fleet, or one Run.

    Args:
        job: The job.

    Returns:
        How far a prefix is and which forks are ready, or the number of a Run with each row of its
        training.
    """
    if job.forks:
        return run_shared_prefix(job)
    if job.members:
        return run_fleet(job)
    return ((job.number, row) for row in run_job(job))


def run_fleet(job: Job) -> Iterator[tuple[int, EpochResult]]:
    """Look the Runs of a fleet up, train those that are not there, and store their Records.

    Args:
        job: The fleet.

    Yields:
        The number of a Run and a row of its training.
    """
    with contextlib.ExitStack() as stack:
        ledger = None
        if job.ledger is not None:
            ledger = stack.enter_context(contextlib.closing(Ledger(job.ledger)))
        remaining = []
        for member in job.members:
            # Another process may have trained it since it was looked up.
            record = None
            if ledger is not None and member.key is not None:
                record = find_record(member, ledger)
            if record is None:
                remaining.append(member)
            else:
                yield from ((member.number, row) for row in row_of_record(member, record))
        if remaining:
            yield from _train(remaining, ledger)


def _train(members: Sequence[Job], ledger: Ledger | None) -> Iterator[tuple[int, EpochResult]]:
    """Train Runs together; where memory runs out, in halves one after the other."""
    waiting = _group_by_checkpoint(members)
    finished: set[int] = set()
    yielded: set[tuple[int, int]] = set()
    has_warned = False
    while waiting:
        part = waiting.pop()
        try:
            for number, row in _train_together(part, ledger):
                if row.record is not None:
                    finished.add(number)
                # A half trains some epochs again; nobody needs their rows twice.
                elif (number, row.epoch) in yielded:
                    continue
                yielded.add((number, row.epoch))
                yield number, row
            continue
        except (RuntimeError, MemoryError) as error:
            if len(part) < 2 or not _is_out_of_memory(error):
                raise
        # Outside of the block, where the error holds no tensors any more.
        if not has_warned:
            log.warning("memory ran out for a fleet of %d runs: it goes on in halves", len(part))
            has_warned = True
        rest = [member for member in part if member.number not in finished]
        half = (len(rest) + 1) // 2
        for half_of_rest in (rest[half:], rest[:half]):
            waiting += _group_by_checkpoint(half_of_rest)


def _checkpoints(job: Job) -> Checkpoints:
    assert job.checkpoint_folder is not None
    return Checkpoints(job.checkpoint_folder)


def _group_by_checkpoint(members: Sequence[Job]) -> list[list[Job]]:
    """Divide Runs by the epoch from which they go on: those of a fleet are after one epoch."""
    epochs = [_checkpoints(member).epochs(member.name, member.run.epochs) for member in members]
    # A fleet that was cut off while it wrote has an earlier epoch of all Runs.
    if epochs and set.intersection(*epochs):
        return [list(members)]
    groups: dict[int, list[Job]] = {}
    for member, own in zip(members, epochs, strict=True):
        groups.setdefault(max(own, default=-1), []).append(member)
    return list(groups.values())


def _load_snapshots(members: Sequence[Job]) -> list[Snapshot] | None:
    """Read the checkpoints of a fleet after the latest epoch that all Runs have; None without."""
    epochs = [_checkpoints(member).epochs(member.name, member.run.epochs) for member in members]
    for epoch in sorted(set.intersection(*epochs), reverse=True):
        snapshots: list[Snapshot] = []
        for member in members:
            snapshot = _checkpoints(member).find(member.name, epoch)
            # Of one that cannot be read an earlier one may be there.
            if snapshot is None or len(snapshot["curves"]) != epoch + 1:
                break
            check_fingerprint(member, snapshot)
            snapshots.append(snapshot)
        else:
            log.info("a fleet of %d runs goes on from epoch %d", len(members), epoch)
            return snapshots
    return None


def _train_together(
    members: Sequence[Job], ledger: Ledger | None
) -> Iterator[tuple[int, EpochResult]]:
    """Train one fleet, and store its Records and checkpoints."""
    first = members[0]
    # Copies, since a caller may ask for the same object twice.
    runs = [copy.copy(member.run) for member in members]
    fleet = Fleet(
        runs,
        device=first.device,
        threads=first.threads,
        resume=_load_snapshots(members),
        settings=first.settings,
    )
    member_of = {id(run): member for run, member in zip(runs, members, strict=True)}
    if ledger is not None:
        for member in members:
            if member.key is not None:
                ledger.start(member.name, member.run.epochs)
    timer, latest = CheckpointTimer(_checkpoints(first)), []
    for row in fleet.train():
        member = member_of[id(row.run)]
        if row.record is not None:
            # Stored before the row is yielded: a parent that is killed then loses nothing.
            if ledger is not None and member.key is not None:
                ledger.add(member.name, row.record, replace=member.overwrite)
            prune_checkpoints(_checkpoints(member), member, row)
        latest.append((member.name, row))
        # The fleet stands after this epoch until its last row is taken.
        if len(latest) == len(fleet):
            timer.save_if_due(*latest)
            latest = []
        yield member.number, replace(row, run=member.run)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    # On the CPU torch raises a plain RuntimeError.
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
