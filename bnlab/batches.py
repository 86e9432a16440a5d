"""Batches: what a forward makes of them, and copies that a loader cannot write into."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

Forward = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, batch: Any) -> Any:
    """The default forward: `model(batch)`, or `model(batch[0])` of a tuple or list such as (images, labels)."""
    if not isinstance(batch, (tuple, list)):
        return model(batch)
    if not batch:
        raise ValueError("a batch is an empty list or tuple; pass e.g. (images, labels), or forward= for other batches")
    return model(batch[0])


def copy_batch(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """The batch with copies of its tensors on `device`, and of its numpy arrays; of other objects shallow ones.

    Args:
        channels_last: images [N, C, H, W] are laid out with the channels innermost.
    """

    def copy_tensor(tensor: Tensor) -> Tensor:
        plain = tensor.layout == torch.strided and not tensor.is_nested
        images = channels_last and plain and tensor.dim() == 4
        layout = torch.channels_last if images else torch.preserve_format
        return tensor.to(device, copy=True, memory_format=layout)

    def copy_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return copy_tensor(leaf)
        return np.copy(leaf) if isinstance(leaf, np.ndarray) else _copy_object(leaf)

    return tree_map(copy_leaf, batch)


def _copy_object(leaf: Any) -> Any:
    """A shallow copy where there can be one: forwards set attributes of graphs, say."""
    if isinstance(leaf, nn.Module):
        return leaf
    try:
        return copy.copy(leaf)
    except Exception:
        return leaf


def keep_batch(batch: Any) -> Any:
    """The batch with copies of its tensors and arrays where they are: a loader may use its memory again."""
    batch = tree_map_only(np.ndarray, np.copy, batch)
    return tree_map_only(Tensor, torch.clone, batch)
