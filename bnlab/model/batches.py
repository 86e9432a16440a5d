"""Batches: what callers may pass, the default forward of one, what it holds, its images, and copies to write into."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Number
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence

from bnlab.model.arguments import require_count

Forward = Callable[[nn.Module, Any], Any]
_DEPTH = 3  # objects in objects whose tensors are found


def call(model: nn.Module, batch: Any) -> Any:
    """Run the default forward: `model(batch)`, or `model(batch[0])` of a tuple or list such as (images, labels)."""
    # Tokenizers of Transformers return a UserDict (BatchEncoding), which is not a dict.
    if isinstance(batch, (dict, UserDict)):
        return _call_with_dict(model, batch)
    # A PackedSequence is a tuple, too, but a single input.
    if not isinstance(batch, (tuple, list)) or isinstance(batch, PackedSequence):
        return model(batch)
    if not batch:
        raise ValueError("a batch is an empty list or tuple; pass e.g. (images, labels), or forward= for other batches")
    return model(batch[0])


def _call_with_dict(model: nn.Module, batch: Any) -> Any:
    try:
        return model(batch)
    # Most models begin by reading the shape of their input, or by passing it to a layer; a dictionary fails there.
    except (TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(
            f"the model cannot be called with a batch that is a {type(batch).__name__} ({reason}); pass e.g. "
            "forward=lambda model, batch: model(**batch)"
        ) from error


def map_batch(function: Callable[[Any], Any], batch: Any) -> Any:
    """Apply `function` to what a batch's lists, tuples and dictionaries hold, and make such a batch of the results."""
    if isinstance(batch, (dict, UserDict)):
        mapped = copy.copy(batch)  # whatever its class is
        mapped.update({key: map_batch(function, value) for key, value in batch.items()})
        return mapped

    if isinstance(batch, (list, tuple)):
        parts = [map_batch(function, part) for part in batch]
        if isinstance(batch, PackedSequence):  # torch wants its sizes on the CPU, wherever the data are
            parts[1] = parts[1].cpu()
        # A named tuple takes separate arguments, and its class may have a constructor of its own; `_make` takes a list.
        make = getattr(type(batch), "_make", type(batch))
        return make(parts)

    return function(batch)


def list_tensors(batch: Any) -> Iterator[Tensor]:
    """List the tensors that a batch holds, also in the attributes of objects, three objects deep."""
    return _list_parts(batch, Tensor, _DEPTH)


def list_arrays(batch: Any) -> Iterator[np.ndarray]:
    """List the numpy arrays that a batch holds, as `list_tensors` lists tensors."""
    return _list_parts(batch, np.ndarray, _DEPTH)


def list_settings(batch: Any) -> Iterator[bool | int | float | str]:
    """List the numbers and words that a batch holds beside its tensors."""
    return _list_parts(batch, (bool, int, float, str), 0)


def _list_parts(batch: Any, kind: type | tuple[type, ...], depth: int) -> Iterator[Any]:
    if isinstance(batch, kind):
        yield batch
    elif isinstance(batch, (dict, UserDict)):
        for part in batch.values():
            yield from _list_parts(part, kind, depth)
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _list_parts(part, kind, depth)
    # The depth is limited, because objects may refer to each other in a circle.
    elif depth and not isinstance(batch, Tensor):
        for part in _list_attributes(batch).values():
            yield from _list_parts(part, kind, depth - 1)


def _list_attributes(item: Any) -> dict[str, Any]:
    """List what an object holds, by name, also where its class has slots (`dataclass(slots=True)`, attrs)."""
    kind: type = type(item)
    held = {name: getattr(item, name) for name in _list_slots(kind) if hasattr(item, name)}
    return {**held, **getattr(item, "__dict__", {})}


@functools.cache
def _list_slots(kind: type) -> tuple[str, ...]:
    """List the names of a class's slots that a caller can read."""
    names: list[str] = []
    for parent in kind.__mro__:
        slots = vars(parent).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in names if not name.startswith("__"))


