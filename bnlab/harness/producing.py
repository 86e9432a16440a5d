"""Making sure that a run's network is there: trained, continued after a kill, or read back, once for everybody."""

from __future__ import annotations

import contextlib
import sys
import time

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from bnlab.harness import tables
from bnlab.harness.runs import CHECKPOINT, Run
from bnlab.harness.training import Callback, Diverged, Progress, build_optimizer, train
from bnlab.storage import load_tensors, save_tensors, set_aside
from bnlab.trace import record

_STATE = "bnlab.state/1"
_DAMAGE = (ValueError, KeyError, RuntimeError, FileNotFoundError)  # what reading a damaged or foreign state raises
STATE_SECONDS = 5.0  # a kill costs at most so much training


def ensure_trained(run: Run) -> None:
    """Train the run's network unless that has been done; after a kill go on from its state.

    Checkpoints that this configuration wants and an earlier one did not are produced by training up to them again
    from the nearest state. Damaged files are named, set aside and made anew. One process at a time; others wait.
    """
    with run.lock:
        try:
            if run.status is not None:
                run.check_files(run.status["step"])
        except (ValueError, FileNotFoundError) as error:
            run.set_aside(error)
        if run.status is None:
            _train(run)
        missing = [step for step in run.wanted if not run.checkpoint(step).exists()]
        if missing:
            _reproduce(run, missing)


def _train(run: Run) -> None:
    try:
        progress, seconds = _restored(run)
        run.check_files(progress.step)
    except _DAMAGE as error:
        run.set_aside(error)
        progress, seconds = begun(run), 0.0
    if progress.step:
        print(f"{run.id}: continuing from step {progress.step} of {run.steps}", flush=True)
    run.describe()
    recorder = Recorder(run, progress, seconds)
    callbacks = [recorder.log, _saver(run, run.wanted), recorder.save_when_due, _announcer(run, run.steps)]
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


def begun(run: Run) -> Progress:
    """Training at step 0."""
    torch.manual_seed(run.config.seed)  # dropout and the like
    model = run.new_model()
    return Progress(model, build_optimizer(run.config.optimizer, model, run.config.batch_size), step=0)


def _restored(run: Run) -> tuple[Progress, float]:
    """Training as the state file has it, and the seconds it took so far; from the start if there is none."""
    progress = begun(run)
    path = run.folder / "state.safetensors"
    if not path.exists():
        return progress, 0.0
    tensors, metadata = load_tensors(path, _STATE)
    progress.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
    _load_optimizer(progress.optimizer, tensors)
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/device" in tensors:
        torch.cuda.set_rng_state(tensors["rng/device"], run.device)
    progress.step, progress.loss = int(metadata["step"]), float(metadata["loss"])
    return progress, float(metadata["seconds"])


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
    """Callbacks that keep a run's log and trace, and save them together with the state now and then."""

    def __init__(self, run: Run, progress: Progress, seconds: float) -> None:
        self._run, self._before, self._started = run, seconds, time.perf_counter()
        # What was written after the state is made again.
        for path in set(run.folder.glob("trace/*.safetensors")) - set(run.trace_parts(progress.step)):
            path.unlink()
        self._log = pd.DataFrame()
        if progress.step:
            frame = tables.read_frame(run.folder / "log.parquet")
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
        described = {"step": str(progress.step), "loss": repr(progress.loss), "seconds": repr(self.seconds)}
        save_tensors(self._run.folder / "state.safetensors", _state(progress), _STATE, described)

    def save_record(self, step: int) -> None:
        """Write the trace since the last time and the log, both up to `step`."""
        self.close()
        folder, trace = self._run.folder, self._trace
        trace.truncate(step)
        if trace.last_step > trace.first_step:
            trace.save(folder / "trace" / f"{trace.first_step:07d}-{trace.last_step:07d}.safetensors")
        rows = pd.DataFrame(self._rows, columns=["step", "loss", "accuracy"])
        self._log, self._rows = pd.concat([self._log, rows], ignore_index=True), []
        tables.write_frame(folder / "log.parquet", self._log)

    def close(self) -> None:
        """Stop recording."""
        self._open.close()

    def _record(self, progress: Progress) -> None:
        self._saved = time.monotonic()
        self._open = contextlib.ExitStack()
        self._trace = self._open.enter_context(record(progress.model, step=progress.step))


def _saver(run: Run, wanted: list[int]) -> Callback:
    """Writes a checkpoint at each wanted step."""
    steps = set(wanted)

    def save(progress: Progress) -> None:
        if progress.step in steps:
            save_tensors(run.checkpoint(progress.step), progress.model.state_dict(), CHECKPOINT, {})

    return save


def _reproduce(run: Run, missing: list[int]) -> None:
    """Train to the missing checkpoints again, from the state if it is early enough, and leave all else as it is."""
    print(f"{run.id}: training again to step {missing[-1]} for {len(missing)} more checkpoints", file=sys.stderr)
    try:
        progress, _ = _restored(run)
    except _DAMAGE as error:
        set_aside(run.folder / "state.safetensors", error, "training begins at step 0")
        progress = begun(run)
    if progress.step > missing[0]:
        progress = begun(run)
    save = _saver(run, missing)
    save(progress)
    # The run reached these steps before, but the schedule is that of the whole training.
    callbacks = [save, _announcer(run, missing[-1])]
    with record(progress.model):  # which rounds the buffers' last bit as it did then
        train(progress, run.batches, run.config.optimizer, run.steps, callbacks, until=missing[-1])


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
