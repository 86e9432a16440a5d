"""Settings of torch, and attributes of modules, that a forward may have changed when it is interrupted."""

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
    """Grad mode and autocast of one forward: read when it is interrupted, restored when it goes on.

    Attributes:
        grad: whether gradients are recorded.
        autocast: for each kind of device its name, whether autocast is on, and to which type it casts.
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
    """Restore the caller's settings when the block ends, also by an exception."""
    settings = ForwardSettings.read(kinds)
    with warnings.catch_warnings():  # forwards that take turns may put back each other's filters
        try:
            yield
        finally:
            settings.restore()


def list_kinds(device: torch.device) -> tuple[str, ...]:
    """List the kinds of devices for which a forward on `device` may turn autocast on."""
    return tuple(dict.fromkeys(("cpu", "cuda", device.type)))


def read_fixed_settings() -> tuple[Any, ...]:
    """Read settings that a forward may change for a while, and that nobody can restore for it by public functions.

    A forward that has changed one of them cannot wait: the others would run under it.
    """
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
"""(Number of a module, name of an attribute) → its value."""


class ModuleAttributes:
    """Attributes of modules that differ between the forwards of batches, such as the domain that is set for each.

    To read all attributes takes as long as some layers do. So they are all read only where a forward waits for the
    first time, to learn which of them differ between forwards; later on only those are read.
    """

    def __init__(self, model: nn.Module) -> None:
        # Torch's own layers have nothing that is set for a batch, and are many.
        self._modules = [module for module in model.modules() if not type(module).__module__.startswith("torch.nn.")]
        self._first: Attributes | None = None
        self._differing: set[tuple[int, str]] = set()

    def read(self, former: Attributes | None) -> Attributes:
        """Read what a forward has set when it is interrupted.

        Args:
            former: what was read of this forward when it was interrupted before; None the first time.
        """
        if former is None:
            return self._read_all()
        for number, name in self._differing:
            attributes = vars(self._modules[number])
            if name in attributes:  # a forward may make it later on
                former[number, name] = attributes[name]
        return former

    def _read_all(self) -> Attributes:
        """Read all attributes of simple types, and compare them with those of the first forward."""
        values = {
            (number, name): value
            for number, module in enumerate(self._modules)
            for name, value in vars(module).items()
            if value is None or isinstance(value, (bool, int, float, str, tuple, Tensor))
        }
        if self._first is None:
            self._first = values
        for key in values.keys() | self._first.keys():
            if not _is_same(values.get(key), self._first.get(key)):
                self._differing.add(key)
        return values

    def restore(self, values: Attributes) -> None:
        """Set what was read of a forward, before it goes on."""
        for key in self._differing & values.keys():
            number, name = key
            setattr(self._modules[number], name, values[key])


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    is_simple = isinstance(one, (bool, int, float, str)) and type(one) is type(other)
    return is_simple and bool(one == other)
