"""Plans of sweeps: the number of networks, how long they take on this machine, and the disk space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from bnlab.common.files import Unreadable
from bnlab.harness.artifacts.code_changes import find_changes
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import format_seconds
from bnlab.harness.durations import Durations, estimate_durations
from bnlab.harness.jobs import is_trained, list_needed_checkpoints, prepare_process
from bnlab.harness.measurements.subjects import list_subjects, try_estimators
from bnlab.harness.requests import MEASURED_WITH
from bnlab.harness.source_code import say_changed
from bnlab.harness.trial import TrialResult, select_kind, try_training
from bnlab.harness.updates import ADVICE, count_last

_SECONDS = 1.0  # of each trial
# Settings of the training that change what measuring costs.
_MEASURED_DIFFERENTLY = ("averaging", "weight_averages", "freeze_at", "freeze_with")


def outline(configs: list[Config], waiting: list[Config]) -> list[str]:
    """Say how many jobs and networks there are, and how many are trained.

    Of those that are not: which files of the user's code have changed since others of the same settings were trained,
    and which small last batches they are trained on.
    """
    networks = {Run(config).id for config in configs}
    untrained = _list_untrained(waiting)
    trained = len(networks) - len(untrained)
    if trained == len(networks):
        state = "all trained already"
    elif trained == 0:
        state = "none trained yet"
    else:
        state = f"{trained} trained already"
    lines = [f"{_count(len(configs), 'job')} on {_count(len(networks), 'network')}, {state}"]

    changed = find_changes([run.config for run in untrained])
    counts = Counter(tuple(files) for files in changed if files)
    for files, count in counts.items():
        verb = "is" if count == 1 else "are"
        lines.append(
            f"{say_changed(files)}: {_count(count, 'network')} {verb} trained again, beside those of the earlier code"
        )

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
    for run, needed in untrained.items():
        trial = trials.try_training(run)
        training += run.steps * trial.update
        overhead += trials.estimate_durations(run).overhead
        checkpoints = len({*needed, run.steps})  # that of the last step is always kept
        copies = 1 + len(run.config.decays)
        disk += run.steps * trial.moments + checkpoints * copies * trial.network
    # A network is trained once, but measured by each of its jobs.
    jobs = [Run(config) for config in waiting]
    measuring = sum(trials.estimate_durations(run).estimate_measuring(run) for run in jobs)
    read = _count(sum(len(_list_needed(run)) for run in jobs), "checkpoint")

    # `start` is left whole: it already counts what the processes do side by side.
    training /= processes
    measuring /= processes
    overhead /= processes
    if math.isnan(training):
        yield "training   takes a time that is not known, as a loss is not finite in the first updates"
    else:
        yield f"training   about {format_seconds(training)}"
    yield f"measuring  about {format_seconds(measuring)}, at {read}"
    yield f"the rest   about {format_seconds(start + overhead)}: starting processes, building networks, writing files"
    whole = start + training + measuring + overhead
    at_a_time = f"{_count(processes, 'network')} at a time"
    # The trials ran alone: on busy cores, or with less cache for each, several at a time are slower.
    speed = "on this machine as busy as it is now" if processes == 1 else "each as fast as one alone is now"
    if math.isnan(whole):
        yield f"in all     not known, {at_a_time}"
    else:
        yield f"in all     about {format_seconds(whole)}, {at_a_time}, {speed}"
    yield f"disk       about {disk / 1e6:,.0f} MB in {configs[0].results}/runs"
    yield from remarks
    yield from trials.list_warnings()


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
