"""The state of a training: where it begins, and the file from which it goes on exactly."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from bnlab.files import reading
from bnlab.harness.artifacts.averaging import begin_average
from bnlab.harness.artifacts.freezing import keep_frozen
from bnlab.harness.artifacts.models import load_weights
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.training import Progress, build_optimizer
from bnlab.recording.block import record
from bnlab.recording.trace import MomentTrace
from bnlab.storage import load_tensors, save_tensors

_STATE = "bnlab.state/1"


def start_training(run: Run) -> Progress:
    """The training at step 0; sets torch's random state."""
    torch.manual_seed(run.config.seed)  # dropout and the like
    model = run.new_model()
    optimizer = build_optimizer(run.config.optimizer, model, run.config.batch_size)
    return Progress(model, optimizer, step=0, average=begin_average(run, model))


def record_moments(run: Run, progress: Progress) -> contextlib.AbstractContextManager[MomentTrace | None]:
    """Record the batch moments from here on; nothing of a network without batch norm, or where it is frozen."""
    is_frozen = run.frozen_from is not None and progress.step >= run.frozen_from
    records = run.has_trace and not is_frozen
    return record(progress.model, step=progress.step) if records else contextlib.nullcontext()


def save_state(progress: Progress, path: Path, seconds: float) -> None:
    """Write all from which a training goes on exactly, and the seconds that it has taken."""
    found = {f"model/{k}": v for k, v in progress.model.state_dict().items()}
    for index, values in progress.optimizer.state_dict()["state"].items():
        found |= {f"optimizer/{index}/{k}": v for k, v in values.items() if isinstance(v, Tensor)}
    if progress.average is not None:
        found |= {f"average/{k}": v for k, v in progress.average.state_dict().items()}
    found["rng/cpu"] = torch.get_rng_state()
    device = next(progress.model.parameters()).device
    if device.type == "cuda":
        found["rng/device"] = torch.cuda.get_rng_state(device)
    metadata = {"seconds": repr(seconds), "step": str(progress.step), "loss": repr(progress.loss)}
    save_tensors(path, found, _STATE, metadata)


def restore_state(run: Run, progress: Progress, path: Path) -> float:
    """Put the training where a state file has it; returns the seconds that it had taken. Unreadable if it cannot."""
    with reading(path):
        tensors, metadata = load_tensors(path, _STATE)
        load_weights(progress.model, _select(tensors, "model/"))
        _load_optimizer(progress.optimizer, _select(tensors, "optimizer/"))
        if progress.average is not None:
            load_weights(progress.average, _select(tensors, "average/"))
        torch.set_rng_state(tensors["rng/cpu"])
        if "rng/device" in tensors:
            torch.cuda.set_rng_state(tensors["rng/device"], run.device)
        progress.step, progress.loss = int(metadata["step"]), float(metadata["loss"])
    keep_frozen(run, progress)
    return float(metadata["seconds"])


def _select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
