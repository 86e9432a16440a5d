"""The state of a training: its beginning, and the file from which it goes on exactly."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bnlab.files import reading
from bnlab.harness.artifacts.averaging import begin_average
from bnlab.harness.artifacts.freezing import keep_frozen
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.runs import Run
from bnlab.recording.block import record
from bnlab.recording.trace import MomentTrace
from bnlab.storage import load_tensors, save_tensors

_STATE = "bnlab.state/1"
_OPTIMIZER = "optimizer/"  # begins the names of its groups, one for each parameter


def start_training(run: Run) -> Progress:
    """Begin the training at step 0; sets torch's random state."""
    torch.manual_seed(run.config.seed)  # dropout and the like
    model = run.new_model()
    optimizer = run.config.optimizer.build(model.parameters(), run.config.batch_size)
    average = begin_average(run, model)
    return Progress(model, optimizer, step=0, average=average)


def record_moments(run: Run, progress: Progress) -> contextlib.AbstractContextManager[MomentTrace | None]:
    """Record the batch moments from here on; nothing of a network without batch norm, or where it is frozen."""
    is_frozen = run.frozen_from is not None and progress.step >= run.frozen_from
    if is_frozen or not run.has_trace:
        return contextlib.nullcontext()
    return record(progress.model, step=progress.step)


def save_state(progress: Progress, path: Path, seconds: float) -> None:
    """Write all from which a training goes on exactly, and the seconds that it has taken."""
    groups = {"model": progress.model.state_dict(), "rng": {"cpu": torch.get_rng_state()}}
    if progress.average is not None:
        groups["average"] = progress.average.state_dict()
    for index, values in progress.optimizer.state_dict()["state"].items():
        groups[f"{_OPTIMIZER}{index}"] = values
    device = next(progress.model.parameters()).device
    if device.type == "cuda":
        groups["rng"]["device"] = torch.cuda.get_rng_state(device)

    metadata = {"seconds": repr(seconds), "step": str(progress.step)}
    save_tensors(path, _join_groups(groups), _STATE, metadata)


def restore_state(run: Run, progress: Progress, path: Path) -> float:
    """Restore a training from a state file; returns the seconds that it had taken. Unreadable if it cannot."""
    with reading(path):
        tensors, metadata = load_tensors(path, _STATE)
        groups = _split_groups(tensors)
        progress.model.load_state_dict(groups["model"])
        if progress.average is not None:
            progress.average.load_state_dict(groups["average"])

        state = {}
        for name, values in groups.items():
            if name.startswith(_OPTIMIZER):
                state[int(name.removeprefix(_OPTIMIZER))] = values
        progress.optimizer.load_state_dict({**progress.optimizer.state_dict(), "state": state})

        torch.set_rng_state(groups["rng"]["cpu"])
        if run.device.type == "cuda":
            torch.cuda.set_rng_state(groups["rng"]["device"], run.device)
        progress.step = int(metadata["step"])
        log = run.read_log()[: progress.step]
        progress.log = list(log.itertuples(index=False, name=None))
    keep_frozen(run, progress)
    return float(metadata["seconds"])


def _join_groups(groups: Mapping[str, Mapping[str, Tensor | None]]) -> dict[str, Tensor]:
    """Name the tensors of all groups `group/name`; None, as of an optimizer without momentum, is left out."""
    tensors = {}
    for group, values in groups.items():
        for name, value in values.items():
            if value is not None:
                tensors[f"{group}/{name}"] = value
    return tensors


def _split_groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undo `_join_groups`."""
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        group, _, name = key.rpartition("/")
        groups[group][name] = value
    return groups
