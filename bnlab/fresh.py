"""Forwards that each begin with a borrowed model as its owner has left it, and whether they leave something behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from bnlab.borrowing import KeptTensors, gradients_set_aside, keep_state
from bnlab.module_state import ModuleState
from bnlab.moments import Moments
from bnlab.normalizations import agree, allowed_rounding
from bnlab.own_modes import give_modes


class FreshForwards:
    """Puts back what a forward changes on a model, as far as that can be watched.

    What is changed between forwards stays, but for the modes: who makes a batch may use the model for it.

    Args:
        model: a borrowed one, in the modes that all forwards are to have.
        hooks: those of its owner, see `ModuleState`.
        weights: its parameters.

    Attributes:
        changed: whether something has been changed between two forwards.
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
        give_modes(self._modes)
        is_first, accepted = self._kept is None, self.state.accept()
        if accepted or self._kept is None:
            self._kept = keep_state(self._model)
        # Who changes attributes (as a merged adapter's, with the mode) may have written weights without a trace.
        written = self._weights.take_up() if accepted else self._weights.take_up_counted()
        self.changed |= (self._kept.take_up() or accepted or written) and not is_first
        with (
            gradients_set_aside(self._model),
            self._weights.restored(unseen=True),
            self._kept.restored(unseen=True),
            self.state.undone(),
        ):
            yield


LEAK = (
    "the first batch, run again after the others, gives something else from here on: a forward leaves something behind "
    "that cannot be watched (arrays or its batch written in place, objects with slots or behind globals, files), reads "
    "running statistics, or draws from a generator of random numbers that no module holds; what it keeps belongs into "
    "buffers or attributes of the model"
)


def find_difference(calls: Sequence[tuple[str, Moments]], others: Sequence[tuple[str, Moments]]) -> str | None:
    """The first layer of which two forwards of one batch give other moments; None where they agree, to rounding.

    Args:
        calls: name and moments of each call of a layer, in order.
        others: the same of another forward.
    """
    for name in dict.fromkeys(name for name, _ in [*calls, *others]):  # threads may change the order of layers
        pairs = zip_longest(*([moments for own, moments in some if own == name] for some in (calls, others)))
        if not all(a is not None and b is not None and agree(a, b, allowed_rounding(torch.float32)) for a, b in pairs):
            return name
    return None
