"""Making sure that a run's network is there: trained, continued after a kill, or found, once for everybody."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bnlab.harness import schema
from bnlab.harness.artifacts import states
from bnlab.harness.artifacts.announcing import build_announcer
from bnlab.harness.artifacts.averaging import build_averager
from bnlab.harness.artifacts.folders import describe_environment, read_environment, write_config, write_json
from bnlab.harness.artifacts.freezing import build_freezer, check_momenta
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Callback, Diverged, Progress, train
from bnlab.harness.errors import JobError, UserError, where_raised

STATE_SECONDS = 5.0  # a kill costs at most so much training


def ensure_trained(run: Run) -> None:
    """Train the run's network unless that has been done; after a kill go on from its state. Other processes wait.

    Where a checkpoint is missing that this configuration wants and an earlier one did not, the network is trained again
    from the start, and those that are there are made again too.

    Raises:
        Unreadable: a file from which training was to go on.
    """
    with run.lock:
        while not (run.finished and {*run.wanted} <= {*run.list_checkpoints()}):
            if run.finished:
                for name in ("status.json", "state.safetensors"):
                    (run.folder / name).unlink(missing_ok=True)
            _train(run)


def _train(run: Run) -> None:
    progress, seconds, path = states.start_training(run), 0.0, run.folder / "state.safetensors"
    if path.exists():
        seconds = states.restore_state(run, progress, path)
        print(f"{run.id}: continuing from step {progress.step} of {run.steps}", flush=True)
    else:
        write_config(run.folder, asdict(run.config))
        write_json(run.folder / "environment.json", describe_environment(run.device))
    recorder, announcer = Recorder(run, progress, seconds), build_announcer(run.id, progress.step, run.steps)
    kept = {*run.wanted, *run.list_checkpoints()}
    saver = _call_at(kept, lambda done: run.save_checkpoint(done.step, done.measured.state_dict()))
    callbacks = [recorder.log, build_freezer(run), build_averager(run), saver, recorder.save_when_due, announcer]
    status = "finished"
    try:
        with recorder:
            train(progress, run.batches, run.config.optimizer, run.steps, callbacks)
    except Diverged as error:
        print(f"{run.id}: diverged, {error}; rows before it are kept", file=sys.stderr)
        status = "diverged"
    recorder.save_record(progress.step)
    found = {"status": status, "step": progress.step, "train_seconds": recorder.seconds, "final_loss": progress.loss}
    write_json(run.folder / "status.json", found)
    path.unlink(missing_ok=True)


def try_training(run: Run) -> None:
    """Make the first update on two images.

    Raises:
        UserError: the network cannot take the images, be trained or be frozen as it is to be.
    """
    progress, config = states.start_training(run), run.config
    if config.freeze_at is not None and config.freeze_with == "ema":
        check_momenta(run, progress.model, "freeze_with=ema", "freeze_with=exact")
    batches = replace(run.batches, batch_size=2)
    try:
        with states.record_moments(run, progress), contextlib.suppress(Diverged):  # which is a result
            train(progress, batches, config.optimizer, run.steps, [], until=1)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model={config.model.name}: cannot be trained, {where_raised(error)}") from error


def past_weights(run: Run, steps: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """The weights and buffers after these updates of a finished training, which is done again; nothing is written.

    Raises:
        JobError: training does not give what it gave before.
    """
    found: dict[int, dict[str, Tensor]] = {}
    losses, environment = run.read_log().set_index("step")["loss"], read_environment(run.folder)
    torch.set_num_threads(environment["threads"])  # on which the last bits of sums depend

    def keep(progress: Progress) -> None:
        found[progress.step] = {name: value.clone() for name, value in progress.measured.state_dict().items()}

    def compare(progress: Progress) -> None:
        if progress.loss != losses[progress.step]:
            raise JobError(
                f"cannot be trained again as it was: the loss of step {progress.step} was {losses[progress.step]}, now "
                f"it is {progress.loss} (then {environment['versions']} on {environment['device']})"
            )

    # One update more shows that the last weights are those of the first training.
    progress, until = states.start_training(run), min(max(steps) + 1, run.steps)
    keeper, announcer = _call_at(steps, keep), build_announcer(f"{run.id} again", 0, until)
    keeper(progress)
    callbacks = [compare, build_freezer(run), build_averager(run), keeper, announcer]
    # Recording rounds the buffers' last bit as in the first training.
    with states.record_moments(run, progress):
        train(progress, run.batches, run.config.optimizer, run.steps, callbacks, until=until)
    return found


class Recorder:
    """Callbacks that keep a run's log and trace, and save them together with the state every few seconds."""

    def __init__(self, run: Run, progress: Progress, seconds: float) -> None:
        self._run, self._before, self._started = run, seconds, time.perf_counter()
        for path, last in run.list_trace_parts().items():
            if last > progress.step:  # written after the state
                path.unlink()
        self._log = pd.DataFrame()
        if progress.step:
            log = run.read_log()
            self._log = log[log["step"] <= progress.step]
        self._rows: list[tuple[int, float, float]] = []
        self._record(progress)

    @property
    def seconds(self) -> float:
        """Spent on training, in all processes that had a part in it."""
        return self._before + time.perf_counter() - self._started

    def log(self, progress: Progress) -> None:
        self._rows.append((progress.step, progress.loss, progress.accuracy))
        if progress.step == self._run.frozen_from:  # before statistics are written
            self.save_record(progress.step)
            self._record(progress)

    def save_when_due(self, progress: Progress) -> None:
        """Write the record since the last time, and then the state that makes it count."""
        if time.monotonic() - self._saved >= STATE_SECONDS:
            self.save_record(progress.step)
            states.save_state(progress, self._run.folder / "state.safetensors", self.seconds)
            self._record(progress)

    def save_record(self, step: int) -> None:
        """Write the trace since the last time and the log, both up to `step`."""
        self._open.close()
        folder, trace = self._run.folder, self._trace
        if trace is not None:
            trace.truncate(step)
        if trace is not None and trace.last_step > trace.first_step:
            trace.save(folder / "trace" / f"{trace.first_step:07d}-{trace.last_step:07d}.safetensors")
        rows = pd.DataFrame(self._rows, columns=["step", "loss", "accuracy"])
        self._log, self._rows = pd.concat([self._log, rows], ignore_index=True), []
        schema.write_frame(folder / "log.parquet", self._log)

    def __enter__(self) -> None:
        """Record until the end of the block; what ends it in the middle of an update leaves the record unchecked."""

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _record(self, progress: Progress) -> None:
        self._saved = time.monotonic()
        self._open = contextlib.ExitStack()
        self._trace = self._open.enter_context(states.record_moments(self._run, progress))


def _call_at(steps: Iterable[int], callback: Callback) -> Callback:
    """The callback at these steps only."""
    chosen = {*steps}

    def call(progress: Progress) -> None:
        if progress.step in chosen:
            callback(progress)

    return call
