"""Memory: how much there is, what a limit means, and what forwards that wait and run hold against it."""

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

from bnlab.model.batches import is_dense, list_tensors

__all__ = ["keep_freed_memory"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SHARE = 0.4  # of the free memory that is used when no limit is given; malloc has been seen to take 1.7 times that

# Options of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST_MMAP_THRESHOLD = 32 << 20  # bytes; malloc refuses a larger threshold
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB that it frees for the tensors that come next; for programs, not for libraries.

    glibc's malloc gives freed megabytes back to the system at once and asks for them again. Fresh memory has to be
    mapped and zeroed page by page, which takes a share of the time where networks are small. Elsewhere: no effect.

    >>> keep_freed_memory()  # once, when the program begins
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        # malloc raises this threshold by itself until somebody sets it. So it is set to the largest value that malloc
        # accepts.
        mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def memory_limit(memory: int | str | None, device: torch.device) -> int:
    """Convert `memory` to bytes: a number, "4GiB", or None for 40% of what is free on `device`.

    >>> memory_limit("1.5 KiB", torch.device("cpu"))
    1536

    Raises:
        ValueError: it cannot be read or is not positive.
    """
    if memory is None:
        return int(_SHARE * read_free_bytes(device))

    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(memory))
    unit = match[2].upper() if match else ""
    if match is None or unit not in _UNITS or isinstance(memory, (bool, float)):
        raise ValueError(f'population_statistics: memory={memory!r}; pass bytes or a text such as "4GiB"')

    limit = int(float(match[1]) * _UNITS[unit])
    if limit < 1:
        raise ValueError(f"population_statistics: memory={memory!r}; must be above 0")
    return limit


def read_free_bytes(device: torch.device) -> int:
    """Find the bytes that are free on a device, or in the memory of the machine."""
    if device.type == "cuda":
        # Memory that torch has reserved and that no tensor uses is free for this process, although the driver counts it
        # as used.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # for this process's tensors
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:  # no Linux
        pass
    # This system does not say how much is free; half of the built-in memory is a guess.
    built_in = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return built_in // 2


class LiveBytes(TorchFunctionMode):
    """Follower of the tensors that torch's functions return inside the block, until nothing holds them any more.

    Args:
        known: tensors that do not count, such as a model's weights.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak = 0
        self._known = set[int]()
        for tensor in filter(is_dense, known):
            # Memory is known by its address, because a weight may be seen through many views.
            self._known.add(tensor.untyped_storage().data_ptr())
        self._tensors: dict[int, weakref.ref[Tensor]] = {}

    def now(self) -> int:
        """Count the bytes that are alive; views of one memory count once."""
        alive: dict[int, weakref.ref[Tensor]] = {}
        sizes: dict[int, int] = {}
        # The new table leaves out dead tensors, or it would grow throughout the forward.
        for key, reference in self._tensors.items():
            tensor = reference()
            if tensor is None:
                continue
            alive[key] = reference
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        self._tensors = alive
        return sum(size for address, size in sizes.items() if address not in self._known)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in list_tensors(result):
            if is_dense(tensor):
                self._tensors[id(tensor)] = weakref.ref(tensor)
        self.peak = max(self.peak, self.now())
        return result


class Profile(NamedTuple):
    """Bytes that one forward has held, per byte of its batch.

    Attributes:
        waiting: at each layer, the most that it holds there or at a later one.
        running: the most that it holds, at its peak.
    """

    waiting: Mapping[str, float]
    running: float

    @staticmethod
    def of(calls: Sequence[tuple[str, int]], peak: int, size: int) -> Profile:
        """Relate the bytes that a forward of `size` bytes has held at each call of a layer, and at its peak."""
        most = 0
        waiting: dict[str, float] = {}
        # The loop goes backwards, because a batch that waits here will later hold what deeper layers hold.
        for name, held in reversed(calls):
            most = max(most, held)
            waiting[name] = max(waiting.get(name, 0.0), most / size)
        return Profile(waiting, peak / size)


class Budget:
    """Budget for the batches that wait at a layer, so that they and one that runs hold no more than the limit.

    Args:
        sizes: bytes of each batch.
        profile: the profile of a forward; None: no batch may wait.
        limit: bytes that may be held.

    Attributes:
        peak: the most bytes that were needed at once, according to the profile.
    """

    def __init__(self, sizes: Sequence[int], profile: Profile | None, limit: int) -> None:
        self._sizes = sizes
        self._limit = limit
        self._held: dict[int, float] = {}

        if profile is None:
            self._waiting = None
            self._running = 0
        else:
            self._waiting = profile.waiting
            self._most = max(profile.waiting.values(), default=0.0)
            self._running = int(profile.running * max(sizes, default=0))
        self.peak = self._running
        if self._running > limit:
            raise ValueError(
                f"population_statistics: one batch's forward needs {self._running:,} bytes, memory= allows {limit:,}; "
                "pass smaller batches or raise memory="
            )

    def admit(self, index: int, layer: str) -> bool:
        """Let a batch wait at a layer if it may; then it counts until it is released."""
        if self._waiting is None:
            return False

        # A layer that the profiled forward did not reach is assumed to hold as much as the largest one.
        size = self._sizes[index] * self._waiting.get(layer, self._most)
        needed = self._running + size + sum(self._held.values())
        if needed > self._limit:
            return False

        self._held[index] = size
        self.peak = max(self.peak, int(needed))
        return True

    def release(self, index: int) -> None:
        """Let a batch go on: it counts no longer."""
        del self._held[index]
