"""Buffers that no update has changed while the weights moved: of which layers, and how the weights have moved."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bnlab.doctor.case import Case
from bnlab.doctor.history import LayerChange

_LEAST = 0.01  # relative change of the weights from which on statistics are taken to have changed


def is_other_network(case: Case) -> bool:
    """Return whether all weights are other numbers than before, and not those of before on a coarser grid."""
    history = case.history
    if history is None:
        return False
    if history.added:
        return True
    if history.kept >= 0.01:
        return False
    moved = set(history.moved)
    for name, parameter in case.model.named_parameters():
        if parameter.dim() > 1 and name not in moved:
            return False
    return not _are_rounded(case.model)


def _are_rounded(model: nn.Module) -> bool:
    """Return whether a twentieth of the weights, of the first 4,096 of each tensor, repeat another's value."""
    total = 0
    distinct = 0
    for parameter in model.parameters():
        if parameter.dim() > 1:
            values = parameter.detach().flatten()[:4096]
            total += len(values)
            distinct += len(values.unique())
    return distinct < 0.95 * total


def list_kept(case: Case) -> list[str]:
    """List the layers whose buffers are the earlier ones although weights moved, or were added."""
    return _list_without_update(case, lambda change: change.is_same and not change.updates)


def list_written(case: Case) -> list[str]:
    """List the layers whose buffers were written without an update, as by an average of networks."""
    return _list_without_update(case, lambda change: not change.is_same and change.updates == 0)


def _list_without_update(case: Case, shows: Callable[[LayerChange], bool]) -> list[str]:
    history = case.history
    if history is None or (history.distance < _LEAST and not history.added):
        return []
    changes = history.layers
    named = [name for name in case.layers if name in changes and shows(changes[name])]
    may_be_frozen = bool(history.added)  # as under adapters
    return [name for name in named if not case.is_initial(name) and (may_be_frozen or not case.is_frozen(name))]
