"""Making sure that a run's network is there: trained, continued after a kill, or found, once for everybody."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
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

STATE_SECONDS = 5.0  # a kill costs at most so much training
_LINE_SECONDS = 60.0  # between two lines on how far training has come


def _list_measured(run: Run) -> list[int]:
    return run.wanted


def ensure_trained(run: Run, list_checkpoints: Callable[[Run], Iterable[int]] = _list_measured) -> None:
    """Train the run's network unless that has been done; after a kill go on from its state. Other processes wait.

    Where a checkpoint is missing that is wanted now and was not before, the network is trained again from the start,
    and those that are there are made again too.

    Args:
        list_checkpoints: the steps whose weights are to be there, of a training as far as it has come; by default all
            of `evaluate_at`. The weights of the last step are kept anyway.

    Raises:
        Unreadable: a file from which training was to go on.
    """
    with run.lock:
        while not run.is_complete(list_checkpoints(run)):
            (run.folder / "status.json").unlink(missing_ok=True)
            kept = {*list_checkpoints(run), *run.requested, *run.list_checkpoints(), run.steps}
            _train(run, kept)


def _train(run: Run, kept: set[int]) -> None:
    progress = states.start_training(run)
    seconds = 0.0
    path = run.folder / "state.safetensors"
    if path.exists():
        seconds = states.restore_state(run, progress, path)
        print(f"{run.id}: continuing from step {progress.step} of {run.steps}", flush=True)
    else:
        settings = yaml.safe_dump(asdict(run.config), sort_keys=False)
        environment = json.dumps(describe_environment(run.device), indent=1)
        write_text(run.folder / "config.yaml", settings)
        write_text(run.folder / "environment.json", environment)

    live = LiveLog(run, progress)
    recorder = Recorder(run, progress, live, seconds)

    def save_checkpoint(progress: Progress) -> None:
        if progress.step in kept:
            progress.read_log()  # no weights of a network that has diverged
            run.save_checkpoint(progress.step, progress.measured.state_dict())

    callbacks = [
        recorder.end_at_freezing,
        build_freezer(run),
        build_averager(run),
        save_checkpoint,
        live.write,
        recorder.save_when_due,
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
    path.unlink(missing_ok=True)
    write_text(run.folder / "status.json", json.dumps(end, indent=1))


def build_announcer(run: Run, progress: Progress) -> Callback:
    """Build a callback that prints a line a minute, with the time that is left, and one at the end."""
    first = progress.step
    started = time.monotonic()
    announced = started

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
            seconds_left = seconds * left / (progress.step - first)
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
    """Compute weights and buffers after these updates of a finished training by training again; nothing is written.

    Raises:
        JobError: training does not give what it gave before.
    """
    weights: dict[int, dict[str, Tensor]] = {}
    losses = run.read_log().set_index("step")["loss"]
    torch.set_num_threads(run.environment["threads"])  # on which the last bits of sums depend

    def keep(progress: Progress) -> None:
        if progress.step in steps:
            tensors = progress.measured.state_dict()
            weights[progress.step] = {name: value.clone() for name, value in tensors.items()}

    progress = states.start_training(run)
    keep(progress)
    callbacks = [build_freezer(run), build_averager(run), keep]
    # One update more shows that the last weights are those of the first training.
    until = min(max(steps) + 1, run.steps)
    # Recording rounds the buffers' last bit as in the first training.
    with states.record_moments(run, progress):
        train(progress, run.batches, run.config.optimizer, run.steps, callbacks, until=until)

    for step, loss, _ in progress.log:
        if loss != losses[step]:
            difference = f"the loss of step {step} was {losses[step]}, now it is {loss}"
            raise JobError(f"cannot be trained again as it was: {difference}; environment.json has its versions")
    return weights


class Recorder:
    """Callbacks that keep a run's trace, and save it with log and state every few seconds."""

    def __init__(self, run: Run, progress: Progress, live: LiveLog, seconds: float) -> None:
        self._run = run
        self._live = live
        self._started = time.perf_counter() - seconds
        for path in run.list_trace_parts():
            last_step = int(path.stem[-7:])
            if last_step > progress.step:  # written after the state
                path.unlink()

        self._record(progress)

    @property
    def seconds(self) -> float:
        """Seconds of training, in all processes that had a part in it."""
        return time.perf_counter() - self._started

    def end_at_freezing(self, progress: Progress) -> None:
        """End the record where batch norm is frozen, before its statistics are written."""
        if progress.step == self._run.frozen_from:
            progress.read_log()
            self.save_record(progress)
            self._record(progress)

    def save_when_due(self, progress: Progress) -> None:
        """Write the record since the last time, and then the state that makes it count."""
        if time.monotonic() - self._saved >= STATE_SECONDS:
            progress.read_log()
            self.save_record(progress)
            states.save_state(progress, self._run.folder / "state.safetensors", self.seconds)
            self._record(progress)

    def save_record(self, progress: Progress) -> None:
        """Write the trace since the last time, up to where training stands, and the log."""
        step = progress.step
        self._open.close()
        folder = self._run.folder
        trace = self._trace
        if trace is not None and step > trace.first_step:
            trace.truncate(step)
            name = f"{trace.first_step:07d}-{step:07d}.safetensors"
            trace.save(folder / "trace" / name)

        log = pd.DataFrame(progress.log, columns=["step", "loss", "accuracy"])
        schema.write_frame(folder / "log.parquet", log)
        self._live.flush()

    def __enter__(self) -> None:
        """Record until the end of the block; what ends it in the middle of an update leaves the record unchecked."""

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _record(self, progress: Progress) -> None:
        self._saved = time.monotonic()
        self._open = contextlib.ExitStack()
        self._trace = self._open.enter_context(states.record_moments(self._run, progress))
