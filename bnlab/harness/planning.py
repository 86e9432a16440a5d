"""How many networks a sweep trains, how long that takes on this machine, and how much disk space it needs."""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from bnlab.harness.artifacts.cores import count_cores
from bnlab.harness.artifacts.producing import format_seconds
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config, as_list
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import is_done, list_read, try_all
from bnlab.harness.trials import UNTRIED, Cost, estimate

_TABLES_SECONDS = 0.3  # to write the tables at the end
_PART_SECONDS = 0.02  # to read what a job has left for them


def gains_from_processes(configs: list[Config]) -> bool:
    """Whether several networks have to be trained or measured, on several cores and no accelerator."""
    waiting = {run.id: run for run in (Run(config) for config in configs if not is_done(config))}
    return len(waiting) > 1 and count_cores() > 1 and all(run.device.type == "cpu" for run in waiting.values())


def outline(configs: list[Config]) -> str:
    """How many jobs and networks there are, and how many of the networks are trained already."""
    networks = _group_by_network(configs)
    trained = sum(_is_trained(jobs) for jobs in networks)
    state = {0: "none trained yet", len(networks): "all trained already"}.get(trained, f"{trained} trained already")
    return f"{_count(len(configs), 'job')} on {_count(len(networks), 'network')}, {state}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _group_by_network(configs: Iterable[Config]) -> list[list[Config]]:
    """The jobs on each network, networks in the order of their first job."""
    networks: dict[str, list[Config]] = {}
    for config in configs:
        networks.setdefault(Run(config).id, []).append(config)
    return list(networks.values())


def _is_trained(jobs: list[Config]) -> bool:
    """Whether the network of these jobs has been trained, with all checkpoints that they read."""
    return all(run.is_complete(list_read(run)) for run in map(Run, jobs))


@dataclass(frozen=True)
class Plan:
    """What a sweep takes that has work left.

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


def plan(configs: list[Config], processes: int) -> Iterable[str]:
    """Lines of text on a sweep.

    Args:
        processes: how many networks are trained or measured at a time.
    """
    yield outline(configs)
    waiting = [config for config in configs if not is_done(config)]
    if not waiting:
        yield "nothing is left to be measured"
        return

    found = make_plan(waiting, processes)
    training, measuring = (format_seconds(seconds / processes) for seconds in (found.training, found.measuring))
    untried = [name for name in UNTRIED if any(name in as_list(config.measurements) for config in waiting)]
    yield f"training   about {training}, {_count(processes, 'network')} at a time"
    yield f"measuring  about {measuring}, less what has been done before{''.join(f', without {n}' for n in untried)}"
    yield f"in all     about {format_seconds(found.altogether)}, with the start of processes and the tables"
    yield f"disk       about {found.disk / 1e6:,.0f} MB in {configs[0].results}/runs"


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
    return Plan(training, measuring, start + _share_out(durations, processes) + tables, disk)


def _describe_kind(jobs: list[Config]) -> str:
    """A text that networks share which differ in the seed alone."""
    return repr([replace(job, seed=0) for job in jobs])


def _try_kinds(kinds: list[list[Config]], processes: int) -> tuple[list[Cost], float]:
    """The cost of a network of each kind, and the seconds until all processes have begun."""
    if processes == 1:
        return [estimate(jobs) for jobs in kinds], 0.0

    rounds = -(-len(kinds) // processes)
    filled = list(itertools.islice(itertools.cycle(kinds), rounds * processes))  # no process rests meanwhile
    started = time.perf_counter()
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_read_data, [kinds[0][0]] * processes))
            start = time.perf_counter() - started
            costs = list(pool.map(estimate, filled))
    except BrokenProcessPool as error:
        raise UserError("a process of the dry run was ended from outside (out of memory?)") from error
    return costs[: len(kinds)], start


def _read_data(config: Config) -> int:
    return len(Run(config).dataset.train.labels)


def _share_out(durations: list[float], processes: int) -> float:
    """Seconds until all jobs are done, of which each process takes the next one when it is free."""
    ends = [0.0] * processes
    for seconds in durations:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)
