"""How many networks a sweep trains, and how long that takes on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Iterable

import torch

from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config, as_list, network_hash
from bnlab.harness.artifacts.states import start_training
from bnlab.harness.artifacts.training import train
from bnlab.harness.jobs import prepare_process
from bnlab.harness.measurements.evaluations import predict
from bnlab.harness.measurements.sources import FrozenWeights, find_sources

_TRIAL_STEPS = 5
_COUNTED = {"gaps", "evaluations"}  # tables whose time is predicted; others need passes and trainings of their own
Evaluated = tuple[str, int, Hashable]  # run, step, and under which statistics


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gains_from_processes(planned: list[Config]) -> bool:
    """Whether several networks have to be trained, on several cores and no accelerator."""
    runs = {run.id: run for run in map(Run, planned)}
    untrained = [run for run in runs.values() if not run.finished]
    return len(untrained) > 1 and count_cores() > 1 and all(run.device.type == "cpu" for run in untrained)


def outline(planned: list[Config]) -> str:
    """How many jobs and networks there are, and how many of the networks are trained already."""
    runs = {run.id: run for run in map(Run, planned)}
    trained = sum(run.finished for run in runs.values())
    state = {0: "none trained yet", len(runs): "all trained already"}.get(trained, f"{trained} trained already")
    return f"{_count(len(planned), 'job')} on {_count(len(runs), 'network')}, {state}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plan(planned: list[Config], processes: int) -> Iterable[str]:
    """Lines of text; a few training steps of each kind of network are timed, nothing is written.

    Exact statistics and predictions are counted; tables and estimators that need more than these are named.
    """
    prepare_process(planned[0])
    runs: dict[str, Run] = {}
    images: dict[Evaluated, int] = {}  # of each evaluation, which is done once however many jobs ask for it
    for config in planned:
        run = Run(config)
        runs.setdefault(run.id, run)
        images |= _list_evaluations(run)
    kinds = {network_hash(run.config): run for run in runs.values()}  # seeds are of one kind
    seconds = {kind: _time_steps(run) for kind, run in kinds.items()}
    rates = {name: seconds[network_hash(run.config)] for name, run in runs.items()}
    training = sum(rates[name][0] * run.steps for name, run in runs.items() if not run.finished)
    measuring = sum(rates[name][1] * number for (name, *_), number in images.items())
    yield outline(planned)
    threads = _count(torch.get_num_threads(), "thread")
    how = f"{processes} processes with {threads} each" if processes > 1 else f"{threads}, one network after the other"
    yield f"training   about {_format_seconds(training / processes)} on {how}"
    others = {name for config in planned for name in as_list(config.measurements)} - _COUNTED
    others |= {name for run in runs.values() if run.has_trace for name in _list_passes(run.config)}
    more = f"; more for {', '.join(sorted(others))}" if others else ""
    yield f"measuring  about {_format_seconds(measuring / processes)}, less what has been done before{more}"


def _list_evaluations(run: Run) -> dict[Evaluated, int]:
    """What a job evaluates, and how many images each time: exact statistics, and every source on all predictions."""
    found: dict[Evaluated, int] = {}
    if run.has_trace:
        found = {(run.id, step, "exact statistics"): len(run.dataset.train.labels) for step in run.wanted}
    if "evaluations" in as_list(run.config.measurements):
        sources = find_sources(run.config) if run.has_trace else [None]  # without batch norm the network itself
        for split, shift in run.predictions:
            images = len(run.dataset.images_of(split).labels)
            under = [(source, split, shift) for source in sources]
            found |= {(run.id, step, each): images for step in run.predicted for each in under}
    return found


def _list_passes(config: Config) -> set[str]:
    """Sources that need passes of their own over the data, beside the exact statistics."""
    return {s.estimator for s in find_sources(config) if isinstance(s, FrozenWeights) and s.estimator != "exact"}


def _time_steps(run: Run) -> tuple[float, float]:
    """Seconds for a training step and for an evaluated image, each after a warm-up."""
    progress = start_training(run)
    for group in progress.optimizer.param_groups:
        group["lr"] = 0.0  # a trial does not diverge
    times: list[float] = []
    callbacks = [lambda _: times.append(time.perf_counter())]
    until = max(2, min(run.steps, _TRIAL_STEPS + 1))
    train(progress, run.batches, run.config.optimizer, max(run.steps, until), callbacks, until=until)
    started = time.perf_counter()
    predict(progress.model.eval(), run.dataset.val)
    evaluated = (time.perf_counter() - started) / len(run.dataset.val.labels)
    return (times[-1] - times[0]) / (len(times) - 1), evaluated


def _format_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
