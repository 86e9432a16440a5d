"""The moments of one activation tensor against one read of it (a float32 sum), in cache and out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.timing import Result, alternate
from bnlab.moments import read

ROUNDS = 15
_TENSORS = 40  # together larger than the last cache, for 2 MB each


def results() -> list[Result]:
    found = []
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        for kind, layout in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
            tensors = [torch.randn(32, channels, side, side).contiguous(memory_format=layout) for _ in range(_TENSORS)]
            for where, cycle in (("in cache", tensors[:1] * _TENSORS), ("out of cache", tensors)):
                sides = {"read": _over(cycle, read), "sum": _over(cycle, Tensor.sum)}
                median = alternate(sides, ROUNDS)
                size = tensors[0].numel() * 4 / 2**20
                what = f"32×{channels}×{side}×{side} ({size:.1f} MiB), {kind}, {where}, {_TENSORS} times"
                found.append(Result(what, "moments", median["read"], "one sum", median["sum"]))
    return found


def _over(tensors: Sequence[Tensor], work: Callable[[Tensor], object]) -> Callable[[], None]:
    def run() -> None:
        for tensor in tensors:
            work(tensor)

    return run
