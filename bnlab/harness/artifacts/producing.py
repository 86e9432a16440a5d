"""Making sure that a run's network is there: trained, continued after a kill, or read back, once for everybody."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from bnlab.files import set_aside
from bnlab.harness import schema
from bnlab.harness.artifacts.runs import Run, environment, read_config
from bnlab.harness.artifacts.settings import describe_differences
from bnlab.harness.artifacts.training import Callback, Diverged, Progress, build_optimizer, train
from bnlab.harness.errors import JobError, UserError, where_raised
from bnlab.recording.block import record
from bnlab.storage import load_tensors, save_tensors
from bnlab.trace import MomentTrace

Keep = Callable[[int, dict[str, Tensor]], None]
"""Gets a step and the weights and buffers after it."""

_STATE = "bnlab.state/1"
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
            _reproduce(run, missing)


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
    progress, seconds, path = start_training(run), 0.0, run.folder / "state.safetensors"
    try:
        if path.exists():
            seconds = _restore(run, progress, path)
        run.check_files(progress.step, progress.loss)
    except _DAMAGE as error:
        run.set_aside(error)
        progress, seconds = start_training(run), 0.0
    if progress.step:
        run.check_images()
        print(f"{run.id}: continuing from step {progress.step} of {run.steps}", flush=True)
        run.add_environment(step=progress.step)
    else:
        run.write_config()
        run.write_environment()
    recorder = Recorder(run, progress, seconds)
    savers = [_saver(run, run.wanted), _state_saver(run)]
    callbacks = [recorder.log, *savers, recorder.save_when_due, _announcer(run, run.steps)]
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


def start_training(run: Run) -> Progress:
    """Training at step 0."""
    torch.manual_seed(run.config.seed)  # dropout and the like
    model = run.new_model()
    return Progress(model, build_optimizer(run.config.optimizer, model, run.config.batch_size), step=0)


def record_moments(run: Run, progress: Progress) -> contextlib.AbstractContextManager[MomentTrace | None]:
    """Records the batch moments from here on; nothing of a network without batch norm."""
    return record(progress.model, step=progress.step) if run.has_trace else contextlib.nullcontext()


def try_training(run: Run) -> None:
    """Make the first update on two images.

    Raises:
        UserError: the network cannot take the images or be trained.
    """
    progress, config = start_training(run), run.config
    batches = replace(run.batches, batch_size=2)
    try:
        with record_moments(run, progress), contextlib.suppress(Diverged):  # which is a result
            train(progress, batches, config.optimizer, run.steps, [], until=1)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model.name={config.model.name}: cannot be trained, {where_raised(error)}") from error


def _restore(run: Run, progress: Progress, path: Path) -> float:
    """Put training where a state file has it; returns the seconds that it had taken."""
    tensors, metadata = _load_state(run, path)
    progress.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    _load_optimizer(progress.optimizer, tensors)
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/device" in tensors:
        torch.cuda.set_rng_state(tensors["rng/device"], run.device)
    progress.step, progress.loss = int(metadata["step"]), float(metadata["loss"])
    return float(metadata["seconds"])


def _load_state(run: Run, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `_save_state` wrote; ValueError if it is damaged, or a copy of another one."""
    _, is_of_step, step = path.stem.partition("step_")
    return load_tensors(path, _STATE, about=run.about(int(step) if is_of_step else None))


def _save_state(run: Run, progress: Progress, path: Path, seconds: float) -> None:
    metadata = {"loss": repr(progress.loss), "seconds": repr(seconds)}
    save_tensors(path, _state(progress), _STATE, metadata, run.about(progress.step))


