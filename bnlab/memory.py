"""How much memory there is, how much a limit means, and how much a block holds."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnlab.batches import list_leaves

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
    return sum(t.numel() * t.element_size() for t in list_leaves(values) if isinstance(t, Tensor))


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
