"""What `record` and `watch` see of a training: which calls belong to it, and the updates by optimizers."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from bnlab.model.borrow import count_loans


class Observer:
    """Sees when a model is updated, and tells calls of its training from those of measurements.

    Args:
        model: the model.
        layers: its batch norms.
        end_update: called after each step of a torch optimizer that has one of the model's parameters.
    """

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module], end_update: Callable[[], object]) -> None:
        self._model = model
        self._ids = frozenset(map(id, layers))
        # The number need not be 0: `record_frozen` records a model that it has borrowed itself.
        self._loans = count_loans(self._ids)
        self._parameters = self._list_parameters()
        self._end_update = end_update

    def is_training(self) -> bool:
        """Return whether a call that is made now belongs to the training, not to a measurement."""
        return count_loans(self._ids) == self._loans

    def attach(self, undo: contextlib.ExitStack) -> None:
        """Look at the steps of all optimizers until `undo` is closed."""
        # Torch calls this hook for every optimizer in the process. It must not keep a model alive that nobody needs.
        reference = weakref.ref(self)

        def look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            observer = reference()
            if observer is not None:
                observer._look(optimizer)

        undo.callback(register_optimizer_step_post_hook(torch.compiler.disable(look)).remove)

    def _look(self, optimizer: Optimizer) -> None:
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if updated.isdisjoint(self._parameters):
            # Another model's, such as a GAN's critic; or `load_state_dict(assign=True)` has put other parameters in the
            # place of these.
            self._parameters = self._list_parameters()
        if not updated.isdisjoint(self._parameters):
            self._end_update()

    def _list_parameters(self) -> set[int]:
        # Parameters are told apart by identity, because `==` compares their elements.
        return {id(parameter) for parameter in self._model.parameters()}
