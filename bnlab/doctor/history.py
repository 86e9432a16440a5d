"""What an earlier checkpoint tells: which buffers, counts and weights have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bnlab.layers import BatchNorm, match_names, strip_wrappers
from bnlab.statistics import read_buffers


@dataclass(frozen=True)
class LayerChange:
    """What has happened to a layer's buffers since the earlier checkpoint.

    Attributes:
        buffers: [2, C], running mean and variance then.
        is_same: whether today's are equal to them, bit for bit.
        updates: by how much `num_batches_tracked` has grown; None where one side has none.
    """

    buffers: Tensor
    is_same: bool
    updates: int | None


@dataclass(frozen=True)
class History:
    """Changes since an earlier checkpoint.

    Attributes:
        layers: by name; layers that it does not have are not there.
        moved: names of parameters that differ.
        kept: share of the values of parameters with two or more axes that are bit for bit the same.
        distance: relative change of those, ‖now − then‖ / ‖then‖.
        parameters: number of parameters that both have.
    """

    layers: Mapping[str, LayerChange]
    moved: tuple[str, ...]
    kept: float
    distance: float
    parameters: int

    @property
    def is_trained(self) -> bool:
        """Return whether any parameter has changed."""
        return bool(self.moved)


def read_state(source: Any, caller: str) -> Mapping[str, Any]:
    """Read a state dict: of a module, itself, or from a file (safetensors, or torch's with `weights_only=True`).

    Raises:
        TypeError: it is none of these.
        ValueError: the file cannot be read.
    """
    if isinstance(source, nn.Module):
        return source.state_dict()
    if isinstance(source, (str, Path)):
        return read_state_file(Path(source), caller)
    if isinstance(source, Mapping):
        return unwrap_state(source)
    raise TypeError(f"{caller} is a {type(source).__name__}; pass a module, a state dict, or a file of one")


def read_state_file(path: Path, caller: str) -> Mapping[str, Any]:
    """Read a file of weights; nothing in it is run."""
    if not path.is_file():
        raise ValueError(f"{caller} {path}: no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise what they like
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{caller} {path}: cannot be read ({reason}); pass safetensors or a state dict") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{caller} {path}: holds a {type(state).__name__}; pass safetensors or a state dict")
    return unwrap_state(state)


def unwrap_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict inside of what trainers save."""
    inner = state.get("state_dict")
    return inner if isinstance(inner, Mapping) else state


def compare_with(model: nn.Module, layers: Mapping[str, BatchNorm], before: Mapping[str, Any], caller: str) -> History:
    """Compare a model with an earlier state of it; names may differ by what wrappers add.

    Raises:
        ValueError: no layer's buffers are in that state.
    """
    plain = {strip_wrappers(name): value for name, value in before.items() if isinstance(value, Tensor)}
    changes: dict[str, LayerChange] = {}
    for name, layer in layers.items():
        change = _compare_buffers(strip_wrappers(name), layer, plain)
        if change is not None:
            changes[name] = change
    if not changes:
        raise ValueError(f"{caller}: before= has no running statistics of this model's layers; is it another model's?")

    moved = []
    total = same = 0
    squares = reference = 0.0
    parameters = dict(model.named_parameters())
    pairs = match_names(parameters, before)
    for name, other in pairs.items():
        now = parameters[name].detach().cpu()
        then = before[other].detach().cpu()
        if now.shape != then.shape:
            continue
        if not torch.equal(now, then):
            moved.append(name)
        if now.dim() > 1:
            total += now.numel()
            same += int((now == then).sum())
            squares += float((now.double() - then.double()).square().sum())
            reference += float(then.double().square().sum())
    kept = same / total if total else 1.0
    distance = (squares / reference) ** 0.5 if reference else 0.0
    return History(changes, tuple(moved), kept, distance, len(pairs))


def _compare_buffers(name: str, layer: BatchNorm, before: Mapping[str, Tensor]) -> LayerChange | None:
    mean = before.get(f"{name}.running_mean" if name else "running_mean")
    var = before.get(f"{name}.running_var" if name else "running_var")
    now = read_buffers(layer).cpu()
    if mean is None or var is None or mean.shape != now[0].shape:
        return None

    then = torch.stack((mean.detach().cpu(), var.detach().cpu()))
    count = before.get(f"{name}.num_batches_tracked" if name else "num_batches_tracked")
    own_count = layer.num_batches_tracked
    updates = None if count is None or own_count is None else int(own_count) - int(count)
    return LayerChange(then, torch.equal(now, then), updates)
