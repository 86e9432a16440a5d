"""Short trials of the work of a sweep, from which follows how long it takes and how much disk space it needs.

A trial does what a job does, with the same code, in a folder that is removed: it trains a few steps, and measures every
table at the last step of a training, whose batch moments are those of the few steps again and again, and at two early
ones.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from bnlab.harness import schema
from bnlab.harness.artifacts.averaging import build_averager
from bnlab.harness.artifacts.data import Dataset, Split
from bnlab.harness.artifacts.producing import STATE_SECONDS
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.artifacts.states import record_moments, save_state, start_training
from bnlab.harness.artifacts.training import train
from bnlab.harness.jobs import choose_measurements, list_needed_checkpoints, prepare_process
from bnlab.harness.measurements import find_measurement
from bnlab.harness.measurements.cache import Failures, complete_rows
from bnlab.harness.measurements.sources import find_sources
from bnlab.recording.trace import LayerTrace, MomentTrace

UNTRIED = ("decomposition", "changed_weights", "matched_weights", "fine_tuning")
"""Measurements that are left out: they train themselves."""
_WARM_UP = 3  # updates that are not timed
_FEWEST = 4  # updates that are timed
_LONGEST = 200  # updates at most
_SECONDS = 1.0  # about so long updates are timed
_STEPS = 2000  # of the training whose moments are replayed, at most; more take longer in proportion
_IMAGES = 1500  # of the training split, at most; more take longer in proportion
_EARLY = 16  # step from which two are measured: little is replayed, and enough for the table `drift`
_LOG_BYTES = 20  # that a step takes in the log


@dataclass(frozen=True)
class Cost:
    """The time and the disk space that a network takes.

    Attributes:
        training: seconds.
        measuring: seconds, of each job on it.
        disk: bytes of its folder.
    """

    training: float
    measuring: list[float]
    disk: float


def estimate(jobs: list[Config]) -> Cost:
    """Try the network of these jobs, which differ in what they measure on it."""
    prepare_process(jobs[0])
    runs = [Run(job) for job in jobs]
    checkpoints = {runs[0].steps}
    for run in runs:
        checkpoints.update(list_needed_checkpoints(run))
    with tempfile.TemporaryDirectory(prefix="bnlab-trial-") as folder:
        trial = Trial(runs[0], folder)
        training = trial.train(len(checkpoints))
        measuring = [trial.measure(run) for run in runs]
        return Cost(training, measuring, trial.disk)


class Trial:
    """A short training of a network, and the measurements on it.

    Attributes:
        disk: bytes that the network's own folder will have, of what has been tried so far.
    """

    def __init__(self, real: Run, folder: str) -> None:
        self.disk = 0.0
        self._real = real
        self._folder = folder
        images = max(_IMAGES, 2 * real.config.batch_size)
        self._dataset = _take_some(real.dataset, images)
        self._steps = min(real.steps, _STEPS)
        first = max(1, min(_EARLY, self._steps - 2))
        self._early = [step for step in (first, first + 1) if step < self._steps]
        self._run = self._pretend(real.config, [])
        self._trace: MomentTrace | None = None

    def _pretend(self, config: Config, steps: list[int]) -> Run:
        """Make the trial's network under a job's configuration, measured at these steps and the last one."""
        changed = replace(
            config,
            results=self._folder,
            steps=self._steps,
            evaluate_at=[*steps, self._steps],
            accuracy_at="all",
            population_images=None,
        )
        run = Run(changed)
        run.dataset = self._dataset
        run.training = "trial"
        return run

    def train(self, checkpoints: int) -> float:
        """Estimate the seconds of the whole training, of which so many checkpoints are kept."""
        run = self._run
        steps = self._real.steps
        started = time.perf_counter()
        progress = start_training(run)
        beginning = time.perf_counter() - started

        for group in progress.optimizer.param_groups:
            group["lr"] = 0.0  # a trial does not diverge
        with record_moments(run, progress) as self._trace:
            update = self._time_updates(progress)

        state = run.folder / "state.safetensors"
        saving = _time(save_state, progress, state, 0.0)
        state.unlink()
        for step in (*self._early, self._steps):
            keeping = _time(run.save_checkpoint, step, progress.measured.state_dict())
        self._write_log()

        self.disk += checkpoints * run.checkpoint(self._steps).stat().st_size
        self.disk += _LOG_BYTES * steps
        if self._trace is not None:
            recorded = self._real.frozen_from or steps
            self.disk += recorded * _count_bytes(self._trace)

        updating = steps * update
        times_saved = updating / STATE_SECONDS
        return beginning + updating + times_saved * saving + checkpoints * keeping

    def _time_updates(self, progress: Progress) -> float:
        """Time an update, in seconds."""
        run = self._run
        times: list[float] = []

        def note(progress: Progress) -> None:
            progress.read_log()  # an accelerator has made the update then
            times.append(time.perf_counter())

        callbacks = [build_averager(run), note]

        def train_until(step: int) -> float:
            train(progress, run.batches, run.config.optimizer, _LONGEST, callbacks, until=step)
            timed = times[_WARM_UP - 1 :]
            return (timed[-1] - timed[0]) / (len(timed) - 1)

        first = _WARM_UP + _FEWEST
        seconds = train_until(first)
        more = min(_LONGEST - first, int(_SECONDS / seconds))
        if more:
            seconds = train_until(first + more)
        return seconds

    def _write_log(self) -> None:
        values = np.random.default_rng(0).random(self._steps)
        frame = pd.DataFrame({"step": np.arange(1, self._steps + 1), "loss": values, "accuracy": values})
        schema.write_frame(self._run.folder / "log.parquet", frame)

    def measure(self, real: Run) -> float:
        """Estimate the seconds that a job's measurements take, after those of the jobs before it."""
        before = self._count_measured()
        last = self._time_measurements(real.config, self._steps, [])
        at_last = self._count_measured()
        footers = self._count_footers()
        early = self._time_measurements(real.config, max(self._early, default=1), self._early)
        # A sweep writes a file with the rows of all steps, not a file for each step.
        at_early = self._count_measured() - at_last - (self._count_footers() - footers)
        bytes_of_step = at_early / max(1, len(self._early))
        self.disk += at_last - before + bytes_of_step * (len(real.wanted) - 1)

        seconds = 0.0
        for name, time_of_last in last.items():
            time_of_step = early[name] / len(self._early) if self._early else time_of_last
            once = max(0.0, time_of_last - time_of_step)
            if find_measurement(name).at_last_step:  # the work of the one step that it measures
                once *= self._scale(real, real.steps)
            else:  # replaying the whole training
                once *= real.steps / self._steps

            steps = real.predicted if name == "evaluations" else real.wanted
            scales = sum(self._scale(real, step) for step in steps)
            seconds += once + time_of_step * scales
        return seconds

    def _scale(self, real: Run, step: int) -> float:
        """Compute how many times as many images as in the trial are measured at a step."""
        images = len(real.dataset.train.labels)
        measured = min(real.limit_at(step) or images, images)
        return measured / len(self._dataset.train.labels)

    def _time_measurements(self, job: Config, recorded: int, steps: list[int]) -> dict[str, float]:
        """Time each of a job's measurements at these steps and the last, as far as they are new, in seconds.

        Args:
            job: names the measurements.
            recorded: the step up to which there are batch moments.
            steps: that are measured.
        """
        run = self._pretend(job, steps)
        if self._trace is not None:
            end = min(recorded, run.frozen_from or recorded)
            run.trace = _repeat(self._trace, self._steps, end)
        sources = find_sources(job)
        seconds = {}
        for name in choose_measurements(run):
            if find_measurement(name).name not in UNTRIED:
                seconds[name] = _time(complete_rows, run, name, sources, Failures())
        return seconds

    def _count_measured(self) -> int:
        """Count the bytes of statistics and rows."""
        total = 0
        for name in ("statistics", "measurements"):
            folder = self._run.folder / name
            files = [path for path in folder.rglob("*") if path.is_file()]
            total += sum(path.stat().st_size for path in files)
        return total

    def _count_footers(self) -> int:
        """Count the bytes of files with rows that do not depend on their number: columns and what these mean."""
        paths = (self._run.folder / "measurements").rglob("*.parquet")
        return sum(pq.read_metadata(path).serialized_size for path in paths)


