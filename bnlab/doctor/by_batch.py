"""Let batch norms normalize by each batch, whoever calls the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.borrow import measured
from bnlab.exact.task import Layers


@contextlib.contextmanager
def normalizing_by_batch(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Lend a model in eval mode whose batch norms, and they alone, normalize by what they are given in each call.

    They do so whatever mode the caller has put them in since. A layer that is given a single value in each channel,
    which has no variance, normalizes with its buffers. The model comes back as it was, its buffers included.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(measured(model))
        undo.enter_context(positive_eps(layers))
        for layer in layers.values():
            undo.callback(layer.register_forward_pre_hook(_choose_mode, with_kwargs=True).remove)
        yield


def _choose_mode(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Put a batch norm in train mode before its call, unless its batch [N, C, ...] has one value in each channel."""
    x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    layer.training = x.numel() > x.shape[1]


@contextlib.contextmanager
def positive_eps(layers: Layers) -> Iterator[None]:
    """Give layers of eps 0, which torch refuses in train mode, the smallest one in the block."""
    changed = [layer for layer in layers.values() if layer.eps == 0]
    try:
        for layer in changed:
            layer.eps = torch.finfo(torch.float32).tiny
        yield
    finally:
        for layer in changed:
            layer.eps = 0.0
