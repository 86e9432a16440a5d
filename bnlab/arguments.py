"""Arguments of public calls: what is wrong with one is said before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn


def require_number(value: Any, fine: Callable[[Any], bool], message: str, kind: type = Real) -> None:
    """TypeError with `message` unless `value` is of this kind (a bool is no number), ValueError unless it is fine."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(message)
    if not fine(value):
        raise ValueError(message)


def require_count(value: Any, message: str) -> None:
    """TypeError with `message` unless `value` is an integer, ValueError unless it is 1 or more."""
    require_number(value, lambda count: count >= 1, message, kind=Integral)


def require_amount(max_images: int | str | None, tolerance: float | None, caller: str) -> None:
    """Raise unless `max_images` is a count, "auto" or None, and `tolerance` a positive number where it is "auto"."""
    if max_images == "auto":
        if tolerance is None:
            raise ValueError(f'{caller}: tolerance=None; max_images="auto" needs one, such as 0.01')
        message = f"{caller}: tolerance={tolerance!r}; pass a positive relative error such as 0.01"
        require_number(tolerance, lambda error: error > 0, message)
        return
    if tolerance is not None:
        raise ValueError(f'{caller}: tolerance={tolerance}; it is for max_images="auto" only')
    if max_images is not None:
        require_count(max_images, f'{caller}: max_images={max_images!r}; pass at least 1, "auto", or None for all')


def require_batches(batches: object, caller: str, name: str = "batches") -> None:
    """TypeError unless it can be iterated over and is not itself one batch (an array has a shape)."""
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


def require_forward(forward: object, caller: str) -> None:
    """TypeError unless it is None or can be called."""
    if forward is not None and not callable(forward):
        raise TypeError(f"{caller}: forward is a {type(forward).__name__}; pass a function of model and batch")


def find_device(model: nn.Module, device: torch.device | str | None, caller: str) -> torch.device:
    """`device`, or where the model's first parameter is.

    ValueError if this machine has no such device, or a parameter of the model has no values.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"{caller}: {name!r} is on the meta device, which holds no values; use model.to_empty and load its "
                "weights first"
            )
    if device is None:
        return next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{caller}: device={device!r} cannot be used here ({reason}); pass e.g. 'cpu'") from error
    if chosen.type == "meta":
        raise ValueError(f"{caller}: device='meta' holds no values; pass e.g. 'cpu'")
    return chosen
