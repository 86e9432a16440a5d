"""Plans of sweeps: the number of networks, how long they train on this machine, and the disk space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from bnlab.common.files import Unreadable
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.naming import find_changes
from bnlab.harness.artifacts.producing import format_seconds
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.jobs import is_trained, list_needed_checkpoints, prepare_process
from bnlab.harness.measurements.subjects import list_subjects, try_estimators
from bnlab.harness.source_code import say_changed
from bnlab.harness.trial import Cost, try_training
from bnlab.harness.updates import ADVICE, count_last

_SECONDS = 1.0  # of each trial


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

    changes = Counter(tuple(files) for files in find_changes([run.config for run in untrained]) if files)
    for files, count in changes.items():
        are_trained = f"{_count(count, 'network')} {'is' if count == 1 else 'are'} trained again"
        lines.append(f"{say_changed(files)}: {are_trained}, beside those of the earlier code")

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


def plan(configs: list[Config], waiting: list[Config], processes: int) -> Iterable[str]:
    """Describe a sweep, with `waiting` jobs that are not done, by a short trial of each kind of network.

    Nothing is written; UserError for what would stop the sweep.
    """
    first, *small_batches = outline(configs, waiting)
    yield first
    if not waiting:
        yield "nothing is left to be measured"
        return

    try_estimators(subject for config in waiting for subject in list_subjects(config))
    costs: dict[tuple[Any, ...], Cost] = {}
    seconds = disk = 0.0
    for run, needed in _list_untrained(waiting).items():
        config = run.config
        kind = (config.data, config.model, config.norm, config.inputs, config.batch_size)
        if kind not in costs:
            prepare_process(config)
            costs[kind] = try_training(run, _SECONDS)
        cost = costs[kind]
        seconds += run.steps * cost.update
        disk += run.steps * cost.moments + len({*needed, run.steps}) * cost.checkpoint

    measured = sum(len(_list_needed(Run(job))) for job in waiting)
    length = f"about {format_seconds(seconds / processes)}"
    if math.isnan(seconds):
        length = "takes a time that is not known, as a loss is not finite in the first updates"
    yield f"training   {length}, {_count(processes, 'network')} at a time"
    checkpoints = _count(measured, "checkpoint")
    yield f"measuring  on top, at {checkpoints}; with many estimators and momenta it takes longer than training"
    yield f"disk       about {disk / 1e6:,.0f} MB in {configs[0].results}/runs"
    yield from small_batches
