"""What an earlier checkpoint tells: which buffers, counts and weights have changed since."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bnlab.doctor.matching import Match, match_states, name_tensor, simplify_name, simplify_state
from bnlab.layers import BatchNorm, join_names, strip_wrappers
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
        unmatched: sentences on layers that one of both lacks, and on names that differ; "" if nothing is special.
    """

    layers: Mapping[str, LayerChange]
    moved: tuple[str, ...]
    kept: float
    distance: float
    parameters: int
    unmatched: str = ""

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
        state = load_file(path) if path.suffix == ".safetensors" else _load_tensors(path)
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
    return unwrap_state(state)


def _load_tensors(path: Path) -> Any:
    """Load what torch has saved, tensors alone; torch's warnings of other formats would stand beside the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, "cpu", weights_only=True)


def unwrap_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict inside of what trainers save."""
    inner = state.get("state_dict")
    return inner if isinstance(inner, Mapping) else state


def compare_with(model: nn.Module, layers: Mapping[str, BatchNorm], before: Mapping[str, Any], caller: str) -> History:
    """Compare a model with an earlier state of it, or of a network that contains it; see `bnlab.doctor.matching`.

    Raises:
        ValueError: no layer's buffers are in that state, or several parts of it may be the model.
    """
    now = simplify_state(model.state_dict())
    match = match_states(now, simplify_state(before), map(strip_wrappers, layers), caller)
    changes: dict[str, LayerChange] = {}
    for name, layer in layers.items():
        change = _compare_buffers(strip_wrappers(name), layer, match.tensors)
        if change is not None:
            changes[name] = change
    if not changes:
        raise ValueError(f"{caller}: before= has no running statistics of this model's layers; is it another model's?")

    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, _ in model.named_parameters():
        plain = simplify_name(name, now)
        if plain in match.tensors:
            pairs[name] = (now[plain].detach().cpu(), match.tensors[plain].detach().cpu())
    moved = tuple(name for name, (value, earlier) in pairs.items() if not bool((value == earlier).all()))
    matrices = [pair for pair in pairs.values() if pair[0].dim() > 1]
    return History(
        changes, moved, _measure_kept(matrices), _measure_distance(matrices), len(pairs), _tell_unmatched(match)
    )


def _measure_kept(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Measure the share of values that are the same; 1 without any."""
    total = sum(value.numel() for value, _ in pairs)
    same = sum(int((value == earlier).sum()) for value, earlier in pairs)
    return same / total if total else 1.0


def _measure_distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Measure ‖now − then‖ / ‖then‖; 0 where all were 0."""
    squares = sum(float((value.double() - earlier.double()).square().sum()) for value, earlier in pairs)
    reference = sum(float(earlier.double().square().sum()) for _, earlier in pairs)
    return math.sqrt(squares / reference) if reference else 0.0


def _tell_unmatched(match: Match) -> str:
    """Tell which layers are on one side alone, and under which names the model was found; "" if nothing is special."""
    sentences = []
    if match.prefix:
        sentences.append(f"Names in before= begin with {match.prefix!r}.")
    if match.missing:
        sentences.append(f"Not in before=, or of another shape there: {join_names(match.missing)}.")
    if match.others:
        sentences.append(f"In before= alone, or of another shape there: {join_names(match.others)}.")
    return " ".join(sentences)


def _compare_buffers(name: str, layer: BatchNorm, before: Mapping[str, Tensor]) -> LayerChange | None:
    mean = before.get(name_tensor(name, "running_mean"))
    var = before.get(name_tensor(name, "running_var"))
    if mean is None or var is None:
        return None

    now = read_buffers(layer).cpu()
    then = torch.stack((mean.detach().cpu(), var.detach().cpu()))
    count = before.get(name_tensor(name, "num_batches_tracked"))
    own_count = layer.num_batches_tracked
    updates = None if count is None or own_count is None else int(own_count) - int(count)
    return LayerChange(then, torch.equal(now, then), updates)
