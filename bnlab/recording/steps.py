"""The step of a training run at which a call of a layer is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from bnlab.model.borrow import count_loans
from bnlab.recording.trace import MomentTrace


class StepCounter:
    """Counts the steps of a trace: updates of a model's parameters by a torch optimizer.

    Until the first update each forward of the model is a step, as there may be no updates at all. The first update then
    makes all that was recorded before into one step.

    Args:
        trace: the trace whose `last_step` is counted up.
        model: the model that is recorded.
        layers: its batch norms.

    Attributes:
        has_counted: whether there was an update, or a forward of the model as a whole in train mode.
        has_seen_forward: whether there was a forward of the model as a whole, in train or in eval mode.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        self._trace = trace
        self._model = model
        self._parameters = self._list_parameters()
        self._counts_updates = False
        self._is_open = False
        self._layers = frozenset(map(id, layers))
        self._loans = count_loans(self._layers)
        self.has_counted = False
        self.has_seen_forward = False

    def begin_forward(self, module: nn.Module, args: object) -> None:
        """Count a forward of the model; the hook before it."""
        if count_loans(self._layers) != self._loans:
            return
        self.has_seen_forward = True
        # The model may be in eval mode while its batch norms train, as in `record_frozen`.
        if not any(part.training for part in module.modules()):
            return
        # As long as there are no updates, only the next forward shows that a step has ended.
        if not self._counts_updates:
            self.has_counted = True
            self._is_open = False
        self.enter_step()

    def enter_step(self) -> int:
        """Return the step of the call that is made now; the first call after an update begins the next step."""
        if not self._is_open:
            self._is_open = True
            self._trace.last_step += 1
        return self._trace.last_step

    def end_update(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Count an update if it is of one of the model's parameters; the hook after a step of any optimizer."""
        # The hook is called for all optimizers, such as that of a GAN's critic, which is another model.
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if updated.isdisjoint(self._parameters):
            # Another model's, or `load_state_dict(assign=True)` has put other parameters in the place of these.
            self._parameters = self._list_parameters()
        if not updated.isdisjoint(self._parameters):
            self.end_step()

    def _list_parameters(self) -> set[int]:
        # Parameters are told apart by identity, because `==` compares their elements.
        return {id(parameter) for parameter in self._model.parameters()}

    def end_step(self) -> None:
        """Count an update: the step ends with it."""
        trace = self._trace
        self.has_counted = True
        if not self._counts_updates:  # the first update: all that was recorded before belongs to it
            self._counts_updates = True
            # If there was no forward yet, `last_step` stays where it is.
            trace.last_step = min(trace.last_step, trace.first_step + 1)
            for layer in trace.layers.values():
                layer.steps = [trace.last_step] * len(layer)
        self._is_open = False
