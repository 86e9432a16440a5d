"""What is other than before: `before=` is an earlier state of the model, or one that it is a copy of."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.doctor.patient import Patient
from bnlab.model.batches import is_dense
from bnlab.model.layers import strip_wrappers
from bnlab.statistics.moments import Moments


@dataclass(frozen=True)
class History:
    """What is other than before.

    Attributes:
        changed: names of parameters with other values.
        moved: names of layers with other averages.
        behind: names of layers that stand behind a changed parameter, in the order in which the model lists them.
        is_same_shape: whether all parameters were there, with the same shapes.
    """

    changed: Sequence[str]
    moved: Sequence[str]
    behind: Sequence[str]
    is_same_shape: bool


def compare_with_before(patient: Patient) -> History | None:
    """Compare a patient with before=; None without it."""
    before = patient.before
    if before is None:
        return None
    parameters = {strip_wrappers(name): parameter for name, parameter in patient.model.named_parameters()}
    known = {name: before[name] for name in parameters if name in before}
    changed = [name for name, earlier in known.items() if _has_changed(earlier, parameters[name])]
    moved = []
    for name in patient.layers:
        earlier = read_earlier_averages(before, name)
        if earlier is not None and not are_same(earlier, patient.averages[name]):
            moved.append(name)
    behind = _list_behind(patient, {*changed})
    shapes = len(known) == len(parameters) and all(known[name].shape == parameters[name].shape for name in known)
    return History(changed, moved, behind, shapes)


def _has_changed(earlier: Tensor, parameter: Tensor) -> bool:
    # Quantized weights know no comparison, and they are not the weights that they were made of.
    if earlier.shape != parameter.shape or not is_dense(parameter):
        return True
    return not torch.equal(earlier.to(parameter), parameter)


def _list_behind(patient: Patient, changed: Collection[str]) -> list[str]:
    """List the layers behind a changed parameter; a layer's own parameters do not change what it is given."""
    behind = []
    is_changed = False
    for name, module in patient.model.named_modules():
        if name in patient.layers and is_changed:
            behind.append(name)
        own = [strip_wrappers(f"{name}.{key}" if name else key) for key, _ in module.named_parameters(recurse=False)]
        is_changed = is_changed or any(key in changed for key in own)
    return behind


def are_same(one: Moments, other: Moments) -> bool:
    """Return whether two averages are the same."""
    return (
        one.mean.shape == other.mean.shape
        and torch.allclose(one.mean, other.mean, 0, 0, equal_nan=True)
        and torch.allclose(one.var, other.var, 0, 0, equal_nan=True)
    )


def is_frozen(layer: nn.Module) -> bool:
    """Return whether a layer's own weights take no gradient."""
    own = [*layer.parameters(recurse=False)]
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def read_earlier_averages(before: Mapping[str, Tensor], name: str) -> Moments | None:
    """Read a layer's averages of before=; None where it has none."""
    plain = strip_wrappers(name)
    prefix = f"{plain}." if plain else ""
    mean, var = before.get(f"{prefix}running_mean"), before.get(f"{prefix}running_var")
    return None if mean is None or var is None else Moments(math.nan, mean.double().cpu(), var.double().cpu())
