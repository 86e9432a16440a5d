"""Batches: what a forward makes of them, and copies that a loader cannot write into."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Forward = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, batch: Any) -> Any:
    """The default forward: `model(batch)`, or `model(batch[0])` of a tuple or list such as (images, labels)."""
    if not isinstance(batch, (tuple, list)):
        return model(batch)
    if not batch:
        raise ValueError("a batch is an empty list or tuple; pass e.g. (images, labels), or forward= for other batches")
    return model(batch[0])


def map_leaves(function: Callable[[Any], Any], batch: Any) -> Any:
    """torch's `tree_map`, also through dictionaries of other classes, as those that transformers' processors make."""
    return tree_map(lambda leaf: _map_entries(function, leaf) if _is_dictionary(leaf) else function(leaf), batch)


def _map_entries(function: Callable[[Any], Any], dictionary: Any) -> Any:
    entries = {key: map_leaves(function, value) for key, value in dictionary.items()}
    try:
        mapped = copy.copy(dictionary)
        if getattr(dictionary, "__dict__", None) is dictionary:  # its entries are its attributes; a copy's are not
            mapped.__dict__ = mapped
        mapped.update(entries)
        return mapped
    except Exception:  # one that cannot be copied or changed
        return function(dictionary)


def list_leaves(batch: Any) -> list[Any]:
    """torch's `tree_leaves`, through the same dictionaries."""
    nested = [list_leaves(list(x.values())) if _is_dictionary(x) else [x] for x in tree_leaves(batch)]
    return [leaf for leaves in nested for leaf in leaves]


def _is_dictionary(leaf: Any) -> bool:
    return isinstance(leaf, (dict, UserDict))


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
            return _with_attributes(copy_tensor(leaf), leaf)
        return np.copy(leaf) if isinstance(leaf, np.ndarray) else _copy_object(leaf)

    return map_leaves(copy_leaf, batch)


def _copy_object(leaf: Any) -> Any:
    """A shallow copy where there can be one: forwards set attributes of graphs, say."""
    if isinstance(leaf, nn.Module):
        return leaf
    try:
        return copy.copy(leaf)
    except Exception:
        return leaf


def _with_attributes(copied: Tensor, tensor: Tensor) -> Tensor:
    """A copy with what somebody has put on the tensor; what a subclass is made of it has of its own."""
    for key, value in vars(tensor).items():
        vars(copied).setdefault(key, value)
    return copied


def hold_batch(batch: Any) -> Any:
    """The batch with its own tensors in containers of ours: a loader may fill its dictionary again.

    Raises:
        ValueError: a part of it is an iterator, which the first forward would use up.
    """
    return map_leaves(_refuse_iterator, batch)


def _refuse_iterator(leaf: Any) -> Any:
    if isinstance(leaf, Iterator) and type(leaf).__module__ in ("builtins", "itertools"):  # others may begin anew
        raise ValueError(
            f"a batch is, or holds, a {type(leaf).__name__}, which the first of several forwards would use up; "
            "make it a list"
        )
    return leaf


def keep_batch(batch: Any) -> Any:
    """The batch with copies of its tensors and arrays where they are: a loader may use its memory again.

    Raises:
        ValueError: as `hold_batch`.
    """

    def keep(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return _with_attributes(leaf.clone(), leaf)
        return np.copy(leaf) if isinstance(leaf, np.ndarray) else _refuse_iterator(leaf)

    return map_leaves(keep, batch)
