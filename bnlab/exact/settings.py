"""Settings of torch, and attributes of modules, that a forward may have changed where it waits."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ForwardSettings:
    """Grad mode and autocast, which are a forward's own: put away when it waits, put back when it goes on.

    Attributes:
        grad: whether gradients are recorded.
        autocast: of each kind of device, whether autocast is on, and to which type it casts.
        caches: whether autocast keeps the weights that it has cast.
    """

    grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    caches: bool

    @staticmethod
    def read(kinds: tuple[str, ...]) -> ForwardSettings:
        """Read what is set now, for these kinds of devices."""
        autocast = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
        return ForwardSettings(torch.is_grad_enabled(), autocast, torch.is_autocast_cache_enabled())

    def restore(self) -> None:
        """Set what was read."""
        torch.set_grad_enabled(self.grad)
        for kind, is_on, dtype in self.autocast:
            torch.set_autocast_enabled(kind, is_on)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(self.caches)


@contextlib.contextmanager
def keep_settings(kinds: tuple[str, ...]) -> Iterator[None]:
    """Have the caller's settings after the block, however it ends."""
    settings = ForwardSettings.read(kinds)
    with warnings.catch_warnings():  # forwards that take turns may put back each other's filters
        try:
            yield
        finally:
            settings.restore()


def list_kinds(device: torch.device) -> tuple[str, ...]:
    """The kinds of devices for which a forward on `device` may turn autocast on."""
    return tuple(dict.fromkeys(("cpu", "cuda", device.type)))


def read_fixed_settings() -> tuple[Any, ...]:
    """Read what code may change for a while and cannot be put back by torch's public functions where it waits."""
    return (
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )


Attributes = dict[tuple[int, str], Any]
"""By the number of a module and the name of an attribute, its value."""


class ModuleAttributes:
    """Attributes of modules that differ between the forwards of batches, such as the domain that is set for each.

    Reading all of them takes as long as some layers do, so that a forward's are read in full once, where it waits
    first; later on only those that have been seen to differ.
    """

    def __init__(self, model: nn.Module) -> None:
        # Torch's own layers have nothing that is set for a batch, and are many.
        self._modules = [module for module in model.modules() if not type(module).__module__.startswith("torch.nn.")]
        self._first: Attributes | None = None
        self._differing: set[tuple[int, str]] = set()

    def read(self, before: Attributes | None) -> Attributes:
        """Read what a forward has set where it waits; `before`: where it waited before, if it did."""
        if before is not None:
            for number, name in self._differing:
                attributes = vars(self._modules[number])
                if name in attributes:  # it may be made later on
                    before[number, name] = attributes[name]
            return before

        found = {
            (number, name): value
            for number, module in enumerate(self._modules)
            for name, value in vars(module).items()
            if value is None or isinstance(value, (bool, int, float, str, tuple, Tensor))
        }
        if self._first is None:
            self._first = found
        for key in found.keys() | self._first.keys():
            if not _is_same(found.get(key), self._first.get(key)):
                self._differing.add(key)
        return found

    def restore(self, values: Attributes) -> None:
        """Set what was read, before the forward goes on."""
        for key in self._differing & values.keys():
            number, name = key
            setattr(self._modules[number], name, values[key])


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, (bool, int, float, str)) and type(one) is type(other) and one == other)