def _state(progress: Progress) -> dict[str, Tensor]:
    """Everything from which training goes on exactly: weights, buffers, optimizer, random state."""
    found = {f"model/{k}": v for k, v in progress.model.state_dict().items()}
    for index, values in progress.optimizer.state_dict()["state"].items():
        found |= {f"optimizer/{index}/{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    found["rng/cpu"] = torch.get_rng_state()
    device = next(progress.model.parameters()).device
    if device.type == "cuda":
        found["rng/device"] = torch.cuda.get_rng_state(device)
    return found


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


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
            frame = schema.read_frame(run.folder / "log.parquet")
            self._log = frame[frame["step"] <= progress.step]
        self._rows: list[tuple[int, float, float]] = []
        self._record(progress)

    @property
    def seconds(self) -> float:
        """Spent on training, in all processes that had a part in it."""
        return self._before + time.perf_counter() - self._started

    def log(self, progress: Progress) -> None:
        self._rows.append((progress.step, progress.loss, progress.accuracy))

    def save_when_due(self, progress: Progress) -> None:
        if time.monotonic() - self._saved >= STATE_SECONDS:
            self.save(progress)
            self._record(progress)

    def save(self, progress: Progress) -> None:
        """Write the record since the last time, and then the state that makes it count."""
        self.save_record(progress.step)
        _save_state(self._run, progress, self._run.folder / "state.safetensors", self.seconds)

    def save_record(self, step: int) -> None:
        """Write the trace since the last time and the log, both up to `step`."""
        self.close()
        folder, trace = self._run.folder, self._trace
        if trace is not None:
            trace.truncate(step)
        if trace is not None and trace.last_step > trace.first_step:
            name = f"{trace.first_step:07d}-{trace.last_step:07d}.safetensors"
            trace.save(folder / "trace" / name, self._run.about())
        rows = pd.DataFrame(self._rows, columns=["step", "loss", "accuracy"])
        self._log, self._rows = pd.concat([self._log, rows], ignore_index=True), []
        schema.write_frame(folder / "log.parquet", self._log)

    def close(self) -> None:
        """Stop recording."""
        self._open.close()

    def _record(self, progress: Progress) -> None:
        self._saved = time.monotonic()
        self._open = contextlib.ExitStack()
        self._trace = self._open.enter_context(record_moments(self._run, progress))


def _saver(run: Run, wanted: list[int]) -> Callback:
    """Writes a checkpoint at each wanted step."""
    steps = set(wanted)

    def save(progress: Progress) -> None:
        if progress.step in steps:
            run.save_checkpoint(progress.step, progress.model.state_dict())

    return save


def _state_saver(run: Run) -> Callback:
    """Keeps the state at each quarter of the training but the last, whose state is kept anyway."""
    steps = {run.steps * part // _KEPT_STATES for part in range(1, _KEPT_STATES)}

    def save(progress: Progress) -> None:
        if progress.step in steps:
            _save_state(run, progress, run.state(progress.step), seconds=0.0)

    return save


def _reproduce(run: Run, missing: list[int]) -> None:
    """Make the missing checkpoints by training to them again, and leave all else as it is.

    Raises:
        JobError: training does not give what it gave before; checkpoints up to there are kept.
    """
    for start, steps in groupby(missing, key=lambda step: _nearest_state(run, step)):
        written: list[int] = []

        def write(step: int, tensors: dict[str, Tensor], written: list[int] = written) -> None:
            run.save_checkpoint(step, tensors)
            written.append(step)

        try:
            _train_again(run, start, list(steps), write)
        finally:
            if written:
                run.add_environment(checkpoints=written)


def past_weights(run: Run, steps: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """The weights and buffers after these updates of a finished training; nothing is written.

    Args:
        steps: in order. Training is done again from the state before the first of them.

    Raises:
        JobError: training does not give what it gave before.
    """
    found: dict[int, dict[str, Tensor]] = {}
    with run.lock:
        _train_again(run, _nearest_state(run, steps[0]), list(steps), found.__setitem__)
    return found


def _nearest_state(run: Run, step: int) -> Path | None:
    """The file of the last state that is not after a step; damaged ones are set aside. None: training begins at 0."""
    last = run.folder / "state.safetensors"
    ends_there = step == run.steps and last.exists()
    for path in ([last] if ends_there else []) + run.states(step)[::-1]:
        try:
            _load_state(run, path)
            return path
        except ValueError as error:
            set_aside(path, error, "training begins at an earlier step")
    return None


def _train_again(run: Run, start: Path | None, missing: list[int], keep: Keep) -> None:
    """Train from a state to the last of the missing checkpoints, with the threads of the first training."""
    threads, progress = torch.get_num_threads(), start_training(run)
    if start:
        _restore(run, progress, start)
    count = f"{len(missing)} more checkpoint{'s' * (len(missing) > 1)}"
    print(f"{run.id}: training again from step {progress.step} to {missing[-1]} for {count}", file=sys.stderr)
    # One update more shows that the last weights are those of the first training.
    until = min(missing[-1] + 1, run.steps)
    keeper = _CheckpointKeeper(run, missing, keep)
    callbacks = [keeper.compare, keeper.hold, _announcer(run, until)]
    try:
        keeper.hold(progress)
        # Recording rounds the buffers' last bit as in the first training.
        with record_moments(run, progress), contextlib.suppress(Diverged):
            train(progress, run.batches, run.config.optimizer, run.steps, callbacks, until=until)
        keeper.close(progress)
    finally:
        torch.set_num_threads(threads)


class _CheckpointKeeper:
    """Callbacks that keep checkpoints of a second training, each once the next loss is exactly that of the first."""

    def __init__(self, run: Run, missing: list[int], keep: Keep) -> None:
        self._kept: list[int] = []
        self._keep = keep
        self._run, self._missing, self._environments = run, missing, run.environments
        self._log = schema.read_frame(run.folder / "log.parquet").set_index("step")["loss"]
        self._held: tuple[int, dict[str, Tensor]] | None = None

    def hold(self, progress: Progress) -> None:
        """Hold the weights of a missing checkpoint until the next loss, and set the threads for that update."""
        if progress.step in self._missing:
            self._held = progress.step, {k: v.clone() for k, v in progress.model.state_dict().items()}
        threads = self._environment(progress.step)["threads"]
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def compare(self, progress: Progress) -> None:
        """Keep what is held if the loss is that of the log."""
        before = self._log[progress.step]
        if progress.loss != before:
            self._refuse(progress.step, f"the loss of step {progress.step} was {before}, now it is {progress.loss}")
        self._keep_held()

    def close(self, progress: Progress) -> None:
        """Keep the checkpoint after the last update of all, which no loss follows."""
        if progress.step == self._run.steps:
            self._keep_held()
        if self._kept != self._missing:
            self._refuse(progress.step, f"now it diverges after step {progress.step}")

    def _keep_held(self) -> None:
        if self._held:
            self._keep(*self._held)
            self._kept.append(self._held[0])
            self._held = None

    def _environment(self, step: int) -> dict[str, Any]:
        """The one in which the update after `step` was made first."""
        return [entry for entry in self._environments if entry["step"] <= step][-1]

    def _refuse(self, step: int, reason: str) -> NoReturn:
        recorded = {k: v for k, v in self._environment(step - 1).items() if k != "cores"}
        changed = describe_differences(recorded, environment(self._run.device)) or [
            "no recorded version or setting has changed"
        ]
        raise JobError(
            f"{self._run.id}: cannot be trained again as it was: {reason} ({'; '.join(changed)}). The checkpoints that "
            "are there stay: measure at these (evaluate_at=), or train in another folder (results=)"
        )


def _announcer(run: Run, until: int) -> Callback:
    """A progress bar on a terminal, a line for each epoch elsewhere."""
    per_epoch = run.batches.per_epoch
    epochs = -(-run.steps // per_epoch)
    bar = tqdm(total=until, desc=run.id, unit="step", disable=None, leave=False)

    def announce(progress: Progress) -> None:
        bar.update(progress.step - bar.n)
        done = progress.step == until
        if bar.disable and (progress.step % per_epoch == 0 or done):
            epoch = -(-progress.step // per_epoch)
            print(f"{run.id}  epoch {epoch}/{epochs}  step {progress.step}  loss {progress.loss:.3f}", flush=True)
        if done:
            bar.close()

    return announce
