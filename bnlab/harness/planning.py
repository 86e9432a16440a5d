"""How many networks a sweep trains, and how long that takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from bnlab.harness.artifacts.cores import count_cores
from bnlab.harness.artifacts.data import Split
from bnlab.harness.artifacts.producing import format_seconds
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config, as_list
from bnlab.harness.artifacts.states import start_training
from bnlab.harness.artifacts.training import train
from bnlab.harness.artifacts.trying import try_training
from bnlab.harness.jobs import is_done, prepare_process
from bnlab.harness.measurements.evaluations import predict, stat_images
from bnlab.harness.measurements.frozen import EXACT
from bnlab.harness.measurements.sources import FrozenWeights, Source, find_sources

_STEPS = 5


def gains_from_processes(configs: list[Config]) -> bool:
    """Whether several networks have to be trained or measured, on several cores and no accelerator."""
    waiting = {run.id: run for run in (Run(config) for config in configs if not is_done(config))}
    return len(waiting) > 1 and count_cores() > 1 and all(run.device.type == "cpu" for run in waiting.values())


def outline(configs: list[Config]) -> str:
    """How many jobs and networks there are, and how many of the networks are trained already."""
    runs = {run.id: run for run in map(Run, configs)}
    trained = sum(run.is_complete(run.wanted) for run in runs.values())
    state = {0: "none trained yet", len(runs): "all trained already"}.get(trained, f"{trained} trained already")
    return f"{_count(len(configs), 'job')} on {_count(len(runs), 'network')}, {state}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plan(configs: list[Config], processes: int) -> Iterable[str]:
    """Lines of text on a sweep."""
    training, measuring = (format_seconds(seconds / processes) for seconds in estimate(configs))
    yield outline(configs)
    yield f"training   about {training}, {_count(processes, 'network')} at a time"
    yield f"measuring  about {measuring} for statistics of checkpoints and predictions, less what has been done before"


def estimate(configs: list[Config]) -> tuple[float, float]:
    """Seconds of training, and of measuring statistics of frozen weights and predictions, in one process.

    A few training steps of each kind of network are timed; nothing is written.
    """
    prepare_process(configs[0])
    runs = {run.id: run for run in map(Run, configs)}
    kinds = {run.folder.parent: run for run in runs.values()}  # seeds are of one kind
    rates = {kind: _time_steps(run) for kind, run in kinds.items()}
    training = sum(rates[run.folder.parent][0] * run.steps for run in runs.values() if not run.is_complete(run.wanted))
    images: dict[tuple[Path, int, object], int] = {}  # of each evaluation, which is done once for all jobs
    for run in map(Run, configs):
        sources: list[Source | None] = [EXACT, *find_sources(run.config)] if run.has_trace else [None]  # as it is
        for step, source in product(run.wanted, sources):
            if isinstance(source, FrozenWeights) and source.statistic != "averaged":
                images[run.folder, step, source] = stat_images(run, source, step)
        if "evaluations" in as_list(run.config.measurements):
            for step, source, (split, shift) in product(run.predicted, sources, run.predictions):
                images[run.folder, step, (source, split, shift)] = _limit(run, step, run.dataset.images_of(split))
    return training, sum(rates[folder.parent][1] * number for (folder, *_), number in images.items())


def _limit(run: Run, step: int, split: Split) -> int:
    """How many images of a split are measured at a step."""
    return min(run.limit_at(step) or len(split.labels), len(split.labels))


def _time_steps(run: Run) -> tuple[float, float]:
    """Seconds for a training step and for an evaluated image, each after a warm-up."""
    try_training(run)
    progress = start_training(run)
    for group in progress.optimizer.param_groups:
        group["lr"] = 0.0  # a trial does not diverge
    times: list[float] = []
    train(progress, run.batches, run.config.optimizer, _STEPS + 1, [lambda _: times.append(time.perf_counter())])
    started = time.perf_counter()
    predict(progress.model.eval(), run.dataset.val)
    evaluated = (time.perf_counter() - started) / len(run.dataset.val.labels)
    return (times[-1] - times[0]) / (len(times) - 1), evaluated
