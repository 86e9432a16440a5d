"""The moments of one activation tensor against one read of it (a float32 sum), in cache and out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.timing import Result, alternate
from bnlab.reading import read

ROUNDS = 15
_TENSORS = 40  # together larger than the last cache, for 2 MB each


_SHAPES = ((32, 16, 32, 32), (32, 32, 16, 16), (32, 64, 8, 8))
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def results() -> list[Result]:
    rows = []
    for shape in _SHAPES:
        for kind, layout in _LAYOUTS.items():
            tensors = [torch.randn(shape).contiguous(memory_format=layout) for _ in range(_TENSORS)]
            one_again = [tensors[0]] * _TENSORS
            rows.append(_compare(f"{kind}, in cache", one_again))
            rows.append(_compare(f"{kind}, out of cache", tensors))
    return rows


def _compare(how: str, tensors: list[Tensor]) -> Result:
    """Compare reading these tensors one after the other with summing them."""
    sides = {"read": _over(tensors, read), "sum": _over(tensors, Tensor.sum)}
    median = alternate(sides, ROUNDS)

    first = tensors[0]
    shape = "×".join(map(str, first.shape))
    size = first.nbytes / 2**20
    what = f"{shape} ({size:.1f} MiB), {how}, {len(tensors)} times"
    return Result(what, "moments", median["read"], "one sum", median["sum"])


def _over(tensors: Sequence[Tensor], work: Callable[[Tensor], object]) -> Callable[[], None]:
    def run() -> None:
        for tensor in tensors:
            work(tensor)

    return run
