"""How a layer's moments are read and pooled: on the CPU, or on an accelerator without waiting for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bnlab.moments import Moments
from bnlab.reading import Partial, Pooled, pool_exactly, pool_on_device, read, read_on_device


class Reader(ABC):
    """Reads the moments of what layers are given.

    A read of one call may be coarse, which `pool` mends by reading the values again as far as they are still kept.

    Attributes:
        is_immediate: whether moments can be looked at without waiting for a device.
    """

    is_immediate: ClassVar[bool]

    @abstractmethod
    def read(self, x: Tensor) -> Any:
        """Read `x` [N, C, ...], which is kept to be read again; return what `pool` takes."""

    @abstractmethod
    def read_exactly(self, x: Tensor) -> Any:
        """Read `x` [N, C, ...], which will not be there again; return what `pool` takes."""

    @abstractmethod
    def measure(self, x: Tensor) -> Pooled:
        """Compute the moments of `x` [N, C, ...]."""

    @abstractmethod
    def pool(self, parts: Sequence[Any], kept: Sequence[Tensor]) -> Pooled:
        """Merge what was read of one layer.

        Args:
            parts: what `read` has returned, then what `read_exactly` has.
            kept: the values that were given to `read`, in the same order.
        """


class CpuReader(Reader):
    """Reads on the CPU; channels whose mean is far from 0 are read a second time."""

    is_immediate = True

    def read(self, x: Tensor) -> Partial:
        return read(x)

    def measure(self, x: Tensor) -> Pooled:
        return pool_exactly([read(x)], lambda shift, channels: [read(x, shift, channels)])

    def read_exactly(self, x: Tensor) -> Partial:
        return Partial.of(self.measure(x))

    def pool(self, parts: Sequence[Partial], kept: Sequence[Tensor]) -> Pooled:
        exact = parts[len(kept) :]

        def read_again(shift: Tensor, channels: Tensor) -> list[Partial]:
            again = [read(x, shift, channels) for x in kept]
            return again + [part.select_channels(channels) for part in exact]

        return pool_exactly(parts, read_again)


class DeviceReader(Reader):
    """Reads on an accelerator and leaves the moments there; one read is exact."""

    is_immediate = False

    def read(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def measure(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def read_exactly(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def pool(self, parts: Sequence[Pooled], kept: Sequence[Tensor]) -> Pooled:
        return pool_on_device(parts)


def choose_reader(device: torch.device, is_alone: bool) -> Reader:
    """Choose the reader for a device; `is_alone`: no other process waits for the moments of each layer."""
    has_float64 = device.type not in ("cpu", "mps")
    return DeviceReader() if has_float64 and is_alone else CpuReader()


def fetch(pooled: Mapping[str, Pooled]) -> dict[str, Moments]:
    """Bring the moments of all layers to the CPU, in one copy from each device."""
    values = [torch.stack((one.mean, one.var)) for one in pooled.values()]
    fetched = _copy_to_cpu(values)
    moments = {}
    for (name, one), (mean, var) in zip(pooled.items(), fetched, strict=True):
        moments[name] = Moments(one.count, mean.clone(), var.clone())
    return moments


def fetch_calls(calls: Iterable[tuple[str, Pooled]]) -> list[tuple[str, Moments]]:
    """Bring the moments of calls to the CPU likewise; a layer may have several calls."""
    listed = list(calls)
    by_number = {str(number): pooled for number, (_, pooled) in enumerate(listed)}
    fetched = fetch(by_number)
    return [(name, moments) for (name, _), moments in zip(listed, fetched.values(), strict=True)]


def _copy_to_cpu(values: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors [2, C] to the CPU, in their order; those of one device in one copy."""
    copies = list(values)
    for device in {value.device for value in values}:
        on_device = [number for number, value in enumerate(values) if value.device == device]
        channels = [values[number].shape[1] for number in on_device]
        joined = torch.cat([values[number] for number in on_device], dim=1).cpu()
        for number, copied in zip(on_device, joined.split(channels, dim=1), strict=True):
            copies[number] = copied
    return copies
