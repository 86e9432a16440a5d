"""Memory: how much there is, what a limit means, and what forwards that wait and run hold against it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bnlab.model.batches import is_dense, list_tensors

__all__ = ["keep_freed_memory"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SHARE = 0.4  # of the free memory that is used when no limit is given
_OF_OBJECTS = 35 << 10  # bytes of what a forward that waits holds beside its tensors: its stack and its frames
_MOST_OF_MALLOC = 3  # times what tensors hold: malloc has been seen to take 1.7 times that
_NOISE = 32 << 20  # bytes that a process grows and shrinks by for other reasons

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

    # The number of digits is limited, because a number of hundreds of digits is infinite as a float.
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(memory))
    unit = match[2].upper() if match else ""
    # The text of a float may be readable, but bytes are whole. That of a bool is not a number.
    is_float = isinstance(memory, float)
    if match is None or unit not in _UNITS or is_float:
        raise ValueError(f'population_statistics: memory={memory!r}; pass bytes or a text such as "4GiB"')

    limit = int(float(match[1]) * _UNITS[unit])
    if limit < 1:
        raise ValueError(f"population_statistics: memory={memory!r}; must be above 0")
    return limit


def read_free_bytes(device: torch.device) -> int:
    """Find the bytes that are free on a device, or in the memory of the machine, or of the container (cgroup)."""
    if device.type == "cuda":
        # Memory that torch has reserved and that no tensor uses is free for this process, although the driver counts it
        # as used.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # for this process's tensors
        return torch.cuda.mem_get_info(device)[0] + kept
    # A container may use no more than its own limit, nor more than the machine has left.
    return min([_read_free_of_machine(), *read_free_of_groups()])


def _read_free_of_machine() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                # Unlike MemFree, this counts cached files, which make room for programs.
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:  # no Linux
        pass
    # This system does not say how much is free; half of the built-in memory is a guess, and so is 4 GiB on Windows.
    if not hasattr(os, "sysconf"):
        return 4 << 30
    built_in = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return built_in // 2


class _GroupFiles(NamedTuple):
    """Names of the files of a control group with its limit and what it uses, and of a line of its `memory.stat`."""

    limit: str
    usage: str
    unused: str


_OF_VERSION_1 = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_OF_VERSION_2 = _GroupFiles("memory.max", "memory.current", "inactive_file")


def read_free_of_groups(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Find the bytes that are free in each control group of this process, and in each group above it.

    Args:
        groups: lists the process's groups, a line "number:controllers:path" each; version 2 names no controllers.
        root: where they are mounted; in a container its own group often lies here, whatever its path is.
    """
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return []

    free = []
    for line in lines:
        # The path may have colons of its own.
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, files = root, _OF_VERSION_2
        elif "memory" in controllers.split(","):
            mount, files = root / "memory", _OF_VERSION_1
        else:
            continue
        # A group may use no more than each of the groups above it has left.
        for folder in _list_folders(mount, path):
            with contextlib.suppress(OSError, ValueError):  # no such folder, or "max": no limit
                free.append(_read_free_of_group(folder, files))
    return free


def _read_free_of_group(folder: Path, files: _GroupFiles) -> int:
    limit = int((folder / files.limit).read_text(encoding="ascii"))
    usage = int((folder / files.usage).read_text(encoding="ascii"))
    lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    counts = dict(line.split() for line in lines)
    unused = int(counts.get(files.unused, 0))  # files in the cache, which make room for others
    return max(0, limit - usage + unused)


def _list_folders(mount: Path, path: str) -> Iterator[Path]:
    """List a group's folder and those above it, up to the mount."""
    folder = mount / path.lstrip("/")
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


class Growth:
    """What the memory in use of this process grows by from when this is made; nothing where it cannot be read."""

    def __init__(self) -> None:
        self._start = _read_resident_bytes()

    def measure(self, limit: int) -> int:
        """Count the bytes; where they are above a limit, without what malloc holds and nobody uses.

        A tensor's memory lies between that of others, so that malloc may find no place in it for the next one. Then
        it takes more, and keeps what was freed. It is given back when there is need only: it would have to be mapped
        and zeroed again.
        """
        grown = _read_resident_bytes() - self._start
        if grown <= limit:
            return grown
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
        return _read_resident_bytes() - self._start


def _read_resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        return 0


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
        # The loop goes backwards, because a batch that waits here will later hold what deeper layers hold. Of several
        # calls of a layer the first one counts, after which the most is held.
        for name, held in reversed(calls):
            most = max(most, held)
            waiting[name] = most / size
        return Profile(waiting, peak / size)


class Budget:
    """Budget for the batches that wait at a layer, so that they and one that runs hold no more than the limit.

    Args:
        sizes: bytes of each batch.
        profile: the profile of a forward.
        limit: bytes that may be held.
        growth: what the process grows by, which may not be more either; None: only what the profile says counts.

    Attributes:
        peak: the most bytes that were needed at once, according to the profile.
    """

    def __init__(self, sizes: Sequence[int], profile: Profile, limit: int, growth: Growth | None = None) -> None:
        self._sizes = sizes
        self._limit = limit
        self._growth = growth
        self._held: dict[int, float] = {}

        self._waiting = profile.waiting
        self._most = max(profile.waiting.values(), default=0.0)
        # Any batch may be the one that runs, so that room is kept for the largest.
        self._running = int(profile.running * max(sizes, default=0))
        self.peak = self._running
        if self._running > limit:
            raise ValueError(
                f"population_statistics: one batch's forward needs {self._running:,} bytes, memory= allows {limit:,}; "
                "pass smaller batches or raise memory="
            )

    def admit(self, index: int, layer: str) -> bool:
        """Let a batch wait at a layer if it may; then it counts until it is released."""
        # A layer that the profiled forward did not reach is assumed to hold as much as the largest one.
        size = self._sizes[index] * self._waiting.get(layer, self._most) + _OF_OBJECTS
        needed = self._running + size + sum(self._held.values())
        if needed > self._limit or self._has_grown(needed):
            return False

        self._held[index] = size
        self.peak = max(self.peak, int(needed))
        return True

    def _has_grown(self, needed: float) -> bool:
        """Return whether the process has grown so much that one more forward would exceed the limit.

        Args:
            needed: bytes that the profile says are held. Where they are far below the limit nothing is read.
        """
        # Below `_NOISE` a reading would say little. Below the other bound there is room even for the most
        # that malloc takes.
        if self._growth is None or needed < max(_NOISE, self._limit / _MOST_OF_MALLOC):
            return False
        left = self._limit - self._running
        return self._growth.measure(left) > left

    def release(self, index: int) -> None:
        """Let a batch go on: it counts no longer."""
        del self._held[index]
