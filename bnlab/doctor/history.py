"""What an earlier checkpoint tells: which buffers, counts and weights have changed since."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bnlab.doctor.matching import match_states, name_tensor, simplify_name, simplify_state
from bnlab.layers import BatchNorm, strip_wrappers
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
        moved: earlier values of the parameters that differ, by name.
        kept: share of the values of parameters with two or more axes that are bit for bit the same.
        distance: relative change of those, ‖now − then‖ / ‖then‖.
        parameters: number of parameters that both have.
        added: names of parameters that the earlier checkpoint has not, as those of adapters.
        unmatched: sentences on layers that one of both lacks, and on names that differ; "" if nothing is special.
    """

    layers: Mapping[str, LayerChange]
    moved: Mapping[str, Tensor]
    kept: float
    distance: float
    parameters: int
    added: tuple[str, ...] = ()
    unmatched: str = ""


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
        return _unwrap(source)
    raise TypeError(f"{caller} is a {type(source).__name__}; pass a module, a state dict, or a file of one")


def read_state_file(path: Path, caller: str) -> Mapping[str, Any]:
    """Read a file of weights; nothing in it is run."""
    if not path.is_file():
        raise ValueError(f"{caller} {path}: no such file")
    try:
        with warnings.catch_warnings():  # torch's, of other formats, would stand beside the error
            warnings.simplefilter("ignore")
            is_safe = path.suffix == ".safetensors"
            state = load_file(path) if is_safe else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise what they like
        if "weights_only" in str(error):  # torch advises to turn it off, which would run what the file says
            raise ValueError(
                f"{caller} {path}: holds Python objects, which can run code when they are loaded, and is not read; "
                "save model.state_dict() alone, or safetensors"
            ) from None
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{caller} {path}: cannot be read ({reason}); pass safetensors or a state dict") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{caller} {path}: holds a {type(state).__name__}; pass safetensors or a state dict")
    return _unwrap(state)


def _unwrap(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict inside of what trainers save."""
    inner = state.get("state_dict")
    return inner if isinstance(inner, Mapping) else state


def compare_with(model: nn.Module, layers: Mapping[str, BatchNorm], before: Mapping[str, Any], caller: str) -> History:
    """Compare a model with an earlier state of it, or of a network that contains it; see `bnlab.doctor.matching`.

    Raises:
        ValueError: no layer's buffers are in that state, or several parts of it may be the model.
    """
    now = simplify_state(model.state_dict())
    then, unmatched = match_states(now, simplify_state(before), map(strip_wrappers, layers), caller)
    compared = {name: _compare_buffers(strip_wrappers(name), layer, then) for name, layer in layers.items()}
    changes = {name: change for name, change in compared.items() if change is not None}
    if not changes:
        raise ValueError(f"{caller}: before= has no running statistics of this model's layers; is it another model's?")

    names = {name: simplify_name(name, now) for name, _ in model.named_parameters()}
    pairs = {name: (now[plain].detach(), then[plain].detach()) for name, plain in names.items() if plain in then}
    added = tuple(name for name in names if name not in pairs)
    moved = {}
    values = 0
    same = 0
    square = 0.0
    square_then = 0.0
    for name, pair in pairs.items():
        value, earlier = (tensor.cpu() for tensor in pair)
        is_same = value == earlier
        if not bool(is_same.all()):
            moved[name] = earlier
        if value.dim() > 1:
            values += value.numel()
            same += int(is_same.sum())
            square += float((value.double() - earlier.double()).square().sum())
            square_then += float(earlier.double().square().sum())
    kept = same / values if values else 1.0
    distance = math.sqrt(square / square_then) if square_then else 0.0
    return History(changes, moved, kept, distance, len(pairs), added, unmatched)


def _compare_buffers(name: str, layer: BatchNorm, before: Mapping[str, Tensor]) -> LayerChange | None:
    mean = before.get(name_tensor(name, "running_mean"))
    var = before.get(name_tensor(name, "running_var"))
    if mean is None or var is None:
        return None

    now = read_buffers(layer).cpu()
    then = torch.stack((mean.detach().cpu(), var.detach().cpu()))
    count = before.get(name_tensor(name, "num_batches_tracked"))
    count_now = layer.num_batches_tracked
    updates = None if count is None or count_now is None else int(count_now) - int(count)
    return LayerChange(then, torch.equal(now, then), updates)
