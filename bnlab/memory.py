"""How much memory there is, what a limit means, and what forwards that wait and run hold against it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bnlab.batches import list_tensors

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SHARE = 0.4  # of the free memory that is used when no limit is given; malloc has been seen to take 1.7 times that

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MOST_MMAP_THRESHOLD, _KEPT = 32 << 20, 1 << 30  # bytes; malloc refuses a larger threshold


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB that it frees for the tensors that come next; for programs, not for libraries.

    glibc's malloc gives freed megabytes back to the system at once and asks for them again, and what is fresh has to be
    mapped and zeroed page by page, which counts where networks are small. Elsewhere: no effect.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
            mallopt(_M_TRIM_THRESHOLD, _KEPT)


def memory_limit(memory: int | str | None, device: torch.device) -> int:
    """Bytes that `memory` means: a number, "4GiB", or None for 40% of what is free on `device`.

    >>> memory_limit("1.5 KiB", torch.device("cpu"))
    1536

    Raises:
        ValueError: it cannot be read or is not positive.
    """
    if memory is None:
        return int(_SHARE * find_free_bytes(device))
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(memory))
    if match is None or match[2].upper() not in _UNITS or isinstance(memory, (bool, float)):
        raise ValueError(f'population_statistics: memory={memory!r}; pass bytes or a text such as "4GiB"')
    limit = int(float(match[1]) * _UNITS[match[2].upper()])
    if limit < 1:
        raise ValueError(f"population_statistics: memory={memory!r}; must be above 0")
    return limit


def find_free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device, or in the memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class LiveBytes(TorchFunctionMode):
    """Inside the block, follows the tensors that torch's functions return until nothing holds them any more.

    Args:
        known: tensors that do not count, such as a model's weights.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._tensors: dict[int, weakref.ref[Tensor]] = {}

    def follow(self, values: Any) -> None:
        """Count the tensors in `values` too, as long as they are alive."""
        self._tensors |= {id(t): weakref.ref(t) for t in list_tensors(values) if t.layout == torch.strided}
        self.peak = max(self.peak, self.now())

    def now(self) -> int:
        """Bytes that are alive; views of one memory count once."""
        alive = {key: tensor for key, ref in self._tensors.items() if (tensor := ref()) is not None}
        self._tensors = {key: self._tensors[key] for key in alive}
        storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in alive.values())}
        return sum(size for address, size in storages.items() if address not in self._known)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.follow(result)
        return result


class Profile(NamedTuple):
    """What one forward has held, per byte of its batch.

    Attributes:
        waiting: at each layer, the most that it holds there or at a later one.
        running: at its peak.
    """

    waiting: Mapping[str, float]
    running: float

    @staticmethod
    def of(calls: Sequence[tuple[str, int]], peak: int, size: int) -> Profile:
        """Of the bytes that a forward of `size` bytes has held at each call of a layer, and at its peak."""
        most, waiting = 0, dict[str, float]()
        for name, held in reversed(calls):
            most = max(most, held)
            waiting[name] = max(waiting.get(name, 0.0), most / size)
        return Profile(waiting, peak / size)


class Budget:
    """Which batches may wait at a layer, so that they and one that runs hold no more than the limit.

    Args:
        sizes: of the batches, in bytes.
        profile: of a forward; None: no batch may wait.
        limit: in bytes.

    Attributes:
        batches: how many there are.
        peak: the most bytes that were needed at once, as far as the profile tells.
    """

    def __init__(self, sizes: Sequence[int], profile: Profile | None, limit: int) -> None:
        self._sizes, self._limit, self.batches = sizes, limit, len(sizes)
        self._waiting = None if profile is None else profile.waiting
        self.peak = self._running = int(profile.running * max(sizes, default=0)) if profile else 0
        self._held: dict[int, float] = {}
        if self._running > limit:
            raise ValueError(
                f"population_statistics: one batch's forward needs {self._running:,} bytes, memory= allows {limit:,}; "
                "pass smaller batches or raise memory="
            )

    def admit(self, index: int, layer: str) -> bool:
        """Whether a batch may wait at a layer; then it counts until it is released."""
        if self._waiting is None:
            return False
        per_byte = self._waiting.get(layer, max(self._waiting.values(), default=0.0))
        needed = self._running + self._sizes[index] * per_byte + sum(self._held.values())
        if needed > self._limit:
            return False
        self._held[index] = self._sizes[index] * per_byte
        self.peak = max(self.peak, int(needed))
        return True

    def release(self, index: int) -> None:
        """The batch goes on."""
        del self._held[index]
