"""Families of causes: what two of them have in common, so that each says only what is its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from bnlab.doctor.case import Case, read_moments
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.history import History, LayerChange
from bnlab.doctor.undoing import EXACT, RESCALED
from bnlab.statistics import Statistics

_LEAST = 0.01  # relative change of the weights from which on statistics are taken to have changed


class OtherStatistics(Cause):
    """The averages agree with other statistics than the exact ones of these images.

    Attributes:
        here, there: where the first layer is compared with the exact statistics, and with the others, in words.
    """

    undone_by = (EXACT,)
    here: ClassVar[str]
    there: ClassVar[str]

    def read_others(self, case: Case) -> Statistics | None:
        """Read the other statistics."""
        raise NotImplementedError

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        return read_moments(self.read_others(case))

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        first = case.seen[0]
        others = self.read_others(case)
        assert others is not None
        here = case.find_distance(first, case.data.exact)
        there = case.find_distance(first, others)
        return f"first layer {here:.2g} σ off {self.here}, {there:.2g} σ {self.there}"


class WithoutUpdate(Cause):
    """Weights that have moved, or were added, since an earlier checkpoint, and averages that no update has followed."""

    undone_by = (EXACT, RESCALED)
    severity = "warning"
    needs = ("before",)

    def look(self, case: Case) -> Signs | None:
        layers = self.list_layers(case) if case.evidence is None else []
        return Signs.of(layers, self.describe(case, layers))


def get_history(case: Case) -> History:
    """Return what has changed since the earlier checkpoint, which the cause needs."""
    assert case.history is not None
    return case.history


def is_other_network(case: Case) -> bool:
    """Return whether all weights are other numbers than before, and not those of before on a coarser grid."""
    history = get_history(case)
    if history.added:
        return True
    if history.kept >= 0.01:
        return False
    matrices = [name for name, parameter in case.model.named_parameters() if parameter.dim() > 1]
    return all(name in history.moved for name in matrices) and not _are_rounded(case.model)


def _are_rounded(model: nn.Module) -> bool:
    """Return whether a twentieth of the weights, of the first 4,096 of each tensor, repeat another's value."""
    parts = [parameter.detach().flatten()[:4096] for parameter in model.parameters() if parameter.dim() > 1]
    distinct = sum(len(values.unique()) for values in parts)
    return distinct < 0.95 * sum(len(values) for values in parts)


def list_kept(case: Case) -> list[str]:
    """List the layers whose buffers are the earlier ones although weights moved, or were added."""
    return _list_without_update(case, lambda change: change.is_same and not change.updates)


def list_written(case: Case) -> list[str]:
    """List the layers whose buffers were written without an update, as by an average of networks."""
    return _list_without_update(case, lambda change: not change.is_same and change.updates == 0)


def _list_without_update(case: Case, shows: Callable[[LayerChange], bool]) -> list[str]:
    history = get_history(case)
    if history.distance < _LEAST and not history.added:
        return []
    changes = history.layers
    named = case.select(lambda name: name in changes and shows(changes[name]) and not case.is_initial(name))
    may_be_frozen = bool(history.added)  # as under adapters
    return [name for name in named if may_be_frozen or not case.is_frozen(name)]
