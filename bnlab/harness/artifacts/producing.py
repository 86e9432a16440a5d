"""Making sure that a run's network is there: found, trained, or trained on after a kill, by one process for all."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor

from bnlab.files import write_text
from bnlab.harness import schema
from bnlab.harness.artifacts import states
from bnlab.harness.artifacts.averaging import build_averager
from bnlab.harness.artifacts.freezing import build_freezer
from bnlab.harness.artifacts.live import LiveLog
from bnlab.harness.artifacts.progress import Diverged, Progress
from bnlab.harness.artifacts.runs import Run, describe_environment
from bnlab.harness.artifacts.training import Callback, train
from bnlab.harness.errors import JobError

STATE_SECONDS = 5.0  # between two saved states: a kill costs at most so much training
_LINE_SECONDS = 60.0  # between two printed lines on how far training has come


def _list_wanted(run: Run) -> list[int]:
    return run.wanted


def ensure_trained(run: Run, list_checkpoints: Callable[[Run], Iterable[int]] = _list_wanted) -> None:
    """Train the run's network unless that has been done; after a kill, go on from its state. Other processes wait.

    Where a checkpoint is missing, because it was not wanted when the network was trained, it is trained again from the
    start; the checkpoints that are there are written again, with the same weights.

    Args:
        run: the run; its folder is written.
        list_checkpoints: returns the steps whose weights are needed. It is called again once training has ended, as a
            training that diverged has fewer. By default all of `evaluate_at`; the last step's weights are kept anyway.

    Raises:
        Unreadable: a file from which training was to go on.
    """
    with run.lock:
        while not run.is_complete(list_checkpoints(run)):
            (run.folder / "status.json").unlink(missing_ok=True)
            kept = {*list_checkpoints(run), *run.requested, *run.list_checkpoints(), run.steps}
            _train(run, kept)


def _train(run: Run, kept: set[int]) -> None:
    """Train to the end, from the run's state if there is one; `kept` are the steps of the checkpoints."""
    progress = states.start_training(run)
    seconds = _restore_or_describe(run, progress)
    live = LiveLog(run, progress)
    recorder = Recorder(run, progress, live, seconds)

    def save_checkpoint(progress: Progress) -> None:
        if progress.step in kept:
            progress.read_log()  # no weights of a network that has diverged
            run.save_checkpoint(progress.step, progress.measured.state_dict())

    callbacks = [
        recorder.end_at_freezing,  # before the freezer writes statistics that no batch has
        build_freezer(run),
        build_averager(run),
        save_checkpoint,
        live.write,
        recorder.save_when_due,  # after all that a state has and that must not be missing behind it
        build_announcer(run, progress),
    ]
    status = "finished"
    try:
        with recorder:
            train(progress, run.batches, run.config.optimizer, run.steps, callbacks)
    except Diverged as error:
        print(f"{run.id}: diverged, {error}; rows before it are kept", file=sys.stderr)
        status = "diverged"
    recorder.save_record(progress)
    live.close()

    end = {
        "status": status,
        "step": progress.step,
        "train_seconds": recorder.seconds,
        "final_loss": progress.loss,
    }
    # Before there is a status: with a state left, a training for a checkpoint that is wanted later would go on from it.
    _state_path(run).unlink(missing_ok=True)
    write_text(run.folder / "status.json", json.dumps(end, indent=1))


def _state_path(run: Run) -> Path:
    return run.folder / "state.safetensors"


def _restore_or_describe(run: Run, progress: Progress) -> float:
    """Restore a killed training; without a state, write the files that describe a new one.

    Returns:
        The seconds that training has taken so far.
    """
    path = _state_path(run)
    if path.exists():
        seconds = states.restore_state(run, progress, path)
        print(f"{run.id}: continuing from step {progress.step} of {run.steps}", flush=True)
        return seconds

    settings = yaml.safe_dump(asdict(run.config), sort_keys=False)
    environment = json.dumps(describe_environment(run.device), indent=1)
    write_text(run.folder / "config.yaml", settings)
    write_text(run.folder / "environment.json", environment)
    return 0.0


def build_announcer(run: Run, progress: Progress) -> Callback:
    """Build a callback that prints a line a minute, with the time that is left, and one at the end."""
    first_step = progress.step
    started = time.monotonic()
    announced = started  # the time of the last line

    def announce(progress: Progress) -> None:
        nonlocal announced
        now = time.monotonic()
        left = run.steps - progress.step
        if left and now - announced < _LINE_SECONDS:
            return
        announced = now
        progress.read_log()

        seconds = now - started
        if left:
            seconds_left = seconds * left / (progress.step - first_step)
            end = f"about {format_seconds(seconds_left)} left"
        else:
            end = f"trained in {format_seconds(seconds)}"
        print(f"{run.id}  step {progress.step:,} of {run.steps:,}  loss {progress.loss:.3f}  {end}", flush=True)

    return announce


