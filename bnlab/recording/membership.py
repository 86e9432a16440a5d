"""Noticing layers that come into a model, leave it or are put back while it is recorded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from bnlab.layers import BatchNorm, join_names
from bnlab.trace import MomentTrace


class Membership:
    """Which layers belong to the model.

    New ones are seen at the end of the block. Those that were taken out and put back are part of the model then, so
    they are looked for when they come back.

    Args:
        trace: in which a layer that was away has no entries of the steps meanwhile.
        model: what is recorded.
        layers: its recorded layers, by name.

    Attributes:
        missed: names of those that were out of the model while it was trained, and are in it again.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, layers: Mapping[str, BatchNorm]) -> None:
        self._trace, self._model = trace, model
        self._names = {id(layer): name for name, layer in layers.items()}
        self.missed = set[str]()

    def register(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        """The hook of torch for any module that becomes a part of another one, before it does."""
        coming = set() if child is None else {id(part) for part in child.modules()} & self._names.keys()
        if not coming:
            return
        present = {id(part) for part in self._model.modules()}
        if id(module) in present:
            back = {self._names[layer] for layer in coming - present}
            self.missed |= {name for name in back if self._was_trained_without(name)}

    def _was_trained_without(self, name: str) -> bool:
        steps = self._trace.layers[name].steps
        return (steps[-1] if steps else self._trace.first_step) < self._trace.last_step

    def warn_of_new_layers(self) -> None:
        """Say which layers have come into the model, or have taken the place of recorded ones."""
        new = [
            name
            for name, module in self._model.named_modules()
            if isinstance(module, BatchNorm) and module.running_mean is not None and id(module) not in self._names
        ]
        if new:
            warnings.warn(
                f"record: {join_names(new)} came into the model inside of the block and are not recorded, nor what "
                "they have taken the place of from then on; change the model before the block",
                stacklevel=4,
            )

    def warn_of_missed_layers(self) -> None:
        """Say which layers were out of the model while it was trained, and are in it again."""
        missed = [name for name in self._names.values() if name in self.missed]
        if missed:
            were = "was" if len(missed) == 1 else "were"
            warnings.warn(
                f"record: {join_names(missed)} {were} taken out and put back inside of the block, "
                "with training in between, which is not in the trace; end the block before, and join the traces",
                stacklevel=4,
            )
