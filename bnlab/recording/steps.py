"""The step of a training run at which a call of a layer is."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from bnlab.recording.observer import Observer
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
        observer: sees the updates.
        has_counted: whether there was an update, or a forward of the model as a whole in train mode.
        has_seen_forward: whether there was a forward of the model as a whole, in train or in eval mode.
    """

    def __init__(self, trace: MomentTrace, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        self._trace = trace
        self._counts_updates = False
        self._is_open = False
        self.observer = Observer(model, layers, self.end_step)
        self.has_counted = False
        self.has_seen_forward = False

    def begin_forward(self, module: nn.Module, args: object) -> None:
        """Count a forward of the model; the hook before it."""
        if not self.observer.is_training():
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