def format_seconds(seconds: float) -> str:
    """Format a duration as a reader needs it: `42 s`, `7 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def past_weights(run: Run, steps: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """Compute the weights and buffers after some updates of a finished training by training again; writes nothing.

    Args:
        run: the run, whose log is compared.
        steps: the numbers of updates; 0 gives the weights before training.

    Returns:
        By step, tensors as a checkpoint has them.

    Raises:
        JobError: the losses are not those of the first training.
    """
    weights: dict[int, dict[str, Tensor]] = {}

    def copy_weights(progress: Progress) -> None:
        if progress.step in steps:
            tensors = progress.measured.state_dict()
            weights[progress.step] = {name: value.clone() for name, value in tensors.items()}

    torch.set_num_threads(run.environment["threads"])  # on which the last bits of sums depend
    progress = states.start_training(run)
    copy_weights(progress)  # of step 0, at which no callback is called
    callbacks = [build_freezer(run), build_averager(run), copy_weights]
    # The loss of an update is of the weights before it: one update more checks the last weights.
    until = min(max(steps) + 1, run.steps)
    # Recording rounds the buffers' last bit as in the first training.
    with states.record_moments(run, progress):
        train(progress, run.batches, run.config.optimizer, run.steps, callbacks, until=until)

    losses = run.read_log().set_index("step")["loss"]
    for step, loss, _ in progress.log:
        if loss != losses[step]:
            difference = f"the loss of step {step} was {losses[step]}, now it is {loss}"
            raise JobError(f"cannot be trained again as it was: {difference}; environment.json has its versions")
    return weights


class Recorder:
    """Keeps a training's trace, log and state on disk, by callbacks. Training is recorded until its block ends.

    The trace is written in parts. A part counts once a state is saved at its last step, or training has ended.
    """

    def __init__(self, run: Run, progress: Progress, live: LiveLog, seconds: float) -> None:
        """Begin the record where training stands.

        Args:
            run: the run, whose folder is written.
            progress: a training that has begun or has been restored.
            live: its log in TensorBoard, which is brought to disk with the record.
            seconds: of training before, in other processes.
        """
        self._run = run
        self._live = live
        self._started = time.perf_counter() - seconds
        for path in run.list_trace_parts():
            last_step = int(path.stem[-7:])
            if last_step > progress.step:  # written after the state was saved: these updates are made again
                path.unlink()

        self._begin_part(progress)

    @property
    def seconds(self) -> float:
        """Seconds of training, in all processes that had a part in it."""
        return time.perf_counter() - self._started

    def end_at_freezing(self, progress: Progress) -> None:
        """Write the last part of the trace at the step at which batch norm is frozen; nothing is recorded after it."""
        if progress.step == self._run.frozen_from:
            progress.read_log()
            self.save_record(progress)
            self._begin_part(progress)

    def save_when_due(self, progress: Progress) -> None:
        """Every few seconds, write the record and then the state that makes it count."""
        if time.monotonic() - self._part_began >= STATE_SECONDS:
            progress.read_log()
            self.save_record(progress)
            states.save_state(progress, _state_path(self._run), self.seconds)
            self._begin_part(progress)

    def save_record(self, progress: Progress) -> None:
        """Write the log, and end the part of the trace; the caller has read the log, or training has ended."""
        self._recording.close()
        folder = self._run.folder
        trace = self._trace
        step = progress.step
        if trace is not None and step > trace.first_step:
            trace.truncate(step)  # of a training that diverged: the batches after `step` are not of finite weights
            name = f"{trace.first_step:07d}-{step:07d}.safetensors"
            trace.save(folder / "trace" / name)

        log = pd.DataFrame(progress.log, columns=["step", "loss", "accuracy"])
        schema.write_frame(folder / "log.parquet", log)
        self._live.flush()

    def __enter__(self) -> None:
        """Do nothing: recording began with the object."""

    def __exit__(self, *error: Any) -> None:
        """End recording. `record` is given the error, because it checks only what has ended without one."""
        self._recording.__exit__(*error)

    def _begin_part(self, progress: Progress) -> None:
        self._part_began = time.monotonic()
        self._recording = contextlib.ExitStack()
        self._trace = self._recording.enter_context(states.record_moments(self._run, progress))
