"""How layers are called where they are to normalize with their batch's statistics."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnlab.borrowing import borrowed, set_buffers_aside
from bnlab.layers import (
    BatchNorm,
    get_layer_input,
    get_running_buffers,
    has_own_forward,
    join_names,
    replace_input,
    strip_transforms,
)
from bnlab.module_state import ModuleState
from bnlab.moments import Moments

Call = tuple[str, Moments]
"""A layer's name, and the moments of what it was given."""
_MOVES = (0.0, 0.0, 3.0, -3.0)  # of the running mean, in its σ: a layer may clip how far it follows


class LayerCalls:
    """Tells how layers of a borrowed model are called in forwards, and between them, while they are in train mode.

    Some take their running statistics all the same. They are called in eval mode, or have a forward of their own, whose
    output changes with their running buffers: for that it is run four times more at their first call, and where they
    are called with another shape, or with other plain values among arguments and attributes. One that cannot be run
    again, gives another output under the same buffers, or decides at random, is taken for one that does not.

    Args:
        layers: by name, in train mode. Their hooks go with the loan of the model.
        caller: the public call on whose behalf this is, for messages.

    Attributes:
        layers: those.
        running: names of those that take their running statistics.
        between: names of those that were called in train mode outside of forwards.
        is_forward: whether one runs now.
    """

    def __init__(self, layers: Mapping[str, BatchNorm], caller: str) -> None:
        self.layers, self._caller, self._tried = layers, caller, set[Any]()
        self.running: dict[str, None] = {}
        self.between: dict[str, None] = {}
        self.is_forward, self._thread = False, threading.get_ident()
        self._noted: list[Call] | None = None
        for name, layer in layers.items():
            # Before other hooks, which may begin the call of a recorded layer.
            layer.register_forward_pre_hook(partial(self._look, name), prepend=True, with_kwargs=True)

    @contextlib.contextmanager
    def watched(self, calls: list[Call] | None = None) -> Iterator[None]:
        """The block is a forward; ValueError if a layer is in eval mode before it.

        Args:
            calls: gets all of them, in order.
        """
        if evaluated := [name for name, layer in self.layers.items() if not layer.training]:
            raise ValueError(
                f"{self._caller}: {join_names(evaluated)} are in eval mode after the next batch was made; make all "
                "batches before, as a list, or let what makes them give back train mode"
            )
        self.is_forward, self._noted = True, calls
        try:
            yield
        finally:
            self.is_forward, self._noted = False, None

    def _look(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layers[name]
        if module is not layer:  # a copy of it, which has the hooks too
            return
        if not self.is_forward:
            # Other threads may call at any time, and are named elsewhere.
            if layer.training and threading.get_ident() == self._thread:
                self.between[name] = None
            return
        if not layer.training:
            self.running[name] = None
        elif has_own_forward(layer) and (situation := (name, *_describe(layer, args, kwargs))) not in self._tried:
            self._tried.add(situation)
            with contextlib.suppress(Exception):
                self.running.update({name: None} if _takes_running(layer, args, kwargs) else {})
        x = strip_transforms(get_layer_input(args, kwargs)) if self._noted is not None else None
        if self._noted is not None and isinstance(x, Tensor) and x.numel():
            self._noted.append((name, Moments.of(x)))


def _describe(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What a forward may decide by: shapes, and plain values among its arguments and the layer's attributes."""
    given = [*args, *kwargs.items(), *vars(layer).items()]
    plain = [value for value in tree_leaves(given) if isinstance(value, (str, int, float, bool, type(None)))]
    return (*(tuple(leaf.shape) for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)), *plain)


def _takes_running(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the output for this input changes with the running buffers."""
    first, again, *moved = (_run_with_moved_buffers(layer, args, kwargs, move) for move in _MOVES)
    return _agree(first, again) and not all(_agree(first, other) for other in moved)


def _agree(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs are the same to rounding."""
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.std().nan_to_num()), equal_nan=True)
        for a, b in zip(one, other, strict=True)
    )


def _run_with_moved_buffers(
    layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], move: float
) -> list[Tensor]:
    with borrowed(layer):
        set_buffers_aside(layer)
        mean, var = get_running_buffers(layer)
        mean.add_(move * (var + layer.eps).sqrt())
        var.mul_(2.0**move)
        # A forward may write into its input.
        given = replace_input(args, kwargs, get_layer_input(args, kwargs).clone())
        with ModuleState(layer).undone():
            output = layer.forward(*given[0], **given[1])
    return [leaf.detach().double().clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
