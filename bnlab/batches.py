"""Batches: what a forward makes of them, and copies that a forward may write into."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Forward = Callable[[nn.Module, Any], Any]


def call(model: nn.Module, batch: Any) -> Any:
    """The default forward: `model(batch)`, or `model(batch[0])` of a tuple or list such as (images, labels)."""
    if isinstance(batch, (dict, UserDict)):
        return _call_with_dict(model, batch)
    if not isinstance(batch, (tuple, list)) or isinstance(batch, PackedSequence):
        return model(batch)
    if not batch:
        raise ValueError("a batch is an empty list or tuple; pass e.g. (images, labels), or forward= for other batches")
    return model(batch[0])


def _call_with_dict(model: nn.Module, batch: Any) -> Any:
    try:
        return model(batch)
    except (TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"the model cannot be called with a batch that is a {type(batch).__name__} ({reason}); pass e.g. "
            "forward=lambda model, batch: model(**batch)"
        ) from error


def map_batch(function: Callable[[Any], Any], batch: Any) -> Any:
    """The batch with `function` applied to what its lists, tuples and dictionaries hold."""
    if isinstance(batch, (dict, UserDict)):
        mapped = copy.copy(batch)  # whatever its class is
        mapped.update({key: map_batch(function, value) for key, value in batch.items()})
        return mapped
    if isinstance(batch, (list, tuple)):
        parts = [map_batch(function, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return function(batch)


def list_tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors that a batch holds."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (dict, UserDict)):
        for part in batch.values():
            yield from list_tensors(part)
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from list_tensors(part)


def copy_batch(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """The batch with copies of its tensors on `device`, and of its numpy arrays; of other objects shallow ones.

    Args:
        batch: tensors, alone or in lists, tuples and dictionaries.
        device: where the tensors are copied to.
        channels_last: images [N, C, H, W] are laid out with the channels innermost.
    """

    def copy_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            is_image = channels_last and leaf.dim() == 4 and leaf.layout == torch.strided
            return leaf.to(device, copy=True, memory_format=torch.channels_last if is_image else torch.preserve_format)
        return np.copy(leaf) if isinstance(leaf, np.ndarray) else copy.copy(leaf)

    return map_batch(copy_leaf, batch)


def count_images(batch: Any) -> int:
    """The length of a batch's first tensor, or of a list of images; 1 without any."""
    listed = find_image_list(batch)
    if listed is not None:
        return len(listed)
    return next((len(tensor) for tensor in list_tensors(batch) if tensor.dim()), 1)


def find_image_list(batch: Any) -> list[Tensor] | tuple[Tensor, ...] | None:
    """The list of images [C, H, W], each of a size of its own, that a batch begins with, as those of detectors do."""
    parts = list(batch.values()) if isinstance(batch, (dict, UserDict)) else batch
    first = parts[0] if isinstance(parts, (list, tuple)) and parts else None
    if isinstance(first, (list, tuple)) and first and all(isinstance(x, Tensor) and x.dim() == 3 for x in first):
        return first
    return None


def take_images(batch: Any, count: int) -> Any:
    """The first images of a batch; all of it where its tensors have different lengths, as nodes and edges have."""
    tensors = [tensor for tensor in list_tensors(batch) if tensor.dim()]
    lengths = {len(tensor) for tensor in tensors}
    if len(lengths) != 1 or find_image_list(batch) is not None:
        return batch
    return map_batch(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) and leaf.dim() else leaf, batch)


def count_bytes(batch: Any) -> int:
    """Bytes of a batch's tensors."""
    return sum(tensor.nbytes for tensor in list_tensors(batch))
