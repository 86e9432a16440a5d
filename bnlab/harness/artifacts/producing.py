"""Making sure that a run's network is there: trained, continued after a kill, or read back, once for everybody."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from bnlab.files import set_aside
from bnlab.harness import schema
from bnlab.harness.artifacts import states
from bnlab.harness.artifacts.announcing import build_announcer
from bnlab.harness.artifacts.averaging import build_averager
from bnlab.harness.artifacts.folders import read_config
from bnlab.harness.artifacts.freezing import build_freezer, check_momenta
from bnlab.harness.artifacts.reproducing import make_checkpoints
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Callback, Diverged, Progress, train
from bnlab.harness.errors import UserError, where_raised

_DAMAGE = (ValueError, KeyError, RuntimeError, FileNotFoundError)  # what reading a damaged or foreign state raises
STATE_SECONDS = 5.0  # a kill costs at most so much training
_KEPT_STATES = 4  # a checkpoint that is made later costs at most this part of the training


def ensure_trained(run: Run) -> None:
    """Train the run's network unless that has been done; after a kill go on from its state.

    Checkpoints that this configuration wants and an earlier one did not are produced by training up to them again
    from the nearest state. Damaged files are named, set aside and made again. One process at a time; others wait.

    Raises:
        JobError: the network that is there was trained with other settings, on other images or by another version, or
            the checkpoints that are missing cannot be made as they were. What is there stays.
    """
    with run.lock:
        run.check_settings()
        _ = run.dataset  # what is wrong with the data is no damage of the network
        _restore_config(run)
        try:
            if run.status is not None:
                run.check_files(run.status["step"], run.status["final_loss"])
        except (ValueError, FileNotFoundError) as error:
            run.set_aside(error)
        if run.status is None:
            _train(run)
        run.check_images()
        missing = [step for step in run.wanted if not run.checkpoint(step).exists()]
        if missing:
            make_checkpoints(run, missing)


def _restore_config(run: Run) -> None:
    """Replace a damaged `config.yaml`: the folder's name is the hash of what it says."""
    try:
        read_config(run.folder)
    except FileNotFoundError:
        pass
    except ValueError as error:
        set_aside(run.folder / "config.yaml", error, "written again with this command's settings")
        run.write_config()


def _train(run: Run) -> None:
    progress, seconds, path = states.start_training(run), 0.0, run.folder / "state.safetensors"
    try:
        if path.exists():
            seconds = states.restore_state(run, progress, path)
        run.check_files(progress.step, progress.loss)
    except _DAMAGE as error:
        run.set_aside(error)
        progress, seconds = states.start_training(run), 0.0
    if progress.step:
        run.check_images()
        print(f"{run.id}: continuing from step {progress.step} of {run.steps}", flush=True)
        run.add_environment(step=progress.step)
    else:
        run.write_config()
        run.write_environment()
    recorder = Recorder(run, progress, seconds)
    savers = [*_list_savers(run), recorder.save_when_due]
    callbacks = [recorder.log, build_freezer(run), build_averager(run), *savers, build_announcer(run, run.steps)]
    try:
        train(progress, run.batches, run.config.optimizer, run.steps, callbacks)
        recorder.save(progress)
        status = "finished"
    except Diverged as error:
        print(f"{run.id}: diverged, {error}; rows before it are kept", file=sys.stderr)
        recorder.save_record(progress.step)
        status = "diverged"
    finally:
        recorder.close()
    run.write_status(status, progress.step, recorder.seconds, progress.loss)


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
        raise UserError(f"model.name={config.model.name}: cannot be trained, {where_raised(error)}") from error


class Recorder:
    """Callbacks that keep a run's log and trace, and save them together with the state every few seconds."""

    def __init__(self, run: Run, progress: Progress, seconds: float) -> None:
        self._run, self._before, self._started = run, seconds, time.perf_counter()
        # What was written after the state is made again, all of it: the training may take another course from here.
        kinds = ("trace/*", "*/step_*", "statistics/*")
        written = {path for kind in kinds for path in run.folder.glob(f"{kind}.safetensors")}
        before = {*run.trace_parts(progress.step), *run.states(progress.step), *run.checkpoints(progress.step)}
        for path in written - before:
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
        if time.monotonic() - self._saved >= STATE_SECONDS:
            self.save(progress)
            self._record(progress)

    def save(self, progress: Progress) -> None:
        """Write the record since the last time, and then the state that makes it count."""
        self.save_record(progress.step)
        states.save_state(self._run, progress, self._run.folder / "state.safetensors", self.seconds)

    def save_record(self, step: int) -> None:
        """Write the trace since the last time and the log, both up to `step`."""
        self.close()
        folder, trace = self._run.folder, self._trace
        if trace is not None:
            trace.truncate(step)
        if trace is not None and trace.last_step > trace.first_step:
            name = f"{trace.first_step:07d}-{trace.last_step:07d}.safetensors"
            trace.save(folder / "trace" / name)
        rows = pd.DataFrame(self._rows, columns=["step", "loss", "accuracy"])
        self._log, self._rows = pd.concat([self._log, rows], ignore_index=True), []
        schema.write_frame(folder / "log.parquet", self._log)

    def close(self) -> None:
        """Stop recording."""
        self._open.close()

    def _record(self, progress: Progress) -> None:
        self._saved = time.monotonic()
        self._open = contextlib.ExitStack()
        self._trace = self._open.enter_context(states.record_moments(self._run, progress))


def _list_savers(run: Run) -> list[Callback]:
    """They write checkpoints, and states at each quarter of the training; the last is the state at its end."""
    quarters = [run.steps * part // _KEPT_STATES for part in range(1, _KEPT_STATES)]
    return [
        _call_at(run.wanted, lambda done: run.save_checkpoint(done.step, done.measured.state_dict())),
        _call_at(quarters, lambda progress: states.save_state(run, progress, run.state(progress.step), seconds=0.0)),
    ]


def _call_at(steps: Iterable[int], callback: Callback) -> Callback:
    """The callback at these steps only."""
    chosen = {*steps}

    def call(progress: Progress) -> None:
        if progress.step in chosen:
            callback(progress)

    return call
