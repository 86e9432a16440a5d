"""How much memory there is, how much a limit means, and how much a forward pass holds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SHARE = 0.6  # of the free memory that is used when no limit is given

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
    """Bytes that `memory` means: a number, "4GiB", or None for 60% of what is free on `device`.

    >>> memory_limit("1.5 KiB", torch.device("cpu"))
    1536

    Raises:
        ValueError: it cannot be read or is not positive.
    """
    if memory is None:
        return int(_SHARE * _free(device))
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(memory))
    if match is None or match[2].upper() not in _UNITS or isinstance(memory, (bool, float)):
        raise ValueError(f'population_statistics: memory={memory!r}; pass bytes or a text such as "4GiB"')
    limit = int(float(match[1]) * _UNITS[match[2].upper()])
    if limit < 1:
        raise ValueError(f"population_statistics: memory={memory!r}; must be above 0")
    return limit


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def tensor_bytes(values: Any) -> int:
    """Bytes of all tensors in a structure of lists, tuples and dictionaries."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


def _list_dense(values: Any) -> list[Tensor]:
    """The tensors in a structure that have one storage; sparse ones have none."""
    return [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.layout == torch.strided]


class LiveBytes(TorchDispatchMode):
    """Inside the block, follows the storages that operations make until nothing holds them any more.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def follow(self, values: Any) -> None:
        """Count the tensors in `values` too, as long as they are alive."""
        for tensor in _list_dense(values):
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.now())

    def now(self) -> int:
        """Bytes that are alive."""
        self._storages = {key: pair for key, pair in self._storages.items() if not pair[0].expired()}
        return sum(size for _, size in self._storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in _list_dense((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        # A view or an operation in place makes nothing new; a parameter that is read is not the forward's.
        new = [t for t in _list_dense(result) if t.untyped_storage()._cdata not in known]
        if new:
            self.follow(new)
        return result


class Budget:
    """A limit in bytes for the activations of waiting and running forwards.

    What a batch needs is known once one has been profiled. That costs a forward of one batch and is put off until a
    rough count comes near the limit, unless `exact`.
    """

    def __init__(self, limit: int, exact: bool) -> None:
        self.limit, self.exact, self.profiled = limit, exact, False
        self.overhead = 0  # bytes for moments and copies of weights and buffers beside the activations
        self.waiting = 0  # bytes that suspended forwards hold
        self.peak = 0  # of waiting and running together, by the profile
        self._largest = 0  # bytes of the largest batch so far
        self._running = 0.0  # bytes that a running forward needs at most, per byte of its batch
        self._live: dict[str, float] = {}  # bytes that a forward holds while it waits at a layer, per element there
        self._follower: LiveBytes | None = None

    def release(self, size: int) -> None:
        """A waiting forward goes on or ends."""
        self.waiting -= size

    def takes(self, size: int) -> bool:
        """Whether a forward can wait with so many bytes beside the others, with room for one that runs; counts it."""
        self.peak = max(self.peak, self.waiting + size) if self.profiled else 0
        if self.overhead + self.waiting + size + self._estimate_need(self._largest) > self.limit:
            return False
        self.waiting += size
        return True

    def room_to_run(self, size: int) -> bool:
        """Whether a forward of a batch of so many bytes can run beside those that wait."""
        self._largest = max(self._largest, size)
        if self.profiled:
            self.peak = max(self.peak, self.waiting + self._estimate_need(size))
        return self.overhead + self.waiting + self._estimate_need(size) <= self.limit

    def check_alone(self, size: int) -> None:
        """ValueError if a batch does not fit the limit even alone."""
        if self.overhead + self._estimate_need(size) > self.limit:
            raise ValueError(
                f"population_statistics: one batch's forward needs {self._estimate_need(size):,} bytes, moments and "
                f"copies of weights {self.overhead:,}, memory= allows {self.limit:,}; pass smaller batches or raise "
                "memory="
            )

    def _estimate_need(self, size: int) -> int:
        return int(self._running * max(1, size))

    def must_profile(self, x: Tensor, batch: int) -> bool:
        """Whether it is time: the roughly counted bytes of those that wait come to a third of the limit."""
        return not self.profiled and self.waiting + self.live("", x, batch) > self.limit / 3

    def live(self, layer: str, x: Tensor, batch: int) -> int:
        """Bytes that a forward holds while it waits at a layer with input `x`; a rough count before the profile."""
        if not self.profiled:
            return 3 * x.numel() * x.element_size() + batch
        return int(self._live.get(layer, max(self._live.values(), default=0.0)) * x.numel())

    @contextlib.contextmanager
    def profiling(self, batch: int) -> Iterator[None]:
        """Follow what the block, the forward of a batch of so many bytes, allocates."""
        self._live.clear()
        with LiveBytes() as self._follower:
            yield
        self._running = self._follower.peak / max(1, batch)
        self._follower, self.profiled = None, True

    def profile_layer(self, layer: str, x: Tensor) -> None:
        """The profiled forward is at a layer."""
        if self._follower is not None:
            self._live[layer] = max(self._live.get(layer, 0.0), self._follower.now() / x.numel())
