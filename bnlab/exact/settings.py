"""Settings of torch that a forward may have changed where it waits."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


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