def copy_batch(batch: Any, device: torch.device | None, channels_last: bool = False) -> Any:
    """Copy a batch: its tensors to `device`, its numpy arrays, and other objects with the tensors they hold.

    Objects with a `clone` of their own, as batches of graphs have, are copied by it and stay where they are.

    Args:
        batch: tensors, alone or in lists, tuples and dictionaries.
        device: where the tensors are copied to; None: each to where it is.
        channels_last: images [N, C, H, W] are laid out with the channels innermost.
    """

    def copy_leaf(leaf: Any, depth: int = _DEPTH) -> Any:
        if isinstance(leaf, Tensor):
            return _copy_tensor(leaf, device, channels_last)
        if isinstance(leaf, np.ndarray):
            return np.copy(leaf)
        if callable(getattr(leaf, "clone", None)):
            return leaf.clone()
        return _copy_object(leaf, functools.partial(copy_leaf, depth=depth - 1)) if depth else leaf

    return map_batch(copy_leaf, batch)


def _copy_tensor(tensor: Tensor, device: torch.device | None, channels_last: bool) -> Tensor:
    place = tensor.device if device is None else device
    # Labels may be float64, which a Mac's device does not have.
    if place.type == "mps" and tensor.dtype == torch.float64:
        tensor = tensor.float()
    # Without its graph, which would keep alive what has made it, such as a generator's forward.
    requires_gradient = tensor.requires_grad
    tensor = tensor.detach()
    # Sparse and nested tensors have no strides, and refuse a memory format.
    if not is_dense(tensor):
        return tensor.to(place, copy=True)
    layout = torch.channels_last if channels_last and tensor.dim() == 4 else torch.preserve_format
    copied = tensor.to(place, copy=True, memory_format=layout)
    return copied.requires_grad_() if requires_gradient else copied


def _copy_object(leaf: Any, copy_leaf: Callable[[Any], Any]) -> Any:
    """Copy an object, and what it holds by `copy_leaf`."""
    try:
        copied = copy.copy(leaf)
    except TypeError as error:
        kind = type(leaf).__name__
        raise TypeError(f"a batch holds a {kind}, which cannot be copied for each forward; leave it out") from error
    # `copy.copy` returns immutable objects themselves, and into those nothing can be written.
    if copied is not leaf:
        for name, value in _list_attributes(leaf).items():
            if any(True for _ in _list_parts(value, (Tensor, np.ndarray), _DEPTH - 1)):
                object.__setattr__(copied, name, map_batch(copy_leaf, value))  # also where the class is frozen
    return copied


def count_images(batch: Any) -> int:
    """Return the length of a batch's first tensor, else of its first array, or of a list of images; 1 without any."""
    images = find_image_list(batch)
    if images is not None:
        return len(images)
    for tensor in list_tensors(batch):
        if tensor.dim():
            return tensor.size(0)
    return next((len(array) for array in list_arrays(batch) if array.ndim), 1)


def find_image_list(batch: Any) -> list[Tensor] | tuple[Tensor, ...] | None:
    """Find the list of images [C, H, W], each of its own size, that a batch begins with, as detectors' batches do."""
    parts = list(batch.values()) if isinstance(batch, (dict, UserDict)) else batch
    if not isinstance(parts, (list, tuple)) or not parts:
        return None

    first = parts[0]
    if not isinstance(first, (list, tuple)) or not first:
        return None
    if not all(isinstance(part, Tensor) and part.dim() == 3 for part in first):
        return None
    labels = parts[1] if len(parts) > 1 else None
    if isinstance(labels, Tensor) and labels.dim() and all(len(part) == len(labels) for part in first):
        return None  # views [N, C, T] of N series that have a label each
    return first


def take_images(batch: Any, count: int) -> Any:
    """Take the first images of a batch; all of it where its tensors differ in length, or are sparse, as of graphs."""
    # Tensors without dimensions, such as a learning rate, belong to the batch as a whole.
    tensors = [tensor for tensor in list_tensors(batch) if tensor.dim()]
    if not all(map(is_dense, tensors)):  # an adjacency, whose columns are images too
        return batch
    lengths = {len(tensor) for tensor in tensors}
    # In a list of images the first axis of each tensor is its channels, which must not be cut.
    if len(lengths) != 1 or find_image_list(batch) is not None:
        return batch

    def cut(leaf: Any) -> Any:
        has_images = isinstance(leaf, Tensor) and leaf.dim() > 0
        return leaf[:count] if has_images else leaf

    return map_batch(cut, batch)


