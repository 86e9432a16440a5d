"""Plans of sweeps: the number of networks, the time that they take on this machine, and the disk space."""

from __future__ import annotations

import heapq
import itertools
import math
import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from typing import Any

from bnlab.harness.artifacts.cores import count_cores
from bnlab.harness.artifacts.producing import format_seconds
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config, as_list, restore_config
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import list_needed_checkpoints, try_all
from bnlab.harness.measurements import find_measurement
from bnlab.harness.small_batches import ADVICE, MOST_NAMED, count_last
from bnlab.harness.trials import UNTRIED, Cost, estimate

_TABLES_SECONDS = 0.3  # to write the tables at the end
_PART_SECONDS = 0.02  # to read what a job has left for them


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


@dataclass(frozen=True)
class Plan:
    """The time and the disk space that the rest of a sweep takes.

    Attributes:
        training: seconds, of all processes together.
        measuring: the same.
        altogether: seconds from the start of the first process to the last table.
        disk: bytes.
    """

    training: float
    measuring: float
    altogether: float
    disk: float


def plan(configs: list[Config], waiting: list[Config], processes: int) -> Iterable[str]:
    """Describe a sweep in lines of text.

    Args:
        configs: all jobs.
        waiting: those that are not done.
        processes: how many networks are trained or measured at a time.
    """
    yield outline(configs, waiting)
    if not waiting:
        yield "nothing is left to be measured"
        return

    found = make_plan(waiting, processes)
    training = format_seconds(found.training / processes)
    measuring = format_seconds(found.measuring / processes)
    altogether = format_seconds(found.altogether)
    yield f"training   about {training}, {_count(processes, 'network')} at a time"
    yield f"measuring  about {measuring}, less what has been done before{_name_untried(waiting)}"
    yield f"in all     about {altogether}, with the start of processes and the tables"
    yield f"disk       about {found.disk / 1e6:,.0f} MB in {configs[0].results}/runs"
    yield from name_small_batches(waiting)


def _name_untried(configs: list[Config]) -> str:
    """Name the measurements of these jobs whose time is not known: `, without decomposition`."""
    measured: set[str] = set()
    for config in configs:
        measured.update(find_measurement(name).name for name in as_list(config.measurements))
    return "".join(f", without {name}" for name in UNTRIED if name in measured)


def make_plan(configs: list[Config], processes: int) -> Plan:
    """Try a network of each kind, as many at once as processes are going to be; nothing is written.

    Raises:
        UserError: what would stop the sweep.
    """
    try_all(configs)
    networks = _group_by_network(configs)
    kinds: dict[str, list[Config]] = {}
    for jobs in networks:
        kinds.setdefault(_describe_kind(jobs), jobs)
    costs, start = _try_kinds(list(kinds.values()), processes)
    by_kind = dict(zip(kinds, costs, strict=True))

    training = measuring = disk = 0.0
    durations = []
    for jobs in networks:
        cost = by_kind[_describe_kind(jobs)]
        times = list(cost.measuring)
        measuring += sum(times)
        if not _is_trained(jobs):
            training += cost.training
            disk += cost.disk
            times[0] += cost.training
        durations += times

    tables = _TABLES_SECONDS + _PART_SECONDS * len(configs)
    altogether = start + _share_out(durations, processes) + tables
    return Plan(training, measuring, altogether, disk)


def _describe_kind(jobs: list[Config]) -> str:
    """Describe the jobs by a text that is the same for networks that differ in the seed alone."""
    return repr([replace(job, seed=0) for job in jobs])


def _try_kinds(kinds: list[list[Config]], processes: int) -> tuple[list[Cost], float]:
    """Estimate the cost of a network of each kind, and the seconds until all processes have begun."""
    if processes == 1:
        return [estimate(jobs) for jobs in kinds], 0.0

    rounds = math.ceil(len(kinds) / processes)
    repeated = itertools.cycle(kinds)
    filled = list(itertools.islice(repeated, rounds * processes))  # no process rests meanwhile
    started = time.perf_counter()
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_read_data, [asdict(kinds[0][0])] * processes))
            start = time.perf_counter() - started
            # As plain settings: classes of own functions' arguments are not known in other processes.
            described = [[asdict(job) for job in jobs] for jobs in filled]
            costs = list(pool.map(_estimate_described, described))
    except BrokenProcessPool as error:
        raise UserError("a process of the dry run was ended from outside (out of memory?)") from error
    return costs[: len(kinds)], start


def _read_data(settings: dict[str, Any]) -> int:
    return len(Run(restore_config(settings)).dataset.train.labels)


def _estimate_described(jobs: list[dict[str, Any]]) -> Cost:
    return estimate([restore_config(settings) for settings in jobs])


def _share_out(durations: list[float], processes: int) -> float:
    """Compute the seconds until all jobs are done, of which each process takes the next one when it is free."""
    ends = [0.0] * processes
    for seconds in durations:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)