def _take_some(dataset: Dataset, images: int) -> Dataset:
    """Take so many training images at most, and the same share of all other splits."""
    share = min(1.0, images / len(dataset.train.labels))
    return replace(
        dataset,
        train=_take_share(dataset.train, share),
        val=_take_share(dataset.val, share),
        test=_take_share(dataset.test, share),
    )


def _take_share(split: Split, share: float) -> Split:
    count = max(2, round(share * len(split.labels)))
    return split.sample(count)


def _time(function: Callable[..., object], *arguments: object) -> float:
    """Time a call, in seconds."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def _count_bytes(trace: MomentTrace) -> float:
    """Count the bytes that a step of a trace takes in a file: the moments, and step and count of each call."""
    sizes = [layer.moments.nbytes + 16 * len(layer) for layer in trace.layers.values()]
    return sum(sizes) / trace.last_step


def _repeat(trace: MomentTrace, last_step: int, recorded: int) -> MomentTrace:
    """Repeat the moments of a trace in a longer one, of `last_step` steps, up to the step `recorded`."""
    times = math.ceil(recorded / trace.last_step)
    layers = {}
    for name, layer in trace.layers.items():
        longer = LayerTrace(layer.start, layer.updates, layer.eps)
        steps: list[int] = []
        for turn in range(times):
            steps += [turn * trace.last_step + step for step in layer.steps]
        longer.set_calls(layer.moments.repeat(times, 1, 1), steps, times * layer.counts, [])
        longer.truncate(recorded)
        layers[name] = longer
    return MomentTrace(layers, 0, last_step)