def count_bytes(batch: Any) -> int:
    """Count the bytes of a batch's dense tensors."""
    return sum(tensor.nbytes for tensor in list_tensors(batch) if is_dense(tensor))


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has strides and memory of its own.

    Sparse and nested ones do not, nor those inside of torch.func, nor those that are made of other tensors, such as
    torchao's quantized weights.
    """
    if tensor.layout != torch.strided or tensor.is_nested:
        return False
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:  # one that is made of others has a storage, and no address
        return False
    return True


CountImages = Callable[[Any], SupportsIndex]
"""Called with a batch; returns how many images it has, as anything that is a whole number."""


def check_counter(function: CountImages | None, caller: str) -> Callable[[Any], int]:
    """Return a function of how many images a batch has: the caller's, whose result is made an int.

    None: the rows of the batch's first tensor are the images, or the members of a list of images.
    """
    if function is None:
        return count_images
    if not callable(function):
        raise TypeError(f"{caller}: images is a {type(function).__name__}; pass a function of a batch")
    return lambda batch: operator.index(function(batch))


# -- arguments of public calls ---------------------------------------------------------------------------------------


def require_batches(batches: object, caller: str, name: str = "batches") -> None:
    """TypeError unless it can be iterated over and is not itself one batch (an array has a shape)."""
    # Arrays of numpy and of other libraries are iterable, too: their rows would be taken for batches.
    one = isinstance(batches, (Tensor, str, bytes, Mapping, nn.Module)) or hasattr(batches, "shape")
    if one or not isinstance(batches, Iterable):
        raise TypeError(f"{caller}: {name} is a {type(batches).__name__}; pass an iterable of batches, e.g. [images]")
    if _is_labelled_batch(batches):
        raise TypeError(f"{caller}: {name} is one batch of images and labels; pass a list of batches: [batch]")


def _is_labelled_batch(batches: object) -> bool:
    """Return whether it is one batch: floating-point images, and a whole number for each."""
    if not isinstance(batches, (tuple, list)) or len(batches) != 2:
        return False
    images, labels = batches
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        return False
    are_labels = labels.dim() == 1 and not labels.is_floating_point()
    return are_labels and images.is_floating_point() and images.shape[:1] == labels.shape


def require_image_count(images: Any, caller: str) -> None:
    """TypeError or ValueError unless it is a number of images to keep."""
    # Only a number is shown: a tensor, or a list of batches, would write out all of its images.
    found = f"images={images!r}" if isinstance(images, Number) else f"images is a {type(images).__name__}"
    advice = "pass how many training images are kept, at least 1"
    if isinstance(images, Iterable):
        advice += "; batches that are measured instead are batches="
    require_count(images, f"{caller}: {found}; {advice}")


def require_rereadable(batches: Iterable[Any], caller: str) -> None:
    """ValueError if batches can be read only once: they are measured again at each validation."""
    if isinstance(batches, Iterator):
        raise ValueError(
            f"{caller}: batches is a {type(batches).__name__}, which is used up when it has been read once; pass a "
            "list or a loader"
        )


def require_forward(forward: object, caller: str) -> None:
    """TypeError unless it is None or can be called."""
    if forward is not None and not callable(forward):
        raise TypeError(f"{caller}: forward is a {type(forward).__name__}; pass a function of model and batch")


def require_values(tensor: Tensor, what: str, caller: str) -> None:
    """ValueError if a model's tensor has no values, as those of lazy layers before their first forward."""
    if is_lazy(tensor):
        raise ValueError(f"{caller}: {what} is lazy and not built yet; run one forward pass first")
    if tensor.is_meta:
        raise ValueError(
            f"{caller}: {what} is on the meta device, which holds no values; use model.to_empty and load its weights "
            "first"
        )


def find_device(model: nn.Module, device: torch.device | str | None, caller: str) -> torch.device:
    """`device`, or where the model's first parameter or buffer is.

    ValueError if this machine has no such device, or a parameter of the model has no values.
    """
    for name, parameter in model.named_parameters():
        require_values(parameter, f"parameter {name!r}", caller)

    if device is None:
        held = itertools.chain(model.parameters(), model.buffers())  # a norm of inputs has buffers alone
        return next((tensor.device for tensor in held), torch.device("cpu"))
    # `torch.device` accepts any number of a GPU; only a tensor on the device shows that the machine has it.
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{caller}: device={device!r} cannot be used here ({reason}); pass e.g. 'cpu'") from error
    if chosen.type == "meta":
        raise ValueError(f"{caller}: device='meta' holds no values; pass e.g. 'cpu'")
    return chosen
