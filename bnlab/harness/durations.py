"""How long jobs measure, by a trial: a network of a few updates is measured at one step, on a sample of its images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bnlab.estimators import Estimator
from bnlab.harness.artifacts.optimizers import LEAST_RATE
from bnlab.harness.artifacts.run import Run
from bnlab.harness.artifacts.training_runner import ensure_trained
from bnlab.harness.jobs import find_measurements, list_needed_checkpoints
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import EXACT, measure_at
from bnlab.harness.measurements.rows import complete_rows
from bnlab.harness.measurements.subjects import Subject, list_subjects
from bnlab.recording.trace import LayerTrace, MomentTrace, replay_bank

_STEPS = 4  # updates of a trial; it is not measured at the last one, where all images are
_MEASURED_STEP = 3  # of these updates
_REPLAYED = 100  # batches over which running averages are tried


@dataclass
class TableCost:
    """Seconds that the rows of a table take at one step; for each predicted image if it is measured by split."""

    seconds: float
    is_by_split: bool
    has_statistics: bool  # there are rows of estimators


@dataclass
class Durations:
    """What a job costs beside the updates of its network, in seconds.

    Attributes:
        overhead: building the network and writing its files.
        statistics: all statistics of a checkpoint, at one step, for each image of the training split.
        drawn: those of so many images as they say, at one step.
        tables: the rows of each table, by its name.
        replay: all running averages, for each update.
    """

    overhead: float = 0.0
    statistics: float = 0.0
    drawn: float = 0.0
    replay: float = 0.0
    tables: dict[str, TableCost] = field(default_factory=dict)

    def estimate_measuring(self, run: Run) -> float:
        """Estimate how long a job of this kind measures its network, of which nothing has to be there."""
        subjects = list_subjects(run.config)
        population = len(run.dataset.train.labels)
        with_statistics: set[int] = set()
        seconds = run.steps * self.replay
        for measurement in _list_covering(run):
            cost = self.tables[measurement.name]
            steps = {*measurement.reads(run, subjects)}
            if not steps:  # a table such as the log reads no checkpoint
                steps = {run.steps}
            times = [_count_predicted(run, step) if cost.is_by_split else 1 for step in steps]
            seconds += sum(cost.seconds * count for count in times)
            # Statistics of a checkpoint are kept, so that several tables at one step take the time of one.
            if cost.has_statistics:
                with_statistics |= steps
        images = sum(run.limit_at(step) or population for step in with_statistics)
        return seconds + self.drawn * len(with_statistics) + self.statistics * images


def estimate_durations(run: Run, update: float) -> Durations:
    """Try what a job on this network costs, in folders that are removed again.

    Args:
        run: the network, of which nothing has to be there.
        update: seconds that an update takes.
    """
    # The times of a first trial do not count: what is imported, or allocated once, takes part of them. Of the networks
    # that a process makes, only the first one waits for that.
    _try_job(run, update, images=16)
    return _try_job(run, update, images=512)


def _try_job(run: Run, update: float, images: int) -> Durations:
    """Train and measure a network of a few updates, on so many images at one step, and time it."""
    config = replace(
        run.config,
        # At this rate nothing diverges, so that the trial always leaves a network that can be measured.
        optimizer=replace(run.config.optimizer, lr=LEAST_RATE),
        steps=_STEPS,
        evaluate_at=[_MEASURED_STEP],
        accuracy_at="all",
        population_images=min(images, len(run.dataset.train.labels)),
        quiet=True,
        log="none",
    )
    durations = Durations()
    # A folder of its own, so that each trial trains a network, and measures what is kept with it.
    with tempfile.TemporaryDirectory(prefix="bnlab-") as folder:
        trial = Run(replace(config, results=folder))
        trial.dataset = run.dataset  # which is read once: the trial would load it again
        trained = _time(partial(ensure_trained, trial, list_needed_checkpoints))
        durations.overhead = max(0.0, trained - _STEPS * update)
        _time_measuring(trial, _MEASURED_STEP, durations)
    return durations


def _time_measuring(trial: Run, step: int, durations: Durations) -> None:
    """Time all that is measured at the only step of a trial."""
    subjects = list_subjects(trial.config)
    measurements = _list_covering(trial)
    # A table without estimators has None in place of a subject.
    scopes: dict[str, list[Subject]] = {}
    needed: dict[Subject, None] = {}
    for each in measurements:
        scopes[each.name] = [subject for subject in each.scope(trial, subjects) if subject]
        needed |= dict.fromkeys(scopes[each.name])

    # Statistics are kept in the trial's folder. Measured first, they are no part of the time of the tables that read
    # them.
    if needed and trial.has_trace:
        # Gaps are distances to exact statistics, which are needed whether or not they are asked for.
        measured = [subject for subject in {EXACT: None, **needed} if subject.running_average is None]
        drawn = [subject for subject in measured if getattr(subject.statistic, "images", None)]
        durations.drawn = _time_statistics(trial, step, drawn)
        others = [subject for subject in measured if subject not in drawn]
        # `limit_at` gives None only at the last step, at which a trial is not measured.
        durations.statistics = _time_statistics(trial, step, others) / (trial.limit_at(step) or 1)

    replays: list[Estimator] = []
    for measurement in measurements:
        seconds = _time(partial(complete_rows, trial, measurement, subjects, {}))
        if measurement.is_by_split:
            seconds /= _count_predicted(trial, step)
        durations.tables[measurement.name] = TableCost(seconds, measurement.is_by_split, bool(scopes[measurement.name]))
        # A table of predictions replays the running averages again for each split and shift.
        averages = [each.running_average for each in scopes[measurement.name] if each.running_average is not None]
        times = len(trial.predicted_images) if measurement.is_by_split else 1
        replays += averages * times
    if replays and trial.has_trace:
        durations.replay = _time_replay(trial.trace, replays)


def _time_statistics(trial: Run, step: int, subjects: Sequence[Subject]) -> float:
    return sum(_time(partial(measure_at, trial, step, subject)) for subject in subjects)


def _time_replay(trace: MomentTrace, averages: Sequence[Estimator]) -> float:
    """Time running averages over the recorded batches, again and again: seconds for each batch."""
    # A replay of the trial's few batches would be too short to time, so that they are repeated.
    layers = {}
    for name, layer in trace.layers.items():
        count = max(1, _REPLAYED // max(1, len(layer)))
        longer = LayerTrace(layer.start, layer.updates, layer.eps)
        steps = list(range(1, count * len(layer) + 1))
        longer.set_calls(layer.moments.repeat(count, 1, 1), steps, layer.counts * count, [])
        layers[name] = longer
    # Each call counts as an update here, so that the layer with the most calls has the last step.
    last = max(len(layer) for layer in layers.values())
    long_trace = MomentTrace(layers, 0, last)
    return _time(partial(replay_bank, long_trace, averages, [last])) / last


def _list_covering(run: Run) -> list[Measurement]:
    """List the measurements that have rows of the network."""
    return [each for each in find_measurements(run.config) if each.covers(run.config.norm)]


def _count_predicted(run: Run, step: int) -> int:
    """Count the images that are predicted at a step, in all splits and under all shifts."""
    limit = run.limit_at(step)
    counts = [len(run.dataset.images_of(split).labels) for split, _ in run.predicted_images]
    if limit is not None:
        counts = [min(limit, count) for count in counts]
    return sum(counts)


def _time(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
