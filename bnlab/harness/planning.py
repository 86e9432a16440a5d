"""Plans of sweeps: the number of networks, how long they take on this machine, and the disk space."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapreplace

from joblib import cpu_count

from bnlab.common.files import Unreadable
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import format_seconds
from bnlab.harness.done import MEASURED_WITH, is_trained
from bnlab.harness.durations import Durations, estimate_durations
from bnlab.harness.jobs import list_needed_checkpoints, prepare_process
from bnlab.harness.measurements.subjects import list_subjects, try_estimators
from bnlab.harness.trial import TrialResult, select_kind, try_training
from bnlab.harness.updates import ADVICE, count_last

_SECONDS = 1.0  # of each trial
# Settings of the training that change what measuring costs.
_MEASURED_DIFFERENTLY = ("averaging", "weight_averages", "freeze_at", "freeze_with")


def outline(configs: list[Config], waiting: list[Config]) -> list[str]:
    """Say how many jobs and networks there are, how many are trained, and which small last batches others have."""
    networks = {Run(config).id for config in configs}
    untrained = _list_untrained(waiting)
    # Their checkpoints of some steps were not kept, or are gone.
    again = sum(run.finished for run in untrained)
    trained = len(networks) - len(untrained) + again
    if trained == len(networks):
        state = "all trained already"
    elif trained == 0:
        state = "none trained yet"
    else:
        state = f"{trained} trained already"
    if again:
        state += f", {again} of them again now, for checkpoints of steps that are not there"
    lines = [f"{_count(len(configs), 'job')} on {_count(len(networks), 'network')}, {state}"]

    for run in untrained:
        config = run.config
        left = count_last(config.data.count_training(), config.batch_size, run.steps)
        if left is not None and config.last_batch == "keep" and config.norm.uses_batch:
            lines.append(f"the last batch of an epoch has {left:,} images of {config.batch_size:,}, {ADVICE}")
    return list(dict.fromkeys(lines))  # each size once


def _list_untrained(waiting: Iterable[Config]) -> dict[Run, set[int]]:
    """List the networks of jobs that are not trained with all checkpoints that the jobs read, with their steps."""
    runs: dict[str, Run] = {}
    needed: dict[str, set[int]] = {}
    for run in map(Run, waiting):
        # Several jobs may measure one network, which then needs the checkpoints of all of them.
        runs.setdefault(run.id, run)
        needed.setdefault(run.id, set()).update(_list_needed(run))
    return {run: needed[name] for name, run in runs.items() if not is_trained(run, needed[name])}


def _list_needed(run: Run) -> list[int]:
    """List the steps whose checkpoints a job reads; none of a network with a damaged file, which the job sets aside."""
    try:
        return list_needed_checkpoints(run)
    except Unreadable:
        return []


def _read_step(run: Run) -> int:
    """Read the step from which a training goes on; 0 of a network with a damaged file, which the job sets aside."""
    try:
        return run.read_step()
    except Unreadable:
        return 0


def _count(number: int, noun: str) -> str:
    """Write a number with its noun: `1 job`, `2 jobs`."""
    ending = "" if number == 1 else "s"
    return f"{number:,} {noun}{ending}"


def plan(configs: list[Config], waiting: list[Config], processes: int, start: float = 0.0) -> Iterable[str]:
    """Describe a sweep, with `waiting` jobs that are not done, by a short trial of each kind of network and job.

    Nothing is written; UserError for what would stop the sweep.

    Args:
        configs: all jobs.
        waiting: those that are not done.
        processes: how many networks are trained at a time.
        start: seconds until the processes have begun with their first jobs.
    """
    summary, *remarks = outline(configs, waiting)
    yield summary
    if not waiting:
        yield "nothing is left to be measured"
        return

    try_estimators(subject for config in waiting for subject in list_subjects(config))
    untrained = _list_untrained(waiting)
    trials = _Trials()
    training = overhead = disk = 0.0
    times: dict[str, float] = defaultdict(float)  # by network, in the order in which they begin
    for run, needed in untrained.items():
        trial = trials.try_training(run)
        # A killed training goes on from its state.
        update_time = (run.steps - _read_step(run)) * trial.update
        other_time = trials.estimate_durations(run).overhead
        training += update_time
        overhead += other_time
        # A loss that is not finite leaves the time of an update unknown.
        times[run.id] += other_time if math.isnan(update_time) else update_time + other_time
        checkpoints = len({*needed, run.steps})  # that of the last step is always kept
        copies = 1 + len(run.config.decays)
        recorded = run.frozen_from or run.steps  # frozen batch norms take no more batches
        disk += recorded * trial.moments + checkpoints * copies * trial.network
    # A network is trained once, but measured by each of its jobs.
    jobs = [Run(config) for config in waiting]
    measuring = 0.0
    for run in jobs:
        measuring_time = trials.estimate_durations(run).estimate_measuring(run)
        measuring += measuring_time
        times[run.id] += measuring_time
    read = _count(sum(len(_list_needed(run)) for run in jobs), "checkpoint")

    # `start` is left whole: it already counts what the processes do side by side.
    workers = _count_workers(jobs, processes)
    share = _share(list(times.values()), workers)
    training *= share
    measuring *= share
    overhead *= share
    if math.isnan(training):
        yield "training   takes a time that is not known, as a loss is not finite in the first updates"
    else:
        yield f"training   about {format_seconds(training)}"
    yield f"measuring  about {format_seconds(measuring)}, at {read}, less where rows are there already"
    yield f"the rest   about {format_seconds(start + overhead)}: starting processes, building networks, writing files"
    whole = start + training + measuring + overhead
    at_a_time = f"{_count(processes, 'network')} at a time"
    # The trials ran alone: on busy cores, or with less cache for each, several at a time are slower.
    if processes == 1:
        speed = "on this machine as busy as it is now"
    elif workers == processes:
        speed = "each as fast as one alone is now"
    else:
        threads = max(run.config.threads for run in jobs)
        speed = f"of {_count(threads, 'thread')} each on {_count(cpu_count(), 'core')}"
    if math.isnan(whole):
        yield f"in all     not known, {at_a_time}"
    else:
        yield f"in all     about {format_seconds(whole)}, {at_a_time}, {speed}"
    decimals = 1 if disk < 1e7 else 0
    yield f"disk       about {disk / 1e6:,.{decimals}f} MB in {configs[0].results}/runs"
    yield from remarks
    yield from trials.list_warnings()


def _count_workers(jobs: list[Run], processes: int) -> int:
    """Count the processes that go as fast as one alone: on a CPU each needs cores of its own."""
    if any(run.device.type != "cpu" for run in jobs):
        return processes
    threads = max(run.config.threads for run in jobs)
    return max(1, min(processes, cpu_count() // threads))


def _share(times: Sequence[float], workers: int) -> float:
    """Compute the share of the sum of these times that passes where each worker takes the next one as soon as it can.

    >>> _share([4.0, 1.0, 1.0, 2.0], 2)
    0.5
    >>> _share([4.0, 1.0], 2)  # nothing is shorter than its longest part
    0.8
    """
    busy = [0.0] * workers
    for time in times:
        # The list stays a heap: its first element is the worker that is free first.
        heapreplace(busy, busy[0] + time)
    whole = sum(times)
    return max(busy) / whole if whole else 1.0


class _Trials:
    """The trials of networks and jobs, one of each kind."""

    def __init__(self) -> None:
        self._trained: dict[str, TrialResult] = {}
        self._durations: dict[str, Durations] = {}

    def try_training(self, run: Run) -> TrialResult:
        """Train a network of this kind for a second, unless that was done."""
        config = run.config
        # Whether an update can be made depends on the kind alone, its time on the batch size as well.
        kind = repr((select_kind(config), config.batch_size))
        if kind not in self._trained:
            prepare_process(config)
            self._trained[kind] = try_training(run, _SECONDS)
        return self._trained[kind]

    def estimate_durations(self, run: Run) -> Durations:
        """Try what a job of this kind costs, unless that was done."""
        config = run.config
        measured = [getattr(config, name) for name in (*MEASURED_WITH, *_MEASURED_DIFFERENTLY)]
        kind = repr((select_kind(config), config.batch_size, measured))
        if kind not in self._durations:
            # Where a loss is not finite, no update was timed, and those of the trial count as overhead.
            update = self.try_training(run).update
            self._durations[kind] = estimate_durations(run, 0.0 if math.isnan(update) else update)
        return self._durations[kind]

    def list_warnings(self) -> list[str]:
        """List what there is to say of the networks, each once."""
        return list(dict.fromkeys(warning for trial in self._trained.values() for warning in trial.warnings))
