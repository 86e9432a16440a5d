"""The moments of one activation tensor against one read of it (a float32 sum), in cache and out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.networks import LAYOUTS
from benchmarks.timing import Result, alternate
from bnlab.reading import read

ROUNDS = 15
_TENSORS = 40  # together larger than the last cache, for 2 MB each
_SHAPES = ((32, 16, 32, 32), (32, 32, 16, 16), (32, 64, 8, 8))


def measure() -> Iterator[Result]:
    for shape in _SHAPES:
        for kind, layout in LAYOUTS.items():
            tensors = [torch.randn(shape).contiguous(memory_format=layout) for _ in range(_TENSORS)]
            one_again = [tensors[0]] * _TENSORS
            yield _compare(f"{kind}, in cache", one_again)
            yield _compare(f"{kind}, out of cache", tensors)


def _compare(how: str, tensors: list[Tensor]) -> Result:
    """Compare reading these tensors one after the other with summing them."""
    first = tensors[0]
    shape = "×".join(map(str, first.shape))
    size = first.nbytes / 2**20
    what = f"{shape} ({size:.1f} MiB), {how}, {len(tensors)} times"
    sides = {
        "moments": lambda: _call_with_each(read, tensors),
        "one sum": lambda: _call_with_each(Tensor.sum, tensors),
    }
    timed = alternate(what, ROUNDS, sides)
    return timed.compare("moments", "one sum")


def _call_with_each(work: Callable[[Tensor], object], tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        work(tensor)
