"""Memory: how much is free, and which forwards may wait in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bnlab.model.batches import is_dense, list_tensors

__all__ = ["divide_memory", "keep_freed_memory"]

_SHARE = 0.5  # of the free memory, for forwards that wait
_OF_OBJECTS = 35 << 10  # bytes of what a forward that waits holds beside its tensors: its stack and its frames

# Options of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST_MMAP_THRESHOLD = 32 << 20  # bytes; malloc refuses a larger threshold
_KEPT = 1 << 30  # bytes

_processes = 1  # that measure at once on this machine


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


def divide_memory(processes: int) -> None:
    """Let this process use only its share of the free memory, because others measure at the same time; for programs.

    Args:
        processes: how many measure at the same time, this one included.

    >>> divide_memory(1)  # once, when the program begins
    """
    global _processes
    _processes = processes


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


class Room:
    """Decides which forwards may wait: together they hold at most half of the memory that is free at first.

    One batch's forward runs in `counting_bytes`, and what it holds at each layer is measured. The forwards of other
    batches are assumed to hold as much for each byte of their batch. The other half of the memory is for the forward
    that runs, and for what malloc cannot use.

    Args:
        device: where forwards run.
        known: tensors that do not count, such as a model's weights.

    Attributes:
        most_waiting: the most bytes that waiting forwards have held together.
    """

    def __init__(self, device: torch.device, known: Iterable[Tensor]) -> None:
        self.most_waiting = 0.0
        self._limit = _SHARE * read_free_bytes(device) / _processes
        self._live = LiveBytes(known)
        self._held: dict[str, float] = {}  # at each layer, for each byte of the batch
        self._waiting: dict[int, float] = {}

    @property
    def peak(self) -> int:
        """The most bytes that forwards have held at once: those that waited, and the one that is counted."""
        return int(self.most_waiting) + self._live.peak

    def counting_bytes(self) -> contextlib.AbstractContextManager[object]:
        """Count the bytes that the forward in the block holds; always that of the same batch."""
        return self._live

    def note_bytes(self, layer: str, size: int) -> None:
        """Note how many bytes that forward holds now, at a layer; its batch has `size` bytes."""
        self._held[layer] = self._live.now() / max(1, size)

    def let_wait(self, index: int, layer: str, size: int) -> bool:
        """Let a batch of `size` bytes wait at a layer if there is room; return whether it may."""
        # A layer that the counted forward does not reach is taken for the largest one.
        held = self._held.get(layer, max(self._held.values(), default=0.0))
        self._waiting[index] = max(1, size) * held + _OF_OBJECTS
        waiting = sum(self._waiting.values())
        if waiting > self._limit:
            del self._waiting[index]
            return False
        self.most_waiting = max(self.most_waiting, waiting)
        return True

    def stop_waiting(self, index: int) -> None:
        """Free the room of a batch that goes on."""
        del self._waiting[index]
