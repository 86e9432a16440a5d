"""Layers that compute with their running statistics where they are to normalize with their batch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnlab.borrowing import borrowed, set_buffers_aside
from bnlab.layers import BatchNorm, get_layer_input, get_running_buffers, has_own_forward, join_names, replace_input

_MOVES = (0.0, 0.0, 3.0, -3.0)  # of the running mean, in its σ: a layer may clip how far it follows


class RunningUse:
    """Tells which layers take their running statistics in forwards in which they are to be in train mode.

    They are called in eval mode, or have a forward of their own, whose output changes with their running buffers: for
    that it is run four times more at their first call. One that cannot be run again, or gives another output under the
    same buffers, is taken for one that does not.

    Args:
        layers: by name, in train mode.
        caller: the public call on whose behalf this is, for messages.

    Attributes:
        layers: those.
        found: their names.
    """

    def __init__(self, layers: Mapping[str, BatchNorm], caller: str) -> None:
        self.layers, self._caller, self._tried = layers, caller, set[str]()
        self.found: dict[str, None] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the calls in the block; ValueError if a layer is in eval mode before it."""
        if evaluated := [name for name, layer in self.layers.items() if not layer.training]:
            raise ValueError(
                f"{self._caller}: {join_names(evaluated)} are in eval mode after the next batch was made; make all "
                "batches before, as a list, or let what makes them give back train mode"
            )
        with contextlib.ExitStack() as undo:
            for name, layer in self.layers.items():
                # Before other hooks, which may begin the call of a recorded layer.
                hook = layer.register_forward_pre_hook(partial(self._note, name), prepend=True, with_kwargs=True)
                undo.callback(hook.remove)
            yield

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layers[name]
        if module is not layer:  # a copy of it, which has the hooks too
            return
        if not layer.training:
            self.found[name] = None
        elif name not in self._tried and has_own_forward(layer):
            self._tried.add(name)
            with contextlib.suppress(Exception):
                self.found.update({name: None} if _takes_running(layer, args, kwargs) else {})


def _takes_running(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the output for this input changes with the running buffers."""
    first, again, *moved = (_run_with_moved_buffers(layer, args, kwargs, move) for move in _MOVES)
    return _agree(first, again) and not all(_agree(first, other) for other in moved)


def _agree(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs are the same to rounding."""
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
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
        output = layer.forward(*given[0], **given[1])
    return [leaf.detach().clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
