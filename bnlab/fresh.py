"""Forwards that each begin with a borrowed model as its owner has left it, and leave nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from bnlab.borrowing import KeptTensors, gradients_set_aside, keep_state
from bnlab.module_state import ModuleState


class FreshForwards:
    """Puts back what a forward changes on a model, as far as that can be watched.

    What is changed between forwards stays, but for the modes: who makes a batch may use the model for it.

    Args:
        model: a borrowed one, in the modes that all forwards are to have.
        hooks: those of its owner, see `ModuleState`.
        weights: its parameters.

    Attributes:
        changed: whether something has been changed between forwards, but for before the first.
    """

    def __init__(self, model: nn.Module, hooks: Iterable[Any], weights: KeptTensors) -> None:
        self._model, self._weights = model, weights
        self._modes = [(module, module.training) for module in model.modules()]
        self.state = ModuleState(model, hooks)
        self._kept: KeptTensors | None = None
        self.changed = False

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """The block is a forward."""
        for module, mode in self._modes:
            if module.training != mode:
                module.training = mode
        is_first, accepted = self._kept is None, self.state.accept()
        if accepted or self._kept is None:
            self._kept = keep_state(self._model)
        written = self._weights.take_up_counted()
        self.changed |= (self._kept.take_up() or accepted or written) and not is_first
        with (
            gradients_set_aside(self._model),
            self._weights.restored(unseen=True),
            self._kept.restored(unseen=True),
            self.state.undone(),
        ):
            yield
