"""Forwards that each begin with a borrowed model as its owner has left it, and leave nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from bnlab.borrowing import KeptTensors, keep_state
from bnlab.module_state import ModuleState


class FreshForwards:
    """Puts back what a forward changes on a model, as far as that can be watched; what is changed between them stays.

    Args:
        model: a borrowed one.
        hooks: those of its owner, see `ModuleState`.
        weights: its parameters, which nobody changes.

    Attributes:
        changed: whether something has been changed between forwards, but for before the first.
    """

    def __init__(self, model: nn.Module, hooks: Iterable[Any], weights: KeptTensors) -> None:
        self._model, self._weights = model, weights
        self.state = ModuleState(model, hooks)
        self._kept: KeptTensors | None = None
        self.changed = False

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """The block is a forward."""
        is_first, accepted = self._kept is None, self.state.accept()
        if accepted or self._kept is None:
            self._kept = keep_state(self._model)
        self.changed |= (self._kept.take_up() or accepted) and not is_first
        with self._weights.restored(unseen=True), self._kept.restored(unseen=True), self.state.undone():
            yield
