"""Noticing layers that come into a model, leave it or are put back while it is recorded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from bnlab.layers import BatchNorm, join_names
from bnlab.trace import MomentTrace


class Membership:
    """Which layers belong to the model.

    New ones are seen at the end of the block. Of those that are taken out and put back nothing shows then: they are
    noticed when it happens.

    Args:
        trace: whose steps tell whether there was training in between.
        model: what is recorded.
        layers: its recorded layers, by name.

    Attributes:
        missed: names of those that were out of the model while it was trained, and are in it again.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, layers: Mapping[str, BatchNorm]) -> None:
        self._trace, self._model, self._layers = trace, model, layers
        self._names = {id(layer): name for name, layer in layers.items()}
        self._holders = {id(m) for m in model.modules() if not self._names.keys().isdisjoint(map(id, m.modules()))}
        self._away: dict[int, int] = {}  # layers that are out of the model, by identity, and since which step
        self.missed = set[str]()

    def register(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        """The hook of torch for any module that becomes a part of another one, before it does."""
        before = module._modules.get(name)
        if id(module) not in self._holders or (id(before) not in self._holders and not self._away):
            return
        coming = set() if child is None else {id(part) for part in child.modules()}
        if before is not None:
            going = {id(part) for part in before.modules()} & self._names.keys()
            self._away = dict.fromkeys(going - coming, self._trace.last_step) | self._away
        for layer in coming & self._away.keys():
            if self._away.pop(layer) < self._trace.last_step:
                self.missed.add(self._names[layer])

    def warn_of_new_layers(self) -> None:
        """Say which layers have come into the model, or have taken the place of recorded ones."""
        known = set(map(id, self._layers.values()))
        new = [name for name, m in self._model.named_modules() if isinstance(m, BatchNorm) and id(m) not in known]
        new = [name for name in new if self._model.get_submodule(name).running_mean is not None]
        if new:
            warnings.warn(
                f"record: {join_names(new)} came into the model inside of the block and are not recorded, nor what "
                "they have taken the place of from then on; change the model before the block",
                stacklevel=4,
            )

    def warn_of_missed_layers(self) -> None:
        """Say which layers were out of the model while it was trained, and are in it again."""
        missed = [name for name in self._layers if name in self.missed]
        if missed:
            were = "was" if len(missed) == 1 else "were"
            warnings.warn(
                f"record: {join_names(missed)} {were} replaced and put back inside of the block, "
                "with training in between, which is not in the trace; end the block before, and join the traces",
                stacklevel=4,
            )
