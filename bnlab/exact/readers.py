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
    """Reads what layers are given.

    `read` gives what `pool` takes; `read_exactly` gives the same of values that cannot be read again, `measure` their
    moments.

    Attributes:
        is_immediate: whether moments can be looked at without waiting for a device.
    """

    is_immediate: ClassVar[bool]

    @abstractmethod
    def read(self, x: Tensor) -> Any:
        """Read `x` [N, C, ...] once; it stays there to be read again."""

    @abstractmethod
    def measure(self, x: Tensor) -> Pooled:
        """The moments of `x` [N, C, ...]."""

    @abstractmethod
    def read_exactly(self, x: Tensor) -> Any:
        """Read `x` [N, C, ...] as it will not be there again."""

    @abstractmethod
    def pool(self, parts: Sequence[Any], waiting: Sequence[Tensor]) -> Pooled:
        """Merge what was read; `waiting` are the values that are still there."""


class CpuReader(Reader):
    """Reads values twice where their mean is far from 0, and has moments on the CPU at once."""

    is_immediate = True

    def read(self, x: Tensor) -> Partial:
        return read(x)

    def measure(self, x: Tensor) -> Pooled:
        return pool_exactly([read(x)], lambda shift, channels: [read(x, shift, channels)])

    def read_exactly(self, x: Tensor) -> Partial:
        return Partial.of(self.measure(x))

    def pool(self, parts: Sequence[Partial], waiting: Sequence[Tensor]) -> Pooled:
        gone = parts[len(waiting) :]

        def read_again(shift: Tensor, channels: Tensor) -> list[Partial]:
            again = [read(x, shift, channels) for x in waiting]
            return again + [part.select_channels(channels) for part in gone]

        return pool_exactly(parts, read_again)


class DeviceReader(Reader):
    """Leaves moments on the device, where they are as exact after one read."""

    is_immediate = False

    def read(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def measure(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def read_exactly(self, x: Tensor) -> Pooled:
        return read_on_device(x)

    def pool(self, parts: Sequence[Pooled], waiting: Sequence[Tensor]) -> Pooled:
        return pool_on_device(parts)


def choose_reader(device: torch.device, is_alone: bool) -> Reader:
    """The reader for a device; `is_alone`: no other process waits for the moments of each layer."""
    has_float64 = device.type not in ("cpu", "mps")
    return DeviceReader() if has_float64 and is_alone else CpuReader()


def fetch(pooled: Mapping[str, Pooled]) -> dict[str, Moments]:
    """Bring the moments of all layers to the CPU, in one copy from each device."""
    values = [torch.stack((of.mean, of.var)) for of in pooled.values()]
    fetched = _copy_to_cpu(values)
    moments = {}
    for (name, of), (mean, var) in zip(pooled.items(), fetched, strict=True):
        moments[name] = Moments(of.count, mean.clone(), var.clone())
    return moments


def fetch_calls(calls: Iterable[tuple[str, Pooled]]) -> list[tuple[str, Moments]]:
    """The same of calls of layers, which may be called several times."""
    listed = list(calls)
    numbered = {str(number): pooled for number, (_, pooled) in enumerate(listed)}
    return [(name, moments) for (name, _), moments in zip(listed, fetch(numbered).values(), strict=True)]


def _copy_to_cpu(values: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors [2, C] on the CPU, in their order."""
    copies = list(values)
    for device in {value.device for value in values}:
        there = [number for number, value in enumerate(values) if value.device == device]
        sizes = [values[number].shape[1] for number in there]
        together = torch.cat([values[number] for number in there], dim=1).cpu()
        for number, part in zip(there, together.split(sizes, dim=1), strict=True):
            copies[number] = part
    return copies
