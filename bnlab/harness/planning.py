"""Plans of sweeps: the number of networks, how long they train on this machine, and the disk space."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bnlab.harness.artifacts.cores import count_cores
from bnlab.harness.artifacts.producing import format_seconds
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.costs import find_cost, read_costs
from bnlab.harness.jobs import list_needed_checkpoints, try_all
from bnlab.harness.small_batches import ADVICE, MOST_NAMED, count_last


def gains_from_processes(waiting: list[Config]) -> bool:
    """Return whether jobs wait on several networks, there are several cores and no accelerator is used."""
    runs = [Run(config) for config in waiting]
    networks = {run.id for run in runs}
    if len(networks) < 2 or count_cores() < 2:
        return False
    return all(run.device.type == "cpu" for run in runs)


def outline(configs: list[Config], waiting: list[Config]) -> str:
    """Say how many jobs and networks there are, and how many of the networks are trained already.

    Args:
        configs: all jobs.
        waiting: those that are not done.
    """
    networks = _group_by_network(configs)
    untrained = [jobs for jobs in _group_by_network(waiting) if not _is_trained(jobs)]
    trained = len(networks) - len(untrained)
    if trained == len(networks):
        state = "all trained already"
    elif trained == 0:
        state = "none trained yet"
    else:
        state = f"{trained} trained already"
    jobs = _count(len(configs), "job")
    return f"{jobs} on {_count(len(networks), 'network')}, {state}"


def name_small_batches(waiting: list[Config]) -> list[str]:
    """Name the small last batches of epochs, in lines of text: of networks that have still to be trained.

    Args:
        waiting: jobs that are not done.
    """
    found: list[tuple[int, int]] = []
    for jobs in _group_by_network(waiting):
        sizes = _find_small_batch(jobs[0])
        if sizes is not None and sizes not in found and not _is_trained(jobs):
            found.append(sizes)

    lines = []
    for left, size in found[:MOST_NAMED]:
        lines.append(f"the last batch of an epoch has {left:,} images of {size:,}, {ADVICE}")
    more = len(found) - MOST_NAMED
    if more > 0:
        lines.append(f"and {more:,} more of other sizes")
    return lines


def _find_small_batch(config: Config) -> tuple[int, int] | None:
    """Find the images in the last batch of an epoch and in a full one.

    None where the last batch has more than half of the images of a full one or is not trained on, and where no norm
    uses statistics of the batch.
    """
    if config.last_batch == "drop" or not config.norm.uses_batch:
        return None
    left = count_last(config.data.count_training(), config.batch_size, Run(config).steps)
    return None if left is None else (left, config.batch_size)


def _count(number: int, noun: str) -> str:
    """Write a number with its noun: `1 job`, `2 jobs`."""
    ending = "" if number == 1 else "s"
    return f"{number:,} {noun}{ending}"


def _group_by_network(configs: Iterable[Config]) -> list[list[Config]]:
    """Group the jobs on each network, networks in the order of their first job."""
    networks: dict[str, list[Config]] = {}
    for config in configs:
        networks.setdefault(Run(config).id, []).append(config)
    return list(networks.values())


def _is_trained(jobs: list[Config]) -> bool:
    """Return whether the network of these jobs has been trained, with all checkpoints that they read."""
    runs = [Run(job) for job in jobs]
    return all(run.is_complete(list_needed_checkpoints(run)) for run in runs)


def plan(configs: list[Config], waiting: list[Config], processes: int) -> Iterable[str]:
    """Describe a sweep in lines of text; nothing is written.

    Args:
        configs: all jobs.
        waiting: those that are not done.
        processes: how many networks are trained or measured at a time.

    Raises:
        UserError: what would stop the sweep.
    """
    yield outline(configs, waiting)
    if not waiting:
        yield "nothing is left to be measured"
        return

    try_all(waiting)
    untrained = [jobs for jobs in _group_by_network(waiting) if not _is_trained(jobs)]
    costs = read_costs(Path(configs[0].results))
    seconds = disk = 0.0
    for jobs in untrained:
        run = Run(jobs[0])
        cost = find_cost(run, costs)
        seconds += run.steps * cost.update
        disk += run.steps * cost.moments + len(_list_kept(jobs)) * cost.checkpoint

    measured = sum(len(list_needed_checkpoints(Run(job))) for job in waiting)
    yield f"training   about {format_seconds(seconds / processes)}, {_count(processes, 'network')} at a time"
    checkpoints = _count(measured, "checkpoint")
    yield f"measuring  on top, at {checkpoints}; with many estimators and momenta it takes longer than training"
    yield f"disk       about {disk / 1e6:,.0f} MB in {configs[0].results}/runs"
    yield from name_small_batches(waiting)


def _list_kept(jobs: list[Config]) -> set[int]:
    """List the steps whose checkpoints are kept for the jobs on one network."""
    kept = {Run(jobs[0]).steps}
    for job in jobs:
        kept.update(list_needed_checkpoints(Run(job)))
    return kept
